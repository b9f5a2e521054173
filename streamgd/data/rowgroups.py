"""Row groups as the rest of the package sees them: a manifest of arrays, a reader of one, and what a source is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, UnreadableShard

if TYPE_CHECKING:
    from .chunks import RawRowGroup
    from .leftout import LeftOut, OnError


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
    large_pages : mapping of str to int
        Memory that the pages of a column take beyond what they take of most, in the row groups that were looked at.
    odd : mapping of str to str
        Columns of the first shard that others lack, or have with types that do not go together, and what is wrong: they
        are not in the schema.
    extra : mapping of str to str
        Columns that the first shard lacks, and the first shard that has them: neither are they.
    """

    shard: NDArray[np.int32]
    index: NDArray[np.int32]
    rows: NDArray[np.int64]
    bytes: NDArray[np.int64]
    file_bytes: NDArray[np.int64]
    schema: Any
    large_pages: Mapping[str, int] = field(default_factory=dict)
    odd: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)

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

    @property
    def left_out(self) -> LeftOut:
        """What a job goes without, which all subsets of its source share."""

    def for_job(self, on_error: OnError | None) -> Self:
        """The source of a new job, which notes by itself what it leaves out."""

    def open(self, row_group: int, columns: Sequence[str], batch_rows: int) -> RowGroupReader:
        """Start reading some columns of a row group, in record batches of at most `batch_rows` rows."""

    def raw(self, row_group: int, columns: Sequence[str]) -> RawRowGroup | None:
        """Some columns of a row group as they lie in its file, if they may be read without Arrow."""

    def describe(self, row_group: int) -> str:
        """Name a row group for a message."""

    def fingerprint(self) -> str:
        """SHA-256 of what identifies the data, wherever they lie."""

    @property
    def in_memory(self) -> bool:
        """Whether rows are in memory, so that reading them again costs little."""

    @property
    def local(self) -> bool:
        """Whether to read rows is to decode them, with no waiting for others."""

    def identity(self) -> str:
        """SHA-256 that changes whenever a shard may have changed."""

    def shards(self) -> Sequence[tuple[str, int, int, str]]:
        """Name, bytes, rows and a hash of each shard, by which a changed one is known."""

    def with_dictionaries(self, columns: Sequence[str]) -> Self:
        """Deliver some columns of strings as dictionaries where they lie so."""

    def subset(self, row_groups: NDArray[Any]) -> Source:
        """Restrict the source to some of its row groups, numbered anew."""
