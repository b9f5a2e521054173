"""Partitions: the rows dealt to P streams that are trained apart for a round, and then combined.

P is part of the result; how many threads carry it out is not. A round is a pure function of the state that it begins
with: each partition takes some whole windows of its own stream. Rounds become longer: what is learned first moves the
weights most, and the partitions apart; each round costs the same time beside its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .data.cache import BlockCache
from .data.leftout import LeftOut
from .data.rowgroups import Source
from .data.shuffle import EXTRA_VALUES, PARTITIONS, Plan, Run, default_window_rows, random_order
from .data.stream import START, Position, Times, WindowStream
from .errors import ClusterLost, ConfigError, Interrupted
from .executors import Executor, Serial, Threads
from .job import Feed, Job
from .keeper import Keeper
from .kernels.combine import combine_dense, combine_tables
from .kernels.drain import ROWS, STEP
from .listing import Lister
from .state import RoundProgress, State
from .steps import Calls, Learners, Moment, learn

#: Rounds of the first epoch, at most; each epoch has half as many as the one before.
FIRST_ROUNDS = 32
#: Where a partition takes so many rows in a round, rounds of an epoch double in length after every so many. Each round
#: has the slowest to be waited for: two workers had 0.83 of twice the speed of one in 32 rounds of 262,144 rows. The
#: losses of 7 million rows differed by less than 0.00002; with 4,000 rows in a round by 0.004, so few rows do not grow.
PLENTY, GROWING = 131_072, 4
#: A table of hashed weights is combined so seldom that a round visits each slot so many times in the mean: combining
#: one costs as much as visiting it, on the way through memory.
SLOT_VISITS = 2
#: Partitions for each thread of a cluster, so that when one is lost the others share what it did. More are worse to
#: learn from, and each takes some ms of the scheduler a round.
PARTITIONS_A_THREAD = 4
#: Row groups that a partition takes in a round, at least: one that a round cuts in two is read twice up to there.
ROW_GROUPS = 4


class CachePart(NamedTuple):
    """A cache of all row groups, for a source that has some of them."""

    cache: BlockCache
    row_groups: NDArray[np.int64]

    def get(self, run: Run, out: NDArray[np.float32], texts: list[NDArray[np.uint32]]) -> int | None:
        """See `BlockCache.get`."""
        return self.cache.get(Run(int(self.row_groups[run.row_group]), run.spans), out, texts)

    def put(self, epoch: int, row_group: int, *block: Any) -> None:
        """See `BlockCache.put`."""
        self.cache.put(epoch, int(self.row_groups[row_group]), *block)


@dataclass
class Partition:
    """One of the streams."""

    source: Source
    plan: Plan
    cache: CachePart | None


class Dealt:
    """What the partitions of a job share: the job, its row groups, and who has which. It is sent to workers once.

    Parameters
    ----------
    job : Job
        What is trained.
    source : Source
        The row groups; workers open them themselves.
    window_rows : int
        Rows of a window, at most.
    cache : BlockCache, optional
        Encoded rows on the disk of this machine.

    Raises
    ------
    ConfigError
        There are fewer row groups than partitions.
    """

    def __init__(self, job: Job, source: Source, window_rows: int, cache: BlockCache | None = None) -> None:
        self.job, self.source, self.window_rows, self.cache = job, source, window_rows, cache
        self.partitions = _deal(job, source, window_rows, cache)
        self._windows: list[NDArray[np.float32]] = []

    @classmethod
    def of(cls, job: Job, feed: Feed) -> Dealt:
        """Deal out the row groups of a feed."""
        return cls(job, feed.source, feed.memory.window_rows, feed.cache)

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self.job, "source": self.source, "window_rows": self.window_rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def for_job(self, job: Job) -> Dealt:
        """The same rows for another job."""
        other = copy.copy(self)
        other.job = job
        return other

    def through(self, change: Callable[[Any], Any], number: int) -> Dealt:
        """The same, but the source of a partition is what ``change`` makes of it."""
        other, partition = copy.copy(self), self.partitions[number]
        other.partitions = [*self.partitions]
        other.partitions[number] = replace(partition, source=change(partition.source))
        return other

    @property
    def largest(self) -> int:
        """Rows of the largest window."""
        return max(partition.plan.capacity for partition in self.partitions)

    def at_a_time(self, feed: Feed) -> int:
        """Partitions whose windows fit in the memory of the two that there are."""
        return min(len(self.partitions), feed.memory.n_jobs, max(1, 2 * feed.memory.window_rows // self.largest))

    @contextmanager
    def window(self) -> Iterator[NDArray[np.float32]]:
        """Memory for a window, which is kept for the next that asks."""
        try:
            rows = self._windows.pop()
        except IndexError:
            rows = self.job.encoder.new_rows(self.largest)
        yield rows
        self._windows.append(rows)


def _deal(job: Job, source: Source, window_rows: int, cache: BlockCache | None) -> list[Partition]:
    """Deal the row groups out at random, and plan the windows of each partition."""
    P, rows = job.config.streams, source.manifest.rows
    filled = np.flatnonzero(rows)
    if len(filled) < P:
        raise ConfigError(
            f"partitions is {P}, but the data have {len(filled)} row groups, and each partition needs one: lower it, "
            f"or write the data with smaller row groups."
        )
    order = filled[random_order(len(filled), job.config.seed, 0, PARTITIONS)]
    order = order[np.argsort(-rows[order], kind="stable")]  # the largest first: parts of about the same size
    dealt = []
    for p in range(P):
        chosen = np.sort(order[p::P])
        part = source.subset(chosen)
        window = min(window_rows, default_window_rows(rows[chosen], job.encoder.layout.row_bytes))
        if job.config.window_rows is not None:
            window = min(window_rows, -(-job.config.window_rows // P))
        plan = Plan(
            part.manifest.rows,
            window,
            row_cost=job.encoder.row_cost,
            # Seeds of partitions differ, so that equal row groups are not taken in equal orders.
            seed=int(np.random.SeedSequence((job.config.seed, p, PARTITIONS)).generate_state(1)[0]),
            shuffle=job.config.shuffle,
            extra_values=EXTRA_VALUES // P,
        )
        dealt.append(Partition(part, plan, None if cache is None else CachePart(cache, chosen)))
    return dealt


def with_partitions(config: Config, source: Source, kept: int | None, threads: int | None) -> Config:
    """The configuration with its partitions: those of a checkpoint, or for a cluster of so many threads.

    Raises
    ------
    ConfigError
        There are too few row groups, or a parameter does nothing on a cluster.
    """
    if threads is not None:
        if config.cache not in ("auto", None):
            raise ConfigError("cache does nothing on a cluster, whose workers read the shards; leave it out.")
        if config.partitions == 1:
            raise ConfigError("partitions=1 is one stream, which no cluster can divide: leave it out, or give more.")
        config = replace(config, cache=None)
    if config.partitions is None and kept is not None:
        config = replace(config, partitions=kept)
    if config.partitions is None and threads is not None:
        row_groups = int(np.count_nonzero(source.manifest.rows))
        config = replace(config, partitions=default_partitions(row_groups, threads))
    return config.check()


def default_partitions(row_groups: int, threads: int) -> int:
    """Partitions of a job on a cluster that has so many threads when it begins: a multiple of these.

    Raises
    ------
    ConfigError
        There are too few row groups to divide.
    """
    if row_groups < 2:
        raise ConfigError(
            "the data are one row group, which no cluster can divide: leave out the cluster, or write the data with "
            "smaller row groups."
        )
    threads = min(threads, row_groups)
    times = max(1, min(PARTITIONS_A_THREAD, row_groups // (ROW_GROUPS * threads)))
    return max(2, threads * times)


def rounds_of(job: Job, epoch: int, partitions: list[Partition]) -> list[int]:
    """Where rounds of an epoch begin and end, in equal shares of the epoch: from the data and the epoch alone."""
    n = FIRST_ROUNDS >> min(epoch, 30)
    for partition in partitions:
        plan, rows = partition.plan, partition.source.manifest.rows
        whole = n if plan.scattered else plan.total // (ROW_GROUPS * int(rows.max()))
        n = min(n, plan.n_windows, whole)
    if slots := job.encoder.spec.n_slots:
        visits = job.labels.rows * (job.encoder.layout.n_index + job.scales.words)
        n = min(n, most_rounds(visits, slots, len(partitions)))
    return ends(max(1, n), min(partition.plan.total for partition in partitions))


def most_rounds(visits: float, slots: int, partitions: int) -> int:
    """Rounds of an epoch that has so many hashed features in all: combining the slots takes its time."""
    return int(visits / (SLOT_VISITS * slots * partitions))


def ends(n: int, rows: float) -> list[int]:
    """Where rounds begin and end in ``n`` shares of an epoch of so many rows a partition; many rows grow longer.

    Examples
    --------
    >>> ends(4, 1000), ends(20, 20 * PLENTY)
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20])
    """
    found = [0]
    while found[-1] < n:
        length = 1 << (len(found) - 1) // GROWING if rows >= n * PLENTY else 1
        found.append(min(n, found[-1] + length))
    return found


@dataclass
class Part:
    """What a partition, or several of them together, made of a round.

    ``left_out`` is what it could not read: of a worker elsewhere, all that this worker could not read so far.
    """

    state: State
    skipped: int
    times: Times
    left_out: LeftOut


@dataclass(frozen=True)
class Round:
    """From share ``first`` to ``last`` of ``n`` of an epoch: each partition takes some whole windows of its own."""

    epoch: int
    first: int
    last: int
    n: int

    def part(self, shared: Dealt, start: State, number: int) -> Part:
        """Train a partition's windows of the round."""
        job, partition, times = shared.job, shared.partitions[number], Times()
        plan = partition.plan
        first, last = (plan.n_windows * share // self.n for share in (self.first, self.last))
        learners, skipped = Learners(job, start.arriving(job)), 0
        lister = Lister(job.encoder.spec.n_slots, job.encoder.layout)
        with shared.window() as rows:
            stream = WindowStream(
                partition.source,
                job.encoder,
                plan,
                n_jobs=0,
                cache=partition.cache,
                start=Position(self.epoch, first),
                stop=Position(self.epoch, last),
                rows=rows,
                times=times,
            )
            for window in stream:
                ends = replace(window, last=window.index == last - 1)  # a mini-batch ends with its round
                for _ in learn(learners, lister, ends, times, Calls(plan.capacity, plan.capacity)):
                    pass
                skipped += window.skipped + window.lost
        return Part(learners.state.leaving(), skipped, times, partition.source.left_out)

    def join(self, shared: Dealt, start: State, left: Part, right: Part) -> Part:
        """Combine what neighbours learned."""
        state = combine(shared.job, start, left.state, right.state)
        times = Times(**vars(left.times))
        times.add(right.times)
        return Part(state, left.skipped + right.skipped, times, left.left_out.merged(right.left_out))


def combine(job: Job, start: State, left: State, right: State) -> State:
    """What two states that began alike become together."""
    found, began = left.copy(), int(start.counters[ROWS])
    rows = [int(state.counters[ROWS]) - began for state in (left, right)]
    share = rows[0] / max(1, sum(rows))
    steps = int(left.counters[STEP]), int(right.counters[STEP])
    step = max(steps)
    dense = found.params, found.slots, right.params, right.slots
    combine_dense(job.problem, job.settings, step, share, job.spread, start.params, start.slots, *dense)
    if found.table is not None:
        tables = start.table, start.marks, found.table, found.marks, right.table, right.marks
        combine_tables(job.problem, job.settings, len(found.params), step, *steps, share, *tables)
    found.totals += right.totals - start.totals
    found.failed[:] = np.maximum(left.failed, right.failed)
    found.counters[ROWS] += rows[1]
    found.counters[STEP] = step
    return found


def on_threads(dealt: Dealt, feed: Feed) -> Executor:
    """Who carries out rounds in this process."""
    at_a_time = dealt.at_a_time(feed)
    return Threads(at_a_time) if at_a_time > 1 else Serial()


def advance_in_rounds(
    learners: Learners,
    feed: Feed,
    times: Times,
    keeper: Keeper,
    start: Position = START,
    epochs: int = 0,
    *,
    executor: Executor | None = None,
    watch: Callable[[RoundProgress], None] = lambda _: None,
) -> Generator[Moment, None, None]:
    """Take all epochs round by round but the rounds that are done, and pause after each."""
    dealt = Dealt.of(learners.job, feed)
    executor = executor or on_threads(dealt, feed)
    n = len(dealt.partitions)
    for epoch in range(start.epoch, epochs):
        bounds = rounds_of(learners.job, epoch - (epochs - learners.job.config.passes), dealt.partitions)
        rounds = len(bounds) - 1
        done = start.window if epoch == start.epoch else 0
        if done == rounds:
            yield Moment(start, True, 0)
        for number in range(done, rounds):
            job, state = learners.job, learners.state
            if job is not dealt.job:  # models were dropped
                dealt = dealt.for_job(job)
            part = carried_out(
                executor,
                Round(epoch, bounds[number], bounds[number + 1], bounds[-1]),
                dealt,
                state.leaving(),
                keeper,
                RoundProgress(number, rounds, n),
                watch,
            )
            state.come_back(part.state)
            state.take_snapshot(job, feed.memory.n_jobs, table_every=1)
            times.add(part.times)
            feed.source.left_out.absorb(part.left_out)
            yield Moment(Position(epoch, number + 1), number == rounds - 1, part.skipped, round_ended=True)


def carried_out(
    executor: Executor,
    work: Any,
    dealt: Dealt,
    start: Any,
    keeper: Keeper,
    standing: RoundProgress,
    watch: Callable[[RoundProgress], None],
) -> Any:
    """What all partitions give together; while they are at it, nothing changes here.

    Raises
    ------
    Interrupted
        The keeper was asked to end training.
    ClusterLost
        Nobody is there to do it.
    """

    def ended(done: int) -> bool:
        watch(replace(standing, partitions_done=done, workers=executor.workers))
        return keeper.asked.is_set()

    try:
        with keeper.idle():
            found = executor.reduce(work, dealt, start, len(dealt.partitions), ended)
    except ClusterLost as error:
        raise keeper.resumable(error) from error
    if found is None:
        keeper.reached(False)
        raise Interrupted(keeper.farewell())
    return found
