"""The files of a source: opened, their footers read, and known again when they are opened later in the job."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..crash import decoding
from ..errors import ShardChanged, StreamgdError, UnreadableShard
from ..kernels.thrift import COMPRESSED, START
from .pages import ALLOWED, Chunks, ChunkTable, Table, beyond, is_trap, leaves, refuse, walk, walk_remote
from .reading import reading
from .remote import BUFFER, RemoteFile, open_remote, patiently
from .rowgroups import Manifest

#: What is read of the end of a file at once; pyarrow reads as much to find a footer.
TAIL = 64 << 10
#: How Parquet files begin and end, those with an encrypted footer too.
MAGIC = (b"PAR1", b"PARE")
#: Shards whose largest row group is looked at to plan for its pages; fewer where each page is a request.
SAMPLED, SAMPLED_REMOTE = 8, 2


@dataclass(frozen=True)
class Footer:
    """What the footer of a shard says: rows and bytes of its row groups, its schema; and what it is known by.

    Attributes
    ----------
    rows, sizes : array of int64
        Rows and uncompressed bytes of each row group.
    file_bytes : int
        Size of the file.
    digest : bytes
        SHA-256 of the footer as it lies in the file.
    schema : pyarrow.Schema
        Columns.
    """

    rows: array[int]
    sizes: array[int]
    file_bytes: int
    digest: bytes
    schema: Any


@dataclass
class Footers:
    """What shards are known by, one entry a shard: size, SHA-256 of the footer, number of row groups, and schema."""

    file_bytes: array[int] = field(default_factory=partial(array, "q"))
    digests: bytearray = field(default_factory=bytearray)
    groups: array[int] = field(default_factory=partial(array, "q"))
    schemas: list[Any] = field(default_factory=list)

    def add(self, footer: Footer) -> None:
        """Add a shard."""
        self.file_bytes.append(footer.file_bytes)
        self.digests += footer.digest
        self.groups.append(len(footer.rows))
        self.schemas.append(footer.schema)


class OpenShard(NamedTuple):
    """A file that Arrow reads: a reader of its row groups, where their column chunks lie, and it itself if remote."""

    reader: Any
    chunks: ChunkTable
    remote: RemoteFile | None

    @property
    def metadata(self) -> Any:
        """The footer."""
        return self.reader.metadata


class KnownShard(NamedTuple):
    """A local file that is read without Arrow: where its column chunks lie, and it itself."""

    chunks: ChunkTable
    file: FileIO


class ShardFiles:
    """Files on one filesystem, by number.

    A file that is opened again must have the size and the footer that it had when it was planned with. The time of
    its last change does not count: a copy that was put back is as good.

    Parameters
    ----------
    filesystem : pyarrow.fs.FileSystem
        Where they are.
    paths, names : sequence of str
        Their paths, and what they are called in messages.
    """

    def __init__(self, filesystem: Any, paths: Sequence[str], names: Sequence[str]) -> None:
        self.filesystem, self.paths, self.names = filesystem, paths, names
        self.local = isinstance(filesystem, pafs.LocalFileSystem)
        self._file_bytes: NDArray[np.int64] = np.zeros(0, np.int64)
        self._digests: NDArray[np.uint8] = np.zeros((0, 32), np.uint8)
        self._groups: Sequence[int] = ()
        self._schemas: Sequence[Any] = ()
        self._nested: tuple[Any, set[str]] | None = None

    def planned(self, kept: Sequence[int], footers: Footers) -> ShardFiles:
        """Those of the files that were planned with, and what they are known by."""
        files = ShardFiles(self.filesystem, [self.paths[k] for k in kept], [self.names[k] for k in kept])
        files._file_bytes = np.array(footers.file_bytes, np.int64)
        files._digests = np.frombuffer(bytes(footers.digests), np.uint8).reshape(-1, 32)
        files._groups, files._schemas = footers.groups, footers.schemas
        return files

    def digest(self, shard: int) -> str:
        """SHA-256 of a footer as it was when it was planned with."""
        return bytes(self._digests[shard]).hex()

    def times(self) -> list[str]:
        """When each file was changed last, if its filesystem says."""
        infos = patiently(lambda: self.filesystem.get_file_info(list(self.paths)), f"shard {self.names[0]}")
        return [str(getattr(info, "mtime_ns", None)) for info in infos]

    def footer(self, shard: int, schemas: dict[Any, Any]) -> Footer:
        """Read a footer; equal schemas are one object of ``schemas``."""
        name = f"shard {self.names[shard]}"
        with reading(name), decoding(name), self._open(shard)[0] as file:
            if (size := file.size()) == 0:
                raise UnreadableShard(f"{name} is empty (0 bytes); write it again or remove it")
            tail = _tail(file, size)
            if tail[-4:] not in MAGIC and (begins := bytes(file.read_at(min(4, size), 0))) not in MAGIC:
                raise UnreadableShard(
                    f"{name} is not a Parquet file, it begins with {begins!r}: write the data as Parquet (CSV for "
                    f"example by pandas.read_csv(...).to_parquet(...)), or leave it out"
                )
            parsed = _parsed(tail)
            metadata, schema = parsed.metadata, parsed.schema_arrow.remove_metadata()
            rows, sizes = array("q"), array("q")
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                rows.append(group.num_rows)
                sizes.append(group.total_byte_size if group.total_byte_size > 0 else size)  # some writers leave it out
            if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
                raise UnreadableShard(
                    f"{name}: its footer contradicts itself, it says {metadata.num_rows} rows, but the row groups add "
                    f"up to {sum(rows)}; write it again or leave it out"
                )
            return Footer(rows, sizes, size, _digest(tail), schemas.setdefault(schema, schema))

    def open(self, shard: int, dictionaries: Sequence[str] = ()) -> OpenShard:
        """Open a file to read its row groups, some columns as dictionaries.

        Raises
        ------
        ShardChanged
            It is gone, or is another one than was planned with.
        """
        file, remote, tail = self._unchanged(shard)
        parsed = _parsed(tail)
        # Its metadata's own schema is left alone: the two hold each other, and megabytes, until Python finds cycles.
        chunks = ChunkTable(_footer(tail), parsed.schema_arrow, parsed.metadata.num_row_groups)
        return OpenShard(_reader(file, parsed.metadata, dictionaries), chunks, remote)

    def know(self, shard: int) -> KnownShard:
        """Open a local file to be read into memory of ours.

        Raises
        ------
        ShardChanged
            It is gone, or is another one than was planned with.
        """
        file, _, tail = self._unchanged(shard)
        file.close()
        name = f"shard {self.names[shard]}"
        with reading(name):
            own, size = FileIO(self.paths[shard]), int(self._file_bytes[shard])
            if os.fstat(own.fileno()).st_size != size or os.pread(own.fileno(), len(tail), size - len(tail)) != tail:
                raise ShardChanged(f"{name} has changed: it was replaced while it was opened. Run again.")
            return KnownShard(ChunkTable(_footer(tail), self._schemas[shard], self._groups[shard]), own)

    def open_again(
        self,
        shard: int,
        opened: OpenShard,
        dictionaries: Sequence[str],
        buffer_size: int,
        index: int,
        columns: Sequence[str],
        where: str,
    ) -> Any:
        """A reader of an open file that has a file of its own, which it reads through small buffers.

        It is meant for some columns of one row group, of which what comes next is fetched ahead if the file is remote:
        what is fetched and what is being decoded take 1 MB a column.
        """
        file, remote, _ = self._unchanged(shard)
        if remote is not None:
            buffer_size = min(buffer_size, BUFFER)
            remote.read_on(_places(opened, index, columns, where))
        return _reader(file, opened.metadata, dictionaries, buffer_size)

    def ahead(
        self, opened: OpenShard, index: int, columns: Sequence[str], most: int, where: str
    ) -> AbstractContextManager[bool]:
        """Fetch the column chunks of a row group of a remote file, see `RemoteFile.ahead`."""
        assert opened.remote is not None
        return opened.remote.ahead(_places(opened, index, columns, where), most)

    def check_pages(
        self,
        row_group: int,
        manifest: Manifest,
        table: ChunkTable,
        columns: Collection[str],
        batch_rows: int,
        where: str,
    ) -> None:
        """Raise `UnreadableShard` if pages of a row group take far more memory than was planned for."""
        shard, index, rows = (int(array[row_group]) for array in (manifest.shard, manifest.index, manifest.rows))
        if not table.to_look_at[index] and not self._lists(manifest.schema, columns):
            return
        try:
            chunks = table.of(index, columns, where)
            if not self.local:  # each header is a request, so the footer is believed
                chunks = chunks.some(chunks.says_trap())
            pages, most = self._walk(shard, chunks, where), 2 * int(manifest.bytes.max())
            planned = manifest.large_pages
            refuse(chunks, pages, rows=rows, batch_rows=batch_rows, planned=planned, most=most, where=where)
        except UnreadableShard:
            self.check(shard)
            raise

    def large_pages(self, manifest: Manifest, know: Callable[[int], KnownShard]) -> dict[str, int]:
        """Memory that pages take beyond what is planned for anyway, in the largest row groups of some shards.

        ``know`` is `know`, or remembers what it gave.
        """
        found: dict[str, int] = {}
        if manifest.bytes.max() <= ALLOWED:
            return found
        n = SAMPLED if self.local else SAMPLED_REMOTE
        shards = np.unique(np.linspace(0, len(self.paths) - 1, n).astype(np.int64))
        looked_at = {int(np.argmax(manifest.bytes))}
        for start, stop in np.searchsorted(manifest.shard, np.stack([shards, shards + 1], axis=1)):
            if stop > start:
                looked_at.add(int(start + np.argmax(manifest.bytes[start:stop])))
        for row_group in sorted(looked_at):
            shard, index = int(manifest.shard[row_group]), int(manifest.index[row_group])
            where = f"shard {self.names[shard]}"
            with suppress(StreamgdError), reading(where):  # told when it is read
                table = (know(shard) if self.local else self.open(shard)).chunks
                chunks = table.of(index, manifest.schema.names, where)
                chunks = chunks.some(chunks.says_large())
                pages = self._walk(shard, chunks, where)
                good = ~is_trap(pages)
                for name, taken in beyond(chunks.some(good), pages[good]).items():
                    found[name] = max(found.get(name, 0), taken)
        return found

    def _lists(self, schema: Any, columns: Collection[str]) -> bool:
        """Whether some columns hold lists."""
        if self._nested is None or self._nested[0] is not schema:
            self._nested = schema, {field.name for field in schema if any(leaves(field.type))}
        return not self._nested[1].isdisjoint(columns)

    def _walk(self, shard: int, chunks: Chunks, where: str) -> Table:
        """What the pages of chunks are like."""
        if self.local:
            return walk(self.paths[shard], chunks, where)
        with self._open(shard)[0] as file:
            return walk_remote(file, chunks, where)

    def check(self, shard: int) -> None:
        """Raise `ShardChanged` if a file is not what it was: then what cannot be read of it is not its fault."""
        with reading(f"shard {self.names[shard]}"):
            self._unchanged(shard)[0].close()

    def _unchanged(self, shard: int) -> tuple[Any, RemoteFile | None, bytes]:
        """A file that is what it was, as `_open` has it, and its end with the footer."""
        name = f"shard {self.names[shard]}"
        try:
            file, remote = self._open(shard)
        except FileNotFoundError as error:
            raise ShardChanged(f"{name} is gone: it was there {_BEGAN}") from error
        size, planned = file.size(), int(self._file_bytes[shard])
        if size != planned:
            raise ShardChanged(f"{name} has changed: it has {size:,} bytes, and had {planned:,} {_BEGAN}")
        tail = _tail(file, size)
        if _digest(tail) != self._digests[shard].tobytes():
            raise ShardChanged(f"{name} has changed: its footer differs from what it was {_BEGAN}")
        return file, remote, tail

    def _open(self, shard: int) -> tuple[Any, RemoteFile | None]:
        if self.local:
            return self.filesystem.open_input_file(self.paths[shard]), None
        return open_remote(self.filesystem, self.paths[shard], f"shard {self.names[shard]}")


_BEGAN = "when the job began. Put back what was there, or begin anew."


def _places(opened: OpenShard, index: int, columns: Sequence[str], where: str) -> list[tuple[int, int]]:
    """Where column chunks of a row group begin, and how long they are, as the footer says."""
    table = opened.chunks.of(index, frozenset(columns), where).table
    return [(at, n) for at, n in table[:, [START, COMPRESSED]].tolist()]


def _length(tail: bytes) -> int:
    """Bytes of a footer, as the end of its file says, with those that say so."""
    return int.from_bytes(tail[-8:-4], "little") + 8


def _tail(file: Any, size: int) -> bytes:
    """The end of a file, with its whole footer if that is as long as the file says."""
    tail: bytes = file.read_at(min(TAIL, size), max(0, size - TAIL))
    length = _length(tail)
    return file.read_at(length, size - length) if len(tail) < length <= size else tail


def _digest(tail: bytes) -> bytes:
    """SHA-256 of the footer at the end of a file."""
    return hashlib.sha256(memoryview(tail)[-_length(tail) :]).digest()


def _parsed(tail: bytes) -> Any:
    """The footer at the end of a file, parsed; where a file has none, pyarrow says what it found instead."""
    return pq.ParquetFile(pa.BufferReader(tail), pre_buffer=False)


def _footer(tail: bytes) -> memoryview:
    """The footer at the end of a file."""
    return memoryview(tail)[len(tail) - _length(tail) : -8]


def _reader(file: Any, metadata: Any, dictionaries: Sequence[str], buffer_size: int = 0) -> Any:
    return pq.ParquetFile(
        file,
        metadata=metadata,
        read_dictionary=list(dictionaries),
        pre_buffer=False,
        memory_map=False,
        buffer_size=buffer_size,
        # Costs nothing where pages have none (pyarrow writes none unless asked to). Where they have, 28 float32 columns
        # in snappy take 118 ns a row instead of 78; but a flipped byte is else learned from in silence.
        page_checksum_verification=True,
    )
