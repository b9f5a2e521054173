"""What happens to clusters: workers, nannies and schedulers that die, stop, come and go while a job is trained."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client

from streamgd.checkpoint import Origin, begin
from streamgd.checkpointdir import CheckpointDirectory
from streamgd.cluster.executor import Dask
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.errors import ClusterLost
from streamgd.job import prepare
from streamgd.keeper import Keeper
from streamgd.trainer import train

from .jobs import write_shards
from .outcome import Outcome
from .processes import Processes, is_running, workers_below

WORKERS, PARTITIONS, ROWS = 3, 8, 160_000
#: Seconds in which a worker ends when its nanny is gone.
ORPHANED = 20.0
#: Longest that a job may take; one that stops is noticed after ten seconds, twice.
DEADLINE = 90.0
CONFIG = Config(partitions=PARTITIONS, epochs=4, polish=3, cache=None).check()


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client, whose scheduler may be dead when it is closed: then Dask raises one thing or another."""
    client = Client(address, timeout=60)
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError, RuntimeError):
            client.close(timeout=2)


def fit(data: Path, config: Config = CONFIG, checkpoints: Path | None = None, executor: Any = None) -> Any:
    """Train, with checkpoints in a directory, going on from the newest; the result."""
    source = ParquetSource(data)
    with Keeper() as keeper:
        saved = None
        if checkpoints is not None:
            keeper.directory = CheckpointDirectory(checkpoints, Origin.of(config, "y", None, source), resume=True)
            saved = keeper.directory.saved
        job, feed = prepare(source, "y", config, seen=None if saved is None else saved.seen(), executor=executor)
        return train(job, feed, *begin(job, feed, saved), keeper=keeper, executor=executor)


@dataclass
class Disturbance:
    """What is done to a cluster while somebody trains on it; the processes that are left to be ended."""

    cluster: Processes
    chance: random.Random
    stopped: list[int] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)

    def worker(self) -> int | None:
        """Some worker."""
        pids = self.cluster.pids()
        return self.chance.choice(pids) if pids else None

    def kill(self) -> None:
        """SIGKILL to a worker; another comes."""
        if (pid := self.worker()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.add()

    def storm(self) -> None:
        """SIGKILL to one worker after the other."""
        for _ in range(3):
            self.kill()
            time.sleep(self.chance.random() * 0.3)

    def nanny(self) -> None:
        """SIGKILL to a nanny; its worker should not outlive it, and another nanny comes."""
        if running := self.cluster.running():
            nanny = self.chance.choice(running)
            self.orphans += workers_below(nanny)
            with suppress(ProcessLookupError):
                os.kill(nanny, signal.SIGKILL)
        self.cluster.add()

    def stop(self) -> None:
        """SIGSTOP to a worker: it holds its connections, and what it has."""
        if (pid := self.worker()) is not None:
            os.kill(pid, signal.SIGSTOP)
            self.stopped.append(pid)

    def join(self) -> None:
        """One worker more."""
        self.cluster.add()

    def leave(self) -> None:
        """SIGTERM to a worker: it says goodbye."""
        if len(self.cluster.pids()) > 1 and (pid := self.worker()) is not None:
            os.kill(pid, signal.SIGTERM)

    def scheduler(self) -> None:
        """SIGKILL to the scheduler; after a while there is another, and workers."""
        assert self.cluster.scheduler is not None
        self.cluster.scheduler.kill()
        self.cluster.scheduler.wait()
        time.sleep(self.chance.random() * 2)
        self.cluster.start_scheduler()
        self.cluster.add(WORKERS)

    def outlived(self) -> list[int]:
        """Workers that are still there though their nannies are not."""
        end = time.monotonic() + ORPHANED
        while (there := [pid for pid in self.orphans if is_running(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        return there

    def end(self) -> None:
        """Let nothing stay stopped, and bring the workers back to their number."""
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stopped.clear()
        running = self.cluster.pids()
        for pid in running[WORKERS:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.add(max(0, WORKERS - len(running)))


def disturbed(cluster: Processes, act: Callable[[], None], delay: float, train_on: Callable[[], Any]) -> Any:
    """Train while something is done after a while; the weights, or the error."""
    thread = threading.Timer(delay, act)
    thread.start()
    try:
        return train_on().model.sha256()
    except ClusterLost as error:
        return error
    finally:
        thread.join()


def run(scratch: Path, cases: dict[str, int], seed: int = 0, *, nanny: bool = False) -> Outcome:
    """Do so many of each disturbance, at random phases of a job each, and compare weights."""
    outcome, chance = Outcome(), random.Random(seed)
    data = write_shards(scratch / "data", ROWS, shards=8, row_group_rows=2_500)
    truth = fit(data).model.sha256()
    longest = 0.0
    with Processes(scratch / "cluster", WORKERS, nanny=nanny) as cluster:
        began = time.monotonic()
        with Client(cluster.address) as client:
            client.wait_for_workers(WORKERS, timeout=60)
            fit(data, executor=Dask(client))
            began = time.monotonic()
            fit(data, executor=Dask(client))
        usual = time.monotonic() - began
        kinds = [kind for kind, n in cases.items() for _ in range(n)]
        chance.shuffle(kinds)
        for number, kind in enumerate(kinds):
            doing = Disturbance(cluster, chance)
            checkpoints = scratch / f"checkpoints-{number}"
            began = time.monotonic()
            with connected(cluster.address) as client:
                client.wait_for_workers(1, timeout=60)
                executor = Dask(client, patience=20.0)
                act = getattr(doing, kind)
                found = disturbed(
                    cluster, act, chance.random() * usual, lambda e=executor, c=checkpoints: fit(data, CONFIG, c, e)
                )
            seconds = time.monotonic() - began
            longest = max(longest, seconds)
            name = kind
            if isinstance(found, ClusterLost):  # another cluster, of none, goes on
                name = f"{kind}: given up, and resumed here"
                found = fit(data, CONFIG, checkpoints).model.sha256()
            wrong = None if found == truth else f"ended with {found!r} ({seconds:.1f} s)"
            if orphans := doing.outlived():
                wrong = wrong or f"workers {orphans} outlived their nanny"
            outcome.count(name, wrong or (f"took {seconds:.0f} s" if seconds > DEADLINE else None))
            doing.end()
    outcome.notes.append(f"{usual:.1f} s when nobody disturbs it, at most {longest:.1f} s")
    return outcome
