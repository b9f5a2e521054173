"""Real tables: categories, texts, calendars, pairs, many classes, images; wherever they come from, one answer."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

import streamgd as sg
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.data.table import TableSource
from streamgd.errors import ConfigError, MissingColumn, SchemaMismatch, TargetError
from streamgd.job import prepare, rows_of_batch

from .conftest import FLIGHTS, Write

EVERYTHING: dict[str, Any] = {
    "categorical": "n",
    "text": ["t"],
    "calendar": "at",
    "interactions": ["c*d", ("x", "c"), "x*n2", "hour(at)*c"],
    "missing_indicator": True,
}


def table_of(n: int, seed: int = 0) -> pa.Table:
    """Every kind of column, all of which matter."""
    rng = np.random.default_rng(seed)
    c, d = rng.integers(0, 5, n), rng.integers(0, 300, n)
    x, n2 = rng.normal(size=n), rng.normal(3, 2, n)
    hour, good = rng.integers(0, 24, n), rng.random(n) < 0.3
    margin = 0.5 * (c - 2) * x + 0.1 * x * n2 + np.sin(d) + (hour > 12) + 2 * good - 1
    at = np.datetime64("2013-01-01T00:00") + rng.integers(0, 300, n) * np.timedelta64(1, "D")
    texts = np.where(good, "a good thing", rng.choice(["a thing", "no thing", "Nothing at all"], n))
    return pa.table(
        {
            "c": pa.array([f"c{i}" for i in c], mask=rng.random(n) < 0.05),
            "d": [f"d{i}" for i in d],
            "x": pa.array(x, mask=rng.random(n) < 0.1),
            "n": rng.integers(0, 4, n).astype(np.int16),
            "n2": n2,
            "at": pa.array((at + hour * np.timedelta64(1, "h")).astype("datetime64[s]")),
            "t": texts,
            "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=2 * n)), 2),
            "y": (rng.random(n) < 1 / (1 + np.exp(-margin))).astype(np.int8),
        }
    )


def test_one_answer_however_rows_are_given(write: Write) -> None:
    table = table_of(3000)
    path = write(table, shards=3, row_group_rows=170)
    fitted = sg.SGDClassifier(epochs=3, **EVERYTHING).fit(path, "y")
    assert fitted.score(path, "y") > 0.75
    stored = fitted.decision_function(path)
    frame = table.drop(["y"]).to_pandas()
    for given in (table, table.drop(["y"]), table.slice(0), frame):
        np.testing.assert_allclose(fitted.decision_function(given), stored, rtol=1e-9, atol=1e-9)
    dictionaries = table.set_column(0, "c", table["c"].combine_chunks().dictionary_encode())
    np.testing.assert_array_equal(fitted.decision_function(dictionaries), fitted.decision_function(table))
    again = sg.SGDClassifier(epochs=3, **EVERYTHING).fit(table, "y")
    assert again.score(path, "y") == pytest.approx(fitted.score(path, "y"), abs=0.02)
    assert list(fitted.feature_names_in_) == [name for name in table.column_names if name != "y"]


@pytest.mark.parametrize("batch_size", [1, 32, None])
def test_threads_never_change_a_weight(write: Write, batch_size: int | None) -> None:
    path = write(table_of(2000), shards=4, row_group_rows=90)
    hashes = {
        sg.SGDClassifier(epochs=2, batch_size=batch_size, window_rows=500, n_jobs=n_jobs, **EVERYTHING)
        .fit(path, "y")
        .model_.sha256()
        for n_jobs in (1, 2, 4, 4)
    }
    assert len(hashes) == 1


def test_a_frame_of_mixed_columns_is_a_table() -> None:
    table = table_of(500).drop(["v", "at"])
    frame = table.drop(["y"]).to_pandas()
    y = table["y"].to_numpy()
    by_frame = sg.SGDClassifier(random_state=3).fit(frame, y)
    by_table = sg.SGDClassifier(random_state=3).fit(table, "y")
    assert by_frame.model_.sha256() == by_table.model_.sha256()
    weights = np.random.default_rng(0).uniform(size=500)
    stored = table.append_column("w", pa.array(weights))
    weighted = sg.SGDClassifier().fit(frame, y, weights), sg.SGDClassifier().fit(stored, "y", "w")
    assert weighted[0].model_.sha256() == weighted[1].model_.sha256() != by_frame.model_.sha256()
    frame["c"] = frame["c"].astype("category")
    np.testing.assert_allclose(by_frame.predict_proba(frame), by_table.predict_proba(table), atol=1e-12)
    with pytest.raises(MissingColumn, match="'d'"):
        by_frame.predict(frame.drop(columns="d"))
    with pytest.raises(SchemaMismatch, match=r"'x' holds numbers"):
        by_frame.predict(frame.assign(x="a"))
    with pytest.raises(ConfigError, match="one type"):
        sg.SGDClassifier().fit(pd.DataFrame({"a": [1, "b", 2.5]}), [0, 1, 0])
    with pytest.raises(ValueError, match="500 rows and y has 3"):
        sg.SGDClassifier().fit(frame, y[:3])


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    table = table_of(800)
    fitted = sg.SGDClassifier(**EVERYTHING).fit(table, "y")
    fitted.save(tmp_path / "m")
    np.testing.assert_array_equal(sg.load(tmp_path / "m").predict_proba(table), fitted.predict_proba(table))


def test_partial_fit_goes_on_with_hashed_weights() -> None:
    table = table_of(4000)
    fitted = sg.SGDClassifier(**EVERYTHING)
    scores = []
    for start in range(0, 4000, 500):
        fitted.partial_fit(table.slice(start, 500), "y", classes=[0, 1])
        scores.append(fitted.score(table, "y"))
    assert scores[-1] > scores[0] and scores[-1] > 0.75


def test_every_part_of_a_table_matters() -> None:
    """Without a kind of column, the log loss on other rows is worse: none is lost on its way."""
    train, test = table_of(20_000), table_of(5000, seed=1)

    def loss(**parameters: Any) -> float:
        model = sg.SGDClassifier(**EVERYTHING | parameters).fit(train, "y").model_
        from streamgd.data.evaluate import evaluate

        return float(evaluate(TableSource(test), model)["log_loss"])

    best = loss()
    assert loss(drop="d", interactions=["x*c", "x*n2", "hour(at)*c"]) > best + 0.01
    assert loss(interactions=["c*d"]) > best + 0.005
    assert loss(drop="at", calendar=None, interactions=["c*d", "x*c", "x*n2"]) > best + 0.01
    assert loss(drop="t", text=None) > best + 0.02


def test_digits_are_read_by_default() -> None:
    X, y = datasets.load_digits(return_X_y=True)
    held_out = np.arange(len(y)) % 5 == 0
    fitted = sg.SGDClassifier().fit(X[~held_out], y[~held_out])
    assert fitted.score(X[held_out], y[held_out]) >= 0.95
    probability = fitted.predict_proba(X[held_out])
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert fitted.coef_.shape == (10, 64) and fitted.intercept_.shape == (10,)


def test_images_in_a_list_column_train_by_softmax(write: Write, tmp_path: Path) -> None:
    """Ten kinds of 28 x 28 images, as bytes."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 255, (10, 784))
    y = rng.integers(0, 10, 4000)
    images = np.clip(kinds[y] * 0.3 + rng.normal(80, 60, (4000, 784)), 0, 255).astype(np.uint8)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 784)
    names = np.array([f"kind {k}" for k in range(10)])
    path = write(pa.table({"image": lists, "label": names[y]}), shards=2, row_group_rows=500)
    command = [sys.executable, "-m", "streamgd"]
    model = str(tmp_path / "m")
    for arguments in (
        ["train", str(path), "--target", "label", "--epochs", "1", "--model", model],
        ["evaluate", model, str(path)],
        ["predict", model, str(path), "--out", str(tmp_path / "out"), "--keep", "label"],
    ):
        done = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True, check=True, timeout=200)
        result = json.loads(done.stdout)
        if arguments[0] == "evaluate":
            assert result["accuracy"] > 0.95 and result["log_loss"] < 0.3 and result["roc_auc"] > 0.99
    scores = pq.read_table(tmp_path / "out")
    assert scores.column_names == ["label", "prediction", *(f"probability_kind {k}" for k in range(10))]
    assert np.mean(scores["prediction"].to_numpy() == scores["label"].to_numpy()) > 0.95


@pytest.mark.parametrize("optimizer", [None, "ftrl"])
def test_l1_leaves_true_zeros_and_little_else(optimizer: str) -> None:
    """Of 200 numbers and 300 categories, ten and one matter."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8000, 200))
    c = rng.integers(0, 300, 8000)
    y = (rng.random(8000) < 1 / (1 + np.exp(-X[:, :10].sum(axis=1) - 4 * (c < 30)))).astype(int)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 200)
    table = pa.table({"v": lists, "c": [f"c{min(i, 30) if i < 30 else i}" for i in c], "y": y})
    sparse = sg.SGDClassifier(optimizer=optimizer, penalty="l1", alpha=0.01).fit(table, "y")
    zeros = sparse.coef_[0] == 0
    assert not zeros[:10].any() and zeros[10:].mean() > 0.8
    assert len(sparse.model_.hashed_index) < 100
    dense = sg.SGDClassifier(optimizer=optimizer).fit(table, "y")
    assert (dense.coef_ != 0).all() and len(dense.model_.hashed_index) > 250
    exact = LogisticRegression(C=1 / (0.01 * 8000), l1_ratio=1.0, solver="saga", max_iter=500).fit(X, y)
    assert np.corrcoef(exact.coef_[0], sparse.coef_[0])[0, 1] > 0.95


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge", "modified_huber", "perceptron"])
def test_losses_for_classes_learn(loss: str) -> None:
    table = table_of(4000)
    fitted = sg.SGDClassifier(loss, **EVERYTHING).fit(table, "y")
    assert fitted.score(table, "y") > 0.72
    assert hasattr(fitted, "predict_proba") == (loss == "modified_huber")
    if loss == "hinge":
        with pytest.raises(AttributeError, match="no attribute 'predict_proba'"):
            fitted.predict_proba(table)


@pytest.mark.parametrize("loss", ["huber", "epsilon_insensitive", "quantile"])
def test_losses_for_regressions_learn_in_any_unit(loss: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 3))
    y = X @ [1.0, -2.0, 0.5] + 0.3 * rng.standard_t(3, size=3000)
    one = sg.SGDRegressor(loss).fit(X, y)
    other = sg.SGDRegressor(loss).fit(X, 1e6 * y + 1e7)
    assert one.score(X, y) > 0.9
    np.testing.assert_allclose((other.predict(X) - 1e7) / 1e6, one.predict(X), atol=1e-3)
    assert other.result_.train_loss == pytest.approx(
        one.result_.train_loss * 1e6 ** (2 if loss == "huber" else 1), rel=1e-3
    )


def test_counts_are_not_negative() -> None:
    X = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(TargetError, match=r"target 'y' is -2\.0, but the loss takes no number below 0"):
        sg.SGDRegressor("poisson").fit(X, np.r_[np.zeros(99), -2.0])


def test_class_weights_and_pairs_and_weights_in_every_form() -> None:
    frame = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [4.0, 3, 1, 2], "c": ["u", "v", "u", "v"]})
    y = np.array([0.0, 1.0, 1.0, 0.0])
    found = [
        sg.SGDClassifier(class_weight={0: 1, 1: 2}, interactions=pairs).fit(frame, y) for pairs in ("a*b", [("a", "b")])
    ]
    assert found[0].model_.sha256() == found[1].model_.sha256()
    assert found[0].model_.spec.columns[-1].name == "a*b"
    scaled = sg.SGDClassifier().fit(frame, y, 2.0)
    np.testing.assert_allclose(scaled.coef_, sg.SGDClassifier().fit(frame, y, np.full(4, 2.0)).coef_)


def test_a_quantile_is_met_by_its_share_of_rows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5000, 2))
    y = X @ [1.0, 2.0] + rng.exponential(size=5000)
    for quantile in (0.1, 0.5, 0.9):
        fitted = sg.SGDRegressor("quantile", quantile=quantile, epochs=10).fit(X, y)
        assert np.mean(y < fitted.predict(X)) == pytest.approx(quantile, abs=0.03)


def test_a_column_of_different_strings_is_hashed_like_any_other(write: Write) -> None:
    table = pa.table({"c": [f"v{i}" for i in range(200_000)], "x": np.arange(200_000.0), "y": np.arange(200_000) % 2})
    model = sg.SGDClassifier(epochs=1).fit(write(table, row_group_rows=20_000), "y").model_
    assert model.spec.hash_bits == 20 and model.spec.columns[0].varied and model.spec.dictionaries == []
    assert 0.7 * 200_000 < len(model.hashed_index) <= 200_000


def test_the_flights_learn_from_their_strings() -> None:
    numbers = sg.SGDClassifier(epochs=1, drop=["carrier", "origin", "dest", "tailnum"]).fit(FLIGHTS / "train", "late")
    everything = sg.SGDClassifier(epochs=1).fit(FLIGHTS / "train", "late")
    from streamgd.data.evaluate import evaluate

    losses = [evaluate(ParquetSource(FLIGHTS / "test"), fitted.model_)["log_loss"] for fitted in (numbers, everything)]
    assert losses[1] < losses[0] - 0.001


def test_times_in_zones_and_dates_are_calendars() -> None:
    start = datetime(2013, 1, 1)
    at = [start + timedelta(hours=7 * i) for i in range(500)]
    y = [int(when.weekday() in (5, 6)) for when in at]
    for kind in (pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.date32()):
        table = pa.table({"at": pa.array(at, pa.timestamp("s")).cast(kind), "y": y})
        assert sg.SGDClassifier(calendar="at", epochs=20).fit(table, "y").score(table, "y") == 1


def test_mini_batches_of_hashed_categories_are_larger() -> None:
    """By default, of much data, and where a mini-batch has its slots together."""

    def rows(config: Config, classes: int = 2, columns: tuple[str, ...] = ("c",)) -> int:
        table = pa.table({name: [f"v{k % 5} and" for k in range(60)] for name in columns} | {"x": np.arange(60.0)})
        table = table.append_column("y", pa.array(np.arange(60) % classes))
        job, _ = prepare(TableSource(table), "y", config)
        return rows_of_batch(config, job.encoder.spec, replace(job.labels, rows=1 << 21))

    assert rows(Config()) == rows(Config(optimizer="adam")) == 1024
    assert rows(Config(), columns=()) == rows(Config(), classes=3) == rows(Config(optimizer="sgd")) == 256
    assert rows(Config(text=("t",)), columns=("c", "t")) == 256
    assert rows(Config(batch_size=77)) == 77
