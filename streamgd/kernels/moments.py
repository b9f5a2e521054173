"""Weights and sums of first, second and fourth powers of encoded rows, over values that are not missing."""

from __future__ import annotations

import numpy as np

from .intrinsics import kernel


@kernel
def add_moments(rows, n, w_cell, count, total, square, fourth):
    """Add the weighted moments of the first n rows to four float64[p]; NaN is missing; without weights w_cell is -1.

    All in float64: the square of a float32 may be beyond float32.
    """
    for i in range(n):
        row = rows[i]
        weight = np.float64(row[w_cell]) if w_cell >= 0 else 1.0
        for j in range(len(count)):
            present = row[j] == row[j]
            value = np.float64(row[j]) if present else 0.0
            square_value = value * value
            count[j] += weight if present else 0.0
            total[j] += weight * value
            square[j] += weight * square_value
            fourth[j] += weight * square_value * square_value
