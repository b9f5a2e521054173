"""The scan of the target against `collections.Counter` and NumPy, however rows are cut into shards and row groups."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgd.data import labels as module
from streamgd.data.counting import count_column, counted
from streamgd.data.labels import AUTO_CLASSES, DENSE_RANGE, Labels, scan_labels
from streamgd.data.source import ParquetSource
from streamgd.data.table import TableSource
from streamgd.errors import (
    AllNullTarget,
    BadWeight,
    MissingColumn,
    NonFiniteTarget,
    SingleClass,
    TargetError,
    TooManyClasses,
)
from tests import strategies as sgst

LABELS: dict[pa.DataType, list[Any]] = {
    pa.int8(): [-128, -1, 0, 1, 127],
    pa.int64(): [-(2**63), -1, 0, 1, DENSE_RANGE, 2**63 - 1],
    pa.int32(): [-7, 0, 1, 2],
    pa.uint8(): [0, 1, 255],
    pa.uint64(): [2**63, 2**63 + 1, 2**64 - 1],
    pa.bool_(): [False, True],
    pa.float32(): [-1.5, 0.0, 3.0],
    pa.float16(): [-1.5, 0.0, 3.0],
    pa.string(): ["", "no", "yes", "é"],
    pa.large_string(): ["no", "yes"],
    pa.string_view(): ["no", "yes", "a label that is longer than a view holds"],
    pa.dictionary(pa.int8(), pa.string()): ["no", "yes"],
    pa.dictionary(pa.int32(), pa.int64()): [-5, 3, 10**12],
}


def column(items: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(items, kind.value_type).dictionary_encode().cast(kind)
    if kind == pa.float16():
        return pa.array([None if item is None else np.float16(item) for item in items], kind)
    return pa.array(items, kind)


def same(one: Labels, other: Labels) -> bool:
    """Whether two are equal to the last bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Labels)]
    return all(
        a is b if a is None or b is None else a.equals(b) if isinstance(a, pa.Array) else bool(np.all(a == b))
        for a, b in pairs
    )


def correlation_ratio(values: np.ndarray, groups: list[int], weights: np.ndarray) -> float:
    """Share of the variance of the columns of `values` that lies between consecutive groups (Pearson's eta squared)."""
    centred = values - np.average(values, axis=0, weights=weights)
    between = 0.0
    for rows in np.split(np.arange(len(values)), np.cumsum(groups)[:-1]):
        if weights[rows].sum() > 0:
            between += weights[rows].sum() * (np.average(centred[rows], axis=0, weights=weights[rows]) ** 2).sum()
    whole = float((weights[:, np.newaxis] * centred**2).sum())
    return between / whole if whole else 0.0


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_classes_and_their_weights_are_those_of_a_counter(data):
    kind = data.draw(st.sampled_from(sorted(LABELS, key=str)))
    rows = data.draw(st.integers(2, 60))
    known = LABELS[kind]
    items = data.draw(st.lists(st.none() | st.sampled_from(known), min_size=rows, max_size=rows))
    items[0], items[-1] = known[0], known[1]
    table = pa.table({"x": np.arange(rows), "y": column(items, kind)})
    weights = np.ones(rows)
    weighted = data.draw(st.booleans())
    if weighted:
        weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1, 3]), min_size=rows, max_size=rows)))
        weights[0] = 1
        table = table.append_column("w", pa.array(weights))
    count: Counter[Any] = Counter()
    for item, weight in zip(items, weights, strict=True):
        if item is not None:
            count[item] += weight
    layout = data.draw(sgst.layouts(rows))
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, layout)
        source = ParquetSource(directory)
        found = scan_labels(
            source,
            "y",
            task="classification",
            weight="w" if weighted else None,
            n_jobs=data.draw(st.integers(1, 4)),
        )
        again = scan_labels(source, "y", task="classification", weight="w" if weighted else None, n_jobs=3)
    assert same(found, again)
    expected = sorted(count)
    assert found.classes is not None and found.classes.to_pylist() == expected
    assert found.class_weight is not None
    np.testing.assert_allclose(found.class_weight, [count[label] for label in expected], rtol=1e-12)
    there = np.array([item is not None for item in items])
    assert (found.task, found.rows, found.missing) == ("classification", there.sum(), (~there).sum())
    assert (found.mean, found.scale) == (0.0, 1.0)
    assert found.weight_mean == pytest.approx(weights[there].mean())
    one_hot = np.array([[item == label for label in expected] for item in items], float)[there]
    groups = [int(part.sum()) for part in np.split(there, np.cumsum([n for sizes in layout for n in sizes])[:-1])]
    assert found.clustering == pytest.approx(correlation_ratio(one_hot, groups, weights[there]), abs=1e-9)
    target = found.target("y")
    assert target.encode(table.column("y").combine_chunks(), "").tolist() == pytest.approx(
        [math.nan if item is None else expected.index(item) for item in items], nan_ok=True
    )


@settings(deadline=None, max_examples=60)
@given(st.data())
@example(None)
def test_moments_of_a_regression_are_those_of_numpy(data):
    if data is None:
        rows, weighted, kind, layout = 50, True, pa.float64(), [[20, 0], [30]]
        seed, mean, jobs = 0, 1e9, 2
    else:
        rows, weighted = data.draw(st.integers(1, 300)), data.draw(st.booleans())
        kind = data.draw(st.sampled_from([pa.float64(), pa.float32(), pa.int64(), pa.bool_(), pa.decimal128(20, 3)]))
        layout, seed = data.draw(sgst.layouts(rows)), data.draw(st.integers(0, 1000))
        mean, jobs = data.draw(st.sampled_from([0.0, -5.0, 1e9])), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    y = rng.normal(size=rows) + mean
    if kind == pa.bool_():
        y = y > mean
    elif pa.types.is_decimal(kind):
        y = np.array([Decimal(int(value * 1000)).scaleb(-3) for value in y])
    elif kind == pa.int64():
        y = (y * 100).astype(np.int64)
    there = rng.uniform(size=rows) < 0.8
    there[0] = True
    weights = rng.integers(0, 4, rows).astype(float) if weighted else np.ones(rows)
    weights[0] = 1
    values = pa.array(y.tolist(), kind, mask=~there)
    y = np.array([float(value) for value, known in zip(values.to_pylist(), there, strict=True) if known])
    w = weights[there]
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, pa.table({"y": values, "w": weights}), layout)
        found = scan_labels(
            ParquetSource(directory), "y", task="regression", weight="w" if weighted else None, n_jobs=jobs
        )
    assert (found.task, found.classes, found.class_weight) == ("regression", None, None)
    assert (found.rows, found.missing) == (len(y), rows - len(y))
    assert found.weight_mean == pytest.approx(w.mean())
    assert found.mean == pytest.approx(np.average(y, weights=w), rel=1e-15, abs=1e-12)
    variance = np.average((y - np.average(y, weights=w)) ** 2, weights=w)
    assert found.scale == pytest.approx(math.sqrt(variance) if variance else 1.0, rel=1e-6)
    groups = [int(part.sum()) for part in np.split(there, np.cumsum([n for sizes in layout for n in sizes])[:-1])]
    # 1e-16 of a mean of 1e9 is what between row groups is known to.
    assert found.clustering == pytest.approx(correlation_ratio(y[:, np.newaxis], groups, w), abs=1e-6)


def test_a_mean_far_from_zero_costs_no_digits():
    noise = np.random.default_rng(0).normal(0, 1e-3, 100_000)
    y = 1e9 + noise
    found = scan_labels(TableSource(pa.table({"y": y})), "y", n_jobs=2)
    assert found.mean == pytest.approx(y.mean(), rel=1e-15)
    assert found.scale == pytest.approx(y.std(), rel=1e-6)
    assert found.clustering < 0.01


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string()], ids=str)
def test_clustering_is_near_0_in_random_order_and_1_where_each_row_group_has_one_label(kind):
    rng = np.random.default_rng(0)
    task = "regression" if kind == pa.float64() else "classification"
    labels = rng.permutation(np.repeat([0, 1], [3000, 1000]))
    for y, expected in ((labels, 0.0), (np.sort(labels), 1.0)):
        table = pa.table({"y": pa.array(y).cast(kind)})
        found = scan_labels(TableSource(table, row_group_rows=500), "y", task=task)
        assert found.clustering == pytest.approx(expected, abs=0.01)
    constant = scan_labels(TableSource(pa.table({"y": np.full(10, 3.0)}), row_group_rows=2), "y")
    assert (constant.clustering, constant.scale, constant.mean) == (0.0, 1.0, 3.0)


@pytest.mark.parametrize("kind", [pa.int16(), pa.float64()], ids=str)
@pytest.mark.parametrize("weight", [None, "w"])
def test_the_number_of_threads_changes_no_bit(kind, weight):
    rng = np.random.default_rng(0)
    table = pa.table({"y": pa.array(rng.integers(0, 300, 5000) + 1000).cast(kind), "w": rng.exponential(size=5000)})
    source = TableSource(table, row_group_rows=37)
    found = [scan_labels(source, "y", weight=weight, n_jobs=jobs) for jobs in (1, 2, 3, 16)]
    assert all(same(found[0], other) for other in found)


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (pa.array([0, 1] * 50), "classification"),
        (pa.array(range(AUTO_CLASSES)), "classification"),
        (pa.array(range(AUTO_CLASSES + 1)), "regression"),
        (pa.array(range(300)), "regression"),
        (pa.array([0, 10**12]), "classification"),
        (pa.array([0, 1], pa.uint8()), "classification"),
        (pa.array([0.0, 1.0]), "regression"),
        (pa.array([0, 1], pa.float32()), "regression"),
        (pa.array([Decimal(0), Decimal(1)]), "regression"),
        (pa.array([True, False]), "classification"),
        (pa.array(["a", "b"]), "classification"),
        (pa.array([str(i) for i in range(300)]), "classification"),
        (pa.array([str(i) for i in range(300)], pa.string_view()), "classification"),
        (pa.array([0, 1]).dictionary_encode(), "classification"),
        (pa.array([0.5, 1]).dictionary_encode(), "regression"),
        (pa.array(["a", "b"]).dictionary_encode(), "classification"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} {value.type}",
)
@pytest.mark.parametrize("row_group_rows", [7, 1000])
def test_the_task_follows_from_the_column(y, task, row_group_rows):
    found = scan_labels(TableSource(pa.table({"y": y}), row_group_rows=row_group_rows), "y")
    assert found.task == task
    if task == "classification":
        assert found.classes is not None and found.classes.to_pylist() == sorted(set(y.to_pylist()))


def test_integers_that_turn_out_to_be_a_regression_have_exact_moments():
    """Counting their values was begun as for classes, and given up on the way."""
    y = np.random.default_rng(0).integers(-(10**6), 10**6, 3000)
    y[:1500] = np.sort(y[:1500] % 7)
    found = scan_labels(TableSource(pa.table({"y": y}), row_group_rows=100), "y", n_jobs=2)
    assert (found.task, found.rows) == ("regression", 3000)
    assert found.mean == pytest.approx(y.mean(), rel=1e-12)
    assert found.scale == pytest.approx(y.std(), rel=1e-12)


@pytest.mark.parametrize("weight", [None, "w"])
def test_a_row_group_of_several_record_batches_counts_as_one(weight):
    """With a drift in it, so that what lies between its batches matters."""
    rng = np.random.default_rng(0)
    rows = 150_000
    w = rng.integers(0, 4, rows).astype(float)
    y = np.linspace(0, 5, rows) + rng.normal(size=rows)
    whole = np.rint(y * 50).astype(np.int64)
    label = np.where(y > 2.5, "late", "early")
    table = pa.table({"y": y, "whole": whole, "label": label, "w": w})
    weights = w if weight else np.ones(rows)
    for source, groups in ((TableSource(table, rows), [rows]), (TableSource(table, 75_000), [75_000] * 2)):
        for name, exact in (("y", y), ("whole", whole)):
            found = scan_labels(source, name, weight=weight, n_jobs=2)
            mean = np.average(exact, weights=weights)
            variance = np.average((exact - mean) ** 2, weights=weights)
            assert found.task == "regression"
            np.testing.assert_allclose([found.mean, found.scale], [mean, math.sqrt(variance)], rtol=1e-10)
            ratio = correlation_ratio(exact[:, np.newaxis].astype(float), groups, weights)
            assert found.clustering == pytest.approx(ratio, abs=1e-9)
        found = scan_labels(source, "label", weight=weight)
        late = weights[label == "late"].sum()
        assert found.class_weight is not None
        np.testing.assert_allclose(found.class_weight, [weights.sum() - late, late], rtol=1e-12)
        one_hot = np.stack([label == "early", label == "late"], axis=1).astype(float)
        assert found.clustering == pytest.approx(correlation_ratio(one_hot, groups, weights), abs=1e-9)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_codes_of_a_dictionary_are_counted_as_rows_are(data):
    """To the last bit, however pages lie; and rows are read where these are not codes of a few values."""
    kind = data.draw(st.sampled_from([k for k in LABELS if module._may_be_counted(k)]))
    item = st.none() | st.sampled_from(LABELS[kind])
    y = pa.array(data.draw(st.lists(item, min_size=1, max_size=6)) * data.draw(st.integers(1, 40)), kind)
    options = st.fixed_dictionaries(
        {
            "use_dictionary": st.booleans(),
            "compression": st.sampled_from(["none", "snappy", "zstd"]),
            "row_group_size": st.integers(1, 90),
            "data_page_size": st.sampled_from([1, 1 << 20]),
            "write_batch_size": st.sampled_from([1, 7, 1024]),
            "dictionary_pagesize_limit": st.sampled_from([1, 1 << 20]),
        }
    )
    shards = data.draw(st.lists(options, min_size=1, max_size=3))
    task, n_jobs = data.draw(st.sampled_from([None, "classification"])), data.draw(st.integers(1, 2))
    used = []

    def told(*args):
        for found in counted(*args):
            used.append(found)
            yield found

    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        for k, one in enumerate(shards):
            pq.write_table(pa.table({"y": y}), f"{directory}/{k}.parquet", **one)
        patch.setattr(module, "counted", told)
        found = []
        for _ in range(2):
            try:
                found.append(scan_labels(ParquetSource(directory), "y", task=task, n_jobs=n_jobs))
            except (SingleClass, AllNullTarget) as error:
                found.append(str(error))
            patch.setattr(ParquetSource, "raw", lambda *args: None)
    row_groups = [-(-len(y) // one["row_group_size"]) for one in shards]
    coded = [one["use_dictionary"] and one["dictionary_pagesize_limit"] > 1 for one in shards]
    assert len(used) == 2 * sum(row_groups)
    if n_jobs == 1 or pa.types.is_integer(kind):  # else threads come in any order
        assert all(
            told is not None for told, is_coded in zip(used, np.repeat(coded, row_groups), strict=False) if is_coded
        )
        assert not any(used[sum(row_groups) :])
    one, other = found
    assert one == other if isinstance(one, str) else same(one, other)


@pytest.mark.parametrize("codec", ["none", "snappy"])
def test_codes_that_are_damaged_are_counted_as_arrow_reads_them(tmp_path, codec):
    """Or are left to it: in each byte of the column chunk a bit is flipped."""
    path = tmp_path / "a.parquet"
    labels = np.random.default_rng(0).integers(0, 3, 500).astype(np.int8)
    pq.write_table(pa.table({"y": pa.array(labels)}), path, compression=codec)
    chunk, whole = pq.read_metadata(path).row_group(0).column(0), path.read_bytes()
    source, counts = ParquetSource(path), []
    begin = chunk.dictionary_page_offset
    for place in range(begin, begin + chunk.total_compressed_size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        raw = source.raw(0, ["y"])
        found = count_column([raw], "y")[0]
        if found is not None:
            with suppress(OSError):  # it looks closer at what a header says beside
                assert found.rows == Counter(pq.read_table(path)["y"].to_pylist())
                counts.append(found.rows)
    assert len(counts) > 50 and len({tuple(sorted(one.items())) for one in counts}) > 3


def test_a_row_group_that_is_damaged_keeps_no_other_from_being_counted(tmp_path):
    path = tmp_path / "a.parquet"
    labels = np.random.default_rng(0).integers(0, 3, 500)
    pq.write_table(pa.table({"y": labels}), path, row_group_size=100, compression="snappy")
    chunk, whole = pq.read_metadata(path).row_group(2).column(0), bytearray(path.read_bytes())
    source = ParquetSource(path)
    whole[chunk.dictionary_page_offset : chunk.data_page_offset] = bytes(
        chunk.data_page_offset - chunk.dictionary_page_offset
    )
    path.write_bytes(whole)
    found = count_column([*(source.raw(k, ["y"]) for k in range(5)), None], "y")
    assert found[2] is None and found[5] is None
    for k in (0, 1, 3, 4):
        assert found[k] == (Counter(labels[100 * k : 100 * k + 100].tolist()), 0)


def test_classes_that_are_still_to_come_can_be_named():
    found = scan_labels(TableSource(pa.table({"y": [0, 0, 2]})), "y", classes=[0, 1, 2])
    assert found.classes is not None and found.class_weight is not None
    assert found.classes.to_pylist() == [0, 1, 2]
    np.testing.assert_array_equal(found.class_weight, [2, 0, 1])


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64()], ids=str)
def test_a_class_whose_rows_have_weight_0_is_a_class(kind):
    """Its rows are read in training too, and their label must be known."""
    table = pa.table({"y": pa.array([0, 1, 2, 1]).cast(kind), "w": [1.0, 0.0, 2.0, 0.0]})
    found = scan_labels(TableSource(table), "y", task="classification", weight="w")
    assert found.classes is not None and found.class_weight is not None
    assert len(found.classes) == 3
    np.testing.assert_array_equal(found.class_weight, [1, 0, 2])


def test_a_null_in_the_dictionary_is_a_null():
    y = pa.DictionaryArray.from_arrays([0, 1, 2, None], pa.array(["no", None, "yes"]))
    found = scan_labels(TableSource(pa.table({"y": y, "w": [1.0, 7, 1, 7]})), "y", weight="w")
    assert found.classes is not None and found.classes.to_pylist() == ["no", "yes"]
    assert (found.rows, found.missing, found.weight_mean) == (2, 2, 1.0)
    y = pa.DictionaryArray.from_arrays([0, 1, 2, None], pa.array([1.5, None, 2.5]))
    found = scan_labels(TableSource(pa.table({"y": y})), "y")
    assert (found.rows, found.missing, found.mean) == (2, 2, 2.0)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.bool_(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_a_single_class_is_an_error_that_names_it(kind):
    y = pa.array([1, None, 1]).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    table = pa.table({"y": y.cast(kind)})
    with pytest.raises(SingleClass, match="'y'.*" + repr(y[0].as_py())):
        scan_labels(TableSource(table), "y")


@pytest.mark.parametrize("kind", [pa.null(), pa.int64(), pa.float64(), pa.string(), pa.bool_()], ids=str)
def test_a_target_without_values_is_an_error(kind):
    with pytest.raises(AllNullTarget, match="'y' is null in all 3 rows"):
        scan_labels(TableSource(pa.table({"y": pa.nulls(3, kind)}), row_group_rows=2), "y")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.float16()], ids=str)
@pytest.mark.parametrize("task", [None, "regression", "classification"])
def test_targets_that_are_not_finite_are_errors_that_name_the_place(bad, kind, task):
    items = [1.0, 2.0, 3.0, bad]
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, pa.table({"y": column(items, kind)}), [[1], [1, 2]])
        with pytest.raises(NonFiniteTarget, match=r"part-001\.parquet, row group 1.*'y' is -?(nan|inf)"):
            scan_labels(ParquetSource(directory), "y", task=task)


@pytest.mark.parametrize("y", [[1e300, -1e300], [1e200, 0.0], [1.7e308, 1.6e308]], ids=str)
def test_targets_whose_variance_overflows_are_an_error(y):
    with pytest.raises(NonFiniteTarget, match=r"'y'.*units"):
        scan_labels(TableSource(pa.table({"y": y})), "y")


def test_a_column_that_is_not_there_is_named():
    source = TableSource(pa.table({"a": [1.0, 2.0], "b": [0, 1]}))
    with pytest.raises(MissingColumn, match=r"target column 'y'.*a, b"):
        scan_labels(source, "y")
    with pytest.raises(MissingColumn, match="w"):
        scan_labels(source, "b", weight="w")


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (pa.string(), "regression"),
        (pa.dictionary(pa.int8(), pa.string()), "regression"),
        (pa.list_(pa.int8()), None),
        (pa.date32(), None),
        (pa.timestamp("s"), "classification"),
        (pa.binary(), None),
        (pa.struct([("a", pa.int8())]), None),
        (pa.decimal128(5, 2), "classification"),
    ],
    ids=str,
)
def test_types_that_cannot_be_a_target(kind, task):
    values = column(["a", "b"], kind) if pa.types.is_dictionary(kind) else pa.nulls(2, kind)
    with pytest.raises(TargetError, match=r"'y' is .*" + ("string" if pa.types.is_dictionary(kind) else str(kind)[:4])):
        scan_labels(TableSource(pa.table({"y": values})), "y", task=task)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64()], ids=str)
def test_too_many_classes_are_an_error_before_they_fill_memory(kind, monkeypatch):
    monkeypatch.setattr(module, "MOST_CLASSES", 100)
    y = pa.array(range(150)).cast(kind)
    for row_group_rows in (10, 1000):
        with pytest.raises(TooManyClasses, match=r"'y'.*more than 100"):
            scan_labels(TableSource(pa.table({"y": y}), row_group_rows), "y", task="classification", n_jobs=2)
    assert scan_labels(TableSource(pa.table({"y": y[:100]}), 10), "y", task="classification").rows == 100
    if kind != pa.string():
        assert scan_labels(TableSource(pa.table({"y": y}), 10), "y").task == "regression"


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, None])
def test_bad_weights_are_errors_that_name_the_place(bad):
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, pa.table({"y": [0, 1, 0], "w": pa.array([1.0, 1.0, bad])}), [[1], [1, 1]])
        with pytest.raises(BadWeight, match=r"part-001\.parquet, row group 1.*'w'"):
            scan_labels(ParquetSource(directory), "y", weight="w")


def test_weights_that_are_all_0_are_an_error():
    table = pa.table({"y": pa.array([0, 1, None]), "w": [0.0, 0.0, 1.0]})
    for task in ("classification", "regression"):
        with pytest.raises(BadWeight, match="'w' is 0"):
            scan_labels(TableSource(table), "y", weight="w", task=task)


def test_the_target_can_be_the_weight():
    found = scan_labels(TableSource(pa.table({"y": [1, 3]})), "y", weight="y")
    assert found.class_weight is not None
    np.testing.assert_array_equal(found.class_weight, [1, 3])
