"""Scoring rows in the order in which they lie: losses, metrics, predictions. Streamed, in parallel, one result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import AllNullTarget, BadWeight, DataError
from ..kernels.reference_losses import LOSSES as TWINS
from ..losses import LOSSES
from ..metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics
from ..model import Model, log_softmax
from .columns import check_columns, require
from .encode import Encoder
from .leftout import refuse_nothing
from .rowgroups import Source
from .target import Target, sample_weights
from .threads import consecutive, ordered, parallel

AnySource = TypeVar("AnySource", bound=Source)

#: Parts that are scored at once and merged in order: at most so many, and for metrics (the bins of a ROC AUC cost 8 ms
#: a part) each of at least so many rows. They follow from the data, so that the number of threads changes no digit.
PARTS, PART_ROWS = 16, 65_536


def model_encoder(model: Model, source: Source) -> Encoder:
    """Encoder of a model's features for a source.

    Raises
    ------
    MissingColumn, SchemaMismatch
        The data lack a column of the model, or hold it with a type that is not of its kind.
    """
    more = f" and {len(source.names) - 1:,} more shards" if len(source.names) > 1 else ""
    check_columns(model.spec.columns, source.schema, f"{source.names[0]}{more}", source.manifest.odd)
    return Encoder(model.spec)


def with_dictionaries(source: AnySource, model: Model) -> AnySource:
    """The source, whose categories come as dictionaries where it has them so."""
    return source.with_dictionaries(model.spec.dictionaries)


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
        texts: list[NDArray[np.uint32]] = []  # rows refer to them, so they live until the next
        yield batch, rows[: encoder.encode(batch, rows, where, texts)]
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
    encoder, source = model_encoder(model, source), with_dictionaries(source, model)

    def metrics_of() -> Any:
        if model.task == "regression":
            return RegressionMetrics()
        return BinaryMetrics() if model.n_outputs == 1 else MulticlassMetrics(model.n_outputs)

    def score(row_groups: range) -> Any:
        metrics = metrics_of()
        for row_group in row_groups:
            for margin, truth, weights in _scored(source, model, encoder, row_group, y, weight):
                scores = margin if model.task == "classification" else model.values(margin)
                metrics.update(log_softmax(scores) if scores.ndim == 2 else scores, truth, weights)
        return metrics

    y = Target(target or model.target, model_classes(model))
    require(source.schema, y.name, "target", source.manifest.odd)
    metrics = metrics_of()
    parts = consecutive(source.manifest.n_row_groups, min(PARTS, 1 + source.manifest.n_rows // PART_ROWS))
    for part in ordered(score, parts, n_jobs):
        metrics.merge(part)
    result: dict[str, Any] = metrics.compute()
    if not result["rows"]:
        raise AllNullTarget(
            f"target {y.name!r} is null in all {source.manifest.n_rows} rows: there is nothing to score."
        )
    if result["accuracy" if model.task == "classification" else "rmse"] is None:
        raise BadWeight(f"weight column {weight!r} is 0 in every row with a target.")
    if model.task == "classification" and LOSSES[model.loss].link != "logit":
        result["log_loss"] = None  # the margins are no log-odds
    result["skipped_rows"] = source.manifest.n_rows - int(result["rows"] or 0)
    return result


def _scored(
    source: Source, model: Model, encoder: Encoder, row_group: int, y: Target, weight: str | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[Any], NDArray[np.float64] | None]]:
    """Margins, targets and weights of the rows of a row group that have a target."""
    extra, where = [y.name] if weight is None else [y.name, weight], source.describe(row_group)
    for batch, rows in encoded(source, encoder, row_group, extra):
        truth = y.codes(batch.column(y.name), where) if y.classes else y.numbers(batch.column(y.name), where)
        weights = None if weight is None else sample_weights(batch.column(weight), weight, where)
        known = ~np.isnan(truth)
        margin = model.margins(rows, encoder.layout)
        yield margin[known], truth[known], None if weights is None else weights[known]


def mean_loss(
    source: Source, model: Model, loss_args: Sequence[float] = (0.0, 0.0), *, weight: str | None = None, n_jobs: int = 1
) -> float:
    """Mean of the model's own loss, in units of the target; ``loss_args`` are the loss's parameters in these units.

    Row groups that are bad are left out whole, if that is allowed (see `LeftOut`).
    """
    encoder, source = model_encoder(model, source), with_dictionaries(source, model)
    y = Target(model.target, model_classes(model))
    twin, args = TWINS[LOSSES[model.loss].code], np.array(loss_args)

    def score(row_groups: range) -> tuple[float, float, int]:
        sums = 0.0, 0.0, 0
        for row_group in row_groups:
            try:
                sums = add(row_group, *sums)
            except DataError as error:
                source.left_out.note(error, source.manifest, row_group)
        return sums

    def add(row_group: int, total: float, weight_sum: float, n: int) -> tuple[float, float, int]:
        for margin, truth, weights in _scored(source, model, encoder, row_group, y, weight):
            if margin.ndim == 2:
                value = -log_softmax(margin)[np.arange(len(truth)), truth.astype(np.intp)]
            else:
                value = twin(margin, truth.astype(np.float64), args)[0]
            weights = np.ones(len(truth)) if weights is None else weights
            total, weight_sum, n = total + float(weights @ value), weight_sum + float(weights.sum()), n + len(truth)
        return total, weight_sum, n

    parts = consecutive(source.manifest.n_row_groups, min(PARTS, 1 + source.manifest.n_rows // PART_ROWS))
    sums = np.array(list(ordered(score, parts, n_jobs))).sum(axis=0)
    if sums[2] == 0:
        refuse_nothing(source, source.left_out.row_groups)
        raise AllNullTarget(
            f"target {y.name!r} is null in all {source.manifest.n_rows} rows: there is nothing to score."
        )
    if not sums[1] > 0:
        raise BadWeight(f"weight column {weight!r} is 0 in every row with a target.")
    return float(sums[0] / sums[1])


def margins(source: Source, model: Model, n_jobs: int = 1) -> NDArray[np.float64]:
    """Margins of all rows of a source, in order; float64[n], or float64[n, n_outputs]."""
    encoder, source = model_encoder(model, source), with_dictionaries(source, model)
    n = source.manifest.n_rows
    out = np.empty(n if model.n_outputs == 1 else (n, model.n_outputs))
    ends = np.cumsum(source.manifest.rows)

    def fill(row_groups: range) -> None:
        for row_group in row_groups:
            place = int(ends[row_group] - source.manifest.rows[row_group])
            for _, rows in encoded(source, encoder, row_group):
                out[place : place + len(rows)] = model.margins(rows, encoder.layout)
                place += len(rows)

    parts = consecutive(source.manifest.n_row_groups, PARTS)
    if len(parts) == 1:
        fill(parts[0])
    else:
        parallel(fill, parts, n_jobs)
    return out


def predictions(model: Model, margin: NDArray[np.float64]) -> dict[str, pa.Array]:
    """Output columns for margins: ``prediction``, and for classes the probability of the second, or of each."""
    classes = model_classes(model)
    if classes is None:
        return {"prediction": pa.array(model.values(margin))}
    columns = {"prediction": classes.take(pa.array(model.codes(margin)))}
    probabilities = model.probabilities(margin)
    if probabilities is None:
        return columns
    if len(classes) == 2:
        return columns | {"probability": pa.array(probabilities[:, 1])}
    labels = [str(label) for label in model.classes or ()]
    return columns | {f"probability_{label}": pa.array(probabilities[:, k]) for k, label in enumerate(labels)}
