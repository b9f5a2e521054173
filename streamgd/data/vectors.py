"""Lists of numbers of fixed length, as Arrow holds them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .buffers import floats

CENTRE_ROWS = 32


def vector_parts(values: pa.Array) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Child values, start of each row's list in them, whether the row has a list, and its length.

    A slice of lists refers to the values of the whole: those outside of it are left out, for values may be converted.
    """
    n = len(values)
    present = np.ones(n, np.bool_) if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(values.type):
        size = values.type.list_size
        child = values.values.slice(values.offset * size, n * size)
        return child, np.arange(n, dtype=np.int64) * size, present, np.full(n, size, np.int64)
    ends = values.offsets.to_numpy().astype(np.int64)
    return values.values.slice(ends[0], ends[-1] - ends[0]), ends[:-1] - ends[0], present, np.diff(ends)


def middles(values: pa.Array, starts: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Median of the first few numbers at each place of lists that begin at ``starts``; 0 where there is none."""
    places = starts[:CENTRE_ROWS, np.newaxis] + np.arange(size)
    few = floats(values.take(pa.array(places.ravel(), pa.int64()))).reshape(places.shape)
    found = np.zeros(size)
    for j in range(size):
        finite = few[np.isfinite(few[:, j]), j]
        if len(finite) == 0 and len(starts) > len(few):  # many are missing
            column = floats(values.take(pa.array(starts + j)))
            finite = column[np.isfinite(column)][:CENTRE_ROWS]
        if len(finite):
            found[j] = np.sort(finite)[len(finite) // 2]
    return found


def column_middles(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Median of the first few numbers of each column, NaN left aside; 0 where there is none."""
    found = np.zeros(rows.shape[1])
    if len(rows) == 0:
        return found
    heads = np.sort(rows[:CENTRE_ROWS], axis=0)  # NaN last
    counts = np.count_nonzero(~np.isnan(heads), axis=0)
    found[:] = heads[counts // 2 * (counts > 0), np.arange(len(counts))]
    for j in np.flatnonzero(counts == 0):
        numbers = rows[~np.isnan(rows[:, j]), j][:CENTRE_ROWS]
        found[j] = np.sort(numbers)[len(numbers) // 2] if len(numbers) else 0.0
    return found
