"""Hashes of categories and of the words of texts: MurmurHash3 (Appleby), the same on every machine and for ever.

A column's seed is the hash of its name, so that equal values of different columns are different features. Rows
hold whole 32-bit hashes; how many bits of them count is decided where weights are looked up.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .intrinsics import address_of, four_bytes_at, jit, kernel, pointer, uint8_at
from .layout import TILE_ROWS, bit

_C1, _C2 = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)


@jit
def _rotate(x, bits):
    return np.uint32((x << np.uint32(bits)) | (x >> np.uint32(32 - bits)))


@jit
def mixed(word):
    """What four bytes of a string, or those that are left of it, are to its hash."""
    return np.uint32(_rotate(np.uint32(word * _C1), 15) * _C2)


@jit
def with_word(h, word):
    """The hash with four bytes more."""
    return np.uint32(_rotate(np.uint32(h ^ mixed(word)), 13) * np.uint32(5) + np.uint32(0xE6546B64))


@jit
def finished(h, size):
    """The hash of so many bytes, when all are mixed in."""
    h = np.uint32(h ^ np.uint32(size))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@jit
def murmur(address, n, seed):
    """MurmurHash3_x86_32 of n bytes at an address."""
    h = np.uint32(seed)
    i = 0
    while i + 4 <= n:
        h = with_word(h, four_bytes_at(address + i))
        i += 4
    if i < n:  # of most codes and numbers nothing is left, and what asks less is a fifth faster
        k = np.uint32(0)
        for place in range(n - i):
            k |= np.uint32(np.uint32(uint8_at(address, i + place)) << np.uint32(8 * place))
        h = np.uint32(h ^ mixed(k))
    return finished(h, n)


@jit
def combine(left, right):
    """Hash of two hashes, in order: MurmurHash3 of the four bytes of ``right`` with ``left`` as seed."""
    return finished(with_word(left, right), 4)


@kernel
def hash_strings(offsets, data, valid, valid_offset, seed, missing, out):
    """Hash strings as they lie in Arrow's buffers.

    Parameters
    ----------
    offsets : ndarray of int64, shape (n + 1,)
        Ends of the strings in the data.
    data, valid, valid_offset : int
        Addresses of the bytes and of the bitmap of what is not null (0: all), and bits before the first value.
    seed, missing : uint32
        Seed of the column, and what stands for null.
    out : ndarray of uint32, shape (n,)
        Takes the hashes.
    """
    for i in range(len(out)):
        if valid != 0 and bit(valid, valid_offset + i) == 0:
            out[i] = missing
        else:
            out[i] = murmur(data + offsets[i], offsets[i + 1] - offsets[i], seed)


@kernel
def write_indices(codes, valids, valid_offsets, tables, lengths, missing, n, cell, out):
    """Write hashes of c columns into cells ``cell .. cell+c-1`` of n rows.

    Parameters
    ----------
    codes : ndarray of int64, shape (c,)
        Addresses of int32 codes of each column ...
    valids, valid_offsets : ndarray of int64, shape (c,)
        ... of their bitmaps (0: none are null), and bits before the first value.
    tables : ndarray of int64, shape (c,)
        Addresses of the hash of each code (uint32), or 0 where codes are hashes.
    lengths : ndarray of int64, shape (c,)
        Hashes in each of these tables.
    missing : ndarray of uint32, shape (c,)
        What stands for null.
    n, cell : int
        Rows, and the first cell.
    out : ndarray of uint32, shape (>= n, stride)
        Takes the hashes.

    Returns
    -------
    int
        A column with a code that its table does not have, or -1. A decoder does not look, and one flipped bit in a
        file makes such a code; its hash is that of code 0.
    """
    wrong = -1
    for first in range(0, n, TILE_ROWS):
        size = min(TILE_ROWS, n - first)
        for k in range(len(codes)):
            values = carray(pointer(codes[k]), (n,), np.int32)
            if tables[k] == 0:
                for i in range(size):
                    out[first + i, cell + k] = np.uint32(values[first + i])
                continue
            table = carray(pointer(tables[k]), (1 << 31,), np.uint32)
            length, largest = np.uint32(lengths[k]), np.uint32(0)
            if valids[k] == 0:
                for i in range(size):
                    code = np.uint32(values[first + i])
                    largest = max(largest, code)
                    out[first + i, cell + k] = table[code if code < length else np.uint32(0)]
            else:
                for i in range(size):
                    if bit(valids[k], valid_offsets[k] + first + i) == 0:
                        out[first + i, cell + k] = missing[k]
                    else:
                        code = np.uint32(values[first + i])
                        largest = max(largest, code)
                        out[first + i, cell + k] = table[code if code < length else np.uint32(0)]
            if largest >= length and length > 0:
                wrong = k
    return wrong


@kernel
def write_pairs(left, right, seeds, n, cell, out):
    """Write the hash of two hashed cells (or, where ``left`` is -1, of one) with a seed into the cells from ``cell``.

    ``left`` and ``right`` are cells, int64[c]; ``seeds`` is uint32[c]; ``out`` is uint32[>= n, stride].
    """
    for i in range(n):
        for k in range(len(seeds)):
            h = seeds[k]
            if left[k] >= 0:
                h = combine(h, out[i, left[k]])
            out[i, cell + k] = combine(h, out[i, right[k]])


@jit
def _words(data, start, stop, lower, seed, scratch, out, place, write):
    """Hash the words of one text and their pairs into ``out`` from ``place`` on; return the place after them."""
    n, before, words = 0, np.uint32(0), 0
    i = start
    while True:
        letter = False
        if i < stop:
            byte = data[i]
            width = 1
            if byte < 0x80:
                code = np.int64(lower[byte])
                letter = code != 0
                if letter:
                    scratch[n] = np.uint8(code)
                    n += 1
            elif byte >= 0xC2 and byte < 0xE0 and i + 1 < stop and (data[i + 1] & 0xC0) == 0x80:
                width = 2
                code = np.int64(lower[((np.int64(byte) & 0x1F) << 6) | (np.int64(data[i + 1]) & 0x3F)])
                letter = code != 0
                if letter:
                    scratch[n] = np.uint8(0xC0 | (code >> 6))
                    scratch[n + 1] = np.uint8(0x80 | (code & 0x3F))
                    n += 2
            else:
                mark = (
                    (byte == 0xE2 or byte == 0xE3)
                    and i + 2 < stop
                    and (data[i + 1] == 0x80 or (data[i + 1] == 0x81 and byte == 0xE2))
                    and (data[i + 2] & 0xC0) == 0x80
                )
                if mark:  # general punctuation, and that of Chinese and Japanese
                    width = 3
                else:  # other letters, and bytes that are no UTF-8, are parts of words as they are
                    letter = True
                    scratch[n] = byte
                    n += 1
            i += width
        if not letter:
            if n > 0:
                if write:
                    h = murmur(address_of(scratch), n, seed)
                    out[place] = h
                    if words > 0:
                        out[place + 1] = combine(before, h)
                    before = h
                place += 1 if words == 0 else 2
                words += 1
                n = 0
            if i >= stop:
                return place


@kernel
def hash_words(offsets, data, valid, valid_offset, seed, missing, lower, scratch, ends, out, write):
    """Count or hash the words of n texts, and the pairs of words that follow each other.

    Parameters
    ----------
    offsets, data, valid, valid_offset, seed, missing
        As for `hash_strings`; a null is one n-gram.
    lower : ndarray of uint16, shape (2048,)
        Code point of the lower-case letter for each code point of at most two bytes, 0 for what is no part of a word.
    scratch : ndarray of uint8
        As long as the longest text.
    ends : ndarray of int64, shape (n,)
        Takes the place after each text's n-grams.
    out : ndarray of uint32
        Takes the hashes, if ``write``; else n-grams are only counted.
    """
    end = offsets[len(ends)] if len(ends) else 0
    bytes_ = carray(pointer(data), (end,), np.uint8)
    place = np.int64(0)
    for i in range(len(ends)):
        if valid != 0 and bit(valid, valid_offset + i) == 0:
            if write:
                out[place] = missing
            place += 1
        else:
            place = _words(bytes_, offsets[i], offsets[i + 1], lower, seed, scratch, out, place, write)
        ends[i] = place


@kernel
def write_texts(tokens, ends, n, cell, out):
    """Write where each row's hashes lie, and how many they are, into three cells; ``tokens`` is their address."""
    first = 0
    for i in range(n):
        address = np.uint64(tokens + first * 4)
        out[i, cell] = np.uint32(address & np.uint64(0xFFFFFFFF))
        out[i, cell + 1] = np.uint32(address >> np.uint64(32))
        out[i, cell + 2] = np.uint32(ends[i] - first)
        first = ends[i]


@kernel
def move_texts(cells, cell, distance):
    """Add a distance to the place (an address, or one in a file) that two cells of each row hold for a text."""
    for i in range(len(cells)):
        place = np.int64(cells[i, cell]) | (np.int64(cells[i, cell + 1]) << 32)
        place += distance
        cells[i, cell] = np.uint32(place & 0xFFFFFFFF)
        cells[i, cell + 1] = np.uint32(place >> 32)
