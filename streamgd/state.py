"""What training changes, and what it tells: weights and their state, progress, the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data.stream import START, Position, Times
from .data.threads import consecutive, parallel
from .job import Job
from .kernels.tables import average_table
from .model import Model

#: The weights enter the average so many times an epoch, with weights that grow as time to the power of ...
SNAPSHOTS = 64
AVERAGE_POWER = 8
#: A thread that helps with the average of a table has so many slots to do, 4 ms: it takes 0.1 ms to start.
SLOTS_A_THREAD = 1 << 20
#: The list of slots that a mini-batch touches holds so many; if they are more, the whole table is looked through.
MOST_TOUCHED, TOUCHED_A_ROW = 1 << 20, 1024


@dataclass
class State:
    """All that an update reads and writes; shapes as in `streamgd.kernels.drain`.

    ``average`` holds the average of ``params`` over ``snapshots`` moments, weighted towards the end: the noise of
    the last steps goes, and what was learned early is soon forgotten (polynomial decay; Shamir, Zhang 2013). Taking
    64 snapshots an epoch instead of every step costs nothing and is as good. ``table_average`` is the same of hashed
    weights, float32[models, slots, outputs], where fewer are taken if the table is large for the data.
    """

    params: NDArray[np.float64]
    slots: NDArray[np.float64]
    carry: NDArray[np.float64]
    counters: NDArray[np.int64]
    totals: NDArray[np.float64]
    failed: NDArray[np.int64]
    average: NDArray[np.float64]
    table: NDArray[np.float32] | None
    touched: NDArray[np.int64]
    table_average: NDArray[np.float32] | None
    snapshots: int = 0
    table_snapshots: int = 0

    @classmethod
    def start(cls, job: Job) -> State:
        """Weights 0; intercepts at what the base rate says."""
        arrays: dict[str, Any] = {name: np.zeros(shape, kind) for name, (shape, kind) in cls.shapes(job).items()}
        state = cls(**{"table": None, "table_average": None, **arrays})
        state.params[:, -1] = np.tile(np.broadcast_to(job.start, job.outputs), len(job.models))
        state.failed[:] = -1
        state.average[:] = state.params
        return state

    @classmethod
    def shapes(cls, job: Job) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array."""
        models, shape, slots = len(job.models), job.table, job.encoder.spec.n_slots
        params = job.outputs * models, len(job.inverse_scale) + 1
        listed = min(slots, MOST_TOUCHED, job.batch_rows * max(TOUCHED_A_ROW, job.encoder.layout.n_index))
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "params": (params, "<f8"),
            "slots": ((2, *params), "<f8"),
            "carry": (params, "<f8"),
            "counters": ((4,), "<i8"),
            "totals": ((models, 2), "<f8"),
            "failed": ((models,), "<i8"),
            "average": (params, "<f8"),
            "touched": ((listed,), "<i8"),
        }
        if slots:
            shapes["table"] = (slots, shape.cells), "<f4"
        if slots and shape.averaged:
            shapes["table_average"] = (models, slots, job.outputs), "<f4"
        return shapes

    @property
    def marks(self) -> NDArray[np.int32] | None:
        """The table as integers: the last cell of a slot is the number of a step."""
        return None if self.table is None else self.table.view(np.int32)

    def leaving(self) -> State:
        """What others need to go on from it: without averages, and without what is empty between mini-batches."""
        return replace(self, average=self.average[:0], table_average=None, touched=self.touched[:0])

    def arriving(self, job: Job) -> State:
        """What can go its own way from a state that was left."""
        shape, kind = self.shapes(job)["touched"]
        return replace(self.copy(), touched=np.zeros(shape, kind))

    def copy(self) -> State:
        """The same with arrays of its own."""
        arrays: dict[str, Any] = {
            name: value.copy() for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays)

    def come_back(self, other: State) -> None:
        """Become what others made of it; averages stay."""
        for name in ("params", "slots", "carry", "counters", "totals", "failed", "table"):
            setattr(self, name, getattr(other, name))

    def take_snapshot(self, job: Job, n_jobs: int, table_every: int | None = None) -> None:
        """Let the weights as they are enter their average, on some threads; those of the table every so many times."""
        if not job.config.averaged:
            return
        self.snapshots += 1
        self.average += _share(self.snapshots) * (self.params - self.average)
        if self.table_average is not None and self.snapshots % (table_every or job.table_every) == 0:
            self.table_snapshots += 1
            for model, average in enumerate(self.table_average):
                self._average_table(job, model, average, _share(self.table_snapshots), n_jobs)

    def _average_table(self, job: Job, model: int, average: NDArray[np.float32], share: float, n_jobs: int = 1) -> None:
        table, marks, counters = self.table, self.marks, self.counters
        assert table is not None
        assert marks is not None
        problem, outputs, first = job.models[model].problem, len(self.params), model * job.outputs

        def enter(slots: range) -> None:
            part = slice(slots.start, slots.stop)
            average_table(problem, table[part], counters, outputs, first, share, average[part])

        parts = consecutive(len(table), min(n_jobs, len(table) // SLOTS_A_THREAD))
        if len(parts) == 1:
            enter(parts[0])
        else:
            parallel(enter, parts, len(parts))

    def weights(self, job: Job, model: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        """The dense and hashed weights that make a model.

        A weight that an L1 penalty holds at 0 now is 0, though it was not when it entered the average.
        """
        of, table, average = slice(model * job.outputs, (model + 1) * job.outputs), None, None
        averaged, selects = job.config.averaged and self.snapshots > 0, job.models[model].config.l1 > 0
        if averaged and self.table_average is not None and self.table_snapshots:
            average = self.table_average[model]
        if self.table is not None and (average is None or selects):
            table = np.zeros((len(self.table), job.outputs), np.float32)
            self._average_table(job, model, table, 1.0)
        if average is None:
            average = table
        elif table is not None:
            average = average * (table != 0)
        if not averaged:
            return self.params[of].copy(), average
        params = self.average[of].copy()
        if selects:
            params[:, :-1] *= self.params[of, :-1] != 0
        return params, average

    def keep(self, job: Job, models: Sequence[int]) -> State:
        """The state of some of the models alone."""
        outputs = np.concatenate([np.arange(k * job.outputs, (k + 1) * job.outputs) for k in models])
        table, chosen = None, list(models)
        if self.table is not None and self.marks is not None:
            n, kinds = len(self.params), 2 + job.config.method.slots
            cells = replace(job.table, outputs=len(outputs)).cells
            table = np.zeros((len(self.table), cells), np.float32)
            for kind in range(kinds):
                first = kind * len(outputs)
                table[:, first : first + len(outputs)] = self.table[:, kind * n + outputs]
            table.view(np.int32)[:, -1] = self.marks[:, -1]
        return replace(
            self,
            params=self.params[outputs],
            slots=np.ascontiguousarray(self.slots[:, outputs]),
            carry=self.carry[outputs],
            totals=self.totals[chosen],
            failed=self.failed[chosen],
            average=self.average[outputs],
            table=table,
            table_average=None if self.table_average is None else self.table_average[chosen],
        )


def _share(snapshots: int) -> float:
    return (AVERAGE_POWER + 1) / (AVERAGE_POWER + snapshots)


@dataclass
class Story:
    """Where training stands and what it has told: with `State` all that the rest of it depends on.

    Attributes
    ----------
    first_epoch : int
        Epoch that it began with.
    position : Position
        What is done. With partitions, the number of a round takes the place of a window's. An epoch whose rows are
        done but that was not closed (its loss written down, the model validated) stands behind its last window.
    losses, validation_losses, epoch_seconds : list of float
        Of each epoch that was closed.
    best : tuple of float and Model, or None
        Least validation loss, and the model that it is of.
    no_gain : int
        Epochs since the validation loss became better.
    skipped : int
        Rows left out so far.
    over : bool
        Whether training stopped early.
    seconds : float
        Seconds of training up to here.
    epoch_began : float
        The same where the epoch began.
    """

    first_epoch: int = 0
    position: Position = START
    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    best: tuple[float, Model] | None = None
    no_gain: int = 0
    skipped: int = 0
    over: bool = False
    seconds: float = 0.0
    epoch_began: float = 0.0

    @classmethod
    def begin(cls, epoch: int = 0) -> Story:
        """The story of training that begins with an epoch."""
        return cls(epoch, Position(epoch))

    def validated(self, score: float, model: Model, tol: float) -> None:
        """Take note of a validation loss, and of the model if it is the best so far."""
        self.validation_losses.append(score)
        self.no_gain = self.no_gain + 1 if self.best is not None and score > self.best[0] - tol else 0
        if self.best is None or score < self.best[0]:
            self.best = score, model

    def close_epoch(self, loss: float) -> None:
        """Write down the loss of an epoch, and go to the next."""
        self.losses.append(loss)
        self.position = Position(self.position.epoch + 1)


@dataclass(frozen=True)
class RoundProgress:
    """How far a round is: number ``round`` of ``rounds``, of whose ``partitions`` ``partitions_done`` are done.

    ``workers`` are the processes at work, if it is not this one.
    """

    round: int
    rounds: int
    partitions: int
    partitions_done: int = 0
    workers: int | None = None


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
    standing: RoundProgress | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds that the rows that are left will take, at the rate so far."""
        return max(0.0, max(self.seconds, 1e-9) * (self.total_rows / max(1, self.rows) - 1))

    @property
    def over(self) -> bool:
        """Whether the last epoch has ended."""
        return self.ended and self.epoch + 1 == self.epochs


@dataclass
class Result:
    """What training gave.

    ``objective`` and ``gradient_norm`` (of the whole objective, over all rows, in scaled features) are known after
    L-BFGS; ``polish_passes`` are those after the epochs, which everything else tells of. ``epoch_seconds`` are the
    seconds of each epoch, without validation. ``skipped_rows`` of an epoch have no target or are bad; the bad ones are
    in ``skipped_row_groups``.
    """

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
    objective: float | None = None
    gradient_norm: float | None = None
    polish_passes: int = 0
    epoch_seconds: list[float] = field(default_factory=list)
    skipped_row_groups: int = 0
    trouble: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """What a user should know after training."""
        found = [*self.trouble]
        if self.skipped_rows:
            bad = " or could not be read" if self.skipped_row_groups else ""
            found.append(f"{self.skipped_rows:,} rows have no target (null){bad} and were left out.")
        return found
