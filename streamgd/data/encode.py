"""Record batches to encoded rows. The same row gives the same cells whatever batch it comes in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import (
    ConfigError,
    ListLengthMismatch,
    MissingColumn,
    NonFiniteFeature,
    UnusableColumns,
)
from ..features import Column, FeatureSpec, Layout
from ..kernels import layout as kernels
from .buffers import CODES, Buffers, buffers, floats, is_number, native, native_batch, native_type
from .target import Target, sample_weights

BATCH_BYTES = 16 << 20
BATCH_ROWS = (128, 65_536)
CENTRE_ROWS = 32
LINE_CELLS = 16
#: Where pandas puts an index that it writes; an index is no feature.
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


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
    for name in (target, weight):
        if name is not None and name in drop:
            raise ConfigError(f"column {name!r} is dropped, but it is the target or the weight; leave it out of drop.")
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


def _middles(values: pa.Array, starts: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Median of the first few numbers at each place of lists that begin at ``starts``; 0 where there is none."""
    places = starts[:CENTRE_ROWS, np.newaxis] + np.arange(size)
    few = floats(values.take(pa.array(places.ravel(), pa.int64()))).reshape(places.shape)
    middles = np.zeros(size)
    for j in range(size):
        found = few[np.isfinite(few[:, j]), j]
        if len(found) == 0 and len(starts) > len(few):  # many are missing
            column = floats(values.take(pa.array(starts + j)))
            found = column[np.isfinite(column)][:CENTRE_ROWS]
        if len(found):
            middles[j] = np.sort(found)[len(found) // 2]
    return middles


def vector_parts(values: pa.Array) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Child values, start of each row's list in them, whether the row has a list, and its length.

    A slice of lists refers to the values of the whole: those outside of it are left out, for values may be converted.
    """
    n = len(values)
    present = np.ones(n, np.bool_) if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(values.type):
        size = values.type.list_size
        child = values.values.slice(values.offset * size, n * size)
        return child, np.arange(n, dtype=np.int64) * size, present, np.full(n, size, np.int64)
    ends = values.offsets.to_numpy().astype(np.int64)
    return values.values.slice(ends[0], ends[-1] - ends[0]), ends[:-1] - ends[0], present, np.diff(ends)


@dataclass(frozen=True)
class _Numbers:
    """Neighbouring columns of numbers in record batches of one schema, as the kernel takes them.

    The target and the weight, made float32 before, may follow them as ``extra`` columns.
    """

    names: list[str]
    cell: int
    places: NDArray[np.int64]
    codes: NDArray[np.int64]
    widths: NDArray[np.int64]
    offset: NDArray[np.float64]
    fill: NDArray[np.float32]
    cast: bool
    extra: int = 0

    @classmethod
    def plan(cls, schema: pa.Schema, names: list[str], cell: int, spec: FeatureSpec) -> _Numbers:
        types = [schema.field(name).type for name in names]
        cast = any(kind not in CODES for kind in types)
        types = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in types]
        types = [native_type(kind) for kind in types]
        places = range(len(names)) if cast else [schema.get_field_index(name) for name in names]
        codes = np.array([CODES[kind] for kind in types], np.int64)
        widths = np.array([kind.bit_width // 8 for kind in types], np.int64)  # 0 of a bit
        span = slice(cell, cell + len(names))
        return cls(names, cell, np.array(places, np.int64), codes, widths, spec.offset[span], spec.fill[span], cast)

    def extended(self, extra: int) -> _Numbers:
        codes = np.append(self.codes, np.full(extra, kernels.FLOAT32))
        offset, fill = np.append(self.offset, np.zeros(extra)), np.append(self.fill, np.full(extra, np.nan, np.float32))
        return replace(self, codes=codes, offset=offset, fill=fill.astype(np.float32), extra=extra)


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

    @property
    def row_values(self) -> int:
        """Values that are decoded for a row; a list is as many as it is long."""
        return self.spec.n_features + self.layout.has_target + self.layout.has_weight

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
        heads = np.full((len(self.spec.columns), CENTRE_ROWS), np.nan)
        for i, column in enumerate(self.spec.columns):
            if column.kind == "number":
                head = native(batch.column(column.name).slice(0, CENTRE_ROWS)).to_numpy(zero_copy_only=False)
                heads[i, : len(head)] = head
        heads[np.isinf(heads)] = np.nan
        heads.sort(axis=1)  # NaN last
        counts = np.isfinite(heads).sum(axis=1)
        found = [np.empty(0)]
        for column, head, count in zip(self.spec.columns, heads, counts, strict=True):
            values = batch.column(column.name)
            if column.kind == "vector":
                child, starts, present, lengths = vector_parts(values)
                found.append(_middles(child, starts[present & (lengths == column.size)], column.size))
            else:
                found.append(head[count // 2, np.newaxis] if count else _middles(values, np.arange(len(values)), 1))
        return np.concatenate(found)

    def encode(self, batch: pa.RecordBatch, out: NDArray[np.float32], where: str) -> int:
        """Encode a batch into the first rows of ``out``.

        Parameters
        ----------
        batch : pyarrow.RecordBatch
            At least the columns of `columns`.
        out : ndarray of float32, shape (>= n, stride)
            Takes the rows. Cells after the last used one keep what they have, or become 0; they must be finite
            before (`new_rows`), since kernels multiply them by 0.
        where : str
            Shard and row group, for messages.

        Returns
        -------
        int
            Rows written: those of the batch less those whose target is null.
        """
        n: int = batch.num_rows
        out = out[:n]
        y = w = None
        if self.target is not None:
            y = self.target.encode(batch.column(self.target.name), where)
        if self.weight is not None:
            weights = sample_weights(batch.column(self.weight), self.weight, where)
            w = (weights * self.weight_scale).astype(np.float32)
        for run in self._runs(batch.schema):
            if isinstance(run, _Numbers):
                self._numbers(run, batch, [cells for cells in (y, w) if cells is not None], out, where)
            else:
                column, cell = run
                self._vector(column, batch.column(column.name), cell, out, where)
        if y is None or not np.isnan(y.sum()):
            return n
        keep = ~np.isnan(y)
        kept = int(keep.sum())
        out[:kept] = out[keep]
        return kept

    def _runs(self, schema: pa.Schema) -> list[_Numbers | tuple[Column, int]]:
        """Neighbouring columns of numbers, which are encoded together, and single vectors with their cells."""
        known: tuple[pa.Schema, list[_Numbers | tuple[Column, int]]] | None = self.__dict__.get("_known_runs")
        if known is not None and known[0].equals(schema):
            return known[1]
        runs: list[_Numbers | tuple[Column, int]] = []
        cell = 0
        for number, group in itertools.groupby(self.spec.columns, lambda column: column.kind == "number"):
            columns = list(group)
            if number:
                runs.append(_Numbers.plan(schema, [column.name for column in columns], cell, self.spec))
                cell += len(columns)
            else:
                for column in columns:
                    runs.append((column, cell))
                    cell += column.size
        extra = self.layout.has_target + self.layout.has_weight
        if extra:
            last = runs.pop() if runs and isinstance(runs[-1], _Numbers) else _Numbers.plan(schema, [], cell, self.spec)
            assert isinstance(last, _Numbers)
            runs.append(last.extended(extra))
        self.__dict__["_known_runs"] = schema, runs  # the encoder is frozen, but this is only what it would say again
        return runs

    def _numbers(
        self,
        run: _Numbers,
        batch: pa.RecordBatch,
        extra: list[NDArray[np.float32]],
        out: NDArray[np.float32],
        where: str,
    ) -> None:
        found = Buffers(native_batch(batch, run.names) if run.cast else batch, run.places, run.widths)
        more = np.array([cells.ctypes.data for cells in extra] if run.extra else [], np.int64)
        none = np.zeros(len(more), np.int64)
        infinite = np.zeros(len(run.codes), np.int64)
        kernels.encode_columns(
            run.codes,
            np.concatenate([found.addresses, more]),
            np.concatenate([found.valids, none]),
            np.concatenate([found.valid_offsets, none]),
            run.offset,
            run.fill,
            len(out),
            run.cell,
            out,
            infinite,
        )
        infinite = infinite[: len(run.names)]
        if infinite.any():
            j = int(np.argmax(infinite > 0))
            raise _not_finite(run.names[j], int(infinite[j]), where)

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
        numbers = native(child)
        code, address, valid, bits = buffers(numbers)
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
