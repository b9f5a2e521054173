"""What was seen of the data before training, as JSON: who resumes a job does not look again."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .labels import Labels
from .profile import Scales

_LABEL_TYPES = {str(kind): kind for kind in (
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string()),
)}  # fmt: skip
_VECTORS = ("mean", "scale", "magnitude", "missing")
_NUMBERS = ("mean", "scale", "weight_mean", "clustering")


@dataclass(frozen=True)
class Seen:
    """The scan of the labels, the sample's profile, and the row groups that could not be read.

    Attributes
    ----------
    labels : Labels
        As the scan gave them, before classes are weighed.
    scales : Scales
        As the sample gave them.
    left_out : tuple of (int, int)
        Numbers of shards and of row groups in them that could not be read.
    """

    labels: Labels
    scales: Scales
    left_out: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        labels, scales = self.labels, self.scales
        classes = labels.classes
        return {
            "labels": {
                **{name: getattr(labels, name) for name in ("task", "rows", "missing", *_NUMBERS)},
                "classes": None if classes is None else classes.to_pylist(),
                "class_type": None if classes is None else str(classes.type),
                "class_weight": None if labels.class_weight is None else labels.class_weight.tolist(),
            },
            "scales": {
                field.name: value.tolist() if isinstance(value := getattr(scales, field.name), np.ndarray) else value
                for field in fields(scales)
            },
            "left_out": [list(key) for key in self.left_out],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Seen:
        """Inverse of `to_json`.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is not what `to_json` gives.
        """
        found, classes, weights = value["labels"], None, None
        if found["task"] not in ("classification", "regression"):
            raise ValueError(f"{found['task']!r} is no task")
        if found["task"] == "classification":
            classes = pa.array(found["classes"], _LABEL_TYPES[found["class_type"]])
            weights = _vector(found["class_weight"], len(classes))
            if len(classes) < 2 or classes.null_count or len(classes.unique()) != len(classes):
                raise ValueError("the classes are not different labels")
        labels = Labels(
            task=found["task"],
            classes=classes,
            class_weight=weights,
            rows=_count(found["rows"]),
            missing=_count(found["missing"]),
            **{name: _number(found[name]) for name in _NUMBERS},
        )
        given = value["scales"]
        length = len(given["mean"])
        varied = given["varied"]
        if len(given["common_rows"]) != len(given["common"]):
            raise ValueError("the common hashes are not as many as their numbers of rows")
        if not isinstance(varied, list) or not all(isinstance(name, str) for name in varied):
            raise ValueError("the names of columns are not texts")
        scales = Scales(
            **{name: _vector(given[name], length) for name in _VECTORS},
            distinct=_count(given["distinct"]),
            words=_number(given["words"]),
            most_words=_number(given["most_words"]),
            varied=tuple(varied),
            sampled=_count(given["sampled"]),
            common=_counts(given["common"]),
            common_rows=_counts(given["common_rows"]),
        )
        return cls(labels, scales, tuple((_count(shard), _count(index)) for shard, index in value["left_out"]))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _counts(values: list[object]) -> NDArray[np.uint32]:
    found = np.array([_count(value) for value in values], np.int64)
    if len(found) and found.max() >> 32:
        raise ValueError("a number has more than 32 bits")
    return found.astype(np.uint32)


def _vector(values: list[object], length: int) -> NDArray[np.float64]:
    if len(values) != length:
        raise ValueError(f"there are {len(values)} numbers, expected {length}")
    return np.array([_number(value) for value in values], np.float64)
