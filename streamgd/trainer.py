"""The loop: windows of shuffled rows through the kernel, epoch by epoch, until the end or until nothing is gained.

`job.prepare` has fixed everything that is not learned.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from .data.evaluate import mean_loss
from .data.stream import Position, Times, Window, WindowStream
from .errors import TrainingDiverged
from .job import Feed, Job, finish
from .kernels.drain import LOSS, ROWS, STEP, WEIGHT, drain
from .memory import peak_rss
from .model import Model

#: Cells of encoded rows that one call of the kernel takes; between calls progress is told and Ctrl-C is heard.
CELLS_PER_CALL = 1 << 22
#: The weights enter the average so many times an epoch, with weights that grow as time to the power of ...
SNAPSHOTS = 64
AVERAGE_POWER = 8


@dataclass
class State:
    """All that an update reads and writes.

    ``average`` holds the average of ``params`` over ``snapshots`` moments, weighted towards the end: the noise of
    the last steps goes, and what was learned early is soon forgotten (polynomial decay; Shamir, Zhang 2013). Taking
    64 snapshots an epoch instead of every step costs nothing and is as good.
    """

    params: NDArray[np.float64]
    slots: NDArray[np.float64]
    carry: NDArray[np.float64]
    counters: NDArray[np.int64]
    totals: NDArray[np.float64]
    average: NDArray[np.float64]
    snapshots: int = 0

    @classmethod
    def start(cls, job: Job) -> State:
        """Weights 0; the intercept at the base rate (log-odds for classes; the mean is already off a regression)."""
        n = len(job.inverse_scale) + 1
        slots = np.zeros((job.config.method.slots, n))
        state = cls(np.zeros(n), slots, np.zeros(n), np.zeros(3, np.int64), np.zeros(2), np.zeros(n))
        if job.config.fit_intercept and job.labels.class_weight is not None:
            negative, positive = np.maximum(job.labels.class_weight, 0.5)
            state.params[-1] = np.log(positive / negative)
        state.average[:] = state.params
        return state

    def take_snapshot(self) -> None:
        """Let the weights as they are enter their average."""
        self.snapshots += 1
        share = (AVERAGE_POWER + 1) / (AVERAGE_POWER + self.snapshots)
        self.average += share * (self.params - self.average)

    def weights(self, job: Job) -> NDArray[np.float64]:
        """The weights that make the model."""
        return self.average if job.config.averaged and self.snapshots else self.params


@dataclass(frozen=True)
class Progress:
    """Where training stands, as told to a callback; ``ended`` if an epoch has just ended and was validated."""

    epoch: int
    epochs: int
    rows: int
    total_rows: int
    steps: int
    loss: float
    seconds: float
    times: Times
    validation_loss: float | None = None
    ended: bool = False

    @property
    def over(self) -> bool:
        """Whether the last epoch has ended."""
        return self.ended and self.epoch + 1 == self.epochs


@dataclass
class Result:
    """What training gave."""

    model: Model
    rows: int
    epochs: int
    steps: int
    seconds: float
    train_loss: float
    losses: list[float]
    validation_losses: list[float]
    skipped_rows: int
    window_rows: int
    peak_rss_bytes: int
    times: Times = field(default_factory=Times)

    def remarks(self) -> list[str]:
        """What a user should know after training."""
        if not self.skipped_rows:
            return []
        return [f"{self.skipped_rows:,} rows have no target (null) and were left out."]


def train(
    job: Job, feed: Feed, state: State, *, first_epoch: int = 0, callback: Callable[[Progress], None] | None = None
) -> Result:
    """Train from a state, which is changed, and return the model.

    Raises
    ------
    TrainingDiverged
        A weight is no longer finite.
    """
    began, times = perf_counter(), Times()
    losses: list[float] = []
    validation_losses: list[float] = []
    best: tuple[float, NDArray[np.float64]] | None = None
    no_gain = skipped = epochs = 0

    def tell(epoch: int, ended: bool = False) -> None:
        if callback is not None:
            loss = _mean(job, state) if state.totals[WEIGHT] else (losses or [np.nan])[-1]
            total = job.labels.rows * job.config.epochs
            rows, steps = int(state.counters[ROWS]), int(state.counters[STEP])
            seconds, validation = perf_counter() - began, validation_losses[-1] if validation_losses else None
            callback(Progress(epoch, job.config.epochs, rows, total, steps, loss, seconds, times, validation, ended))

    stream = WindowStream(
        feed.source,
        job.encoder,
        feed.plan,
        n_jobs=feed.memory.n_jobs,
        start=Position(first_epoch),
        stop_epoch=first_epoch + job.config.epochs,
        times=times,
    )
    with closing(iter(stream)) as windows:  # type: ignore[type-var]  # no thread is left when an error ends the loop
        for window in windows:
            learn(job, feed, state, window, times, partial(tell, window.epoch))
            skipped += window.skipped
            if window.last:
                epochs += 1
                losses.append(_mean(job, state))
                state.totals[:] = 0
                if feed.validation is not None:
                    score = validation_loss(job, feed, state)
                    validation_losses.append(score)
                    no_gain = no_gain + 1 if best is not None and score > best[0] - job.config.tol else 0
                    if best is None or score < best[0]:
                        best = score, state.weights(job).copy()
                tell(window.epoch, ended=True)
                if job.config.early_stopping and no_gain >= job.config.n_iter_no_change:
                    break
    chosen = best[1] if job.config.early_stopping and best is not None else state.weights(job)
    return Result(
        model=finish(job, chosen),
        rows=int(state.counters[ROWS]),
        epochs=epochs,
        steps=int(state.counters[STEP]),
        seconds=perf_counter() - began,
        train_loss=losses[-1] if losses else float("nan"),
        losses=losses,
        validation_losses=validation_losses,
        skipped_rows=skipped // max(1, epochs),
        window_rows=feed.plan.capacity,
        peak_rss_bytes=peak_rss(),
        times=times,
    )


def learn(job: Job, feed: Feed, state: State, window: Window, times: Times, tell: Callable[[], None]) -> None:
    """Take the rows of a window, mini-batch by mini-batch."""
    config, layout = job.config, job.encoder.layout
    n = len(window.order)
    call = max(1, min(CELLS_PER_CALL // layout.stride, -(-feed.plan.total // SNAPSHOTS)))
    optimizer_args, schedule_args = np.array(config.optimizer_args()), np.array(config.schedule_args(job.eta0))
    for start in range(0, max(n, 1), call):  # an empty window, all of whose targets are null, may end an epoch
        began = perf_counter()
        stop = min(n, start + call)
        failed = drain(
            window.rows,
            window.order,
            start,
            stop,
            layout.y_cell,
            layout.w_cell,
            job.loss.code,
            config.method.code,
            optimizer_args,
            config.schedule.code,
            schedule_args,
            config.l2,
            config.fit_intercept,
            job.batch_rows,
            job.inverse_scale,
            state.params,
            state.slots,
            state.carry,
            state.counters,
            state.totals,
            window.last and stop == n,
        )
        times.computing += perf_counter() - began
        if failed >= 0:
            raise TrainingDiverged(
                f"step {failed} (epoch {window.epoch + 1}) made a weight infinite or NaN. The learning rate is likely "
                f"too large for these data: try a tenth of eta0={job.eta0:g}, a larger batch_size, or "
                f"optimizer='adagrad'."
            )
        state.take_snapshot()
        tell()


def _mean(job: Job, state: State) -> float:
    """Mean loss since the epoch began, each mini-batch scored before it was learned from, in units of the target."""
    return float(state.totals[LOSS] / max(state.totals[WEIGHT], 1e-300)) * job.labels.scale**2


def validation_loss(job: Job, feed: Feed, state: State) -> float:
    """Mean loss of the held-out or validation rows."""
    assert feed.validation is not None
    model = finish(job, state.weights(job))
    return mean_loss(feed.validation, model, weight=job.encoder.weight, n_jobs=feed.memory.n_jobs)
