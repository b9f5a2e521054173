"""Rounds on a cluster, event by event, as `streamgd.cluster` has them carried out.

The scheduler hands out one task after the other, in order. A worker that is free takes the next group of partitions, if
need be after it got the state that the round begins with, which spreads from worker to worker: who has it passes it on.
What is joined of two is joined where one of them is; at last the driver fetches the whole. What a dead worker had is
made again, and parts that take much longer than others have a twin.

Left out: the memory of workers, heartbeats, and that joins take turns with parts.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from statistics import median

from streamgd.cluster.executor import SMALL
from streamgd.cluster.tree import LOOKING, STRAGGLING, STRAGGLING_SECONDS, Place, group_size, groups, tops
from streamgd.executors import middle

from .costs import PIECE, Costs, Shape

#: Where the time of a round goes.
KINDS = ("parts", "slowest", "starting", "joining", "driver")


@dataclass(frozen=True)
class Machines:
    """What there is to work with.

    Attributes
    ----------
    workers : int
        Each of one thread.
    cores : int or None
        Processors that all of them share; None if each has its own machine.
    stragglers, straggling : float
        Share of the tasks that take so many times as long.
    deaths : float
        Deaths of each worker in an hour.
    back : float
        Seconds until there is another one in its place.
    """

    workers: int
    cores: int | None = None
    stragglers: float = 0.0
    straggling: float = 5.0
    deaths: float = 0.0
    back: float = 30.0


@dataclass
class Epoch:
    """What came of it: seconds, where they went, and what went wrong."""

    seconds: float = 0.0
    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    tasks: int = 0
    twins: int = 0
    deaths: int = 0

    @property
    def efficiency(self) -> float:
        """Share of the time in which workers learn."""
        return self.shares["parts"] / self.seconds


@dataclass
class _Node:
    """A place in the tree: who has its result, or who is at it; a result that was joined is held by nobody."""

    holder: int | None = None
    done: bool = False
    at_it: dict[int, float] = field(default_factory=dict)


class Simulation:
    """An epoch on a cluster; equal seeds give equal epochs.

    Parameters
    ----------
    costs : Costs
        What things cost there.
    shape : Shape
        What parts cost.
    machines : Machines
        What there is.
    partitions : int
        Parts of each round.
    rounds : list of float
        Rows that a partition takes in each.
    seed : int
        Of what varies.
    """

    def __init__(
        self, costs: Costs, shape: Shape, machines: Machines, partitions: int, rounds: list[float], seed: int = 0
    ) -> None:
        self._costs, self._shape, self._machines, self._n, self._rounds = costs, shape, machines, partitions, rounds
        self._small = shape.size <= SMALL
        self._chance, self._fate = random.Random(seed), random.Random(seed + 1)
        self._gone: dict[int, float] = {}
        self._dying = [self._life(0.0) for _ in range(machines.workers)]
        self._now = 0.0
        self.found = Epoch()

    def run(self) -> Epoch:
        """Carry all rounds out."""
        for rows in self._rounds:
            self._round(rows)
        self.found.seconds = self._now
        return self.found

    def _life(self, now: float) -> float:
        return now + self._fate.expovariate(self._machines.deaths / 3600) if self._machines.deaths else math.inf

    # A round begins at the driver.

    def _round(self, rows: float) -> None:
        costs, machines, n, began = self._costs, self._machines, self._n, self._now
        group = group_size(n, machines.workers)
        self._leaves, self._tops = groups(n, group), tops(n, group, self._small)
        self._group, self._rows = group, rows
        self._crowd = self._crowded(min(machines.workers, len(self._leaves)))
        self._nodes: dict[Place, _Node] = {}
        self._waiting = list(reversed(self._leaves))
        self._busy: dict[int, Place] = {}
        self._ends: dict[int, float] = {}
        self._durations: list[float] = []
        self._events: list[tuple[float, int, str, int, Place]] = []
        self._planned = 0
        self._has: dict[int, float] = {}
        # A round of one task has a hop to the worker and one back.
        self._sent = began + costs.round / 2 + (0.0 if self._small else costs.send(self._shape.size))
        self._free = self._sent
        self._leaf_begins, self._leaf_ends, self._work = math.inf, 0.0, 0.0
        for worker, at in enumerate(self._dying):
            self._plan(at, "death", worker)
        for worker, at in self._gone.items():
            self._plan(at, "back", worker)
        self._plan(self._sent + LOOKING, "look", -1)
        for worker in range(machines.workers):
            self._hand_out(self._sent, worker)
        while not all(place in self._nodes and self._nodes[place].done for place in self._tops):
            now, _, kind, worker, place = heappop(self._events)
            self._now = max(self._now, now)
            getattr(self, f"_{kind}")(now, worker, place)
        joined = self._now
        fetched = joined + costs.round / 2 + (0.0 if self._small else costs.fetch(self._shape.size))
        self._now = fetched + (self._shape.join if len(self._tops) > 1 else 0.0) + self._shape.between
        shares, learning = self.found.shares, min(self._leaf_ends - self._leaf_begins, self._work / machines.workers)
        shares["starting"] += self._leaf_begins - began
        shares["parts"] += learning
        shares["slowest"] += self._leaf_ends - self._leaf_begins - learning
        shares["joining"] += joined - self._leaf_ends
        shares["driver"] += self._now - joined

    def _crowded(self, working: int) -> float:
        """Times as long that all takes where so many share the processors."""
        cores = self._machines.cores
        if cores is None or working == 1:
            return 1.0
        return self._shape.beside if working <= cores else self._shape.crowded * working / (2 * cores)

    def _move(self) -> float:
        """Seconds for a state from one worker to another."""
        return self._costs.move(self._shape.size) * self._crowd

    def _plan(self, at: float, kind: str, worker: int, place: Place = (-1, -1)) -> None:
        if at < math.inf:
            self._planned += 1
            heappush(self._events, (at, self._planned, kind, worker, place))

    def _scheduled(self, now: float) -> float:
        """When the scheduler has seen to one more thing."""
        self._free = max(self._free, now) + self._costs.task
        return self._free

    # Workers.

    def _hand_out(self, now: float, worker: int) -> None:
        """Give a worker that is free the next group."""
        if worker in self._gone or worker in self._busy:
            return
        while self._waiting:
            place = self._waiting.pop()
            if not (place in self._nodes and self._nodes[place].done):
                self._begin(now, worker, place)
                return

    def _begin(self, now: float, worker: int, place: Place) -> None:
        at = self._scheduled(now)
        if not self._small and worker not in self._has:
            # Those that have it pass it on, so in each of these times as many get it as had it.
            times = 1 + math.floor(math.log2(len(self._has) + 1))
            self._has[worker] = at = max(at, self._sent + times * self._move())
        self._busy[worker] = place
        self._nodes.setdefault(place, _Node()).at_it[worker] = at
        self.found.tasks += 1
        self._leaf_begins = min(self._leaf_begins, at)
        self._ends[worker] = at + self._seconds(place)
        self._plan(self._ends[worker], "leaf", worker, place)

    def _seconds(self, place: Place) -> float:
        shape, machines = self._shape, self._machines
        seconds = (place[1] - place[0] - 1) * shape.join  # the worker joins what it made itself
        usual = shape.part(self._rows)
        spread = shape.spread * math.sqrt(min(1.0, PIECE / max(usual, 1e-9)))
        for _ in range(*place):
            seconds += usual * self._chance.lognormvariate(-(spread**2) / 2, spread)
        seconds *= self._crowd
        if machines.stragglers and self._chance.random() < machines.stragglers:
            seconds *= machines.straggling
        return seconds

    def _leaf(self, now: float, worker: int, place: Place) -> None:
        """A worker has done a group, unless it died before, or has something else to do."""
        if worker in self._gone or self._busy.get(worker) != place or self._ends[worker] != now:
            return
        node = self._nodes[place]
        began = node.at_it.pop(worker)
        del self._busy[worker]
        if not node.done:
            self._durations.append(now - began)
            self._work += now - began
            self._leaf_ends = max(self._leaf_ends, now)
            self._done(now, worker, place)
        self._hand_out(now, worker)

    def _done(self, now: float, worker: int, place: Place) -> None:
        node = self._nodes.setdefault(place, _Node())
        node.done, node.holder = True, worker
        if place in self._tops:
            return
        above = self._above(place)
        half = middle(*above)
        both = [self._nodes.get(one) for one in ((above[0], half), (half, above[1]))]
        if all(one is not None and one.done for one in both):
            self.found.tasks += 1
            moved = self._move() if len({one.holder for one in both if one}) > 1 else 0.0
            at = self._scheduled(now) + self._costs.level + moved + self._shape.join
            self._nodes[above] = _Node(at_it={worker: now})
            self._plan(at, "join", worker, above)

    def _above(self, place: Place) -> Place:
        """The group of which a place is a half."""
        first, last = 0, self._n
        while True:
            half = middle(first, last)
            if place in ((first, half), (half, last)):
                return first, last
            first, last = (first, half) if place[1] <= half else (half, last)

    def _join(self, now: float, worker: int, place: Place) -> None:
        node = self._nodes.get(place)
        if node is None or worker not in node.at_it or node.done:
            return
        half = middle(*place)
        if all(one in self._nodes and self._nodes[one].done for one in ((place[0], half), (half, place[1]))):
            for one in ((place[0], half), (half, place[1])):
                self._nodes[one].holder = None
            self._done(now, worker, place)

    # What goes wrong.

    def _death(self, now: float, worker: int, _: Place) -> None:
        if worker in self._gone or now < self._dying[worker]:
            return
        self.found.deaths += 1
        self._gone[worker] = now + self._machines.back
        self._plan(self._gone[worker], "back", worker)
        self._has.pop(worker, None)
        place = self._busy.pop(worker, None)
        if place is not None:
            self._nodes[place].at_it.pop(worker)
            self._waiting.append(place)
        for lost in [place for place, node in self._nodes.items() if node.holder == worker or worker in node.at_it]:
            self._make_again(lost)
        for other in range(self._machines.workers):
            self._hand_out(now, other)

    def _make_again(self, place: Place) -> None:
        """What was lost is made of what it was made of, which nobody has any more either."""
        node = self._nodes.get(place)
        if node is None:
            return
        if place[1] - place[0] <= self._group:
            node.done, node.holder = False, None
            if not node.at_it:  # or else a twin will have it
                self._waiting.append(place)
            return
        del self._nodes[place]
        half = middle(*place)
        for one in ((place[0], half), (half, place[1])):
            below = self._nodes.get(one)
            if below is not None and below.done and below.holder is None:
                self._make_again(one)

    def _back(self, now: float, worker: int, _: Place) -> None:
        if worker in self._gone and now >= self._gone[worker]:
            del self._gone[worker]
            self._dying[worker] = self._life(now)
            self._plan(self._dying[worker], "death", worker)
            self._hand_out(now, worker)

    def _look(self, now: float, _: int, __: Place) -> None:
        """Begin groups again that take much longer than others, where somebody has nothing to do."""
        idle = [w for w in range(self._machines.workers) if w not in self._gone and w not in self._busy]
        if 2 * len(self._durations) >= len(self._leaves):
            late = now - STRAGGLING * median(self._durations) - STRAGGLING_SECONDS
            for place in self._leaves:
                node = self._nodes.get(place)
                alone = node is not None and not node.done and len(node.at_it) == 1
                if node is not None and alone and next(iter(node.at_it.values())) < late and idle:
                    self.found.twins += 1
                    self._begin(now, idle.pop(), place)
        self._plan(now + LOOKING, "look", -1)


def simulate(
    costs: Costs, shape: Shape, machines: Machines, partitions: int, rounds: list[float], seed: int = 0
) -> Epoch:
    """Simulate an epoch."""
    return Simulation(costs, shape, machines, partitions, rounds, seed).run()
