"""Whole passes: the objective and its gradient over all rows, for SciPy's L-BFGS.

Rows come in the order in which they lie, in every pass the same, and all sums are float64. With partitions a pass is a
round: each sums up its own rows, and their sums are added in a fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import count
from time import perf_counter, thread_time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .data.leftout import LeftOut
from .data.shuffle import Plan
from .data.stream import Position, Times, Window, WindowStream
from .errors import CheckpointError, TrainingDiverged
from .executors import Executor
from .job import Feed, Job, finish
from .keeper import Keeper
from .kernels.objective import add_objective
from .memory import peak_rss
from .memoryplan import LBFGS_MEMORY
from .penalties import penalty_value
from .rounds import Dealt, carried_out, on_threads
from .state import Progress, Result, RoundProgress
from .steps import fetched

#: A gradient whose largest entry is this small counts as 0.
GRADIENT_TOLERANCE = 1e-8


class _PassesSpent(Exception):
    """All passes are done."""


class Weights(NamedTuple):
    """Where a pass takes the gradient: dense weights, and the table of hashed ones in float64."""

    params: NDArray[np.float64]
    table: NDArray[np.float64] | None


@dataclass
class Sums:
    """Sums over rows: of losses and weights, of the gradient; and which hashed features there are."""

    totals: NDArray[np.float64]
    gradient: NDArray[np.float64]
    table_gradient: NDArray[np.float64] | None
    occurs: NDArray[np.bool_]
    times: Times
    left_out: LeftOut
    rows: int = 0
    skipped: int = 0

    @classmethod
    def zero(cls, weights: Weights, left_out: LeftOut) -> Sums:
        """Sums over no rows."""
        params, table = weights
        hashed = None if table is None else np.zeros(table.shape)
        occurs = np.zeros(0 if table is None else len(table), np.bool_)
        return cls(np.zeros(2), np.zeros(params.shape), hashed, occurs, Times(), left_out)

    def add(self, job: Job, weights: Weights, window: Window) -> None:
        """Add the rows of a window."""
        problem = job.problem
        add_objective(
            window.rows,
            None if weights.table is None else window.rows.view(np.uint32),
            len(window.order),
            job.encoder.layout.cells,
            problem.loss,
            problem.rare,
            problem.loss_args,
            None if job.outputs == 1 else job.outputs,
            weights.params[:, :-1] * job.inverse_scale,
            weights.params[:, -1].copy(),
            job.encoder.spec.kernel_factor,
            weights.table,
            self.occurs,
            self.gradient,
            self.table_gradient,
            self.totals,
        )
        self.skipped += window.skipped + window.lost
        self.rows += len(window.order)

    def plus(self, other: Sums) -> Sums:
        """Sums over the rows of both."""
        times = Times(**vars(self.times))
        times.add(other.times)
        hashed = None
        if self.table_gradient is not None and other.table_gradient is not None:
            hashed = self.table_gradient + other.table_gradient
        return Sums(
            self.totals + other.totals,
            self.gradient + other.gradient,
            hashed,
            self.occurs | other.occurs,
            times,
            self.left_out.merged(other.left_out),
            self.rows + other.rows,
            self.skipped + other.skipped,
        )


@dataclass(frozen=True)
class Pass:
    """A pass over the rows of all partitions: a round whose parts are sums."""

    number: int

    def part(self, shared: Dealt, start: Weights, number: int) -> Sums:
        """Sums over the rows of a partition."""
        job, partition = shared.job, shared.partitions[number]
        sums = Sums.zero(start, partition.source.left_out)
        plan = Plan(partition.source.manifest.rows, partition.plan.capacity, shuffle=False)
        with shared.window() as rows:
            stream = WindowStream(
                partition.source, job.encoder, plan, n_jobs=0, cache=partition.cache, rows=rows, times=sums.times
            )
            for window in stream:
                began = thread_time()
                sums.add(job, start, window)
                sums.times.computing += thread_time() - began
        return sums

    def join(self, shared: Dealt, start: Weights, left: Sums, right: Sums) -> Sums:
        """Sums over the rows of neighbours."""
        return left.plus(right)


#: All sums at some weights, and how much is done of it.
Summation = Callable[[Weights], Sums]


class Objective:
    """Mean loss and penalty over all rows, as a function of one vector of all weights that features have.

    Parameters
    ----------
    job : Job
        What is minimised.
    summed : callable
        Gives the sums over all rows at some weights.
    params, table : ndarray
        Weights to begin with, as `job.finish` takes them.
    keeper : Keeper, optional
        Keeps what each pass gave; passes that it has are not done again.
    """

    def __init__(
        self,
        job: Job,
        summed: Summation,
        params: NDArray[np.float64],
        table: NDArray[np.float32] | None,
        keeper: Keeper | None = None,
    ) -> None:
        self._job, self._summed = job, summed
        self._keeper = keeper = keeper or Keeper()
        self.rows = self.skipped = self.passes = 0
        self._shape = params.shape
        self._table = None if table is None else table.astype(np.float64)
        # The first pass also tells which hashed features there are.
        kept = keeper.passes.get(0) if keeper.passes else None
        self._first = None if kept is not None else self._pass(params)
        self._used = kept["used"] if kept is not None else np.flatnonzero(self._first.occurs)  # type: ignore[union-attr]
        self.start = np.concatenate([params.ravel(), self._hashed(self._table)])

    def _hashed(self, table: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Numbers of the hashed features that there are, as a vector."""
        return np.zeros(0) if table is None else table[self._used].ravel()

    def weights(self, vector: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        """Dense weights, and a table of hashed ones, of a vector."""
        n, outputs = int(np.prod(self._shape)), self._shape[0]
        if self._table is None:
            return vector.reshape(self._shape), None
        table = np.zeros((len(self._table), outputs), np.float32)
        table[self._used] = vector[n:].reshape(-1, outputs)
        return vector[:n].reshape(self._shape), table

    def __call__(self, vector: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
        """Mean loss, objective and gradient at a vector of weights."""
        number, log = self.passes, self._keeper.passes
        self.passes += 1
        if log is not None and (kept := log.get(number)) is not None:
            if len(kept["vector"]) != len(vector) or (kept["vector"] != vector).any():
                raise CheckpointError(f"pass {number + 1} is kept of other weights: begin anew in another directory.")
            loss, total, self.rows, self.skipped = kept["loss"][0], kept["loss"][1], *map(int, kept["rows"])
            return float(loss), float(total), kept["gradient"]
        loss, total, gradient = self._evaluate(vector)
        if log is not None:
            log.put(
                number,
                {
                    "loss": np.array([loss, total]),
                    "rows": np.array([self.rows, self.skipped]),
                    "vector": vector,
                    "gradient": gradient,
                    "used": self._used if number == 0 else self._used[:0],
                },
            )
        self._keeper.reached(False)
        return loss, total, gradient

    def _evaluate(self, vector: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
        n = int(np.prod(self._shape))
        params = vector[:n].reshape(self._shape)
        if self._table is not None:
            self._table[self._used] = vector[n:].reshape(-1, self._shape[0])
        sums, self._first = self._first or self._pass(params), None
        loss, weight = float(sums.totals[0]), max(float(sums.totals[1]), 1e-300)
        config, spread, dense = self._job.config, self._job.spread, sums.gradient
        dense[:, :-1] *= self._job.inverse_scale
        dense[:, -1] *= config.fit_intercept
        gradient = np.concatenate([dense.ravel(), self._hashed(sums.table_gradient)]) / weight
        pulled = np.concatenate([(spread * params).ravel(), vector[n:]])
        gradient += config.l2 * np.concatenate([(spread**2 * params).ravel(), vector[n:]])
        return loss / weight, loss / weight + penalty_value(pulled, config.l1, config.l2), gradient

    def _pass(self, params: NDArray[np.float64]) -> Sums:
        sums = self._summed(Weights(params, self._table))
        self.rows += sums.rows
        self.skipped = sums.skipped
        return sums


def in_one_stream(job: Job, feed: Feed, windows: Iterator[Window], n_windows: int, keeper: Keeper) -> Summation:
    """Sum up windows that come again and again, ``n_windows`` a pass."""

    def summed(weights: Weights) -> Sums:
        sums = Sums.zero(weights, feed.source.left_out)
        for _ in range(n_windows):
            window = fetched(windows, keeper)
            assert window is not None
            sums.add(job, weights, window)
        return sums

    return summed


def in_parts(
    job: Job,
    feed: Feed,
    times: Times,
    keeper: Keeper,
    executor: Executor | None,
    watch: Callable[[RoundProgress], None],
) -> Summation:
    """Let each partition sum up its rows."""
    dealt = Dealt.of(job, feed)
    executor = executor or on_threads(dealt, feed)
    passes = count()

    def summed(weights: Weights) -> Sums:
        number = next(passes)
        standing = RoundProgress(0, 1, len(dealt.partitions))
        sums: Sums = carried_out(executor, Pass(number), dealt, weights, keeper, standing, watch)
        times.add(sums.times)
        feed.source.left_out.absorb(sums.left_out)
        return sums

    return summed


def descend(
    job: Job,
    feed: Feed,
    passes: int,
    params: NDArray[np.float64],
    table: NDArray[np.float32] | None,
    *,
    keeper: Keeper | None = None,
    callback: Callable[[Progress], None] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Minimise the objective from given weights by at most so many passes of L-BFGS, and keep the best weights.

    Raises
    ------
    TrainingDiverged
        The objective is not finite where it begins.
    """
    from scipy.optimize import minimize

    began, times, keeper = perf_counter(), Times(), keeper or Keeper()
    plan = Plan(feed.source.manifest.rows, feed.plan.capacity, shuffle=False)
    unit = job.loss_unit
    best: tuple[float, float, float, NDArray[np.float64]] | None = None
    losses: list[float] = []

    def tell(ended: bool, standing: RoundProgress | None = None) -> None:
        if callback is None:
            return
        rows, done = objective.rows if ended else len(losses) * job.labels.rows, len(losses) - ended
        if standing is not None:
            rows += job.labels.rows * standing.partitions_done // standing.partitions
        loss, seconds = losses[-1] if losses else float("nan"), perf_counter() - began
        total = passes * job.labels.rows
        callback(Progress(done, passes, rows, total, len(losses), loss, seconds, times, None, ended, standing))

    with ExitStack() as stack:
        if job.config.streams == 1:
            stream = WindowStream(
                feed.source,
                job.encoder,
                plan,
                n_jobs=feed.memory.n_jobs,
                cache=feed.cache,
                stop=Position(passes),
                times=times,
            )
            windows = stack.enter_context(closing(iter(stream)))  # type: ignore[type-var]
            summed = in_one_stream(job, feed, windows, plan.n_windows, keeper)
        else:
            summed = in_parts(job, feed, times, keeper, executor, lambda standing: tell(False, standing))
        objective = Objective(job, summed, params, table, keeper)

        def value(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            nonlocal best
            if len(losses) == passes:
                raise _PassesSpent
            loss, total, gradient = objective(vector)
            losses.append(loss * unit)
            if np.isfinite(total) and (best is None or total < best[0]):
                best = total, loss, float(np.linalg.norm(gradient)), vector.copy()
            tell(True)
            return total, gradient

        options = {"maxiter": passes, "maxfun": passes, "maxcor": LBFGS_MEMORY, "ftol": 0.0, "gtol": GRADIENT_TOLERANCE}
        with suppress(_PassesSpent):
            minimize(value, objective.start, jac=True, method="L-BFGS-B", options=options)
    if best is None:
        raise TrainingDiverged("the objective is infinite or NaN where L-BFGS begins; look for features far out.")
    model = finish(job, *objective.weights(best[3]))
    return Result(
        model=model,
        rows=objective.rows,
        epochs=len(losses),
        steps=len(losses),
        seconds=perf_counter() - began,
        train_loss=best[1] * unit,
        losses=losses,
        validation_losses=[],
        skipped_rows=objective.skipped,
        window_rows=plan.capacity,
        peak_rss_bytes=peak_rss(),
        times=times,
        objective=best[0] * unit,
        gradient_norm=best[2],
    )
