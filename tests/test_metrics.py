"""Streaming metrics against scikit-learn on all rows at once, however they are cut, and the bound of the ROC AUC."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from streamgd.errors import BadWeight, DataError
from streamgd.metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics

# Sums in another order: a few units in the last place.
ROUNDING = 1e-11

# A busy machine is no failure.
unhurried = settings(deadline=None)

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 400)
# None: smooth margins; else rounded to multiples of this, so that there are ties.
steps = st.sampled_from([None, 0.1, 0.5, 2.0])
weightings = st.sampled_from(["none", "real", "integer", "some zero"])


def make_weights(kind, rng, n):
    if kind == "none":
        return None
    if kind == "real":
        return rng.exponential(size=n) + 1e-3
    if kind == "integer":
        return rng.integers(1, 5, n)
    return rng.integers(0, 3, n) * 0.5


def stream(make, rng, *columns):
    """Deal the rows to one to four partitions, each in batches of random sizes (also empty ones), and merge them."""
    n = len(columns[0])
    partition = rng.integers(0, rng.integers(1, 5), n)
    total = make()
    for p in range(4):
        rows = np.flatnonzero(partition == p)
        part = make()
        cuts = np.sort(rng.integers(0, len(rows) + 1, rng.integers(0, 4)))
        for batch in np.split(rows, cuts):
            part.update(*(None if column is None else column[batch] for column in columns))
        before = part.compute()
        total.merge(part)
        assert part.compute() == before
    return total.compute()


def assert_json(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert all(value is None or type(value) in (int, float) for value in result.values())


def exact_auc(margin, y, weights):
    """The definition: the share of pairs in the right order, ties ½, in rational numbers."""
    weights = np.ones(len(y)) if weights is None else weights
    rows = [(float(z), int(t), Fraction(float(w))) for z, t, w in zip(margin, y, weights, strict=True)]
    won = total = Fraction(0)
    for z, t, w in rows:
        for other, s, v in rows:
            if t == 1 and s == 0:
                total += w * v
                won += w * v * (Fraction(1) if z > other else Fraction(1, 2) if z == other else Fraction(0))
    return won / total if total else None


@unhurried
@given(seed=seeds, n=sizes, step=steps, weighting=weightings, scale=st.sampled_from([1e-3, 1.0, 4.0]))
def test_binary_equals_scikit_learn(seed, n, step, weighting, scale):
    rng = np.random.default_rng(seed)
    z = np.clip(rng.normal(rng.normal(), scale, n), -15, 15)
    z = z if step is None else np.round(z / step) * step
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(rng.choice(["i1", "i8", "f8", "?"]))
    w = make_weights(weighting, rng, n)
    result = stream(BinaryMetrics, rng, z, y, w)
    assert_json(result)
    assert result["rows"] == n
    if w is not None and w.sum() == 0:
        assert result["log_loss"] is result["accuracy"] is result["roc_auc"] is result["roc_auc_error"] is None
        return
    expected = reference.log_loss(y, 1 / (1 + np.exp(-z)), sample_weight=w, labels=[0, 1])
    assert result["log_loss"] == pytest.approx(expected, rel=1e-9)
    assert result["accuracy"] == pytest.approx(reference.accuracy_score(y, z > 0, sample_weight=w), rel=ROUNDING)
    seen = y if w is None else y[w > 0]
    if len(np.unique(seen)) < 2:
        assert result["roc_auc"] is None and result["roc_auc_error"] is None
    else:
        auc = reference.roc_auc_score(y, z, sample_weight=w)
        assert abs(result["roc_auc"] - auc) <= result["roc_auc_error"] + ROUNDING


@unhurried
@given(
    rows=st.lists(
        st.tuples(
            # Neighbours in float64 and float32, zeros of both signs, subnormals, powers of two, beyond the last bin.
            st.one_of(
                st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1.0, 1 + 2**-52, 1 - 2**-53, 1 + 2**-23, 1e-300, -1e-300]),
                st.sampled_from([2.0**-6, 2.0**16, -(2.0**16), 65535.99, 1e4, -1e4, 1e5, -1e5, 1e140, -1e140]),
                st.floats(-1e6, 1e6, width=32),
                st.floats(-1e140, 1e140),
            ),
            st.booleans(),
            st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_bound_of_roc_auc_always_holds(rows):
    z, y, w = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    metrics = BinaryMetrics()
    metrics.update(z, y, w)
    result = metrics.compute()
    exact = exact_auc(z, y, w)
    if exact is None:
        assert result["roc_auc"] is None and result["roc_auc_error"] is None
    else:
        assert 0 <= result["roc_auc"] <= 1
        assert abs(result["roc_auc"] - float(exact)) <= result["roc_auc_error"] + 1e-14


@unhurried
@given(seed=seeds, step=st.sampled_from([0.25, 1.0, 7.0]), spread=st.sampled_from([0.5, 5.0, 100.0]))
def test_roc_auc_of_tied_margins_is_exact(seed, step, spread):
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(0, spread, 300)) * step
    y = np.arange(300) % 3 == 0
    result = stream(BinaryMetrics, rng, z, y)
    assert result["roc_auc_error"] == 0
    assert result["roc_auc"] == pytest.approx(reference.roc_auc_score(y, z), rel=ROUNDING)


def test_bound_counts_the_pairs_of_one_bin():
    metrics = BinaryMetrics()
    # The first four margins share a bin in the wrong order: 4 of 9 pairs are unknown, and in truth all lost.
    metrics.update([1.0, 1.0, 1 + 1e-9, 1 + 1e-9, 3.0, -3.0], [1, 1, 0, 0, 1, 0])
    result = metrics.compute()
    assert result["roc_auc_error"] == pytest.approx(0.5 * 4 / 9)
    assert result["roc_auc"] - 5 / 9 == pytest.approx(result["roc_auc_error"])


@pytest.mark.parametrize(
    ("mean", "spread"), [(0, 1), (-1.2, 0.5), (-7, 1), (0, 0.01), (3, 30), (0, 1e4)], ids=lambda value: str(value)
)
def test_bound_is_below_1e_4_for_smooth_margins(mean, spread):
    rng = np.random.default_rng(7)
    y = rng.random(400_000) < 0.3
    z = rng.normal(mean, spread, len(y)) + spread * y
    result = stream(BinaryMetrics, rng, z, y)
    assert result["roc_auc_error"] < 1e-4
    auc = reference.roc_auc_score(y, z)
    assert abs(result["roc_auc"] - auc) <= result["roc_auc_error"] + ROUNDING
    # The mean of the errors inside the bins is far smaller than their bound.
    assert abs(result["roc_auc"] - auc) < 2e-6


@pytest.mark.parametrize("margin", [1e4, -1e4, 800.0, 37.0, 1e-9, 0.0])
def test_extreme_margins(margin):
    for y in (0, 1):
        metrics = BinaryMetrics()
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            metrics.update([margin], [y])
        expected = np.logaddexp(0, (1 - 2 * y) * margin)
        assert metrics.compute()["log_loss"] == pytest.approx(expected, rel=1e-14, abs=0)
        assert metrics.compute()["accuracy"] == ((margin > 0) == y)


@pytest.mark.parametrize("make", [BinaryMetrics, lambda: MulticlassMetrics(3), RegressionMetrics])
def test_no_rows(make):
    metrics = make()
    shape = (0, 3) if isinstance(metrics, MulticlassMetrics) else 0
    metrics.update(np.zeros(shape), np.zeros(0), np.zeros(0))
    metrics.merge(make())
    result = metrics.compute()
    assert result.pop("rows") == 0
    assert set(result.values()) == {None}


@unhurried
@given(seed=seeds, n=sizes, k=st.integers(2, 6), step=steps, weighting=weightings)
def test_multiclass_equals_scikit_learn(seed, n, k, step, weighting):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (n, k))
    scores = scores if step is None else np.round(scores / step) * step
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    y = (scores + rng.gumbel(size=(n, k))).argmax(axis=1)
    w = make_weights(weighting, rng, n)
    result = stream(lambda: MulticlassMetrics(k), rng, log_p, y, w)
    assert_json(result)
    assert result["rows"] == n
    if w is not None and w.sum() == 0:
        assert result["log_loss"] is result["accuracy"] is result["roc_auc"] is None
        return
    labels = list(range(k))
    p = np.exp(log_p)
    assert result["log_loss"] == pytest.approx(reference.log_loss(y, p, sample_weight=w, labels=labels), rel=1e-9)
    hits = reference.accuracy_score(y, log_p.argmax(axis=1), sample_weight=w)
    assert result["accuracy"] == pytest.approx(hits, rel=ROUNDING)
    seen = y if w is None else y[w > 0]
    if len(np.unique(seen)) < k:
        assert result["roc_auc"] is None and result["roc_auc_error"] is None
    else:
        each = [reference.roc_auc_score(y == c, log_p[:, c], sample_weight=w) for c in labels]
        # What "macro" is. Probabilities round differently than their logarithms, so only where no rows tie; two columns
        # are another shape for scikit-learn.
        if k > 2 and step is None:
            macro = reference.roc_auc_score(y, p, sample_weight=w, multi_class="ovr", average="macro", labels=labels)
            assert macro == pytest.approx(np.mean(each), abs=1e-6)
        assert abs(result["roc_auc"] - np.mean(each)) <= result["roc_auc_error"] + ROUNDING


@unhurried
@given(seed=seeds)
def test_two_classes_are_the_same_as_binary(seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, 500)
    y = rng.integers(0, 2, 500)
    binary, multiclass = BinaryMetrics(), MulticlassMetrics(2)
    binary.update(z, y)
    multiclass.update(np.column_stack([-np.logaddexp(0, z), -np.logaddexp(0, -z)]), y)
    one, two = binary.compute(), multiclass.compute()
    assert two["log_loss"] == pytest.approx(one["log_loss"], rel=1e-12)
    assert two["accuracy"] == one["accuracy"]
    assert abs(two["roc_auc"] - one["roc_auc"]) <= one["roc_auc_error"] + two["roc_auc_error"] + ROUNDING


@pytest.mark.parametrize(("k", "bound"), [(3, 3e-5), (10, 3e-4), (50, 2e-3)])
def test_multiclass_bound_and_memory(k, bound):
    rng = np.random.default_rng(k)
    scores = rng.normal(size=(40_000, k))
    y = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    metrics = MulticlassMetrics(k)
    metrics.update(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), y)
    assert metrics.compute()["roc_auc_error"] < bound
    assert len(pickle.dumps(metrics)) < 17e6


def test_no_roc_auc_of_more_than_50_classes():
    metrics = MulticlassMetrics(51)
    metrics.update(np.full((51, 51), -math.log(51)), np.arange(51))
    result = metrics.compute()
    assert result["log_loss"] == pytest.approx(math.log(51))
    assert result["roc_auc"] is None and result["roc_auc_error"] is None
    assert len(pickle.dumps(metrics)) < 10_000


def test_probabilities_of_zero_and_one():
    metrics = MulticlassMetrics(2)
    metrics.update([[0.0, -np.inf], [-np.inf, 0.0], [0.0, -np.inf], [-1e4, 0.0]], [0, 1, 1, 0])
    result = metrics.compute()
    assert_json(result)
    assert result["log_loss"] == pytest.approx((744.44 + 1e4) / 4, rel=1e-5)
    assert result["accuracy"] == 0.5


@unhurried
@given(
    seed=seeds,
    n=st.integers(2, 400),
    weighting=weightings,
    offset=st.sampled_from([0.0, -50.0, 1e9]),
    noise=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
)
def test_regression_equals_scikit_learn(seed, n, weighting, offset, noise):
    rng = np.random.default_rng(seed)
    y = offset + noise * rng.normal(size=n)
    prediction = y + rng.choice([0.0, 0.5]) * noise * rng.normal(size=n)
    w = make_weights(weighting, rng, n)
    result = stream(RegressionMetrics, rng, prediction, y, w)
    assert_json(result)
    assert result["rows"] == n
    if w is not None and np.count_nonzero(w) < 2:
        assert result["r2"] is None
        return
    # Exact differences: the spacing of float64 at 1e9 is 1e-7, and scikit-learn's own mean of y is not better.
    rmse = reference.root_mean_squared_error(y, prediction, sample_weight=w)
    assert result["rmse"] == pytest.approx(rmse, rel=ROUNDING)
    assert result["mae"] == pytest.approx(reference.mean_absolute_error(y, prediction, sample_weight=w), rel=ROUNDING)
    r2 = reference.r2_score(y - offset, prediction - offset, sample_weight=w)
    assert result["r2"] == pytest.approx(r2, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 + 1 / 3])
@pytest.mark.parametrize("weighting", ["none", "real", "some zero"])
def test_constant_target_has_the_r2_of_scikit_learn(value, weighting):
    rng = np.random.default_rng(3)
    y = np.full(40_000, value)
    w = make_weights(weighting, rng, len(y))
    assert stream(RegressionMetrics, rng, y, y, w)["r2"] == 1.0
    assert stream(RegressionMetrics, rng, y + 1, y, w)["r2"] == 0.0
    # What a row of weight 0 has for its target does not matter.
    w = np.ones(len(y)) if w is None else w
    w[:100], y[:100] = 0.0, -1.0
    assert stream(RegressionMetrics, rng, y, y, w)["r2"] == 1.0
    assert stream(RegressionMetrics, rng, y + 1, y, w)["r2"] == 0.0


def test_largest_numbers_do_not_overflow():
    binary, regression = BinaryMetrics(), RegressionMetrics()
    with np.errstate(over="raise"):
        binary.update(np.full(1000, 1e140), np.zeros(1000))
        regression.update(np.full(1000, 1e140), np.resize([1e140, -1e140], 1000))
    assert_json(binary.compute())
    assert_json(regression.compute())
    assert regression.compute()["rmse"] == pytest.approx(math.sqrt(2) * 1e140)


def test_r2_of_one_row_is_not_defined():
    metrics = RegressionMetrics()
    metrics.update([1.0], [2.0])
    assert metrics.compute() == {"rows": 1, "rmse": 1.0, "mae": 1.0, "r2": None}


def test_regression_holds_at_a_billion_rows_far_from_zero():
    rng = np.random.default_rng(11)
    y = 1e9 + np.round(rng.normal(size=4096) * 2**10) / 2**20  # exact in float64, spread 1e-3
    prediction = y + 2.0**-12
    distances = [Fraction(float(value)) - 10**9 for value in y]
    mean = sum(distances) / len(distances)
    deviations = sum((value - mean) ** 2 for value in distances) / len(distances)
    expected = float(1 - Fraction(1, 2**24) / deviations)
    total = RegressionMetrics()
    for batch in np.split(np.arange(4096), [1, 100, 101, 3000]):
        total.update(prediction[batch], y[batch])
    for _ in range(18):  # 4096 · 2**18 = 1.07e9 rows
        total.merge(copy.deepcopy(total))
    result = total.compute()
    assert result["rows"] == 4096 * 2**18 > 1e9
    assert result["rmse"] == pytest.approx(2.0**-12, rel=1e-12)
    assert result["mae"] == pytest.approx(2.0**-12, rel=1e-12)
    assert result["r2"] == pytest.approx(expected, rel=1e-9)


def test_binary_holds_at_a_billion_rows():
    rng = np.random.default_rng(12)
    z, y = rng.normal(size=4096), rng.integers(0, 2, 4096)
    total = BinaryMetrics()
    total.update(z, y)
    once = total.compute()
    for _ in range(18):
        total.merge(copy.deepcopy(total))
    result = total.compute()
    assert result.pop("rows") == once.pop("rows") * 2**18
    assert result == pytest.approx(once, rel=1e-12)


@unhurried
@given(seed=seeds)
def test_integer_weights_are_repeated_rows(seed):
    rng = np.random.default_rng(seed)
    z, y, w = rng.normal(size=200), rng.integers(0, 2, 200), rng.integers(0, 4, 200)
    for make in (BinaryMetrics, RegressionMetrics):
        weighted, repeated = make(), make()
        weighted.update(z, y, w)
        repeated.update(np.repeat(z, w), np.repeat(y, w))
        one, two = weighted.compute(), repeated.compute()
        assert (one.pop("rows"), two.pop("rows")) == (200, w.sum())
        assert one == pytest.approx(two, rel=ROUNDING)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0, np.nan], [0, 1]), DataError, "1 of 2 margins are NaN or beyond ±1e\\+140"),
        (([0.0, np.inf], [0, 1]), DataError, "1 of 2 margins are NaN or beyond ±1e\\+140"),
        (([0.0, -1e141], [0, 1]), DataError, "1 of 2 margins are NaN or beyond"),
        (([0.0, 1.0], [0, 2]), ValueError, "0 and 1"),
        (([0.0, 1.0], [0, 0.5]), ValueError, "0 and 1"),
        (([0.0, 1.0], [0, np.nan]), ValueError, "0 and 1"),
        (([0.0, 1.0], [0]), ValueError, r"shapes differ: predictions \(2,\), y \(1,\)"),
        (([[0.0], [1.0]], [[0], [1]]), ValueError, "one number a row"),
        (([0.0, 1.0], [0, 1], [1.0]), ValueError, "shapes differ"),
        (([0.0, 1.0], [0, 1], [1.0, -1.0]), BadWeight, "from -1.0 to 1.0"),
        (([0.0, 1.0], [0, 1], [1.0, np.nan]), BadWeight, "finite"),
        (([0.0, 1.0], [0, 1], [1.0, np.inf]), BadWeight, "finite"),
    ],
)
def test_bad_rows_are_refused_and_add_nothing(arguments, error, message):
    metrics = BinaryMetrics()
    with pytest.raises(error, match=message):
        metrics.update(*arguments)
    assert metrics.compute() == BinaryMetrics().compute()


@pytest.mark.parametrize(
    ("log_p", "y", "error", "message"),
    [
        ([[-1.0, np.nan]], [0], DataError, "NaN"),
        ([[0.6, 0.4]], [0], ValueError, "not probabilities"),
        ([[-0.7, -0.7]], [2], ValueError, "0 to 1"),
        ([[-0.7, -0.7]], [-1], ValueError, "0 to 1"),
        ([[-0.7, -0.7]], [0.5], ValueError, "0 to 1"),
        ([[-1.0, -1.0, -1.0]], [0], ValueError, r"expected \(n, 2\)"),
    ],
)
def test_bad_log_probabilities_are_refused(log_p, y, error, message):
    metrics = MulticlassMetrics(2)
    with pytest.raises(error, match=message):
        metrics.update(log_p, y)
    assert metrics.compute() == MulticlassMetrics(2).compute()


def test_numbers_of_classes_that_make_no_sense():
    with pytest.raises(ValueError, match="at least 2"):
        MulticlassMetrics(1)
    with pytest.raises(ValueError, match="3 classes into those of 2"):
        MulticlassMetrics(2).merge(MulticlassMetrics(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e141])
def test_regression_refuses_what_is_not_finite(bad):
    metrics = RegressionMetrics()
    with pytest.raises(DataError, match="1 of 2 predictions"):
        metrics.update([bad, 1.0], [0.0, 1.0])
    with pytest.raises(DataError, match="1 of 2 targets"):
        metrics.update([0.0, 1.0], [bad, 1.0])
    assert metrics.compute() == RegressionMetrics().compute()


def test_metrics_travel_between_processes():
    for metrics in (BinaryMetrics(), RegressionMetrics()):
        metrics.update([0.5, -0.5, 2.0], [1, 0, 0])
        assert pickle.loads(pickle.dumps(metrics)).compute() == metrics.compute()


def test_nothing_heavy_is_imported():
    code = "import sys, streamgd.metrics; print({'sklearn', 'scipy', 'pyarrow', 'numba', 'dask'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "set()"
