"""Optimizers: frozen descriptions that name their kernel, their parameters and their state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Attributes
    ----------
    name : str
        Its name.
    code : int
        Its number in ``kernels.updates``.
    slots : int
        Accumulators a weight.
    parameter : str or None
        The estimator's parameter that it uses besides the learning rate, if any.
    default : float
        Default of that parameter, or a constant of the method.
    eta0 : float
        Default initial learning rate for standardised features.
    learning_rate : str
        Default schedule.
    """

    name: str
    code: int
    slots: int
    parameter: str | None
    default: float
    eta0: float
    learning_rate: str


OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", 0, 0, None, 0.0, 0.1, "invscaling"),
        Optimizer("momentum", 1, 1, "momentum", 0.9, 0.02, "invscaling"),
        Optimizer("nesterov", 2, 1, "momentum", 0.9, 0.02, "invscaling"),
        Optimizer("adagrad", 3, 1, None, 1e-10, 0.1, "constant"),
    )
}
