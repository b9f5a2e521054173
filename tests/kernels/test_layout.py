"""Encoding against the twin, cell by cell and exactly: every type, nulls, numbers that are not finite, boundaries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.features import Layout
from streamgd.kernels import layout, reference_rows
from streamgd.kernels.layout import BOOL, FLOAT32, FLOAT64, INT32, INT64, TILE_ROWS
from streamgd.kernels.tiles import LANES

DTYPES: dict[int, Any] = {
    FLOAT32: np.float32,
    FLOAT64: np.float64,
    INT32: np.int32,
    INT64: np.int64,
    BOOL: np.bool_,
}
SPECIAL = np.array([np.nan, np.inf, -np.inf, 3.4028234e38, -3.4028234e38, 3.4028236e38, 1e39, -1e300, 1e-45, 0.0, -0.0])
UNTOUCHED = np.float32(-77.25)

boundaries = st.sampled_from([1, LANES - 1, LANES, LANES + 1, 2 * LANES, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1])
n_rows = boundaries | st.integers(0, 2 * TILE_ROWS + LANES)
n_columns = st.sampled_from([1, 3, 4, 7, 8, LANES - 1, LANES, LANES + 1, 2 * LANES, 2 * LANES + 1]) | st.integers(1, 50)
codes = st.sampled_from(sorted(DTYPES))
seeds = st.integers(0, 2**32 - 1)


class Column(NamedTuple):
    """A column as NumPy has it and as Arrow hands it over."""

    values: np.ndarray
    present: np.ndarray
    code: int
    address: int
    valid: int
    bits: int
    alive: tuple[np.ndarray, ...]


def bitmap(flags, bits, rng):
    """Flags as bits, lowest first, after ``bits`` bits of something else."""
    return np.packbits(np.concatenate([rng.integers(0, 2, bits).astype(np.bool_), flags]), bitorder="little")


def hand_over(values, present, code, bits, rng):
    """Lay a column out as Arrow does: the values, and where ``present`` is given a bitmap."""
    if code == BOOL:
        buffer = bitmap(values, bits, rng)
        address = buffer.ctypes.data
    else:
        buffer = np.concatenate([np.ones(bits, values.dtype), values])
        address = buffer.ctypes.data + bits * values.itemsize
    if present is None:
        return Column(values, np.ones(len(values), np.bool_), code, address, 0, bits, (buffer,))
    valid = bitmap(present, bits, rng)
    return Column(values, present, code, address, valid.ctypes.data, bits, (buffer, valid))


def random_values(rng, code, n, special):
    dtype = DTYPES[code]
    if code == BOOL:
        return rng.integers(0, 2, n).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, n, dtype, endpoint=True)
    values = rng.normal(size=n) * 10.0 ** rng.integers(-3, 6)
    if special:
        values = np.where(rng.uniform(size=n) < 0.1, rng.choice(SPECIAL, n), values)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def random_column(rng, code, n, special):
    present = None if rng.integers(2) else rng.uniform(size=n) < rng.choice([0.0, 0.5, 0.9, 1.0])
    return hand_over(random_values(rng, code, n, special), present, code, int(rng.integers(0, 20)), rng)


def random_offsets(rng, codes):
    """Offsets of any float64; of float32 columns those that float32 holds, so that results are exact."""
    offsets = np.where(rng.uniform(size=len(codes)) < 0.3, 0, rng.normal(size=len(codes)) * 100)
    return np.where(np.array(codes) == FLOAT32, offsets.astype(np.float32), offsets)


def random_fills(rng, n):
    return rng.choice(np.array([0, 1.5, -2e10, np.nan], np.float32), n)


def encode(columns, offsets, fills, cell, out, n=None):
    """Call the kernel; return counts of infinite values."""
    infinite = np.zeros(len(columns), np.int64)
    arrow = np.array([(c.code, c.address, c.valid, c.bits) for c in columns], np.int64).T.copy()
    n = len(columns[0].values) if n is None else n
    layout.encode_columns(*arrow, offsets, fills, n, cell, out, infinite)
    return infinite


@st.composite
def widths(draw, cells):
    """Strides that hold so many cells: none to spare, as the layout pads them, or wider."""
    return draw(st.sampled_from([cells, cells + 1, Layout(cells).stride, cells + LANES]))


@settings(deadline=None, max_examples=200)
@given(data=st.data(), seed=seeds, n=n_rows, c=n_columns, cell=st.integers(0, 20), special=st.booleans())
def test_columns_equal_the_twin(data, seed, n, c, cell, special):
    rng = np.random.default_rng(seed)
    kinds = data.draw(st.just([FLOAT32] * c) | st.lists(codes, min_size=c, max_size=c))
    stride = data.draw(widths(cell + c))
    columns = [random_column(rng, code, n, special) for code in kinds]
    offsets, fills = random_offsets(rng, kinds), random_fills(rng, c)
    out = np.full((n + 3, stride), UNTOUCHED)
    infinite = encode(columns, offsets, fills, cell, out)
    values, present = [column.values for column in columns], [column.present for column in columns]
    cells, expected = reference_rows.encode_columns(values, present, offsets, fills)
    np.testing.assert_array_equal(out[:n, cell : cell + c], cells)
    np.testing.assert_array_equal(infinite, expected)
    assert (out[n:] == UNTOUCHED).all() and (out[:, :cell] == UNTOUCHED).all()
    end = cell + -(-c // LANES) * LANES
    after = out[:n, cell + c : end]  # where a vector is wider than what was left for it
    assert ((after == UNTOUCHED) | (after == 0)).all()
    assert (out[:, end:] == UNTOUCHED).all()


@settings(deadline=None, max_examples=100)
@given(data=st.data(), seed=seeds, n=n_rows, size=st.integers(0, 40), cell=st.integers(0, 20), code=codes)
def test_lists_equal_the_twin(data, seed, n, size, cell, code):
    rng = np.random.default_rng(seed)
    child = random_column(rng, code, n * size + int(rng.integers(0, 9)), data.draw(st.booleans()))
    starts = rng.integers(0, len(child.values) - size + 1, n) if data.draw(st.booleans()) else np.arange(n) * size
    present = rng.uniform(size=n) < data.draw(st.sampled_from([0.0, 0.7, 1.0]))
    starts = np.where(present, starts, 1 << 60)  # where there is no list there is nothing to look at
    offsets, fills = rng.normal(size=size) * 10, random_fills(rng, size)
    out = np.full((n + 3, data.draw(widths(cell + size))), UNTOUCHED)
    lists = child.code, child.address, child.valid, child.bits, starts, present, size, offsets, fills
    infinite = layout.encode_lists(*lists, n, cell, out)
    cells, expected = reference_rows.encode_lists(child.values, child.present, starts, present, size, offsets, fills)
    np.testing.assert_array_equal(out[:n, cell : cell + size], cells)
    assert infinite == expected
    out[:n, cell : cell + size] = UNTOUCHED
    assert (out == UNTOUCHED).all()


@pytest.mark.parametrize("c", [1, 3, 4])
@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("n", [1, 16, 257])
def test_narrow_rows(stride, c, n):
    rng = np.random.default_rng(0)
    columns = [random_column(rng, FLOAT32, n, True) for _ in range(c)]
    out = np.full((n, stride), UNTOUCHED)
    encode(columns, np.ones(c), np.zeros(c, np.float32), 0, out)
    values, present = [column.values for column in columns], [column.present for column in columns]
    np.testing.assert_array_equal(
        out[:, :c], reference_rows.encode_columns(values, present, np.ones(c), np.zeros(c, np.float32))[0]
    )
    assert (out[:, c:] == UNTOUCHED).all()


@settings(deadline=None, max_examples=40)
@given(seed=seeds, n=st.integers(1, 2 * TILE_ROWS), c=n_columns, data=st.data())
def test_the_same_row_gives_the_same_cells_in_any_batch(seed, n, c, data):
    """Also whether vectors or the rest of a loop made them, and beside which rows and columns."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(sorted(DTYPES), c)
    columns = [random_column(rng, code, n, True) for code in kinds]
    offsets, fills = random_offsets(rng, kinds), random_fills(rng, c)
    whole = np.empty((n, Layout(c).stride), np.float32)
    encode(columns, offsets, fills, 0, whole)
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first + 1, n))
    part = [
        hand_over(column.values[first:last], column.present[first:last] if column.valid else None, column.code, 3, rng)
        for column in columns
    ]
    out = np.empty((last - first, c + 1), np.float32)
    encode(part, offsets, fills, 1, out)
    np.testing.assert_array_equal(out[:, 1:], whole[first:last, :c])


@pytest.mark.parametrize("code", sorted(DTYPES))
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6 + 0.03])
def test_a_null_in_the_batch_changes_no_other_cell(code, offset):
    rng = np.random.default_rng(0)
    values, n = random_values(rng, code, 300, False), 300
    if code == FLOAT32:
        values = (offset + rng.normal(size=n)).astype(np.float32)
    present = np.arange(n) != 100
    cells = []
    for mask in (None, present):
        out = np.empty((n, LANES), np.float32)
        encode([hand_over(values, mask, code, 0, rng)], np.array([offset]), np.zeros(1, np.float32), 0, out)
        cells.append(out[present, 0])
    np.testing.assert_array_equal(*cells)


def test_offsets_of_float32_columns_are_taken_off_within_rounding():
    rng = np.random.default_rng(0)
    values, offset = rng.normal(0.3, 1, 300).astype(np.float32), np.array([0.3])
    out = np.empty((300, LANES), np.float32)
    encode([hand_over(values, None, FLOAT32, 0, rng)], offset, np.zeros(1, np.float32), 0, out)
    np.testing.assert_allclose(out[:, 0], values.astype(np.float64) - offset, atol=3e-8, rtol=1e-7)


@pytest.mark.parametrize("code", [INT64, FLOAT64])
def test_large_numbers_keep_their_digits_through_the_offset(code):
    """Seconds and micros since 1970, account numbers: 1e15 and something small."""
    small = np.arange(-200, 200)
    values = (10**15 + small).astype(DTYPES[code])
    out = np.empty((400, 4), np.float32)
    column = hand_over(values, None, code, 0, np.random.default_rng(0))
    infinite = encode([column], np.array([1e15]), np.zeros(1, np.float32), 0, out)
    np.testing.assert_array_equal(out[:, 0], small)
    assert infinite[0] == 0
    starts, present = np.arange(0, 400, 2), np.ones(200, np.bool_)
    offsets, fills = np.array([1e15, 1e15 + 1]), np.zeros(2, np.float32)
    layout.encode_lists(code, column.address, 0, 0, starts, present, 2, offsets, fills, 200, 1, out)
    np.testing.assert_array_equal(out[:200, 1:3], np.stack([small[::2], small[1::2] - 1], axis=1))


def test_infinite_values_are_counted_and_missing_ones_are_not():
    rng = np.random.default_rng(0)
    for n in (5, LANES, TILE_ROWS + 5):
        for place in (0, 4, n - 1):
            columns, counts = [], []
            for bad, null, count in (
                (np.inf, False, 1),
                (-np.inf, False, 1),
                (np.nan, False, 0),
                (np.inf, True, 0),
                (0, False, 0),
            ):
                for code in (FLOAT32, FLOAT64):
                    values = np.ones(n, DTYPES[code])
                    values[place] = bad
                    columns.append(hand_over(values, np.arange(n) != place if null else None, code, 1, rng))
                    counts.append(count)
            out = np.empty((n, LANES), np.float32)
            c = len(columns)
            infinite = encode(columns, np.zeros(c), np.full(c, 9, np.float32), 0, out)
            np.testing.assert_array_equal(infinite, counts)
            expected = np.full(c, 9)
            expected[-2:] = 0
            np.testing.assert_array_equal(out[place, :c], expected)
            assert (np.delete(out[:, :c], place, axis=0) == 1).all()


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=seeds, c=st.integers(0, 20), batch_offset=st.integers(0, 70))
def test_buffers_are_found_in_the_c_data_interface(data, seed, c, batch_offset):
    """A batch of columns of known and unknown null counts, with and without bitmaps, sliced and not, in any order."""
    rng = np.random.default_rng(seed)
    buffers = rng.integers(1, 1 << 40, (c, 2))
    buffers[rng.uniform(size=c) < 0.3, 0] = 0  # no bitmap
    nulls, offsets = rng.integers(-1, 3, c), rng.integers(0, 99, c)
    places = np.array(data.draw(st.permutations(range(c)))[: data.draw(st.integers(0, c))], np.int64)
    widths = rng.choice([0, 4, 8], len(places))

    # Fields: length, null count, offset, numbers of buffers and children, buffers, children, dictionary.
    columns = np.zeros((c, 8), np.int64)
    columns[:, 1], columns[:, 2], columns[:, 3] = nulls, offsets, 2
    columns[:, 5] = buffers.ctypes.data + 16 * np.arange(c)
    children = columns.ctypes.data + 64 * np.arange(c)
    batch = np.array([10, 0, batch_offset, 1, c, 0, children.ctypes.data, 0])
    addresses, valids, valid_offsets = found = np.full((3, len(places)), -7)
    layout.find_buffers(batch.ctypes.data, places, widths, *found)
    first = offsets[places] + batch_offset
    np.testing.assert_array_equal(valid_offsets, first)
    np.testing.assert_array_equal(addresses, buffers[places, 1] + first * widths)
    np.testing.assert_array_equal(valids, np.where(nulls[places] != 0, buffers[places, 0], 0))
