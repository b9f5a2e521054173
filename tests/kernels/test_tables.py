"""Hashed weights: a slot changes only when it is met; the penalty of all steps since then is not lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.config import Config
from streamgd.features import Layout
from streamgd.kernels.drain import STEP, TOUCHED, drain
from streamgd.kernels.problem import Problem
from streamgd.kernels.tables import average_table
from streamgd.kernels.updates import learning_rate
from streamgd.losses import LOSSES
from streamgd.optimizers import OPTIMIZERS
from streamgd.schedules import SCHEDULES

from .arguments import STEPPING, listed, optimizer_args, schedule_args

every_optimizer = pytest.mark.parametrize("optimizer", STEPPING.values(), ids=STEPPING)
LAYOUT, WEIGHTED, SLOTS = Layout(0, True, n_index=1), Layout(0, True, True, n_index=1), 8


@dataclass
class Run:
    """Rows of one hashed index each, without an intercept, so that nothing but the table learns."""

    problem: Problem
    table: Any
    counters: Any
    touched: Any
    outputs: int = 1

    @classmethod
    def of(cls, optimizer, *, schedule="constant", eta0=0.1, rates=None, outputs=1, listed=100, **options):
        schedule = SCHEDULES[schedule]
        numbers = {
            "rare": True,
            "loss": LOSSES["squared_error"].code,
            "loss_args": (0.0, 0.0),
            "optimizer": optimizer.code,
            "optimizer_args": optimizer_args(optimizer),
            "slots": optimizer.slots,
            "schedule": schedule.code,
            "schedule_args": schedule_args(schedule, eta0) if rates is None else rates,
            "l1": 0.0,
            "l2": 0.0,
            "clip_norm": 0.0,
            "fit_intercept": False,
            "batch_size": 1,
            "at_hand": 0,
        }
        cells = -(-((2 + optimizer.slots) * outputs + 1) // 4) * 4
        table = np.zeros((SLOTS, cells), np.float32)
        return cls(Problem(**(numbers | options)), table, np.zeros(4, np.int64), np.zeros(listed, np.int64), outputs)

    def learn(self, hashes, y, weights=None):
        """Take rows with these hashes and targets; return the step that failed, or -1."""
        layout = LAYOUT if weights is None else WEIGHTED
        rows = np.zeros((len(hashes), layout.stride), np.float32)
        rows[:, layout.y_cell] = y
        if weights is not None:
            rows[:, layout.w_cell] = weights
        rows.view(np.uint32)[:, layout.width] = hashes
        several, nothing = None if self.outputs == 1 else self.outputs, np.zeros((2, 0))
        params, slots = np.zeros((self.outputs, 1)), np.zeros((2, self.outputs, 1))
        order = np.arange(len(rows), dtype=np.uint32)
        state = params, slots, params.copy(), self.table, self.table.view(np.int32), self.touched, self.counters
        failed = np.full(1, -1)
        cells, at = rows.view(np.uint32), layout.cells
        lists = listed(
            cells, order, 0, len(rows), at, self.table, self.problem.batch_size, self.counters, self.problem.at_hand
        )
        drain(
            rows, cells, *lists, order, 0, len(rows), False, at, self.problem, None, several,
            np.zeros(0), np.zeros(1), nothing, *state, np.zeros((1, 2)), failed,
        )  # fmt: skip
        return failed[0]

    def weights(self):
        """Weights as they are read, float32[slots, outputs]."""
        found = np.zeros((SLOTS, self.outputs), np.float32)
        average_table(self.problem, self.table, self.counters, self.outputs, 0, 1.0, found)
        return found

    def rate(self, step):
        return learning_rate(self.problem.schedule, self.problem.schedule_args, step)


def idle(run, slot, steps):
    """Steps that meet another slot."""
    assert run.learn(np.full(steps, slot), np.ones(steps)) == -1


@every_optimizer
def test_a_slot_changes_only_when_it_is_met(optimizer):
    run = Run.of(optimizer, l1=0.01, l2=0.01)
    run.learn([3], [1.0])
    before = run.table[3].tobytes()
    idle(run, 5, 20)
    assert run.table[3].tobytes() == before
    assert not run.table[[0, 1, 2, 4, 6, 7]].any()
    run.learn([3], [1.0])
    assert run.table[3].tobytes() != before


def test_the_penalty_of_all_steps_since_is_one_proximal_step_of_the_rate_now():
    run = Run.of(OPTIMIZERS["sgd"], schedule="invscaling", l1=0.02, l2=0.3)
    run.learn([3], [5.0])
    start, pull = run.table[3, 0], run.rate(0)
    assert start == pytest.approx((pull * 5.0 - pull * 0.02) / (1 + pull * 0.3))  # its own step
    idle(run, 5, 9)
    pull = run.rate(10) * 9
    expected = (start - pull * 0.02) / (1 + pull * 0.3)
    assert run.weights()[3, 0] == pytest.approx(expected, rel=1e-5)
    run.learn([3], [0.0], weights=[0.0])
    pull = run.rate(10)
    assert run.table[3, 0] == pytest.approx((expected - pull * 0.02) / (1 + pull * 0.3), rel=1e-5)


@every_optimizer
@pytest.mark.parametrize("penalty", [{"l1": 0.05}, {"l2": 0.05}, {"l1": 0.01, "l2": 0.1}], ids=str)
@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
def test_a_weight_is_read_as_it_is_met(optimizer, penalty, schedule):
    """Reading tells what a row would find that comes next."""
    run = Run.of(optimizer, schedule=schedule, **penalty)
    run.learn([3, 3, 3], [1.0, 2.0, 1.0])
    idle(run, 5, 6)
    before, read = run.table.tobytes(), run.weights()[3, 0]
    assert run.table.tobytes() == before
    assert read != run.table[3, 0]
    y = np.float32(read)  # then the gradient is 0, but of what momentum is left
    met = Run(run.problem._replace(batch_size=2), run.table.copy(), run.counters.copy(), run.touched)
    met.learn([3], [y])
    assert met.table[3, 0] == read


@every_optimizer
def test_slots_of_a_mini_batch_under_way_are_read_as_its_rows_met_them(optimizer):
    run = Run.of(optimizer, batch_size=2, l1=0.05, l2=0.1)
    run.learn([3, 5, 3], [1.0, 2.0, 1.0])
    assert run.counters[STEP] == run.counters[TOUCHED] == 1
    np.testing.assert_array_equal(run.weights()[3, 0], run.table[3, 0])


@every_optimizer
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_features_of_every_mini_batch_learn_as_dense_ones_do(optimizer, outputs, schedule, l1):
    """Never late, so the penalty pulls hashed weights in each step, and at its rate, as it does dense ones."""
    rng = np.random.default_rng(0)
    run = Run.of(optimizer, outputs=outputs, schedule=schedule, batch_size=4, l1=l1, l2=0.1)
    n, hashes = 80, np.tile(np.arange(4), 20)
    y = rng.integers(0, 3, n).astype(np.float32) if outputs > 1 else rng.normal(size=n).astype(np.float32)
    layout = Layout(4, True)
    rows = np.zeros((n, layout.stride), np.float32)
    rows[np.arange(n), hashes], rows[:, 4] = 1, y
    params, slots, carry = np.zeros((outputs, 5)), np.zeros((2, outputs, 5)), np.zeros((outputs, 5))
    spread, order = np.append(np.ones(4), 0.0), np.arange(n, dtype=np.uint32)
    state = params, slots, carry, None, None, run.touched, np.zeros(4, np.int64)
    several = None if outputs == 1 else outputs
    drain(
        rows, None, None, None, None, order, 0, n, False, layout.cells, run.problem, None, several, np.ones(4), spread,
        np.zeros((2, 0)), *state, np.zeros((1, 2)), np.full(1, -1),
    )  # fmt: skip
    assert run.learn(hashes, y) == -1
    assert np.abs(params[:, :4]).max() > 0.01
    np.testing.assert_allclose(run.weights()[:4].T, params[:, :4], rtol=1e-3, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_lateness_costs_ftrl_nothing(seed):
    """Its weights follow from sums alone, so a slot that is met now and then is what a dense weight would be."""
    rng = np.random.default_rng(seed)
    run = Run.of(OPTIMIZERS["ftrl"], l1=0.02, l2=0.05)
    hashes, y = rng.integers(0, SLOTS, 60), rng.normal(size=60).astype(np.float32)
    assert run.learn(hashes, y) == -1
    (_, _, epsilon), eta = run.problem.optimizer_args, run.rate(0)
    w, total, square = np.zeros((3, SLOTS))
    for t, (j, target) in enumerate(zip(hashes, y, strict=True), 1):
        g = np.zeros(SLOTS)
        g[j] = w[j] - target
        total += g - (np.sqrt(square + g**2) - np.sqrt(square)) / eta * w
        square += g**2
        size = np.maximum(np.abs(total) - t * 0.02, 0)
        w = -np.sign(total) * size / ((epsilon + np.sqrt(square)) / eta + t * 0.05 + (square == 0))
    np.testing.assert_allclose(run.weights()[:, 0], w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 20])
def test_a_rate_that_falls_or_rises_takes_no_weights_of_ftrl_along(schedule, warmup):
    """With the least penalty they are made anew from sums when they are met, and without one only moved."""
    rates = Config(learning_rate=schedule, alpha=0.01, epochs=10, warmup_steps=warmup).schedule_args(1.0, 30)
    rng = np.random.default_rng(0)
    hashes, y = rng.integers(0, SLOTS, 300), rng.normal(1, 0.1, 300)
    found = []
    for l1 in (0.0, 1e-9):
        run = Run.of(OPTIMIZERS["ftrl"], schedule=schedule, rates=rates, l1=l1)
        assert run.learn(hashes, y) == -1
        found.append(run.weights())
    assert np.abs(found[0] - 1).max() < 0.5
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


@every_optimizer
def test_l1_makes_true_zeros_of_slots_that_are_no_longer_met(optimizer):
    run = Run.of(optimizer, l1=0.01, l2=0.0)
    run.learn([3, 3], [1.0, 1.0])
    idle(run, 5, 10)
    assert run.weights()[3, 0] != 0
    idle(run, 5, 5000)
    assert run.table[3, 0] != 0
    assert run.weights()[3, 0] == 0


@every_optimizer
def test_without_a_penalty_weights_are_read_as_they_are(optimizer):
    run = Run.of(optimizer, schedule="cosine")
    run.learn([3, 1, 3], [1.0, 2.0, 1.0])
    idle(run, 5, 50)
    np.testing.assert_array_equal(run.weights()[:, 0], run.table[:, 0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_enter_an_average_by_their_share_and_slots_never_met_do_not(share):
    run = Run.of(OPTIMIZERS["adagrad"], l2=0.1)
    run.learn([3, 5, 3], [1.0, 2.0, 1.0])
    average = np.full((SLOTS, 1), 4, np.float32)
    average_table(run.problem, run.table, run.counters, 1, 0, share, average)
    expected = np.full((SLOTS, 1), 4.0)
    expected[[3, 5]] += share * (run.weights()[[3, 5]] - 4.0)
    np.testing.assert_allclose(average, expected, rtol=1e-6)


@every_optimizer
@pytest.mark.parametrize("slots", [1000, 1 << 17])
def test_an_average_has_the_same_bits_alone_and_side_by_side(optimizer, slots):
    """Be it of one output, of all, or of one of several."""
    rng = np.random.default_rng(0)
    run, kept = Run.of(optimizer, l1=1e-3, l2=1e-3), 1 + optimizer.slots
    counters, cells = np.array([500, 0, 0, 0]), -(-(kept + 2) // 4) * 4
    tables = [rng.uniform(0.1, 1.0, (slots, cells)).astype(np.float32) for _ in range(3)]
    marks = np.where(rng.random(slots) < 0.3, 0, rng.integers(1, 501, slots))
    together = np.zeros((slots, -(-(3 * (kept + 1) + 1) // 4) * 4), np.float32)
    for output, table in enumerate(tables):
        table[marks == 0] = 0
        table.view(np.int32)[:, -1] = marks
        together[:, output : 3 * kept : 3] = table[:, :kept]
    together.view(np.int32)[:, -1] = marks
    averages, both = np.zeros((3, slots, 1), np.float32), np.zeros((slots, 3), np.float32)
    apart = averages.copy()
    for share in (1.0, 0.9, 9 / 11):
        average_table(run.problem, together, counters, 3, 0, share, both)
        for output, average in enumerate(apart):
            average_table(run.problem, together, counters, 3, output, share, average)
        for table, average in zip(tables, averages, strict=True):
            average_table(run.problem, table, counters, 1, 0, share, average)
            table[marks != 0, 0] += np.float32(0.125)
        together[marks != 0, :3] += np.float32(0.125)
    assert both.any() and both.tobytes() == np.ascontiguousarray(averages[:, :, 0].T).tobytes()
    assert apart.tobytes() == averages.tobytes()


def test_only_the_lower_bits_of_a_hash_count_and_features_of_one_slot_add_up():
    near, far = (Run.of(OPTIMIZERS["sgd"]) for _ in range(2))
    near.learn([3, 5, 3], [1.0, 2.0, 3.0])
    far.learn([3, 5 + 2**31, 3 + 7 * SLOTS], [1.0, 2.0, 3.0])
    assert near.table.tobytes() == far.table.tobytes()


@every_optimizer
@pytest.mark.parametrize("first", [2**31 - 3, 2**31 + 7, 2**32 + 7])
@pytest.mark.parametrize("listed", [0, 100])
def test_steps_beyond_31_bits_are_counted_as_ever(optimizer, first, listed):
    """Marks have 32 bits, and 3e9 rows of batch size 1 are as many steps."""
    early, late = (
        Run.of(optimizer, batch_size=3, listed=listed, l2=0.0 if optimizer.name == "ftrl" else 0.1) for _ in range(2)
    )
    early.counters[STEP] = 1 << 20  # Adam's bias is gone
    late.counters[STEP] = first
    for run in (early, late):
        assert run.learn([3, 3, 5, 5, 5, 5, 3, 5, 3, 5, 5, 3], np.arange(12.0)) == -1
        idle(run, 1, 12)
    kept = 1 + optimizer.slots
    assert late.table[[3, 5], :kept].tobytes() == early.table[[3, 5], :kept].tobytes()
    assert late.weights().tobytes() == early.weights().tobytes()


@every_optimizer
@pytest.mark.parametrize("outputs", [1, 3])
def test_tells_when_a_weight_of_the_table_is_infinite(optimizer, outputs):
    """It may still be finite as the float64 that the step is computed in."""
    run = Run.of(optimizer, outputs=outputs, batch_size=1)
    assert run.learn([5], [1.0]) == -1
    eta0 = 1e39 if optimizer.name != "ftrl" else 1e45
    run.problem = run.problem._replace(schedule_args=(eta0, 0.0, 1.0, 0.0))
    assert run.learn([3], [1.0]) == 2
    assert not np.isfinite(run.table[3, :outputs]).all()


@pytest.mark.parametrize("listed", [0, 1, 100])
def test_gradients_of_slots_are_gone_after_the_step(listed):
    run = Run.of(OPTIMIZERS["adam"], batch_size=3, listed=listed)
    place = 1 + run.problem.slots
    run.learn([3, 5], [1.0, 2.0])
    np.testing.assert_array_equal(run.table[[3, 5], place], [-1, -2])
    run.learn([3], [4.0])
    assert not run.table[:, place].any()
    assert run.counters[TOUCHED] == 0
