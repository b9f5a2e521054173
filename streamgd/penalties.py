"""Penalties: frozen descriptions. The objective is mean loss + alpha * penalty of the standardised weights.

All are elastic nets, whose proximal step is `streamgd.kernels.updates.shrink`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Penalty:
    """A penalty of the weights (never of the intercept).

    Attributes
    ----------
    name : str
        Its name.
    l1_ratio : float or None
        Share of the sum of absolute weights; the rest is of half the squared norm. None if the user says.
    factor : float
        Of both.
    """

    name: str
    l1_ratio: float | None
    factor: float = 1.0


PENALTIES = {
    penalty.name: penalty
    for penalty in (Penalty("l2", 0.0), Penalty("l1", 1.0), Penalty("elasticnet", None), Penalty("none", 0.0, 0.0))
}


def penalty_value(weights: NDArray[np.float64], l1: float, l2: float) -> float:
    """``l1 |w| + l2 w^2 / 2`` of all weights."""
    return float(l1 * np.abs(weights).sum() + 0.5 * l2 * (weights**2).sum())
