"""What users hand over as rows: paths and tables, DataFrames, arrays; made Arrow tables."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ConfigError
from ..features import Column


def is_stored(data: Any) -> bool:
    """Whether data are shards, Arrow tables or Dask DataFrames, whose target is a column, and not an array."""
    if is_dask_frame(data) or isinstance(data, str | os.PathLike | pa.Table | pa.RecordBatch):
        return True
    if isinstance(data, list | tuple) and len(data) > 0:
        return all(isinstance(item, str | os.PathLike) for item in data)
    return hasattr(data, "files") and hasattr(data, "filesystem")


def is_dask_frame(data: Any) -> bool:
    """Whether data are a Dask DataFrame; Dask is not imported for it."""
    return any(kind.__module__.startswith("dask.dataframe") for kind in type(data).__mro__) and data.ndim == 2


def is_mixed(X: Any) -> bool:
    """Whether data are a DataFrame with columns that are no numbers."""
    if not hasattr(X, "columns") or not hasattr(X, "dtypes"):
        return False
    kinds = X.dtypes if isinstance(X.dtypes, list) else list(X.dtypes)
    return any(getattr(kind, "kind", "O") not in "iufb" and not _is_numeric(kind) for kind in kinds)


def _is_numeric(kind: Any) -> bool:
    """Whether a column's type of polars, or an extension type of pandas, is one of numbers."""
    numeric = getattr(kind, "is_numeric", None)
    return bool(numeric()) if callable(numeric) else bool(getattr(kind, "_is_numeric", False))


def frame_table(X: Any) -> pa.Table:
    """A DataFrame of pandas, polars or their like as an Arrow table."""
    try:
        if hasattr(X, "to_arrow"):
            return X.to_arrow()
        return pa.Table.from_pandas(X, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, AttributeError) as error:
        raise ConfigError(f"X cannot be made an Arrow table: {error}. Give each column values of one type.") from error


def with_target(X: Any, y: Any) -> Any:
    """A DataFrame whose target is the name of one of its columns, as the Arrow table that it is then; else X itself.

    Raises
    ------
    ConfigError
        The name is not that of a column; or the frame has two of one name, or is still to be computed.
    """
    if is_stored(X):
        return X
    if type(X).__name__ == "LazyFrame":
        raise ConfigError("X is a LazyFrame, whose rows are still to be computed: give X.collect().")
    names = list(getattr(X, "columns", ()))
    if len(set(names)) < len(names):
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        raise ConfigError(f"X has more than one column called {', '.join(twice)}; rename all but one.")
    if not isinstance(y, str):
        return X
    if y not in names or not hasattr(X, "dtypes"):
        has = f"which has no such column, but {', '.join(map(str, names))}" if names else "whose columns have no names"
        raise ConfigError(f"y is {y!r}, the name of a column, and X is a {type(X).__name__}, {has}.")
    return frame_table(X)


def features_table(X: NDArray[Any], columns: tuple[Column, ...]) -> pa.Table:
    """A table of features that lie side by side in an array."""
    arrays, first = {}, 0
    for column in columns:
        cells = np.ascontiguousarray(X[:, first : first + column.size])
        flat, first = pa.array(cells.ravel()), first + column.size
        arrays[column.name] = flat if column.kind == "number" else pa.FixedSizeListArray.from_arrays(flat, column.size)
    return pa.table(arrays)


def unused_name(table: pa.Table, name: str) -> str:
    """A name that no column has."""
    while name in table.column_names:
        name += "_"
    return name
