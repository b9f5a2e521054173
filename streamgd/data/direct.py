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
from .chunks import BOOLEAN, FLOAT, STRING, Chunk, NotDirect, RawRowGroup, values_begin
from .openchunks import OpenChunks
from .strings import DictionaryHashes, calendar_hashes, column_seeds, hash_values, write_pairs
from .target import Target, leave_out, sample_weights

if TYPE_CHECKING:
    from .encode import Encoder

Cells = NDArray[np.uint32]

_NAN = int(np.float32(np.nan).view(np.uint32))
#: Rows for which pages are unpacked before they are decoded; rows that are decoded only to get past them, at a time.
_STEP_ROWS, _PASSED_ROWS = 1 << 17, 4096
#: Bytes of columns that are unpacked before they are decoded, if those of a cache line are not more: so they are still
#: in the cache. Of thousands of columns with few rows, those of many lines are as much.
_CACHED_BYTES = 1 << 20


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


class _Taken:
    """What takes some cells of a row.

    Attributes
    ----------
    cells : sequence of _Cell
        They; arrays say the same of each.
    names : list of str
        Columns that they come from, and ``of`` says which each does.
    """

    def __init__(self, cells: Sequence[_Cell]) -> None:
        self.cells = cells
        places = {name: place for place, name in enumerate(dict.fromkeys(cell.name for cell in cells))}
        self.names, self.of = list(places), np.array([places[cell.name] for cell in cells])
        self.at = np.array([cell.cell for cell in cells])
        self.missing = np.array([cell.missing for cell in cells])
        self.numbers = np.array([cell.offset is not None for cell in cells])
        self.offsets = np.array([cell.offset or 0.0 for cell in cells])
        self.fills = np.array([cell.fill for cell in cells], np.float32)
        self.left_out = np.array([cell.left_out for cell in cells])
        self.needed = np.array([cell.needed for cell in cells])


class Recipe:
    """What becomes of columns.

    Parameters
    ----------
    cells : sequence of _Cell
        What takes each cell that has a column, in the order of a row.
    """

    def __init__(self, cells: Sequence[_Cell]) -> None:
        lines: dict[int, list[_Cell]] = {}
        for cell in cells:
            lines.setdefault(cell.cell // LANES, []).append(cell)
        self._lines, self._taken = list(lines.values()), dict[int, list[_Taken]]()

    def taken(self, bytes_of_all: int) -> list[_Taken]:
        """What takes some cache lines each: of columns that take so many bytes, as many lines as the cache holds."""
        n = 1
        while 2 * n * bytes_of_all <= len(self._lines) * _CACHED_BYTES and n < len(self._lines):
            n *= 2
        if n not in self._taken:
            groups = (self._lines[first : first + n] for first in range(0, len(self._lines), n))
            self._taken[n] = [_Taken([cell for line in lines for cell in line]) for lines in groups]
        return self._taken[n]


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
    return Recipe(sorted(cells, key=lambda cell: cell.cell))


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


class _Lines:
    """Columns that make up some cache lines of each row, front to back; some thousand rows are unpacked.

    Float32 are cells as they lie in the file, but for their offset (``_raw``). Most pages are unpacked by one call, and
    hold all that decoding needs (``_ready``): of such columns none is an object here, since there may be thousands.

    Parameters
    ----------
    raw : RawRowGroup
        The row group.
    taken : _Taken
        What takes the cells.
    start, stop : int
        Rows that are wanted first.

    Attributes
    ----------
    decoding : float
        Seconds of thread time that decoding unpacked pages took.
    """

    def __init__(self, raw: RawRowGroup, taken: _Taken, start: int, stop: int) -> None:
        self._taken, self._done, self.decoding = taken, 0, 0.0
        columns = np.array([raw.flat.places[name] for name in taken.names])
        self._raw = taken.numbers & (raw.flat.physical[columns] == FLOAT)[taken.of]
        self._chunks = OpenChunks(raw, columns, start, min(stop, start + _STEP_ROWS))
        together, self._place = self._chunks.together, self._chunks.place[taken.of]
        self._ready = self._place >= 0
        self._ready[self._ready] &= self._raw[self._ready] | ~together.plain[self._place[self._ready]]
        self._columns = np.zeros((len(taken.cells), kernels.COLUMN_FIELDS), np.int64)
        self._columns[:, kernels.CELL], self._columns[:, kernels.RAW] = taken.at, self._raw
        self._columns[:, kernels.MISSING] = np.where(self._raw, _NAN, taken.missing)
        place = self._place[self._ready]
        self._columns[self._ready, kernels.NEXT_PAGE] = together.first[place] + together.dictionary[place]
        self._columns[self._ready, kernels.LAST_PAGE] = together.first[place + 1]
        self._find_tables()
        self._pass_over(start)

    def _find_tables(self) -> None:
        """Find the cells of dictionaries, or make them."""
        together, coded = self._chunks.together, self._place >= 0
        coded[coded] = together.dictionary[self._place[coded]]
        pages = np.zeros((len(self._place), kernels.PAGE_FIELDS), np.int64)  # of no dictionary
        pages[coded] = together.pages[together.first[self._place[coded]]]
        for k in np.flatnonzero(self._place < 0).tolist():
            dictionary = self._chunks.chunk(int(self._taken.of[k])).dictionary
            pages[k] = 0 if dictionary is None else dictionary
        begin, end, values = pages[:, [kernels.BEGIN, kernels.END, kernels.VALUES]].T
        table, length = begin.copy(), (end - begin) // 4
        for k in np.flatnonzero(~self._raw & (end > 0)).tolist():
            chunk = self._chunks.chunk(int(self._taken.of[k]))
            cells = _cells(chunk, self._taken.cells[k], int(values[k]), chunk.rows, int(begin[k]), int(end[k]))
            table[k], length[k] = cells.ctypes.data, len(cells)
        if (length < values).any():
            raise NotDirect("dictionary")
        self._columns[:, kernels.TABLE], self._columns[:, kernels.LENGTH] = table, length

    def _pages(self, k: int, first: int, pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pages of a column from the first on, plain values made cells."""
        chunk, cell = self._chunks.chunk(int(self._taken.of[k])), self._taken.cells[k]
        if self._raw[k] or not chunk.plain:
            return pages
        pages = pages.copy()
        for i, (at, end, values, coded, _, levels, *_) in enumerate(pages.tolist()):
            if not coded:
                cells = _cells(chunk, cell, values, chunk.end(first + i), values_begin(at, end, levels), end)
                pages[i, kernels.CELLS], pages[i, kernels.N_CELLS] = cells.ctypes.data, len(cells)
        return pages

    def decode(self, start: int, n: int, out: Cells) -> int:
        """Write n rows from ``start`` on; return how many of them are to be left out."""
        self._pass_over(start)
        before = self._columns[:, kernels.NULL_ROWS].copy()
        for first in range(0, n, _STEP_ROWS):
            rows = min(_STEP_ROWS, n - first)
            pages = self._unpacked(np.flatnonzero(~self._ready).tolist(), self._done, self._done + rows)
            self._decode(self._columns, pages, rows, out[first : first + rows])
            self._done += rows
        nulls = self._columns[:, kernels.NULL_ROWS] - before
        if nulls[self._taken.needed].any():
            raise NotDirect("weight")
        return int(nulls[self._taken.left_out].sum())

    def _unpacked(self, cells: Sequence[int], start: int, stop: int) -> NDArray[np.int64]:
        """Pages of some columns that are not ready, from row to row, after those of all that are."""
        found, many = [self._chunks.together.pages], len(self._chunks.together.pages)
        unpacked = {
            of: self._chunks.chunk(of).pages(start, stop) for of in dict.fromkeys(self._taken.of[cells].tolist())
        }
        for k in cells:
            found.append(self._pages(k, *unpacked[int(self._taken.of[k])]))
            self._columns[k, [kernels.NEXT_PAGE, kernels.LAST_PAGE]] = many, many + len(found[-1])
            many += len(found[-1])
        return np.concatenate(found) if cells else found[0]

    def _pass_over(self, row: int) -> None:
        """Go on to a later row; pages that end before it are passed over as a whole."""
        if row == self._done:
            return
        begins, ended = np.full(len(self._taken.cells), self._done), self._done + self._columns[:, kernels.LEFT] <= row
        self._columns[ended, kernels.LEFT] = 0
        ready, others = ended & self._ready, ended & ~self._ready
        pages, at = self._chunks.together.pages_at(row)
        self._columns[ready, kernels.NEXT_PAGE], begins[ready] = pages[self._place[ready]], at[self._place[ready]]
        for of in np.unique(self._taken.of[others]).tolist():
            begins[others & (self._taken.of == of)] = self._chunks.chunk(of).seek(row)
        for begin in np.unique(begins[begins < row]).tolist():
            which = begins == begin
            pages = self._unpacked(np.flatnonzero(which & ~self._ready).tolist(), begin, row)
            columns = self._columns[which]
            columns[:, kernels.CELL] %= LANES  # one over the other
            self._decode(columns, pages, row - begin, _tile.passed, which)
            columns[:, kernels.CELL] = self._taken.at[which]
            self._columns[which] = columns
        self._done = row

    def _decode(
        self, columns: NDArray[np.int64], pages: NDArray[np.int64], n: int, out: Cells, which: Any = slice(None)
    ) -> None:
        """Decode rows of those columns; if ``out`` takes fewer rows, one over the other."""
        offsets, fills, most = self._taken.offsets[which], self._taken.fills[which], len(out)
        mark = thread_time()
        while n > 0:
            rows = min(n, most)
            if not kernels.decode_rows(columns, pages, offsets, fills, rows, _tile.cells, out):
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
        self._raw, self._encoder = raw, encoder
        self.done, self.decoding = 0, 0.0
        self._taken = recipe.taken(raw.unpacked)
        self._lines: list[_Lines | None] = [None] * len(self._taken)

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
        for i, taken in enumerate(self._taken):
            lines = self._lines[i] or _Lines(self._raw, taken, self.done, self.done + n)
            before = lines.decoding
            lost += lines.decode(self.done, n, cells)
            self.decoding += lines.decoding - before
            # What is not needed again is let go of before the next columns are unpacked.
            self._lines[i] = lines if self.done + n < self._raw.rows else None
        self.done += n
        if self._encoder.pairs[0]:
            write_pairs(*self._encoder.pairs, cells)
        if not lost:
            return n, np.zeros(0, np.int64)
        return leave_out(out, out[:, self._encoder.layout.y_cell])
