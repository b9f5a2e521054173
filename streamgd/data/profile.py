"""What a seeded sample of row groups tells before training: means, scales, missing shares, numbers of hashed features.

The profile is frozen for the run and stored in the model, so nothing drifts and everything can be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import DataError
from ..features import MOST_HASH_BITS, FeatureSpec
from ..kernels.moments import add_moments
from ..slotorder import MOST_COMMON
from .blocks import BlockReader
from .buffers import NARROW
from .encode import Encoder
from .moments import Floats, Moments, most_common
from .rowgroups import Source
from .shuffle import SAMPLE, random_order
from .threads import ordered
from .vectors import column_middles

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
MOST_COUNTED, ZEROS = 1 << 20, 4
#: What varies by less counts as constant: float32 could not hold the coefficient of a feature that is divided by it.
LEAST_SCALE = 1e-36
#: E x^4 / (E x^2)^2 of normal values, the longest tails whose steps are not shortened.
NORMAL_KURTOSIS = 3.0
#: A category is varied if more than this share of the values of a record batch are different.
VARIED = 0.3
#: Slots for each hashed feature: 16 while the table fits a processor's cache (2^18 slots of 16 bytes), else 4.
SLOTS, CACHED_SLOTS, CACHED_BITS = 4, 16, 18

#: Types of which float32 holds every value.
_EXACT = (*NARROW, pa.float32())
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
    common : ndarray of uint32
        The most common hashes of categories, the most common first; none where rows cannot hold places of slots.
    common_rows : ndarray of uint32
        How many rows of the sample have each of them.
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
    common: NDArray[np.uint32]
    common_rows: NDArray[np.uint32]

    def with_common(self, most: int) -> Scales:
        """The same with no more than so many of the most common hashes."""
        return replace(self, common=self.common[:most], common_rows=self.common_rows[:most])

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

    def most(self, n: int) -> _Tally:
        """Of n that occur most often, at most."""
        if len(self.hashes) <= n:
            return self
        return self.of_these(np.sort(self.by_times()[:n]))

    def by_times(self) -> NDArray[np.int64]:
        """Numbers of the hashes, that which occurs most often first."""
        return np.argsort(-self.times, kind="stable")

    def of_these(self, numbers: NDArray[np.int64]) -> _Tally:
        """Of the hashes with some numbers."""
        return _Tally(self.hashes[numbers], self.times[numbers])

    def beginning(self, zeros: int) -> _Tally:
        """Of those that begin with so many zero bits, which come first."""
        n = len(self.hashes) if zeros == 0 else np.count_nonzero(self.hashes >> (32 - zeros) == 0)
        return _Tally(self.hashes[:n], self.times[:n])

    @classmethod
    def sum(cls, tallies: Sequence[_Tally]) -> _Tally:
        """Of all together."""
        # Sorted as one number each: several times as fast as by the order of the hashes.
        words = np.concatenate([one.hashes.astype(np.uint64) << 32 | one.times.astype(np.uint64) for one in tallies])
        words.sort()
        hashes, times = (words >> 32).astype(np.uint32), (words & 0xFFFFFFFF).astype(np.int64)
        starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
        return cls(hashes[starts], np.add.reduceat(times, starts) if len(starts) else times)


class _Counts(NamedTuple):
    """Of a piece: hashes of categories and of n-grams; how many n-grams and rows there are, and which are varied.

    ``often`` are the most common hashes of categories, with all beginnings, if an order is made of them.
    """

    often: _Tally
    categories: _Tally
    grams: _Tally
    words: int
    rows: int
    varied: tuple[bool, ...]

    @property
    def mean(self) -> float:
        """N-grams a row."""
        return self.words / max(1, self.rows)


def _most_common(counts: Sequence[_Counts]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The hashes that occur most often, and more than once, and how often; the most common first."""
    if not counts:
        return _NONE, _NONE
    tally = _Tally.sum([one.often for one in counts])
    again = tally.of_these(np.flatnonzero(tally.times > 1))
    found = again.of_these(again.by_times()[:MOST_COMMON])
    return found.hashes, found.times.astype(np.uint32)


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
    dense, hashed = _parts(encoder)
    moments_of = _moments_of_exact if _is_exact(source, dense) else _moments

    def measure(piece: tuple[int, int, int]) -> tuple[int, list[_Batch], _Counts | None]:
        row_group, start, stop = piece
        try:
            told = moments_of(source, dense, piece) if dense.columns else []
            found = _counts(source, hashed, piece, zeros, encoder.is_orderable) if hashed is not None else None
            return stop - start, told, found
        except DataError as error:
            source.left_out.note(error, source.manifest, row_group, whole=True)
            errors.append(error)
            return 0, [], None

    moments, weights, sampled = Moments.none(encoder.spec.n_features), 0.0, 0
    counts, common = list[_Counts](), list[tuple[Floats, Floats]]()
    for rows, batches, found in ordered(measure, pieces, n_jobs):
        sampled += rows
        counts += [found] if found is not None else []
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
    share, distinct = sampled / source.manifest.n_rows, 0.0
    if counts:
        distinct = _expected(_Tally.sum([one.categories for one in counts]).times, share) * (1 << zeros)
        distinct += _expected(_Tally.sum([one.grams for one in counts]).times, share) * (1 << ZEROS)
    often, often_rows = _most_common(counts)
    labels = zip(encoder.spec.group("index"), counts[0].varied if counts else (), strict=False)
    return Scales(
        mean=moments.mean,
        scale=np.where(scale > LEAST_SCALE, scale, 1.0),
        magnitude=np.where(magnitude > LEAST_SCALE, magnitude, 1.0),
        missing=np.clip(1 - moments.weight / max(weights, 1e-300), 0, 1),
        distinct=int(distinct),
        words=sum(one.words for one in counts) / max(1, sum(one.rows for one in counts)),
        most_words=max((one.mean for one in counts), default=0.0),
        varied=tuple(column.label for column, many in labels if many and column.kind == "category"),
        sampled=sampled,
        common=often,
        common_rows=often_rows,
    )


def _parts(encoder: Encoder) -> tuple[Encoder, Encoder | None]:
    """Encoders of the dense features alone, and of the hashed ones, with what gives them values."""
    spec = encoder.spec
    scaled = {column.parts[0] for column in spec.group("scaled")}
    hashed = [
        column for column in spec.columns if column.group != "dense" or scaled.intersection(column.feature_names())
    ]
    dense = replace(encoder, spec=FeatureSpec.raw(spec.group("dense")))
    return dense, replace(encoder, spec=FeatureSpec.raw(hashed), weight=None, class_weight=None) if hashed else None


def _is_exact(source: Source, encoder: Encoder) -> bool:
    """Whether float32 holds the numbers of all features as they are."""
    types = {field.name: field.type for field in source.schema}
    return all(column.kind == "number" and types[column.name] in _EXACT for column in encoder.spec.columns)


def _moments(source: Source, encoder: Encoder, piece: tuple[int, int, int]) -> list[_Batch]:
    """What each record batch of a piece tells of dense features."""
    row_group, start, stop = piece
    batch_rows = _batch_rows(encoder, piece)
    rows = encoder.new_rows(batch_rows)
    reader = source.open(row_group, encoder.columns, batch_rows)
    reader.skip(start)
    told = []
    for batch in reader.read(stop - start):
        centre = encoder.centres(batch)
        centred = replace(encoder, spec=replace(encoder.spec, offset=centre))
        n = centred.encode(batch, rows, source.describe(row_group), [])
        told.append(_summed(encoder, rows[:n], centre))
    return told


def _moments_of_exact(source: Source, encoder: Encoder, piece: tuple[int, int, int]) -> list[_Batch]:
    """The same of numbers that float32 holds: they come without Arrow, and are centred then."""
    row_group, start, stop = piece
    rows = encoder.new_rows(min(encoder.batch_rows, stop - start))
    reader = BlockReader(source, encoder, row_group, encoder.recipe)
    reader.skip(start)
    told = []
    while reader.done < stop:
        n = sum(len(block.encoded) for block in reader.read(min(len(rows), stop - reader.done), rows))
        numbers = rows[:n, : encoder.spec.n_features]
        centre = column_middles(numbers)
        numbers -= centre.astype(np.float32)
        told.append(_summed(encoder, rows[:n], centre))
    return told


def _summed(encoder: Encoder, rows: NDArray[np.float32], centre: NDArray[np.float64]) -> _Batch:
    """What encoded rows tell from which a centre is subtracted."""
    sums, w_cell = np.zeros((6, encoder.spec.n_features)), encoder.layout.w_cell
    add_moments(rows, len(rows), w_cell, sums)
    weight = float(len(rows) if w_cell < 0 else rows[:, w_cell].sum(dtype=np.float64))
    return _Batch(Moments.about(centre, sums[:5]), weight, centre, sums[5])


def _counts(source: Source, encoder: Encoder, piece: tuple[int, int, int], zeros: int, orderable: bool) -> _Counts:
    """Counts of the hashes of a piece; the most common ones of categories, too, if they are ``orderable``."""
    row_group, start, stop = piece
    layout, rows = encoder.layout, encoder.new_rows(_batch_rows(encoder, piece))
    reader = BlockReader(source, encoder, row_group, encoder.recipe)
    reader.skip(start)
    hashes, words, varied, n = list[NDArray[np.uint32]](), list[NDArray[np.uint32]](), list[bool](), 0
    while reader.done < stop:
        for block in reader.read(min(len(rows), stop - reader.done), rows):
            words += block.texts
            n += len(block.encoded)
            found = block.encoded.view(np.uint32)[:, layout.width : layout.text_cell].T.copy()
            hashes.append(found.ravel())
            varied = varied or (_distinct(found) > VARIED * len(block.encoded)).tolist()
    grams = np.concatenate([_NONE, *words])
    found = np.concatenate([_NONE, *hashes])
    every = _Tally.of(found, 0 if orderable else zeros)
    often, categories = (every.most(MOST_COMMON), every.beginning(zeros)) if orderable else (_Tally.of(_NONE, 0), every)
    return _Counts(often, categories, _Tally.of(grams, ZEROS), len(grams), n, tuple(varied))


def _distinct(hashes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Number of different hashes in each row."""
    ascending = np.sort(hashes, axis=1)
    found: NDArray[np.int64] = (ascending[:, 1:] != ascending[:, :-1]).sum(axis=1) + (hashes.shape[1] > 0)
    return found


def _batch_rows(encoder: Encoder, piece: tuple[int, int, int]) -> int:
    """Rows of a piece that are encoded at a time."""
    return min(encoder.batch_rows, PIECE_ROWS // 2, max(piece[2] - piece[1], 256))
