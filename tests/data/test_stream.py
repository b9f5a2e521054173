"""The shuffled stream: each row once an epoch, resumable at any mini-batch, the same whatever the threads."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamgd as sg
from streamgd.data import encode, shuffle
from streamgd.data.batches import ParquetStream
from streamgd.data.cache import Shape, closing_cache, temporary_cache
from streamgd.data.encode import Encoder
from streamgd.data.shards import ShardFiles
from streamgd.data.shuffle import Plan
from streamgd.data.source import ParquetSource
from streamgd.data.stream import Position, Times, WindowStream
from streamgd.data.table import TableSource
from streamgd.data.target import Target
from streamgd.errors import (
    ConfigError,
    ListLengthMismatch,
    MissingColumn,
    NonFiniteFeature,
    NonFiniteTarget,
    ReadFailed,
    ShardChanged,
    TargetError,
    UnreadableShard,
)
from streamgd.features import Column, FeatureSpec
from tests import strategies as sgst

GOLDEN_CUT = [
    [[14, 6, 2, 9], [3, 11, 13, 8], [0, 5, 4, 1], [7, 10, 12]],
    [[7, 2, 12, 5], [9, 1, 8, 10], [14, 4, 13, 3], [11, 0, 6]],
]
GOLDEN_WHOLE = [
    [[4, 2, 0, 3], [1, 8, 9, 7], [5, 6, 11, 10], [12, 13, 14]],
    [[2, 0, 4, 1], [3, 5, 7, 8], [9, 6, 14, 11], [13, 10, 12]],
]


class CountingSource(ParquetSource):
    """Notes which row groups are opened, by Arrow or not."""

    def __init__(self, path):
        super().__init__(path, n_jobs=2)
        self.opened: Counter[int] = Counter()

    def open(self, row_group, columns, batch_rows):
        self.opened[row_group] += 1
        return super().open(row_group, columns, batch_rows)

    def raw(self, row_group, columns):
        found = super().raw(row_group, columns)
        self.opened[row_group] += found is not None
        return found


@contextmanager
def never_cut():
    """Row groups are not cut into segments, whatever their sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "EXTRA_VALUES", -1)
        yield


def table_of(rows, *, missing=0.0, unlabelled=0.0, seed=0):
    """Rows that are known by their number, with a column of many types beside it and a target."""
    rng = np.random.default_rng(seed)
    row = np.arange(rows)
    return pa.table(
        {
            "row": pa.array(row),
            "half": pa.array(row / 2, pa.float32(), mask=rng.uniform(size=rows) < missing),
            "odd": pa.array(row % 2 == 1, mask=rng.uniform(size=rows) < missing),
            "pair": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(row, 2) + np.tile([0.25, 0.5], rows)), 2),
            "y": pa.array(row * 3.0, mask=rng.uniform(size=rows) < unlabelled),
        }
    )


def numbers(batches):
    """Row numbers of mini-batches."""
    return [batch.X[:, 0].astype(int).tolist() for batch in batches]


def flat(lists):
    return list(chain.from_iterable(lists))


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("streamgd")]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_epoch_is_a_permutation(data):
    rows = data.draw(st.integers(1, 200))
    table = table_of(
        rows, missing=data.draw(st.sampled_from([0, 0.4])), unlabelled=data.draw(st.sampled_from([0, 0.5]))
    )
    batch_size = data.draw(st.integers(1, 40) | st.just(1000))
    window_rows = data.draw(st.none() | st.integers(1, 2 * rows) | st.integers(max(1, rows // 8), rows))
    shuffled = data.draw(st.booleans())
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            patch.setattr(shuffle, "EXTRA_VALUES", -1)
        sgst.write_shards(directory, table, data.draw(sgst.layouts(rows)))
        stream = ParquetStream(
            directory,
            batch_size=batch_size,
            target="y",
            seed=data.draw(st.integers(0, 99)),
            shuffle=shuffled,
            window_rows=window_rows,
            n_jobs=data.draw(st.integers(1, 4)),
        )
        labelled = np.flatnonzero(table["y"].is_valid())
        assert stream.feature_names == ["row", "half", "odd", "pair[0]", "pair[1]"]
        expected = np.array([[row["row"], row["half"], row["odd"], *row["pair"]] for row in table.to_pylist()], float)
        for epoch in range(2):
            assert stream.state_dict() == {"epoch": epoch, "window": 0, "rows": 0}
            batches = list(stream)
            sizes = [len(batch.X) for batch in batches]
            assert sizes == [batch_size] * (len(labelled) // batch_size) + [len(labelled) % batch_size] * bool(
                len(labelled) % batch_size
            )
            X, y = np.empty((0, 5)), np.empty(0)
            for batch in batches:
                assert batch.X.dtype == batch.y.dtype == np.float32 and batch.X.flags.c_contiguous
                X, y = np.concatenate([X, batch.X]), np.concatenate([y, batch.y])
            order = X[:, 0].astype(int)
            if shuffled:
                np.testing.assert_array_equal(np.sort(order), labelled)
            else:
                np.testing.assert_array_equal(order, labelled)
            np.testing.assert_array_equal(X, expected[order])
            np.testing.assert_array_equal(y, order * 3.0)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_it_continues_from_any_mini_batch(data):
    """From three integers, in a new object, with other threads: the tail is that of the uninterrupted run."""
    rows = data.draw(st.integers(1, 60))
    table = table_of(rows, missing=0.3, unlabelled=data.draw(st.sampled_from([0, 0.6])))
    window_rows = data.draw(st.integers(max(1, rows // 8), rows + 1))
    batch_size = data.draw(st.integers(max(1, rows // 9), rows + 3))
    seed, shuffled = data.draw(st.integers(0, 99)), data.draw(st.booleans())
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            patch.setattr(shuffle, "EXTRA_VALUES", -1)
        sgst.write_shards(directory, table, data.draw(sgst.layouts(rows)))

        def new(jobs):
            return ParquetStream(
                directory,
                batch_size=batch_size,
                target="y",
                seed=seed,
                shuffle=shuffled,
                window_rows=window_rows,
                n_jobs=jobs,
            )

        def run(stream):
            """What is left of three epochs: states and mini-batches, as bytes."""
            found = []
            while stream.state_dict()["epoch"] < 3:
                for batch in stream:
                    found.append((json.dumps(stream.state_dict()), batch.X.tobytes(), batch.y.tobytes()))
            return found

        whole = run(new(2))
        states = [json.dumps(new(1).state_dict()), *(state for state, _, _ in whole)]
        assert len(set(states)) == len(states)
        for place, state in enumerate(states):
            resumed = new(1 + place % 4)
            resumed.load_state_dict(json.loads(state))
            assert run(resumed) == whole[place:]


def test_a_stream_that_is_left_goes_on_where_it_was_left():
    stream = ParquetStream(table_of(50), batch_size=7, window_rows=20, seed=1)
    whole = numbers(ParquetStream(table_of(50), batch_size=7, window_rows=20, seed=1))
    assert numbers(islice(stream, 3)) + numbers(stream) == whole


def test_a_golden_order():
    """Frozen, because a model is reproduced from its seed: a change here changes the weights of every job.

    If it is meant, say so in the CHANGELOG; checkpoints of versions before cannot be resumed then. Two row groups
    are larger than a window, one is smaller than a mini-batch; the second epoch has an order of its own.
    """
    table = table_of(15)
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, [[6, 1], [8]])
        stream = ParquetStream(directory, batch_size=4, window_rows=5, seed=42)
        assert [numbers(stream), numbers(stream)] == GOLDEN_CUT
        with never_cut():
            stream = ParquetStream(directory, batch_size=4, window_rows=5, seed=42)
        assert [numbers(stream), numbers(stream)] == GOLDEN_WHOLE


def test_orders_differ_between_epochs_and_seeds():
    """And epoch 1 of seed 0 is not epoch 0 of seed 1."""
    for window_rows in (100, 1000):
        orders = set()
        for seed in range(3):
            stream = ParquetStream(table_of(400), batch_size=400, seed=seed, window_rows=window_rows)
            orders.update(str(numbers(stream)) for _ in range(3))
        assert len(orders) == 9


@pytest.mark.parametrize("cut", [True, False])
def test_threads_change_nothing(cut):
    """Many row groups of all sizes, several of them larger than a window, the same shards read by all threads."""
    table = table_of(6000, missing=0.1, unlabelled=0.1)
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        if not cut:
            patch.setattr(shuffle, "EXTRA_VALUES", -1)
        layout = [[1500, 10, 1, 700, 800], rng.multinomial(1000, [0.05] * 20).tolist(), [1900], [89]]
        sgst.write_shards(directory, table, layout)
        runs = []
        for jobs in (1, 2, 4, 1):
            stream = ParquetStream(directory, batch_size=250, target="y", window_rows=500, seed=3, n_jobs=jobs)
            assert stream.plan.scattered == cut
            runs.append([(batch.X.tobytes(), batch.y.tobytes()) for _ in range(2) for batch in stream])
        assert runs[0] == runs[1] == runs[2] == runs[3]


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_a_row_group_larger_than_a_window_is_continued_not_read_again(jobs):
    with TemporaryDirectory() as directory, never_cut():
        sgst.write_shards(directory, table_of(1000), [[400, 20], [30, 550]])
        source = CountingSource(directory)
        stream = ParquetStream(source, batch_size=64, window_rows=90, n_jobs=jobs)
        assert stream.plan.n_windows == 12
        for epoch in range(1, 4):
            assert len(set(flat(numbers(stream)))) == 1000
            assert source.opened == {group: epoch for group in range(4)}


def test_a_window_in_which_row_groups_end_and_begin_holds_one_reader():
    """Resuming in the middle of a row group opens it once more and passes over what was read."""
    with TemporaryDirectory() as directory, never_cut():
        sgst.write_shards(directory, table_of(100), [[100]])
        source = CountingSource(directory)
        stream = ParquetStream(source, batch_size=10, window_rows=25)
        whole = numbers(stream)
        stream.load_state_dict({"epoch": 0, "window": 2, "rows": 10})
        assert numbers(stream) == whole[6:]
        assert source.opened == {0: 2}


def test_data_that_fit_one_window_are_read_once():
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table_of(100), [[50, 20], [30]])
        source = CountingSource(directory)
        encoder = Encoder(FeatureSpec.raw([Column("row", "number")]))
        windows = WindowStream(source, encoder, Plan(source.manifest.rows, 100), stop=Position(4))
        orders = [window.rows[window.order, 0].tolist() for window in windows]
        assert len(orders) == 4 and len({str(order) for order in orders}) == 4
        assert all(sorted(order) == list(range(100)) for order in orders)
        assert source.opened == {0: 1, 1: 1, 2: 1}


def test_the_upcoming_window_is_the_one_that_comes():
    """As soon as it is full, without the rows that have no target, and while the one before is out."""
    source = TableSource(table_of(200, unlabelled=0.3), 9)
    encoder = Encoder(FeatureSpec.raw([Column("row", "number")]), Target("y"))
    stream = WindowStream(source, encoder, Plan(source.manifest.rows, 40), n_jobs=2, stop=Position(3))
    assert stream.upcoming() is None
    expected = seen = None
    for window in stream:
        if expected is not None:
            assert window is expected
            assert window.rows[window.order, 0].tolist() == seen
        rows, deadline = window.rows[window.order, 0].tolist(), time.monotonic() + 60
        while (expected := stream.upcoming()) is None and (window.epoch, window.index) != (2, 4):
            assert time.monotonic() < deadline
        if expected is not None:
            seen = expected.rows[expected.order, 0].tolist()
            assert sorted(set(seen) & set(rows)) == [] or expected.epoch > window.epoch
        assert window.rows[window.order, 0].tolist() == rows
    assert expected is None
    alone = WindowStream(source, encoder, Plan(source.manifest.rows, 40), n_jobs=0, stop=Position(1))
    assert [alone.upcoming() for _ in alone] == [None] * 5  # filled only when they are asked for


def test_what_is_wrong_with_the_upcoming_window_is_told_when_it_comes(monkeypatch):
    source = TableSource(table_of(100), 9)
    encoder = Encoder(FeatureSpec.raw([Column("row", "number")]), Target("y"))
    stream = WindowStream(source, encoder, Plan(source.manifest.rows, 40), n_jobs=2)
    fetch = WindowStream._fetch

    def failing(self, epoch, run, rows, place, reader):
        if place == 0 and run.row_group == first_of_second:
            raise ReadFailed("it fails")
        return fetch(self, epoch, run, rows, place, reader)

    first_of_second = stream.plan.window(0, 1)[0].row_group
    monkeypatch.setattr(WindowStream, "_fetch", failing)
    windows, deadline = iter(stream), time.monotonic() + 60
    next(windows)
    while not all(task.done for task in stream._coming[0].filling.tasks):
        assert time.monotonic() < deadline
    assert stream.upcoming() is None
    with pytest.raises(ReadFailed, match="it fails"):
        next(windows)


@pytest.mark.parametrize("window_rows", [30, 1000])
def test_windows_tell_their_place_and_what_was_left_out(window_rows):
    table = table_of(100, unlabelled=0.3)
    source = TableSource(table, 9)
    encoder = Encoder(FeatureSpec.raw([Column("row", "number")]), Target("y"))
    plan = Plan(source.manifest.rows, window_rows)
    times = Times()
    stream = WindowStream(
        source, encoder, plan, n_jobs=2, start=Position(1, plan.n_windows - 1), stop=Position(3), times=times
    )
    windows = [(w.epoch, w.index, w.last, len(w.order) + w.skipped, w.skipped) for w in stream]
    n = plan.n_windows
    assert [(epoch, index) for epoch, index, *_ in windows] == [(1, n - 1), *((2, index) for index in range(n))]
    assert all(last == (index == n - 1) for _, index, last, _, _ in windows)
    assert sum(planned for *_, planned, _ in windows[1:]) == 100
    assert sum(skipped for *_, skipped in windows[1:]) == table["y"].null_count
    assert times.bytes > 0 and times.reading > 0 and times.encoding > 0 and times.computing == 0


def spoil(path, row_group, place):
    """Overwrite a few bytes of the compressed pages of a row group, at a share of their length."""
    chunk = pq.ParquetFile(path).metadata.row_group(row_group).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset + int(place * (chunk.total_compressed_size - 4))
    data[start : start + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(data)


@settings(deadline=None, max_examples=8)
@given(st.data())
def test_what_is_left_out_follows_from_the_files_alone(data):
    """Bad rows take with them what a window reads of their row group in one go, and nothing else.

    Whoever reads, in whatever thread, from the first window or from any other on, with a cache or without.
    """
    rows = data.draw(st.integers(20, 150))
    bad = data.draw(st.sets(st.integers(0, rows - 1), max_size=3))
    table = table_of(rows, unlabelled=data.draw(st.sampled_from([0, 0.5])))
    half = table["half"].to_pylist()
    table = table.set_column(1, "half", pa.array([np.inf if k in bad else x for k, x in enumerate(half)], pa.float32()))
    layout = data.draw(sgst.layouts(rows))
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        scattered = data.draw(st.booleans())
        if not scattered:
            patch.setattr(shuffle, "EXTRA_VALUES", -1)
        size = data.draw(st.sampled_from([3, 16, 1000]))
        patch.setattr(encode, "BATCH_ROWS", (size, size))
        for number, (shard, sizes) in enumerate(
            zip(sgst.cut(table, [sum(sizes) for sizes in layout]), layout, strict=True)
        ):
            path, options = Path(directory) / f"{number}.parquet", {"compression": "zstd", "use_dictionary": False}
            with pq.ParquetWriter(path, table.schema, **options, data_page_size=40, write_batch_size=4) as writer:
                for piece in sgst.cut(shard, sizes):
                    writer.write_table(piece, row_group_size=max(1, piece.num_rows))
        source = ParquetSource(directory, n_jobs=2).for_job("skip")
        spoiled = data.draw(st.sets(st.integers(0, source.manifest.n_row_groups - 1), max_size=2))
        for row_group in spoiled:
            path = Path(directory) / source.names[source.manifest.shard[row_group]]
            spoil(path, int(source.manifest.index[row_group]), data.draw(st.floats(0, 1)))
        encoder = Encoder(
            FeatureSpec.raw([Column("row", "number"), Column("half", "number"), Column("odd", "number")]), Target("y")
        )
        plan = Plan(source.manifest.rows, data.draw(st.integers(5, rows + 5)), seed=data.draw(st.integers(0, 9)))
        shape = Shape(encoder.layout.row_bytes, encoder.layout.text_cell, 0)

        def run(jobs, start=Position(), cached=False):  # noqa: B008
            job = source.for_job("skip")
            found = temporary_cache(source.manifest.rows, shape, 0) if cached else None
            with closing_cache(found) as cache:
                stream = WindowStream(job, encoder, plan, n_jobs=jobs, start=start, stop=Position(3), cache=cache)
                windows = [
                    (w.epoch, w.index, w.last, w.rows[w.order].tobytes(), len(w.order), w.skipped, w.lost)
                    for w in stream
                ]
            assert threads() == []
            return windows, job.left_out

        whole, left_out = run(1)
        assert all(n + skipped + lost == sum(r.rows for r in plan.window(epoch, index))
                   for epoch, index, _, _, n, skipped, lost in whole)  # fmt: skip
        for jobs, cached in ((0, False), (3, False), (0, True), (3, True)):
            again, noted = run(jobs, cached=cached)
            assert again == whole
            assert noted.row_groups == left_out.row_groups
        for place, (epoch, index, *_) in enumerate(whole):
            assert run(place % 3, Position(epoch, index), cached=place % 2 == 1)[0] == whole[place:]
        assert (not left_out.row_groups) == (sum(lost for *_, lost in whole) == 0)
        assert len(left_out.messages) == len(left_out.row_groups) <= len(bad) + len(spoiled)
        assert left_out.whole == {} and left_out.rows == 0
        if not spoiled:
            _only_runs_of_bad_rows_are_lost(source, plan, whole, np.array(sorted(bad), int))


def _only_runs_of_bad_rows_are_lost(source, plan, windows, bad):
    first = np.cumsum(source.manifest.rows) - source.manifest.rows
    for epoch, index, _, _, _, _, lost in windows:
        place = 0 if plan.n_windows == 1 else epoch
        assert lost == sum(
            run.rows
            for run in plan.window(place, index)
            if any(((bad >= start) & (bad < stop)).any() for start, stop in first[run.row_group] + np.array(run.spans))
        )


@pytest.mark.parametrize("damage", ["storage", "gone", "changed"])
def test_what_is_not_wrong_with_the_data_is_never_left_out(tmp_path, damage, monkeypatch):
    sgst.write_shards(tmp_path, table_of(60), [[20], [20], [20]])
    source = ParquetSource(tmp_path).for_job("skip")
    path = tmp_path / source.names[1]
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        pq.write_table(table_of(20), path)
    else:

        def fail(self, *args, **named):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(ShardFiles, "_open", fail)
    with pytest.raises(ReadFailed if damage == "storage" else ShardChanged):
        list(ParquetStream(source, window_rows=20))
    assert source.left_out.row_groups == set()


@pytest.mark.parametrize("batch_size", [4, 10])
@pytest.mark.parametrize("known", [range(0, 12), range(0, 10), range(20, 30), range(0, 1), range(0)])
def test_windows_without_targets_lose_no_row(batch_size, known):
    """Labels that are not there yet come last, and then the last window of an epoch has no row."""
    y = pa.array(np.arange(30.0), mask=~np.isin(np.arange(30), known))
    table = pa.table({"row": np.arange(30), "y": y})
    source = TableSource(table, 5)
    for shuffled in (False, True):
        stream = ParquetStream(source, batch_size=batch_size, target="y", window_rows=10, shuffle=shuffled)
        for epoch in (1, 2):
            batches = numbers(stream)
            assert sorted(flat(batches)) == list(known)
            assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
            assert stream.state_dict() == {"epoch": epoch, "window": 0, "rows": 0}


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("window_rows", [60, 10_000])
def test_an_error_in_a_thread_reaches_the_caller_and_leaves_no_thread(jobs, window_rows):
    table = table_of(600)
    bad = table["half"].to_numpy().copy()
    bad[431] = np.inf
    table = table.set_column(1, "half", pa.array(bad))
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, [[100, 100], [150, 50, 200]])
        stream = ParquetStream(directory, batch_size=16, window_rows=window_rows, n_jobs=jobs)
        with pytest.raises(NonFiniteFeature, match=r"shard part-001\.parquet, row group 2: column 'half'"):
            list(stream)
        assert threads() == []
        fine = ParquetStream(directory, batch_size=16, window_rows=window_rows, n_jobs=jobs, columns=["row", "pair"])
        assert len(flat(numbers(fine))) == 600


def test_a_shard_that_is_cut_short_is_an_error_that_names_it(tmp_path):
    pq.write_table(table_of(5000), tmp_path / "a.parquet", row_group_size=1000, compression="none")
    pq.write_table(table_of(5000), tmp_path / "b.parquet", row_group_size=1000, compression="none")
    stream = ParquetStream(tmp_path, window_rows=500, columns=["row"])
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:100] + bytes(len(data) // 2) + data[100 + len(data) // 2 :])
    with pytest.raises(UnreadableShard, match=r"b\.parquet"):
        list(stream)
    assert threads() == []


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("window_rows", [50, 10_000])
def test_a_consumer_that_stops_early_leaves_no_thread(jobs, window_rows):
    table = table_of(1000)
    iterator = iter(ParquetStream(table, batch_size=10, window_rows=window_rows, n_jobs=jobs))
    next(iterator)
    assert threads() != []
    iterator.close()
    assert threads() == []
    with pytest.raises(ZeroDivisionError):
        for batch in ParquetStream(table, batch_size=10, window_rows=window_rows, n_jobs=jobs):
            len(batch.X) / 0
    assert threads() == []
    for _ in ParquetStream(table, batch_size=10, window_rows=window_rows, n_jobs=jobs):
        break
    assert threads() == []
    list(ParquetStream(table, batch_size=10, window_rows=window_rows, n_jobs=jobs))
    assert threads() == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell threads apart")
def test_threads_that_read_give_way_to_the_one_that_takes():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    iterator = iter(ParquetStream(table_of(1000), batch_size=10, window_rows=50, n_jobs=2))
    next(iterator)
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("streamgd-read")]
    nice = {os.getpriority(os.PRIO_PROCESS, reader.native_id) for reader in readers}
    iterator.close()
    assert nice == {min(19, before + 10)} and os.getpriority(os.PRIO_PROCESS, 0) == before


def test_null_and_nan_are_nan_in_a_mini_batch():
    table = pa.table({"a": [1.0, None, math.nan], "b": pa.array([None, 2, 3], pa.int8()), "c": pa.nulls(3)})
    (batch,) = ParquetStream(table, shuffle=False)
    np.testing.assert_array_equal(batch.X, np.array([[1, np.nan, np.nan], [np.nan, 2, np.nan], [np.nan, 3, np.nan]]))
    assert batch.y is None


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.int16(), 40), pa.large_list(pa.float64())], ids=str
)
def test_columns_of_lists(kind):
    X = np.arange(200 * 40).reshape(200, 40) % 1000
    lists = [None if i % 17 == 0 else x.tolist() for i, x in enumerate(X)]
    table = pa.table({"row": np.arange(200), "v": pa.array(lists, kind), "after": -np.arange(200)})
    with TemporaryDirectory() as directory:
        sgst.write_shards(directory, table, [[90, 10], [100]])
        batches = list(ParquetStream(directory, batch_size=32, window_rows=60, n_jobs=2))
    found = np.concatenate([batch.X for batch in batches])
    found = found[np.argsort(found[:, 0])]
    expected = np.where(np.arange(200)[:, np.newaxis] % 17 == 0, np.nan, X)
    np.testing.assert_array_equal(found, np.column_stack([np.arange(200), expected, -np.arange(200)]))


def test_lists_count_as_many_values_when_row_groups_are_cut():
    """Reading an embedding out of order costs as much as so many columns."""
    lists = pa.array([[0.0] * 500] * 3000, pa.list_(pa.float32(), 500))
    stream = ParquetStream(TableSource(pa.table({"v": lists}), 1000), window_rows=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "EXTRA_VALUES", 10_000_000)
        again = ParquetStream(TableSource(pa.table({"v": lists}), 1000), window_rows=300)
    assert stream.plan.scattered and again.plan.scattered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "EXTRA_VALUES", 1_000_000)
        assert not ParquetStream(TableSource(pa.table({"v": lists}), 1000), window_rows=300).plan.scattered


def test_shards_tables_lists_of_paths_and_datasets_are_the_same_rows(tmp_path):
    table = table_of(90)
    sgst.write_shards(tmp_path, table, [[20, 20], [30], [15, 5]])
    paths = sorted(str(path) for path in tmp_path.iterdir())
    expected = None
    for data in (
        tmp_path,
        str(tmp_path),
        f"{tmp_path}/*.parquet",
        paths,
        [Path(path) for path in paths],
        pads.dataset(tmp_path),
        ParquetSource(tmp_path),
        table,
        table.combine_chunks().to_batches()[0],
    ):
        (batch,) = ParquetStream(data, target="y", shuffle=False)
        np.testing.assert_array_equal(batch.X[:, 0], np.arange(90))
        expected = batch if expected is None else expected
        np.testing.assert_array_equal(batch.X, expected.X)
        np.testing.assert_array_equal(batch.y, expected.y)
        # The order follows from the sizes of the row groups, which a table has in its own way.
        (shuffled,) = ParquetStream(data, target="y", seed=5)
        assert sorted(shuffled.y.tolist()) == expected.y.tolist() != shuffled.y.tolist()


def test_columns_are_chosen_in_the_order_given():
    stream = ParquetStream(table_of(10), columns=["pair", "row"], target="y", shuffle=False)
    assert stream.feature_names == ["pair[0]", "pair[1]", "row"]
    (batch,) = stream
    np.testing.assert_array_equal(batch.X, np.stack([np.arange(10) + 0.25, np.arange(10) + 0.5, np.arange(10)], axis=1))
    assert ParquetStream(table_of(10)).feature_names == ["row", "half", "odd", "pair[0]", "pair[1]", "y"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": None}, "batch_size is None"),
        ({"window_rows": 0}, "window_rows is 0"),
        ({"window_rows": -5}, "window_rows is -5"),
        ({"n_jobs": 0}, "n_jobs is 0"),
        ({"n_jobs": -1}, "n_jobs is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, f"seed is {2**32}"),
        ({"seed": True}, "seed is True"),
    ],
    ids=str,
)
def test_parameters_that_are_wrong(parameters, named):
    with pytest.raises(ConfigError, match=named):
        ParquetStream(table_of(5), **parameters)


def test_integers_of_numpy_are_integers():
    stream = ParquetStream(table_of(50), batch_size=np.int64(7), seed=np.uint32(3), window_rows=np.int32(20))
    assert numbers(stream) == numbers(ParquetStream(table_of(50), batch_size=7, seed=3, window_rows=20))


@pytest.mark.parametrize(
    "state",
    [
        {"epoch": 0, "window": 0, "rows": -1},
        {"epoch": 0, "window": 3, "rows": 0},
        {"epoch": 0, "window": 0, "rows": 21},
        {"epoch": 0.5, "window": 0, "rows": 0},
        {"epoch": "0", "window": 0, "rows": 0},
        {"epoch": 0},
        {"epoch": 0, "window": 0, "rows": 0, "seed": 1},
        {},
        [0, 0, 0],
        None,
    ],
    ids=str,
)
def test_states_that_are_none(state):
    stream = ParquetStream(table_of(50), window_rows=20)
    with pytest.raises(ConfigError, match=r"no (place|state)"):
        stream.load_state_dict(state)
    assert stream.state_dict() == {"epoch": 0, "window": 0, "rows": 0}


def test_columns_that_are_not_there():
    with pytest.raises(MissingColumn, match="'q'"):
        ParquetStream(table_of(5), target="q")
    with pytest.raises(MissingColumn, match="'q'"):
        ParquetStream(table_of(5), columns=["row", "q"])


@pytest.mark.parametrize(
    ("y", "error"),
    [
        (pa.array([1.0, math.nan]), NonFiniteTarget),
        (pa.array([1.0, math.inf]), NonFiniteTarget),
        (pa.array([1.0, 1e300]), NonFiniteTarget),
        (pa.array(["a", "b"]), TargetError),
        (pa.array([[1.0], [2.0]]), TargetError),
    ],
    ids=str,
)
def test_targets_that_are_none(y, error):
    with pytest.raises(error, match="'y'"):
        list(ParquetStream(pa.table({"a": [1.0, 2.0], "y": y}), target="y"))


def test_lists_of_other_lengths():
    with pytest.raises(ListLengthMismatch, match="'v'"):
        list(ParquetStream(pa.table({"v": [[1.0, 2.0], [1.0]]})))


def test_it_is_public():
    assert sg.ParquetStream is ParquetStream
