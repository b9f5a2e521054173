"""What becomes of each column: the frozen description that training makes and that prediction obeys.

An encoded row is a record of 4-byte cells: the dense features, the target, the sample weight; then the hashes of the
indexed features, and for each text column where its hashes lie. So one random access brings all that an update needs.
This module knows neither Parquet nor kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Group = Literal["dense", "index", "scaled", "text"]

#: What a kind of column becomes: dense features; one hashed index of value 1; one hashed index whose value is that of a
#: dense feature; or as many hashed indices as a text has n-grams. Encoders of each kind are in `streamgd.data.encode`.
KINDS: dict[str, Group] = {
    "number": "dense",
    "vector": "dense",
    "product": "dense",
    "missing": "dense",
    "category": "index",
    "month": "index",
    "weekday": "index",
    "hour": "index",
    "cross": "index",
    "scaled": "scaled",
    "text": "text",
}
#: Kinds that a column of dates or times becomes.
CALENDAR = ("month", "weekday", "hour")
#: Kinds made of two other features.
PAIRS = ("product", "cross", "scaled")

MOST_HASH_BITS = 28
TEXT_CELLS = 3


@dataclass(frozen=True)
class Column:
    """One column of the data, or a pair of features, and what it becomes.

    Attributes
    ----------
    name : str
        Name of the column in the shards; of a pair, both names with ``*`` between them.
    kind : str
        A key of `KINDS`.
    size : int
        Number of dense features: more than 1 for a vector (a list of numbers of fixed length).
    parts : tuple of str
        For a pair, the labels of the two features it is made of; a number comes before a category.
    varied : bool
        Whether most values of a category are different even in a few rows. Reading it as a dictionary would then cost
        more than it saves.
    """

    name: str
    kind: str
    size: int = 1
    parts: tuple[str, ...] = ()
    varied: bool = False

    @property
    def group(self) -> Group:
        """What it becomes."""
        return KINDS[self.kind]

    @property
    def label(self) -> str:
        """Name of the feature; unlike ``name`` it also says what was made of the column."""
        return f"{self.kind}({self.name})" if self.kind in (*CALENDAR, "missing") else self.name

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns to read for it alone (a pair is made of other features)."""
        return () if self.kind in PAIRS else (self.name,)

    def feature_names(self) -> list[str]:
        """Names of the dense features, ``size`` of them, or the name of the hashed ones."""
        return [f"{self.name}[{i}]" for i in range(self.size)] if self.kind == "vector" else [self.label]

    def to_json(self) -> dict[str, Any]:
        """The column as plain JSON values."""
        parts = list(self.parts)
        return {"name": self.name, "kind": self.kind, "size": self.size, "parts": parts, "varied": self.varied}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Column:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError on anything else."""
        name, kind, size, parts = value["name"], value["kind"], value["size"], value["parts"]
        if not isinstance(name, str) or kind not in KINDS:
            raise ValueError(f"not a column: {value!r}")
        if type(size) is not int or size < 0 or (kind != "vector" and size != 1):
            raise ValueError(f"not a column's size: {size!r}")
        if not isinstance(parts, list) or len(parts) != 2 * (kind in PAIRS):
            raise ValueError(f"not a column's parts: {parts!r}")
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"not a column's parts: {parts!r}")
        if type(value["varied"]) is not bool or (value["varied"] and kind != "category"):
            raise ValueError(f"not a column: {value!r}")
        return cls(name, kind, size, tuple(parts), value["varied"])


@dataclass(frozen=True)
class FeatureSpec:
    """All features, in the order of the coefficients, and where the zero of the dense ones lies.

    Attributes
    ----------
    columns : tuple of Column
        In the order of the schema, pairs last.
    offset : ndarray of float64, shape (n_features,)
        Subtracted from each dense value, in float64, before it is rounded to float32: a large mean costs no digits.
    fill : ndarray of float32, shape (n_features,)
        What stands for a missing value, after ``offset``: the mean (0 where offset is the mean), or NaN.
    hash_bits : int
        The hashes of indexed features are cut to so many bits; 0 if there are none.
    factor : ndarray of float64, shape (number of scaled columns,)
        The value of a scaled index is its dense cell times this.
    """

    columns: tuple[Column, ...]
    offset: NDArray[np.float64]
    fill: NDArray[np.float32]
    hash_bits: int
    factor: NDArray[np.float64]

    @classmethod
    def raw(cls, columns: Sequence[Column]) -> FeatureSpec:
        """Values as they are: no offset, missing values stay NaN."""
        n = sum(column.size for column in columns if column.group == "dense")
        scaled = sum(column.group == "scaled" for column in columns)
        return cls(tuple(columns), np.zeros(n), np.full(n, np.nan, np.float32), 0, np.ones(scaled))

    def centred(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Self:
        """Values minus their mean; missing values are the mean.

        The offset is the mean as a float32 where that is as good, so that float32 columns are centred as float32.
        """
        near = mean.astype(np.float32).astype(np.float64)
        offset = np.where(np.abs(near - mean) <= 1e-3 * scale, near, mean)
        return replace(self, offset=offset, fill=(mean - offset).astype(np.float32))

    def uncentred(self, mean: NDArray[np.float64]) -> Self:
        """Values as they are; missing values are the mean."""
        return replace(self, offset=np.zeros(len(mean)), fill=mean.astype(np.float32))

    def hashed(self, bits: int, magnitude: NDArray[np.float64]) -> Self:
        """Hashes cut to so many bits, and scaled indices with values of about 1."""
        return replace(self, hash_bits=bits, factor=1.0 / magnitude[self.scaled_cells])

    @cached_property
    def _groups(self) -> dict[Group, list[Column]]:
        groups: dict[Group, list[Column]] = {group: [] for group in KINDS.values()}
        for column in self.columns:
            groups[column.group].append(column)
        return groups

    def group(self, group: Group) -> list[Column]:
        """Columns that become the same."""
        return self._groups[group]

    @property
    def n_features(self) -> int:
        """Number of dense features."""
        return len(self.offset)

    @property
    def n_inputs(self) -> int:
        """Number of dense features, and of columns that become hashed ones."""
        return self.n_features + sum(column.group != "dense" for column in self.columns)

    @property
    def n_slots(self) -> int:
        """Number of weights that hashed features share; 0 if there are none."""
        return 1 << self.hash_bits if self.hash_bits else 0

    @property
    def dictionaries(self) -> list[str]:
        """Names of the columns that are best read as dictionaries."""
        return [column.name for column in self.columns if column.kind == "category" and not column.varied]

    @property
    def names(self) -> list[str]:
        """Names of the columns to read, each once."""
        return list(dict.fromkeys(name for column in self.columns for name in column.sources))

    def feature_names(self) -> list[str]:
        """Names of the dense features in the order of the coefficients, then those of the hashed ones."""
        groups: tuple[Group, ...] = ("dense", "index", "scaled", "text")
        return [name for group in groups for column in self.group(group) for name in column.feature_names()]

    def cell(self, label: str) -> int:
        """Cell of a dense feature, or place among the indices."""
        dense = [name for column in self.group("dense") for name in column.feature_names()]
        indices = [column.label for column in (*self.group("index"), *self.group("scaled"))]
        return dense.index(label) if label in dense else indices.index(label)

    @property
    def scaled_cells(self) -> NDArray[np.int64]:
        """Dense cell that gives each scaled index its value."""
        return np.array([self.cell(column.parts[0]) for column in self.group("scaled")], np.int64)

    @cached_property
    def kernel_factor(self) -> NDArray[np.float64]:
        """The same cells, and ``factor``, as kernels take them; float64[2, number of scaled columns]."""
        return np.array([self.scaled_cells.astype(np.float64), self.factor])


def _padded(cells: int) -> int:
    """Cells that are aligned and leave loops no rest: 8, or whole cache lines of 16."""
    return 8 if cells <= 8 else -(-cells // 16) * 16


@dataclass(frozen=True)
class Selection:
    """What a user says of columns; what is not mentioned goes by its type.

    Attributes
    ----------
    drop : tuple of str
        No features.
    categorical : tuple of str
        Integers that are categories (strings are anyway).
    text : tuple of str
        Strings that are texts.
    calendar : tuple of str
        Dates and times that become month, weekday and hour.
    interactions : tuple of (str, str)
        Pairs of features.
    missing_indicator : bool
        Whether numbers with missing values get a 0/1 feature that says so.
    """

    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    interactions: tuple[tuple[str, str], ...] = ()
    missing_indicator: bool = False


class Cells(NamedTuple):
    """The layout as kernels take it: all of one type, cheap to pass."""

    y: int
    w: int
    width: int
    hashes: int
    n_index: int
    n_scaled: int
    text: int
    n_text: int


@dataclass(frozen=True)
class Layout:
    """Where things lie in an encoded row.

    Attributes
    ----------
    n_features : int
        Cells 0 to ``n_features - 1`` hold the dense features.
    has_target, has_weight : bool
        Whether the cells after them hold the target and the sample weight.
    n_index, n_scaled : int
        Cells of hashes, of which the last ``n_scaled`` have values.
    n_text : int
        Text columns; each has three cells: the address of its hashes (two) and their number.
    """

    n_features: int
    has_target: bool = False
    has_weight: bool = False
    n_index: int = 0
    n_scaled: int = 0
    n_text: int = 0

    @property
    def y_cell(self) -> int:
        """Cell of the target, or -1."""
        return self.n_features if self.has_target else -1

    @property
    def w_cell(self) -> int:
        """Cell of the sample weight, or -1."""
        return self.n_features + self.has_target if self.has_weight else -1

    @property
    def width(self) -> int:
        """Cells before the hashes, padded with zeros."""
        return _padded(self.n_features + self.has_target + self.has_weight)

    @property
    def text_cell(self) -> int:
        """First cell of the texts."""
        return self.width + self.n_index

    @property
    def stride(self) -> int:
        """Cells a row."""
        return _padded(self.text_cell + TEXT_CELLS * self.n_text)

    @property
    def row_bytes(self) -> int:
        """Bytes an encoded row."""
        return self.stride * 4

    @cached_property
    def cells(self) -> Cells:
        """The same for kernels."""
        return Cells(
            self.y_cell,
            self.w_cell,
            self.width,
            self.width,
            self.n_index,
            self.n_scaled,
            self.text_cell,
            self.n_text,
        )
