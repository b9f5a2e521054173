"""The loop over mini-batches: equal to its twin, wherever it is cut; one step of all rows is textbook's gradient."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.features import Layout
from streamgd.kernels import problem as kernels
from streamgd.kernels import reference, reference_losses
from streamgd.kernels.drain import CARRIED, LOSS, ROWS, STEP, WEIGHT, drain, predict
from streamgd.kernels.gradients import OUTPUTS
from streamgd.kernels.slots import TILE_ROWS as TILE
from streamgd.kernels.slots import tile_rows
from streamgd.kernels.tables import average_table
from streamgd.losses import LOSSES, Loss
from streamgd.optimizers import OPTIMIZERS, Optimizer
from streamgd.schedules import SCHEDULES, Schedule

from .arguments import STEPPING, listed, loss_args, optimizer_args, schedule_args, targets

ALL_ROWS = 1 << 62
BATCH_SIZES = (1, 2, 3, 4, 5, 7, 32, 64, 100, TILE - 1, TILE, TILE + 1, 300, 2 * TILE, 1000, ALL_ROWS)
#: Combinations of methods are many and each is tested by its own kernel tests, so here a few stand for all.
#: Losses whose derivative jumps, or grows without bound, would turn a rounding error into another model.
SOME_LOSSES = ("log_loss", "squared_error", "squared_hinge", "modified_huber", "huber")
#: So would RMSprop, whose steps are as long near an optimum as far from it.
SOME_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "adam", "ftrl")

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_optimizer = pytest.mark.parametrize("optimizer", STEPPING.values(), ids=STEPPING)
seeds = st.integers(0, 2**32 - 1)


class State(NamedTuple):
    params: np.ndarray
    slots: np.ndarray
    carry: np.ndarray
    table: np.ndarray | None
    touched: np.ndarray
    counters: np.ndarray
    totals: np.ndarray
    failed: np.ndarray

    def copy(self):
        return State(*(None if array is None else array.copy() for array in self))

    def bits(self):
        kept = self._replace(touched=None)  # a list in no order that matters
        return [array.tobytes() for array in kept if array is not None]


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
    l1: float = 0.0
    clip_norm: float = 0.0
    fit_intercept: bool = True
    inverse_scale: Any = None
    outputs: int = 1
    bits: int = 0
    listed: int = 1000
    at_hand: int = 0
    texts: Any = field(default=None, repr=False)  # rows hold addresses of them

    @property
    def n(self):
        return len(self.order)

    @property
    def scale(self):
        return np.ones(self.layout.n_features) if self.inverse_scale is None else 1 / self.inverse_scale

    @property
    def tile(self):
        """Rows of a tile: a cut between tiles changes no bit."""
        return tile_rows(self.rows.shape[1])

    @property
    def factor(self):
        """Values of scaled indices are about 1, as `FeatureSpec.hashed` makes them: larger ones would diverge."""
        n = self.layout.n_scaled
        cells = np.arange(n) % max(1, self.layout.n_features)
        return np.array([cells, (0.5 + np.arange(n)) / self.scale[cells]], np.float64).reshape(2, n)

    @property
    def kernel(self):
        return kernels.Problem(
            rare=None if kernels.common(self.loss.code, self.optimizer.code) else True,
            loss=self.loss.code,
            loss_args=loss_args(self.loss),
            optimizer=self.optimizer.code,
            optimizer_args=optimizer_args(self.optimizer),
            slots=self.optimizer.slots,
            schedule=self.schedule.code,
            schedule_args=schedule_args(self.schedule, self.eta0),
            l1=self.l1,
            l2=self.alpha,
            clip_norm=self.clip_norm,
            fit_intercept=self.fit_intercept,
            batch_size=self.batch_size,
            at_hand=self.at_hand,
        )

    def start(self, rng=None):
        """All zeros, or with a generator what a run has after a while."""
        p, c = self.layout.n_features, self.outputs
        cells = -(-((2 + self.optimizer.slots) * c + 1) // 4) * 4
        state = State(
            params=np.zeros((c, p + 1)),
            slots=np.zeros((2, c, p + 1)),
            carry=np.zeros((c, p + 1)),
            table=np.zeros((1 << self.bits, cells), np.float32) if self.bits else None,
            touched=np.zeros(self.listed, np.int64),
            counters=np.zeros(4, np.int64),
            totals=np.zeros((1, 2)),
            failed=np.full(1, -1),
        )
        if rng is not None:
            state.params[:] = rng.normal(size=(c, p + 1)) / np.sqrt(p)
            state.slots[:] = rng.uniform(0.5, 2, state.slots.shape)
            state.counters[STEP], state.counters[ROWS] = rng.integers(0, 9), rng.integers(0, 99)
            state.totals[:] = rng.uniform(0, 9, (1, 2))
            if state.table is not None:
                state.table[:, : (1 + self.optimizer.slots) * c] = rng.uniform(
                    0.1, 0.5, (len(state.table), (1 + self.optimizer.slots) * c)
                )
                marks = state.table.view(np.int32)[:, -1]
                marks[:] = rng.integers(0, state.counters[STEP] + 1, len(marks))
                marks[: self.at_hand] = state.counters[STEP]
                state.table[marks == 0] = 0
        return state

    def run(self, state, start=0, stop=None, last=False, *, kernel=drain, side_by_side=None):
        stop = self.n if stop is None else stop
        table, cells, at = state.table, self.rows.view(np.uint32), self.layout.cells
        going = kernel(
            self.rows,
            None if table is None else cells,
            *listed(cells, self.order, start, stop, at, table, self.batch_size, state.counters, self.at_hand),
            self.order,
            start,
            stop,
            last,
            at,
            self.kernel,
            side_by_side,
            None if len(state.params) == 1 else len(state.params),
            1 / self.scale,
            np.append(np.ones(self.layout.n_features), 0.0),
            self.factor,
            state.params,
            state.slots,
            state.carry,
            table,
            None if table is None else table.view(np.int32),
            state.touched,
            state.counters,
            state.totals,
            state.failed,
        )
        assert going == (state.failed < 0).any()
        return state.failed[0]


def make_rows(rng, n, p, loss, *, weighted=False, spare=0, scale=1.0):
    """Rows with normal features of some scales, targets that depend on them, and weights with zeros among them."""
    layout = Layout(p, True, weighted)
    rows = np.zeros((n, layout.stride + spare), np.float32)
    rows[:, :p] = rng.normal(size=(n, p)) * scale
    rows[:, layout.y_cell] = targets(loss, rng, n)
    if weighted:
        rows[:, layout.w_cell] = rng.uniform(0, 2, n) * rng.integers(0, 3, n).clip(0, 1)
    return rows, layout


def everything(rng, n):
    return rng.permutation(n).astype(np.uint32)


def add_hashes(rng, problem, n_index, n_scaled, n_text, bits, values=40):
    """The same rows with hashed features, of which some are often the same."""
    layout = replace(problem.layout, n_index=n_index, n_scaled=n_scaled, n_text=n_text)
    rows = np.zeros((len(problem.rows), layout.stride), np.float32)
    rows[:, : layout.width] = problem.rows[:, : layout.width]
    cells, texts = rows.view(np.uint32), []
    hashes = rng.integers(0, 2**32, values, dtype=np.uint32)
    cells[:, layout.width : layout.text_cell] = rng.choice(hashes, (len(rows), n_index))
    for i in range(len(rows)):
        for t in range(n_text):
            words = rng.choice(hashes, rng.integers(0, 20))
            texts.append(words)
            address, cell = words.ctypes.data, layout.text_cell + 3 * t
            cells[i, cell : cell + 3] = address & 0xFFFFFFFF, address >> 32, len(words)
    return replace(problem, rows=rows, layout=layout, bits=bits, texts=texts)


@st.composite
def problems(draw, batch_sizes=BATCH_SIZES):
    rng = np.random.default_rng(draw(seeds))
    p, batch_size, loss = (
        draw(st.integers(1, 70)),
        draw(st.sampled_from(batch_sizes)),
        draw(st.sampled_from(SOME_LOSSES)),
    )
    weighted = draw(st.booleans())
    most = min(900, 40 * batch_size)
    n = draw(st.integers(1, most) | st.integers(min(most, 500), most))
    scale = 10.0 ** rng.uniform(-3, 3, p)
    outputs = draw(st.sampled_from([1, 1, 3, OUTPUTS, 5, 10]))
    spare = draw(st.sampled_from([0, 16]))
    rows, layout = make_rows(rng, n, p, LOSSES[loss], weighted=weighted, spare=spare, scale=scale)
    if outputs > 1:
        loss = "log_loss"
        rows[:, layout.y_cell] = rng.integers(0, outputs, n)
    optimizer = draw(st.sampled_from(SOME_OPTIMIZERS))
    lasting = 1 - dict(OPTIMIZERS[optimizer].parameters).get("momentum", 0.0)
    # Some rows may be left out and some come again.
    order = everything(rng, n) if draw(st.booleans()) else rng.integers(0, n, n).astype(np.uint32)
    problem = Problem(
        rows,
        order,
        layout,
        batch_size,
        LOSSES[loss],
        OPTIMIZERS[optimizer],
        SCHEDULES[draw(st.sampled_from([*SCHEDULES]))],
        eta0=lasting
        * 0.2
        / (p + 1)
        / LOSSES[loss].curvature,  # stable for every method, so that rounding errors die out
        alpha=draw(st.sampled_from([0.0, 1e-3, 1.0])),
        l1=draw(st.sampled_from([0.0, 0.0, 1e-3])),
        clip_norm=draw(st.sampled_from([0.0, 0.0, 0.5])),
        fit_intercept=draw(st.booleans()),
        inverse_scale=1 / scale,
        outputs=outputs,
        listed=draw(st.sampled_from([0, 5, 1000])),
    )
    if not draw(st.booleans()):
        return problem
    n_index, n_text = draw(st.integers(0, 4)), draw(st.integers(0, 2))
    problem = replace(problem, eta0=problem.eta0 * (p + 1) / (p + 1 + 2 * n_index + 20 * n_text))
    at_hand = draw(st.sampled_from([0, 1, 9, 32])) if problem.optimizer.rests else 0
    problem = replace(problem, at_hand=at_hand)
    return add_hashes(rng, problem, n_index, draw(st.integers(0, min(n_index, 2))), n_text, 5)


def assert_same_within_rounding(problem, found, expected):
    """Sums of float32 products in another order: errors grow with rows and features, not with steps."""
    np.testing.assert_array_equal(found.counters, expected.counters)
    np.testing.assert_allclose(found.totals, expected.totals, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.params, expected.params, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.slots, expected.slots, rtol=1e-4, atol=1e-4)
    error = np.abs(found.carry - expected.carry) / np.append(problem.scale, 1)
    assert (error <= 1e-5 * (1 + found.counters[CARRIED])).all()
    if found.table is not None:
        np.testing.assert_array_equal(*(state.table.view(np.int32)[:, -1] for state in (found, expected)))
        cells = (2 + problem.optimizer.slots) * problem.outputs
        np.testing.assert_allclose(found.table[:, :cells], expected.table[:, :cells], rtol=1e-3, atol=2e-4)


def cuts_of(draw, n):
    return sorted(draw(st.lists(st.integers(0, n), max_size=5)))


def run_in_pieces(problem, state, cuts, last=False, *, kernel=drain):
    for start, stop in pairwise([0, *cuts, problem.n]):
        assert problem.run(state, start, stop, last and stop == problem.n and start < stop, kernel=kernel) == -1


@settings(deadline=None, max_examples=100)
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


@every_optimizer
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("outputs", [1, 10])
def test_a_few_steps_of_every_method_equal_the_twin(optimizer, schedule, outputs):
    rng = np.random.default_rng(outputs)
    rows, layout = make_rows(rng, 120, 9, LOSSES["log_loss"], weighted=True)
    rows[:, layout.y_cell] = rng.integers(0, max(2, outputs), 120)
    options = {"eta0": 0.01, "alpha": 0.1, "l1": 1e-3, "clip_norm": 0.5, "outputs": outputs}
    problem = Problem(rows, everything(rng, 120), layout, 25, LOSSES["log_loss"], optimizer, schedule, **options)
    problem = add_hashes(rng, problem, 3, 2, 1, 5)
    found = problem.start(rng)
    expected = found.copy()
    assert problem.run(found, last=True) == problem.run(expected, last=True, kernel=reference.drain) == -1
    assert_same_within_rounding(problem, found, expected)


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


def together(problem, variants, states):
    """The states of variants of a problem as one, as it is when they are trained side by side."""
    c, k = problem.outputs, len(variants)
    shared = states[0]
    table = None
    if shared.table is not None:
        kinds = 2 + problem.optimizer.slots
        table = np.zeros((len(shared.table), -(-(kinds * c * k + 1) // 4) * 4), np.float32)
        for kind in range(kinds):
            for i, state in enumerate(states):
                table[:, (kind * k + i) * c : (kind * k + i + 1) * c] = state.table[:, kind * c : (kind + 1) * c]
        table.view(np.int32)[:, -1] = shared.table.view(np.int32)[:, -1]
    return State(
        params=np.concatenate([state.params for state in states]),
        slots=np.concatenate([state.slots for state in states], axis=1),
        carry=np.concatenate([state.carry for state in states]),
        table=table,
        touched=shared.touched.copy(),
        counters=shared.counters.copy(),
        totals=np.concatenate([state.totals for state in states]),
        failed=np.concatenate([state.failed for state in states]),
    )


@settings(deadline=None, max_examples=45)
@given(problem=problems(), seed=seeds, k=st.integers(2, 9), last=st.booleans(), data=st.data())
def test_models_side_by_side_get_the_bits_that_each_gets_alone(problem, seed, k, last, data):
    rng = np.random.default_rng(seed)
    variants = [
        replace(
            problem,
            eta0=problem.eta0 * rng.uniform(0.1, 1.0),
            alpha=float(rng.choice([0.0, problem.alpha, 0.01])),
            l1=float(rng.choice([0.0, problem.l1])),
            clip_norm=float(rng.choice([0.0, problem.clip_norm])),
        )
        for _ in range(k)
    ]
    start = problem.start(rng)
    alone = [start.copy() for _ in variants]
    for i, state in enumerate(alone):
        state.params[:] += i
    found = together(problem, variants, alone)
    settings_of = np.array([variant.kernel.settings() for variant in variants])
    for first, stop in pairwise([0, *cuts_of(data.draw, problem.n), problem.n]):
        ends = last and stop == problem.n
        for variant, state in zip(variants, alone, strict=True):
            variant.run(state, first, stop, ends)
        problem.run(found, first, stop, ends, side_by_side=settings_of)
    expected = together(problem, variants, alone)
    assert found.bits() == expected.bits()


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
    y, args = batch[:, problem.layout.y_cell], loss_args(problem.loss)
    _, derivative = reference_losses.LOSSES[problem.loss.code](standardised @ params, y, args)
    return standardised.T @ (w * derivative) / problem.n


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
    moved = before.params[0] - problem.eta0 * gradient_of_all(problem, before.params[0])
    moved[:-1] /= 1 + problem.eta0 * problem.alpha  # the proximal step of the penalty
    np.testing.assert_allclose(state.params[0], moved, rtol=1e-5, atol=1e-6)
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
    means = [state.totals[0, LOSS] / state.totals[0, WEIGHT] for state in (one, other)]
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
        z = batch[:, :5] @ state.params[0, :-1] + state.params[0, -1]
        y, args = batch[:, layout.y_cell], loss_args(loss)
        total += batch[:, layout.w_cell] @ reference_losses.LOSSES[loss.code](z, y, args)[0]
        problem.run(state, start, start + 30)
    assert state.totals[0, LOSS] == pytest.approx(total, rel=1e-5)
    assert state.totals[0, WEIGHT] == pytest.approx(rows[:, layout.w_cell].sum(dtype=np.float64), rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(problem=problems(), seed=seeds, garbage=st.sampled_from([1.0, -1e6, 3e38]))
def test_cells_without_meaning_never_matter(problem, seed, garbage):
    """The encoder writes 0 between the target and the hashes, but any finite number gives the same bits."""
    layout = problem.layout
    used = layout.n_features + layout.has_target + layout.has_weight
    dirty = replace(problem, rows=problem.rows.copy())
    dirty.rows[:, used : layout.width] = garbage
    dirty.rows[:, layout.stride :] = garbage
    one = problem.start(np.random.default_rng(seed))
    other = one.copy()
    problem.run(one, last=True)
    dirty.run(other, last=True)
    assert one.bits() == other.bits()


@settings(deadline=None, max_examples=50)
@given(problem=problems(), seed=seeds, listed=st.sampled_from([0, 1, 7, 100_000]))
def test_the_length_of_the_list_of_touched_slots_changes_no_bit(problem, seed, listed):
    problem = replace(problem, clip_norm=0.0)  # the length of a gradient is a sum over slots, in another order
    one = problem.start(np.random.default_rng(seed))
    other = one.copy()._replace(touched=np.zeros(listed, np.int64))
    problem.run(one, last=True)
    problem.run(other, last=True)
    assert one.bits() == other.bits()


@settings(deadline=None, max_examples=60)
@given(problem=problems(), seed=seeds, share=st.sampled_from([1.0, 0.25]))
def test_averages_are_of_weights_that_the_penalty_has_settled(problem, seed, share):
    if not problem.bits:
        problem = add_hashes(np.random.default_rng(seed), problem, 2, 0, 1, 4)
    state = problem.start(np.random.default_rng(seed))
    problem.run(state)
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(len(state.table), problem.outputs)).astype(np.float32)
    found = before.copy()
    marks = state.table.view(np.int32)
    average_table(problem.kernel, state.table, state.counters, problem.outputs, 0, share, found)
    table = reference.Table(state.table.copy(), marks.copy(), problem.kernel, problem.outputs)
    settled = table.settled(np.arange(len(before)), int(state.counters[STEP]))
    expected = np.where(marks[:, -1:] == 0, before, before + share * (settled - before))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "ftrl"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, ALL_ROWS])
def test_hashed_categories_learn_what_one_hot_columns_learn(optimizer, outputs, batch_size):
    """Without a penalty a weight whose feature is 0 does not move, so it may as well not be looked at."""
    rng = np.random.default_rng(0)
    n, values = 300, 8
    category = rng.integers(0, values, (n, 2))
    dense = np.zeros((n, 2 * values), np.float32)
    for k in range(2):
        dense[np.arange(n), k * values + category[:, k]] = 1
    y = rng.integers(0, max(2, outputs), n)
    loss, layout = LOSSES["log_loss"], Layout(2 * values, True)
    rows = np.zeros((n, layout.stride), np.float32)
    rows[:, : 2 * values], rows[:, layout.y_cell] = dense, y
    one_hot = Problem(rows, everything(rng, n), layout, batch_size, loss, OPTIMIZERS[optimizer], outputs=outputs)
    hashed_layout = Layout(0, True, n_index=2)
    cells = np.zeros((n, hashed_layout.stride), np.float32)
    cells[:, 0] = y
    cells.view(np.uint32)[:, hashed_layout.width : hashed_layout.width + 2] = category + np.array([0, values])
    hashed = replace(one_hot, rows=cells, layout=hashed_layout, bits=4)
    one, other = one_hot.start(), hashed.start()
    for _ in range(2):
        one_hot.run(one, last=True)
        hashed.run(other, last=True)
    np.testing.assert_allclose(other.params[:, -1], one.params[:, -1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.table[:, :outputs].T, one.params[:, :-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other.totals, one.totals, rtol=1e-5)


def test_a_gradient_is_cut_to_the_longest_that_is_allowed():
    rng = np.random.default_rng(0)
    rows, layout = make_rows(rng, 50, 6, LOSSES["squared_error"])
    problem = add_hashes(rng, Problem(rows, everything(rng, 50), layout, ALL_ROWS, eta0=1.0), 3, 1, 1, 5)
    free, cut = problem.start(), problem.start()
    problem.run(free, last=True)
    replace(problem, clip_norm=0.01).run(cut, last=True)
    length = np.sqrt((free.params**2).sum() + (free.table[:, 0].astype(np.float64) ** 2).sum())
    assert length > 0.01
    np.testing.assert_allclose(cut.params, free.params * 0.01 / length, rtol=1e-4)
    np.testing.assert_allclose(cut.table[:, 0], free.table[:, 0] * 0.01 / length, rtol=1e-4, atol=1e-9)


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
    state.params[:, -1] = intercept
    problem.run(state, last=True)
    assert (state.params[:, -1] == intercept).all()
    assert (state.slots[:, :, -1] == 0).all()
    assert (state.params[:, :-1] != 0).all()
    fitted = problem.start()
    replace(problem, fit_intercept=True).run(fitted, last=True)
    assert fitted.params[0, -1] != intercept


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
    assert one.params[0, -1] == other.params[0, -1] and (one.slots[:, :, -1] == other.slots[:, :, -1]).all()
    assert (one.params[:, :-1] != other.params[:, :-1]).all()


@every_loss
@every_optimizer
def test_without_data_weights_go_to_0_and_the_intercept_stays(loss, optimizer):
    rng = np.random.default_rng(5)
    rows, layout = make_rows(rng, 64, 6, loss, weighted=True)
    rows[:, layout.w_cell] = 0
    problem = Problem(rows, everything(rng, 64), layout, 64, loss, optimizer, alpha=1.0)
    state = problem.start()
    state.params[0] = before = np.append(rng.uniform(0.5, 1, 6), 7)
    problem.run(state)
    assert state.params[0, -1] == 7
    assert (np.abs(state.params[0, :-1]) < before[:-1]).all()


@every_loss
@every_optimizer
@pytest.mark.parametrize("batch_size", [1, 4, 300])
@pytest.mark.parametrize("bad_step", [1, 3])
def test_divergence_tells_the_step(loss, optimizer, batch_size, bad_step):
    """Rows of zeros move nothing, whatever the learning rate, until the step whose gradient it makes infinite."""
    n, layout = 4 * batch_size, Layout(3, True, True)
    rows = np.zeros((n, layout.stride), np.float32)
    rows[(bad_step - 1) * batch_size : bad_step * batch_size] = 1e6
    rows[:, layout.y_cell] = 2 if loss.link == "log" else 1
    problem = Problem(rows, np.arange(n, dtype=np.uint32), layout, batch_size, loss, optimizer, eta0=1e308)
    for kernel in (drain, reference.drain):
        state = problem.start()
        with np.errstate(over="ignore", invalid="ignore"):
            assert problem.run(state, last=True, kernel=kernel) == bad_step
        assert state.counters.tolist() == [bad_step, bad_step * batch_size, 0, 0]
        assert not np.abs(state.params).sum() < np.inf


@every_loss
def test_a_target_or_feature_that_is_not_finite_is_noticed(loss):
    one_sided = loss.task == "regression" and not loss.smooth  # knows only on which side of the target it is
    for cell in (0,) if one_sided else (0, 3):
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
    assert state.carry[0, 0] == state.carry[0, 2] == total
    assert state.carry[0, 1] == pytest.approx(total * float(np.float32(0.1)), rel=TILE * 2**-24)
    assert state.counters.tolist() == [0, total, total, 0]
    assert state.totals.tolist() == [[total / 2, total]]
    problem.run(state, 3, 4, last=True)
    np.testing.assert_allclose(state.params[0], [-0.1, -0.01, -0.1], rtol=TILE * 2**-24)


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
    assert state.counters.tolist() == [2, 10, 2, 0]
    problem.run(state, 0, 1)
    assert state.counters.tolist() == [2, 11, 3, 0]
    problem.run(state, 1, 2, last=True)
    assert state.counters.tolist() == [3, 12, 0, 0]
    problem.run(state, 0, 8, last=True)
    assert state.counters.tolist() == [5, 20, 0, 0]


def test_a_short_mini_batch_is_a_step_though_no_row_is_left():
    """The last window of an epoch may turn out to be empty, when all its targets are null."""
    rows, layout = make_rows(np.random.default_rng(0), 10, 3, LOSSES["squared_error"])
    problem = Problem(rows, np.arange(10, dtype=np.uint32), layout, ALL_ROWS)
    state, expected = problem.start(), problem.start()
    problem.run(state)
    problem.run(state, 0, 0, last=True)
    problem.run(expected, last=True)
    assert state.bits() == expected.bits()


@settings(deadline=None, max_examples=40)
@given(problem=problems(), seed=seeds)
def test_predict_equals_its_twin(problem, seed):
    rng = np.random.default_rng(seed)
    n, p, c = problem.n // 2, problem.layout.n_features, problem.outputs
    rows, cells = problem.rows, problem.rows.view(np.uint32)
    weights, intercepts, out = rng.normal(size=(c, p)), rng.normal(size=c), np.full((n + 2, c), 7.0)
    table = rng.normal(size=(1 << problem.bits, c)).astype(np.float32) if problem.bits else None
    args = problem.layout.cells, weights, intercepts, problem.factor, table
    predict(rows, None if table is None else cells, n, *args, out)
    expected = reference.predict(rows, cells, n, *args)
    np.testing.assert_allclose(out[:n], expected, rtol=1e-9, atol=1e-9 * (1 + np.abs(rows[:, :p]).max()))
    assert (out[n:] == 7).all()
