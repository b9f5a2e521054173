"""Scales of features against NumPy over the same rows, and where a sample of large data lies."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data.columns import find_columns
from streamgd.data.encode import Encoder
from streamgd.data.profile import (
    PIECE_ROWS,
    SAMPLE_ROW_GROUPS,
    WHOLE_SAMPLE_ROWS,
    _Tally,
    measure_scales,
    sample_pieces,
)
from streamgd.data.source import ParquetSource
from streamgd.data.strings import column_seeds, hash_values
from streamgd.data.table import TableSource
from streamgd.errors import (
    BadWeight,
    ListLengthMismatch,
    NonFiniteFeature,
)
from streamgd.features import FeatureSpec, Selection
from tests import strategies as sgst


def measure(source, *, weight=None, seed=0, n_jobs=1, **named):
    encoder = Encoder(FeatureSpec.raw(find_columns(source, weight=weight, **named)), None, weight)
    return measure_scales(source, encoder, seed=seed, n_jobs=n_jobs)


def in_numpy(X: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and missing share of each column; NaN is missing."""
    w = np.where(np.isnan(X), 0, np.ones(len(X))[:, np.newaxis] if weights is None else weights[:, np.newaxis])
    x = np.where(np.isnan(X), 0, X)
    count = np.where(w.sum(axis=0) > 0, w.sum(axis=0), 1)
    first = x[(w > 0).argmax(axis=0), np.arange(x.shape[1])]  # so that the mean of equal numbers is that number
    mean = first + (w * (x - first)).sum(axis=0) / count
    scale = np.sqrt((w * (x - mean) ** 2).sum(axis=0) / count)
    total = len(X) if weights is None else weights.sum()
    return mean, np.where(scale > 0, scale, 1), 1 - w.sum(axis=0) / total


def assert_close(scales, expected, **tolerances):
    mean, scale, missing = expected
    np.testing.assert_allclose(scales.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(scales.mean, mean, rtol=1e-15, atol=1e-6 * scale.min(initial=math.inf))
    np.testing.assert_allclose(scales.missing, missing, atol=1e-6)
    assert ((scales.missing >= 0) & (scales.missing <= 1)).all()


@pytest.mark.parametrize("weight", [None, "w"])
def test_numbers_that_float32_holds_are_measured_without_arrow(tmp_path, monkeypatch, weight):
    """The same to the last bit as with it; columns whose numbers begin late, or never, among them."""
    rng = np.random.default_rng(0)
    rows = 40_000
    late = np.where(np.arange(rows) < 20_000, np.nan, 1e6 + rng.normal(size=rows)).astype(np.float32)
    table = pa.table(
        {
            "far": (3e7 + 100 * rng.normal(size=rows)).astype(np.float32),
            "late": pa.array(late, from_pandas=True),
            "none": pa.nulls(rows, pa.float32()),
            "small": rng.integers(-128, 128, rows).astype(np.int8),
            "w": rng.integers(0, 3, rows).astype(np.float32),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20_000)
    opened = []
    arrow = ParquetSource.open
    monkeypatch.setattr(ParquetSource, "open", lambda *args: opened.append(args) or arrow(*args))
    found = measure(ParquetSource(tmp_path), weight=weight)
    assert not opened
    monkeypatch.setattr(ParquetSource, "raw", lambda *args: None)
    again = measure(ParquetSource(tmp_path), weight=weight)
    assert opened
    for one, other in zip(astuple(found), astuple(again), strict=True):
        np.testing.assert_array_equal(one, other)
    names = [name for name in table.column_names if name != weight]
    X = np.stack([table[name].to_numpy().astype(float) for name in names], axis=1)
    mean, scale, missing = in_numpy(X, table["w"].to_numpy().astype(float) if weight else None)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(found.missing, missing, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_of_small_data_the_sample_is_all_rows(data):
    """However they are cut, and with a weight: scales are those of all rows."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, features = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 20))
    X = rng.normal(size=(rows, features)) * 10.0 ** rng.integers(-3, 7, features) + rng.choice([0, 3, -1e6], features)
    X[rng.uniform(size=X.shape) < data.draw(st.sampled_from([0, 0.3, 0.9]))] = np.nan
    as_null = data.draw(st.booleans())
    columns = {f"c{i}": pa.array(x, from_pandas=as_null) for i, x in enumerate(X.T)}
    weights = None
    if data.draw(st.booleans()):
        weights = rng.integers(0, 5, rows) / 4
        weights[0] = 1
        columns["w"] = pa.array(weights)
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, pa.table(columns), data.draw(sgst.layouts(rows)))
        source, jobs = ParquetSource(directory), data.draw(st.integers(1, 4))
        scales = measure(
            source, weight=None if weights is None else "w", seed=data.draw(st.integers(0, 9)), n_jobs=jobs
        )
    assert scales.sampled == rows
    mean, scale, missing = in_numpy(X, weights)
    np.testing.assert_allclose(scales.scale, scale, rtol=2e-6)
    width = np.nan_to_num(np.fmax.reduce(X) - np.fmin.reduce(X))  # a row of no weight may be what others are seen from
    np.testing.assert_array_less(
        np.abs(scales.mean - mean), 2e-6 * scale + 2e-7 * width + 4e-15 * np.abs(mean) + 1e-300
    )
    np.testing.assert_allclose(scales.missing, missing, atol=1e-6)
    assert ((scales.missing >= 0) & (scales.missing <= 1)).all()
    assert (scales.magnitude >= np.where(scale == 1, 0, scale * (1 - 2e-6))).all()


@pytest.mark.parametrize("row_group_rows", [30, 1000])
def test_integer_weights_are_rows_that_come_again(row_group_rows):
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.normal(size=500), "b": rng.integers(0, 9, 500), "w": rng.integers(0, 5, 500)})
    again = table.take(np.repeat(np.arange(500), table["w"].to_numpy())).drop_columns("w")
    weighted = measure(TableSource(table, row_group_rows), weight="w")
    repeated = measure(TableSource(again, row_group_rows))
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-6)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-6)
    np.testing.assert_allclose(weighted.magnitude, repeated.magnitude, rtol=1e-6)


TYPES = (pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.bool_(), pa.decimal128(9, 2))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_numbers_of_every_type(kind):
    x = np.random.default_rng(0).integers(0, 2 if kind == pa.bool_() else 100, 5000)
    items: list[Any] = [bool(i) for i in x] if kind == pa.bool_() else x.tolist()
    if pa.types.is_decimal(kind):
        items = [Decimal(i) for i in items]
    for values in (pa.array(items, pa.float32() if kind == pa.float16() else kind).cast(kind), None):
        values = values if values is not None else pa.array(x % 2).dictionary_encode()
        exact = np.array([float(value) for value in values.to_pylist()])
        scales = measure(TableSource(pa.table({"a": values}), row_group_rows=700))
        np.testing.assert_allclose([scales.mean[0], scales.scale[0]], [exact.mean(), exact.std()], rtol=1e-6)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 5), pa.list_(pa.float64()), pa.large_list(pa.int16())], ids=str
)
def test_vectors_have_a_scale_for_each_place(kind):
    rng = np.random.default_rng(0)
    X = np.rint(rng.normal(size=(900, 5)) * [1, 10, 100, 1000, 5000] + 3)
    X[rng.uniform(size=X.shape) < 0.1] = np.nan
    X[rng.uniform(size=900) < 0.2] = np.nan
    lists = [None if np.isnan(x).all() else [None if np.isnan(v) else v for v in x] for x in X]
    source = TableSource(pa.table({"n": np.arange(900), "v": pa.array(lists, kind), "m": np.arange(900)}), 70)
    scales = measure(source)
    mean, scale, missing = in_numpy(np.column_stack([np.arange(900), X, np.arange(900)]))
    np.testing.assert_allclose(scales.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scales.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(scales.missing, missing, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e-3, 40_000)
    time = 1_700_000_000_000_000_000 + rng.integers(-1000, 1000, 40_000) * 1024
    money = 1e9 + noise
    late = np.where(np.arange(40_000) < 17_000, np.nan, money)  # a column that is filled in from some day on
    rare = np.where(rng.uniform(size=40_000) < 0.97, np.nan, money)
    table = pa.table(
        {
            "time": time,
            "money": money,
            "late": pa.array(late, from_pandas=True),
            "late_nan": late,
            "rare": rare,
            "lists": pa.array([None if np.isnan(x) else [np.nan, x] for x in late], pa.list_(pa.float64())),
        }
    )
    for row_group_rows in (100, 7000, 50_000):
        scales = measure(TableSource(table, row_group_rows))
        means = [money.mean(), *[late[17_000:].mean()] * 2, rare[~np.isnan(rare)].mean()]
        np.testing.assert_allclose(scales.mean[1:5], means, rtol=1e-15)
        spreads = [money.std(), *[late[17_000:].std()] * 2, rare[~np.isnan(rare)].std(), 1, late[17_000:].std()]
        np.testing.assert_allclose(scales.scale[1:], spreads, rtol=2e-6)
        np.testing.assert_allclose(scales.scale[0], time.std(), rtol=1e-4)  # float64 counts in steps of 256 there
        assert abs(scales.mean[0] - 1.7e18) < 1e5


def test_numbers_near_the_ends_of_float32():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    table = pa.table({"large": x * 1e37, "small": x * 1e-18})
    scales = measure(TableSource(table, 100))
    np.testing.assert_allclose(scales.scale, [x.std() * 1e37, x.std() * 1e-18], rtol=1e-5)
    assert np.isfinite(scales.magnitude).all() and (scales.magnitude >= scales.scale * 0.999).all()


def test_constants_have_scale_1_and_columns_without_values_mean_0():
    table = pa.table(
        {
            "zero": np.zeros(300),
            "tenth": np.full(300, 0.1),
            "large": np.full(300, 123_456_789_012_345),
            "nan": np.full(300, np.nan),
            "null": pa.nulls(300),
            "null_float": pa.nulls(300, pa.float32()),
        }
    )
    scales = measure(TableSource(table, 77))
    np.testing.assert_array_equal(scales.mean, [0, 0.1, 123_456_789_012_345, 0, 0, 0])
    np.testing.assert_array_equal(scales.scale, np.ones(6))
    np.testing.assert_array_equal(scales.magnitude, np.ones(6))
    np.testing.assert_array_equal(scales.missing, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("row_group_rows", [40, 1000])
@pytest.mark.parametrize("weight", [None, "w"])
def test_the_magnitude_follows_from_the_central_moments_in_any_order(row_group_rows, weight):
    """Also where rows lie sorted, so that in most record batches a feature is a constant."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "skewed": rng.beta(2, 3, size=1000) + 1e6,
            "rare": rng.uniform(size=1000) < 0.02,
            "long": np.exp(2 * rng.normal(size=1000)),
            "w": rng.integers(1, 4, 1000),
        }
    )
    w = table["w"].to_numpy() if weight else np.ones(1000)
    expected = []
    for name in ("skewed", "rare"):
        x = table[name].to_numpy().astype(float)
        x -= np.average(x, weights=w)
        expected.append(math.sqrt(np.average(x**4, weights=w) / np.average(x**2, weights=w)))
    x = table["long"].to_numpy()
    expected.append(math.sqrt(3 * np.average((x - np.average(x, weights=w)) ** 2, weights=w)))
    for key in ("w", "skewed", "rare"):
        ordered = table.sort_by(key) if weight else table.drop_columns("w").sort_by(key if key != "w" else "skewed")
        scales = measure(TableSource(ordered, row_group_rows), weight=weight)
        np.testing.assert_allclose(scales.magnitude[:2], expected[:2], rtol=1e-5)
        np.testing.assert_allclose(scales.magnitude[2], expected[2], rtol=3e-3)  # but for one value that is the centre


def test_the_magnitude_is_the_size_of_the_values_that_matter():
    """Not that of the largest: without a bound that of the longest tail is 30 standard deviations here."""
    rng = np.random.default_rng(0)
    long = rng.pareto(1.5, 50_000)
    some = np.where(rng.uniform(size=50_000) < 0.01, rng.normal(0, 3, 50_000), 0)
    columns = {"normal": rng.normal(5, 2, 50_000), "rare": rng.uniform(size=50_000) < 0.003, "long": long, "some": some}
    scales = measure(TableSource(pa.table(columns)))
    expected = [2 * math.sqrt(3), 1, math.sqrt(3) * long.std(), 3 * math.sqrt(3)]
    np.testing.assert_allclose(scales.magnitude, expected, rtol=0.1)


@pytest.mark.parametrize("weight", [None, "w"])
def test_the_number_of_threads_changes_no_bit(weight):
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.normal(size=3000), "b": rng.normal(size=3000), "w": rng.exponential(size=3000)})
    source = TableSource(table, 40)
    found = [measure(source, weight=weight, n_jobs=jobs) for jobs in (1, 2, 5)]
    for other in found[1:]:
        for one, same in zip(astuple(found[0]), astuple(other), strict=True):
            np.testing.assert_array_equal(one, same)


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.integers(0, 2_000_000) | st.just(0) | st.integers(1, 100), min_size=1, max_size=80),
    seed=st.integers(0, 2**32 - 1),
)
def test_pieces_of_the_sample_lie_inside_their_row_groups(rows, seed):
    rows = np.array(rows)
    pieces = sample_pieces(rows, seed)
    assert pieces == sample_pieces(rows.copy(), seed)
    groups = [group for group, _, _ in pieces]
    assert groups == sorted(set(groups))
    assert all(0 <= start < stop <= rows[group] for group, start, stop in pieces)
    if rows.sum() <= WHOLE_SAMPLE_ROWS:
        assert sum(stop - start for _, start, stop in pieces) == rows.sum()
    else:
        assert all(stop - start == min(rows[group], PIECE_ROWS) for group, start, stop in pieces)
        assert min(SAMPLE_ROW_GROUPS[0], np.count_nonzero(rows)) <= len(pieces) <= SAMPLE_ROW_GROUPS[1]


def test_pieces_of_large_data_are_others_for_other_seeds_and_lie_anywhere():
    rows = np.full(1000, 1_000_000)
    samples = [sample_pieces(rows, seed) for seed in range(20)]
    assert len({tuple(pieces) for pieces in samples}) == 20
    groups = {group for pieces in samples for group, _, _ in pieces}
    assert len(groups) > 300 and min(groups) < 50 and max(groups) > 950
    starts = np.array([start for pieces in samples for _, start, _ in pieces])
    assert starts.min() < 50_000 and starts.max() > 930_000


def test_of_large_data_the_scales_are_those_of_the_sample():
    rng = np.random.default_rng(0)
    rows = WHOLE_SAMPLE_ROWS + 60_000
    x = rng.normal(size=rows) * np.linspace(1, 5, rows) + np.linspace(0, 3, rows)
    x[rng.uniform(size=rows) < 0.1] = np.nan
    source = TableSource(pa.table({"a": x}), 20_000)
    for seed in (0, 1):
        pieces = sample_pieces(source.manifest.rows, seed)
        sample = np.concatenate([x[20_000 * group + start : 20_000 * group + stop] for group, start, stop in pieces])
        scales = measure(source, seed=seed, n_jobs=2)
        assert scales.sampled == len(sample) < rows
        mean, scale, missing = in_numpy(sample[:, np.newaxis])
        np.testing.assert_allclose([scales.mean, scales.scale, scales.missing], [mean, scale, missing], rtol=1e-6)


def test_infinity_is_an_error_that_names_the_place():
    x = np.ones(20)
    x[13] = np.inf
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, pa.table({"a": x}), [[5], [5, 10]])
        with pytest.raises(NonFiniteFeature, match=r"part-001\.parquet, row group 1.*'a'"):
            measure(ParquetSource(directory), n_jobs=2)


def test_bad_weights_are_an_error():
    with pytest.raises(BadWeight, match="'w'"):
        measure(TableSource(pa.table({"a": [1.0, 2.0], "w": [1.0, -1.0]})), weight="w")


def test_lists_of_other_lengths_are_an_error_that_names_the_place():
    lists = pa.array([[1, 2], None, [1, 2], [1, 2, 3]], pa.list_(pa.int8()))
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, pa.table({"v": lists}), [[1], [1, 2]])
        with pytest.raises(ListLengthMismatch, match=r"part-001\.parquet, row group 1.*'v'.* 3 .* 2 "):
            measure(ParquetSource(directory))


def clicks(rows: int, cardinality: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table({"c": [f"v{i}" for i in rng.integers(0, cardinality, rows)], "x": rng.normal(size=rows)})


def test_hashed_features_of_small_data_are_counted():
    table = clicks(3000, 50).append_column("t", pa.array(["a b", "b c", "a b"] * 1000))
    scales = measure(TableSource(table, 200), selection=Selection(text=("t",)))
    categories = len(set(table["c"].to_pylist()))
    assert categories <= scales.distinct <= categories + 16 * 5
    assert scales.words == pytest.approx(3) and scales.most_words == pytest.approx(3)
    assert scales.text_bytes == 12


def test_hashed_features_are_counted_alike_in_files_and_in_tables():
    """A file is read page by page where it can be, a table never is; texts and pairs are read by Arrow in both."""
    rng = np.random.default_rng(0)
    rows = 9000
    table = pa.table(
        {
            "few": pa.array([None if i == 3 else f"f{i}" for i in rng.integers(0, 30, rows)]),
            "many": pa.array([f"m{i}" for i in rng.integers(0, 10**9, rows)]),
            "number": pa.array(rng.integers(0, 40, rows)),
            "x": pa.array(rng.normal(size=rows), from_pandas=True),
            "t": pa.array([f"word{i} and so{i % 7}" for i in rng.integers(0, 300, rows)]),
        }
    )
    selections = (
        Selection(drop=("t",), categorical=("number",)),
        Selection(drop=("t",), interactions=(("few", "many"), ("x", "few"))),
        Selection(text=("t",)),
    )
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, [[5000, 4000]])
        for selection in selections:
            found = [measure(source, selection=selection) for source in (ParquetSource(directory), TableSource(table))]
            for name in ("distinct", "words", "varied"):
                one, other = (getattr(scales, name) for scales in found)
                assert one == other, (name, selection)
            np.testing.assert_array_equal(found[0].common, found[1].common)
            assert found[0].varied == ("many",)
            np.testing.assert_allclose(found[0].mean, found[1].mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [4000, WHOLE_SAMPLE_ROWS + 200_000])
def test_the_most_common_hashes_come_first(rows):
    """Values of which each is twice as common as the next, and some that come once."""
    common = np.minimum(np.random.default_rng(0).geometric(0.5, rows), 9)
    values = [f"v{i}" for i in common[: rows - 100]] + [f"once {i}" for i in range(100)]
    scales = measure(TableSource(pa.table({"c": values}), 20_000))
    seed, missing = column_seeds("c")
    expected = hash_values(pa.array([f"v{i}" for i in (1, 2, 3, 4, 5)]), seed, missing)
    np.testing.assert_array_equal(scales.common[:5], expected)
    assert len(scales.common) == 9


def test_of_many_hashes_those_are_kept_that_occur_most_often():
    tally = _Tally(np.array([1, 3, 5, 9], np.uint32), np.array([2, 7, 1, 7]))
    assert [tally.most(n).hashes.tolist() for n in (1, 2, 3, 4)] == [[3], [3, 9], [1, 3, 9], [1, 3, 5, 9]]
    assert tally.most(3).times.tolist() == [2, 7, 7]


@pytest.mark.parametrize("cardinality", [100, 100_000, 10_000_000])
def test_the_number_of_distinct_values_is_estimated_from_the_sample(cardinality):
    """Within a factor of 2, though most values of the sample may come once."""
    table = clicks(WHOLE_SAMPLE_ROWS + 700_000, cardinality)
    exact = len(table["c"].unique())
    found = measure(TableSource(table), seed=3).distinct
    assert exact / 2 < found < exact * 2


def test_hashes_have_room_for_what_was_counted():
    scales = measure(TableSource(clicks(100, 10)))
    for distinct, bits in ((0, 4), (1, 4), (4000, 16), (10**5, 19), (10**6, 22), (10**7, 26), (10**9, 28)):
        assert replace(scales, distinct=distinct).hash_bits() == bits


def test_indicators_have_the_scales_of_their_values():
    rng = np.random.default_rng(0)
    x = np.where(rng.uniform(size=4000) < 0.1, np.nan, 5.0)
    table = pa.table({"x": x, "is_missing": np.isnan(x).astype(float)})
    scales = measure(TableSource(table))
    found = scales.with_indicators(np.array([0]))
    for name in ("mean", "scale", "magnitude"):
        assert getattr(found, name)[2] == pytest.approx(getattr(scales, name)[1], rel=1e-6)
    assert found.missing.tolist() == [*scales.missing, 0]
