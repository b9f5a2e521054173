"""Snappy's blocks unpacked, many pages in one call.

Arrow's codec takes a page a call, and each call gives the interpreter away and waits for it again. The pages of a row
group of 65,536 rows are 150, of 40 µs each: two threads that read then stand in each other's way for a fifth of the
time. The format is that of format_description.txt in google/snappy. Nothing is believed: what would leave its block, or
refers to what is not there, ends at once.
"""

from __future__ import annotations

import numpy as np

from .decode import varint_at
from .intrinsics import (
    copy_bytes,
    copy_line,
    copy_sixteen_bytes,
    eight_bytes_at,
    four_bytes_at,
    jit,
    put_byte,
    put_eight_bytes,
    uint8_at,
)

#: Bytes behind the unpacked ones that may be written, too.
SPARE = 64


@jit
def _again(out, offset, n):
    """Write n bytes (at most 64) that stand ``offset`` bytes before, and may be among those that are written."""
    if offset >= 16:
        for i in range(0, n, 16):
            copy_sixteen_bytes(out - offset + i, out + i)
    elif offset >= 8:
        for i in range(0, n, 8):
            put_eight_bytes(out + i, eight_bytes_at(out - offset + i))
    else:
        for i in range(n):
            put_byte(out + i, uint8_at(out - offset, i))


@jit
def copy_block(out, at, n):
    """Copy n bytes to an address from another, which do not overlap.

    The C library leaves more than 2 kB to one instruction, which takes 0.03 ns a byte on the processors this was
    measured on, or 0.37 by where the bytes lie to each other; this takes 0.03 wherever they lie.
    """
    if n < 64:
        copy_bytes(out, at, n)
        return
    for i in range(0, n - 64, 64):
        copy_line(at + i, out + i)
    copy_line(at + n - 64, out + n - 64)


@jit
def unpack_snappy(at, end, out, size):
    """Unpack the bytes between two addresses into ``size`` bytes and `SPARE`; return whether they are so many."""
    begin, stop = out, out + size
    told, at = varint_at(at, end)
    if at < 0 or told != size:
        return False
    while at < end:
        tag = np.int64(uint8_at(at, 0))
        at += 1
        if tag & 3 == 0:
            n = (tag >> 2) + 1
            if n <= 16 and end - at >= 16 and stop - out >= n:
                copy_sixteen_bytes(at, out)
            else:
                if n > 60:
                    more = n - 60
                    if end - at < more:
                        return False
                    n = np.int64(0)
                    for i in range(more):
                        n |= np.int64(uint8_at(at, i)) << (8 * i)
                    n += 1
                    at += more
                if n > end - at or n > stop - out:
                    return False
                copy_block(out, at, n)
            at += n
            out += n
            continue
        if tag & 3 == 1:
            if at >= end:
                return False
            n, offset = ((tag >> 2) & 7) + 4, (tag >> 5 << 8) | np.int64(uint8_at(at, 0))
            at += 1
        elif tag & 3 == 2:
            if end - at < 2:
                return False
            n, offset = (tag >> 2) + 1, np.int64(uint8_at(at, 0)) | np.int64(uint8_at(at, 1)) << 8
            at += 2
        else:
            if end - at < 4:
                return False
            n, offset = (tag >> 2) + 1, np.int64(four_bytes_at(at))
            at += 4
        if offset == 0 or offset > out - begin or n > stop - out:
            return False
        _again(out, offset, n)
        out += n
    return out == stop
