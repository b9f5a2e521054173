"""The heart: take the rows of a window in a given order, mini-batch by mini-batch, and update the weights.

One call covers as many mini-batches as the range holds. A mini-batch may span calls and windows: what it has so
far is in ``carry``. So batch size 1 (SGD), a number (mini-batch) and all rows (batch gradient descent) are the
same loop. Cutting a range in two changes nothing but the order in which a sum is rounded, and not even that where a
mini-batch ends or a multiple of the tile after its start.
"""

from __future__ import annotations

import numpy as np

from .gradients import add_gradient, margins
from .intrinsics import jit, kernel
from .losses import evaluate
from .updates import learning_rate, update

TILE = 256  # rows whose margins are computed together: they stay in the cache for the gradient
TILE_CELLS = 1 << 16

#: Places in ``counters`` (int64) and ``totals`` (float64).
STEP, ROWS, CARRIED = 0, 1, 2
LOSS, WEIGHT = 0, 1


@jit
def finish_batch(
    optimizer,
    optimizer_args,
    schedule,
    schedule_args,
    alpha,
    fit_intercept,
    inverse_scale,
    params,
    slots,
    carry,
    counters,
):
    """Turn the carried sums into one step; return False if a weight is no longer finite."""
    p = len(params) - 1
    share = 1.0 / counters[CARRIED]
    for j in range(p):
        carry[j] = carry[j] * inverse_scale[j] * share + alpha * params[j]
    carry[p] = carry[p] * share if fit_intercept else 0.0
    eta = learning_rate(schedule, schedule_args, counters[STEP])
    finite = update(optimizer, optimizer_args, eta, carry, params, slots)
    carry[:] = 0.0
    counters[STEP] += 1
    counters[CARRIED] = 0
    return finite


@kernel
def drain(
    rows,  # float32[capacity, stride]: encoded rows
    order,  # uint32[n]: the order in which to take them
    start,
    stop,  # the range of ``order`` to take now
    y_cell,
    w_cell,  # cells that hold the target and the sample weight (-1: no weights)
    loss,
    optimizer,
    optimizer_args,
    schedule,
    schedule_args,
    alpha,
    fit_intercept,
    batch_size,
    inverse_scale,  # float64[p]: 1 / scale of each feature
    params,  # float64[p + 1]: weights of standardised features, then the intercept
    slots,  # float64[k, p + 1]: optimizer state
    carry,  # float64[p + 1]: gradient sums of the mini-batch that is under way
    counters,  # int64[3]: steps, rows, rows carried
    totals,  # float64[2]: sum of losses before learning, sum of weights
    last,  # the epoch ends with this range: a short mini-batch is a step too
):
    """Train on a range of rows; return -1, or the number of the step that made a weight infinite or NaN."""
    stride = rows.shape[1]
    p = len(params) - 1
    tile = max(4, min(TILE, TILE_CELLS // stride))
    weights = np.zeros(stride, np.float32)
    tile_sum = np.empty(stride, np.float32)
    z, y = np.empty(tile, np.float32), np.empty(tile, np.float32)
    w, value, derivative = np.empty(tile, np.float32), np.empty(tile, np.float32), np.empty(tile, np.float32)
    stale = True
    i = start
    while True:
        if counters[CARRIED] == batch_size or (last and i == stop and counters[CARRIED] > 0):
            finite = finish_batch(
                optimizer,
                optimizer_args,
                schedule,
                schedule_args,
                alpha,
                fit_intercept,
                inverse_scale,
                params,
                slots,
                carry,
                counters,
            )
            if not finite:
                return counters[STEP]
            stale = True
        if i == stop:
            return -1
        if stale:
            largest = np.float32(0)
            for j in range(p):
                weights[j] = np.float32(params[j] * inverse_scale[j])
                largest += abs(weights[j])
            if not largest < np.inf:  # finite as float64, but not as the float32 that meets the rows
                return counters[STEP]
            stale = False
        n = min(tile, stop - i, batch_size - counters[CARRIED])
        margins(rows, order, i, n, stop, weights, np.float32(params[p]), y_cell, w_cell, z, y, w)
        evaluate(loss, z, y, n, value, derivative)
        if w_cell >= 0:
            for k in range(n):
                value[k] *= w[k]
                derivative[k] *= w[k]
                totals[WEIGHT] += w[k]
        else:
            totals[WEIGHT] += n
        loss_sum, residual_sum = 0.0, 0.0
        for k in range(n):
            loss_sum += value[k]
            residual_sum += derivative[k]
        totals[LOSS] += loss_sum
        add_gradient(rows, order, i, n, derivative, tile_sum, carry[:p])
        carry[p] += residual_sum
        counters[CARRIED] += n
        counters[ROWS] += n
        i += n


@kernel
def predict(rows, n, weights, intercept, out):
    """Margins of the first n encoded rows in float64; ``weights`` float64[p] are of encoded features."""
    for i in range(n):
        total = 0.0
        for j in range(len(weights)):
            total += rows[i, j] * weights[j]
        out[i] = total + intercept
