"""Record batches to encoded rows. The same row gives the same cells whatever batch it comes in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import (
    BadWeight,
    ListLengthMismatch,
    MissingColumn,
    NonFiniteFeature,
    NonFiniteTarget,
    UnknownLabel,
    UnusableColumns,
)
from ..features import Column, FeatureSpec, Layout
from ..kernels import layout as kernels

BATCH_BYTES = 16 << 20
BATCH_ROWS = (128, 65_536)
CENTRE_ROWS = 32
LINE_CELLS = 16
#: Where pandas puts an index that it writes; an index is no feature.
PANDAS_INDEX = re.compile(r"__index_level_\d+__")

_CODES = {
    pa.float32(): kernels.FLOAT32,
    pa.float64(): kernels.FLOAT64,
    pa.int8(): kernels.INT8,
    pa.int16(): kernels.INT16,
    pa.int32(): kernels.INT32,
    pa.int64(): kernels.INT64,
    pa.uint8(): kernels.UINT8,
    pa.bool_(): kernels.BOOL,
}


def is_number(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are numbers: integers, floats, decimals, booleans, or only nulls."""
    if pa.types.is_dictionary(kind):
        return is_number(kind.value_type)
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def is_vector(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a list of numbers."""
    types = pa.types
    return bool(
        (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
        and is_number(kind.value_type)
        and not types.is_dictionary(kind.value_type)
    )


def require(schema: pa.Schema, name: str, role: str) -> None:
    """Raise MissingColumn if a schema lacks a column; ``role`` says what it is for."""
    if name not in schema.names:
        raise MissingColumn(f"{role} column {name!r} is not in the data, which have {', '.join(schema.names)}.")


def feature_fields(
    schema: pa.Schema,
    target: str | None = None,
    weight: str | None = None,
    drop: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> list[pa.Field]:
    """Fields of a schema that become features: all but target, weight, ``drop`` and an index of pandas, or ``only``.

    Raises
    ------
    MissingColumn
        ``target``, ``weight`` or a column in ``drop`` is not in the schema.
    UnusableColumns
        Columns are left that cannot be features, or none is left; the message lists them.
    """
    named = [("target", target), ("weight", weight), *(("drop", name) for name in drop)]
    for role, name in [*named, *(("feature", name) for name in only or ())]:
        if name is not None:
            require(schema, name, role)
    left = only
    if left is None:
        taken = (target, weight, *drop)
        left = [name for name in schema.names if name not in taken and not PANDAS_INDEX.fullmatch(name)]
    fields = [schema.field(name) for name in left]
    unusable = [field for field in fields if not is_number(field.type) and not is_vector(field.type)]
    if unusable:
        listed = ", ".join(f"{field.name} ({field.type})" for field in unusable)
        names = ",".join(field.name for field in unusable)
        raise UnusableColumns(
            f"columns that are neither numbers nor lists of numbers cannot be features yet: {listed}. "
            f"Leave them out with --drop {names} (drop= in Python)."
        )
    if not fields:
        raise UnusableColumns("no column is left to learn from: every column is the target, the weight or dropped.")
    return fields


def _native(values: pa.Array) -> pa.Array:
    """The array in one of the types that the kernels read; anything else goes through float64."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values if values.type in _CODES else values.cast(pa.float64(), safe=False)


def _floats(values: pa.Array) -> NDArray[np.float64]:
    return _native(values).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _middle(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians of rows, 0 where it is not finite."""
    if values.shape[1] == 0:
        return np.zeros(len(values))
    middle = np.sort(values, axis=1)[:, values.shape[1] // 2]
    return np.where(np.isfinite(middle), middle, 0.0)


def _buffers(values: pa.Array) -> tuple[int, int, int, int]:
    """Type code, address of the first value, address of the validity bitmap or 0, and bits before the first value."""
    code = _CODES[values.type]
    validity, data = values.buffers()
    valid = validity.address if values.null_count and validity is not None else 0
    if data is None:  # no values, or only nulls
        return code, 0, valid, values.offset
    address = data.address + (0 if code == kernels.BOOL else values.offset * values.type.bit_width // 8)
    return code, address, valid, values.offset


def vector_parts(values: pa.Array) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Child values, start of each row's list in them, whether the row has a list, and its length."""
    n = len(values)
    present = np.ones(n, np.bool_) if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(values.type):
        size = values.type.list_size
        starts = (np.arange(n, dtype=np.int64) + values.offset) * size
        return values.values, starts, present, np.full(n, size, np.int64)
    ends = values.offsets.to_numpy().astype(np.int64)
    return values.values, ends[:-1], present, np.diff(ends)


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
    """

    name: str
    classes: pa.Array | None = None
    offset: float = 0.0
    scale: float = 1.0

    def encode(self, values: pa.Array, where: str) -> NDArray[np.float32]:
        """Cells of the target, NaN where it is missing; float32[n]."""
        if self.classes is not None:
            return self.codes(values, where)
        return ((self.numbers(values, where) - self.offset) / self.scale).astype(np.float32)

    def numbers(self, values: pa.Array, where: str) -> NDArray[np.float64]:
        """Values of a regression target as float64[n], NaN where null.

        Raises
        ------
        NonFiniteTarget
            A value is NaN or infinite.
        """
        numbers = _floats(values)
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
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        codes = pc.index_in(values.cast(self.classes.type), value_set=self.classes)
        if codes.null_count > values.null_count:
            unknown = values.filter(pc.and_(codes.is_null(), values.is_valid()))
            raise UnknownLabel(
                f"{where}: target {self.name!r} holds {unknown[0].as_py()!r}, which is none of the classes "
                f"{self.classes.to_pylist()[:20]!r}."
            )
        cells: NDArray[np.float32] = codes.cast(pa.float32()).to_numpy(zero_copy_only=False)
        return cells


@dataclass(frozen=True)
class Encoder:
    """Turn record batches into encoded rows.

    Attributes
    ----------
    spec : FeatureSpec
        The features.
    target : Target or None
        The target, if rows have one.
    weight : str or None
        Column of sample weights.
    weight_scale : float
        Weights are multiplied by it (1 / their mean in training).
    """

    spec: FeatureSpec
    target: Target | None = None
    weight: str | None = None
    weight_scale: float = 1.0

    @property
    def layout(self) -> Layout:
        """Where things lie in an encoded row."""
        return Layout(self.spec.n_features, self.target is not None, self.weight is not None)

    @property
    def columns(self) -> list[str]:
        """Columns to read, each once."""
        names = self.spec.names
        names += [self.target.name] if self.target is not None else []
        return list(dict.fromkeys(names + ([self.weight] if self.weight is not None else [])))

    def new_rows(self, n: int) -> NDArray[np.float32]:
        """Memory for n encoded rows; rows begin where cache lines do, so that a random row touches no line more."""
        stride = self.layout.stride
        memory = np.zeros(n * stride + LINE_CELLS, np.float32)
        skip = -(memory.ctypes.data // 4) % LINE_CELLS
        return memory[skip : skip + n * stride].reshape(n, stride)

    @property
    def batch_rows(self) -> int:
        """Rows a record batch, so that its decoded columns take about 16 MiB."""
        return min(max(BATCH_BYTES // self.layout.row_bytes, BATCH_ROWS[0]), BATCH_ROWS[1])

    def centres(self, batch: pa.RecordBatch) -> NDArray[np.float64]:
        """A typical value of each feature: the median of its first few in a batch, or 0; float64[n_features]."""
        found: list[float] = []
        for column in self.spec.columns:
            values = batch.column(column.name)
            if column.kind == "vector":
                child, starts, present, lengths = vector_parts(values)
                usable = np.flatnonzero(present & (lengths == column.size))[:CENTRE_ROWS]
                lists = [_floats(child.slice(starts[row], column.size)) for row in usable]
                found.extend(_middle(np.array(lists).T) if lists else np.zeros(column.size))
            else:
                found.extend(_middle(_floats(values.drop_null()[:CENTRE_ROWS])[np.newaxis]))
        return np.array(found)

    def encode(self, batch: pa.RecordBatch, out: NDArray[np.float32], where: str) -> int:
        """Encode a batch into the first rows of ``out``.

        Parameters
        ----------
        batch : pyarrow.RecordBatch
            At least the columns of `columns`.
        out : ndarray of float32, shape (>= n, stride)
            Takes the rows. Cells after the last used one keep what they have, or get a copy of a feature, so they
            must be finite before (`new_rows`): kernels multiply them by 0.
        where : str
            Shard and row group, for messages.

        Returns
        -------
        int
            Rows written: those of the batch less those whose target is null.
        """
        n: int = batch.num_rows
        layout = self.layout
        out = out[:n]
        self._features(batch, out, where)
        keep = None
        if self.target is not None:
            y = self.target.encode(batch.column(self.target.name), where)
            out[:, layout.y_cell] = y
            missing = np.isnan(y)
            keep = ~missing if missing.any() else None
        if self.weight is not None:
            out[:, layout.w_cell] = sample_weights(batch.column(self.weight), self.weight, where) * self.weight_scale
        if keep is None:
            return n
        kept = int(keep.sum())
        out[:kept] = out[keep]
        return kept

    def _features(self, batch: pa.RecordBatch, out: NDArray[np.float32], where: str) -> None:
        cell = 0
        numbers: list[tuple[int, int, int, int]] = []
        alive: list[pa.Array] = []  # owns the buffers whose addresses are in ``numbers``
        columns = self.spec.columns
        for i, column in enumerate(columns):
            if column.kind == "number":
                alive.append(_native(batch.column(column.name)))
                numbers.append(_buffers(alive[-1]))
            if numbers and (column.kind != "number" or i == len(columns) - 1):
                self._numbers(numbers, cell, out, where)
                cell += len(numbers)
                numbers = []
            if column.kind == "vector":
                self._vector(column, batch.column(column.name), cell, out, where)
                cell += column.size

    def _numbers(
        self, buffers: list[tuple[int, int, int, int]], cell: int, out: NDArray[np.float32], where: str
    ) -> None:
        codes, addresses, valids, bits = np.array(buffers, np.int64).T.copy()
        span = slice(cell, cell + len(codes))
        infinite = np.zeros(len(codes), np.int64)
        fill = self.spec.fill[span]
        kernels.encode_columns(
            codes, addresses, valids, bits, self.spec.offset[span], fill, len(out), cell, out, infinite
        )
        if infinite.any():
            j = int(np.argmax(infinite > 0))
            name = self.spec.feature_names()[cell + j]
            raise _not_finite(name, int(infinite[j]), where)

    def _vector(self, column: Column, values: pa.Array, cell: int, out: NDArray[np.float32], where: str) -> None:
        child, starts, present, lengths = vector_parts(values)
        wrong = present & (lengths != column.size)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ListLengthMismatch(
                f"{where}: column {column.name!r} holds a list of {lengths[row]} numbers where lists of {column.size} "
                f"were expected. Lists must have one length; drop the column or pad its lists."
            )
        span = slice(cell, cell + column.size)
        native = _native(child)
        code, address, valid, bits = _buffers(native)
        offset, fill = self.spec.offset[span], self.spec.fill[span]
        infinite = kernels.encode_lists(
            code, address, valid, bits, starts, present, column.size, offset, fill, len(out), cell, out
        )
        if infinite:
            raise _not_finite(column.name, infinite, where)


def _not_finite(name: str, count: int, where: str) -> NonFiniteFeature:
    return NonFiniteFeature(
        f"{where}: column {name!r} holds infinity, or a number too large for float32, in {count} place(s); features "
        f"must be finite (null and NaN count as missing). Mend the data or leave the column out with --drop {name}."
    )


def sample_weights(values: pa.Array, name: str, where: str) -> NDArray[np.float64]:
    """Sample weights as float64[n].

    Raises
    ------
    BadWeight
        A weight is missing, negative, NaN or infinite.
    """
    if not is_number(values.type):
        raise BadWeight(f"weight column {name!r} is {values.type}; it must be numbers.")
    weights = _floats(values)
    wrong = ~((weights >= 0) & (weights < np.inf))
    if wrong.any():
        raise BadWeight(
            f"{where}: weight {name!r} is {weights[int(np.argmax(wrong))]} in {int(wrong.sum())} row(s); weights must "
            f"be finite and not negative. Use 0 for a row that should not count."
        )
    return weights
