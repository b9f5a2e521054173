"""Where slots lie that do not lie where their hash says: a hash table of those that move (see `streamgd.slotorder`).

Most of the hashes that are looked up are of slots that do not: a bit that several slots share says so, of a field that
stays in the first cache.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import address_of, jit, kernel, prefetch

#: Bits that say whether some of the slots that share them move.
_BITS = 18
#: Hashes that are looked up together.
_TOGETHER = 1024
#: A word holds a slot and its place, or neither. Slots have at most 28 bits.
_NEITHER = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALF, _WORD = np.uint64(32), np.uint64(6)
#: 2^32 over the golden ratio: neighbours, as are those that move from the front, begin far apart.
_SPREAD = np.uint32(0x9E3779B1)


@jit
def _spread(slot):
    """A number of 32 bits, different for each slot."""
    return np.uint64(np.uint32(slot * _SPREAD))


@jit
def _first_word(slot, size):
    """Word of a table of 2^k at which one looks for a slot first."""
    return np.int64(_spread(slot) >> np.uint64(8)) & (size - 1)


@jit
def _bit(slot):
    """Word of the field, and number of its bit, that a slot shares with others."""
    bit = _spread(slot) >> np.uint64(32 - _BITS)
    return np.int64(bit >> _WORD), bit & np.uint64(63)


@kernel
def list_moves(moved, place):
    """Make a table of slots (uint32[m], each once) and the place of each (uint32[m]), a quarter filled.

    Returns
    -------
    tuple of ndarray of uint64
        The table, and the field.
    """
    size = 2
    while size < 4 * len(moved):
        size *= 2
    words, field = np.full(size, _NEITHER), np.zeros(1 << _BITS - 6, np.uint64)
    for i in range(len(moved)):
        word = _first_word(moved[i], size)
        while words[word] != _NEITHER:
            word = (word + 1) & (size - 1)
        words[word] = (np.uint64(moved[i]) << _HALF) | np.uint64(place[i])
        word, bit = _bit(moved[i])
        field[word] |= np.uint64(1) << bit
    return words, field


@kernel
def find_places(hashes, mask, words, field):
    """Replace hashes (uint32[n]) by the places of their slots: the slot itself, if it does not move.

    Those that may move are listed first, and their words asked for: a branch for each hash that waits for the word
    would cost 10 ns.
    """
    size, listed = len(words), np.empty(_TOGETHER, np.int64)
    for first in range(0, len(hashes), _TOGETHER):
        n = np.int64(0)
        for i in range(first, min(first + _TOGETHER, len(hashes))):
            slot = hashes[i] & mask
            hashes[i] = slot
            word, bit = _bit(slot)
            listed[n] = i
            n += np.int64((field[word] >> bit) & np.uint64(1))
        for k in range(n):
            prefetch(address_of(words) + 8 * _first_word(hashes[listed[k]], size))
        for k in range(n):
            i = listed[k]
            slot = hashes[i]
            word = _first_word(slot, size)
            while words[word] != _NEITHER:
                if np.uint32(words[word] >> _HALF) == slot:
                    hashes[i] = np.uint32(words[word] & np.uint64(0xFFFFFFFF))
                    break
                word = (word + 1) & (size - 1)
