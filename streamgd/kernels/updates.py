"""One step of each optimizer, and the learning rate of each schedule.

``params`` are the weights of the standardised features and, last, the intercept. ``slots`` is the optimizer's
state, one row an accumulator. All are float64: steps far smaller than the weight, and sums of squares over 1e9
rows, still count.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import jit

SGD, MOMENTUM, NESTEROV, ADAGRAD = 0, 1, 2, 3
CONSTANT, INVSCALING, OPTIMAL = 0, 1, 2


@jit
def learning_rate(schedule, args, step):
    """Learning rate of a step (0, 1, ...); ``args`` is eta0, then power_t, or alpha and t0."""
    if schedule == INVSCALING:
        return args[0] / (step + 1.0) ** args[1]
    if schedule == OPTIMAL:
        return 1.0 / (args[1] * (args[2] + step))
    return args[0]


@jit
def update(optimizer, args, eta, gradient, params, slots):
    """Apply one step along the mean ``gradient``; return False if a weight is no longer finite."""
    if optimizer == SGD:
        for j in range(len(params)):
            params[j] -= eta * gradient[j]
    elif optimizer == MOMENTUM:
        for j in range(len(params)):
            slots[0, j] = args[0] * slots[0, j] + gradient[j]
            params[j] -= eta * slots[0, j]
    elif optimizer == NESTEROV:
        for j in range(len(params)):
            slots[0, j] = args[0] * slots[0, j] + gradient[j]
            params[j] -= eta * (gradient[j] + args[0] * slots[0, j])
    else:
        for j in range(len(params)):
            slots[0, j] += gradient[j] * gradient[j]
            params[j] -= eta * gradient[j] / (np.sqrt(slots[0, j]) + args[0])
    total = 0.0
    for j in range(len(params)):
        total += abs(params[j])
    return total < np.inf
