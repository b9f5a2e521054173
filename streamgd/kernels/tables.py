"""Weights of hashed features: a table of slots, touched only where a mini-batch has features.

A slot holds, side by side so that one access brings all: the weight of each output, the optimizer's state of each,
the gradient of the mini-batch under way, and last the number of the mini-batch that touched it last (its lower 32
bits; 0: none has). That is how a slot knows for how many steps the penalty still has to pull it: it does when the
slot is touched again or read.
The slots that a mini-batch has touched are listed; if they are more than the list can hold, all are looked through.
So neither the length of the list nor the cutting of a mini-batch changes a result (the length, only how the sum of
`squared_norm` is rounded).

Each loop does one thing. First slots are listed, without a branch that a processor would have to guess (half of the
visits are the first of their mini-batch: that guess alone took 60 ns a row of 26); then the penalty catches up and
steps are taken on `ROOM` slots at a time, whose numbers are gathered, so that roots and divisions become vector code.
No function that takes an array is called for each slot: numba counts references for each call (40 ns).
"""

from __future__ import annotations

import numpy as np

from .intrinsics import jit, kernel, prefetch, strict, uint32_at
from .problem import configured
from .updates import FTRL, advance, learning_rate, rebased, settled

#: Rows, and words of a text, whose slots are asked for early.
ROWS_AHEAD, WORDS_AHEAD = 6, 16
#: Rows that are asked for themselves. `fetch` asks for all of a tile at once, more than a processor can keep; while
#: slots are listed there is time: 320 instead of 390 ns a row of 26 hashes.
FETCHED_AHEAD, FETCHED_BYTES = 128, 512
#: Slots that are worked on together.
ROOM = 256
#: Places in ``counters``.
STEP, ROWS, CARRIED, TOUCHED = range(4)


@jit
def hashes_of(cells_at, row, at, part):
    """Address and number of the hashes of a row: its indices as part 0, then those of each text.

    ``cells_at`` is the address of the rows, ``row`` their bytes before this one; three cells say where a text's are.
    """
    start = cells_at + row
    if part == 0:
        return start + 4 * at.hashes, at.n_index
    cell = at.text + 3 * (part - 1)
    address = np.int64(uint32_at(start, cell)) | (np.int64(uint32_at(start, cell + 1)) << 32)
    return address, np.int64(uint32_at(start, cell + 2))


@jit
def last_rate(problem, eta, step, elapsed):
    """Rate that settles a slot touched ``elapsed`` steps ago: now's, but of FTRL-Proximal that of the touch."""
    if problem.rare is not None and problem.optimizer == FTRL and elapsed > 0:
        return learning_rate(problem.schedule, problem.schedule_args, step - elapsed)
    return eta


@jit
def touch_slots(
    cells, order, start, n, stop, at, problem, settings, paces, table, marks, touched, counters, outputs, fresh, room
):
    """Make the slots of rows ``order[start : start + n]`` ready for a step: listed, and pulled by the penalty so far.

    ``paces`` as in `update_table`; ``fresh`` (int64[2, > ROOM]) and ``room`` (float64[4, ROOM]) are room to work in.
    """
    mask = np.uint32(len(table) - 1)
    base, size, last = table.ctypes.data, table.shape[1] * table.itemsize, marks.shape[1] - 1
    cells_at, stride = cells.ctypes.data, cells.shape[1] * 4
    mark = np.int32(np.uint32(counters[STEP] + 1))
    found, lines = 0, min(stride, FETCHED_BYTES)
    for i in range(n):
        later = cells_at + np.int64(order[min(start + i + FETCHED_AHEAD, stop - 1)]) * stride
        for line in range(0, lines, 64):
            prefetch(later + line)
        ahead, _ = hashes_of(cells_at, np.int64(order[min(start + i + ROWS_AHEAD, stop - 1)]) * stride, at, 0)
        for k in range(at.n_index):
            prefetch(base + np.int64(uint32_at(ahead, k) & mask) * size)
        row = np.int64(order[start + i]) * stride
        for part in range(1 + at.n_text):
            hashes, words = hashes_of(cells_at, row, at, part)
            for k in range(0 if part == 0 else min(WORDS_AHEAD, words)):
                prefetch(base + np.int64(uint32_at(hashes, k) & mask) * size)
            for k in range(words):
                if part > 0 and k + WORDS_AHEAD < words:
                    prefetch(base + np.int64(uint32_at(hashes, k + WORDS_AHEAD) & mask) * size)
                slot = np.int64(uint32_at(hashes, k) & mask)
                before = marks[slot, last]
                fresh[0, found], fresh[1, found] = slot, before
                marks[slot, last] = mark
                found += before != mark
                if found == ROOM:
                    _settle(problem, settings, paces, fresh, found, table, touched, counters, outputs, room)
                    found = 0
    _settle(problem, settings, paces, fresh, found, table, touched, counters, outputs, room)


@strict
def _settle(problem, settings, paces, fresh, n, table, touched, counters, outputs, room):
    """List n slots, and let the penalty catch up on those that were touched before (their mark is not 0)."""
    step, slots, known = counters[STEP], problem.slots, counters[TOUCHED]
    at_slots, since, w, a, b = fresh[0], fresh[1], room[0], room[1], room[2]
    for k in range(min(n, len(touched) - known)):
        touched[known + k] = at_slots[k]
    counters[TOUCHED] += n
    for k in range(n):
        since[k] = np.int64(np.uint32(step + 1 - since[k])) if since[k] != 0 else 0
    for c in range(outputs):
        model = c // (outputs // len(paces))
        one, eta = configured(problem, settings, model), paces[model, 0]
        if one.l1 != 0.0 or one.l2 != 0.0:
            for k in range(n):
                w[k] = table[at_slots[k], c]
                if slots > 0:
                    a[k] = table[at_slots[k], outputs + c]
                if slots > 1:
                    b[k] = table[at_slots[k], 2 * outputs + c]
            if one.rare is not None and one.optimizer == FTRL:
                for k in range(n):
                    rate = last_rate(one, eta, step, since[k])
                    w[k] = settled(one, rate, step, one.l1, one.l2, since[k], w[k], a[k], b[k])
                    if rate != eta:
                        table[at_slots[k], outputs + c] = rebased(one, rate, eta, w[k], a[k], b[k])
            else:
                for k in range(n):
                    w[k] = settled(one, eta, step, one.l1, one.l2, since[k], w[k], a[k], b[k])
            for k in range(n):
                table[at_slots[k], c] = w[k]


@strict
def table_margins(rows, cells, order, start, n, at, factor, table, outputs, sums, z):
    """Add the weights of the hashed features of rows ``order[start : start + n]`` to ``z`` (float32[outputs, >= n]).

    ``outputs`` is None if there is one; ``sums`` is room for a number an output.
    """
    mask = np.uint32(len(table) - 1)
    cells_at, stride = cells.ctypes.data, cells.shape[1] * 4
    for i in range(n):
        row = order[start + i]
        one = np.float32(0)
        sums[:] = np.float32(0)
        for part in range(1 + at.n_text):
            hashes, words = hashes_of(cells_at, np.int64(row) * stride, at, part)
            plain = words - at.n_scaled if part == 0 else words
            for k in range(plain):
                slot = np.int64(uint32_at(hashes, k) & mask)
                if outputs is None:
                    one += table[slot, 0]
                else:
                    for c in range(outputs):
                        sums[c] += table[slot, c]
            for k in range(plain, words):
                slot = np.int64(uint32_at(hashes, k) & mask)
                value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                if outputs is None:
                    one += value * table[slot, 0]
                else:
                    for c in range(outputs):
                        sums[c] += value * table[slot, c]
        if outputs is None:
            z[0, i] += one
        else:
            for c in range(outputs):
                z[c, i] += sums[c]


@strict
def table_gradient(rows, cells, order, start, n, at, factor, problem, table, outputs, sums, r):
    """Add derivatives ``r`` (float32[outputs, >= n]) of rows to the gradients of their slots."""
    mask = np.uint32(len(table) - 1)
    place = (1 + problem.slots) * len(sums)
    cells_at, stride = cells.ctypes.data, cells.shape[1] * 4
    for i in range(n):
        row = order[start + i]
        one = r[0, i]
        for c in range(len(sums)):
            sums[c] = r[c, i]
        for part in range(1 + at.n_text):
            hashes, words = hashes_of(cells_at, np.int64(row) * stride, at, part)
            plain = words - at.n_scaled if part == 0 else words
            for k in range(plain):
                slot = np.int64(uint32_at(hashes, k) & mask)
                if outputs is None:
                    table[slot, place] += one
                else:
                    for c in range(outputs):
                        table[slot, place + c] += sums[c]
            for k in range(plain, words):
                slot = np.int64(uint32_at(hashes, k) & mask)
                value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                for c in range(len(sums)):
                    table[slot, place + c] += value * sums[c]


@jit
def touched_slots(table, marks, touched, counters):
    """Slots that the mini-batch under way has touched; in the order of the table if the list could not hold them."""
    if counters[TOUCHED] <= len(touched):
        return touched[: counters[TOUCHED]]
    return np.flatnonzero(marks[:, marks.shape[1] - 1] == np.int32(counters[STEP] + 1))


@strict
def squared_norm(problem, table, at_slots, outputs, first, last):
    """Squared length of the gradient sums of some slots, of outputs ``first`` to ``last`` - 1."""
    place, total = (1 + problem.slots) * outputs, 0.0
    for k in range(len(at_slots)):
        for c in range(first, last):
            total += np.float64(table[at_slots[k], place + c]) ** 2
    return total


@strict
def update_table(problem, settings, paces, table, at_slots, step, outputs, room):
    """One step of some slots along their gradient sums.

    ``paces`` (float64[models, 3]) has the learning rate and the factor of the sums of each model; to its third column
    the sum of absolute weights is added. ``room`` is float64[4, ROOM].
    """
    slots, place = problem.slots, (1 + problem.slots) * outputs
    w, a, b, g = room[0], room[1], room[2], room[3]
    for first in range(0, len(at_slots), ROOM):
        n = min(ROOM, len(at_slots) - first)
        for c in range(outputs):
            model = c // (outputs // len(paces))
            one, eta, share = configured(problem, settings, model), paces[model, 0], paces[model, 1]
            for k in range(n):
                slot = at_slots[first + k]
                w[k], g[k] = table[slot, c], table[slot, place + c]
                table[slot, place + c] = 0
                if slots > 0:
                    a[k] = table[slot, outputs + c]
                if slots > 1:
                    b[k] = table[slot, 2 * outputs + c]
            for k in range(n):
                w[k], a[k], b[k] = advance(one, eta, step, g[k] * share, w[k], a[k], b[k])
            total = 0.0
            for k in range(n):
                slot = at_slots[first + k]
                table[slot, c] = w[k]
                if slots > 0:
                    table[slot, outputs + c] = a[k]
                if slots > 1:
                    table[slot, 2 * outputs + c] = b[k]
                total += np.float64(abs(np.float32(w[k])))  # finite as float64, a weight may not be so in the table
            paces[model, 2] += total


@kernel
def average_table(problem, table, marks, counters, outputs, output, share, average):
    """Let the weights of all slots, with the penalty caught up, enter ``average`` (float32[slots, outputs]).

    Of one output, or of those from ``output`` on that ``average`` has room for.
    """
    slots, step, last = problem.slots, counters[STEP], marks.shape[1] - 1
    eta = learning_rate(problem.schedule, problem.schedule_args, step)
    for slot in range(len(table)):
        before = np.uint32(marks[slot, last])
        if before != 0:
            elapsed = np.int64(np.uint32(np.uint32(step + 1) - before))
            rate = last_rate(problem, eta, step, elapsed)
            for k in range(average.shape[1]):
                c = output + k
                w = settled(
                    problem,
                    rate,
                    step,
                    problem.l1,
                    problem.l2,
                    elapsed,
                    np.float64(table[slot, c]),
                    np.float64(table[slot, outputs + c]) if slots > 0 else 0.0,
                    np.float64(table[slot, 2 * outputs + c]) if slots > 1 else 0.0,
                )
                average[slot, k] += share * (w - average[slot, k])
