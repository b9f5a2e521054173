"""Losses of a margin z and a target y: values and derivatives over a tile of rows.

``log_loss`` takes y in {0, 1}; ``squared_error`` is half the squared difference. Values and derivatives are
float32 (a row's own numbers); their sums are float64.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import float_from_bits, inline, jit

LOG_LOSS, SQUARED_ERROR = 0, 1

_ONE = np.float32(1)


@inline
def exp_negative(x):
    """exp(x) for x <= 0 in float32 within 3 ulp, as a polynomial that becomes vector code (Cephes ``expf``)."""
    x = max(x, np.float32(-87.0))
    k = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    f = x - k * np.float32(0.693359375)
    f = f - k * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    p = p * f * f + f + _ONE
    return p * float_from_bits((np.int32(k) + np.int32(127)) << np.int32(23))


@inline
def log1p_unit(u):
    """log(1 + u) for u in [0, 1] in float32: 2 atanh(u / (2 + u)), whose series has (1/9)^k for its terms."""
    s = u / (np.float32(2) + u)
    q = s * s
    p = np.float32(1 / 17)
    p = p * q + np.float32(1 / 15)
    p = p * q + np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + _ONE
    return np.float32(2) * s * p


@jit
def log_loss(z, y, n, value, derivative):
    """log(1 + exp(z)) - y z and sigmoid(z) - y for y in {0, 1}, both from exp(-|z|), which cannot overflow."""
    for i in range(n):
        u = exp_negative(-abs(z[i]))
        inverse = _ONE / (_ONE + u)
        sigmoid = inverse if z[i] >= 0 else u * inverse
        derivative[i] = sigmoid - y[i]
        value[i] = log1p_unit(u) + max((_ONE - np.float32(2) * y[i]) * z[i], np.float32(0))


@jit
def squared_error(z, y, n, value, derivative):
    """(z - y)^2 / 2 and z - y."""
    for i in range(n):
        r = z[i] - y[i]
        derivative[i] = r
        value[i] = np.float32(0.5) * r * r


@jit
def evaluate(loss, z, y, n, value, derivative):
    """Values and derivatives of the loss with the given code for n rows."""
    if loss == LOG_LOSS:
        log_loss(z, y, n, value, derivative)
    else:
        squared_error(z, y, n, value, derivative)
