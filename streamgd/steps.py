"""From windows to weights: one stream of rows through the kernel, call by call."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from time import thread_time
from typing import NamedTuple

import numpy as np

from .data.stream import Position, Times, Window, WindowStream
from .errors import TrainingDiverged
from .job import Feed, Job
from .kernels.drain import drain
from .state import SNAPSHOTS, State

#: Cells of encoded rows that one call of the kernel takes; between calls progress is told and Ctrl-C is heard.
CELLS_PER_CALL = 1 << 22


@dataclass
class Learners:
    """What is trained: one model, or several side by side, some of which may be dropped on the way."""

    job: Job
    state: State


class Moment(NamedTuple):
    """A place in training between two calls of the kernel; ``skipped`` rows had no target since the last one."""

    epoch: int
    ended: bool
    skipped: int


def advance_in_windows(
    learners: Learners, feed: Feed, times: Times, first_epoch: int = 0
) -> Generator[Moment, None, None]:
    """Take the windows of all epochs, and pause after each call of the kernel."""
    job = learners.job
    stream = WindowStream(
        feed.source,
        job.encoder,
        feed.plan,
        n_jobs=feed.memory.n_jobs,
        cache=feed.cache,
        start=Position(first_epoch),
        stop=Position(first_epoch + job.config.passes),
        times=times,
    )
    with closing(iter(stream)) as windows:  # type: ignore[type-var]  # no thread is left when an error ends the loop
        for window in windows:
            for whole in learn(learners, window, times, call_rows(job, feed)):
                yield Moment(window.epoch, window.last and whole, window.skipped if whole else 0)


def call_rows(job: Job, feed: Feed) -> int:
    """Rows that one call of the kernel takes."""
    return max(1, min(CELLS_PER_CALL // job.encoder.layout.stride, -(-feed.plan.total // SNAPSHOTS)))


def learn(learners: Learners, window: Window, times: Times, call: int, *, average: bool = True) -> Iterator[bool]:
    """Take the rows of a window, mini-batch by mini-batch; pause after each call, True after the last."""
    n = len(window.order)
    for start in range(0, max(n, 1), call):  # an empty window, all of whose targets are null, may end an epoch
        job, state, began = learners.job, learners.state, thread_time()
        stop = min(n, start + call)
        drain(
            window.rows,
            window.rows.view(np.uint32) if state.table is not None else None,
            window.order,
            start,
            stop,
            window.last and stop == n,
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
        times.computing += thread_time() - began
        if (state.failed >= 0).all():
            raise TrainingDiverged(
                f"step {state.failed.max()} (epoch {window.epoch + 1}) made a weight infinite or NaN. The learning "
                f"rate is likely too large for these data: try a tenth of eta0={job.eta0:g}, a larger batch_size, or "
                f"optimizer='adagrad'."
            )
        if average:
            state.take_snapshot(job)
        yield stop == n
