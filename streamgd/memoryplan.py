"""How a memory limit is spent: the process itself, two windows, and record batches being decoded.

The window follows from the data and the limit alone, never from the number of threads or from what the process
happens to use: equal limits give equal weights. What is left decides how many threads may decode. Without a limit
the window is what the data ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import Config
from .data.encode import Encoder
from .data.rowgroups import Manifest
from .data.shuffle import default_window_rows
from .data.source import BIG_ROW_GROUP, OPEN_FILES, OPEN_FOOTER_BYTES
from .data.threads import available_cpus
from .data.widen import bit_width
from .errors import MemoryLimitError
from .memory import default_memory_limit, format_bytes, parse_bytes

#: A process that has imported everything and compiled all kernels, and what its allocators keep: 380 MB where the
#: cache of compiled kernels was empty, 310 where it was not; 35 less where pandas is not installed.
BASE_BYTES = 368 << 20
#: The smallest window that is worth the name.
LEAST_WINDOW_ROWS = 1024
#: A window may end inside a row group, whose reader then waits with what it has decoded; two windows are filled.
WAITING_READERS = 2
#: A page and a dictionary of a column, as they lie in the file and decoded, with the levels of all values of the page.
#: Measured on a row group of 6 million rows: 223 MB for 28 columns.
PAGES_BYTES = 6 << 20
#: Resident memory over bytes in use: what the allocators keep for later.
RETAINED = 1.1
#: A parsed footer takes this much a column chunk, 9 times its size in the file.
COLUMN_CHUNK_BYTES, PARSED = 900, 9
#: The histogram of a streamed ROC AUC. Each scoring thread fills one; two more are being merged.
METRICS_BYTES = 12 << 20
MERGED_METRICS = 2


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
        One thread's record batches, pages and parsed footers.
    waiting : int
        The same of readers that wait inside a row group for the next window, and what validation needs.
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
    waiting: int
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
            "waiting_bytes": self.waiting,
            "threads": self.n_jobs,
        }


def reader_bytes(manifest: Manifest, encoder: Encoder) -> int:
    """Bytes that one reader of a row group holds: column chunks as they lie, pages and dictionaries, a record batch."""
    sizes, n_features = manifest.bytes, encoder.spec.n_features
    whole = int(sizes[sizes <= BIG_ROW_GROUP].max(initial=0))
    buffered = len(encoder.columns) << 20 if int(sizes.max()) > BIG_ROW_GROUP else 0
    pages = min(2 * int(sizes.max()), n_features * PAGES_BYTES)
    width = sum(column.size * _value_bytes(manifest, column.name) for column in encoder.spec.columns)
    return int(RETAINED * (max(whole, buffered) + pages + encoder.batch_rows * width))


def _value_bytes(manifest: Manifest, name: str) -> int:
    """Bytes a decoded value takes, with the levels that say where nulls and lists are."""
    kind, levels = manifest.schema.field(name).type, 2
    while hasattr(kind, "value_type"):
        kind, levels = kind.value_type, 4
    return -(-bit_width(kind) // 8) + levels


def footer_bytes(manifest: Manifest) -> int:
    """Bytes of the parsed footers of the files that one thread keeps open, were it the only one.

    The share of one of many threads is less, but then the window would depend on their number.
    """
    most = int(np.unique(manifest.shard, return_counts=True)[1].max())
    one = most * len(manifest.schema.names) * COLUMN_CHUNK_BYTES
    return min(min(OPEN_FILES, len(manifest.file_bytes)) * one, max(one, PARSED * OPEN_FOOTER_BYTES))


def plan_memory(
    manifest: Manifest,
    encoder: Encoder,
    config: Config,
    n_jobs: int,
    *,
    validation: Manifest | None = None,
    resident: int = 0,
) -> MemoryPlan:
    """Divide the memory limit.

    Parameters
    ----------
    manifest : Manifest
        The data.
    encoder : Encoder
        What becomes of them.
    config : Config
        Names the limit, or the window.
    n_jobs : int
        Most threads.
    validation : Manifest, optional
        Row groups on which the loss is measured after each epoch.
    resident : int
        What the process takes before the job.

    Raises
    ------
    MemoryLimitError
        The job cannot run in the limit; the message says what could.
    """
    row_bytes = encoder.layout.row_bytes + 4  # and its place in the order
    total = int(manifest.n_rows)
    wanted = min(total, config.window_rows or default_window_rows(manifest.rows, encoder.layout.row_bytes))
    least = min(total, LEAST_WINDOW_ROWS, wanted)
    base = BASE_BYTES + 80 * encoder.spec.n_features
    process = max(base, resident)
    reader = reader_bytes(manifest, encoder)
    decode, held = reader + footer_bytes(manifest), 0
    if validation is not None:  # its row groups are read while the next window is being filled
        decode += reader_bytes(validation, encoder) + METRICS_BYTES
        held = MERGED_METRICS * METRICS_BYTES

    def windows(rows: int) -> int:
        return rows * row_bytes * (1 if rows >= total else 2)

    def waiting(rows: int) -> int:
        return held + (0 if rows >= total else min(WAITING_READERS, manifest.n_row_groups - 1) * reader)

    rows, limit = wanted, config.memory_limit
    if limit is None:
        limit = max(default_memory_limit(), process + windows(wanted) + decode + waiting(wanted))
    else:
        spare = limit - base
        if windows(wanted) > min(spare // 2, spare - decode - waiting(wanted)):
            rows = min(wanted - 1, max(0, min(spare // 2, spare - decode - waiting(0)) // 2 // row_bytes))
        if rows < least or process + windows(rows) + decode + waiting(rows) > limit:
            window, decoding = windows(least), decode + waiting(least)
            least_limit = base + max(2 * window, decoding + window)
            if process > base:  # what is taken beyond the base is taken from the half that windows leave
                decoding = decode + waiting(0)
                most = process + windows(wanted) + decoding
                least_limit = max(least_limit, min(2 * process - base + 2 * decoding, most))
            raise MemoryLimitError(
                f"memory_limit is {format_bytes(limit)}, but these data need at least {format_bytes(least_limit)}: "
                f"{format_bytes(process)} for the process, {format_bytes(decoding)} to decode row groups of up to "
                f"{format_bytes(int(manifest.bytes.max()))}, and windows of at least {least} rows. Give "
                f"--memory-limit {-(-least_limit // 1_000_000)}MB or more."
            )
    taken = base if config.memory_limit is None else process
    threads = min(n_jobs, max(1, (limit - taken - windows(rows) - waiting(rows)) // decode))
    return MemoryPlan(limit, base, windows(rows), decode, waiting(rows), rows, wanted, int(threads))


def scoring_threads(
    manifest: Manifest, encoder: Encoder, memory_limit: str | None, n_jobs: int | None, *, metrics: bool = False
) -> int:
    """Threads that may score rows in a memory limit, with or without metrics of them.

    Raises
    ------
    MemoryLimitError
        Not even one fits.
    """
    wanted = n_jobs or available_cpus()
    one = reader_bytes(manifest, encoder) + footer_bytes(manifest) + metrics * METRICS_BYTES
    held = metrics * MERGED_METRICS * METRICS_BYTES
    limit = default_memory_limit() if memory_limit is None else parse_bytes(memory_limit)
    fitting = (limit - BASE_BYTES - held) // one
    if fitting < 1 and memory_limit is not None:
        needed = BASE_BYTES + held + one
        raise MemoryLimitError(
            f"memory_limit is {format_bytes(limit)}, but scoring these data needs {format_bytes(needed)}. Give "
            f"--memory-limit {-(-needed // 1_000_000)}MB or more."
        )
    return int(max(1, min(wanted, fitting)))
