"""Targets and sample weights: from Arrow columns to the cells of encoded rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import BadWeight, NonFiniteTarget, TargetError, UnknownLabel
from .buffers import floats, is_number


@dataclass(frozen=True)
class Target:
    """How the target column becomes the target cell.

    Attributes
    ----------
    name : str
        Name of the column.
    classes : pyarrow.Array or None
        Class labels in order; the cell holds the place of the row's label. None for a regression, whose cell
        holds the value minus ``offset`` as float32.
    offset, scale : float
        Subtracted from regression targets, and what the rest is divided by, in float64.
    least : float
        Smallest target that a regression takes.
    """

    name: str
    classes: pa.Array | None = None
    offset: float = 0.0
    scale: float = 1.0
    least: float = -np.inf

    def encode(self, values: pa.Array, where: str) -> NDArray[np.float32]:
        """Cells of the target, NaN where it is missing; float32[n]."""
        if self.classes is not None:
            return self.codes(values, where)
        numbers = self.numbers(values, where)
        if len(numbers) and np.fmin.reduce(numbers) < self.least:
            raise TargetError(
                f"{where}: target {self.name!r} is {np.fmin.reduce(numbers)}, but the loss takes no number below "
                f"{self.least:g}. Mend the data, or choose another loss."
            )
        with np.errstate(over="ignore"):
            cells = ((numbers - self.offset) / self.scale).astype(np.float32)
        if np.isinf(cells).any():
            raise NonFiniteTarget(
                f"{where}: target {self.name!r} is {numbers[np.argmax(np.isinf(cells))]}, too large for float32. "
                f"Remove or mend that row, or give the target in other units."
            )
        return cells

    def numbers(self, values: pa.Array, where: str) -> NDArray[np.float64]:
        """Values of a regression target as float64[n], NaN where null.

        Raises
        ------
        TargetError
            The column does not hold numbers.
        NonFiniteTarget
            A value is NaN or infinite.
        """
        if not is_number(values.type):
            raise TargetError(f"{where}: target {self.name!r} is {values.type}; a regression needs numbers.")
        values = _decoded(values)
        numbers = floats(values)
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            if values.null_count:
                wrong &= values.is_valid().to_numpy(zero_copy_only=False)
            if wrong.any():
                raise NonFiniteTarget(
                    f"{where}: target {self.name!r} is {numbers[np.argmax(wrong)]} in {int(wrong.sum())} row(s); it "
                    f"must be finite. Remove or mend those rows; a null target is left out and counted."
                )
        return numbers

    def codes(self, values: pa.Array, where: str) -> NDArray[np.float32]:
        """Places of class labels in ``classes`` as float32[n], NaN where null.

        Raises
        ------
        UnknownLabel
            A label is none of the classes.
        """
        assert self.classes is not None
        whole = pa.types.is_integer(values.type) and values.null_count == 0
        if whole and values.type == self.classes.type and len(self.classes) == 2:
            numbers, (first, second) = values.to_numpy(), self.classes.to_numpy()
            positive: NDArray[np.bool_] = numbers == second  # an eighth of the time of looking them up
            if (positive | (numbers == first)).all():
                return positive.astype(np.float32)
        values = _decoded(values)
        try:
            same, classes = _comparable(values, self.classes)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UnknownLabel(
                f"{where}: target {self.name!r} is {values.type} and cannot hold the classes "
                f"{self.classes.to_pylist()[:20]!r} ({self.classes.type}): {error}."
            ) from error
        codes = pc.index_in(same, value_set=classes)
        if codes.null_count > values.null_count:
            unknown = values[pc.index(pc.and_(codes.is_null(), values.is_valid()), True).as_py()]
            raise UnknownLabel(
                f"{where}: target {self.name!r} holds {unknown.as_py()!r}, which is none of the classes "
                f"{self.classes.to_pylist()[:20]!r}."
            )
        cells: NDArray[np.float32] = codes.cast(pa.float32()).to_numpy(zero_copy_only=False)
        return cells


def _decoded(values: pa.Array) -> pa.Array:
    """The values of a dictionary: its own nulls do not count as nulls of the array before."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _comparable(values: pa.Array, classes: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Labels and classes in one type that loses nothing and that `pyarrow.compute.index_in` takes."""
    if values.type == classes.type and classes.type != pa.float16():
        return values, classes
    types = pa.types
    if types.is_boolean(classes.type):  # a cast to bool makes True of any number but 0
        classes = classes.cast(pa.int8())
    if types.is_floating(values.type) and (types.is_integer(classes.type) or types.is_floating(classes.type)):
        return values.cast(pa.float64()), classes.cast(pa.float64())
    if types.is_integer(values.type) and types.is_integer(classes.type):
        return values.cast(pa.int64()), classes.cast(pa.int64())
    return values.cast(classes.type), classes


def leave_out(rows: NDArray[np.float32], targets: NDArray[np.float32]) -> tuple[int, NDArray[np.int64]]:
    """Move rows that have a target to the front; return how many they are, and the places of the others."""
    missing = np.isnan(targets)
    left_out = np.flatnonzero(missing)
    kept = len(rows) - len(left_out)
    rows[:kept] = rows[~missing]
    return kept, left_out


def sample_weights(values: pa.Array, name: str, where: str) -> NDArray[np.float64]:
    """Sample weights as float64[n].

    Raises
    ------
    BadWeight
        A weight is missing, negative, NaN or infinite.
    """
    if not is_number(values.type):
        raise BadWeight(f"weight column {name!r} is {values.type}; it must be numbers.")
    weights = floats(values)
    wrong = ~((weights >= 0) & (weights < np.inf))
    if wrong.any():
        raise BadWeight(
            f"{where}: weight {name!r} is {weights[int(np.argmax(wrong))]} in {int(wrong.sum())} row(s); weights must "
            f"be finite and not negative. Use 0 for a row that should not count."
        )
    return weights
