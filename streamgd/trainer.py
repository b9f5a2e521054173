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
from .executors import Executor
from .job import Feed, Job, finish
from .keeper import Keeper
from .kernels.drain import LOSS, ROWS, STEP, WEIGHT
from .memory import peak_rss
from .model import Model
from .passes import descend
from .rounds import advance_in_rounds
from .state import Progress, Result, RoundProgress, State, Story
from .steps import Learners, Moment, advance_in_windows


def train(
    job: Job,
    feed: Feed,
    state: State,
    story: Story | None = None,
    *,
    keeper: Keeper | None = None,
    callback: Callable[[Progress], None] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Train from a state and a story, which are changed, and return the model.

    ``executor`` carries out the rounds of a job with partitions; without one they are done by threads.

    Raises
    ------
    TrainingDiverged
        A weight is no longer finite.
    Interrupted
        The keeper was asked to end training; what was learned stands in a checkpoint.
    """
    story, keeper = story or Story(), keeper or Keeper()
    with closing_cache(feed.cache), keeper.watching(job, feed, state, story):
        if job.config.by_passes:
            weights = state.weights(job)
            result = descend(
                job, feed, job.config.passes, *weights, keeper=keeper, callback=callback, executor=executor
            )
        else:
            result = take_steps(job, feed, state, story, keeper, callback, executor)
        if job.polish:
            result = polished(job, feed, state.weights(job), result, keeper, callback, executor)
    return with_what_was_left_out(feed, result)


def with_what_was_left_out(feed: Feed, result: Result) -> Result:
    """Add to a result what nobody read.

    Raises
    ------
    DataError
        Nothing was read: the first error there was.
    """
    left_out = feed.source.left_out
    if not result.rows and left_out.error is not None:
        raise left_out.error
    result.skipped_rows += left_out.rows
    result.skipped_row_groups = len(left_out.row_groups)
    if feed.cache is not None and feed.cache.trouble:
        result.trouble.append(feed.cache.trouble)
    result.trouble += left_out.remarks()
    if feed.validation is not None:
        result.trouble += feed.validation.left_out.remarks()
    return result


def take_steps(
    job: Job,
    feed: Feed,
    state: State,
    story: Story,
    keeper: Keeper,
    callback: Callable[[Progress], None] | None,
    executor: Executor | None = None,
) -> Result:
    """Train epoch by epoch."""
    began, times = perf_counter() - story.seconds, Times()

    def tell(ended: bool = False, standing: RoundProgress | None = None) -> None:
        if callback is not None:
            callback(progress(job, state, story, times, perf_counter() - began, ended, standing))

    def watch(standing: RoundProgress) -> None:
        tell(standing=standing)

    learners = Learners(job, state)
    with closing(advance(learners, feed, times, keeper, story, executor, watch)) as moments:
        for moment in moments:
            story.position, story.skipped = moment.position, story.skipped + moment.skipped
            if moment.ended:
                close_epoch(job, feed, state, story, keeper, perf_counter() - began)
                story.epoch_began = perf_counter() - began
            tell(moment.ended)
            keeper.reached(moment.ended or moment.round_ended)
            if story.over:
                break
    best = story.best if job.config.early_stopping else None
    return Result(
        model=best[1] if best is not None else finish(job, *state.weights(job)),
        rows=int(state.counters[ROWS]),
        epochs=len(story.losses),
        steps=int(state.counters[STEP]),
        seconds=perf_counter() - began,
        train_loss=story.losses[-1] if story.losses else float("nan"),
        losses=story.losses,
        validation_losses=story.validation_losses,
        skipped_rows=story.skipped // max(1, len(story.losses)),
        window_rows=feed.plan.capacity,
        peak_rss_bytes=peak_rss(),
        times=times,
        epoch_seconds=story.epoch_seconds,
    )


def close_epoch(job: Job, feed: Feed, state: State, story: Story, keeper: Keeper, seconds: float) -> None:
    """Validate the model, write down the loss, and begin another sum of losses."""
    if feed.validation is not None:
        with keeper.idle():
            model = finish(job, *state.weights(job))
            score = validation_loss(job, feed, model)
        story.validated(score, model, job.config.tol)
    story.epoch_seconds.append(seconds - story.epoch_began)
    story.close_epoch(mean_so_far(job, state))
    story.over = job.config.early_stopping and story.no_gain >= job.config.n_iter_no_change
    state.totals[:] = 0


def progress(
    job: Job,
    state: State,
    story: Story,
    times: Times,
    seconds: float,
    ended: bool,
    standing: RoundProgress | None = None,
) -> Progress:
    """Where training stands, for who watches; rows of a round under way are counted by partitions."""
    epoch = story.position.epoch - story.first_epoch - ended
    rows, steps, total = int(state.counters[ROWS]), int(state.counters[STEP]), job.labels.rows * job.config.passes
    if standing is not None:
        rows += job.labels.rows * standing.partitions_done // (standing.partitions * standing.rounds)
    loss = mean_so_far(job, state) if state.totals[0, WEIGHT] else (story.losses or [np.nan])[-1]
    validation = story.validation_losses[-1] if story.validation_losses else None
    return Progress(epoch, job.config.passes, rows, total, steps, loss, seconds, times, validation, ended, standing)


def advance(
    learners: Learners,
    feed: Feed,
    times: Times,
    keeper: Keeper | None = None,
    story: Story | None = None,
    executor: Executor | None = None,
    watch: Callable[[RoundProgress], None] = lambda _: None,
) -> Generator[Moment, None, None]:
    """Take all epochs that are left, in one stream or in rounds of several, and pause now and then."""
    keeper, story = keeper or Keeper(), story or Story()
    last = story.position.epoch if story.over else story.first_epoch + learners.job.config.passes
    if learners.job.config.streams == 1:
        return advance_in_windows(learners, feed, times, keeper, story.position, last)
    return advance_in_rounds(learners, feed, times, keeper, story.position, last, executor=executor, watch=watch)


def polished(
    job: Job,
    feed: Feed,
    weights: tuple[NDArray[np.float64], NDArray[np.float32] | None],
    result: Result,
    keeper: Keeper | None = None,
    callback: Callable[[Progress], None] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Improve the model that steps gave by passes of L-BFGS."""
    # Of few rows, which nobody asked to polish, it takes no time that is worth a display.
    told = callback if job.config.polish else None
    after = descend(job, feed, job.polish, *weights, keeper=keeper, callback=told, executor=executor)
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
