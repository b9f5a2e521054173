"""Plain NumPy twins of the kernels that make rows: hashes, encoding, orders, sums of powers; see `reference`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference import Floats


def murmur(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 of bytes."""

    def mixed(block: bytes) -> int:
        k = int.from_bytes(block, "little") * 0xCC9E2D51 % 2**32
        return (k << 15 | k >> 17) * 0x1B873593 % 2**32

    whole, h = len(data) // 4 * 4, seed
    for i in range(0, whole, 4):
        h ^= mixed(data[i : i + 4])
        h = ((h << 13 | h >> 19) * 5 + 0xE6546B64) % 2**32
    h ^= mixed(data[whole:]) ^ len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def combine(left: int, right: int) -> int:
    """Hash of two hashes, in order."""
    return murmur(right.to_bytes(4, "little"), left)


def hash_strings(values: Sequence[bytes | None], seed: int, missing: int) -> list[int]:
    """Hash of each string."""
    return [missing if value is None else murmur(value, seed) for value in values]


def words(text: str, lower: NDArray[np.uint16]) -> list[str]:
    """Words of a text in lower case. What UTF-8 writes in more than two bytes is a letter, but for punctuation."""

    def is_letter(letter: str) -> bool:
        code = ord(letter)
        if code < len(lower):
            return bool(lower[code])
        return not (0x2000 <= code <= 0x207F or 0x3000 <= code <= 0x303F)

    lowered = [
        "".join(chr(lower[ord(x)]) if ord(x) < len(lower) else x for x in letters) if kind else ""
        for kind, letters in groupby(text, is_letter)
    ]
    return [word for word in lowered if word]


def hash_words(
    texts: Sequence[str | None], seed: int, missing: int, lower: NDArray[np.uint16]
) -> tuple[list[int], list[int]]:
    """Hashes of words, each from the second on followed by that of it and the one before; and the end of each text."""
    found: list[int] = []
    ends = []
    for text in texts:
        hashes = [missing] if text is None else [murmur(word.encode(), seed) for word in words(text, lower)]
        found += hashes[:1]
        for before, h in pairwise(hashes):
            found += [h, combine(before, h)]
        ends.append(len(found))
    return found, ends


def write_indices(
    codes: Sequence[Sequence[int | None]], tables: Sequence[Sequence[int] | None], missing: Sequence[int]
) -> NDArray[np.uint32]:
    """Hash of each code of c columns; a column without a table has hashes for codes. uint32[n, c]."""
    columns = []
    for column, table, null in zip(codes, tables, missing, strict=True):
        look_up: Callable[[int], int] = (lambda code: code) if table is None else table.__getitem__
        columns.append([null if code is None else look_up(code) for code in column])
    return np.array(columns, np.uint32).T


def write_pairs(
    cells: NDArray[np.uint32], left: Sequence[int], right: Sequence[int], seeds: Sequence[int]
) -> NDArray[np.uint32]:
    """Hash of two cells of each row (or of one, where ``left`` is -1) with each of c seeds; uint32[n, c]."""
    found = np.empty((len(cells), len(seeds)), np.uint32)
    for row, out in zip(cells.tolist(), found, strict=True):
        for k, (a, b, seed) in enumerate(zip(left, right, seeds, strict=True)):
            out[k] = combine(combine(seed, row[a]) if a >= 0 else seed, row[b])
    return found


def splitmix64(seed: int) -> Iterator[int]:
    """The random 64-bit integers of SplitMix64 (Steele, Lea, Flood 2014) from a seed on."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        x = state
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        yield x ^ x >> 31


def permutation(seed: int, n: int) -> NDArray[np.uint32]:
    """A random order of 0..n-1: i is put at a random place j <= i, and what was there goes to the end."""
    order: list[int] = []
    for i, x in enumerate(islice(splitmix64(seed), n)):
        j = (x >> 32) * (i + 1) >> 32
        order.append(i)
        order[i], order[j] = order[j], i
    return np.array(order, np.uint32)


def moments(X: NDArray[Any], w: NDArray[Any]) -> Floats:
    """Sums of w, w x, w x^2, w x^3 and w x^4 over each column's values that are not NaN, and of w over zeros.

    Of shape [6, p].
    """
    present = ~np.isnan(X)
    x, w = np.where(present, X, 0).astype(np.float64), w.astype(np.float64)
    return np.array([*(w @ (present * x**power) for power in range(5)), w @ (X == 0)])


def _encode(values: Floats, offset: Floats, fill: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cells of values (NaN: missing), and where they are infinite as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        cells = (values - offset).astype(np.float32)
    return np.where(np.isfinite(cells), cells, fill), np.isinf(cells)


def encode_columns(
    columns: Sequence[NDArray[Any]],
    present: Sequence[NDArray[np.bool_]],
    offsets: Floats,
    fills: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cells float32[n, c] of c columns of numbers with masks of what is not null, and infinite values a column."""
    values = np.array([np.where(m, x.astype(np.float64), np.nan) for x, m in zip(columns, present, strict=True)]).T
    cells, infinite = _encode(values, offsets, fills)
    return cells, infinite.sum(axis=0)


def encode_lists(
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    starts: NDArray[np.int64],
    present: NDArray[np.bool_],
    size: int,
    offsets: Floats,
    fills: NDArray[np.float32],
) -> tuple[NDArray[np.float32], int]:
    """Cells float32[n, size] of n lists, which lie in ``values`` from their starts on, and how many are infinite."""
    lists = np.full((len(starts), size), np.nan)
    child = np.where(valid, values.astype(np.float64), np.nan)
    lists[present] = child[starts[present, np.newaxis] + np.arange(size)]
    cells, infinite = _encode(lists, offsets, fills)
    return cells, int(infinite.sum())
