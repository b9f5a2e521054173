"""Arguments of the kernels for every row of the registries."""

from __future__ import annotations

import numpy as np

from streamgd.losses import Loss
from streamgd.optimizers import Optimizer
from streamgd.schedules import Schedule


def optimizer_args(optimizer: Optimizer) -> np.ndarray:
    return np.array([optimizer.default])


def schedule_args(schedule: Schedule, eta0: float) -> np.ndarray:
    """Arguments with which the first step has learning rate eta0."""
    if schedule.name == "optimal":
        alpha = 0.01
        return np.array([eta0, alpha, 1 / (alpha * eta0)])
    return np.array([eta0, 0.25, 0.0])


def targets(loss: Loss, rng: np.random.Generator, n: int) -> np.ndarray:
    """Targets that a loss takes."""
    return rng.integers(0, 2, n).astype(np.float64) if loss.task == "classification" else rng.normal(size=n)
