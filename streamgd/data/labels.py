"""One scan of the whole target column: classes, base rate, and whether labels are clustered over row groups.

The label column is cheap in a columnar file, so these are exact, and every bad label is met before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import AllNullTarget, BadWeight, NonFiniteTarget, SingleClass, TargetError, TooManyClasses
from .buffers import is_number
from .encode import require
from .rowgroups import Source
from .target import Target, sample_weights
from .threads import consecutive, parallel

Task = Literal["classification", "regression"]

#: Integers with more distinct values than this are a regression unless the task says otherwise.
AUTO_CLASSES = 50
MOST_CLASSES = 100_000
#: Integers in so small a range are counted by place, in half the time of hashing, and these by comparison, in a tenth.
DENSE_RANGE, FEW = 4096, 4


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
) -> Labels:
    """Read the target (and weight) column of all rows.

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
        Threads.

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
    if task is None and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        task = "regression"
    if task is None and categorical:
        task = "classification"
    scan = _LabelScan(source, target, kind, task, weight)
    ranges = consecutive(source.manifest.n_row_groups, 4 * n_jobs)
    parts = [part for some in parallel(scan.read, ranges, n_jobs) for part in some]
    if sum(part.rows for part in parts) == 0:
        raise AllNullTarget(f"target {target!r} is null in all {source.manifest.n_rows} rows: nothing can be learned.")
    if weight is not None and sum(part.weight for part in parts) == 0:
        raise BadWeight(f"weight column {weight!r} is 0 in every row with a target.")
    distinct = set(classes or ()).union(*(part.classes for part in parts))
    if task is None:
        task = "classification" if len(distinct) <= AUTO_CLASSES else "regression"
    if task == "classification":
        return _classes(parts, distinct, target, kind, weight)
    return _numbers(parts, target, weight)


@dataclass
class _Part:
    """Sums over one row group's targets."""

    rows: int = 0
    missing: int = 0
    weight: float = 0.0
    mean: float = 0.0
    spread: float = 0.0
    classes: dict[Any, float] = field(default_factory=dict)


@dataclass
class _LabelScan:
    source: Source
    target: str
    kind: pa.DataType
    task: Task | None
    weight: str | None
    distinct: set[Any] = field(default_factory=set)

    def read(self, row_groups: range) -> list[_Part]:
        return [self._part(row_group) for row_group in row_groups]

    def _part(self, row_group: int) -> _Part:
        part = _Part()
        rows = int(self.source.manifest.rows[row_group])
        if rows == 0:
            return part
        columns = list(dict.fromkeys([self.target] + ([self.weight] if self.weight is not None else [])))
        where = self.source.describe(row_group)
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
                self._moments(part, Target(self.target).numbers(values, where), weights)
            else:
                self._count(part, values, weights, where)
            part.rows += len(values)
            part.weight += len(values) if weights is None else float(weights.sum())
        return part

    def _moments(self, part: _Part, numbers: NDArray[np.float64], weights: NDArray[np.float64] | None) -> None:
        """Merge mean and sum of squared deviations (Chan, Golub, LeVeque 1983)."""
        weight = float(len(numbers) if weights is None else weights.sum())
        if weight == 0:
            return
        with np.errstate(over="ignore", invalid="ignore"):  # `_numbers` refuses what overflows
            mean = float(np.average(numbers, weights=weights))
            spread = float(np.average((numbers - mean) ** 2, weights=weights)) * weight
        total, difference = part.weight + weight, mean - part.mean
        part.spread += spread + difference * difference * part.weight * weight / total
        part.mean += difference * weight / total

    def _count(self, part: _Part, values: pa.Array, weights: NDArray[np.float64] | None, where: str) -> None:
        """Add the weight of each distinct value; numbers that may yet be a regression give their moments too.

        All threads add to ``distinct`` (which is atomic), so that too many classes are noticed early.
        """
        distinct, counts = _weigh(values, weights)
        if is_number(self.kind):
            numbers = Target(self.target).numbers(distinct, where)
            if self.task is None:
                self._moments(part, numbers, counts)
        if self.task is None and len(part.classes) > AUTO_CLASSES:
            return
        labels = distinct.to_pylist()
        for label, count in zip(labels, counts.tolist(), strict=True):
            part.classes[label] = part.classes.get(label, 0.0) + count
        self.distinct.update(labels)
        if self.task is not None and len(self.distinct) > MOST_CLASSES:
            raise TooManyClasses(
                f"target {self.target!r} holds more than {MOST_CLASSES} distinct values, so it is no classification. "
                f"For numbers use --task regression."
            )


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


def _classes(parts: list[_Part], distinct: set[Any], target: str, kind: pa.DataType, weight: str | None) -> Labels:
    labels = sorted(distinct)
    if len(labels) < 2:
        raise SingleClass(
            f"target {target!r} holds a single class, {labels[0]!r}, in all rows (1 class): nothing to tell apart. "
            f"Classification needs at least two classes; check the target or the rows that were selected."
        )
    counts = np.array([[part.classes.get(label, 0.0) for label in labels] for part in parts])
    total = counts.sum(0)
    n = counts.sum(1)
    within = float((n - (counts**2).sum(1) / np.maximum(n, 1e-300)).sum())
    whole = float(total.sum() - (total**2).sum() / total.sum())
    rows = sum(part.rows for part in parts)
    return Labels(
        task="classification",
        classes=pa.array(labels, kind if not pa.types.is_string_view(kind) else pa.string()),
        class_weight=total,
        mean=0.0,
        scale=1.0,
        rows=rows,
        missing=sum(part.missing for part in parts),
        weight_mean=float(total.sum()) / rows if weight is not None else 1.0,
        clustering=1.0 - within / whole if whole > 0 else 0.0,
    )


def _numbers(parts: list[_Part], target: str, weight: str | None) -> Labels:
    weights = np.array([part.weight for part in parts])
    means = np.array([part.mean for part in parts])
    total = float(weights.sum())
    within = float(sum(part.spread for part in parts))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.average(means, weights=weights))
        between = float((weights * (means - mean) ** 2).sum())
    scale = float(np.sqrt((within + between) / total))
    if not np.isfinite(scale):
        raise NonFiniteTarget(f"target {target!r} holds numbers so large that its variance overflows: use other units.")
    rows = sum(part.rows for part in parts)
    return Labels(
        task="regression",
        classes=None,
        class_weight=None,
        mean=mean,
        scale=scale if scale > 0 else 1.0,
        rows=rows,
        missing=sum(part.missing for part in parts),
        weight_mean=total / rows if weight is not None else 1.0,
        clustering=between / (within + between) if scale > 0 else 0.0,
    )
