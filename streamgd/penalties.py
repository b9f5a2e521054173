"""Penalties: frozen descriptions. The objective is mean loss + alpha * penalty of the standardised weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Penalty:
    """A penalty of the weights (never of the intercept).

    Attributes
    ----------
    name : str
        Its name.
    l2 : float
        Factor of half the squared norm.
    """

    name: str
    l2: float


PENALTIES = {penalty.name: penalty for penalty in (Penalty("l2", 1.0), Penalty("none", 0.0))}
