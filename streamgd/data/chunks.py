"""Column chunks as they lie in a local file: their pages, unpacked, for `streamgd.data.direct`.

What cannot be read here, or is odd in any way, raises `NotDirect`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..kernels import thrift
from ..kernels.decode import BEGIN, END, LEVELS, PAGE_FIELDS
from ..kernels.snappy import SPARE
from ..kernels.unpack import SNAPPY, UNPACKED, list_pages, unpack_pages
from .buffers import NARROW
from .columns import is_string

#: Codecs by their number in the footer. The LZ4 of Hadoop (5) has a frame of its own.
CODECS = {SNAPPY: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_KNOWN = np.array([codec in (UNPACKED, *CODECS) for codec in range(max(CODECS) + 2)])
#: Physical types: bits, integers, floats and strings; bytes of those that have a width.
BOOLEAN, _INT32, _INT64, FLOAT, _DOUBLE, STRING = 0, 1, 2, 4, 5, 6
INTEGERS = {_INT32: 4, _INT64: 8}
_WIDTHS = {**INTEGERS, FLOAT: 4, _DOUBLE: 8}
#: What the physical type of each Arrow type must be to be read here.
_PHYSICAL = {
    **dict.fromkeys((*NARROW, pa.int32(), pa.uint32(), pa.date32()), _INT32),
    **dict.fromkeys((pa.int64(), pa.uint64()), _INT64),
    pa.float32(): FLOAT,
    pa.float64(): _DOUBLE,
    pa.bool_(): BOOLEAN,
}
#: Larger column chunks are not read at once, only so much where headers of pages are.
_KEPT_BYTES, _HEADER_BYTES = 4 << 20, 4 << 10
#: Row groups of which no more is unpacked, or no more a column, are unpacked as a whole.
_LITTLE_BYTES, _LITTLE_CHUNK = 16 << 20, 64 << 10
_NONE = np.empty(0, np.uint8)


class NotDirect(Exception):
    """A row group is for Arrow to read."""


class _Memory(threading.local):
    """What each thread uses again and again."""

    def __init__(self) -> None:
        self._headers = np.empty((64, thrift.HEADER_FIELDS), np.int64)
        self._buffer = _NONE
        self._codecs: dict[int, Any] = {}

    def codec(self, number: int) -> Any:
        """What unpacks pages."""
        if number not in self._codecs:
            self._codecs[number] = pa.Codec(CODECS[number])
        return self._codecs[number]

    def headers(self, found: int) -> NDArray[np.int64]:
        """Memory for headers, for more of them the more there are."""
        if found >= len(self._headers):
            self._headers = np.empty((16 * len(self._headers), thrift.HEADER_FIELDS), np.int64)
        return self._headers

    def buffer(self, size: int) -> NDArray[np.uint8]:
        """Memory for so many bytes until the thread asks again."""
        if size > _KEPT_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self._buffer):
            self._buffer = np.empty(max(size, 2 * len(self._buffer)), np.uint8)
        return self._buffer[:size]


thread_memory = _Memory()


class Flat(NamedTuple):
    """Columns of a shard that may be read here.

    Attributes
    ----------
    places : mapping of str to int
        Number of each column, by name.
    types : list of pyarrow.DataType
        What values of each column are.
    nullable : ndarray of bool
        Whether a column has bits that say what is null.
    physical : ndarray of int64
        Physical type that it must have.
    """

    places: dict[str, int]
    types: list[Any]
    nullable: NDArray[np.bool_]
    physical: NDArray[np.int64]


def flat(columns: Sequence[str], schema: Any, wanted: Any) -> Flat | None:
    """What some columns of a shard are, if all may be read here: ``schema`` is the shard's, ``wanted`` the data's."""
    fields = {field.name: field for field in schema}
    types = [_value_type(wanted.field(name).type) for name in columns]
    physical = [_physical(kind) for kind in types]
    for name, kind in zip(columns, types, strict=True):
        there = _value_type(fields[name].type)
        if kind != there and not (is_string(kind) and is_string(there)):
            return None
    places = {name: place for place, name in enumerate(columns)}
    if min(physical, default=0) < 0 or len(places) < len(columns):
        return None
    nullable = np.array([fields[name].nullable for name in columns], np.bool_)
    return Flat(places, types, nullable, np.array(physical, np.int64))


def _value_type(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _physical(kind: Any) -> int:
    """Physical type of the values of an Arrow type that can be read here, or -1."""
    if is_string(kind):
        return STRING
    return _INT64 if pa.types.is_timestamp(kind) else _PHYSICAL.get(kind, -1)


@dataclass(frozen=True)
class RawRowGroup:
    """A row group as it lies in a file.

    Attributes
    ----------
    rows : int
        Rows, as the footer says.
    table : ndarray of int64, shape (n_columns, CHUNK_FIELDS)
        Column chunks of some columns, as `streamgd.kernels.thrift` tells them.
    flat : Flat
        What these columns are.
    file : FileIO
        The file.
    """

    rows: int
    table: NDArray[np.int64]
    flat: Flat
    file: FileIO

    @cached_property
    def unpacked(self) -> int:
        """Bytes that its chunks unpack to, as the footer says."""
        return int(self.table[:, thrift.UNCOMPRESSED].sum())

    @property
    def is_little(self) -> bool:
        """Whether it may stay unpacked until it is wanted, which memory is planned for.

        Of many columns it may, since Python needs more time for each page of its own than for the rows in it.
        """
        return self.unpacked <= max(_LITTLE_BYTES, _LITTLE_CHUNK * len(self.table))

    def are_small(self, columns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether chunks of some columns may be read and unpacked at once, by a kernel alone.

        Raises
        ------
        NotDirect
            The codec or the type of one is not known here.
        """
        known, small = kinds(self.table[columns], self.flat.physical[columns])
        if not known.all():
            raise NotDirect("codec, size or type")
        return small

    def read(self, memory: NDArray[np.uint8], at: int) -> int:
        """Fill memory with what stands from a place in the file on; return how many bytes there were."""
        view, done = memory.data, 0
        while done < len(view) and (n := os.preadv(self.file.fileno(), [view[done:]], at + done)):
            done += n
        return done


def kinds(told: NDArray[np.int64], physical: NDArray[np.int64] | int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether column chunks may be read here, and whether they may be read and unpacked at once, by a kernel alone.

    ``told`` is what the footer tells of them, ``physical`` what types of theirs must be.
    """
    codec, size = told[:, thrift.CODEC], told[:, thrift.COMPRESSED]
    known = _KNOWN[codec.clip(0, len(_KNOWN) - 1)] & (codec >= 0) & (size >= 0)
    known &= told[:, thrift.PHYSICAL] == physical
    return known, known & ((codec == UNPACKED) | (codec == SNAPPY)) & (size <= _KEPT_BYTES)


class Chunk:
    """A column chunk, whose pages are unpacked when they are wanted, and let go of when they are done.

    Parameters
    ----------
    raw : RawRowGroup
        Its row group.
    column : int
        Number of its column.

    Attributes
    ----------
    dictionary : ndarray of int64, or None
        The page of a dictionary, of plain values; it lives as long as the chunk.
    plain : bool
        Whether a page of data has plain values.
    rows : int
        Rows.
    """

    dictionary: NDArray[np.int64] | None
    plain: bool
    _rows: list[int]
    _bytes: list[int]

    def __init__(self, raw: RawRowGroup, column: int) -> None:
        self._told, self._file, self.rows = raw.table[column].tolist(), raw, raw.rows
        self._codec, self._begin, self.physical = (self._told[k] for k in (thrift.CODEC, thrift.START, thrift.PHYSICAL))
        self.kind, self.nullable = raw.flat.types[column], bool(raw.flat.nullable[column])
        self._alive: list[tuple[int, Any]] = []
        self._raw, self._from = _NONE, -1
        self._given = self._next = 0

    def open(self, start: int, stop: int) -> None:
        """Read it, and unpack the pages of some rows."""
        self._headers = self._find_headers(self._told[thrift.COMPRESSED])
        n, unpacked = len(self._headers), self._told[thrift.UNCOMPRESSED]
        pages, ends = np.empty((n, PAGE_FIELDS), np.int64), np.empty((n + 1, 2), np.int64)
        fit, plain = list_pages(self._headers, self._codec != UNPACKED, self.nullable, self.rows, unpacked, pages, ends)
        if not fit:
            raise NotDirect("pages")
        self._know(pages, ends, plain, n > 0 and self._headers[0, thrift.TYPE] == thrift.DICTIONARY_PAGE)
        first = self._given
        self.seek(start)
        last = self._last(stop)
        together = last == n and self._next == first  # what lives as long as the chunk may be one with the rest
        if first and not together:
            self._unpack(0, 1)
        self._unpack(0 if together else self._next, last)
        self._next, self._from = last, -1  # the memory may be the thread's

    def opened(
        self, memory: Any, pages: NDArray[np.int64], ends: NDArray[np.int64], plain: bool, dictionary: bool
    ) -> None:
        """Take pages that are unpacked."""
        self._know(pages, ends, plain, dictionary)
        self._next = len(pages)
        self.keep(memory, self.rows + 1)

    def _know(self, pages: NDArray[np.int64], ends: NDArray[np.int64], plain: bool, dictionary: bool) -> None:
        self._pages, self.plain = pages, plain
        self._rows, self._bytes = ends.T.tolist()
        self.dictionary = pages[0] if dictionary else None
        self._given = self._next = int(dictionary)

    def seek(self, row: int) -> int:
        """Pass over all pages that are not given away and end before a row; return where the next begins."""
        while self._given < len(self._pages) and self._rows[self._given + 1] <= row:
            self._given += 1
        self._next = max(self._next, self._given)
        return self._rows[self._given]

    def pages(self, start: int, stop: int) -> tuple[int, NDArray[np.int64]]:
        """The number of the next page, and those up to that in which the row before ``stop`` is.

        Pages that end by ``start`` are let go of.
        """
        if start:
            self._alive = [(end, memory) for end, memory in self._alive if end > start]
        first, last = self._given, self._last(stop)
        if last > self._next:
            self._unpack(self._next, last)
            self._next, self._from = last, -1
        self._given = last
        return first, self._pages[first:last]

    def end(self, page: int) -> int:
        """The row at which a page ends."""
        return self._rows[page + 1]

    def _last(self, stop: int) -> int:
        """The page after those that are wanted up to a row."""
        last = self._given
        while last < len(self._pages) and self._rows[last] < stop:
            last += 1
        return last

    def _unpack(self, first: int, last: int) -> None:
        """Unpack some pages; they live until the last row of them is done, a dictionary as long as the chunk."""
        if first >= last:
            return
        low = int(self._headers[first, thrift.BODY])
        high = int(self._headers[last - 1, thrift.BODY] + self._headers[last - 1, thrift.IN_FILE])
        if self._from < 0 or low < self._from or high > self._from + len(self._raw):
            self._read(low, high - low)
        memory: Any = self._raw
        if self._codec in (UNPACKED, SNAPPY):
            address = 0
            if self._codec == SNAPPY:
                memory = pa.allocate_buffer(self._bytes[last] - self._bytes[first] + SPARE)
                address = memory.address
            if not unpack_pages(self._raw, self._from, self._headers, first, last, self._codec, address, self._pages):
                raise NotDirect("pages")
        else:
            memory = [self._unpacked(page) for page in range(first, last)]
        keep_all = first == 0 and self.dictionary is not None
        self._alive.append((self.rows + 1 if keep_all else self._rows[last], memory))

    def _unpacked(self, page: int) -> Any:
        """Unpack one page by Arrow's codec."""
        header, raw = self._headers[page], pa.py_buffer(self._raw)
        body, size, in_file = (int(header[k]) for k in (thrift.BODY, thrift.SIZE, thrift.IN_FILE))
        body, prefix = body - self._from, max(int(self._pages[page, LEVELS]), 0)
        if header[thrift.IS_COMPRESSED] == 0 or size == prefix:
            memory = pa.py_buffer(raw.slice(body, size).to_pybytes())
        else:
            codec = thread_memory.codec(self._codec)  # that of this thread: some have a state of their own
            memory = codec.decompress(raw.slice(body + prefix, in_file - prefix), size - prefix)
            if prefix:  # bits of nulls are never packed in the second version
                bits = np.frombuffer(raw.slice(body, prefix), np.uint8)
                memory = pa.py_buffer(np.concatenate([bits, np.frombuffer(memory, np.uint8)]))
        self._pages[page, BEGIN], self._pages[page, END] = memory.address, memory.address + memory.size
        return memory

    def _read(self, at: int, size: int) -> NDArray[np.uint8]:
        """Read some of its bytes."""
        memory = thread_memory.buffer(size) if self._codec != UNPACKED else np.empty(size, np.uint8)
        if self._file.read(memory, self._begin + at) != size:
            raise NotDirect("sizes")
        self._raw, self._from = memory, at
        return memory

    def _find_headers(self, size: int) -> NDArray[np.int64]:
        """Headers of all pages."""
        found: list[NDArray[np.int64]] = []
        at, wanted, many = 0, size if size <= _KEPT_BYTES else _HEADER_BYTES, 0
        while at < size:
            headers, data = thread_memory.headers(many), self._read(at, min(wanted, size - at))
            n, then = thrift.chunk_pages(data, size - at, self._codec == SNAPPY, headers)
            if n < 0 or (n == 0 and len(data) == size - at):
                raise NotDirect("headers")
            wanted *= 1 if n else 16
            if at:
                headers[:n, thrift.BODY] += at
            found.append(headers[:n].copy())
            at, many = at + then, many + n
        return found[0] if len(found) == 1 else np.concatenate([np.empty((0, thrift.HEADER_FIELDS), np.int64), *found])

    def keep(self, memory: Any, stop: int) -> None:
        """Let memory live until a row is done."""
        self._alive.append((stop, memory))

    def values(self, at: int, end: int, most: int) -> Any:
        """Plain values between two addresses, at most so many, as an array of Arrow's."""
        physical = self.physical
        if physical == STRING:
            return _strings(at, end, most, self.kind)
        if physical == BOOLEAN:
            most = min(most, 8 * (end - at))
            return pa.Array.from_buffers(pa.bool_(), most, [None, pa.foreign_buffer(at, end - at)])
        most = min(most, (end - at) // _WIDTHS[physical])
        data = pa.py_buffer(pa.foreign_buffer(at, most * _WIDTHS[physical]).to_pybytes())  # aligned
        if self.kind in NARROW:
            return pa.Array.from_buffers(pa.int32(), most, [None, data]).cast(self.kind)
        return pa.Array.from_buffers(self.kind, most, [None, data])


def _strings(at: int, end: int, most: int, kind: Any) -> Any:
    """Strings that stand one after the other, each after its length."""
    data, place = pa.foreign_buffer(at, end - at).to_pybytes(), 0
    found: list[bytes] = []
    while len(found) < most and place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        if size > len(data) - place - 4:
            raise NotDirect("strings")
        found.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    return pa.array(found, pa.large_binary()).cast(kind)


def values_begin(at: int, end: int, levels: int) -> int:
    """Where the values of a page begin, after the bits of nulls."""
    if levels < 0:
        if end - at < 4:
            raise NotDirect("levels")
        levels = 4 + int.from_bytes(pa.foreign_buffer(at, 4).to_pybytes(), "little")
    if levels > end - at:
        raise NotDirect("levels")
    return at + levels
