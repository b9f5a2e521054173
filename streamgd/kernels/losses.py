"""Losses of a margin z and a target y: values and derivatives over a tile of rows.

Losses for classes take y in {0, 1}; most are written for s = 2y - 1 in {-1, 1}. ``args`` holds a loss's parameter.
Steps take float32 (a row's own numbers; sums are float64), L-BFGS takes float64: the functions are for both.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from .intrinsics import float_from_bits, fma, larger, strict

LOG_LOSS, SQUARED_ERROR, HINGE, SQUARED_HINGE, MODIFIED_HUBER, PERCEPTRON = range(6)
HUBER, EPSILON_INSENSITIVE, QUANTILE, POISSON = range(6, 10)
COMMON = (LOG_LOSS, SQUARED_ERROR)

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_LARGEST_EXPONENT = np.float32(87)


def _exp_single(x):
    x = max(x, np.float32(-87.0))
    k = np.floor(fma(x, np.float32(1.44269504), np.float32(0.5)))
    f = fma(k, np.float32(-0.693359375), x)
    f = fma(k, np.float32(2.12194440e-4), f)
    p = np.float32(1.9875691500e-4)
    p = fma(p, f, np.float32(1.3981999507e-3))
    p = fma(p, f, np.float32(8.3334519073e-3))
    p = fma(p, f, np.float32(4.1665795894e-2))
    p = fma(p, f, np.float32(1.6666665459e-1))
    p = fma(p, f, np.float32(5.0000001201e-1))
    p = fma(p, f * f, f) + np.float32(1)
    return p * float_from_bits((np.int32(k) + np.int32(127)) << np.int32(23))


def _log1p_single(u):
    s = u / (np.float32(2) + u)
    q = s * s
    p = np.float32(1 / 17)
    p = fma(p, q, np.float32(1 / 15))
    p = fma(p, q, np.float32(1 / 13))
    p = fma(p, q, np.float32(1 / 11))
    p = fma(p, q, np.float32(1 / 9))
    p = fma(p, q, np.float32(1 / 7))
    p = fma(p, q, np.float32(1 / 5))
    p = fma(p, q, np.float32(1 / 3))
    p = fma(p, q, np.float32(1))
    return np.float32(2) * s * p


def exp_negative(x):
    """exp(x) for x <= 0. In float32 a polynomial within 3 ulp that becomes vector code (Cephes ``expf``)."""
    raise NotImplementedError("only for compiled code")


def log1p_unit(u):
    """log(1 + u) for u in [0, 1]. In float32 2 atanh(u / (2 + u)), whose series has (1/9)^k for its terms."""
    raise NotImplementedError("only for compiled code")


@overload(exp_negative, inline="always")
def _exp_negative(x):
    return _exp_single if x == types.float32 else lambda x: np.exp(max(x, -700.0))


@overload(log1p_unit, inline="always")
def _log1p_unit(u):
    return _log1p_single if u == types.float32 else lambda u: np.log1p(u)


@strict
def log_loss(z, y, n, args, value, derivative):
    """log(1 + exp(z)) - y z and sigmoid(z) - y for y in {0, 1}, both from exp(-|z|), which cannot overflow."""
    for i in range(n):
        u = exp_negative(-abs(z[i]))
        inverse = _ONE / (_ONE + u)
        sigmoid = inverse if z[i] >= 0 else u * inverse
        derivative[i] = sigmoid - y[i]
        value[i] = log1p_unit(u) + max((_ONE - _TWO * y[i]) * z[i], _ZERO)


@strict
def squared_error(z, y, n, args, value, derivative):
    """(z - y)^2 / 2 and z - y."""
    for i in range(n):
        r = z[i] - y[i]
        derivative[i] = r
        value[i] = _HALF * r * r


@strict
def hinge(z, y, n, args, value, derivative):
    """max(0, 1 - s z)."""
    for i in range(n):
        s = _TWO * y[i] - _ONE
        gap = _ONE - s * z[i]
        value[i] = max(gap, _ZERO)
        derivative[i] = _ZERO if gap < 0 else -s  # also where it is NaN, so that a NaN goes on


@strict
def squared_hinge(z, y, n, args, value, derivative):
    """max(0, 1 - s z)^2."""
    for i in range(n):
        s = _TWO * y[i] - _ONE
        gap = max(_ONE - s * z[i], _ZERO)
        value[i] = gap * gap
        derivative[i] = -_TWO * s * gap


@strict
def modified_huber(z, y, n, args, value, derivative):
    """max(0, 1 - s z)^2, from s z = -1 down continued by a straight line."""
    for i in range(n):
        s = _TWO * y[i] - _ONE
        gap = max(_ONE - s * z[i], _ZERO)
        bounded = min(gap, _TWO)
        value[i] = bounded * (_TWO * gap - bounded)
        derivative[i] = -_TWO * s * bounded


@strict
def perceptron(z, y, n, args, value, derivative):
    """max(0, -s z)."""
    for i in range(n):
        s = _TWO * y[i] - _ONE
        value[i] = max(-s * z[i], _ZERO)
        derivative[i] = _ZERO if s * z[i] > 0 else -s


@strict
def huber(z, y, n, args, value, derivative):
    """Half the squared error, from a distance of epsilon on continued by a straight line."""
    epsilon = np.float32(args[0])
    for i in range(n):
        r = z[i] - y[i]
        bounded = min(max(r, -epsilon), epsilon)
        value[i] = bounded * (r - _HALF * bounded)
        derivative[i] = bounded


@strict
def epsilon_insensitive(z, y, n, args, value, derivative):
    """max(0, |z - y| - epsilon)."""
    epsilon = np.float32(args[0])
    for i in range(n):
        r = z[i] - y[i]
        value[i] = max(abs(r) - epsilon, _ZERO)
        derivative[i] = _ZERO if abs(r) <= epsilon else (_ONE if r > 0 else -_ONE)


@strict
def quantile(z, y, n, args, value, derivative):
    """(1 - q)(z - y) above the target, q (y - z) below: smallest in the mean where z is the q-th quantile of y."""
    q = np.float32(args[0])
    for i in range(n):
        r = z[i] - y[i]
        slope = _ONE - q if r >= 0 else -q
        value[i] = slope * r
        derivative[i] = slope


@strict
def poisson(z, y, n, args, value, derivative):
    """exp(z) - y z and exp(z) - y, as if z were 87 where it is more: finite, so that a weight of 0 leaves 0."""
    for i in range(n):
        bounded = min(z[i], _LARGEST_EXPONENT)
        small = exp_negative(-abs(bounded))
        rate = _ONE / small if bounded > 0 else small
        value[i] = rate - y[i] * bounded
        derivative[i] = rate - y[i]


@strict
def evaluate(loss, rare, args, z, y, n, value, derivative):
    """Values and derivatives of the loss with the given code for n rows; ``rare`` is None for those of `COMMON`."""
    if rare is None:
        if loss == LOG_LOSS:
            log_loss(z, y, n, args, value, derivative)
        else:
            squared_error(z, y, n, args, value, derivative)
    else:
        _evaluate_any(loss, args, z, y, n, value, derivative)


@strict
def _evaluate_any(loss, args, z, y, n, value, derivative):
    if loss == LOG_LOSS:
        log_loss(z, y, n, args, value, derivative)
    elif loss == SQUARED_ERROR:
        squared_error(z, y, n, args, value, derivative)
    elif loss == HINGE:
        hinge(z, y, n, args, value, derivative)
    elif loss == SQUARED_HINGE:
        squared_hinge(z, y, n, args, value, derivative)
    elif loss == MODIFIED_HUBER:
        modified_huber(z, y, n, args, value, derivative)
    elif loss == PERCEPTRON:
        perceptron(z, y, n, args, value, derivative)
    elif loss == HUBER:
        huber(z, y, n, args, value, derivative)
    elif loss == EPSILON_INSENSITIVE:
        epsilon_insensitive(z, y, n, args, value, derivative)
    elif loss == QUANTILE:
        quantile(z, y, n, args, value, derivative)
    else:
        poisson(z, y, n, args, value, derivative)


@strict
def softmax(z, y, n, value, total, derivative):
    """Log loss of several classes, and probabilities less 1 for the class of the row.

    ``z`` and ``derivative`` are [classes, >= n] and ``total`` is room for n numbers. Loops over rows are the inner
    ones, so that they become vector code.
    """
    for i in range(n):
        value[i] = z[0, i]
        total[i] = 0
    for c in range(1, len(z)):
        for i in range(n):
            value[i] = larger(z[c, i], value[i])
    for c in range(len(z)):
        for i in range(n):
            derivative[c, i] = exp_negative(z[c, i] - value[i])
            total[i] += derivative[c, i]
    for i in range(n):
        value[i] += np.log(total[i])
        total[i] = 1 / total[i]
    for c in range(len(z)):
        for i in range(n):
            derivative[c, i] *= total[i]
    for i in range(n):
        truth = min(max(np.int64(y[i]), 0), len(z) - 1)  # a damaged cache may hold anything
        derivative[truth, i] -= _ONE
        value[i] -= z[truth, i]
