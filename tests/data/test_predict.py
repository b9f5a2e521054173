"""A score for every row: shard by shard, in the order of the rows, whole or not at all."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data import remote
from streamgd.data.predict import write_predictions
from streamgd.data.source import ParquetSource
from streamgd.errors import ConfigError, MissingColumn, NonFiniteFeature, OutputError, SchemaMismatch, UnreadableShard
from streamgd.features import Column, FeatureSpec
from streamgd.model import Model
from tests import strategies as sgst

COEF = np.array([0.5, -2.0])


def model(classes=None, class_type=None):
    raw = FeatureSpec.raw([Column("a", "number"), Column("b", "number")])
    spec = raw.centred(np.array([1.0, 2.0]), np.ones(2))
    task, loss = ("classification", "log_loss") if classes else ("regression", "squared_error")
    coef, intercept = COEF[np.newaxis], np.array([0.25])
    rest = {"classes": classes, "class_type": class_type}
    return Model(task, loss, "y", spec, coef, intercept, np.ones(2), np.zeros(2), **rest)


LABELS = model([3, 7], "int64")


def table_of(rows, start=0):
    row = np.arange(start, start + rows)
    return pa.table({"id": row, "a": np.sin(row), "b": pa.array(np.cos(row), mask=row % 5 == 0)})


def margin_of(table):
    b = np.where(table["b"].is_null(), 2.0, table["b"].fill_null(0).to_numpy())
    return np.stack([table["a"].to_numpy(), b], axis=1) @ COEF + 0.25


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*") if path.is_file())


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_row_of_every_shard_has_its_score_in_its_place(data):
    rows = data.draw(st.integers(1, 150))
    table = table_of(rows)
    made = data.draw(st.sampled_from([LABELS, model(["no", "yes"], "string"), model()]))
    keep = data.draw(st.sampled_from([[], ["id"], ["b", "id"]]))
    layout = data.draw(sgst.layouts(rows))
    with TemporaryDirectory() as directory:
        (Path(directory) / "in").mkdir()
        sgst.write_shards(f"{directory}/in", table, layout)
        source = ParquetSource(f"{directory}/in")
        told = []
        paths = write_predictions(
            source,
            made,
            f"{directory}/out",
            keep=keep,
            n_jobs=data.draw(st.integers(1, 3)),
            done=lambda path, n: told.append((path, n)),
        )
        assert files(f"{directory}/out") == files(f"{directory}/in")
        assert [str(path) for path in paths] == [f"{directory}/out/{name}" for name in source.names]
        assert sorted(told) == [(str(path), sum(sizes)) for path, sizes in zip(paths, layout, strict=True)]
        for path, shard in zip(paths, sgst.cut(table, [sum(sizes) for sizes in layout]), strict=True):
            out = pq.read_table(path)
            margin = margin_of(shard)
            names = ["prediction"] if made.classes is None else ["prediction", "probability"]
            assert out.column_names == [*keep, *names]
            assert out.select(keep).equals(shard.select(keep))
            if made.classes is None:
                np.testing.assert_allclose(out["prediction"].to_numpy(), margin, rtol=1e-5, atol=1e-6)
            else:
                probability = out["probability"].to_numpy()
                np.testing.assert_allclose(probability, 1 / (1 + np.exp(-margin)), rtol=1e-6)
                assert out["prediction"].to_pylist() == [made.classes[int(p > 0.5)] for p in probability]


def test_shards_keep_their_directories_and_columns_of_their_paths(tmp_path):
    for year, name in ((2013, "x.parquet"), (2014, "x.parquet"), (2014, "y.pq")):
        path = tmp_path / f"in/year={year}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(7, year), path, row_group_size=3)
    write_predictions(ParquetSource(tmp_path / "in"), LABELS, tmp_path / "out", keep=["id"], n_jobs=2)
    assert files(tmp_path / "out") == ["year=2013/x.parquet", "year=2014/x.parquet", "year=2014/y.parquet"]
    out = pq.ParquetFile(tmp_path / "out/year=2014/x.parquet").read()
    assert out["id"].to_pylist() == list(range(2014, 2021))
    write_predictions(ParquetSource(tmp_path / "in"), LABELS, tmp_path / "again", keep=["year"])
    assert "year" not in pq.ParquetFile(tmp_path / "again/year=2013/x.parquet").schema_arrow.names  # it is in the path
    assert sorted(set(pq.read_table(tmp_path / "again")["year"].to_pylist())) == [2013, 2014]
    write_predictions(ParquetSource(tmp_path / "in/year=2014"), LABELS, tmp_path / "one", keep=["id"])
    assert files(tmp_path / "one") == ["x.parquet", "y.parquet"]


def test_two_inputs_for_one_output_are_an_error(tmp_path):
    for name in ("a.parquet", "a.pq"):
        pq.write_table(table_of(3), tmp_path / name)
    with pytest.raises(ConfigError, match="one output"):
        write_predictions(ParquetSource([f"{tmp_path}/a.parquet", f"{tmp_path}/a.pq"]), LABELS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_do_not_replace_the_data(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    sgst.write_shards(tmp_path / "in", table_of(9), [[4], [5]])
    before = {name: (tmp_path / "in" / name).read_bytes() for name in files(tmp_path / "in")}
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "in", "in", "in/../in", "link", Path("in/")):
        with pytest.raises(ConfigError, match=r"replace the input shard part-000\.parquet"):
            write_predictions(ParquetSource("in"), LABELS, out)
    assert {name: (tmp_path / "in" / name).read_bytes() for name in files(tmp_path / "in")} == before
    write_predictions(ParquetSource("in"), LABELS, "in/scores")
    assert len(files(tmp_path / "in/scores")) == 2


def test_shards_and_row_groups_without_rows(tmp_path):
    (tmp_path / "in").mkdir()
    sgst.write_shards(tmp_path / "in", table_of(6), [[0], [0, 4, 0, 2], [0, 0]])
    write_predictions(ParquetSource(tmp_path / "in"), LABELS, tmp_path / "out", keep=["id"])
    tables = [pq.read_table(tmp_path / "out" / name) for name in files(tmp_path / "out")]
    assert [table.num_rows for table in tables] == [0, 6, 0]
    assert len({str(table.schema) for table in tables}) == 1
    assert tables[0].column_names == ["id", "prediction", "probability"]


KEPT = {
    "text": pa.array(["a", None, "ü", ""]),
    "large": pa.array(["a", None, "ü", ""], pa.large_string()),
    "view": pa.array(["a", None, "ü", "longer than twelve bytes"], pa.string_view()),
    "city": pa.array(["x", "y", None, "x"]).dictionary_encode(),
    "raw": pa.array([b"\0", None, b"", b"x"]),
    "time": pa.array([datetime(2013, 1, 1), None, None, datetime(1960, 1, 1)], pa.timestamp("us", "UTC")),
    "day": pa.array([0, None, 1, 20_000], pa.date32()),
    "money": pa.array([Decimal("1.23"), None, Decimal("-1.00"), Decimal(0)], pa.decimal128(9, 2)),
    "list": pa.array([[1], None, [], [2, None]]),
    "fixed": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
    "record": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 3, "b": ""}]),
    "flag": pa.array([True, None, False, True]),
    "nan": pa.array([math.nan, math.inf, None, -0.0]),
    "nothing": pa.nulls(4),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_columns_of_any_type_are_as_they_were(name, tmp_path):
    table = table_of(4).append_column(name, KEPT[name])
    (tmp_path / "in").mkdir()
    sgst.write_shards(tmp_path / "in", table, [[3, 1]])
    before = pq.read_table(tmp_path / "in/part-000.parquet").select([name])
    write_predictions(ParquetSource(tmp_path / "in"), LABELS, tmp_path / "out", keep=[name])
    after = pq.read_table(tmp_path / "out/part-000.parquet").select([name])
    assert after.schema.field(name).type == before.schema.field(name).type
    assert str(after[name].to_pylist()) == str(before[name].to_pylist())


@pytest.mark.parametrize("fault", ["infinite", "damaged"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_in_the_middle_of_a_shard_leaves_nothing_partial(fault, jobs, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    sizes = [[2000], [1000, 1000], [2000]]
    table = table_of(6000)
    if fault == "infinite":
        a = table["a"].to_numpy().copy()
        a[3500] = math.inf
        table = table.set_column(1, "a", pa.array(a))
    sgst.write_shards(tmp_path / "in", table, sizes)
    source = ParquetSource(tmp_path / "in")
    if fault == "damaged":
        path = tmp_path / "in/part-001.parquet"
        start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
        data = bytearray(path.read_bytes())
        data[start : start + 2000] = bytes(2000)
        path.write_bytes(data)
    (tmp_path / "out/part-001.parquet").write_bytes(b"of an earlier run")
    error = NonFiniteFeature if fault == "infinite" else UnreadableShard
    with pytest.raises(error, match=r"part-001\.parquet, row group 1"):
        write_predictions(source, LABELS, tmp_path / "out", n_jobs=jobs)
    assert (tmp_path / "out/part-001.parquet").read_bytes() == b"of an earlier run"
    left = files(tmp_path / "out")
    assert "part-000.parquet" in left
    assert set(left) <= {"part-000.parquet", "part-001.parquet", "part-002.parquet"}
    assert all(pq.read_table(tmp_path / "out" / name).num_rows == 2000 for name in left if "001" not in name)


def test_an_output_of_an_earlier_run_is_replaced(tmp_path):
    (tmp_path / "in").mkdir()
    sgst.write_shards(tmp_path / "in", table_of(5), [[5]])
    source = ParquetSource(tmp_path / "in")
    (first,) = write_predictions(source, model(), tmp_path / "out")
    (second,) = write_predictions(source, LABELS, tmp_path / "out")
    assert first == second and pq.read_table(second).column_names == ["prediction", "probability"]
    assert files(tmp_path / "out") == ["part-000.parquet"]


@pytest.mark.parametrize(
    ("made", "keep", "error", "named"),
    [
        (LABELS, ["q"], MissingColumn, "'q'"),
        (LABELS, ["prediction"], ConfigError, "prediction"),
        (LABELS, ["probability"], ConfigError, "probability"),
        (model(), ["prediction"], ConfigError, "prediction"),
        (LABELS, ["id", "a", "id"], ConfigError, "twice"),
    ],
)
def test_columns_that_cannot_be_kept(made, keep, error, named, tmp_path):
    table = table_of(3).append_column("prediction", pa.array([1, 2, 3]))
    table = table.append_column("probability", pa.array([1, 2, 3]))
    (tmp_path / "in").mkdir()
    sgst.write_shards(tmp_path / "in", table, [[3]])
    source = ParquetSource(tmp_path / "in")
    with pytest.raises(error, match=named):
        write_predictions(source, made, tmp_path / "out", keep=keep)
    assert not (tmp_path / "out").exists()
    (path,) = write_predictions(source, model(), tmp_path / "out", keep=["probability"])
    assert pq.read_table(path).column_names == ["probability", "prediction"]


def test_data_that_do_not_fit_the_model(tmp_path):
    table = table_of(3)
    (tmp_path / "in").mkdir()
    for changed, error, named in (
        (table.drop_columns("b"), MissingColumn, "model's column 'b'"),
        (
            table.set_column(2, "b", pa.array(["x"] * 3)),
            SchemaMismatch,
            r"'b' holds numbers \(number\), but in .* it is string",
        ),
    ):
        sgst.write_shards(tmp_path / "in", changed, [[3]])
        with pytest.raises(error, match=named):
            write_predictions(ParquetSource(tmp_path / "in"), LABELS, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_target_need_not_be_there_and_may_be_anything(tmp_path):
    (tmp_path / "in").mkdir()
    sgst.write_shards(tmp_path / "in", table_of(4).append_column("y", pa.array(["?"] * 4)), [[4]])
    (path,) = write_predictions(ParquetSource(tmp_path / "in"), LABELS, tmp_path / "out", keep=["y"])
    assert pq.read_table(path)["y"].to_pylist() == ["?"] * 4


def test_output_that_is_not_local(tmp_path, monkeypatch):
    """Shards are sent when they are whole; what fails is an error of the output."""
    memory = fsspec.filesystem("memory")
    for year in (2013, 2014):
        place = tmp_path / "in" / f"year={year}"
        place.mkdir(parents=True)
        pq.write_table(table_of(50, year), place / "a.parquet", row_group_size=20)
    source = ParquetSource(tmp_path / "in")
    here = write_predictions(source, LABELS, tmp_path / "out", keep=["id"])
    there = write_predictions(source, LABELS, "memory://scores/of", keep=["id"])
    assert there == [f"memory://scores/of/year={year}/a.parquet" for year in (2013, 2014)]
    for uri, file in zip(there, here, strict=True):
        with memory.open(uri) as found:
            assert pq.read_table(found).equals(pq.ParquetFile(file).read())
    monkeypatch.setattr(remote, "sleep", lambda _: None)

    def full(*_, **__):
        raise OSError(28, "no room")

    monkeypatch.setattr(type(memory), "_open", full)
    with pytest.raises(OutputError, match="memory://scores/of"):
        write_predictions(source, LABELS, "memory://scores/of")
