"""Who carries out the partitions of a round; it never enters the mathematics.

A round is a part for each partition, and a fixed tree in which neighbours are joined two by two. Both are pure
functions, so an executor may do them wherever it likes, and again where they were lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Protocol, TypeVar

from .data.threads import ordered

Part = TypeVar("Part")

#: Told how many parts are done; says whether nobody waits for the rest any more.
Watch = Callable[[int], bool]


class Work(Protocol):
    """What is done in a round. Nothing that is given is changed, and what comes back belongs to whoever asked.

    What is ``shared`` may have a method ``through(change, number)``: the same, but what a part reads from is what a
    function makes of its source.
    """

    def part(self, shared: Any, start: Any, number: int) -> Any:
        """What partition ``number`` makes of where the round starts; ``shared`` is fixed for the whole job."""

    def join(self, shared: Any, start: Any, left: Any, right: Any) -> Any:
        """What the parts of neighbours, or of groups of them, are together."""


class Executor(Protocol):
    """Carries out rounds."""

    @property
    def workers(self) -> int | None:
        """Processes that do the work, if it is not this one."""

    def reduce(self, work: Work, shared: Any, start: Any, n: int, watch: Watch) -> Any:
        """All of ``n`` parts, joined in the order that `middle` fixes; None if ``watch`` has ended it.

        The first error is raised.
        """


def middle(first: int, last: int) -> int:
    """Where a group of parts is cut in two: the first half is the largest power of two that leaves a second.

    Examples
    --------
    >>> middle(0, 2), middle(0, 7), middle(4, 7)
    (1, 4, 6)
    """
    return first + (1 << (last - first - 1).bit_length() - 1)


def fold(parts: Iterable[Part], join: Callable[[Part, Part], Part]) -> Part:
    """Join parts that come one by one in the order of `middle`, as soon as two are there: few wait at a time.

    Examples
    --------
    >>> fold("abcdefg", lambda left, right: f"({left}{right})")
    '(((ab)(cd))((ef)g))'
    """
    waiting: list[tuple[int, Part]] = []
    for part in parts:
        size = 1
        while waiting and waiting[-1][0] == size:
            part, size = join(waiting.pop()[1], part), 2 * size
        waiting.append((size, part))
    _, whole = waiting.pop()
    while waiting:
        whole = join(waiting.pop()[1], whole)
    return whole


class _Ended(Exception):
    """Nobody waits for the rest."""


def _watched(parts: Iterable[Part], watch: Watch) -> Iterator[Part]:
    for done, part in enumerate(parts):
        if watch(done + 1):
            raise _Ended
        yield part


class Serial:
    """One partition after the other."""

    workers = None

    def reduce(self, work: Work, shared: Any, start: Any, n: int, watch: Watch) -> Any:
        """See `Executor`."""
        return _reduce(map(partial(work.part, shared, start), range(n)), work, shared, start, watch)


class Threads:
    """Several partitions at a time, on threads of this process; the work releases the interpreter's lock.

    Parameters
    ----------
    n_jobs : int
        Partitions at a time.
    """

    workers = None

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def reduce(self, work: Work, shared: Any, start: Any, n: int, watch: Watch) -> Any:
        """See `Executor`."""
        with closing(ordered(partial(work.part, shared, start), range(n), self.n_jobs)) as parts:
            return _reduce(parts, work, shared, start, watch)


def _reduce(parts: Iterable[Any], work: Work, shared: Any, start: Any, watch: Watch) -> Any:
    try:
        return fold(_watched(parts, watch), partial(work.join, shared, start))
    except _Ended:
        return None
