"""How often each value of a dictionary comes in a column."""

from __future__ import annotations

import numpy as np

from .decode import LENGTH, PIECE, read_rows
from .intrinsics import address_of, jit, kernel

#: Of so few values each is compared with all rows, which is vector code.
FEW = 8


@jit
def _count_few(cells, counts):
    for code in range(1, len(counts)):  # what is left is the first
        found = np.int32(0)
        for i in range(len(cells)):
            found += cells[i] == np.uint32(code)
        counts[code] += found
        counts[0] -= found
    counts[0] += len(cells)


@kernel
def count_rows(columns, pages, rows, counts):
    """Count the next rows of some columns by their cells, which are numbers from 0 on.

    Parameters
    ----------
    columns : ndarray of int64, shape (n, COLUMN_FIELDS)
        The columns, as `streamgd.kernels.decode` takes them. Cells are smaller than `LENGTH`, or that if they are null.
    pages : ndarray of int64, shape (n_pages, PAGE_FIELDS)
        Their pages.
    rows : ndarray of int64, shape (n,)
        Rows of each; becomes -1 if the pages hold fewer, or are not as they should be.
    counts : ndarray of int64, shape (n, most)
        Takes how often each cell comes, of columns that have fewer in their first ones.
    """
    bits, dense = np.empty(PIECE // 64 + 2, np.uint64), np.zeros(PIECE + 1, np.uint32)
    cells = np.empty(PIECE, np.uint32)
    for k in range(len(columns)):
        there = counts[k, : columns[k, LENGTH] + 1]
        there[:] = 0
        for first in range(0, rows[k], PIECE):
            size = min(PIECE, rows[k] - first)
            if not read_rows(columns, k, pages, size, address_of(bits), address_of(dense), address_of(cells)):
                rows[k] = -1
                break
            if len(there) <= FEW:
                _count_few(cells[:size], there)
            else:
                for i in range(size):
                    there[cells[i]] += 1
