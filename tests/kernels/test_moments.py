"""Moments of encoded rows against the twin: weights, missing values, numbers of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.kernels import reference_rows
from streamgd.kernels.moments import add_moments


def kernel(rows, n, p, w_cell):
    sums = np.zeros((6, p))
    add_moments(rows, n, w_cell, sums)
    return sums


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 400),
    p=st.integers(1, 40),
    weighted=st.booleans(),
    missing=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_equals_its_twin(seed, n, p, weighted, missing):
    rng = np.random.default_rng(seed)
    stride = p + weighted + rng.integers(0, 17)
    rows = np.full((n + 5, stride), 1e6, np.float32)  # rows and cells that must not be looked at
    X = rng.normal(0.5, 1, (n, p)).astype(np.float32)
    X[rng.uniform(size=(n, p)) < 0.2] = 0
    X[rng.uniform(size=(n, p)) < missing] = np.nan
    w = (rng.exponential(size=n) if weighted else np.ones(n)).astype(np.float32)
    rows[:n, :p] = X
    if weighted:
        rows[:n, p] = w
    found = kernel(rows, n, p, p if weighted else -1)
    expected, size = reference_rows.moments(X, w), reference_rows.moments(np.abs(X), w)
    for sums, exact, most in zip(found, expected, size, strict=True):
        assert (np.abs(sums - exact) <= 1e-12 * most).all()
    if not weighted:
        np.testing.assert_array_equal(found[0], (~np.isnan(X)).sum(axis=0))


def test_adds_to_what_is_there():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole, parts = kernel(rows, 4, 3, -1), np.zeros((6, 3))
    for part in (rows[:1].copy(), rows[1:].copy()):
        add_moments(part, len(part), -1, parts)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(
        whole, [[4, 4, 4], [18, 22, 26], [126, 166, 214], [972, 1408, 1976], [7938, 12658, 19378], [1, 0, 0]]
    )


def test_integer_weights_are_rows_that_come_again():
    rng = np.random.default_rng(0)
    rows = rng.integers(-9, 10, (300, 8)).astype(np.float32)
    rows[:, 7] = rng.integers(0, 4, 300)
    rows[5:50, 2] = np.nan
    again = np.repeat(rows, rows[:, 7].astype(int), axis=0)
    np.testing.assert_array_equal(kernel(rows, 300, 7, 7), kernel(again, len(again), 7, -1))


def test_many_rows_keep_their_digits():
    """A float32 sum stays at 2^24."""
    rows = np.ones((1 << 16, 1), np.float32)
    sums = np.zeros((6, 1))
    for _ in range(1 << 9):
        add_moments(rows, len(rows), -1, sums)
    np.testing.assert_array_equal(sums[:5], 1 << 25)


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1e21, 1e30])
@pytest.mark.parametrize("weighted", [False, True])
def test_powers_of_numbers_that_float32_holds_are_finite_and_not_zero(size, weighted):
    X = (size * np.random.default_rng(1).normal(size=(200, 3))).astype(np.float32)
    w = np.full((200, 1), 2 if weighted else 1, np.float32)
    rows = np.hstack([X, w])
    found = kernel(rows, 200, 3, 3 if weighted else -1)
    for sums, exact in zip(found, reference_rows.moments(X, w[:, 0]), strict=True):
        np.testing.assert_allclose(sums, exact, rtol=1e-12)
