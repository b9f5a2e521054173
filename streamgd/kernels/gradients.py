"""Margins and gradient sums of a tile of encoded rows that are taken in any order.

Rows are visited at random in a window of tens of megabytes. A row's address is known long before it is needed,
so it is asked for ``AHEAD`` rows early: a random row costs what a sequential one costs (11 ns at 28 columns, where
without prefetching it costs 35).

Sums have a fixed order, whatever else is worked on: an output has the same bits alone and among a hundred.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import address_of, float32_at, jit, keep, prefetch
from .sums import add_four_rows, add_row, add_rows_twice, dot, dot_four_rows, dot_four_rows_twice

AHEAD = 64
_PREFETCHED_BYTES = 512  # of a longer row the hardware fetches the rest by itself
#: Outputs that are worked on together, so that a row is loaded once for so many.
OUTPUTS = 2
#: Rows whose gradients of all outputs are added before those of the next.
ROWS = 64


@jit
def fetch(rows, order, start, n, stop, at, y, w):
    """Targets and sample weights of rows ``order[start : start + n]``; rows that come later are asked for."""
    stride, base = rows.shape[1] * 4, address_of(rows)
    needed = stride if at.n_text > 0 else 4 * at.width  # but for hashes, which are listed
    lines = -(-min(needed, _PREFETCHED_BYTES) // 64)
    for i in range(n):
        ahead = base + np.int64(order[min(start + i + AHEAD, stop - 1)]) * stride
        for line in range(lines):
            prefetch(ahead + 64 * line)
        row = base + np.int64(order[start + i]) * stride
        y[i] = float32_at(row, at.y)
        if at.w >= 0:
            w[i] = float32_at(row, at.w)


@jit
def _four_rows(base, order, i, stride):
    """Addresses of rows i to i + 3 of the order."""
    return (
        base + np.int64(order[i]) * stride,
        base + np.int64(order[i + 1]) * stride,
        base + np.int64(order[i + 2]) * stride,
        base + np.int64(order[i + 3]) * stride,
    )


@jit
def margins(rows, order, start, n, weights, intercept, z):
    """Margins of rows ``order[start : start + n]``."""
    stride, width = rows.shape[1] * 4, len(weights)
    base, w_base, z_base = address_of(rows), address_of(weights), address_of(z)
    i = 0
    while i + 4 <= n:
        a, b, c, d = _four_rows(base, order, start + i, stride)
        dot_four_rows(a, b, c, d, w_base, width, z_base + i * 4)
        i += 4
    while i < n:
        z[i] = dot(base + np.int64(order[start + i]) * stride, w_base, width)
        i += 1
    for i in range(n):
        z[i] += intercept


@jit
def add_gradient(rows, order, start, n, r, tile_sum, total):
    """Add sum_i r_i x_i over rows ``order[start : start + n]`` to ``total`` (float64).

    Inside the tile the sum is float32; tiles are summed in float64, so that a sum over 1e9 rows keeps its digits.
    """
    width, stride = len(tile_sum), rows.shape[1] * 4
    base, r_base, sum_base = address_of(rows), address_of(r), address_of(tile_sum)
    tile_sum[:] = np.float32(0)
    i = 0
    while i + 4 <= n:
        a, b, c, d = _four_rows(base, order, start + i, stride)
        add_four_rows(a, b, c, d, r_base + i * 4, sum_base, width)
        i += 4
    while i < n:
        add_row(base + np.int64(order[start + i]) * stride, r_base + i * 4, sum_base, width)
        i += 1
    for j in range(len(total)):
        total[j] += tile_sum[j]


@jit
def many_margins(rows, order, start, n, weights, intercepts, z):
    """Margins of several outputs: ``weights`` float32[c, width], ``z`` float32[c, tile], c a multiple of `OUTPUTS`.

    Four rows meet two outputs at a time, by the additions of `margins`.
    """
    stride, width = rows.shape[1] * 4, weights.shape[1]
    base, w_base, z_base, z_step = address_of(rows), address_of(weights), address_of(z), z.shape[1] * 4
    i = 0
    while i + 4 <= n:
        a, b, c, d = _four_rows(base, order, start + i, stride)
        for output in range(0, len(weights), OUTPUTS):
            of, to = w_base + output * width * 4, z_base + output * z_step + i * 4
            dot_four_rows_twice(a, b, c, d, of, width * 4, width, to, z_step)
        i += 4
    while i < n:
        a = base + np.int64(order[start + i]) * stride
        for output in range(len(weights)):
            z[output, i] = dot(a, w_base + output * width * 4, width)
        i += 1
    for output in range(len(weights)):
        for i in range(n):
            z[output, i] += intercepts[output]


@jit
def add_many_gradients(rows, order, start, n, r, tile_sum, total):
    """Add sum_i r_ci x_i to ``total`` (float64[outputs, p]); ``r`` is float32[c, tile], ``tile_sum`` float32[c, width].

    Some rows, which stay in the cache, meet two outputs at a time, by the additions of `add_gradient`.
    """
    width, stride, r_step = tile_sum.shape[1], rows.shape[1] * 4, r.shape[1] * 4
    base, r_base, sum_base = address_of(rows), address_of(r), address_of(tile_sum)
    places = np.empty(ROWS, np.int64)
    places_at = address_of(places)
    tile_sum[:] = np.float32(0)
    for first in range(0, n, ROWS):
        m = min(ROWS, n - first)
        for i in range(m):
            places[i] = base + np.int64(order[start + first + i]) * stride
        for output in range(0, len(tile_sum), OUTPUTS):
            factors, sums = r_base + output * r_step + first * 4, sum_base + output * width * 4
            add_rows_twice(places_at, m, factors, r_step, sums, width * 4, width)
    keep(places)
    for c in range(len(total)):
        for j in range(total.shape[1]):
            total[c, j] += tile_sum[c, j]
