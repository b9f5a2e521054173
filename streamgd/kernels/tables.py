"""Weights of hashed features: a table of slots, touched only where a mini-batch has features.

A slot holds, side by side so that one access brings all: the weight of each output, the optimizer's state of each,
the gradient of the mini-batch under way, and last the number of the mini-batch that touched it last (its lower 32
bits; 0: none has). That is how a slot knows for how many steps the penalty still has to pull it: it does when the
slot is touched again or read.
The slots that a mini-batch has touched are listed; if they are more than the list can hold, all are looked through.
So neither the length of the list nor the cutting of a mini-batch changes a result (the length, only how the sum of
`squared_norm` is rounded).

Each loop does one thing. The slots of a stretch, which `streamgd.kernels.slots` has listed, are copied side by side to
a small table of the same layout; all else (penalties of steps past, margins, gradients, the step) knows only the copy.
Steps are taken on `ROOM` slots at a time, as columns of float64, so that roots and divisions become vector code.
No function that takes an array is called for each slot: numba counts references for each call (40 ns).
"""

from __future__ import annotations

import numpy as np

from .intrinsics import copy_sixteen_bytes, float32_at, jit, kernel, prefetch, strict, uint32_at
from .problem import configured
from .slots import hashes_of
from .updates import FTRL, advance, learning_rate, rebased, settled

#: Slots that are worked on together.
ROOM = 256
#: Slots that are asked for before they are written back.
RETURNED_AHEAD = 16
#: Places in ``counters``.
STEP, ROWS, CARRIED, TOUCHED = range(4)


@jit
def last_rate(problem, eta, step, elapsed):
    """Rate that settles a slot touched ``elapsed`` steps ago: now's, but of FTRL-Proximal that of the touch."""
    if problem.rare is not None and problem.optimizer == FTRL and elapsed > 0:
        return learning_rate(problem.schedule, problem.schedule_args, step - elapsed)
    return eta


@jit
def ask_for(table, unique_at, first, end):
    """Ask the cache for some of the slots that are listed at an address."""
    base, size = table.ctypes.data, table.shape[1] * table.itemsize
    lines = -(-size // 64)
    for k in range(first, end):
        slot_at = base + np.int64(uint32_at(unique_at, k)) * size
        for line in range(lines):
            prefetch(slot_at + 64 * line)


@jit
def bring_slots(table, unique_at, n, few):
    """Copy the n slots that are listed at an address to the first of ``few``."""
    base, few_at, size = table.ctypes.data, few.ctypes.data, table.shape[1] * table.itemsize
    parts = size // 16
    for k in range(n):
        slot_at = base + np.int64(uint32_at(unique_at, k)) * size
        for part in range(parts):
            copy_sixteen_bytes(slot_at + 16 * part, few_at + k * size + 16 * part)


@jit
def return_slots(table, unique_at, n, few):
    """Copy them back."""
    base, few_at, size = table.ctypes.data, few.ctypes.data, table.shape[1] * table.itemsize
    parts = size // 16
    for k in range(n):
        ahead = base + np.int64(uint32_at(unique_at, min(k + RETURNED_AHEAD, n - 1))) * size
        slot_at = base + np.int64(uint32_at(unique_at, k)) * size
        for part in range(parts):
            prefetch(ahead + 16 * part)
            copy_sixteen_bytes(few_at + k * size + 16 * part, slot_at + 16 * part)


@jit
def list_touched(few_marks, unique_at, n, touched, counters):
    """List those of n slots that no stretch of the mini-batch under way has had before."""
    last, mark = few_marks.shape[1] - 1, np.int32(np.uint32(counters[STEP] + 1))
    for k in range(n):
        if few_marks[k, last] != mark:
            if counters[TOUCHED] < len(touched):
                touched[counters[TOUCHED]] = uint32_at(unique_at, k)
            counters[TOUCHED] += 1


@strict
def _gather(few, first, n, output, outputs, slots, w, a, b):
    """Weights and states of an output of n slots, as float64 side by side."""
    for k in range(n):
        w[k] = few[first + k, output]
        if slots > 0:
            a[k] = few[first + k, outputs + output]
        if slots > 1:
            b[k] = few[first + k, 2 * outputs + output]


@jit
def _since(mark, step):
    """Steps since a slot was touched, before a step; 0 if never."""
    return np.int64(np.uint32(step + 1 - np.int64(mark))) if mark != 0 else np.int64(0)


@strict
def _settle(problem, eta, step, n, since, w, a, b):
    """Let the penalty of some steps enter n weights."""
    if problem.rare is not None and problem.optimizer == FTRL:
        for k in range(n):
            rate = last_rate(problem, eta, step, since[k])
            w[k] = settled(problem, rate, step, problem.l1, problem.l2, since[k], w[k], a[k], b[k])
    else:
        for k in range(n):
            w[k] = settled(problem, eta, step, problem.l1, problem.l2, since[k], w[k], a[k], b[k])


@strict
def settle_slots(problem, settings, paces, few, few_marks, n, step, outputs, room):
    """Let the penalty catch up on the first n slots of a few, those that were touched before (their mark is not 0).

    ``paces`` as in `update_slots`, ``room`` is float64[4, ROOM].
    """
    slots, last, mark = problem.slots, few_marks.shape[1] - 1, np.int32(np.uint32(step + 1))
    since, w, a, b = np.empty(ROOM, np.int64), room[0], room[1], room[2]
    for first in range(0, n, ROOM):
        m = min(ROOM, n - first)
        for k in range(m):
            since[k] = _since(few_marks[first + k, last], step)
            few_marks[first + k, last] = mark
        for c in range(outputs):
            model = c // (outputs // len(paces))
            one, eta = configured(problem, settings, model), paces[model, 0]
            if one.l1 != 0.0 or one.l2 != 0.0:
                _gather(few, first, m, c, outputs, slots, w, a, b)
                _settle(one, eta, step, m, since, w, a, b)
                for k in range(m):
                    few[first + k, c] = w[k]
                    if one.rare is not None and one.optimizer == FTRL:
                        rate = last_rate(one, eta, step, since[k])
                        if rate != eta:
                            few[first + k, outputs + c] = rebased(one, rate, eta, w[k], a[k], b[k])


@strict
def table_margins(rows, cells, order, start, n, at, factor, outputs, places_at, few, sums, z):
    """Add the weights of the hashed features of rows ``order[start : start + n]`` to ``z`` (float32[outputs, >= n]).

    ``outputs`` is None if there is one; ``places_at`` is the address of the places that the hashes' slots have in
    ``few``; ``sums`` is room for a number an output. Return the number of hashes.
    """
    cells_at, stride, begin = cells.ctypes.data, cells.shape[1] * 4, places_at
    few_at, size = few.ctypes.data, few.shape[1] * few.itemsize
    for i in range(n):
        row = order[start + i]
        one = np.float32(0)
        sums[:] = np.float32(0)
        for part in range(1 + at.n_text):
            _, words = hashes_of(cells_at, np.int64(row) * stride, at, part)
            plain = words - at.n_scaled if part == 0 else words
            for k in range(plain):
                slot_at = few_at + np.int64(uint32_at(places_at, k)) * size
                if outputs is None:
                    one += float32_at(slot_at, 0)
                else:
                    for c in range(outputs):
                        sums[c] += float32_at(slot_at, c)
            for k in range(plain, words):
                slot_at = few_at + np.int64(uint32_at(places_at, k)) * size
                value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                if outputs is None:
                    one += value * float32_at(slot_at, 0)
                else:
                    for c in range(outputs):
                        sums[c] += value * float32_at(slot_at, c)
            places_at += 4 * words
        if outputs is None:
            z[0, i] += one
        else:
            for c in range(outputs):
                z[c, i] += sums[c]
    return (places_at - begin) // 4


@strict
def table_gradient(rows, cells, order, start, n, at, factor, problem, outputs, places_at, few, sums, r):
    """Add derivatives ``r`` (float32[outputs, >= n]) of rows to the gradient sums of their slots."""
    place = np.uint64((1 + problem.slots) * len(sums))
    cells_at, stride = cells.ctypes.data, cells.shape[1] * 4
    for i in range(n):
        row = order[start + i]
        one = r[0, i]
        for c in range(len(sums)):
            sums[c] = r[c, i]
        for part in range(1 + at.n_text):
            _, words = hashes_of(cells_at, np.int64(row) * stride, at, part)
            plain = words - at.n_scaled if part == 0 else words
            for k in range(plain):
                slot = np.uint64(uint32_at(places_at, k))
                if outputs is None:
                    few[slot, place] += one
                else:
                    for c in range(outputs):
                        few[slot, place + np.uint64(c)] += sums[c]
            for k in range(plain, words):
                slot = np.uint64(uint32_at(places_at, k))
                value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                for c in range(len(sums)):
                    few[slot, place + np.uint64(c)] += value * sums[c]
            places_at += 4 * words


@jit
def touched_slots(table, marks, touched, counters):
    """Slots that the mini-batch under way has touched; in the order of the table if the list could not hold them."""
    if counters[TOUCHED] <= len(touched):
        return touched[: counters[TOUCHED]]
    return np.flatnonzero(marks[:, marks.shape[1] - 1] == np.int32(counters[STEP] + 1))


@strict
def squared_norm(problem, few, n, outputs, first, last, total):
    """Add to a total the squares of the gradient sums of the first n slots, of outputs ``first`` to ``last`` - 1."""
    place = (1 + problem.slots) * outputs
    for k in range(n):
        for c in range(first, last):
            total += np.float64(few[k, place + c]) ** 2
    return total


@strict
def update_slots(problem, settings, paces, few, n, step, outputs, room):
    """One step of the first n slots along their gradient sums.

    ``paces`` (float64[models, 3]) has the learning rate and the factor of the sums of each model; to its third column
    the sum of absolute weights is added. ``room`` is float64[4, ROOM].
    """
    slots, place = problem.slots, (1 + problem.slots) * outputs
    w, a, b, g = room[0], room[1], room[2], room[3]
    for first in range(0, n, ROOM):
        m = min(ROOM, n - first)
        for c in range(outputs):
            model = c // (outputs // len(paces))
            one, eta, share = configured(problem, settings, model), paces[model, 0], paces[model, 1]
            _gather(few, first, m, c, outputs, slots, w, a, b)
            for k in range(m):
                g[k], few[first + k, place + c] = few[first + k, place + c], 0
            for k in range(m):
                w[k], a[k], b[k] = advance(one, eta, step, g[k] * share, w[k], a[k], b[k])
            total = 0.0
            for k in range(m):
                few[first + k, c] = w[k]
                if slots > 0:
                    few[first + k, outputs + c] = a[k]
                if slots > 1:
                    few[first + k, 2 * outputs + c] = b[k]
                total += np.float64(abs(np.float32(w[k])))  # finite as float64, a weight may not be so in the table
            paces[model, 2] += total


@kernel
def average_table(problem, table, marks, counters, outputs, output, share, average):
    """Let the weights of all slots, with the penalty caught up, enter ``average`` (float32[slots, outputs]).

    Of one output, or of those from ``output`` on that ``average`` has room for.
    """
    step, last, slots = counters[STEP], marks.shape[1] - 1, problem.slots
    eta = learning_rate(problem.schedule, problem.schedule_args, step)
    picked, since, room = np.empty(ROOM, np.int64), np.empty(ROOM, np.int64), np.zeros((3, ROOM))
    w, a, b = room[0], room[1], room[2]
    for first in range(0, len(table), ROOM):
        n = 0
        for k in range(first, min(first + ROOM, len(table))):
            picked[n], since[n] = k, _since(marks[k, last], step)
            n += marks[k, last] != 0  # most of a large table was never touched
        for c in range(average.shape[1]):
            for i in range(n):
                w[i] = table[picked[i], output + c]
                if slots > 0:
                    a[i] = table[picked[i], outputs + output + c]
                if slots > 1:
                    b[i] = table[picked[i], 2 * outputs + output + c]
            _settle(problem, eta, step, n, since, w, a, b)
            for i in range(n):
                before = average[picked[i], c]
                average[picked[i], c] = np.float32(before + share * (w[i] - before))
