"""Codes of a dictionary give the cells that they stand for, whatever their width, and wherever they begin and end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from streamgd.kernels import codes as kernels

ENTRIES = 50
TABLE = np.random.default_rng(0).integers(0, 2**32, ENTRIES, dtype=np.uint32)


@njit
def look_up(run, bit, width, n, end, table, last, out):
    return kernels.look_up(run, bit, width, n, end, table, last, out)


def packed(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Numbers of so many bits one after the other, the lowest bit first."""
    bits = (numbers[:, np.newaxis] >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")


def looked_up(numbers: NDArray[np.int64], width: int, skipped: int, behind: int) -> tuple[bool, NDArray[np.uint32]]:
    """Cells of all codes but the first few; so many bytes of nonsense are behind the last."""
    data = np.concatenate([packed(numbers, width), np.full(behind, 0xA5, np.uint8)])
    n = len(numbers) - skipped
    out = np.full(n + 16, 7, np.uint32)
    begin, end = data.ctypes.data, data.ctypes.data + len(data)
    inside = look_up(begin, skipped * width, width, n, end, TABLE.ctypes.data, ENTRIES - 1, out.ctypes.data)
    assert (out[n:] == 7).all()
    return bool(inside), out[:n]


@settings(deadline=None, max_examples=300)
@given(
    width=st.integers(0, 32),
    first=st.integers(0, ENTRIES - 1),
    n=st.integers(1, 120),
    counting=st.booleans(),
    skipped=st.integers(0, 20),
    behind=st.sampled_from([0, 3, 63, 64, 200]),
    seed=st.integers(0, 9),
)
@example(width=6, first=0, n=48, counting=True, skipped=0, behind=64, seed=0)
def test_cells(width: int, first: int, n: int, counting: bool, skipped: int, behind: int, seed: int) -> None:
    """Codes that count up from a first one, and then begin again, and those that do not."""
    most = min(ENTRIES, 1 << width)
    numbers = first + np.arange(n) if counting else np.random.default_rng(seed).integers(0, most, n)
    numbers %= most
    inside, cells = looked_up(numbers, width, min(skipped, n), behind)
    assert inside
    assert cells.tolist() == TABLE[numbers[skipped:]].tolist()


@pytest.mark.parametrize("behind", [0, 100])
@pytest.mark.parametrize("width", [6, 7, 16, 25, 26, 32])
def test_a_code_that_no_cell_has_is_told_wherever_it_is(width: int, behind: int) -> None:
    for place in range(40):
        numbers = np.arange(40, dtype=np.int64)
        numbers[place] = ENTRIES
        inside, cells = looked_up(numbers, width, 0, behind)
        assert not inside
        assert np.isin(cells, TABLE).all()
        assert looked_up(numbers, width, place + 1, behind)[0]
