"""What a seeded sample of row groups tells before training: lengths of lists, means, scales, missing shares.

The profile is frozen for the run and stored in the model, so nothing drifts and everything can be resumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import UnusableColumns
from ..features import Column, FeatureSpec
from ..kernels.moments import add_moments
from .buffers import is_number
from .encode import Encoder, feature_fields, vector_parts
from .moments import Moments
from .rowgroups import Source
from .shuffle import SAMPLE, random_order
from .threads import parallel

#: Rows up to which the sample is all rows.
WHOLE_SAMPLE_ROWS = 262_144
#: Else the sample is one piece of so many rows from each of so many row groups (one in 32, in bounds).
PIECE_ROWS = 16_384
SAMPLE_ROW_GROUPS = (8, 32)


@dataclass(frozen=True)
class Scales:
    """What the sample told of the features.

    Attributes
    ----------
    mean, scale : ndarray of float64, shape (n_features,)
        Mean and standard deviation (1 for a constant).
    magnitude : ndarray of float64, shape (n_features,)
        Typical distance from the mean of the values that matter, the root of E x^4 / E x^2: for a normal feature
        1.7 standard deviations, for a rare 0/1 feature 1, where a standard deviation would be far too small.
    missing : ndarray of float64, shape (n_features,)
        Share of missing values.
    sampled : int
        Rows of the sample.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    missing: NDArray[np.float64]
    sampled: int


def find_columns(
    source: Source,
    *,
    target: str | None = None,
    weight: str | None = None,
    drop: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> tuple[Column, ...]:
    """Columns that are features; the length of lists comes from the first list that is not null.

    Raises
    ------
    MissingColumn, UnusableColumns
        See `feature_fields`.
    """
    fields = feature_fields(source.schema, target, weight, drop, only)
    return tuple(
        Column(field.name, "number") if is_number(field.type) else Column(field.name, "vector", _length(source, field))
        for field in fields
    )


def _length(source: Source, field: pa.Field) -> int:
    length = _first_length(source, field)
    if length == 0:
        raise UnusableColumns(f"column {field.name!r} holds lists of length 0: drop it.")
    return length


def _first_length(source: Source, field: pa.Field) -> int:
    if pa.types.is_fixed_size_list(field.type):
        return int(field.type.list_size)
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, [field.name], 1024)
        for batch in reader.read(int(source.manifest.rows[row_group])):
            _, _, present, lengths = vector_parts(batch.column(0))
            if present.any():
                return int(lengths[np.argmax(present)])
    raise UnusableColumns(f"column {field.name!r} is null in every row, so its lists have no length: drop it.")


def sample_pieces(rows: NDArray[np.int64], seed: int) -> list[tuple[int, int, int]]:
    """Pieces (row group, first row, end) of the seeded sample: all rows of small data, else a few row groups."""
    if rows.sum() <= WHOLE_SAMPLE_ROWS:
        return [(g, 0, int(n)) for g, n in enumerate(rows) if n]
    filled = np.flatnonzero(rows)
    wanted = min(max(len(filled) // 32, SAMPLE_ROW_GROUPS[0]), SAMPLE_ROW_GROUPS[1], len(filled))
    chosen = np.sort(filled[random_order(len(filled), seed, 0, SAMPLE)[:wanted]])
    places = random_order(1 << 16, seed, 1, SAMPLE) / (1 << 16)
    pieces = []
    for g, place in zip(chosen, places, strict=False):
        start = int(place * max(0, rows[g] - PIECE_ROWS))
        pieces.append((int(g), start, int(min(rows[g], start + PIECE_ROWS))))
    return pieces


def measure_scales(
    source: Source,
    columns: tuple[Column, ...],
    *,
    weight: str | None = None,
    weight_scale: float = 1.0,
    seed: int,
    n_jobs: int = 1,
) -> Scales:
    """Moments of each feature over the sample.

    Each record batch is centred on a typical value of its own first, so that a mean far from 0 costs no digits, not
    even where a column has no values before; batches are merged in their order, so that threads do not matter.
    """
    pieces = sample_pieces(source.manifest.rows, seed)
    parts = parallel(
        lambda piece: list(_moments(source, Encoder(FeatureSpec.raw(columns), None, weight, weight_scale), piece)),
        pieces,
        n_jobs,
    )
    moments, weights = Moments.none(sum(column.size for column in columns)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that float32 does not hold are refused later
        for part, weight_sum in itertools.chain.from_iterable(parts):
            moments, weights = moments.merge(part), weights + weight_sum
    total = np.where(moments.weight > 0, moments.weight, 1)
    scale = np.sqrt(moments.second / total)
    magnitude = np.maximum(scale, np.sqrt(moments.fourth / np.where(moments.second > 0, moments.second, 1)))
    return Scales(
        mean=moments.mean,
        scale=np.where(scale > 0, scale, 1.0),
        magnitude=np.where(magnitude > 0, magnitude, 1.0),
        missing=np.clip(1 - moments.weight / max(weights, 1e-300), 0, 1),
        sampled=sum(stop - start for _, start, stop in pieces),
    )


def _moments(source: Source, encoder: Encoder, piece: tuple[int, int, int]) -> Iterator[tuple[Moments, float]]:
    """Moments of each record batch of a piece, and its sum of weights."""
    row_group, start, stop = piece
    batch_rows = min(encoder.batch_rows, PIECE_ROWS // 2)
    rows = encoder.new_rows(batch_rows)
    reader = source.open(row_group, encoder.columns, batch_rows)
    reader.skip(start)
    w_cell = encoder.layout.w_cell
    for batch in reader.read(stop - start):
        centre, sums = encoder.centres(batch), np.zeros((5, encoder.spec.n_features))
        centred = replace(encoder, spec=replace(encoder.spec, offset=centre))
        n = centred.encode(batch, rows, source.describe(row_group))
        add_moments(rows, n, w_cell, sums)
        yield Moments.about(centre, sums), float(n if w_cell < 0 else rows[:n, w_cell].sum(dtype=np.float64))
