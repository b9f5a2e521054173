"""Means and central moments that can be merged, and most common values, of many features at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Weight, mean, and weighted sums of powers 2 to 4 of the distance from the mean; each float64[n_features].

    Merged by the formulas of Pebay (2008), which lose no digits where means are large.
    """

    weight: Floats
    mean: Floats
    second: Floats
    third: Floats
    fourth: Floats

    @classmethod
    def none(cls, n_features: int) -> Self:
        """Of no value."""
        return cls(*np.zeros((5, n_features)))

    @classmethod
    def about(cls, centre: Floats, sums: Floats) -> Self:
        """From sums of powers 0 to 4 of values minus a centre; float64[5, n_features]."""
        n, s1, s2, s3, s4 = sums
        d = s1 / np.where(n > 0, n, 1)
        second = np.maximum(s2 - d * s1, 0)
        third = s3 - 3 * d * s2 + 2 * d * d * s1
        fourth = np.maximum(s4 - 4 * d * s3 + 6 * d * d * s2 - 3 * d**3 * s1, 0)
        return cls(n, np.where(n > 0, centre + d, 0), second, third, fourth)

    def merge(self, other: Self) -> Self:
        """Of the values of both."""
        a, b = self, other
        n = np.where(a.weight + b.weight > 0, a.weight + b.weight, 1)
        p, q = a.weight / n, b.weight / n
        d = np.where(b.weight > 0, b.mean - a.mean, 0)
        return type(self)(
            a.weight + b.weight,
            a.mean + d * q,  # a share of 1 is exact: a constant has no spread
            a.second + b.second + d**2 * a.weight * q,
            a.third + b.third + d**3 * a.weight * q * (p - q) + 3 * d * (p * b.second - q * a.second),
            a.fourth
            + b.fourth
            + d**4 * a.weight * q * (p * p - p * q + q * q)
            + 6 * d**2 * (p * p * b.second + q * q * a.second)
            + 4 * d * (p * b.third - q * a.third),
        )


def most_common(values: Floats, weights: Floats) -> Floats:
    """Weight of the most common value of each feature; both float64[n, n_features], of values and their weights.

    Examples
    --------
    >>> most_common(np.array([[0.0, 1], [5, 1], [0, 2]]), np.array([[3.0, 1], [4, 2], [2, 1]])).tolist()
    [5.0, 3.0]
    """
    order = np.argsort(values, axis=0, kind="stable")
    values, weights = (np.take_along_axis(one, order, axis=0).T for one in (values, weights))
    begins = np.ones(values.shape, np.bool_)
    begins[:, 1:] = values[:, 1:] != values[:, :-1]
    starts = np.flatnonzero(begins)
    sums = np.add.reduceat(weights.ravel(), starts)
    return np.maximum.reduceat(sums, np.searchsorted(starts, np.arange(len(values)) * values.shape[1]))
