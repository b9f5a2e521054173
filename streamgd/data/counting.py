"""How often each value of a column comes in a row group, by the codes of its dictionary alone.

Labels are few, and lie in dictionaries: no row of theirs has to become a value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..kernels import decode as kernels
from ..kernels import thrift
from ..kernels.counting import count_rows
from .chunks import INTEGERS, Chunk, NotDirect, RawRowGroup
from .openchunks import OpenChunks

#: More values than these, and larger column chunks, are for Arrow to count.
MOST_VALUES, MOST_BYTES = 1024, 4 << 20


class Counted(NamedTuple):
    """Rows of each value of a column that comes at all, and how many have none."""

    rows: dict[Any, float]
    nulls: int


def counted(raw: RawRowGroup, name: str) -> Counted | None:
    """Count the values of a column of integers or strings, if all of its pages are codes of a small dictionary."""
    try:
        return _counted(raw, name)
    except (NotDirect, pa.ArrowException, OSError, MemoryError, UnicodeDecodeError):  # Arrow will say what is wrong
        return None


def _counted(raw: RawRowGroup, name: str) -> Counted | None:
    place = raw.flat.places[name]
    if raw.table[place, [thrift.COMPRESSED, thrift.UNCOMPRESSED]].max() > MOST_BYTES:
        return None
    chunk = OpenChunks(raw, np.array([place]), 0, raw.rows).chunk(0)
    if chunk.plain or chunk.dictionary is None:
        return None
    at, end, n = chunk.dictionary[[kernels.BEGIN, kernels.END, kernels.VALUES]].tolist()
    if n > MOST_VALUES:
        return None
    values = _values(chunk, at, end, n)
    codes, counts = np.arange(n, dtype=np.uint32), np.zeros(n + 1, np.int64)
    _, pages = chunk.pages(0, raw.rows)
    column = np.zeros((1, kernels.COLUMN_FIELDS), np.int64)
    column[0, kernels.LAST_PAGE], column[0, kernels.TABLE : kernels.CELL] = len(pages), (codes.ctypes.data, n, n)
    if len(values) < n or not count_rows(column, pages, raw.rows, counts):
        return None
    found: dict[Any, float] = {}
    for value, rows in zip(values, counts.tolist(), strict=False):
        if rows:  # a writer may put a value twice, or one that no row has
            found[value] = found.get(value, 0.0) + rows
    return Counted(found, int(counts[n]))


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
