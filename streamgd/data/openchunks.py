"""Some column chunks of a row group, opened together: of thousands of columns, none is an object of Python's."""

from __future__ import annotations

from collections.abc import Sequence
from io import FileIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..kernels import thrift
from ..kernels.decode import PAGE_FIELDS
from ..kernels.snappy import SPARE
from ..kernels.unpack import read_chunks
from .chunks import Chunk, NotDirect, RawRowGroup, kinds, thread_memory

#: Column chunks of which more is unpacked, or with more pages, are opened one by one; and pages of each in the mean, of
#: many, and beside.
_TOGETHER_BYTES, _TOGETHER_PAGES = 64 << 20, 64
_MEAN_PAGES, _MORE_PAGES = 8, 1024


class Together(NamedTuple):
    """Column chunks that are read and unpacked whole, by one call.

    Attributes
    ----------
    memory : object
        Holds what they unpack to.
    pages : ndarray of int64, shape (n_pages, PAGE_FIELDS)
        Pages of one after those of the other.
    first : ndarray of int64, shape (n + 1,)
        Where those of each begin.
    ends : ndarray of int64, shape (n_pages + n, 2)
        What `streamgd.kernels.unpack.list_pages` says of rows and bytes.
    plain, dictionary : ndarray of bool, shape (n,)
        Whether a page of data has plain values, and whether the first page is a dictionary.
    """

    memory: Any
    pages: NDArray[np.int64]
    first: NDArray[np.int64]
    ends: NDArray[np.int64]
    plain: NDArray[np.bool_]
    dictionary: NDArray[np.bool_]

    def ends_of(self, k: int) -> NDArray[np.int64]:
        """Rows and bytes before each page of a chunk, and all of them."""
        return self.ends[self.first[k] + k : self.first[k + 1] + k + 1]

    def pages_at(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each chunk, the last page that begins at or before a row, and the row at which it begins."""
        starts = self.first[:-1] + np.arange(len(self.plain))
        reached = np.add.reduceat(self.ends[:, 0] <= row, starts) - 1 if len(starts) else starts
        return self.first[:-1] + reached, self.ends[starts + reached, 0]

    def open(self, chunk: Chunk, k: int) -> None:
        """Give a chunk its pages."""
        pages = self.pages[self.first[k] : self.first[k + 1]]
        chunk.opened(self.memory, pages, self.ends_of(k), bool(self.plain[k]), bool(self.dictionary[k]))


class OpenChunks:
    """Some column chunks of a row group, with the pages of some rows unpacked.

    By one call, if these are all, or what is unpacked of others may as well stay until they are wanted.

    Parameters
    ----------
    raw : RawRowGroup
        The row group.
    columns : ndarray of int64
        Numbers of the columns.
    start, stop : int
        The rows.

    Attributes
    ----------
    together : Together
        Those that are unpacked by one call.
    place : ndarray of int64
        Where each is among these, or -1.
    """

    def __init__(self, raw: RawRowGroup, columns: NDArray[np.int64], start: int, stop: int) -> None:
        small = raw.are_small(columns)
        whole = (start == 0 and stop == raw.rows) or raw.is_little
        some = np.flatnonzero(small & whole)
        chosen, rows = columns[some], np.full(len(some), raw.rows)
        self._raw, self._columns, self._chunks = raw, columns, dict[int, Chunk]()
        self.together = _read_together(raw.file, raw.table[chosen], raw.flat.nullable[chosen], rows)
        self.place = np.full(len(columns), -1)
        self.place[some[: len(self.together.plain)]] = np.arange(len(self.together.plain))
        for k in np.flatnonzero(self.place < 0).tolist():
            self.chunk(k).open(start, stop)

    def chunk(self, k: int) -> Chunk:
        """One of them."""
        if k not in self._chunks:
            self._chunks[k] = Chunk(self._raw, int(self._columns[k]))
            if self.place[k] >= 0:
                self.together.open(self._chunks[k], int(self.place[k]))
        return self._chunks[k]


def open_column(raws: Sequence[RawRowGroup], name: str) -> list[Chunk | None]:
    """A column of several row groups of a file, each with all of its pages unpacked, or None if it cannot be."""
    flat, chunks = raws[0].flat, list[Chunk | None]()
    place, rows = flat.places[name], np.array([raw.rows for raw in raws])
    table = np.stack([raw.table[place] for raw in raws])
    known, small = kinds(table, int(flat.physical[place]))
    some = np.flatnonzero(small)
    together = _read_together(raws[0].file, table[some], np.full(len(some), flat.nullable[place]), rows[some])
    places = {int(k): number for number, k in enumerate(some[: len(together.plain)])}
    for k, raw in enumerate(raws):
        chunk = Chunk(raw, place)
        try:
            if k in places:
                together.open(chunk, places[k])
            elif known[k]:
                chunk.open(0, raw.rows)
            chunks.append(chunk if known[k] else None)
        except (NotDirect, pa.ArrowException, OSError, MemoryError):  # Arrow will say what is wrong
            chunks.append(None)
    return chunks


def _read_together(
    file: FileIO, table: NDArray[np.int64], nullable: NDArray[np.bool_], rows: NDArray[np.int64]
) -> Together:
    """Read and unpack whole column chunks, of so many rows each: as many of the first as can be."""
    room = int((np.maximum(table[:, thrift.COMPRESSED], table[:, thrift.UNCOMPRESSED]) + SPARE).sum())
    if room > _TOGETHER_BYTES:
        table, room = table[:0], 0
    memory = pa.allocate_buffer(room)
    headers, out = thread_memory.headers(0)[:_TOGETHER_PAGES], np.frombuffer(memory, np.uint8)
    pages = np.empty((_MEAN_PAGES * len(table) + _MORE_PAGES, PAGE_FIELDS), np.int64)
    ends, told = np.empty((len(pages) + len(table), 2), np.int64), np.zeros((len(table), 3), np.int64)
    largest = thread_memory.buffer(int(table[:, thrift.COMPRESSED].max(initial=0)))
    n = int(read_chunks(file.fileno(), table, nullable, rows, largest, headers, out, pages, ends, told))
    first = np.concatenate([[0], np.cumsum(told[:n, 0])])
    pages, ends = pages[: first[n]].copy(), ends[: first[n] + n].copy()  # there was room for many more
    return Together(memory, pages, first, ends, told[:n, 1] != 0, told[:n, 2] != 0)
