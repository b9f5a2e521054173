"""Streamed scores against NumPy's margins and scikit-learn's metrics on the whole data."""

from __future__ import annotations

import math
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from streamgd.data import evaluate as module
from streamgd.data.evaluate import evaluate, margins, mean_loss, model_encoder, predictions
from streamgd.data.source import ParquetSource
from streamgd.data.strings import column_seeds, hash_text, pair_hash
from streamgd.data.table import TableSource
from streamgd.errors import (
    AllNullTarget,
    BadWeight,
    MissingColumn,
    NonFiniteFeature,
    NonFiniteTarget,
    SchemaMismatch,
    TargetError,
    UnknownLabel,
)
from streamgd.features import Column, FeatureSpec
from streamgd.model import Model
from tests import strategies as sgst

COLUMNS = (Column("a", "number"), Column("v", "vector", 2), Column("b", "number"))
COEF = np.array([0.5, -1.0, 0.25, 2.0])
MEAN = np.array([1.0, 2.0, 3.0, 4.0])


def model(classes=None, class_type=None, *, centred=True):
    """A model that was not trained, so that what it should say is known."""
    raw = FeatureSpec.raw(COLUMNS)
    spec = raw.centred(MEAN, np.ones(4)) if centred else raw.uncentred(MEAN)
    return Model(
        task="regression" if classes is None else "classification",
        loss="squared_error" if classes is None else "log_loss",
        target="y",
        spec=spec,
        coef=COEF[np.newaxis],
        intercept=np.array([0.75]),
        scale=np.ones(4),
        missing=np.zeros(4),
        classes=classes,
        class_type=class_type,
    )


def table_of(rows, seed=0, missing=0.1):
    """Features, and the margins that the model gives: a missing value is the mean."""
    rng = np.random.default_rng(seed)
    X = np.round(rng.normal(size=(rows, 4)) + MEAN, 3)
    X[rng.uniform(size=X.shape) < missing] = np.nan
    table = pa.table(
        {
            "a": pa.array(X[:, 0], from_pandas=True),
            "b": X[:, 3],
            "v": pa.array([[None if np.isnan(x) else x for x in pair] for pair in X[:, 1:3]], pa.list_(pa.float64())),
        }
    )
    return table, np.where(np.isnan(X), MEAN, X) @ COEF + 0.75


def labelled(margin, rng, unlabelled):
    y = rng.uniform(size=len(margin)) < 1 / (1 + np.exp(-margin))
    y[:2] = [False, True]
    there = rng.uniform(size=len(margin)) >= unlabelled
    there[:2] = True
    return y, there


def nan_if_none(value):
    return math.nan if value is None else value


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_metrics_of_a_classification_are_those_of_scikit_learn(data):
    rows, seed = data.draw(st.integers(2, 300)), data.draw(st.integers(0, 1000))
    table, margin = table_of(rows, seed)
    rng = np.random.default_rng(seed + 1)
    y, there = labelled(margin, rng, data.draw(st.sampled_from([0, 0.5])))
    kind, classes = data.draw(
        st.sampled_from(
            [
                (pa.int64(), [3, 7]),
                (pa.int8(), [-1, 1]),
                (pa.bool_(), [False, True]),
                (pa.string(), ["no", "yes"]),
                (pa.float64(), [0.5, 1.5]),
            ]
        )
    )
    target = pa.array([classes[int(place)] for place in y], kind, mask=~there)
    if kind == pa.string() and data.draw(st.booleans()):
        target = target.dictionary_encode()
    weights = None
    table = table.append_column("y", target)
    if data.draw(st.booleans()):
        weights = rng.integers(0, 4, rows).astype(float)
        weights[:2] = 1
        table = table.append_column("w", pa.array(weights))
    w = None if weights is None else weights[there]
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_ROWS", data.draw(st.sampled_from([100, module.PART_ROWS])))
        sgst.write_shards(directory, table, data.draw(sgst.layouts(rows)))
        source = ParquetSource(directory)
        found = evaluate(
            source,
            model(classes, str(kind)),
            weight=None if weights is None else "w",
            n_jobs=data.draw(st.integers(1, 4)),
        )
    probability = 1 / (1 + np.exp(-margin[there]))
    assert (found["rows"], found["skipped_rows"]) == (there.sum(), rows - there.sum())
    assert found["log_loss"] == pytest.approx(metrics.log_loss(y[there], probability, sample_weight=w), rel=1e-5)
    exact = metrics.accuracy_score(y[there], margin[there] > 0, sample_weight=w)
    assert found["accuracy"] == pytest.approx(exact, abs=1e-12)
    area = metrics.roc_auc_score(y[there], probability, sample_weight=w)
    assert abs(found["roc_auc"] - area) <= found["roc_auc_error"] + 1e-9
    assert found["roc_auc_error"] < 0.02 + 1 / np.bincount(y[there]).min()  # of few rows, two in a bin are much


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_metrics_of_a_regression_are_those_of_scikit_learn(data):
    rows, seed = data.draw(st.integers(2, 300)), data.draw(st.integers(0, 1000))
    table, margin = table_of(rows, seed)
    rng = np.random.default_rng(seed + 1)
    kind = data.draw(st.sampled_from([pa.float64(), pa.float32(), pa.int32()]))
    y = np.rint(margin + rng.normal(size=rows)) + data.draw(st.sampled_from([0, 1000]))
    there = rng.uniform(size=rows) >= data.draw(st.sampled_from([0, 0.5]))
    there[:2] = True
    table = table.append_column("target", pa.array(y, mask=~there).cast(kind))
    weights = None
    if data.draw(st.booleans()):
        weights = rng.exponential(size=rows)
        table = table.append_column("w", pa.array(weights))
    w = None if weights is None else weights[there]
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_ROWS", data.draw(st.sampled_from([30, module.PART_ROWS])))
        sgst.write_shards(directory, table, data.draw(sgst.layouts(rows)))
        found = evaluate(
            ParquetSource(directory),
            model(),
            target="target",
            weight=None if weights is None else "w",
            n_jobs=data.draw(st.integers(1, 4)),
        )
    y, margin = y[there], margin[there]
    assert (found["rows"], found["skipped_rows"]) == (len(y), rows - len(y))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, margin, sample_weight=w), rel=1e-5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, margin, sample_weight=w), rel=1e-5)
    if len(set(y)) > 1:
        exact = metrics.r2_score(y, margin, sample_weight=w)
        assert nan_if_none(found["r2"]) == pytest.approx(exact, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("classes", [None, [0, 1]])
def test_the_number_of_threads_changes_no_digit(classes, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 100)
    table, margin = table_of(5000)
    y = (margin > 0).astype(int) if classes else margin + 1
    source = TableSource(table.append_column("y", pa.array(y)), 60)
    made = model(classes, classes and "int64")
    found = [evaluate(source, made, n_jobs=jobs) for jobs in (1, 2, 5)]
    assert found[0] == found[1] == found[2]
    scores = [margins(source, made, jobs) for jobs in (1, 2, 5)]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_margins_come_in_the_order_of_the_rows(data):
    rows = data.draw(st.integers(1, 200))
    table, expected = table_of(rows, missing=data.draw(st.sampled_from([0, 0.5])))
    made = model(centred=data.draw(st.booleans()))
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, data.draw(sgst.layouts(rows)))
        found = margins(ParquetSource(directory), made, data.draw(st.integers(1, 4)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # A row has one margin, to the last bit, whatever stands beside it.
    np.testing.assert_array_equal(found, margins(TableSource(table, data.draw(st.integers(1, rows))), made))


def test_a_mean_far_from_zero_costs_no_digits():
    noise = np.random.default_rng(0).normal(size=1000)
    spec = FeatureSpec.raw([Column("a", "number")]).centred(np.array([1e9]), np.ones(1))
    coef, intercept = np.array([[2.0]]), np.array([-2e9])
    made = Model("regression", "squared_error", "y", spec, coef, intercept, np.ones(1), np.zeros(1))
    found = margins(TableSource(pa.table({"a": 1e9 + noise})), made)
    np.testing.assert_allclose(found, 2 * noise, atol=1e-6)


def test_the_mean_loss_is_what_training_minimises():
    table, margin = table_of(400)
    y = margin + np.random.default_rng(0).normal(size=400)
    source = TableSource(table.append_column("y", pa.array(y)))
    assert mean_loss(source, model()) == pytest.approx(0.5 * np.mean((margin - y) ** 2), rel=1e-5)
    labels = y > 0
    source = TableSource(table.append_column("y", pa.array(labels)).append_column("w", pa.array(np.arange(400.0))))
    exact = np.average(np.logaddexp(0, np.where(labels, -margin, margin)), weights=np.arange(400))
    assert mean_loss(source, model([False, True], "bool"), weight="w", n_jobs=2) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("classes", [None, [0, 1]])
def test_data_without_a_target_value_are_an_error(classes):
    table, _ = table_of(10)
    table = table.append_column("y", pa.nulls(10, pa.int64()))
    for score in (evaluate, mean_loss):
        with pytest.raises(AllNullTarget, match="'y' is null in all 10 rows"):
            score(TableSource(table, 3), model(classes, classes and "int64"))


@pytest.mark.parametrize("classes", [None, [0, 1]])
def test_weights_that_are_all_0_are_an_error(classes):
    table, _ = table_of(4)
    table = table.append_column("y", pa.array([0, 1, 0, None])).append_column("w", pa.array([0, 0, 0, 1]))
    for score in (evaluate, mean_loss):
        with pytest.raises(BadWeight, match="'w'"):
            score(TableSource(table), model(classes, classes and "int64"), weight="w")


@pytest.mark.parametrize(
    ("y", "classes", "class_type", "error"),
    [
        (pa.array([0, 2]), [0, 1], "int64", UnknownLabel),
        (pa.array(["0", "x"]), [0, 1], "int64", UnknownLabel),
        (pa.array([0.0, 0.5]), [0, 1], "int64", UnknownLabel),
        (pa.array([0, 2]), [False, True], "bool", UnknownLabel),
        (pa.array([1.0, math.nan]), None, None, NonFiniteTarget),
        (pa.array(["1", "2"]), None, None, TargetError),
    ],
    ids=str,
)
def test_targets_of_another_kind_are_errors_that_name_the_place(y, classes, class_type, error):
    table, _ = table_of(2)
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table.append_column("y", y), [[1], [1]])
        with pytest.raises(error, match=r"part-00[01]\.parquet, row group 0.*'y'"):
            evaluate(ParquetSource(directory), model(classes, class_type))


def test_columns_that_are_not_there_or_of_another_kind():
    table, _ = table_of(5)
    with pytest.raises(MissingColumn, match="target column 'y'"):
        evaluate(TableSource(table), model())
    with pytest.raises(MissingColumn, match="target column 'q'"):
        evaluate(TableSource(table), model(), target="q")
    with pytest.raises(MissingColumn, match="no column w"):
        evaluate(TableSource(table.append_column("y", table["a"])), model(), weight="w")
    with pytest.raises(MissingColumn, match="model's column 'b'"):
        margins(TableSource(table.drop_columns("b")), model())
    for name, values in (("a", pa.array(["x"] * 5)), ("v", pa.array([1.0] * 5)), ("b", table["v"])):
        changed = table.drop_columns(name).append_column(name, values)
        with pytest.raises(SchemaMismatch, match=f"'{name}' holds "):
            model_encoder(model(), TableSource(changed))


def test_columns_are_found_by_name():
    table, expected = table_of(20)
    table = table.append_column("more", pa.array(["text"] * 20)).select(["v", "more", "b", "a"])
    np.testing.assert_allclose(margins(TableSource(table, 3), model()), expected, rtol=1e-5, atol=1e-5)


def test_infinity_is_an_error_that_names_the_place():
    table, _ = table_of(5)
    table = table.set_column(1, "b", pa.array([1.0, 2.0, math.inf, 4.0, 5.0]))
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, [[1], [1, 3]])
        with pytest.raises(NonFiniteFeature, match=r"part-001\.parquet, row group 1.*'b'"):
            margins(ParquetSource(directory), model(), 2)


@pytest.mark.parametrize(
    ("classes", "class_type"),
    [
        ([3, 7], "int64"),
        (["no", "yes"], "string"),
        (["no", "yes"], "large_string"),
        ([False, True], "bool"),
        ([0.5, 1.5], "double"),
    ],
)
def test_predictions_are_labels_and_probabilities(classes, class_type):
    margin = np.array([-800.0, -1.0, 0.0, 1e-9, 2.0, 800.0])
    found = predictions(model(classes, class_type), margin)
    assert list(found) == ["prediction", "probability"]
    assert str(found["prediction"].type) == class_type
    assert found["prediction"].to_pylist() == [classes[int(z > 0)] for z in margin]
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found["probability"].to_numpy(), 1 / (1 + np.exp(-margin)), rtol=1e-12, atol=1e-300)


def test_predictions_of_a_regression_are_its_margins():
    margin = np.array([-1.5, 1e300])
    found = predictions(model(), margin)
    assert list(found) == ["prediction"] and found["prediction"].to_pylist() == margin.tolist()


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge", "perceptron", "modified_huber"])
def test_margins_that_are_no_log_odds_have_no_log_loss(loss):
    table, margin = table_of(200)
    source = TableSource(table.append_column("y", pa.array((margin > np.median(margin)).astype(int))))
    made = replace(model([0, 1], "int64"), loss=loss, intercept=np.array([0.75 - np.median(margin)]))
    result = evaluate(source, made)
    assert result["log_loss"] is None and result["accuracy"] > 0.7 and result["roc_auc"] == pytest.approx(1, abs=1e-3)
    found = predictions(made, np.array([-3.0, 0.5]))
    assert found["prediction"].to_pylist() == [0, 1]
    if loss == "modified_huber":
        np.testing.assert_allclose(found["probability"].to_numpy(), [0, 0.75])
    else:
        assert list(found) == ["prediction"]


def test_several_classes_have_a_margin_a_probability_and_a_name_each():
    rng = np.random.default_rng(0)
    table, _ = table_of(300)
    coef, intercept = rng.normal(size=(3, 4)), rng.normal(size=3)
    made = replace(model(["a", "b", "c"], "string"), coef=coef, intercept=intercept)
    y = rng.choice(["a", "b", "c"], 300)
    source = TableSource(table.append_column("y", pa.array(y)), 70)
    z = margins(source, made)
    X = np.column_stack(
        [table["a"].to_numpy(), np.array(table["v"].combine_chunks().flatten()).reshape(-1, 2), table["b"]]
    )
    np.testing.assert_allclose(
        z, np.where(np.isnan(X.astype(float)), MEAN, X.astype(float)) @ coef.T + intercept, atol=1e-5
    )
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    result = evaluate(source, made, n_jobs=2)
    assert result["log_loss"] == pytest.approx(metrics.log_loss(y, p, labels=["a", "b", "c"]), rel=1e-9)
    assert result["accuracy"] == pytest.approx(np.mean(np.array(["a", "b", "c"])[z.argmax(axis=1)] == y))
    assert mean_loss(source, made) == pytest.approx(result["log_loss"], rel=1e-9)
    found = predictions(made, z)
    assert list(found) == ["prediction", "probability_a", "probability_b", "probability_c"]
    np.testing.assert_allclose(found["probability_b"].to_numpy(), p[:, 1], rtol=1e-9)


def test_counts_are_the_exponential_of_their_margin():
    made = replace(model(), loss="poisson")
    assert predictions(made, np.array([0.0, 1.0]))["prediction"].to_pylist() == pytest.approx([1, math.e])
    table, margin = table_of(50)
    y = np.random.default_rng(0).poisson(np.exp(np.clip(margin, -3, 3))).astype(float)
    source = TableSource(table.append_column("y", pa.array(y)))
    assert evaluate(source, made)["rmse"] == pytest.approx(np.sqrt(np.mean((np.exp(margin) - y) ** 2)), rel=1e-4)
    assert mean_loss(source, made) == pytest.approx(np.mean(np.exp(margin) - y * margin), rel=1e-4)


def test_hashed_features_count_wherever_they_come_from(tmp_path):
    """Categories, texts, and a number times a category, from a table and from shards with dictionaries."""
    columns = [Column("a", "number"), Column("c", "category"), Column("t", "text")]
    spec = FeatureSpec.raw([*columns, Column("a*c", "scaled", parts=("a", "c"))]).centred(np.array([2.0]), np.ones(1))
    spec = spec.hashed(20, np.array([4.0]))
    mask = spec.n_slots - 1
    seeds = {name: column_seeds(name) for name in ("c", "t", "a*c")}
    weights = {
        hash_text("x", seeds["c"][0]) & mask: 1.0,
        seeds["c"][1] & mask: 10.0,
        hash_text("good", seeds["t"][0]) & mask: 100.0,
        int(pair_hash(spec.columns[3], [np.array([hash_text("x", seeds["c"][0])], np.uint32)])[0]) & mask: 1000.0,
    }
    index = np.array(sorted(weights), np.uint32)
    hashed = np.array([[weights[int(i)]] for i in index], np.float32)
    zero = np.zeros((1, 1)), np.zeros(1), np.ones(1), np.zeros(1)
    made = Model("regression", "squared_error", "y", spec, *zero, index, hashed)
    table = pa.table({"a": [2.0, 6.0, None], "c": ["x", "x", None], "t": ["Good, good", None, "bad"]})
    pq.write_table(table, tmp_path / "a.parquet")
    for source in (TableSource(table), ParquetSource(str(tmp_path))):
        np.testing.assert_allclose(margins(source, made), [201, 1001, 10], rtol=1e-6)
