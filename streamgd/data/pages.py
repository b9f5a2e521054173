"""Pages of shards: how much memory they take, known before any is decompressed.

pyarrow decompresses a page whole, and a page is as large as its writer likes: 4 KB of Brotli can become 2 GB. What
pages take is planned for by those of a few row groups, and no row group is read whose pages take much more. The footer
is believed only in how a chunk is compressed and where it lies in the file. The headers of the pages are read, unless
pages would be small even if each were all of its chunk. That costs 2 % of decoding zstd, and nothing of snappy.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import UnreadableShard
from ..kernels import thrift
from ..kernels.thrift import (
    CODEC,
    COMPRESSED,
    DICTIONARY,
    ENCRYPTED,
    INFLATED,
    INFLATED_FROM,
    PAGE,
    PAGE_VALUES,
    START,
    UNCOMPRESSED,
    VALUES,
)
from ..memory import format_bytes

#: Memory for the largest page and the dictionary of a column that is planned for anyway (`memoryplan.PAGES_BYTES`).
ALLOWED = 4 << 20
#: A row group is read if its pages take twice what was planned for, and this.
SLACK = 64 << 20
#: The pages of a row group are looked at if they could take more, were all of a chunk one page.
LOOK = 256 << 20
#: A page that is larger, and so many times smaller in the file, is a trap, or a column of nothing.
TRAP, INFLATION = 64 << 20, 200
#: A record batch of lists takes at most so many bytes in the mean, of which a value and its levels take so many.
LIST_BYTES, VALUE_BYTES = 1 << 30, 12
#: Bytes that a byte becomes at most, by the number of the codec: none, snappy, gzip, LZ4 (twice). Others know no bound.
INFLATIONS = {0: 1, 1: 22, 2: 1032, 5: 255, 7: 255}
#: Where files are remote, each header is a request of so many bytes, and two pages of a chunk stand for all.
REMOTE_PAGES, REMOTE_BYTES = 2, 64 << 10
#: Memory that a column of a shard takes beside its chunks: its name, its field.
LEAF_BYTES = 500
_ALL = 1 << 62

Table = NDArray[np.int64]


class Chunks(NamedTuple):
    """Column chunks of some columns of a row group, as `streamgd.kernels.thrift` tells them."""

    table: Table
    columns: list[str]
    nested: NDArray[np.bool_]

    def some(self, which: NDArray[np.bool_]) -> Chunks:
        """Those of them at some places."""
        columns = [name for name, chosen in zip(self.columns, which, strict=True) if chosen]
        return Chunks(self.table[which], columns, self.nested[which])

    def says_large(self) -> NDArray[np.bool_]:
        """Whether a page could take more than is always planned for, if the footer is right."""
        size = np.minimum(self.table[:, UNCOMPRESSED], bounds(self.table))
        result: NDArray[np.bool_] = size > ALLOWED
        return result

    def says_trap(self) -> NDArray[np.bool_]:
        """Whether the footer tells of a chunk that inflates to many times its size."""
        size, compressed = self.table[:, UNCOMPRESSED], self.table[:, COMPRESSED]
        result: NDArray[np.bool_] = (size > TRAP) & (size > INFLATION * compressed)
        return result


class ChunkTable:
    """All column chunks of a shard.

    Parameters
    ----------
    footer : bytes
        FileMetaData as it lies in the file.
    schema : pyarrow.Schema
        Columns of the shard.
    groups : int
        Its row groups.

    Attributes
    ----------
    schema : pyarrow.Schema
        As given.
    nbytes : int
        Memory that it takes, about.
    to_look_at : ndarray of bool, shape (row_groups,)
        Row groups whose pages may take much memory, lists aside.
    """

    def __init__(self, footer: memoryview, schema: Any, groups: int) -> None:
        self.schema = schema
        self._leaves = [(field.name, nested) for field in schema for nested in leaves(field.type)]
        self._n = len(self._leaves)
        self._table = np.empty((groups * self._n, thrift.CHUNK_FIELDS), np.int64)
        self._fits = thrift.column_chunks(np.frombuffer(footer, np.uint8), self._n, self._table) == len(self._table)
        self.nbytes = self._table.nbytes + LEAF_BYTES * len(self._leaves)
        self._wanted: tuple[Collection[str], NDArray[np.int64], list[str], NDArray[np.bool_]] | None = None
        self.to_look_at: NDArray[np.bool_] = np.ones(groups, bool)
        if self._fits:
            self.to_look_at = bounds(self._table).reshape(groups, self._n).sum(axis=1) > LOOK

    def of(self, row_group: int, columns: Collection[str], where: str) -> Chunks:
        """Column chunks of some columns of a row group; none that is encrypted."""
        if not self._fits:
            raise UnreadableShard(f"{where}: the footer of its shard does not fit its schema; write it again")
        wanted = self._wanted  # another thread may change it
        if wanted is None or wanted[0] != columns:
            known = frozenset(columns)  # of 10,000 in a list, each would be looked for along it
            chosen = np.flatnonzero([name in known for name, _ in self._leaves])
            names, nested = [self._leaves[k][0] for k in chosen], [self._leaves[k][1] for k in chosen]
            wanted = self._wanted = columns, chosen, names, np.array(nested, bool)
        _, chosen, names, lists = wanted
        chunks = Chunks(self._table[row_group * self._n + chosen], names, lists)
        return chunks.some(chunks.table[:, ENCRYPTED] == 0) if chunks.table[:, ENCRYPTED].any() else chunks


def bounds(table: Table) -> NDArray[np.float64]:
    """Memory of a page that were all of its chunk, at most: as it lies in the file, and uncompressed."""
    factors = np.full(len(table), np.inf)
    for codec, factor in INFLATIONS.items():
        factors[table[:, CODEC] == codec] = factor + (codec > 0)
    found: NDArray[np.float64] = np.maximum(table[:, COMPRESSED], 1) * factors
    return found


def leaves(kind: Any, nested: bool = False) -> list[bool]:
    """Leaves of a column in Parquet, by its Arrow type: of each whether it is one of lists.

    Examples
    --------
    >>> leaves(pa.struct({"a": pa.int8(), "b": pa.list_(pa.int8()), "c": pa.map_(pa.string(), pa.int8())}))
    [False, True, True, True]
    """
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return leaves(kind.storage_type, nested)
    if types.is_struct(kind):
        return [leaf for field in kind for leaf in leaves(field.type, nested)]
    if types.is_map(kind):
        return leaves(kind.key_type, True) + leaves(kind.item_type, True)
    return leaves(kind.value_type, True) if types.is_nested(kind) else [nested]


def walk(path: str, chunks: Chunks, where: str, most: int = _ALL) -> Table:
    """What the pages of chunks of a local file are like, at most the first so many of each."""
    out = np.zeros((len(chunks.table), thrift.PAGE_FIELDS), np.int64)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        read = int(thrift.walk_pages(descriptor, chunks.table, most, out))
    finally:
        os.close(descriptor)
    if read < len(out):
        raise _broken(chunks.columns[read], where)
    return out


def walk_remote(file: Any, chunks: Chunks, where: str, most: int = REMOTE_PAGES) -> Table:
    """The same by a file of Arrow's."""
    out, header = np.zeros((len(chunks.table), thrift.PAGE_FIELDS), np.int64), np.empty(thrift.HEADER_FIELDS, np.int64)
    for k, chunk in enumerate(chunks.table):
        at = int(chunk[START])
        end = at + int(chunk[COMPRESSED])
        while at < end and out[k, thrift.PAGES] < most:
            data = np.frombuffer(file.read_at(min(REMOTE_BYTES, end - at), at), np.uint8)
            if (size := int(thrift.page_header(data, header))) < 0:
                raise _broken(chunks.columns[k], where)
            thrift.add_page(header, chunk[CODEC], out[k])
            at += size + int(header[thrift.IN_FILE])
    return out


def _broken(column: str, where: str) -> UnreadableShard:
    return UnreadableShard(
        f"{where}, column {column} cannot be read: the headers of its pages are damaged; write the shard again or "
        f"leave it out"
    )


def is_trap(pages: Table) -> NDArray[np.bool_]:
    """Whether a page of chunks is far larger than in the file, and large."""
    return (pages[:, INFLATED] > TRAP) & (pages[:, INFLATED] > INFLATION * pages[:, INFLATED_FROM])


def beyond(chunks: Chunks, pages: Table) -> dict[str, int]:
    """Memory that the pages of each column take beyond what is planned for anyway, where they do."""
    found: dict[str, int] = {}
    for name, taken in zip(chunks.columns, (pages[:, PAGE] + pages[:, DICTIONARY] - ALLOWED).tolist(), strict=True):
        if taken > 0:
            found[name] = found.get(name, 0) + taken
    return found


def refuse(
    chunks: Chunks, pages: Table, *, rows: int, batch_rows: int, planned: Mapping[str, int], most: int, where: str
) -> None:
    """Raise `UnreadableShard` if pages take far more memory than was planned for them.

    Parameters
    ----------
    chunks, pages
        Column chunks of a row group, and what their pages are like.
    rows, batch_rows : int
        Rows of the row group, and at most of a record batch.
    planned : mapping of str to int
        Memory beyond `ALLOWED` that pages of a column were planned with.
    most : int
        Memory that all pages together were planned with, at most.
    where : str
        Names the row group in messages.
    """
    taken, lists = pages[:, PAGE] + pages[:, DICTIONARY], bool(chunks.nested.any())
    if int(taken.sum()) <= SLACK and not lists:
        return
    for k in np.flatnonzero(is_trap(pages)):
        size, compressed = (format_bytes(int(n)) for n in pages[k, [INFLATED, INFLATED_FROM]])
        raise UnreadableShard(
            f"{where}, column {chunks.columns[k]} holds a page of {size} in {compressed} of the file, which is not "
            f"unpacked at once; write the shard with pages of 1 MB, or leave it or the column out"
        )
    allowed = min(sum(ALLOWED + planned.get(name, 0) for name in set(chunks.columns)), most)
    if int(taken.sum()) > 2 * allowed + SLACK:
        worst = int(np.argmax(taken - [planned.get(name, 0) for name in chunks.columns]))
        expected = ALLOWED + planned.get(chunks.columns[worst], 0)
        raise UnreadableShard(
            f"{where}, column {chunks.columns[worst]} holds pages that take {format_bytes(int(taken[worst]))}, where "
            f"those of other row groups take at most {format_bytes(expected)}; write the shard with pages of 1 MB, or "
            f"leave it or the column out"
        )
    values, batch_rows = np.maximum(chunks.table[:, VALUES], pages[:, PAGE_VALUES]), min(rows, batch_rows)
    for k in np.flatnonzero(chunks.nested & (values / rows * batch_rows * VALUE_BYTES > LIST_BYTES)):
        raise UnreadableShard(
            f"{where}, column {chunks.columns[k]} holds {values[k]:,} values in {rows:,} rows, too many to read "
            f"{batch_rows:,} rows at a time; leave it or the column out"
        )
