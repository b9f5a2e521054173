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
        Default initial learning rate, before it is divided by the length of a row or by the loss's curvature.
    scale_free : bool
        Whether steps have the size of the learning rate, whatever that of the gradient. Their effect on a margin
        then grows with the root mean square length of a row (scaled features and intercept), and the default rate
        is ``eta0 / length``. Otherwise it is ``eta0 / (curvature * length**2)``: 1 would be the largest rate that is
        safe for full gradients.
    learning_rate : str
        Default schedule.
    """

    name: str
    code: int
    slots: int
    parameter: str | None
    default: float
    eta0: float
    scale_free: bool
    learning_rate: str


OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", 0, 0, None, 0.0, 0.5, False, "invscaling"),
        Optimizer("momentum", 1, 1, "momentum", 0.9, 0.05, False, "invscaling"),
        Optimizer("nesterov", 2, 1, "momentum", 0.9, 0.05, False, "invscaling"),
        Optimizer("adagrad", 3, 1, None, 1e-6, 1.0, True, "constant"),
    )
}
