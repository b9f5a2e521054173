"""What the slots of a stretch are, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.features import Layout
from streamgd.kernels import reference
from streamgd.kernels.slots import EIGHT, STRETCHES, TOGETHER_CELLS, list_stretches, tile_rows, words_for


def rows_of(rng, n, n_index, n_text, values):
    """Rows with hashes of so many values, and texts of 0 to 20; with what keeps the texts."""
    layout = Layout(1, True, False, n_index, 0, n_text)
    cells = np.zeros((n, layout.stride), np.uint32)
    at = layout.cells
    some = rng.integers(0, 2**32, values, dtype=np.uint32)
    cells[:, at.hashes : at.hashes + n_index] = rng.choice(some, (n, n_index))
    kept = []
    for i in range(n):
        for part in range(n_text):
            text = rng.choice(some, rng.integers(0, 21))
            kept.append(text)
            cell = at.text + 3 * part
            cells[i, cell : cell + 3] = text.ctypes.data & 0xFFFFFFFF, text.ctypes.data >> 32, len(text)
    return cells, at, kept


def listed(cells, order, start, stop, at, n_slots, slot_cells, at_hand, batch_size, carried, hashes, tiles):
    unique, places = np.full(hashes + EIGHT, 7, np.uint32), np.full(hashes, 7, np.uint32)
    counts = np.full(tiles, -1, np.int64)
    words, number = np.zeros(words_for(min(max(hashes, 1), n_slots)), np.uint64), np.zeros(1, np.int64)
    found = list_stretches(
        *(cells, order, start, stop, at, n_slots, slot_cells, at_hand, batch_size, carried),
        *(words, number, unique, places, counts, np.empty((0, at.width), np.float32)),
    )
    return found, unique, places, counts


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 700),
    n_index=st.integers(0, 3) | st.integers(7, 18),
    n_text=st.integers(0, 2),
    values=st.sampled_from([1, 5, 300, 10_000]),
    bits=st.sampled_from([0, 1, 6, 28]),
    slot_cells=st.sampled_from([4, 600, 1 << 19]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    batch_size=st.sampled_from([1, 3, 100, 256, 300, 2**40]),
    room=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
def test_slots_are_those_of_a_dictionary(
    seed, n, n_index, n_text, values, bits, slot_cells, share, batch_size, room, data
):
    at_hand = int(share * (1 << min(bits, 6)))
    rng = np.random.default_rng(seed)
    cells, at, _kept = rows_of(rng, n, n_index, n_text, values)
    order = rng.permutation(n).astype(np.uint32)
    start = data.draw(st.integers(0, n - 1))
    stop, carried = data.draw(st.integers(start, n)), data.draw(st.integers(0, min(batch_size, 400) - 1))
    expected = reference.list_stretches(
        cells, order, start, stop, at, 1 << bits, slot_cells, at_hand, batch_size, carried
    )
    hashes = sum(len(places) for _, _, places in expected)
    tiles_of = len(expected) if room else n
    (tiles, rows, wanted), unique, places, counts = listed(
        cells, order, start, stop, at, 1 << bits, slot_cells, at_hand, batch_size, carried, int(room * hashes), tiles_of
    )
    first = at_place = 0
    for (size, slots, at_places), count in zip(expected[:tiles], counts.tolist(), strict=False):
        assert unique[first : first + count].tolist() == slots
        assert places[at_place : at_place + len(at_places)].tolist() == at_places
        first, at_place, start = first + count, at_place + len(at_places), start + size
    assert rows == sum(size for size, _, _ in expected[:tiles])
    if tiles < len(expected):  # the next had no room
        assert wanted == len(expected[tiles][2]) > int(room * hashes) - at_place
    assert room < 1 or tiles == len(expected)


def test_the_hash_table_is_emptied_when_numbers_of_stretches_run_out():
    """Three stretches more than have numbers; each has the slots of the one before, in another order."""
    n = STRETCHES + 3
    cells, at, _ = rows_of(np.random.default_rng(0), n, 3, 0, 4)
    order = np.arange(n, dtype=np.uint32)
    (tiles, rows, _), unique, places, counts = listed(cells, order, 0, n, at, 1 << 20, 4, 0, 1, 0, 3 * n, n)
    assert tiles == rows == n
    expected = reference.list_stretches(cells, order, 0, n, at, 1 << 20, 4, 0, 1, 0)
    assert counts.tolist() == [len(slots) for _, slots, _ in expected]
    assert unique[: counts.sum()].tolist() == [slot for _, slots, _ in expected for slot in slots]
    assert places.tolist() == [place for _, _, places in expected for place in places]


def test_a_stretch_is_a_mini_batch_if_its_slots_take_little_room():
    cells, at, _ = rows_of(np.random.default_rng(0), 5000, 2, 0, 50)
    order = np.arange(5000, dtype=np.uint32)
    for slot_cells, most in ((4, 5000), (256, 1024), (512, 512), (1024, 256), (TOGETHER_CELLS, 256)):
        for batch_size in (100, 3000, 2**40):
            expected = [
                rows
                for rows, _, _ in reference.list_stretches(cells, order, 0, 5000, at, 64, slot_cells, 0, batch_size, 0)
            ]
            (found, *_), *_ = listed(cells, order, 0, 5000, at, 64, slot_cells, 0, batch_size, 0, 10_000, 5000)
            assert found == len(expected)
            assert expected[0] == max(expected) == min(most, batch_size)


@pytest.mark.parametrize("tiles", [1, 2])
def test_no_more_stretches_than_there_is_room_for_their_counts(tiles):
    cells, at, _ = rows_of(np.random.default_rng(0), 1000, 2, 0, 50)
    order = np.arange(1000, dtype=np.uint32)
    found, *_ = listed(cells, order, 0, 1000, at, 64, TOGETHER_CELLS, 0, 2**40, 0, 2000, tiles)
    assert found[:2] == (tiles, tiles * tile_rows(cells.shape[1]))
