"""Plain values of pages made cells of 32 bits: numbers, and hashes of strings."""

from __future__ import annotations

import numpy as np

from .hashing import finished, mixed, murmur, with_word
from .intrinsics import eight_bytes_at, float64_from, float_from_bits, four_bytes_at, jit, kernel
from .layout import FLOAT32, FLOAT64, INT32

#: Strings that are hashed together, if each has no more bytes than this.
_TOGETHER, _SHORT = 256, 16


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


@jit
def _list_short(at, end, n, sizes, words, tails):
    """List the next strings, at most n, as long as they are short and more follows.

    Returns
    -------
    found : int
        How many they are.
    at : int
        Where the next begins.
    longest : uint32
        Bytes of the longest.
    """
    found, longest = 0, np.uint32(0)
    while found < n and end - at >= 4 + _SHORT + 4:
        size = four_bytes_at(at)
        if size > _SHORT:
            break
        for word in range(_SHORT // 4):
            words[word, found] = four_bytes_at(at + 4 + 4 * word)
        left = size & np.uint32(3)
        tails[found] = four_bytes_at(at + 4 + np.int64(size - left)) & np.uint32((1 << 8 * np.int64(left)) - 1)
        sizes[found], longest = size, max(longest, size)
        at += 4 + np.int64(size)
        found += 1
    return found, at, longest


@kernel
def plain_hashes(at, end, seed, out):
    """Hash strings that stand one after the other, each after its length.

    Most are short. Of those the first words of all are hashed together, then the second ones, as vector code: of eight
    bytes in a third less time, and nothing is guessed wrong where they differ in length.

    Returns
    -------
    int
        Number of strings, at most as many as ``out`` takes; -1 if one does not end before the end.
    """
    sizes, tails = np.empty(_TOGETHER, np.uint32), np.empty(_TOGETHER, np.uint32)
    words, h = np.empty((_SHORT // 4, _TOGETHER), np.uint32), np.empty(_TOGETHER, np.uint32)
    done = 0
    while done < len(out) and at < end:
        n, at, longest = _list_short(at, end, min(_TOGETHER, len(out) - done), sizes, words, tails)
        h[:n] = np.uint32(seed)
        for word in range(np.int64(longest) // 4):
            for i in range(n):
                more = with_word(h[i], words[word, i])
                h[i] = more if sizes[i] >= np.uint32(4 * (word + 1)) else h[i]
        for i in range(n):
            out[done + i] = finished(np.uint32(h[i] ^ mixed(tails[i])), sizes[i])
        done += n
        if n == 0:
            if end - at < 4:
                return -1
            size = np.int64(four_bytes_at(at))
            at += 4
            if size > end - at:
                return -1
            out[done] = murmur(at, size, seed)
            at += size
            done += 1
    return done
