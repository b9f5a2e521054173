"""Runs of codes and of bits for what is null, against those that a few lines of Python write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.kernels import decode as kernels
from streamgd.kernels.plain import plain_numbers
from streamgd.kernels.tiles import LANES
from tests.thrift import varint

MISSING = 0xFFFF_FFF0


@st.composite
def runs(draw: st.DrawFn, width: int, values: list[int], most: int) -> bytes:
    """Values as runs, cut anywhere: repeated where a stretch is of one value, else packed in groups of eight."""
    found, place = b"", 0
    while place < len(values):
        n = draw(st.integers(1, most))
        piece = values[place : place + n]
        if len(set(piece)) == 1 and draw(st.booleans()):
            found += varint(len(piece) << 1) + piece[0].to_bytes((width + 7) // 8, "little")
            place += n
            continue
        groups = -(-n // 8)
        piece = values[place : place + 8 * groups]
        bits = sum(value << (width * i) for i, value in enumerate(piece))
        found += varint(groups << 1 | 1) + bits.to_bytes(groups * width, "little")
        place += 8 * groups
    return found


class Column:
    """A column of pages in memory, as the kernel takes it."""

    def __init__(self, lane: int, table: np.ndarray) -> None:
        self.row = np.zeros(kernels.COLUMN_FIELDS, np.int64)
        self.row[[kernels.CELL, kernels.MISSING]] = lane, MISSING
        self.row[[kernels.TABLE, kernels.LENGTH]] = table.ctypes.data, len(table)
        self.pages: list[tuple[int, ...]] = []
        self.alive: list[Any] = [table]

    def add(self, body: bytes, values: int, nulls: int = 0, coded: bool = True) -> None:
        data = np.frombuffer(body, np.uint8).copy()
        self.alive.append(data)
        at = data.ctypes.data
        self.pages.append((at, at + len(data), values, coded, nulls != 0, nulls, 0, 0))


def decode(columns: list[Column], cuts: list[int], stride: int, together: int = 32) -> np.ndarray | None:
    """Rows of as many as the cuts hold, of which so many are decoded at a time; None if the kernel refuses them."""
    pages: list[tuple[int, ...]] = []
    for column in columns:
        column.row[kernels.NEXT_PAGE] = len(pages)
        pages += column.pages
        column.row[kernels.LAST_PAGE] = len(pages)
    state, n = np.array([column.row for column in columns]), len(columns)
    out, tile = np.full((sum(cuts), stride), 7, np.uint32), np.zeros((LANES + 1, together), np.uint32)
    place, table = 0, np.array(pages, np.int64)
    for cut in cuts:
        rows = out[place : place + cut]
        if not kernels.decode_rows(state, table, np.zeros(n), np.zeros(n, np.float32), cut, tile, rows):
            return None
        place += cut
    return out


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_cells_are_those_of_the_codes(data: st.DataObject) -> None:
    n, width = data.draw(st.integers(1, 120)), data.draw(st.integers(0, 17))
    table = np.random.default_rng(width).integers(0, 1 << 32, 1 << width, dtype=np.uint32)
    lanes = data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=3, unique=True))
    columns, expected = [], {}
    for lane in lanes:
        column, cells = Column(lane, table), list[int]()
        while len(cells) < n:
            rows = data.draw(st.integers(1, n - len(cells)))
            code = st.integers(0, (1 << width) - 1)
            codes = data.draw(
                st.lists(code, min_size=rows, max_size=rows) | code.map(lambda one, rows=rows: [one] * rows)
            )
            present = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows) | st.just([True] * rows))
            levels = data.draw(runs(1, [int(bit) for bit in present], 40))
            body = data.draw(runs(width, [code for code, bit in zip(codes, present, strict=True) if bit], 40))
            first = data.draw(st.booleans())  # of the version whose pages say how long the bits are
            prefix = len(levels).to_bytes(4, "little") if first else b""
            column.add(prefix + levels + bytes([width]) + body, rows, -1 if first else len(levels))
            cells += [int(table[code]) if bit else MISSING for code, bit in zip(codes, present, strict=True)]
        columns.append(column)
        expected[lane] = cells
    cuts, stride = list[int](), data.draw(st.sampled_from([16, 32]))
    while sum(cuts) < n:
        cuts.append(data.draw(st.integers(1, n - sum(cuts))))
    out = decode(columns, cuts, stride)
    assert out is not None
    for lane in range(LANES):
        assert out[:, lane].tolist() == expected.get(lane, [0] * n)
    assert (out[:, LANES:] == 7).all()


def random_runs(rng: np.random.Generator, width: int, values: np.ndarray) -> bytes:
    """The same of many values, as writers make them: eight and more alike are a run."""
    found, place = b"", 0
    while place < len(values):
        alike = np.flatnonzero(values[place:] != values[place])
        n = int(alike[0]) if len(alike) else len(values) - place
        if n >= 8 and rng.random() < 0.9:
            found += varint(n << 1) + int(values[place]).to_bytes((width + 7) // 8, "little")
        else:
            groups = int(rng.integers(1, 64))
            n = 8 * groups
            piece = np.zeros(n, np.int64)
            piece[: len(values[place : place + n])] = values[place : place + n]
            bits = (piece[:, np.newaxis] >> np.arange(width)) & 1
            found += varint(groups << 1 | 1) + np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()
        place += n
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 0.99]), st.sampled_from([1, 8, 40]))
def test_nulls_of_thousands_of_rows_alone_and_in_runs(seed: int, share: float, together: int) -> None:
    """Cells are copied by sixteens between nulls, but none beyond the rows that are asked for."""
    rng = np.random.default_rng(seed)
    n, width = 16 * int(rng.integers(1, 190)), int(rng.integers(1, 18))
    table = rng.integers(0, 1 << 32, 1 << width, dtype=np.uint32)
    columns, expected = [], {}
    for lane in (9, 8):  # what is written beyond the end of the second is where the first begins
        column, cells = Column(lane, table), np.full(n, MISSING, np.int64)
        present = np.repeat(rng.random(-(-n // together)) >= share, together)[:n]
        codes = rng.integers(0, 1 << width, int(present.sum()))
        cells[present] = table[codes]
        levels = random_runs(rng, 1, present.astype(np.int64))
        column.add(levels + bytes([width]) + random_runs(rng, width, codes), n, len(levels))
        columns.append(column)
        expected[lane] = cells
    cuts = [n] if rng.random() < 0.5 else [cut := int(rng.integers(1, n)), n - cut]
    out = decode(columns, cuts, 16, n)
    assert out is not None
    for lane, cells in expected.items():
        np.testing.assert_array_equal(out[:, lane], cells)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 3), st.booleans(), st.integers(-1, 12))
def test_noise_is_refused_or_decoded(noise: bytes, width: int, coded: bool, nulls: int) -> None:
    """Whatever a page holds, the table is not left: a code beyond it is refused."""
    table = np.arange(100, 105, dtype=np.uint32)
    column = Column(0, table)
    column.add(noise, 20, nulls, coded)
    out = decode([column], [9, 11], 16)
    assert out is None or not coded or set(out[:, 0].tolist()) <= {*table.tolist(), MISSING}


def test_a_run_that_repeats_more_than_its_bits_hold_is_refused() -> None:
    for value, good in ((3, True), (4, False)):
        column = Column(0, np.arange(8, dtype=np.uint32))
        column.add(bytes([2, 20 << 1, value]), 20)
        assert (decode([column], [20], 16) is not None) == good


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("offset", [0.5, 0.1])
def test_float32_are_less_their_offset_as_in_the_other_kernel(offset: float, shift: int) -> None:
    """Whether they go straight from their page into whole cache lines, or not."""
    values = np.random.default_rng(0).normal(size=50).astype(np.float32) * 1e5
    values[7] = np.nan
    expected = (values.astype(np.float64) - offset).astype(np.float32)
    expected[7] = 9
    for k, infinite in ((None, 0.0), (3, np.inf), (49, -np.inf)):
        if k is not None:
            values[k] = infinite
        column, codes = Column(2, np.zeros(0, np.uint32)), Column(5, np.array([0x7F80_0000, 8], np.uint32))
        column.add(b"x" + values.tobytes(), 50, 1, False)  # at an odd address, after bits that say nothing is null
        column.pages[0] = (column.pages[0][0] + 1, *column.pages[0][1:4], False, 0, 0, 0)
        codes.add(bytes([1, 50 << 1, 0]), 50)  # cells that would be infinite, were they numbers
        column.row[[kernels.RAW, kernels.LAST_PAGE]] = 1, 1
        codes.row[[kernels.NEXT_PAGE, kernels.LAST_PAGE]] = 1, 2
        pages, fill = np.array(column.pages + codes.pages, np.int64), np.array([9.0, 0.0], np.float32)
        memory, tile = np.zeros(51 * 16 + 16, np.uint32), np.zeros((LANES + 1, 32), np.uint32)
        first = -(memory.ctypes.data // 4) % 16 + shift
        out, state = memory[first : first + 50 * 16].reshape(50, 16), np.array([column.row, codes.row])
        good = kernels.decode_rows(state, pages, np.array([offset, 0.0]), fill, 50, tile, out)
        assert good == (k is None)
        if good:
            assert (out.view(np.float32)[:, 2] == expected).all()
            assert (out[:, 5] == 0x7F80_0000).all()
            assert not out[:, [0, 1, 3, 4, *range(6, 16)]].any()
            at = values.ctypes.data
            numbers = np.empty(50, np.uint32)
            assert plain_numbers(0, at, at + values.nbytes, offset, np.float32(9), numbers) == 50
            assert (numbers.view(np.float32) == expected).all()
