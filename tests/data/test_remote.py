"""Storage that fails now and then is tried again; what is bad, gone or changed is not."""

from __future__ import annotations

import io
import threading
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
from streamgd.data.evaluate import mean_loss
from streamgd.data.remote import WAITS, RemoteFile, patiently
from streamgd.data.source import ParquetSource
from streamgd.data.stream import ParquetStream
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
        self.spared = threading.local()

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
