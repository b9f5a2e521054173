"""Slots of hashed features are listed ahead of learning, by a thread if there is one.

What a tile's slots are depends on the rows and their order alone, so another thread can find out while the tiles before
are learned: it waits for rows out of memory, the one that learns for weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .data.stream import Window
from .data.threads import Task
from .job import Job
from .kernels.slots import list_tiles

#: Hashes and tiles that are listed at a time: 20,000 rows of a click log, 3 ms.
HASHES, TILES = 1 << 19, 1 << 15


class Tiles(NamedTuple):
    """Rows ``start`` to ``stop`` - 1 of a window's order, with what `streamgd.kernels.slots` has listed of them.

    The arrays are None if no features are hashed.
    """

    start: int
    stop: int
    unique: NDArray[np.uint32] | None = None
    places: NDArray[np.uint32] | None = None
    counts: NDArray[np.int64] | None = None


class Room:
    """Memory for tiles. A single tile may need more than is usual: then it grows."""

    def __init__(self) -> None:
        self.counts = np.empty(TILES, np.int64)
        self.grow(HASHES)

    def grow(self, hashes: int) -> None:
        """Have room for so many hashes."""
        self.unique, self.places = np.empty(hashes + 1, np.uint32), np.empty(hashes, np.uint32)


class Lister:
    """Lists the tiles of windows.

    Parameters
    ----------
    slots : int
        Slots of the table; 0 if no features are hashed.
    pool : Executor, optional
        Has the thread that lists ahead.
    """

    def __init__(self, slots: int, pool: Executor | None = None) -> None:
        self.slots, self.pool = slots, pool
        self._rooms = [Room(), Room()] if slots and pool is not None else [Room()] if slots else []

    def tiles(self, job: Job, window: Window, start: int, stop: int, carried: int) -> Iterator[Tiles]:
        """Rows ``start`` to ``stop`` - 1 of a window's order, some tiles at a time; valid until the next are asked for.

        Parameters
        ----------
        job : Job
            Has the layout and the batch size.
        carried : int
            Rows that the mini-batch under way has already.
        """
        if not self.slots or start == stop:
            nothing = np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.int64)
            yield Tiles(start, stop, *nothing) if self.slots else Tiles(start, stop)
            return
        rooms = list(self._rooms)
        one = Task(partial(self._list, job, window, start, stop, carried, rooms[0]))
        while start < stop:
            found = one.result()
            carried, start = (carried + found.stop - start) % job.problem.batch_size, found.stop
            rooms.reverse()
            one = Task(partial(self._list, job, window, start, stop, carried, rooms[0]))
            if self.pool is not None and start < stop:
                self.pool.submit(one.run)
            try:
                yield found
            except GeneratorExit:
                one.result()  # no thread is left that reads the window
                raise

    def _list(self, job: Job, window: Window, start: int, stop: int, carried: int, room: Room) -> Tiles:
        at, cells = job.encoder.layout.cells, window.rows.view(np.uint32)
        while True:
            tiles, rows, hashes = list_tiles(
                cells,
                window.order,
                start,
                stop,
                at,
                self.slots,
                job.problem.batch_size,
                carried,
                room.unique,
                room.places,
                room.counts,
            )
            if tiles or start == stop:
                break
            room.grow(hashes)
        return Tiles(start, start + rows, room.unique, room.places, room.counts[:tiles])
