"""Whole passes: the objective and its gradient over all rows, for SciPy's L-BFGS.

Rows come in the order in which they lie, in every pass the same, and all sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from .data.shuffle import Plan
from .data.stream import Position, Times, Window, WindowStream
from .errors import CheckpointError, TrainingDiverged
from .job import Feed, Job, finish
from .keeper import Keeper
from .kernels.objective import add_objective
from .memory import peak_rss
from .memoryplan import LBFGS_MEMORY
from .penalties import penalty_value
from .state import Progress, Result
from .steps import fetched

#: A gradient whose largest entry is this small counts as 0.
GRADIENT_TOLERANCE = 1e-8


class _PassesSpent(Exception):
    """All passes are done."""


class Objective:
    """Mean loss and penalty over all rows, as a function of one vector of all weights that features have.

    Parameters
    ----------
    job : Job
        What is minimised.
    windows : iterator of Window
        The rows again and again, ``n_windows`` a pass.
    n_windows : int
        Windows a pass.
    params, table : ndarray
        Weights to begin with, as `job.finish` takes them.
    keeper : Keeper, optional
        Keeps what each pass gave; passes that it has are not done again.
    """

    def __init__(
        self,
        job: Job,
        windows: Iterator[Window],
        n_windows: int,
        params: NDArray[np.float64],
        table: NDArray[np.float32] | None,
        keeper: Keeper | None = None,
    ) -> None:
        self._job, self._windows, self._n_windows = job, windows, n_windows
        self._keeper = keeper = keeper or Keeper()
        self.rows = self.skipped = self.passes = 0
        self._shape = params.shape
        self._table = None if table is None else table.astype(np.float64)
        self._table_gradient = None if table is None else np.zeros(table.shape)
        self._occurs = np.zeros(0 if table is None else len(table), np.bool_)
        # The first pass also tells which hashed features there are.
        kept = keeper.passes.get(0) if keeper.passes else None
        self._first = None if kept is not None else self._pass(params)
        self._used = np.flatnonzero(self._occurs) if kept is None else kept["used"]
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
        loss, weight, dense = self._first or self._pass(params)
        self._first = None
        config, spread = self._job.config, self._job.spread
        dense[:, :-1] *= self._job.inverse_scale
        dense[:, -1] *= config.fit_intercept
        gradient = np.concatenate([dense.ravel(), self._hashed(self._table_gradient)]) / weight
        pulled = np.concatenate([(spread * params).ravel(), vector[n:]])
        gradient += config.l2 * np.concatenate([(spread**2 * params).ravel(), vector[n:]])
        return loss / weight, loss / weight + penalty_value(pulled, config.l1, config.l2), gradient

    def _pass(self, params: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
        """Sums of losses, of weights, and of the dense gradient; those of hashed weights stand in their table."""
        job, totals, gradient = self._job, np.zeros(2), np.zeros(self._shape)
        problem, layout = job.problem, job.encoder.layout
        if self._table_gradient is not None:
            self._table_gradient[:] = 0
        self.skipped = 0
        for _ in range(self._n_windows):
            window = fetched(self._windows, self._keeper)
            assert window is not None
            add_objective(
                window.rows,
                None if self._table is None else window.rows.view(np.uint32),
                len(window.order),
                layout.cells,
                problem.loss,
                problem.rare,
                problem.loss_args,
                None if job.outputs == 1 else job.outputs,
                params[:, :-1] * job.inverse_scale,
                params[:, -1].copy(),
                job.encoder.spec.kernel_factor,
                self._table,
                self._occurs,
                gradient,
                self._table_gradient,
                totals,
            )
            self.skipped += window.skipped + window.lost
            self.rows += len(window.order)
        return float(totals[0]), max(float(totals[1]), 1e-300), gradient


def descend(
    job: Job,
    feed: Feed,
    passes: int,
    params: NDArray[np.float64],
    table: NDArray[np.float32] | None,
    *,
    keeper: Keeper | None = None,
    callback: Callable[[Progress], None] | None = None,
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
    stream = WindowStream(
        feed.source,
        job.encoder,
        plan,
        n_jobs=feed.memory.n_jobs,
        cache=feed.cache,
        stop=Position(passes),
        times=times,
    )
    unit = job.loss_unit
    best: tuple[float, float, float, NDArray[np.float64]] | None = None
    losses: list[float] = []
    with closing(iter(stream)) as windows:  # type: ignore[type-var]
        objective = Objective(job, windows, plan.n_windows, params, table, keeper)

        def value(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            nonlocal best
            if len(losses) == passes:
                raise _PassesSpent
            loss, total, gradient = objective(vector)
            losses.append(loss * unit)
            if np.isfinite(total) and (best is None or total < best[0]):
                best = total, loss, float(np.linalg.norm(gradient)), vector.copy()
            if callback is not None:
                rows = passes * job.labels.rows
                seconds, done = perf_counter() - began, len(losses) - 1
                callback(
                    Progress(done, passes, objective.rows, rows, len(losses), loss * unit, seconds, times, ended=True)
                )
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
