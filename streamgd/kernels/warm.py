"""Compile the kernels of a job before its clock starts, or load them from the disk."""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding

from .counting import count_rows
from .decode import COLUMN_FIELDS, PAGE_FIELDS, decode_rows
from .drain import drain
from .hashing import hash_strings, hash_words, write_indices, write_pairs, write_texts
from .layout import encode_columns, find_buffers
from .moments import add_moments
from .moves import find_places, list_moves
from .plain import plain_hashes, plain_numbers
from .problem import Problem
from .shuffle import permutation
from .slots import list_stretches
from .tables import average_table
from .thrift import CHUNK_FIELDS, HEADER_FIELDS, chunk_pages
from .tiles import LANES
from .unpack import SNAPPY, list_pages, read_chunks, unpack_pages


def warm_up(at: Any, hashed: bool, outputs: int = 1, beside: bool = False) -> None:
    """Call the kernels on a row of nothing; some seconds the first time on a machine, a fifth of one later.

    Parameters
    ----------
    at : Cells
        Any layout of rows (`streamgd.features.Cells`).
    hashed : bool
        Whether features are hashed.
    outputs : int
        Numbers that are predicted for a row, of all models; more than one are compiled alike.
    beside : bool
        Whether models are trained side by side.
    """
    rows, order, none = np.zeros((1, at.width), np.float32), np.zeros(1, np.uint32), np.zeros(0, np.int64)
    cells, nothing = rows.view(np.uint32), np.zeros(0, np.uint32)
    batch = np.zeros(8, np.int64)  # of no columns
    find_buffers(batch.ctypes.data, *[none] * 5)
    encode_columns(none, none, none, none, np.zeros(0), np.zeros(0, np.float32), 0, 0, rows, none)
    add_moments(rows, 0, -1, np.zeros((6, 1)))
    chunk_pages(np.zeros(0, np.uint8), 0, False, np.zeros((1, HEADER_FIELDS), np.int64))
    headers, told = np.zeros((0, HEADER_FIELDS), np.int64), np.zeros((0, PAGE_FIELDS), np.int64)
    list_pages(headers, True, True, 0, 0, told, np.zeros((1, 2), np.int64))
    unpack_pages(np.zeros(0, np.uint8), 0, headers, 0, 0, SNAPPY, 0, told)
    some, ends, chunks = np.zeros(0, np.uint8), np.zeros((0, 2), np.int64), np.zeros((0, CHUNK_FIELDS), np.int64)
    read_chunks(0, chunks, np.zeros(0, np.bool_), none, some, headers, some, told, ends, np.zeros((0, 3), np.int64))
    columns, pages, tile = np.zeros((0, COLUMN_FIELDS)), np.zeros((0, PAGE_FIELDS)), np.zeros((LANES + 1, LANES))
    decode_rows(
        columns.astype(np.int64),
        pages.astype(np.int64),
        np.zeros(0),
        np.zeros(0, np.float32),
        0,
        tile.astype(np.uint32),
        np.zeros((0, LANES), np.uint32),
    )
    count_rows(columns.astype(np.int64), pages.astype(np.int64), none, np.zeros((0, 1), np.int64))
    plain_numbers(0, 0, 0, 0.0, np.float32(0), nothing)
    permutation(np.uint64(0), order, order)
    problem = Problem(None, 0, (0.0,) * 2, 0, (0.0,) * 3, 0, 0, (0.0,) * 4, 0.0, 0.0, 0.0, True, 1, 0)
    models = outputs if beside else 1
    table = np.zeros((1, -(-(2 * outputs + 1) // 4) * 4), np.float32) if hashed else None
    marks = None if table is None else table.view(np.int32)
    params, counters = np.zeros((outputs, 2)), np.zeros(4, np.int64)
    slots = np.zeros((2, *params.shape))
    listed = (nothing, nothing, none) if hashed else (None, None, None)
    drain(
        rows,
        cells if hashed else None,
        *listed,
        order,
        0,
        0,
        False,
        at,
        problem,
        np.array([problem.settings()] * models) if beside else None,
        outputs if outputs > 1 else None,
        np.ones(1),
        np.ones(2),
        np.zeros((2, 0)),
        params,
        slots,
        params.copy(),
        table,
        marks,
        none,
        counters,
        np.zeros((models, 2)),
        np.full(models, -1, np.int64),
    )
    if hashed:
        list_stretches(
            cells, order, 0, 0, at, 1, 1, 0, 1, 0, none.view(np.uint64), none, nothing, nothing, none, rows[:0]
        )
        strings = none[:0], 0, 0, 0, np.uint32(0), np.uint32(0)
        hash_strings(*strings, nothing)
        plain_hashes(0, 0, np.uint32(0), nothing)
        hash_words(*strings, np.zeros(2048, np.uint16), np.zeros(1, np.uint8), none, nothing, False)
        write_indices(none, none, none, none, none, nothing, 0, 0, cells)
        write_pairs(none, none, nothing, 0, 0, cells)
        write_texts(0, none, 0, 0, cells)
        find_places(nothing, np.uint32(0), *list_moves(nothing, nothing, 1))
        average_table(problem, table, counters, 1, 0, 1.0, np.zeros((1, 1), np.float32))


def compiled_mark(hashed: bool, outputs: int, beside: bool) -> Path:
    """A file beside the kernels on the disk: that it is there says that `warm_up` was done with the same arguments."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    stamps = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sources]
    versions = sys.version, numba.__version__, llvmlite.__version__, processor()
    told = sha256(repr((versions, stamps, hashed, outputs > 1, beside)).encode()).hexdigest()
    return Path(drain.stats.cache_path) / f"compiled-{told[:16]}"


def processor() -> str:
    """What kernels are compiled for: where it is the same, they give the same bits."""
    found = sha256(repr(sorted(binding.get_host_cpu_features().items())).encode())
    return f"{binding.get_host_cpu_name()} ({found.hexdigest()[:8]})"
