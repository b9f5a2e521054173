"""L-BFGS: the optimum that scikit-learn finds, the gradient that finite differences give, and what a polish adds."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import datasets
from sklearn.linear_model import HuberRegressor, LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import streamgd as sg
from streamgd.config import FEW_ROWS, Config
from streamgd.data.source import as_source
from streamgd.data.stream import Position, WindowStream
from streamgd.data.table import TableSource
from streamgd.errors import ConfigError
from streamgd.job import prepare
from streamgd.keeper import Keeper
from streamgd.passes import Objective, in_one_stream

from .conftest import FLIGHTS, Write, classification, matrix


def standard(name: str) -> tuple[Any, Any]:
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.parametrize("name", ["breast_cancer", "iris", "wine", "digits"])
@pytest.mark.parametrize("C", [1.0, 0.01])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_logistic_regression_is_that_of_scikit_learn(name: str, C: float, fit_intercept: bool) -> None:
    X, y = standard(name)
    other = LogisticRegression(C=C, tol=1e-12, max_iter=20_000, fit_intercept=fit_intercept).fit(X, y)
    parameters: dict[str, Any] = {"alpha": 1 / (C * len(y)), "fit_intercept": fit_intercept, "standardize": False}
    fitted = sg.SGDClassifier(optimizer="lbfgs", **parameters).fit(X, y)
    assert np.linalg.norm(fitted.coef_ - other.coef_) < 1e-5 * np.linalg.norm(other.coef_)
    np.testing.assert_allclose(fitted.intercept_, np.broadcast_to(other.intercept_, fitted.intercept_.shape), atol=1e-4)
    assert fitted.result_.gradient_norm < 1e-6
    np.testing.assert_allclose(fitted.predict_proba(X), other.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_least_squares_are_those_of_scikit_learn(alpha: float) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    other: Any = Ridge(alpha * len(y)) if alpha else LinearRegression()
    other.fit(X, y)
    fitted = sg.SGDRegressor(optimizer="lbfgs", alpha=alpha, standardize=False).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, other.coef_, rtol=1e-4, atol=1e-4 * np.abs(other.coef_).max())
    np.testing.assert_allclose(fitted.intercept_, other.intercept_, rtol=1e-6)


def test_counts_and_outliers_have_the_optimum_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(800, 3))
    y = rng.poisson(np.exp(X @ [0.5, -0.3, 0.1] + 0.2)).astype(float)
    other = PoissonRegressor(alpha=0.01, tol=1e-10, max_iter=1000).fit(X, y)
    fitted = sg.SGDRegressor("poisson", optimizer="lbfgs", alpha=0.01, standardize=False).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, other.coef_, rtol=1e-4)
    np.testing.assert_allclose(fitted.predict(X), other.predict(X), rtol=1e-4)
    assert fitted.score(X, y) == pytest.approx(1 - np.mean((y - fitted.predict(X)) ** 2) / np.var(y))
    y = X @ [1.0, 2.0, 3.0] + rng.standard_t(1.5, size=800)
    huber = HuberRegressor(alpha=0.0, tol=1e-8, max_iter=1000).fit(X, y)
    fitted = sg.SGDRegressor("huber", epsilon=1.35 * huber.scale_, optimizer="lbfgs", penalty=None).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, huber.coef_, rtol=1e-3)


def flights_job(**parameters: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    n = 400
    table = pa.table(
        {
            "x": pa.array(rng.normal(size=n), mask=rng.random(n) < 0.1),
            "c": rng.choice(["a", "b", "c"], n),
            "t": rng.choice(["one two", "two three", "one", ""], n),
            "w": rng.uniform(0, 2, n),
            "y": rng.integers(0, 3 if parameters.pop("several", False) else 2, n),
        }
    )
    config = Config(text=("t",), interactions=(("c", "x"),), missing_indicator=True, optimizer="lbfgs", **parameters)
    return prepare(TableSource(table, 70), "y", config, weight="w")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_gradient_is_that_of_finite_differences(several: bool, fit_intercept: bool) -> None:
    job, feed = flights_job(several=several, alpha=0.3, fit_intercept=fit_intercept, window_rows=150)
    rng = np.random.default_rng(1)
    shape = job.outputs, len(job.inverse_scale) + 1
    table = np.zeros((job.encoder.spec.n_slots, job.outputs), np.float32)
    stream = WindowStream(feed.source, job.encoder, feed.plan, stop=Position(1000))
    with closing(iter(stream)) as windows:
        summed = in_one_stream(job, feed, windows, feed.plan.n_windows, Keeper())
        objective = Objective(job, summed, np.zeros(shape), table)
        at = rng.normal(size=len(objective.start))
        if not fit_intercept:
            at[len(job.inverse_scale) : np.prod(shape) : shape[1]] = 0
        _, _, gradient = objective(objective.start)
        _, _, gradient = objective(at)
        for place in rng.choice(len(at), 12, replace=False):
            h = np.zeros(len(at))
            h[place] = 1e-5
            slope = (objective(at + h)[1] - objective(at - h)[1]) / 2e-5
            is_intercept = place < np.prod(shape) and place % shape[1] == shape[1] - 1
            if is_intercept and not fit_intercept:
                assert gradient[place] == 0
            else:
                assert gradient[place] == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_hashed_categories_have_the_optimum_of_one_hot_columns() -> None:
    rng = np.random.default_rng(0)
    n = 1500
    c, d, x = rng.integers(0, 6, n), rng.integers(0, 4, n), rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-(0.4 * c - d + x)))).astype(int)
    table = pa.table({"c": c.astype(str), "d": d.astype(str), "x": x, "y": y})
    fitted = sg.SGDClassifier(optimizer="lbfgs", alpha=0.01, hash_bits=20).fit(table, "y")
    one_hot = OneHotEncoder().fit_transform(np.column_stack([c, d])).toarray()
    X = np.column_stack([one_hot, StandardScaler().fit_transform(x[:, np.newaxis])])
    other = LogisticRegression(C=1 / (0.01 * n), tol=1e-10, max_iter=5000).fit(X, y)
    np.testing.assert_allclose(fitted.predict_proba(table), other.predict_proba(X), atol=1e-4)


def test_a_polish_comes_closer_and_says_how_close(write: Write) -> None:
    path = write(classification(2000), row_group_rows=200)
    rough = sg.SGDClassifier(epochs=1, alpha=1e-3, polish=0).fit(path, "y")
    fine = sg.SGDClassifier(epochs=1, alpha=1e-3, polish=30).fit(path, "y")
    best = sg.SGDClassifier(optimizer="lbfgs", alpha=1e-3).fit(path, "y")
    assert rough.result_.gradient_norm is None and best.result_.gradient_norm < 1e-7
    assert fine.result_.gradient_norm < 1e-3
    assert fine.result_.objective == pytest.approx(best.result_.objective, rel=1e-6)
    assert fine.n_iter_ == 1 and 1 < fine.result_.polish_passes <= 30
    np.testing.assert_allclose(fine.coef_, best.coef_, rtol=1e-2, atol=1e-3)
    again = sg.SGDClassifier(epochs=1, alpha=1e-3, polish=30, n_jobs=3).fit(path, "y")
    assert again.model_.sha256() == fine.model_.sha256()


def test_passes_are_counted_and_windows_do_not_matter(write: Write) -> None:
    path = write(classification(2000), row_group_rows=100)
    few = sg.SGDClassifier(optimizer="lbfgs", epochs=3).fit(path, "y")
    assert few.n_iter_ == 3 and few.result_.rows == 6000
    whole, cut = (sg.SGDClassifier(optimizer="lbfgs", window_rows=w).fit(path, "y") for w in (2000, 150))
    np.testing.assert_allclose(cut.coef_, whole.coef_, rtol=1e-5)


def test_weights_are_rows_that_come_again() -> None:
    X, y = matrix(classification(300))
    times = np.random.default_rng(0).integers(0, 4, 300)
    weighted = sg.SGDClassifier(optimizer="lbfgs").fit(X, y, times)
    repeated = sg.SGDClassifier(optimizer="lbfgs").fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-4)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adagrad", "lbfgs"])
@pytest.mark.parametrize("weight", ["balanced", {0: 1.0, 1: 5.0}])
def test_class_weights_are_the_same_weights_given_by_hand(optimizer: str, weight: Any) -> None:
    X, y = matrix(classification(500))
    by_class = {k: 500 / (2 * (y == k).sum()) for k in (0, 1)} if weight == "balanced" else weight
    one = sg.SGDClassifier(optimizer=optimizer, class_weight=weight).fit(X, y)
    other = sg.SGDClassifier(optimizer=optimizer).fit(X, y, np.array([by_class[k] for k in y]))
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-5)
    np.testing.assert_allclose(one.intercept_, other.intercept_, rtol=1e-5, atol=1e-6)
    plain = sg.SGDClassifier(optimizer=optimizer).fit(X, y)
    assert not np.allclose(one.intercept_, plain.intercept_, rtol=1e-3)


def test_class_weights_name_classes_that_there_are() -> None:
    X, y = matrix(classification(50))
    with pytest.raises(ConfigError, match=r"names 7, but the classes are \[0, 1\]"):
        sg.SGDClassifier(class_weight={7: 2.0}).fit(X, y)
    with pytest.raises(ConfigError, match="weight 0"):
        sg.SGDClassifier(class_weight={0: 0, 1: 0}).fit(X, y)
    with pytest.raises(ConfigError, match="class_weight does nothing"):
        sg.SGDRegressor(class_weight="balanced").fit(X, y.astype(float))


@pytest.mark.parametrize(
    "parameters",
    [
        *({"optimizer": "adagrad"}, {"eta0": 0.1}, {"batch_size": 8}, {"average": False}, {"shuffle": False}),
        *({"loss": "hinge"}, {"penalty": "l1"}, {"polish": 0}, {"learning_rate": "constant"}, {"early_stopping": True}),
    ],
    ids=str,
)
def test_few_rows_are_polished_unless_the_user_says_how_to_learn(parameters: dict[str, Any], write: Write) -> None:
    table = classification(1000)
    path = write(table, row_group_rows=50)
    X, y = matrix(table)
    Z = StandardScaler().fit_transform(X)
    plain = sg.SGDClassifier(epochs=1).fit(path, "y")
    best = LogisticRegression(tol=1e-10, max_iter=1000).fit(Z, y)
    np.testing.assert_allclose(plain.predict_proba(path), best.predict_proba(Z), atol=1e-4)
    assert plain.n_iter_ == 1 and plain.result_.polish_passes > 1 and plain.result_.gradient_norm < 1e-6
    assert sg.SGDClassifier(epochs=1, **parameters).fit(path, "y").result_.polish_passes == 0


def test_many_rows_and_lots_are_not_polished() -> None:
    table = classification(FEW_ROWS + 1)
    assert sg.SGDClassifier(epochs=1).fit(table, "y").result_.polish_passes == 0
    assert sg.SGDClassifier(epochs=1).fit(table.slice(1), "y").result_.polish_passes > 0
    assert sg.SGDClassifier().partial_fit(table.slice(0, 500), "y", classes=[0, 1]).result_.polish_passes == 0


def test_memory_for_all_weights_at_once_is_planned() -> None:
    job, feed = prepare(as_source(FLIGHTS / "train"), "late", Config(epochs=1, polish=2))
    assert feed.memory.to_json()["base_bytes"] > 0 and job.table.descended > 0
