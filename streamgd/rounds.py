"""Partitions: the rows dealt to P streams that are trained apart for a round, and then combined.

P is part of the result; how many threads carry it out is not. A round is a pure function of the state that it begins
with: each partition takes some whole windows of its own stream. Rounds become longer from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .data.cache import BlockCache
from .data.rowgroups import Source
from .data.shuffle import EXTRA_VALUES, PARTITIONS, Plan, Run, default_window_rows, random_order
from .data.stream import START, Position, Times, WindowStream
from .errors import ConfigError
from .executors import Executor, Serial, Threads
from .job import Feed, Job
from .keeper import Keeper
from .kernels.combine import combine_dense, combine_tables
from .kernels.drain import ROWS, STEP
from .state import State
from .steps import Learners, Moment, learn

#: Rounds of the first epoch, at most; each epoch has half as many as the one before.
FIRST_ROUNDS = 32
#: A table of hashed weights is combined so seldom that a round visits each slot so many times in the mean: combining
#: one costs as much as visiting it, on the way through memory.
SLOT_VISITS = 2
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


@dataclass
class Part:
    """What a partition made of a round."""

    state: State
    skipped: int
    times: Times


def deal(job: Job, feed: Feed) -> list[Partition]:
    """Deal the row groups out at random, and plan the windows of each partition.

    Raises
    ------
    ConfigError
        There are fewer row groups than partitions.
    """
    P, rows = job.config.partitions, feed.source.manifest.rows
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
        source = feed.source.subset(chosen)
        window = min(feed.memory.window_rows, default_window_rows(rows[chosen], job.encoder.layout.row_bytes))
        if job.config.window_rows is not None:
            window = min(feed.memory.window_rows, -(-job.config.window_rows // P))
        plan = Plan(
            source.manifest.rows,
            window,
            row_cost=job.encoder.row_cost,
            # Seeds of partitions differ, so that equal row groups are not taken in equal orders.
            seed=int(np.random.SeedSequence((job.config.seed, p, PARTITIONS)).generate_state(1)[0]),
            shuffle=job.config.shuffle,
            extra_values=EXTRA_VALUES // P,
        )
        dealt.append(Partition(source, plan, None if feed.cache is None else CachePart(feed.cache, chosen)))
    return dealt


def rounds_of(job: Job, epoch: int, partitions: list[Partition]) -> int:
    """Rounds of an epoch: from the data and the epoch alone."""
    n = FIRST_ROUNDS >> min(epoch, 30)
    for partition in partitions:
        plan, rows = partition.plan, partition.source.manifest.rows
        whole = n if plan.scattered else plan.total // (ROW_GROUPS * int(rows.max()))
        n = min(n, plan.n_windows, whole)
    if slots := job.encoder.spec.n_slots:
        visits = job.labels.rows * (job.encoder.layout.n_index + job.scales.words)
        n = min(n, int(visits / (SLOT_VISITS * slots * len(partitions))))
    return max(1, n)


@dataclass(frozen=True)
class Round:
    """Number ``index`` of the ``count`` rounds of an epoch."""

    epoch: int
    index: int
    count: int


def local_round(job: Job, state: State, now: Round, memory: list[NDArray[np.float32]], partition: Partition) -> Part:
    """Train a partition's windows of a round, from a state that stays as it is.

    ``memory`` has room for windows of the partitions that are worked on at a time.
    """
    plan, times = partition.plan, Times()
    first, last = (plan.n_windows * k // now.count for k in (now.index, now.index + 1))
    learners, skipped, rows = Learners(job, state.copy()), 0, memory.pop()
    stream = WindowStream(
        partition.source,
        job.encoder,
        plan,
        n_jobs=0,
        cache=partition.cache,
        start=Position(now.epoch, first),
        stop=Position(now.epoch, last),
        rows=rows,
        times=times,
    )
    for window in stream:
        ends = replace(window, last=window.index == last - 1)  # a mini-batch ends with its round
        for _ in learn(learners, ends, times, max(1, len(window.order)), average=False):
            pass
        skipped += window.skipped + window.lost
    memory.append(rows)
    return Part(learners.state, skipped, times)


def combine(job: Job, start: State, states: list[State]) -> State:
    """What states that began alike become together; those of the first partition are changed."""
    left = states[0]
    began = int(start.counters[ROWS])
    for right in states[1:]:
        rows = [int(state.counters[ROWS]) - began for state in (left, right)]
        share = rows[0] / max(1, sum(rows))
        steps = int(left.counters[STEP]), int(right.counters[STEP])
        step = max(steps)
        dense = left.params, left.slots, right.params, right.slots
        combine_dense(job.problem, job.settings, step, share, job.spread, start.params, start.slots, *dense)
        if left.table is not None:
            tables = start.table, start.marks, left.table, left.marks, right.table, right.marks
            combine_tables(job.problem, job.settings, len(left.params), step, *steps, share, *tables)
        left.totals += right.totals - start.totals
        left.failed[:] = np.maximum(left.failed, right.failed)
        left.counters[ROWS] += rows[1]
        left.counters[STEP] = step
    return left


def advance_in_rounds(
    learners: Learners, feed: Feed, times: Times, keeper: Keeper, start: Position = START, epochs: int = 0
) -> Generator[Moment, None, None]:
    """Take all epochs round by round but the rounds that are done, and pause after each."""
    partitions = deal(learners.job, feed)
    largest = max(partition.plan.capacity for partition in partitions)
    at_a_time = min(len(partitions), feed.memory.n_jobs, max(1, 2 * feed.memory.window_rows // largest))
    executor: Executor = Threads(at_a_time) if at_a_time > 1 else Serial()
    memory = [learners.job.encoder.new_rows(largest) for _ in range(at_a_time)]
    for epoch in range(start.epoch, epochs):
        rounds = rounds_of(learners.job, epoch - (epochs - learners.job.config.passes), partitions)
        done = start.window if epoch == start.epoch else 0
        if done == rounds:
            yield Moment(start, True, 0)
        for number in range(done, rounds):
            job, state = learners.job, learners.state
            now = Round(epoch, number, rounds)
            with keeper.idle():
                parts = executor.map(partial(local_round, job, state, now, memory), partitions)
            state.become(combine(job, state, [part.state for part in parts]))
            state.take_snapshot(job, table_every=1)
            for part in parts:
                times.add(part.times)
            skipped = sum(part.skipped for part in parts)
            yield Moment(Position(epoch, number + 1), number == rounds - 1, skipped, round_ended=True)
