"""Many models in one pass: configurations trained side by side, of which the losers are dropped.

Reading and encoding rows costs more than learning from them, so K models that learn from the same mini-batches cost
little more than one. Each gets the bits that it would get alone. Successive halving (Jamieson, Talwalkar 2016) drops
the worse half at ..., a quarter and half of the first epoch, by the loss of rows before they are learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from .data.cache import closing_cache
from .data.stream import Times
from .errors import ConfigError, TrainingDiverged
from .job import Feed, Job, finish
from .kernels.drain import ROWS, STEP, WEIGHT
from .memory import peak_rss
from .state import Progress, Result, State
from .steps import Learners, Moment
from .trainer import advance, mean_so_far, polished, validation_loss, with_what_was_left_out


@dataclass
class Standing:
    """How one configuration fared.

    Attributes
    ----------
    index : int
        Its place among those that were given.
    params : dict
        What it was given.
    progressive_loss : float
        Mean loss of the rows of the first epoch, or of those up to where it was dropped, before they were learned from.
    validation_loss : float or None
        Loss of the validation rows in the end.
    rows : int
        Rows it has learned from.
    dropped : bool
        Whether it was dropped on the way.
    diverged : bool
        Whether a weight became infinite.
    behind : float or None
        By how much its loss was above the best, of the rows since the last time that some were dropped, when it was.
    result : Result or None
        The model and its figures; only of the best.
    """

    index: int
    params: dict[str, Any]
    progressive_loss: float = float("nan")
    validation_loss: float | None = None
    rows: int = 0
    dropped: bool = False
    diverged: bool = False
    behind: float | None = None
    result: Result | None = None

    @property
    def rank(self) -> tuple[bool, bool, float, float]:
        """What they are sorted by: the best is the least."""
        losses = [np.inf if x is None or np.isnan(x) else x for x in (self.validation_loss, self.progressive_loss)]
        return self.diverged, self.dropped, losses[0], losses[1]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        losses = [None if x is None or not np.isfinite(x) else x for x in (self.progressive_loss, self.validation_loss)]
        return {
            **self.params,
            "progressive_loss": losses[0],
            "validation_loss": losses[1],
            "rows": self.rows,
            "dropped": self.dropped,
            "diverged": self.diverged,
            "behind": self.behind,
        }


class _Field:
    """The models that are still trained."""

    def __init__(self, job: Job, params: list[dict[str, Any]]) -> None:
        self.learners = Learners(job, State.start(job))
        self.standings = [Standing(index, given) for index, given in enumerate(params)]
        self.first_epoch = True
        self.alive = list(range(len(params)))
        self._since = np.zeros((len(params), 2))

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The job of each."""
        return self.learners.job.models

    def recent(self) -> Any:
        """Mean loss of each since the last time that some were dropped."""
        loss, weight = (self.learners.state.totals - self._since).T
        return loss / np.maximum(weight, 1e-300)

    def note(self, place: int) -> None:
        """Write down how one stands."""
        job, state, standing = self.learners.job, self.learners.state, self.standings[self.alive[place]]
        standing.rows = int(state.counters[ROWS])
        standing.diverged = bool(state.failed[place] >= 0)
        if self.first_epoch and state.totals[place, WEIGHT]:
            standing.progressive_loss = mean_so_far(job, state, place)

    def keep(self, places: list[int]) -> None:
        """Drop the others."""
        for place in set(range(len(self.alive))) - set(places):
            self.note(place)
            self.standings[self.alive[place]].dropped = True
        learners = self.learners
        models = tuple(learners.job.models[place] for place in places)
        learners.state = learners.state.keep(learners.job, places)
        learners.job = models[0] if len(models) == 1 else replace(models[0], beside=models)
        self.alive = [self.alive[place] for place in places]
        self._since = learners.state.totals.copy()

    def halve(self) -> None:
        """Drop the worse half, but leave two."""
        losses = self.recent()
        order = np.argsort(losses, kind="stable")
        kept, unit = max(2, -(-len(self.alive) // 2)), self.learners.job.loss_unit
        for place in order[kept:].tolist():
            self.standings[self.alive[place]].behind = float(losses[place] - losses[order[0]]) * unit
        self.keep(sorted(order[:kept].tolist()))

    def drop_diverged(self) -> None:
        """Drop those that have a weight which is not finite."""
        finite = np.flatnonzero(self.learners.state.failed < 0).tolist()
        if len(finite) < len(self.alive):
            self.keep(finite)


def race(
    job: Job,
    feed: Feed,
    params: list[dict[str, Any]],
    *,
    halving: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> list[Standing]:
    """Train the models of a job side by side; return how they stand, best first, the best with its result.

    Parameters
    ----------
    job : Job
        With several `Job.models`, in the order of ``params``.
    feed : Feed
        The rows; if it has validation rows, these decide in the end, else the rows of the first epoch before they
        were learned from.
    params : list of dict
        What each model was given.
    halving : bool
        Whether to drop the worse half now and then, until two are left.
    callback : callable, optional
        Told of progress.

    Raises
    ------
    ConfigError
        Nothing would tell the models apart.
    TrainingDiverged
        Of every model a weight is no longer finite.
    """
    if job.config.early_stopping:
        raise ConfigError("early_stopping does nothing where models are compared by their losses; leave it out.")
    if feed.validation is None and job.batch_rows >= job.labels.rows:
        raise ConfigError("in its first epoch a model takes a single step, after all rows: give validation data.")
    field, times, began = _Field(job, params), Times(), perf_counter()
    cuts = _cuts(len(params), job.labels.rows, job.batch_rows) if halving else []
    seconds, skipped = [began], 0
    with closing_cache(feed.cache):
        with closing(advance(field.learners, feed, times)) as moments:
            for moment in moments:
                skipped += moment.skipped
                _tell(field, moment, perf_counter() - began, times, callback)
                if moment.ended and field.first_epoch:
                    for place in range(len(field.alive)):
                        field.note(place)
                field.drop_diverged()
                if moment.ended:
                    field.first_epoch = False
                    field.learners.state.totals[:] = 0
                    seconds.append(perf_counter())
                elif field.first_epoch and cuts and field.learners.state.counters[ROWS] >= cuts[0]:
                    cuts.pop(0)
                    field.halve()
        _finish(field, feed, times, skipped, seconds)
    ranked = sorted(field.standings, key=lambda standing: standing.rank)
    if ranked[0].diverged or ranked[0].result is None:
        raise TrainingDiverged("every model has diverged: try smaller learning rates (eta0).")
    ranked[0].result = with_what_was_left_out(feed, ranked[0].result)
    return ranked


def _cuts(models: int, rows: int, batch_rows: int) -> list[float]:
    """Rows after which half of the models go, until two are left: ..., a quarter and half of the first epoch.

    None goes before its second step: up to the first their losses are the same.
    """
    times = max(0, int(np.ceil(np.log2(max(1, models)))) - 1)
    return [cut for k in range(times) if (cut := rows / 2 ** (times - k)) >= 2 * batch_rows]


def _finish(field: _Field, feed: Feed, times: Times, skipped: int, seconds: list[float]) -> None:
    """Make the models of those that are left, measure them, and keep the best."""
    best: Standing | None = None
    for place, model_job in enumerate(field.jobs):
        state, standing = field.learners.state, field.standings[field.alive[place]]
        standing.rows = int(state.counters[ROWS])
        weights = state.weights(field.learners.job, place)
        result = Result(
            model=finish(model_job, *weights),
            rows=standing.rows,
            epochs=len(seconds) - 1,
            steps=int(state.counters[STEP]),
            seconds=perf_counter() - seconds[0],
            train_loss=standing.progressive_loss,
            losses=[standing.progressive_loss],
            validation_losses=[],
            skipped_rows=skipped // max(1, len(seconds) - 1),
            window_rows=feed.plan.capacity,
            peak_rss_bytes=peak_rss(),
            times=times,
            epoch_seconds=np.diff(seconds).tolist(),
        )
        if model_job.polish:
            result = polished(model_job, feed, weights, result)
        if feed.validation is not None:
            standing.validation_loss = validation_loss(model_job, feed, result.model)
            result.validation_losses = [standing.validation_loss]
        if best is None or standing.rank < best.rank:
            if best is not None:
                best.result = None
            standing.result, best = result, standing


def _tell(
    field: _Field, moment: Moment, seconds: float, times: Times, callback: Callable[[Progress], None] | None
) -> None:
    """Tell of the best of those that are left."""
    if callback is None:
        return
    job, state = field.learners.job, field.learners.state
    loss = float(np.fmin.reduce([mean_so_far(job, state, place) for place in range(len(field.alive))]))
    passes, rows, steps = job.config.passes, int(state.counters[ROWS]), int(state.counters[STEP])
    total = job.labels.rows * passes
    callback(Progress(moment.position.epoch, passes, rows, total, steps, loss, seconds, times, None, moment.ended))
