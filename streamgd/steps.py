"""From windows to weights: one stream of rows through the kernel, call by call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from time import thread_time
from typing import NamedTuple

import numpy as np

from .data.shuffle import Plan
from .data.stream import START, Position, Times, Window, WindowStream
from .data.threads import Beside
from .errors import TrainingDiverged
from .job import Feed, Job
from .keeper import Keeper
from .kernels.drain import CARRIED, drain
from .listing import Lister
from .state import SNAPSHOTS, State

#: Cells of encoded rows that one call of the kernel takes; between calls progress is told and Ctrl-C is heard.
CELLS_PER_CALL = 1 << 22


class Calls(NamedTuple):
    """Where calls of the kernel end in a window, and after which of them weights enter their average.

    Attributes
    ----------
    rows : int
        A call ends after so many rows of a window, and with it.
    snapshot : int
        Weights enter their average after so many, which are some whole calls, ...
    windows : int
        ... and at the end of every so many windows, and of an epoch.
    """

    rows: int
    snapshot: int
    windows: int = 1

    @classmethod
    def of(cls, job: Job, plan: Plan) -> Calls:
        """Those of a job, which takes about `SNAPSHOTS` an epoch, however long its windows are."""
        most = max(1, CELLS_PER_CALL // job.encoder.layout.stride)
        snapshot = max(1, -(-plan.capacity // max(1, SNAPSHOTS // plan.n_windows)))
        calls = -(-snapshot // most)
        rows = -(-snapshot // calls)
        return cls(rows, rows * calls, max(1, plan.n_windows // SNAPSHOTS))

    def end(self, window: Window, row: int) -> int:
        """Where the call ends that takes a row of a window."""
        return min(len(window.order), (row // self.rows + 1) * self.rows)

    def are_averaged(self, window: Window, row: int) -> bool:
        """Whether weights enter their average before a row of a window, or at its end."""
        if row < len(window.order):
            return row % self.snapshot == 0
        return window.last or (window.index + 1) % self.windows == 0


@dataclass
class Learners:
    """What is trained: one model, or several side by side, some of which may be dropped on the way."""

    job: Job
    state: State


class Moment(NamedTuple):
    """A place in training between two calls of the kernel; ``skipped`` rows were left out since the last one.

    ``ended`` if the rows of an epoch are done; then the position stands behind its last window.
    """

    position: Position
    ended: bool
    skipped: int
    round_ended: bool = False


def advance_in_windows(
    learners: Learners, feed: Feed, times: Times, keeper: Keeper, start: Position = START, epochs: int = 0
) -> Generator[Moment, None, None]:
    """Take the windows of all epochs but those that are done, and pause after each call of the kernel."""
    job, last, calls = learners.job, feed.plan.n_windows, Calls.of(learners.job, feed.plan)
    first = start
    if start.window == last:
        yield Moment(start, True, 0)
        first = Position(start.epoch + 1)
    if first.epoch == epochs:
        return
    stream = WindowStream(
        feed.source,
        job.encoder,
        feed.plan,
        n_jobs=feed.memory.n_jobs,
        cache=feed.cache,
        in_place=feed.cache,
        start=first,
        stop=Position(epochs),
        times=times,
    )
    slots = job.encoder.spec.n_slots
    ahead = Beside("streamgd-list") if slots and feed.memory.n_jobs > 1 else None
    # When an error ends the loop, no thread is left; who lists slots ends first, since it reads the window.
    with closing(iter(stream)) as windows, ahead or nullcontext():  # type: ignore[type-var]
        lister = Lister(slots, job.encoder.layout, ahead, stream.upcoming)
        while (window := fetched(windows, keeper)) is not None:
            begun = start.rows if (window.epoch, window.index) == start[:2] else 0
            for done in learn(
                learners, lister, window, times, calls, begun, cut=keeper.cut, averaging=feed.memory.n_jobs
            ):
                whole = done == len(window.order)
                position = Position(window.epoch, *((window.index + 1, 0) if whole else (window.index, done)))
                yield Moment(position, window.last and whole, window.skipped + window.lost if whole else 0)


def fetched(windows: Iterator[Window], keeper: Keeper) -> Window | None:
    """The next window; while it is waited for, nothing changes."""
    with keeper.idle():
        return next(windows, None)


def learn(
    learners: Learners,
    lister: Lister,
    window: Window,
    times: Times,
    calls: Calls,
    begun: int = 0,
    *,
    cut: Callable[[int, int], int] = lambda _, stop: stop,
    averaging: int = 0,
) -> Iterator[int]:
    """Take the rows of a window, mini-batch by mini-batch, but those that are done; pause after each call.

    Gives the number of rows that are done. After some ``calls`` weights enter their average, on ``averaging`` threads
    unless it is 0. Calls also end where ``cut`` says, which changes nothing.
    """
    n, start = len(window.order), begun
    while True:  # an empty window, all of whose targets are null, may end an epoch
        job, state, began = learners.job, learners.state, thread_time()
        boundary = calls.end(window, start)
        stop = cut(start, boundary)
        for listed in lister.stretches(job, window, start, stop, int(state.counters[CARRIED]), calls.end):
            going = drain(
                listed.rows,
                listed.rows.view(np.uint32) if state.table is not None else None,
                listed.unique,
                listed.places,
                listed.counts,
                listed.order,
                listed.first,
                listed.first + listed.stop - listed.start,
                window.last and listed.stop == n,
                job.encoder.layout.cells,
                job.problem,
                job.settings,
                len(state.params) if len(state.params) > 1 else None,
                job.inverse_scale,
                job.spread,
                job.encoder.spec.kernel_factor,
                state.params,
                state.slots,
                state.carry,
                state.table,
                state.marks,
                state.touched,
                state.counters,
                state.totals,
                state.failed,
            )
            if not going:
                raise TrainingDiverged(
                    f"step {state.failed.max()} (epoch {window.epoch + 1}) made a weight infinite or NaN. The learning "
                    f"rate is likely too large for these data: try a tenth of eta0={job.eta0:g}, a larger batch_size, "
                    f"or optimizer='adagrad'."
                )
        times.computing += thread_time() - began
        if averaging and stop == boundary and calls.are_averaged(window, stop):
            state.take_snapshot(job, averaging)
        yield stop
        if stop == n:
            return
        start = stop
