"""Stretches are the same with and without a thread that lists them ahead, wherever a call ends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd import listing
from streamgd.data.stream import Window
from streamgd.data.threads import Beside
from streamgd.errors import DataError
from streamgd.features import Layout
from streamgd.kernels import reference
from streamgd.kernels.slots import PLACE_BITS
from streamgd.listing import Lister

LAYOUT, SLOTS, CELLS = Layout(1, True, False, 3), 64, 4
COPIED, WIDE = Layout(5, True, True, 9), Layout(40, True, False, 50)


def made(n, seed=0, layout=LAYOUT, mapped=False):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**32, (n, layout.stride), dtype=np.uint32)
    return Window(rows.view(np.float32), rng.permutation(n).astype(np.uint32), 0, 0, True, 0, 0, [], mapped)


def job_of(batch_size, layout=LAYOUT, at_hand=0):
    encoder, problem = SimpleNamespace(layout=layout), SimpleNamespace(batch_size=batch_size, at_hand=at_hand)
    return SimpleNamespace(encoder=encoder, problem=problem, table=SimpleNamespace(cells=CELLS))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 1500),
    batch_size=st.sampled_from([1, 100, 256, 1000]),
    call=st.integers(1, 900),
    cuts=st.lists(st.integers(1, 1500), max_size=4),
    room=st.sampled_from([1, 800, 1 << 19]),
    ahead=st.booleans(),
    at_hand=st.sampled_from([0, 5]),
    layout=st.sampled_from([LAYOUT, COPIED, WIDE]),
    mapped=st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_stretches_are_those_of_the_twin(n, batch_size, call, cuts, room, ahead, at_hand, layout, mapped):
    """Rows are those of the window, or copies of what comes before their hashes if it is mapped."""
    job, windows = job_of(batch_size, layout, at_hand), [made(n, k, layout, lies) for k, lies in enumerate(mapped)]
    with pytest.MonkeyPatch.context() as patch, Beside("list") as beside:
        patch.setattr(listing, "LISTED_HASHES", room)
        lister = Lister(SLOTS, layout, beside if ahead else None)
        for window in windows:
            start = carried = 0
            while start < n:
                boundary = min(n, (start // call + 1) * call)
                stop = min([cut for cut in cuts if cut > start] + [boundary])
                cells, at = window.rows.view(np.uint32), layout.cells
                expected = reference.list_stretches(
                    cells, window.order, start, stop, at, SLOTS, CELLS, at_hand, batch_size, carried
                )
                then = min(n, (stop // call + 1) * call)
                for tiles in lister.stretches(job, window, start, stop, carried, then):
                    assert tiles.start == start
                    copied = layout is COPIED and window.mapped
                    assert (tiles.rows is not window.rows) == copied or room == 1  # which is no room for a copy
                    taken = tiles.order[tiles.first :][: tiles.stop - start]
                    np.testing.assert_array_equal(
                        tiles.rows.view(np.uint32)[taken, : layout.width],
                        cells[window.order[start : tiles.stop], : layout.width],
                    )
                    slots, places = tiles.unique, tiles.places
                    for count in tiles.counts.tolist():
                        rows, expected_slots, expected_places = expected.pop(0)
                        assert slots[:count].tolist() == expected_slots
                        assert places[: len(expected_places)].tolist() == expected_places
                        slots, places, start = slots[count:], places[len(expected_places) :], start + rows
                        carried = (carried + rows) % batch_size
                    assert tiles.stop == start
                assert not expected
                assert start == stop


def test_what_is_listed_ahead_is_what_is_asked_for_next(monkeypatch):
    """Nothing is listed twice or in vain, from call to call; the first of a window is asked for when it is wanted."""
    monkeypatch.setattr(listing, "LISTED_HASHES", 800)
    job, windows, listed = job_of(100), [made(1500), made(700, 1)], []
    inner = Lister._list

    def noted(self, job, wanted):
        ready = inner(self, job, wanted)
        listed.append((id(wanted.window), ready.listed.start, ready.listed.stop))
        return ready

    monkeypatch.setattr(Lister, "_list", noted)
    with Beside("list") as beside:
        lister = Lister(SLOTS, LAYOUT, beside)
        for window in windows:
            n, start = len(window.order), 0
            while start < n:
                stop, then = min(n, start + 600), min(n, start + 1200)
                list(lister.stretches(job, window, start, stop, start % 100, then))
                start = stop
    for window in windows:
        spans = [span[1:] for span in listed if span[0] == id(window)]
        assert len(spans) > 2
        assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), len(window.order)]


def test_without_hashed_features_rows_are_taken_at_once():
    tiles = list(Lister(0, LAYOUT).stretches(job_of(10), made(100), 20, 90, 0, 100))
    assert [tile[:2] for tile in tiles] == [(20, 90)]
    assert tiles[0].unique is tiles[0].places is tiles[0].counts is None


def test_no_rows_are_still_taken_since_they_may_end_an_epoch():
    (tiles,) = Lister(SLOTS, LAYOUT).stretches(job_of(10), made(0), 0, 0, 3, 0)
    assert tiles[:2] == (0, 0)
    assert len(tiles.counts) == 0


def test_texts_that_are_too_long_are_refused():
    layout = Layout(1, True, False, 0, 0, 1)
    window = made(300, layout=layout)
    window.rows.view(np.uint32)[:, layout.cells.text + 2] = 1 << 20
    with pytest.raises(DataError, match=r"268,435,456 words and n-grams in all.*may have 67,108,864"):
        list(Lister(SLOTS, layout).stretches(job_of(256, layout), window, 0, 300, 0, 300))
    assert 1 << PLACE_BITS < 256 << 20
