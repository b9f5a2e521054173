"""Margins and gradient sums of a tile of encoded rows that are taken in any order.

Rows are visited at random in a window of tens of megabytes. A row's address is known long before it is needed,
so it is asked for ``AHEAD`` rows early: a random row costs what a sequential one costs (15 ns against 14 at 28
columns, where without prefetching it costs 35).
"""

from __future__ import annotations

import numpy as np

from .intrinsics import jit, prefetch

AHEAD = 64
_PREFETCHED_BYTES = 512  # of a longer row the hardware fetches the rest by itself
# The loop that asks for a row stands in both kernels: as a function it doubles the time of `margins` (28 ns for 14).
#: Outputs that are worked on together: a row is loaded once for so many, and their sums fit the registers.
OUTPUTS = 4


@jit
def margins(rows, order, start, n, stop, weights, intercept, at, z, y, w):
    """Margins, targets and sample weights of rows ``order[start : start + n]``."""
    stride, width = rows.shape[1], len(weights)
    base = rows.ctypes.data
    lines = min(stride * 4, _PREFETCHED_BYTES)
    for i in range(n):
        ahead = base + np.int64(order[min(start + i + AHEAD, stop - 1)]) * stride * 4
        for line in range(0, lines, 64):
            prefetch(ahead + line)
        row = rows[order[start + i]]
        total = np.float32(0)
        for j in range(width):
            total += row[j] * weights[j]
        z[i] = total + intercept
        y[i] = row[at.y]
        if at.w >= 0:
            w[i] = row[at.w]


@jit
def add_gradient(rows, order, start, n, r, tile_sum, total):
    """Add sum_i r_i x_i over rows ``order[start : start + n]`` to ``total`` (float64).

    Inside the tile the sum is float32, four rows at a time; tiles are summed in float64, so that a sum over
    1e9 rows keeps its digits.
    """
    width = len(tile_sum)
    for j in range(width):
        tile_sum[j] = np.float32(0)
    i = 0
    while i + 4 <= n:
        x0, x1 = rows[order[start + i]], rows[order[start + i + 1]]
        x2, x3 = rows[order[start + i + 2]], rows[order[start + i + 3]]
        r0, r1, r2, r3 = r[i], r[i + 1], r[i + 2], r[i + 3]
        for j in range(width):
            tile_sum[j] += (r0 * x0[j] + r1 * x1[j]) + (r2 * x2[j] + r3 * x3[j])
        i += 4
    while i < n:
        x0, r0 = rows[order[start + i]], r[i]
        for j in range(width):
            tile_sum[j] += r0 * x0[j]
        i += 1
    for j in range(len(total)):
        total[j] += tile_sum[j]


@jit
def many_margins(rows, order, start, n, stop, weights, intercepts, at, z, y, w):
    """Margins of several outputs: ``weights`` float32[c, width], ``z`` float32[n, c], c a multiple of `OUTPUTS`."""
    stride, width = rows.shape[1], weights.shape[1]
    base = rows.ctypes.data
    lines = min(stride * 4, _PREFETCHED_BYTES)
    for i in range(n):
        ahead = base + np.int64(order[min(start + i + AHEAD, stop - 1)]) * stride * 4
        for line in range(0, lines, 64):
            prefetch(ahead + line)
        row = rows[order[start + i]]
        for c in range(0, len(weights), OUTPUTS):
            w0, w1, w2, w3 = weights[c], weights[c + 1], weights[c + 2], weights[c + 3]
            z0, z1, z2, z3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(width):
                x = row[j]
                z0 += x * w0[j]
                z1 += x * w1[j]
                z2 += x * w2[j]
                z3 += x * w3[j]
            z[i, c], z[i, c + 1] = z0 + intercepts[c], z1 + intercepts[c + 1]
            z[i, c + 2], z[i, c + 3] = z2 + intercepts[c + 2], z3 + intercepts[c + 3]
        y[i] = row[at.y]
        if at.w >= 0:
            w[i] = row[at.w]


@jit
def add_many_gradients(rows, order, start, n, r, tile_sum, total):
    """Add sum_i r_ic x_i to ``total`` (float64[outputs, p]); ``r`` is float32[n, c], ``tile_sum`` float32[c, width]."""
    c_padded, width = tile_sum.shape
    tile_sum[:] = np.float32(0)
    i = 0
    while i + 4 <= n:
        x0, x1 = rows[order[start + i]], rows[order[start + i + 1]]
        x2, x3 = rows[order[start + i + 2]], rows[order[start + i + 3]]
        for c in range(c_padded):
            sums = tile_sum[c]
            r0, r1, r2, r3 = r[i, c], r[i + 1, c], r[i + 2, c], r[i + 3, c]
            for j in range(width):
                sums[j] += (r0 * x0[j] + r1 * x1[j]) + (r2 * x2[j] + r3 * x3[j])
        i += 4
    while i < n:
        x0 = rows[order[start + i]]
        for c in range(c_padded):
            sums, r0 = tile_sum[c], r[i, c]
            for j in range(width):
                sums[j] += r0 * x0[j]
        i += 1
    for c in range(len(total)):
        for j in range(total.shape[1]):
            total[c, j] += tile_sum[c, j]
