"""Each optimizer with each schedule: converges, equals its twin, keeps all it knows in its arrays, sees infinity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.config import Config
from streamgd.kernels import reference, updates
from streamgd.optimizers import OPTIMIZERS
from streamgd.schedules import SCHEDULES

from .arguments import optimizer_args, schedule_args

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

CURVATURE = np.array([0.5, 0.8, 1.0, 1.5, 2.0])
MINIMUM = np.array([1.0, -2.0, 0.0, 0.3, 5.0])


def quadratic(params):
    """Gradient of sum of curvature / 2 (params - minimum)^2."""
    return CURVATURE * (params - MINIMUM)


def descend(optimizer, schedule, params, slots, steps, eta0=0.1):
    args, rates = optimizer_args(optimizer), schedule_args(schedule, eta0)
    for step in steps:
        eta = updates.learning_rate(schedule.code, rates, step)
        assert updates.update(optimizer.code, args, eta, quadratic(params), params, slots)


def start(optimizer):
    return np.zeros(len(MINIMUM)), np.zeros((optimizer.slots, len(MINIMUM)))


@every_optimizer
@every_schedule
def test_converges_on_a_quadratic(optimizer, schedule):
    params, slots = start(optimizer)
    descend(optimizer, schedule, params, slots, range(5000), eta0=0.5)
    np.testing.assert_allclose(params, MINIMUM, atol=1e-3)


@every_optimizer
@every_schedule
def test_state_survives_cutting(optimizer, schedule):
    """Weights and slots are all the state: written to bytes and read again, the descent goes on to the same bits."""
    params, slots = start(optimizer)
    descend(optimizer, schedule, params, slots, range(30))
    again = start(optimizer)
    for steps in (range(11), range(11, 12), range(12, 30)):
        again = tuple(np.frombuffer(a.tobytes()).reshape(a.shape).copy() for a in again)
        descend(optimizer, schedule, *again, steps)
    assert params.tobytes() == again[0].tobytes() and slots.tobytes() == again[1].tobytes()


@every_optimizer
@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), size=st.floats(1e-3, 1e3), parameter=st.floats(1e-6, 0.999)
)
def test_equals_its_twin(optimizer, seed, n, size, parameter):
    rng = np.random.default_rng(seed)
    params, slots = rng.normal(size=n), rng.uniform(0, 1, (optimizer.slots, n))
    expected = params.copy(), slots.copy()
    for _ in range(5):
        gradient, eta, args = size * rng.normal(size=n), rng.uniform(0, 1), np.array([parameter])
        before = gradient.copy()
        assert updates.update(optimizer.code, args, eta, gradient, params, slots)
        assert reference.update(optimizer.code, args, eta, gradient, *expected)
        np.testing.assert_array_equal(gradient, before)
    scale = 1 + size
    np.testing.assert_allclose(params, expected[0], rtol=1e-12, atol=1e-13 * scale)
    np.testing.assert_allclose(slots, expected[1], rtol=1e-12, atol=1e-13 * scale)


def test_nesterov_is_gradient_descent_that_looks_ahead():
    """Sutskever et al. (ICML 2013): v = m v - eta grad(w + m v), w = w + v; the kernel's weights are w + m v."""
    optimizer, momentum, eta = OPTIMIZERS["nesterov"], 0.9, 0.05
    params, slots = start(optimizer)
    w, v = np.zeros((2, len(MINIMUM)))
    for _ in range(40):
        updates.update(optimizer.code, np.array([momentum]), eta, quadratic(params), params, slots)
        v = momentum * v - eta * quadratic(w + momentum * v)
        w = w + v
        np.testing.assert_allclose(params, w + momentum * v, rtol=1e-11, atol=1e-11)


def test_momentum_of_a_constant_gradient_is_a_geometric_sum():
    params, slots = np.zeros(1), np.zeros((1, 1))
    for _ in range(20):
        updates.update(OPTIMIZERS["momentum"].code, np.array([0.5]), 1.0, np.ones(1), params, slots)
    assert slots[0, 0] == pytest.approx(2 * (1 - 0.5**20))
    assert params[0] == pytest.approx(-2 * (20 - (1 - 0.5**20)))


def test_adagrad_shrinks_with_the_root_of_what_it_saw():
    params, slots = np.zeros(3), np.zeros((1, 3))
    gradient = np.array([1e-6, -3.0, 1e6])
    for t in range(1, 10):
        before = params.copy()
        updates.update(OPTIMIZERS["adagrad"].code, np.array([1e-30]), 1.0, gradient, params, slots)
        np.testing.assert_allclose(params - before, -np.sign(gradient) / np.sqrt(t), rtol=1e-12)


@every_optimizer
def test_a_gradient_of_zero_moves_nothing(optimizer):
    params, slots = np.arange(4.0), np.zeros((optimizer.slots, 4))
    assert updates.update(optimizer.code, optimizer_args(optimizer), 0.1, np.zeros(4), params, slots)
    np.testing.assert_array_equal(params, np.arange(4.0))


@every_optimizer
@pytest.mark.parametrize("place", [0, 3, 16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_tells_when_a_weight_is_no_longer_finite(optimizer, place, bad):
    args, n = optimizer_args(optimizer), 17
    for twin in (updates, reference):
        params, slots = np.ones(n), np.ones((optimizer.slots, n))
        assert twin.update(optimizer.code, args, 0.1, np.ones(n), params, slots)
        gradient = np.ones(n)
        gradient[place] = bad
        with np.errstate(invalid="ignore"):
            assert not twin.update(optimizer.code, args, 0.1, gradient, params, slots)
        params, slots = np.ones(n), np.ones((optimizer.slots, n))
        params[place] = bad
        assert not twin.update(optimizer.code, args, 0.1, np.ones(n), params, slots)


STEPS = [*range(20), 1000, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 10**12]


@every_schedule
@pytest.mark.parametrize("args", ["default", "large", "small"])
def test_schedules_are_positive_finite_and_never_rise(schedule, args):
    rates = {
        "default": np.array(Config(learning_rate=schedule.name).schedule_args(0.1)),
        "large": schedule_args(schedule, 1e6),
        "small": schedule_args(schedule, 1e-6),
    }[args]
    found = np.array([updates.learning_rate(schedule.code, rates, step) for step in STEPS])
    assert (found > 0).all() and np.isfinite(found).all()
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(
        found, [reference.learning_rate(schedule.code, rates, step) for step in STEPS], rtol=1e-14
    )


@every_schedule
def test_a_learning_rate_may_be_asked_for_in_any_order(schedule):
    rates = schedule_args(schedule, 0.3)
    assert updates.learning_rate(schedule.code, rates, 0) == pytest.approx(0.3)
    late = updates.learning_rate(schedule.code, rates, 10**9)
    assert updates.learning_rate(schedule.code, rates, 0) == pytest.approx(0.3)
    assert updates.learning_rate(schedule.code, rates, 10**9) == late
