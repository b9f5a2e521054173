"""Where in the table of hashed features each slot lies: the most common ones first, side by side.

A slot is so many bits of a hash, so those that rows have again and again lie anywhere in the table, each in a cache
line and a page with others that are rare. A processor remembers where some thousand pages are; for each other it waits
longer than for the line (4 to 8 ns, however early it is asked). One that remembers 3,000 has forgotten those of 6.3
slots a row of a click log (simulated) if 4 million lie in the order of hashes, 1.9 if the most common come first.

Only where a slot lies changes, nothing that becomes of it. Models have their slots by hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .kernels.moves import find_places, list_moves

#: So many slots come first, at most. With an eighth, later epochs of a click log take 4 to 8 % more time (pages of 3.4
#: slots a row are forgotten); with four times as many no less, and a checkpoint names them all.
MOST_COMMON = 1 << 16
#: So many of a job that a cluster may share out: what is fixed for it goes with each task, if it is small.
SHARED = 1 << 13
#: Those stay at hand for the one that learns that come in every so many mini-batches, but no more than so many: each
#: step goes through all of them, whatever its rows have, which takes a thirtieth of listing one, bringing it and taking
#: it back (0.5 ns of 14). Of a click log these are 13,000; 23,000, of every twentieth mini-batch, are no better, since
#: weights then fall out of the first cache, and in models side by side each has outputs to go through.
EVERY, AT_HAND = 10, 1 << 14


@dataclass(frozen=True, eq=False)
class SlotOrder:
    """A permutation of slots that moves some of them to the front.

    Attributes
    ----------
    n_slots : int
        Slots of the table, a power of two.
    moved, place : ndarray of uint32
        Slots that move, and where each lies then.
    """

    n_slots: int
    moved: NDArray[np.uint32]
    place: NDArray[np.uint32]

    @classmethod
    def of(cls, common: NDArray[np.uint32], n_slots: int) -> Self:
        """Let the slots of some hashes come first, in their order."""
        # One number each, the slot and when it came: sorting those is several times as fast as sorting by slot.
        came = np.arange(len(common), dtype=np.uint64)
        words = np.sort((common & np.uint32(n_slots - 1)).astype(np.uint64) << 32 | came)
        words = words[np.append(True, words[1:] >> 32 != words[:-1] >> 32)[: len(words)]]
        slots, front = (words >> 32).astype(np.uint32), np.arange(len(words), dtype=np.uint32)
        # What lay in front takes the places that are left.
        in_front = np.zeros(len(slots), np.bool_)
        in_front[slots[slots < len(slots)]] = True
        in_their_order = slots[np.argsort(words & 0xFFFFFFFF)]
        return cls(
            n_slots,
            np.concatenate([in_their_order, front[~in_front]]),
            np.concatenate([front, slots[slots >= len(slots)]]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("n_slots", "moved", "place")}

    @cached_property
    def _there(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        field, places = list_moves(self.moved, self.place, self.n_slots)
        return field, places

    def place_all(self, hashes: NDArray[np.uint32]) -> None:
        """Put in the place of hashes where their slots lie."""
        find_places(hashes, np.uint32(self.n_slots - 1), *self._there)

    def by_slot(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of a table (float32[n_slots, k]) with each slot where its hash says."""
        found = table.copy()
        found[self.moved] = table[self.place]
        return found
