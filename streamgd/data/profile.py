"""What a seeded sample of row groups tells before training: lengths of lists, means, scales, missing shares.

The profile is frozen for the run and stored in the model, so nothing drifts and everything can be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import UnusableColumns
from ..features import Column, FeatureSpec
from ..kernels.moments import add_moments
from .encode import Encoder, feature_fields, is_number, vector_parts
from .labels import Labels
from .rowgroups import Source
from .shuffle import SAMPLE, random_order
from .threads import parallel

#: Rows up to which the sample is all rows.
WHOLE_SAMPLE_ROWS = 262_144
#: Else the sample is one piece of so many rows from each of so many row groups (a sixteenth of them, in bounds).
PIECE_ROWS = 16_384
SAMPLE_ROW_GROUPS = (8, 32)


@dataclass(frozen=True)
class Profile:
    """Features, their scales, and the labels.

    Attributes
    ----------
    columns : tuple of Column
        Columns that are features.
    mean, scale : ndarray of float64, shape (n_features,)
        Mean and standard deviation in the sample (1 for a constant).
    missing : ndarray of float64, shape (n_features,)
        Share of missing values in the sample.
    sampled : int
        Rows of the sample.
    labels : Labels
        The target.
    """

    columns: tuple[Column, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    missing: NDArray[np.float64]
    sampled: int
    labels: Labels


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
    wanted = min(max(len(filled) // 16, SAMPLE_ROW_GROUPS[0]), SAMPLE_ROW_GROUPS[1], len(filled))
    chosen = np.sort(filled[random_order(len(filled), seed, 0, SAMPLE)[:wanted]])
    places = random_order(1 << 16, seed, 1, SAMPLE) / (1 << 16)
    pieces = []
    for g, place in zip(chosen, places, strict=False):
        start = int(place * max(0, rows[g] - PIECE_ROWS))
        pieces.append((int(g), start, int(min(rows[g], start + PIECE_ROWS))))
    return pieces


def measure_scales(
    source: Source, columns: tuple[Column, ...], *, weight: str | None = None, seed: int, n_jobs: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """Mean, standard deviation and missing share of each feature in the sample, and its rows.

    Each piece is centred on a typical value of its own first, so that a mean far from 0 costs no digits; pieces are
    merged in their order, so that threads do not matter.
    """
    spec = FeatureSpec.raw(columns)
    n_features = spec.n_features

    def moments(piece: tuple[int, int, int]) -> tuple[Any, ...]:
        row_group, start, stop = piece
        raw = Encoder(spec, weight=weight)
        batch_rows = min(raw.batch_rows, PIECE_ROWS // 2)
        reader = source.open(row_group, raw.columns, batch_rows)
        reader.skip(start)
        centre = np.zeros(n_features)
        count, total, square = np.zeros((3, n_features))
        encoder, weights = None, 0.0
        for batch in reader.read(stop - start):
            if encoder is None:
                centre = raw.centres(batch)
                encoder = Encoder(FeatureSpec(columns, centre, spec.fill), weight=weight)
                rows = encoder.new_rows(batch_rows)
            n = encoder.encode(batch, rows, source.describe(row_group))
            w_cell = encoder.layout.w_cell
            add_moments(rows, n, w_cell, count, total, square)
            weights += float(n if w_cell < 0 else rows[:n, w_cell].sum(dtype=np.float64))
        present = np.where(count > 0, count, 1)
        return count, centre + total / present, np.maximum(square - total**2 / present, 0), weights

    pieces = sample_pieces(source.manifest.rows, seed)
    count, mean, spread = np.zeros((3, n_features))
    weights = 0.0
    for part_count, part_mean, part_spread, part_weights in parallel(moments, pieces, n_jobs):
        both = np.where(count + part_count > 0, count + part_count, 1)
        difference = np.where(part_count > 0, part_mean - mean, 0)
        spread += part_spread + difference**2 * count * part_count / both
        mean += difference * part_count / both
        count += part_count
        weights += part_weights
    sampled = sum(stop - start for _, start, stop in pieces)
    scale = np.sqrt(spread / np.where(count > 0, count, 1))
    return mean, np.where(scale > 0, scale, 1.0), 1 - count / max(weights, 1e-300), sampled
