"""Who carries out the partitions of a round; it never enters the mathematics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from .data.threads import parallel

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Maps a function over the partitions of a round; the function changes nothing that it is given."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in the order of the items; the first error is raised."""


class Serial:
    """One partition after the other."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in the order of the items; the first error is raised."""
        return [function(item) for item in items]


class Threads:
    """Several partitions at a time, on threads of this process; the work releases the interpreter's lock.

    Parameters
    ----------
    n_jobs : int
        Partitions at a time.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in the order of the items; the first error is raised."""
        return parallel(function, items, self.n_jobs)
