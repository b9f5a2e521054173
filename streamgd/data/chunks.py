"""Column chunks as they lie in a local file: their pages, unpacked, for `streamgd.data.direct`.

What cannot be read here, or is odd in any way, raises `NotDirect`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..kernels import thrift
from .columns import is_string

#: Codecs by their number in the footer. The LZ4 of Hadoop (5) has a frame of its own.
_SNAPPY = 1
CODECS = {_SNAPPY: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
#: Physical types: bits, integers, floats and strings.
BOOLEAN, _INT32, _INT64, FLOAT, _DOUBLE, STRING = 0, 1, 2, 4, 5, 6
_WIDTHS = {_INT32: 4, _INT64: 8, FLOAT: 4, _DOUBLE: 8}
#: Encodings of values.
PLAIN, PLAIN_DICTIONARY, _RLE, DICTIONARY = 0, 2, 3, 8
_INTEGERS = (pa.int8(), pa.int16(), pa.uint8(), pa.uint16())
#: What the physical type of each Arrow type must be to be read here.
_PHYSICAL = {
    **dict.fromkeys((*_INTEGERS, pa.int32(), pa.uint32(), pa.date32()), _INT32),
    **dict.fromkeys((pa.int64(), pa.uint64()), _INT64),
    pa.float32(): FLOAT,
    pa.float64(): _DOUBLE,
    pa.bool_(): BOOLEAN,
}
#: Larger column chunks are not read at once, only so much where headers of pages are.
_KEPT_BYTES, _HEADER_BYTES = 4 << 20, 4 << 10
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


_memory = _Memory()


class Flat(NamedTuple):
    """Columns of a shard that may be read here, by name.

    Attributes
    ----------
    types : mapping of str to pyarrow.DataType
        What values of each column are.
    nullable : mapping of str to bool
        Whether a column has bits that say what is null.
    physical : mapping of str to int
        Physical type that it must have.
    """

    types: dict[str, Any]
    nullable: dict[str, bool]
    physical: dict[str, int]


def flat(columns: Sequence[str], fields: Mapping[str, Any], schema: Any) -> Flat | None:
    """What some columns of a shard are, if all may be read here: ``fields`` are the shard's, ``schema`` the data's."""
    types = {name: _value_type(schema.field(name).type) for name in columns}
    physical = {name: _physical(kind) for name, kind in types.items()}
    for name, kind in types.items():
        there = fields[name].type if name in fields else None
        if there is None or physical[name] < 0:
            return None
        if kind != _value_type(there) and not (is_string(kind) and is_string(there)):
            return None
    return Flat(types, {name: fields[name].nullable for name in columns}, physical)


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
    chunks : mapping of str to list of int
        Column chunks of some columns, as `streamgd.kernels.thrift` tells them.
    flat : Flat
        What these columns are.
    read : callable
        Fills memory with what stands from a place in the file on; returns how many bytes there were.
    """

    rows: int
    chunks: dict[str, list[int]]
    flat: Flat
    read: Callable[[NDArray[np.uint8], int], int]


class Page(NamedTuple):
    """A page whose bytes are unpacked.

    Attributes
    ----------
    at, end : int
        Address and end of its bytes.
    values, stop : int
        Values, nulls among them, and the row of the row group at which they end.
    encoding : int
        Encoding of the values.
    levels : int
        Bytes of the bits of nulls, 0 if it has none, -1 if the page says so itself.
    """

    at: int
    end: int
    values: int
    stop: int
    encoding: int
    levels: int

    @property
    def start(self) -> int:
        """The row at which they begin."""
        return self.stop - self.values


class Chunk:
    """A column chunk, whose pages are unpacked when they are wanted, and let go of when they are done.

    Parameters
    ----------
    raw : RawRowGroup
        Its row group.
    name : str
        Its column.
    start, stop : int
        Rows that will be wanted first.

    Attributes
    ----------
    dictionary : Page or None
        The dictionary, of plain values; it lives as long as the chunk.
    encodings : set of int
        Encodings of all pages of values.
    """

    def __init__(self, raw: RawRowGroup, name: str, start: int, stop: int) -> None:
        chunk = raw.chunks[name]
        codec, size, self.physical = chunk[thrift.CODEC], chunk[thrift.COMPRESSED], chunk[thrift.PHYSICAL]
        if (codec and codec not in CODECS) or size < 0 or self.physical != raw.flat.physical[name]:
            raise NotDirect("codec or type")
        self._file, self._begin = raw, chunk[thrift.START]
        self._codec = codec
        self.kind, self._nullable = raw.flat.types[name], raw.flat.nullable[name]
        self._alive: list[tuple[int, Any]] = []
        self._raw, self._from = pa.py_buffer(b""), -1
        self.dictionary: Page | None = None
        # The rows at which pages begin, and that at which the last one ends.
        self._pages, self._rows, self.encodings = list[list[int]](), [0], set[int]()
        unpacked = rows = 0
        for header in self._headers(size, codec == _SNAPPY):
            kind, large, _, values, encoding, _, checksum, _, _, _, _ = header
            unpacked += large
            if unpacked > chunk[thrift.UNCOMPRESSED] or checksum >= 0 or values < 0:
                raise NotDirect("sizes, or checksums")
            if kind != thrift.DICTIONARY_PAGE:
                rows += values
                self._pages.append(header)
                self._rows.append(rows)
                self.encodings.add(encoding)
            elif self._pages or self.dictionary or encoding not in (PLAIN, PLAIN_DICTIONARY):
                raise NotDirect("dictionary")
            else:
                self._reach(header, header)
                self.dictionary = self._unpack(header, raw.rows)
        if rows != raw.rows:
            raise NotDirect("rows")
        self._next, self._ready = 0, list[Page]()
        self.seek(start)
        self._ready, self._from = self._unpack_to(stop), -1  # as long as what was read for the headers is there

    def seek(self, row: int) -> int:
        """Pass over all pages that are not given away and end before a row; return where the next begins."""
        if self._ready:
            self._ready = [page for page in self._ready if page.stop > row]
        if self._ready:
            return self._ready[0].start
        while self._next < len(self._pages) and self._rows[self._next + 1] <= row:
            self._next += 1
        return self._rows[self._next]

    def pages(self, start: int, stop: int) -> list[Page]:
        """The next pages, up to that in which the row before ``stop`` is; those that end by ``start`` are let go of."""
        if start:
            self._alive = [(end, memory) for end, memory in self._alive if end > start]
        found = self._ready
        if not found or found[-1].stop < stop:
            found += self._unpack_to(stop)
        given = len(found)
        while given and found[given - 1].start >= stop:
            given -= 1
        self._ready = found[given:]
        return found[:given]

    def _unpack_to(self, stop: int) -> list[Page]:
        """Unpack the next pages up to a row."""
        first, last = self._next, self._next
        while last < len(self._pages) and self._rows[last] < stop:
            last += 1
        if first == last:
            return []
        self._reach(self._pages[first], self._pages[last - 1])
        found = [self._unpack(self._pages[k], self._rows[k + 1]) for k in range(first, last)]
        self._next, self._from = last, -1  # the memory may be the thread's
        return found

    def _reach(self, first: list[int], last: list[int]) -> None:
        """Make sure that the pages from one header to another are read."""
        low, high = first[thrift.BODY], last[thrift.BODY] + last[thrift.IN_FILE]
        if self._from < 0 or low < self._from or high > self._from + self._raw.size:
            self._read(low, high - low)

    def _read(self, at: int, size: int) -> NDArray[np.uint8]:
        """Read some of its bytes."""
        memory = _memory.buffer(size) if self._codec else np.empty(size, np.uint8)
        if self._file.read(memory, self._begin + at) != size:
            raise NotDirect("sizes")
        self._raw, self._from = pa.py_buffer(memory), at
        return memory

    def _headers(self, size: int, snappy: bool) -> list[list[int]]:
        """Headers of all pages."""
        found: list[list[int]] = []
        at, wanted = 0, size if size <= _KEPT_BYTES else _HEADER_BYTES
        while at < size:
            headers, data = _memory.headers(len(found)), self._read(at, min(wanted, size - at))
            n, then = thrift.chunk_pages(data, size - at, snappy, headers)
            if n < 0 or (n == 0 and len(data) == size - at):
                raise NotDirect("headers")
            wanted *= 1 if n else 16
            if at:
                headers[:n, thrift.BODY] += at
            found += headers[:n].tolist()
            at += then
        return found

    def _unpack(self, header: list[int], stop: int) -> Page:
        """A page, whose memory lives until its last row is done."""
        kind, size, in_file, values, encoding, levels, _, lists, nulls, compressed, body = header
        body, prefix = body - self._from, 0
        if kind == thrift.DICTIONARY_PAGE or (kind == thrift.DATA_PAGE and (levels == _RLE or not self._nullable)):
            levels = -1 if self._nullable else 0
        elif kind == thrift.DATA_PAGE_V2 and lists == 0 and 0 <= nulls <= min(in_file, size):
            prefix, levels = nulls, nulls if self._nullable else 0  # the bits of nulls are never packed
        else:
            raise NotDirect("page")
        if not self._codec or compressed == 0:
            if in_file != size:
                raise NotDirect("sizes")
            buffer = self._raw.slice(body, size)
            if self._codec:
                buffer = pa.py_buffer(buffer.to_pybytes())
        elif size == prefix:
            buffer = pa.py_buffer(self._raw.slice(body, size).to_pybytes())
        else:
            codec = _memory.codec(self._codec)  # that of this thread: some have a state of their own
            buffer = codec.decompress(self._raw.slice(body + prefix, in_file - prefix), size - prefix)
            if levels > 0:
                bits = np.frombuffer(self._raw.slice(body, prefix), np.uint8)
                buffer = pa.py_buffer(np.concatenate([bits, np.frombuffer(buffer, np.uint8)]))
        self._alive.append((stop, buffer))
        at = buffer.address
        return Page(at, at + buffer.size, values, stop, encoding, levels)

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
        if self.kind in _INTEGERS:
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
