"""Weights and sums of first, second and fourth powers of encoded rows, over values that are not missing."""

from __future__ import annotations

import numpy as np

from .intrinsics import jit

TILE_ROWS = 128


@jit
def add_moments(rows, n, w_cell, count, total, square, fourth):
    """Add the weighted moments of the first n rows to four float64[p]; NaN is missing; without weights w_cell is -1.

    A tile's sums are float32 of values near 0 (an offset is already off), tiles are summed in float64.
    """
    p = len(count)
    tile_count = np.empty(p, np.float32)
    tile_total, tile_square, tile_fourth = np.empty(p, np.float32), np.empty(p, np.float32), np.empty(p, np.float64)
    for first in range(0, n, TILE_ROWS):
        tile_count[:], tile_total[:], tile_square[:], tile_fourth[:] = np.float32(0), np.float32(0), np.float32(0), 0.0
        for i in range(first, min(first + TILE_ROWS, n)):
            row = rows[i]
            weight = row[w_cell] if w_cell >= 0 else np.float32(1)
            for j in range(p):
                present = row[j] == row[j]
                value = row[j] if present else np.float32(0)
                tile_count[j] += weight * np.float32(present)
                tile_total[j] += weight * value
                tile_square[j] += weight * value * value
                tile_fourth[j] += np.float64(weight) * np.float64(value) ** 4
        for j in range(p):
            count[j] += tile_count[j]
            total[j] += tile_total[j]
            square[j] += tile_square[j]
            fourth[j] += tile_fourth[j]
