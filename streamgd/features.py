"""What becomes of each column: the frozen description that training makes and that prediction obeys.

An encoded row is a record of 4-byte cells: the dense features, then the target, then the sample weight. So one
random access brings everything that an update needs. This module knows neither Parquet nor kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["number", "vector"]


@dataclass(frozen=True)
class Column:
    """One column of the data and the features it becomes.

    Attributes
    ----------
    name : str
        Name of the column in the shards.
    kind : {"number", "vector"}
        A number is one feature; a vector (a list of numbers of fixed length) is ``size`` features.
    size : int
        Number of features.
    """

    name: str
    kind: Kind
    size: int = 1

    def feature_names(self) -> list[str]:
        """Names of the features, ``size`` of them."""
        return [self.name] if self.kind == "number" else [f"{self.name}[{i}]" for i in range(self.size)]

    def to_json(self) -> dict[str, Any]:
        """The column as plain JSON values."""
        return {"name": self.name, "kind": self.kind, "size": self.size}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Column:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError on anything else."""
        name, kind, size = value["name"], value["kind"], value["size"]
        if not isinstance(name, str) or kind not in ("number", "vector"):
            raise ValueError(f"not a column: {value!r}")
        if type(size) is not int or size < 0 or (kind == "number" and size != 1):
            raise ValueError(f"not a column's size: {size!r}")
        return cls(name, kind, size)


@dataclass(frozen=True)
class FeatureSpec:
    """All columns that are features, in the order of the coefficients, and where their zero lies.

    Attributes
    ----------
    columns : tuple of Column
        Columns in the order of the schema.
    offset : ndarray of float64, shape (n_features,)
        Subtracted from each value, in float64, before it is rounded to float32: so a large mean costs no digits.
    fill : ndarray of float32, shape (n_features,)
        What stands for a missing value, after ``offset``: the mean (0 where offset is the mean), or NaN.
    """

    columns: tuple[Column, ...]
    offset: NDArray[np.float64]
    fill: NDArray[np.float32]

    @classmethod
    def raw(cls, columns: Sequence[Column]) -> FeatureSpec:
        """Values as they are: no offset, missing values stay NaN."""
        n = sum(column.size for column in columns)
        return cls(tuple(columns), np.zeros(n), np.full(n, np.nan, np.float32))

    @classmethod
    def centred(cls, columns: Sequence[Column], mean: NDArray[np.float64], scale: NDArray[np.float64]) -> FeatureSpec:
        """Values minus their mean; missing values are the mean.

        The offset is the mean as a float32 where that is as good, so that float32 columns are centred as float32.
        """
        near = mean.astype(np.float32).astype(np.float64)
        offset = np.where(np.abs(near - mean) <= 1e-3 * scale, near, mean)
        return cls(tuple(columns), offset, (mean - offset).astype(np.float32))

    @classmethod
    def uncentred(cls, columns: Sequence[Column], mean: NDArray[np.float64]) -> FeatureSpec:
        """Values as they are; missing values are the mean."""
        return cls(tuple(columns), np.zeros(len(mean)), mean.astype(np.float32))

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.offset)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    def feature_names(self) -> list[str]:
        """Names of the features, in the order of the coefficients."""
        return [name for column in self.columns for name in column.feature_names()]


@dataclass(frozen=True)
class Layout:
    """Where things lie in an encoded row.

    Attributes
    ----------
    n_features : int
        Cells 0 to ``n_features - 1`` hold the features.
    has_target, has_weight : bool
        Whether the cells after them hold the target and the sample weight.
    """

    n_features: int
    has_target: bool = False
    has_weight: bool = False

    @property
    def y_cell(self) -> int:
        """Cell of the target, or -1."""
        return self.n_features if self.has_target else -1

    @property
    def w_cell(self) -> int:
        """Cell of the sample weight, or -1."""
        return self.n_features + self.has_target if self.has_weight else -1

    @property
    def stride(self) -> int:
        """Cells a row: padded to 4, 8 or whole cache lines of 16, so that rows are aligned and loops have no rest."""
        cells = self.n_features + self.has_target + self.has_weight
        return 4 if cells <= 4 else 8 if cells <= 8 else -(-cells // 16) * 16

    @property
    def row_bytes(self) -> int:
        """Bytes an encoded row."""
        return self.stride * 4
