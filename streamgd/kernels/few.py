"""The few slots of the table that a stretch of rows has, copied to where they lie side by side.

The first slots of it are the table's first, which are at hand for a whole call (`streamgd.kernels.slots`).

With one output a row of ``few`` (float32[cells + 1, room]) is one cell of all slots: so steps go along contiguous
numbers as vector code, and the weights of 3,000 slots take 12 kB; the last row is spare, for state that an optimizer
does not have. With several, ``outputs`` is not None, and ``few`` (float32[room, cells]) has slots as the table has
them, since a row of data meets all outputs of a slot together. Numbers of slots are at an address (uint32).

No function that takes an array is called for each slot: numba counts references for each call (40 ns).
"""

from __future__ import annotations

import numpy as np

from .intrinsics import address_of, copy_sixteen_bytes, jit, prefetch, uint32_at
from .tiles import four_columns, four_slots

#: Lines of the table that are asked for while slots before are copied. A slot waits for the memory and, as almost every
#: slot lies in a page of its own, for the address of the page: most of the time of a mini-batch's slots. Asked for
#: earlier, with the rows of the mini-batch before, they waited for addresses twice, since few are remembered.
LINES_AHEAD = 64


@jit
def slot_at(base, slots_at, k, size):
    """Address of slot k of those that are listed; ``base`` is that of the table, ``size`` the bytes of a slot."""
    return base + np.int64(uint32_at(slots_at, k)) * size


@jit
def four_at(base, slots_at, k, size):
    """Addresses of slots k to k + 3."""
    return (
        slot_at(base, slots_at, k, size),
        slot_at(base, slots_at, k + 1, size),
        slot_at(base, slots_at, k + 2, size),
        slot_at(base, slots_at, k + 3, size),
    )


@jit
def slots_ahead(size):
    """Slots to ask the cache for before they are copied; ``size`` is the bytes of one."""
    return max(4, LINES_AHEAD // (-(-size // 64)))


@jit
def ask_for(base, slots_at, start, stop, size, outputs):
    """Ask the cache for slots ``start`` to ``stop`` - 1 of those that are listed."""
    for k in range(start, stop):
        there = slot_at(base, slots_at, k, size)
        prefetch(there)
        if outputs is not None:
            for line in range(1, -(-size // 64)):
                prefetch(there + 64 * line)


@jit
def ask_for_four(base, slots_at, k, size):
    """Ask for slots k to k + 3 of those that are listed, which fit in a line each: without a loop, and a call of it."""
    a, b, c, d = four_at(base, slots_at, k, size)
    prefetch(a)
    prefetch(b)
    prefetch(c)
    prefetch(d)


@jit
def few_slots(n, cells, outputs):
    """Room for n of them."""
    if outputs is None:
        return np.zeros((cells + 1, n), np.float32)
    return np.zeros((n, cells), np.float32)


@jit
def few_from(few, first, outputs):
    """Address of slot ``first`` of them."""
    return address_of(few) + first * 4 * (1 if outputs is None else few.shape[1])


@jit
def marks_of(few, cells, outputs):
    """Numbers of the mini-batches that touched slots last, as int32."""
    marks = few.view(np.int32)
    if outputs is None:
        return marks[cells - 1]
    return marks[:, cells - 1]


@jit
def bring_slots(table, slots_at, n, listed, few, first, outputs):
    """Copy n slots of the table to slots ``first`` and so on of ``few``.

    Of all that are listed, those behind are asked for in time; the first must have been: see `ask_first`.
    """
    base, few_at, size, row = address_of(table), few_from(few, first, outputs), table.shape[1] * 4, few.shape[1] * 4
    k, ahead = np.int64(0), slots_ahead(size)
    if outputs is None:
        while k + 4 <= n:
            if k + ahead + 4 <= listed:
                ask_for_four(base, slots_at, k + ahead, size)
            a, b, c, d = four_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                four_columns(a + at, b + at, c + at, d + at, few_at + at // 4 * row + 4 * k, row)
            k += 4
        ask_for(base, slots_at, k + ahead, min(n + ahead, listed), size, outputs)
        while k < n:
            slot = np.int64(uint32_at(slots_at, k))
            for cell in range(table.shape[1]):
                few[cell, first + k] = table[slot, cell]
            k += 1
    else:
        while k < n:
            if k + ahead < listed:
                coming = slot_at(base, slots_at, k + ahead, size)
                for line in range(0, size, 64):
                    prefetch(coming + line)
            there = slot_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                copy_sixteen_bytes(there + at, few_at + k * size + at)
            k += 1


@jit
def bring_neighbours(table, start, n, few, first, end):
    """Copy slots ``start`` to ``start + n`` - 1 of a table to the first of a few, laid out as those of one output.

    Of their cells, ``first`` to ``end`` - 1 are meant; those of the same 16 bytes may come with them.
    """
    size, row, few_at = table.shape[1] * 4, few.shape[1] * 4, address_of(few)
    k, there = np.int64(0), address_of(table) + np.int64(start) * size
    while k + 4 <= n:
        for at in range(4 * first // 16 * 16, 4 * end, 16):
            one = there + at
            four_columns(one, one + size, one + 2 * size, one + 3 * size, few_at + at // 4 * row + 4 * k, row)
        there += 4 * size
        k += 4
    while k < n:
        for cell in range(first, end):
            few[cell, k] = table[start + k, cell]
        k += 1


@jit
def return_neighbours(table, start, n, few):
    """Copy them back."""
    size, row, few_at = table.shape[1] * 4, few.shape[1] * 4, address_of(few)
    k, there = np.int64(0), address_of(table) + np.int64(start) * size
    while k + 4 <= n:
        for at in range(0, size, 16):
            one = there + at
            four_slots(few_at + at // 4 * row + 4 * k, row, one, one + size, one + 2 * size, one + 3 * size)
        there += 4 * size
        k += 4
    while k < n:
        for cell in range(table.shape[1]):
            table[start + k, cell] = few[cell, k]
        k += 1


@jit
def ask_first(table, slots_at, listed, outputs):
    """Ask for those of the listed slots that are brought first."""
    size = table.shape[1] * 4
    ask_for(address_of(table), slots_at, np.int64(0), min(slots_ahead(size), listed), size, outputs)


@jit
def return_slots(table, slots_at, n, few, first, outputs):
    """Copy them back."""
    base, few_at, size, row = address_of(table), few_from(few, first, outputs), table.shape[1] * 4, few.shape[1] * 4
    k, ahead = np.int64(0), slots_ahead(size) // 4  # they have been here a moment ago
    if outputs is None:
        while k + 4 <= n:
            if k + ahead + 4 <= n:
                ask_for_four(base, slots_at, k + ahead, size)
            a, b, c, d = four_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                four_slots(few_at + at // 4 * row + 4 * k, row, a + at, b + at, c + at, d + at)
            k += 4
        while k < n:
            slot = np.int64(uint32_at(slots_at, k))
            for cell in range(table.shape[1]):
                table[slot, cell] = few[cell, first + k]
            k += 1
    else:
        while k < n:
            if k + ahead < n:
                coming = slot_at(base, slots_at, k + ahead, size)
                for line in range(0, size, 64):
                    prefetch(coming + line)
            there = slot_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                copy_sixteen_bytes(few_at + k * size + at, there + at)
            k += 1
