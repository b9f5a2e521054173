"""Coefficients and a feature specification: what predicts. No I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .features import FeatureSpec, Layout
from .kernels.drain import predict
from .losses import LOSSES


@dataclass(frozen=True)
class Model:
    """A fitted linear model.

    Attributes
    ----------
    task : {"classification", "regression"}
        What it predicts.
    loss : str
        The loss it was trained with.
    target : str
        Name of the target column.
    spec : FeatureSpec
        The features.
    coef : ndarray of float64, shape (n_outputs, n_features)
        Coefficients of the dense features as they are in the data.
    intercept : ndarray of float64, shape (n_outputs,)
        Margins of a row of zeros.
    scale : ndarray of float64, shape (n_features,)
        Standard deviations in training: ``coef * scale`` compares features.
    missing : ndarray of float64, shape (n_features,)
        Share of missing values in training.
    hashed_index : ndarray of uint32, shape (n,), or None
        Hashes, cut to the bits of ``spec``, that have a weight, ascending; None if no feature is hashed.
    hashed : ndarray of float32, shape (n, n_outputs), or None
        Their weights.
    classes : list or None
        Class labels. Of two, the margin is of the second; of more, there is a margin for each.
    class_type : str or None
        Arrow type of the labels.
    training : dict
        Configuration and results of training, JSON values.
    """

    task: Literal["classification", "regression"]
    loss: str
    target: str
    spec: FeatureSpec
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    scale: NDArray[np.float64]
    missing: NDArray[np.float64]
    hashed_index: NDArray[np.uint32] | None = None
    hashed: NDArray[np.float32] | None = None
    classes: list[Any] | None = None
    class_type: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Tell what it is, not its weights."""
        features = "" if not self.spec.n_features else f", {self.spec.n_features:,} dense features"
        hashed = "" if self.hashed is None else f", {len(self.hashed):,} hashed weights"
        return f"<Model of {self.target!r}: {self.task} by {self.loss}{features}{hashed}>"

    @property
    def n_outputs(self) -> int:
        """Margins a row."""
        return len(self.coef)

    @cached_property
    def table(self) -> NDArray[np.float32] | None:
        """Weights of all hashes; float32[2**hash_bits, n_outputs]."""
        if self.hashed_index is None:
            return None
        table = np.zeros((self.spec.n_slots, self.n_outputs), np.float32)
        table[self.hashed_index] = self.hashed
        return table

    def margins(self, rows: NDArray[np.float32], layout: Layout) -> NDArray[np.float64]:
        """Margins of encoded rows.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, stride)
            Rows that an encoder of ``spec`` made.
        layout : Layout
            Where things lie in them.

        Returns
        -------
        ndarray of float64, shape (n,), or (n, n_outputs) if there are several
        """
        out = np.empty((len(rows), self.n_outputs))
        cells = None if self.table is None else rows.view(np.uint32)
        intercepts = self.intercept + self.coef @ self.spec.offset
        factor = self.spec.kernel_factor
        predict(rows, cells, len(rows), layout.cells, self.coef, intercepts, factor, self.table, out)
        return out[:, 0] if self.n_outputs == 1 else out

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Probabilities of the classes, float64[n, n_classes]; None if the loss gives none."""
        link = LOSSES[self.loss].link
        if self.classes is None or link not in ("logit", "clip"):
            return None
        if margins.ndim == 2:
            return np.exp(log_softmax(margins))
        second = sigmoid(margins) if link == "logit" else (np.clip(margins, -1, 1) + 1) / 2
        return np.column_stack([1 - second, second])

    def values(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predicted values of a regression; float64[n]."""
        if LOSSES[self.loss].link != "log":
            return margins
        with np.errstate(over="ignore"):
            return np.exp(margins)

    def codes(self, margins: NDArray[np.float64]) -> NDArray[np.intp]:
        """Places of the predicted classes; intp[n]."""
        return margins.argmax(axis=1) if margins.ndim == 2 else (margins > 0).astype(np.intp)

    def sha256(self) -> str:
        """Hash of the weights: coefficients, intercepts and hashed weights as little-endian numbers."""
        digest = hashlib.sha256(np.append(self.coef, self.intercept).astype("<f8").tobytes())
        if self.hashed_index is not None and self.hashed is not None:
            for numbers, kind in ((self.hashed_index, "<u4"), (self.hashed, "<f4")):
                digest.update(np.ascontiguousarray(numbers, kind).data)
        return digest.hexdigest()


def log_softmax(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the probabilities of classes; float64[n, n_classes]."""
    shifted: NDArray[np.float64] = margins - margins.max(axis=1, keepdims=True, initial=-np.inf)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-z)) that neither overflows nor loses small values."""
    small = np.exp(-np.abs(margins))
    return np.where(margins >= 0, 1.0, small) / (1.0 + small)
