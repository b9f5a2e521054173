"""Where rows come from: the row groups of Parquet shards, or slices of a table in memory.

Planning reads footers and nothing else. What is known about the row groups stands in a few arrays (24 bytes a row
group), never in objects, and the parsed footers are dropped: one with many columns takes megabytes. Column chunk
metadata are never looked at from here, because doing so aborts the process on some encrypted or broken files.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ConfigError, EmptyData, MissingColumn, SchemaMismatch, StreamgdError, UnreadableShard
from .paths import hive_column, relative_names, resolve

# A row group above this is read through small buffers, and by a file of its own that can change threads with it.
BIG_ROW_GROUP = 64 << 20
# Opening a file costs 15-30 µs a row group of it at 28 columns, so threads keep files open; this bounds what they keep.
OPEN_FILES = 16
OPEN_FOOTER_BYTES = 16 << 20
TABLE_ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class Manifest:
    """What the footers say, one entry a row group; row groups without rows are left out.

    Attributes
    ----------
    shard : ndarray of int32, shape (n,)
        Number of the shard.
    index : ndarray of int32, shape (n,)
        Number of the row group inside its shard.
    rows : ndarray of int64, shape (n,)
        Rows, all of them positive.
    bytes : ndarray of int64, shape (n,)
        Encoded but uncompressed size of all columns.
    file_bytes : ndarray of int64, shape (shards,)
        Size of each shard on disk.
    schema : pyarrow.Schema
        Columns of the first shard with the types that hold every shard, then the hive columns.
    """

    shard: NDArray[np.int32]
    index: NDArray[np.int32]
    rows: NDArray[np.int64]
    bytes: NDArray[np.int64]
    file_bytes: NDArray[np.int64]
    schema: Any

    @property
    def n_rows(self) -> int:
        """Rows of all row groups."""
        return int(self.rows.sum())

    @property
    def n_row_groups(self) -> int:
        """Number of row groups."""
        return len(self.rows)

    def row_bytes(self) -> float:
        """Mean uncompressed bytes of a row, all columns together."""
        return float(self.bytes.sum()) / max(1, self.n_rows)

    def take(self, row_groups: NDArray[Any]) -> Manifest:
        """Keep some row groups, numbered anew in the order given."""
        chosen = np.asarray(row_groups)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise ConfigError(f"row groups must be a vector of integers, not {chosen.dtype} of shape {chosen.shape}")
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.n_row_groups):
            raise ConfigError(f"row groups must lie in 0..{self.n_row_groups - 1}")
        return replace(self, **{name: getattr(self, name)[chosen] for name in ("shard", "index", "rows", "bytes")})


class RowGroupReader:
    """The rows of one row group, front to back, in pieces of any size.

    Parameters
    ----------
    batches : iterator of pyarrow.RecordBatch
        The rows.
    rows : int
        How many there should be.
    where : str
        Names the row group in messages.
    """

    def __init__(self, batches: Iterator[Any], rows: int, where: str) -> None:
        self._batches = batches
        self._rest: Any = None
        self.rows, self.done, self.where = rows, 0, where

    def read(self, n: int) -> Iterator[Any]:
        """Yield record batches that make up exactly the next `n` rows.

        Raises
        ------
        UnreadableShard
            The row group ends before that, or cannot be decoded.
        """
        if not 0 <= n <= self.rows - self.done:
            raise ValueError(f"{n} rows asked for, {self.rows - self.done} are left in {self.where}")
        while n:
            batch, self._rest = self._next(), None
            if batch is None:
                raise UnreadableShard(
                    f"{self.where} ends early: the footer says {self.rows} rows, the pages hold {self.done}; "
                    "write the shard again or leave it out"
                )
            if batch.num_rows > n:
                batch, self._rest = batch.slice(0, n), batch.slice(n)
            n -= batch.num_rows
            self.done += batch.num_rows
            yield batch

    def skip(self, n: int) -> None:
        """Pass over the next `n` rows; Parquet has no way to them but decoding."""
        for _ in self.read(n):
            pass

    def finish(self) -> None:
        """Pass over what is left and make sure that the row group ends where the footer says."""
        self.skip(self.rows - self.done)
        if (batch := self._next()) is not None:
            raise UnreadableShard(
                f"{self.where} does not end: the footer says {self.rows} rows, the pages hold at least "
                f"{self.rows + batch.num_rows}; write the shard again or leave it out"
            )

    def _next(self) -> Any:
        if self._rest is not None:
            return self._rest
        return next((batch for batch in self._batches if batch.num_rows), None)


@runtime_checkable
class Source(Protocol):
    """Row groups that can be planned over and opened in any order, from any thread."""

    @property
    def manifest(self) -> Manifest:
        """What there is."""

    @property
    def schema(self) -> Any:
        """The pyarrow schema of `manifest`, which record batches follow."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each shard."""

    def open(self, row_group: int, columns: Sequence[str], batch_rows: int) -> RowGroupReader:
        """Start reading some columns of a row group, in record batches of at most `batch_rows` rows."""

    def describe(self, row_group: int) -> str:
        """Name a row group for a message."""

    def fingerprint(self) -> str:
        """SHA-256 of what identifies the data, wherever they lie."""

    def subset(self, row_groups: NDArray[Any]) -> Source:
        """Restrict the source to some of its row groups, numbered anew."""


class ParquetSource:
    """Row groups of Parquet shards.

    Parameters
    ----------
    spec : str, path, list of these, or pyarrow Dataset
        What to read, see `streamgd.data.paths.resolve`.
    n_jobs : int, optional
        Threads that read footers, and that the cache of open files is sized for; by default one a CPU.

    Raises
    ------
    PathNotFound, NoShards, ConfigError
        As `streamgd.data.paths.resolve` does.
    UnreadableShard
        A file is not Parquet, is encrypted, empty or damaged.
    SchemaMismatch
        A shard lacks a column of the first, or has it with a type that does not widen safely.
    EmptyData
        No shard has a row.

    Notes
    -----
    Widening goes from integers to wider integers and to floats (where, as everywhere, whole numbers above 2^53 are
    rounded), among floats, decimals, forms of string and of list, and from null to anything; a dictionary counts as
    its values where shards disagree.

    Examples
    --------
    >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
    >>> file = tempfile.NamedTemporaryFile(suffix=".parquet")
    >>> pq.write_table(pa.table({"x": [1, 2, 3]}), file.name, row_group_size=2)
    >>> source = ParquetSource(file.name)
    >>> source.manifest.rows.tolist()
    [2, 1]
    >>> [batch.column(0).to_pylist() for batch in source.open(0, ["x"], 1024).read(2)]
    [[1, 2]]
    """

    def __init__(self, spec: object, *, n_jobs: int | None = None) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise ConfigError(f"n_jobs is {n_jobs}; give a number of threads, at least 1")
        shards = resolve(spec)
        self.names: Sequence[str] = relative_names(shards.paths)
        self._filesystem, self._paths = shards.filesystem, shards.paths
        self._n_jobs = n_jobs or _cpus()
        self._hive = {key: hive_column([values[key] for values in shards.hive]) for key in shards.hive[0]}
        self.manifest = self._plan()
        self._open_files = _OpenFiles()

    @property
    def schema(self) -> Any:
        """Columns, see `Manifest`."""
        return self.manifest.schema

    def open(self, row_group: int, columns: Sequence[str], batch_rows: int) -> RowGroupReader:
        """Start reading some columns of a row group.

        The file is opened with the first read, so that is where an `UnreadableShard` comes from.

        Parameters
        ----------
        row_group : int
            Number in the manifest.
        columns : sequence of str
            Top-level columns, in the order wanted; may be empty.
        batch_rows : int
            Most rows of a record batch.
        """
        schema = _select(self.schema, columns, batch_rows)
        batches = self._batches(row_group, schema, batch_rows)
        return RowGroupReader(batches, int(self.manifest.rows[row_group]), self.describe(row_group))

    def describe(self, row_group: int) -> str:
        """Name a row group for a message."""
        return f"shard {self.names[self.manifest.shard[row_group]]}, row group {self.manifest.index[row_group]}"

    def fingerprint(self) -> str:
        """SHA-256 over relative names, sizes and row counts."""
        manifest = self.manifest
        return _digest("\n".join(self.names), manifest.file_bytes, manifest.shard, manifest.index, manifest.rows)

    def subset(self, row_groups: NDArray[Any]) -> ParquetSource:
        """Restrict the source to some of its row groups, numbered anew."""
        part = copy.copy(self)
        part.manifest = self.manifest.take(row_groups)
        part._open_files = self._open_files
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open_files=_OpenFiles())

    def _plan(self) -> Manifest:
        rows, sizes, index, counts, file_bytes = (array("q") for _ in range(5))
        fields: dict[str, Any] = {}
        schemas: dict[Any, Any] = {}
        merged: set[Any] = set()
        # Mostly waiting where files are remote, so more threads than CPUs.
        threads = self._n_jobs if isinstance(self._filesystem, pafs.LocalFileSystem) else max(16, self._n_jobs)
        with ThreadPoolExecutor(min(threads, len(self._paths)), thread_name_prefix="streamgd-footer") as pool:
            footers = pool.map(lambda shard: self._footer(shard, schemas), range(len(self._paths)))
            for name, footer in zip(self.names, footers, strict=True):
                if footer.schema not in merged:
                    merged.add(footer.schema)
                    _merge(fields, footer.schema, name, self._hive)
                kept = [number for number, count in enumerate(footer.rows) if count]
                index.extend(kept)
                rows.extend(footer.rows[number] for number in kept)
                sizes.extend(footer.sizes[number] for number in kept)
                counts.append(len(kept))
                file_bytes.append(footer.file_bytes)
        if not rows:
            raise EmptyData(f"no rows in {len(self.names)} shard(s), the first is {self.names[0]}")
        hive = [pa.field(key, values.type) for key, values in self._hive.items()]
        return Manifest(
            shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            index=np.array(index, np.int32),
            rows=np.array(rows, np.int64),
            bytes=np.array(sizes, np.int64),
            file_bytes=np.array(file_bytes, np.int64),
            schema=pa.schema([*fields.values(), *hive]),
        )

    def _footer(self, shard: int, schemas: dict[Any, Any]) -> _Footer:
        with _reading(f"shard {self.names[shard]}"), self._filesystem.open_input_file(self._paths[shard]) as file:
            if (size := file.size()) == 0:
                raise UnreadableShard(f"shard {self.names[shard]} is empty (0 bytes); write it again or remove it")
            parquet = pq.ParquetFile(file, pre_buffer=False)
            metadata, schema = parquet.metadata, parquet.schema_arrow.remove_metadata()
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            rows = array("q", [group.num_rows for group in groups])
            # Some writers leave the size out.
            sizes = array("q", [group.total_byte_size if group.total_byte_size > 0 else size for group in groups])
            if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
                raise UnreadableShard(
                    f"shard {self.names[shard]}: its footer contradicts itself, it says {metadata.num_rows} rows, but "
                    f"the row groups add up to {sum(rows)}; write it again or leave it out"
                )
            return _Footer(rows, sizes, size, schemas.setdefault(schema, schema))

    def _batches(self, row_group: int, schema: Any, batch_rows: int) -> Iterator[Any]:
        manifest, where = self.manifest, self.describe(row_group)
        shard, index = int(manifest.shard[row_group]), int(manifest.index[row_group])
        rows, size = int(manifest.rows[row_group]), int(manifest.bytes[row_group])
        names = [name for name in schema.names if name not in self._hive] or [self._narrowest()]
        with _reading(where):
            if size > BIG_ROW_GROUP:
                buffer = min(max((32 << 20) // len(names), 64 << 10), 1 << 20)
                file = self._open(shard, buffer)
            else:
                file = self._open_files.get(shard, lambda: self._open(shard, 0), OPEN_FOOTER_BYTES // self._n_jobs)
            if index >= file.num_row_groups or file.metadata.row_group(index).num_rows != rows:
                raise UnreadableShard(f"{where} is not what it was when the job began; begin again, without --resume")
            batches = file.iter_batches(min(batch_rows, rows), row_groups=[index], columns=names, use_threads=False)
            for batch in batches:
                yield self._conform(batch, schema, shard, where)

    def _open(self, shard: int, buffer_size: int) -> Any:
        # Page checksums stay off: verifying them costs 20 % of the decoding where a file has them (measured on
        # snappy float32; Arrow computes them byte by byte), and most writers, pyarrow among them, write none.
        file = self._filesystem.open_input_file(self._paths[shard])
        return pq.ParquetFile(file, pre_buffer=False, memory_map=False, buffer_size=buffer_size)

    def _conform(self, batch: Any, schema: Any, shard: int, where: str) -> Any:
        """Give a record batch the columns asked for, in order, with the types of the manifest."""
        if batch.schema.equals(schema):  # 50 µs saved at 28 columns
            return batch.replace_schema_metadata()
        columns = []
        for field in schema:
            if field.name in self._hive:
                columns.append(pa.repeat(self._hive[field.name][shard], batch.num_rows))
                continue
            # By name: asked for "a", pyarrow also reads a column "a.b", which might belong to a struct.
            place = batch.schema.get_field_index(field.name)
            if place < 0:
                raise UnreadableShard(f"{where} has no column {field.name}, which the footer promised when planned")
            columns.append(_cast(batch.column(place), field, where))
        return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else batch.select([])

    def _narrowest(self) -> str:
        return str(min((f for f in self.schema if f.name not in self._hive), key=lambda f: _bit_width(f.type)).name)


class TableSource:
    """Row groups that are slices of a table in memory.

    Parameters
    ----------
    table : pyarrow.Table
        The rows.
    row_group_rows : int, optional
        Rows of a slice; by default a 64th of the table, at most 65,536.

    Examples
    --------
    >>> import pyarrow as pa
    >>> source = TableSource(pa.table({"x": [1, 2, 3]}), row_group_rows=2)
    >>> source.manifest.rows.tolist(), source.describe(1)
    ([2, 1], 'the table, rows 2 to 2')
    """

    def __init__(self, table: Any, row_group_rows: int | None = None) -> None:
        if row_group_rows is not None and row_group_rows < 1:
            raise ConfigError(f"row_group_rows is {row_group_rows}, expected at least 1")
        if not table.num_rows or not table.num_columns:
            raise EmptyData(f"the table has {table.num_rows} rows and {table.num_columns} columns")
        _refuse_duplicates(table.schema, "the table")
        size = row_group_rows or min(max(-(-table.num_rows // 64), 1), TABLE_ROW_GROUP_ROWS)
        self._size = size
        self._table = table.replace_schema_metadata()
        self.names: Sequence[str] = ["the table"]
        starts = np.arange(0, table.num_rows, size)
        rows = np.minimum(size, table.num_rows - starts)
        self.manifest = Manifest(
            shard=np.zeros(len(starts), np.int32),
            index=np.arange(len(starts), dtype=np.int32),
            rows=rows,
            bytes=np.ceil(rows * (table.nbytes / table.num_rows)).astype(np.int64),
            file_bytes=np.array([table.nbytes]),
            schema=self._table.schema,
        )

    @property
    def schema(self) -> Any:
        """Columns of the table."""
        return self.manifest.schema

    def open(self, row_group: int, columns: Sequence[str], batch_rows: int) -> RowGroupReader:
        """Start reading some columns of a slice, see `ParquetSource.open`."""
        schema = _select(self.schema, columns, batch_rows)
        rows, start = int(self.manifest.rows[row_group]), int(self.manifest.index[row_group]) * self._size
        batches = self._batches(schema.names, start, start + rows, batch_rows)
        return RowGroupReader(batches, rows, self.describe(row_group))

    def describe(self, row_group: int) -> str:
        """Name a slice for a message."""
        start = int(self.manifest.index[row_group]) * self._size
        return f"the table, rows {start} to {start + int(self.manifest.rows[row_group]) - 1}"

    def fingerprint(self) -> str:
        """SHA-256 over schema and row counts."""
        return _digest(self.schema.to_string(), self.manifest.index, self.manifest.rows)

    def subset(self, row_groups: NDArray[Any]) -> TableSource:
        """Restrict the source to some of its slices, numbered anew."""
        part = copy.copy(self)
        part.manifest = self.manifest.take(row_groups)
        return part

    def _batches(self, names: list[str], start: int, stop: int, batch_rows: int) -> Iterator[Any]:
        table = self._table.select(names or self._table.column_names[:1])
        for first in range(start, stop, batch_rows):
            piece = table.slice(first, min(batch_rows, stop - first))
            # A table put together from small pieces would else come row by row.
            if any(column.num_chunks > 1 for column in piece.columns):
                piece = piece.combine_chunks()
            for batch in piece.to_batches():
                yield batch if names else batch.select([])


def as_source(data: object, n_jobs: int | None = None) -> Source:
    """Make a source of what a user passes as data.

    Parameters
    ----------
    data : Source, pyarrow Table or RecordBatch, or anything that `ParquetSource` takes
        The data.
    n_jobs : int, optional
        As for `ParquetSource`.

    Examples
    --------
    >>> import pyarrow as pa
    >>> as_source(pa.table({"x": [1, 2, 3]})).manifest.n_rows
    3
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return TableSource(data)
    return ParquetSource(data, n_jobs=n_jobs)


@dataclass(frozen=True)
class _Footer:
    rows: array[int]
    sizes: array[int]
    file_bytes: int
    schema: Any


class _OpenFiles(threading.local):
    """The files that each thread used last."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def get(self, shard: int, opener: Callable[[], Any], footer_bytes: int) -> Any:
        if shard not in self._files:
            file = opener()
            self._files[shard] = file, file.metadata.serialized_size
        self._files.move_to_end(shard)
        while len(self._files) > OPEN_FILES or (
            len(self._files) > 1 and sum(size for _, size in self._files.values()) > footer_bytes
        ):
            self._files.popitem(last=False)
        return self._files[shard][0]


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn whatever goes wrong in Arrow or in a filesystem into an error that names the place."""
    try:
        yield
    except StreamgdError:
        raise
    except Exception as exc:  # pyarrow raises a dozen types, filesystems of fsspec those of their own libraries
        raise UnreadableShard(f"{where} cannot be read: {exc}; write the shard again or leave it out") from exc


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _select(schema: Any, columns: Sequence[str], batch_rows: int) -> Any:
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}, expected at least 1")
    if isinstance(columns, str):
        raise TypeError(f"columns is the string {columns!r}, expected a sequence of names")
    known = set(schema.names)
    missing = [name for name in columns if name not in known]
    if missing:
        raise MissingColumn(f"no column {', '.join(missing)} in the data; there are {', '.join(schema.names)}")
    return pa.schema([schema.field(name) for name in columns])


def _digest(text: str, *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{len(text)} {text}".encode("utf-8", "surrogateescape"))
    for numbers in arrays:
        digest.update(len(numbers).to_bytes(8, "little") + numbers.astype("<i8").tobytes())
    return digest.hexdigest()


def _bit_width(type_: Any) -> int:
    try:
        return int(type_.bit_width)
    except ValueError:  # strings, lists
        return 1 << 20


def _refuse_duplicates(schema: Any, where: str) -> None:
    if len(set(schema.names)) < len(schema.names):
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        raise SchemaMismatch(f"{where} has more than one column called {', '.join(twice)}; rename all but one")


def _merge(fields: dict[str, Any], schema: Any, name: str, hive: Mapping[str, Any]) -> None:
    """Widen the columns known so far to hold those of another shard; the first shard says which there are."""
    _refuse_duplicates(schema, f"shard {name}")
    if both := [key for key in hive if key in schema.names]:
        raise SchemaMismatch(
            f"shard {name} has {both[0]} twice: as a column of the file and as {both[0]}=... in its path; "
            "rename one, or give the files by name, which leaves their paths out"
        )
    if not fields:
        fields.update((field.name, field.remove_metadata()) for field in schema)
    for column, field in fields.items():
        place = schema.get_field_index(column)
        other = schema.field(place) if place >= 0 else None
        widened = widen(field.type, other.type) if other is not None else None
        if other is None or widened is None:
            raise SchemaMismatch(
                f"shard {name}, column {column}: found {'no such column' if other is None else other.type}, expected "
                f"{field.type} as in the shards before; write it with that type or leave the shard out"
            )
        fields[column] = pa.field(column, widened, field.nullable or other.nullable)


def widen(one: Any, other: Any) -> Any:
    """Find the Arrow type that holds the values of both types, None if no type does so safely.

    Examples
    --------
    >>> widen(pa.int32(), pa.float32()), widen(pa.decimal128(5, 2), pa.decimal128(9, 0)), widen(pa.int8(), pa.string())
    (DataType(double), Decimal128Type(decimal128(11, 2)), None)
    """
    types, both = pa.types, (one, other)
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if any(map(types.is_dictionary, both)):
        return widen(*(each.value_type if types.is_dictionary(each) else each for each in both))
    if all(types.is_integer(each) or types.is_floating(each) for each in both):
        promoted = np.promote_types(one.to_pandas_dtype(), other.to_pandas_dtype())
        # NumPy makes float64 of uint64 and int64; as int64, values that do not fit are refused when they are read.
        return (
            pa.int64() if promoted.kind == "f" and all(map(types.is_integer, both)) else pa.from_numpy_dtype(promoted)
        )
    if all(types.is_decimal(each) or types.is_integer(each) for each in both):
        scale = max(_scale(each) for each in both)
        precision = scale + max(_digits(each) for each in both)
        return (
            None
            if precision > 76
            else pa.decimal128(precision, scale)
            if precision <= 38
            else pa.decimal256(precision, scale)
        )
    for plain, large, view, narrow, wide in (
        (types.is_string, types.is_large_string, types.is_string_view, pa.string, pa.large_string),
        (types.is_binary, types.is_large_binary, types.is_binary_view, pa.binary, pa.large_binary),
    ):
        if all(plain(each) or large(each) or view(each) for each in both):
            return wide() if any(map(large, both)) else narrow()
    if all(types.is_list(each) or types.is_large_list(each) or types.is_fixed_size_list(each) for each in both):
        value = widen(one.value_type, other.value_type)
        if value is None:
            return None
        if all(map(types.is_fixed_size_list, both)) and one.list_size == other.list_size:
            return pa.list_(value, one.list_size)
        return pa.large_list(value) if any(map(types.is_large_list, both)) else pa.list_(value)
    return None


def _scale(type_: Any) -> int:
    return int(type_.scale) if pa.types.is_decimal(type_) else 0


def _digits(type_: Any) -> int:
    """Decimal digits before the point, as Arrow counts them for integers."""
    if pa.types.is_decimal(type_):
        return int(type_.precision) - int(type_.scale)
    digits = {8: 3, 16: 5, 32: 10, 64: 20 if pa.types.is_unsigned_integer(type_) else 19}
    return digits[type_.bit_width]


def _cast(values: Any, field: Any, where: str) -> Any:
    """Cast the values of a shard to the type that holds all shards."""
    target, inner = field.type, field.type
    if values.type == target:
        return values
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), target)
    while hasattr(inner, "value_type"):
        inner = inner.value_type
    try:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        return values.cast(target, safe=not pa.types.is_floating(inner))
    except pa.ArrowException as exc:
        raise SchemaMismatch(
            f"{where}, column {field.name}: found {values.type}, expected {target} to hold all shards, but {exc}; "
            "write the column with one type"
        ) from exc
