"""Work over many row groups on threads, with results in the order of the work."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

#: What is added to the nice value of a thread that gives way: it gets a ninth of a processor that others want. With 5 a
#: click log is learned in 0.95 of the time, with 10 and 19 in 0.91.
NICE = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_way() -> None:
    """Let other threads of this process go first, where the system can tell threads apart (Linux).

    For a thread whose work is always wanted but never urgent. Others that have to wait for each other lose a processor
    to it at the wrong moment: of two processors, 12 % were idle while threads waited to run.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # it costs time, no more
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICE))


def consecutive(n: int, parts: int) -> list[range]:
    """0..n-1 in at most ``parts`` consecutive ranges of nearly equal length."""
    parts = max(1, min(n, parts))
    return [range(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


class Task(Generic[Result]):
    """Work that is done once, by whoever comes first: a thread of a pool, or the one that waits for it.

    So who waits is a thread more that works, and there are never more threads at work than there are processors: a
    third on two of them cost 20 % of decoding, whose numbers fall out of the caches.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        # A lock that is held until it is done: an event costs three times as much, and there are hundreds a second.
        self._function, self._claim, self._under_way = function, threading.Lock(), threading.Lock()
        self._under_way.acquire()
        self._result: Result | None = None
        self._error: BaseException | None = None
        #: Whether it is done.
        self.done = False

    def run(self) -> None:
        """Do the work, unless another thread does it or has done it."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        del self._function
        self.done = True
        self._under_way.release()

    def wait(self) -> None:
        """Do it, or wait for the one who does."""
        self.run()
        with self._under_way:
            pass

    def result(self) -> Result:
        """Its result, or what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def found(self) -> Result | None:
        """Its result, for one who can do without: None where there was an error, which others are told."""
        self.wait()
        return self._result


class Beside:
    """A thread that runs what it is given, one after the other; a pool takes several times as long to be told."""

    def __init__(self, name: str) -> None:
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Run the rest, and end the thread."""
        self._given.put(None)
        self._thread.join()

    def submit(self, function: Callable[[], None]) -> None:
        """Run a function, which raises nothing, after those before."""
        self._given.put(function)

    def _run(self) -> None:
        for function in iter(self._given.get, None):
            function()


def ordered(function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int) -> Generator[Result, None, None]:
    """Results of a function over items in their order, computed by ``n_jobs`` threads; few are held at a time."""
    with ThreadPoolExecutor(n_jobs, thread_name_prefix="streamgd-map") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > n_jobs:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def parallel(function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int) -> list[Result]:
    """Results of a function over items, computed by ``n_jobs`` threads; the first error is raised."""
    return list(ordered(function, items, n_jobs))
