"""Work over many row groups on threads, with results in the order of the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def consecutive(n: int, parts: int) -> list[range]:
    """0..n-1 in at most ``parts`` consecutive ranges of nearly equal length."""
    parts = max(1, min(n, parts))
    return [range(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def parallel(function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int) -> list[Result]:
    """Results of a function over items, computed by ``n_jobs`` threads; the first error is raised."""
    with ThreadPoolExecutor(n_jobs, thread_name_prefix="streamgd-map") as pool:
        return list(pool.map(function, items))
