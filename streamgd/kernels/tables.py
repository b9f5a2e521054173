"""Weights of hashed features: a table of slots, touched only where a mini-batch has features.

A slot holds, side by side so that one access brings all: the weight of each output, the optimizer's state of each,
the gradient of the mini-batch under way, and last the number of the mini-batch that touched it last (its lower 32
bits; 0: none has). The penalty of a step pulls with it the slots that its mini-batch has touched. Of all others the
number tells for how many steps it still has to: it does when the slot is touched again or read. So it is never late for
the slots at hand, which every mini-batch touches.
The slots that a mini-batch has touched are listed; if they are more than the list can hold, all are looked through.
So neither the length of the list nor the cutting of a mini-batch changes a result (the length, only how the sum of
`squared_norm` is rounded).

The slots of a stretch, which `streamgd.kernels.slots` has listed, are copied to where they lie side by side
(`streamgd.kernels.few`); all else (penalties of steps past, margins, gradients, the step) knows only the copy. What is
done for each slot is a loop along contiguous numbers, so that roots and divisions become vector code; of several
outputs, some slots at a time are laid out so.
"""

from __future__ import annotations

import numpy as np

from .few import bring_neighbours, few_slots, marks_of, return_neighbours
from .intrinsics import address_of, float32_at, jit, kernel, prefetch, strict, uint32_at
from .problem import configured, in_single_precision
from .slots import hashes_of
from .sums import add_slots, add_to_slots
from .updates import FTRL, learning_rate, rebased, settled, stepped

#: Slots that are worked on together.
ROOM = 256
#: Bytes of places that are asked for early. They come in a row, but who has listed them is another processor: without
#: asking, adding up the weights of 26 hashes took 19 ns where it takes 11.
PLACES_AHEAD = 4096
#: Places in ``counters``.
STEP, ROWS, CARRIED, TOUCHED = range(4)


@jit
def last_rate(problem, eta, step, elapsed):
    """Rate that settles a slot touched ``elapsed`` steps ago: now's, but of FTRL-Proximal that of the touch."""
    if problem.rare is not None and problem.optimizer == FTRL and elapsed > 0:
        return learning_rate(problem.schedule, problem.schedule_args, step - elapsed)
    return eta


@jit
def list_touched(few_marks, slots_at, n, touched, counters):
    """List those of n slots that no stretch of the mini-batch under way has had before."""
    mark = np.int32(np.uint32(counters[STEP] + 1))
    for k in range(n):
        if few_marks[k] != mark:
            if counters[TOUCHED] < len(touched):
                touched[counters[TOUCHED]] = uint32_at(slots_at, k)
            counters[TOUCHED] += 1


@strict
def _since(mark, step):
    """Steps since a slot was touched, that one too, before a step; 0 if never, or by the mini-batch under way."""
    return np.uint32(step + 1 - np.int64(mark)) if mark != 0 else np.uint32(0)


@strict
def _late(mark, step):
    """Steps whose penalty has not pulled a slot."""
    return max(_since(mark, step), np.uint32(1)) - np.uint32(1)


@strict
def _settle(problem, eta, step, n, marks, w, a, b):
    """Let the penalty catch up on n weights of slots touched as ``marks`` (int32) say."""
    if problem.rare is not None and problem.optimizer == FTRL:
        for k in range(n):
            rate = last_rate(problem, eta, step, np.int64(_since(marks[k], step)))
            x, y, z = np.float64(w[k]), np.float64(a[k]), np.float64(b[k])
            x = settled(problem, rate, step, problem.l1, problem.l2, np.int64(_late(marks[k], step)), x, y, z)
            w[k] = x
            if rate != eta:
                a[k] = rebased(problem, rate, eta, x, y, z)
    else:
        single, pace = in_single_precision(problem), np.float32(eta)
        for k in range(n):
            late = np.float32(_late(marks[k], step))
            w[k] = settled(single, pace, step, single.l1, single.l2, late, w[k], a[k], b[k])


@strict
def _step(problem, eta, share, step, n, g, w, a, b):
    """One step of n weights along their gradient sums, which are 0 then; return whether all are finite as float32."""
    wild, part = False, np.float32(share)
    if problem.rare is not None and problem.optimizer == FTRL:
        for k in range(n):
            x, y, z = np.float64(w[k]), np.float64(a[k]), np.float64(b[k])
            x, y, z = stepped(problem, eta, step, problem.l1, problem.l2, np.float64(g[k] * part), x, y, z)
            w[k], a[k], b[k], g[k] = x, y, z, 0
            wild |= not abs(w[k]) < np.inf
    else:
        single, pace = in_single_precision(problem), np.float32(eta)
        for k in range(n):
            x, y, z = stepped(single, pace, step, single.l1, single.l2, g[k] * part, w[k], a[k], b[k])
            w[k], a[k], g[k] = x, y, 0
            if problem.rare is not None:
                b[k] = z
            wild |= not abs(w[k]) < np.inf
    return not wild


@strict
def _rows_of(few, begin, slots, outputs, output):
    """Weights and states of slots ``begin`` and so on, of one output; a spare row stands for what is not there."""
    a, b = outputs + output if slots > 0 else -1, 2 * outputs + output if slots > 1 else -1
    return few[output, begin:], few[a, begin:], few[b, begin:]


@jit
def room_for_some(cells):
    """Room for slots of several outputs that are worked on together, laid out as those of one are: mostly 16 kB."""
    return few_slots(max(16, (1 << 12) // cells // 16 * 16), cells, None)


@strict
def settle_slots(problem, settings, paces, few, few_marks, begin, end, step, outputs, room):
    """Let the penalty catch up on slots ``begin`` to ``end`` - 1 of a few that were touched before (the mark is not 0).

    ``paces`` as in `update_slots`, ``room`` of several outputs as `room_for_some` gives it.
    """
    slots = problem.slots
    if outputs is None:
        one, eta = configured(problem, settings, np.int64(0)), paces[0, 0]
        if one.l1 != 0.0 or one.l2 != 0.0:
            w, a, b = _rows_of(few, begin, slots, 1, 0)
            _settle(one, eta, step, end - begin, few_marks[begin:], w, a, b)
    else:
        size, marks, pulls = room.shape[1], marks_of(room, few.shape[1], None), False
        for model in range(len(paces)):
            one = configured(problem, settings, model)
            pulls |= one.l1 != 0.0 or one.l2 != 0.0
        for first in range(begin, end if pulls else begin, size):
            m = min(size, end - first)
            bring_neighbours(few, first, m, room, 0, few.shape[1])
            for c in range(outputs):
                model = c // (outputs // len(paces))
                one, eta = configured(problem, settings, model), paces[model, 0]
                if one.l1 != 0.0 or one.l2 != 0.0:
                    w, a, b = _rows_of(room, 0, slots, outputs, c)
                    _settle(one, eta, step, m, marks, w, a, b)
            return_neighbours(few, first, m, room)
    few_marks[begin:end] = np.int32(np.uint32(step + 1))


@strict
def table_margins(rows, cells, order, start, n, at, factor, outputs, places_at, few, sums, z):
    """Add the weights of the hashed features of rows ``order[start : start + n]`` to ``z`` (float32[outputs, >= n]).

    ``outputs`` is None if there is one; ``places_at`` is the address of the places that the hashes' slots have in
    ``few``; ``sums`` is room for a number an output, and more up to `SUMS` of them. Return the number of hashes.
    """
    cells_at, stride, begin = address_of(cells), cells.shape[1] * 4, places_at
    few_at, size, sums_at = address_of(few), few.shape[1] * few.itemsize, address_of(sums)
    i = 0
    if outputs is None and at.n_text == 0 and at.n_scaled == 0:
        # Each sum waits for the addition before, so four rows take turns.
        while i + 4 <= n:
            for line in range(0, 16 * at.n_index, 64):
                prefetch(places_at + PLACES_AHEAD + line)
            p, q = places_at + 4 * at.n_index, places_at + 8 * at.n_index
            r = places_at + 12 * at.n_index
            s, t, u, v = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for k in range(at.n_index):
                s += float32_at(few_at, np.int64(uint32_at(places_at, k)))
                t += float32_at(few_at, np.int64(uint32_at(p, k)))
                u += float32_at(few_at, np.int64(uint32_at(q, k)))
                v += float32_at(few_at, np.int64(uint32_at(r, k)))
            z[0, i] += s
            z[0, i + 1] += t
            z[0, i + 2] += u
            z[0, i + 3] += v
            places_at += 16 * at.n_index
            i += 4
    while i < n:
        row = order[start + i]
        one = np.float32(0)
        sums[:] = np.float32(0)
        for part in range(1 + at.n_text):
            _, words = hashes_of(cells_at, np.int64(row) * stride, at, part)
            plain = words - at.n_scaled if part == 0 else words
            if outputs is None:
                for k in range(plain):
                    one += float32_at(few_at, np.int64(uint32_at(places_at, k)))
            else:
                add_slots(places_at, plain, few_at, size, sums_at, outputs)
            for k in range(plain, words):
                place = np.int64(uint32_at(places_at, k))
                value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                if outputs is None:
                    one += value * float32_at(few_at, place)
                else:
                    for c in range(outputs):
                        sums[c] += value * float32_at(few_at + place * size, c)
            places_at += 4 * words
        if outputs is None:
            z[0, i] += one
        else:
            for c in range(outputs):
                z[c, i] += sums[c]
        i += 1
    return (places_at - begin) // 4


@strict
def table_gradient(rows, cells, order, start, n, at, factor, problem, outputs, places_at, few, sums, r):
    """Add derivatives ``r`` (float32[outputs, >= n]) of rows to the gradient sums of their slots.

    Other arguments as in `table_margins`.
    """
    cells_at, stride = address_of(cells), cells.shape[1] * 4
    size, sums_at = few.shape[1] * few.itemsize, address_of(sums)
    if outputs is None:
        gradient, place = few[1 + problem.slots], np.uint64(0)
    else:
        gradient, place = few[0], np.uint64((1 + problem.slots) * outputs)
    gradients_at = address_of(few) + 4 * np.int64(place)
    if outputs is None and at.n_text == 0 and at.n_scaled == 0:
        # Row by row: what is added to a slot by one row must have been stored before the next row adds to it.
        for i in range(n):
            one = r[0, i]
            for k in range(at.n_index):
                gradient[np.uint64(uint32_at(places_at, k))] += one
            places_at += 4 * at.n_index
        return
    for i in range(n):
        row = order[start + i]
        one = r[0, i]
        for c in range(len(r)):
            sums[c] = r[c, i]
        for part in range(1 + at.n_text):
            _, words = hashes_of(cells_at, np.int64(row) * stride, at, part)
            plain = words - at.n_scaled if part == 0 else words
            if outputs is None:
                for k in range(plain):
                    gradient[np.uint64(uint32_at(places_at, k))] += one
            else:
                add_to_slots(places_at, plain, gradients_at, size, sums_at, outputs)
            for k in range(plain, words):
                slot = np.uint64(uint32_at(places_at, k))
                value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                if outputs is None:
                    gradient[slot] += value * one
                else:
                    for c in range(outputs):
                        few[slot, place + np.uint64(c)] += value * sums[c]
            places_at += 4 * words


@jit
def touched_slots(table, marks, at_hand, touched, counters):
    """Slots that the mini-batch under way has touched, but those at hand.

    In the order of the table if the list could not hold them.
    """
    if counters[TOUCHED] <= len(touched):
        return touched[: counters[TOUCHED]]
    return at_hand + np.flatnonzero(marks[at_hand:, marks.shape[1] - 1] == np.int32(counters[STEP] + 1))


@strict
def squared_norm(problem, few, begin, end, outputs, first, last, total):
    """Add to a total the squares of the gradient sums of some slots: ``begin`` to ``end`` - 1, of some outputs."""
    if outputs is None:
        for k in range(begin, end):
            total += np.float64(few[1 + problem.slots, k]) ** 2
    else:
        place = (1 + problem.slots) * outputs
        for k in range(begin, end):
            for c in range(first, last):
                total += np.float64(few[k, place + c]) ** 2
    return total


@strict
def update_slots(problem, settings, paces, few, begin, end, step, outputs, room):
    """One step of slots ``begin`` to ``end`` - 1 of a few along their gradient sums.

    ``paces`` (float64[models, 3]) has the learning rate and the factor of the sums of each model; its third column
    becomes infinite if a weight is not finite. ``room`` as in `settle_slots`.
    """
    slots = problem.slots
    if outputs is None:
        one = configured(problem, settings, np.int64(0))
        w, a, b = _rows_of(few, begin, slots, 1, 0)
        if not _step(one, paces[0, 0], paces[0, 1], step, end - begin, few[1 + slots, begin:], w, a, b):
            paces[0, 2] = np.inf
    else:
        size, place = room.shape[1], (1 + slots) * outputs
        for first in range(begin, end, size):
            m = min(size, end - first)
            bring_neighbours(few, first, m, room, 0, few.shape[1])
            for c in range(outputs):
                model = c // (outputs // len(paces))
                one = configured(problem, settings, model)
                w, a, b = _rows_of(room, 0, slots, outputs, c)
                if not _step(one, paces[model, 0], paces[model, 1], step, m, room[place + c], w, a, b):
                    paces[model, 2] = np.inf
            return_neighbours(few, first, m, room)


@strict
def _enter(n, marks, w, share, average):
    """Let n weights enter their average, unless their slot was never touched; without a branch it is vector code."""
    for k in range(n):
        entering = share if marks[k] != 0 else 0.0
        average[k] = np.float32(average[k] + entering * (w[k] - average[k]))


@kernel
def average_table(problem, table, counters, outputs, output, share, average):
    """Let the weights of all slots, with the penalty caught up, enter ``average`` (float32[slots, outputs]).

    Of one output, or of those from ``output`` on that ``average`` has room for. Those of slots that were
    never touched do not.
    """
    step, cells = counters[STEP], table.shape[1]
    eta = learning_rate(problem.schedule, problem.schedule_args, step)
    room, single = room_for_some(cells), average.reshape(-1)
    marks, size, wanted = marks_of(room, cells, None), room.shape[1], average.shape[1]
    for first in range(0, len(table), size):
        n = min(size, len(table) - first)
        if wanted == outputs:
            bring_neighbours(table, first, n, room, 0, cells)
        else:  # of a model among others the weights, their states, and when they were touched
            for kind in range(1 + problem.slots):
                cell = kind * outputs + output
                bring_neighbours(table, first, n, room, cell, cell + wanted)
            bring_neighbours(table, first, n, room, cells - 1, cells)
        for c in range(wanted):
            w, a, b = _rows_of(room, 0, problem.slots, outputs, output + c)
            _settle(problem, eta, step, n, marks, w, a, b)
            if wanted == 1:
                _enter(n, marks, w, share, single[first:])
            else:
                _enter(n, marks, w, share, average[first:, c])
