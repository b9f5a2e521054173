"""Data that are bad here and there: a typed error that names the place, or a job that leaves it out and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd import SGDClassifier
from streamgd.config import Config
from streamgd.data import profile
from streamgd.data.evaluate import evaluate, mean_loss
from streamgd.data.leftout import MESSAGES, LeftOut
from streamgd.data.source import ParquetSource
from streamgd.data.table import TableSource
from streamgd.errors import (
    AllNullTarget,
    BadWeight,
    ConfigError,
    DataError,
    ListLengthMismatch,
    NonFiniteFeature,
    NonFiniteTarget,
    SchemaMismatch,
    SingleClass,
    TargetError,
    TooManyClasses,
    UnknownLabel,
    UnreadableShard,
)
from streamgd.job import Feed, prepare
from streamgd.state import Result, State
from streamgd.trainer import train

ROWS = 40


def row_group(number: int, **columns: Any) -> pa.Table:
    """Rows of one row group, some columns of which are given."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(ROWS, 2)).astype(np.float32)
    found = {
        "a": pa.array(x[:, 0]),
        "v": pa.array([row.tolist() for row in x], pa.list_(pa.float32())),
        "c": pa.array(rng.choice(["red", "green", "blue"], ROWS)),
        "w": pa.array(rng.uniform(0.5, 2, ROWS)),
        "y": pa.array((x[:, 0] > rng.normal(size=ROWS)).astype(np.float32) + np.arange(ROWS) % 2),
    }
    return pa.table({**found, **{name: pa.array(values, found[name].type) for name, values in columns.items()}})


#: Bad in one row, in the middle of a row group: the column, its value, and the error.
BAD_VALUES = {
    "infinite feature": ("a", float("inf"), NonFiniteFeature),
    "list of another length": ("v", [1.0, 2.0, 3.0], ListLengthMismatch),
    "negative weight": ("w", -1.0, BadWeight),
    "target that is no number": ("y", float("nan"), NonFiniteTarget),
}


def bad_row_group(number: int, what: str) -> pa.Table:
    name, value, _ = BAD_VALUES[what]
    good = row_group(number)
    values = good[name].to_pylist()
    values[ROWS // 2] = value
    return row_group(number, **{name: values})


def write(path: Path, row_groups: list[pa.Table]) -> None:
    with pq.ParquetWriter(path, row_groups[0].schema, compression="zstd", use_dictionary=False) as writer:
        for table in row_groups:
            writer.write_table(table)


def spoil(path: Path, number: int, column: str) -> None:
    """Overwrite the pages of a column of a row group."""
    group = pq.ParquetFile(path).metadata.row_group(number)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == column)
    data, start = bytearray(path.read_bytes()), chunk.data_page_offset
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)


def fit(data: Any, **parameters: Any) -> tuple[Result, Feed]:
    """Train a regression, step by step."""
    options = {"task": "regression", "epochs": 2, "window_rows": 50, "polish": 0, "on_error": "skip"} | parameters
    source = data if isinstance(data, TableSource) else ParquetSource(data, on_error=options["on_error"])
    job, feed = prepare(source, "y", Config(**options).check(), weight="w")
    return train(job, feed, State.start(job)), feed


@settings(deadline=None, max_examples=16)
@given(st.data())
def test_skip_gives_the_model_of_the_data_without_what_is_bad(data: st.DataObject) -> None:
    """What is known to be bad before training is as if it were not there, but for the order in which labels are summed.

    Sums over row groups are joined two by two, and one that is left out counts as an empty one there.
    """
    kinds = [None, None, None, *BAD_VALUES, "spoiled a", "spoiled y"]
    shards = data.draw(st.lists(st.lists(st.sampled_from(kinds), min_size=1, max_size=4), min_size=1, max_size=4))
    shards[0].append(None)
    broken = data.draw(st.sets(st.integers(1, len(shards) - 1))) if len(shards) > 1 else set()
    parameters = data.draw(st.sampled_from([{}, {"n_jobs": 3}, {"optimizer": "lbfgs", "polish": None}]))
    bad = {(shard, k) for shard, kinds in enumerate(shards) for k, kind in enumerate(kinds) if kind} - {
        (shard, k) for shard in broken for k in range(4)
    }
    with TemporaryDirectory() as directory:
        dirty, clean = Path(directory, "dirty"), Path(directory, "clean")
        dirty.mkdir(), clean.mkdir()
        for number, kinds in enumerate(shards):
            seeds = [10 * number + k for k in range(len(kinds))]
            tables = [
                bad_row_group(s, k) if k in BAD_VALUES else row_group(s) for s, k in zip(seeds, kinds, strict=True)
            ]
            path = dirty / f"{number}.parquet"
            write(path, tables)
            for k, kind in enumerate(kinds):
                if kind and kind.startswith("spoiled"):
                    spoil(path, k, kind.split()[1])
            if number in broken:
                path.write_bytes(path.read_bytes()[:-100])
            elif any(kind is None for kind in kinds):
                good = [table for table, kind in zip(tables, kinds, strict=True) if kind is None]
                write(clean / f"{number}.parquet", good)
        found, feed = fit(dirty, **parameters)
        expected, _ = fit(clean, **parameters)
        for name in ("coef", "intercept", "hashed", "hashed_index"):
            np.testing.assert_allclose(getattr(found.model, name), getattr(expected.model, name), 1e-6, 1e-9)
        assert found.rows == expected.rows
        left_out = feed.source.left_out
        assert left_out.shards == [f"{number}.parquet" for number in sorted(broken)]
        # Shards that planning left out have no number.
        kept = [number for number in range(len(shards)) if number not in broken]
        assert {(kept[shard], k) for shard, k in left_out.row_groups} == bad
        assert left_out.rows == ROWS * len(bad) and set(left_out.whole) == left_out.row_groups
        assert len(left_out.messages) == len(bad) + len(broken)
        if bad or broken:
            with pytest.raises(DataError, match="--on-error skip") as caught:
                fit(dirty, **parameters, on_error="raise")
            assert any(f"shard {shard}.parquet, row group {k}" in str(caught.value) for shard, k in bad) or any(
                f"shard {shard}.parquet" in str(caught.value) for shard in broken
            )


def test_what_is_bad_beyond_the_sample_is_lost_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every epoch anew, whatever reads it; and it is counted."""
    monkeypatch.setattr(profile, "WHOLE_SAMPLE_ROWS", 0)
    monkeypatch.setattr(profile, "PIECE_ROWS", 8)
    kinds = ["infinite feature", None, None, "spoiled c"]
    tables = [bad_row_group(k, kind) if kind in BAD_VALUES else row_group(k) for k, kind in enumerate(kinds * 5)]
    write(tmp_path / "a.parquet", tables)
    for k, kind in enumerate(kinds * 5):
        if kind == "spoiled c":
            spoil(tmp_path / "a.parquet", k, "c")
    found, feed = fit(tmp_path, epochs=3, cache=None)
    left_out = feed.source.left_out
    assert 0 < len(left_out.whole) < len(left_out.row_groups) <= 10
    assert found.skipped_row_groups == len(left_out.row_groups)
    # Row groups that a window cuts in two lose what is read in one go, so at most all rows of them.
    assert left_out.rows < found.skipped_rows <= 10 * ROWS
    assert 0 <= 3 * 20 * ROWS - found.rows - 3 * found.skipped_rows < 3  # a mean of the epochs
    text = " ".join([*feed.remarks(), *found.remarks()])
    assert text.count("left out: ") == len(left_out.row_groups) and "column c cannot be read" in text
    for parameters in ({"n_jobs": 1}, {"n_jobs": 4}, {"cache": "auto"}):
        assert fit(tmp_path, epochs=3, **parameters)[0].model.sha256() == found.model.sha256()


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        ([bad_row_group(k, "infinite feature") for k in range(3)], NonFiniteFeature),
        ([bad_row_group(k, "target that is no number") for k in range(3)], NonFiniteTarget),
        ([bad_row_group(0, "target that is no number"), row_group(1, y=[None] * ROWS)], AllNullTarget),
    ],
)
def test_nothing_left_is_an_error(tmp_path: Path, tables: list[pa.Table], error: type[DataError]) -> None:
    write(tmp_path / "a.parquet", tables)
    with pytest.raises(error):
        fit(tmp_path)


def test_no_shard_left_is_the_error_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no shard at all")
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(UnreadableShard, match=r"shard a\.parquet"):
        ParquetSource(tmp_path, on_error="skip")


def test_all_rows_lost_while_training_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "WHOLE_SAMPLE_ROWS", 0)
    monkeypatch.setattr(profile, "PIECE_ROWS", 4)
    monkeypatch.setattr(profile, "FEWEST_ROWS", 4)
    values = [float(k) for k in range(ROWS - 1)]
    write(tmp_path / "a.parquet", [row_group(k, a=[*values, float("inf")]) for k in range(3)])
    # The pieces begin somewhere: those that meet the last row find it bad beforehand.
    with pytest.raises(NonFiniteFeature, match="column 'a' holds infinity"):
        fit(tmp_path, window_rows=1000)


@pytest.mark.parametrize(
    ("y", "error"), [([1] * 2 * ROWS, SingleClass), ([f"label {k}" for k in range(2 * ROWS)], TooManyClasses)]
)
def test_what_is_wrong_with_the_data_as_a_whole_is_an_error(y: list[Any], error: type[DataError]) -> None:
    table = pa.concat_tables([row_group(0), row_group(1)]).drop(["y"]).append_column("y", pa.array(y))
    with pytest.raises(error):
        fit(TableSource(table, 7), task="classification", epochs=1)


def test_row_groups_of_a_validation_set_are_left_out(tmp_path: Path) -> None:
    train_on = pa.concat_tables([row_group(k) for k in range(4)])
    result, _ = fit(TableSource(train_on))
    for name, numbers in (("dirty", [5, 6, 7]), ("clean", [5, 7])):
        (tmp_path / name).mkdir()
        tables = [bad_row_group(k, "infinite feature") if k == 6 else row_group(k) for k in numbers]
        write(tmp_path / name / "a.parquet", tables)
    dirty = ParquetSource(tmp_path / "dirty").for_job("skip")
    clean = ParquetSource(tmp_path / "clean")
    assert mean_loss(dirty, result.model) == mean_loss(clean, result.model)
    assert dirty.left_out.row_groups == {(0, 1)} and not dirty.left_out.whole
    with pytest.raises(NonFiniteFeature, match=r"row group 1.* on_error='skip' \(--on-error skip\) leaves"):
        mean_loss(dirty.for_job("raise"), result.model)
    with pytest.raises(NonFiniteFeature) as caught:
        mean_loss(ParquetSource(tmp_path / "dirty"), result.model)
    assert "on_error" not in str(caught.value)
    with pytest.raises(NonFiniteFeature):
        mean_loss(dirty.for_job("skip").subset(np.array([1])), result.model)


def test_a_label_that_training_does_not_know(tmp_path: Path) -> None:
    labels = [["no", "yes"] * (ROWS // 2), ["no", "maybe"] * (ROWS // 2), ["yes", "no"] * (ROWS // 2)]
    tables = [row_group(k).drop(["y", "w"]).append_column("y", pa.array(y)) for k, y in enumerate(labels)]
    for name, chosen in (("train", tables[::2]), ("test", tables)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.parquet", chosen)
    train_on, test_on = str(tmp_path / "train"), str(tmp_path / "test")
    with pytest.raises(UnknownLabel, match=r"row group 1: target 'y' holds 'maybe'.*--on-error skip"):
        SGDClassifier(early_stopping=True).fit(train_on, "y", validation=test_on)
    with pytest.warns(UserWarning, match=r"left out: shard a\.parquet, row group 1: target 'y' holds 'maybe'"):
        found = SGDClassifier(early_stopping=True, on_error="skip").fit(train_on, "y", validation=test_on)
    assert found.result_.skipped_rows == 0  # of what is trained on


def test_estimators_skip_in_fit_and_never_in_score(tmp_path: Path) -> None:
    path, labels = tmp_path / "a.parquet", pa.array([0, 1] * (ROWS // 2))
    tables = [bad_row_group(0, "infinite feature"), row_group(1), row_group(2)]
    tables = [table.drop(["y", "w"]).append_column("y", labels) for table in tables]
    write(path, tables)
    (tmp_path / "b.parquet").write_bytes(b"no shard at all")
    for data in (str(tmp_path), pa.concat_tables(tables)):
        with pytest.raises(DataError, match="--on-error skip"):
            SGDClassifier().fit(data, "y")
        model = SGDClassifier(on_error="skip", epochs=1)
        with pytest.warns(UserWarning, match="left out: "):
            model.fit(data, "y")
        assert model.result_.skipped_row_groups == 1
        with pytest.warns(UserWarning, match="left out: "):
            model.partial_fit(data, "y")
        with pytest.raises(DataError):
            model.score(data, "y")
    with pytest.raises(ConfigError, match="on_error is 'ignore'; expected one of raise, skip"):
        SGDClassifier(on_error="ignore").fit(str(path), "y")  # type: ignore[arg-type]


def test_the_command_line_counts_what_it_leaves_out(tmp_path: Path) -> None:
    labels = pa.array([0, 1] * (ROWS // 2))
    tables = [bad_row_group(0, "infinite feature"), row_group(1), row_group(2)]
    write(tmp_path / "a.parquet", [table.drop(["y", "w"]).append_column("y", labels) for table in tables])
    (tmp_path / "b.parquet").write_bytes(b"no shard at all")
    for command in ("train", "tune"):
        arguments = [sys.executable, "-m", "streamgd", command, str(tmp_path), "--target", "y", "--json"]
        arguments += ["--alpha", "0.1,0.01"] if command == "tune" else []
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 3 and "shard b.parquet" in done.stderr and "--on-error skip" in done.stderr
        arguments += ["--on-error", "skip"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["skipped_rows"], told["skipped_row_groups"]) == (ROWS, 1)
        assert "left out: shard b.parquet" in done.stderr
        assert "left out: shard a.parquet, row group 0: column 'a' holds infinity" in done.stderr


def test_messages_are_few_and_told_once() -> None:
    manifest = TableSource(pa.table({"x": range(100)}), 1).manifest
    left_out = LeftOut("skip")
    for row_group_number in range(100):
        left_out.note(DataError(f"row group {row_group_number} is bad."), manifest, row_group_number)
        left_out.note(DataError("again"), manifest, row_group_number, whole=row_group_number < 10)
    assert len(left_out.row_groups) == 100 and left_out.rows == 10 and len(left_out.messages) == MESSAGES
    told = left_out.remarks()
    assert told[0] == "left out: row group 0 is bad." and len(told) == MESSAGES + 1 and "100 row group(s)" in told[-1]
    assert left_out.remarks() == []
    assert str(left_out.error) == "row group 0 is bad."
    again = left_out.fresh("raise")
    assert not again.row_groups and not again.messages and again.error is None
    with pytest.raises(DataError, match=r"^row group 0 is bad; on_error='skip' .* leaves the row group out"):
        again.note(DataError("row group 0 is bad."), manifest, 0)
    with pytest.raises(TooManyClasses):
        left_out.note(TooManyClasses("many"), manifest, 0)


INF, NAN = float("inf"), float("nan")
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(),
    ROWS,
    [None, pa.py_buffer(np.arange(0, 4 * (ROWS + 1), 4, dtype=np.int32)), pa.py_buffer(b"\xff\xfe\0z" * ROWS)],
)
#: Values of one row group that can be learned from, by what they are; repeated to its length.
FINE: dict[str, tuple[list[Any], pa.DataType]] = {
    "NaN": ([1.0, NAN, 2.0], pa.float64()),
    "only NaN": ([NAN], pa.float32()),
    "denormals": ([5e-324, 1e-310, 0.0], pa.float64()),
    "float32 denormals": ([1e-45, 1e-40, 0.0], pa.float32()),
    "large float32": ([1e31, -1e31, 1.0], pa.float32()),
    "float16": ([np.float16(65504), np.float16(6e-8)], pa.float16()),
    "a large constant": ([1e30], pa.float64()),
    "decimals of 38 digits": ([Decimal("9" * 31), Decimal("-0.0000001")], pa.decimal128(38, 7)),
    "decimals of 38 places": ([Decimal("0." + "9" * 38), Decimal("-0." + "1" * 38)], pa.decimal128(38, 38)),
    "decimals of 256 bits": ([Decimal("9" * 30), Decimal(1)], pa.decimal256(76, 10)),
    "int64 extremes": ([-(2**63), 2**63 - 1, 0], pa.int64()),
    "uint64 above 2^63": ([2**64 - 1, 2**63, 0], pa.uint64()),
    "only null numbers": ([None], pa.float64()),
    "only null strings": ([None], pa.string()),
    "only null dictionaries": ([None], pa.dictionary(pa.int32(), pa.string())),
    "only nulls": ([None], pa.null()),
    "NUL in strings": (["a\0b", "\0", "", "a"], pa.string()),
    "a string of 10 MB": (["y"] * (ROWS - 1) + ["x" * (10 << 20)], pa.string()),
    "strings beyond the basic plane": (["\U0001f600", "é", "\uffff"], pa.string()),
    "string_view": (["a string that is longer than a view holds", "b"], pa.string_view()),
    "booleans with nulls": ([True, False, None], pa.bool_()),
    "lists with nulls": ([[1.0, None], None, [2.0, NAN]], pa.list_(pa.float64())),
    "lists of uint64": ([[2**64 - 1, 1], [5, 6]], pa.list_(pa.uint64())),
    "lists of decimals": ([[Decimal("9" * 31)], [Decimal(1)]], pa.list_(pa.decimal128(38, 7))),
}


@pytest.mark.parametrize("role", ["feature", "category", "text"])
@pytest.mark.parametrize("what", [*FINE, "not UTF-8"])
def test_values_that_can_be_learned_from(tmp_path: Path, what: str, role: str) -> None:
    """With a model of finite coefficients, that scores; and nothing is left out."""
    values, kind = FINE.get(what, ([], pa.string()))
    array = NOT_UTF8 if what == "not UTF-8" else pa.array((values * ROWS)[:ROWS], kind)
    if role != "feature" and not (pa.types.is_string(kind) or (role == "category" and pa.types.is_integer(kind))):
        return
    roles = {"category": {"categorical": ("f",)}, "text": {"text": ("f",)}, "feature": {}}[role]
    tables = [row_group(k).drop(["a", "v", "c"]).append_column("f", array) for k in range(3)]
    write(tmp_path / "a.parquet", tables)
    found = [fit(tmp_path, on_error=on_error, **roles) for on_error in ("raise", "skip")]
    assert found[0][0].model.sha256() == found[1][0].model.sha256()
    result, feed = found[1]
    assert not feed.source.left_out.row_groups and result.rows == 6 * ROWS and result.skipped_rows == 0
    assert np.isfinite(result.model.coef).all() and np.isfinite(result.model.intercept).all()
    assert np.isfinite(evaluate(ParquetSource(tmp_path), result.model)["rmse"])


#: Values of which one row in one row group is too much: the column, its type, a good value and the bad one, the error.
REFUSED: dict[str, tuple[str, pa.DataType, Any, Any, type[DataError]]] = {
    "infinity": ("f", pa.float64(), 1.0, INF, NonFiniteFeature),
    "minus infinity as float32": ("f", pa.float32(), 1.0, -INF, NonFiniteFeature),
    "infinity as float16": ("f", pa.float16(), np.float16(1), np.float16(INF), NonFiniteFeature),
    "too large for float32": ("f", pa.float64(), 1.0, 1e308, NonFiniteFeature),
    "a decimal too large for float32": ("f", pa.decimal256(76, 0), Decimal(1), Decimal("9" * 76), NonFiniteFeature),
    "infinity in a list": ("f", pa.list_(pa.float64()), [1.0, 2.0], [1.0, INF], NonFiniteFeature),
    "a longer list": ("f", pa.list_(pa.float64()), [1.0, 2.0], [1.0], ListLengthMismatch),
    "an empty list": ("f", pa.list_(pa.float64()), [1.0, 2.0], [], ListLengthMismatch),
    "a target of infinity": ("y", pa.float64(), 1.0, INF, NonFiniteTarget),
    "a target of NaN": ("y", pa.float32(), 1.0, NAN, NonFiniteTarget),
    "a target whose square overflows": ("y", pa.float64(), 1.0, -1e308, NonFiniteTarget),
    "a weight of infinity": ("w", pa.float64(), 1.0, INF, BadWeight),
    "a weight of NaN": ("w", pa.float64(), 1.0, NAN, BadWeight),
    "a null weight": ("w", pa.float64(), 1.0, None, BadWeight),
    "a negative weight": ("w", pa.int64(), 1, -(2**63), BadWeight),
    "uint64 above 2^63 among int64": ("f", pa.uint64(), 1, 2**64 - 1, SchemaMismatch),
}


@pytest.mark.parametrize("what", REFUSED)
def test_values_that_are_refused_where_they_are(tmp_path: Path, what: str) -> None:
    name, kind, good, bad, error = REFUSED[what]
    rows = list(range(ROWS))
    for shard in ("a", "b"):
        tables = []
        for number in range(3):
            values = [bad if (shard, number, row) == ("b", 1, 17) else good for row in rows]
            if what.startswith("uint64") and shard == "a":
                kind_here: pa.DataType = pa.int64()
            else:
                kind_here = kind
            table = row_group(number).drop(["v", "c"])
            table = table.drop([name]) if name in table.column_names else table
            tables.append(table.append_column(name, pa.array(values, kind_here)))
        write(tmp_path / f"{shard}.parquet", tables)
    place = (
        rf"shard b\.parquet, row group 1[:,].*\b{name}\b.*on_error='skip' \(--on-error skip\) leaves the row group out"
    )
    with pytest.raises(error, match=place):
        fit(tmp_path, on_error="raise")
    result, feed = fit(tmp_path)
    assert feed.source.left_out.row_groups == {(1, 1)}
    assert (result.rows, result.skipped_rows, result.skipped_row_groups) == (2 * 5 * ROWS, ROWS, 1)
    assert np.isfinite(result.model.coef).all()


@pytest.mark.parametrize("large", [3e38, 1e33])
def test_numbers_too_large_for_sums_name_their_column(tmp_path: Path, large: float) -> None:
    write(tmp_path / "a.parquet", [row_group(k, a=[large, -large] * (ROWS // 2)) for k in range(3)])
    for on_error in ("raise", "skip"):
        with pytest.raises(NonFiniteFeature, match=r"column 'a' .*too large"):
            fit(tmp_path, on_error=on_error)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_a_label_that_is_no_text_is_refused_where_it_is(tmp_path: Path, kind: pa.DataType) -> None:
    good, bad = pa.array(["no", "yes"] * (ROWS // 2)), NOT_UTF8.cast(pa.binary()).cast(pa.large_binary())
    labels = [good.cast(kind), bad.view(pa.large_string()) if kind == pa.large_string() else NOT_UTF8, good.cast(kind)]
    tables = [row_group(k).drop(["y", "w"]).append_column("y", y) for k, y in enumerate(labels)]
    write(tmp_path / "a.parquet", tables)
    with pytest.raises(TargetError, match=r"row group 1: target 'y' holds a label that is no text in UTF-8"):
        SGDClassifier().fit(str(tmp_path), "y")
    with pytest.warns(UserWarning, match="left out: "):
        found = SGDClassifier(on_error="skip").fit(str(tmp_path), "y")
    assert found.classes_.tolist() == ["no", "yes"] and found.result_.skipped_rows == ROWS


@pytest.mark.parametrize("weight", [1e308, 5e-324])
def test_weights_that_cannot_be_divided_by_their_mean(weight: float) -> None:
    table = row_group(0, w=[weight] * ROWS)
    for on_error in ("raise", "skip"):
        with pytest.raises(BadWeight, match=r"weight column 'w' is .* in the mean, too far from 1"):
            fit(TableSource(table), on_error=on_error)


def test_partial_fit_names_the_place_of_a_label_that_is_new() -> None:
    table = row_group(0).drop(["y", "w"]).append_column("y", pa.array(["no", "yes"] * (ROWS // 2)))
    model = SGDClassifier().partial_fit(table, "y", classes=["no", "yes"])
    other = table.drop(["y"]).append_column("y", pa.array(["no"] * (ROWS - 1) + ["perhaps"]))
    with pytest.raises(UnknownLabel, match=r"the table, rows 39 to 39: target 'y' holds 'perhaps'"):
        model.partial_fit(other, "y")


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (pa.date32(), 2**31),
        (pa.timestamp("ms"), 2**46),
        (pa.timestamp("us"), 2**63),
        (pa.timestamp("ns"), 2**63),
        (pa.timestamp("us", "Europe/Berlin"), 2**62),
    ],
    ids=str,
)
def test_times_far_out(tmp_path: Path, kind: pa.DataType, limit: int) -> None:
    values = pa.array(([limit - 1, -limit + 1, 0, None] * ROWS)[:ROWS], kind)
    write(tmp_path / "a.parquet", [row_group(k).drop(["a", "v", "c"]).append_column("f", values) for k in range(2)])
    for on_error in ("raise", "skip"):
        result, _ = fit(tmp_path, calendar=("f",), on_error=on_error)
        assert result.skipped_rows == 0 and np.isfinite(result.model.intercept).all()


def test_times_beyond_arrows_calendar_are_refused_where_they_are(tmp_path: Path) -> None:
    """From a year of some hundred thousands on it gives hours that no day has."""
    times = [pa.array([0] * (ROWS - 1) + [2**63 - 1 if k == 1 else 1], pa.timestamp("ms")) for k in range(3)]
    write(tmp_path / "a.parquet", [row_group(k).append_column("t", t) for k, t in enumerate(times)])
    with pytest.raises(UnreadableShard, match=r"shard a\.parquet, row group 1 .*--on-error skip"):
        fit(tmp_path, calendar=("t",), on_error="raise")
    assert fit(tmp_path, calendar=("t",))[1].source.left_out.row_groups == {(0, 1)}
