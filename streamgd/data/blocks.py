"""Encoded blocks of a row group, front to back: straight from its pages if that can be, else by Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from time import thread_time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..crash import decoding
from .chunks import NotDirect
from .direct import PageRows, Recipe
from .encode import Encoder
from .rowgroups import RowGroupReader, Source


class Block(NamedTuple):
    """Encoded rows, as a cache takes them: rows of a row group, less those without a target.

    Attributes
    ----------
    start, planned : int
        The first of the rows in the row group, and how many they are.
    encoded : ndarray of float32, shape (n, stride)
        Those that have a target.
    dropped : ndarray of int64, shape (planned - n,)
        Places of the others in the row group.
    texts : list of ndarray of uint32
        Hashes of n-grams, to which rows hold addresses.
    """

    start: int
    planned: int
    encoded: NDArray[np.float32]
    dropped: NDArray[np.int64]
    texts: list[NDArray[np.uint32]]


class BlockReader:
    """Reads a row group into memory for encoded rows.

    Parameters
    ----------
    source, encoder
        Where rows come from, and what becomes of them.
    row_group : int
        Which.
    recipe : Recipe, optional
        What becomes of its columns, if that can be without Arrow.

    Attributes
    ----------
    rows, done : int
        Rows of the row group, and how many are read.
    encoding : float
        Seconds of thread time that encoding took, apart from reading.
    """

    def __init__(self, source: Source, encoder: Encoder, row_group: int, recipe: Recipe | None) -> None:
        self._source, self._encoder, self._row_group = source, encoder, row_group
        self.rows, self.done, self.encoding = int(source.manifest.rows[row_group]), 0, 0.0
        raw = None if recipe is None else source.raw(row_group, encoder.columns)
        self._pages = None if raw is None or recipe is None else PageRows(raw, recipe, encoder)
        self._batches: RowGroupReader | None = None

    def skip(self, n: int) -> None:
        """Pass over the next n rows."""
        if self._pages is not None:
            self._pages.skip(n)
        elif n:
            self._by_arrow().skip(n)
        self.done += n

    def read(self, n: int, out: NDArray[np.float32]) -> Iterator[Block]:
        """Encode the next n rows into the first of ``out``."""
        if self._pages is not None:
            before = self._pages.decoding
            try:
                with decoding(self._source.describe(self._row_group)):
                    kept, dropped = self._pages.encode(n, out)
            except NotDirect:
                self._pages = None  # nothing of this piece stands
            else:
                self.encoding += self._pages.decoding - before
                self.done += n
                yield Block(self.done - n, n, out[:kept], self.done - n + dropped, [])
                return
        batches, place = self._by_arrow(), 0
        for batch in batches.read(n):
            mark, texts = thread_time(), list[NDArray[np.uint32]]()
            kept, dropped = self._encoder.encode_and_tell(batch, out[place:], batches.where, texts)
            self.encoding += thread_time() - mark
            start = self.done
            self.done += batch.num_rows
            yield Block(start, batch.num_rows, out[place : place + kept], start + dropped, texts)
            place += kept

    def finish(self) -> None:
        """Make sure that the row group ends where the footer says."""
        if self._batches is not None:
            self._batches.finish()

    def _by_arrow(self) -> RowGroupReader:
        if self._batches is None:
            self._batches = self._source.open(self._row_group, self._encoder.columns, self._encoder.batch_rows)
            self._batches.skip(self.done)
        return self._batches
