"""Several outputs of slots, added as vectors: what a loop over them adds, in the same order, and nothing beside."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamgd.kernels.intrinsics import address_of
from streamgd.kernels.sums import SUMS, add_slots, add_to_slots


@njit
def added(places, slots, out, outputs):
    add_slots(address_of(places), len(places), address_of(slots), slots.shape[1] * 4, address_of(out), outputs)


@njit
def added_to(places, slots, row, outputs):
    add_to_slots(address_of(places), len(places), address_of(slots), slots.shape[1] * 4, address_of(row), outputs)


def drawn(seed, outputs, n):
    """Places, of which some come again, slots that are longer than their outputs, and a row of as many as fill up."""
    rng, whole = np.random.default_rng(seed), -(-outputs // SUMS) * SUMS
    slots = rng.normal(size=(5, whole + 4)).astype(np.float32)
    return rng.integers(0, 5, n).astype(np.uint32), slots, rng.normal(size=whole).astype(np.float32)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), outputs=st.integers(1, 20), n=st.integers(0, 30))
def test_slots_are_added_one_after_the_other(seed, outputs, n):
    places, slots, out = drawn(seed, outputs, n)
    expected = out[:outputs].copy()
    for place in places:
        expected += slots[place, :outputs]
    added(places, slots, out, outputs)
    assert out[:outputs].tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), outputs=st.integers(1, 20), n=st.integers(0, 30))
def test_a_row_is_added_to_each_slot_and_to_no_other_cell(seed, outputs, n):
    places, slots, row = drawn(seed, outputs, n)
    expected = slots.copy()
    for place in places:
        expected[place, :outputs] += row[:outputs]
    added_to(places, slots, row, outputs)
    assert slots.tobytes() == expected.tobytes()
