"""Record batches to encoded rows. The same row gives the same cells whatever batch it comes in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ListLengthMismatch, NonFiniteFeature
from ..features import TEXT_CELLS, Column, FeatureSpec, Layout
from ..kernels import layout as kernels
from ..slotorder import SlotOrder
from . import strings
from .buffers import CODES, Buffers, buffers, floats, native, native_batch, native_type
from .direct import Recipe, recipe
from .reading import reading
from .target import Target, leave_out, sample_weights
from .vectors import CENTRE_ROWS, middles, vector_parts

#: A record batch has so many bytes of encoded rows, but of wide rows at least so many rows up to so many bytes: each
#: costs 5 µs a column.
BATCH_BYTES, WIDE_ROWS, WIDE_BYTES = 32 << 20, 2048, 96 << 20
BATCH_ROWS = (128, 65_536)
LINE_CELLS = 16


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
    class_weight : ndarray of float64, shape (n_classes,), or None
        Factor of the weight of the rows of each class.
    """

    spec: FeatureSpec
    target: Target | None = None
    weight: str | None = None
    weight_scale: float = 1.0
    class_weight: NDArray[np.float64] | None = None
    dictionaries: strings.DictionaryHashes = field(default_factory=strings.DictionaryHashes, repr=False, compare=False)

    @cached_property
    def layout(self) -> Layout:
        """Where things lie in an encoded row."""
        return Layout(
            self.spec.n_features,
            self.target is not None,
            self.weight is not None or self.class_weight is not None,
            len(self.spec.group("index")) + len(self.spec.group("scaled")),
            len(self.spec.group("scaled")),
            len(self.spec.group("text")),
        )

    @cached_property
    def recipe(self) -> Recipe | None:
        """How its columns become rows without Arrow, if they can."""
        return recipe(self)

    @property
    def columns(self) -> list[str]:
        """Columns to read, each once."""
        names = self.spec.names
        names += [self.target.name] if self.target is not None else []
        return list(dict.fromkeys(names + ([self.weight] if self.weight is not None else [])))

    @property
    def row_cost(self) -> int:
        """What decoding a row costs, in numbers: a list is as many as it is long, a string ten (38 ns against 3)."""
        strings = len(self.spec.group("index")) + len(self.spec.group("text"))
        return self.spec.n_inputs + self.layout.has_target + self.layout.has_weight + 9 * strings

    @property
    def is_orderable(self) -> bool:
        """Whether rows may hold the places of slots: not if they point to texts, or pairs are made of their hashes."""
        return not self.layout.n_text and not self.pairs[0]

    def with_order(self, order: SlotOrder) -> Encoder:
        """The same, but rows hold the places of slots in an order."""
        assert self.is_orderable
        return replace(self, dictionaries=strings.DictionaryHashes(order))

    def new_rows(self, n: int) -> NDArray[np.float32]:
        """Memory for n encoded rows; rows begin where cache lines do, so that a random row touches no line more."""
        stride = self.layout.stride
        memory = np.zeros(n * stride + LINE_CELLS, np.float32)
        skip = -(memory.ctypes.data // 4) % LINE_CELLS
        return memory[skip : skip + n * stride].reshape(n, stride)

    @property
    def batch_rows(self) -> int:
        """Rows a record batch."""
        size = self.layout.row_bytes
        return min(max(BATCH_BYTES // size, min(WIDE_ROWS, WIDE_BYTES // size), BATCH_ROWS[0]), BATCH_ROWS[1])

    def centres(self, batch: pa.RecordBatch) -> NDArray[np.float64]:
        """A typical value of each dense feature: the median of its first few in a batch, or 0; float64[n_features]."""
        batch = self._with_derived(batch)
        columns = self.spec.group("dense")
        heads = np.full((len(columns), CENTRE_ROWS), np.nan)
        for i, column in enumerate(columns):
            if column.kind != "vector":
                head = native(batch.column(_name(column)).slice(0, CENTRE_ROWS)).to_numpy(zero_copy_only=False)
                heads[i, : len(head)] = head
        heads[np.isinf(heads)] = np.nan
        heads.sort(axis=1)  # NaN last
        counts = np.isfinite(heads).sum(axis=1)
        found = [np.empty(0)]
        for column, head, count in zip(columns, heads, counts, strict=True):
            values = batch.column(_name(column))
            if column.kind == "vector":
                child, starts, present, lengths = vector_parts(values)
                found.append(middles(child, starts[present & (lengths == column.size)], column.size))
            else:
                found.append(head[count // 2, np.newaxis] if count else middles(values, np.arange(len(values)), 1))
        return np.concatenate(found)

    def encode(
        self, batch: pa.RecordBatch, out: NDArray[np.float32], where: str, alive: list[NDArray[np.uint32]]
    ) -> int:
        """Encode a batch into the first rows of ``out``.

        Parameters
        ----------
        batch : pyarrow.RecordBatch
            At least the columns of `columns`.
        out : ndarray of float32, shape (>= n, stride)
            Takes the rows. Cells between the target and the hashes keep what they have, or become 0; they must be
            finite before (`new_rows`), since kernels multiply them by 0.
        where : str
            Shard and row group, for messages.
        alive : list of ndarray
            Takes the hashes of texts, to which rows hold addresses: to be kept as long as the rows are used.

        Returns
        -------
        int
            Rows written: those of the batch less those whose target is null.
        """
        return self.encode_and_tell(batch, out, where, alive)[0]

    def encode_and_tell(
        self, batch: pa.RecordBatch, out: NDArray[np.float32], where: str, alive: list[NDArray[np.uint32]]
    ) -> tuple[int, NDArray[np.int64]]:
        """The same, and which rows of the batch are left out."""
        with reading(where):  # what Arrow decoded may still be nonsense
            return self._encode(batch, out, where, alive)

    def _encode(
        self, batch: pa.RecordBatch, out: NDArray[np.float32], where: str, alive: list[NDArray[np.uint32]]
    ) -> tuple[int, NDArray[np.int64]]:
        n: int = batch.num_rows
        out = out[:n]
        y = self.target.encode(batch.column(self.target.name), where) if self.target is not None else None
        w = self._weights(batch, y, where)
        numbers = self._with_derived(batch)
        for run in self._runs(numbers.schema):
            if isinstance(run, _Numbers):
                self._numbers(run, numbers, [cells for cells in (y, w) if cells is not None], out, where)
            else:
                column, cell = run
                self._vector(column, numbers.column(column.name), cell, out, where)
        if self.layout.n_index or self.layout.n_text:
            alive += self._hashes(batch, out.view(np.uint32))
        if y is None or not np.isnan(y.sum()):
            return n, np.zeros(0, np.int64)
        return leave_out(out, y)

    def _weights(self, batch: pa.RecordBatch, y: NDArray[np.float32] | None, where: str) -> NDArray[np.float32] | None:
        if not self.layout.has_weight:
            return None
        weights = np.ones(batch.num_rows)
        if self.weight is not None:
            weights = sample_weights(batch.column(self.weight), self.weight, where)
        if self.class_weight is not None and y is not None:
            weights = weights * self.class_weight[np.nan_to_num(y).astype(np.intp)]
        return (weights * self.weight_scale).astype(np.float32)

    @cached_property
    def _derived(self) -> list[Column]:
        return [column for column in self.spec.group("dense") if column.kind in ("product", "missing")]

    def _with_derived(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch, and columns of numbers that are made of its columns."""
        if not self._derived:
            return batch
        arrays, names = list(batch.columns), list(batch.schema.names)
        for column in self._derived:
            if column.kind == "missing":
                values = np.isnan(floats(batch.column(column.name))).astype(np.float64)
            else:
                left, right = (floats(batch.column(part)) for part in column.parts)
                with np.errstate(over="ignore", invalid="ignore"):  # refused with the column it comes from
                    values = left * right
            arrays.append(pa.array(values))
            names.append(_name(column))
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _hashes(self, batch: pa.RecordBatch, out: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
        strings.write_indices(self.plain, batch, self.layout.width, out, self.dictionaries)
        strings.write_pairs(*self.pairs, out)
        text = self.layout.text_cell
        return [
            strings.write_text(column, batch.column(column.name), text + TEXT_CELLS * i, out)
            for i, column in enumerate(self.spec.group("text"))
        ]

    @cached_property
    def plain(self) -> list[Column]:
        """Categories and calendars."""
        return [column for column in self.spec.group("index") if column.kind != "cross"]

    @cached_property
    def pairs(self) -> tuple[list[Column], list[tuple[int, int]], int]:
        """Pairs that are hashed, the cells of their hashed parts (-1: it has but one), and the first of their own."""
        pairs = [column for column in self.spec.group("index") if column.kind == "cross"] + self.spec.group("scaled")
        first = self.layout.width
        cells = [[self.spec.cell(part) + first for part in pair.parts] for pair in pairs]
        parts = [
            (left if pair.kind == "cross" else -1, right) for pair, (left, right) in zip(pairs, cells, strict=True)
        ]
        return pairs, parts, first + len(self.plain)

    def _runs(self, schema: pa.Schema) -> list[_Numbers | tuple[Column, int]]:
        """Neighbouring columns of numbers, which are encoded together, and single vectors with their cells."""
        known: tuple[pa.Schema, list[_Numbers | tuple[Column, int]]] | None = self.__dict__.get("_known_runs")
        if known is not None and known[0].equals(schema):
            return known[1]
        runs: list[_Numbers | tuple[Column, int]] = []
        cell = 0
        for number, group in itertools.groupby(self.spec.group("dense"), lambda column: column.kind != "vector"):
            columns = list(group)
            if number:
                runs.append(_Numbers.plan(schema, [_name(column) for column in columns], cell, self.spec))
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


def _name(column: Column) -> str:
    """Name of the column of numbers that a dense feature comes from, in a batch with derived columns."""
    return column.name if column.kind in ("number", "vector") else f"\0{column.label}"


def _not_finite(name: str, count: int, where: str) -> NonFiniteFeature:
    name = name.lstrip("\0")
    return NonFiniteFeature(
        f"{where}: column {name!r} holds infinity, or a number too large for float32, in {count} place(s); features "
        f"must be finite (null and NaN count as missing). Mend the data or leave the column out with --drop {name} "
        f"(drop= in Python)."
    )
