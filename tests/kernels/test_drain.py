"""The loop over mini-batches: equal to its twin, wherever it is cut; one step of all rows is textbook's gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.features import Layout
from streamgd.kernels import reference
from streamgd.kernels.drain import CARRIED, LOSS, ROWS, STEP, TILE, TILE_CELLS, WEIGHT, drain, predict
from streamgd.losses import LOSSES, Loss
from streamgd.optimizers import OPTIMIZERS, Optimizer
from streamgd.schedules import SCHEDULES, Schedule

from .arguments import optimizer_args, schedule_args, targets

ALL_ROWS = 1 << 62
BATCH_SIZES = (1, 2, 3, 4, 5, 7, 32, 100, TILE - 1, TILE, TILE + 1, 300, 2 * TILE, 1000, ALL_ROWS)

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
seeds = st.integers(0, 2**32 - 1)


class State(NamedTuple):
    params: np.ndarray
    slots: np.ndarray
    carry: np.ndarray
    counters: np.ndarray
    totals: np.ndarray

    def copy(self):
        return State(*(array.copy() for array in self))

    def bits(self):
        return [array.tobytes() for array in self]


@dataclass(frozen=True)
class Problem:
    """Everything that a run of the kernel reads."""

    rows: np.ndarray
    order: np.ndarray
    layout: Layout
    batch_size: int
    loss: Loss = LOSSES["squared_error"]
    optimizer: Optimizer = OPTIMIZERS["sgd"]
    schedule: Schedule = SCHEDULES["constant"]
    eta0: float = 0.1
    alpha: float = 0.0
    fit_intercept: bool = True
    inverse_scale: Any = None

    @property
    def n(self):
        return len(self.order)

    @property
    def scale(self):
        return np.ones(self.layout.n_features) if self.inverse_scale is None else 1 / self.inverse_scale

    @property
    def tile(self):
        """Rows of a tile: a cut between tiles changes no bit."""
        return max(4, min(TILE, TILE_CELLS // self.rows.shape[1]))

    def start(self, rng=None):
        """All zeros, or with a generator what a run has after a while."""
        p = self.layout.n_features
        state = State(
            np.zeros(p + 1), np.zeros((self.optimizer.slots, p + 1)), np.zeros(p + 1), np.zeros(3, int), np.zeros(2)
        )
        if rng is not None:
            state.params[:] = rng.normal(size=p + 1) / np.sqrt(p)
            state.slots[:] = rng.uniform(0.5, 2, state.slots.shape)
            state.counters[STEP], state.counters[ROWS] = rng.integers(0, 9), rng.integers(0, 99)
            state.totals[:] = rng.uniform(0, 9, 2)
        return state

    def run(self, state, start=0, stop=None, last=False, *, kernel=drain):
        stop = self.n if stop is None else stop
        return kernel(
            self.rows,
            self.order,
            start,
            stop,
            self.layout.y_cell,
            self.layout.w_cell,
            self.loss.code,
            self.optimizer.code,
            optimizer_args(self.optimizer),
            self.schedule.code,
            schedule_args(self.schedule, self.eta0),
            self.alpha,
            self.fit_intercept,
            self.batch_size,
            1 / self.scale,
            *state,
            last,
        )


def make_rows(rng, n, p, loss, *, weighted=False, stride=None, scale=1.0):
    """Rows with normal features of some scales, targets that depend on them, and weights with zeros among them."""
    layout = Layout(p, True, weighted)
    rows = np.zeros((n, layout.stride if stride is None else stride), np.float32)
    rows[:, :p] = rng.normal(size=(n, p)) * scale
    rows[:, layout.y_cell] = targets(loss, rng, n)
    if weighted:
        rows[:, layout.w_cell] = rng.uniform(0, 2, n) * rng.integers(0, 3, n).clip(0, 1)
    return rows, layout


def everything(rng, n):
    return rng.permutation(n).astype(np.uint32)


@st.composite
def problems(draw, batch_sizes=BATCH_SIZES):
    rng = np.random.default_rng(draw(seeds))
    p, batch_size, loss = draw(st.integers(1, 70)), draw(st.sampled_from(batch_sizes)), draw(st.sampled_from([*LOSSES]))
    weighted = draw(st.booleans())
    most = min(900, 40 * batch_size)
    n = draw(st.integers(1, most) | st.integers(min(most, 500), most))
    scale = 10.0 ** rng.uniform(-3, 3, p)
    cells = p + 1 + weighted
    stride = draw(st.sampled_from([cells, Layout(p, True, weighted).stride, -(-cells // 16) * 16 + 16]))
    rows, layout = make_rows(rng, n, p, LOSSES[loss], weighted=weighted, stride=stride, scale=scale)
    # Some rows may be left out and some come again.
    order = everything(rng, n) if draw(st.booleans()) else rng.integers(0, n, n).astype(np.uint32)
    return Problem(
        rows,
        order,
        layout,
        batch_size,
        LOSSES[loss],
        OPTIMIZERS[draw(st.sampled_from([*OPTIMIZERS]))],
        SCHEDULES[draw(st.sampled_from([*SCHEDULES]))],
        eta0=0.2 / (p + 1),  # stable for every method, so that rounding errors die out
        alpha=draw(st.sampled_from([0.0, 1e-3, 1.0])),
        fit_intercept=draw(st.booleans()),
        inverse_scale=1 / scale,
    )


def assert_same_within_rounding(problem, found, expected):
    """Sums of float32 products in another order: errors grow with rows and features, not with steps."""
    np.testing.assert_array_equal(found.counters, expected.counters)
    np.testing.assert_allclose(found.totals, expected.totals, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.params, expected.params, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.slots, expected.slots, rtol=1e-4, atol=1e-4)
    error = np.abs(found.carry - expected.carry) / np.append(problem.scale, 1)
    assert (error <= 1e-5 * (1 + found.counters[CARRIED])).all()


def cuts_of(draw, n):
    return sorted(draw(st.lists(st.integers(0, n), max_size=5)))


def run_in_pieces(problem, state, cuts, last=False, *, kernel=drain):
    for start, stop in pairwise([0, *cuts, problem.n]):
        assert problem.run(state, start, stop, last and stop == problem.n and start < stop, kernel=kernel) == -1


@settings(deadline=None, max_examples=250)
@given(problem=problems(), seed=seeds, last=st.booleans(), data=st.data())
def test_equals_its_twin(problem, seed, last, data):
    """Whatever the rows, their order, weights, mini-batches and methods, and in how many calls."""
    found = problem.start(np.random.default_rng(seed))
    before, expected = found.copy(), found.copy()
    start = data.draw(st.integers(0, problem.n - 1))
    assert problem.run(found, start, last=last) == -1
    assert problem.run(expected, start, last=last, kernel=reference.drain) == -1
    assert_same_within_rounding(problem, found, expected)

    n = problem.n - start
    assert found.counters[ROWS] - before.counters[ROWS] == n
    steps, rest = divmod(n, problem.batch_size)
    assert found.counters[STEP] - before.counters[STEP] == steps + (last and rest > 0)
    assert found.counters[CARRIED] == (0 if last else rest)
    if found.counters[CARRIED] == 0:
        assert not found.carry.any()


@settings(deadline=None, max_examples=100)
@given(problem=problems(), seed=seeds, data=st.data())
def test_a_cut_between_tiles_changes_no_bit(problem, seed, data):
    """A tile begins with a mini-batch and every ``TILE`` rows after that (fewer where rows are wide).

    So cuts where mini-batches end are always free, and inside one those at a multiple of the tile.
    """
    whole = problem.start(np.random.default_rng(seed))
    pieces = whole.copy()
    problem.run(whole, last=True)
    batch = min(problem.batch_size, problem.n)
    free = [start + tile for start in range(0, problem.n, batch) for tile in range(0, batch, problem.tile)]
    free = [cut for cut in free if cut <= problem.n]
    run_in_pieces(problem, pieces, sorted(data.draw(st.lists(st.sampled_from(free), max_size=6))), last=True)
    assert pieces.bits() == whole.bits()


@settings(deadline=None, max_examples=100)
@given(problem=problems(), seed=seeds, data=st.data())
def test_a_cut_anywhere_changes_rounding_at_most(problem, seed, data):
    whole = problem.start(np.random.default_rng(seed))
    pieces = whole.copy()
    problem.run(whole, last=True)
    run_in_pieces(problem, pieces, cuts_of(data.draw, problem.n), last=True)
    assert_same_within_rounding(problem, pieces, whole)


@settings(deadline=None, max_examples=50)
@given(problem=problems(batch_sizes=(1,)), seed=seeds, data=st.data())
def test_a_cut_of_single_rows_changes_no_bit(problem, seed, data):
    whole = problem.start(np.random.default_rng(seed))
    pieces = whole.copy()
    problem.run(whole)
    run_in_pieces(problem, pieces, cuts_of(data.draw, problem.n))
    assert pieces.bits() == whole.bits()


@settings(deadline=None, max_examples=50)
@given(problem=problems(), seed=seeds, data=st.data())
def test_the_same_cuts_give_the_same_bits(problem, seed, data):
    """A run that stops between calls and goes on from its saved state, as an interrupted job does."""
    once = problem.start(np.random.default_rng(seed))
    again = once.copy()
    cuts = cuts_of(data.draw, problem.n)
    run_in_pieces(problem, once, cuts)
    for start, stop in pairwise([0, *cuts, problem.n]):
        again = again.copy()
        replace(problem, rows=problem.rows.copy()).run(again, start, stop)
    assert again.bits() == once.bits()


@settings(deadline=None, max_examples=50)
@given(problem=problems(), seed=seeds, data=st.data())
def test_a_mini_batch_may_span_windows(problem, seed, data):
    whole = problem.start(np.random.default_rng(seed))
    windows = whole.copy()
    problem.run(whole, last=True)
    for start, stop in pairwise(sorted({0, *cuts_of(data.draw, problem.n), problem.n})):
        lying = np.random.default_rng(seed).permutation(stop - start)
        rows = np.empty((stop - start, problem.rows.shape[1]), np.float32)
        rows[lying] = problem.rows[problem.order[start:stop]]
        window = replace(problem, rows=rows, order=lying.astype(np.uint32))
        window.run(windows, last=stop == problem.n)
    assert_same_within_rounding(problem, windows, whole)


@every_loss
@pytest.mark.parametrize("p", [255, 600, 20_000])
def test_wide_rows_equal_the_twin(p, loss):
    rng = np.random.default_rng(p)
    rows, layout = make_rows(rng, 150, p, loss, weighted=True)
    problem = Problem(rows, everything(rng, 150), layout, 40, loss, eta0=0.5 / p, alpha=0.01)
    assert problem.tile < TILE
    found = problem.start(rng)
    expected = found.copy()
    problem.run(found)
    problem.run(expected, kernel=reference.drain)
    assert_same_within_rounding(problem, found, expected)


def gradient_of_all(problem, params):
    """Gradient of mean weighted loss + alpha / 2 |w|^2 in the standardised weights, by the textbook."""
    p, batch = problem.layout.n_features, problem.rows[problem.order].astype(np.float64)
    standardised = np.hstack([batch[:, :p] / problem.scale, np.ones((problem.n, 1))])
    w = batch[:, problem.layout.w_cell] if problem.layout.has_weight else np.ones(problem.n)
    _, derivative = reference.LOSSES[problem.loss.code](standardised @ params, batch[:, problem.layout.y_cell])
    return standardised.T @ (w * derivative) / problem.n + problem.alpha * np.append(params[:p], 0)


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [3, 257, 5000])
def test_all_rows_make_one_step_along_the_exact_gradient(loss, weighted, n):
    """batch_size=None is batch gradient descent: one step an epoch."""
    rng = np.random.default_rng(n)
    scale = 10.0 ** rng.uniform(-3, 3, 20)
    rows, layout = make_rows(rng, n, 20, loss, weighted=weighted, scale=scale)
    problem = Problem(rows, everything(rng, n), layout, ALL_ROWS, loss, alpha=0.3, inverse_scale=1 / scale)
    state = problem.start(rng)
    before = state.copy()
    problem.run(state, 0, n // 2)
    assert state.params.tobytes() == before.params.tobytes()
    problem.run(state, n // 2, n, last=True)
    step = -problem.eta0 * gradient_of_all(problem, before.params)
    np.testing.assert_allclose(state.params - before.params, step, rtol=1e-5, atol=1e-6)
    assert state.counters[STEP] == before.counters[STEP] + 1


@every_loss
@every_optimizer
def test_whole_weights_are_rows_that_come_again(loss, optimizer):
    """Weights are relative to their mean of 1, so that the learning rate does not depend on their unit."""
    rng = np.random.default_rng(0)
    rows, layout = make_rows(rng, 400, 9, loss, weighted=True)
    times = rng.integers(0, 4, 400)
    again = rows[np.repeat(np.arange(400), times)]
    rows[:, layout.w_cell] = times / times.mean()
    again[:, layout.w_cell] = 1
    weighted = Problem(rows, everything(rng, 400), layout, ALL_ROWS, loss, optimizer, alpha=0.1)
    repeated = replace(weighted, rows=again, order=everything(rng, len(again)))
    one, other = weighted.start(), repeated.start()
    for _ in range(3):
        weighted.run(one, last=True)
        repeated.run(other, last=True)
    np.testing.assert_allclose(one.params, other.params, rtol=1e-4, atol=1e-5)
    means = [state.totals[LOSS] / state.totals[WEIGHT] for state in (one, other)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


@every_loss
def test_totals_are_losses_before_learning(loss):
    """Progressive validation: each mini-batch is scored with the weights it has not touched yet."""
    rng = np.random.default_rng(1)
    rows, layout = make_rows(rng, 90, 5, loss, weighted=True)
    problem = Problem(rows, everything(rng, 90), layout, 30, loss)
    state, total = problem.start(rng), 0.0
    state.totals[:] = 0
    for start in range(0, 90, 30):
        batch = rows[problem.order[start : start + 30]].astype(np.float64)
        z = reference.predict(batch, 30, state.params[:-1], state.params[-1])
        total += batch[:, layout.w_cell] @ reference.LOSSES[loss.code](z, batch[:, layout.y_cell])[0]
        problem.run(state, start, start + 30)
    assert state.totals[LOSS] == pytest.approx(total, rel=1e-5)
    assert state.totals[WEIGHT] == pytest.approx(rows[:, layout.w_cell].sum(dtype=np.float64), rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(problem=problems(), seed=seeds, garbage=st.sampled_from([1.0, -1e6, 3e38]))
def test_cells_without_meaning_never_matter(problem, seed, garbage):
    """The encoder writes 0 there, but any finite number gives the same bits."""
    used = problem.layout.n_features + problem.layout.has_target + problem.layout.has_weight
    rows = np.zeros((len(problem.rows), used + 20), np.float32)
    rows[:, :used] = problem.rows[:, :used]
    clean = replace(problem, rows=rows)
    dirty = replace(problem, rows=rows.copy())
    dirty.rows[:, used:] = garbage
    one = problem.start(np.random.default_rng(seed))
    other = one.copy()
    clean.run(one, last=True)
    dirty.run(other, last=True)
    assert one.bits() == other.bits()


@every_optimizer
def test_rows_outside_the_range_never_matter(optimizer):
    rng = np.random.default_rng(2)
    rows, layout = make_rows(rng, 100, 6, LOSSES["squared_error"])
    order = everything(rng, 100)
    problem = Problem(rows, order, layout, 7, optimizer=optimizer)
    one = problem.start(rng)
    other = one.copy()
    problem.run(one, 10, 73)
    rows[order[:10]] = rows[order[73:]] = np.nan
    problem.run(other, 10, 73)
    assert one.bits() == other.bits()
    assert np.isfinite(one.params).all()


@every_loss
@every_optimizer
@pytest.mark.parametrize("intercept", [0.0, -1.5])
def test_the_intercept_stays_if_it_is_not_fitted(loss, optimizer, intercept):
    rng = np.random.default_rng(3)
    rows, layout = make_rows(rng, 100, 6, loss)
    problem = Problem(rows, everything(rng, 100), layout, 8, loss, optimizer, alpha=0.1, fit_intercept=False)
    state = problem.start()
    state.params[-1] = intercept
    problem.run(state, last=True)
    assert state.params[-1] == intercept
    assert (state.slots[:, -1] == 0).all()
    assert (state.params[:-1] != 0).all()
    fitted = problem.start()
    replace(problem, fit_intercept=True).run(fitted, last=True)
    assert fitted.params[-1] != intercept


@every_loss
@every_optimizer
def test_alpha_shrinks_weights_and_never_the_intercept(loss, optimizer):
    rng = np.random.default_rng(4)
    rows, layout = make_rows(rng, 64, 6, loss)
    free = Problem(rows, everything(rng, 64), layout, 64, loss, optimizer)
    one = free.start(rng)
    other = one.copy()
    free.run(one)
    replace(free, alpha=2.5).run(other)
    assert one.params[-1] == other.params[-1] and (one.slots[:, -1] == other.slots[:, -1]).all()
    assert (one.params[:-1] != other.params[:-1]).all()


@every_loss
@every_optimizer
def test_without_data_weights_go_to_0_and_the_intercept_stays(loss, optimizer):
    rng = np.random.default_rng(5)
    rows, layout = make_rows(rng, 64, 6, loss, weighted=True)
    rows[:, layout.w_cell] = 0
    problem = Problem(rows, everything(rng, 64), layout, 64, loss, optimizer, alpha=1.0)
    state = problem.start()
    state.params[:] = before = np.append(rng.uniform(0.5, 1, 6), 7)
    problem.run(state)
    assert state.params[-1] == 7
    assert (np.abs(state.params[:-1]) < before[:-1]).all()


@every_loss
@every_optimizer
@pytest.mark.parametrize("batch_size", [1, 4, 300])
@pytest.mark.parametrize("bad_step", [1, 3])
def test_divergence_tells_the_step(loss, optimizer, batch_size, bad_step):
    """Rows of zeros move nothing, whatever the learning rate, until the step whose gradient it makes infinite."""
    n, layout = 4 * batch_size, Layout(3, True, True)
    rows = np.zeros((n, layout.stride), np.float32)
    rows[(bad_step - 1) * batch_size : bad_step * batch_size] = 1e6
    rows[:, layout.y_cell] = 1
    problem = Problem(rows, np.arange(n, dtype=np.uint32), layout, batch_size, loss, optimizer, eta0=1e308)
    for kernel in (drain, reference.drain):
        state = problem.start()
        with np.errstate(over="ignore", invalid="ignore"):
            assert problem.run(state, last=True, kernel=kernel) == bad_step
        assert state.counters.tolist() == [bad_step, bad_step * batch_size, 0]
        assert not np.abs(state.params).sum() < np.inf


@every_loss
def test_a_target_or_feature_that_is_not_finite_is_noticed(loss):
    for cell in (0, 3):
        rng = np.random.default_rng(5)
        rows, layout = make_rows(rng, 100, 3, loss)
        rows[50, cell] = np.nan
        problem = Problem(rows, np.arange(100, dtype=np.uint32), layout, 10, loss)
        assert problem.run(problem.start()) == 6


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_over_many_rows_keep_their_digits(weighted):
    """2^25 + 3 equal rows: a float32 sum of ones stays at 2^24."""
    n, layout = 1 << 15, Layout(2, True, weighted)
    rows = np.zeros((n, layout.stride), np.float32)
    rows[:, 0], rows[:, 1], rows[:, layout.y_cell] = 1, 0.1, -1
    if weighted:
        rows[:, layout.w_cell] = 1
    problem = Problem(rows, np.arange(n, dtype=np.uint32), layout, ALL_ROWS)
    state = problem.start()
    for _ in range(1 << 10):
        problem.run(state)
    problem.run(state, 0, 3)
    total = (1 << 25) + 3
    assert state.carry[0] == state.carry[2] == total
    assert state.carry[1] == pytest.approx(total * float(np.float32(0.1)), rel=TILE * 2**-24)
    assert state.counters.tolist() == [0, total, total]
    assert state.totals.tolist() == [total / 2, total]
    problem.run(state, 3, 4, last=True)
    np.testing.assert_allclose(state.params, [-0.1, -0.01, -0.1], rtol=TILE * 2**-24)


def test_no_rows_are_no_step():
    rows, layout = make_rows(np.random.default_rng(0), 5, 3, LOSSES["squared_error"])
    problem = Problem(rows, np.arange(5, dtype=np.uint32), layout, 4)
    state = problem.start()
    for start in (0, 5):
        assert problem.run(state, start, start) == -1
        assert problem.run(state, start, start, last=True) == -1
    assert state.bits() == problem.start().bits()


def test_a_short_mini_batch_is_a_step_only_at_the_end():
    rows, layout = make_rows(np.random.default_rng(0), 10, 3, LOSSES["squared_error"])
    problem = Problem(rows, np.arange(10, dtype=np.uint32), layout, 4)
    state = problem.start()
    problem.run(state, 0, 10)
    assert state.counters.tolist() == [2, 10, 2]
    problem.run(state, 0, 1)
    assert state.counters.tolist() == [2, 11, 3]
    problem.run(state, 1, 2, last=True)
    assert state.counters.tolist() == [3, 12, 0]
    problem.run(state, 0, 8, last=True)
    assert state.counters.tolist() == [5, 20, 0]


def test_a_short_mini_batch_is_a_step_though_no_row_is_left():
    """The last window of an epoch may turn out to be empty, when all its targets are null."""
    rows, layout = make_rows(np.random.default_rng(0), 10, 3, LOSSES["squared_error"])
    problem = Problem(rows, np.arange(10, dtype=np.uint32), layout, ALL_ROWS)
    state, expected = problem.start(), problem.start()
    problem.run(state)
    problem.run(state, 0, 0, last=True)
    problem.run(expected, last=True)
    assert state.bits() == expected.bits()


@settings(deadline=None, max_examples=30)
@given(seed=seeds, n=st.integers(0, 200), p=st.integers(0, 70), spare=st.integers(0, 17))
def test_predict_equals_its_twin(seed, n, p, spare):
    rng = np.random.default_rng(seed)
    rows = np.full((n + 2, p + spare), np.nan, np.float32)
    rows[:, :p] = rng.normal(size=(n + 2, p))
    weights, out = rng.normal(size=p), np.full(n + 2, 7.0)
    predict(rows, n, weights, 0.25, out)
    np.testing.assert_allclose(out[:n], reference.predict(rows, n, weights, 0.25), rtol=1e-12, atol=1e-12)
    assert (out[n:] == 7).all()
