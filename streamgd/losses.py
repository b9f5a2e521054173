"""Losses: frozen descriptions that name their kernel. A loss is a function of the margin and the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Link = Literal["identity", "logit", "clip", "log"]


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
        The most that its second derivative can be. Where there is no bound, or no second derivative, 1: what it is
        about on targets of unit scale.
    link : {"identity", "logit", "clip", "log"}
        What a margin says: a value; log-odds (of more than two classes: logarithms of probabilities, by softmax); a
        probability once it is clipped to [-1, 1] and mapped to [0, 1]; the logarithm of a mean.
    degree : int
        Regression targets are divided by their standard deviation s; the loss in their own units is the loss that was
        minimised times s to this power. 0: the target is not scaled.
    parameter : str or None
        The estimator's parameter that it uses, if any.
    default : float
        Its default; of "epsilon" in standard deviations of the target.
    smooth : bool
        Whether its derivative is continuous, as L-BFGS needs it.
    """

    name: str
    task: Literal["classification", "regression"]
    code: int
    curvature: float
    link: Link = "identity"
    degree: int = 0
    parameter: str | None = None
    default: float = 0.0
    smooth: bool = True


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("log_loss", "classification", 0, 0.25, "logit"),
        Loss("squared_error", "regression", 1, 1.0, degree=2),
        Loss("hinge", "classification", 2, 1.0, smooth=False),
        Loss("squared_hinge", "classification", 3, 2.0),
        Loss("modified_huber", "classification", 4, 2.0, "clip"),
        Loss("perceptron", "classification", 5, 1.0, smooth=False),
        Loss("huber", "regression", 6, 1.0, degree=2, parameter="epsilon", default=1.35),
        Loss("epsilon_insensitive", "regression", 7, 1.0, degree=1, parameter="epsilon", default=0.1, smooth=False),
        Loss("quantile", "regression", 8, 1.0, degree=1, parameter="quantile", default=0.5, smooth=False),
        Loss("poisson", "regression", 9, 1.0, "log"),
    )
}

DEFAULT_LOSS = {"classification": "log_loss", "regression": "squared_error"}
