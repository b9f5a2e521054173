"""Where rows come from: the row groups of Parquet shards, or slices of a table in memory.

Planning reads footers and nothing else. What is known about the row groups stands in a few arrays (24 bytes a row
group), never in objects, and the parsed footers are dropped: one with many columns takes megabytes. Column chunk
metadata are never looked at from here, because doing so aborts the process on some encrypted or broken files.
"""

from __future__ import annotations

import copy
import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ConfigError, EmptyData, UnreadableShard
from .paths import hive_column, relative_names, resolve
from .reading import OPEN_FOOTER_BYTES, OpenFiles, abreast, digest, let_go, reading, select
from .rowgroups import Manifest, RowGroupReader, Source
from .table import TableSource
from .threads import available_cpus
from .widen import bit_width, cast, merge

# A row group above this is read through small buffers, and by a file of its own that can change threads with it.
BIG_ROW_GROUP = 64 << 20
# Columns that one Arrow reader decodes. It fetches all its column chunks before it decodes the first, so with all 28
# of a 65,536-row group they fall out of the cache: 41 ns a row, 32 in groups of 2 or 4 (two threads, snappy).
COLUMNS_AT_ONCE = 4
# More columns are one reader's: each reader and each column that Python holds costs some µs a record batch (of 1,000
# columns 3.4 µs a row, 4.4 in groups of 4).
MANY_COLUMNS = 128


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
        self._n_jobs = n_jobs or available_cpus()
        self._hive = {key: hive_column([values[key] for values in shards.hive]) for key in shards.hive[0]}
        self.manifest = self._plan()
        self._open_files = OpenFiles()
        self._dictionaries: frozenset[str] = frozenset()
        self._selected: tuple[tuple[str, ...] | None, Any] = None, None

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
        wanted, schema = self._selected
        if wanted != tuple(columns):  # of 10,000 it takes 6 ms
            schema = select(self.schema, columns, batch_rows)
            self._selected = tuple(columns), schema
        batches = self._batches(row_group, schema, batch_rows)
        return RowGroupReader(batches, int(self.manifest.rows[row_group]), self.describe(row_group))

    @property
    def local_paths(self) -> list[str]:
        """Real paths of the shards if they are local files."""
        local = isinstance(self._filesystem, pafs.LocalFileSystem)
        return [os.path.realpath(path) for path in self._paths] if local else []

    @property
    def partition_keys(self) -> list[str]:
        """Columns that stand in the paths."""
        return list(self._hive)

    def describe(self, row_group: int) -> str:
        """Name a row group for a message."""
        return f"shard {self.names[self.manifest.shard[row_group]]}, row group {self.manifest.index[row_group]}"

    def fingerprint(self) -> str:
        """SHA-256 over relative names, sizes and row counts."""
        manifest = self.manifest
        return digest("\n".join(self.names), manifest.file_bytes, manifest.shard, manifest.index, manifest.rows)

    @property
    def in_memory(self) -> bool:
        """Never."""
        return False

    def identity(self) -> str:
        """SHA-256 over names, sizes, times and footers of the shards."""
        infos = self._filesystem.get_file_info(list(self._paths))
        times = [str(getattr(info, "mtime_ns", None)) for info in infos]
        with ThreadPoolExecutor(self._n_jobs, thread_name_prefix="streamgd-footer") as pool:
            footers = list(pool.map(self._footer_digest, range(len(self._paths))))
        return digest("\n".join([self.fingerprint(), *self._paths, *times, *footers]), self.manifest.bytes)

    def _footer_digest(self, shard: int) -> str:
        with reading(f"shard {self.names[shard]}"), self._filesystem.open_input_file(self._paths[shard]) as file:
            size = file.size()
            length = int.from_bytes(file.read_at(8, max(0, size - 8))[:4], "little")
            start = max(0, size - 8 - length)
            return hashlib.sha256(file.read_at(size - start, start)).hexdigest()

    def subset(self, row_groups: NDArray[Any]) -> ParquetSource:
        """Restrict the source to some of its row groups, numbered anew."""
        part = copy.copy(self)
        part.manifest = self.manifest.take(row_groups)
        part._open_files = self._open_files
        return part

    def with_dictionaries(self, columns: Sequence[str]) -> Self:
        """Deliver some columns of strings as dictionaries, which is how they mostly lie in the file.

        Whether they come so depends on the shard; the schema keeps the type of the values.
        """
        part = copy.copy(self)
        part._dictionaries, part._open_files = frozenset(columns), OpenFiles()
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open_files=OpenFiles())

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
                    merge(fields, footer.schema, name, self._hive)
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
        with reading(f"shard {self.names[shard]}"), self._filesystem.open_input_file(self._paths[shard]) as file:
            if (size := file.size()) == 0:
                raise UnreadableShard(f"shard {self.names[shard]} is empty (0 bytes); write it again or remove it")
            parquet = pq.ParquetFile(file, pre_buffer=False)
            metadata, schema = parquet.metadata, parquet.schema_arrow.remove_metadata()
            rows, sizes = array("q"), array("q")
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                rows.append(group.num_rows)
                sizes.append(group.total_byte_size if group.total_byte_size > 0 else size)  # some writers leave it out
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
        with reading(where):
            file = self._open_files.get(shard, lambda: self._open(shard), OPEN_FOOTER_BYTES // self._n_jobs)
            if index >= file.num_row_groups or file.metadata.row_group(index).num_rows != rows:
                raise UnreadableShard(f"{where} is not what it was when the job began; begin again, without --resume")
            if size > BIG_ROW_GROUP:
                buffer = min(max((32 << 20) // len(names), 64 << 10), 1 << 20)
                file = self._open(shard, buffer_size=buffer, metadata=file.metadata)
            group = COLUMNS_AT_ONCE if len(names) <= MANY_COLUMNS else len(names)
            readers = [
                let_go(
                    file.iter_batches(
                        min(batch_rows, rows),
                        row_groups=[index],
                        columns=names[first : first + group],
                        use_threads=False,
                    ),
                    rows,
                )
                for first in range(0, len(names), group)
            ]
            if len(readers) == 1:
                yield from self._conform_whole(readers[0], schema, shard, where)
            for columns, length in abreast(readers):
                yield self._conform(columns, length, schema, shard, where)

    def _open(self, shard: int, *, buffer_size: int = 0, metadata: Any = None) -> Any:
        # Page checksums stay off: verifying them adds 20 % to decoding where a file has them (measured on snappy
        # float32), and pyarrow for one writes none unless asked to.
        file = self._filesystem.open_input_file(self._paths[shard])
        return pq.ParquetFile(
            file,
            metadata=metadata,
            read_dictionary=list(self._dictionaries),
            pre_buffer=False,
            memory_map=False,
            buffer_size=buffer_size,
        )

    def _conform_whole(self, batches: Iterator[Any], schema: Any, shard: int, where: str) -> Iterator[Any]:
        """Record batches of one reader as they are, if they have the columns asked for: none is touched in Python."""
        for batch in batches:
            found = batch
            with suppress(KeyError, ValueError):  # a column that is not there, or there twice: said below
                found = batch if batch.schema.equals(schema) else batch.select(schema.names)
            if found.schema.equals(schema):
                yield found
            elif batch.num_rows:
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield self._conform(columns, batch.num_rows, schema, shard, where)

    def _conform(self, found: Mapping[str, Any], length: int, schema: Any, shard: int, where: str) -> Any:
        """Make a record batch of the columns asked for, in order, with the types of the manifest."""
        columns = []
        for field in schema:
            if field.name in self._hive:
                columns.append(pa.repeat(self._hive[field.name][shard], length))
            elif field.name in self._dictionaries and field.name in found and _is_string_dictionary(found[field.name]):
                columns.append(found[field.name])
            elif field.name in found:
                columns.append(cast(found[field.name], field, where))
            else:
                raise UnreadableShard(f"{where} has no column {field.name}, which the footer promised when planned")
        if not columns:
            return pa.RecordBatch.from_arrays([pa.nulls(length)], names=[""]).select([])
        if self._dictionaries:
            return pa.RecordBatch.from_arrays(columns, names=schema.names)
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _narrowest(self) -> str:
        return str(min((f for f in self.schema if f.name not in self._hive), key=lambda f: bit_width(f.type)).name)


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


def _is_string_dictionary(values: Any) -> bool:
    types = pa.types
    if not types.is_dictionary(values.type):
        return False
    kind = values.type.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind))
