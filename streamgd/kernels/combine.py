"""What states of partitions that began a round alike become together.

A weight is the mean of the partitions' weights: for AdaGrad and FTRL weighed by what the squared gradients of the round
add up to in each (Agarwal, Chapelle, Dudik, Langford 2014), so that a feature which only one partition met keeps what
that one learned; for other optimizers by rows. Sums of squared gradients add up, as if all rows had been met by one;
momenta and moving averages are averaged by rows.

States are combined pair by pair, from left to right: ``left`` stands for the partitions before, with the rows of all.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import kernel, strict
from .problem import configured
from .updates import ADAGRAD, FTRL, ftrl_weight, learning_rate, settled


@strict
def joined(problem, eta, step, l1, l2, share, start, left, right):
    """Weight and state of two partitions: each of ``start``, ``left`` and ``right`` is a weight and its two states.

    ``share`` is that of the rows of ``left``; ``eta`` the rate of the last step, ``step`` the number of steps.
    """
    part = share
    if problem.optimizer == ADAGRAD or problem.optimizer == FTRL:
        k = 1 if problem.optimizer == ADAGRAD else 2
        gained, more = max(left[k] - start[k], 0.0), max(right[k] - start[k], 0.0)
        if gained + more > 0.0:
            part = gained / (gained + more)
    w = part * left[0] + (1.0 - part) * right[0]
    a = part * left[1] + (1.0 - part) * right[1]
    b = share * left[2] + (1.0 - share) * right[2]
    if problem.optimizer == ADAGRAD:
        a = left[1] + right[1] - start[1]
    elif problem.optimizer == FTRL:
        b = left[2] + right[2] - start[2]
        held = l1 * step
        if w == 0.0:
            a = min(max(a, -held), held)
        else:  # the state whose weight is w
            a = -(w * ((problem.optimizer_args[2] + np.sqrt(b)) / eta + l2 * step) + np.copysign(held, w))
    elif problem.optimizer != 0:
        a = share * left[1] + (1.0 - share) * right[1]
    return w, a, b


@kernel
def combine_dense(problem, settings, step, share, spread, start, start_slots, left, left_slots, right, right_slots):
    """Combine dense weights (float64[c, p + 1]) and their states (float64[2, c, p + 1]) into ``left``."""
    models = 1 if settings is None else len(settings)
    classes = len(left) // models
    for c in range(len(left)):
        one = configured(problem, settings, c // classes)
        eta = learning_rate(one.schedule, one.schedule_args, max(step - 1, 0))
        for j in range(left.shape[1]):
            w, a, b = joined(
                one,
                eta,
                step,
                one.l1 * spread[j],
                one.l2 * spread[j] ** 2,
                share,
                (start[c, j], start_slots[0, c, j], start_slots[1, c, j]),
                (left[c, j], left_slots[0, c, j], left_slots[1, c, j]),
                (right[c, j], right_slots[0, c, j], right_slots[1, c, j]),
            )
            left[c, j], left_slots[0, c, j], left_slots[1, c, j] = w, a, b


@strict
def _slot(problem, eta, table, marks, slot, c, outputs, step):
    """Weight of a slot as its next visit will find it, and its states."""
    slots = problem.slots
    w = np.float64(table[slot, c])
    a = np.float64(table[slot, outputs + c]) if slots > 0 else 0.0
    b = np.float64(table[slot, 2 * outputs + c]) if slots > 1 else 0.0
    mark = np.uint32(marks[slot, marks.shape[1] - 1])
    if mark != 0:
        if problem.optimizer == FTRL:
            if problem.l1 != 0.0 or problem.l2 != 0.0:
                w = ftrl_weight(problem, eta, np.float64(step), problem.l1, problem.l2, a, b)
        else:
            elapsed = np.int64(np.uint32(np.uint32(step) - mark))
            w = settled(problem, eta, step, problem.l1, problem.l2, elapsed, w, a, b)
    return w, a, b


@kernel
def combine_tables(
    problem,
    settings,
    outputs,
    step,
    left_step,
    right_step,
    share,
    start,
    start_marks,
    left,
    left_marks,
    right,
    right_marks,
):
    """Combine tables of hashed weights, as `streamgd.kernels.tables` has them, into ``left`` at step ``step``."""
    models = 1 if settings is None else len(settings)
    classes, last = outputs // models, start.shape[1] - 1
    for slot in range(len(start)):
        before = start_marks[slot, last]
        if left_marks[slot, last] == before and right_marks[slot, last] == before:
            continue
        for c in range(outputs):
            one = configured(problem, settings, c // classes)
            eta = learning_rate(one.schedule, one.schedule_args, max(step - 1, 0))
            w, a, b = joined(
                one,
                eta,
                step,
                one.l1,
                one.l2,
                share,
                _slot(one, eta, start, start_marks, slot, c, outputs, step),
                _slot(one, eta, left, left_marks, slot, c, outputs, left_step),
                _slot(one, eta, right, right_marks, slot, c, outputs, right_step),
            )
            left[slot, c] = w
            if one.slots > 0:
                left[slot, outputs + c] = a
            if one.slots > 1:
                left[slot, 2 * outputs + c] = b
        left_marks[slot, last] = np.int32(np.uint32(step))
