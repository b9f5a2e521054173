"""The heart: take the rows of a window in a given order, mini-batch by mini-batch, and update the weights.

One call covers as many mini-batches as the range holds. A mini-batch may span calls and windows: what it has so
far is in ``carry`` and in the table. So batch size 1 (SGD), a number (mini-batch) and all rows (batch gradient
descent) are the same loop. Cutting a range in two changes nothing but the order in which a sum is rounded, and not
even that where a mini-batch ends or a multiple of the tile after its start.

Several models of one family may be trained on the same mini-batches: their outputs lie one model after the other, and
each gets the bits that it would get alone.

What a job does not have costs it nothing: without hashed features ``table`` is None, with one output ``outputs``
is, and the branches for them are not compiled.
"""

from __future__ import annotations

import numpy as np

from .few import ask_first, bring_slots, few_slots, marks_of, return_slots
from .gradients import OUTPUTS, add_gradient, add_many_gradients, fetch, many_margins, margins
from .intrinsics import address_of, jit, keep, kernel, lent, uint32_at
from .losses import evaluate, softmax
from .problem import configured
from .slots import hashes_of, stretch_rows, tile_rows
from .sums import SUMS, total
from .tables import (
    CARRIED,
    ROOM,
    ROWS,
    STEP,
    TOUCHED,
    list_touched,
    room_for_some,
    settle_slots,
    squared_norm,
    table_gradient,
    table_margins,
    touched_slots,
    update_slots,
)
from .updates import FTRL, learning_rate, update

__all__ = ["CARRIED", "LOSS", "ROWS", "STEP", "TOUCHED", "WEIGHT", "drain", "predict"]

#: Places in a model's ``totals`` (float64).
LOSS, WEIGHT = 0, 1


@jit
def finish_batch(
    problem,
    settings,
    inverse_scale,
    spread,
    outputs,
    params,
    slots,
    carry,
    table,
    marks,
    few,
    n,  # slots of the mini-batch that are in ``few`` behind those at hand; -1 if they have been returned to the table
    touched,
    counters,
    failed,
    paces,
    room,
):
    """Turn the carried sums into one step; return False if no model is left all of whose weights are finite."""
    p, models = params.shape[1] - 1, len(failed)
    classes = len(params) // models
    for c in range(len(params)):
        for j in range(p):
            carry[c, j] *= inverse_scale[j]
        if not problem.fit_intercept:
            carry[c, p] = 0.0
    if table is not None:
        at_slots = touched_slots(table, marks, problem.at_hand, touched, counters) if n < 0 else touched[:0]
        numbers, here = np.empty(ROOM, np.uint32), problem.at_hand + max(n, np.int64(0))
    for model in range(models):
        one, first, last = configured(problem, settings, model), model * classes, (model + 1) * classes
        share = 1.0 / counters[CARRIED]
        if one.clip_norm > 0.0:
            square = 0.0
            for c in range(first, last):
                for j in range(p + 1):
                    square += carry[c, j] * carry[c, j]
            if table is not None:
                hashed = squared_norm(one, few, np.int64(0), here, outputs, first, last, 0.0)
                for begin in range(0, len(at_slots), ROOM):
                    end = here + bring_some(table, at_slots, begin, numbers, few, here, outputs)
                    hashed = squared_norm(one, few, here, end, outputs, first, last, hashed)
                square += hashed
            share *= min(1.0, one.clip_norm / max(np.sqrt(square) * share, 1e-300))
        before = learning_rate(one.schedule, one.schedule_args, max(counters[STEP] - 1, 0))
        eta = learning_rate(one.schedule, one.schedule_args, counters[STEP])
        paces[model, 0], paces[model, 1], paces[model, 2] = eta, share, 0.0
        for c in range(first, last):
            for j in range(p + 1):
                carry[c, j] *= share
            if not update(one, before, eta, counters[STEP], spread, carry[c], params[c], slots[0, c], slots[1, c]):
                paces[model, 2] = np.inf
    carry[:] = 0.0
    if table is not None:
        update_slots(problem, settings, paces, few, np.int64(0), here, counters[STEP], outputs, room)
        for begin in range(0, len(at_slots), ROOM):
            m = bring_some(table, at_slots, begin, numbers, few, here, outputs)
            update_slots(problem, settings, paces, few, here, here + m, counters[STEP], outputs, room)
            return_slots(table, address_of(numbers), m, few, here, outputs)
        counters[TOUCHED] = 0
    counters[STEP] += 1
    counters[CARRIED] = 0
    return still_finite(paces, counters, failed)


@jit
def bring_some(table, at_slots, begin, numbers, few, first, outputs):
    """Copy up to `ROOM` slots from ``at_slots[begin]`` on to ``few`` from ``first`` on; return how many."""
    n = min(ROOM, len(at_slots) - begin)
    for k in range(n):
        numbers[k] = at_slots[begin + k]
    ask_first(table, address_of(numbers), n, outputs)
    bring_slots(table, address_of(numbers), n, n, few, first, outputs)
    return n


@jit
def still_finite(paces, counters, failed):
    """Write down which models have just become infinite; return whether any has not."""
    left = False
    for model in range(len(failed)):
        if failed[model] < 0 and not paces[model, 2] < np.inf:
            failed[model] = counters[STEP]
        left |= failed[model] < 0
    return left


@kernel
def drain(
    rows,  # float32[capacity, stride]: encoded rows
    cells,  # the same as uint32
    unique,  # uint32[k]: slots of each stretch of this range (see `streamgd.kernels.slots`); None without table
    places,  # uint32[h]: where among them each hash has its slot
    counts,  # int64[t]: how many each stretch has
    order,  # uint32[n]: the order in which to take them
    start,
    stop,  # the range of ``order`` to take now
    last,  # the epoch ends with this range: a short mini-batch is a step too
    at,  # where things lie in a row
    problem,
    settings,  # float64[models, SETTINGS]: `Problem.settings` of models that are trained side by side; None if one is
    outputs,  # outputs of all models, c, if there are several, or None; those of a model are its classes
    inverse_scale,  # float64[p]: 1 / scale of each dense feature
    spread,  # float64[p + 1]: standard deviation of each scaled dense feature, whose weights the penalty takes times it
    factor,  # float64[2, s]: cell that gives each scaled index its value, and what that is multiplied by
    params,  # float64[c, p + 1]: weights of scaled dense features, then the intercept, of each output
    slots,  # float64[2, c, p + 1]: optimizer state
    carry,  # float64[c, p + 1]: gradient sums of the mini-batch that is under way
    table,  # float32[2^bits, cells of a slot]: weights of hashed features and their state, or None; no mini-batch has
    # left out those at hand
    marks,  # the same as int32
    touched,  # int64[k]: slots that the mini-batch under way has touched
    counters,  # int64[4]: steps, rows, rows carried, slots touched
    totals,  # float64[models, 2]: sum of losses before learning, sum of weights
    failed,  # int64[models]: step that made a weight of a model infinite or NaN, or -1
):
    """Train on a range of rows, as long as a model has finite weights; return whether one still has."""
    rows, cells, order, settings, factor = lent(rows), lent(cells), lent(order), lent(settings), lent(factor)
    inverse_scale, spread, params, slots = lent(inverse_scale), lent(spread), lent(params), lent(slots)
    carry, marks, touched, counters = lent(carry), lent(marks), lent(touched), lent(counters)
    totals, failed = lent(totals), lent(failed)
    p, models = params.shape[1] - 1, len(failed)
    classes = len(params) // models
    tile = tile_rows(rows.shape[1])
    c_padded, room_of_outputs = 1, -(-len(params) // SUMS) * SUMS
    if outputs is not None:
        c_padded = -(-len(params) // OUTPUTS) * OUTPUTS
    room_for = -(-tile // SUMS) * SUMS
    of_cells, of_outputs = np.zeros((2, c_padded, at.width), np.float32), np.zeros(c_padded, np.float32)
    of_rows, of_models = np.zeros((4, room_for), np.float32), np.zeros((models, 3))
    of_margins = np.zeros((2, c_padded, room_for), np.float32)
    weights, tile_sum, intercepts, paces = lent(of_cells[0]), lent(of_cells[1]), lent(of_outputs), lent(of_models)
    y, w, value, class_sums = lent(of_rows[0]), lent(of_rows[1]), lent(of_rows[2]), lent(of_rows[3])
    z, derivative = lent(of_margins[0]), lent(of_margins[1])
    if table is not None:
        room, sums = room_for_some(table.shape[1]), np.zeros(room_of_outputs, np.float32)
        unique_at, places_at, most, listed = address_of(unique), address_of(places), np.int64(ROOM), np.int64(0)
        stretch, found, together, alone = 0, np.int64(0), stretch_rows(rows.shape[1], at, table.shape[1]), False
        for k in range(len(counts)):
            most = max(most, counts[k])
            listed += counts[k]
        ask_first(table, unique_at, listed, outputs)
        at_hand = np.int64(problem.at_hand)
        # No penalty is late for them, but FTRL-Proximal has states of each rate.
        settling = at_hand if problem.rare is not None and problem.optimizer == FTRL else np.int64(0)
        few = few_slots(at_hand + most, table.shape[1], outputs)
        few_marks = marks_of(few, table.shape[1], outputs)
        first_slots = np.arange(at_hand).astype(np.uint32)
        bring_slots(table, address_of(first_slots), at_hand, at_hand, few, np.int64(0), outputs)
    else:  # nothing looks at these, but they must be of the same type
        room, sums, few = room_for_some(np.int64(256)), np.empty(0, np.float32), few_slots(0, 1, outputs)
    held, held_at = np.int64(-1), np.int64(0)  # slots of a whole mini-batch
    stale = True
    left = np.int64(0)  # rows of a stretch, whose slots are in ``few``
    i, going = start, True
    while True:
        if counters[CARRIED] == problem.batch_size or (last and i == stop and counters[CARRIED] > 0):
            going = finish_batch(
                problem,
                settings,
                inverse_scale,
                spread,
                outputs,
                params,
                slots,
                carry,
                table,
                marks,
                few,
                held,
                touched,
                counters,
                failed,
                paces,
                room,
            )
            if table is not None and held >= 0:
                return_slots(table, held_at, held, few, at_hand, outputs)
                held = np.int64(-1)
            if not going:
                break
            stale = True
        if i == stop:
            break
        if stale:
            for model in range(models):
                one = configured(problem, settings, model)
                paces[model, 0] = learning_rate(one.schedule, one.schedule_args, counters[STEP])
                paces[model, 2] = 0.0
            for c in range(len(params)):
                intercepts[c] = np.float32(params[c, p])
                largest = np.float32(0)
                for j in range(p):
                    weights[c, j] = np.float32(params[c, j] * inverse_scale[j])
                    largest += abs(weights[c, j])
                paces[c // classes, 2] += largest
            # Finite as float64, they may not be so as the float32 that meet the rows.
            going = still_finite(paces, counters, failed)
            if not going:
                break
            if table is not None:
                settle_slots(
                    problem, settings, paces, few, few_marks, np.int64(0), settling, counters[STEP], outputs, room
                )
            stale = False
        if table is not None and left == 0:
            left, found = min(together, stop - i, problem.batch_size - counters[CARRIED]), counts[stretch]
            bring_slots(table, unique_at, found, listed, few, at_hand, outputs)
            listed -= found
            alone = counters[CARRIED] == 0 and (left == problem.batch_size or (last and i + left == stop))
            if not alone:
                list_touched(few_marks[at_hand:], unique_at, found, touched, counters)
            end = at_hand + found
            settle_slots(problem, settings, paces, few, few_marks, at_hand, end, counters[STEP], outputs, room)
        n = min(tile, stop - i, problem.batch_size - counters[CARRIED])
        if table is not None:
            n = min(n, left)
        fetch(rows, order, i, n, stop, at, y, w)
        if outputs is None:
            margins(rows, order, i, n, weights[0], intercepts[0], z[0])
        else:
            many_margins(rows, order, i, n, weights, intercepts, z)
        if table is not None:
            hashes = table_margins(rows, cells, order, i, n, at, factor, outputs, places_at, few, sums, z)
        whole = -(-n // SUMS) * SUMS
        weight = np.float64(n)
        if at.w >= 0:
            weight = np.float64(0)
            for k in range(n):
                weight += w[k]
        for model in range(models):
            first = model * classes
            if outputs is None:
                evaluate(problem.loss, problem.rare, problem.loss_args, z[0], y, n, value, derivative[0])
            elif classes == 1:
                evaluate(problem.loss, problem.rare, problem.loss_args, z[model], y, n, value, derivative[model])
            else:
                of = slice(first, first + classes)
                softmax(z[of], y, n, value, class_sums, derivative[of])
            if at.w >= 0:
                for k in range(n):
                    value[k] *= w[k]
                for c in range(first, first + classes):
                    for k in range(n):
                        derivative[c, k] *= w[k]
            value[n:whole] = np.float32(0)
            totals[model, LOSS] += total(address_of(value), whole)
            totals[model, WEIGHT] += weight
            for c in range(first, first + classes):
                derivative[c, n:whole] = np.float32(0)
                carry[c, p] += total(address_of(derivative[c]), whole)
        if outputs is None:
            add_gradient(rows, order, i, n, derivative[0], tile_sum[0], carry[0, :p])
        else:
            add_many_gradients(rows, order, i, n, derivative, tile_sum, carry[:, :p])
        if table is not None:
            table_gradient(rows, cells, order, i, n, at, factor, problem, outputs, places_at, few, sums, derivative)
            left -= n
            places_at += 4 * hashes
            if left == 0:
                if alone:
                    held, held_at = found, unique_at
                else:
                    return_slots(table, unique_at, found, few, at_hand, outputs)
                stretch, unique_at = stretch + 1, unique_at + 4 * found
        counters[CARRIED] += n
        counters[ROWS] += n
        i += n
    if table is not None:
        few_marks[:at_hand] = np.int32(np.uint32(counters[STEP] + np.int64(counters[CARRIED] > 0)))
        return_slots(table, address_of(first_slots), at_hand, few, np.int64(0), outputs)
        keep(first_slots)
    keep((of_cells, of_outputs, of_rows, of_models, of_margins))
    return going


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
                hashes, words = hashes_of(address_of(cells), (i) * cells.shape[1] * 4, at, part)
                plain = words - at.n_scaled if part == 0 else words
                for k in range(words):
                    slot = np.int64(uint32_at(hashes, k) & mask)
                    value = np.float64(1)
                    if k >= plain:
                        value = np.float64(rows[i, np.int64(factor[0, k - plain])]) * factor[1, k - plain]
                    for c in range(len(weights)):
                        out[i, c] += value * table[slot, c]
