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
#: Bytes that are copied at once, whatever a tag says.
_SHORT = 16


def _tags():
    """What each tag says: bytes of it and what follows it, of what it stands for, and what its offset begins with.

    Of a tag that stands for more than `_SHORT` bytes, or has an offset of four bytes, it says that these are 255.
    """
    tag = np.arange(256, dtype=np.uint32)
    kind, n = tag & 3, (tag >> 2) + 1
    n[kind == 1] = ((tag[kind == 1] >> 2) & 7) + 4
    n[(kind == 3) | (n > _SHORT)] = 255
    return np.where(kind == 0, n + 1, kind + 1) & 255 | n << 8 | np.where(kind == 1, tag >> 5 << 24, 0)


_TAGS = _tags()
#: The bits of an offset among those that follow a tag, by its kind.
_OFFSETS = np.array([0, 0xFF, 0xFFFF, 0])


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
def _literal(n, at, end):
    """Bytes of a literal whose tag says n, and where they begin, after that; -1 if they do not end in time."""
    if n > 60:
        more = n - 60
        if end - at < more:
            return n, np.int64(-1)
        n = np.int64(1)
        for i in range(more):
            n += np.int64(uint8_at(at, i)) << (8 * i)
        at += more
    return n, at if n <= end - at else np.int64(-1)


@jit
def are_literals(at, end, size):
    """Whether the bytes between two addresses are ``size`` bytes that are not packed, but for tags among them."""
    told, at = varint_at(at, end)
    if at < 0 or told != size:
        return False
    while at < end:
        tag = np.int64(uint8_at(at, 0))
        n, at = _literal((tag >> 2) + 1, at + 1, end)
        if tag & 3 != 0 or at < 0 or n > size:
            return False
        at += n
        size -= n
    return size == 0


@jit
def join_literals(at, end):
    """Close the gaps that tags leave among such bytes; return where they begin."""
    _, at = varint_at(at, end)
    begin = out = at
    while at < end:
        n, at = _literal((np.int64(uint8_at(at, 0)) >> 2) + 1, at + 1, end)
        if out == begin:
            begin = out = at
        else:
            _move_down(out, at, n)
        at += n
        out += n
    return begin


@jit
def _move_down(out, at, n):
    """Copy n bytes to an address from one beyond it."""
    whole = n - n % 64
    for i in range(0, whole, 64):
        copy_line(at + i, out + i)
    for i in range(whole, n):
        put_byte(out + i, uint8_at(at, i))


@jit
def _by_sixteens(at, end, out, begin, stop):
    """Unpack while tags stand for at most 16 bytes, and there are so many before both ends; where that ends.

    Strings of dictionaries are packed in pieces of 4 to 8 bytes, of every kind in any order. Who asks of what kind a
    tag is guesses wrong again and again, and takes 9 ns a tag; to look up what it says takes 4.
    """
    last_at, last_out = end - (_SHORT + 1), stop - _SHORT
    while (at <= last_at) and (out <= last_out):
        word = np.int64(four_bytes_at(at))
        told, kind = np.int64(_TAGS[word & 255]), word & 3
        n, offset = (told >> 8) & 255, (told >> 16) | ((word >> 8) & _OFFSETS[kind])
        source, away = (at + 1 if kind == 0 else out - offset), (np.int64(_SHORT) if kind == 0 else offset)
        if (n > _SHORT) | (away < n) | (away > out - begin):  # one question, since the answer is nearly always no
            break
        copy_sixteen_bytes(source, out)
        at += told & 255
        out += n
    return at, out


@jit
def unpack_snappy(at, end, out, size):
    """Unpack the bytes between two addresses into ``size`` bytes and `SPARE`; return whether they are so many."""
    begin, stop = out, out + size
    told, at = varint_at(at, end)
    if at < 0 or told != size:
        return False
    while at < end:
        at, out = _by_sixteens(at, end, out, begin, stop)
        if at == end:
            break
        tag = np.int64(uint8_at(at, 0))
        at += 1
        if tag & 3 == 0:
            n, at = _literal((tag >> 2) + 1, at, end)
            if at < 0 or n > stop - out:
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
