"""Cells of the values that are there, spread over rows of which some are null."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from .intrinsics import copy_line, eight_bytes_at, jit, lowest_one, ones, put_uint32, splat, uint8_at, uint32_at
from .tiles import LANES

#: Whether the processor spreads sixteen cells by one instruction. For others it is made of sixteen questions, each of
#: which is guessed wrong as often as not.
EXPANDS = bool(binding.get_host_cpu_features().get("avx512f"))
_SIXTEEN, _I32 = ir.VectorType(ir.IntType(32), LANES), ir.IntType(32)


@intrinsic
def _expand(typing_context: Any, dense: Any, bits: Any, missing: Any, out: Any) -> Any:
    """Write sixteen cells: the next of those at an address where one of the lower 16 bits is 1, else ``missing``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dense, bits, missing, out = args
        chosen, name = ir.VectorType(ir.IntType(1), LANES), "llvm.masked.expandload.v16i32"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(_SIXTEEN, [_I32.as_pointer(), chosen, _SIXTEEN]), name
        )
        there = builder.bitcast(builder.trunc(bits, ir.IntType(LANES)), chosen)
        place = builder.inttoptr(dense, _I32.as_pointer())
        cells = builder.call(function, [place, there, splat(builder, missing, LANES)])
        builder.store(cells, builder.inttoptr(out, _SIXTEEN.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64, types.uint32, types.int64), codegen


@jit
def by_sixteens(dense, bits, n, missing, out):
    """Write cells as long as there are sixteen more rows; return how many, and where the next value is."""
    first = np.int64(0)
    while first + LANES <= n:
        some = np.uint64(uint8_at(bits, first >> 3)) | np.uint64(uint8_at(bits, (first >> 3) + 1)) << np.uint64(8)
        _expand(dense, some, missing, out + 4 * first)
        dense += 4 * np.int64(ones(some))
        first += LANES
    return first, dense


@jit
def from_null_to_null(dense, bits, n, missing, out):
    """The same, as long as there are 64 more rows, and 16.

    Cells are copied by sixteens, more than are there: what comes after is written later. Up to 15 are read after the
    last. That a value is null is as likely as not, so no branch asks for it: a wrong guess costs 5 ns.
    """
    first = np.int64(0)
    while first + 64 + LANES <= n:
        nulls, row = ~eight_bytes_at(bits + (first >> 3)), first
        while nulls != 0:
            null = first + lowest_one(nulls)
            copy_line(dense, out + 4 * row)  # also if there is none between two nulls
            for i in range(row + LANES, null, LANES):
                copy_line(dense + 4 * (i - row), out + 4 * i)
            put_uint32(out, null, missing)
            dense += 4 * (null - row)
            row, nulls = null + 1, nulls & (nulls - np.uint64(1))
        first += 64
        for i in range(row, first, LANES):
            copy_line(dense + 4 * (i - row), out + 4 * i)
        dense += 4 * (first - row)
    return first, dense


@jit
def spread(dense, bits, n, missing, out):
    """Write n cells: the next of those that are there where a bit is 1, what stands for null where it is 0.

    Parameters
    ----------
    dense, bits : int
        Addresses of the cells, after which 15 more may be read, and of the bits.
    n : int
        Rows.
    missing : uint32
        What stands for null.
    out : int
        Address that takes the cells.
    """
    if EXPANDS:
        first, dense = by_sixteens(dense, bits, n, missing, out)
    else:
        first, dense = from_null_to_null(dense, bits, n, missing, out)
    while first < n:
        present = np.uint32(uint8_at(bits, first >> 3) >> np.uint8(first & 7)) & np.uint32(1)
        there = np.uint32(0) - present
        put_uint32(out, first, (uint32_at(dense, 0) & there) | (missing & ~there))
        dense += 4 * np.int64(present)
        first += 1
