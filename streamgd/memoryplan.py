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
from .data.reading import OPEN_FILES, OPEN_FOOTER_BYTES
from .data.rowgroups import Manifest
from .data.shuffle import default_window_rows
from .data.source import BIG_ROW_GROUP
from .data.threads import available_cpus
from .data.widen import bit_width
from .errors import MemoryLimitError
from .features import PAIRS, Column
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
#: Dictionaries of strings take at most so many times the bytes of a row group: Arrow's table of what it has met, what
#: it hands out, and the one before with its hashes.
DICTIONARIES = 2
#: Resident memory over bytes in use: what the allocators keep for later.
RETAINED = 1.1
#: A parsed footer takes this much a column chunk, 9 times its size in the file.
COLUMN_CHUNK_BYTES, PARSED = 900, 9
#: The histogram of a streamed ROC AUC. Each scoring thread fills one; two more are being merged.
METRICS_BYTES = 12 << 20
MERGED_METRICS = 2
#: Steps that L-BFGS remembers, and the vectors as long as all weights that it holds: two a step, and some to work with.
LBFGS_MEMORY = 10
LBFGS_VECTORS = 2 * LBFGS_MEMORY + 12


@dataclass(frozen=True)
class Table:
    """Shape of a table of hashed weights, as `streamgd.kernels.tables` has it.

    Attributes
    ----------
    slots : int
        Number of slots, 0 if there is no table.
    outputs : int
        Weights a slot.
    states : int
        Accumulators a weight.
    averaged : bool
        Whether an average of the weights is kept beside.
    descended : int
        Hashed features of which L-BFGS changes all weights at once; 0 if it does not.
    copies : int
        Partitions, each of which changes a table of its own.
    """

    slots: int = 0
    outputs: int = 1
    states: int = 1
    averaged: bool = True
    descended: int = 0
    copies: int = 1

    @property
    def cells(self) -> int:
        """Cells a slot: weights, state, gradients, and the number of a step; a multiple of 4."""
        return -(-((2 + self.states) * self.outputs + 1) // 4) * 4

    def bytes(self, slots: int) -> int:
        """Bytes of so many slots, with the average and a copy of the weights that becomes the model."""
        copies = self.copies if self.copies == 1 else self.copies + 1
        steps = slots * 4 * (self.cells * copies + (1 + self.averaged) * self.outputs) + slots
        vectors = 8 * self.outputs * min(slots, self.descended) * LBFGS_VECTORS
        return steps + vectors + (slots * (16 * self.outputs + 1) if self.descended else 0)


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
    hash_bits : int
        Bits of hashes that fit.
    wanted_hash_bits : int
        Bits that the data ask for.
    """

    limit: int
    base: int
    window: int
    decode: int
    waiting: int
    window_rows: int
    wanted_rows: int
    n_jobs: int
    hash_bits: int = 0
    wanted_hash_bits: int = 0

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
            "hash_bits": self.hash_bits,
        }


NO_TABLE = Table()


def reader_bytes(manifest: Manifest, encoder: Encoder) -> int:
    """Bytes that one reader of a row group holds: column chunks as they lie, pages and dictionaries, a record batch."""
    sizes, n_inputs = manifest.bytes, encoder.spec.n_inputs
    whole = int(sizes[sizes <= BIG_ROW_GROUP].max(initial=0))
    buffered = len(encoder.columns) << 20 if int(sizes.max()) > BIG_ROW_GROUP else 0
    pages = min(2 * int(sizes.max()), n_inputs * PAGES_BYTES)
    width = sum(_value_bytes(manifest, column) for column in encoder.spec.columns)
    categories = any(column.kind == "category" for column in encoder.spec.columns)
    dictionaries = DICTIONARIES * int(sizes.max()) if categories else 0
    return int(RETAINED * (max(whole, buffered) + pages + encoder.batch_rows * width + dictionaries))


def _value_bytes(manifest: Manifest, column: Column) -> int:
    """Bytes that a decoded column takes a row, with the levels that say where nulls and lists are."""
    if column.kind in PAIRS or column.kind == "missing":
        return 8
    kind, levels = manifest.schema.field(column.name).type, 2
    if column.group in ("index", "text"):
        # A code, or the share of a row group's bytes that a string can have; hashes beside.
        return levels + (16 if column.group == "index" else 16 + 3 * int(manifest.row_bytes()))
    while hasattr(kind, "value_type"):
        kind, levels = kind.value_type, 4
    return column.size * (-(-bit_width(kind) // 8) + levels)


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
    table: Table = NO_TABLE,
    text_bytes: int = 0,
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
    table : Table
        Hashed weights.
    text_bytes : int
        Bytes of the hashes of n-grams a row.
    validation : Manifest, optional
        Row groups on which the loss is measured after each epoch.
    resident : int
        What the process takes before the job.

    Raises
    ------
    MemoryLimitError
        The job cannot run in the limit; the message says what could.
    """
    encoded = encoder.layout.row_bytes + text_bytes
    row_bytes = encoded + 4  # and its place in the order
    total = int(manifest.n_rows)
    wanted = min(total, config.window_rows or default_window_rows(manifest.rows, encoded))
    least = min(total, LEAST_WINDOW_ROWS, wanted)
    base = BASE_BYTES + 80 * encoder.spec.n_features * table.outputs
    reader = reader_bytes(manifest, encoder)
    slots = table.slots
    if config.memory_limit is not None:  # weights may take half of what the process and decoding leave
        needed = base + (1 + WAITING_READERS) * reader + footer_bytes(manifest)
        while slots > 1 and table.bytes(slots) > (config.memory_limit - needed) // 2:
            slots //= 2
    base += table.bytes(slots)
    process = max(base, resident)
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
    bits = [max(0, n.bit_length() - 1) for n in (slots, table.slots)]
    return MemoryPlan(limit, base, windows(rows), decode, waiting(rows), rows, wanted, int(threads), *bits)


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
