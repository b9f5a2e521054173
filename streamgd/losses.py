"""Losses: frozen descriptions that name their kernel. A loss is a function of the margin and the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes
    ----------
    name : str
        Its name in `SGDClassifier` or `SGDRegressor`.
    task : {"classification", "regression"}
        What it is for.
    code : int
        Its number in ``kernels.losses``.
    curvature : float
        The most that its second derivative can be.
    """

    name: str
    task: Literal["classification", "regression"]
    code: int
    curvature: float


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("log_loss", "classification", 0, 0.25),
        Loss("squared_error", "regression", 1, 1.0),
    )
}

DEFAULT_LOSS = {"classification": "log_loss", "regression": "squared_error"}
