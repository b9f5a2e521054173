"""Encoded rows against Python's own arithmetic, whatever batches the rows come in."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data.columns import is_vector
from streamgd.data.encode import Encoder
from streamgd.data.source import ParquetSource
from streamgd.data.target import Target
from streamgd.data.vectors import vector_parts
from streamgd.errors import (
    BadWeight,
    ListLengthMismatch,
    NonFiniteFeature,
    NonFiniteTarget,
    TargetError,
    UnknownLabel,
)
from streamgd.features import Column, FeatureSpec
from tests import strategies as sgst

NUMBERS = (
    *sgst.NUMBERS,
    pa.decimal256(50, 7),
    pa.dictionary(pa.int8(), pa.int64()),
    pa.dictionary(pa.int32(), pa.float64()),
    pa.null(),
)
SIZE = 3
LISTS = (
    *(pa.list_(kind, SIZE) for kind in (pa.float32(), pa.float16(), pa.bool_(), pa.int64(), pa.null())),
    *(pa.list_(kind) for kind in (pa.float64(), pa.uint8(), pa.uint32(), pa.decimal128(9, 3))),
    *(pa.large_list(kind) for kind in (pa.float32(), pa.bool_())),
)
WHERE = "shard a.parquet, row group 3"


def numbers(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Numbers of a type that float32 holds, and NaN where the type has it."""
    if pa.types.is_null(kind):
        return st.none()
    if pa.types.is_dictionary(kind):
        return numbers(kind.value_type)
    if pa.types.is_floating(kind):
        most = 2.0**15 if kind == pa.float16() else 2.0**99
        return st.floats(-most, most, width=16 if kind == pa.float16() else 32) | st.just(math.nan)
    if pa.types.is_decimal(kind):
        most = 10 ** min(kind.precision, 25) - 1
        return st.integers(-most, most).map(lambda digits: Decimal(digits).scaleb(-kind.scale))
    return sgst.values(kind)


def array(items: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(items, kind.value_type).dictionary_encode().cast(kind)
    if kind == pa.float16():
        return pa.array([None if item is None else np.float16(item) for item in items], kind)
    return pa.array(items, kind)


@st.composite
def columns(draw: st.DrawFn, kind: pa.DataType, rows: int) -> pa.Array:
    """A column with nulls; lists have `SIZE` numbers or nulls each."""
    element = numbers(kind.value_type if is_vector(kind) else kind)
    if draw(st.booleans()):
        element = st.none() | element
    if not is_vector(kind):
        return array(draw(st.lists(element, min_size=rows, max_size=rows)), kind)
    item = st.lists(element, min_size=SIZE, max_size=SIZE)
    lists = draw(st.lists(st.none() | item if draw(st.booleans()) else item, min_size=rows, max_size=rows))
    flat = [number for row in lists for number in row or []]
    child = array(flat, kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.array([None if row is None else [_half(x, kind) for x in row] for row in lists], kind)
    ends = np.cumsum([0, *(0 if row is None else SIZE for row in lists)])
    mask = pa.array([row is None for row in lists])
    make = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    offsets = pa.array(ends, pa.int64() if pa.types.is_large_list(kind) else pa.int32())
    return make.from_arrays(offsets, child, type=kind, mask=mask)


def _half(item: Any, kind: pa.DataType) -> Any:
    return np.float16(item) if item is not None and kind.value_type == pa.float16() else item


@st.composite
def feature_tables(draw: st.DrawFn, max_rows: int = 40) -> tuple[pa.Table, FeatureSpec]:
    """A table of numbers and lists, and a specification that makes features of all its columns."""
    rows = draw(st.integers(1, max_rows))
    kinds = draw(st.lists(st.sampled_from(NUMBERS) | st.sampled_from(LISTS), min_size=1, max_size=6))
    table = pa.table({f"c{i}": draw(columns(kind, rows)) for i, kind in enumerate(kinds)})
    spec = FeatureSpec.raw(
        [
            Column(f"c{i}", "vector", SIZE) if is_vector(kind) else Column(f"c{i}", "number")
            for i, kind in enumerate(kinds)
        ]
    )
    offset = st.floats(-100, 100) | st.sampled_from([0.0, 0.1, 1e9 + 0.1])
    offsets = draw(st.lists(offset, min_size=spec.n_features, max_size=spec.n_features))
    fills = draw(st.lists(st.sampled_from([0.0, -2.5, math.nan]), min_size=spec.n_features, max_size=spec.n_features))
    return table, replace(spec, offset=np.array(offsets), fill=np.array(fills, np.float32))


def encode(encoder: Encoder, batches: list[pa.RecordBatch]) -> np.ndarray:
    """Used cells of the rows of all batches, as a stream writes them: one batch behind the other."""
    layout = encoder.layout
    rows = encoder.new_rows(sum(batch.num_rows for batch in batches))
    done = 0
    for batch in batches:
        done += encoder.encode(batch, rows[done:], WHERE, [])
    return rows[:done, : layout.n_features + layout.has_target + layout.has_weight]


def whole(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch


def in_python(table: pa.Table, spec: FeatureSpec) -> np.ndarray:
    """Cells in float64, by Python's arithmetic."""
    cells: list[list[float]] = []
    for row in table.to_pylist():
        cells.append([])
        for column in spec.columns:
            value = row[column.name]
            given = [value] if column.kind == "number" else [None] * column.size if value is None else value
            cells[-1].extend(math.nan if number is None else float(number) for number in given)
    values = np.array(cells).reshape(table.num_rows, spec.n_features)
    return np.where(np.isnan(values), spec.fill, values - spec.offset)


@settings(deadline=None, max_examples=80)
@given(feature_tables())
def test_cells_are_values_less_their_offset_and_fills_where_missing(case):
    table, spec = case
    cells, expected = encode(Encoder(spec), [whole(table)]), in_python(table, spec)
    np.testing.assert_array_equal(np.isnan(cells), np.isnan(expected))
    # Half an ulp of float32 for the cell, one of float64 for the value, and the offset as float32 for float32 columns.
    for cell, column in zip(_by_column(cells, spec), _by_column(expected, spec), strict=True):
        np.testing.assert_allclose(cell, column, rtol=2e-7, atol=1e-44 + 1.2e-7 * np.abs(spec.offset).max())


def _by_column(cells: np.ndarray, spec: FeatureSpec) -> list[np.ndarray]:
    return np.split(cells, np.cumsum([column.size for column in spec.columns])[:-1], axis=1)


@settings(deadline=None, max_examples=80)
@given(feature_tables(), st.data())
def test_the_same_row_gives_the_same_features_in_any_batch(case, data):
    table, spec = case
    encoder = Encoder(spec)
    expected = encode(encoder, [whole(table)])
    sizes = data.draw(sgst.splits(table.num_rows))
    # Slices share the buffers of the whole, with an offset; rebuilt ones have buffers of their own.
    slices, start = [], 0
    for size in sizes:
        slices.append(whole(table).slice(start, size))
        start += size
    np.testing.assert_array_equal(encode(encoder, slices), expected)
    rebuilt = [whole(pa.Table.from_pylist(piece.to_pylist(), table.schema)) for piece in slices if piece.num_rows]
    np.testing.assert_array_equal(encode(encoder, rebuilt), expected)
    # Slices of slices, in any order.
    for start in data.draw(st.lists(st.integers(0, table.num_rows - 1), max_size=3)):
        piece = whole(table).slice(start // 2).slice(start - start // 2, 1)
        np.testing.assert_array_equal(encode(encoder, [piece]), expected[start : start + 1])


@settings(deadline=None, max_examples=25)
@given(feature_tables(), st.data())
def test_the_same_row_gives_the_same_features_from_any_row_group(case, data):
    table, spec = case
    encoder = Encoder(spec)
    expected = encode(encoder, [whole(table)])
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, data.draw(sgst.layouts(table.num_rows)))
        source = ParquetSource(directory)
        batches: list[pa.RecordBatch] = []
        for row_group in range(source.manifest.n_row_groups):
            reader = source.open(row_group, encoder.columns, data.draw(st.integers(1, 20)))
            for size in data.draw(sgst.splits(int(source.manifest.rows[row_group]))):
                batches.extend(reader.read(size))
    np.testing.assert_array_equal(encode(encoder, batches), expected)


@pytest.mark.parametrize("kind", [k for k in NUMBERS if not pa.types.is_null(k)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6 + 0.03])
def test_any_slice_of_a_long_column_gives_the_same(kind, offset):
    """More rows than a kernel takes at once, every bit offset of the bitmaps, slices with nulls and without."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(5, 10, 700) if is_floating(kind) else rng.integers(0, 2 if kind == pa.bool_() else 100, 700)
    items = [None if place % 100 == 50 else _item(x, kind) for place, x in enumerate(numbers.tolist())]
    batch = pa.record_batch({"a": array(items, kind)})
    encoder = Encoder(replace(FeatureSpec.raw([Column("a", "number")]), offset=np.array([offset])))
    whole = encode(encoder, [batch])[:, 0]
    exact = np.array([math.nan if item is None else float(item) - offset for item in batch.column("a").to_pylist()])
    np.testing.assert_allclose(whole, exact, rtol=2e-7, atol=1e-7 * max(1, offset))
    for start in (*range(51), 255, 256, 257):
        for size in (1, 16, 40, 300):
            cells = encode(encoder, [batch.slice(start, size)])[:, 0]
            np.testing.assert_array_equal(cells, whole[start : start + size])


def is_floating(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _item(value: Any, kind: pa.DataType) -> Any:
    return bool(value) if kind == pa.bool_() else Decimal(value) if pa.types.is_decimal(kind) else value


@pytest.mark.parametrize("kind", [pa.list_(pa.bool_(), 5), pa.list_(pa.bool_()), pa.large_list(pa.uint16())], ids=str)
def test_lists_whose_parents_and_children_are_slices(kind):
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 2, 500)
    plain = flat.astype(bool) if kind.value_type == pa.bool_() else flat
    child = pa.array(plain, kind.value_type, mask=rng.uniform(size=500) < 0.2)
    if pa.types.is_fixed_size_list(kind):
        lists = pa.FixedSizeListArray.from_arrays(child.slice(35), type=kind)
    else:
        make = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        lists = make.from_arrays(np.arange(0, 470, 5), child.slice(35), type=kind)
    items = [[math.nan if x is None else float(x) for x in child[i : i + 5].to_pylist()] for i in range(35, 500, 5)]
    encoder = Encoder(FeatureSpec.raw([Column("v", "vector", 5)]))
    batch = pa.record_batch({"v": lists})
    for start in range(20):
        cells = encode(encoder, [batch.slice(start, 40)])
        np.testing.assert_array_equal(cells, np.array(items[start : start + 40], np.float32))


def test_lists_that_are_null_may_lie_over_anything():
    """A null list of variable length may span values, and those are nobody's."""
    lists = pa.ListArray.from_arrays(
        [0, 2, 5, 7], pa.array([1.0, 2, 9, 9, math.inf, 3, 4]), mask=pa.array([False, True, False])
    )
    encoder = Encoder(FeatureSpec.raw([Column("v", "vector", 2)]))
    cells = encode(encoder, [pa.record_batch({"v": lists})])
    np.testing.assert_array_equal(cells, np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32))


def test_a_slice_of_lists_brings_its_own_values_only():
    """Else each record batch of a table in memory would convert the values of all of it."""
    for kind in (pa.list_(pa.float16(), 4), pa.list_(pa.float16()), pa.large_list(pa.float16())):
        lists = pa.array([[np.float16(i)] * 4 for i in range(1000)], kind).slice(300, 10)
        child, starts, _, _ = vector_parts(lists)
        assert len(child) == 40
        np.testing.assert_array_equal(starts, np.arange(0, 40, 4))


@pytest.mark.parametrize(
    ("kind", "lists", "found"),
    [
        (pa.list_(pa.float32()), [[1, 2, 3], None, [1, 2]], 2),
        (pa.list_(pa.int8()), [[1, 2, 3], [], [1, 2, 3]], 0),
        (pa.large_list(pa.float64()), [[1, 2, 3, 4]], 4),
        (pa.list_(pa.float32(), 2), [[1, 2]], 2),
    ],
    ids=str,
)
def test_lists_of_another_length_are_refused(kind, lists, found):
    encoder = Encoder(FeatureSpec.raw([Column("emb", "vector", 3)]))
    batch = pa.record_batch({"emb": pa.array(lists, kind)})
    with pytest.raises(ListLengthMismatch, match=rf"{WHERE}.*'emb'.* {found} numbers .* of 3 ") as caught:
        encode(encoder, [batch])
    assert "drop" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (pa.float16(), np.float16(np.inf)),
        (pa.float32(), math.inf),
        (pa.float32(), -math.inf),
        (pa.float64(), math.inf),
        (pa.float64(), 1e308),
        (pa.float64(), -1e39),
        (pa.decimal256(60, 2), Decimal(10) ** 50),
        (pa.list_(pa.float64(), 2), [0.0, 1e308]),
        (pa.list_(pa.float32()), [math.inf, 1.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("row", [0, 7, 300])
def test_infinity_and_numbers_beyond_float32_are_refused(kind, bad, row):
    good: Any = [0.0, 1.0] if is_vector(kind) else Decimal(1) if pa.types.is_decimal(kind) else np.float16(1)
    items = [good] * 320
    items[row] = bad
    spec = FeatureSpec.raw(
        [Column("first", "number"), Column("bad", "vector", 2) if is_vector(kind) else Column("bad", "number")]
    )
    batch = pa.record_batch({"first": pa.array(np.zeros(320)), "bad": pa.array(items, kind)})
    with pytest.raises(NonFiniteFeature, match=rf"{WHERE}.*'bad'.* 1 place"):
        encode(Encoder(spec), [batch])


def test_null_and_nan_are_the_same_as_missing():
    raw = FeatureSpec.raw([Column("a", "number"), Column("v", "vector", 2)])
    spec = replace(raw, offset=np.full(3, 5.0), fill=np.array([1, 2, 3], np.float32))
    batch = pa.record_batch(
        {
            "a": pa.array([None, math.nan, 6.0]),
            "v": pa.array([[None, 6.0], [6.0, math.nan], None], pa.list_(pa.float32())),
        }
    )
    np.testing.assert_array_equal(
        encode(Encoder(spec), [batch]), np.array([[1, 2, 1], [1, 1, 3], [1, 2, 3]], np.float32)
    )


def test_offsets_keep_the_digits_that_float32_would_lose():
    rng = np.random.default_rng(0)
    small = rng.integers(-1000, 1000, 600) * 256  # float64 counts in steps of 256 there
    noise = rng.normal(0, 1e-3, 600)
    raw = FeatureSpec.raw([Column("nanoseconds", "number"), Column("money", "number"), Column("vector", "vector", 2)])
    encoder = Encoder(replace(raw, offset=np.array([1.5e18, 1e9, 1e9, -1e9]), fill=np.zeros(4, np.float32)))
    both = np.stack([1e9 + noise, -1e9 + noise], axis=1)
    batch = pa.record_batch(
        {
            "nanoseconds": pa.array(1_500_000_000_000_000_000 + small),
            "money": pa.array(1e9 + noise, mask=np.arange(600) == 500),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(both.ravel()), 2),
        }
    )
    cells = encode(encoder, [batch])
    np.testing.assert_array_equal(cells[:, 0], small.astype(np.float32))
    np.testing.assert_allclose(cells[:500, 1], noise[:500], atol=1.2e-7)  # an ulp of 1e9
    np.testing.assert_allclose(cells[:, 2:], np.stack([noise, noise], axis=1), atol=1.2e-7)


@pytest.mark.parametrize("features", [1, 3, 6, 14, 16, 30])
def test_cells_beside_the_used_ones_stay_finite(features):
    """Kernels multiply them by 0."""
    raw = FeatureSpec.raw([Column(f"c{i}", "number") for i in range(features)])
    spec = raw.centred(np.zeros(features), np.ones(features))
    encoder = Encoder(spec, Target("y"), "w")
    rng = np.random.default_rng(0)
    batch = pa.record_batch(
        {name: pa.array(rng.uniform(size=50), mask=rng.uniform(size=50) < 0.5) for name in spec.names}
    )
    batch = batch.append_column("y", pa.array(np.arange(50.0))).append_column("w", pa.array(np.ones(50)))
    rows = encoder.new_rows(50)
    assert encoder.encode(batch, rows, WHERE, []) == 50
    assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows[:, encoder.layout.y_cell], np.arange(50))
    np.testing.assert_array_equal(rows[:, encoder.layout.w_cell], 1)
    assert rows.ctypes.data % 64 == 0 and rows.shape == (50, encoder.layout.stride)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_rows_without_a_target_are_left_out_and_the_others_keep_their_order(data):
    rows = data.draw(st.integers(1, 60))
    kind = data.draw(
        st.sampled_from([pa.int8(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.decimal128(9, 2)])
    )
    known: list[Any] = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    places = data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    classes = pa.array(["a", "b"]) if kind == pa.string() else pa.array([0, 1], pa.int8()).cast(kind)
    y = classes.take(
        pa.array([place if there else None for place, there in zip(places, known, strict=True)], pa.int8())
    )
    labelled = kind in (pa.string(), pa.bool_()) or data.draw(st.booleans())
    target = Target("y", classes) if labelled else Target("y", None, 0.5, 2.0)
    encoder = Encoder(FeatureSpec.raw([Column("row", "number")]), target, "w", 0.5)
    batch = pa.record_batch({"y": y, "w": pa.array(np.arange(rows) * 2), "row": pa.array(np.arange(rows))})
    batches, start = [], 0
    for size in data.draw(sgst.splits(rows)):
        batches.append(batch.slice(start, size))
        start += size
    kept = np.flatnonzero(known)
    codes = np.array(places)[kept]
    cells = np.stack([kept, codes if labelled else (codes - 0.5) / 2, kept], axis=1)
    np.testing.assert_array_equal(encode(encoder, batches), cells.astype(np.float32))


def test_targets_keep_the_digits_that_float32_would_lose():
    noise = np.random.default_rng(0).normal(0, 1e-3, 100)
    target = Target("y", None, 1e9, 1e-3)
    np.testing.assert_allclose(target.encode(pa.array(1e9 + noise), WHERE), noise / 1e-3, atol=2e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_targets_that_are_not_finite_are_refused(bad, kind):
    y = pa.array([1.0, None, bad, bad], kind)
    with pytest.raises(NonFiniteTarget, match=rf"{WHERE}.*'y' is -?(nan|inf) in 2 row"):
        Target("y").encode(y, WHERE)


def test_a_target_that_its_cell_cannot_hold_is_refused():
    with pytest.raises(NonFiniteTarget, match=r"'y' is 1e\+300"):
        Target("y").encode(pa.array([1.0, 1e300]), WHERE)


@pytest.mark.parametrize("y", [pa.array(["a", "b"]), pa.array([[1.0]]), pa.array([0], pa.timestamp("s"))], ids=str)
def test_a_target_that_is_no_number_is_refused(y):
    with pytest.raises(TargetError, match=f"{WHERE}.*'y'"):
        Target("y").encode(y, WHERE)


@pytest.mark.parametrize(
    ("classes", "labels", "codes"),
    [
        (pa.array([3, 7]), pa.array([7, 3, None, 7], pa.int16()), [1, 0, None, 1]),
        (pa.array([3, 7], pa.uint8()), pa.array([7.0, None, 3.0]), [1, None, 0]),
        (pa.array([1.5, 2.5], pa.float16()), pa.array([2.5, None, 1.5], pa.float16()), [1, None, 0]),
        (pa.array([2**63, 2**63 + 1], pa.uint64()), pa.array([2**63 + 1, None, 2**63], pa.uint64()), [1, None, 0]),
        (pa.array([0.5, 2.0]), pa.array([2, None, 2], pa.int16()), [1, None, 1]),
        (pa.array([0.5, 2.0], pa.float32()), pa.array([2.0, None, 0.5]), [1, None, 0]),
        (pa.array([False, True]), pa.array([True, None, False]), [1, None, 0]),
        (pa.array([False, True]), pa.array([1, None, 0], pa.int8()), [1, None, 0]),
        (pa.array([0, 1]), pa.array([True, None, False]), [1, None, 0]),
        (pa.array(["no", "yes"]), pa.array(["yes", None, "no"]), [1, None, 0]),
        (pa.array(["no", "yes"]), pa.array(["yes", None, "no"], pa.string_view()), [1, None, 0]),
        (pa.array(["no", "yes"]), pa.array(["yes", None, "no"], pa.large_string()), [1, None, 0]),
        (pa.array(["no", "yes"]), pa.array(["yes", None, "no"]).dictionary_encode(), [1, None, 0]),
        (pa.array([3, 7]), pa.DictionaryArray.from_arrays([1, 2, 0], pa.array([3, 7, None])), [1, None, 0]),
    ],
    ids=str,
)
def test_labels_become_places(classes, labels, codes):
    for start in range(len(labels)):
        cells = Target("y", classes).encode(labels.slice(start), WHERE)
        np.testing.assert_array_equal(cells, np.array(codes[start:], np.float32))


@pytest.mark.parametrize(
    ("classes", "labels", "found"),
    [
        (pa.array([0, 1]), pa.array([0, None, 2]), "2"),
        (pa.array([0, 1]), pa.array([0, 2]).dictionary_encode(), "2"),
        (pa.array([0, 1], pa.int8()), pa.array([0, 1000]), "1000"),
        (pa.array([0, 1]), pa.array([0.0, 0.5]), "0.5"),
        (pa.array([0, 1]), pa.array([0.0, math.nan]), "nan"),
        (pa.array([False, True]), pa.array([0, 2]), "2"),
        (pa.array([1, 2]), pa.array([True, False]), "False"),
        (pa.array([0, 1]), pa.array(["0", "x"]), "x"),
        (pa.array(["a", "b"]), pa.array(["a", "c"]), "c"),
        (pa.array(["a", "b"]), pa.array(["a", "c"], pa.string_view()), "c"),
        (pa.array(["a", "b"]), pa.array([1, 2]), "1"),
        (pa.array(["a", "b"]), pa.array([[1, 2]]), "list"),
    ],
    ids=str,
)
def test_labels_that_training_did_not_know_are_refused(classes, labels, found):
    with pytest.raises(UnknownLabel, match=rf"{WHERE}.*'y'.*{found}") as caught:
        Target("y", classes).encode(labels, WHERE)
    assert str(classes.to_pylist()) in str(caught.value)


@pytest.mark.parametrize("bad", [-1.0, math.nan, None, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_bad_weights_are_refused(bad, kind):
    encoder = Encoder(FeatureSpec.raw([Column("a", "number")]), None, "w")
    batch = pa.record_batch({"a": pa.array([1.0, 2.0, 3.0]), "w": pa.array([1.0, bad, 0.0], kind)})
    with pytest.raises(BadWeight, match=rf"{WHERE}.*'w'.*in 1 row"):
        encode(encoder, [batch])


@pytest.mark.parametrize(
    "weights", [pa.array([-1], pa.int8()), pa.array(["1"]), pa.nulls(1), pa.array([[1.0]])], ids=str
)
def test_weights_must_be_numbers(weights):
    encoder = Encoder(FeatureSpec.raw([Column("a", "number")]), None, "w")
    with pytest.raises(BadWeight, match="'w'"):
        encode(encoder, [pa.record_batch({"a": pa.array([1.0]), "w": weights})])


def test_weights_are_scaled():
    encoder = Encoder(FeatureSpec.raw([Column("a", "number")]), None, "w", 1 / 3)
    batch = pa.record_batch({"a": pa.array([1.0, 2.0]), "w": pa.array([3, 0], pa.uint8())})
    np.testing.assert_array_equal(encode(encoder, [batch]), [[1, 1], [2, 0]])


def test_columns_are_read_once_each():
    encoder = Encoder(FeatureSpec.raw([Column("b", "number"), Column("a", "number")]), Target("a"), "b")
    assert encoder.columns == ["b", "a"]
    batch = pa.record_batch({"b": pa.array([5.0]), "a": pa.array([7.0])})
    np.testing.assert_array_equal(encode(encoder, [batch]), [[5, 7, 7, 5]])


def test_centres_are_values_that_occur():
    """So a constant is exactly 0 after its centre is off, and a large mean costs no digits."""
    batch = pa.record_batch(
        {
            "mostly_missing": pa.array([math.nan] * 20 + [None] * 20 + [1e9 + 0.1] * 12),
            "constant": pa.array([0.1] * 52),
            "none": pa.nulls(52),
            "infinite": pa.array([math.inf] * 52),
            "lists": pa.array([None, *[[math.nan, -1e9 + 0.1]] * 31, *[[1e9, None]] * 20], pa.list_(pa.float64())),
        }
    )
    columns = [Column(name, "number") for name in batch.schema.names[:-1]] + [Column("lists", "vector", 2)]
    centres = Encoder(FeatureSpec.raw(columns)).centres(batch)
    np.testing.assert_array_equal(centres, [1e9 + 0.1, 0.1, 0, 0, 1e9, -1e9 + 0.1])


def test_class_weights_are_those_that_a_column_of_weights_would_give():
    y = pa.array([0, 1, None, 1, 0], pa.int8())
    batch = pa.record_batch({"a": pa.array(np.arange(5.0)), "y": y, "w": pa.array([1.0, 2, 3, 4, 5])})
    by_hand = batch.append_column("v", pa.array(np.array([1.0, 2, 3, 4, 5]) * [0.5, 3, 0, 3, 0.5]))
    spec, target = FeatureSpec.raw([Column("a", "number")]), Target("y", pa.array([0, 1], pa.int8()))
    encoder = Encoder(spec, target, "w", 0.25, np.array([0.5, 3.0]))
    np.testing.assert_array_equal(encode(encoder, [batch]), encode(Encoder(spec, target, "v", 0.25), [by_hand]))
    alone = Encoder(spec, target, class_weight=np.array([0.5, 3.0]))
    np.testing.assert_array_equal(encode(alone, [batch])[:, 2], [0.5, 3, 3, 0.5])


def test_products_and_indicators_are_numbers_like_others():
    """A product is missing where a part is, and an indicator says where a number is."""
    columns = [Column("a", "number"), Column("b", "number"), Column("a*b", "product", parts=("a", "b"))]
    spec = FeatureSpec.raw([*columns, Column("b", "missing"), Column("a*a", "product", parts=("a", "a"))])
    batch = pa.record_batch({"a": pa.array([2, 3, 4], pa.int16()), "b": pa.array([0.5, None, math.nan])})
    nan = np.nan
    expected = np.array([[2, 0.5, 1, 0, 4], [3, nan, nan, 1, 9], [4, nan, nan, 1, 16]], np.float32)
    np.testing.assert_array_equal(encode(Encoder(spec), [batch]), expected)
    assert spec.feature_names() == ["a", "b", "a*b", "missing(b)", "a*a"]
    with pytest.raises(NonFiniteFeature, match=r"'a\*a'"):
        encode(Encoder(FeatureSpec.raw([spec.columns[4]])), [pa.record_batch({"a": pa.array([1e30])})])
