"""The plain NumPy twin of every kernel: what they compute, in float64 and without a thought of speed.

Tests hold the kernels equal to it within rounding. Arguments are those of the kernels, but what a kernel writes
into an array it is given is returned here, except the state of `drain` and `update`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .drain import CARRIED, LOSS, ROWS, STEP, WEIGHT
from .losses import LOG_LOSS, SQUARED_ERROR
from .updates import ADAGRAD, CONSTANT, INVSCALING, MOMENTUM, NESTEROV, OPTIMAL, SGD

Floats = NDArray[np.float64]


def log_loss(z: Floats, y: Floats) -> tuple[Floats, Floats]:
    """log(1 + exp(z)) - y z, and its derivative in z: sigmoid(z) - y."""
    softplus = np.logaddexp(0.0, z)
    return softplus - y * z, np.exp(z - softplus) - y


def squared_error(z: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(z - y)^2 / 2, and its derivative in z: z - y."""
    return (z - y) ** 2 / 2, z - y


LOSSES = {LOG_LOSS: log_loss, SQUARED_ERROR: squared_error}


def learning_rate(schedule: int, args: Floats, step: int) -> float:
    """Learning rate of a step (0, 1, ...)."""
    if schedule == CONSTANT:
        eta0 = args[0]
        return float(eta0)
    if schedule == INVSCALING:
        eta0, power_t = args[:2]
        return float(eta0 / (1 + step) ** power_t)
    if schedule == OPTIMAL:
        _, alpha, t0 = args
        return float(1 / (alpha * (t0 + step)))
    raise NotImplementedError(f"schedule {schedule} has no twin")


def update(optimizer: int, args: Floats, eta: float, gradient: Floats, params: Floats, slots: Floats) -> bool:
    """One step of an optimizer; return whether all weights are still finite."""
    g = gradient
    if optimizer == SGD:
        params -= eta * g
    elif optimizer == MOMENTUM:
        slots[0] = args[0] * slots[0] + g
        params -= eta * slots[0]
    elif optimizer == NESTEROV:
        slots[0] = args[0] * slots[0] + g
        params -= eta * (args[0] * slots[0] + g)
    elif optimizer == ADAGRAD:
        slots[0] += g**2
        params -= eta * g / (np.sqrt(slots[0]) + args[0])
    else:
        raise NotImplementedError(f"optimizer {optimizer} has no twin")
    return bool(np.isfinite(params).all())


def drain(
    rows: NDArray[np.float32],
    order: NDArray[np.uint32],
    start: int,
    stop: int,
    y_cell: int,
    w_cell: int,
    loss: int,
    optimizer: int,
    optimizer_args: Floats,
    schedule: int,
    schedule_args: Floats,
    alpha: float,
    fit_intercept: bool,
    batch_size: int,
    inverse_scale: Floats,
    params: Floats,
    slots: Floats,
    carry: Floats,
    counters: NDArray[np.int64],
    totals: Floats,
    last: bool,
) -> int:
    """Train on rows ``order[start:stop]``; return -1, or the number of the step that made a weight infinite or NaN."""
    p = len(params) - 1
    while start < stop or (last and counters[CARRIED]):
        end = min(stop, start + batch_size - int(counters[CARRIED]))
        batch = rows[order[start:end]].astype(np.float64)
        X, y = batch[:, :p], batch[:, y_cell]
        w = batch[:, w_cell] if w_cell >= 0 else np.ones(len(batch))
        value, derivative = LOSSES[loss](X @ (params[:p] * inverse_scale) + params[p], y)
        totals[LOSS] += w @ value
        totals[WEIGHT] += w.sum()
        carry[:p] += (w * derivative) @ X
        carry[p] += w @ derivative
        counters[CARRIED] += len(batch)
        counters[ROWS] += len(batch)
        start = end
        if counters[CARRIED] == batch_size or (last and start == stop):
            gradient = carry / counters[CARRIED]
            gradient[:p] = gradient[:p] * inverse_scale + alpha * params[:p]
            gradient[p] *= fit_intercept
            eta = learning_rate(schedule, schedule_args, int(counters[STEP]))
            finite = update(optimizer, optimizer_args, eta, gradient, params, slots)
            carry[:] = 0
            counters[STEP] += 1
            counters[CARRIED] = 0
            if not finite:
                return int(counters[STEP])
    return -1


def predict(rows: NDArray[np.float32], n: int, weights: Floats, intercept: float) -> Floats:
    """Margins of the first n rows."""
    margins: Floats = rows[:n, : len(weights)].astype(np.float64) @ weights + intercept
    return margins


def splitmix64(seed: int) -> Iterator[int]:
    """The random 64-bit integers of SplitMix64 (Steele, Lea, Flood 2014) from a seed on."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        x = state
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        yield x ^ x >> 31


def permutation(seed: int, n: int) -> NDArray[np.uint32]:
    """A random order of 0..n-1: i is put at a random place j <= i, and what was there goes to the end."""
    order: list[int] = []
    for i, x in enumerate(islice(splitmix64(seed), n)):
        j = (x >> 32) * (i + 1) >> 32
        order.append(i)
        order[i], order[j] = order[j], i
    return np.array(order, np.uint32)


def moments(X: NDArray[Any], w: NDArray[Any]) -> Floats:
    """Sums of w, w x, w x^2, w x^3 and w x^4 over each column's values that are not NaN; float64[5, p]."""
    present = ~np.isnan(X)
    x, w = np.where(present, X, 0).astype(np.float64), w.astype(np.float64)
    return np.array([w @ (present * x**power) for power in range(5)])


def _encode(values: Floats, offset: Floats, fill: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cells of values (NaN: missing), and where they are infinite as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        cells = (values - offset).astype(np.float32)
    return np.where(np.isfinite(cells), cells, fill), np.isinf(cells)


def encode_columns(
    columns: Sequence[NDArray[Any]],
    present: Sequence[NDArray[np.bool_]],
    offsets: Floats,
    fills: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cells float32[n, c] of c columns of numbers with masks of what is not null, and infinite values a column."""
    values = np.array([np.where(m, x.astype(np.float64), np.nan) for x, m in zip(columns, present, strict=True)]).T
    cells, infinite = _encode(values, offsets, fills)
    return cells, infinite.sum(axis=0)


def encode_lists(
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    starts: NDArray[np.int64],
    present: NDArray[np.bool_],
    size: int,
    offsets: Floats,
    fills: NDArray[np.float32],
) -> tuple[NDArray[np.float32], int]:
    """Cells float32[n, size] of n lists, which lie in ``values`` from their starts on, and how many are infinite."""
    lists = np.full((len(starts), size), np.nan)
    child = np.where(valid, values.astype(np.float64), np.nan)
    lists[present] = child[starts[present, np.newaxis] + np.arange(size)]
    cells, infinite = _encode(lists, offsets, fills)
    return cells, int(infinite.sum())
