"""A cluster as a user meets it: from the command line and from Python, its manners, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from distributed import Client

from scripts.torturing.jobs import CommandLineJob, write_shards
from scripts.torturing.processes import Processes
from streamgd import SGDClassifier
from streamgd.cluster import connect
from streamgd.cluster.connect import connected, differences
from streamgd.cluster.options import ClusterOptions
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.errors import ClusterLost, ConfigError
from streamgd.rounds import default_partitions, with_partitions

from ..conftest import Write, classification

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": "local:0"}, "expected local:N"),
        ({"where": "localhost:8786"}, "expected local:N"),
        ({"where": "local:2", "tls_ca": "x"}, "does nothing with cluster 'local:2'"),
        ({"where": "tls://h:1", "tls_ca": __file__}, "tls_cert, tls_key is missing"),
        ({"where": "tls://h:1", "tls_ca": "no", "tls_cert": "no", "tls_key": "no"}, "there is no such file"),
        ({"where": "tcp://h:1", "dashboard": True}, "has its own"),
    ],
)
def test_options_that_are_wrong_or_do_nothing(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ClusterOptions(**options).check()
    assert ClusterOptions("local:3").check().local == 3
    assert ClusterOptions("tcp://h:1").check().local == 0


def test_partitions_are_a_multiple_of_the_threads() -> None:
    assert [default_partitions(1000, threads) for threads in (1, 2, 3, 50)] == [4, 8, 12, 200]
    assert [default_partitions(row_groups, 4) for row_groups in (2, 4, 31, 32, 47, 48)] == [2, 4, 4, 8, 8, 12]
    with pytest.raises(ConfigError, match="one row group"):
        default_partitions(1, 4)


def test_partitions_of_a_checkpoint_count_more_than_the_cluster(write: Write) -> None:
    source = ParquetSource(write(classification(1000), row_group_rows=20))
    assert with_partitions(Config(), source, None, None).streams == 1
    assert with_partitions(Config(), source, None, 2).streams == 8
    assert with_partitions(Config(), source, 5, 2).streams == with_partitions(Config(), source, 5, None).streams == 5
    assert with_partitions(Config(partitions=3), source, None, 2).streams == 3
    for config, says in ((Config(partitions=1), "one stream"), (Config(cache="somewhere"), "cache does nothing")):
        with pytest.raises(ConfigError, match=says):
            with_partitions(config, source, None, 2)


def test_what_differs_between_workers_is_told() -> None:
    here = {"streamgd": "1", "numpy": "2", "processor": "zen"}
    assert differences(here, {"a": here, "b": here}) == []
    (told,) = differences(
        here, {"a": here, "b": here | {"processor": "sapphire"}, "c": here | {"processor": "sapphire"}}
    )
    assert told.startswith("2 of 3 workers (b, ...) have processor sapphire where this process has zen")
    with pytest.raises(ConfigError, match="worker b has streamgd 0, and this process 1"):
        differences(here, {"a": here, "b": here | {"streamgd": "0"}})
    with pytest.raises(ConfigError, match="cannot run streamgd"):
        differences(here, {"a": ModuleNotFoundError("No module named 'streamgd'")})


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "CONNECTING", 1.0)
    with (
        pytest.raises(ClusterLost, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"),
        connected(ClusterOptions("tcp://127.0.0.1:9")),
    ):
        pass


def listening(process: psutil.Process) -> set[str]:
    return {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}


def profiling() -> bool:
    return bool(dask.config.get("distributed.worker.profile.enabled"))


def test_a_local_cluster_is_modest() -> None:
    """It listens on 127.0.0.1 alone, leaves Ctrl-C to the job, and is gone in the end."""
    me = psutil.Process()
    with connected(ClusterOptions("local:2")) as client:
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        assert len(workers) == 2
        for process in (me, *workers):
            assert listening(process) <= {"127.0.0.1"}
        for process in workers:
            process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert sorted(client.run(os.getpid).values()) == sorted(process.pid for process in workers)
        assert set(client.ncores().values()) == {1}
        assert set(client.run(profiling).values()) == {False}  # nobody can look
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) == 2 and not alive


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "streamgd", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_command_line(tmp_path: Path, processes: Processes) -> None:
    data = str(write_shards(tmp_path / "data", 30_000, row_group_rows=1000))
    model = str(tmp_path / "model.safetensors")
    there = run("train", data, "--target", "y", "--cluster", "local:2", "--model", model)
    assert (there["partitions"], there["workers"]) == (8, 2)
    here = run("train", data, "--target", "y", "--partitions", "8")
    assert there["weights_sha256"] == here["weights_sha256"]
    elsewhere = run("train", data, "--target", "y", "--cluster", processes.address, "--partitions", "8")
    assert elsewhere["weights_sha256"] == here["weights_sha256"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    run("predict", model, data, "--out", one, "--cluster", processes.address)
    run("predict", model, data, "--out", two)
    assert pq.read_table(one).equals(pq.read_table(two))


def ended(pids: list[int]) -> list[int]:
    """Those of some processes that are still there after a while."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    return [process.pid for process in alive]


LONG = ("--partitions", "4", "--epochs", "40", "--polish", "0", "--cache", "none")


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Shards, and the weights that they give in so many epochs."""
    data = write_shards(tmp_path_factory.mktemp("long") / "data", 60_000, row_group_rows=1000)
    return data, run("train", str(data), "--target", "y", *LONG)["weights_sha256"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_job_and_its_workers(
    tmp_path: Path, long_job: tuple[Path, str], number: signal.Signals
) -> None:
    data, truth = long_job
    job = CommandLineJob(data, tmp_path / "checkpoints", LONG)
    process = job.resume("--cluster", "local:2")
    end = time.monotonic() + 60
    while len(list(job.checkpoints.glob("*.safetensors"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert process.returncode == 4, told
    assert len(workers) >= 2 and ended(workers) == []
    again = job.resume()  # without a cluster
    out, told = again.communicate(timeout=100)
    assert json.loads(out)["weights_sha256"] == truth, told


def test_estimators(write: Write, tmp_path: Path, client: Client) -> None:
    path = write(classification(6000), shards=3, row_group_rows=200)
    here, there = SGDClassifier(partitions=6).fit(path, "y"), SGDClassifier(partitions=6).fit(path, "y", client=client)
    assert here.model_.sha256() == there.model_.sha256()
    assert SGDClassifier(cache=None).fit(path, "y", client=client).result_.rows == 5 * 6000
    written = there.predict(path, out=tmp_path / "scores", client=client)
    assert [Path(one).name for one in written] == ["part-00.parquet", "part-01.parquet", "part-02.parquet"]
    assert pq.read_table(tmp_path / "scores")["prediction"].to_pylist() == here.predict(path).tolist()
    X, y = np.zeros((20, 1)), np.arange(20) % 2
    with pytest.raises(ConfigError, match="in memory here"):
        SGDClassifier().fit(X, y, client=client)
    with pytest.raises(ConfigError, match="do nothing without out"):
        there.predict(path, client=client)
    with pytest.raises(ConfigError, match="out is for shards"):
        there.predict(X, out=tmp_path / "scores")


def test_dask_data_frames(write: Write, client: Client) -> None:
    """Each partition is a row group: the same bits as of a file of such row groups, and lazy predictions."""
    path = write(classification(4000), row_group_rows=250)
    table = pq.read_table(path)
    frame = dd.from_pandas(table.to_pandas(), npartitions=16, sort=False)
    there = SGDClassifier(partitions=4).fit(frame, "y", client=client)
    here = SGDClassifier(partitions=4).fit(path, "y")
    assert there.model_.sha256() == here.model_.sha256()
    assert there.score(frame, "y") == there.score(frame, "y", client=client) == here.score(path, "y")
    X = frame.drop(columns="y")
    lazy = there.predict(X)
    assert isinstance(lazy, dd.Series) and lazy.compute(scheduler=client).tolist() == here.predict(path).tolist()
    assert (there.predict_proba(X).compute(scheduler=client) == here.predict_proba(path)).all()
    assert (there.decision_function(X).compute(scheduler=client) == here.decision_function(path)).all()
