"""Coefficients and a feature specification: what predicts. No I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .features import FeatureSpec
from .kernels.drain import predict


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
    coef : ndarray of float64, shape (n_features,)
        Coefficients of the features as they are in the data.
    intercept : float
        Margin of a row of zeros.
    scale : ndarray of float64, shape (n_features,)
        Standard deviations in training: ``coef * scale`` compares features.
    missing : ndarray of float64, shape (n_features,)
        Share of missing values in training.
    classes : list or None
        Two class labels; the margin is of the second.
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
    intercept: float
    scale: NDArray[np.float64]
    missing: NDArray[np.float64]
    classes: list[Any] | None = None
    class_type: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Margins of encoded rows.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, stride)
            Rows that an encoder of ``spec`` made.

        Returns
        -------
        ndarray of float64, shape (n,)
        """
        out = np.empty(len(rows))
        predict(rows, len(rows), self.coef, self.intercept + float(self.coef @ self.spec.offset), out)
        return out

    def sha256(self) -> str:
        """Hash of the weights: coefficients and intercept as little-endian float64."""
        weights = np.append(self.coef, self.intercept).astype("<f8")
        return hashlib.sha256(weights.tobytes()).hexdigest()


def sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-z)) that neither overflows nor loses small values."""
    small = np.exp(-np.abs(margins))
    return np.where(margins >= 0, 1.0, small) / (1.0 + small)
