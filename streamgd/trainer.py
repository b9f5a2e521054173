"""The loop: windows of shuffled rows through the kernel, epoch by epoch, until the end or until nothing is gained.

`job.prepare` has fixed everything that is not learned.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np

from .data.evaluate import mean_loss
from .data.stream import Position, Times, Window, WindowStream
from .errors import TrainingDiverged
from .job import Feed, Job, finish
from .kernels.drain import LOSS, ROWS, STEP, WEIGHT, drain
from .memory import peak_rss
from .model import Model
from .passes import descend
from .state import SNAPSHOTS, Progress, Result, State

#: Cells of encoded rows that one call of the kernel takes; between calls progress is told and Ctrl-C is heard.
CELLS_PER_CALL = 1 << 22


def train(
    job: Job, feed: Feed, state: State, *, first_epoch: int = 0, callback: Callable[[Progress], None] | None = None
) -> Result:
    """Train from a state, which is changed, and return the model.

    Raises
    ------
    TrainingDiverged
        A weight is no longer finite.
    """
    if job.config.by_passes:
        return descend(job, feed, job.config.passes, *state.weights(job), callback=callback)
    began, times = perf_counter(), Times()
    losses: list[float] = []
    validation_losses: list[float] = []
    best: tuple[float, Model] | None = None
    no_gain = skipped = epochs = 0

    def tell(epoch: int, ended: bool = False) -> None:
        if callback is not None:
            loss = _mean(job, state) if state.totals[WEIGHT] else (losses or [np.nan])[-1]
            total = job.labels.rows * job.config.passes
            rows, steps = int(state.counters[ROWS]), int(state.counters[STEP])
            seconds, validation = perf_counter() - began, validation_losses[-1] if validation_losses else None
            callback(Progress(epoch, job.config.passes, rows, total, steps, loss, seconds, times, validation, ended))

    stream = WindowStream(
        feed.source,
        job.encoder,
        feed.plan,
        n_jobs=feed.memory.n_jobs,
        start=Position(first_epoch),
        stop_epoch=first_epoch + job.config.passes,
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
                    model = finish(job, *state.weights(job))
                    score = validation_loss(job, feed, model)
                    validation_losses.append(score)
                    no_gain = no_gain + 1 if best is not None and score > best[0] - job.config.tol else 0
                    if best is None or score < best[0]:
                        best = score, model
                tell(window.epoch, ended=True)
                if job.config.early_stopping and no_gain >= job.config.n_iter_no_change:
                    break
    chosen = best[1] if job.config.early_stopping and best is not None else finish(job, *state.weights(job))
    result = Result(
        model=chosen,
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
    return polished(job, feed, state, result, callback) if job.polish else result


def polished(job: Job, feed: Feed, state: State, result: Result, callback: Callable[[Progress], None] | None) -> Result:
    """Improve the model that steps gave by passes of L-BFGS."""
    # Of few rows, which nobody asked to polish, it takes no time that is worth a display.
    told = callback if job.config.polish else None
    after = descend(job, feed, job.polish, *state.weights(job), callback=told)
    return replace(
        result,
        model=after.model,
        seconds=result.seconds + after.seconds,
        peak_rss_bytes=after.peak_rss_bytes,
        objective=after.objective,
        gradient_norm=after.gradient_norm,
        polish_passes=after.epochs,
    )


def learn(job: Job, feed: Feed, state: State, window: Window, times: Times, tell: Callable[[], None]) -> None:
    """Take the rows of a window, mini-batch by mini-batch."""
    layout, problem, factor = job.encoder.layout, job.problem, job.encoder.spec.kernel_factor
    cells = window.rows.view(np.uint32) if state.table is not None else None
    outputs = job.outputs if job.outputs > 1 else None
    n = len(window.order)
    call = max(1, min(CELLS_PER_CALL // layout.stride, -(-feed.plan.total // SNAPSHOTS)))
    for start in range(0, max(n, 1), call):  # an empty window, all of whose targets are null, may end an epoch
        began = perf_counter()
        stop = min(n, start + call)
        failed = drain(
            window.rows,
            cells,
            window.order,
            start,
            stop,
            window.last and stop == n,
            layout.cells,
            problem,
            outputs,
            job.inverse_scale,
            job.spread,
            factor,
            state.params,
            state.slots,
            state.carry,
            state.table,
            state.marks,
            state.touched,
            state.counters,
            state.totals,
        )
        times.computing += perf_counter() - began
        if failed >= 0:
            raise TrainingDiverged(
                f"step {failed} (epoch {window.epoch + 1}) made a weight infinite or NaN. The learning rate is likely "
                f"too large for these data: try a tenth of eta0={job.eta0:g}, a larger batch_size, or "
                f"optimizer='adagrad'."
            )
        state.take_snapshot(job)
        tell()


def _mean(job: Job, state: State) -> float:
    """Mean loss since the epoch began, each mini-batch scored before it was learned from, in units of the target."""
    mean = float(state.totals[LOSS] / max(state.totals[WEIGHT], 1e-300))
    return mean * float(job.labels.scale) ** job.loss.degree


def validation_loss(job: Job, feed: Feed, model: Model) -> float:
    """Mean loss of the held-out or validation rows."""
    assert feed.validation is not None
    first, second = job.config.loss_args(job.loss, job.labels.scale)
    args = first * (job.labels.scale if job.loss.parameter == "epsilon" else 1.0), second
    return mean_loss(feed.validation, model, args, weight=job.encoder.weight, n_jobs=feed.memory.n_jobs)
