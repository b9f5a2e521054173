"""How a memory limit is spent: the process itself, two windows, and record batches being decoded.

The window follows from the data and the limit alone, never from the number of threads or from what the process
happens to use: equal limits give equal weights. What is left decides how many threads may decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import Config
from .data.encode import Encoder
from .data.rowgroups import Manifest
from .data.shuffle import default_window_rows
from .data.source import BIG_ROW_GROUP
from .data.threads import available_cpus
from .errors import MemoryLimitError
from .memory import current_rss, default_memory_limit, format_bytes, parse_bytes

#: A process that has imported everything and compiled all kernels.
BASE_BYTES = 288 << 20
#: The smallest window that is worth the name.
LEAST_WINDOW_ROWS = 1024


@dataclass(frozen=True)
class MemoryPlan:
    """What memory is for, in bytes.

    Attributes
    ----------
    limit : int
        The limit.
    base : int
        The process, the weights and their optimizer state.
    window : int
        All windows in memory.
    decode : int
        One thread's record batches and pages.
    window_rows : int
        Rows a window.
    wanted_rows : int
        Rows a window that the data ask for.
    n_jobs : int
        Threads that decode.
    """

    limit: int
    base: int
    window: int
    decode: int
    window_rows: int
    wanted_rows: int
    n_jobs: int

    @property
    def lowered(self) -> bool:
        """Whether the limit made the window smaller than the data ask for."""
        return self.window_rows < self.wanted_rows

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "memory_limit": self.limit,
            "base_bytes": self.base,
            "window_bytes": self.window,
            "window_rows": self.window_rows,
            "wanted_window_rows": self.wanted_rows,
            "decode_bytes_per_thread": self.decode,
            "threads": self.n_jobs,
        }


def decode_bytes(manifest: Manifest, encoder: Encoder) -> int:
    """Bytes one thread needs to decode: pages or whole column chunks, twice a record batch, and its encoded piece."""
    batch = 2 * encoder.batch_rows * encoder.layout.row_bytes
    largest = int(manifest.bytes.max())
    if largest > BIG_ROW_GROUP:
        return batch + max(BIG_ROW_GROUP, len(encoder.columns) * (3 << 20))
    return batch + 2 * largest


def plan_memory(manifest: Manifest, encoder: Encoder, config: Config, n_jobs: int) -> MemoryPlan:
    """Divide the memory limit.

    Raises
    ------
    MemoryLimitError
        The job cannot run in the limit; the message says what could.
    """
    row_bytes = encoder.layout.row_bytes + 4  # and its place in the order
    total = int(manifest.n_rows)
    wanted = min(total, config.window_rows or default_window_rows(manifest.rows, row_bytes))
    base = BASE_BYTES + 80 * encoder.spec.n_features
    decode = decode_bytes(manifest, encoder)
    limit = config.memory_limit or max(default_memory_limit(), current_rss() + base + decode + 2 * wanted * row_bytes)

    def windows(rows: int) -> int:
        return rows * row_bytes * (1 if rows >= total else 2)

    spare = limit - base
    rows = wanted
    if windows(wanted) > spare // 2:
        rows = min(wanted - 1, max(0, spare // 4 // row_bytes))
    least = min(total, LEAST_WINDOW_ROWS)
    needed = max(base, current_rss()) + decode + windows(min(rows, least) if rows >= least else least)
    if rows < least or needed > limit:
        least_limit = max(base, current_rss()) + max(2 * windows(least), decode + windows(least))
        raise MemoryLimitError(
            f"memory_limit is {format_bytes(limit)}, but these data need at least {format_bytes(least_limit)}: "
            f"{format_bytes(max(base, current_rss()))} for the process, {format_bytes(decode)} to decode row groups of "
            f"up to {format_bytes(int(manifest.bytes.max()))}, and two windows of {least} rows. Give --memory-limit "
            f"{-(-least_limit // 1_000_000)}MB or more."
        )
    threads = min(n_jobs, max(1, (limit - base - windows(rows)) // decode))
    return MemoryPlan(limit, base, windows(rows), decode, rows, wanted, int(threads))


def scoring_threads(manifest: Manifest, encoder: Encoder, memory_limit: str | None, n_jobs: int | None) -> int:
    """Threads that may score rows in a memory limit.

    Raises
    ------
    MemoryLimitError
        Not even one fits.
    """
    wanted = n_jobs or available_cpus()
    decode = decode_bytes(manifest, encoder)
    limit = default_memory_limit() if memory_limit is None else parse_bytes(memory_limit)
    fitting = (limit - BASE_BYTES) // decode
    if fitting < 1 and memory_limit is not None:
        raise MemoryLimitError(
            f"memory_limit is {format_bytes(limit)}, but scoring these data needs {format_bytes(BASE_BYTES + decode)}."
        )
    return int(max(1, min(wanted, fitting)))
