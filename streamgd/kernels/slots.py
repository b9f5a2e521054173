"""Which slots of the table of hashed features a stretch of rows has: each once, and each feature's place among them.

A stretch is a whole mini-batch, or of a long one some tiles. Half of the features of a click log come again within 256
rows. Told apart here, once, in a few kilobytes that stay in the cache, a slot is brought from the table and back once a
stretch, and what is done for each feature (its weight added to a margin, a derivative to its gradient) is done on short
arrays.

Most hashes of a click log (19 of 26) are of slots that most mini-batches have. If the most common slots lie in front
(`streamgd.slotorder`), the first so many are at hand as long as rows are learned from: nothing is listed of them, and
the place of such a hash is its slot. The others, almost all of them different, follow in the order in which they come.

Slots are told apart by a hash table: a word of 64 bits holds the number of the stretch, the slot, and its place. So it
need not be emptied for each stretch, and one comparison tells a free word or the slot itself from another slot, which
is rare: slots that follow each other, as the most common do, have every second word. Nothing else in the loops is a
branch: that a slot is at hand, or is new, is as likely as not, and a wrong guess costs 5 ns.

What else a few lines of a row hold can be copied on the way, row after row, so that who learns waits for no row that
lies anywhere in the window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .intrinsics import (
    address_of,
    copy_sixteen_bytes,
    eight_bytes_at,
    jit,
    kernel,
    ones,
    prefetch,
    put_eight_bytes,
    put_uint32,
    splat,
    uint32_at,
)

#: Hashes that are worked on together.
EIGHT = 8
#: Rows whose hashes are asked for early, some together: who asks waits until the page of a row is found, and those of
#: four are found side by side. One by one, listing a click log from a mapped file took 8 % more time.
ROWS_AHEAD, ASKED_TOGETHER = 64, 4
#: Rows of a tile: their margins are computed together, and they stay in the cache for the gradient.
TILE_ROWS, TILE_CELLS = 256, 1 << 16
#: A stretch has at most so many hashes, and so many cells of slots (2 MB), unless a tile has more.
TOGETHER, TOGETHER_CELLS = 1 << 17, 1 << 19
#: Hashes and stretches that are listed at a time, if a single one does not have more: 20,000 rows of a click log, 5 ms.
LISTED_HASHES, LISTED_STRETCHES = 1 << 19, 1 << 15
#: Lists that a thread may be ahead of learning. Sometimes one takes longer than learning does, sometimes not: where one
#: was ahead, an eighth of a later epoch was waiting for it.
LISTS_AHEAD = 2
#: Rows have at most so many cells before their hashes, two lines, if these are copied.
COPIED_CELLS = 32
#: Stretches have numbers from 1 to this.
STRETCHES = (1 << 10) - 1
#: A word has, from its low bits on, a place of so many bits, a slot of 28, and the number of a stretch.
PLACE_BITS = 26
_SLOT, _STRETCH, _ONE = np.uint64(PLACE_BITS), np.uint64(PLACE_BITS + 28), np.uint64(1)
_PLACE = np.uint64((1 << PLACE_BITS) - 1)
_LOWEST, _SPAN = np.uint64(1 << PLACE_BITS), np.uint64((1 << PLACE_BITS + 28) - (1 << PLACE_BITS))


@jit
def tile_rows(stride):
    """Rows of a tile, if so many cells are from one row to the next."""
    return max(4, min(TILE_ROWS, TILE_CELLS // stride))


@jit
def stretch_rows(stride, at, slot_cells):
    """Rows of a stretch, at most: whole tiles; ``slot_cells`` are those of a slot."""
    tile = tile_rows(stride)
    hashes = 0 if at.n_text > 0 else min(TOGETHER, TOGETHER_CELLS // slot_cells)
    return max(tile, hashes // max(1, at.n_index) // tile * tile)


def copied_rows(layout: Any, hashes: int) -> int:
    """Rows that are copied while so many hashes are listed; 0 if none are, since they have more cells than hashes.

    ``layout`` is a `streamgd.features.Layout`. Tiles are as long in copies, else sums would be rounded otherwise.
    """
    if layout.n_text or layout.n_scaled or layout.width > min(COPIED_CELLS, layout.n_index):
        return 0
    return int(hashes // layout.n_index) if layout.stride * TILE_ROWS <= TILE_CELLS else 0


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
def count_hashes(cells, order, start, n, at):
    """Hashes of rows ``order[start : start + n]``."""
    found, stride = n * at.n_index, cells.shape[1] * 4
    if at.n_text > 0:
        for i in range(start, start + n):
            for part in range(1, 1 + at.n_text):
                found += hashes_of(address_of(cells), np.int64(order[i]) * stride, at, part)[1]
    return found


@jit
def words_for(n):
    """Words of a hash table for n hashes: a power of two, seven eighths of which hold their slots if all differ.

    Mostly they fill a tenth or two. A table of half as many words takes less of the cache, but then one slot in five
    meets another's word, and that is a wrong guess.
    """
    words = 64
    while 7 * words < 8 * n:
        words *= 2
    return words


@intrinsic
def _part_eight(
    typing_context: Any, hashes: Any, mask: Any, at_hand: Any, first: Any, places_at: Any, rare_at: Any
) -> Any:
    """Write the slots of the eight hashes at an address to another, and to a third which are not at hand.

    To that go the numbers of these, the hashes being ``first`` to ``first`` + 7, one after the other, and then what is
    not meant, up to eight. Return how many there are.
    """
    kind, word = ir.VectorType(ir.IntType(32), EIGHT), ir.IntType(32)
    lanes = [[lane for lane in range(EIGHT) if bits >> lane & 1] for bits in range(1 << EIGHT)]
    table = ir.Constant(
        ir.ArrayType(kind, 1 << EIGHT), [ir.Constant(kind, (some + [0] * EIGHT)[:EIGHT]) for some in lanes]
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        hashes, mask, at_hand, first, places_at, rare_at = args
        slots = builder.load(builder.inttoptr(hashes, kind.as_pointer()), align=4)
        slots = builder.and_(slots, splat(builder, mask, EIGHT))
        builder.store(slots, builder.inttoptr(places_at, kind.as_pointer()), align=4)
        rare = builder.icmp_unsigned(">=", slots, splat(builder, at_hand, EIGHT))
        bits = builder.zext(builder.bitcast(rare, ir.IntType(EIGHT)), word)
        name = "streamgd.lanes"
        numbers = builder.module.globals.get(name)
        if numbers is None:
            numbers = ir.GlobalVariable(builder.module, table.type, name)
            numbers.initializer, numbers.global_constant, numbers.linkage = table, True, "internal"
        found = builder.load(builder.gep(numbers, [word(0), bits]))
        found = builder.add(found, splat(builder, first, EIGHT))
        builder.store(found, builder.inttoptr(rare_at, kind.as_pointer()), align=4)
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    signature = types.int64, types.uint32, types.uint32, types.uint32, types.int64, types.int64
    return types.int64(*signature), codegen


@jit
def _part_slots(cells, order, start, n, stop, at, mask, at_hand, rare_at, places_at, copies_at):
    """Write the slots of rows ``order[start : start + n]`` to an address, and to another where which are not at hand.

    For these, room for `EIGHT` more is needed. Return how many they are. To ``copies_at``, unless it is 0, is written
    what rows hold before their hashes.
    """
    cells_at, stride = address_of(cells), cells.shape[1] * 4
    first = at.hashes * 4 // 64 * 64 if at.n_text == 0 and copies_at == 0 else 0
    lines = (stride - first) // 64
    rare, hash_number = np.int64(0), np.int64(0)
    for i in range(start, start + n):
        if (i - start) % ASKED_TOGETHER == 0:
            for j in range(i + ROWS_AHEAD, i + ROWS_AHEAD + ASKED_TOGETHER):
                ahead = cells_at + np.int64(order[min(j, stop - 1)]) * stride
                for line in range(lines):
                    prefetch(ahead + first + 64 * line)
        row = np.int64(order[i]) * stride
        if copies_at != 0:
            for cell in range(0, at.width * 4, 16):
                copy_sixteen_bytes(cells_at + row + cell, copies_at + cell)
            copies_at += at.width * 4
        for part in range(1 + at.n_text):
            hashes, many = hashes_of(cells_at, row, at, part)
            k = 0
            while k + EIGHT <= many:
                to, found_at = places_at + 4 * (hash_number + k), rare_at + 4 * rare
                rare += _part_eight(hashes + 4 * k, mask, at_hand, np.uint32(hash_number + k), to, found_at)
                k += EIGHT
            while k < many:
                slot = uint32_at(hashes, k) & mask
                put_uint32(places_at, hash_number + k, slot)
                put_uint32(rare_at, rare, np.uint32(hash_number + k))
                rare += slot >= at_hand
                k += 1
            hash_number += many
    return rare


@jit
def _list_slots(rare, at_hand, stretch, words, unique_at, places_at):
    """List the slots of so many hashes, each once, in the order in which they come; return how many there are.

    ``stretch`` is a number that none before has had since ``words`` were 0, from 1 to `STRETCHES`. At ``unique_at`` it
    stands where at ``places_at`` the slots are, and then the slots do; there, then their places do.
    """
    words_at, within = address_of(words), np.uint64(min(words_for(4 * rare), len(words)) - 1)
    this, found, half = np.uint64(stretch) << _STRETCH, np.uint64(0), ones(within) - _ONE
    for k in range(rare):
        there_at = np.int64(uint32_at(unique_at, k))
        slot = uint32_at(places_at, there_at)
        wanted = this | (np.uint64(slot) << _SLOT)
        word = ((np.uint64(slot) << _ONE) + (np.uint64(slot) >> half)) & within
        there = eight_bytes_at(words_at + 8 * np.int64(word)) ^ wanted
        while there - _LOWEST < _SPAN:  # of this stretch, but another slot
            word = (word + _ONE) & within
            there = eight_bytes_at(words_at + 8 * np.int64(word)) ^ wanted
        new = there > _PLACE
        place = found if new else there
        put_eight_bytes(words_at + 8 * np.int64(word), wanted | place)
        put_uint32(unique_at, np.int64(found), slot)
        put_uint32(places_at, there_at, at_hand + np.uint32(place))
        found += np.uint64(new)
    return np.int64(found)


@kernel
def list_stretches(
    cells,
    order,
    start,
    stop,
    at,
    n_slots,
    slot_cells,
    at_hand,
    batch_size,
    carried,
    words,
    number,
    unique,
    places,
    counts,
    copies,
):
    """List the slots of stretches of rows ``order[start:stop]``: as many as there is room for.

    Parameters
    ----------
    n_slots, slot_cells : int
        Slots of the table, a power of two, and cells of each.
    at_hand : int
        So many slots, the first, are in all stretches, and not listed.
    batch_size, carried : int
        Rows of a mini-batch, and how many the one under way has already: with it ends a stretch.
    words : uint64[`words_for` slots of a stretch]
        Hash table, zeros at first ...
    number : int64[1]
        ... and the last number that a stretch in it has had, which moves on.
    unique : uint32[>= hashes + `EIGHT`]
        Set to the other slots of each stretch, each once, one stretch after the other.
    places : uint32[hashes]
        Set to the place of each hash among the slots at hand and then those of its stretch: row after row, of each part
        after part.
    counts : int64[stretches]
        Set to the number of slots that are listed of each stretch.
    copies : float32[rows, width]
        Set to the cells of each row before its hashes, in the order of the rows; of no rows if they are not wanted.

    Returns
    -------
    tuple of int
        Stretches, their rows, and the hashes of the next.
    """
    size, found = stretch_rows(cells.shape[1], at, slot_cells), 0
    unique_at, places_at, room = address_of(unique), address_of(places), len(places)
    copying, copies_at = len(copies) > 0, np.int64(0)
    i, hashes = start, 0
    while i < stop:
        n = min(size, stop - i, batch_size - carried)
        hashes = count_hashes(cells, order, i, n, at)
        if hashes > room or found == len(counts) or words_for(min(hashes, n_slots)) > len(words):
            break
        if copying:
            if i - start + n > len(copies):
                break
            copies_at = address_of(copies) + (i - start) * at.width * 4
        if number[0] == STRETCHES:
            words[:] = 0
            number[0] = 0
        number[0] += 1
        mask, near = np.uint32(n_slots - 1), np.uint32(at_hand)
        rare = _part_slots(cells, order, i, n, stop, at, mask, near, unique_at, places_at, copies_at)
        counts[found] = _list_slots(rare, near, number[0], words, unique_at, places_at)
        unique_at += 4 * counts[found]
        places_at += 4 * hashes
        room -= hashes
        i += n
        carried = (carried + n) % batch_size
        found += 1
    return found, i - start, hashes
