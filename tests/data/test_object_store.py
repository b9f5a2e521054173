"""Shards in a real object store: read and learned from as local files are, also over a server that goes down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from streamgd import SGDClassifier
from streamgd.data import remote
from streamgd.data import source as sources
from streamgd.data.source import ParquetSource
from streamgd.errors import ReadFailed

from .objectstore import KEY, SECRET, ObjectStore, Unavailable

COLUMNS, ROWS, ROW_GROUP, SHARDS = 28, 6000, 1000, 3


def write_shards(filesystem: pafs.FileSystem, directory: str) -> None:
    """Noisy labels in three shards of two row groups of 28 columns and a target."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    y = (X[:, 0] - X[:, 1] + rng.normal(size=ROWS) > 0).astype(np.int8)
    table = pa.table({**{f"x{k}": X[:, k] for k in range(COLUMNS)}, "y": y})
    filesystem.create_dir(directory)
    for shard, rows in enumerate(np.array_split(np.arange(ROWS), SHARDS)):
        path = f"{directory}/{shard}.parquet"
        pq.write_table(table.take(rows), path, filesystem=filesystem, row_group_size=ROW_GROUP)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("local") / "train")
    write_shards(pafs.LocalFileSystem(), directory)
    return directory


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The server with the shards on it; skips where it cannot be had."""
    with ExitStack() as stack:
        try:
            store = ObjectStore(tmp_path_factory.mktemp("store"))
            stack.callback(store.close)
            store.start(lambda filesystem: write_shards(filesystem, "bucket/train"))
        except Unavailable as why:
            pytest.skip(f"no object store to test with: {why}")
        yield store


@pytest.fixture
def store(running: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """The server, and its credentials where users have them; nothing else of the machine's is looked at."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return running


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


class Requests:
    """Counts what is asked of a server, tries aside, and does something before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.then, self._lock = 0, dict[int, Callable[[], object]](), threading.Lock()
        patiently = remote.patiently

        def counted(action: Callable[[], Any], where: str) -> Any:
            with self._lock:
                self.made += 1
                self.then.pop(self.made, lambda: None)()
            return patiently(action, where)

        monkeypatch.setattr(remote, "patiently", counted)


def read_all(source: ParquetSource) -> pa.Table:
    batches = []
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, source.schema.names, 300)
        batches.extend(reader.read(reader.rows))
        reader.finish()
    return pa.Table.from_batches(batches)


def weights(data: str) -> str:
    fitted = SGDClassifier(epochs=3, window_rows=1500, n_jobs=2, cache=None).fit(data, "y")
    return str(fitted.model_.sha256())


def comes_back(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Who waits before another try waits until the server runs again; what they would have waited."""
    waited: list[float] = []
    lock = threading.Lock()

    def restart(seconds: float) -> None:
        with lock:
            waited.append(seconds)
            if len(waited) == 1:
                store.start(readable)

    monkeypatch.setattr(remote, "sleep", restart)
    return waited


def readable(filesystem: pafs.FileSystem) -> None:
    for shard in range(SHARDS):
        filesystem.open_input_file(f"bucket/train/{shard}.parquet").readall()


@pytest.mark.parametrize("way", ["URI", "environment"])
def test_rows_are_those_of_local_files(
    store: ObjectStore, local: str, monkeypatch: pytest.MonkeyPatch, requests: Requests, way: str
) -> None:
    uri = store.uri("bucket/train")
    if way == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.endpoint}")
        uri = "s3://bucket/train?region=us-east-1"
    source = ParquetSource(uri)
    assert source.names == ParquetSource(local).names == ["0.parquet", "1.parquet", "2.parquet"]
    planned = requests.made
    assert read_all(source).equals(read_all(ParquetSource(local)))
    # To open a shard its size and its end are asked for; then each row group is one request.
    assert requests.made - planned == 2 * SHARDS + ROWS // ROW_GROUP


def test_large_row_groups_are_those_of_local_files(
    store: ObjectStore, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BIG_ROW_GROUP", 0)
    monkeypatch.setattr(remote, "PIECE", 1000)
    assert read_all(ParquetSource(store.uri("bucket/train"))).equals(read_all(ParquetSource(local)))


def test_training_gives_the_weights_of_local_files(store: ObjectStore, local: str) -> None:
    assert weights(store.uri("bucket/train")) == weights(local)
    assert weights(store.uri("bucket/train/[0-2].parquet")) == weights(local)


def test_a_server_that_is_killed_and_comes_back_changes_nothing(
    store: ObjectStore, local: str, monkeypatch: pytest.MonkeyPatch, requests: Requests
) -> None:
    weights(store.uri("bucket/train"))
    # Half of all requests are for the last two epochs; how often a shard is opened depends on the threads.
    in_an_epoch, requests.made = requests.made * 2 // 3, 0
    waited = comes_back(store, monkeypatch)
    requests.then[in_an_epoch] = store.kill
    assert weights(store.uri("bucket/train")) == weights(local)
    assert waited


def test_a_server_that_stays_away_is_an_error(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, requests: Requests
) -> None:
    # The client has patience of its own, for some seconds at each try.
    filesystem = store.filesystem(retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=1))
    files = [f"bucket/train/{shard}.parquet" for shard in range(SHARDS)]
    source = ParquetSource(SimpleNamespace(files=files, filesystem=filesystem))
    waited: list[float] = []
    monkeypatch.setattr(remote, "sleep", waited.append)
    requests.then[requests.made + 4] = store.kill
    try:
        with pytest.raises(ReadFailed, match=r"shard \d\.parquet cannot be read: its storage failed 3 times") as caught:
            read_all(source.for_job("skip"))
        assert caught.value.exit_code == 3 and len(waited) == 2
    finally:
        store.start(readable)
