"""Costs as they are on this machine, and real epochs to hold a simulation against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from benchmarks.clusters import PARTITIONS
from benchmarks.report import machine
from benchmarks.shapes import HASH_BITS

from streamgd.cluster import tree
from streamgd.cluster.connect import connected
from streamgd.cluster.executor import Dask, bytes_of
from streamgd.cluster.options import ClusterOptions
from streamgd.cluster.tasks import given
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.executors import Executor, Serial, Watch
from streamgd.job import prepare
from streamgd.rounds import Dealt, rounds_of
from streamgd.state import State
from streamgd.trainer import train

from .costs import PIECE, Costs, Line, Shape

#: Leaves of rounds that do nothing, and bytes of states that travel.
LEAVES, SIZES = (1, 2, 4, 8, 16, 32, 64), (1 << 20, 8 << 20, 32 << 20, 64 << 20)
#: Times that the latter two are looked at, and each number of leaves.
TRIPS, TIMES = 5, 7
#: Processes beside each other on the two processors, and as many again.
TWO, FOUR = 2, 4
#: Real epochs whose mean counts.
TIMED = 2


class Nothing:
    """Work that takes no time."""

    def part(self, shared: Any, start: Any, number: int) -> Any:
        """Nothing."""
        return start

    def join(self, shared: Any, start: Any, left: Any, right: Any) -> Any:
        """Nothing."""
        return left


@dataclass
class Told:
    """What an epoch in one process consisted of."""

    parts: list[tuple[float, float]] = field(default_factory=list)
    joins: list[float] = field(default_factory=list)
    between: float = 0.0
    size: int = 0
    index: int = 0
    slots: int = 0


class Clocked(Serial):
    """One partition after the other, with a clock at each part and each join."""

    def __init__(self) -> None:
        self.told, self.seconds, self.rounds = Told(), 0.0, 0

    def reduce(self, work: Any, shared: Any, start: Any, n: int, watch: Watch) -> Any:
        """See `Serial`."""
        spec, layout = shared.job.encoder.spec, shared.job.encoder.layout
        self.told.size, self.told.index, self.told.slots = bytes_of(start), layout.n_index, spec.n_slots
        began = perf_counter()
        found = super().reduce(_ClockedWork(work, self.told), shared, start, n, watch)
        self.seconds, self.rounds = self.seconds + perf_counter() - began, self.rounds + 1
        return found


@dataclass
class _ClockedWork:
    work: Any
    told: Told

    def part(self, shared: Any, start: Any, number: int) -> Any:
        began = perf_counter()
        found = self.work.part(shared, start, number)
        rows = shared.partitions[number].plan.total * (self.work.last - self.work.first) / self.work.n
        self.told.parts.append((rows, perf_counter() - began))
        return found

    def join(self, shared: Any, start: Any, left: Any, right: Any) -> Any:
        began = perf_counter()
        found = self.work.join(shared, start, left, right)
        self.told.joins.append(perf_counter() - began)
        return found


def prepared(directory: Path, name: str) -> tuple[Any, Any]:
    """A job of one epoch without a cache."""
    options: dict[str, Any] = {"hash_bits": HASH_BITS} if name == "clicks" else {}
    config = Config(epochs=1, partitions=PARTITIONS, polish=0, cache=None, n_jobs=1, **options)
    return prepare(ParquetSource(directory), "y", config.check())


def epoch(place: Path, name: str, executor: Executor) -> float:
    """Seconds of an epoch, from its first round to its last."""
    job, feed = prepared(place, name)
    return train(job, feed, State.start(job), executor=executor).seconds


def clocked(place: Path, name: str) -> Told:
    """What an epoch in this process consists of."""
    executor = Clocked()
    seconds = epoch(place, name, executor)
    told = executor.told
    told.between = (seconds - executor.seconds) / executor.rounds
    return told


def rounds(place: Path, name: str) -> list[float]:
    """Rows that a partition takes in each round of an epoch."""
    job, feed = prepared(place, name)
    bounds = rounds_of(job, 0, Dealt.of(job, feed).partitions)
    return [float(job.labels.rows / PARTITIONS * share) for share in np.diff(bounds) / bounds[-1]]


def real(places: dict[str, Path], workers: int) -> dict[str, float]:
    """Seconds of an epoch of each shape on a cluster that is there for nothing else.

    Workers that are idle slow others down: with seven of them two took 9 s for what takes them 6.5 s alone.
    """
    with connected(ClusterOptions(f"local:{workers}")) as client:
        executor, found = Dask(client), {}
        for name, place in places.items():
            epoch(place, name, executor)  # loads kernels
            found[name] = sum(epoch(place, name, executor) for _ in range(TIMED)) / TIMED
    return found


def measure(places: dict[str, Path]) -> Costs:
    """All costs as they are now; ``places`` are directories of shards for each shape."""
    with connected(ClusterOptions(f"local:{TWO}")) as client:
        whole, task, level = _rounds(Dask(client))
        send, move, fetch = _ways(client)
    shapes = {name: _shape(place, name) for name, place in places.items()}
    return Costs(machine(), shapes, whole, task, level, send, move, fetch)


def _told(place: Path, name: str, processes: int) -> list[Told]:
    """What epochs tell in some processes that are as old as workers are in `real`: memory gets faster with its use."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        turns = [[pool.submit(clocked, place, name) for _ in range(processes)] for _ in range(1 + TIMED)]
        return [one.result() for turn in turns[1:] for one in turn]


def _learning(several: list[Told]) -> float:
    return sum(seconds for told in several for _, seconds in told.parts) / len(several)


def _shape(place: Path, name: str) -> Shape:
    """What a process that is alone tells, and how much slower several are beside each other."""
    alone, beside, crowded = (_told(place, name, processes) for processes in (1, TWO, FOUR))
    parts, joins, one = [part for told in alone for part in told.parts], [told.joins for told in alone], alone[-1]
    line, least = _line(parts), _learning(alone)
    spread = float(np.std([np.log(seconds / line(count)) for count, seconds in parts]))
    return Shape(
        part=line,
        spread=spread * max(1.0, median(seconds for _, seconds in parts) / PIECE) ** 0.5,
        beside=max(1.0, _learning(beside) / least),
        crowded=max(1.0, _learning(crowded) / least),
        join=float(np.mean(joins)),
        between=one.between,
        size=one.size,
        index=one.index,
        slots=one.slots,
    )


def _line(points: list[tuple[float, float]]) -> Line:
    """Least squares of the relative errors, with no negative parts."""
    x, y = np.array(points).T
    if len(set(x)) == 1:
        return Line(0.0, float(np.median(y / x)))
    A = np.column_stack([1 / y, x / y])
    fixed, each = np.linalg.lstsq(A, np.ones(len(y)), rcond=None)[0]
    if fixed < 0:
        return Line(0.0, float(np.median(y / x)))
    if each < 0:
        return Line(float(np.median(y)), 0.0)
    return Line(float(fixed), float(each))


def _timed(what: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(TIMES):
        began = perf_counter()
        what()
        seconds.append(perf_counter() - began)
    return median(seconds)


@contextmanager
def _groups_of_one() -> Iterator[None]:
    """Each partition in a task of its own."""
    before, tree.GROUPS_A_THREAD = tree.GROUPS_A_THREAD, 1 << 20
    try:
        yield
    finally:
        tree.GROUPS_A_THREAD = before


def _rounds(executor: Dask) -> tuple[float, float, float]:
    """A round of one task, each further task, and each level of joins on workers."""
    start = np.zeros(64)
    points = []
    with _groups_of_one():
        for leaves in LEAVES:
            executor.reduce(Nothing(), "x", start, leaves, lambda _: False)
            seconds = _timed(
                lambda n=leaves: executor.reduce(Nothing(), "x", start, n, lambda _: False)  # type: ignore[misc]
            )
            joins = max(0, leaves - 2)  # the last one is the driver's
            points.append((1.0, leaves + joins - 1, max(0, leaves.bit_length() - 2), seconds))
    A, y = np.array([point[:3] for point in points]), np.array([point[3] for point in points])
    found = np.linalg.lstsq(A / y[:, None], np.ones(len(y)), rcond=None)[0]
    return tuple(max(0.0, float(value)) for value in found)  # type: ignore[return-value]


def _ways(client: Any) -> tuple[Line, Line, Line]:
    """How long states are on their way, beyond what a small one takes."""
    one, two = list(client.scheduler_info()["workers"])
    found: dict[str, list[tuple[float, float]]] = {"send": [], "move": [], "fetch": []}
    for size in SIZES:
        for repeat in range(TRIPS):
            state = np.random.default_rng(repeat).random(size // 8)
            began = perf_counter()
            here = client.submit(given, state, pure=False, workers=[one])
            here.exception()
            sent = perf_counter()
            there = client.submit(_nothing_of, here, pure=False, workers=[two])
            there.exception()
            moved = perf_counter()
            here.result()
            found["send"].append((size, sent - began))
            found["move"].append((size, moved - sent))
            found["fetch"].append((size, perf_counter() - moved))
    send, move, fetch = (_line(points) for points in found.values())
    return send, move, fetch


def _nothing_of(_: Any) -> None:
    return None
