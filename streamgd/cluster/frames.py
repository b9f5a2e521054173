"""Dask DataFrames as a source: every partition is a row group, computed where it is read."""

from __future__ import annotations

import copy
import hashlib
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import dask.base
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
from dask.delayed import delayed
from numpy.typing import NDArray

from ..data.leftout import LeftOut, OnError
from ..data.reading import digest, reading, select
from ..data.rowgroups import Manifest, RowGroupReader
from ..data.widen import cast, merge, refuse_duplicates
from ..errors import EmptyData, SchemaMismatch, StreamgdError, UnreadableShard
from .graphs import SHARED, Graphs, Partition, cluster_failures, wait_for

#: Sets of columns of which the graphs are kept.
PROJECTIONS = 4
#: Rows that are hashed at a time: 0.11 s for 160 MB, which took 0.27 to 0.35 s to read.
HASHED_ROWS = 65_536
#: Memory that computing a partition takes beyond its Arrow table, in sizes of that. Reading and converting 160 MB of a
#: Parquet file, 28 numbers and 4 strings, took 3.8 to 4.8 sizes in all.
COPIES = 4


class Told(NamedTuple):
    """What a partition tells of itself."""

    rows: int
    sizes: dict[str, int]
    schema: Any
    digest: bytes


class FrameSource:
    """Row groups that are the partitions of a Dask DataFrame, each of them a shard of its own.

    To count rows, the frame is computed once; of each partition come back its rows, bytes, types and a hash.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        The rows. They must be the same whenever a partition is computed.
    client : distributed.Client, optional
        Where to count; by default where Dask computes by default.
    on_error : {"raise", "skip"}, optional
        "skip" leaves out partitions that cannot be computed, or whose columns do not fit; see `LeftOut`.

    Raises
    ------
    UnreadableShard
        A partition cannot be computed.
    ReadFailed
        Storage or the cluster failed, which is no reason to leave a partition out.
    SchemaMismatch
        A partition lacks a column, or has it with a type that does not widen safely; see `ParquetSource`.
    EmptyData
        No partition has a row.

    Examples
    --------
    >>> import pandas as pd, dask.dataframe as dd
    >>> source = FrameSource(dd.from_pandas(pd.DataFrame({"x": [1, 2, 3]}), npartitions=2))
    >>> source.manifest.rows.tolist(), source.describe(1)
    ([2, 1], 'partition 1 of the Dask DataFrame')
    """

    def __init__(self, frame: Any, *, client: Any = None, on_error: OnError | None = None) -> None:
        labels = {str(label): label for label in frame.columns}
        refuse_duplicates(pa.schema([(str(label), pa.null()) for label in frame.columns]), "the Dask DataFrame")
        if not labels:
            raise EmptyData("the Dask DataFrame has no columns")
        self._frame, self._labels = frame, labels
        self._client, self._graphs = client, Graphs(frame, client)
        self._projected: OrderedDict[frozenset[str], Graphs] = OrderedDict()
        self._lock = threading.Lock()
        self.left_out = LeftOut(on_error)
        if self._graphs.shared > SHARED:
            warnings.warn(
                "the partitions of the Dask DataFrame share tasks (a shuffle, a sort or a join), which are computed "
                f"again for each: {self._graphs.shared:.0f} times the work, whenever rows are read. Persist the frame "
                "first (frame = client.persist(frame)), or write it to Parquet.",
                stacklevel=2,
            )
        self.manifest, self._digests = self._plan()

    @property
    def names(self) -> Sequence[str]:
        """Name of each partition."""
        return [_name(number) for number in range(len(self.manifest.file_bytes))]

    @property
    def schema(self) -> Any:
        """Columns, see `Manifest`; the index is none."""
        return self.manifest.schema

    def open(self, row_group: int, columns: Sequence[str], batch_rows: int) -> RowGroupReader:
        """Start reading some columns of a partition, which is computed with the first read; see `ParquetSource.open`.

        Raises
        ------
        UnreadableShard
            It cannot be computed, or has not as many rows as when it was counted.
        """
        schema = select(self.schema, columns, batch_rows)
        batches = self._batches(row_group, schema, batch_rows)
        return RowGroupReader(batches, int(self.manifest.rows[row_group]), self.describe(row_group))

    def raw(self, row_group: int, columns: Sequence[str]) -> None:
        """Nothing: what is in memory has no pages."""

    def describe(self, row_group: int) -> str:
        """Name a partition for a message."""
        return _name(int(self.manifest.shard[row_group]))

    def fingerprint(self) -> str:
        """SHA-256 over schema and row counts."""
        return digest(self.schema.to_string(), self.manifest.shard, self.manifest.rows)

    @property
    def in_memory(self) -> bool:
        """Never: a partition is computed whenever it is read."""
        return False

    @property
    def local(self) -> bool:
        """Never."""
        return False

    def identity(self) -> str:
        """SHA-256 over what `fingerprint` sees, and all values."""
        return digest(self.fingerprint() + "".join(self._digests))

    def shards(self) -> list[tuple[str, int, int, str]]:
        """Name, bytes, rows and a hash of the values of each partition that has rows.

        Not the names of Dask's tasks: those of a frame that is read from files differ from process to process.
        """
        manifest = self.manifest
        names = [_name(number) for number in manifest.shard.tolist()]
        return list(zip(names, manifest.bytes.tolist(), manifest.rows.tolist(), self._digests, strict=True))

    def with_dictionaries(self, columns: Sequence[str]) -> Self:
        """The source itself: categoricals are dictionaries already."""
        return self

    def for_job(self, on_error: OnError | None) -> Self:
        """See `ParquetSource.for_job`."""
        part = copy.copy(self)
        part.left_out = self.left_out.fresh(on_error)
        return part

    def subset(self, row_groups: NDArray[Any]) -> Self:
        """Restrict the source to some of its partitions, numbered anew."""
        part = copy.copy(self)
        part.manifest = self.manifest.take(row_groups)
        part._digests = [self._digests[number] for number in np.asarray(row_groups).tolist()]
        return part

    def project(self, columns: Sequence[str]) -> Self:
        """The same rows for a reader of these columns only, so that others are not even read where Dask can do so.

        A copy that was sent elsewhere knows no other columns than it was made for.
        """
        part = copy.copy(self)
        part._graphs = self._graphs_of(frozenset(columns)) or self._graphs
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("_frame", "_client", "_projected", "_lock")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _frame=None, _client=None, _projected=OrderedDict(), _lock=threading.Lock())

    def _plan(self) -> tuple[Manifest, list[str]]:
        """Count the partitions, and keep those that the others are fit for."""
        fields = {name: pa.field(name, pa.null()) for name in self._labels}
        merged: set[Any] = set()
        kept: dict[int, Told] = {}
        for number, told in enumerate(_count(self._graphs)):
            try:
                if isinstance(told, StreamgdError):
                    raise told
                if told.rows and told.schema not in merged:
                    fields = _widened(fields, told.schema, number)
                    merged.add(told.schema)
            except StreamgdError as error:
                self.left_out.note_shard(_name(number), error)
                continue
            if told.rows:
                kept[number] = told
        if not kept:
            raise self.left_out.error or EmptyData(
                f"no rows in the {len(self._graphs)} partitions of the Dask DataFrame"
            )
        sizes = {number: sum(told.sizes.values()) for number, told in kept.items()}
        large = {name: max(told.sizes.get(name, 0) for told in kept.values()) for name in fields}
        manifest = Manifest(
            shard=np.array(list(kept), np.int32),
            index=np.zeros(len(kept), np.int32),
            rows=np.array([told.rows for told in kept.values()], np.int64),
            bytes=np.array(list(sizes.values()), np.int64),
            file_bytes=np.array([sizes.get(number, 0) for number in range(len(self._graphs))], np.int64),
            schema=pa.schema(list(fields.values())),
            large_pages={name: COPIES * size for name, size in large.items()},
        )
        return manifest, [told.digest.hex() for told in kept.values()]

    def _batches(self, row_group: int, schema: Any, batch_rows: int) -> Iterator[Any]:
        where = self.describe(row_group)
        with _computing(where):
            table = self._table(row_group, schema.names)
        batches, rows = deque(table.to_batches(batch_rows)), table.num_rows
        del table  # so the last record batch that is taken is all that is left of it
        while batches:
            batch = batches.popleft()
            columns = [cast(batch.column(field.name), field, where) for field in schema]
            if columns:
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
        for first in range(0, 0 if schema.names else rows, batch_rows):
            length = min(batch_rows, rows - first)
            yield pa.RecordBatch.from_arrays([pa.nulls(length)], names=[""]).select([])

    def _table(self, row_group: int, names: Sequence[str]) -> Any:
        """Some columns of a partition, computed anew."""
        number, rows = int(self.manifest.shard[row_group]), int(self.manifest.rows[row_group])
        # Dask may cut a frame of fewer columns into other partitions.
        for graphs in (self._graphs_of(frozenset(names)), self._graphs):
            if graphs is not None:
                frame = graphs.compute(number)
                if len(frame) == rows:
                    return _arrow(frame, names)
        raise UnreadableShard(
            f"{_name(number)} has {len(frame):,} rows, and had {rows:,} when it was counted: the frame is not the same "
            "when it is computed again. Persist it first (frame = client.persist(frame)), or write it to Parquet."
        )

    def _graphs_of(self, names: frozenset[str]) -> Graphs | None:
        """Graphs of fewer columns, if there are some; a copy elsewhere has only those that it came with."""
        if self._frame is None or not names or len(names) == len(self._labels):
            return None
        with self._lock:
            if names not in self._projected:
                wanted = [label for name, label in self._labels.items() if name in names]
                self._projected[names] = Graphs(self._frame[wanted], self._client)
                if len(self._projected) > PROJECTIONS:
                    self._projected.popitem(last=False)
            self._projected.move_to_end(names)
            graphs = self._projected[names]
        return graphs if len(graphs) == len(self._graphs) else None


def _name(number: int) -> str:
    return f"partition {number} of the Dask DataFrame"


def _widened(fields: Mapping[str, Any], schema: Any, number: int) -> dict[str, Any]:
    """Columns that hold those of one more partition."""
    found = dict(fields)
    try:
        if odd := merge(found, schema, _name(number), {}):
            raise SchemaMismatch(next(iter(odd.values())))
    except SchemaMismatch as error:
        raise SchemaMismatch(f"{error}; astype gives a column of a frame one type in all partitions") from error
    return found


@contextmanager
def _computing(where: str) -> Iterator[None]:
    """Turn whatever goes wrong in a frame's graph into an error that names the partition."""
    try:
        with reading(where):
            yield
    except UnreadableShard as error:
        cause = error.__cause__
        if cause is None:
            raise
        raise UnreadableShard(
            f"{where} cannot be computed: {type(cause).__name__}: {cause}; mend what the frame is made of, or take "
            "the partition out of it"
        ) from cause


def _arrow(frame: Any, names: Sequence[str] | None = None) -> Any:
    """Columns of a partition as an Arrow table, each in one piece; the index is none."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"it is a {type(frame).__module__}.{type(frame).__qualname__}, expected a pandas DataFrame")
    if names:
        labels = {str(label): label for label in frame.columns}
        if missing := [name for name in names if name not in labels]:
            raise UnreadableShard(f"a partition has no column {', '.join(missing)}, which it had when it was counted")
        if len(names) < len(labels):
            frame = frame[[labels[name] for name in names]]
    return pa.Table.from_pandas(frame, preserve_index=False, nthreads=1).replace_schema_metadata().combine_chunks()


def _count(graphs: Graphs) -> Sequence[Told | StreamgdError]:
    """What each partition tells of itself, or what is wrong with it, found where Dask computes."""
    tell = delayed(_tell, pure=False, traverse=False)
    tasks: dict[int, Any] = {}
    found: dict[int, Any] = {}
    for number in range(len(graphs)):
        part = graphs[number]
        try:
            with _computing(_name(number)):
                futures = graphs.futures(part)
                for future in futures:
                    wait_for(future)
        except StreamgdError as error:
            found[number] = error
        else:
            tasks[number] = tell(part, number, futures)
    with _computing("the Dask DataFrame"), cluster_failures("the Dask DataFrame"):
        told = dask.base.compute(*tasks.values(), scheduler=graphs.client, optimize_graph=False)
    found.update(zip(tasks, told, strict=True))
    return [found[number] for number in range(len(graphs))]


def _tell(part: Partition, number: int, values: Sequence[Any]) -> Told | StreamgdError:
    try:
        with _computing(_name(number)):
            table = _arrow(part.compute(values))
    except StreamgdError as error:
        error.__cause__ = error.__context__ = None  # which may be of classes that are not known elsewhere
        return error
    sizes = {name: int(column.nbytes) for name, column in zip(table.column_names, table.columns, strict=True)}
    return Told(table.num_rows, sizes, table.schema, _digest(table))


def _digest(table: Any) -> bytes:
    """SHA-256 of the values of a table in one piece, however they lie in memory."""
    found = hashlib.sha256(table.schema.to_string().encode())
    for batch in table.to_batches(HASHED_ROWS):
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        found.update(pa.RecordBatch.from_arrays(columns, names=batch.schema.names).serialize())
    return found.digest()
