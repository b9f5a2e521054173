"""How often each value of a column comes in a row group, by the codes of its dictionary alone.

Labels are few, and lie in dictionaries: no row of theirs has to become a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..kernels import decode as kernels
from ..kernels import thrift
from ..kernels.counting import count_rows
from .chunks import INTEGERS, Chunk, NotDirect, RawRowGroup
from .openchunks import open_column
from .rowgroups import Source
from .threads import ordered

#: More values than these, and larger column chunks, are for Arrow to count.
MOST_VALUES, MOST_BYTES = 1024, 4 << 20
#: Row groups of a shard whose column is read and counted at a time.
AT_ONCE = 16


class Counted(NamedTuple):
    """Rows of each value of a column that comes at all, and how many have none."""

    rows: dict[Any, float]
    nulls: int


def counted(source: Source, row_groups: range, name: str, n_jobs: int = 1) -> Iterator[Counted | None]:
    """Count the values of a column of integers or strings in some row groups, one after the other.

    Gives None of those in which not all pages of it are codes of a small dictionary.
    """
    shards = source.manifest.shard[row_groups.start : row_groups.stop]
    ends = [*(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    batches = [
        row_groups[first : min(first + AT_ONCE, end)]
        for begin, end in zip([0, *ends], ends, strict=False)
        for first in range(begin, end, AT_ONCE)
    ]

    def count(batch: range) -> list[Counted | None]:
        return count_column([source.raw(row_group, [name]) for row_group in batch], name)

    if n_jobs == 1:
        yield from chain.from_iterable(map(count, batches))
        return
    with closing(ordered(count, batches, n_jobs)) as found:
        yield from chain.from_iterable(found)


def count_column(raws: Sequence[RawRowGroup | None], name: str) -> list[Counted | None]:
    """The same of a column of some row groups of a file; None stands for one that is for Arrow to read."""
    found: list[Counted | None] = [None] * len(raws)
    fit = {k: raw for k, raw in enumerate(raws) if raw is not None and _is_small(raw, name)}
    chunks, which, values = list[Chunk](), list[int](), list[list[Any]]()
    for k, chunk in zip(fit, open_column(list(fit.values()), name) if fit else (), strict=True):
        there = None if chunk is None else _dictionary(chunk)
        if chunk is not None and there is not None:
            chunks.append(chunk)
            which.append(k)
            values.append(there)
    pages = [chunk.pages(0, chunk.rows)[1] for chunk in chunks]
    codes, columns = np.arange(MOST_VALUES, dtype=np.uint32), np.zeros((len(chunks), kernels.COLUMN_FIELDS), np.int64)
    rows, lengths = (np.array(n, np.int64) for n in ([chunk.rows for chunk in chunks], list(map(len, values))))
    columns[:, kernels.LAST_PAGE] = np.cumsum([len(own) for own in pages])
    columns[1:, kernels.NEXT_PAGE] = columns[:-1, kernels.LAST_PAGE]
    columns[:, kernels.TABLE] = codes.ctypes.data
    columns[:, kernels.LENGTH] = columns[:, kernels.MISSING] = lengths
    counts = np.empty((len(chunks), MOST_VALUES + 1), np.int64)
    count_rows(columns, np.concatenate([np.zeros((0, kernels.PAGE_FIELDS), np.int64), *pages]), rows, counts)
    for k, there, times, read in zip(which, values, counts, rows.tolist(), strict=True):
        if read >= 0:
            found[k] = _told(there, times[: len(there) + 1].tolist())
    return found


def _is_small(raw: RawRowGroup, name: str) -> bool:
    return bool(raw.table[raw.flat.places[name], [thrift.COMPRESSED, thrift.UNCOMPRESSED]].max() <= MOST_BYTES)


def _told(values: list[Any], counts: list[int]) -> Counted:
    """Counts of values, and of nulls after them."""
    found: dict[Any, float] = {}
    for value, rows in zip(values, counts, strict=False):
        if rows:  # a writer may put a value twice, or one that no row has
            found[value] = found.get(value, 0.0) + rows
    return Counted(found, counts[-1])


def _dictionary(chunk: Chunk) -> list[Any] | None:
    """Values of a dictionary, if all pages are codes of it."""
    if chunk.plain or chunk.dictionary is None:
        return None
    at, end, n = chunk.dictionary[[kernels.BEGIN, kernels.END, kernels.VALUES]].tolist()
    if n > MOST_VALUES:
        return None
    try:
        values = _values(chunk, at, end, n)
    except (NotDirect, pa.ArrowException, MemoryError, UnicodeDecodeError):  # Arrow will say what is wrong
        return None
    return values if len(values) == n else None


def _values(chunk: Chunk, at: int, end: int, n: int) -> list[Any]:
    """Values of a dictionary."""
    if not pa.types.is_integer(chunk.kind):
        return chunk.values(at, end, n).to_pylist()  # type: ignore[no-any-return]
    kind = np.dtype(chunk.kind.to_pandas_dtype())
    wide = kind if kind.itemsize == INTEGERS[chunk.physical] else np.dtype(f"i{INTEGERS[chunk.physical]}")
    values = np.frombuffer(pa.foreign_buffer(at, min(n, (end - at) // wide.itemsize) * wide.itemsize), wide)
    if (values.astype(kind) != values).any():
        raise NotDirect("integers")
    return values.tolist()  # type: ignore[no-any-return]
