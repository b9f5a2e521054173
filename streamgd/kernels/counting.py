"""How often each value of a dictionary comes in a column."""

from __future__ import annotations

import numpy as np

from .decode import PIECE, read_rows
from .intrinsics import jit, kernel

#: Of so few values each is compared with all rows, which is vector code.
FEW = 8


@jit
def _count_few(cells, counts):
    for code in range(len(counts)):
        found = np.int32(0)
        for i in range(len(cells)):
            found += cells[i] == np.uint32(code)
        counts[code] += found


@kernel
def count_rows(columns, pages, n, counts):
    """Count the next n rows of a column by their cells, which are numbers from 0 on.

    Parameters
    ----------
    columns : ndarray of int64, shape (1, COLUMN_FIELDS)
        The column, as `streamgd.kernels.decode` takes it.
    pages : ndarray of int64, shape (n_pages, PAGE_FIELDS)
        Its pages.
    n : int
        Rows.
    counts : ndarray of int64
        Of each cell there may be; added to.

    Returns
    -------
    bool
        False if the pages hold fewer rows, or are not as they should be.
    """
    bits, dense = np.empty(PIECE // 64 + 2, np.uint64), np.zeros(PIECE + 1, np.uint32)
    cells = np.empty(PIECE, np.uint32)
    for first in range(0, n, PIECE):
        size = min(PIECE, n - first)
        if not read_rows(columns, 0, pages, size, bits.ctypes.data, dense.ctypes.data, cells.ctypes.data):
            return False
        if len(counts) <= FEW:
            _count_few(cells[:size], counts)
        else:
            for i in range(size):
                counts[cells[i]] += 1
    return True
