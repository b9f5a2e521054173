"""The few slots of the table that a stretch of rows has, copied to where they lie side by side.

With one output a row of ``few`` (float32[cells + 1, room]) is one cell of all slots: so steps go along contiguous
numbers as vector code, and the weights of 3,000 slots take 12 kB; the last row is spare, for state that an optimizer
does not have. With several, ``outputs`` is not None, and ``few`` (float32[room, cells]) has slots as the table has
them, since a row of data meets all outputs of a slot together. Numbers of slots are at an address (uint32).

No function that takes an array is called for each slot: numba counts references for each call (40 ns).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .intrinsics import copy_sixteen_bytes, jit, prefetch, uint32_at
from .tiles import four_columns, four_slots

#: Slots that are asked for before they are written back.
RETURNED_AHEAD = 16


class Ahead(NamedTuple):
    """Slots of the next stretch. They are asked for a few with each row: all at once would wait for one another."""

    table_at: Any
    size: Any  # bytes of a slot
    slots_at: Any
    n: Any
    a_row: Any


@jit
def no_slots():
    """Nothing to ask for."""
    return Ahead(np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0))


@jit
def slots_ahead(table, slots_at, n, rows):
    """Ask for n slots, in equal parts, with so many rows."""
    size, a_row = np.int64(table.shape[1] * 4), np.int64(-(-n // rows))
    return Ahead(np.int64(table.ctypes.data), size, np.int64(slots_at), np.int64(n), a_row)


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
def ask_for(table_at, slot, size):
    """Ask the cache for a slot."""
    for line in range(-(-size // 64)):
        prefetch(table_at + np.int64(slot) * size + 64 * line)


@jit
def ask(ahead, row, rows):
    """Ask for the slots that come with some rows."""
    for k in range(row * ahead.a_row, min((row + rows) * ahead.a_row, ahead.n)):
        ask_for(ahead.table_at, uint32_at(ahead.slots_at, k), ahead.size)


@jit
def few_slots(n, cells, outputs):
    """Room for n of them."""
    if outputs is None:
        return np.zeros((cells + 1, n), np.float32)
    return np.zeros((n, cells), np.float32)


@jit
def marks_of(few, cells, outputs):
    """Numbers of the mini-batches that touched slots last, as int32."""
    marks = few.view(np.int32)
    if outputs is None:
        return marks[cells - 1]
    return marks[:, cells - 1]


@jit
def bring_slots(table, slots_at, n, few, outputs):
    """Copy n slots of the table to the first of ``few``."""
    base, few_at, size, row = table.ctypes.data, few.ctypes.data, table.shape[1] * 4, few.shape[1] * 4
    k = 0
    if outputs is None:
        while k + 4 <= n:
            a, b, c, d = four_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                four_columns(a + at, b + at, c + at, d + at, few_at + at // 4 * row + 4 * k, row)
            k += 4
        while k < n:
            slot = np.int64(uint32_at(slots_at, k))
            for cell in range(table.shape[1]):
                few[cell, k] = table[slot, cell]
            k += 1
    else:
        while k < n:
            there = slot_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                copy_sixteen_bytes(there + at, few_at + k * size + at)
            k += 1


@jit
def return_slots(table, slots_at, n, few, outputs):
    """Copy them back."""
    base, few_at, size, row = table.ctypes.data, few.ctypes.data, table.shape[1] * 4, few.shape[1] * 4
    k = 0
    if outputs is None:
        while k + 4 <= n:
            for j in range(k + RETURNED_AHEAD, min(k + RETURNED_AHEAD + 4, n)):
                prefetch(slot_at(base, slots_at, j, size))
            a, b, c, d = four_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                four_slots(few_at + at // 4 * row + 4 * k, row, a + at, b + at, c + at, d + at)
            k += 4
        while k < n:
            slot = np.int64(uint32_at(slots_at, k))
            for cell in range(table.shape[1]):
                table[slot, cell] = few[cell, k]
            k += 1
    else:
        while k < n:
            ahead = slot_at(base, slots_at, min(k + RETURNED_AHEAD, n - 1), size)
            there = slot_at(base, slots_at, k, size)
            for at in range(0, size, 16):
                prefetch(ahead + at)
                copy_sixteen_bytes(few_at + k * size + at, there + at)
            k += 1
