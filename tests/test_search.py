"""Searches: one answer however rows are given, scores that others compute too, and a face like `GridSearchCV`'s."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import rankdata
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import GridSearchCV, ParameterGrid, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

import streamgd as sg
from streamgd.data.evaluate import margins
from streamgd.data.source import ParquetSource
from streamgd.errors import ConfigError, StreamgdError, TrainingDiverged
from streamgd.job import prepare
from streamgd.state import Progress, State
from streamgd.trainer import train

from .conftest import Write, classification, matrix, regression

GRID = {"alpha": [1e-4, 1.0], "eta0": [0.1, 1.0]}
NAMES = ["x0", "x1", "x2"]
KINDS: dict[str, Any] = {
    "classification": (sg.SGDClassifier, classification),
    "regression": (sg.SGDRegressor, regression),
}


def with_weights(table: pa.Table) -> pa.Table:
    weights = np.random.default_rng(7).integers(1, 5, len(table)).astype(float)
    return table.append_column("w", pa.array(weights))


def given(form: str, table: pa.Table, write: Write) -> tuple[Any, Any]:
    """The same rows as shards, a table, arrays, or a frame of numbers or of other things too."""
    if form == "shards":
        return write(table, shards=3, row_group_rows=50), "y"
    if form == "table":
        return table, "y"
    X, y = matrix(table)
    if form == "arrays":
        return X, y
    frame = pd.DataFrame(X, columns=NAMES)
    return frame if form == "numbers" else frame.assign(c=[f"c{i}" for i in np.abs(X[:, 0]).astype(int)]), y


FORMS = ["shards", "table", "arrays", "numbers", "mixed"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", KINDS)
def test_the_best_is_what_the_estimator_alone_becomes(form: str, task: str, write: Write, tmp_path: Path) -> None:
    kind, rows = KINDS[task]
    data, target = given(form, rows(900), write)
    found = sg.tune(data, target, GRID)
    assert type(found.best) is kind and found.best_params in list(ParameterGrid(GRID))
    expected = kind(**found.best_params).fit(data, target)
    assert found.best.model_.sha256() == expected.model_.sha256()
    assert found.best.get_params() == expected.get_params()
    assert found.best.n_features_in_ == expected.n_features_in_ and found.best.t_ == expected.t_
    points = [{name: model[name] for name in GRID} for model in found.models]
    assert points[0] == found.best_params and all(point in points for point in ParameterGrid(GRID))
    assert [model["dropped"] for model in found.models] == [False, False, True, True]
    np.testing.assert_array_equal(found.best.predict(data), expected.predict(data))
    assert found.best.score(data, target) == expected.score(data, target)
    found.best.save(tmp_path / "model")
    np.testing.assert_array_equal(sg.load(tmp_path / "model").predict(data), expected.predict(data))


@pytest.mark.parametrize("form", ["shards", "arrays", "numbers"])
def test_weights_and_validation_data_are_those_of_fit(form: str, write: Write) -> None:
    table, other = with_weights(classification(600)), with_weights(classification(200, seed=5))
    if form == "shards":
        data: tuple[Any, ...] = write(table, row_group_rows=50), "y"
        weight, validation = "w", write(other, "other")
    else:
        (data, weight), (rows, weights) = (
            (given(form, each.drop(["w"]), write), each["w"].to_numpy()) for each in (table, other)
        )
        validation = (*rows, weights)
    found = sg.tune(*data, {"alpha": [1.0, 1e-3]}, sample_weight=weight, validation=validation)
    for model in found.models:
        by_itself = sg.SGDClassifier(alpha=model["alpha"]).fit(*data, weight)
        scored = log_loss(
            other["y"].to_numpy(),
            by_itself.predict_proba(other if form == "shards" else rows[0])[:, 1],
            sample_weight=other["w"].to_numpy(),
        )
        assert model["validation_loss"] == pytest.approx(scored, rel=1e-9)
        assert model["progressive_loss"] == by_itself.result_.losses[0]
    assert found.models[0]["validation_loss"] < found.models[1]["validation_loss"]
    assert found.best.model_.sha256() == sg.SGDClassifier(**found.best_params).fit(*data, weight).model_.sha256()


def test_the_target_says_which_estimator(write: Write) -> None:
    table, grid = classification(300), {"alpha": [1e-4, 1e-2]}
    X, y = matrix(table)
    for data, target, kind in (
        (X, y, sg.SGDClassifier),
        (X, y.astype(float), sg.SGDClassifier),
        (X, X[:, 0] + 0.5 * y, sg.SGDRegressor),
        (table, "y", sg.SGDClassifier),
        (table, "x0", sg.SGDRegressor),
        (write(table), "x0", sg.SGDRegressor),
    ):
        assert type(sg.tune(data, target, grid).best) is kind
        assert type(sg.tune(data, target, grid, estimator=kind()).best) is kind
    assert type(sg.tune(table, "y", grid, estimator=sg.SGDRegressor()).best) is sg.SGDRegressor
    with pytest.raises(StreamgdError, match="classes"):
        sg.tune(table, "x0", grid, estimator=sg.SGDClassifier())


def test_a_list_of_grids_and_values_of_numpy() -> None:
    X, y = matrix(classification(300))
    grid = [{"penalty": ["l2"], "alpha": np.logspace(-4, -2, 3)}, {"penalty": ["none"], "warmup_steps": [0, 9]}]
    template = sg.SGDClassifier(optimizer="sgd")
    found = sg.tune(X, y, grid, estimator=template, halving=False)
    assert len(found.models) == 5 and not any(model["dropped"] for model in found.models)
    assert {model["penalty"] for model in found.models if "alpha" not in model} == {"none"}
    for model in found.models:
        point = {name: model[name] for name in ("penalty", "alpha", "warmup_steps") if name in model}
        assert model["progressive_loss"] == clone(template).set_params(**point).fit(X, y).result_.losses[0]


def test_the_seed_is_one_for_all() -> None:
    X, y = matrix(classification(300))
    for seed in (3, np.random.RandomState(3)):
        template = sg.SGDClassifier(random_state=seed)
        found = sg.tune(X, y, GRID, estimator=template)
        assert found.best.model_.sha256() == clone(found.best).fit(X, y).model_.sha256()
        assert found.best.model_.sha256() != sg.SGDClassifier(**found.best_params).fit(X, y).model_.sha256()
    assert len(sg.tune(X, y, GRID, estimator=sg.SGDClassifier(random_state=None)).models) == 4


def test_nothing_that_is_given_is_changed() -> None:
    X, y = matrix(classification(300))
    estimator, grid = sg.SGDClassifier(alpha=0.5), {"alpha": [1e-4, 1e-2], "eta0": np.array([0.1, 0.3])}
    before = copy.deepcopy((vars(estimator), grid, X, y))
    sg.tune(X, y, grid, estimator=estimator)
    search = sg.SGDSearchCV(estimator, grid)
    search.fit(X, y)
    assert search.estimator is estimator and search.param_grid is grid
    for now, then in zip((vars(estimator), grid, X, y), before, strict=True):
        np.testing.assert_equal(now, then)


def test_what_a_user_should_know_is_told(write: Write, tmp_path: Path) -> None:
    table, told = classification(400), list[Progress]()
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be used"):
        sg.tune(write(table), "y", GRID, estimator=sg.SGDClassifier(cache=tmp_path / "file"))
    holes = pa.array([None if i % 4 == 0 else y for i, y in enumerate(table["y"].to_pylist())], pa.int8())
    with pytest.warns(UserWarning, match="100 rows have no target"):
        sg.tune(table.set_column(3, "y", holes), "y", GRID, callback=told.append)
    assert told[-1].over and told[-1].rows == 5 * 300


LISTS = "a dict of lists"


@pytest.mark.parametrize(
    ("grid", "parameters", "word"),
    [
        ({}, {}, "grid is empty"),
        ([], {}, "grid is empty"),
        ([{}, {}], {}, "grid is empty"),
        ({"alpha": []}, {}, LISTS),
        ({"alpha": 0.1}, {}, LISTS),
        ({"penalty": "l2"}, {}, LISTS),
        (["alpha"], {}, LISTS),
        ({"alpha": [0.1], "epochs": [1, 2]}, {}, "grid names epochs.*differ in alpha"),
        ({"nothing": [1]}, {}, "grid names nothing"),
        ({"alpha": [0.1, -1.0]}, {}, "alpha is -1.0"),
        ({"momentum": [0.1, 0.9]}, {}, "momentum does nothing"),
        ({"penalty": ["l2", "l1"]}, {}, "different optimizers.*name one"),
        ({"alpha": [0.1, 0.2]}, {"early_stopping": True}, "early_stopping"),
        ({"alpha": [0.1, 0.2]}, {"optimizer": "lbfgs"}, "lbfgs"),
    ],
)
def test_wrong_grids_are_told(grid: Any, parameters: dict[str, Any], word: str) -> None:
    X, y = matrix(classification(200))
    estimator = sg.SGDClassifier(**parameters)
    for act in (
        lambda: sg.tune(X, y, grid, estimator=estimator),
        lambda: sg.SGDSearchCV(estimator, grid).fit(X, y),
    ):
        with pytest.raises(ConfigError, match=word):
            act()


def test_wrong_estimators_and_targets_are_told() -> None:
    X, y = matrix(classification(200))
    for wrong in (make_pipeline(sg.SGDClassifier()), sg.SGDClassifier, "sgd"):
        with pytest.raises(ConfigError, match="expected an SGDClassifier or an SGDRegressor"):
            sg.tune(X, y, GRID, estimator=wrong)
        with pytest.raises(ConfigError, match="expected an SGDClassifier or an SGDRegressor"):
            sg.SGDSearchCV(wrong, GRID).fit(X, y)
    with pytest.raises(ConfigError, match="name of the target column"):
        sg.tune(classification(200), y, GRID)
    with pytest.raises(TrainingDiverged):
        diverging = sg.SGDRegressor(optimizer="sgd", learning_rate="constant")
        sg.tune(X, X[:, 0], {"eta0": [1e20, 1e21]}, estimator=diverging)


def scored_alone(search: sg.SGDSearchCV, path: Path, table: pa.Table, weight: str | None, size: int) -> Any:
    """Mean losses, fold by point: of each model trained alone, on the rows of the row groups that were held out."""
    source, rows = ParquetSource(path), []
    classes = None if is_regressor(search) else sorted(set(table["y"].to_pylist()))
    for part, held_out in search._splits(source, 0):
        test = pa.concat_tables(table.slice(size * i, size) for i in held_out.manifest.index.tolist())
        y, w = test["y"].to_numpy(), test["w"].to_numpy() if weight else None
        losses = []
        for point in ParameterGrid(search.param_grid):
            config = clone(search.estimator).set_params(**point)._config()
            job, feed = prepare(part, "y", config, weight=weight, classes=classes)
            model = train(job, feed, State.start(job)).model
            found = margins(held_out, model)
            if classes is None:
                losses.append(mean_squared_error(y, model.values(found), sample_weight=w) / 2)
            else:
                losses.append(log_loss(y, model.probabilities(found), sample_weight=w, labels=classes))
        rows.append(losses)
    return np.array(rows)


@pytest.mark.parametrize("cv", [None, 3])
@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize("case", ["two classes", "three classes", "regression"])
def test_scores_are_those_of_models_trained_alone_on_rows_held_out(
    cv: int | None, weight: str | None, case: str, write: Write
) -> None:
    if case == "regression":
        table, kind = regression(600), sg.SGDRegressor
    else:
        table, kind = classification(600), sg.SGDClassifier
    if case == "three classes":  # of which one stands in a single row group
        labels = table["y"].to_numpy() + (np.arange(600) // 50 == 4)
        table = table.set_column(3, "y", pa.array(labels))
    table = with_weights(table)
    path = write(table, row_group_rows=50)
    search = sg.SGDSearchCV(kind(drop=None if weight else ["w"]), {"alpha": [1.0, 1e-3, 0.03]}, cv=cv)
    search.fit(path, "y", weight)
    losses = scored_alone(search, path, table, weight, 50)
    assert search.n_splits_ == len(losses) == (cv or 1)
    results = search.cv_results_
    scores = np.array([results[f"split{fold}_test_score"] for fold in range(search.n_splits_)])
    np.testing.assert_allclose(scores, -losses, rtol=1e-9)
    np.testing.assert_allclose(results["mean_test_score"], scores.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(results["std_test_score"], scores.std(axis=0), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(results["rank_test_score"], rankdata(losses.mean(axis=0), method="min"))
    assert search.best_index_ == losses.mean(axis=0).argmin() and search.best_score_ == results["mean_test_score"].max()
    assert search.best_params_ == {"alpha": [1.0, 1e-3, 0.03][search.best_index_]}
    expected = clone(search.estimator).set_params(**search.best_params_).fit(path, "y", weight)
    assert search.best_estimator_.model_.sha256() == expected.model_.sha256()
    np.testing.assert_array_equal(search.predict(path), expected.predict(path))
    assert search.score(path, "y", weight) == expected.score(path, "y", weight)
    held_out = search.n_splits_ * 600 - 600 if cv else 600 - 50
    np.testing.assert_array_equal(results["rows"], np.full(3, 5 * held_out))


@pytest.mark.parametrize("cv", [2, 3, 5, 12])
def test_each_row_group_is_held_out_once(cv: int, write: Write) -> None:
    source = ParquetSource(write(classification(600), shards=2, row_group_rows=50))
    every = sorted(zip(source.manifest.shard, source.manifest.index, strict=True))
    dealt = []
    for seed in (3, 4):
        splits = sg.SGDSearchCV(sg.SGDClassifier(), GRID, cv=cv)._splits(source, seed)
        where = [[list(zip(m.shard, m.index, strict=True)) for m in (a.manifest, b.manifest)] for a, b in splits]
        assert len(splits) == cv and sorted(group for _, held in where for group in held) == every
        assert all(sorted(kept + held) == every for kept, held in where)
        assert {len(held) for _, held in where} <= {12 // cv, -(-12 // cv)}
        dealt.append(where)
    assert dealt[0] != dealt[1]


@pytest.mark.parametrize("grid", [GRID, [{"alpha": [1e-4, 1e-2]}, {"penalty": ["none"], "eta0": [0.1]}]])
def test_results_have_the_form_of_grid_search_cv(grid: Any) -> None:
    X, y = matrix(classification(300))
    search = sg.SGDSearchCV(sg.SGDClassifier(), grid, cv=3).fit(X, y)
    other = GridSearchCV(sg.SGDClassifier(), grid, cv=3, scoring="neg_log_loss").fit(X, y)
    found, known = search.cv_results_, {k: v for k, v in other.cv_results_.items() if not k.endswith("_time")}
    assert found.keys() == known.keys() | {"mean_progressive_loss", "rows"}
    assert found["params"] == known["params"]
    for name in known.keys() - {"params"}:
        assert found[name].shape == known[name].shape, name
        if name.startswith("param_"):
            np.testing.assert_array_equal(found[name].mask, known[name].mask)
            assert found[name].compressed().tolist() == known[name].compressed().tolist()
        else:
            assert found[name].dtype == known[name].dtype, name
    for name in ("best_index_", "best_score_", "best_params_", "best_estimator_", "n_splits_", "classes_"):
        assert np.shape(getattr(search, name)) == np.shape(getattr(other, name)), name
    # Folds of another kind, of the same rows.
    np.testing.assert_allclose(found["mean_test_score"], known["mean_test_score"], atol=0.02)
    assert len(pd.DataFrame(found)) == len(ParameterGrid(grid))


def test_it_is_an_estimator() -> None:
    X, y = matrix(classification(400))
    search = sg.SGDSearchCV(sg.SGDClassifier(epochs=2), {"alpha": [1e-4, 1.0]}, cv=3, halving=True, refit=True)
    again = clone(search)
    assert again.get_params()["estimator__epochs"] == 2 and again.param_grid == search.param_grid
    assert {**again.get_params(), "estimator": 0} == {**search.get_params(), "estimator": 0}
    assert again.set_params(estimator__epochs=7, cv=2).estimator.epochs == 7 and search.estimator.epochs == 2
    assert is_classifier(search) and not is_regressor(search)
    assert is_regressor(sg.SGDSearchCV(sg.SGDRegressor(), GRID))
    for estimator in (sg.SGDClassifier("hinge"), sg.SGDClassifier(), sg.SGDRegressor()):
        of_search, of_estimator = get_tags(sg.SGDSearchCV(estimator, GRID)), get_tags(estimator)
        for name in ("estimator_type", "classifier_tags", "regressor_tags"):
            assert getattr(of_search, name) == getattr(of_estimator, name)
        assert of_search.input_tags.allow_nan
    with pytest.raises(NotFittedError):
        search.predict(X)
    assert not hasattr(search, "classes_")
    search.fit(X, y)
    best = search.best_estimator_
    assert search.classes_.tolist() == [0, 1] and search.n_features_in_ == 3
    for name in ("predict", "predict_proba", "decision_function"):
        np.testing.assert_array_equal(getattr(search, name)(X), getattr(best, name)(X))
    assert search.score(X, y) == best.score(X, y) > 0.7
    scores = cross_val_score(make_pipeline(StandardScaler(), search), X, y, cv=3)
    np.testing.assert_allclose(scores, cross_val_score(LogisticRegression(C=100), X, y, cv=3), atol=0.02)


def test_it_offers_what_its_best_estimator_does() -> None:
    methods = ("predict", "predict_proba", "decision_function", "score")
    for estimator, refit, offered in (
        (sg.SGDClassifier(), True, methods),
        (sg.SGDClassifier("hinge"), True, ("predict", "decision_function", "score")),
        (sg.SGDRegressor(), True, ("predict", "score")),
        (sg.SGDClassifier(), False, ()),
    ):
        search = sg.SGDSearchCV(estimator, {"alpha": [1e-4]}, refit=refit)
        assert tuple(name for name in methods if hasattr(search, name)) == offered


def test_without_refit_only_the_scores_are_there() -> None:
    X, y = matrix(classification(300))
    search = sg.SGDSearchCV(sg.SGDClassifier(), GRID, refit=False).fit(X, y)
    whole = sg.SGDSearchCV(sg.SGDClassifier(), GRID).fit(X, y)
    assert (search.best_params_, search.best_score_) == (whole.best_params_, whole.best_score_)
    assert not hasattr(search, "best_estimator_") and not hasattr(search, "classes_")


@pytest.mark.parametrize("form", FORMS)
def test_validation_data_take_the_place_of_rows_held_out(form: str, write: Write) -> None:
    table, other = classification(400), classification(150, seed=5)
    data, target = given(form, table, write)
    rows, labels = given(form if form != "shards" else "table", other, write)
    validation = (rows, labels) if form in ("arrays", "numbers", "mixed") else rows
    search = sg.SGDSearchCV(sg.SGDClassifier(), GRID, cv=3).fit(data, target, validation=validation)
    assert search.n_splits_ == 1
    for point, score in zip(search.cv_results_["params"], search.cv_results_["split0_test_score"], strict=True):
        by_itself = sg.SGDClassifier(**point).fit(data, target)
        assert score == pytest.approx(-log_loss(matrix(other)[1], by_itself.predict_proba(rows)), rel=1e-9)


@pytest.mark.parametrize("form", ["arrays", "numbers", "mixed", "table"])
def test_sorted_labels_are_no_danger(form: str, write: Write) -> None:
    """Of rows in memory each may be held out by itself."""
    table = classification(3000)
    y = np.searchsorted(np.quantile(table["x0"], np.arange(1, 16) / 16), table["x0"])
    table = table.set_column(3, "y", pa.array(y)).set_column(0, "x0", pa.array(table["x0"].to_numpy() / 2))
    scores = []
    for rows in (table, table.sort_by("y")):
        search = sg.SGDSearchCV(sg.SGDClassifier(epochs=2, polish=0), {"alpha": [1e-4, 1e-3]}, cv=2)
        scores.append(search.fit(*given(form, rows, write)).cv_results_["mean_test_score"])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_the_search_takes_what_fit_takes(form: str, write: Write) -> None:
    data, target = given(form, classification(400), write)
    search = sg.SGDSearchCV(sg.SGDClassifier(), GRID).fit(data, target)
    expected = sg.SGDClassifier(**search.best_params_).fit(data, target)
    assert search.best_estimator_.model_.sha256() == expected.model_.sha256()
    np.testing.assert_array_equal(search.predict(data), expected.predict(data))
    assert search.n_features_in_ == expected.n_features_in_


def test_iris() -> None:
    X, y = load_iris(return_X_y=True, as_frame=True)
    search = sg.SGDSearchCV(sg.SGDClassifier(), {"alpha": [1e-3, 1e-1, 10.0]}, cv=5).fit(X, y)
    assert search.best_params_ == {"alpha": 1e-3} and search.score(X, y) > 0.95
    assert search.predict_proba(X).shape == (150, 3)


def test_halving_leaves_those_it_drops_without_a_score() -> None:
    X, y = matrix(classification(1500))
    grid = {"eta0": [1e-5, 0.1, 1e-4, 0.3, 1e-3, 100.0]}
    search = sg.SGDSearchCV(sg.SGDClassifier(), grid, cv=2, halving=True).fit(X, y)
    results = search.cv_results_
    np.testing.assert_array_equal(np.isnan(results["mean_test_score"]), [True, False, True, False, True, True])
    np.testing.assert_array_equal(results["rank_test_score"][[0, 2, 4, 5]], [3, 3, 3, 3])
    assert sorted(results["rank_test_score"][[1, 3]]) == [1, 2] and search.best_params_["eta0"] in (0.1, 0.3)
    whole = 5 * 1500
    assert (results["rows"] == whole).tolist() == [False, True, False, True, False, False]
    np.testing.assert_allclose(results["rows"][[0, 2, 4, 5]], [375, 375, 375, 375], rtol=1.1)
    assert np.isfinite(results["mean_progressive_loss"]).all()
    plain = sg.SGDSearchCV(sg.SGDClassifier(), grid, cv=2).fit(X, y).cv_results_
    np.testing.assert_array_equal(results["mean_test_score"][[1, 3]], plain["mean_test_score"][[1, 3]])
    assert np.isfinite(plain["mean_test_score"]).all() and (plain["rows"] == whole).all()


def test_nobody_may_be_left_in_every_fold() -> None:
    """Of many that are as good as each other, each fold leaves two others."""
    X, y = matrix(classification(600))
    search = sg.SGDSearchCV(sg.SGDClassifier(epochs=1), {"eta0": np.linspace(0.4, 0.6, 8)}, cv=5, halving=True)
    with pytest.raises(ConfigError, match="leave out halving"):
        search.fit(X, y)


def test_who_diverges_has_no_score() -> None:
    X, y = matrix(regression(600))
    estimator = sg.SGDRegressor(optimizer="sgd", learning_rate="constant")
    search = sg.SGDSearchCV(estimator, {"eta0": [1e20, 0.01, 1e-3]}, cv=3).fit(X, y)
    np.testing.assert_array_equal(np.isnan(search.cv_results_["mean_test_score"]), [True, False, False])
    assert search.cv_results_["rank_test_score"][0] == 3 and search.best_params_ == {"eta0": 0.01}
    with pytest.raises(TrainingDiverged):
        sg.SGDSearchCV(estimator, {"eta0": [1e20, 1e21]}, cv=3).fit(X, y)


@pytest.mark.parametrize(
    ("parameters", "row_group_rows", "word"),
    [
        ({"cv": 4}, 100, "3 row groups.*cv=4"),
        ({}, 300, "1 row groups.*cv=None.*smaller row groups"),
        ({"cv": 1}, 50, "cv is 1;"),
        ({"cv": "three"}, 50, "cv is 'three'"),
        ({"validation_fraction": 0.0}, 50, "validation_fraction is 0.0"),
        ({"validation_fraction": 1.5}, 50, "validation_fraction is 1.5"),
    ],
)
def test_what_cannot_be_held_out_is_told(
    parameters: dict[str, Any], row_group_rows: int, word: str, write: Write
) -> None:
    path = write(classification(300), row_group_rows=row_group_rows)
    with pytest.raises(ConfigError, match=word):
        sg.SGDSearchCV(sg.SGDClassifier(), GRID, **parameters).fit(path, "y")
