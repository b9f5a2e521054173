"""Each loss of the registry: derivative against finite differences, kernel against twin, however extreme the margin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.kernels import reference
from streamgd.kernels.losses import evaluate
from streamgd.losses import DEFAULT_LOSS, LOSSES

from .arguments import targets

EXTREME = np.array([0.0, 1e-8, 0.5, 1.0, 30.0, 87.0, 88.0, 89.0, 1e4, 3e38])
EXTREME = np.concatenate([EXTREME, -EXTREME])
EPS, LARGEST = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).max)

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def kernel(loss, z, y):
    """Values and derivatives of margins and targets, in float32."""
    z, y = np.asarray(z, np.float32), np.asarray(y, np.float32)
    value, derivative = np.full((2, len(z)), np.nan, np.float32)
    evaluate(loss.code, z, y, len(z), value, derivative)
    return value, derivative


def twin(loss, z, y):
    """The same in float64, from the same float32 numbers."""
    z, y = (np.asarray(a, np.float32).astype(np.float64) for a in (z, y))
    return reference.LOSSES[loss.code](z, y)


def extreme_pairs(loss):
    """Every extreme margin with every target that matters."""
    y = [0.0, 1.0] if loss.task == "classification" else EXTREME
    return (a.ravel() for a in np.meshgrid(EXTREME, y))


def assert_close(loss, z, y):
    with np.errstate(over="ignore"):
        for found, exact in zip(kernel(loss, z, y), twin(loss, z, y), strict=True):
            assert not np.isnan(found).any()
            rounded = exact.astype(np.float32)
            finite = np.isfinite(rounded)
            np.testing.assert_array_equal(found[~finite], rounded[~finite])
            size = 1 + np.abs(exact) + np.abs(np.float64(z)) * (loss.task == "classification")
            close = np.abs(found - exact) <= 4 * EPS * size
            # Twice a number may be taken on the way to it.
            overflowed = np.isinf(found) & (np.abs(exact) > LARGEST / 4)
            assert (close | overflowed)[finite].all()


@every_loss
def test_codes_are_those_of_the_kernels(loss):
    assert reference.LOSSES[loss.code].__name__ == loss.name
    assert loss.task in DEFAULT_LOSS


@every_loss
def test_derivative_is_the_slope_of_the_value(loss):
    rng = np.random.default_rng(0)
    z = np.concatenate([EXTREME, rng.normal(size=200), 20 * rng.normal(size=200)])
    y = targets(loss, rng, len(z))
    h = 1e-5 * np.maximum(1, np.abs(z))
    above, below = (reference.LOSSES[loss.code](z + step, y)[0] for step in (h, -h))
    _, derivative = reference.LOSSES[loss.code](z, y)
    np.testing.assert_allclose((above - below) / (2 * h), derivative, rtol=1e-6, atol=1e-6)


@every_loss
def test_curvature_is_the_most_that_the_slope_of_the_derivative_can_be(loss):
    z = np.concatenate([EXTREME[np.abs(EXTREME) < 1e5], np.linspace(-10, 10, 2001)])
    for y in (0.0, 1.0):
        above, below = (reference.LOSSES[loss.code](z + h, y)[1] for h in (1e-4, -1e-4))
        slope = (above - below) / 2e-4
        assert slope.max() == pytest.approx(loss.curvature, rel=1e-3)


@every_loss
def test_values_are_convex_and_not_negative(loss):
    z = np.sort(np.concatenate([EXTREME, np.linspace(-20, 20, 401)]))
    for y in (0.0, 1.0):
        value, derivative = kernel(loss, z, np.full(len(z), y))
        assert (value >= 0).all()
        assert (np.diff(derivative.astype(np.float64)) >= -EPS * np.maximum(1, np.abs(z[1:]))).all()


@every_loss
def test_kernel_is_the_twin_at_extreme_margins(loss):
    assert_close(loss, *extreme_pairs(loss))


@every_loss
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_kernel_is_the_twin_anywhere(loss, data):
    n = data.draw(st.integers(1, 40))
    target = st.sampled_from([0.0, 1.0]) if loss.task == "classification" else floats32
    z, y = (data.draw(st.lists(element, min_size=n, max_size=n)) for element in (floats32, target))
    assert_close(loss, z, y)


@every_loss
def test_only_n_rows_are_written_and_each_by_itself(loss):
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=67).astype(np.float32), targets(loss, rng, 67).astype(np.float32)
    together = kernel(loss, z, y)
    for i in range(67):
        for one, all_rows in zip(kernel(loss, z[i : i + 1], y[i : i + 1]), together, strict=True):
            np.testing.assert_allclose(one[0], all_rows[i], rtol=4 * EPS)
    value, derivative = np.full((2, 67), 7, np.float32)
    evaluate(loss.code, z, y, 50, value, derivative)
    assert (value[50:] == 7).all() and (derivative[50:] == 7).all()
    np.testing.assert_allclose(value[:50], together[0][:50], rtol=4 * EPS)


def test_log_loss_keeps_its_digits_where_it_is_small():
    """Rows that are classified well still tell apart: relative error stays at a few units of float32."""
    z = -np.random.default_rng(2).uniform(0, 86, 100_000).astype(np.float32)
    for found, exact in zip(*(f(LOSSES["log_loss"], z, np.zeros(len(z))) for f in (kernel, twin)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=4 * EPS)


def test_log_loss_does_not_cancel_for_the_second_class():
    value, _ = kernel(LOSSES["log_loss"], [20.0, 30.0, 80.0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(value, np.exp([-20.0, -30.0, -80.0]), rtol=1e-5)


def test_log_loss_of_a_margin_that_overflowed_is_infinite_or_0():
    value, derivative = kernel(LOSSES["log_loss"], [np.inf, np.inf, -np.inf, -np.inf], [0, 1, 0, 1])
    np.testing.assert_allclose(value, [np.inf, 0, 0, np.inf], atol=1e-37)
    np.testing.assert_allclose(derivative, [1, 0, 0, -1], atol=1e-37)
