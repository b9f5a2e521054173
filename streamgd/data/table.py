"""Rows that are in memory already, as a source."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, EmptyData
from .leftout import LeftOut, OnError
from .reading import digest, select
from .rowgroups import Manifest, RowGroupReader
from .shuffle import random_order
from .widen import refuse_duplicates

TABLE_ROW_GROUP_ROWS = 65_536


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
        refuse_duplicates(table.schema, "the table")
        size = row_group_rows or min(max(-(-table.num_rows // 64), 1), TABLE_ROW_GROUP_ROWS)
        self._size = size
        self._table = table.replace_schema_metadata()
        self.names: Sequence[str] = ["the table"]
        self.left_out = LeftOut()
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
        schema = select(self.schema, columns, batch_rows)
        rows, start = int(self.manifest.rows[row_group]), int(self.manifest.index[row_group]) * self._size
        batches = self._batches(schema.names, start, start + rows, batch_rows)
        return RowGroupReader(batches, rows, self.describe(row_group))

    def raw(self, row_group: int, columns: Sequence[str]) -> None:
        """Nothing: what is in memory has no pages."""

    def describe(self, row_group: int) -> str:
        """Name a slice for a message."""
        start = int(self.manifest.index[row_group]) * self._size
        return f"the table, rows {start} to {start + int(self.manifest.rows[row_group]) - 1}"

    def fingerprint(self) -> str:
        """SHA-256 over schema and row counts."""
        return digest(self.schema.to_string(), self.manifest.index, self.manifest.rows)

    @property
    def in_memory(self) -> bool:
        """Always."""
        return True

    @property
    def local(self) -> bool:
        """Always."""
        return True

    def identity(self) -> str:
        """As `fingerprint`: a table does not change."""
        return self.fingerprint()

    def shards(self) -> list[tuple[str, int, int, str]]:
        """The table as one shard, told by a hash of its values."""
        found = hashlib.sha256(self.schema.to_string().encode())
        for column in (column for batch in self._table.to_batches() for column in batch.columns):
            found.update(f"{column.offset} {len(column)}".encode())
            for buffer in column.buffers():
                found.update(b"" if buffer is None else buffer)
        return [("the table", self._table.nbytes, self._table.num_rows, found.hexdigest())]

    def with_dictionaries(self, columns: Sequence[str]) -> Self:
        """The table itself: its values are decoded already."""
        return self

    def for_job(self, on_error: OnError | None) -> Self:
        """See `ParquetSource.for_job`."""
        part = copy.copy(self)
        part.left_out = self.left_out.fresh(on_error)
        return part

    def subset(self, row_groups: NDArray[Any]) -> TableSource:
        """Restrict the source to some of its slices, numbered anew."""
        part = copy.copy(self)
        part.manifest = self.manifest.take(row_groups)
        return part

    def shuffled(self, seed: int) -> TableSource:
        """The same rows in a random order."""
        return TableSource(self._table.take(random_order(self._table.num_rows, seed)))

    def _batches(self, names: list[str], start: int, stop: int, batch_rows: int) -> Iterator[Any]:
        table = self._table.select(names or self._table.column_names[:1])
        for first in range(start, stop, batch_rows):
            piece = table.slice(first, min(batch_rows, stop - first))
            # A table put together from small pieces would else come row by row.
            if any(column.num_chunks > 1 for column in piece.columns):
                piece = piece.combine_chunks()
            for batch in piece.to_batches():
                yield batch if names else batch.select([])
