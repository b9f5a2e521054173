"""What kernels minimise and how, as numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .intrinsics import strict
from .losses import COMMON as COMMON_LOSSES
from .updates import COMMON as COMMON_OPTIMIZERS


class Problem(NamedTuple):
    """What is minimised and how: numbers of registered parts, and their parameters.

    Numbers only: an array inside would cost 50 ns whenever it is taken out. ``rare`` is None if the loss and the
    optimizer are common ones, and True if the others must be compiled too. The first ``at_hand`` slots of the table are
    touched by every mini-batch, whatever its rows have.
    """

    rare: Any
    loss: int
    loss_args: tuple[float, float]
    optimizer: int
    optimizer_args: tuple[float, float, float]
    slots: int
    schedule: int
    schedule_args: tuple[float, float, float, float]
    l1: float
    l2: float
    clip_norm: float
    fit_intercept: bool
    batch_size: int
    at_hand: int

    def settings(self) -> list[float]:
        """The numbers in which models that are trained side by side may differ, as `configured` takes them."""
        return [*self.optimizer_args, *self.schedule_args, self.l1, self.l2, self.clip_norm]


#: Numbers that `Problem.settings` gives.
SETTINGS = 10


def common(loss: int, optimizer: int) -> bool:
    """Whether `Problem.rare` may be None."""
    return loss in COMMON_LOSSES and optimizer in COMMON_OPTIMIZERS


@strict
def configured(problem, settings, model):
    """The problem of one of the models that are trained side by side; ``settings`` is None if there is but one."""
    if settings is None:
        return problem
    s = settings[model]
    return _with(problem, (s[0], s[1], s[2]), (s[3], s[4], s[5], s[6]), s[7], s[8], s[9])


@strict
def in_single_precision(problem):
    """The same in float32, for steps of weights that are."""
    a, b, c = problem.optimizer_args
    args, l1, l2 = (np.float32(a), np.float32(b), np.float32(c)), np.float32(problem.l1), np.float32(problem.l2)
    return _with(problem, args, problem.schedule_args, l1, l2, problem.clip_norm)


@strict
def _with(problem, optimizer_args, schedule_args, l1, l2, clip_norm):
    return Problem(
        problem.rare,
        problem.loss,
        problem.loss_args,
        problem.optimizer,
        optimizer_args,
        problem.slots,
        problem.schedule,
        schedule_args,
        l1,
        l2,
        clip_norm,
        problem.fit_intercept,
        problem.batch_size,
        problem.at_hand,
    )
