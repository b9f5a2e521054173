"""Costs as they are on this machine, and real rounds to hold a simulation against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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
from streamgd.cluster.executor import Dask
from streamgd.cluster.options import ClusterOptions
from streamgd.cluster.tasks import given
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.executors import Serial
from streamgd.job import prepare
from streamgd.rounds import Dealt, Round, rounds_of
from streamgd.state import State
from streamgd.trainer import train

from .costs import Costs, Line, Shape

#: Leaves of rounds that do nothing, and bytes of states that travel.
LEAVES, SIZES = (1, 2, 4, 8, 16, 32, 64), (1 << 20, 8 << 20, 32 << 20)
REPEATS = 7


class Nothing:
    """Work that takes no time."""

    def part(self, shared: Any, start: Any, number: int) -> Any:
        """Nothing."""
        return start

    def join(self, shared: Any, start: Any, left: Any, right: Any) -> Any:
        """Nothing."""
        return left


def options_of(name: str) -> dict[str, Any]:
    """Configuration of a data set."""
    return {"hash_bits": HASH_BITS} if name == "clicks" else {}


def prepared(directory: Path, name: str) -> tuple[Any, Any]:
    """A job of one epoch without a cache."""
    config = Config(epochs=1, partitions=PARTITIONS, polish=0, cache=None, n_jobs=1, **options_of(name))
    return prepare(ParquetSource(directory), "y", config.check())


def measure(places: dict[str, Path]) -> Costs:
    """All costs; ``places`` are directories of shards for each shape."""
    shapes = {name: _shape(place, name) for name, place in places.items()}
    with connected(ClusterOptions("local:2")) as client:
        whole, task, level = _rounds(client)
        send, move, fetch = _ways(client)
    return Costs(machine(), shapes, whole, task, level, send, move, fetch)


def real(place: Path, name: str, workers: int, repeats: int) -> tuple[float, list[float], int]:
    """Seconds of the rounds of an epoch on real workers, the rows of a partition in each, and the partitions."""
    job, feed = prepared(place, name)
    dealt = Dealt.of(job, feed)
    bounds = rounds_of(job, 0, dealt.partitions)
    rows = [job.labels.rows / PARTITIONS * share for share in np.diff(bounds) / bounds[-1]]
    with connected(ClusterOptions(f"local:{workers}")) as client:
        executor = Dask(client)
        seconds = []
        for _ in range(repeats + 1):
            job, feed = prepared(place, name)
            seconds.append(train(job, feed, State.start(job), executor=executor).seconds)
    return median(seconds[1:]), rows, PARTITIONS


def _shape(place: Path, name: str) -> Shape:
    """What parts cost: of whole epochs one after the other, and of two processes at a time."""
    job, feed = prepared(place, name)
    dealt = Dealt.of(job, feed)
    start = State.start(job).leaving()
    n, rows = min(p.plan.n_windows for p in dealt.partitions), dealt.partitions[0].plan.total
    lengths = sorted({1, max(1, n // 4), max(1, n // 2)})
    points: list[tuple[float, float]] = []
    parts: list[Any] = []
    for now in [Round(0, 0, length, n) for length in lengths for _ in range(2)]:
        for number in range(PARTITIONS):
            began = perf_counter()
            parts = [*parts[-1:], now.part(dealt, start, number)]
            points.append((rows * now.last / n, perf_counter() - began))
    points = points[PARTITIONS:]  # the first ones take memory
    line = _line(points)
    spread = float(np.std([np.log(seconds / line(count)) for count, seconds in points]))
    began = perf_counter()
    Round(0, 0, 1, n).join(dealt, start, *parts)
    join = perf_counter() - began
    size = sum(value.nbytes for value in vars(start).values() if isinstance(value, np.ndarray))
    return Shape(line, spread, _beside(place, name), join, size, job.encoder.layout.n_index)


def _alone(place: Path, name: str) -> float:
    job, feed = prepared(place, name)
    train(job, feed, State.start(job), executor=Serial())
    job, feed = prepared(place, name)
    return train(job, feed, State.start(job), executor=Serial()).seconds


def _beside(place: Path, name: str) -> float:
    """Times as long that an epoch takes in one of two processes as in one that is alone."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ratios = []
        for _ in range(2):
            alone = pool.submit(_alone, place, name).result()
            two = [future.result() for future in [pool.submit(_alone, place, name) for _ in range(2)]]
            ratios.append(max(1.0, sum(two) / 2 / alone))
    return median(ratios)


def _line(points: list[tuple[float, float]]) -> Line:
    """Least squares of the relative errors, with no negative parts."""
    x, y = np.array(points).T
    if len(set(x)) == 1:
        return Line(0.0, float(np.median(y / x)))
    A = np.column_stack([1 / y, x / y])
    fixed, each = np.linalg.lstsq(A, np.ones(len(y)), rcond=None)[0]
    if fixed < 0:
        return Line(0.0, float(np.median(y / x)))
    return Line(float(fixed), float(each))


def _timed(what: Callable[[], Any], repeats: int = REPEATS) -> float:
    seconds = []
    for _ in range(repeats):
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


def _rounds(client: Any) -> tuple[float, float, float]:
    """A round of one task, each further task, and each level of joins on workers."""
    executor, start = Dask(client), np.zeros(64)
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
        for repeat in range(REPEATS):
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
