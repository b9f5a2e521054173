"""How a memory limit is spent: the process itself, two windows, and record batches being decoded.

The window follows from the data and the limit alone, never from the number of threads or from what the process
happens to use: equal limits give equal weights. What is left decides how many threads may decode. Without a limit
the window is what the data ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .addressspace import THREAD_BYTES
from .config import Config
from .data.encode import Encoder
from .data.reading import OPEN_FILES, OPEN_FOOTER_BYTES
from .data.rowgroups import Manifest
from .data.shuffle import default_window_rows
from .data.source import BIG_ROW_GROUP
from .data.threads import available_cpus
from .data.widen import bit_width
from .features import PAIRS, Column
from .kernels.slots import LISTED_HASHES, LISTED_STRETCHES, LISTS_AHEAD, TILE_ROWS, TOGETHER_CELLS, copied_rows
from .memory import Limit, default_memory_limit, format_bytes, job_limit, parse_bytes
from .model import Model
from .slotorder import AT_HAND

#: A process that has imported everything and has all kernels, and what its allocators keep: 310 MB where a child
#: compiles them (`streamgd.compiling`), 380 to 440 where there can be none; 35 less where pandas is not installed.
BASE_BYTES = 368 << 20
#: More for kernels of hashed features that are compiled for the first time on a machine: 455 MB in all. That is while
#: the first row groups are decoded, when no reader waits yet.
HASHED_BYTES = 64 << 20
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
#: Arrays of a batch's scores at a time: margins, those of rows with a target, and three of a softmax; output columns.
SCORES = 6
#: Pages and dictionary of a column that is being written.
WRITER_BYTES = 3 << 20
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
    partitions : int
        Partitions, each of which changes a copy of its own. Those that are done wait to be joined: one or two for each
        power of two in their number, and one for each thread.
    """

    slots: int = 0
    outputs: int = 1
    states: int = 1
    averaged: bool = True
    descended: int = 0
    partitions: int = 1

    @property
    def cells(self) -> int:
        """Cells a slot: weights, state, gradients, and the number of a step; a multiple of 4."""
        return -(-((2 + self.states) * self.outputs + 1) // 4) * 4

    def bytes(self, slots: int) -> int:
        """Bytes of so many slots: with the average, a copy of the weights that becomes the model, and their order."""
        waiting = self.copy(slots) * (self.partitions.bit_length() + 2)
        steps = slots * 4 * (self.cells + (1 + self.averaged) * self.outputs) + slots + slots // 2 + waiting
        vectors = 8 * self.outputs * min(slots, self.descended) * LBFGS_VECTORS
        return steps + vectors + (slots * (16 * self.outputs + 1) if self.descended else 0)

    def copy(self, slots: int) -> int:
        """Bytes of what a partition makes of so many slots: its table, or a gradient of it."""
        if self.partitions == 1:
            return 0
        return slots * max(4 * self.cells, (8 * self.outputs + 1) if self.descended else 0)


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
        The same of readers that wait inside a row group for the next window, and what validation needs; or what
        kernels need that are compiled before, if that is more.
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
    limited_by : str
        What limits, in words.
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
    limited_by: str = Limit.name

    @property
    def lowered(self) -> bool:
        """Whether the limit made the window smaller than the data ask for."""
        return self.window_rows < self.wanted_rows

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "memory_limit": self.limit,
            "limited_by": self.limited_by,
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
    buffered = min(len(encoder.columns) << 20, int(sizes.max())) if int(sizes.max()) > BIG_ROW_GROUP else 0
    pages = min(2 * int(sizes.max()), n_inputs * PAGES_BYTES)
    pages += sum(manifest.large_pages.get(name, 0) for name in encoder.columns)
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


def listed_bytes(encoder: Encoder, table: Table, text_bytes: int, times: int = 1) -> int:
    """Bytes of what is listed at a time, of each hash a slot and its place, and of copies of rows and slots."""
    tile = TILE_ROWS * (encoder.layout.n_index + text_bytes // 4)
    listed = max(LISTED_HASHES, 2 * tile) + LISTED_STRETCHES  # texts may be longer than a sample of them
    copied = copied_rows(encoder.layout, listed) * (4 * encoder.layout.width + 4)
    return times * (8 * listed + copied) + 4 * (TOGETHER_CELLS + AT_HAND * table.cells)


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
    bound: Limit | None = None,
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
    bound : Limit, optional
        What limits the job (`streamgd.memory.job_limit`); by default the limit that ``config`` names.

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
    if table.slots:
        # Some are listed while others are learned from.
        base += listed_bytes(encoder, table, text_bytes, 1 + LISTS_AHEAD)
    compiled = HASHED_BYTES if any(column.group != "dense" for column in encoder.spec.columns) else 0
    reader = reader_bytes(manifest, encoder)
    decode, held = reader + footer_bytes(manifest), 0
    if validation is not None:  # its row groups are read while the next window is being filled
        decode += reader_bytes(validation, encoder) + METRICS_BYTES + score_bytes(encoder, table.outputs)
        held = MERGED_METRICS * METRICS_BYTES

    def windows(rows: int) -> int:
        return rows * row_bytes * (1 if rows >= total else 2)

    def waiting(rows: int) -> int:
        readers = 0 if rows >= total else min(WAITING_READERS, manifest.n_row_groups - 1)
        return max(held + readers * reader, compiled)

    if bound is None and config.memory_limit is not None:
        bound = Limit(config.memory_limit)
    # With the least window, of which decoding leaves half.
    beside = max(2 * windows(least), decode + waiting(least) + windows(least))
    slots = table.slots
    if bound is not None:  # weights may take half of what the process and decoding leave
        while slots > 1 and table.bytes(slots) > (bound.bytes - base - beside) // 2:
            slots //= 2
    base += table.bytes(slots)
    process = max(base, resident)
    rows = wanted
    if bound is not None:
        spare = bound.bytes - base
        if windows(wanted) > min(spare // 2, spare - decode - waiting(wanted)):
            rows = min(wanted - 1, max(0, min(spare // 2, spare - decode - waiting(0)) // 2 // row_bytes))
        if rows < least or process + windows(rows) + decode + waiting(rows) > bound.bytes:
            decoding, needed = decode + waiting(least), base + beside
            if process > base:  # what is taken beyond the base is taken from the half that windows leave
                decoding = decode + waiting(0)
                most = process + windows(wanted) + decoding
                needed = max(needed, min(2 * process - base + 2 * decoding, most))
            largest = format_bytes(int(manifest.bytes.max()))
            rest = f"{format_bytes(decoding)} to decode row groups of up to {largest}, and windows of {least} rows"
            raise bound.refusal(process, needed, "training on these data", rest)
    limit = process + windows(rows) + decode + waiting(rows)
    if config.memory_limit is None:  # a share of the machine, but what is needed all the same
        limit = max(default_memory_limit(), limit)
        limit = limit if bound is None else min(limit, bound.bytes)
    elif bound is not None:
        limit = bound.bytes
    left = limit - (base if bound is None else process) - windows(rows) - waiting(rows) - decode
    each = decode + table.copy(slots) + thread_bytes(bound)
    if table.slots and table.partitions > 1:
        each += listed_bytes(encoder, table, text_bytes)
    threads = min(n_jobs, 1 + max(0, left // each))
    return MemoryPlan(
        limit,
        base,
        windows(rows),
        decode,
        waiting(rows),
        rows,
        wanted,
        int(threads),
        max(0, slots.bit_length() - 1),
        max(0, table.slots.bit_length() - 1),
        limited_by=Limit.name if bound is None else bound.name,
    )


def scoring_threads(
    manifest: Manifest,
    encoder: Encoder,
    model: Model,
    memory_limit: str | None,
    n_jobs: int | None,
    *,
    keep: Sequence[str] | None = None,
) -> int:
    """Threads that may score rows with a model in a memory limit.

    With ``keep`` they write predictions and these columns, else they measure.

    Raises
    ------
    MemoryLimitError
        Not even one fits.
    """
    wanted = n_jobs or available_cpus()
    one = reader_bytes(manifest, encoder) + footer_bytes(manifest) + score_bytes(encoder, model.n_outputs)
    base = BASE_BYTES
    if model.hashed is not None:
        base += 4 * model.spec.n_slots * model.n_outputs + 2 * model.hashed.nbytes
    if keep is None:
        one += METRICS_BYTES
        base += MERGED_METRICS * METRICS_BYTES
    else:
        one += WRITER_BYTES * (len(keep) + 2 if model.n_outputs == 1 else len(keep) + 1 + model.n_outputs)
        one += sum(kept_bytes(manifest, encoder, name) for name in keep)
    bound = job_limit(None if memory_limit is None else parse_bytes(memory_limit))
    limit = default_memory_limit() if memory_limit is None else parse_bytes(memory_limit)
    if bound is not None:
        limit = min(limit, bound.bytes)
        if base + one > bound.bytes:
            raise bound.refusal(base, base + one, "scoring these data", f"{format_bytes(one)} to decode and score")
    return int(min(wanted, 1 + max(0, (limit - base - one) // (one + thread_bytes(bound)))))


def score_bytes(encoder: Encoder, outputs: int) -> int:
    """Bytes of a record batch as it is encoded, and of its scores: margins, probabilities, and what is between them."""
    return int(encoder.batch_rows * (encoder.layout.row_bytes + 8 * SCORES * outputs))


def kept_bytes(manifest: Manifest, encoder: Encoder, name: str) -> int:
    """Bytes that a column takes which is carried over to predictions; a string may be all that a row has."""
    if name not in manifest.schema.names:  # said later
        return 0
    value = min(bit_width(manifest.schema.field(name).type) // 8 + 2, int(manifest.row_bytes()) + 8)
    return int(min(2 * int(manifest.bytes.max()), PAGES_BYTES) + encoder.batch_rows * value)


def thread_bytes(bound: Limit | None) -> int:
    """What one more thread takes of a limit besides what it decodes."""
    return THREAD_BYTES if bound is not None and bound.mapped else 0
