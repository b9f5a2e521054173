"""Storage that fails now and then is tried again; what is bad, gone or changed is not."""

from __future__ import annotations

import gc
import io
import threading
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.config import Config
from streamgd.data import remote
from streamgd.data import source as sources
from streamgd.data.batches import ParquetStream
from streamgd.data.evaluate import mean_loss
from streamgd.data.remote import GAP, REQUEST, WAITS, RemoteFile, coalesced, patiently
from streamgd.data.source import ParquetSource
from streamgd.errors import DataError, ReadFailed, ShardChanged, UnreadableShard
from streamgd.job import prepare
from streamgd.state import State
from streamgd.trainer import train


class Faulty(pafs.FileSystemHandler):
    """The local filesystem behind a line that fails when it is told to; ``few`` times, so that no read fails thrice."""

    few = False

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = None
    open_input_stream = open_output_stream = open_append_stream = get_file_info_selector = None

    def __init__(self) -> None:
        self.local = pafs.LocalFileSystem()
        self.faults: list[Any] = []
        self.asked: list[tuple[int, int]] = []  # where each request begins and ends
        self.spared, self.lock = threading.local(), threading.Lock()

    def get_type_name(self) -> str:
        return "faulty"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.local.get_file_info(paths)

    def open_input_file(self, path: str) -> Any:
        self.fault()
        return pa.PythonFile(FaultyFile(self, path), mode="r")

    def fault(self) -> Any:
        """Fail if that is what comes next; if few, not a thread that has just failed."""
        self.spared.calls = getattr(self.spared, "calls", 0) - 1
        if self.few and self.spared.calls > 0:
            return None
        with self.lock:
            fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            self.spared.calls = 4
        if isinstance(fault, Exception):
            raise fault
        return fault


class FaultyFile(io.RawIOBase):
    def __init__(self, handler: Faulty, path: str) -> None:
        self.handler, self.file = handler, open(path, "rb")  # noqa: SIM115

    def read(self, n: int = -1) -> bytes:
        self.handler.asked.append((self.file.tell(), self.file.tell() + n))
        fault = self.handler.fault()
        found = self.file.read(n)
        return found[: len(found) // 2] if fault == "short" else found

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


class LibraryError(Exception):
    """As libraries have their own."""


FAULTS = (OSError("connection reset"), TimeoutError("no answer"), LibraryError("503 slow down"), "short")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(remote, "sleep", slept.append)
    return slept


def table(rows: int = 300) -> pa.Table:
    x = np.random.default_rng(0).normal(size=rows)
    return pa.table({"x": x, "s": ["a", "bb", "ccc"] * (rows // 3), "y": (x > 0).astype(np.int8)})


def faulty(directory: Path, shards: int = 2) -> tuple[Faulty, Any]:
    """A filesystem with some shards on it, and what a user names."""
    paths = []
    for number in range(shards):
        paths.append(str(directory / f"{number}.parquet"))
        pq.write_table(table(), paths[-1], row_group_size=100)
    handler = Faulty()
    return handler, SimpleNamespace(files=paths, filesystem=pafs.PyFileSystem(handler))


def read_all(source: ParquetSource) -> pa.Table:
    batches = []
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, source.schema.names, 64)
        batches.extend(reader.read(reader.rows))
        reader.finish()
    return pa.Table.from_batches(batches)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_faults_that_pass_change_nothing(data: st.DataObject) -> None:
    slept: list[float] = []
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "sleep", slept.append)
        patch.setattr(sources, "BIG_ROW_GROUP", data.draw(st.sampled_from([0, 1 << 30])))
        handler, spec = faulty(Path(directory))
        handler.few = True
        # At most two in a row, and then what a third try takes, which opens and reads.
        for _ in range(data.draw(st.integers(0, 20))):
            handler.faults += [*data.draw(st.lists(st.sampled_from(FAULTS[:3]), max_size=2)), None, None, None]
        wanted = sum(fault is not None for fault in handler.faults)
        source = ParquetSource(spec, n_jobs=1)
        found = read_all(source)
        assert found.equals(pa.concat_tables([table(), table()]))
        assert len(slept) == wanted - sum(fault is not None for fault in handler.faults)


def test_waits_grow_and_differ(tmp_path: Path, sleeps: list[float]) -> None:
    for _ in range(100):
        calls = 0

        def action() -> int:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OSError("not yet")
            return calls

        assert patiently(action, "shard a") == 3
    first, second = np.array(sleeps).reshape(-1, 2).T
    for waits, mean in ((first, WAITS[0]), (second, WAITS[1])):
        assert (waits >= 0.5 * mean).all() and (waits <= 1.5 * mean).all() and len(set(waits)) > 90


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_storage_that_fails_three_times_is_an_error_and_never_left_out(
    tmp_path: Path, sleeps: list[float], fault: Any
) -> None:
    handler, spec = faulty(tmp_path)
    source = ParquetSource(spec, on_error="skip", n_jobs=1).for_job("skip")
    for name in ("read", "train"):
        handler.faults = [None] * 3 + [fault] * 1000
        with pytest.raises(ReadFailed, match=r"shard \d\.parquet.* storage failed 3 times") as caught:
            if name == "read":
                read_all(source.with_dictionaries([]))
            else:
                list(ParquetStream(source.with_dictionaries([]), columns=["x"], window_rows=100))
        assert caught.value.exit_code == 3
        assert not source.left_out.row_groups and not source.left_out.shards
    assert len(sleeps) % 2 == 0
    handler.faults = [fault] * 1000
    with pytest.raises(ReadFailed, match=r"shard 0\.parquet"):
        ParquetSource(spec, on_error="skip", n_jobs=1)


def test_what_is_not_there_is_not_waited_for(tmp_path: Path, sleeps: list[float]) -> None:
    handler, spec = faulty(tmp_path)
    source = ParquetSource(spec)
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(ShardChanged, match=r"shard 1\.parquet is gone: it was there when the job began"):
        read_all(source.for_job("skip"))
    handler.faults = [FileNotFoundError(2, "No such file or directory")]
    with pytest.raises(UnreadableShard, match=r"shard 0\.parquet cannot be read"):
        ParquetSource(SimpleNamespace(files=spec.files[:1], filesystem=spec.filesystem))
    assert sleeps == []


def test_bad_data_are_not_read_again(tmp_path: Path, sleeps: list[float]) -> None:
    _, spec = faulty(tmp_path)
    good = Path(spec.files[1]).read_bytes()
    Path(spec.files[1]).write_bytes(good[:4] + bytes(600) + good[604:])
    source = ParquetSource(spec).for_job("skip")
    for row_group in range(source.manifest.n_row_groups):
        try:
            source.open(row_group, ["x"], 100).skip(100)
        except DataError as error:
            source.left_out.note(error, source.manifest, row_group)
    assert source.left_out.row_groups == {(1, 0)}
    Path(spec.files[1]).write_bytes(good[:-5])
    with pytest.raises(UnreadableShard, match=r"shard 1\.parquet"):
        ParquetSource(spec)
    assert sleeps == []


def test_no_memory_is_not_waited_for(tmp_path: Path, sleeps: list[float]) -> None:
    handler, spec = faulty(tmp_path)
    source = ParquetSource(spec).for_job("skip")
    handler.faults = [None, None, MemoryError("malloc of size 1 failed")]
    with pytest.raises(Exception, match="memory"):
        read_all(source)
    assert sleeps == [] and not source.left_out.row_groups


def test_a_file_that_grows_between_two_tries_is_changed(tmp_path: Path, sleeps: list[float]) -> None:
    handler, spec = faulty(tmp_path)
    file = RemoteFile(spec.filesystem, spec.files[0], "shard a")
    assert file.read(4) == b"PAR1"
    with open(spec.files[0], "ab") as more:
        more.write(b"more")
    handler.faults = [OSError("connection reset")]
    with pytest.raises(ShardChanged, match=r"shard a has .* bytes now"):
        file.read(4)


def test_a_remote_file_is_a_file(tmp_path: Path) -> None:
    _, spec = faulty(tmp_path)
    whole = Path(spec.files[0]).read_bytes()
    with RemoteFile(spec.filesystem, spec.files[0], "shard a") as file:
        assert file.readable() and file.seekable() and file.tell() == 0
        assert file.read() == whole and file.read(5) == b"" and file.tell() == len(whole)
        assert file.seek(-4, io.SEEK_END) == len(whole) - 4 and file.read(100) == b"PAR1"
        assert file.seek(2) == 2 and file.seek(3, io.SEEK_CUR) == 5 and file.read(7) == whole[5:12]
    assert file.closed


def test_training_over_a_bad_line_gives_the_same_weights(tmp_path: Path, sleeps: list[float]) -> None:
    handler, spec = faulty(tmp_path, shards=4)

    def weights(data: Any, faults: list[Any]) -> str:
        source = ParquetSource(data, n_jobs=2)
        handler.faults, handler.few = faults, True
        job, feed = prepare(source, "y", Config(epochs=2, window_rows=150, n_jobs=2))
        model = train(job, feed, State.start(job)).model
        assert mean_loss(source, model) > 0
        return model.sha256()

    quiet = weights(spec, [])
    assert quiet == weights(str(tmp_path), [])
    assert sleeps == []
    assert quiet == weights(spec, [FAULTS[0], None, None, FAULTS[1], None, None, FAULTS[3], None, None] * 5)
    assert len(sleeps) >= 10


def wide(directory: Path, columns: int, rows: int, **options: Any) -> tuple[Faulty, Any, ParquetSource, pa.Table]:
    """Random numbers in one shard, of row groups of so many rows; its handler, its metadata, a source and a table."""
    rng = np.random.default_rng(0)
    path = directory / "wide.parquet"
    numbers = pa.table({f"x{k}": rng.random(2 * rows, np.float32) for k in range(columns)})
    pq.write_table(numbers, path, row_group_size=rows, use_dictionary=False, compression="none", **options)
    handler = Faulty()
    source = ParquetSource(SimpleNamespace(files=[str(path)], filesystem=pafs.PyFileSystem(handler)))
    source.open(0, ["x0"], 1000).skip(rows)  # which opens the file
    handler.asked.clear()
    return handler, pq.read_metadata(path), source, numbers


def chunk(metadata: Any, row_group: int, column: int) -> tuple[int, int]:
    """Where a column chunk begins and ends."""
    found = metadata.row_group(row_group).column(column)
    return found.data_page_offset, found.data_page_offset + found.total_compressed_size


@given(st.lists(st.tuples(st.integers(0, 4 * REQUEST), st.integers(1, 2 * REQUEST)), max_size=30))
def test_requests_hold_the_chunks_and_little_else(chunks: list[tuple[int, int]]) -> None:
    spans = coalesced(chunks)
    assert sorted(chunk for _, _, inside in spans for chunk in inside) == sorted(chunks)
    for start, stop, inside in spans:
        assert start == inside[0][0] and stop == max(at + n for at, n in inside)
        assert len(inside) == 1 or stop - start <= REQUEST
        reached = start
        for at, n in inside:
            assert at - reached <= GAP
            reached = max(reached, at + n)
    for (start, stop, _), (_, _, inside) in pairwise(spans):  # what follows did not belong to it
        at, n = inside[0]
        assert at - stop > GAP or max(stop, at + n) - start > REQUEST


def test_a_row_group_is_a_few_requests(tmp_path: Path) -> None:
    handler, metadata, source, numbers = wide(tmp_path, 28, 10_000)
    for row_group in (0, 1):
        reader = source.open(row_group, numbers.schema.names, 1000)
        found = pa.Table.from_batches(list(reader.read(reader.rows)))
        reader.finish()
        assert found.equals(numbers.slice(10_000 * row_group, 10_000))
    assert handler.asked == [(chunk(metadata, g, 0)[0], chunk(metadata, g, 27)[1]) for g in (0, 1)]


def test_a_chunk_larger_than_a_request_is_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST", 30_000)
    handler, metadata, source, numbers = wide(tmp_path, 3, 20_000)
    assert read_all(source).equals(numbers)
    asked = sorted(handler.asked)
    assert len(asked) == 18 and all(stop - start <= 30_000 for start, stop in asked)
    assert asked[0][0] == chunk(metadata, 0, 0)[0] and asked[-1][1] == chunk(metadata, 1, 2)[1]
    assert all(stop == start for (_, stop), (start, _) in pairwise(asked))


@pytest.mark.parametrize("big", [False, True])
def test_only_the_columns_that_are_wanted_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: bool
) -> None:
    """Of 400 columns of 20 KB two that are far apart, and two that are close; whether the row group is large or not."""
    monkeypatch.setattr(sources, "BIG_ROW_GROUP", 1 << 20 if big else 64 << 20)
    handler, metadata, source, numbers = wide(tmp_path, 400, 5000)
    handler.asked.clear()
    for names, columns in ((["x3", "x390"], [(3, 3), (390, 390)]), (["x20", "x17"], [(17, 20)])):
        reader = source.open(0, names, 1000)
        assert pa.Table.from_batches(list(reader.read(5000))).equals(numbers.select(names).slice(0, 5000))
        assert sorted(handler.asked) == [(chunk(metadata, 0, a)[0], chunk(metadata, 0, b)[1]) for a, b in columns]
        handler.asked.clear()


def test_a_large_row_group_is_read_through_small_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BIG_ROW_GROUP", 1 << 20)
    handler, _, source, numbers = wide(tmp_path, 2, 2_000_000)
    tracemalloc.start()
    try:
        for row_group in (0, 1):
            source.open(row_group, numbers.schema.names, 10_000).skip(2_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(handler.asked) >= 32 and peak < 8 << 20  # of 16 MB a row group


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_each_request_is_tried_three_times(tmp_path: Path, sleeps: list[float], fault: Any, times: int) -> None:
    handler, _, source, numbers = wide(tmp_path, 3, 10_000)
    # Each try opens the file again, and reads.
    handler.faults = [fault, *[None, fault] * (times - 1)]
    handler.asked.clear()
    reader = source.open(0, numbers.schema.names, 1000)
    if times == 3:
        with pytest.raises(
            ReadFailed, match=r"shard wide\.parquet cannot be read: its storage failed 3 times in a row"
        ):
            reader.skip(1)
    else:
        assert pa.Table.from_batches(list(reader.read(10_000))).equals(numbers.slice(0, 10_000))
    assert len(sleeps) == min(times, 2) and len(set(handler.asked)) == 1


def test_a_file_that_shrinks_while_it_is_fetched_is_changed(tmp_path: Path, sleeps: list[float]) -> None:
    _, _, source, _ = wide(tmp_path, 3, 10_000)
    (tmp_path / "wide.parquet").write_bytes((tmp_path / "wide.parquet").read_bytes()[:20_000])
    with pytest.raises(ShardChanged, match=r"shard wide\.parquet has 20000 bytes now and had"):
        source.open(0, ["x2"], 1000).skip(1)
    assert len(sleeps) == 1


def test_what_was_fetched_is_there_once_and_not_after(tmp_path: Path) -> None:
    handler, spec = faulty(tmp_path)
    content = Path(spec.files[0]).read_bytes()

    def read(at: int, n: int) -> int:
        """Read in a place, and tell how many requests that takes."""
        before = len(handler.asked)
        file.seek(at)
        assert bytes(file.read(n)) == content[at : at + n]
        return len(handler.asked) - before

    with RemoteFile(spec.filesystem, spec.files[0], "shard a") as file:
        with file.ahead([(4, 100), (200, 50), (104, 20)], most=246) as whole:
            assert whole and handler.asked == [(4, 250)]
            assert [read(4, 100), read(104, 20), read(4, 100)] == [0, 0, 1]
        assert read(200, 50) == 1
        with file.ahead([(4, 100), (200, 50)], most=245) as whole:
            assert not whole and read(4, 100) == 1
        with file.ahead([(4, 100), (200, 50)], most=246) as whole:
            assert [read(4, 99), read(4, 100), read(200, 50)] == [1, 1, 0]


@pytest.mark.parametrize("end", ["read", "left", "failed"])
def test_what_was_fetched_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """While a row group is read there are its chunks and no more, and then nothing."""
    monkeypatch.setattr(remote, "REQUEST", 300_000)
    handler, _, source, numbers = wide(tmp_path, 8, 100_000)  # 400 KB a column
    names, held = numbers.schema.names, 8 * 400_000
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        reader = source.open(0, names, 1000)
        reader.skip(1000)
        assert held < tracemalloc.get_traced_memory()[0] - before < held + 300_000
        if end == "read":
            reader.skip(99_000)
            reader.finish()
        del reader
        if end == "failed":
            handler.faults = [MemoryError("no more")] * 3
            with pytest.raises(ReadFailed):
                source.open(1, names, 1000).skip(1)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 300_000
        # And what the file of this test reads at the same time.
        assert tracemalloc.get_traced_memory()[1] - before < held + 300_000 * (remote.AT_ONCE + 1)
    finally:
        tracemalloc.stop()


def test_columns_that_are_decoded_are_let_go_before_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST", 1_000_000)
    _, _, source, numbers = wide(tmp_path, 16, 50_000)
    left: list[int] = []
    decoded = sources.let_go

    def watched(batches: Any, rows: int) -> Any:
        for batch in decoded(batches, rows):
            left.append(tracemalloc.get_traced_memory()[0])
            yield batch

    monkeypatch.setattr(sources, "let_go", watched)
    tracemalloc.start()
    try:
        source.open(0, numbers.schema.names, 50_000).skip(50_000)
    finally:
        tracemalloc.stop()
    assert len(left) == 4 and np.diff(left).max() < -500_000


@pytest.mark.parametrize("mapped", [False, True])
def test_what_comes_next_of_a_large_row_group_is_fetched_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """Unless each thread would take address space that is limited."""
    monkeypatch.setattr(sources, "BIG_ROW_GROUP", 1 << 20)
    monkeypatch.setattr(remote, "address_space_limit", lambda: 1 << 40 if mapped else None)
    by: list[str] = []
    patient = remote.patiently
    monkeypatch.setattr(remote, "patiently", lambda *args: by.append(threading.current_thread().name) or patient(*args))
    _, _, source, numbers = wide(tmp_path, 4, 500_000)
    by.clear()
    reader = source.open(0, numbers.schema.names, 10_000)
    assert pa.Table.from_batches(list(reader.read(500_000))).equals(numbers.slice(0, 500_000))
    on_threads = [name.startswith("streamgd-request") for name in by]
    assert sum(on_threads) == (0 if mapped else 4 * -(-2_000_000 // remote.PIECE))
    assert mapped or len(by) - sum(on_threads) == 2  # what opening it asks for


@pytest.mark.parametrize("end", ["left", "failed"])
def test_nothing_is_fetched_for_a_reader_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(remote, "sleep", lambda seconds: time.sleep(0.002))
    monkeypatch.setattr(remote, "AT_ONCE_BUFFERED", 2)
    handler, _, source, numbers = wide(tmp_path, 400, 5000)
    monkeypatch.setattr(sources, "BIG_ROW_GROUP", 0)
    reader = source.open(0, numbers.schema.names, 10_000)
    if end == "failed":
        handler.faults = [None, None, *[OSError("connection reset")] * 10_000]
        with pytest.raises(ReadFailed, match=r"shard wide\.parquet .* failed 3 times in a row"):
            reader.skip(1)
        assert len(handler.faults) > 10_000 - 3 * 200  # of 400 chunks that would be tried three times each
    else:
        reader.skip(1)
    del reader
    for thread in threading.enumerate():
        if thread.name.startswith("streamgd-request"):
            thread.join(10)
            assert not thread.is_alive()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 110)), max_size=60), st.integers(1, 120), st.booleans())
def test_reads_of_chunks_in_any_pieces(reads: list[tuple[int, int]], piece: int, beyond: bool) -> None:
    """Chunks that lie side by side, read on by turns, perhaps also beyond their ends; if not, nothing comes twice."""
    content = np.random.default_rng(0).bytes(303)
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "PIECE", piece)
        (Path(directory) / "a").write_bytes(content)
        handler = Faulty()
        with RemoteFile(pafs.PyFileSystem(handler), f"{directory}/a", "a") as file:
            file.read_on([(1, 100), (101, 100), (201, 100)])
            places, ends = [1, 101, 201], [101, 201, 301]
            for k, n in reads:
                wanted = n if beyond else min(n, ends[k] - places[k])
                file.seek(places[k])
                assert bytes(file.read(wanted)) == content[places[k] : places[k] + wanted]
                places[k] += wanted
        assert beyond or sum(stop - start for start, stop in handler.asked) <= 300


def lying(directory: Path, what: str) -> Any:
    """A shard of two row groups of which some offset or size in the footer is wrong, and a spec of it."""
    path = directory / "lying.parquet"
    numbers = pa.table({f"x{k}": np.arange(5000 * k, 5000 * k + 20_000, dtype=np.float32) for k in range(4)})
    pq.write_table(
        numbers, path, row_group_size=10_000, use_dictionary=False, compression="none", write_statistics=False
    )
    data, column = path.read_bytes(), pq.read_metadata(path).row_group(0).column(1)
    footer = data[len(data) - 8 - int.from_bytes(data[-8:-4], "little") : -8]
    old, new = {
        "a place beyond the file": (column.data_page_offset, 1 << 40),
        "a place before it": (column.data_page_offset, -5),
        "another place": (column.data_page_offset, 4),
        "a place inside it": (column.data_page_offset, column.data_page_offset + 100),
        "bytes beyond the file": (column.total_compressed_size, 1 << 50),
        "all bytes of the file": (column.total_compressed_size, len(data) - column.data_page_offset),
        "no bytes": (column.total_compressed_size, 0),
        "fewer than no bytes": (column.total_compressed_size, -(1 << 40)),
        "fewer bytes": (column.total_compressed_size, 1000),
    }[what]
    was = b"\x26" + zigzag(old) if "place" in what else b"\x16" + zigzag(old)
    assert was in footer
    footer = footer.replace(was, was[:1] + zigzag(new))
    body = data[: len(data) - 8 - int.from_bytes(data[-8:-4], "little")]
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return SimpleNamespace(files=[str(path)], filesystem=pafs.PyFileSystem(Faulty()))


def zigzag(number: int) -> bytes:
    """A number as Thrift writes it."""
    rest, out = (number << 1) ^ (number >> 63), b""
    while rest > 127:
        out, rest = out + bytes([rest & 127 | 128]), rest >> 7
    return out + bytes([rest])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "what",
    [
        *("a place beyond the file", "a place before it", "another place", "a place inside it", "fewer bytes"),
        *("bytes beyond the file", "all bytes of the file", "no bytes", "fewer than no bytes"),
    ],
)
def test_a_footer_that_lies_about_places_is_an_error_or_harmless(
    tmp_path: Path, sleeps: list[float], monkeypatch: pytest.MonkeyPatch, what: str, big: bool
) -> None:
    monkeypatch.setattr(sources, "BIG_ROW_GROUP", 0 if big else 64 << 20)
    spec = lying(tmp_path, what)
    found, told = [], []
    for data in (spec, spec.files[0]):  # remote, and local
        tracemalloc.start()
        try:
            source = ParquetSource(data)
            reader = source.open(0, ["x0", "x1", "x2"], 1000)
            found.append(pa.Table.from_batches(list(reader.read(10_000))))
        except UnreadableShard as error:
            told.append(str(error))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 4 << 20
    assert len(told) in (0, 2) and (told or found[0].equals(found[1]))
    assert sleeps == []


def test_local_files_are_read_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Arrow itself, without a call into Python."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("a local file was opened as a remote one")

    monkeypatch.setattr(remote, "patiently", refuse)
    monkeypatch.setattr(remote.RemoteFile, "__init__", refuse)
    faulty(tmp_path)
    assert read_all(ParquetSource(tmp_path)).num_rows == 600


def test_filesystems_of_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    faulty(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.pipe("/streamgd-test/0.parquet", (tmp_path / "0.parquet").read_bytes())
    try:
        assert read_all(ParquetSource("memory://streamgd-test/0.parquet")).equals(table())
    finally:
        memory.rm("/streamgd-test", recursive=True)
