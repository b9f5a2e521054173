"""The tasks of one round: a part each, and what joins them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from distributed import CancelledError, Future
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError

from ..executors import Watch, Work, fold, middle
from .tasks import join, part

if TYPE_CHECKING:
    from .executor import Dask

#: A part that takes so many times the median, and some seconds more, is begun again elsewhere, once half are done.
STRAGGLING, STRAGGLING_SECONDS = 3.0, 5.0
#: Seconds from one look at the cluster to the next, and from one look at the tasks to the next.
LOOKING, POLLING = 1.0, 0.2
#: Seconds to fetch a result before it is asked who is silent.
FETCHING = 15.0
#: Tasks of a round for each thread. With two, so that faster threads could take more, two workers were 1.36 times as
#: fast as one, and 1.48 times with one.
GROUPS_A_THREAD = 1
#: How a question fails that nobody answers.
UNHEARD = (OSError, TimeoutError, ValueError, RuntimeError, ClosedClientError)

Place = tuple[int, int]
AnyFuture = Future[Any]


class Lost(Exception):
    """The scheduler is gone with all that it had, or a worker is there but silent: the round begins again."""


@dataclass
class _Node:
    """A place in the tree, and the task whose result counts there; None once it is not needed any more."""

    future: AnyFuture | None
    since: float | None = None
    done: bool = False

    @property
    def key(self) -> str:
        """Name of the task."""
        return "" if self.future is None else str(self.future.key)


class Tree:
    """The tasks of one round."""

    def __init__(self, cluster: Dask, work: Work, n: int, number: int, careful: bool) -> None:
        self._cluster, self._work, self._n, self._number = cluster, work, n, number
        self._topic = cluster.topic if careful else None
        self._group = group_size(n, cluster.threads_seen)
        self._leaves = groups(n, self._group)
        self._nodes: dict[Place, _Node] = {}
        self._tops: dict[Place, list[AnyFuture]] = {}
        self._ended = threading.Event()
        self._durations: list[float] = []
        self._looked = monotonic()
        self._silent = set(cluster.silent)

    def begin(self, shared: Any, start: Any) -> None:
        """Submit all tasks.

        Raises
        ------
        Lost
            The scheduler is gone.
        """
        try:
            self._here = shared, start
            self._shared, self._start = self._cluster.send_shared(shared), self._cluster.send_start(start)
            # What is small is joined at last by whoever asks: it does not wait for one more task, which takes 7 ms.
            self._tops = {place: [] for place in tops(self._n, self._group, not isinstance(self._start, Future))}
            self._submit_all()
        except UNHEARD as error:
            raise Lost from error

    def let_go(self) -> None:
        """Let the scheduler forget it; whoever still works on it is not waited for."""
        for node in self._nodes.values():
            node.future = None
        self._tops.clear()

    def _submit_all(self) -> None:
        # A round that begins again has other keys, too: the scheduler may still have tasks of those of before.
        options, attempt = self._cluster.where(), self._cluster.attempt()
        for address, leaves in self._shared_out().items():
            wished = self._cluster.wish([address]) if address else options
            self._submit(partial(part, topic=self._topic), "part", leaves, attempt, leaves, **wished)
        for level in levels(self._n, self._group):
            if wanted := [place for place in level if place != (0, self._n) or place in self._tops]:
                self._submit(join, "join", wanted, attempt, *self._halves(wanted), **options)

    def _shared_out(self) -> dict[str, list[Place]]:
        """Leaves by the worker that should take them; "" if that is the scheduler's choice.

        It would give tasks that need a large state to the worker that has it, one after the other, while others idle:
        two workers learned from a click log 1.2 times as fast as one.
        """
        return self._cluster.shares(self._leaves) if isinstance(self._start, Future) else {"": self._leaves}

    def _halves(self, places: list[Place]) -> tuple[list[AnyFuture | None], list[AnyFuture | None]]:
        """Tasks of the left and of the right halves of groups."""
        return (
            [self._nodes[first, middle(first, last)].future for first, last in places],
            [self._nodes[middle(first, last), last].future for first, last in places],
        )

    def _submit(self, function: Any, name: str, places: list[Place], attempt: int, *given: Any, **options: Any) -> None:
        """Submit tasks, which from now on are those whose results count."""
        keys = [self._cluster.key(name, self._number, place, attempt) for place in places]
        fixed = {"work": self._work, "shared": self._shared, "start": self._start}
        futures = self._cluster.submit(function, *given, fixed=fixed, key=keys, **options)
        for place, future in zip(places, futures, strict=True):
            self._nodes[place] = _Node(future)
            if place in self._tops:
                future.add_done_callback(lambda _: self._ended.set())
                self._tops[place].append(future)

    def result(self, watch: Watch) -> Any:
        """Wait for the whole, and fetch it; None if ``watch`` ends it."""
        while True:
            if watch(self._done()):
                return None
            if None in (firsts := self._first()) and not self._ended.wait(POLLING):
                self._look_after()
            self._ended.clear()
            if None in (firsts := self._first()):
                continue
            try:
                fetched = self._cluster.fetch(firsts, FETCHING)
            except TimeoutError:
                self._look_after(at_once=True)
            except (CancelledError, CommClosedError) as error:
                raise Lost from error
            else:
                return fold(fetched, partial(self._work.join, *self._here))

    def _first(self) -> list[Any]:
        """Of each task that is fetched the first that is done; None if none is.

        Raises
        ------
        Exception
            What went wrong with one of them.
        Lost
            It was cancelled or forgotten.
        """
        found: list[Any] = []
        for futures in self._tops.values():
            for future in futures:
                if future.status == "error":
                    raise future.exception(timeout=FETCHING) or AssertionError
                if future.status not in ("pending", "finished"):
                    raise Lost
            found.append(next((future for future in futures if future.status == "finished"), None))
        return found

    @property
    def unfinished(self) -> list[str]:
        """Names of tasks of parts that are not done."""
        return [self._nodes[place].key for place in self._leaves if not self._nodes[place].done]

    def _done(self) -> int:
        """Parts that are done; what was joined is let go of, so that workers need not keep it."""
        for (first, last), node in self._nodes.items():
            if node.done or node.future is None or node.future.status != "finished":
                continue
            node.done = True
            if last - first <= self._group:
                self._durations.append(monotonic() - (node.since or monotonic()))
            else:
                half = middle(first, last)
                self._nodes[first, half].future = self._nodes[half, last].future = None
        return sum(last - first for first, last in self._leaves if self._nodes[first, last].done)

    def _look_after(self, at_once: bool = False) -> None:
        """See now and then who is silent, and which parts take too long."""
        now = monotonic()
        if now - self._looked < LOOKING and not at_once:
            return
        self._looked = now
        if not self._cluster.look():
            if not self._cluster.silent:  # the scheduler is gone, or all workers
                raise Lost
            return
        if self._cluster.silent - self._silent:
            # Others may wait for what a silent worker has, even if somebody else has it too: all is done elsewhere.
            raise Lost
        with suppress(*UNHEARD):
            at = self._cluster.processing()
            self._again(self._straggling(at, now), at)

    def _straggling(self, at: dict[str, str], now: float) -> set[Place]:
        """Parts that take much longer than others, while a worker has nothing to do."""
        leaves = [(place, self._nodes[place]) for place in self._leaves]
        for _, node in leaves:
            if node.since is None and node.key in at:
                node.since = now
        if 2 * len(self._durations) < len(leaves) or not self._cluster.idle(at):
            return set()
        usual = sorted(self._durations)[len(self._durations) // 2]
        late = now - STRAGGLING * usual - STRAGGLING_SECONDS
        return {place for place, node in leaves if not node.done and (node.since or now) < late}

    def _again(self, places: set[Place], at: Mapping[str, str]) -> None:
        """Begin some tasks again under new keys, and all that depend on them."""
        if places:
            attempt = self._cluster.attempt()
            for top in self._tops:
                self._renew(top, places, at, attempt)
            self._cluster.begun_again += 1

    def _renew(self, place: Place, places: set[Place], at: Mapping[str, str], attempt: int) -> bool:
        """Whether the task of a place had to be begun again, as one of some places or since it depends on one."""
        node, (first, last) = self._nodes[place], place
        if node.done and node.future is not None and place not in places:
            return False
        if last - first <= self._group:
            if node.future is not None and place not in places:
                return False
            options = self._cluster.where(at.get(node.key))
            self._submit(partial(part, topic=self._topic), "part", [place], attempt, [place], **options)
            return True
        half = middle(first, last)
        below = [self._renew(one, places, at, attempt) for one in ((first, half), (half, last))]
        if not any(below) and node.future is not None and place not in places:
            return False
        self._submit(join, "join", [place], attempt, *self._halves([place]), **self._cluster.where())
        return True


def group_size(n: int, threads: int) -> int:
    """Parts that one task takes: neighbours, which it joins itself in the order of the tree.

    A task costs 4 ms or more from its being ready to its being done, so there are not many more than threads.

    Examples
    --------
    >>> group_size(8, 1), group_size(8, 2), group_size(64, 5), group_size(3, 8)
    (8, 4, 8, 1)
    """
    size = 1
    while 2 * size <= n and -(-n // (2 * size)) >= GROUPS_A_THREAD * max(1, threads):
        size *= 2
    return size


def groups(n: int, size: int) -> list[Place]:
    """Neighbours that one task takes, ``size`` of them but at the end."""
    return [(first, min(first + size, n)) for first in range(0, n, size)]


def tops(n: int, group: int, small: bool) -> list[Place]:
    """What is fetched: the whole, or its halves where states are small enough to be joined by whoever asks.

    Examples
    --------
    >>> tops(8, 2, small=True), tops(8, 2, small=False), tops(8, 8, small=True)
    ([(0, 4), (4, 8)], [(0, 8)], [(0, 8)])
    """
    if group >= n or not small:
        return [(0, n)]
    half = middle(0, n)
    return [(0, half), (half, n)]


def levels(n: int, group: int = 1) -> Iterator[list[Place]]:
    """What is joined of two, each level of those before it; groups of so many parts are there.

    Examples
    --------
    >>> list(levels(5)), list(levels(5, 2))
    ([[(0, 2), (2, 4)], [(0, 4)], [(0, 5)]], [[(0, 4)], [(0, 5)]])
    """
    found: dict[int, list[Place]] = {}

    def depth(first: int, last: int) -> int:
        if last - first <= group:
            return 0
        half = middle(first, last)
        level = 1 + max(depth(first, half), depth(half, last))
        found.setdefault(level, []).append((first, last))
        return level

    depth(0, n)
    return iter([found[level] for level in sorted(found)])
