"""Where slots lie that do not lie where their hash says: a hash table of those that move (see `streamgd.slotorder`)."""

from __future__ import annotations

import numpy as np

from .intrinsics import jit, kernel

#: A word holds a slot and its place, or neither. Slots have at most 28 bits.
_NEITHER = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALF = np.uint64(32)
#: 2^32 over the golden ratio: neighbours, as are those that move from the front, begin far apart.
_SPREAD = np.uint32(0x9E3779B1)


@jit
def _first_word(slot, size):
    """Word of a table of 2^k at which one looks for a slot first."""
    return np.int64(np.uint32(slot * _SPREAD) >> np.uint32(12)) & (size - 1)


@kernel
def list_moves(moved, place):
    """Make a table of slots (uint32[m], each once) and the place of each (uint32[m]): uint64[2^k], a quarter filled."""
    size = 2
    while size < 4 * len(moved):
        size *= 2
    words = np.full(size, _NEITHER)
    for i in range(len(moved)):
        word = _first_word(moved[i], size)
        while words[word] != _NEITHER:
            word = (word + 1) & (size - 1)
        words[word] = (np.uint64(moved[i]) << _HALF) | np.uint64(place[i])
    return words


@kernel
def find_places(hashes, mask, words, out):
    """Set ``out`` (uint32[n]) to the place of the slot of each hash, which is the slot itself if it does not move."""
    for i in range(len(hashes)):
        slot = hashes[i] & mask
        word, place = _first_word(slot, len(words)), slot
        while words[word] != _NEITHER:
            if np.uint32(words[word] >> _HALF) == slot:
                place = np.uint32(words[word] & np.uint64(0xFFFFFFFF))
                break
            word = (word + 1) & (len(words) - 1)
        out[i] = place
