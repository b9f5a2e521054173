"""The plain NumPy twin of every loss: value and derivative in float64, without a thought of speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import losses

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]


def log_loss(z: Floats, y: Floats, args: Floats) -> Pair:
    """log(1 + exp(z)) - y z."""
    softplus = np.logaddexp(0.0, z)
    return softplus - y * z, np.exp(z - softplus) - y


def squared_error(z: Floats, y: Floats, args: Floats) -> Pair:
    """Half the squared difference."""
    return (z - y) ** 2 / 2, z - y


def hinge(z: Floats, y: Floats, args: Floats) -> Pair:
    """max(0, 1 - s z)."""
    s = 2 * y - 1
    return np.maximum(1 - s * z, 0), np.where(s * z <= 1, -s, 0)


def squared_hinge(z: Floats, y: Floats, args: Floats) -> Pair:
    """max(0, 1 - s z)^2."""
    s = 2 * y - 1
    gap = np.maximum(1 - s * z, 0)
    return gap**2, -2 * s * gap


def modified_huber(z: Floats, y: Floats, args: Floats) -> Pair:
    """max(0, 1 - s z)^2 where s z >= -1, else -4 s z."""
    s = 2 * y - 1
    value, derivative = squared_hinge(z, y, args)
    far = s * z < -1
    return np.where(far, -4 * s * z, value), np.where(far, -4 * s, derivative)


def perceptron(z: Floats, y: Floats, args: Floats) -> Pair:
    """max(0, -s z)."""
    s = 2 * y - 1
    return np.maximum(-s * z, 0), np.where(s * z <= 0, -s, 0)


def huber(z: Floats, y: Floats, args: Floats) -> Pair:
    """r^2 / 2 where |r| <= epsilon, else epsilon |r| - epsilon^2 / 2."""
    r, epsilon = z - y, args[0]
    near = np.abs(r) <= epsilon
    return np.where(near, r**2 / 2, epsilon * np.abs(r) - epsilon**2 / 2), np.where(near, r, epsilon * np.sign(r))


def epsilon_insensitive(z: Floats, y: Floats, args: Floats) -> Pair:
    """max(0, |r| - epsilon)."""
    r, epsilon = z - y, args[0]
    return np.maximum(np.abs(r) - epsilon, 0), np.where(np.abs(r) > epsilon, np.sign(r), 0)


def quantile(z: Floats, y: Floats, args: Floats) -> Pair:
    """(1 - q) r where r >= 0, else -q r."""
    r, q = z - y, args[0]
    slope = np.where(r >= 0, 1 - q, -q)
    return slope * r, slope


def poisson(z: Floats, y: Floats, args: Floats) -> Pair:
    """exp(z) - y z, as if z were 87 where it is more."""
    bounded = np.minimum(z, 87.0)
    rate = np.exp(bounded)
    return rate - y * bounded, rate - y


LOSSES = {
    losses.LOG_LOSS: log_loss,
    losses.SQUARED_ERROR: squared_error,
    losses.HINGE: hinge,
    losses.SQUARED_HINGE: squared_hinge,
    losses.MODIFIED_HUBER: modified_huber,
    losses.PERCEPTRON: perceptron,
    losses.HUBER: huber,
    losses.EPSILON_INSENSITIVE: epsilon_insensitive,
    losses.QUANTILE: quantile,
    losses.POISSON: poisson,
}


def softmax(z: Floats, y: Floats) -> Pair:
    """Log loss of classes y of margins float64[n, c], and its derivative float64[n, c]."""
    shifted = z - z.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(z)), y.astype(np.intp)
    derivative = np.exp(logs)
    derivative[rows] -= 1
    return -logs[rows], derivative
