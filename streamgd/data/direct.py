"""Row groups to encoded rows without Arrow in between: four times as fast for strings, since no column is ever made.

It is for what most tables are: local files, flat columns of numbers and categories, in dictionaries or plain. Whatever
is otherwise, or odd in any way, is left to Arrow (`NotDirect`), which decodes more, and says what is wrong. Both ways
give the same rows to the last bit.

What becomes of a value is said by the same functions as there, of the values of a dictionary instead of a column.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from time import thread_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import StreamgdError
from ..features import Column
from ..kernels import decode as kernels
from ..kernels.plain import plain_hashes, plain_numbers
from ..kernels.tiles import LANES
from .buffers import CODES, floats
from .chunks import BOOLEAN, FLOAT, STRING, Chunk, NotDirect, RawRowGroup, open_chunks, values_begin
from .strings import DictionaryHashes, calendar_hashes, column_seeds, hash_values, write_pairs
from .target import Target, leave_out, sample_weights

if TYPE_CHECKING:
    from .encode import Encoder

Cells = NDArray[np.uint32]

_NAN = int(np.float32(np.nan).view(np.uint32))
#: Rows for which pages are unpacked before they are decoded; rows that are decoded only to get past them, at a time.
_STEP_ROWS, _PASSED_ROWS = 1 << 17, 4096


class _Tile(threading.local):
    """Memory that each thread decodes columns into."""

    def __init__(self) -> None:
        self.cells = np.zeros((LANES + 1, kernels.COLUMN_ROWS), np.uint32)
        self.passed = np.zeros((_PASSED_ROWS, LANES), np.uint32)


_tile = _Tile()


@dataclass(frozen=True)
class _Cell:
    """What takes a cell of each row: made of the values of a column by ``make``, and what stands for null.

    Numbers have an ``offset`` and what they are filled with, strings a ``seed`` of their hashes, and all hashes are
    ``placed`` then. Rows without a target are ``left_out``; a weight is ``needed``, and Arrow says where it is null.
    """

    name: str
    cell: int
    make: Callable[[Any], NDArray[Any]]
    missing: int
    offset: float | None = None
    fill: float = 0.0
    seed: int | None = None
    placed: Callable[[Cells], Cells] | None = None
    left_out: bool = False
    needed: bool = False


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


def _hashed(column: Column, cell: int, known: DictionaryHashes) -> _Cell:
    seed, missing = column_seeds(column.label)
    placed = _Cell(
        column.name, cell, partial(calendar_hashes, column), known.missing(column.label), placed=known.placed
    )
    if column.kind != "category":
        return placed
    return replace(placed, make=partial(hash_values, seed=seed, missing=missing), seed=seed)


def _target(target: Target, cell: int) -> _Cell:
    return _Cell(target.name, cell, partial(target.encode, where=""), _NAN, left_out=True)


def _weights(values: Any, name: str, scale: float) -> NDArray[np.float32]:
    return (sample_weights(values, name, "") * scale).astype(np.float32)


#: What becomes of columns: of each cache line its first cell, and what takes its cells.
Recipe = tuple[tuple[int, tuple[_Cell, ...]], ...]


def recipe(encoder: Encoder) -> Recipe | None:
    """What becomes of columns, if all features come from single values of flat columns."""
    spec, layout = encoder.spec, encoder.layout
    if encoder.class_weight is not None or spec.group("text"):
        return None
    if any(column.kind in ("vector", "product") for column in spec.group("dense")):
        return None
    cells = [_dense(column, cell, encoder) for cell, column in enumerate(spec.group("dense"))]
    cells += [_hashed(column, layout.width + i, encoder.dictionaries) for i, column in enumerate(encoder.plain)]
    if encoder.target is not None:
        cells.append(_target(encoder.target, layout.y_cell))
    if encoder.weight is not None:
        make = partial(_weights, name=encoder.weight, scale=encoder.weight_scale)
        cells.append(_Cell(encoder.weight, layout.w_cell, make, _NAN, needed=True))
    lines: dict[int, list[_Cell]] = {}
    for cell in cells:
        lines.setdefault(cell.cell // LANES * LANES, []).append(cell)
    return tuple((line, tuple(lines[line])) for line in sorted(lines))


def _is_raw(cell: _Cell, chunk: Chunk) -> bool:
    """Whether the bytes of a column are cells but for their offset."""
    return cell.offset is not None and chunk.physical == FLOAT


def _cells(chunk: Chunk, cell: _Cell, values: int, stop: int, at: int, end: int) -> Cells:
    """Cells of the plain values between two addresses; they live until a row is done."""
    if cell.seed is not None and chunk.physical == STRING:
        out = np.empty(values, np.uint32)
        n = int(plain_hashes(at, end, np.uint32(cell.seed), out))
    elif cell.offset is not None and chunk.kind in CODES and chunk.physical != BOOLEAN:
        out = np.empty(values, np.uint32)
        n = int(plain_numbers(CODES[chunk.kind], at, end, cell.offset, np.float32(cell.fill), out))
    else:
        out = cell.make(chunk.values(at, end, values)).view(np.uint32)
        n = len(out)
    if n < 0:
        raise NotDirect("values")
    chunk.keep(out, stop)
    return out[:n] if cell.placed is None else cell.placed(out[:n])


def _address(cells: Cells) -> tuple[int, int]:
    """Where they are, and how many."""
    return cells.ctypes.data, len(cells)


def _table(chunk: Chunk, cell: _Cell, raw_cells: bool) -> tuple[int, int]:
    """Address and length of the cells of a dictionary, if there is one."""
    if chunk.dictionary is None:
        return 0, 0
    at, end, values = chunk.dictionary[[kernels.BEGIN, kernels.END, kernels.VALUES]].tolist()
    n = (end - at) // 4
    if not raw_cells:
        at, n = _address(_cells(chunk, cell, values, chunk.rows, at, end))
    if n < values:
        raise NotDirect("dictionary")
    return at, n


class _Line:
    """Columns that make up a cache line of each row, in the order of a row group; some thousand rows are unpacked.

    Parameters
    ----------
    raw : RawRowGroup
        The row group.
    line : int
        First cell of the cache line.
    cells : sequence of _Cell
        What takes its cells.
    start, stop : int
        Rows that are wanted first.

    Attributes
    ----------
    decoding : float
        Seconds of thread time that decoding unpacked pages took.
    """

    def __init__(self, raw: RawRowGroup, line: int, cells: Sequence[_Cell], start: int, stop: int) -> None:
        self._line, self._done, self.decoding = line, 0, 0.0
        self._needed = np.array([cell.needed for cell in cells])
        self._left_out = np.array([cell.left_out for cell in cells])
        self._columns = np.zeros((len(cells), kernels.COLUMN_FIELDS), np.int64)
        self._offsets, self._fills = np.zeros(len(cells)), np.zeros(len(cells), np.float32)
        stop = min(stop, start + _STEP_ROWS)
        self._chunks = open_chunks(raw, dict.fromkeys(cell.name for cell in cells), start, stop)
        self._cells = [(cell, self._chunks[cell.name], _is_raw(cell, self._chunks[cell.name])) for cell in cells]
        for k, (cell, chunk, raw_cells) in enumerate(self._cells):
            if raw_cells:
                self._offsets[k], self._fills[k] = cell.offset, cell.fill
            missing = _NAN if raw_cells else cell.missing
            self._columns[k, kernels.TABLE : kernels.NULL_ROWS] = (
                *_table(chunk, cell, raw_cells),
                *(missing, cell.cell - line, raw_cells),
            )
        self._pass_over(start)

    def _pages(self, k: int, first: int, pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pages of a column from the first on, plain values made cells."""
        cell, chunk, raw_cells = self._cells[k]
        if raw_cells or not chunk.plain:
            return pages
        pages = pages.copy()
        for i, (at, end, values, coded, _, levels, *_) in enumerate(pages.tolist()):
            if not coded:
                cells = _cells(chunk, cell, values, chunk.end(first + i), values_begin(at, end, levels), end)
                pages[i, kernels.CELLS], pages[i, kernels.N_CELLS] = _address(cells)
        return pages

    def decode(self, start: int, n: int, out: Cells) -> int:
        """Write n rows from ``start`` on; return how many of them are to be left out."""
        self._pass_over(start)
        before = self._columns[:, kernels.NULL_ROWS].copy()
        for first in range(0, n, _STEP_ROWS):
            rows = min(_STEP_ROWS, n - first)
            unpacked = {name: chunk.pages(self._done, self._done + rows) for name, chunk in self._chunks.items()}
            pages = [self._pages(k, *unpacked[cell.name]) for k, (cell, *_) in enumerate(self._cells)]
            ends = list(accumulate(map(len, pages)))
            self._columns[:, kernels.NEXT_PAGE], self._columns[:, kernels.LAST_PAGE] = [0, *ends[:-1]], ends
            self._decode(slice(None), np.concatenate(pages), rows, out[first : first + rows], self._line)
            self._done += rows
        nulls = self._columns[:, kernels.NULL_ROWS] - before
        if nulls[self._needed].any():
            raise NotDirect("weight")
        return int(nulls[self._left_out].sum())

    def _pass_over(self, row: int) -> None:
        """Go on to a later row; pages that end before it are not unpacked."""
        if row == self._done:
            return
        for name, chunk in self._chunks.items():
            mine = [k for k, (cell, *_) in enumerate(self._cells) if cell.name == name]
            begin = self._done
            if begin + self._columns[mine[0], kernels.LEFT] <= row:
                self._columns[mine, kernels.LEFT] = 0
                begin = chunk.seek(row)
            if begin < row:
                unpacked = chunk.pages(begin, row)
                for k in mine:
                    self._columns[k, [kernels.NEXT_PAGE, kernels.LAST_PAGE]] = 0, len(unpacked[1])
                    self._decode(slice(k, k + 1), self._pages(k, *unpacked), row - begin, _tile.passed, 0)
        self._done = row

    def _decode(self, which: slice, pages: NDArray[np.int64], n: int, out: Cells, line: int) -> None:
        """Decode rows of some of the columns; if ``out`` takes fewer rows, one over the other."""
        most = len(out)
        columns, offsets, fills = self._columns[which], self._offsets[which], self._fills[which]
        mark = thread_time()
        while n > 0:
            rows = min(n, most)
            if not kernels.decode_rows(columns, pages, offsets, fills, rows, line, _tile.cells, out):
                raise NotDirect("pages")
            n -= rows
        self.decoding += thread_time() - mark


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
    done : int
        Rows that are read.
    decoding : float
        Seconds of thread time that decoding unpacked pages took.
    """

    def __init__(self, raw: RawRowGroup, recipe: Recipe, encoder: Encoder) -> None:
        self._raw, self._recipe, self._encoder = raw, recipe, encoder
        self.done, self.decoding = 0, 0.0
        self._lines: list[_Line | None] = [None] * len(recipe)

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
        self.done += n

    def _decode(self, n: int, out: NDArray[np.float32]) -> tuple[int, NDArray[np.int64]]:
        cells, lost = out.view(np.uint32), 0
        for i, (first, takers) in enumerate(self._recipe):
            line = self._lines[i] or _Line(self._raw, first, takers, self.done, self.done + n)
            before = line.decoding
            lost += line.decode(self.done, n, cells)
            self.decoding += line.decoding - before
            # What is not needed again is let go of before the next columns are unpacked.
            self._lines[i] = line if self.done + n < self._raw.rows else None
        self.done += n
        if self._encoder.pairs[0]:
            write_pairs(*self._encoder.pairs, cells)
        if not lost:
            return n, np.zeros(0, np.int64)
        return leave_out(out, out[:, self._encoder.layout.y_cell])
