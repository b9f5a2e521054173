"""Schedules: step to learning rate, as frozen descriptions that name their kernel.

A step is one update from one mini-batch, whatever its size: a schedule counts steps, not rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A schedule.

    Attributes
    ----------
    name : str
        Its name as ``learning_rate``.
    code : int
        Its number in ``kernels.updates``.
    parameters : tuple of str
        Parameters of the estimator that it uses.
    spans : str or None
        The steps that it must know before: those of an "epoch", or of "all" epochs.
    """

    name: str
    code: int
    parameters: tuple[str, ...]
    spans: str | None = None


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        Schedule("constant", 0, ("eta0",)),
        Schedule("invscaling", 1, ("eta0", "power_t")),
        Schedule("optimal", 2, ("alpha",)),
        Schedule("cosine", 3, ("eta0",), "all"),
        Schedule("step", 4, ("eta0", "decay"), "epoch"),
    )
}
