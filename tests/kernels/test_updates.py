"""Each optimizer with each schedule: converges, equals its twin, keeps all it knows in its arrays, sees infinity."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamgd.config import Config
from streamgd.kernels import reference, updates
from streamgd.optimizers import OPTIMIZERS, PLACES
from streamgd.penalties import penalty_value
from streamgd.schedules import SCHEDULES

from .arguments import STEPPING, optimizer_args, problem, schedule_args

every_optimizer = pytest.mark.parametrize("optimizer", STEPPING.values(), ids=STEPPING)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

CURVATURE = np.array([0.5, 0.8, 1.0, 1.5, 2.0])
MINIMUM = np.array([1.0, -2.0, 0.0, 0.3, 5.0])


# Compiled: what Python calls itself is Python.
learning_rate = njit(lambda *args: updates.learning_rate(*args))
shrink = njit(lambda *args: updates.shrink(*args))


@njit
def kernel(problem, before, eta, step, spread, gradient, params, slots):
    return updates.update(problem, before, eta, step, spread, gradient, params, slots[0], slots[1])


def twin(problem, before, eta, step, spread, gradient, params, slots):
    args = problem.optimizer_args, before, eta, step, problem.l1, problem.l2, spread
    return reference.update(problem.optimizer, *args, gradient, params, slots) < np.inf


def take(optimizer, args, eta, step, gradient, params, slots, *, before=None, l1=0.0, l2=0.0, update=kernel):
    """One step; return whether all weights are finite."""
    rates = eta if before is None else before, eta
    return update(problem(optimizer, args, l1=l1, l2=l2), *rates, step, np.ones(len(params)), gradient, params, slots)


def quadratic(params):
    """Gradient of sum of curvature / 2 (params - minimum)^2."""
    return CURVATURE * (params - MINIMUM)


def descend(optimizer, schedule, params, slots, steps, eta0=0.1, rates=None, **penalty):
    args, rates = optimizer_args(optimizer), schedule_args(schedule, eta0) if rates is None else rates
    for step in steps:
        before, eta = (learning_rate(schedule.code, rates, at) for at in (max(step - 1, 0), step))
        assert take(optimizer, args, eta, step, quadratic(params), params, slots, before=before, **penalty)


def start(optimizer):
    return np.zeros(len(MINIMUM)), np.zeros((2, len(MINIMUM)))


@every_optimizer
@every_schedule
def test_converges_on_a_quadratic(optimizer, schedule):
    params, slots = start(optimizer)
    oscillates = optimizer.name == "rmsprop"  # its steps are as long as the rate, however near the minimum is
    descend(optimizer, schedule, params, slots, range(5000), eta0=0.5)
    last = learning_rate(schedule.code, schedule_args(schedule, 0.5), 5000)
    np.testing.assert_allclose(params, MINIMUM, atol=last if oscillates else 2e-3)


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
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    size=st.floats(1e-3, 1e3),
    l1=st.sampled_from([0.0, 0.01, 1.0]),
    l2=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_equals_its_twin(optimizer, seed, n, size, l1, l2):
    rng = np.random.default_rng(seed)
    params, slots = rng.normal(size=n), rng.uniform(0, 1, (2, n))
    expected = params.copy(), slots.copy()
    args, spread = list(optimizer_args(optimizer)), rng.uniform(0, 2, n) * rng.integers(0, 2, n)
    for name in ("momentum", "beta_1", "beta_2"):
        if name in dict(optimizer.parameters):
            args[PLACES[name]] = rng.uniform(0.1, 0.999)
    for step in range(5):
        gradient, rates = size * rng.normal(size=n), rng.uniform(0.01, 1, 2)
        unchanged = gradient.copy()
        made = problem(optimizer, args, l1=l1, l2=l2)
        found = kernel(made, *rates, step, spread, gradient, params, slots)
        total = twin(made, *rates, step, spread, gradient, *expected)
        np.testing.assert_allclose(found, total, rtol=1e-9)
        np.testing.assert_array_equal(gradient, unchanged)
    scale = 1 + size
    np.testing.assert_allclose(params, expected[0], rtol=1e-9, atol=1e-11 * scale)
    np.testing.assert_allclose(slots, expected[1], rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("code", updates.COMMON)
def test_the_short_list_of_optimizers_gives_the_same_bits(code):
    (optimizer,) = (each for each in OPTIMIZERS.values() if each.code == code)
    gradient = np.random.default_rng(0).normal(size=9)
    both = [(np.ones(9), np.ones((2, 9))) for _ in range(2)]
    for rare, (params, slots) in zip((True, None), both, strict=True):
        kernel(problem(optimizer, l1=0.01, l2=0.1, rare=rare), 0.2, 0.1, 3, np.ones(9), gradient, params, slots)
    assert both[0][0].tobytes() == both[1][0].tobytes() and both[0][1].tobytes() == both[1][1].tobytes()


@settings(deadline=None, max_examples=100)
@given(w=st.floats(-5, 5), pull=st.floats(0, 3), l1=st.floats(0, 2), l2=st.floats(0, 2))
def test_shrinking_is_the_proximal_step_of_the_penalty(w, pull, l1, l2):
    """No weight near by or far off, and none of opposite sign, does better; it is a true zero where that is best."""
    found = shrink(w, pull, l1, l2)

    def objective(v):
        return (v - w) ** 2 / 2 + pull * penalty_value(np.array([v]), l1, l2)

    for other in (0.0, w, found * 1.01, found * 0.99, found + 0.01, found - 0.01, -found):
        assert objective(found) <= objective(other) + 1e-12
    assert (found == 0) == (abs(w) <= pull * l1) or w == 0


@pytest.mark.parametrize("rate", [lambda t: 0.3, lambda t: 0.5 / (1 + t), lambda t: 0.03 * (1 + t)])
def test_ftrl_minimises_what_its_definition_says(rate):
    """McMahan et al. (2013): w = argmin g.w + sum_s sigma_s (w - w_s)^2 / 2 + t (l1 |w| + l2 w^2 / 2).

    Sigmas sum to what the rate is made of, also where it falls by a schedule or rises to warm up.
    """
    optimizer, l1, l2 = OPTIMIZERS["ftrl"], 0.05, 0.1
    args = optimizer_args(optimizer)
    rng = np.random.default_rng(0)
    params, slots = np.zeros(1), np.zeros((2, 1))
    gradients, sigmas, weights, square = [], [], [], 0.0
    for t in range(12):
        g, eta = rng.normal(), rate(t)
        gradients.append(g)
        sigmas.append(np.sqrt(square + g * g) / eta - np.sqrt(square) / rate(max(t - 1, 0)))
        weights.append(params[0])
        square += g * g
        take(optimizer, args, eta, t, np.array([g]), params, slots, before=rate(max(t - 1, 0)), l1=l1, l2=l2)

        def objective(w, t=t):
            near = sum(s * (w - v) ** 2 / 2 for s, v in zip(sigmas, weights, strict=True))
            return sum(gradients) * w + near + (t + 1) * (l1 * abs(w) + l2 * w * w / 2)

        best = scipy.optimize.minimize_scalar(objective, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
        assert params[0] == pytest.approx(best.x, abs=1e-4)


@every_schedule
@pytest.mark.parametrize("warmup", [0, 50])
def test_the_least_penalty_changes_nothing_much(schedule, warmup):
    """FTRL's weights with a penalty are made anew each step from sums, and without one moved: they are the same."""
    rates = Config(learning_rate=schedule.name, alpha=0.01, epochs=10, warmup_steps=warmup).schedule_args(1.0, 50)
    free, held = start(OPTIMIZERS["ftrl"]), start(OPTIMIZERS["ftrl"])
    descend(OPTIMIZERS["ftrl"], schedule, *free, range(500), rates=rates)
    descend(OPTIMIZERS["ftrl"], schedule, *held, range(500), rates=rates, l1=1e-9, l2=1e-9)
    assert np.abs(free[0]).max() > 1
    np.testing.assert_allclose(held[0], free[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [each for name, each in STEPPING.items() if name != "ftrl"], ids=lambda x: x.name)
@pytest.mark.parametrize("step", [0, 1, 10])
def test_the_penalty_pulls_as_far_as_a_gradient_of_its_size_moves(optimizer, step):
    args = list(optimizer_args(optimizer))
    args[0] = 0.0  # a gradient that lasts one step, all of which is seen in that step
    ends = []
    for l1 in (0.0, 0.1):
        params, slots = np.array([5.0]), np.zeros((2, 1))
        take(optimizer, args, 0.3, step, np.array([0.7]), params, slots, l1=l1)
        ends.append(params[0])
    moved = (5.0 - ends[0]) / 0.7
    assert ends[0] - ends[1] == pytest.approx(moved * 0.1, rel=1e-9)


@every_optimizer
def test_l1_makes_true_zeros_of_weights_that_do_not_matter(optimizer):
    """Minimum of a quadratic with a penalty: zero where the slope at zero is below l1, else nearer to zero."""
    params, slots = start(optimizer)
    schedule = SCHEDULES[optimizer.learning_rate]
    args, rates = optimizer_args(optimizer), schedule_args(schedule, 1.0 if schedule.name == "constant" else 0.1)
    for step in range(4000):
        eta = learning_rate(schedule.code, rates, step)
        take(optimizer, args, eta, step, quadratic(params), params, slots, l1=0.9)
    exact = np.sign(MINIMUM) * np.maximum(np.abs(MINIMUM) - 0.9 / CURVATURE, 0)
    assert (params[exact == 0] == 0).all()
    np.testing.assert_allclose(params, exact, atol=0.05)


@every_optimizer
def test_l2_moves_the_minimum_to_where_the_objective_has_it(optimizer):
    params, slots = start(optimizer)
    schedule = SCHEDULES[optimizer.learning_rate]
    args, rates = optimizer_args(optimizer), schedule_args(schedule, 1.0 if schedule.name == "constant" else 0.1)
    for step in range(4000):
        eta = learning_rate(schedule.code, rates, step)
        take(optimizer, args, eta, step, quadratic(params), params, slots, l2=0.5)
    np.testing.assert_allclose(params, CURVATURE * MINIMUM / (CURVATURE + 0.5), atol=0.03)


def test_nesterov_is_gradient_descent_that_looks_ahead():
    """Sutskever et al. (ICML 2013): v = m v - eta grad(w + m v), w = w + v; the kernel's weights are w + m v."""
    optimizer, momentum, eta = OPTIMIZERS["nesterov"], 0.9, 0.05
    params, slots = start(optimizer)
    w, v = np.zeros((2, len(MINIMUM)))
    for _ in range(40):
        take(optimizer, (momentum, 0, 0), eta, 0, quadratic(params), params, slots)
        v = momentum * v - eta * quadratic(w + momentum * v)
        w = w + v
        np.testing.assert_allclose(params, w + momentum * v, rtol=1e-11, atol=1e-11)


def test_momentum_of_a_constant_gradient_is_a_geometric_sum():
    params, slots = np.zeros(1), np.zeros((2, 1))
    for _ in range(20):
        take(OPTIMIZERS["momentum"], (0.5, 0, 0), 1.0, 0, np.ones(1), params, slots)
    assert slots[0, 0] == pytest.approx(2 * (1 - 0.5**20))
    assert params[0] == pytest.approx(-2 * (20 - (1 - 0.5**20)))


def test_adagrad_shrinks_with_the_root_of_what_it_saw():
    params, slots = np.zeros(3), np.zeros((2, 3))
    gradient = np.array([1e-6, -3.0, 1e6])
    for t in range(1, 10):
        before = params.copy()
        take(OPTIMIZERS["adagrad"], (0, 0, 1e-30), 1.0, 0, gradient, params, slots)
        np.testing.assert_allclose(params - before, -np.sign(gradient) / np.sqrt(t), rtol=1e-12)


@every_optimizer
def test_a_gradient_of_zero_moves_nothing(optimizer):
    params, slots = np.arange(4.0), np.zeros((2, 4))
    assert take(optimizer, optimizer_args(optimizer), 0.1, 0, np.zeros(4), params, slots)
    np.testing.assert_array_equal(params, np.arange(4.0))


@every_optimizer
def test_only_some_rest_where_there_is_no_gradient(optimizer):
    rng = np.random.default_rng(0)
    params, slots = rng.normal(size=4), rng.uniform(0.5, 2, (2, 4))
    before = params.copy(), slots.copy()
    for step in range(3):
        take(optimizer, optimizer_args(optimizer), 0.1, step, np.zeros(4), params, slots)
    same = np.array_equal(params, before[0]) and np.array_equal(slots, before[1])
    assert same == optimizer.rests


@every_optimizer
@pytest.mark.parametrize("place", [0, 3, 16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_tells_when_a_weight_is_no_longer_finite(optimizer, place, bad):
    args, n = optimizer_args(optimizer), 17
    for update in (kernel, twin):
        params, slots = np.ones(n), np.ones((2, n))
        assert take(optimizer, args, 0.1, 0, np.ones(n), params, slots, update=update)
        gradient = np.ones(n)
        gradient[place] = bad
        with np.errstate(invalid="ignore"):
            assert not take(optimizer, args, 0.1, 0, gradient, params, slots, update=update)
        params, slots = np.ones(n), np.ones((2, n))
        params[place] = bad
        with np.errstate(invalid="ignore"):
            assert not take(optimizer, args, 0.1, 0, np.ones(n), params, slots, update=update)


STEPS = [*range(20), 1000, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 10**12]


@every_schedule
@pytest.mark.parametrize("args", ["default", "large", "small"])
def test_schedules_are_positive_finite_and_never_rise(schedule, args):
    rates = {
        "default": Config(learning_rate=schedule.name, alpha=1e-6).schedule_args(0.1, 10**11),
        "large": schedule_args(schedule, 1e6),
        "small": schedule_args(schedule, 1e-6),
    }[args]
    found = np.array([learning_rate(schedule.code, rates, step) for step in STEPS])
    vanishes = schedule.spans is not None  # and is exactly 0 at the end of all that was planned, or far beyond
    assert (found[: 1 if args != "default" else -1] > 0).all() and (found >= 0).all() and np.isfinite(found).all()
    assert vanishes or (found > 0).all()
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(
        found, [reference.learning_rate(schedule.code, rates, step) for step in STEPS], rtol=1e-14
    )


@every_schedule
def test_warming_up_reaches_the_rate_step_by_step(schedule):
    rates = schedule_args(schedule, 0.3)
    warm = (*rates[:3], 4.0)
    for step in range(8):
        full = learning_rate(schedule.code, rates, step)
        assert learning_rate(schedule.code, warm, step) == pytest.approx(full * min(1, (step + 1) / 5))


def test_cosine_falls_to_0_and_step_by_its_factor_an_epoch():
    cosine = Config(learning_rate="cosine", epochs=4).schedule_args(0.8, 10)
    found = [learning_rate(updates.COSINE, cosine, step) for step in (0, 20, 40, 50)]
    np.testing.assert_allclose(found, [0.8, 0.4, 0, 0], atol=1e-12)
    step = Config(learning_rate="step", decay=0.1).schedule_args(0.8, 10)
    found = [learning_rate(updates.STEPS, step, at) for at in (0, 9, 10, 19, 20)]
    np.testing.assert_allclose(found, [0.8, 0.8, 0.08, 0.08, 0.008])


@every_schedule
def test_a_learning_rate_may_be_asked_for_in_any_order(schedule):
    rates = schedule_args(schedule, 0.3)
    assert learning_rate(schedule.code, rates, 0) == pytest.approx(0.3)
    late = learning_rate(schedule.code, rates, 10**9)
    assert learning_rate(schedule.code, rates, 0) == pytest.approx(0.3)
    assert learning_rate(schedule.code, rates, 10**9) == late
