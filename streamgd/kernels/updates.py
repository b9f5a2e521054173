"""One step of each optimizer on a single weight, the pull of the penalty, and the learning rate of each schedule.

Dense weights and those of hashed features go through the same few functions. Dense weights are float64: steps far
smaller than the weight, and sums of squares over 1e9 rows, still count. Those of hashed features are float32, and what
the optimizers `COMMON` make of them is computed so, twice as many at a time and in a third of the time; constants are
float32 here, so that they leave the type of a sum to the weights. What takes differences of roots is always float64.

``problem`` is what `streamgd.kernels.drain.Problem` describes, numbers only. Its ``rare`` is None for the optimizers
`COMMON`; then the others are not compiled, which takes a second.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import like, strict

SGD, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADAM, FTRL = range(7)
CONSTANT, INVSCALING, OPTIMAL, COSINE, STEPS = range(5)

COMMON = (SGD, ADAGRAD)

#: Places in the optimizer's arguments and in the schedule's.
BETA_1, BETA_2, EPSILON = 0, 1, 2
_ZERO, _ONE, _LARGE = np.float32(0), np.float32(1), np.float32(1e30)
ETA0, SHAPE, SPAN, WARMUP = 0, 1, 2, 3


@strict
def learning_rate(schedule, args, step):
    """Learning rate of a step (0, 1, ...).

    ``args`` is eta0; power_t, alpha or the factor of each span; t0 or the steps of a span; and the steps of warm-up.
    """
    if schedule == INVSCALING:
        eta = args[ETA0] / (step + 1.0) ** args[SHAPE]
    elif schedule == OPTIMAL:
        eta = 1.0 / (args[SHAPE] * (args[SPAN] + step))
    elif schedule == COSINE:
        eta = args[ETA0] * 0.5 * (1.0 + np.cos(np.pi * min(step / args[SPAN], 1.0)))
    elif schedule == STEPS:
        eta = args[ETA0] * args[SHAPE] ** np.floor(step / args[SPAN])
    else:
        eta = args[ETA0]
    return eta * min(1.0, (step + 1.0) / (args[WARMUP] + 1.0))


@strict
def rate(problem, eta, step, a, b):
    """How far a weight moves for a unit of lasting gradient; ``a``, ``b`` are its state after ``step`` steps (>= 1)."""
    if problem.optimizer in (ADAGRAD, RMSPROP):
        return eta / (np.sqrt(a) + problem.optimizer_args[EPSILON])
    if problem.rare is not None:
        if problem.optimizer == ADAM:
            square = b / (1.0 - problem.optimizer_args[BETA_2] ** np.float64(step))
            return like(a, eta / (np.sqrt(square) + problem.optimizer_args[EPSILON]))
        if problem.optimizer in (MOMENTUM, NESTEROV):
            return like(a, eta / (1.0 - problem.optimizer_args[BETA_1]))
    return like(a, eta)


@strict
def shrink(w, pull, l1, l2):
    """Proximal step of ``l1 |w| + l2 w^2 / 2`` of length ``pull``.

    A pull far smaller than the weight is subtracted, so that it is not lost beside the 1.
    """
    kept, pulled = np.copysign(max(abs(w) - pull * l1, _ZERO), w), min(pull * l2, _LARGE)
    return kept - kept * (pulled / (_ONE + pulled))


@strict
def ftrl_weight(problem, eta, steps, l1, l2, a, b):
    """Weight of FTRL-Proximal (McMahan et al. 2013) after so many steps, each of which adds the penalty once.

    ``eta`` is the rate of the last step that changed ``a`` and ``b``.
    """
    if abs(a) <= l1 * steps:
        return 0.0
    return -(a - np.copysign(l1 * steps, a)) / ((problem.optimizer_args[EPSILON] + np.sqrt(b)) / eta + l2 * steps)


@strict
def rebased(problem, before, eta, w, a, b):
    """FTRL-Proximal's ``a`` with which a weight stays as it is when the rate goes from ``before`` to ``eta``.

    A rate enters as the curvature (epsilon + sqrt(b)) / eta. What it gains or loses counts from the weight, as the
    definition has it; if it counted from 0, weights would fall with the rate.
    """
    return a - (problem.optimizer_args[EPSILON] + np.sqrt(b)) * (1.0 / eta - 1.0 / before) * w


@strict
def settled(problem, eta, step, l1, l2, elapsed, w, a, b):
    """A weight after the last ``elapsed`` of ``step`` steps, in which only the penalty pulled it."""
    if elapsed <= 0 or (l1 == 0.0 and l2 == 0.0):
        return w
    if problem.rare is not None and problem.optimizer == FTRL:
        return like(w, ftrl_weight(problem, eta, np.float64(step), l1, l2, np.float64(a), np.float64(b)))
    return shrink(w, rate(problem, eta, step, a, b) * elapsed, l1, l2)


@strict
def advance(problem, eta, step, g, w, a, b):
    """One step along a gradient, without penalty: the weight and its state."""
    if problem.optimizer == SGD:
        return w - eta * g, a, b
    if problem.optimizer == ADAGRAD:
        a += g * g
        return w - eta * g / (np.sqrt(a) + problem.optimizer_args[EPSILON]), a, b
    if problem.rare is not None:
        x, y, z = np.float64(w), np.float64(a), np.float64(b)
        x, y, z = _advance_rare(problem, np.float64(eta), step, np.float64(g), x, y, z)
        return like(w, x), like(a, y), like(b, z)
    return w, a, b


@strict
def stepped(problem, eta, step, l1, l2, g, w, a, b):
    """One step along a gradient and what the penalty pulls in it: the weight and its state.

    Moved along g by eta / c and shrunk by 1 + l2 eta / c, a weight is w - (eta g + eta l2 w) / (c + eta l2). So without
    L1 it takes one division, not three, and is rounded once, however small both pulls are beside it.
    """
    if problem.l1 == 0.0 and problem.optimizer in COMMON:
        pull = min(eta * l2, _LARGE)
        toward = eta * g + pull * w
        if problem.optimizer == SGD:
            return w - toward * (_ONE / (_ONE + pull)), a, b
        a += g * g
        return w - toward / (np.sqrt(a) + problem.optimizer_args[EPSILON] + pull), a, b
    w, a, b = advance(problem, eta, step, g, w, a, b)
    return settled(problem, eta, step + 1, l1, l2, _ONE, w, a, b), a, b


@strict
def _advance_rare(problem, eta, step, g, w, a, b):
    if problem.optimizer == MOMENTUM:
        a = problem.optimizer_args[BETA_1] * a + g
        w -= eta * a
    elif problem.optimizer == NESTEROV:
        a = problem.optimizer_args[BETA_1] * a + g
        w -= eta * (g + problem.optimizer_args[BETA_1] * a)
    elif problem.optimizer == RMSPROP:
        a = problem.optimizer_args[BETA_2] * a + (1.0 - problem.optimizer_args[BETA_2]) * g * g
        w -= eta * g / (np.sqrt(a) + problem.optimizer_args[EPSILON])
    elif problem.optimizer == ADAM:
        a = problem.optimizer_args[BETA_1] * a + (1.0 - problem.optimizer_args[BETA_1]) * g
        b = problem.optimizer_args[BETA_2] * b + (1.0 - problem.optimizer_args[BETA_2]) * g * g
        mean = a / (1.0 - problem.optimizer_args[BETA_1] ** (step + 1.0))
        w -= (
            eta
            * mean
            / (np.sqrt(b / (1.0 - problem.optimizer_args[BETA_2] ** (step + 1.0))) + problem.optimizer_args[EPSILON])
        )
    else:
        square = b + g * g
        a += g - (np.sqrt(square) - np.sqrt(b)) / eta * w
        b = square
        w -= eta * g / (np.sqrt(b) + problem.optimizer_args[EPSILON])
    return w, a, b


@strict
def update(problem, before, eta, step, spread, gradient, params, a_row, b_row):
    """One step of dense weights, of which the last is the intercept; ``before`` is the rate of the step before.

    All arrays are float64[p + 1]; ``a_row`` and ``b_row`` are the state. The penalty is of weights times ``spread``,
    which is 0 for the intercept. Return whether all weights are finite.
    """
    wild = False
    for j in range(len(params)):
        w, a, b = params[j], a_row[j], b_row[j]
        if problem.rare is not None and problem.optimizer == FTRL and before != eta:
            a = rebased(problem, before, eta, w, a, b)
        l1, l2 = problem.l1 * spread[j], problem.l2 * spread[j] * spread[j]
        w, a, b = stepped(problem, eta, step, l1, l2, gradient[j], w, a, b)
        params[j], a_row[j] = w, a
        if problem.rare is not None:
            b_row[j] = b
        wild |= not abs(w) < np.inf
    return not wild
