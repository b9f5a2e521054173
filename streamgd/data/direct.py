"""Row groups to encoded rows without Arrow in between: four times as fast for strings, since no column is ever made.

It is for what most tables are: local files, flat columns of numbers and categories, in dictionaries or plain. Whatever
is otherwise, or odd in any way, is left to Arrow (`NotDirect`), which decodes more, and says what is wrong. Both ways
give the same rows to the last bit.

What becomes of a value is said by the same functions as there, of the values of a dictionary instead of a column.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import thread_time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import StreamgdError
from ..features import Column
from ..kernels import decode as kernels
from ..kernels import thrift
from ..kernels.intrinsics import LANES
from .buffers import CODES, floats
from .columns import is_string
from .pages import Chunks
from .strings import calendar_hashes, column_seeds, hash_values, write_pairs
from .target import Target, sample_weights

if TYPE_CHECKING:
    from .encode import Encoder

Cells = NDArray[np.uint32]

#: Codecs by their number in the footer. The LZ4 of Hadoop (5) has a frame of its own.
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
#: Physical types: bits, integers, floats and strings.
_BOOLEAN, _INT32, _INT64, _FLOAT, _DOUBLE, _STRING = 0, 1, 2, 4, 5, 6
_WIDTHS = {_INT32: 4, _INT64: 8, _FLOAT: 4, _DOUBLE: 8}
#: Encodings of values.
_PLAIN, _PLAIN_DICTIONARY, _RLE, _DICTIONARY = 0, 2, 3, 8
_INTEGERS = (pa.int8(), pa.int16(), pa.uint8(), pa.uint16())
#: What the physical type of each Arrow type must be to be read here.
_PHYSICAL = {
    **dict.fromkeys((*_INTEGERS, pa.int32(), pa.uint32(), pa.date32()), _INT32),
    **dict.fromkeys((pa.int64(), pa.uint64()), _INT64),
    pa.float32(): _FLOAT,
    pa.float64(): _DOUBLE,
    pa.bool_(): _BOOLEAN,
}
_NAN = int(np.float32(np.nan).view(np.uint32))
#: Rows that are decoded only to get past them, at a time.
_SKIPPED_ROWS = 4096


#: Larger column chunks are read into memory of their own.
_KEPT_BYTES = 4 << 20


class NotDirect(Exception):
    """A row group is for Arrow to read."""


class _Memory(threading.local):
    """Memory that each thread uses again and again."""

    def __init__(self) -> None:
        self.tile = np.zeros((LANES + 1, kernels.COLUMN_ROWS), np.uint32)
        self._buffer = np.empty(0, np.uint8)

    def buffer(self, size: int) -> NDArray[np.uint8]:
        """Memory for so many bytes until the thread asks again."""
        if size > _KEPT_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self._buffer):
            self._buffer = np.empty(max(size, 2 * len(self._buffer)), np.uint8)
        return self._buffer[:size]


_memory = _Memory()


@dataclass(frozen=True)
class RawRowGroup:
    """A row group as it lies in a file.

    Attributes
    ----------
    rows : int
        Rows, as the footer says.
    chunks : Chunks
        Column chunks of some columns, one each.
    types : mapping of str to pyarrow.DataType
        What values of each column are.
    nullable : mapping of str to bool
        Whether a column has bits that say what is null.
    read : callable
        Fills memory with what stands from a place in the file on; returns how many bytes there were.
    where : str
        Names the row group.
    """

    rows: int
    chunks: Chunks
    types: dict[str, Any]
    nullable: dict[str, bool]
    read: Callable[[NDArray[np.uint8], int], int]
    where: str


@dataclass(frozen=True)
class _Cell:
    """What takes a cell of each row: made of the values of a column by ``make``, and what stands for null.

    Numbers have an ``offset`` and what they are filled with, strings a ``seed`` of their hashes. Rows without a target
    are ``left_out``; a weight is ``needed``, and Arrow says where it is null.
    """

    name: str
    cell: int
    make: Callable[[Any], NDArray[Any]]
    missing: int
    offset: float | None = None
    fill: float = 0.0
    seed: int | None = None
    left_out: bool = False
    needed: bool = False


def value_type(kind: Any) -> Any:
    """Arrow type of values, whether they come as a dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def same_values(one: Any, other: Any) -> bool:
    """Whether values of two Arrow types are the same in a file; strings are, in whatever form."""
    return value_type(one) == value_type(other) or (is_string(one) and is_string(other))


def _number(values: Any, offset: float, fill: float) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        cells: NDArray[np.float32] = (floats(values) - offset).astype(np.float32)
    if np.isinf(cells).any():
        raise NotDirect("infinity")
    return np.where(np.isnan(cells), np.float32(fill), cells)


def _is_missing(values: Any, offset: float) -> NDArray[np.float32]:
    cells: NDArray[np.float32] = (np.isnan(floats(values)) - offset).astype(np.float32)
    return cells


def _bits(cell: float) -> int:
    return int(np.float32(cell).view(np.uint32))


def _dense(column: Column, cell: int, encoder: Encoder) -> _Cell:
    offset, fill = float(encoder.spec.offset[cell]), float(encoder.spec.fill[cell])
    if column.kind == "missing":
        return _Cell(column.name, cell, partial(_is_missing, offset=offset), _bits(np.float64(1) - offset))
    return _Cell(column.name, cell, partial(_number, offset=offset, fill=fill), _bits(fill), offset, fill)


def _hashed(column: Column, cell: int) -> _Cell:
    seed, missing = column_seeds(column.label)
    if column.kind == "category":
        return _Cell(column.name, cell, partial(hash_values, seed=seed, missing=missing), missing, seed=seed)
    return _Cell(column.name, cell, partial(calendar_hashes, column), missing)


def _target(target: Target, cell: int) -> _Cell:
    return _Cell(target.name, cell, partial(target.encode, where=""), _NAN, left_out=True)


def _weights(values: Any, name: str, scale: float) -> NDArray[np.float32]:
    return (sample_weights(values, name, "") * scale).astype(np.float32)


class Recipe(NamedTuple):
    """What becomes of columns: of each cache line its first cell, and what takes its cells."""

    lines: tuple[tuple[int, tuple[_Cell, ...]], ...]


def recipe(encoder: Encoder) -> Recipe | None:
    """What becomes of columns, if all features come from single values of flat columns."""
    spec, layout = encoder.spec, encoder.layout
    if encoder.class_weight is not None or spec.group("text"):
        return None
    if any(column.kind in ("vector", "product") for column in spec.group("dense")):
        return None
    cells = [_dense(column, cell, encoder) for cell, column in enumerate(spec.group("dense"))]
    cells += [_hashed(column, layout.width + i) for i, column in enumerate(encoder.plain)]
    if encoder.target is not None:
        cells.append(_target(encoder.target, layout.y_cell))
    if encoder.weight is not None:
        make = partial(_weights, name=encoder.weight, scale=encoder.weight_scale)
        cells.append(_Cell(encoder.weight, layout.w_cell, make, _NAN, needed=True))
    lines: dict[int, list[_Cell]] = {}
    for cell in cells:
        lines.setdefault(cell.cell // LANES * LANES, []).append(cell)
    return Recipe(tuple((line, tuple(lines[line])) for line in sorted(lines)))


class _Page(NamedTuple):
    """A page whose bytes are unpacked: its address, end and values, their encoding, and bytes of the bits of nulls.

    These are 0 if it has none, and -1 if the page says so itself.
    """

    at: int
    end: int
    values: int
    encoding: int
    levels: int


class _Chunk:
    """The pages of a column chunk, unpacked: a dictionary or none, and pages of values; alive as long as this."""

    def __init__(self, raw: RawRowGroup, name: str) -> None:
        chunk = raw.chunks.table[raw.chunks.columns.index(name)]
        codec, size = int(chunk[thrift.CODEC]), int(chunk[thrift.COMPRESSED])
        if (codec and codec not in CODECS) or size < 0:
            raise NotDirect("codec")
        memory = _memory.buffer(size) if codec else np.empty(size, np.uint8)
        if raw.read(memory, int(chunk[thrift.START])) != size:
            raise NotDirect("sizes")
        self._raw: Any = pa.py_buffer(memory)
        self._nullable = raw.nullable[name]
        self._alive: list[Any] = []
        self._codec = pa.Codec(CODECS[codec]) if codec else None
        self.kind, self.physical = raw.types[name], int(chunk[thrift.PHYSICAL])
        self.dictionary: _Page | None = None
        self.pages: list[_Page] = []
        headers = _headers(memory)
        if headers[:, thrift.SIZE].sum() > chunk[thrift.UNCOMPRESSED] or (headers[:, thrift.CHECKSUM] >= 0).any():
            raise NotDirect("sizes or checksums")
        for header in headers.tolist():
            self._add(header)
        if codec:
            self._raw = None  # it is the thread's
        if sum(page.values for page in self.pages) != raw.rows:
            raise NotDirect("rows")

    def _add(self, header: list[int]) -> None:
        kind, size, in_file, values, encoding, levels, _, lists, nulls, compressed, body = header
        if values < 0:
            raise NotDirect("values")
        if kind == thrift.DICTIONARY_PAGE and self.dictionary is None and not self.pages:
            if encoding not in (_PLAIN, _PLAIN_DICTIONARY):
                raise NotDirect("dictionary")
            self.dictionary = _Page(*self._unpacked(body, in_file, size), values, _PLAIN, 0)
        elif kind == thrift.DATA_PAGE and (levels == _RLE or not self._nullable):
            levels = -1 if self._nullable else 0
            self.pages.append(_Page(*self._unpacked(body, in_file, size), values, encoding, levels))
        elif kind == thrift.DATA_PAGE_V2 and lists == 0 and 0 <= nulls <= min(in_file, size):
            if self._codec is None:
                at = self._raw.address + body
                place = at, at + in_file
            elif compressed == 0:
                place = self._kept(self._raw.slice(body, in_file).to_pybytes())
            else:
                at, end = self._unpacked(body + nulls, in_file - nulls, size - nulls)
                place = self._joined(body, nulls, at, end) if self._nullable else (at, end)
            self.pages.append(_Page(*place, values, encoding, nulls if self._nullable else 0))
        else:
            raise NotDirect("page")

    def _unpacked(self, body: int, in_file: int, size: int) -> tuple[int, int]:
        """Address and end of what some bytes of the chunk are when they are unpacked."""
        packed = self._raw.slice(body, in_file)
        if self._codec is None:
            return packed.address, packed.address + in_file
        if self._codec.name == "snappy" and _snappy_size(packed) != size:  # the codec does not tell
            raise NotDirect("sizes")
        return self._kept(self._codec.decompress(packed, size) if size else b"")

    def _kept(self, data: Any) -> tuple[int, int]:
        """Address and end of some bytes that live as long as the chunk."""
        buffer = pa.py_buffer(data)
        self._alive.append(buffer)
        return buffer.address, buffer.address + buffer.size

    def _joined(self, body: int, nulls: int, at: int, end: int) -> tuple[int, int]:
        """Bits of nulls, which are never packed, before the values that they are of."""
        data = np.frombuffer(self._raw.slice(body, nulls), np.uint8)
        values = np.frombuffer(self._alive.pop(), np.uint8)[: end - at]
        return self._kept(np.concatenate([data, values]))

    def keep(self, memory: Any) -> None:
        """Let memory live as long as the chunk."""
        self._alive.append(memory)

    def values(self, at: int, end: int, most: int) -> Any:
        """Plain values between two addresses, at most so many, as an array of Arrow's."""
        physical = self.physical
        if physical == _STRING:
            return _strings(at, end, most, self.kind)
        if physical == _BOOLEAN:
            most = min(most, 8 * (end - at))
            return pa.Array.from_buffers(pa.bool_(), most, [None, pa.foreign_buffer(at, end - at)])
        most = min(most, (end - at) // _WIDTHS[physical])
        data = pa.py_buffer(pa.foreign_buffer(at, most * _WIDTHS[physical]).to_pybytes())  # aligned
        if self.kind in _INTEGERS:
            return pa.Array.from_buffers(pa.int32(), most, [None, data]).cast(self.kind)
        return pa.Array.from_buffers(self.kind, most, [None, data])

    def cells(self, cell: _Cell, page: _Page, at: int) -> Cells:
        """Cells of the plain values of a page, from an address on."""
        if cell.seed is not None and self.physical == _STRING:
            out = np.empty(page.values, np.uint32)
            n = int(kernels.plain_hashes(at, page.end, np.uint32(cell.seed), out))
        elif cell.offset is not None and self.kind in CODES and self.physical != _BOOLEAN:
            out = np.empty(page.values, np.uint32)
            n = int(kernels.plain_numbers(CODES[self.kind], at, page.end, cell.offset, np.float32(cell.fill), out))
        else:
            out = cell.make(self.values(at, page.end, page.values)).view(np.uint32)
            n = len(out)
        if n < 0:
            raise NotDirect("values")
        self.keep(out)
        return out[:n]


def _snappy_size(packed: Any) -> int:
    """Bytes that come of some that are packed: what they begin with, seven bits a byte."""
    size = 0
    for k, byte in enumerate(packed.slice(0, min(5, packed.size)).to_pybytes()):
        size |= (byte & 127) << 7 * k
        if byte < 128:
            break
    return size


def _headers(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Headers of the pages of a chunk; int64[n_pages, HEADER_FIELDS]."""
    most = 64
    while True:
        headers = np.empty((most, thrift.HEADER_FIELDS), np.int64)
        if (n := int(thrift.chunk_pages(data, headers))) >= 0:
            return headers[:n]
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


class _Line:
    """Columns that make up a cache line of each row, in the order of a row group."""

    def __init__(self, raw: RawRowGroup, line: int, cells: Sequence[_Cell]) -> None:
        self.line = line
        self.columns = np.zeros((len(cells), kernels.COLUMN_FIELDS), np.int64)
        self.offsets, self.fills = np.zeros(len(cells)), np.zeros(len(cells), np.float32)
        self._needed = np.array([cell.needed for cell in cells])
        self._left_out = np.array([cell.left_out for cell in cells])
        pages: list[tuple[int, ...]] = []
        self._chunks = {name: _Chunk(raw, name) for name in dict.fromkeys(cell.name for cell in cells)}
        for k, cell in enumerate(cells):
            column = self.columns[k]
            column[kernels.NEXT_PAGE], column[kernels.LANE] = len(pages), cell.cell - line
            column[kernels.MISSING] = cell.missing
            self._add(self._chunks[cell.name], cell, k, pages)
            column[kernels.LAST_PAGE] = len(pages)
        self.pages = np.array(pages, np.int64).reshape(-1, kernels.PAGE_FIELDS)

    def _add(self, chunk: _Chunk, cell: _Cell, k: int, pages: list[tuple[int, ...]]) -> None:
        column = self.columns[k]
        raw = cell.offset is not None and chunk.physical == _FLOAT  # the bytes are cells but for their offset
        if raw:
            column[kernels.RAW], column[kernels.MISSING] = 1, _NAN
            self.offsets[k], self.fills[k] = cell.offset, cell.fill
        if (page := chunk.dictionary) is not None:
            if raw:
                column[kernels.TABLE], column[kernels.LENGTH] = page.at, (page.end - page.at) // 4
            else:
                table = chunk.cells(cell, page, page.at)
                column[kernels.TABLE], column[kernels.LENGTH] = table.ctypes.data, len(table)
            if column[kernels.LENGTH] < page.values:
                raise NotDirect("dictionary")
        for page in chunk.pages:
            coded = page.encoding in (_DICTIONARY, _PLAIN_DICTIONARY)
            if page.encoding != _PLAIN and not (coded and chunk.dictionary is not None):
                raise NotDirect("encoding")
            at, n = 0, 0
            if not coded and not raw:
                table = chunk.cells(cell, page, _values_begin(page))
                at, n = table.ctypes.data, len(table)
            pages.append((page.at, page.end, page.values, coded, page.levels != 0, page.levels, at, n))

    def decode(self, n: int, out: Cells) -> int:
        """Write the next n rows; return how many of them are to be left out."""
        before = self.columns[:, kernels.NULL_ROWS].copy()
        if not kernels.decode_rows(self.columns, self.pages, self.offsets, self.fills, n, self.line, _memory.tile, out):
            raise NotDirect("pages")
        nulls = self.columns[:, kernels.NULL_ROWS] - before
        if nulls[self._needed].any():
            raise NotDirect("weight")
        return int(nulls[self._left_out].sum())


def _values_begin(page: _Page) -> int:
    """Where the values of a page begin, after the bits of nulls."""
    size = page.levels
    if size < 0:
        if page.end - page.at < 4:
            raise NotDirect("levels")
        size = 4 + int.from_bytes(pa.foreign_buffer(page.at, 4).to_pybytes(), "little")
    if size > page.end - page.at:
        raise NotDirect("levels")
    return page.at + size


def _physical(kind: Any) -> int:
    """Physical type of the values of an Arrow type that can be read here, or -1."""
    if is_string(kind):
        return _STRING
    return _INT64 if pa.types.is_timestamp(kind) else _PHYSICAL.get(kind, -1)


class PageRows:
    """Encoded rows of a row group, front to back, straight from its pages.

    Parameters
    ----------
    raw : RawRowGroup
        The row group.
    recipe : Recipe
        What becomes of its columns.
    encoder : Encoder
        The same, and pairs of features.

    Attributes
    ----------
    rows, done : int
        Rows of the row group, and how many are read.
    decoding : float
        Seconds of thread time that decoding unpacked pages took.
    """

    def __init__(self, raw: RawRowGroup, recipe: Recipe, encoder: Encoder) -> None:
        self._raw, self._recipe, self._encoder = raw, recipe, encoder
        self.rows, self.done, self.decoding = raw.rows, 0, 0.0
        self._lines: list[_Line | None] = [None] * len(recipe.lines)
        for name, kind in raw.types.items():
            physical = raw.chunks.table[raw.chunks.columns.index(name), thrift.PHYSICAL]
            expected = (
                _STRING if is_string(kind) else _INT64 if pa.types.is_timestamp(kind) else _PHYSICAL.get(kind, -1)
            )
            if physical != expected:
                raise NotDirect("type")

    def encode(self, n: int, out: NDArray[np.float32]) -> tuple[int, NDArray[np.int64]]:
        """Encode the next n rows into the first of ``out``.

        Returns
        -------
        int
            Rows written: without those whose target is null.
        ndarray of int64
            Which these are, counted from the first of the n.

        Raises
        ------
        NotDirect
            Arrow should read them.
        """
        try:
            return self._decode(n, out[:n])
        except (pa.ArrowException, StreamgdError, OSError, MemoryError) as error:
            raise NotDirect(str(error)) from error

    def skip(self, n: int) -> None:
        """Pass over the next n rows."""
        scratch = self._encoder.new_rows(min(n, _SKIPPED_ROWS))
        while n > 0:
            self.encode(min(n, _SKIPPED_ROWS), scratch)
            n -= min(n, _SKIPPED_ROWS)

    def _decode(self, n: int, out: NDArray[np.float32]) -> tuple[int, NDArray[np.int64]]:
        cells, lost = out.view(np.uint32), 0
        for i, (first, takers) in enumerate(self._recipe.lines):
            line = self._lines[i] or _Line(self._raw, first, takers)
            mark = thread_time()
            lost += line.decode(n, cells)
            self.decoding += thread_time() - mark
            # What is not needed again is let go of before the next columns are unpacked.
            self._lines[i] = line if self.done + n < self.rows else None
        self.done += n
        if self._encoder.pairs[0]:
            write_pairs(*self._encoder.pairs, cells)
        if not lost:
            return n, np.zeros(0, np.int64)
        missing = np.isnan(out[:, self._encoder.layout.y_cell])
        kept = n - int(missing.sum())
        out[:kept] = out[~missing]
        return kept, np.flatnonzero(missing)
