"""Cells spread over rows, as numpy spreads them: by sixteens, and as on processors that cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamgd.kernels.intrinsics import address_of
from streamgd.kernels.spread import by_sixteens, from_null_to_null, spread
from streamgd.kernels.tiles import LANES

MISSING, CANARY = 0xFFFF_FFF0, 0xA5A5_A5A5


@njit
def _by_sixteens(dense, bits, n, out):
    return by_sixteens(address_of(dense), address_of(bits), n, np.uint32(MISSING), address_of(out))


@njit
def _from_null_to_null(dense, bits, n, out):
    return from_null_to_null(address_of(dense), address_of(bits), n, np.uint32(MISSING), address_of(out))


@njit
def _spread(dense, bits, n, out):
    spread(address_of(dense), address_of(bits), n, np.uint32(MISSING), address_of(out))


def rows(seed: int, n: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cells, bits, room for those of n rows and a canary, and what should be in it."""
    rng = np.random.default_rng(seed)
    there = rng.random(n) >= share
    dense = rng.integers(0, 1 << 32, int(there.sum()) + LANES, np.uint32)
    wanted = np.full(n, MISSING, np.uint32)
    wanted[there] = dense[: there.sum()]
    bits = np.append(np.packbits(there, bitorder="little"), np.zeros(16, np.uint8))
    return dense, bits, np.full(n + LANES, CANARY, np.uint32), wanted


shares = st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.9, 1.0])


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 400), shares)
def test_cells_go_where_a_bit_is_one(seed: int, n: int, share: float) -> None:
    dense, bits, out, wanted = rows(seed, n, share)
    _spread(dense, bits, n, out)
    np.testing.assert_array_equal(out[:n], wanted)
    assert (out[n:] == CANARY).all()


@pytest.mark.parametrize(("way", "least"), [(_by_sixteens, LANES), (_from_null_to_null, 64 + LANES)])
@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 400), shares)
def test_either_way_most_rows_are_done(way: Callable[..., Any], least: int, seed: int, n: int, share: float) -> None:
    dense, bits, out, wanted = rows(seed, n, share)
    done, place = way(dense, bits, n, out)
    assert n - least < done <= n
    assert place == dense.ctypes.data + 4 * (wanted[:done] != MISSING).sum()
    np.testing.assert_array_equal(out[:done], wanted[:done])
    assert (out[n:] == CANARY).all()
