from __future__ import annotations

import os
import pickle
import struct
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import streamgd
from streamgd.data import reading
from streamgd.data import source as module
from streamgd.data.columns import find_columns
from streamgd.data.encode import Encoder
from streamgd.data.rowgroups import Manifest, RowGroupReader, Source
from streamgd.data.source import ParquetSource, as_source
from streamgd.data.table import TableSource
from streamgd.data.widen import cast, widen
from streamgd.errors import (
    ConfigError,
    DataError,
    EmptyData,
    MissingColumn,
    PathNotFound,
    SchemaMismatch,
    ShardChanged,
    UnreadableShard,
)
from streamgd.features import FeatureSpec, Selection
from tests import strategies as sgst
from tests.thrift import varint


def read_all(source, columns=None, batch_rows=1000):
    """All rows of a source as a table, every row group finished."""
    names = source.schema.names if columns is None else columns
    batches = []
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, names, batch_rows)
        batches.extend(reader.read(int(source.manifest.rows[row_group])))
        reader.finish()
    return pa.Table.from_batches(batches)


def write(path, table, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def check_pieces(data, source, table):
    """Read in pieces of random size: each call gives what was asked, all together give the table."""
    order = data.draw(st.permutations(table.column_names))
    columns = order[: data.draw(st.integers(1, len(order)))]
    batches = []
    for row_group in range(source.manifest.n_row_groups):
        batch_rows = data.draw(st.integers(1, 40))
        reader = source.open(row_group, columns, batch_rows)
        for size in data.draw(sgst.splits(int(source.manifest.rows[row_group]))):
            if data.draw(st.booleans()):
                pieces = list(reader.read(size))
            else:  # rows passed over are made up for from a second reader
                reader.skip(size)
                again = source.open(row_group, columns, batch_rows)
                again.skip(reader.done - size)
                pieces = list(again.read(size))
            assert sum(piece.num_rows for piece in pieces) == size
            assert all(0 < piece.num_rows <= batch_rows and piece.schema.names == columns for piece in pieces)
            batches.extend(pieces)
        reader.finish()
    assert pa.Table.from_batches(batches).equals(table.select(columns))


@given(st.data())
@settings(deadline=None)
def test_the_row_groups_of_all_shards_give_the_table_back(data):
    table = data.draw(sgst.tables())
    with TemporaryDirectory() as directory:
        rows = []
        for number, shard in enumerate(sgst.cut(table, data.draw(sgst.splits(table.num_rows)))):
            groups = sgst.cut(shard, data.draw(sgst.splits(shard.num_rows)))
            sgst.write_shard(Path(directory) / f"part-{number}.parquet", groups)
            rows.extend(group.num_rows for group in groups if group.num_rows)
        source = ParquetSource(directory, n_jobs=data.draw(st.integers(1, 3)))
        assert source.manifest.rows.tolist() == rows
        assert source.schema.equals(table.schema)
        check_pieces(data, source, table)


@given(st.data())
@settings(deadline=None)
def test_row_groups_that_are_streamed_through_buffers_give_the_same(data):
    table = data.draw(sgst.tables())
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BIG_ROW_GROUP", 0)
        write(f"{directory}/a.parquet", table, row_group_size=7)
        check_pieces(data, ParquetSource(directory), table)


@given(st.data())
@settings(deadline=None)
def test_the_slices_of_a_table_give_it_back(data):
    table = data.draw(sgst.tables())
    # Columns whose chunks end at different rows.
    columns = [
        pa.chunked_array(
            [
                piece.column(0).combine_chunks()
                for piece in sgst.cut(table.select([name]), data.draw(sgst.splits(table.num_rows)))
            ],
            table.schema.field(name).type,
        )
        for name in table.column_names
    ]
    chunked = pa.table(columns, schema=table.schema)
    source = TableSource(chunked, data.draw(st.none() | st.integers(1, 40)))
    assert source.manifest.n_rows == table.num_rows
    check_pieces(data, source, table)


@pytest.mark.parametrize("row_group_rows", [None, 7, 100])
@pytest.mark.parametrize("kind", ["table", "shards", "hive"])
def test_no_column_still_gives_the_row_counts(tmp_path, kind, row_group_rows):
    table = pa.table({"s": ["x"] * 20, "b": [True] * 20})
    if kind == "table":
        source, columns = TableSource(table, row_group_rows), []
    else:
        write(tmp_path / ("k=1/a.parquet" if kind == "hive" else "a.parquet"), table, row_group_size=row_group_rows)
        source, columns = ParquetSource(tmp_path), ["k"] if kind == "hive" else []
    for row_group in range(source.manifest.n_row_groups):
        rows = int(source.manifest.rows[row_group])
        reader = source.open(row_group, columns, 4)
        batches = [*reader.read(1), *reader.read(rows - 1)]
        assert batches[0].num_rows == 1
        assert sum(batch.num_rows for batch in batches) == rows
        assert all(batch.schema.names == columns for batch in batches)


def test_columns_by_their_exact_name(tmp_path):
    table = pa.table(
        {"s": [{"q": 1, "r": 2}], "s.q": [3], "a": [4], "a.b": [5], "": [6], "x.": [7], "l": [[8]], "l.list": [9]}
    )
    source = ParquetSource(write(tmp_path / "a.parquet", table))
    for name in table.column_names:
        assert read_all(source, [name]).equals(table.select([name]))
    assert read_all(source, ["a.b", "s", "a"]).equals(table.select(["a.b", "s", "a"]))
    with pytest.raises(MissingColumn, match=r"no column s\.r, nothing in the data; there are s, s\.q"):
        source.open(0, ["s.r", "a", "nothing"], 10)
    with pytest.raises(MissingColumn):
        TableSource(table).open(0, ["l.element"], 10)
    with pytest.raises(TypeError, match="sequence of names"):
        source.open(0, "a", 10)


def test_the_manifest_says_what_the_footers_say(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"x": range(10)}), row_group_size=4)
    write(tmp_path / "b.parquet", pa.table({"x": pa.array([], pa.int64())}))
    write(tmp_path / "c.parquet", pa.table({"x": range(3)}))
    source = ParquetSource(tmp_path)
    manifest = source.manifest
    assert source.names == ["a.parquet", "b.parquet", "c.parquet"]
    assert manifest.shard.tolist() == [0, 0, 0, 2]
    assert manifest.index.tolist() == [0, 1, 2, 0]
    assert manifest.rows.tolist() == [4, 4, 2, 3]
    assert (manifest.n_rows, manifest.n_row_groups) == (13, 4)
    footers = [pq.ParquetFile(tmp_path / name).metadata for name in ("a.parquet", "c.parquet")]
    assert manifest.bytes.tolist() == [f.row_group(i).total_byte_size for f in footers for i in range(f.num_row_groups)]
    assert manifest.file_bytes.tolist() == [os.path.getsize(tmp_path / name) for name in source.names]
    assert manifest.row_bytes() == manifest.bytes.sum() / 13
    assert [manifest.shard.dtype, manifest.index.dtype, manifest.rows.dtype, manifest.bytes.dtype] == [
        "i4",
        "i4",
        "i8",
        "i8",
    ]
    assert source.describe(3) == "shard c.parquet, row group 0"


def test_planning_takes_memory_for_arrays_only(tmp_path):
    shards, row_groups = 400, 500
    first = tmp_path / "0000.parquet"
    sgst.write_shard(first, sgst.cut(pa.table({"x": np.zeros(row_groups, np.int8)}), [1] * row_groups))
    for number in range(1, shards):
        (tmp_path / f"{number:04}.parquet").symlink_to(first)
    ParquetSource(first)
    tracemalloc.start()
    source = ParquetSource(tmp_path, n_jobs=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.manifest.n_row_groups == shards * row_groups
    # A million row groups have to fit in 100 MB.
    assert peak < 100 * shards * row_groups


WIDENING = [
    (pa.array([1], pa.int8()), pa.array([2**40], pa.int64()), pa.int64()),
    (pa.array([255], pa.uint8()), pa.array([-1], pa.int8()), pa.int16()),
    (pa.array([2**63 - 1], pa.uint64()), pa.array([-(2**63)], pa.int64()), pa.int64()),
    (pa.array([1], pa.int8()), pa.array([0.5], pa.float32()), pa.float32()),
    (pa.array([2**30 + 1], pa.int32()), pa.array([0.5], pa.float32()), pa.float64()),
    (pa.array([2**53 + 1], pa.int64()), pa.array([0.5], pa.float64()), pa.float64()),
    (pa.array([0.1], pa.float32()), pa.array([0.1], pa.float64()), pa.float64()),
    (pa.array([0.5], pa.float16()), pa.array([0.1], pa.float32()), pa.float32()),
    (pa.array([Decimal("1.23")]), pa.array([Decimal("12345.6")]), pa.decimal128(7, 2)),
    (pa.array([Decimal("9" * 30)]), pa.array([Decimal("0." + "1" * 20)]), pa.decimal256(50, 20)),
    (pa.array([Decimal("1.23")]), pa.array([7], pa.int16()), pa.decimal128(7, 2)),
    (pa.array([2**64 - 1], pa.uint64()), pa.array([Decimal("1.5")]), pa.decimal128(21, 1)),
    (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
    (pa.array(["a"], pa.string_view()), pa.array(["b"]), pa.string()),
    (pa.array([b"a"]), pa.array([b"b"], pa.large_binary()), pa.large_binary()),
    (pa.array(["a", "a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
    (pa.array(["a"]).dictionary_encode(), pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), ["b"]), pa.string()),
    (pa.nulls(2), pa.array([1.5]), pa.float64()),
    (pa.nulls(2), pa.array(["a"]).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
    (pa.nulls(2), pa.array([[1.5]], pa.list_(pa.float32(), 1)), pa.list_(pa.float32(), 1)),
    (pa.nulls(2), pa.nulls(1), pa.null()),
    (
        pa.array([[1, None], None], pa.list_(pa.int8())),
        pa.array([[0.5]], pa.list_(pa.float64())),
        pa.list_(pa.float64()),
    ),
    (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), pa.array([[0.5]]), pa.list_(pa.float64())),
    (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), pa.array([[1, 2]], pa.list_(pa.int32(), 2)), pa.list_(pa.int32(), 2)),
    (pa.array([[1]], pa.large_list(pa.int8())), pa.array([[2]]), pa.large_list(pa.int64())),
    (pa.array([[]], pa.list_(pa.null())), pa.array([[0.5]]), pa.list_(pa.float64())),
    (
        pa.array([[1]], pa.list_(pa.field("element", pa.int8(), nullable=False))),
        pa.array([[2]], pa.list_(pa.int8())),
        pa.list_(pa.int8()),
    ),
]


@pytest.mark.parametrize(("one", "other", "expected"), WIDENING, ids=str)
@pytest.mark.parametrize("swap", [False, True])
def test_shards_of_different_types_widen(tmp_path, one, other, expected, swap):
    one, other = (other, one) if swap else (one, other)
    write(tmp_path / "a.parquet", pa.table({"i": [0] * len(one), "x": one}))
    write(tmp_path / "b.parquet", pa.table({"x": other, "extra": [0] * len(other), "i": [0] * len(other)}))
    source = ParquetSource(tmp_path)
    assert source.schema == pa.schema({"i": pa.int64(), "x": expected})
    found = read_all(source)
    assert found.schema == source.schema
    plain = [
        float(v) if pa.types.is_floating(expected) and v is not None else v
        for v in (one.to_pylist() + other.to_pylist())
    ]
    assert found.column("x").to_pylist() == plain


@given(st.sampled_from(sgst.NUMBERS), st.sampled_from(sgst.NUMBERS), st.data())
@settings(deadline=None)
def test_widening_is_symmetric_and_keeps_every_value(one, other, data):
    wide = widen(one, other)
    assert wide == widen(other, one)
    if wide is None:
        event("no common type")
        return
    assert widen(wide, one) == widen(wide, other) == wide
    for type_ in (one, other):
        values = data.draw(sgst.arrays(type_, 3))
        rounded = pa.types.is_floating(wide) and not pa.types.is_floating(type_)
        refused = wide == pa.int64() and type_ == pa.uint64()
        if not rounded and not refused:
            assert cast(values, pa.field("x", wide), "here").to_pylist() == values.to_pylist()


MISMATCHES = [
    (pa.array([1]), pa.array(["a"]), "string", "int64"),
    (pa.array(["a"]), pa.array([1.5]), "double", "string"),
    (pa.array([True]), pa.array([1]), "int64", "bool"),
    (pa.array([1.5]), pa.array([Decimal("1.5")]), r"decimal128\(2, 1\)", "double"),
    (pa.array([[1]]), pa.array([1]), "int64", "list<.*int64>"),
    (pa.array([[1]]), pa.array([["a"]]), "list<.*string>", "list<.*int64>"),
    (pa.array([1], pa.timestamp("us")), pa.array([1]), "int64", r"timestamp\[us\]"),
    (
        pa.array([Decimal("9" * 70)]),
        pa.array([Decimal("0." + "1" * 30)]),
        r"decimal128\(30, 30\)",
        r"decimal256\(70, 0\)",
    ),
    (pa.array([{"a": 1}]), pa.array([{"b": 1}]), "struct<b: int64>", "struct<a: int64>"),
    (pa.array(["a"]).dictionary_encode(), pa.array([1]), "int64", "dictionary<.*>"),
]


@pytest.mark.parametrize(("one", "other", "found", "expected"), MISMATCHES, ids=str)
def test_a_mismatch_names_shard_column_found_and_expected(tmp_path, one, other, found, expected):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", pa.table({"i": [0], "x": one}))
    write(tmp_path / "c.parquet", pa.table({"x": other, "i": [0]}))
    source = ParquetSource(tmp_path)
    assert source.schema.names == ["i"]
    for asked in (
        lambda: source.open(0, ["x"], 9),
        lambda: find_columns(source),
        lambda: find_columns(source, only=["x"]),
    ):
        with pytest.raises(SchemaMismatch, match=rf"shard c\.parquet, column x: found {found}, expected {expected}"):
            asked()
    assert [column.name for column in find_columns(source, selection=Selection(drop=("x",)))] == ["i"]
    assert read_all(source, ["i"])["i"].to_pylist() == [0, 0, 0]
    skipping = ParquetSource(tmp_path, on_error="skip")
    assert skipping.schema.names == ["i", "x"] and len(skipping.left_out.shards) == 1


def test_a_column_of_the_first_shard_must_be_in_all(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"i": [0], "x": [1.5]}))
    write(tmp_path / "b.parquet", pa.table({"i": [0], "y": [1.5]}))
    with pytest.raises(
        SchemaMismatch, match=r"shard b\.parquet, column x: found no such column, expected double.*--drop"
    ):
        find_columns(ParquetSource(tmp_path), target="i")
    assert ParquetSource(
        [tmp_path / "b.parquet", write(tmp_path / "c", pa.table({"y": [1], "i": [0]}))]
    ).schema.names == ["i", "y"]


def test_a_column_that_the_first_shard_lacks_is_left_out_with_a_warning(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"i": [0]}))
    write(tmp_path / "b.parquet", pa.table({"i": [0], "x": [1.5]}))
    write(tmp_path / "c.parquet", pa.table({"i": [0], "x": ["one"]}))
    source = ParquetSource(tmp_path)
    assert source.manifest.extra == {"x": "b.parquet"}
    with pytest.warns(
        UserWarning, match=r"left out: x, since the first shard, a\.parquet, has no such column; b\.parquet"
    ):
        find_columns(source)
    find_columns(source, selection=Selection(drop=("x",)))  # without a warning
    find_columns(source, only=["i"])


def test_a_value_that_the_common_type_cannot_hold_is_refused_when_read(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"x": pa.array([-1], pa.int64())}))
    write(tmp_path / "b.parquet", pa.table({"x": pa.array([1, 2**63], pa.uint64())}))
    source = ParquetSource(tmp_path)
    with pytest.raises(SchemaMismatch, match=r"shard b\.parquet, row group 0, column x: found uint64, expected int64"):
        read_all(source)


def test_duplicate_columns_are_refused(tmp_path):
    table = pa.table([[1], [2], [3]], names=["x", "y", "x"])
    with pytest.raises(SchemaMismatch, match=r"a\.parquet has more than one column called x"):
        ParquetSource(write(tmp_path / "a.parquet", table))
    with pytest.raises(SchemaMismatch, match="the table has more than one column called x"):
        TableSource(table)


def test_hive_keys_become_columns(tmp_path):
    for year, place, x in ((2013, "JFK", 1), (2014, "LGA", 2), (2014, "__HIVE_DEFAULT_PARTITION__", 3)):
        write(tmp_path / f"year={year}/place={place}/a.parquet", pa.table({"x": [x, x]}))
    source = ParquetSource(tmp_path)
    assert source.schema == pa.schema({"x": pa.int64(), "year": pa.int64(), "place": pa.string()})
    expected = pa.table(
        {
            "x": [1, 1, 2, 2, 3, 3],
            "year": [2013, 2013, 2014, 2014, 2014, 2014],
            "place": ["JFK", "JFK", "LGA", "LGA", None, None],
        }
    )
    assert read_all(source).sort_by("x").equals(expected)
    assert read_all(source, ["place", "x"]).sort_by("x").equals(expected.select(["place", "x"]))
    assert source.names[0] == "year=2013/place=JFK/a.parquet"


def test_a_hive_key_of_strings_is_a_category(tmp_path):
    """Though no file has it as a dictionary."""
    for place in ("JFK", "LGA"):
        write(tmp_path / f"place={place}/a.parquet", pa.table({"s": ["a", "b"], "y": [0, 1]}))
    source = ParquetSource(tmp_path)
    dictionaries = source.with_dictionaries(["place", "s"])
    encoder = Encoder(FeatureSpec.raw(find_columns(source, target="y")), None)
    rows = encoder.new_rows(2)
    for row_group, place in enumerate(("JFK", "LGA")):
        (batch,) = dictionaries.open(row_group, encoder.columns, 9).read(2)
        assert batch["place"].to_pylist() == [place] * 2
        assert encoder.encode(batch, rows, "", []) == 2
    assert streamgd.SGDClassifier(polish=0).fit(tmp_path, "y").score(tmp_path, "y") >= 0.5


def test_a_hive_key_that_is_a_column_too_is_refused(tmp_path):
    write(tmp_path / "x=1/a.parquet", pa.table({"x": [1]}))
    with pytest.raises(SchemaMismatch, match=r"shard a\.parquet has x twice: as a column of the file and as x=\.\.\."):
        ParquetSource(tmp_path)
    assert ParquetSource(tmp_path / "x=1/a.parquet").schema.names == ["x"]


def test_a_missing_path_comes_through():
    with pytest.raises(PathNotFound):
        ParquetSource("no/such/place")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x", b"PAR1PAR1", b"not a parquet file at all" * 100], ids=len)
def test_what_is_not_parquet_is_unreadable(tmp_path, content):
    write(tmp_path / "a.parquet", pa.table({"x": [1]}))
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(UnreadableShard, match=r"shard b\.parquet") as caught:
        ParquetSource(tmp_path)
    assert content or "0 bytes" in str(caught.value)
    if content[:3] == b"not":
        assert "is not a Parquet file, it begins with b'not '" in str(caught.value)


def test_a_truncated_shard_is_unreadable_wherever_it_is_cut(tmp_path):
    path = Path(write(tmp_path / "a.parquet", pa.table({"x": np.arange(500.0), "s": ["x"] * 500})))
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(UnreadableShard, match=r"shard a\.parquet"):
            ParquetSource(path)


def test_damaged_pages_are_unreadable(tmp_path):
    path = Path(
        write(tmp_path / "a.parquet", pa.table({"x": np.arange(500.0)}), row_group_size=250, compression="zstd")
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(200) + whole[300:])
    source = ParquetSource(path)
    with pytest.raises(UnreadableShard, match=r"a\.parquet, row group 0, column x cannot be read") as caught:
        source.open(0, ["x"], 100).skip(250)
    assert caught.value.__cause__ is not None
    source.open(1, ["x"], 100).skip(250)


def test_no_rows_is_empty_data(tmp_path):
    nothing = pa.table({"x": pa.array([], pa.int64())})
    write(tmp_path / "a.parquet", nothing)
    write(tmp_path / "b.parquet", nothing)
    with pytest.raises(EmptyData, match="no rows in 2 shard"):
        ParquetSource(tmp_path)
    for table in (nothing, pa.table({})):
        with pytest.raises(EmptyData):
            TableSource(table)


def set_counts(path, counts):
    """Write the row counts of a footer anew: that of the file, of each column chunk and of the row group, in order."""
    whole = path.read_bytes()
    length = struct.unpack("<I", whole[-8:-4])[0]
    body, footer = whole[: -8 - length], whole[-8 - length : -8]
    rows = pq.ParquetFile(path).metadata.num_rows
    parts = footer.split(b"\x16" + varint(2 * rows))
    assert len(parts) == len(counts) + 1
    footer = parts[0] + b"".join(b"\x16" + varint(2 * n) + part for n, part in zip(counts, parts[1:], strict=True))
    path.write_bytes(body + footer + struct.pack("<I", len(footer)) + b"PAR1")


@pytest.mark.parametrize("batch_rows", [1000, 10_000])
def test_a_row_group_with_fewer_rows_than_its_footer_says(tmp_path, batch_rows):
    path = Path(write(tmp_path / "a.parquet", pa.table({"x": range(5001)}), write_statistics=False))
    set_counts(path, [6001, 6001, 6001])
    source = ParquetSource(path)
    assert source.manifest.n_rows == 6001
    reader = source.open(0, ["x"], batch_rows)
    reader.skip(5000)
    with pytest.raises(UnreadableShard, match="row group 0 ends early: the footer says 6001 rows, the pages hold 5001"):
        reader.skip(2)


def test_a_footer_that_contradicts_itself(tmp_path):
    path = Path(write(tmp_path / "a.parquet", pa.table({"x": range(5001)}), write_statistics=False))
    set_counts(path, [5001, 5001, 4001])
    with pytest.raises(
        UnreadableShard, match="contradicts itself, it says 5001 rows, but the row groups add up to 4001"
    ):
        ParquetSource(path)


def test_columns_of_different_lengths_are_unreadable(tmp_path):
    table = pa.table({"x": range(5001), "y": range(5001)})
    path = Path(write(tmp_path / "a.parquet", table, write_statistics=False, data_page_size=512, write_batch_size=64))
    set_counts(path, [5001, 5001, 4001, 5001])
    with pytest.raises(UnreadableShard, match=r"shard a\.parquet, row group 0"):
        read_all(ParquetSource(path))


def test_the_reader_notices_rows_after_the_last():
    batch = pa.record_batch({"x": [1, 2, 3]})
    reader = RowGroupReader(iter([batch, batch]), 4, "shard a, row group 0")
    reader.skip(1)
    with pytest.raises(
        UnreadableShard, match=r"shard a, row group 0 does not end: .* 4 rows, the pages hold at least 6"
    ):
        reader.finish()
    reader = RowGroupReader(iter([batch]), 3, "")
    with pytest.raises(ValueError, match="4 rows asked for, 3 are left"):
        reader.skip(4)


def test_encrypted_shards_are_refused_and_do_not_end_the_process(tmp_path):
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):
        def __init__(self, configuration):
            super().__init__()

        def wrap_key(self, key, name):
            return key.hex()

        def unwrap_key(self, key, name):
            return bytes.fromhex(key)

    table = pa.table({"open": [1, 2], "secret": [3, 4]})
    for plaintext in (False, True):
        properties = encryption.CryptoFactory(Keys).file_encryption_properties(
            encryption.KmsConnectionConfig(),
            encryption.EncryptionConfiguration(
                footer_key="f", column_keys={"c": ["secret"]}, plaintext_footer=plaintext
            ),
        )
        path = tmp_path / f"{plaintext}.parquet"
        with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
    with pytest.raises(UnreadableShard, match=r"shard False\.parquet cannot be read: .*encrypt"):
        ParquetSource(tmp_path / "False.parquet")
    source = ParquetSource(tmp_path / "True.parquet")
    assert read_all(source, ["open"]).equals(table.select(["open"]))
    with pytest.raises(
        UnreadableShard, match=r"shard True\.parquet, row group 0, column secret cannot be read: .*[Dd]ecrypt"
    ):
        read_all(source, ["secret"])


def test_a_shard_that_changed_after_planning_is_noticed(tmp_path):
    path = write(tmp_path / "a.parquet", pa.table({"x": range(10)}))
    source = ParquetSource(path)
    write(path, pa.table({"x": range(11)}))
    with pytest.raises(ShardChanged, match=r"shard a\.parquet has changed: it has \d+ bytes, and had \d+ when the job"):
        source.open(0, ["x"], 10).skip(1)
    source = ParquetSource(path)
    os.remove(path)
    with pytest.raises(ShardChanged, match=r"shard a\.parquet is gone: it was there when the job began"):
        source.open(0, ["x"], 10).skip(1)


@pytest.mark.parametrize("big", [False, True])
def test_another_shard_in_its_place_is_noticed_when_it_is_opened_again(tmp_path, monkeypatch, big):
    """Though it has the same size and rows; a copy that is put back is none."""
    monkeypatch.setattr(module, "BIG_ROW_GROUP", 0 if big else 1 << 30)
    options = {"row_group_size": 100, "compression": "none", "use_dictionary": False}
    path = Path(write(tmp_path / "a.parquet", pa.table({"x": np.arange(1000.0)}), **options))
    other = Path(write(tmp_path / "b", pa.table({"x": np.arange(1000.0)[::-1]}), **options))
    assert path.stat().st_size == other.stat().st_size
    source, before = ParquetSource(path), path.read_bytes()
    expected = read_all(source)
    reader = source.open(0, ["x"], 10)
    reader.skip(10)
    os.replace(other, path)
    reader.skip(90)  # from the file that was open
    for again in (pickle.loads(pickle.dumps(source)), *([source] if big else [])):
        with pytest.raises(ShardChanged, match=r"shard a\.parquet has changed: its footer differs"):
            read_all(again)
    path.unlink()
    path.write_bytes(before)
    assert read_all(source.with_dictionaries([])).equals(expected)


def test_a_shard_that_is_overwritten_while_it_is_open_is_not_called_bad(tmp_path):
    """As far as that can be known: what is read cannot be decoded, and the footer is another."""
    path = Path(write(tmp_path / "a.parquet", pa.table({"x": np.arange(1000.0)}), row_group_size=500))
    source = ParquetSource(path).for_job("skip")
    source.open(0, ["x"], 100).skip(100)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ShardChanged, match=r"shard a\.parquet has changed"):
        source.open(1, ["x"], 100).skip(100)


def test_footers_are_read_once_to_know_shards_by(tmp_path):
    handler, data = watched([write(tmp_path / f"{n}.parquet", pa.table({"x": [n, n]})) for n in range(3)])
    source = ParquetSource(data)
    assert len(handler.opened) == 3
    shards = source.shards()
    assert [(name, size, rows) for name, size, rows, _ in shards] == [
        (f"{n}.parquet", os.path.getsize(tmp_path / f"{n}.parquet"), 2) for n in range(3)
    ]
    assert len({digest for *_, digest in shards}) == 3 and source.identity() == source.identity()
    assert len(handler.opened) == 3
    assert ParquetSource(tmp_path).shards() == shards


def test_shards_that_cannot_be_planned_with_are_left_out_and_named(tmp_path):
    tables = {"b": pa.table({"x": [1, 2]}), "d": pa.table({"x": [0.5]}), "h": pa.table({"x": [3]})}
    for name, table in tables.items():
        write(tmp_path / f"k={name}/{name}.parquet", table)
    write(tmp_path / "k=c/c.parquet", pa.table({"x": ["text"]}))
    write(tmp_path / "k=e/e.parquet", pa.table({"y": [1]}))
    write(tmp_path / "k=f/f.parquet", pa.table({"x": [1]}))
    for name, content in {"a": b"", "f": (tmp_path / "k=f/f.parquet").read_bytes()[:-9], "g": b"no shard"}.items():
        (tmp_path / f"k={name}").mkdir(exist_ok=True)
        (tmp_path / f"k={name}/{name}.parquet").write_bytes(content)
    source = ParquetSource(tmp_path, n_jobs=3, on_error="skip")
    assert source.left_out.shards == [f"k={name}/{name}.parquet" for name in "acefg"]
    assert all(f"shard k={name}" in message for name, message in zip("acefg", source.left_out.messages, strict=True))
    assert source.names == [f"k={name}/{name}.parquet" for name in tables]
    assert read_all(source).to_pydict() == {"x": [1, 2, 0.5, 3], "k": ["b", "b", "d", "h"]}
    assert [source.describe(k) for k in range(3)] == [f"shard {name}, row group 0" for name in source.names]
    assert source.fingerprint() == ParquetSource([tmp_path / f"k={n}/{n}.parquet" for n in tables]).fingerprint()
    with pytest.raises(UnreadableShard, match=r"shard k=a/a.parquet is empty \(0 bytes\).*--on-error skip"):
        ParquetSource(tmp_path, on_error="raise")
    with pytest.raises(UnreadableShard) as caught:
        ParquetSource(tmp_path)
    assert "on_error" not in str(caught.value)


class Watching(pafs.FileSystemHandler):
    """The local filesystem, with a look at each opening of a file."""

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = None
    open_input_stream = open_output_stream = open_append_stream = get_file_info_selector = None

    def __init__(self, on_open):
        self.local, self.on_open, self.opened = pafs.LocalFileSystem(), on_open, []

    def get_type_name(self):
        return "watching"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        return self.local.get_file_info(paths)

    def open_input_file(self, path):
        self.opened.append(path)
        self.on_open()
        return self.local.open_input_file(path)


def watched(paths, on_open=lambda: None):
    handler = Watching(on_open)
    return handler, SimpleNamespace(files=[str(path) for path in paths], filesystem=pafs.PyFileSystem(handler))


def test_footers_are_read_in_parallel(tmp_path):
    paths = [write(tmp_path / f"{n}.parquet", pa.table({"x": [n]})) for n in range(8)]
    together = threading.Barrier(4)  # broken unless four files are being opened at one time
    _, data = watched(paths, lambda: together.wait(timeout=30))
    source = ParquetSource(data, n_jobs=4)
    assert source.manifest.n_rows == 8


def test_the_first_bad_shard_is_the_one_that_is_named(tmp_path):
    paths = [write(tmp_path / f"{n}.parquet", pa.table({"x": [n]})) for n in range(20)]
    for number in (5, 6, 19):
        Path(paths[number]).write_bytes(b"broken")
    for _ in range(5):
        with pytest.raises(UnreadableShard, match=r"shard 5\.parquet"):
            ParquetSource(paths, n_jobs=8)


def test_threads_keep_few_files_open_and_footers_are_parsed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "OPEN_FILES", 3)
    paths = [write(tmp_path / f"{n}.parquet", pa.table({"x": [1, 2, 3]}), row_group_size=1) for n in range(5)]
    handler, data = watched(paths)
    source = ParquetSource(data, n_jobs=1)
    handler.opened.clear()
    read_all(source)
    assert handler.opened == paths
    read_all(source.subset(np.arange(6, 15)))  # the last three are still open
    assert handler.opened == paths
    read_all(source.subset(np.array([0])))
    assert handler.opened == [*paths, paths[0]]
    assert len(source._open_files._files) == 3
    monkeypatch.setattr(module, "OPEN_FOOTER_BYTES", 1)
    read_all(source)
    assert len(source._open_files._files) == 1


def test_a_big_row_group_has_a_file_of_its_own_and_can_change_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BIG_ROW_GROUP", 0)
    table = pa.table({"x": np.arange(10_000.0)})
    handler, data = watched([write(tmp_path / "a.parquet", table, row_group_size=10_000)])
    source = ParquetSource(data)
    handler.opened.clear()
    readers = [source.open(0, ["x"], 100) for _ in range(2)]
    for start in range(0, 10_000, 500):
        for reader in readers:
            with ThreadPoolExecutor(1) as pool:
                rows = pool.submit(lambda reader=reader: list(reader.read(500))).result()
            assert (
                pa.Table.from_batches(rows).column("x").to_pylist()
                == table.column("x")[start : start + 500].to_pylist()
            )
    assert len(handler.opened) == 2 + 2  # one more for each thread pool's first read, which looks at the footer


def test_a_big_row_group_is_not_held_in_memory(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random(2_000_000)
    path = write(tmp_path / "a.parquet", pa.table({"x": values}), row_group_size=len(values), use_dictionary=False)

    def held():
        reader = ParquetSource(path).open(0, ["x"], 10_000)
        before, most = pa.total_allocated_bytes(), 0
        for _ in reader.read(len(values)):
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    assert held() > values.nbytes  # what this test would see if the row group were read whole
    monkeypatch.setattr(module, "BIG_ROW_GROUP", values.nbytes // 2)
    assert held() < values.nbytes / 3


def test_readers_of_one_file_can_change_threads(tmp_path):
    table = pa.table({"x": np.arange(40_000), "y": np.arange(40_000) % 7})
    source = ParquetSource(write(tmp_path / "a.parquet", table, row_group_size=1000))
    # Each thread starts some readers from the file that it keeps open; any thread takes the next piece of any reader.
    readers = [source.open(row_group, ["x", "y"], 90) for row_group in range(40)]
    found = [[] for _ in readers]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            list(pool.map(lambda number: found[number].extend(readers[number].read(250)), range(40)))
    assert pa.Table.from_batches([batch for batches in found for batch in batches]).equals(table)


def test_subsets_are_numbered_anew(tmp_path):
    table = pa.table({"x": range(20)})
    write(tmp_path / "a.parquet", table.slice(0, 12), row_group_size=4)
    write(tmp_path / "b.parquet", table.slice(12), row_group_size=4)
    for source in (ParquetSource(tmp_path), TableSource(table, 4)):
        part = source.subset(np.array([4, 1]))
        assert read_all(part).column("x").to_pylist() == [16, 17, 18, 19, 4, 5, 6, 7]
        assert [part.describe(0), part.describe(1)] == [source.describe(4), source.describe(1)]
        assert part.names == source.names
        assert read_all(part.subset(np.array([1]))).column("x").to_pylist() == [4, 5, 6, 7]
        assert source.manifest.n_row_groups == 5
        for wrong in (np.array([5]), np.array([-1]), np.array([0.0]), np.array([[0]])):
            with pytest.raises(ConfigError):
                source.subset(wrong)


def test_a_source_can_be_sent_to_another_process(tmp_path):
    write(tmp_path / "k=1/a.parquet", pa.table({"x": [1, 2, 3]}))
    source = ParquetSource(tmp_path)
    read_all(source)
    for each in (source, TableSource(pa.table({"x": [1, 2, 3]}))):
        again = pickle.loads(pickle.dumps(each))
        assert read_all(again).equals(read_all(each))
        assert again.fingerprint() == each.fingerprint()


def test_the_fingerprint_follows_the_data_not_the_place(tmp_path):
    table = pa.table({"x": range(10)})
    for place in ("one", "two/deep"):
        write(tmp_path / place / "s/a.parquet", table, row_group_size=5)
        write(tmp_path / place / "s/t/b.parquet", table, row_group_size=5)
    one, two = ParquetSource(tmp_path / "one"), ParquetSource(tmp_path / "two")
    assert one.fingerprint() == two.fingerprint()
    seen = {one.fingerprint(), one.subset(np.array([0, 1])).fingerprint(), one.subset(np.array([1, 0])).fingerprint()}
    os.rename(tmp_path / "two/deep/s/a.parquet", tmp_path / "two/deep/s/c.parquet")
    seen.add(ParquetSource(tmp_path / "two").fingerprint())
    write(tmp_path / "one/s/a.parquet", table, row_group_size=6)
    seen.add(ParquetSource(tmp_path / "one").fingerprint())
    tables = [table, table.slice(1), table.rename_columns(["y"])]
    seen.update(TableSource(each).fingerprint() for each in tables)
    assert len(seen) == 8
    assert TableSource(table).fingerprint() == TableSource(pa.table({"x": range(10)})).fingerprint()


def test_metadata_of_the_writer_are_left_out(tmp_path):
    field = pa.field("x", pa.int64(), metadata={"k": "v" * 1000})
    table = pa.table({"x": [1]}, schema=pa.schema([field], metadata={"pandas": "{}"}))
    schema = ParquetSource(write(tmp_path / "a.parquet", table)).schema
    assert schema.metadata is None
    assert schema.field("x").metadata is None


def test_a_table_built_from_small_pieces_is_not_read_row_by_row():
    table = pa.concat_tables([pa.table({"x": [n], "y": [str(n)]}) for n in range(100)])
    batches = list(TableSource(table, 50).open(1, ["x", "y"], 20).read(50))
    assert [batch.num_rows for batch in batches] == [20, 20, 10]


def test_slices_of_a_table_are_not_copied():
    table = pa.table({"x": np.arange(1000.0)})
    (batch,) = TableSource(table, 100).open(3, ["x"], 1000).read(100)
    assert batch.column(0).buffers()[1].address == table.column("x").chunk(0).buffers()[1].address


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (64, 1), (65, 2), (1000, 16), (10_000_000, 65_536)])
def test_default_row_groups_of_a_table(rows, expected):
    table = pa.table({"x": pa.array(np.zeros(rows, np.int8))})
    source = TableSource(table)
    assert source.manifest.rows[0] == expected
    assert source.manifest.n_rows == rows


def test_as_source_takes_all_kinds_of_data(tmp_path):
    table = pa.table({"x": [1, 2, 3]})
    path = write(tmp_path / "a.parquet", table)
    source = ParquetSource(path)
    assert as_source(source) is source
    for data in (table, table.to_batches()[0], path, [path], tmp_path, f"file://{path}", f"{tmp_path}/*.parquet"):
        found = as_source(data, n_jobs=1)
        assert isinstance(found, Source)
        assert read_all(found).equals(table)
    with pytest.raises(ConfigError, match="cannot read data from int"):
        as_source(3)
    with pytest.raises(ConfigError, match="n_jobs"):
        as_source(path, n_jobs=0)
    with pytest.raises(ConfigError, match="row_group_rows"):
        TableSource(table, 0)


def test_a_million_row_groups_take_24_bytes_each():
    n = 1_000_000
    manifest = Manifest(
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int32),
        np.ones(n, np.int64),
        np.ones(n, np.int64),
        np.ones(1, np.int64),
        pa.schema([]),
    )
    arrays = (manifest.shard, manifest.index, manifest.rows, manifest.bytes)
    assert sum(array.nbytes for array in arrays) == 24 * n
    assert manifest.n_rows == manifest.take(np.arange(n)[::-1]).n_rows == n


@given(st.data())
@settings(deadline=None)
def test_a_flipped_byte_of_a_page_with_a_checksum_is_an_error(data):
    """Though it lies in numbers that are not compressed, any of which could be right."""
    with TemporaryDirectory() as directory:
        options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        path = Path(write(f"{directory}/a.parquet", pa.table({"x": np.arange(500.0)}), row_group_size=250, **options))
        number, whole = data.draw(st.integers(0, 1)), bytearray(path.read_bytes())
        chunk = pq.ParquetFile(path).metadata.row_group(number).column(0)
        end = chunk.data_page_offset + chunk.total_compressed_size
        whole[data.draw(st.integers(end - 250 * 8, end - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        source = ParquetSource(path)
        with pytest.raises(UnreadableShard, match=rf"a\.parquet, row group {number}, column x .*[Cc]hecksum"):
            source.open(number, ["x"], data.draw(st.integers(1, 300))).skip(250)
        source.open(1 - number, ["x"], 300).skip(250)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_flipped_byte_is_an_error_of_ours_or_harmless(data):
    with TemporaryDirectory() as directory:
        path = Path(
            write(f"{directory}/a.parquet", pa.table({"x": np.arange(50.0), "s": ["x", "yy"] * 25}), row_group_size=20)
        )
        whole = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        try:
            source = ParquetSource(path)
            read_all(source, batch_rows=10)
        except DataError as exc:
            assert "a.parquet" in str(exc)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_strings_that_cannot_be_decoded_to_dictionaries_come_as_they_are(tmp_path: Path, encoding: str) -> None:
    words = [f"w{i % 7}" for i in range(900)]
    for shard in range(2):
        path = tmp_path / f"{shard}.parquet"
        plain = {} if shard else {"use_dictionary": False, "column_encoding": {"w": encoding}}
        pq.write_table(pa.table({"w": words, "x": range(900)}), path, row_group_size=400, **plain)
    source = ParquetSource(tmp_path).with_dictionaries(["w"])
    found = []
    for row_group in range(source.manifest.n_row_groups):
        for batch in source.open(row_group, ["w", "x"], 100).read(int(source.manifest.rows[row_group])):
            found += batch.column(0).to_pylist()
    assert found == words * 2
