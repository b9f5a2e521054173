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
#: Larger column chunks are read into memory of their own.
_KEPT_BYTES = 4 << 20


class NotDirect(Exception):
    """A row group is for Arrow to read."""


class _Memory(threading.local):
    """What each thread uses again and again."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._codecs: dict[int, Any] = {}

    def codec(self, number: int) -> Any:
        """What unpacks pages."""
        if number not in self._codecs:
            self._codecs[number] = pa.Codec(CODECS[number])
        return self._codecs[number]

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
    """A page whose bytes are unpacked: its address, end and values, their encoding, and bytes of the bits of nulls.

    These are 0 if it has none, and -1 if the page says so itself.
    """

    at: int
    end: int
    values: int
    encoding: int
    levels: int


class Chunk:
    """The pages of a column chunk, unpacked: a dictionary or none, and pages of values; alive as long as this."""

    def __init__(self, raw: RawRowGroup, name: str) -> None:
        chunk = raw.chunks[name]
        codec, size, self.physical = chunk[thrift.CODEC], chunk[thrift.COMPRESSED], chunk[thrift.PHYSICAL]
        if (codec and codec not in CODECS) or size < 0 or self.physical != raw.flat.physical[name]:
            raise NotDirect("codec or type")
        memory = _memory.buffer(size) if codec else np.empty(size, np.uint8)
        if raw.read(memory, chunk[thrift.START]) != size:
            raise NotDirect("sizes")
        self._raw: Any = pa.py_buffer(memory)
        self._at = self._raw.address
        self._alive: list[Any] = [] if codec else [memory]
        self._codec = _memory.codec(codec) if codec else None
        self.kind, self._nullable = raw.flat.types[name], raw.flat.nullable[name]
        self.dictionary: Page | None = None
        self.pages: list[Page] = []
        unpacked = rows = 0
        for header in _headers(memory, codec == _SNAPPY):
            unpacked += header[thrift.SIZE]
            if unpacked > chunk[thrift.UNCOMPRESSED] or header[thrift.CHECKSUM] >= 0 or header[thrift.COUNT] < 0:
                raise NotDirect("sizes, or checksums")
            rows += header[thrift.COUNT] if header[thrift.TYPE] != thrift.DICTIONARY_PAGE else 0
            self._add(header)
        self._raw = None  # it may be the thread's
        if rows != raw.rows:
            raise NotDirect("rows")

    def _add(self, header: list[int]) -> None:
        kind, size, in_file, values, encoding, levels, _, lists, nulls, compressed, body = header
        if kind == thrift.DICTIONARY_PAGE and self.dictionary is None and not self.pages:
            if encoding not in (PLAIN, PLAIN_DICTIONARY):
                raise NotDirect("dictionary")
            self.dictionary = Page(*self._unpacked(body, in_file, size), values, PLAIN, 0)
        elif kind == thrift.DATA_PAGE and (levels == _RLE or not self._nullable):
            levels = -1 if self._nullable else 0
            self.pages.append(Page(*self._unpacked(body, in_file, size), values, encoding, levels))
        elif kind == thrift.DATA_PAGE_V2 and lists == 0 and 0 <= nulls <= min(in_file, size):
            if self._codec is None:
                place = self._at + body, self._at + body + in_file
            elif compressed == 0:
                place = self._kept(pa.py_buffer(self._raw.slice(body, in_file).to_pybytes()))
            else:
                at, end = self._unpacked(body + nulls, in_file - nulls, size - nulls)
                place = self._joined(body, nulls, at, end) if self._nullable else (at, end)
            self.pages.append(Page(*place, values, encoding, nulls if self._nullable else 0))
        else:
            raise NotDirect("page")

    def _unpacked(self, body: int, in_file: int, size: int) -> tuple[int, int]:
        """Address and end of what some bytes of the chunk are when they are unpacked."""
        if self._codec is None or not size:
            return self._at + body, self._at + body + size
        return self._kept(self._codec.decompress(self._raw.slice(body, in_file), size))

    def _kept(self, buffer: Any) -> tuple[int, int]:
        """Address and end of some bytes that live as long as the chunk."""
        self._alive.append(buffer)
        at = buffer.address
        return at, at + buffer.size

    def _joined(self, body: int, nulls: int, at: int, end: int) -> tuple[int, int]:
        """Bits of nulls, which are never packed, before the values that they are of."""
        data = np.frombuffer(self._raw.slice(body, nulls), np.uint8)
        values = np.frombuffer(self._alive.pop(), np.uint8)[: end - at]
        return self._kept(pa.py_buffer(np.concatenate([data, values])))

    def keep(self, memory: Any) -> None:
        """Let memory live as long as the chunk."""
        self._alive.append(memory)

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


def _headers(data: NDArray[np.uint8], snappy: bool) -> list[list[int]]:
    """Headers of the pages of a chunk."""
    most = 64
    while True:
        headers = np.empty((most, thrift.HEADER_FIELDS), np.int64)
        if (n := int(thrift.chunk_pages(data, snappy, headers))) >= 0:
            found: list[list[int]] = headers[:n].tolist()
            return found
        if n == -1 or most > len(data):
            raise NotDirect("headers")
        most *= 16


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


def values_begin(page: Page) -> int:
    """Where the values of a page begin, after the bits of nulls."""
    size = page.levels
    if size < 0:
        if page.end - page.at < 4:
            raise NotDirect("levels")
        size = 4 + int.from_bytes(pa.foreign_buffer(page.at, 4).to_pybytes(), "little")
    if size > page.end - page.at:
        raise NotDirect("levels")
    return page.at + size
