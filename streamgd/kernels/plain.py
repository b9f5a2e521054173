"""Plain values of pages made cells of 32 bits: numbers, and hashes of strings."""

from __future__ import annotations

import numpy as np

from .hashing import murmur
from .intrinsics import eight_bytes_at, float64_from, float_from_bits, four_bytes_at, jit, kernel
from .layout import FLOAT32, FLOAT64, INT32


@jit
def filled(values, fill):
    """Fill what is NaN; return False if a value is infinite."""
    infinite = np.uint32(0)
    for i in range(len(values)):
        size = abs(values[i])
        infinite |= np.uint32(size == np.inf)
        values[i] = values[i] if size < np.inf else fill
    return infinite == 0


@kernel
def plain_numbers(code, at, end, offset, fill, out):
    """Make cells of numbers that stand one after the other.

    Parameters
    ----------
    code : int
        Their type, as in `streamgd.kernels.layout`.
    at, end : int
        Address and end of their bytes.
    offset : float
        Subtracted, in float64.
    fill : float32
        Stands for NaN.
    out : ndarray of uint32
        Takes float32.

    Returns
    -------
    int
        Number of numbers, at most as many as ``out`` takes; -1 if one is infinite as float32.
    """
    n = min((end - at) // (4 if code in (FLOAT32, INT32) else 8), len(out))
    cells = out.view(np.float32)
    if code == FLOAT32:
        for i in range(n):
            cells[i] = np.float32(np.float64(float_from_bits(np.int32(four_bytes_at(at + 4 * i)))) - offset)
    elif code == INT32:
        for i in range(n):
            cells[i] = np.float32(np.float64(np.int32(four_bytes_at(at + 4 * i))) - offset)
    elif code == FLOAT64:
        for i in range(n):
            cells[i] = np.float32(float64_from(eight_bytes_at(at + 8 * i)) - offset)
    else:
        for i in range(n):
            cells[i] = np.float32(np.float64(np.int64(eight_bytes_at(at + 8 * i))) - offset)
    return n if filled(cells[:n], fill) else -1


@kernel
def plain_hashes(at, end, seed, out):
    """Hash strings that stand one after the other, each after its length.

    Returns
    -------
    int
        Number of strings, at most as many as ``out`` takes; -1 if one does not end before the end.
    """
    for i in range(len(out)):
        if at == end:
            return i
        if end - at < 4:
            return -1
        size = np.int64(four_bytes_at(at))
        at += 4
        if size > end - at:
            return -1
        out[i] = murmur(at, size, seed)
        at += size
    return len(out)
