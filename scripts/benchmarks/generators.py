"""Tables of shards with fixed seeds: features, and a target ``y`` that depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NUMBERS = 28
#: As in the Criteo data: counts with gaps, hashed strings of which each column has so many different ones.
COUNTS, STRINGS = 13, 26
CARDINALITIES = np.geomspace(3, 1_000_000, STRINGS).round().astype(int)
#: Share of nulls of some of the columns of strings.
GAPS = {4: 0.03, 11: 0.1, 18: 0.3, 25: 0.45}
#: Share of clicks.
CLICKED = 0.25
VOCABULARY, WORDS_A_ROW, TELLING_WORDS = 50_000, 200, 2_000


def drawn(generator: np.random.Generator, margin: NDArray[Any]) -> NDArray[np.int8]:
    """Ones with the log-odds of a margin."""
    return (generator.random(len(margin)) < 1 / (1 + np.exp(-margin))).astype(np.int8)


def zipf(generator: np.random.Generator, n: int, cardinality: int, power: float) -> NDArray[np.int64]:
    """Codes of which the k-th has a probability in proportion to k^-power."""
    sums = np.cumsum(np.arange(1, cardinality + 1) ** -power)
    return np.minimum(np.searchsorted(sums / sums[-1], generator.random(n)), cardinality - 1)


def numbers(sizes: list[int]) -> Iterator[pa.Table]:
    """Normal features."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=NUMBERS) / 5
    for n in sizes:
        X = generator.normal(size=(n, NUMBERS)).astype(np.float32)
        y = drawn(generator, X @ weights)
        yield pa.table({**{f"x{j}": X[:, j] for j in range(NUMBERS)}, "y": y})


def wide(columns: int, sizes: list[int]) -> Iterator[pa.Table]:
    """Normal features, many of them."""
    for X, y in _normal(columns, sizes):
        yield pa.table({**{f"x{j}": X[:, j] for j in range(columns)}, "y": y})


def vectors(length: int, sizes: list[int]) -> Iterator[pa.Table]:
    """Lists of normal features."""
    for X, y in _normal(length, sizes):
        yield pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), length), "y": y})


def _normal(columns: int, sizes: list[int]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int8]]]:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(columns, np.float32) / np.float32(np.sqrt(columns))
    for n in sizes:
        X = generator.standard_normal((n, columns), np.float32)
        yield X, drawn(generator, X @ weights)


def classes(n_classes: int, sizes: list[int]) -> Iterator[pa.Table]:
    """Normal features of several classes, as softmax has them."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(NUMBERS, n_classes)) / 3
    for n in sizes:
        X = generator.standard_normal((n, NUMBERS), np.float32)
        y = np.argmax(X @ weights + generator.gumbel(size=(n, n_classes)), axis=1).astype(np.int32)
        yield pa.table({**{f"x{j}": X[:, j] for j in range(NUMBERS)}, "y": y})


def hexadecimal(column: int, cardinality: int) -> pa.Array:
    """Different strings of 8 hexadecimal digits: an odd factor modulo 2^32 takes no two numbers to one."""
    codes = np.arange(cardinality, dtype=np.uint64) * 2_654_435_761 + column * 0x9E3779B9
    digits = codes.astype(np.uint32).astype(">u4").tobytes().hex().encode()
    return pa.array(np.frombuffer(digits, "S8")).cast(pa.string())


def clicks(sizes: list[int]) -> Iterator[pa.Table]:
    """Counts with gaps, and strings of skewed frequencies; about a quarter are ones."""
    generator = np.random.default_rng(0)
    slopes = generator.normal(size=COUNTS) / 5
    values = [hexadecimal(j, cardinality) for j, cardinality in enumerate(CARDINALITIES)]
    effects = [generator.normal(size=cardinality) / 3 for cardinality in CARDINALITIES]
    bias = None
    for n in sizes:
        table: dict[str, Any] = {}
        margin = np.zeros(n)
        for j in range(COUNTS):
            count = np.exp(generator.normal(1 + j / 4, 1.5, n)).astype(np.int32)
            missing = generator.random(n) < 0.4 * j / (COUNTS - 1)
            margin += np.where(missing, 0.0, slopes[j] * np.log1p(count))
            table[f"i{j}"] = pa.array(count, mask=missing)
        for j, cardinality in enumerate(CARDINALITIES):
            codes = zipf(generator, n, cardinality, 1.05)
            missing = generator.random(n) < GAPS.get(j, 0.0)
            margin += np.where(missing, 0.0, effects[j][codes])
            table[f"c{j}"] = values[j].take(pa.array(codes, mask=missing))
        if bias is None:  # from the first shard
            bias = _bias(margin, CLICKED)
        yield pa.table({**table, "y": drawn(generator, margin + bias)})


def _bias(margin: NDArray[np.float64], share: float) -> float:
    """What to add to margins so that so many ones are expected, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(50):
        middle = (low + high) / 2
        if np.mean(1 / (1 + np.exp(-margin - middle))) < share:
            low = middle
        else:
            high = middle
    return low


def words(generator: np.random.Generator, n: int) -> NDArray[np.object_]:
    """Different made-up words of 3 to 10 letters, the short ones first: these will be the frequent ones."""
    letters = generator.integers(ord("a"), ord("z") + 1, (2 * n, 10), np.uint8)
    lengths = generator.integers(3, 11, 2 * n)
    drawn = (row[:length].tobytes().decode() for row, length in zip(letters, lengths, strict=True))
    return np.array(sorted(list(dict.fromkeys(drawn))[:n], key=len), dtype=object)


def text(sizes: list[int]) -> Iterator[pa.Table]:
    """Rows of words of Zipf's frequencies, some of which tell the class."""
    generator = np.random.default_rng(0)
    vocabulary = words(generator, VOCABULARY)
    effects = np.zeros(VOCABULARY)
    telling = generator.choice(VOCABULARY, TELLING_WORDS, replace=False)
    effects[telling] = generator.normal(size=TELLING_WORDS)
    for n in sizes:
        ends = np.cumsum(np.maximum(1, generator.poisson(WORDS_A_ROW, n)))
        codes = zipf(generator, int(ends[-1]), VOCABULARY, 1.0)
        starts = np.concatenate(([0], ends[:-1]))
        margin = np.add.reduceat(effects[codes], starts)
        rows = [" ".join(vocabulary[codes[start:stop]]) for start, stop in zip(starts, ends, strict=True)]
        yield pa.table({"review": rows, "y": drawn(generator, margin - margin.mean())})
