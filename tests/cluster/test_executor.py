"""Rounds on real worker processes: the same bits as anywhere, whatever dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distributed import Client

from scripts.torturing import clusters
from scripts.torturing.jobs import write_shards
from scripts.torturing.processes import Processes
from streamgd.cluster import executor as module
from streamgd.cluster import tree
from streamgd.cluster.executor import Dask
from streamgd.cluster.tree import levels
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.errors import ClusterLost, Interrupted, NonFiniteFeature, UnreadableShard, WorkersKilled
from streamgd.executors import Serial, middle
from streamgd.job import prepare
from streamgd.keeper import Keeper
from streamgd.state import State
from streamgd.trainer import train

from ..conftest import Write, classification
from ..test_rounds import mixed
from .work import Brackets, Failing, Poisoned, Where

pytestmark = pytest.mark.timeout(120)


def never(_: int) -> bool:
    return False


def fit(source: Any, executor: Any = None, keeper: Keeper | None = None, **options: Any) -> Any:
    """Train in four partitions; the result."""
    values: dict[str, Any] = {"epochs": 2, "polish": 0, "partitions": 4, "cache": None} | options
    source = source if isinstance(source, ParquetSource) else ParquetSource(source)
    job, feed = prepare(source, "y", Config(**values).check(), executor=executor)
    return train(job, feed, State.start(job), executor=executor, keeper=keeper)


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 33])
def test_levels_hold_each_group_once_and_halves_first(n: int, group: int) -> None:
    known = {(first, min(first + group, n)) for first in range(0, n, group)}
    leaves = len(known)
    for level in levels(n, group):
        for first, last in level:
            half = middle(first, last)
            assert {(first, half), (half, last)} <= known
        assert not known & set(level)
        known |= set(level)
    assert (0, n) in known and len(known) == 2 * leaves - 1


def test_parts_are_joined_in_the_same_tree(client: Client) -> None:
    executor = Dask(client)
    for n in (1, 2, 3, 7, 12):
        assert executor.reduce(Brackets(), "x", 100, n, never) == Serial().reduce(Brackets(), "x", 100, n, never)
    assert executor.workers == 2 and executor.threads == 2 and not executor.begun_again


def test_an_error_comes_back_as_what_it_is(client: Client) -> None:
    with pytest.raises(UnreadableShard, match="number 3 is bad"):
        Dask(client).reduce(Failing((3,)), "x", 100, 6, never)
    assert Dask(client).reduce(Failing(()), "x", 100, 6, never) == 15


@pytest.mark.parametrize("size", [10, 120_000, 300_000])
def test_jobs_of_every_size(client: Client, size: int) -> None:
    """With each task or as a task: one job does not take another's for its own."""
    here, there = (Dask(client), "a" * size), (Dask(client), "b" * size)
    for executor, shared in (here, there, here):
        whole = executor.reduce(Brackets(), shared, 100, 3, never)
        assert whole == Serial().reduce(Brackets(), shared, 100, 3, never)


def test_a_large_state_does_not_keep_all_parts_on_the_worker_that_has_it(client: Client) -> None:
    """Which is where the scheduler would put them, one after the other."""
    executor = Dask(client)
    for _ in range(3):
        at = executor.reduce(Where(0.5), "x", b"0" * (100 << 20), 2, never)
        assert len(set(at)) == 2, at


def test_places_are_shared_out_by_threads() -> None:
    executor = Dask.__new__(Dask)
    executor._seen = module._Workers(alive=["a", "b"], threads={"a": 2, "b": 1})
    assert executor.shares([(0, 1), (1, 2), (2, 3), (3, 4)]) == {"a": [(0, 1), (1, 2), (3, 4)], "b": [(2, 3)]}
    executor._seen = module._Workers()
    assert executor.shares([(0, 1)]) == {"": [(0, 1)]}


def test_nobody_may_wait_for_the_rest(client: Client) -> None:
    seen: list[int] = []

    def watch(done: int) -> bool:
        seen.append(done)
        return done >= 1

    assert Dask(client).reduce(Brackets(0.3), "x", 100, 12, watch) is None
    assert seen == sorted(seen) and 1 <= seen[-1] < 12


@pytest.mark.parametrize(
    "options",
    [
        {"text": ("t",), "window_rows": 200},
        {"optimizer": "ftrl", "penalty": "l1", "partitions": 7},
        {"optimizer": "adam", "polish": 3},
        {"optimizer": "lbfgs", "epochs": 8, "polish": None, "text": ("t",)},
    ],
    ids=["texts", "ftrl", "polished", "lbfgs"],
)
def test_a_cluster_never_changes_a_weight(write: Write, client: Client, options: dict[str, Any]) -> None:
    path = write(mixed(900), shards=3, row_group_rows=50)
    here, there = fit(path, **options), fit(path, Dask(client), **options)
    assert here.model.sha256() == there.model.sha256()
    assert (here.rows, here.steps, here.skipped_rows) == (there.rows, there.steps, there.skipped_rows)
    assert here.losses == there.losses


def test_one_to_four_workers_that_come_and_go(tmp_path: Path, victims: Processes) -> None:
    data = write_shards(tmp_path / "data", 40_000, row_group_rows=1000)
    truth = clusters.fit(data).model.sha256()
    with Client(victims.address) as client:
        for workers in (1, 2, 3, 4):
            victims.add()
            client.wait_for_workers(workers, timeout=60)
            assert clusters.fit(data, executor=Dask(client)).model.sha256() == truth

        def coming_and_going() -> None:
            victims.add()
            client.retire_workers([next(iter(client.scheduler_info()["workers"]))])

        executor = Dask(client)
        found = clusters.disturbed(victims, coming_and_going, 0.3, lambda: clusters.fit(data, executor=executor))
        assert found == truth


@pytest.mark.parametrize("nanny", [False, True])
def test_a_cluster_is_disturbed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nanny: bool) -> None:
    """A part of what scripts/torture does."""
    monkeypatch.setattr(module, "SILENCE", 3.0)  # after which a worker that is stopped is given up
    cases = ["nanny"] if nanny else ["storm", "join", "leave", "stop", "scheduler"]
    outcome = clusters.run(tmp_path, dict.fromkeys(cases, 1), seed=1, nanny=nanny)
    assert not outcome.failures, str(outcome)


def test_a_part_that_takes_too_long_is_begun_elsewhere(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "STRAGGLING_SECONDS", 1.0)
    executor, began = Dask(client), time.monotonic()
    work = Brackets(0.02, (3,), str(tmp_path))
    assert executor.reduce(work, "x", 100, 9, never) == Serial().reduce(Brackets(), "x", 100, 9, never)
    assert executor.begun_again == 1 and time.monotonic() - began < 30


def test_a_row_group_that_kills_workers_is_named(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    path = write(classification(4000), shards=4, row_group_rows=250)
    truth = fit(Poisoned(path)).model.sha256()
    monkeypatch.setenv("STREAMGD_POISON", "1")
    with Processes(tmp_path / "poisoned", 2, nanny=True) as cluster, Client(cluster.address) as client:
        monkeypatch.delenv("STREAMGD_POISON")
        client.wait_for_workers(2, timeout=60)
        with pytest.raises(WorkersKilled, match=r"reading shard part-01\.parquet, row group 2 has killed 4 workers"):
            fit(Poisoned(path), Dask(client))
        assert fit(ParquetSource(path), Dask(client)).model.sha256() == truth


def test_without_workers_what_was_learned_is_kept(tmp_path: Path, victims: Processes) -> None:
    data = write_shards(tmp_path / "data", 160_000, row_group_rows=1000)
    config = Config(partitions=8, epochs=6, polish=0, cache=None)
    truth = clusters.fit(data, config).model.sha256()
    victims.add(2)
    with Client(victims.address) as client:
        client.wait_for_workers(2, timeout=60)

        def kill_all() -> None:
            while not list(tmp_path.glob("checkpoints/*.safetensors")):
                time.sleep(0.05)
            time.sleep(0.3)
            for pid in victims.pids():
                os.kill(pid, signal.SIGKILL)

        executor = Dask(client, patience=2.0)
        found = clusters.disturbed(
            victims, kill_all, 0.0, lambda: clusters.fit(data, config, tmp_path / "checkpoints", executor)
        )
        assert isinstance(found, ClusterLost), found
        assert found.exit_code == 4
        assert "the cluster has no worker, for 2 s now" in str(found) and "--resume" in str(found)
        victims.add(1)  # another cluster, of another size
        client.wait_for_workers(1, timeout=60)
        again = clusters.fit(data, config, tmp_path / "checkpoints", Dask(client))
    assert again.model.sha256() == truth
    assert again.seconds > 0


def test_asked_to_end_in_the_middle_of_a_round(tmp_path: Path, client: Client) -> None:
    data = write_shards(tmp_path / "data", 40_000, row_group_rows=500)
    keeper = Keeper()
    threading.Timer(0.3, keeper.asked.set).start()
    with pytest.raises(Interrupted):
        fit(data, Dask(client), keeper, epochs=2000)


def test_bad_row_groups_are_left_out_and_told(write: Write, client: Client) -> None:
    path = write(classification(3000), shards=3, row_group_rows=100)
    table = pa.table({**{n: [float("inf")] * 50 for n in ("x0", "x1", "x2")}, "y": pa.array([0, 1] * 25, pa.int8())})
    pa.parquet.write_table(table, path / "part-99.parquet")
    with pytest.raises(NonFiniteFeature, match=r"part-99\.parquet, row group 0"):
        fit(path, Dask(client), on_error="raise")
    sources = [ParquetSource(path, on_error="skip") for _ in range(2)]
    here, there = fit(sources[0], on_error="skip"), fit(sources[1], Dask(client), on_error="skip")
    assert here.model.sha256() == there.model.sha256()
    assert there.skipped_row_groups == here.skipped_row_groups == 1
    assert there.trouble == here.trouble
