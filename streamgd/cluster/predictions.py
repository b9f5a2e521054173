"""Predictions for Dask DataFrames, lazily and in parallel."""

from __future__ import annotations

import copy
from typing import Any

import dask.base
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
from dask.delayed import delayed
from numpy.typing import NDArray

from ..data.columns import require
from ..data.evaluate import margins
from ..data.frames import frame_table
from ..data.table import TableSource
from ..model import Model


def lazy_predictions(frame: Any, model: Model) -> Any:
    """Predict the rows of a Dask DataFrame; nothing is computed yet.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        The rows; other columns than the model's are left unread where Dask can do so.
    model : Model
        What predicts.

    Returns
    -------
    dask.dataframe.Series
        Values of a regression, or class labels, with the index and the divisions of the frame, so that it can become
        one of its columns.

    Raises
    ------
    MissingColumn
        The frame lacks a column of the model.
    """
    return _predicted(frame, model, "prediction")


def lazy_probabilities(frame: Any, model: Model) -> Any:
    """Probabilities of the classes of the rows of a Dask DataFrame; nothing is computed yet.

    Returns
    -------
    dask.array.Array of float64, shape (nan, n_classes)
        In the order of the classes: an array, so that ``[:, 1]`` is what it is in scikit-learn.
    """
    return _predicted(frame, model, "probabilities")


def lazy_margins(frame: Any, model: Model) -> Any:
    """Margins of the rows of a Dask DataFrame; nothing is computed yet.

    Returns
    -------
    dask.dataframe.Series, or dask.array.Array of float64, shape (nan, n_classes)
        A margin a row as a series, several as an array; see `lazy_predictions` and `lazy_probabilities`.
    """
    return _predicted(frame, model, "margins")


def _predicted(frame: Any, model: Model, what: str) -> Any:
    labels = {str(label): label for label in frame.columns}
    sources = {name for column in model.spec.columns for name in column.sources}
    for name in sorted(sources):
        require(pa.schema([(label, pa.null()) for label in labels]), name, "the model's")
    columns = frame[[label for name, label in labels.items() if name in sources]]
    # A task of its own, so that it is sent to each worker once and not with each partition; less the table that
    # predicting makes of hashed weights, which may be many times their size.
    stripped = copy.copy(model)
    stripped.__dict__.pop("table", None)
    shared = delayed(stripped, name=f"model-{dask.base.tokenize(stripped)}")
    meta = _shape(stripped, np.empty((0, model.n_outputs)), pd.RangeIndex(0), what)
    return columns.map_partitions(_predict, shared, what, meta=meta, enforce_metadata=False)


def _predict(frame: Any, model: Model, what: str) -> Any:
    """Predictions for one partition."""
    if len(frame) == 0:
        return _shape(model, np.empty((0, model.n_outputs)), frame.index, what)
    table = _with_types(frame_table(frame), model)
    return _shape(model, margins(TableSource(table, table.num_rows), model), frame.index, what)


def _shape(model: Model, found: NDArray[np.float64], index: Any, what: str) -> Any:
    """Predictions of margins, with the index of the rows."""
    margin = found[:, 0] if found.ndim == 2 and model.n_outputs == 1 else found
    if what == "margins":
        return margin if margin.ndim == 2 else pd.Series(margin, index)
    if what == "probabilities":
        return model.probabilities(margin)
    if model.classes is None:
        return pd.Series(model.values(margin), index)
    return pd.Series(np.array(model.classes)[model.codes(margin)], index)


def _with_types(table: Any, model: Model) -> Any:
    """A table in which columns that are null throughout a partition, and so have no type, have one of the model's."""
    types = {"number": pa.float64(), "missing": pa.float64(), "vector": pa.list_(pa.float64()), "text": pa.string()}
    for column in model.spec.columns:
        for name in column.sources:
            place = table.schema.get_field_index(name)
            if pa.types.is_null(table.schema.field(place).type) and column.kind != "category":
                kind = types.get(column.kind, pa.timestamp("us"))
                table = table.set_column(place, name, pa.nulls(table.num_rows, kind))
    return table
