"""Slots of hashed features are listed ahead of learning, by a thread if there is one.

What slots a stretch of rows has depends on the rows and their order alone, so another thread can find out while those
before are learned: it waits for rows out of memory, the one that learns for weights. If the rows are those of a mapped
file, whose small pages take longer to find, it copies what else they hold, so that nobody else looks for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .data.stream import Window
from .data.threads import Beside, Task
from .errors import DataError
from .features import Layout
from .job import Job
from .kernels.slots import (
    EIGHT,
    LISTED_HASHES,
    LISTED_STRETCHES,
    LISTS_AHEAD,
    PLACE_BITS,
    copied_rows,
    list_stretches,
    words_for,
)


class Listed(NamedTuple):
    """Rows ``start`` to ``stop`` - 1 of a window's order, with what `streamgd.kernels.slots` has listed of them.

    They are ``rows`` in an order, from its number ``first`` on: those of the window, or copies of what they hold before
    their hashes. The other arrays are None if no features are hashed.
    """

    start: int
    stop: int
    rows: NDArray[np.float32]
    order: NDArray[np.uint32]
    first: int
    unique: NDArray[np.uint32] | None = None
    places: NDArray[np.uint32] | None = None
    counts: NDArray[np.int64] | None = None


class Wanted(NamedTuple):
    """Rows of a window's order to list; ``carried`` rows of their first mini-batch come before them.

    ``slot_cells`` are the cells of a slot.
    """

    window: Window
    start: int
    stop: int
    carried: int
    slot_cells: int

    def is_that(self, other: Wanted) -> bool:
        """Whether other rows are the same."""
        return self.window is other.window and self[1:] == other[1:]


class Room:
    """Memory for stretches of rows of a layout. A single one may need more than is usual: then it grows."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self.counts = layout, np.empty(LISTED_STRETCHES, np.int64)
        self.grow(LISTED_HASHES)

    def grow(self, hashes: int) -> None:
        """Have room for so many hashes.

        Raises
        ------
        DataError
            No stretch may have so many.
        """
        if hashes > 1 << PLACE_BITS:
            raise DataError(
                f"some rows have {hashes:,} words and n-grams in all, where a few hundred rows may have "
                f"{1 << PLACE_BITS:,}: their texts are too long to learn from."
            )
        self.copies = np.empty((copied_rows(self._layout, hashes), self._layout.width), np.float32)
        self.in_turn = np.arange(len(self.copies), dtype=np.uint32)
        self.unique, self.places = np.empty(hashes + EIGHT, np.uint32), np.empty(hashes, np.uint32)


class Ready(NamedTuple):
    """What was wanted, and as many stretches of it as there was room for."""

    wanted: Wanted
    listed: Listed

    def rest(self, batch_size: int) -> Wanted:
        """The rows of the range that follow; there may be none."""
        start = self.listed.stop
        return self.wanted._replace(start=start, carried=(self.wanted.carried + start - self.wanted.start) % batch_size)


class Lister:
    """Lists the stretches of windows.

    Parameters
    ----------
    slots : int
        Slots of the table; 0 if no features are hashed.
    layout : Layout
        Of the rows.
    beside : Beside, optional
        The thread that lists ahead.
    upcoming : callable
        Gives the window that comes after the one that is learned from, or None if it is not known yet.
    """

    def __init__(
        self,
        slots: int,
        layout: Layout,
        beside: Beside | None = None,
        upcoming: Callable[[], Window | None] = lambda: None,
    ) -> None:
        self.slots, self.beside, self._upcoming = slots, beside, upcoming
        self._words, self._number = np.zeros(0, np.uint64), np.zeros(1, np.int64)
        # Lists fill rooms by turns: one is in use, others are ahead.
        rooms = 0 if not slots else 1 if beside is None else 1 + LISTS_AHEAD
        self._rooms = deque(Room(layout) for _ in range(rooms))
        self._ahead: deque[Task[Ready | None]] = deque()

    def stretches(
        self, job: Job, window: Window, start: int, stop: int, carried: int, end: Callable[[Window, int], int]
    ) -> Iterator[Listed]:
        """Rows ``start`` to ``stop`` - 1 of a window's order, some stretches at a time, valid until the next.

        Parameters
        ----------
        job : Job
            Has the layout, the table and the batch size.
        carried : int
            Rows that the mini-batch under way has already.
        end : callable
            Tells of a row of a window where the rows end that are likely asked for together with it.
        """
        if not self.slots:
            yield Listed(start, stop, window.rows, window.order, start)
            return
        wanted = Wanted(window, start, stop, carried, job.table.cells)
        while True:
            ready = self._take(job, wanted)
            while self.beside is not None and len(self._ahead) < LISTS_AHEAD:
                before = self._ahead[-1].result if self._ahead else partial(_same, ready)
                self._ahead.append(Task(partial(self._list_after, job, before, end)))
                self.beside.submit(self._ahead[-1].run)
            yield ready.listed
            if ready.listed.stop == stop:  # there may have been none, which still end an epoch
                return
            wanted = ready.rest(job.problem.batch_size)

    def _take(self, job: Job, wanted: Wanted) -> Ready:
        """The stretches that are listed already, if they are those that are wanted; else they are listed now."""
        while self._ahead:
            ready = self._ahead.popleft().result()  # in any case, since it fills the room that others may need
            if ready is not None and wanted.is_that(ready.wanted):
                return ready
        return self._list(job, wanted)

    def _list_after(
        self, job: Job, before: Callable[[], Ready | None], end: Callable[[Window, int], int]
    ) -> Ready | None:
        """The stretches that follow others, in the next range or the next window; None if no more rows are known of."""
        ready = before()
        if ready is None:
            return None
        wanted = ready.rest(job.problem.batch_size)
        window, start = wanted.window, wanted.start
        if start == len(window.order):
            following = self._upcoming()
            if following is None or following is window:
                return None
            carried = 0 if window.last else wanted.carried  # a mini-batch ends with its epoch
            wanted = wanted._replace(window=following, start=0, stop=end(following, 0), carried=carried)
        elif start == wanted.stop:
            wanted = wanted._replace(stop=end(window, start))
        return self._list(job, wanted)

    def _list(self, job: Job, wanted: Wanted) -> Ready:
        window, start, stop, carried, slot_cells = wanted
        self._rooms.rotate()
        room = self._rooms[0]
        at, cells = job.encoder.layout.cells, window.rows.view(np.uint32)
        while True:
            copies = room.copies if window.mapped else room.copies[:0]
            stretches, rows, hashes = list_stretches(
                cells,
                window.order,
                start,
                stop,
                at,
                self.slots,
                slot_cells,
                job.problem.at_hand,
                job.problem.batch_size,
                carried,
                self._words,
                self._number,
                room.unique,
                room.places,
                room.counts,
                copies,
            )
            if stretches or start == stop:
                break
            if hashes > len(room.places):
                room.grow(hashes)
            words = words_for(min(hashes, self.slots))
            self._words, self._number = np.zeros(max(words, len(self._words)), np.uint64), np.zeros(1, np.int64)
        copied = (room.copies, room.in_turn, 0) if len(copies) else (window.rows, window.order, start)
        return Ready(wanted, Listed(start, start + rows, *copied, room.unique, room.places, room.counts[:stretches]))


def _same(ready: Ready) -> Ready:
    return ready
