"""Each loss of the registry: derivative against finite differences, kernel against twin, however extreme the margin."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamgd.kernels import losses, reference_losses
from streamgd.losses import DEFAULT_LOSS, LOSSES

from .arguments import loss_args, targets

EXTREME = np.array([0.0, 1e-8, 0.5, 1.0, 30.0, 87.0, 88.0, 89.0, 1e4, 3e38])
EXTREME = np.concatenate([EXTREME, -EXTREME])
EPS, LARGEST = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).max)

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
KINKS = {"hinge", "perceptron", "epsilon_insensitive", "quantile"}
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@njit
def evaluate(code, args, z, y, n, value, derivative):
    losses.evaluate(code, True, args, z, y, n, value, derivative)


@njit
def evaluate_common(code, args, z, y, n, value, derivative):
    losses.evaluate(code, None, args, z, y, n, value, derivative)


softmax = njit(lambda *args: losses.softmax(*args))


def kernel(loss, z, y, kind=np.float32):
    """Values and derivatives of margins and targets, in float32 as steps need them, or in float64."""
    z, y = np.asarray(z, kind), np.asarray(y, kind)
    value, derivative = np.full((2, len(z)), np.nan, kind)
    evaluate(loss.code, loss_args(loss), z, y, len(z), value, derivative)
    return value, derivative


def twin(loss, z, y):
    """The same in float64, from the same float32 numbers."""
    z, y = (np.asarray(a, np.float32).astype(np.float64) for a in (z, y))
    return reference_losses.LOSSES[loss.code](z, y, loss_args(loss))


def extreme_pairs(loss):
    """Every extreme margin with every target that matters."""
    y = [0.0, 1.0] if loss.task == "classification" else np.abs(EXTREME) if loss.link == "log" else EXTREME
    return (a.ravel() for a in np.meshgrid(EXTREME, y))


def assert_close(loss, z, y):
    with np.errstate(over="ignore"):
        for found, exact in zip(kernel(loss, z, y), twin(loss, z, y), strict=True):
            assert not np.isnan(found).any()
            rounded = exact.astype(np.float32)
            finite = np.isfinite(rounded)
            np.testing.assert_array_equal(found[~finite], rounded[~finite])
            near = np.abs(np.float64(z)) + (np.abs(np.float64(y)) if loss.task == "regression" else 0)
            size = 1 + np.abs(exact) + near * (loss.name != "squared_error")
            if loss.link == "log":  # a product that cancels
                bounded = np.minimum(np.float64(z), 87)
                size += np.exp(bounded) + np.abs(np.float64(y) * bounded)
            close = np.abs(found - exact) <= 8 * EPS * size
            # Twice a number may be taken on the way to it.
            overflowed = np.isinf(found) & (np.abs(exact) > LARGEST / 4)
            assert (close | overflowed)[finite].all()


@every_loss
def test_codes_are_those_of_the_kernels(loss):
    assert reference_losses.LOSSES[loss.code].__name__ == loss.name == getattr(losses, loss.name).__name__
    assert getattr(losses, loss.name.upper()) == loss.code
    assert loss.task in DEFAULT_LOSS


@every_loss
def test_derivative_is_the_slope_of_the_value(loss):
    rng = np.random.default_rng(0)
    z = np.concatenate([EXTREME, rng.normal(size=200), 20 * rng.normal(size=200)])
    z = np.clip(z, -30, 30) if loss.link == "log" else z  # exp(z) is bounded
    y = targets(loss, rng, len(z))
    h = 1e-5 * np.maximum(1, np.abs(z))
    args = loss_args(loss)
    twin_of = reference_losses.LOSSES[loss.code]
    above, below = (twin_of(z + step, y, args) for step in (h, -h))
    _, derivative = twin_of(z, y, args)
    smooth = (loss.name not in KINKS) | (above[1] == below[1])
    assert smooth.mean() > 0.8
    slope = (above[0] - below[0]) / (2 * h)
    change = np.abs(above[1] - below[1])  # what the derivative itself does over so short a way
    assert (np.abs(slope - derivative) <= 1e-6 + 1e-6 * np.abs(derivative) + change)[smooth].all()


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.smooth and loss.link != "log"], ids=str)
def test_curvature_is_the_most_that_the_slope_of_the_derivative_can_be(loss):
    z = np.concatenate([EXTREME[np.abs(EXTREME) < 1e5], np.linspace(-10, 10, 2001)])
    for y in (0.0, 1.0):
        args = loss_args(loss)
        above, below = (reference_losses.LOSSES[loss.code](z + h, y, args)[1] for h in (1e-4, -1e-4))
        slope = (above - below) / 2e-4
        assert slope.max() == pytest.approx(loss.curvature, rel=1e-3)


@every_loss
def test_derivatives_jump_where_a_loss_is_not_smooth(loss):
    z = np.linspace(-3, 3, 600_001)
    jump = np.abs(np.diff(reference_losses.LOSSES[loss.code](z, 1.0, loss_args(loss))[1])).max()
    assert (jump > 0.1) == (not loss.smooth)


@every_loss
def test_values_are_convex_and_not_negative(loss):
    z = np.sort(np.concatenate([EXTREME, np.linspace(-20, 20, 401)]))
    for y in (0.0, 1.0):
        value, derivative = kernel(loss, z, np.full(len(z), y))
        assert (value >= 0).all()
        size = np.maximum(1, np.abs(z[1:]) + np.abs(derivative[1:]))
        assert (np.diff(derivative.astype(np.float64)) >= -EPS * size).all()


@every_loss
def test_kernel_is_the_twin_at_extreme_margins(loss):
    assert_close(loss, *extreme_pairs(loss))


@every_loss
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_kernel_is_the_twin_anywhere(loss, data):
    n = data.draw(st.integers(1, 40))
    target = st.sampled_from([0.0, 1.0]) if loss.task == "classification" else floats32
    if loss.link == "log":
        target = st.integers(0, 1000).map(float)
    z, y = (data.draw(st.lists(element, min_size=n, max_size=n)) for element in (floats32, target))
    assert_close(loss, z, y)


@every_loss
def test_in_float64_the_kernel_is_the_twin_to_the_last_digits(loss):
    rng = np.random.default_rng(3)
    z = 5 * rng.normal(size=500)
    y = targets(loss, rng, 500)
    args = loss_args(loss)
    exact = reference_losses.LOSSES[loss.code](z, y, args)
    for found, expected in zip(kernel(loss, z, y, np.float64), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("y", [0.0, 5.0])
def test_poisson_of_a_margin_that_is_far_too_large_is_huge_but_finite(kind, y):
    value, derivative = kernel(LOSSES["poisson"], [100.0, 1e30, 3e38, np.inf], [y] * 4, kind)
    for found in (value, derivative):
        assert (found > 1e37).all() and np.isfinite(found).all()


@every_loss
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_margin_that_is_not_a_number_has_no_loss(loss, kind):
    """A fit that diverged must not look like one that is perfect, whatever place of a vector the margin takes."""
    z, y = np.zeros(67), np.ones(67)
    z[::2] = np.nan
    value, derivative = kernel(loss, z, y, kind)
    assert np.isnan(value[::2]).all() and np.isfinite(value[1::2]).all()
    assert (derivative[::2] != 0).all()


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.degree], ids=lambda loss: loss.name)
def test_a_loss_is_homogeneous_in_the_units_of_the_target(loss):
    z, y = np.random.default_rng(4).normal(size=(2, 500))
    of, args = reference_losses.LOSSES[loss.code], np.array(loss_args(loss))
    for scale in (0.01, 3.0):
        scaled = of(scale * z, scale * y, args * (scale if loss.parameter == "epsilon" else 1))[0]
        np.testing.assert_allclose(scaled, scale**loss.degree * of(z, y, args)[0], rtol=1e-9, atol=1e-12)


SCIKIT_LEARN = {
    "hinge": ("Hinge", (1.0,)),
    "squared_hinge": ("SquaredHinge", (1.0,)),
    "modified_huber": ("ModifiedHuber", ()),
    "perceptron": ("Hinge", (0.0,)),
    "epsilon_insensitive": ("EpsilonInsensitive", (0.1,)),
}


@pytest.mark.parametrize("name", SCIKIT_LEARN)
def test_losses_are_those_of_scikit_learn(name):
    fast = pytest.importorskip("sklearn.linear_model._sgd_fast")
    kind, args = SCIKIT_LEARN[name]
    theirs, loss = getattr(fast, kind)(*args), LOSSES[name]
    rng = np.random.default_rng(0)
    kinks = np.tile([-1.0, 0.0, 1.0], 20)
    z = np.concatenate([np.round(2 * rng.normal(size=300), 3), kinks])
    y = np.concatenate([targets(loss, rng, 300), rng.integers(0, 2, 60)])
    value, derivative = kernel(loss, z, y)
    signed = 2 * y - 1 if loss.task == "classification" else y
    expected = [(theirs.py_loss(a, b), theirs.py_dloss(a, b)) for a, b in zip(z, signed, strict=True)]
    np.testing.assert_allclose(np.column_stack([value, derivative]), expected, rtol=1e-5, atol=1e-5)


def test_statistical_losses_are_those_of_scikit_learn():
    from sklearn._loss import HalfPoissonLoss, HuberLoss, PinballLoss

    rng = np.random.default_rng(1)
    z = rng.normal(size=300)
    for name, theirs in (("quantile", PinballLoss(quantile=0.5)), ("poisson", HalfPoissonLoss())):
        y = targets(LOSSES[name], rng, 300)
        value, derivative = kernel(LOSSES[name], z, y)
        expected = theirs.loss_gradient(y, z)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(derivative, expected[1], rtol=1e-5, atol=1e-6)
    theirs = HuberLoss(delta=1.35)
    y = 3 * rng.normal(size=300)
    expected = theirs.loss_gradient(y, z)
    for found, exact in zip(kernel(LOSSES["huber"], z, y), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    c=st.integers(2, 12),
    size=st.sampled_from([1e-3, 1, 50, 1e30]),
)
def test_softmax_is_the_log_loss_of_several_classes(seed, n, c, size):
    rng = np.random.default_rng(seed)
    z = np.zeros((c, n + 3), np.float32)
    z[:, :n] = size * rng.normal(size=(c, n))
    y = rng.integers(0, c, n).astype(np.float32)
    (value, total), derivative = np.zeros((2, n), np.float32), np.zeros((c, n + 3), np.float32)
    softmax(z, y, n, value, total, derivative)
    logs = scipy.special.log_softmax(z[:, :n].T.astype(np.float64), axis=1)
    exact = -logs[np.arange(n), y.astype(int)]
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5)
    expected = np.exp(logs)
    expected[np.arange(n), y.astype(int)] -= 1
    np.testing.assert_allclose(derivative[:, :n].T, expected, atol=1e-6)
    assert (derivative[:, n:] == 0).all()
    twin_value, twin_derivative = reference_losses.softmax(z[:, :n].T.astype(np.float64), y)
    np.testing.assert_allclose(twin_value, exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(twin_derivative, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("code", losses.COMMON)
def test_the_short_list_of_losses_gives_the_same(code):
    rng = np.random.default_rng(5)
    z, y = rng.normal(size=40).astype(np.float32), rng.integers(0, 2, 40).astype(np.float32)
    one, other = np.zeros((2, 40), np.float32), np.zeros((2, 40), np.float32)
    evaluate(code, (0.0, 0.0), z, y, 40, *one)
    evaluate_common(code, (0.0, 0.0), z, y, 40, *other)
    np.testing.assert_array_equal(one, other)


@every_loss
def test_only_n_rows_are_written_and_each_by_itself(loss):
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=67).astype(np.float32), targets(loss, rng, 67).astype(np.float32)
    together = kernel(loss, z, y)
    for i in range(67):
        for one, all_rows in zip(kernel(loss, z[i : i + 1], y[i : i + 1]), together, strict=True):
            np.testing.assert_allclose(one[0], all_rows[i], rtol=4 * EPS)
    value, derivative = np.full((2, 67), 7, np.float32)
    evaluate(loss.code, loss_args(loss), z, y, 50, value, derivative)
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
