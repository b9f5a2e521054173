"""The scikit-learn face: conformance, and one answer however the rows are given."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

import streamgd as sg
from streamgd.config import ENDLESS_ALPHA
from streamgd.errors import ConfigError, MissingColumn, ModelFileError, SingleClass, UnusableColumns
from streamgd.modelfile import save_model

from .conftest import FLIGHTS, Write, classification, matrix, regression

#: Repeated rows fall into other mini-batches than weighted ones; with one batch they are equal (test_trainer).
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "mini-batches of repeated rows are other mini-batches",
    "check_class_weight_classifiers": "it sets n_iter_no_change without early_stopping, where it does nothing",
}
FACES = {"classification": (sg.SGDClassifier, classification), "regression": (sg.SGDRegressor, regression)}


@parametrize_with_checks([sg.SGDClassifier(), sg.SGDRegressor()], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learn_conformance(estimator: Any, check: Any) -> None:
    check(estimator)


def values(estimator: Any, X: Any) -> Any:
    return estimator.decision_function(X) if isinstance(estimator, sg.SGDClassifier) else estimator.predict(X)


@pytest.mark.parametrize("task", FACES)
def test_one_answer_however_rows_are_given(task: str, write: Write) -> None:
    make, rows = FACES[task]
    table = rows(900)
    X, y = matrix(table)
    names = [name for name in table.column_names if name != "y"]
    path = write(table, shards=1)
    # One row group each, so that the order of rows is the same too.
    given = [
        (str(path), "y"),
        (path, "y"),
        ([path / "part-00.parquet"], "y"),
        (f"{path}/*.parquet", "y"),
        (pads.dataset(str(path)), "y"),
    ]
    memory = [(table, "y"), (pd.DataFrame(X, columns=names), y), (X, y)]
    for group in (given, memory):
        found = [values(make(window_rows=900).fit(*pair), table.drop(["y"])) for pair in group[:-1]]
        found.append(values(make(window_rows=900).fit(*group[-1]), X if group is memory else str(path)))
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


def test_trained_on_a_data_frame_it_predicts_shards(write: Write) -> None:
    table = classification(500)
    X, y = matrix(table)
    fitted = sg.SGDClassifier().fit(pd.DataFrame(X, columns=["x0", "x1", "x2"]), y)
    np.testing.assert_array_equal(
        fitted.predict(write(table)), fitted.predict(pd.DataFrame(X, columns=["x0", "x1", "x2"]))
    )
    with pytest.raises(MissingColumn, match="x2"):
        fitted.predict(table.drop(["x2"]))


@pytest.mark.parametrize(
    "labels", [["no", "yes"], [False, True], [-1, 1], [0.0, 2.0], np.array(["a", "b"], object), [10**12, 10**12 + 1]]
)
def test_labels_of_any_type(labels: Any) -> None:
    X, y = matrix(classification(400))
    named = np.array(labels)[y]
    fitted = sg.SGDClassifier().fit(X, named)
    assert list(fitted.classes_) == sorted(set(named))
    assert set(fitted.predict(X)) == set(named)
    assert fitted.score(X, named) == sg.SGDClassifier().fit(X, y).score(X, y)
    stored = pa.table({"x": X[:, 0], "y": list(named)})
    assert set(sg.SGDClassifier().fit(stored, "y").predict(stored)) == set(named)


def test_probabilities_and_scores(write: Write) -> None:
    table = classification(2000)
    path, (X, y) = write(table, shards=3, row_group_rows=100), matrix(table)
    fitted = sg.SGDClassifier().fit(path, "y")
    probability = fitted.predict_proba(path)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    np.testing.assert_array_equal(probability[:, 1] > 0.5, fitted.predict(path) == 1)
    assert fitted.score(path, "y") == np.mean(fitted.predict(path) == y)
    regressor = sg.SGDRegressor().fit(path, "x0")
    assert regressor.score(path, "x0") == pytest.approx(
        1 - np.var(regressor.predict(path) - X[:, 0]) / np.var(X[:, 0]), abs=1e-3
    )


@pytest.mark.parametrize("task", FACES)
def test_save_and_load(task: str, tmp_path: Path) -> None:
    make, rows = FACES[task]
    X, y = matrix(rows(300))
    fitted = make().fit(X, y)
    fitted.save(tmp_path / "model.safetensors")
    loaded = sg.load(tmp_path / "model.safetensors")
    assert type(loaded) is make
    np.testing.assert_array_equal(values(loaded, X), values(fitted, X))
    np.testing.assert_array_equal(loaded.coef_, fitted.coef_)
    np.testing.assert_array_equal(values(pickle.loads(pickle.dumps(fitted)), X), values(fitted, X))
    with pytest.raises(ConfigError, match="no optimizer state"):
        loaded.partial_fit(X, y)
    with pytest.raises(ModelFileError, match="cannot be read"):
        sg.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "parameters", [{"drop": "x0"}, {"interactions": ["x0*x1"]}, {"missing_indicator": True}, {"categorical": "x2"}]
)
def test_loaded_models_take_the_frames_that_their_estimators_take(parameters: dict[str, Any], tmp_path: Path) -> None:
    """And have their parameters."""
    X, y = matrix(classification(300))
    frame = pd.DataFrame({"x0": X[:, 0], "x1": X[:, 1], "x2": np.arange(300) % 3})
    frame.loc[::7, "x1"] = np.nan
    fitted = sg.SGDClassifier(**parameters).fit(frame, y)
    fitted.save(tmp_path / "model.safetensors")
    loaded = sg.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.decision_function(frame), fitted.decision_function(frame))
    again = loaded.fit(frame, y)
    np.testing.assert_array_equal(again.decision_function(frame), fitted.decision_function(frame))


def test_a_loaded_estimator_has_the_parameters_of_before_but_those_of_a_machine(tmp_path: Path) -> None:
    X, y = matrix(classification(300))
    given = {"epochs": 3, "alpha": 1e-3, "class_weight": {0: 1.0, 1: 2.5}, "random_state": 7, "batch_size": 16}
    fitted = sg.SGDClassifier(**given, memory_limit="2GB", n_jobs=1, cache=None).fit(X, y)
    fitted.save(tmp_path / "model.safetensors")
    loaded = sg.load(tmp_path / "model.safetensors")
    assert loaded.get_params() == {**sg.SGDClassifier(**given).get_params(), "loss": "log_loss"}
    np.testing.assert_array_equal(clone(loaded).fit(X, y).coef_, fitted.coef_)


@pytest.mark.parametrize(
    "config", [3, {"epochs": "many"}, {"class_weight": 3}, {"interactions": [1]}, {"alpha": -1.0}, {"drop": 5}]
)
def test_what_a_file_makes_up_is_no_parameter(config: Any, tmp_path: Path) -> None:
    X, y = matrix(classification(300))
    fitted = sg.SGDClassifier().fit(X, y)
    save_model(replace(fitted.model_, training={"config": config}), tmp_path / "m")
    assert sg.load(tmp_path / "m").get_params() == sg.SGDClassifier("log_loss").get_params()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_takes_the_name_of_its_target(library: str) -> None:
    """As shards and Arrow tables do; rows to predict may have it, too."""
    frame: Any = classification(300).to_pandas()
    X, y = frame.drop(columns="y"), frame["y"]
    fitted = sg.SGDClassifier(n_jobs=-1).fit(X, y)
    if library == "polars":
        polars = pytest.importorskip("polars")
        frame, X = polars.DataFrame(frame), polars.DataFrame(X)
    named = sg.SGDClassifier().fit(frame, "y")
    assert named.model_.sha256() == fitted.model_.sha256()
    assert named.score(frame, "y") == fitted.score(frame, "y") == named.score(X, y)
    for rows in (frame, X):
        np.testing.assert_array_equal(named.predict(rows), fitted.predict(X))
    found = sg.tune(frame, "y", {"alpha": [1e-4, 1e-2]})
    assert found.best_params == sg.tune(X, y, {"alpha": [1e-4, 1e-2]}).best_params
    with pytest.raises(ConfigError, match=r"y is 'z', the name of a column, and X is a DataFrame, which has .* x0, x1"):
        named.fit(frame, "z")
    with pytest.raises(ConfigError, match=r"X is a ndarray, whose columns have no names"):
        named.fit(np.zeros((2, 2)), "y")


def test_frames_that_cannot_be_read_say_what_to_do() -> None:
    frame = pd.DataFrame([[1.0, 2.0, 0], [2.0, 1.0, 1]], columns=["a", "a", "y"])
    with pytest.raises(ConfigError, match="more than one column called a; rename"):
        sg.SGDClassifier().fit(frame[["a"]], [0, 1])
    lazy = pytest.importorskip("polars").LazyFrame({"a": [1.0, 2.0]})
    with pytest.raises(ConfigError, match=r"give X\.collect\(\)"):
        sg.SGDClassifier().fit(lazy, [0, 1])


def test_a_client_is_no_address(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"client is 'tcp://127.0.0.1:1'; give .* distributed.Client\('tcp"):
        sg.SGDClassifier().fit(write(classification(100)), "y", client="tcp://127.0.0.1:1")


@pytest.mark.parametrize("pairs", [["x0*x1"], ["x1*x2", "x1*x2"]])
def test_two_features_of_one_name_are_refused(pairs: list[str]) -> None:
    """A model that has them could not be loaded."""
    X, y = matrix(classification(100))
    frame = pd.DataFrame(X, columns=["x0", "x1", "x2"]).assign(**{"x0*x1": 1.0})
    with pytest.raises(ConfigError, match=re.escape(pairs[0])):
        sg.SGDClassifier(interactions=pairs).fit(frame, y)


def test_partial_fit_goes_on() -> None:
    X, y = matrix(classification(3000))
    once = sg.SGDClassifier(random_state=3)
    with pytest.raises(ConfigError, match="classes"):
        once.partial_fit(X, y)
    scores = []
    for start in range(0, 3000, 500):
        piece = slice(start, start + 500)
        once.partial_fit(X[piece], y[piece], classes=[0, 1])
        scores.append(once.score(X, y))
    again = sg.SGDClassifier(random_state=3)
    for start in range(0, 3000, 500):
        again.partial_fit(X[start : start + 500], y[start : start + 500], classes=[0, 1])
    np.testing.assert_array_equal(once.coef_, again.coef_)
    assert once.t_ == 3000 and scores[-1] >= scores[0] and scores[-1] > 0.8
    one_class = sg.SGDClassifier().partial_fit(X[y == 1], y[y == 1], classes=[0, 1])
    assert set(one_class.predict(X)) == {1}
    with pytest.raises(ConfigError, match="first call"):
        once.partial_fit(X, y, classes=[0, 2])
    fitted = sg.SGDClassifier().fit(X, y)
    before = fitted.coef_.copy()
    assert not np.array_equal(fitted.partial_fit(X, y).coef_, before)


def test_early_stopping_and_validation(write: Write) -> None:
    table = classification(3000)
    path = write(table, row_group_rows=100)
    fitted = sg.SGDClassifier(epochs=50, early_stopping=True, tol=1e-3).fit(path, "y")
    assert 1 < fitted.n_iter_ < 50
    told = sg.SGDClassifier(epochs=3).fit(path, "y", validation=path)
    assert len(told.result_.validation_losses) == 3
    X, y = matrix(table)
    assert len(sg.SGDClassifier(epochs=2).fit(X, y, validation=(X, y)).result_.validation_losses) == 2


def test_weights_by_column_and_by_array(write: Write) -> None:
    table = classification(600)
    X, y = matrix(table)
    weights = np.random.default_rng(0).uniform(size=600)
    stored = table.append_column("w", pa.array(weights))
    by_column = sg.SGDClassifier().fit(stored, "y", sample_weight="w")
    np.testing.assert_array_equal(by_column.coef_, sg.SGDClassifier().fit(X, y, weights).coef_)
    assert not np.array_equal(by_column.coef_, sg.SGDClassifier().fit(X, y).coef_)


def test_in_pipelines_and_searches() -> None:
    X, y = matrix(regression(300))
    pipeline = make_pipeline(PolynomialFeatures(2), sg.SGDRegressor(epochs=20)).fit(X, y)
    assert pipeline.score(X, y) > 0.9
    search = GridSearchCV(sg.SGDRegressor(), {"alpha": [1e-6, 10.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"alpha": 1e-6}
    assert clone(sg.SGDRegressor(alpha=0.5)).get_params()["alpha"] == 0.5


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"power_t": 0.5}, "power_t"),
        ({"learning_rate": "optimal", "eta0": 0.1}, "eta0"),
        ({"learning_rate": "optimal", "alpha": 0.0}, "alpha"),
        ({"shuffle": False, "window_rows": 10}, "window_rows"),
        ({"loss": "squared_error"}, "regression"),
        ({"optimizer": "adamw"}, "adagrad, sgd|sgd, momentum"),
        ({"loss": "hinge", "polish": 3}, "polish"),
        ({"epsilon": 0.1}, "epsilon does nothing"),
        ({"hash_bits": 18}, "hash_bits does nothing"),
        ({"text": "x0"}, "columns with names"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"memory_limit": "much"}, "much"),
    ],
)
def test_parameters_that_are_wrong_or_do_nothing_are_errors(parameters: dict[str, Any], word: str) -> None:
    X, y = matrix(classification(50))
    with pytest.raises(ConfigError, match=word):
        sg.SGDClassifier(**parameters).fit(X, y)


def test_errors_say_what_to_do() -> None:
    day = pa.array([0, 1], pa.date32())
    named = pa.table({"day": day, "x": [1, 2], "took": pa.array([0, 1], pa.duration("s")), "late": [0, 1]})
    with pytest.raises(UnusableColumns, match=r"day \(date32.*took \(duration.*--calendar day.*--drop day,took"):
        sg.SGDClassifier().fit(named, "late")
    with pytest.raises(ConfigError, match="name of the target column"):
        sg.SGDClassifier().fit(FLIGHTS / "train", [0, 1])
    with pytest.raises(SingleClass):
        sg.SGDClassifier().fit(np.zeros((5, 1)), np.ones(5))
    fitted = sg.SGDClassifier(epochs=1).fit(FLIGHTS / "train", "late")
    assert list(fitted.feature_names_in_)[:3] == ["month", "day", "weekday"]


@pytest.mark.parametrize("alone", [True, False])
def test_lists_of_numbers_are_features(alone: bool, write: Write) -> None:
    X, y = matrix(classification(300, 4))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X[:, 1:].ravel()), 3)
    columns: dict[str, Any] = {} if alone else {"a": X[:, 0]}
    table = pa.table({**columns, "v": vectors, "y": y})
    fitted = sg.SGDClassifier().fit(write(table), "y")
    assert list(fitted.feature_names_in_) == [*columns, "v"] and fitted.coef_.shape == (1, 3 + len(columns))
    frame = pd.DataFrame(columns | {"v": list(X[:, 1:])})
    np.testing.assert_array_equal(fitted.decision_function(frame), fitted.decision_function(table))
    # The state goes on in whatever form rows come.
    np.testing.assert_array_equal(
        sg.SGDClassifier().fit(table, "y").partial_fit(frame, y).coef_,
        sg.SGDClassifier().fit(table, "y").partial_fit(table, "y").coef_,
    )


def test_partial_fit_is_the_next_epoch() -> None:
    X, y = matrix(regression(1000))
    parts = sg.SGDRegressor()
    for _ in range(3):
        parts.partial_fit(X, y)
    # Rows that come in lots may be many, so penalty and learning rate are those of many rows.
    alike = {"alpha": parts._job.config.alpha, "eta0": parts._job.eta0}
    np.testing.assert_array_equal(parts.coef_, sg.SGDRegressor(epochs=3, **alike).fit(X, y).coef_)
    np.testing.assert_array_equal(parts.coef_, sg.SGDRegressor(epochs=2, **alike).fit(X, y).partial_fit(X, y).coef_)
    assert alike["alpha"] == ENDLESS_ALPHA


def test_partial_fit_takes_what_may_change_and_refuses_the_rest() -> None:
    X, y = matrix(regression(200))
    fitted = sg.SGDRegressor(optimizer="sgd").partial_fit(X, y)
    same, faster = (pickle.loads(pickle.dumps(fitted)).set_params(eta0=eta0).partial_fit(X, y) for eta0 in (None, 0.3))
    assert not np.array_equal(faster.coef_, same.coef_)
    for name, value in (("optimizer", "adagrad"), ("fit_intercept", False), ("standardize", False)):
        with pytest.raises(ConfigError, match=f"{name} was"):
            pickle.loads(pickle.dumps(fitted)).set_params(**{name: value}).partial_fit(X, y)
    with pytest.raises(ConfigError, match="early_stopping does nothing"):
        sg.SGDRegressor(early_stopping=True).partial_fit(X, y)


@pytest.mark.parametrize("task", FACES)
@pytest.mark.parametrize("form", ["shards", "arrays", "frames"])
@pytest.mark.parametrize("weighted", [True, False])
def test_early_stopping_on_validation_data(task: str, form: str, weighted: bool, write: Write) -> None:
    make, rows = FACES[task]
    table, other = rows(400), rows(200)
    weights = np.random.default_rng(0).random(400) + 0.5
    fitted = make(early_stopping=True, n_iter_no_change=2, tol=0.01, epochs=200)
    if form == "shards":
        table, other = (each.append_column("w", pa.array(weights[: len(each)])) for each in (table, other))
        fitted.set_params(drop=None if weighted else ["w"])
        fitted.fit(write(table), "y", "w" if weighted else None, validation=write(other, "validation"))
    else:
        (X, y), (V, z) = matrix(table), matrix(other)
        if form == "frames":
            X, V = (pd.DataFrame(each, columns=["a", "b", "c"]) for each in (X, V))
        pair = (V, z, weights[:200]) if weighted and form == "frames" else (V, z)
        fitted.fit(X, y, weights if weighted else None, validation=pair)
    assert 3 <= fitted.n_iter_ < 200
    assert len(fitted.result_.validation_losses) == fitted.n_iter_


@pytest.mark.parametrize("task", FACES)
def test_scores_of_shards_are_scores_of_arrays(task: str, write: Write) -> None:
    make, rows = FACES[task]
    table = rows(800)
    X, y = matrix(table)
    weights = np.random.default_rng(1).random(800)
    path = write(table.append_column("w", pa.array(weights)), shards=2, row_group_rows=90)
    fitted = make(drop=["w"]).fit(path, "y")
    frame = pd.DataFrame(X, columns=["x0", "x1", "x2"])
    plain, weighted = fitted.score(path, "y"), fitted.score(path, "y", "w")
    fitted.set_params(drop=None)
    assert plain == pytest.approx(fitted.score(frame, y), rel=1e-12)
    assert weighted == pytest.approx(fitted.score(frame, y, weights), rel=1e-12)
    assert plain != weighted


def test_drop_names_columns_of_shards_and_frames() -> None:
    X, y = matrix(classification(50))
    frame = pd.DataFrame(X, columns=["x0", "x1", "x2"])
    fitted = sg.SGDClassifier(drop=["x0"]).fit(frame, y)
    np.testing.assert_array_equal(fitted.coef_, sg.SGDClassifier().fit(frame[["x1", "x2"]], y).coef_)
    np.testing.assert_array_equal(fitted.predict(frame), fitted.predict(frame[["x1", "x2"]]))
    with pytest.raises(ConfigError, match="columns with names"):
        sg.SGDClassifier(drop=["x0"]).fit(X, y)


def test_missing_values_are_the_mean() -> None:
    X, y = matrix(classification(500))
    X[::7, 1] = np.nan
    fitted = sg.SGDClassifier().fit(X, y)
    filled = np.where(np.isnan(X), np.nanmean(X[:, 1]), X)
    np.testing.assert_allclose(fitted.decision_function(X), fitted.decision_function(filled), atol=1e-5)


def test_refitting_forgets() -> None:
    X, y = matrix(classification(200))
    fitted = sg.SGDClassifier().fit(pd.DataFrame(X, columns=["a", "b", "c"]), y).fit(X[:, :2], y)
    assert not hasattr(fitted, "feature_names_in_")
    np.testing.assert_array_equal(fitted.coef_, sg.SGDClassifier().fit(X[:, :2], y).coef_)
    assert not hasattr(clone(fitted), "coef_")


def test_random_states_that_move_on() -> None:
    X, y = matrix(classification(300))
    for state in (None, np.random.RandomState(5)):
        one, two = (sg.SGDClassifier(random_state=state).fit(X, y).coef_ for _ in range(2))
        assert not np.array_equal(one, two)


def test_nothing_is_left_out_or_coarsened_in_silence(write: Write) -> None:
    table = classification(3000)
    holes = pa.array([None if i % 10 == 0 else y for i, y in enumerate(table["y"].to_pylist())], pa.int8())
    with pytest.warns(UserWarning, match="300 rows have no target"):
        sg.SGDClassifier(epochs=2).fit(table.set_column(3, "y", holes), "y")
    large = pa.table({"x": np.arange(3_000_000) % 7.0, "y": np.arange(3_000_000) % 2})
    with pytest.warns(
        UserWarning, match=r"row groups of up to 3,000,000 rows.*windows of 1,500 rows.*smaller row groups"
    ):
        sg.SGDClassifier(epochs=1, window_rows=1500).fit(write(large, row_group_rows=3_000_000), "y")
