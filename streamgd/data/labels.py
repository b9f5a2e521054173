"""One scan of the whole target column: classes, base rate, and whether labels are clustered over row groups.

The label column is cheap in a columnar file, so these are exact, and every bad label is met before training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import AllNullTarget, BadWeight, DataError, NonFiniteTarget, SingleClass, TargetError, TooManyClasses
from ..executors import Executor, Serial, Threads
from .buffers import is_number
from .columns import require
from .counting import Counted, counted
from .leftout import LeftOut, remaining
from .reading import reading
from .rowgroups import Source
from .target import Target, sample_weights
from .threads import consecutive

Task = Literal["classification", "regression"]

#: Integers with more distinct values than this are a regression unless the task says otherwise.
AUTO_CLASSES = 50
MOST_CLASSES = 100_000
#: Ranges of row groups that are scanned at once and merged in order: fixed, so that threads change no digit.
PARTS = 64
#: Integers in so small a range are counted by place, in half the time of hashing, and these by comparison, in a tenth.
DENSE_RANGE, FEW = 4096, 4
#: Weights are divided by their mean, which must be smaller than this and larger than its reciprocal.
HUGE = 1e300


@dataclass(frozen=True)
class Labels:
    """What a scan of the whole target column told.

    Attributes
    ----------
    task : {"classification", "regression"}
        What the target is for.
    classes : pyarrow.Array or None
        Class labels in order.
    class_weight : ndarray of float64 or None
        Sum of sample weights of each class.
    mean, scale : float
        Weighted mean and standard deviation of a regression target (0 and 1 for classes).
    rows, missing : int
        Rows with a target, and without.
    weight_mean : float
        Mean sample weight.
    clustering : float
        Share of the target's variance that the row group explains: near 0 for rows in random order, 1 when each
        row group holds one class.
    """

    task: Task
    classes: pa.Array | None
    class_weight: NDArray[np.float64] | None
    mean: float
    scale: float
    rows: int
    missing: int
    weight_mean: float
    clustering: float

    @property
    def outputs(self) -> int:
        """Margins a row: one, or one a class if there are more than two."""
        return 1 if self.classes is None or len(self.classes) == 2 else len(self.classes)

    def target(self, name: str) -> Target:
        """How the target is encoded."""
        return Target(name, self.classes, self.mean, self.scale)


def scan_labels(
    source: Source,
    target: str,
    *,
    task: Task | None = None,
    weight: str | None = None,
    classes: Sequence[Any] | None = None,
    n_jobs: int = 1,
    executor: Executor | None = None,
) -> Labels:
    """Read the target (and weight) column of all rows.

    Row groups in which it is bad are left out of the whole job, if that is allowed (see `LeftOut`).

    Parameters
    ----------
    source : Source
        The data.
    target : str
        Name of the target column.
    task : {"classification", "regression"}, optional
        By default strings, booleans and integers with at most 50 distinct values are classes, and other numbers
        a regression.
    weight : str, optional
        Column of sample weights.
    classes : sequence, optional
        All class labels, if data to come may hold more of them than these do.
    n_jobs : int
        Threads, where they help.
    executor : Executor, optional
        Who reads, if it is not these.

    Raises
    ------
    TargetError
        All targets are null, NaN or infinite ones, a single class, a type that cannot be a target.
    BadWeight
        See `sample_weights`; or all weights are zero.
    """
    require(source.schema, target, "target")
    kind = source.schema.field(target).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    categorical = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not categorical and not is_number(kind):
        raise TargetError(f"target {target!r} is {kind}; it must be numbers, booleans or strings.")
    if task == "regression" and categorical:
        raise TargetError(f"target {target!r} is {kind}; a regression needs numbers.")
    if task == "classification" and pa.types.is_decimal(kind):
        raise TargetError(f"target {target!r} is {kind}; write classes as integers, booleans or strings.")
    if weight is not None:
        require(source.schema, weight, "weight")
        if not is_number(source.schema.field(weight).type):
            raise BadWeight(f"weight column {weight!r} is {source.schema.field(weight).type}; it must be numbers.")
    if task is None and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        task = "regression"
    if task is None and categorical:
        task = "classification"
    ranges = consecutive(source.manifest.n_row_groups, PARTS)
    scan = _LabelScan(source, target, kind, task, weight, ranges)
    if executor is None:
        # Local numbers are mostly counted ahead, by threads; what is left takes the interpreter, for which others wait.
        executor = Serial() if n_jobs == 1 or (source.local and not categorical) else Threads(n_jobs)
        if isinstance(executor, Serial):
            scan.counts = scan.counted(range(source.manifest.n_row_groups), n_jobs)
    found: _Part = executor.reduce(_Scanning(), scan, None, len(ranges), lambda _: False)
    if found.left_out is not None:
        source.left_out.absorb(found.left_out)
    if found.rows == 0:
        rows = remaining(source).manifest.n_rows
        raise AllNullTarget(f"target {target!r} is null in all {rows} rows: nothing can be learned.")
    if weight is not None and found.weight == 0:
        raise BadWeight(f"weight column {weight!r} is 0 in every row with a target.")
    if not 1 / HUGE < found.weight / found.rows < HUGE:
        raise BadWeight(
            f"weight column {weight!r} is {found.weight / found.rows:g} in the mean, too far from 1 to divide by: give "
            f"the weights in other units."
        )
    for label in classes or ():
        found.classes.setdefault(label, 0.0)
    if task is None:
        task = "classification" if len(found.classes) <= AUTO_CLASSES else "regression"
    return _classes(found, target, kind, weight) if task == "classification" else _numbers(found, target, weight)


@dataclass
class _Part:
    """Sums over the targets of row groups; what the row groups held apart is only what varies within them."""

    rows: int = 0
    missing: int = 0
    weight: float = 0.0
    mean: float = 0.0
    spread: float = 0.0
    classes: dict[Any, float] = field(default_factory=dict)
    spread_within: float = 0.0
    mixed_within: float = 0.0
    left_out: LeftOut | None = None

    def add_numbers(self, weight: float, mean: float, spread: float) -> None:
        """Merge weight, mean and sum of squared deviations (Chan, Golub, LeVeque 1983)."""
        if weight > 0:
            total, difference = self.weight + weight, mean - self.mean
            self.spread += spread + difference * difference * self.weight * weight / total
            self.mean += difference * weight / total

    def absorb(self, other: _Part) -> None:
        """Add the sums of other row groups."""
        with np.errstate(over="ignore", invalid="ignore"):  # refused when all is added up
            self.add_numbers(other.weight, other.mean, other.spread)
        self.rows += other.rows
        self.missing += other.missing
        self.weight += other.weight
        for label, weight in other.classes.items():
            self.classes[label] = self.classes.get(label, 0.0) + weight
        self.spread_within += other.spread_within
        self.mixed_within += other.mixed_within
        if self.left_out is not None and other.left_out is not None:
            self.left_out = self.left_out.merged(other.left_out)


@dataclass(frozen=True)
class _Scanning:
    """The scan as a round: a range of row groups each part."""

    def part(self, shared: _LabelScan, start: None, number: int) -> _Part:
        """Sums over a range."""
        return shared.read(shared.ranges[number])

    def join(self, shared: _LabelScan, start: None, left: _Part, right: _Part) -> _Part:
        """Sums over neighbours."""
        found = replace(left, classes=dict(left.classes))
        found.absorb(right)
        return found


@dataclass
class _LabelScan:
    source: Source
    target: str
    kind: pa.DataType
    task: Task | None
    weight: str | None
    ranges: list[range]
    distinct: set[Any] = field(default_factory=set)
    counts: Iterator[Counted | None] | None = None

    def through(self, change: Callable[[Any], Any], number: int) -> _LabelScan:
        """The same of what ``change`` makes of the source."""
        return replace(self, source=change(self.source))

    def read(self, row_groups: range) -> _Part:
        found = _Part(left_out=self.source.left_out)
        # As each range takes its own, all may be counted ahead, if they are taken in order.
        for row_group, counts in zip(row_groups, self.counts or self.counted(row_groups), strict=False):
            try:
                # What Arrow decoded may still be nonsense; what overflows is refused when all is added up.
                with reading(self.source.describe(row_group)), np.errstate(over="ignore", invalid="ignore"):
                    part = self._part(row_group, counts)
                    part.spread_within, part.mixed_within = part.spread, _mixed(part.classes)
            except DataError as error:
                self.source.left_out.note(error, self.source.manifest, row_group, whole=True)
                continue
            found.absorb(part)
        return found

    def _part(self, row_group: int, counts: Counted | None) -> _Part:
        part = _Part()
        rows = int(self.source.manifest.rows[row_group])
        where = self.source.describe(row_group)
        if counts is not None and (self.task is not None or len(counts.rows) <= AUTO_CLASSES):
            part.weight, part.missing = sum(counts.rows.values()), counts.nulls
            part.rows = int(part.weight)
            self._add_classes(part, counts.rows, where)
        else:
            self._read(part, row_group, rows, where)
        if self.task is None and 0 < len(part.classes) <= AUTO_CLASSES:
            self._moments_of_classes(part, where)
        return part

    def counted(self, row_groups: range, n_jobs: int = 1) -> Iterator[Counted | None]:
        """Counts of classes in row groups of which no row has to be read, and None for others."""
        if self.weight is not None or self.task == "regression" or not _may_be_counted(self.kind):
            return repeat(None)
        return counted(self.source, row_groups, self.target, n_jobs)

    def _read(self, part: _Part, row_group: int, rows: int, where: str) -> None:
        columns = list(dict.fromkeys([self.target] + ([self.weight] if self.weight is not None else [])))
        for batch in self.source.open(row_group, columns, 65_536).read(rows):
            values = _plain(batch.column(0))
            weights = None if self.weight is None else sample_weights(batch.column(self.weight), self.weight, where)
            part.missing += values.null_count
            if values.null_count:
                weights = None if weights is None else weights[values.is_valid().to_numpy(zero_copy_only=False)]
                values = values.drop_null()
            if len(values) == 0:
                continue
            if self.task == "regression":
                self._moments(part, Target(self.target).numbers(values, where), weights, where)
            else:
                self._count(part, *_weigh(values, weights), where)
            part.rows += len(values)
            part.weight += len(values) if weights is None else float(weights.sum())

    def _moments(
        self, part: _Part, numbers: NDArray[np.float64], weights: NDArray[np.float64] | None, where: str
    ) -> None:
        """Merge weight, mean and sum of squared deviations."""
        part.add_numbers(*self._moments_of(numbers, weights, where))

    def _moments_of_classes(self, part: _Part, where: str) -> None:
        """Mean and deviations of all that is counted so far, in an order that does not depend on that of the rows."""
        labels = sorted(part.classes)
        weights = np.array([part.classes[label] for label in labels], np.float64)
        _, part.mean, part.spread = self._moments_of(np.array(labels, np.float64), weights, where)

    def _moments_of(
        self, numbers: NDArray[np.float64], weights: NDArray[np.float64] | None, where: str
    ) -> tuple[float, float, float]:
        """Weight, mean, and sum of squared deviations."""
        weights = np.ones(1) if weights is None else weights
        weight = float(weights.sum()) * (len(numbers) / len(weights))
        if weight == 0:
            return 0.0, 0.0, 0.0
        mean = float((numbers * weights).sum()) / weight
        spread = float(((numbers - mean) ** 2 * weights).sum())
        if not np.isfinite(spread) and not np.isfinite(np.square(numbers).sum()):
            raise NonFiniteTarget(
                f"{where}: target {self.target!r} holds numbers so large that their variance overflows, such as "
                f"{numbers[np.argmax(np.abs(numbers))]:g}: mend them, or use other units."
            )
        return weight, mean, spread

    def _count(self, part: _Part, distinct: pa.Array, counts: NDArray[np.float64], where: str) -> None:
        """Add the weight of each distinct value; numbers that are too many for classes give their moments."""
        if is_number(self.kind) and not pa.types.is_integer(self.kind):
            Target(self.target).numbers(distinct, where)  # refuses NaN
        if self.task is None and len(part.classes) > AUTO_CLASSES:
            self._moments(part, Target(self.target).numbers(distinct, where), counts, where)
            return
        try:
            labels = distinct.to_pylist()
        except UnicodeDecodeError as error:
            raise TargetError(
                f"{where}: target {self.target!r} holds a label that is no text in UTF-8, {error.object[:20]!r}. Mend "
                f"it, or write the labels as integers."
            ) from error
        self._add_classes(part, dict(zip(labels, counts.tolist(), strict=True)), where)

    def _add_classes(self, part: _Part, weights: dict[Any, float], where: str) -> None:
        """Add the weight of each class.

        All threads add to ``distinct`` (which is atomic), so that too many classes are noticed early.
        """
        for label, weight in weights.items():
            part.classes[label] = part.classes.get(label, 0.0) + weight
        self.distinct.update(weights)
        if self.task is None and len(part.classes) > AUTO_CLASSES:
            self._moments_of_classes(part, where)
        if self.task is not None and len(self.distinct) > MOST_CLASSES:
            raise TooManyClasses(
                f"target {self.target!r} holds more than {MOST_CLASSES} distinct values, so it is no classification. "
                f"For numbers use --task regression (SGDRegressor in Python)."
            )


def _may_be_counted(kind: pa.DataType) -> bool:
    """Whether values of a type are what `counted` takes."""
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plain(values: pa.Array) -> pa.Array:
    """Values whose nulls are all nulls of the array, in a type that can be filtered."""
    if pa.types.is_dictionary(values.type):  # may have a null among its values
        values = values.dictionary_decode()
    return values.cast(pa.string()) if pa.types.is_string_view(values.type) else values


def _weigh(values: pa.Array, weights: NDArray[np.float64] | None) -> tuple[pa.Array, NDArray[np.float64]]:
    """Distinct values and the sum of weights of each."""
    if pa.types.is_integer(values.type):
        numbers = values.to_numpy()
        least, most = numbers.min(), numbers.max()
        if int(most) - int(least) < FEW and weights is None:
            labels = np.array([least + numbers.dtype.type(k) for k in range(int(most) - int(least) + 1)])
            sizes = np.array([np.count_nonzero(numbers == label) for label in labels], np.float64)
            return pa.array(labels[sizes > 0]), sizes[sizes > 0]
        if int(most) - int(least) < DENSE_RANGE:
            places = (numbers - least).view(f"u{numbers.itemsize}").astype(np.int64)  # a difference may wrap around
            rows = np.bincount(places)
            found = np.flatnonzero(rows)  # rows of weight 0 are of a class too
            counts = rows if weights is None else np.bincount(places, weights=weights)
            return pa.array(found.astype(numbers.dtype) + least), counts[found].astype(np.float64)
    encoded = values.dictionary_encode()
    return encoded.dictionary, np.bincount(encoded.indices.to_numpy(), weights=weights).astype(np.float64)


def _mixed(classes: dict[Any, float]) -> float:
    """Weight times the chance that two rows are of different classes."""
    weights = np.array(list(classes.values()))
    total = float(weights.sum())
    return total - float((weights**2).sum()) / total if total > 0 else 0.0


def _classes(found: _Part, target: str, kind: pa.DataType, weight: str | None) -> Labels:
    labels = sorted(found.classes)
    if len(labels) < 2:
        raise SingleClass(
            f"target {target!r} holds a single class, {labels[0]!r}, in all rows (1 class): nothing to tell apart. "
            f"Classification needs at least two classes; check the target or the rows that were selected."
        )
    whole = _mixed(found.classes)
    return Labels(
        task="classification",
        classes=pa.array(labels, kind if not pa.types.is_string_view(kind) else pa.string()),
        class_weight=np.array([found.classes[label] for label in labels]),
        mean=0.0,
        scale=1.0,
        rows=found.rows,
        missing=found.missing,
        weight_mean=found.weight / found.rows if weight is not None else 1.0,
        clustering=1.0 - found.mixed_within / whole if whole > 0 else 0.0,
    )


def _numbers(found: _Part, target: str, weight: str | None) -> Labels:
    scale = float(np.sqrt(found.spread / found.weight))
    if not np.isfinite(scale):
        raise NonFiniteTarget(f"target {target!r} holds numbers so large that its variance overflows: use other units.")
    return Labels(
        task="regression",
        classes=None,
        class_weight=None,
        mean=found.mean,
        scale=scale if scale > 0 else 1.0,
        rows=found.rows,
        missing=found.missing,
        weight_mean=found.weight / found.rows if weight is not None else 1.0,
        clustering=1.0 - found.spread_within / found.spread if found.spread > 0 else 0.0,
    )
