"""Plain NumPy twins of the kernels that learn: what they compute, in float64 and without a thought of speed.

Tests hold the kernels equal to it within rounding. Arguments are those of the kernels, but what a kernel writes
into an array it is given is returned here, except the state of `drain` and `update`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .drain import CARRIED, LOSS, ROWS, STEP, WEIGHT
from .reference_losses import LOSSES, softmax
from .slots import stretch_rows
from .tables import TOUCHED
from .updates import ADAGRAD, ADAM, CONSTANT, COSINE, FTRL, INVSCALING, MOMENTUM, NESTEROV, OPTIMAL, RMSPROP, SGD, STEPS

Floats = NDArray[np.float64]


def learning_rate(schedule: int, args: Floats, step: int) -> float:
    """Learning rate of a step (0, 1, ...)."""
    eta0, shape, span, warmup = (float(x) for x in args)
    rates = {
        CONSTANT: lambda: eta0,
        INVSCALING: lambda: eta0 / (1 + step) ** shape,
        OPTIMAL: lambda: 1 / (shape * (span + step)),
        COSINE: lambda: eta0 * (1 + np.cos(np.pi * min(1.0, step / span))) / 2,
        STEPS: lambda: eta0 * shape ** (step // span),
    }
    return float(rates[schedule]() * min(1.0, (step + 1) / (warmup + 1)))


def rate(optimizer: int, args: Floats, eta: float, step: int, a: Floats, b: Floats) -> Floats:
    """How far weights move for a unit of lasting gradient, after so many steps."""
    beta_1, beta_2, epsilon = args
    rates = {
        SGD: lambda: np.full_like(a, eta),
        MOMENTUM: lambda: np.full_like(a, eta / (1 - beta_1)),
        NESTEROV: lambda: np.full_like(a, eta / (1 - beta_1)),
        ADAGRAD: lambda: eta / (np.sqrt(a) + epsilon),
        RMSPROP: lambda: eta / (np.sqrt(a) + epsilon),
        ADAM: lambda: eta / (np.sqrt(b / (1 - beta_2**step)) + epsilon),
    }
    found: Floats = rates[optimizer]()
    return found


def shrink(w: Floats, pull: Floats, l1: Floats, l2: Floats) -> Floats:
    """Minimum over v of (v - w)^2 / 2 + pull (l1 |v| + l2 v^2 / 2)."""
    found: Floats = np.sign(w) * np.maximum(np.abs(w) - pull * l1, 0) / (1 + pull * l2)
    return found


def settled(
    optimizer: int,
    args: Floats,
    eta: Any,
    step: int,
    l1: Floats,
    l2: Floats,
    elapsed: Any,
    w: Floats,
    a: Floats,
    b: Floats,
) -> Floats:
    """Weights after so many steps in which only the penalty pulled; FTRL's follow from all gradients and penalties."""
    if optimizer == FTRL:
        size = np.maximum(np.abs(a) - step * l1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(size > 0, -np.sign(a) * size / ((args[2] + np.sqrt(b)) / eta + step * l2), 0)
        return np.where((elapsed <= 0) | ((l1 == 0) & (l2 == 0)), w, found)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        moved = shrink(w, rate(optimizer, args, eta, step, a, b) * elapsed, l1, l2)
    return np.where((elapsed <= 0) | ((l1 == 0) & (l2 == 0)), w, moved)


def rebased(args: Floats, before: Any, eta: float, w: Floats, a: Floats, b: Floats) -> Floats:
    """FTRL's sum of gradients less regularisers, with what a new rate adds to the curvature counted from the weight."""
    curvatures = [(args[2] + np.sqrt(b)) / rate for rate in (before, eta)]
    found: Floats = a - (curvatures[1] - curvatures[0]) * w
    return found


def advance(
    optimizer: int, args: Floats, eta: float, step: int, g: Floats, w: Floats, a: Floats, b: Floats
) -> tuple[Floats, Floats, Floats]:
    """Weights and their state after one step along a gradient."""
    beta_1, beta_2, epsilon = args
    if optimizer == SGD:
        w = w - eta * g
    elif optimizer == MOMENTUM:
        a = beta_1 * a + g
        w = w - eta * a
    elif optimizer == NESTEROV:
        a = beta_1 * a + g
        w = w - eta * (g + beta_1 * a)
    elif optimizer == ADAGRAD:
        a = a + g**2
        w = w - eta * g / (np.sqrt(a) + epsilon)
    elif optimizer == RMSPROP:
        a = beta_2 * a + (1 - beta_2) * g**2
        w = w - eta * g / (np.sqrt(a) + epsilon)
    elif optimizer == ADAM:
        a, b = beta_1 * a + (1 - beta_1) * g, beta_2 * b + (1 - beta_2) * g**2
        mean, square = a / (1 - beta_1 ** (step + 1)), b / (1 - beta_2 ** (step + 1))
        w = w - eta * mean / (np.sqrt(square) + epsilon)
    elif optimizer == FTRL:
        sigma = (np.sqrt(b + g**2) - np.sqrt(b)) / eta
        a, b = a + g - sigma * w, b + g**2
        w = w - eta * g / (np.sqrt(b) + epsilon)
    else:
        raise NotImplementedError(f"optimizer {optimizer} has no twin")
    return w, a, b


def update(
    optimizer: int,
    args: Floats,
    before: float,
    eta: float,
    step: int,
    l1: float,
    l2: float,
    spread: Floats,
    gradient: Floats,
    params: Floats,
    slots: Floats,
) -> float:
    """One step of dense weights; return the sum of their absolute values. ``before`` is the last step's rate."""
    if optimizer == FTRL:
        slots[0] = rebased(args, before, eta, params, slots[0], slots[1])
    w, slots[0], slots[1] = advance(optimizer, args, eta, step, gradient, params.copy(), slots[0], slots[1])
    l1s, l2s = l1 * spread, l2 * spread**2
    params[:] = settled(optimizer, args, eta, step + 1, l1s, l2s, 1, w, slots[0], slots[1])
    return float(np.abs(params).sum())


def features(rows: Any, cells: Any, at: Any, factor: Floats, mask: int) -> list[tuple[NDArray[np.int64], Floats]]:
    """Slots and values of the hashed features of each row."""
    found = []
    for row, hashes in zip(rows, cells, strict=True):
        slots = [int(h) & mask for h in hashes[at.hashes : at.hashes + at.n_index]]
        values = [1.0] * (at.n_index - at.n_scaled) + [float(row[int(cell)]) * f for cell, f in factor.T]
        for t in range(at.n_text):
            low, high, n = (int(x) for x in hashes[at.text + 3 * t : at.text + 3 * t + 3])
            words: Any = (ctypes.c_uint32 * n).from_address(low | high << 32) if n else ()
            slots += [int(h) & mask for h in words]
            values += [1.0] * n
        found.append((np.array(slots, np.int64), np.array(values)))
    return found


class Table:
    """A table of hashed weights as dense vectors over its slots: weights, state, gradients, and when last touched.

    In steps that do not touch a slot its gradient is no gradient of 0 but none: its state stays as it is. The penalty
    pulls it in the steps that do, and for all others at once when it is touched again or read.
    """

    def __init__(self, table: NDArray[Any], marks: NDArray[Any], problem: Any, outputs: int) -> None:
        self.problem = problem
        self.w = table[:, :outputs]
        empty = np.zeros_like(self.w)
        self.a = table[:, outputs : 2 * outputs] if problem.slots > 0 else empty
        self.b = table[:, 2 * outputs : 3 * outputs] if problem.slots > 1 else empty.copy()
        start = (1 + problem.slots) * outputs
        self.g = table[:, start : start + outputs]
        self.mark = marks[:, -1].view(np.uint32)

    def elapsed(self, slots: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Steps since slots were touched, that one too, before a step; 0 if never, or by the mini-batch under way."""
        mark = self.mark[slots].astype(np.int64)
        return np.where(mark == 0, 0, (step + 1 - mark) % 2**32)[:, np.newaxis]

    def rates(self, slots: NDArray[np.int64], step: int) -> Any:
        """Learning rate that settles slots: that of a step; of FTRL that of the step which touched them last."""
        schedule, args = self.problem.schedule, self.problem.schedule_args
        if self.problem.optimizer != FTRL:
            return learning_rate(schedule, args, step)
        since = self.elapsed(slots, step)
        return np.array([learning_rate(schedule, args, step - n) for n in since[:, 0].tolist()]).reshape(since.shape)

    def settled(self, slots: NDArray[np.int64], step: int) -> Floats:
        """Weights of slots before a step."""
        problem, late, rates = self.problem, self.elapsed(slots, step) - 1, self.rates(slots, step)
        l1, l2 = np.array(problem.l1), np.array(problem.l2)
        parts = [part[slots].astype(np.float64) for part in (self.w, self.a, self.b)]
        return settled(problem.optimizer, problem.optimizer_args, rates, step, l1, l2, late, *parts)

    def touch(self, slots: NDArray[np.int64], step: int) -> None:
        """Make slots ready for a mini-batch."""
        problem, w = self.problem, self.settled(slots, step)
        if problem.optimizer == FTRL and (problem.l1 or problem.l2):  # without a penalty ``a`` has no effect
            eta = learning_rate(problem.schedule, problem.schedule_args, step)
            state = w, self.a[slots].astype(np.float64), self.b[slots].astype(np.float64)
            self.a[slots] = rebased(problem.optimizer_args, self.rates(slots, step), eta, *state)
        self.w[slots] = w
        self.mark[slots] = (step + 1) % 2**32

    def step(self, step: int, eta: float, share: float) -> float:
        """One step of the touched slots; return the sum of their absolute weights."""
        at = self.touched(step)
        parts = [part[at].astype(np.float64) for part in (self.g, self.w, self.a, self.b)]
        parts[0] *= share
        optimizer, args = self.problem.optimizer, self.problem.optimizer_args
        w, a, b = advance(optimizer, args, eta, step, *parts)
        l1, l2 = np.array(self.problem.l1), np.array(self.problem.l2)
        w = settled(optimizer, args, eta, step + 1, l1, l2, 1, w, a, b)
        with np.errstate(over="ignore"):
            self.w[at], self.a[at], self.b[at], self.g[at] = w, a, b, 0
        return float(np.abs(self.w[at].astype(np.float64)).sum())

    def touched(self, step: int) -> NDArray[np.int64]:
        """Slots that the mini-batch of a step has touched."""
        return np.flatnonzero(self.mark == (step + 1) % 2**32)


def list_stretches(
    cells: NDArray[np.uint32],
    order: NDArray[np.uint32],
    start: int,
    stop: int,
    at: Any,
    n_slots: int,
    slot_cells: int,
    at_hand: int,
    batch_size: int,
    carried: int,
) -> list[tuple[int, list[int], list[int]]]:
    """Of each stretch its rows, its slots but those at hand, and the place of each hash among all."""
    stretches = []
    while start < stop:
        n = min(stretch_rows(cells.shape[1], at, slot_cells), stop - start, batch_size - carried)
        chosen, found = cells[order[start : start + n]], {slot: slot for slot in range(at_hand)}
        rows = features(chosen.view(np.float32), chosen, at, np.zeros((2, at.n_scaled)), n_slots - 1)
        places = [found.setdefault(slot, len(found)) for slots, _ in rows for slot in slots.tolist()]
        stretches.append((n, list(found)[at_hand:], places))
        start, carried = start + n, (carried + n) % batch_size
    return stretches


def drain(
    rows: NDArray[np.float32],
    cells: Any,
    unique: Any,
    places: Any,
    counts: Any,
    order: NDArray[np.uint32],
    start: int,
    stop: int,
    last: bool,
    at: Any,
    problem: Any,
    settings: None,
    outputs: int | None,
    inverse_scale: Floats,
    spread: Floats,
    factor: Floats,
    params: Floats,
    slots: Floats,
    carry: Floats,
    table: Any,
    marks: Any,
    touched: Any,
    counters: NDArray[np.int64],
    totals: Floats,
    failed: NDArray[np.int64],
) -> bool:
    """Train one model on rows ``order[start:stop]``; return whether its weights are finite."""
    p = params.shape[1] - 1
    hashed = None if table is None else Table(table, marks, problem, len(params))
    while start < stop or (last and counters[CARRIED]):
        end = min(stop, start + problem.batch_size - int(counters[CARRIED]))
        batch = rows[order[start:end], : at.width].astype(np.float64)
        X, y = batch[:, :p], batch[:, at.y]
        w = batch[:, at.w] if at.w >= 0 else np.ones(len(batch))
        z = X @ (params[:, :p] * inverse_scale).T + params[:, p]
        found = []
        if hashed is not None:
            found = features(rows[order[start:end]], cells[order[start:end]], at, factor, len(table) - 1)
            met = np.unique(np.concatenate([np.arange(problem.at_hand), *(slots for slots, _ in found)]))
            hashed.touch(met, int(counters[STEP]))
            for i, (places, values) in enumerate(found):
                z[i] += values @ hashed.w[places].astype(np.float64)
        if outputs is None:
            value, derivative = LOSSES[problem.loss](z[:, 0], y, problem.loss_args)
            derivative = derivative[:, np.newaxis]
        else:
            value, derivative = softmax(z, y)
        totals[0, LOSS] += w @ value
        totals[0, WEIGHT] += w.sum()
        derivative = derivative * w[:, np.newaxis]
        carry[:, :p] += derivative.T @ X
        carry[:, p] += derivative.sum(axis=0)
        for i, (places, values) in enumerate(found):
            assert hashed is not None
            np.add.at(hashed.g, places, values[:, np.newaxis] * derivative[i])
        counters[CARRIED] += len(batch)
        counters[ROWS] += len(batch)
        start = end
        ended = counters[CARRIED] == problem.batch_size or (last and start == stop)
        if ended and not _finish(problem, inverse_scale, spread, params, slots, carry, hashed, counters):
            failed[0] = counters[STEP]
            return False
    if hashed is not None:
        counters[TOUCHED] = np.count_nonzero(hashed.touched(int(counters[STEP])) >= problem.at_hand)
    return True


def _finish(
    problem: Any,
    inverse_scale: Floats,
    spread: Floats,
    params: Floats,
    slots: Floats,
    carry: Floats,
    hashed: Table | None,
    counters: NDArray[np.int64],
) -> bool:
    """Take the step of a mini-batch."""
    step, share = int(counters[STEP]), 1 / int(counters[CARRIED])
    carry[:, :-1] *= inverse_scale
    carry[:, -1] *= problem.fit_intercept
    if problem.clip_norm:
        square = (carry**2).sum()
        if hashed is not None:
            square += (hashed.g[hashed.touched(step)].astype(np.float64) ** 2).sum()
        length = np.sqrt(square) * share
        share *= 1.0 if length <= problem.clip_norm else problem.clip_norm / length
    before, eta = (learning_rate(problem.schedule, problem.schedule_args, s) for s in (max(step - 1, 0), step))
    pull = problem.l1, problem.l2, spread
    total = 0.0
    for c in range(len(params)):
        g = carry[c] * share
        total += update(problem.optimizer, problem.optimizer_args, before, eta, step, *pull, g, params[c], slots[:, c])
    carry[:] = 0
    if hashed is not None:
        total += hashed.step(step, eta, share)
    counters[STEP] += 1
    counters[CARRIED] = counters[TOUCHED] = 0
    return bool(np.isfinite(total))


def predict(
    rows: Any, cells: Any, n: int, at: Any, weights: Floats, intercepts: Floats, factor: Floats, table: Any
) -> Floats:
    """Margins of the first n rows; float64[n, outputs]."""
    margins: Floats = rows[:n, : weights.shape[1]].astype(np.float64) @ weights.T + intercepts
    if table is not None:
        for i, (slots, values) in enumerate(features(rows[:n], cells[:n], at, factor, len(table) - 1)):
            margins[i] += values @ table[slots].astype(np.float64)
    return margins
