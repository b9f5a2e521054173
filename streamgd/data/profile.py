"""What a seeded sample of row groups tells before training: means, scales, missing shares, numbers of hashed features.

The profile is frozen for the run and stored in the model, so nothing drifts and everything can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..features import MOST_HASH_BITS
from ..kernels.moments import add_moments
from .encode import Encoder
from .moments import Floats, Moments, most_common
from .rowgroups import Source
from .shuffle import SAMPLE, random_order
from .threads import ordered

#: Rows up to which the sample is all rows.
WHOLE_SAMPLE_ROWS = 262_144
#: Else the sample is one piece of so many rows from each of so many row groups (one in 32, in bounds).
PIECE_ROWS = 16_384
#: Of wide rows it has fewer, so that all pieces hold no more numbers than these, but still so many rows: they tell a
#: mean to 2 % of a standard deviation.
MOST_NUMBERS, FEWEST_ROWS = 1 << 24, 4096
#: Nor does it open more row groups than hold so many numbers, but four: reading a little of one costs as much as most
#: of it, whose pages are decompressed whole.
MOST_OPENED, FEWEST_ROW_GROUPS = 1 << 26, 4
SAMPLE_ROW_GROUPS = (8, 32)
#: Of hashes that are more than so many in the sample, and of the n-grams of texts, those are counted that begin with
#: so many zero bits: one in 16.
MOST_COUNTED, ZEROS = 1 << 22, 4
#: What varies by less counts as constant: float32 could not hold the coefficient of a feature that is divided by it.
LEAST_SCALE = 1e-36
#: E x^4 / (E x^2)^2 of normal values, the longest tails whose steps are not shortened.
NORMAL_KURTOSIS = 3.0
#: A category is varied if more than this share of the values of a record batch are different.
VARIED = 0.3
#: Slots for each hashed feature: 16 while the table fits a processor's cache (2^18 slots of 16 bytes), else 4.
SLOTS, CACHED_SLOTS, CACHED_BITS = 4, 16, 18

_NONE = np.empty(0, np.uint32)


@dataclass(frozen=True)
class Scales:
    """What the sample told of the features.

    Attributes
    ----------
    mean, scale : ndarray of float64, shape (n_features,)
        Mean and standard deviation (1 for a constant) of dense features.
    magnitude : ndarray of float64, shape (n_features,)
        Typical distance from the mean of the values that matter, the root of E x^4 / E x^2: for a normal feature
        1.7 standard deviations, for a rare 0/1 feature 1, where a standard deviation would be far too small. It is
        at most what normal values as far from the most common one would have, or else the few largest of long-tailed
        values would shorten the steps of all others.
    missing : ndarray of float64, shape (n_features,)
        Share of missing values.
    distinct : int
        Estimated number of hashed features in all rows.
    words : float
        Mean number of n-grams a row.
    most_words : float
        The same in the piece of the sample that has most.
    varied : tuple of str
        Labels of categories most of whose values are different in a piece of the sample.
    sampled : int
        Rows of the sample.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    missing: NDArray[np.float64]
    distinct: int
    words: float
    most_words: float
    varied: tuple[str, ...]
    sampled: int

    def with_indicators(self, places: NDArray[np.int64]) -> Scales:
        """Scales with those of 0/1 features that say where the features at ``places`` are missing."""
        share = self.missing[places]
        spread = share * (1 - share)
        scale = np.sqrt(spread)
        return replace(
            self,
            mean=np.append(self.mean, share),
            scale=np.append(self.scale, np.where(scale > 0, scale, 1.0)),
            magnitude=np.append(self.magnitude, np.maximum(scale, np.sqrt(1 - 3 * spread))),
            missing=np.append(self.missing, np.zeros(len(places))),
        )

    @property
    def text_bytes(self) -> int:
        """Bytes of the hashes of n-grams a row, by the piece of the sample that has most."""
        return int(np.ceil(4 * self.most_words))

    def hash_bits(self) -> int:
        """Bits of hashes that keep collisions rare."""
        wanted = (max(1, self.distinct) * SLOTS - 1).bit_length()
        roomy = (max(1, self.distinct) * CACHED_SLOTS - 1).bit_length()
        return min(MOST_HASH_BITS, max(wanted, min(roomy, CACHED_BITS)))


def sample_pieces(rows: NDArray[np.int64], seed: int, row_cost: int = 1) -> list[tuple[int, int, int]]:
    """Pieces (row group, first row, end) of the seeded sample: all rows of small data, else a few row groups.

    A row costs as much as ``row_cost`` numbers. A piece lies anywhere in its row group, but of wide rows no further
    from its start than two pieces: what comes before is decoded, too.
    """
    most = max(FEWEST_ROWS, MOST_NUMBERS // row_cost)
    if rows.sum() <= min(WHOLE_SAMPLE_ROWS, most):
        return [(g, 0, int(n)) for g, n in enumerate(rows) if n]
    filled = np.flatnonzero(rows)
    wanted = min(max(len(filled) // 32, SAMPLE_ROW_GROUPS[0]), SAMPLE_ROW_GROUPS[1], len(filled))
    opened = int(MOST_OPENED / (row_cost * float(rows[filled].mean())))
    wanted = min(wanted, max(opened, FEWEST_ROW_GROUPS))
    chosen = np.sort(filled[random_order(len(filled), seed, 0, SAMPLE)[:wanted]])
    places = random_order(1 << 16, seed, 1, SAMPLE) / (1 << 16)
    pieces = []
    size = min(PIECE_ROWS, -(-most // wanted))
    for g, place in zip(chosen, places, strict=False):
        room = max(0, int(rows[g]) - size)
        start = int(place * (room if size == PIECE_ROWS else min(room, 2 * size)))
        pieces.append((int(g), start, int(min(rows[g], start + size))))
    return pieces


class _Batch(NamedTuple):
    """Moments of a record batch, its sum of weights, a value of each feature, and the weight of what equals it."""

    moments: Moments
    weight: float
    centre: Floats
    at_centre: Floats


class _Tally(NamedTuple):
    """Hashes and how often each occurs; ascending."""

    hashes: NDArray[np.uint32]
    times: NDArray[np.int64]

    @classmethod
    def of(cls, hashes: NDArray[np.uint32], zeros: int) -> _Tally:
        """Of the hashes that begin with so many zero bits."""
        return cls(*np.unique(hashes if zeros == 0 else hashes[hashes >> (32 - zeros) == 0], return_counts=True))

    def merge(self, other: _Tally) -> _Tally:
        """Of both."""
        hashes, place = np.unique(np.concatenate([self.hashes, other.hashes]), return_inverse=True)
        times = np.bincount(place, weights=np.concatenate([self.times, other.times]), minlength=len(hashes))
        return _Tally(hashes, times.astype(np.int64))


class _Counts(NamedTuple):
    """Hashes of categories and of n-grams; how many n-grams there are, in how many rows, and the most a row."""

    categories: _Tally
    grams: _Tally
    words: int = 0
    rows: int = 0
    most: float = 0.0
    varied: tuple[bool, ...] = ()

    def merge(self, other: _Counts) -> _Counts:
        """Of both."""
        words, rows = self.words + other.words, self.rows + other.rows
        most = max(self.most, other.most)
        varied = self.varied or other.varied
        return _Counts(
            self.categories.merge(other.categories), self.grams.merge(other.grams), words, rows, most, varied
        )


_NOTHING = _Counts(_Tally(_NONE, np.empty(0, np.int64)), _Tally(_NONE, np.empty(0, np.int64)))


def _expected(times: NDArray[np.int64], share: float) -> float:
    """Number of distinct values in all rows from how often each occurs in a share of them (Chao 1984, bounded)."""
    once, twice = float((times == 1).sum()), float((times == 2).sum())
    if share >= 1 or once == 0:
        return float(len(times))
    return min(len(times) + once * (once - 1) / (2 * (twice + 1)), len(times) - once + once / share)


def measure_scales(source: Source, encoder: Encoder, *, seed: int, n_jobs: int = 1) -> Scales:
    """Moments of each dense feature over the sample, and counts of hashed ones.

    Each record batch is centred on a typical value of its own first, so that a mean far from 0 costs no digits, not
    even where a column has no values before; batches are merged in their order, so that threads do not matter.
    Row groups that are bad where the sample lies are left out of the whole job, if that is allowed (see `LeftOut`).

    Parameters
    ----------
    source : Source
        The data.
    encoder : Encoder
        With a raw specification of the features (`FeatureSpec.raw`).
    seed : int
        Of the sample.
    n_jobs : int
        Threads.
    """
    pieces = sample_pieces(source.manifest.rows, seed, encoder.row_cost)
    wanted = sum(stop - start for _, start, stop in pieces)
    zeros = 0 if wanted * encoder.layout.n_index <= MOST_COUNTED else ZEROS
    errors: list[DataError] = []

    def measure(piece: tuple[int, int, int]) -> tuple[int, list[_Batch], _Counts]:
        row_group, start, stop = piece
        try:
            return stop - start, *_piece(source, encoder, piece, zeros)
        except DataError as error:
            source.left_out.note(error, source.manifest, row_group, whole=True)
            errors.append(error)
            return 0, [], _NOTHING

    moments, weights, counts, sampled = Moments.none(encoder.spec.n_features), 0.0, _NOTHING, 0
    common: list[tuple[Floats, Floats]] = []
    for rows, batches, found in ordered(measure, pieces, n_jobs):
        sampled += rows
        counts = counts.merge(found)
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that float32 does not hold are refused later
            for batch in batches:
                moments, weights = moments.merge(batch.moments), weights + batch.weight
                common.append((batch.centre, batch.at_centre))
    if errors and not sampled:
        raise errors[0]
    total = np.where(moments.weight > 0, moments.weight, 1)
    scale = np.sqrt(moments.second / total)
    magnitude = np.maximum(scale, np.sqrt(moments.fourth / np.where(moments.second > 0, moments.second, 1)))
    if common and encoder.spec.n_features:
        others = moments.weight - most_common(*map(np.array, zip(*common, strict=True)))
        tail = np.sqrt(NORMAL_KURTOSIS * moments.second / np.where(others > 0, others, 1))
        magnitude = np.where(others > 0, np.minimum(magnitude, tail), magnitude)
    hashed = zip(encoder.spec.group("index"), counts.varied, strict=False)
    share = sampled / source.manifest.n_rows
    distinct = _expected(counts.categories.times, share) * (1 << zeros)
    distinct += _expected(counts.grams.times, share) * (1 << ZEROS)
    return Scales(
        mean=moments.mean,
        scale=np.where(scale > LEAST_SCALE, scale, 1.0),
        magnitude=np.where(magnitude > LEAST_SCALE, magnitude, 1.0),
        missing=np.clip(1 - moments.weight / max(weights, 1e-300), 0, 1),
        distinct=int(distinct),
        words=counts.words / max(1, counts.rows),
        most_words=counts.most,
        varied=tuple(column.label for column, often in hashed if often and column.kind == "category"),
        sampled=sampled,
    )


def _piece(source: Source, encoder: Encoder, piece: tuple[int, int, int], zeros: int) -> tuple[list[_Batch], _Counts]:
    """What each record batch of a piece tells, and counts of the piece."""
    row_group, start, stop = piece
    layout = encoder.layout
    batch_rows = min(encoder.batch_rows, PIECE_ROWS // 2, max(stop - start, 256))
    rows = encoder.new_rows(batch_rows)
    reader = source.open(row_group, encoder.columns, batch_rows)
    reader.skip(start)
    told, counts = [], _NOTHING
    for batch in reader.read(stop - start):
        centre, sums = encoder.centres(batch), np.zeros((6, encoder.spec.n_features))
        centred = replace(encoder, spec=replace(encoder.spec, offset=centre))
        texts: list[NDArray[np.uint32]] = []
        n = centred.encode(batch, rows, source.describe(row_group), texts)
        add_moments(rows, n, layout.w_cell, sums)
        weight = float(n if layout.w_cell < 0 else rows[:n, layout.w_cell].sum(dtype=np.float64))
        told.append(_Batch(Moments.about(centre, sums[:5]), weight, centre, sums[5]))
        hashes = rows.view(np.uint32)[:n, layout.width : layout.text_cell]
        categories = _Tally.of(hashes.ravel(), zeros)
        words = np.concatenate([_NONE, *texts])
        varied = () if counts.rows else tuple(len(np.unique(column)) > VARIED * n for column in hashes.T)
        counts = counts.merge(
            _Counts(categories, _Tally.of(words, ZEROS), len(words), n, len(words) / max(1, n), varied)
        )
    return told, counts
