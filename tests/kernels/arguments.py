"""Arguments of the kernels for every row of the registries."""

from __future__ import annotations

import numpy as np

from streamgd.kernels.drain import CARRIED
from streamgd.kernels.problem import Problem
from streamgd.kernels.slots import EIGHT, list_stretches, words_for
from streamgd.losses import LOSSES, Loss
from streamgd.optimizers import EPSILON_PLACE, OPTIMIZERS, PLACES, Optimizer
from streamgd.schedules import SCHEDULES, Schedule

#: Optimizers that take steps.
STEPPING = {name: optimizer for name, optimizer in OPTIMIZERS.items() if optimizer.code >= 0}


def optimizer_args(optimizer: Optimizer) -> tuple[float, float, float]:
    args = [0.0, 0.0, 0.0]
    for name, default in optimizer.parameters:
        args[PLACES[name]] = default
    args[EPSILON_PLACE] = optimizer.epsilon
    return args[0], args[1], args[2]


def loss_args(loss: Loss) -> tuple[float, float]:
    """Default parameters, as float32 holds them: so kinks are where the twin has them."""
    return float(np.float32(loss.default)), 0.0


def schedule_args(schedule: Schedule, eta0: float) -> tuple[float, float, float, float]:
    """Arguments with which the first step has learning rate eta0."""
    if schedule.name == "optimal":
        alpha = 0.01
        return eta0, alpha, 1 / (alpha * eta0), 0.0
    return eta0, 0.9 if schedule.name == "step" else 0.25, 1e4, 0.0


def problem(optimizer: Optimizer, args=None, *, l1: float = 0.0, l2: float = 0.0, rare: bool | None = True) -> Problem:
    """A problem of which only the optimizer and the penalty matter."""
    args = optimizer_args(optimizer) if args is None else tuple(map(float, args))
    return Problem(rare, 0, (0.0, 0.0), optimizer.code, args, optimizer.slots, 0, (0.0,) * 4, l1, l2, 0.0, True, 1, 0)


def targets(loss: Loss, rng: np.random.Generator, n: int) -> np.ndarray:
    """Targets that a loss takes."""
    if loss.task == "classification":
        return rng.integers(0, 2, n).astype(np.float64)
    return rng.poisson(1.0, n).astype(np.float64) if loss.link == "log" else rng.normal(size=n)


def listed(cells, order, start, stop, at, table, batch_size, counters, at_hand=0):
    """What `drain` is told of the slots of rows ``order[start:stop]``; Nones if there is no table."""
    if table is None:
        return None, None, None
    many = (stop - start) * (at.n_index + (10_000 if at.n_text else 0))
    unique, places = np.zeros(many + EIGHT, np.uint32), np.zeros(many, np.uint32)
    counts = np.zeros(max(1, stop - start), np.int64)
    words, number = np.zeros(words_for(len(table)), np.uint64), np.zeros(1, np.int64)
    found, rows, _ = list_stretches(
        *(cells, order, start, stop, at, *table.shape, at_hand, batch_size, int(counters[CARRIED])),
        *(words, number, unique, places, counts, np.zeros((0, at.width), np.float32)),
    )
    assert rows == stop - start
    return unique, places, counts[:found]


__all__ = [
    "LOSSES",
    "SCHEDULES",
    "STEPPING",
    "listed",
    "loss_args",
    "optimizer_args",
    "problem",
    "schedule_args",
    "targets",
]
