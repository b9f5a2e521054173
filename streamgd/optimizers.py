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
        Its number in ``kernels.updates``; -1 if it takes whole passes instead of steps.
    slots : int
        Accumulators a weight.
    parameters : tuple of (str, float)
        Parameters of the estimator that it uses besides the learning rate, with their defaults; the kernel's first
        arguments.
    epsilon : float
        Keeps roots of accumulators from 0.
    eta0 : float
        Default initial learning rate, before it is divided by the length of a row or by the loss's curvature.
    scale_free : bool
        Whether steps have the size of the learning rate, whatever that of the gradient. Their effect on a margin
        then grows with the root mean square length of a row (scaled features and intercept), and the default rate
        is ``eta0 / length``. Otherwise it is ``eta0 / (curvature * length**2)``: 1 would be the largest rate that is
        safe for full gradients.
    learning_rate : str
        Default schedule.
    rests : bool
        Whether a step along a gradient of 0 leaves a weight and its state as they are.
    """

    name: str
    code: int
    slots: int
    parameters: tuple[tuple[str, float], ...]
    epsilon: float
    eta0: float
    scale_free: bool
    learning_rate: str
    rests: bool


OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", 0, 0, (), 0.0, 0.5, False, "invscaling", True),
        Optimizer("momentum", 1, 1, (("momentum", 0.9),), 0.0, 0.05, False, "invscaling", False),
        Optimizer("nesterov", 2, 1, (("momentum", 0.9),), 0.0, 0.05, False, "invscaling", False),
        Optimizer("adagrad", 3, 1, (), 1e-6, 1.0, True, "constant", True),
        Optimizer("rmsprop", 4, 1, (("beta_2", 0.99),), 1e-6, 0.1, True, "invscaling", False),
        Optimizer("adam", 5, 2, (("beta_1", 0.9), ("beta_2", 0.999)), 1e-8, 0.1, True, "invscaling", False),
        Optimizer("ftrl", 6, 2, (), 1e-6, 1.0, True, "constant", True),
        Optimizer("lbfgs", -1, 0, (), 0.0, 1.0, True, "constant", False),
    )
}

#: Place of each parameter in the kernel's arguments.
PLACES = {"momentum": 0, "beta_1": 0, "beta_2": 1}
EPSILON_PLACE = 2
