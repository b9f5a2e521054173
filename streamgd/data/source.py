"""Where rows come from: the row groups of Parquet shards, or slices of a table in memory.

Planning reads footers and nothing else. What is known about the row groups stands in a few arrays (24 bytes a row
group), never in objects, and the parsed footers are dropped: one with many columns takes megabytes. Column chunk
metadata are never looked at from here, because doing so aborts the process on some encrypted or broken files.
"""

from __future__ import annotations

import copy
import os
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..crash import decoding
from ..errors import ConfigError, EmptyData, SchemaMismatch, StreamgdError, UnreadableShard
from .chunks import RawRowGroup
from .known import KnownShards
from .leftout import LeftOut, OnError
from .paths import hive_column, relative_names, resolve
from .reading import OPEN_FOOTER_BYTES, OpenFiles, abreast, broken_column, digest, let_go, marked, reading, select
from .rowgroups import Manifest, RowGroupReader, Source
from .shards import Footer, Footers, OpenShard, ShardFiles
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
    on_error : {"raise", "skip"}, optional
        "skip" leaves out shards whose footer cannot be read, or whose schema does not fit, and notes them in
        ``left_out``; see `LeftOut`.

    Raises
    ------
    PathNotFound, NoShards, ConfigError
        As `streamgd.data.paths.resolve` does.
    UnreadableShard
        A file is not Parquet, is encrypted, empty or damaged.
    ReadFailed
        The storage failed, which is no reason to leave a shard out.
    SchemaMismatch
        A shard has a column twice. (Where one lacks a column of the first, or has it with a type that does not widen
        safely, see `Manifest.odd`.)
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

    def __init__(self, spec: object, *, n_jobs: int | None = None, on_error: OnError | None = None) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise ConfigError(f"n_jobs is {n_jobs}; give a number of threads, at least 1")
        shards = resolve(spec)
        self._n_jobs = n_jobs or available_cpus()
        self.left_out = LeftOut(on_error)
        self._files = ShardFiles(shards.filesystem, shards.paths, relative_names(shards.paths))
        self._hive = {key: hive_column([values[key] for values in shards.hive]) for key in shards.hive[0]}
        self._open_files, self._known = OpenFiles(), KnownShards()
        self.manifest = self._plan()
        self._dictionaries: frozenset[str] = frozenset()
        self._plain: set[int] = set()  # shards whose strings cannot be decoded to dictionaries
        self._selected: tuple[tuple[str, ...] | None, Any] = None, None

    @property
    def names(self) -> Sequence[str]:
        """Name of each shard."""
        return self._files.names

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
            schema = select(self.schema, columns, batch_rows, self.manifest.odd)
            self._selected = tuple(columns), schema
        batches = self._batches(row_group, schema, batch_rows)
        return RowGroupReader(batches, int(self.manifest.rows[row_group]), self.describe(row_group))

    def raw(self, row_group: int, columns: Sequence[str]) -> RawRowGroup | None:
        """Some columns of a row group as they lie in its file, if they may be read without Arrow.

        They may if the file is local, and the types of its columns are those of the manifest.
        """
        if not self._files.local or not self._hive.keys().isdisjoint(columns):
            return None
        return self._known.row_group(self._files, self.manifest, row_group, columns, self.describe(row_group))

    def _opened(self, shard: int) -> OpenShard:
        """A shard that this thread has opened."""
        budget = OPEN_FOOTER_BYTES // self._n_jobs
        opened: OpenShard = self._open_files.get(
            shard, lambda: self._files.open(shard, self._dictionaries_of(shard)), budget
        )
        return opened

    def _dictionaries_of(self, shard: int) -> list[str]:
        """Columns of a shard that Arrow delivers as dictionaries."""
        return [] if shard in self._plain else list(self._dictionaries)

    @property
    def local_paths(self) -> list[str]:
        """Real paths of the shards if they are local files."""
        return [os.path.realpath(path) for path in self._files.paths] if self._files.local else []

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

    @property
    def local(self) -> bool:
        """Whether the shards are files of this machine."""
        return self._files.local

    def identity(self) -> str:
        """SHA-256 over names, sizes, times and footers of the shards."""
        files = self._files
        footers = map(files.digest, range(len(files.paths)))
        return digest("\n".join([self.fingerprint(), *files.paths, *files.times(), *footers]), self.manifest.bytes)

    def shards(self) -> list[tuple[str, int, int, str]]:
        """Name, bytes, rows and SHA-256 of the footer of each shard: what tells whether it is the one that it was."""
        rows = np.bincount(self.manifest.shard, self.manifest.rows, len(self.names))
        footers = map(self._files.digest, range(len(self.names)))
        return list(zip(self.names, self.manifest.file_bytes.tolist(), map(int, rows), footers, strict=True))

    def for_job(self, on_error: OnError | None) -> Self:
        """The source of a new job, which notes by itself what it leaves out."""
        part = copy.copy(self)
        part.left_out = self.left_out.fresh(on_error)
        return part

    def subset(self, row_groups: NDArray[Any]) -> ParquetSource:
        """Restrict the source to some of its row groups, numbered anew."""
        part = copy.copy(self)
        part.manifest = self.manifest.take(row_groups)
        part._open_files, part._known = self._open_files, self._known
        return part

    def with_dictionaries(self, columns: Sequence[str]) -> Self:
        """Deliver some columns of strings as dictionaries, which is how they mostly lie in the file.

        Whether they come so depends on the shard; the schema keeps the type of the values.
        """
        wanted = frozenset(columns) - self._hive.keys()
        if wanted == self._dictionaries:
            return self
        part = copy.copy(self)
        part._dictionaries, part._known = wanted, self._known  # its files are opened otherwise
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open_files", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open_files=OpenFiles(), _known=KnownShards())

    def _plan(self) -> Manifest:
        """Read the footers, and keep the shards that they are fit for."""
        rows, sizes, index, counts, kept = (array("q") for _ in range(5))
        planned = Footers()
        fields: dict[str, Any] = {}
        odd, extra = dict[str, str](), dict[str, str]()
        merged: set[Any] = set()
        with closing(self._footers()) as footers:
            for shard, footer in enumerate(footers):
                try:
                    if isinstance(footer, StreamgdError):
                        raise footer
                    if footer.schema not in merged:
                        widened, name = dict(fields), self.names[shard]
                        found = merge(widened, footer.schema, name, self._hive)
                        if found and self.left_out.on_error == "skip":  # the shard, not the column
                            raise SchemaMismatch(next(iter(found.values())))
                        fields = {column: field for column, field in widened.items() if column not in found}
                        odd |= found
                        known = {*fields, *odd, *extra}
                        extra |= {key: name for key in footer.schema.names if key not in known}
                        merged.add(footer.schema)
                except StreamgdError as error:
                    self.left_out.note_shard(self.names[shard], error)
                    continue
                filled = [number for number, count in enumerate(footer.rows) if count]
                index.extend(filled)
                rows.extend(footer.rows[number] for number in filled)
                sizes.extend(footer.sizes[number] for number in filled)
                counts.append(len(filled))
                kept.append(shard)
                planned.add(footer)
        if not kept and self.left_out.error is not None:
            raise self.left_out.error
        if not rows:
            raise EmptyData(f"no rows in {len(kept)} shard(s), the first is {self.names[kept[0]]}")
        self._hive = {key: values.take(pa.array(kept)) for key, values in self._hive.items()}
        hive = [pa.field(key, values.type) for key, values in self._hive.items()]
        manifest = Manifest(
            shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            index=np.array(index, np.int32),
            rows=np.array(rows, np.int64),
            bytes=np.array(sizes, np.int64),
            file_bytes=np.array(planned.file_bytes, np.int64),
            schema=pa.schema([*fields.values(), *hive]),
            odd=odd,
            extra=extra,
        )
        self._files = self._files.planned(kept, planned)
        large_pages = self._files.large_pages(manifest, partial(self._known.shard, self._files))
        return replace(manifest, large_pages=large_pages)

    def _footers(self) -> Generator[Footer | StreamgdError, None, None]:
        """Footers in the order of the shards, or what is wrong with them."""
        schemas: dict[Any, Any] = {}

        def footer(shard: int) -> Footer | StreamgdError:
            try:
                return self._files.footer(shard, schemas)
            except StreamgdError as error:
                return error

        # Mostly waiting where files are remote, so more threads than CPUs.
        threads = self._n_jobs if self._files.local else max(16, self._n_jobs)
        with ThreadPoolExecutor(min(threads, len(self.names)), thread_name_prefix="streamgd-footer") as pool:
            yield from pool.map(footer, range(len(self.names)))

    def _batches(self, row_group: int, schema: Any, batch_rows: int) -> Iterator[Any]:
        """Record batches of a row group; where an encoding cannot be decoded to dictionaries, with plain strings."""
        begun, shard = False, int(self.manifest.shard[row_group])
        try:
            for batch in self._decoded(row_group, schema, batch_rows):
                begun = True
                yield batch
        except UnreadableShard as error:
            unable = "Not yet implemented" in str(error.__cause__) and shard not in self._plain
            if begun or not unable or not self._dictionaries:
                raise
            self._plain.add(shard)
            self._open_files = OpenFiles()
            yield from self._decoded(row_group, schema, batch_rows)

    def _decoded(self, row_group: int, schema: Any, batch_rows: int) -> Iterator[Any]:
        manifest, where = self.manifest, self.describe(row_group)
        shard, index = int(manifest.shard[row_group]), int(manifest.index[row_group])
        rows, size = int(manifest.rows[row_group]), int(manifest.bytes[row_group])
        names = [name for name in schema.names if name not in self._hive] or [self._narrowest()]
        file: Any = None

        def read(columns: Sequence[str]) -> Iterator[Any]:
            with decoding(where):
                most = min(batch_rows, rows)
                batches = file.iter_batches(most, row_groups=[index], columns=columns, use_threads=False)
            return marked(batches, where)

        def culprit() -> str:
            self._files.check(shard)
            if file is None or (shard, index) in self.left_out.row_groups:  # it is looked for once a row group
                return ""
            return broken_column(names, lambda name: read([name]))

        with ExitStack() as stack, reading(where, culprit):
            opened = self._opened(shard)
            self._files.check_pages(row_group, manifest, opened.chunks, names, batch_rows, where)
            # What `streamgd.memoryplan` plans for: the row group, or 1 MB a column of one that is too large for that.
            buffer = min(max((32 << 20) // len(names), 64 << 10), 1 << 20)
            # Of many columns buffers may hold all of it, and opening a file once more takes 5 µs a column.
            many = self._files.local and len(names) > MANY_COLUMNS
            small = size <= BIG_ROW_GROUP or (many and size <= len(names) * buffer)
            most = min(2 * size if small else len(names) << 20, BIG_ROW_GROUP)
            ahead = (
                nullcontext(small) if opened.remote is None else self._files.ahead(opened, index, names, most, where)
            )
            with ahead as whole:
                file = opened.reader
                if not whole:
                    file = self._files.open_again(
                        shard, opened, self._dictionaries_of(shard), buffer, index, names, where
                    )
                    stack.callback(file.close, force=True)  # what is still to be fetched is not
                group = COLUMNS_AT_ONCE if len(names) <= MANY_COLUMNS else len(names)
                readers = [let_go(read(names[first : first + group]), rows) for first in range(0, len(names), group)]
                if len(readers) == 1:
                    yield from self._conform_whole(readers[0], schema, shard, where)
                for columns, length in abreast(readers):
                    yield self._conform(columns, length, schema, shard, where)

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


def as_source(data: object, n_jobs: int | None = None, on_error: OnError | None = None) -> Source:
    """Make a source of what a user passes as data.

    Parameters
    ----------
    data : Source, pyarrow Table or RecordBatch, or anything that `ParquetSource` takes
        The data.
    n_jobs, on_error
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
    return ParquetSource(data, n_jobs=n_jobs, on_error=on_error)


def _is_string_dictionary(values: Any) -> bool:
    types = pa.types
    if not types.is_dictionary(values.type):
        return False
    kind = values.type.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind))
