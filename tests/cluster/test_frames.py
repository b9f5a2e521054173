"""Dask DataFrames against Parquet files whose row groups are their partitions, and against the frame in memory."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster, wait

import streamgd as sg
from streamgd.cluster import graphs
from streamgd.cluster.frames import FrameSource
from streamgd.cluster.predictions import lazy_margins, lazy_predictions, lazy_probabilities
from streamgd.config import Config
from streamgd.data.evaluate import evaluate
from streamgd.data.rowgroups import Source
from streamgd.data.source import ParquetSource
from streamgd.errors import (
    AllNullTarget,
    EmptyData,
    MissingColumn,
    ReadFailed,
    SchemaMismatch,
    UnreadableShard,
)
from streamgd.job import prepare
from streamgd.state import State
from streamgd.trainer import train

pytestmark = pytest.mark.timeout(120)
CONFIG = Config(seed=0, epochs=2, calendar=("when",), text=("words",), n_jobs=2)
COLUMNS = ["a", "b", "carrier", "kind", "words", "when"]


def rows_of(rows: int, seed: int = 0) -> pd.DataFrame:
    """Numbers with and without nulls, strings, categoricals, texts, timestamps, and a target that depends on them."""
    rng = np.random.default_rng(seed)
    a, carrier = rng.normal(3, 2, rows), rng.choice(["AA", "BB", "CC"], rows)
    frame = pd.DataFrame(
        {
            "a": a,
            "b": pd.array(rng.integers(0, 50, rows), "Int64"),
            "carrier": carrier,
            "kind": pd.Categorical(rng.choice(["x", "y"], rows)),
            "words": rng.choice(["red green", "green", "blue Red"], rows),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 8000, rows), "h"),
            "late": (a + 2 * (carrier == "AA") + rng.normal(size=rows) > 4).astype(np.int64),
        }
    )
    for column, every in (("a", 7), ("b", 5), ("carrier", 9), ("kind", 8), ("words", 6), ("when", 11)):
        frame.loc[::every, column] = None
    return frame


def file_of(frame, path):
    """A Parquet file whose row groups are the partitions of a frame."""
    parts = [part.compute(scheduler="sync") for part in frame.partitions]
    schema = pa.Schema.from_pandas(max(parts, key=len), preserve_index=False)
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            if len(part):
                table = pa.Table.from_pandas(part, schema, preserve_index=False)
                writer.write_table(table, row_group_size=len(part))
    return ParquetSource(path)


def trained(source, config=CONFIG, target="late"):
    job, data = prepare(source, target, config)
    return train(job, data, State.start(job)).model


def table_of(source, columns=None, batch_rows=100):
    """All rows of a source."""
    columns = source.schema.names if columns is None else columns
    batches = []
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, columns, batch_rows)
        batches += reader.read(reader.rows)
        reader.finish()
        assert all(batch.num_rows <= batch_rows for batch in batches)
    return pa.Table.from_batches(batches)


def twice(part):
    return part.assign(a=part["a"] * 2)


def empty_second(part):
    return part.iloc[: 0 if part.index.min() in (300, 600) else len(part)]


def refuse_large(part):
    if (part["a"] > 8.5).any():
        raise RuntimeError("larger than thought")
    return part


FRAMES = {
    "from_pandas": lambda frame: frame,
    "map_partitions": lambda frame: frame.map_partitions(twice).map_partitions(lambda part: part.assign(b=part["b"])),
    "filtered": lambda frame: frame[frame["b"] > 10],
    "with an empty partition": lambda frame: frame.map_partitions(empty_second, meta=frame._meta),
    "objects": lambda frame: frame.assign(carrier=frame["carrier"].astype(object)),
}


@pytest.fixture
def frame():
    return dd.from_pandas(rows_of(3000), npartitions=5)


@pytest.fixture(scope="module")
def client():
    """One worker with one thread: whatever waits for another task waits for ever."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("name", FRAMES)
def test_training_equals_that_on_a_file_whose_row_groups_are_the_partitions(frame, tmp_path, name):
    frame = FRAMES[name](frame)
    source, file = FrameSource(frame), file_of(frame, tmp_path / "data.parquet")
    assert isinstance(source, Source)
    assert source.manifest.rows.tolist() == file.manifest.rows.tolist()
    assert trained(source).sha256() == trained(file).sha256()


@pytest.mark.parametrize("filesystem", ["fsspec", "arrow"])
def test_training_equals_that_on_the_files_that_a_frame_is_read_from(tmp_path, filesystem):
    config = replace(CONFIG, partitions=2)
    for number in range(6):
        rows_of(400, number).assign(number=number).to_parquet(tmp_path / f"part-{number}.parquet")
    frame = dd.read_parquet(str(tmp_path), filesystem=filesystem)
    order = frame["number"].compute().drop_duplicates()  # of "arrow" it is that of the directory
    wanted = trained(ParquetSource([tmp_path / f"part-{number}.parquet" for number in order]), config).sha256()
    source = FrameSource(frame)
    assert trained(source, config).sha256() == wanted
    assert trained(pickle.loads(pickle.dumps(source)), config).sha256() == wanted


def test_a_copy_that_was_sent_elsewhere_gives_the_same_rows(frame):
    frame = frame.map_partitions(lambda part: part.assign(late=1 - part["late"]))
    source = FrameSource(frame)
    copy = pickle.loads(pickle.dumps(source))
    expected = pa.Table.from_pandas(frame.compute(), preserve_index=False).replace_schema_metadata()
    assert table_of(source).equals(expected) and table_of(copy).equals(expected)
    assert copy.shards() == source.shards() and copy.identity() == source.identity()
    chosen = copy.subset(np.array([3, 1]))
    assert chosen.describe(0) == "partition 3 of the Dask DataFrame"
    assert chosen.shards() == [source.shards()[3], source.shards()[1]]
    assert table_of(chosen)["a"].equals(pa.chunked_array(table_of(source.subset(np.array([3, 1])))["a"].chunks))
    projected = pickle.loads(pickle.dumps(source.project(["a", "late"])))
    assert table_of(projected, ["late", "a"]).equals(expected.select(["late", "a"]))
    with pytest.raises(UnreadableShard, match="has no column b"):
        table_of(projected, ["b"])


def test_a_few_columns_and_none(frame):
    source = FrameSource(frame)
    assert table_of(source, ["kind", "a"], 7).column_names == ["kind", "a"]
    assert sum(batch.num_rows for batch in source.open(1, [], 50).read(600)) == 600
    with pytest.raises(MissingColumn, match="no column c in the data"):
        source.open(0, ["c"], 10)
    with pytest.raises(EmptyData):
        FrameSource(frame[frame["b"] > 1000])


def test_what_is_sent_of_many_partitions_is_small():
    rows = 2_000
    frame = dd.from_map(lambda number: pd.DataFrame({"x": np.full(rows, float(number))}), range(500), meta={"x": float})
    source = FrameSource(frame.map_partitions(lambda part: part + 1))
    copy = pickle.dumps(source)
    assert len(copy) < 500 * 500
    assert table_of(pickle.loads(copy).subset(np.array([499])))["x"].to_pylist() == [500.0] * rows
    big = FrameSource(dd.from_pandas(pd.DataFrame({"x": np.random.default_rng(0).random(400_000)}), npartitions=8))
    graphs = pickle.loads(pickle.dumps(big))._graphs
    assert len(graphs._groups) == 8  # rows of others need not be unpickled


def test_partitions_are_computed_when_they_are_read_and_not_kept():
    calls = []
    frame = dd.from_map(lambda number: calls.append(number) or rows_of(50, number), range(3), meta=rows_of(1))
    source = FrameSource(frame)
    assert sorted(calls) == [0, 1, 2]
    reader = source.open(1, COLUMNS, 20)
    assert len(calls) == 3
    next(reader.read(20))
    assert calls[3:] == [1]
    for _ in range(2):
        table_of(source.subset(np.array([2])))
    assert calls[4:] == [2, 2]


def test_hashes_are_those_of_the_values(frame, tmp_path):
    first, second = FrameSource(frame), FrameSource(dd.from_pandas(rows_of(3000), npartitions=5))
    assert first.shards() == second.shards() and first.identity() == second.identity()
    other = rows_of(3000)
    other.loc[2999, "a"] += 1
    changed = FrameSource(dd.from_pandas(other, npartitions=5))
    assert changed.shards()[:4] == first.shards()[:4] and changed.shards()[4] != first.shards()[4]
    assert changed.identity() != first.identity() and changed.fingerprint() == first.fingerprint()
    for number in range(2):
        rows_of(100, number).to_parquet(tmp_path / f"part-{number}.parquet")
    ours = FrameSource(dd.read_parquet(str(tmp_path))).shards()
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # where Dask's own names are others
        assert pool.apply(_shards_of, [str(tmp_path)]) == ours


def _shards_of(path):
    return FrameSource(dd.read_parquet(path)).shards()


def test_types_are_those_that_hold_all_partitions():
    pieces = [
        pd.DataFrame({"n": [1, 2], "o": pd.Series([None, None], dtype=object), "c": pd.Categorical(["a", "b"])}),
        pd.DataFrame({"n": [1.5], "o": pd.Series(["x"], dtype=object), "c": pd.Categorical(["z"])}),
    ]
    frame = dd.from_map(lambda number: pieces[number], [0, 1], meta=pieces[0].iloc[:0], enforce_metadata=False)
    source = FrameSource(frame)
    assert source.schema.field("n").type == pa.float64() and not pa.types.is_null(source.schema.field("o").type)
    assert table_of(source).to_pydict() == {"n": [1, 2, 1.5], "o": [None, None, "x"], "c": ["a", "b", "z"]}
    pieces[1]["n"] = "a string"
    with pytest.raises(SchemaMismatch, match=r"partition 1 of the Dask DataFrame, column n: found .*string.*astype"):
        FrameSource(frame)
    left = FrameSource(frame, on_error="skip")
    assert left.manifest.rows.tolist() == [2] and left.left_out.shards == ["partition 1 of the Dask DataFrame"]
    with pytest.raises(SchemaMismatch, match="more than one column called 1"):
        FrameSource(dd.from_pandas(pd.DataFrame({1: [1.0], "1": [2.0]}), npartitions=1))


def test_a_function_that_raises_is_an_error_that_names_the_partition(tmp_path):
    pieces = [rows_of(60, number) for number in range(4)]
    pieces[2].loc[3, "a"] = 9.0
    for piece in pieces[0], pieces[1], pieces[3]:
        piece["a"] = piece["a"].clip(upper=8)
    good = dd.from_map(lambda number: pieces[number], range(4), meta=pieces[0].iloc[:0])
    bad = good.map_partitions(refuse_large, meta=good._meta)
    with pytest.raises(UnreadableShard, match=r"partition 2 of the Dask DataFrame .*RuntimeError: larger than thought"):
        FrameSource(bad)
    source = FrameSource(bad, on_error="skip")
    assert source.manifest.n_row_groups == 3 and source.manifest.shard.tolist() == [0, 1, 3]
    rest = good.map_partitions(lambda part: part.iloc[: 0 if (part["a"] > 8.5).any() else len(part)], meta=good._meta)
    assert trained(source).sha256() == trained(file_of(rest, tmp_path / "data.parquet")).sha256()
    pieces[0].loc[5, "a"] = 9.0  # what was fine when it was counted
    with pytest.raises(UnreadableShard, match=r"partition 0 of the Dask DataFrame .*RuntimeError: larger than thought"):
        table_of(source)


def test_storage_that_fails_is_no_reason_to_leave_a_partition_out():
    def fails(part):
        raise OSError(5, "Input/output error")

    with pytest.raises(ReadFailed, match="partition 0"):
        FrameSource(dd.from_pandas(rows_of(9), npartitions=1).map_partitions(fails, meta=rows_of(1)), on_error="skip")


def test_a_frame_that_is_another_each_time_is_refused():
    counter = itertools.count(50)
    frame = dd.from_map(lambda _: rows_of(next(counter)), range(1), meta=rows_of(1))
    source = FrameSource(frame)
    with pytest.raises(UnreadableShard, match=r"partition 0 .* rows, and had 50 .* Persist it first"):
        table_of(source)


def test_partitions_that_share_tasks_are_remarked(frame):
    with pytest.warns(UserWarning, match="share tasks"):
        source = FrameSource(frame.shuffle("carrier", npartitions=12))
    rows = table_of(source, ["late", "a"]).to_pandas()
    assert len(rows) == 3000 and rows["late"].sum() == frame["late"].sum().compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrameSource(frame[frame["a"] > 0])


def test_persisted_partitions_are_found_by_a_task_on_the_only_thread(frame, client):
    here = trained(FrameSource(frame)).sha256()
    persisted = client.persist(frame)
    source = FrameSource(persisted, client=client)
    assert trained(source).sha256() == here
    assert len(pickle.dumps(source)) < 20_000
    sent = pickle.dumps(source)
    assert client.submit(_train, sent).result(timeout=60) == here
    assert client.submit(_train_in_a_thread, sent).result(timeout=60) == here
    chained = FrameSource(persisted[persisted["b"] > 10].map_partitions(twice), client=client)
    there = client.submit(_train, pickle.dumps(chained)).result(timeout=60)
    assert there == trained(FrameSource(frame[frame["b"] > 10].map_partitions(twice))).sha256()


def _train(sent):
    return trained(pickle.loads(sent)).sha256()


def _train_in_a_thread(sent):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_train, sent).result()


def test_frames_of_futures_and_shuffles_are_computed_by_a_task(frame, client):
    futures = client.map(rows_of, [40, 0, 60])
    source = FrameSource(dd.from_delayed(futures, meta=rows_of(1), verify_meta=False), client=client)
    assert source.manifest.rows.tolist() == [40, 60]
    assert client.submit(_train, pickle.dumps(source)).result(timeout=60) == trained(source).sha256()
    with client.as_current():
        shuffled = frame.shuffle("late")  # which Dask does from peer to peer
        with pytest.warns(UserWarning, match="share tasks"):
            source = FrameSource(shuffled, client=client)
    assert client.submit(_train, pickle.dumps(source)).result(timeout=60) == trained(source).sha256()
    added = dd.from_map(lambda rows, more: pd.concat([rows_of(rows), more]), [50, 70], more=futures[0], meta=rows_of(1))
    source = FrameSource(added, client=client)
    assert source.manifest.rows.tolist() == [90, 110]
    assert client.submit(_train, pickle.dumps(source)).result(timeout=60) == trained(source).sha256()


def test_what_is_persisted_no_more_is_told(frame, client, monkeypatch):
    monkeypatch.setattr(graphs, "FETCH_SECONDS", 0.5)
    persisted = client.persist(frame.map_partitions(twice))
    source = FrameSource(persisted, client=client)
    copy = pickle.loads(pickle.dumps(source))
    with client.as_current():
        assert copy.open(0, ["a"], 1000).read(600) is not None
        next(copy.open(0, ["a"], 1000).read(600))
        client.cancel(persisted)
        while set(persisted.__dask_graph__()) & set(client.who_has()):
            time.sleep(0.01)
        with pytest.raises(ReadFailed, match="persisted"):
            next(copy.open(0, ["a"], 1000).read(600))
    with pytest.raises(ReadFailed, match="persisted no more"):
        next(source.open(0, COLUMNS, 1000).read(600))


def test_a_persisted_partition_that_failed_is_named(client):
    frame = dd.from_map(lambda number: rows_of(20, number) if number else 1 / number, range(2), meta=rows_of(1))
    persisted = client.persist(frame)
    with client.as_current():
        wait(persisted)
    with pytest.raises(UnreadableShard, match=r"partition 0 of the Dask DataFrame .*ZeroDivisionError"):
        FrameSource(persisted, client=client)
    assert FrameSource(persisted, client=client, on_error="skip").manifest.rows.tolist() == [20]


def fitted(pdf, target="late", **parameters):
    estimator = sg.SGDRegressor if pdf[target].dtype.kind == "f" else sg.SGDClassifier
    given = {"epochs": 1, "text": "words", "calendar": "when"} | parameters
    return estimator(**given).fit(pa.Table.from_pandas(pdf, preserve_index=False), target)


LABELS = {
    "two": lambda pdf: pdf["late"],
    "strings": lambda pdf: pdf["late"].map({0: "in time", 1: "late"}),
    "three": lambda pdf: pdf["late"] + (pdf["a"] > 5),
    "booleans": lambda pdf: pdf["late"] == 1,
}


@pytest.mark.parametrize("name", LABELS)
def test_lazy_predictions_equal_eager_ones(name):
    pdf = rows_of(1000).assign(late=LABELS[name])
    clf, whole = fitted(pdf), pdf.set_index(np.arange(1000) * 2)
    for frame in (dd.from_pandas(whole, npartitions=3), dd.from_pandas(whole, npartitions=3).query("a > 3")):
        eager = frame.compute()
        predicted = lazy_predictions(frame, clf.model_)
        assert isinstance(predicted, dd.Series) and predicted.divisions == frame.divisions
        found = predicted.compute()
        np.testing.assert_array_equal(found.to_numpy(), clf.predict(eager))
        assert found.dtype == predicted.dtype and found.index.equals(eager.index)
        assert found.dtype == pd.Series(clf.classes_).dtype
        probabilities = lazy_probabilities(frame, clf.model_)
        assert isinstance(probabilities, dask.array.Array) and probabilities.shape[1] == len(clf.classes_)
        np.testing.assert_array_equal(probabilities.compute(), clf.predict_proba(eager))
        np.testing.assert_array_equal(probabilities[:, 1].compute(), clf.predict_proba(eager)[:, 1])
        margins = lazy_margins(frame, clf.model_)
        np.testing.assert_array_equal(np.asarray(margins.compute()), clf.decision_function(eager))
        together = frame.assign(score=probabilities[:, 1], predicted=predicted).compute()
        np.testing.assert_array_equal(together["score"], clf.predict_proba(eager)[:, 1])
        np.testing.assert_array_equal(together["predicted"], clf.predict(eager))


def test_values_of_a_regression_and_empty_partitions():
    pdf = rows_of(900).assign(late=lambda rows: rows["late"] * 2.5 + rows["a"].fillna(0))
    reg = fitted(pdf)
    frame = FRAMES["with an empty partition"](dd.from_pandas(pdf, npartitions=3))
    found = lazy_predictions(frame, reg.model_)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.compute(), reg.predict(frame.compute()))
    nothing = lazy_predictions(frame[frame["a"] > 1e9], reg.model_).compute()
    assert len(nothing) == 0 and nothing.dtype == np.float64


def test_columns_that_are_null_throughout_a_partition():
    pdf = rows_of(300).astype({"words": object, "carrier": object})
    clf = fitted(pdf)
    pdf.loc[:149, ["words", "carrier"]] = None
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_pandas(pdf, npartitions=2)
        np.testing.assert_array_equal(lazy_probabilities(frame, clf.model_).compute(), clf.predict_proba(pdf))


def test_nothing_is_computed_before_it_is_asked_for_and_the_model_is_sent_once():
    calls = []
    pdf = rows_of(400)
    clf = fitted(pdf, hash_bits=16)
    frame = dd.from_pandas(pdf, npartitions=4).map_partitions(lambda part: calls.append(1) or part, meta=pdf.iloc[:0])
    lazy = [make(frame, clf.model_) for make in (lazy_predictions, lazy_probabilities, lazy_margins)]
    assert not calls
    clf.predict(pdf)
    assert "table" in clf.model_.__dict__  # 256 kB, which need not be sent at all
    tasks = dict(lazy_predictions(frame, clf.model_).optimize().__dask_graph__()).values()
    models = [task for task in tasks if b"streamgd.model" in graphs.cloudpickle.dumps(task)]
    assert len(models) == 1 and len(graphs.cloudpickle.dumps(models[0])) < 100_000
    lazy[0].compute(scheduler="sync")
    assert len(calls) == 4
    with pytest.raises(MissingColumn, match="the model's column 'b'"):
        lazy_predictions(frame.drop(columns="b"), clf.model_)


def test_predictions_on_a_cluster(frame, client):
    clf = fitted(rows_of(3000))
    with client.as_current():
        found = lazy_probabilities(frame, clf.model_).compute()
    np.testing.assert_array_equal(found, clf.predict_proba(rows_of(3000)))


def test_metrics_equal_those_of_a_file(frame, tmp_path):
    model = fitted(rows_of(3000)).model_
    source = FrameSource(frame)
    assert evaluate(source, model) == evaluate(file_of(frame, tmp_path / "data.parquet"), model)
    assert evaluate(source, model, n_jobs=2) == evaluate(source, model)
    with pytest.raises(AllNullTarget):
        evaluate(FrameSource(frame.assign(late=frame["a"] * np.nan)), model)
