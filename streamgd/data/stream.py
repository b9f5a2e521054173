"""The data path: row groups are decoded and encoded by threads into a window while the one before is consumed.

Two windows are in memory. Each run of rows has its place in the window from the plan, so what a window holds
does not depend on which thread was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from time import perf_counter, thread_time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .blocks import Block, BlockReader
from .cache import BlockCache, Cache
from .encode import Encoder
from .mapped import MappedRows
from .rowgroups import Source
from .shuffle import Plan, Run
from .threads import Task, give_way


@dataclass
class Times:
    """Seconds of thread time by what was done, and what it was done to."""

    reading: float = 0.0
    encoding: float = 0.0
    waiting: float = 0.0
    computing: float = 0.0
    bytes: float = 0.0

    def add(self, other: Times) -> None:
        """Add what another thread spent."""
        for name, seconds in vars(other).items():
            setattr(self, name, getattr(self, name) + seconds)


class Position(NamedTuple):
    """Place in a stream: rows of a window of an epoch that are done."""

    epoch: int = 0
    window: int = 0
    rows: int = 0


START = Position()


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together.

    Attributes
    ----------
    rows : ndarray of float32, shape (>= n, stride)
        Encoded rows; valid until the next window is asked for. Of a cache they may be all rows that it has.
    order : ndarray of uint32, shape (n,)
        Order in which to take those of the window.
    epoch, index : int
        Place of the window.
    last : bool
        Whether it ends its epoch.
    skipped : int
        Rows left out since their target is null.
    lost : int
        Rows left out since they, or others of their run, cannot be read or encoded.
    texts : list of ndarray of uint32
        Hashes of n-grams, to which rows hold addresses.
    mapped : bool
        Whether the rows are those of a mapped file, whose pages are small: then to find one takes longer.
    """

    rows: NDArray[np.float32]
    order: NDArray[np.uint32]
    epoch: int
    index: int
    last: bool
    skipped: int
    lost: int
    texts: list[NDArray[np.uint32]] = field(repr=False)
    mapped: bool = False


@dataclass
class _Filled:
    """What became of a run: where its rows are, and a reader that stands at its end, if rows follow."""

    place: int
    planned: int
    rows: int = 0
    lost: int = 0
    reading: float = 0.0
    encoding: float = 0.0
    texts: list[NDArray[np.uint32]] = field(repr=False, default_factory=list)
    reader: BlockReader | None = field(repr=False, default=None)


class _NotMapped(Exception):
    """Rows of the cache cannot be mapped: they are read, or those of the shards are."""


class _InPlace(NamedTuple):
    """Stretches of the rows of a cache that are a window where they lie; ``order`` finds out in which to take them."""

    cached: MappedRows
    stretches: Sequence[tuple[int, int]]
    order: Task[NDArray[np.uint32]]


@dataclass
class _Filling:
    """A window that is being filled: its tasks in the order of its runs."""

    epoch: int
    index: int
    rows: NDArray[np.float32]
    tasks: list[Task[_Filled]]
    in_place: _InPlace | None = None


class _Coming(NamedTuple):
    """A window that is being filled, and what makes a window of it when its tasks are done."""

    filling: _Filling
    window: Task[Window]


class WindowStream:
    """Windows of encoded rows, filled ahead of their use.

    Parameters
    ----------
    source : Source
        Where rows come from.
    encoder : Encoder
        What becomes of them.
    plan : Plan
        Their order.
    n_jobs : int
        Threads that decode and encode; they never change a result. With 0 the windows are filled when they are asked
        for, by the thread that asks.
    start, stop : Position
        First window, and that before which to end.
    rows : ndarray of float32, optional
        Memory for a window, if ``n_jobs`` is 0.
    cache : BlockCache, optional
        Where encoded rows are written, and read from when they are there.
    in_place : BlockCache, optional
        The same, if windows may be its rows where they lie: then ``order`` is not one of 0 to n - 1.
    times : Times, optional
        Takes what was spent on what.
    """

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        plan: Plan,
        *,
        n_jobs: int = 1,
        cache: Cache | None = None,
        start: Position = START,
        stop: Position = Position(1),  # noqa: B008  # it cannot be changed
        rows: NDArray[np.float32] | None = None,
        in_place: BlockCache | None = None,
        times: Times | None = None,
    ) -> None:
        self.source, self.encoder, self.plan = source, encoder, plan
        self.n_jobs, self.cache, self.in_place = n_jobs, cache, in_place
        self.start, self.stop, self._memory = start, stop, rows
        self.times = times if times is not None else Times()
        self._row_bytes, self._recipe = source.manifest.row_bytes(), encoder.recipe
        self._coming: deque[_Coming] = deque()

    def __iter__(self) -> Iterator[Window]:
        if self.n_jobs == 0:
            yield from self._windows(None)
            return
        # The thread that takes the windows is one of them: it reads, too, when it has to wait.
        # The others give way to it, and to what it waits for.
        pool = ThreadPoolExecutor(max(1, self.n_jobs - 1), "streamgd-read", initializer=give_way)
        try:
            yield from self._only_window(pool) if self.plan.n_windows == 1 else self._windows(pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._coming.clear()  # they have memory, and know this stream

    def upcoming(self) -> Window | None:
        """The window that comes after the one that was given last, if it is full: it may be read already."""
        try:
            following = self._coming[0]
        except IndexError:
            return None
        return following.window.found() if all(task.done for task in following.filling.tasks) else None

    def _only_window(self, pool: ThreadPoolExecutor) -> Iterator[Window]:
        """All rows fit in one window: it is read once, and each epoch takes a fresh order of it."""
        rows = self.encoder.new_rows(self.plan.capacity)
        only = self._taken(self._to_come(self._fill(pool, 0, 0, rows, {})))
        for epoch in range(self.start.epoch, self.stop.epoch):
            yield replace(only, order=self.plan.row_order(epoch, 0, _numbers(len(only.order))), epoch=epoch)

    def _windows(self, pool: ThreadPoolExecutor | None) -> Iterator[Window]:
        places, at_once = iter(self._places()), 1 if pool is None else 2
        spare = [] if self._memory is None else [self._memory]
        suspended: dict[int, Task[_Filled]] = {}
        while True:
            while len(self._coming) < at_once and (place := next(places, None)) is not None:
                self._coming.append(self._to_come(self._begin(pool, *place, spare, suspended)))
            if not self._coming:
                return
            one = self._coming.popleft()
            this, ahead = one.filling, [task for later in self._coming for task in later.filling.tasks]
            try:
                window = self._taken(one, ahead)
            except _NotMapped:
                this = self._fill(pool, this.epoch, this.index, self.encoder.new_rows(self.plan.capacity), suspended)
                window = self._taken(self._to_come(this), ahead)
            yield window
            window.texts.clear()
            if this.in_place is None:
                spare.append(this.rows)
            else:
                for stretch in this.in_place.stretches:
                    this.in_place.cached.let_go(*stretch)

    def _begin(
        self,
        pool: ThreadPoolExecutor | None,
        epoch: int,
        index: int,
        spare: list[NDArray[np.float32]],
        suspended: dict[int, Task[_Filled]],
    ) -> _Filling:
        """Start the threads on a window: with rows where the cache has them, or in memory of its own."""
        cache, cached = self.in_place, None if self.in_place is None else self.in_place.mapped()
        if cache is not None and cached is not None:
            places = {run: cache.places(run) for run in self.plan.window(epoch, index)}
            stretches = list(chain.from_iterable(places.values()))
            if cached.are_near(stretches):
                while spare:  # who took the window before still knows its rows
                    cached.forget(spare.pop())
                tasks = [Task(partial(self._bring, cache, cached, *place)) for place in places.items()]
                order = Task(partial(self._order_in_place, epoch, index, stretches))
                if pool is not None:
                    for run in (*(task.run for task in tasks), order.run):
                        pool.submit(run)
                return _Filling(epoch, index, cached.rows, tasks, _InPlace(cached, stretches, order))
        rows = spare.pop() if spare else self.encoder.new_rows(self.plan.capacity)
        return self._fill(pool, epoch, index, rows, suspended)

    def _order_in_place(self, epoch: int, index: int, stretches: Sequence[tuple[int, int]]) -> NDArray[np.uint32]:
        """The order of a window whose rows lie among others."""
        rows = np.concatenate([_numbers(0), *(_numbers(*one) for one in stretches)])
        return self.plan.row_order(epoch, index, rows)

    def _bring(self, cache: BlockCache, cached: MappedRows, run: Run, stretches: list[tuple[int, int]]) -> _Filled:
        """Map the rows of a run."""
        began = thread_time()
        try:
            for first, end in stretches:
                cached.bring(first, end)
        except OSError as error:
            cache.give_up(error)
            raise _NotMapped from error
        n = sum(end - first for first, end in stretches)
        return _Filled(0, run.rows, n, reading=thread_time() - began)

    def _places(self) -> Iterator[tuple[int, int]]:
        """Epoch and number of each window."""
        for epoch in range(self.start.epoch, self.stop.epoch + 1):
            first = self.start.window if epoch == self.start.epoch else 0
            last = self.stop.window if epoch == self.stop.epoch else self.plan.n_windows
            yield from ((epoch, index) for index in range(first, last))

    def _fill(
        self,
        pool: ThreadPoolExecutor | None,
        epoch: int,
        index: int,
        rows: NDArray[np.float32],
        suspended: dict[int, Task[_Filled]],
    ) -> _Filling:
        """Start the threads on a window; a row group that a window cut in two is continued, not read again."""
        tasks: list[Task[_Filled]] = []
        place = 0
        for run in self.plan.window(epoch, index):
            before = suspended.pop(run.row_group, None)
            task = Task(partial(self._read, epoch, run, rows, place, before))
            if pool is not None:
                pool.submit(task.run)
            if not self.plan.scattered and run.spans[-1][1] < self.source.manifest.rows[run.row_group]:
                suspended[run.row_group] = task
            tasks.append(task)
            place += run.rows
        return _Filling(epoch, index, rows, tasks)

    def _to_come(self, filling: _Filling) -> _Coming:
        return _Coming(filling, Task(partial(self._gather, filling)))

    def _read(
        self, epoch: int, run: Run, rows: NDArray[np.float32], place: int, before: Task[_Filled] | None
    ) -> _Filled:
        """Fill the place of a run, or leave it empty if any row of the run is bad.

        So what a window holds follows from the files alone, wherever the stream began. The next run of the row group
        is tried anew.
        """
        reader = None
        if before is not None:  # it was started first, so it is done or under way in another thread
            done = before.result()
            reader, done.reader = done.reader, None
        if reader is not None and reader.done != run.spans[0][0]:
            reader = None
        try:
            return self._fetch(epoch, run, rows, place, reader)
        except DataError as error:
            self.source.left_out.note(error, self.source.manifest, run.row_group)
            return _Filled(place, run.rows, lost=run.rows)

    def _fetch(
        self, epoch: int, run: Run, rows: NDArray[np.float32], place: int, reader: BlockReader | None
    ) -> _Filled:
        """Encode the rows of a run into their place, or take them from the cache."""
        began, out = thread_time(), place
        texts: list[NDArray[np.uint32]] = []
        if self.cache is not None and (n := self.cache.get(run, rows[place:], texts)) is not None:
            return _Filled(place, run.rows, n, reading=thread_time() - began, texts=texts)
        if reader is None:
            reader = BlockReader(self.source, self.encoder, run.row_group, self._recipe)
        before, blocks = reader.encoding, list[Block]()
        for start, stop in run.spans:
            reader.skip(start - reader.done)
            for block in reader.read(stop - start, rows[out:]):
                blocks.append(block)
                out += len(block.encoded)
        if reader.done == reader.rows:
            reader.finish()
        for block in blocks:
            texts += block.texts
            if self.cache is not None:  # only now that no row of the run is known to be bad
                self.cache.put(epoch, run.row_group, *block)
        encoding = reader.encoding - before
        waiting = reader if not self.plan.scattered and reader.done < reader.rows else None
        return _Filled(place, run.rows, out - place, 0, thread_time() - began - encoding, encoding, texts, waiting)

    def _taken(self, coming: _Coming, ahead: Sequence[Task[_Filled]] = ()) -> Window:
        """Wait until a window is full. While others are at its last tasks, do those of the windows ``ahead``."""
        tasks = coming.filling.tasks
        for task in tasks:
            task.run()
        later = iter(ahead)
        for task in tasks:
            while not task.done and (one := next(later, None)) is not None:
                one.run()
            began = perf_counter()
            task.result()
            self.times.waiting += perf_counter() - began
        return coming.window.result()

    def _gather(self, this: _Filling) -> Window:
        """The window, when its tasks are done: without the gaps of rows that are not there."""
        n = skipped = lost = 0
        texts: list[NDArray[np.uint32]] = []
        rows, there = this.rows, this.in_place
        for task in this.tasks:
            filled = task.result()
            self.times.reading += filled.reading
            self.times.encoding += filled.encoding
            self.times.bytes += filled.planned * self._row_bytes
            if (skipped or lost) and there is None:
                rows[n : n + filled.rows] = rows[filled.place : filled.place + filled.rows]
            n += filled.rows
            skipped += filled.planned - filled.rows - filled.lost
            lost += filled.lost
            texts += filled.texts
        order = there.order.result() if there else self.plan.row_order(this.epoch, this.index, _numbers(n))
        last = this.index == self.plan.n_windows - 1
        return Window(rows, order, this.epoch, this.index, last, skipped, lost, texts, there is not None)


def _numbers(*ends: int) -> NDArray[np.uint32]:
    return np.arange(*ends, dtype=np.uint32)
