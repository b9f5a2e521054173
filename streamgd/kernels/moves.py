"""Where slots lie that do not lie where their hash says (see `streamgd.slotorder`).

A bit for each slot says whether it moves, and how many before it do is its number among those that move, under which
its place is found: two numbers from memory for a slot that moves, one for others, and nothing that has to be guessed.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import address_of, eight_bytes_at, jit, keep, kernel, ones, prefetch, put_uint32, uint32_at

#: Hashes that are looked up together: asking for the words of all of them first makes it a quarter faster.
_TOGETHER = 1024
#: A slot has the number of a word, and that of a bit in it.
_WORD, _BIT, _ONE = np.uint32(6), np.uint32(63), np.uint64(1)


@jit
def _before(bits, bit):
    """How many of the bits of a word before one are 1."""
    return ones(bits & ((_ONE << bit) - _ONE))


@kernel
def list_moves(moved, place, n_slots):
    """Make what finds the place of each of some slots.

    Parameters
    ----------
    moved : uint32[m]
        Slots that move, each once.
    place : uint32[m]
        Where each lies.
    n_slots : int
        Slots of the table.

    Returns
    -------
    field : uint64[ceil(n_slots / 64), 2]
        Bits of slots that move, and how many move that come before those.
    places : uint32[m]
        Their places, in the order of the slots.
    """
    field, places = np.zeros((-(-n_slots // 64), 2), np.uint64), np.empty(len(moved), np.uint32)
    for slot in moved:
        field[np.int64(slot >> _WORD), 0] |= _ONE << np.uint64(slot & _BIT)
    before = np.uint64(0)
    for word in range(len(field)):
        field[word, 1] = before
        before += ones(field[word, 0])
    for i in range(len(moved)):
        bits, first = field[np.int64(moved[i] >> _WORD)]
        places[np.int64(first + _before(bits, np.uint64(moved[i] & _BIT)))] = place[i]
    return field, places


@kernel
def find_places(hashes, mask, field, places):
    """Replace hashes (uint32[n]) by the places of their slots: the slot itself, if it does not move."""
    listed = np.empty(_TOGETHER, np.uint32)
    hashes_at, listed_at = address_of(hashes), address_of(listed)
    field_at, places_at = address_of(field), address_of(places)
    for first in range(0, len(hashes), _TOGETHER):
        n, last = np.int64(0), min(first + _TOGETHER, len(hashes))
        for i in range(first, last):
            prefetch(field_at + 16 * np.int64((uint32_at(hashes_at, i) & mask) >> _WORD))
        for i in range(first, last):
            slot = uint32_at(hashes_at, i) & mask
            put_uint32(hashes_at, i, slot)
            put_uint32(listed_at, n, np.uint32(i - first))
            bits = eight_bytes_at(field_at + 16 * np.int64(slot >> _WORD))
            n += np.int64((bits >> np.uint64(slot & _BIT)) & _ONE)
        for k in range(n):
            at = hashes_at + 4 * (first + np.int64(uint32_at(listed_at, k)))
            slot = uint32_at(at, 0)
            word = field_at + 16 * np.int64(slot >> _WORD)
            number = eight_bytes_at(word + 8) + _before(eight_bytes_at(word), np.uint64(slot & _BIT))
            put_uint32(at, 0, uint32_at(places_at, np.int64(number)))
    keep(listed)
