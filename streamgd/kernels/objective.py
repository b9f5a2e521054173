"""The sum of losses over rows and its gradient, all in float64: what L-BFGS needs to come close to an optimum.

Steps are content with float32 rows and sums of tiles (`drain`); an optimum known to 1e-4 is not.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import address_of, kernel, uint32_at
from .losses import evaluate, softmax
from .slots import hashes_of

TILE = 64


@kernel
def add_objective(
    rows,  # float32[n, stride]: encoded rows
    cells,  # the same as uint32
    n,
    at,  # where things lie in a row
    loss,
    rare,  # None if the loss is a common one
    loss_args,
    outputs,  # number of outputs if there are several, or None
    weights,  # float64[c, p]: of encoded dense features
    intercepts,  # float64[c]
    factor,  # float64[2, s], as in `drain`
    table,  # float64[2^bits, c]: weights of hashed features, or None
    used,  # bool[2^bits]: set for the hashed features that occur
    gradient,  # float64[c, p + 1]: of encoded dense features and intercepts; added to
    table_gradient,  # float64[2^bits, c]; added to
    totals,  # float64[2]: sum of losses, sum of weights; added to
):
    """Add the losses of the first n rows and their gradient."""
    c_all, p = weights.shape
    z, r = np.empty((c_all, TILE)), np.empty((c_all, TILE))
    y, value, room = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    for first in range(0, n, TILE):
        size = min(TILE, n - first)
        for i in range(size):
            row = rows[first + i]
            y[i] = row[at.y]
            for c in range(c_all):
                total = 0.0
                for j in range(p):
                    total += np.float64(row[j]) * weights[c, j]
                z[c, i] = total + intercepts[c]
            if table is not None:
                mask = np.uint32(len(table) - 1)
                for part in range(1 + at.n_text):
                    hashes, words = hashes_of(address_of(cells), (first + i) * cells.shape[1] * 4, at, part)
                    plain = words - at.n_scaled if part == 0 else words
                    for k in range(words):
                        slot = np.int64(uint32_at(hashes, k) & mask)
                        used[slot] = True
                        x = 1.0
                        if k >= plain:
                            x = np.float64(row[np.int64(factor[0, k - plain])]) * factor[1, k - plain]
                        for c in range(c_all):
                            z[c, i] += x * table[slot, c]
        if outputs is None:
            evaluate(loss, rare, loss_args, z[0], y, size, value, r[0])
        else:
            softmax(z, y, size, value, room, r)
        for i in range(size):
            row = rows[first + i]
            weight = np.float64(row[at.w]) if at.w >= 0 else 1.0
            totals[0] += weight * value[i]
            totals[1] += weight
            for c in range(c_all):
                d = weight * r[c, i]
                for j in range(p):
                    gradient[c, j] += d * np.float64(row[j])
                gradient[c, p] += d
                r[c, i] = d
            if table is not None:
                mask = np.uint32(len(table) - 1)
                for part in range(1 + at.n_text):
                    hashes, words = hashes_of(address_of(cells), (first + i) * cells.shape[1] * 4, at, part)
                    plain = words - at.n_scaled if part == 0 else words
                    for k in range(words):
                        x = 1.0
                        if k >= plain:
                            x = np.float64(row[np.int64(factor[0, k - plain])]) * factor[1, k - plain]
                        for c in range(c_all):
                            table_gradient[np.int64(uint32_at(hashes, k) & mask), c] += x * r[c, i]
