"""The heart: take the rows of a window in a given order, mini-batch by mini-batch, and update the weights.

One call covers as many mini-batches as the range holds. A mini-batch may span calls and windows: what it has so
far is in ``carry`` and in the table. So batch size 1 (SGD), a number (mini-batch) and all rows (batch gradient
descent) are the same loop. Cutting a range in two changes nothing but the order in which a sum is rounded, and not
even that where a mini-batch ends or a multiple of the tile after its start.

What a job does not have costs it nothing: without hashed features ``table`` is None, with one output ``outputs``
is, and the branches for them are not compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .gradients import OUTPUTS, add_gradient, add_many_gradients, many_margins, margins
from .intrinsics import jit, kernel
from .losses import COMMON as COMMON_LOSSES
from .losses import evaluate, softmax
from .tables import (
    CARRIED,
    ROWS,
    STEP,
    TOUCHED,
    hashes_of,
    squared_norm,
    table_gradient,
    table_margins,
    touched_slots,
    update_table,
)
from .updates import COMMON as COMMON_OPTIMIZERS
from .updates import learning_rate, update

__all__ = ["CARRIED", "LOSS", "ROWS", "STEP", "TOUCHED", "WEIGHT", "Problem", "common", "drain", "predict"]

TILE = 256  # rows whose margins are computed together: they stay in the cache for the gradient
TILE_CELLS = 1 << 16

#: Places in ``totals`` (float64).
LOSS, WEIGHT = 0, 1


class Problem(NamedTuple):
    """What is minimised and how: numbers of registered parts, and their parameters.

    Numbers only: an array inside would cost 50 ns whenever it is taken out. ``rare`` is None if the loss and the
    optimizer are common ones, and True if the others must be compiled too.
    """

    rare: Any
    loss: int
    loss_args: tuple[float, float]
    optimizer: int
    optimizer_args: tuple[float, float, float]
    slots: int
    schedule: int
    schedule_args: tuple[float, float, float, float]
    l1: float
    l2: float
    clip_norm: float
    fit_intercept: bool
    batch_size: int


def common(loss: int, optimizer: int) -> bool:
    """Whether `Problem.rare` may be None."""
    return loss in COMMON_LOSSES and optimizer in COMMON_OPTIMIZERS


@jit
def finish_batch(problem, inverse_scale, spread, params, slots, carry, table, marks, touched, counters):
    """Turn the carried sums into one step; return False if a weight is no longer finite."""
    outputs, p = params.shape[0], params.shape[1] - 1
    share = 1.0 / counters[CARRIED]
    square = 0.0
    for c in range(outputs):
        for j in range(p):
            carry[c, j] *= inverse_scale[j]
        if not problem.fit_intercept:
            carry[c, p] = 0.0
        for j in range(p + 1):
            square += carry[c, j] * carry[c, j]
    if table is not None:
        at_slots = touched_slots(table, marks, touched, counters)
    if problem.clip_norm > 0.0:
        if table is not None:
            square += squared_norm(problem, table, at_slots, outputs)
        share *= min(1.0, problem.clip_norm / max(np.sqrt(square) * share, 1e-300))
    eta = learning_rate(problem.schedule, problem.schedule_args, counters[STEP])
    before = learning_rate(problem.schedule, problem.schedule_args, max(counters[STEP] - 1, 0))
    total = 0.0
    for c in range(outputs):
        for j in range(p + 1):
            carry[c, j] *= share
        total += update(problem, before, eta, counters[STEP], spread, carry[c], params[c], slots[:, c])
    carry[:] = 0.0
    if table is not None:
        total += update_table(problem, eta, share, table, at_slots, counters[STEP], outputs)
        counters[TOUCHED] = 0
    counters[STEP] += 1
    counters[CARRIED] = 0
    return total < np.inf


@kernel
def drain(
    rows,  # float32[capacity, stride]: encoded rows
    cells,  # the same as uint32
    order,  # uint32[n]: the order in which to take them
    start,
    stop,  # the range of ``order`` to take now
    last,  # the epoch ends with this range: a short mini-batch is a step too
    at,  # where things lie in a row
    problem,
    outputs,  # number of outputs if there are several, or None
    inverse_scale,  # float64[p]: 1 / scale of each dense feature
    spread,  # float64[p + 1]: standard deviation of each scaled dense feature, whose weights the penalty takes times it
    factor,  # float64[2, s]: cell that gives each scaled index its value, and what that is multiplied by
    params,  # float64[c, p + 1]: weights of scaled dense features, then the intercept, of each output
    slots,  # float64[2, c, p + 1]: optimizer state
    carry,  # float64[c, p + 1]: gradient sums of the mini-batch that is under way
    table,  # float32[2^bits, cells of a slot]: weights of hashed features and their state, or None
    marks,  # the same as int32
    touched,  # int64[k]: slots that the mini-batch under way has touched
    counters,  # int64[4]: steps, rows, rows carried, slots touched
    totals,  # float64[2]: sum of losses before learning, sum of weights
):
    """Train on a range of rows; return -1, or the number of the step that made a weight infinite or NaN."""
    p = params.shape[1] - 1
    tile = max(4, min(TILE, TILE_CELLS // rows.shape[1]))
    c_padded = 1
    if outputs is not None:
        c_padded = -(-len(params) // OUTPUTS) * OUTPUTS
    weights, intercepts = np.zeros((c_padded, at.width), np.float32), np.zeros(c_padded, np.float32)
    tile_sum = np.empty((c_padded, at.width), np.float32)
    z, derivative = np.empty((tile, c_padded), np.float32), np.zeros((tile, c_padded), np.float32)
    y, w, value = np.empty(tile, np.float32), np.empty(tile, np.float32), np.empty(tile, np.float32)
    z_one, derivative_one = z.reshape(tile * c_padded), derivative.reshape(tile * c_padded)
    stale = True
    i = start
    while True:
        if counters[CARRIED] == problem.batch_size or (last and i == stop and counters[CARRIED] > 0):
            if not finish_batch(problem, inverse_scale, spread, params, slots, carry, table, marks, touched, counters):
                return counters[STEP]
            stale = True
        if i == stop:
            return -1
        if stale:
            largest = np.float32(0)
            for c in range(len(params)):
                intercepts[c] = np.float32(params[c, p])
                for j in range(p):
                    weights[c, j] = np.float32(params[c, j] * inverse_scale[j])
                    largest += abs(weights[c, j])
            if not largest < np.inf:  # finite as float64, but not as the float32 that meets the rows
                return counters[STEP]
            stale = False
        n = min(tile, stop - i, problem.batch_size - counters[CARRIED])
        if outputs is None:
            margins(rows, order, i, n, stop, weights[0], intercepts[0], at, z_one, y, w)
        else:
            many_margins(rows, order, i, n, stop, weights, intercepts, at, z, y, w)
        if table is not None:
            table_margins(
                rows,
                cells,
                order,
                i,
                n,
                stop,
                at,
                factor,
                problem,
                table,
                marks,
                touched,
                counters,
                1 if outputs is None else len(params),
                z,
            )
        if outputs is None:
            evaluate(problem.loss, problem.rare, problem.loss_args, z_one, y, n, value, derivative_one)
        else:
            softmax(z, y, n, len(params), value, derivative)
        if at.w >= 0:
            for k in range(n):
                value[k] *= w[k]
                for c in range(c_padded):
                    derivative[k, c] *= w[k]
                totals[WEIGHT] += w[k]
        else:
            totals[WEIGHT] += n
        loss_sum = 0.0
        for k in range(n):
            loss_sum += value[k]
        totals[LOSS] += loss_sum
        for c in range(len(params)):
            residual_sum = 0.0
            for k in range(n):
                residual_sum += derivative[k, c]
            carry[c, p] += residual_sum
        if outputs is None:
            add_gradient(rows, order, i, n, derivative_one, tile_sum[0], carry[0, :p])
        else:
            add_many_gradients(rows, order, i, n, derivative, tile_sum, carry[:, :p])
        if table is not None:
            table_gradient(
                rows,
                cells,
                order,
                i,
                n,
                at,
                factor,
                problem,
                table,
                1 if outputs is None else len(params),
                derivative,
            )
        counters[CARRIED] += n
        counters[ROWS] += n
        i += n


@kernel
def predict(rows, cells, n, at, weights, intercepts, factor, table, out):
    """Margins of the first n encoded rows in float64.

    ``weights`` (float64[c, p]) and ``intercepts`` (float64[c]) are of encoded dense features, ``table``
    (float32[2^bits, c] or None) of hashed ones; ``out`` is float64[n, c].
    """
    for i in range(n):
        for c in range(len(weights)):
            total = 0.0
            for j in range(weights.shape[1]):
                total += rows[i, j] * weights[c, j]
            out[i, c] = total + intercepts[c]
        if table is not None:
            mask = np.uint32(len(table) - 1)
            for part in range(1 + at.n_text):
                hashes = hashes_of(cells, i, at, part)
                plain = at.n_index - at.n_scaled if part == 0 else len(hashes)
                for k in range(len(hashes)):
                    slot = np.int64(hashes[k] & mask)
                    value = np.float64(1)
                    if k >= plain:
                        value = np.float64(rows[i, np.int64(factor[0, k - plain])]) * factor[1, k - plain]
                    for c in range(len(weights)):
                        out[i, c] += value * table[slot, c]
