"""The loop: epoch by epoch, until the end or until nothing is gained.

`job.prepare` has fixed everything that is not learned.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from .data.cache import closing_cache
from .data.evaluate import mean_loss
from .data.stream import Times
from .job import Feed, Job, finish
from .kernels.drain import LOSS, ROWS, STEP, WEIGHT
from .memory import peak_rss
from .model import Model
from .passes import descend
from .rounds import advance_in_rounds
from .state import Progress, Result, State
from .steps import Learners, Moment, advance_in_windows


def train(
    job: Job, feed: Feed, state: State, *, first_epoch: int = 0, callback: Callable[[Progress], None] | None = None
) -> Result:
    """Train from a state, which is changed, and return the model.

    Raises
    ------
    TrainingDiverged
        A weight is no longer finite.
    """
    with closing_cache(feed.cache):
        if job.config.by_passes:
            result = descend(job, feed, job.config.passes, *state.weights(job), callback=callback)
        else:
            result = take_steps(job, feed, state, first_epoch, callback)
        if job.polish:
            result = polished(job, feed, state.weights(job), result, callback)
    if feed.cache is not None:
        result.cache_trouble = feed.cache.trouble
    return result


def take_steps(
    job: Job, feed: Feed, state: State, first_epoch: int, callback: Callable[[Progress], None] | None
) -> Result:
    """Train epoch by epoch."""
    began, times = perf_counter(), Times()
    losses: list[float] = []
    validation_losses: list[float] = []
    seconds: list[float] = []
    best: tuple[float, Model] | None = None
    no_gain = skipped = 0

    def tell(epoch: int, ended: bool = False) -> None:
        if callback is not None:
            loss = mean_so_far(job, state) if state.totals[0, WEIGHT] else (losses or [np.nan])[-1]
            total = job.labels.rows * job.config.passes
            rows, steps = int(state.counters[ROWS]), int(state.counters[STEP])
            spent, validation = perf_counter() - began, validation_losses[-1] if validation_losses else None
            callback(Progress(epoch, job.config.passes, rows, total, steps, loss, spent, times, validation, ended))

    epoch_began = began
    with closing(advance(Learners(job, state), feed, times, first_epoch)) as moments:
        for moment in moments:
            skipped += moment.skipped
            if not moment.ended:
                tell(moment.epoch)
                continue
            losses.append(mean_so_far(job, state))
            state.totals[:] = 0
            seconds.append(perf_counter() - epoch_began)
            if feed.validation is not None:
                model = finish(job, *state.weights(job))
                score = validation_loss(job, feed, model)
                validation_losses.append(score)
                no_gain = no_gain + 1 if best is not None and score > best[0] - job.config.tol else 0
                if best is None or score < best[0]:
                    best = score, model
            tell(moment.epoch, ended=True)
            if job.config.early_stopping and no_gain >= job.config.n_iter_no_change:
                break
            epoch_began = perf_counter()
    chosen = best[1] if job.config.early_stopping and best is not None else finish(job, *state.weights(job))
    return Result(
        model=chosen,
        rows=int(state.counters[ROWS]),
        epochs=len(losses),
        steps=int(state.counters[STEP]),
        seconds=perf_counter() - began,
        train_loss=losses[-1] if losses else float("nan"),
        losses=losses,
        validation_losses=validation_losses,
        skipped_rows=skipped // max(1, len(losses)),
        window_rows=feed.plan.capacity,
        peak_rss_bytes=peak_rss(),
        times=times,
        epoch_seconds=seconds,
    )


def advance(learners: Learners, feed: Feed, times: Times, first_epoch: int = 0) -> Generator[Moment, None, None]:
    """Take all epochs, in one stream or in rounds of several, and pause now and then."""
    if learners.job.config.partitions > 1:
        return advance_in_rounds(learners, feed, times, first_epoch)
    return advance_in_windows(learners, feed, times, first_epoch)


def polished(
    job: Job,
    feed: Feed,
    weights: tuple[NDArray[np.float64], NDArray[np.float32] | None],
    result: Result,
    callback: Callable[[Progress], None] | None,
) -> Result:
    """Improve the model that steps gave by passes of L-BFGS."""
    # Of few rows, which nobody asked to polish, it takes no time that is worth a display.
    told = callback if job.config.polish else None
    after = descend(job, feed, job.polish, *weights, callback=told)
    return replace(
        result,
        model=after.model,
        seconds=result.seconds + after.seconds,
        peak_rss_bytes=after.peak_rss_bytes,
        objective=after.objective,
        gradient_norm=after.gradient_norm,
        polish_passes=after.epochs,
    )


def mean_so_far(job: Job, state: State, model: int = 0) -> float:
    """Mean loss since the epoch began, each mini-batch scored before it was learned from, in units of the target."""
    loss, weight = state.totals[model, [LOSS, WEIGHT]]
    return float(loss / max(weight, 1e-300)) * job.loss_unit


def validation_loss(job: Job, feed: Feed, model: Model) -> float:
    """Mean loss of the held-out or validation rows."""
    assert feed.validation is not None
    first, second = job.config.loss_args(job.loss, job.labels.scale)
    args = first * (job.labels.scale if job.loss.parameter == "epsilon" else 1.0), second
    return mean_loss(feed.validation, model, args, weight=job.encoder.weight, n_jobs=feed.memory.n_jobs)
