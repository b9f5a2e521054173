"""Weights of hashed features: a table of slots, touched only where a mini-batch has features.

A slot holds, side by side so that one access brings all: the weight of each output, the optimizer's state of each,
the gradient of the mini-batch under way, and last the number of the mini-batch that touched it last (its lower 32
bits; 0: none has). That is how a slot knows for how many steps the penalty still has to pull it: it does when the
slot is touched again or read.
The slots that a mini-batch has touched are listed; if they are more than the list can hold, all are looked through.
So neither the length of the list nor the cutting of a mini-batch changes a result (the length, only how the sum of
`squared_norm` is rounded).
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .intrinsics import jit, kernel, pointer, prefetch
from .updates import FTRL, advance, learning_rate, rebased, settled

#: Rows, and words of a text, whose slots are asked for early.
ROWS_AHEAD, WORDS_AHEAD = 6, 16
#: Places in ``counters``.
STEP, ROWS, CARRIED, TOUCHED = range(4)


@jit
def hashes_of(cells, row, at, part):
    """Hashes of a row: its indices as part 0, then those of each text, from the three cells that say where they are."""
    if part == 0:
        return cells[row, at.hashes : at.hashes + at.n_index]
    cell = at.text + 3 * (part - 1)
    address = np.int64(cells[row, cell]) | (np.int64(cells[row, cell + 1]) << 32)
    return carray(pointer(address), (np.int64(cells[row, cell + 2]),), np.uint32)


@jit
def last_rate(problem, eta, step, elapsed):
    """Rate that settles a slot touched ``elapsed`` steps ago: now's, but of FTRL-Proximal that of the touch."""
    if problem.rare is not None and problem.optimizer == FTRL and elapsed > 0:
        return learning_rate(problem.schedule, problem.schedule_args, step - elapsed)
    return eta


@jit
def table_margins(rows, cells, order, start, n, stop, at, factor, problem, table, marks, touched, counters, outputs, z):
    """Add the weights of the hashed features of rows ``order[start : start + n]`` to ``z`` (float32[n, >= outputs]).

    A slot that is met first in its mini-batch is made ready for it: the penalty catches up, and the slot is listed.
    No function that takes an array is called here for each slot: numba counts references for each call (40 ns).
    """
    mask = np.uint32(len(table) - 1)
    base, size, last = table.ctypes.data, table.shape[1] * table.itemsize, marks.shape[1] - 1
    step, found = counters[STEP], counters[TOUCHED]
    slots, pulled = problem.slots, problem.l1 != 0.0 or problem.l2 != 0.0
    eta, mark = learning_rate(problem.schedule, problem.schedule_args, step), np.uint32(step + 1)
    for i in range(n):
        ahead = order[min(start + i + ROWS_AHEAD, stop - 1)]
        for k in range(at.n_index):
            prefetch(base + np.int64(cells[ahead, at.hashes + k] & mask) * size)
        row = order[start + i]
        for part in range(1 + at.n_text):
            hashes = hashes_of(cells, row, at, part)
            plain = at.n_index - at.n_scaled if part == 0 else len(hashes)
            for k in range(0 if part == 0 else min(WORDS_AHEAD, len(hashes))):
                prefetch(base + np.int64(hashes[k] & mask) * size)
            for k in range(len(hashes)):
                if part > 0 and k + WORDS_AHEAD < len(hashes):
                    prefetch(base + np.int64(hashes[k + WORDS_AHEAD] & mask) * size)
                slot = np.int64(hashes[k] & mask)
                before = np.uint32(marks[slot, last])
                if before != mark:
                    if pulled and before != 0:
                        elapsed = np.int64(np.uint32(mark - before))
                        rate = last_rate(problem, eta, step, elapsed)
                        for c in range(outputs):
                            a = np.float64(table[slot, outputs + c]) if slots > 0 else 0.0
                            b = np.float64(table[slot, 2 * outputs + c]) if slots > 1 else 0.0
                            w = np.float64(table[slot, c])
                            w = settled(problem, rate, step, problem.l1, problem.l2, elapsed, w, a, b)
                            if rate != eta:
                                table[slot, outputs + c] = rebased(problem, rate, eta, w, a, b)
                            table[slot, c] = w
                    marks[slot, last] = mark
                    if found < len(touched):
                        touched[found] = slot
                    found += 1
                value = np.float32(1)
                if k >= plain:
                    value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                for c in range(outputs):
                    z[i, c] += value * np.float32(table[slot, c])
    counters[TOUCHED] = found


@jit
def table_gradient(rows, cells, order, start, n, at, factor, problem, table, outputs, r):
    """Add derivatives ``r`` (float32[n, >= outputs]) of rows to the gradients of their slots."""
    mask = np.uint32(len(table) - 1)
    place = (1 + problem.slots) * outputs
    for i in range(n):
        row = order[start + i]
        for part in range(1 + at.n_text):
            hashes = hashes_of(cells, row, at, part)
            plain = at.n_index - at.n_scaled if part == 0 else len(hashes)
            for k in range(len(hashes)):
                slot = np.int64(hashes[k] & mask)
                value = np.float32(1)
                if k >= plain:
                    value = rows[row, np.int64(factor[0, k - plain])] * np.float32(factor[1, k - plain])
                for c in range(outputs):
                    table[slot, place + c] += value * r[i, c]


@jit
def touched_slots(table, marks, touched, counters):
    """Slots that the mini-batch under way has touched; in the order of the table if the list could not hold them."""
    if counters[TOUCHED] <= len(touched):
        return touched[: counters[TOUCHED]]
    return np.flatnonzero(marks[:, marks.shape[1] - 1] == np.int32(counters[STEP] + 1))


@jit
def squared_norm(problem, table, at_slots, outputs):
    """Squared length of the gradient sums of some slots."""
    place, total = (1 + problem.slots) * outputs, 0.0
    for k in range(len(at_slots)):
        for c in range(outputs):
            total += np.float64(table[at_slots[k], place + c]) ** 2
    return total


@jit
def update_table(problem, eta, share, table, at_slots, step, outputs):
    """One step of some slots along their gradient sums times ``share``; return the sum of absolute weights."""
    slots = problem.slots
    place, total = (1 + slots) * outputs, 0.0
    for k in range(len(at_slots)):
        slot = at_slots[k]
        for c in range(outputs):
            w, a, b = advance(
                problem,
                eta,
                step,
                np.float64(table[slot, place + c]) * share,
                np.float64(table[slot, c]),
                np.float64(table[slot, outputs + c]) if slots > 0 else 0.0,
                np.float64(table[slot, 2 * outputs + c]) if slots > 1 else 0.0,
            )
            table[slot, c] = w
            if slots > 0:
                table[slot, outputs + c] = a
            if slots > 1:
                table[slot, 2 * outputs + c] = b
            table[slot, place + c] = 0
            total += np.float64(abs(table[slot, c]))  # finite as float64, a weight may not be so in the table
    return total


@kernel
def average_table(problem, table, marks, counters, outputs, share, average):
    """Let the weights of all slots, with the penalty caught up, enter ``average`` (float32[slots, outputs])."""
    slots, step, last = problem.slots, counters[STEP], marks.shape[1] - 1
    eta = learning_rate(problem.schedule, problem.schedule_args, step)
    for slot in range(len(table)):
        before = np.uint32(marks[slot, last])
        if before != 0:
            elapsed = np.int64(np.uint32(np.uint32(step + 1) - before))
            rate = last_rate(problem, eta, step, elapsed)
            for c in range(outputs):
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
                average[slot, c] += share * (w - average[slot, c])
