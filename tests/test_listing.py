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
from streamgd.steps import Calls

LAYOUT, SLOTS, CELLS = Layout(1, True, False, 3), 64, 4
END = Calls(1000, 1000).end
COPIED, WIDE = Layout(5, True, True, 9), Layout(40, True, False, 50)


def made(n, seed=0, layout=LAYOUT, mapped=False, last=True):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**32, (n, layout.stride), dtype=np.uint32)
    return Window(rows.view(np.float32), rng.permutation(n).astype(np.uint32), 0, 0, last, 0, 0, [], mapped)


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
    known=st.booleans(),
)
def test_stretches_are_those_of_the_twin(n, batch_size, call, cuts, room, ahead, at_hand, layout, mapped, known):
    """Rows are those of the window, or copies of what comes before their hashes if it is mapped."""
    job, windows = job_of(batch_size, layout, at_hand), [made(n, k, layout, lies) for k, lies in enumerate(mapped)]
    with pytest.MonkeyPatch.context() as patch, Beside("list") as beside:
        patch.setattr(listing, "LISTED_HASHES", room)
        after = iter([windows[1], windows[0], None] if known else [])  # also one that does not come then
        lister = Lister(SLOTS, layout, beside if ahead else None, lambda: next(after, None))
        calls = Calls(call, call)
        for window in windows:
            start = carried = 0
            while start < n:
                boundary = calls.end(window, start)
                stop = min([cut for cut in cuts if cut > start] + [boundary])
                cells, at = window.rows.view(np.uint32), layout.cells
                expected = reference.list_stretches(
                    cells, window.order, start, stop, at, SLOTS, CELLS, at_hand, batch_size, carried
                )
                for tiles in lister.stretches(job, window, start, stop, carried, calls.end):
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


@pytest.mark.parametrize("known", [False, True])
def test_what_is_listed_ahead_is_what_is_asked_for_next(monkeypatch, known):
    """Nothing is listed twice or in vain, from call to call, and to the next window if it is known."""
    monkeypatch.setattr(listing, "LISTED_HASHES", 800)
    job, windows, listed = job_of(256), [made(1500), made(700, 1, last=False), made(600, 2)], []
    inner, calls, number, carried = Lister._list, Calls(600, 600), 0, 0

    def noted(self, job, wanted):
        ready = inner(self, job, wanted)
        listed.append((id(wanted.window), ready.listed.start, ready.listed.stop, number))
        return ready

    monkeypatch.setattr(Lister, "_list", noted)
    with Beside("list") as beside:
        lister = Lister(SLOTS, LAYOUT, beside, lambda: next(iter(windows[number + 1 :]), None) if known else None)
        for number, window in enumerate(windows):  # noqa: B007  # looked at by those above
            n, start = len(window.order), 0
            while start < n:
                stop = calls.end(window, start)
                list(lister.stretches(job, window, start, stop, carried, calls.end))
                carried, start = (carried + stop - start) % 256, stop
            for task in lister._ahead:
                task.wait()
            carried = 0 if window.last else carried
    for place, window in enumerate(windows):
        spans = [span[1:3] for span in listed if span[0] == id(window)]
        assert len(spans) > 2
        assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), len(window.order)]
        assert next(span[3] for span in listed if span[0] == id(window)) == max(0, place - known)


def test_without_hashed_features_rows_are_taken_at_once():
    tiles = list(Lister(0, LAYOUT).stretches(job_of(10), made(100), 20, 90, 0, END))
    assert [tile[:2] for tile in tiles] == [(20, 90)]
    assert tiles[0].unique is tiles[0].places is tiles[0].counts is None


def test_no_rows_are_still_taken_since_they_may_end_an_epoch():
    (tiles,) = Lister(SLOTS, LAYOUT).stretches(job_of(10), made(0), 0, 0, 3, END)
    assert tiles[:2] == (0, 0)
    assert len(tiles.counts) == 0


def test_texts_that_are_too_long_are_refused():
    layout = Layout(1, True, False, 0, 0, 1)
    window = made(300, layout=layout)
    window.rows.view(np.uint32)[:, layout.cells.text + 2] = 1 << 20
    with pytest.raises(DataError, match=r"268,435,456 words and n-grams in all.*may have 67,108,864"):
        list(Lister(SLOTS, layout).stretches(job_of(256, layout), window, 0, 300, 0, END))
    assert 1 << PLACE_BITS < 256 << 20
