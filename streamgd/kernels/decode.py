"""From the pages of column chunks to encoded rows, with nothing in between.

A value of a page is a code of its chunk's dictionary, or stands there itself. Either way it becomes a cell of 32 bits:
dictionaries and plain values are made cells beforehand (`streamgd.kernels.plain`), so what is left for each row
is to look a cell up; float32 are cells but for their offset. Rows are written by whole cache lines: 16 columns are
decoded one after the other, some thousand rows at a time, and transposed from there, or from where they are if they
stand side by side in their page. Offsets are subtracted, and NaN filled, on the way.

Nothing is believed: no address leaves its page, no code its dictionary, and what is odd ends at once. The format is
that of Encodings.md in apache/parquet-format.
"""

from __future__ import annotations

import numpy as np

from .codes import look_up, word_at
from .intrinsics import (
    address_of,
    four_bytes_at,
    jit,
    kernel,
    ones,
    put_eight_bytes,
    put_uint32,
    uint8_at,
    uint32_at,
)
from .plain import filled
from .spread import spread
from .tiles import LANES, finish_streams, stream_cells, stream_numbers, transpose_cells

#: A page: address and end of its bytes, values and nulls with them, whether they are codes, whether bits say which are
#: null (and if so, how many bytes these take, or -1 if the page says so itself), and the address of cells, and how many
#: they are, if these are known beforehand (0: they follow the bits).
BEGIN, END, VALUES, CODED, NULLS, LEVELS, CELLS, N_CELLS = range(8)
PAGE_FIELDS = 8
#: A column: its next page and that after its last, rows left of the page it is in; the address of its dictionary's
#: cells and how many they are, what stands for null, the cell of a row that takes it, whether cells are float32 less
#: their offset, and how many nulls there were.
NEXT_PAGE, LAST_PAGE, LEFT, TABLE, LENGTH, MISSING, CELL, RAW, NULL_ROWS = range(9)
#: What its page says: whether nothing is null; the address of the next cell and how many are left, if cells are no
#: codes; and, of the bits that say what is null and of the codes, a stream of runs each.
_FLAT, _PLACE, _LEFT_CELLS = range(9, 12)
_RUN_FIELDS = 7
_LEVELS, _CODES = np.int64(12), np.int64(12 + _RUN_FIELDS)
COLUMN_FIELDS = 12 + 2 * _RUN_FIELDS
#: A stream of runs: where the next begins, the end of all, bits of a value; of the run that is under way, the values
#: left, the value that it repeats (-1: each value stands there), where they begin and the bits before the next.
_AT, _END, _WIDTH, _RUN_LEFT, _REPEATED, _RUN, _BIT = range(_RUN_FIELDS)
#: Rows of a column that are decoded at a time before the next column: its dictionary stays in the cache as long.
COLUMN_ROWS = 1 << 14
#: Rows that go from step to step together.
PIECE = 1024


@jit
def varint_at(at, end):
    """Number of 7 bits a byte (int64, at most 35 bits) between two addresses, and where it ends; -1 if it does not."""
    value, shift = np.int64(0), np.int64(0)
    while at < end and shift <= 28:
        byte = np.int64(uint8_at(at, 0))
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    return value, np.int64(-1)


@jit
def _next_run(columns, k, stream):
    """Begin the next run of a stream; return False if there is none."""
    at, end, width = columns[k, stream + _AT], columns[k, stream + _END], columns[k, stream + _WIDTH]
    header, at = varint_at(at, end)
    if at < 0:
        return False
    packed, count, size, value = header & 1, header >> 1, (width + 7) >> 3, np.int64(-1)
    if packed:
        size, count = count * width, count * 8
    if size > end - at or count == 0:
        return False
    if not packed:
        value = np.int64(0)
        for i in range(size):
            value |= np.int64(uint8_at(at, i)) << (8 * i)
        if value >> width:
            return False
    columns[k, stream + _RUN_LEFT], columns[k, stream + _REPEATED] = count, value
    columns[k, stream + _RUN], columns[k, stream + _BIT], columns[k, stream + _AT] = at, 0, at + size
    return True


@jit
def _looked_up(columns, k, n, out):
    """Write the cells of the next n codes of a column to an address; return False if there are not so many."""
    table, last, inside = columns[k, TABLE], columns[k, LENGTH] - 1, True
    if last < 0 or columns[k, _CODES + _AT] == 0:
        return n == 0
    while n > 0:
        if columns[k, _CODES + _RUN_LEFT] == 0 and not _next_run(columns, k, _CODES):
            return False
        m, code = min(n, columns[k, _CODES + _RUN_LEFT]), columns[k, _CODES + _REPEATED]
        if code < 0:
            run, bit, width = columns[k, _CODES + _RUN], columns[k, _CODES + _BIT], columns[k, _CODES + _WIDTH]
            inside &= look_up(run, bit, width, m, columns[k, _CODES + _END], table, last, out)
            columns[k, _CODES + _BIT] = bit + m * width
        else:
            inside &= code <= last
            cell = four_bytes_at(table + 4 * min(code, last))
            for i in range(m):
                put_uint32(out, i, cell)
        columns[k, _CODES + _RUN_LEFT] -= m
        n -= m
        out += 4 * m
    return inside


@jit
def _begin_runs(columns, k, stream, at, end, width):
    columns[k, stream + _AT], columns[k, stream + _END] = at, end
    columns[k, stream + _WIDTH], columns[k, stream + _RUN_LEFT] = width, 0


@jit
def _begin_page(columns, k, pages):
    """Begin the next page of a column; return False if there is none, or it cannot be one."""
    page = columns[k, NEXT_PAGE]
    if page >= columns[k, LAST_PAGE]:
        return False
    columns[k, NEXT_PAGE] += 1
    at, end = pages[page, BEGIN], pages[page, END]
    columns[k, LEFT], columns[k, _FLAT] = pages[page, VALUES], pages[page, NULLS] == 0
    if pages[page, NULLS]:
        size = pages[page, LEVELS]
        if size < 0:
            if end - at < 4:
                return False
            size = np.int64(four_bytes_at(at))
            at += 4
        if size > end - at:
            return False
        _begin_runs(columns, k, _LEVELS, at, at + size, np.int64(1))
        at += size
    if pages[page, CODED]:
        columns[k, _PLACE] = 0
        if at >= end:
            _begin_runs(columns, k, _CODES, at, at, np.int64(0))  # all are null
        elif uint8_at(at, 0) > 32:
            return False
        else:
            _begin_runs(columns, k, _CODES, at + 1, end, np.int64(uint8_at(at, 0)))
    elif pages[page, CELLS] != 0:
        columns[k, _PLACE], columns[k, _LEFT_CELLS] = pages[page, CELLS], pages[page, N_CELLS]
    else:
        columns[k, _PLACE], columns[k, _LEFT_CELLS] = at, (end - at) // 4
    return True


@jit
def _present(columns, k, n, bits):
    """How many of the next n rows are not null, -1 if the page does not say; ``bits`` takes their bits.

    If all are present, it may not. Where nulls are many, runs are short and come in any order, so what a run is is told
    without a branch, and bits are gathered in a register.
    """
    at, end = columns[k, _LEVELS + _AT], columns[k, _LEVELS + _END]
    left, repeated = columns[k, _LEVELS + _RUN_LEFT], columns[k, _LEVELS + _REPEATED]
    run, bit = columns[k, _LEVELS + _RUN], columns[k, _LEVELS + _BIT]
    if repeated == 1 and left >= n:
        columns[k, _LEVELS + _RUN_LEFT] = left - n
        return np.int64(n)
    found, gathered, filled = np.int64(0), np.uint64(0), np.int64(0)
    while n > 0:
        if left == 0:
            header, at = varint_at(at, end)
            packed, count = header & 1, header >> 1
            size = count if packed else np.int64(1)
            if at < 0 or count == 0 or size > end - at:
                return np.int64(-1)
            repeated = np.int64(-1) if packed else np.int64(uint8_at(at, 0))
            if repeated > 1:
                return np.int64(-1)
            left = 8 * count if packed else count
            run, bit, at = at, np.int64(0), at + size
        m = min(n, left, 56)
        there = word_at(run + (bit >> 3), end) >> np.uint64(bit & 7)
        word = there if repeated < 0 else np.uint64(0) - np.uint64(repeated)
        word &= (np.uint64(1) << np.uint64(m)) - np.uint64(1)
        bit += m if repeated < 0 else 0
        found += np.int64(ones(word))
        gathered |= word << np.uint64(filled)
        filled += m
        if filled >= 64:
            put_eight_bytes(bits, gathered)
            bits, filled = bits + 8, filled - 64
            gathered = word >> np.uint64(m - filled)
        left -= m
        n -= m
    put_eight_bytes(bits, gathered)
    columns[k, _LEVELS + _AT] = at
    columns[k, _LEVELS + _RUN_LEFT], columns[k, _LEVELS + _REPEATED] = left, repeated
    columns[k, _LEVELS + _RUN], columns[k, _LEVELS + _BIT] = run, bit
    return found


@jit
def _cells(columns, k, n, out):
    """Write the cells of the next n values that are not null; return False if there are not so many."""
    place = columns[k, _PLACE]
    if place == 0:
        return _looked_up(columns, k, n, out)
    if n > columns[k, _LEFT_CELLS]:
        return False
    for i in range(n):
        put_uint32(out, i, four_bytes_at(place + 4 * i))
    columns[k, _PLACE] += 4 * n
    columns[k, _LEFT_CELLS] -= n
    return True


@jit
def read_rows(columns, k, pages, n, bits, dense, out):
    """Write the cells of the next n rows of a column to an address; return False if there are not so many."""
    while n > 0:
        if columns[k, LEFT] == 0:
            if not _begin_page(columns, k, pages):
                return False
            continue
        m = min(n, columns[k, LEFT], PIECE)
        present = np.int64(m) if columns[k, _FLAT] else _present(columns, k, m, bits)
        if present < 0 or not _cells(columns, k, present, out if present == m else dense):
            return False
        if present < m:
            spread(dense, bits, m, np.uint32(columns[k, MISSING]), out)
            columns[k, NULL_ROWS] += m - present
        columns[k, LEFT] -= m
        n -= m
        out += 4 * m
    return True


@jit
def _centred(values, offset, fill):
    """Subtract an offset of float32, fill what is NaN; return False if one is infinite, or becomes so.

    An offset that is a float32 is subtracted in float32, which rounds as float64 and then float32 does.
    """
    near = np.float32(offset)
    if np.float64(near) == offset:
        for i in range(len(values)):
            values[i] = values[i] - near
    else:
        for i in range(len(values)):
            values[i] = np.float32(np.float64(values[i]) - offset)
    return filled(values, fill)


@jit
def _side_by_side(columns, k, pages):
    """How many rows of a column stand side by side in its page; 0 if some are null, if it holds codes, or is none."""
    if columns[k, LEFT] == 0 and not _begin_page(columns, k, pages):
        return np.int64(0)
    there = columns[k, _PLACE] != 0 and columns[k, _LEFT_CELLS] >= columns[k, LEFT]
    return columns[k, LEFT] if there else np.int64(0)


@jit
def _straight(columns, k, pages, n):
    """Pass over the cells of the next n rows of a column if they stand side by side; their address, or 0."""
    if _side_by_side(columns, k, pages) < n:
        return np.int64(0)
    if not columns[k, _FLAT]:
        if columns[k, _LEVELS + _RUN_LEFT] == 0 and not _next_run(columns, k, _LEVELS):
            return np.int64(0)
        if columns[k, _LEVELS + _REPEATED] != 1 or columns[k, _LEVELS + _RUN_LEFT] < n:
            return np.int64(0)
        columns[k, _LEVELS + _RUN_LEFT] -= n
    place = columns[k, _PLACE]
    columns[k, LEFT] -= n
    columns[k, _LEFT_CELLS] -= n
    columns[k, _PLACE] += 4 * n
    return place


@jit
def _decode_line(columns, first_column, last_column, pages, offsets, fills, n, line, tile, bits_at, dense_at, out):
    """Write the next n rows of some columns into the cache line of each row that begins with cell ``line``."""
    stride, most = out.shape[1], tile.shape[1]
    sources, numbers = np.full(LANES, address_of(tile[LANES])), np.zeros(LANES, np.uint32)
    near, fill = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for k in range(first_column, last_column):
        near[columns[k, CELL] - line], fill[columns[k, CELL] - line] = offsets[k], fills[k]
    whole_line, lanes = line + LANES <= stride, min(LANES, stride - line)
    aligned = (address_of(out) + 4 * line) % (4 * LANES) == 0 and stride % LANES == 0
    first = 0
    while first < n:
        size = min(most, n - first)
        for k in range(first_column, last_column):  # pages of numbers mostly end together
            there = _side_by_side(columns, k, pages)
            size = min(size, max(there, LANES)) if there > 0 else size
        size -= size % LANES if size > LANES else 0
        whole = size if whole_line and size % LANES == 0 else 0
        streamed, on_the_way = whole > 0 and aligned, False
        for k in range(first_column, last_column):
            lane, raw, place = columns[k, CELL] - line, columns[k, RAW] != 0, np.int64(0)
            later = raw and streamed and np.float64(near[lane]) == offsets[k]
            if streamed and raw == later:
                place = _straight(columns, k, pages, size)
            if place == 0:
                place = address_of(tile[lane])
                if not read_rows(columns, k, pages, size, bits_at, dense_at, place):
                    return False
                if raw and not later and not _centred(tile[lane, :size].view(np.float32), offsets[k], fills[k]):
                    return False
            sources[lane], numbers[lane] = place, np.uint32(0) - np.uint32(later)
            on_the_way |= later
        infinite, at = np.int64(0), address_of(out) + (first * stride + line) * 4
        for i in range(0, whole, LANES):
            if on_the_way:
                infinite |= stream_numbers(
                    address_of(sources), i, address_of(numbers), address_of(near), address_of(fill), at, stride
                )
            elif aligned:
                stream_cells(address_of(sources), i, at, stride)
            else:
                transpose_cells(address_of(sources), i, at, stride)
            at += 4 * LANES * stride
        if infinite != 0:
            return False
        for i in range(whole, size):
            for lane in range(lanes):
                out[first + i, line + lane] = uint32_at(sources[lane], i)
        first += size
    return True


@kernel
def decode_rows(columns, pages, offsets, fills, n, tile, out):
    """Write the next n rows of some columns into cache lines of each row.

    Parameters
    ----------
    columns : ndarray of int64, shape (n_columns, COLUMN_FIELDS)
        Where each stands, which moves on. Those of a cache line follow each other.
    pages : ndarray of int64, shape (n_pages, PAGE_FIELDS)
        Their pages.
    offsets : ndarray of float64
        What is subtracted from float32 of each column ...
    fills : ndarray of float32
        ... and what stands for NaN.
    n : int
        Rows.
    tile : ndarray of uint32, shape (17, a multiple of 16)
        Room for so many rows of each cell of a line, and zeros for cells without a column.
    out : ndarray of uint32, shape (>= n, stride)
        Takes the cells; those of the same lines that have no column become 0.

    Returns
    -------
    bool
        False if the pages hold fewer rows, or are not as they should be.
    """
    bits, dense = np.empty(PIECE // 64 + 2, np.uint64), np.zeros(PIECE + LANES, np.uint32)
    first, good = np.int64(0), True
    while first < len(columns) and good:
        line, last = columns[first, CELL] // LANES * LANES, first
        while last < len(columns) and columns[last, CELL] // LANES * LANES == line:
            last += 1
        good = _decode_line(
            columns, first, last, pages, offsets, fills, n, line, tile, address_of(bits), address_of(dense), out
        )
        first = last
    finish_streams()
    return good
