"""Scoring rows in the order in which they lie: losses, metrics, predictions. Streamed, in parallel, one result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import AllNullTarget, BadWeight, SchemaMismatch
from ..metrics import BinaryMetrics, RegressionMetrics
from ..model import Model, sigmoid
from .buffers import is_number
from .encode import Encoder, is_vector, require
from .rowgroups import Source
from .target import Target, sample_weights
from .threads import consecutive, ordered, parallel

#: Parts that are scored at once and merged in order: at most so many, and for metrics (the bins of a ROC AUC cost 8 ms
#: a part) each of at least so many rows. They follow from the data, so that the number of threads changes no digit.
PARTS, PART_ROWS = 16, 65_536


def model_encoder(model: Model, source: Source) -> Encoder:
    """Encoder of a model's features for a source.

    Raises
    ------
    MissingColumn
        The data lack a column of the model, or hold it with a type that is not of its kind.
    """
    schema = source.schema
    for column in model.spec.columns:
        require(schema, column.name, "the model's")
        kind = schema.field(column.name).type
        if not (is_number(kind) if column.kind == "number" else is_vector(kind)):
            raise SchemaMismatch(f"the model's column {column.name!r} is a {column.kind}, but the data hold {kind}.")
    return Encoder(model.spec)


def model_classes(model: Model) -> pa.Array | None:
    """Class labels of a model as an Arrow array."""
    return None if model.classes is None else pa.array(model.classes, pa.type_for_alias(model.class_type or "string"))


def encoded(
    source: Source, encoder: Encoder, row_group: int, extra: Sequence[str] = ()
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    """Record batches of a row group and their encoded rows (valid until the next)."""
    columns = list(dict.fromkeys([*encoder.columns, *extra]))
    where = source.describe(row_group)
    n = int(source.manifest.rows[row_group])
    if n == 0:
        return
    rows = encoder.new_rows(min(n, encoder.batch_rows))
    reader = source.open(row_group, columns, encoder.batch_rows)
    for batch in reader.read(n):
        yield batch, rows[: encoder.encode(batch, rows, where)]
    reader.finish()


def evaluate(
    source: Source, model: Model, *, target: str | None = None, weight: str | None = None, n_jobs: int = 1
) -> dict[str, Any]:
    """Metrics of a model on all rows with a target.

    Returns
    -------
    dict
        ``rows``, ``skipped_rows`` (no target), and ``log_loss``, ``roc_auc``, ``roc_auc_error``, ``accuracy`` or
        ``rmse``, ``mae``, ``r2``.

    Raises
    ------
    MissingColumn, SchemaMismatch
        See `model_encoder`; or there is no target.
    TargetError
        The target is null in all rows, not finite, or holds labels that the model does not know.
    BadWeight
        See `sample_weights`; or all weights are zero.
    """
    encoder = model_encoder(model, source)
    y = Target(target or model.target, model_classes(model))
    require(source.schema, y.name, "target")
    extra = [y.name] if weight is None else [y.name, weight]
    kind = BinaryMetrics if model.task == "classification" else RegressionMetrics

    def score(row_groups: range) -> Any:
        metrics = kind()
        for row_group in row_groups:
            where = source.describe(row_group)
            for batch, rows in encoded(source, encoder, row_group, extra):
                truth = y.codes(batch.column(y.name), where) if y.classes else y.numbers(batch.column(y.name), where)
                weights = None if weight is None else sample_weights(batch.column(weight), weight, where)
                known = ~np.isnan(truth)
                metrics.update(model.margins(rows)[known], truth[known], None if weights is None else weights[known])
        return metrics

    metrics = kind()
    parts = consecutive(source.manifest.n_row_groups, min(PARTS, 1 + source.manifest.n_rows // PART_ROWS))
    for part in ordered(score, parts, n_jobs):
        metrics.merge(part)
    result = metrics.compute()
    if not result["rows"]:
        raise AllNullTarget(
            f"target {y.name!r} is null in all {source.manifest.n_rows} rows: there is nothing to score."
        )
    if result["log_loss" if kind is BinaryMetrics else "rmse"] is None:
        raise BadWeight(f"weight column {weight!r} is 0 in every row with a target.")
    result["skipped_rows"] = source.manifest.n_rows - int(result["rows"] or 0)
    return result


def mean_loss(source: Source, model: Model, *, weight: str | None = None, n_jobs: int = 1) -> float:
    """Mean of the model's own loss: log loss, or half the squared error."""
    metrics = evaluate(source, model, weight=weight, n_jobs=n_jobs)
    return float(metrics["log_loss"] if model.task == "classification" else 0.5 * metrics["rmse"] ** 2)


def margins(source: Source, model: Model, n_jobs: int = 1) -> NDArray[np.float64]:
    """Margins of all rows of a source, in order; float64[n]."""
    encoder = model_encoder(model, source)
    out = np.empty(source.manifest.n_rows)
    ends = np.cumsum(source.manifest.rows)

    def fill(row_groups: range) -> None:
        for row_group in row_groups:
            place = int(ends[row_group] - source.manifest.rows[row_group])
            for _, rows in encoded(source, encoder, row_group):
                out[place : place + len(rows)] = model.margins(rows)
                place += len(rows)

    parts = consecutive(source.manifest.n_row_groups, PARTS)
    if len(parts) == 1:
        fill(parts[0])
    else:
        parallel(fill, parts, n_jobs)
    return out


def predictions(model: Model, margin: NDArray[np.float64]) -> dict[str, pa.Array]:
    """Output columns for margins: ``prediction``, and for classes the ``probability`` of the second."""
    classes = model_classes(model)
    if classes is None:
        return {"prediction": pa.array(margin)}
    labels = classes.take(pa.array((margin > 0).astype(np.int8)))
    return {"prediction": labels, "probability": pa.array(sigmoid(margin))}
