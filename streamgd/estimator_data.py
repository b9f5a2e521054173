"""The way from what a user has (paths, tables, arrays, DataFrames) to a source.

Arrays and DataFrames become in-memory tables and go the same way as shards, so there is one path to test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from .data.frames import features_table, frame_table, is_dask_frame, is_mixed, is_stored, unused_name, with_target
from .data.leftout import OnError
from .data.rowgroups import Source
from .data.source import as_source
from .data.table import TableSource
from .data.threads import available_cpus
from .errors import ConfigError
from .features import Column
from .model import Model

#: Parameters that name columns.
COLUMN_PARAMETERS = ("drop", "categorical", "text", "calendar")
#: Name of the features of an array without names.
FEATURES = "X"
_TARGET, _WEIGHT = "y", "sample_weight"


class Sourced(BaseEstimator):  # type: ignore[misc]
    """What an estimator knows of rows."""

    _task: Any
    n_jobs: Any
    on_error: Any
    model_: Model
    _by_name = False

    @property
    def _jobs(self) -> Any:
        """Threads."""
        return available_cpus() if self.n_jobs in (None, -1) else self.n_jobs

    def _training_source(
        self,
        X: Any,
        y: Any,
        weight: Any,
        *,
        reset: bool,
        columns: tuple[Column, ...] | None = None,
        strict: bool = False,
        client: Any = None,
    ) -> tuple[Source, str, str | None]:
        """The source, and the names of its target and weight columns; ``columns`` are those that a model knows.

        A ``strict`` source leaves nothing out, whatever ``on_error`` says; ``client`` is of who computes Dask
        DataFrames.
        """
        X = with_target(X, y)
        if reset:
            self._by_name = is_stored(X)
        if is_stored(X):
            if not isinstance(y, str):
                raise ConfigError(
                    f"y is of type {type(y).__name__}; with shards, tables or Dask it is the name of the target column."
                )
            if weight is not None and not isinstance(weight, str):
                raise ConfigError("with shards or tables sample_weight is the name of a column.")
            return self._stored(X, None if strict else self.on_error, client), y, weight
        if is_mixed(X) or (hasattr(X, "columns") and self._names_columns()):
            return self._frame_source(X, y, weight)
        if self._names_columns():
            raise ConfigError(
                "drop, categorical, text, calendar, interactions and missing_indicator are for columns with names: "
                "give shards, an Arrow table or a DataFrame."
            )
        named = hasattr(X, "columns")
        checked, y = validate_data(
            self,
            X,
            y,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            y_numeric=self._task == "regression",
            reset=reset,
        )
        if self._task == "classification":
            check_classification_targets(y)
        if columns is None:
            names = list(self.feature_names_in_) if named and hasattr(self, "feature_names_in_") else []
            unnamed = Column(FEATURES, "vector", checked.shape[1])
            columns = tuple(Column(name, "number") for name in names) or (unnamed,)
        table = features_table(checked, columns)
        target, weight_name = unused_name(table, _TARGET), None
        table = table.append_column(target, pa.array(y))
        if weight is not None:
            weight_name = unused_name(table, _WEIGHT)
            weights = _check_sample_weight(weight, checked, ensure_non_negative=True)
            table = table.append_column(weight_name, pa.array(weights))
        return TableSource(table), target, weight_name

    def _names_columns(self) -> bool:
        return any(bool(getattr(self, name)) for name in (*COLUMN_PARAMETERS, "interactions", "missing_indicator"))

    def _frame_source(self, X: Any, y: Any, weight: Any) -> tuple[Source, str, str | None]:
        """A DataFrame whose columns are not all numbers, as a table."""
        table = frame_table(X)
        target, weight_name = unused_name(table, _TARGET), None
        y = column_or_1d(y, warn=True)
        if len(y) != table.num_rows:
            raise ValueError(f"X has {table.num_rows} rows and y has {len(y)}; they must be as many.")
        if self._task == "classification":
            check_classification_targets(y)
        table = table.append_column(target, pa.array(y))
        if weight is not None:
            weight_name = unused_name(table, _WEIGHT)
            rows = np.empty((table.num_rows, 1))
            table = table.append_column(weight_name, pa.array(_check_sample_weight(weight, rows, dtype=np.float64)))
        return TableSource(table), target, weight_name

    def _stored(self, data: Any, on_error: OnError | None = None, client: Any = None) -> Source:
        if is_dask_frame(data):
            from .cluster.frames import FrameSource

            return FrameSource(data, client=client, on_error=on_error)
        return as_source(data, self._jobs, on_error)

    def _validation_source(self, validation: Any, weight: str | None, client: Any = None) -> Source:
        if is_stored(validation):
            return self._stored(validation, self.on_error, client)
        if not isinstance(validation, tuple) or len(validation) not in (2, 3):
            raise ConfigError("validation is neither shards nor a tuple (X, y) or (X, y, sample_weight).")
        X, y, weights = validation if len(validation) == 3 else (*validation, None)
        if weights is None and weight is not None:
            weights = np.ones(len(y))
        return self._training_source(X, y, weights, reset=False)[0]

    def _source(self, X: Any) -> Source:
        """Rows to predict."""
        if is_stored(X):
            return self._stored(X)
        # A model that was loaded knows its columns, but not the parameters that chose them.
        by_name = not hasattr(self, "_job") or self._names_columns() or self._by_name
        if is_mixed(X) or (hasattr(X, "columns") and by_name):
            return TableSource(frame_table(X))
        checked = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=False)
        return TableSource(features_table(checked, self.model_.spec.columns))
