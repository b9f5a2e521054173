"""Weights and sums of powers of encoded rows, over values that are not missing, and weights of zeros."""

from __future__ import annotations

import numpy as np

from .intrinsics import kernel


@kernel
def add_moments(rows, n, w_cell, sums):
    """Add weights, weighted powers 1 to 4, and weights of zeros of the first n rows to float64[6, p]; NaN is missing.

    Without weights ``w_cell`` is -1. All in float64: the square of a float32 may be beyond float32.
    """
    for i in range(n):
        row = rows[i]
        weight = np.float64(row[w_cell]) if w_cell >= 0 else 1.0
        for j in range(sums.shape[1]):
            present = row[j] == row[j]
            value = np.float64(row[j]) if present else 0.0
            square = value * value
            sums[0, j] += weight if present else 0.0
            sums[1, j] += weight * value
            sums[2, j] += weight * square
            sums[3, j] += weight * square * value
            sums[4, j] += weight * square * square
            sums[5, j] += weight if row[j] == 0.0 else 0.0
