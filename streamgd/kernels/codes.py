"""Codes of a dictionary, packed in a few bits each, looked up sixteen at a time.

Sixteen codes of any width begin and end with a byte, so which bytes and bits hold each of them is known when this is
compiled, for each width: one shuffle, one shift. A dictionary is in the order in which its values came first. So codes
of a column in which few values repeat count up, and their cells stand side by side, and are copied; others are
gathered. The format is the hybrid of runs of Encodings.md in apache/parquet-format.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .intrinsics import eight_bytes_at, four_bytes_at, jit, number_at, put_uint32, splat, uint8_at
from .tiles import LANES

#: Widest codes of which four bytes hold each wherever it begins, and bytes that are read for sixteen.
WIDEST, _READ = 25, 64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_PAIRS = ir.VectorType(_I64, LANES // 2)
_CODES, _BYTES = ir.VectorType(_I32, LANES), ir.VectorType(ir.IntType(8), _READ)


def _of_width(builder: Any, packed: Any, width: int) -> Any:
    """Sixteen codes of so many bits from the first bytes of a vector."""
    begin = [lane * width for lane in range(LANES)]
    places = [(bit >> 3) + byte for bit in begin for byte in range(4)]
    mask = ir.Constant(ir.VectorType(_I32, _READ), places)
    words = builder.bitcast(builder.shuffle_vector(packed, ir.Constant(_BYTES, ir.Undefined), mask), _CODES)
    shifted = builder.lshr(words, ir.Constant(_CODES, [bit & 7 for bit in begin]))
    return builder.and_(shifted, ir.Constant(_CODES, [(1 << width) - 1] * LANES))


def _unpacked(builder: Any, address: Any, width: Any) -> Any:
    """Sixteen codes of a width that is known when it runs."""
    packed = builder.load(builder.inttoptr(address, _BYTES.as_pointer()), align=1)
    before, after = builder.block, builder.append_basic_block("unpacked")
    switch = builder.switch(width, after)
    found = []
    for bits in range(1, WIDEST + 1):
        with builder.goto_block(block := builder.append_basic_block(f"bits{bits}")):
            found.append((_of_width(builder, packed, bits), block))
            builder.branch(after)
        switch.add_case(_I64(bits), block)
    builder.position_at_end(after)
    codes = builder.phi(_CODES)
    codes.add_incoming(ir.Constant(_CODES, [0] * LANES), before)
    for vector, block in found:
        codes.add_incoming(vector, block)
    return codes


@intrinsic
def look_up_sixteen(typing_context: Any, address: Any, width: Any, table: Any, last: Any, out: Any) -> Any:
    """Write the cells of sixteen codes; return whether all of these are in the table.

    All arguments are int64: the address where the codes begin, of which 64 bytes are read; bits of a code, 1 to
    `WIDEST`; the address of the cells of the dictionary (32 bits each); the last of them, which stands for codes above;
    and the address that takes the cells.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, width, table, last, out = args
        numbers = ir.Constant(_CODES, list(range(LANES)))
        most = builder.trunc(last, _I32)
        codes = _unpacked(builder, address, width)
        above = builder.icmp_unsigned(">", codes, splat(builder, most, LANES))
        bad = builder.bitcast(above, ir.IntType(LANES))
        codes = builder.select(above, splat(builder, most, LANES), codes)
        first = builder.extract_element(codes, _I32(0))
        apart = builder.icmp_unsigned("!=", codes, builder.add(splat(builder, first, LANES), numbers))
        counting = builder.icmp_unsigned("==", builder.bitcast(apart, ir.IntType(LANES)), ir.IntType(LANES)(0))
        place = builder.inttoptr(out, _CODES.as_pointer())
        with builder.if_else(counting) as (then, otherwise):
            with then:
                begin = builder.add(table, builder.mul(builder.zext(first, _I64), _I64(4)))
                cells = builder.load(builder.inttoptr(begin, _CODES.as_pointer()), align=1)
                builder.store(cells, place, align=4)
            with otherwise:
                # Two codes leave the vector together, and cells do not come back into one: either takes a port that all
                # of it has to pass. Gathering does not, but many processors were made slow at it.
                pairs, places = builder.bitcast(codes, _PAIRS), builder.inttoptr(out, _I32.as_pointer())
                for lane in range(LANES):
                    pair = builder.extract_element(pairs, _I32(lane // 2))
                    code = builder.lshr(pair, _I64(32)) if lane % 2 else builder.and_(pair, _I64((1 << 32) - 1))
                    cell = number_at(builder, _I32, table, code, align=1)
                    builder.store(cell, builder.gep(places, [_I64(lane)]), align=4)
        return builder.icmp_unsigned("==", bad, ir.IntType(LANES)(0))

    return types.boolean(*[types.int64] * 5), codegen


@jit
def word_at(address, end):
    """Eight bytes at an address, zeros beyond the end."""
    if end - address >= 8:
        return eight_bytes_at(address)
    word = np.uint64(0)
    for i in range(end - address):
        word |= np.uint64(uint8_at(address, i)) << np.uint64(8 * i)
    return word


@jit
def _one_by_one(run, bit, width, n, end, table, last, out):
    """Write the cells of n codes; return whether all of these are in the table."""
    mask, inside = np.uint64((np.int64(1) << width) - 1), True
    for i in range(n):
        at = bit + i * width
        code = np.int64((word_at(run + (at >> 3), end) >> np.uint64(at & 7)) & mask)
        inside &= code <= last
        put_uint32(out, i, four_bytes_at(table + 4 * min(code, last)))
    return inside


@jit
def look_up(run, bit, width, n, end, table, last, out):
    """Write the cells of the next codes of a run.

    Parameters
    ----------
    run, bit : int
        Address of the run, and bits of it that are done.
    width, n : int
        Bits of a code, at most 32, and how many codes there are.
    end : int
        End of the page, beyond which nothing is read.
    table, last : int
        Address of the cells of the dictionary, and the last of them, which stands for codes above.
    out : int
        Address that takes the cells.

    Returns
    -------
    bool
        Whether all codes are in the dictionary.
    """
    inside, done = True, np.int64(0)
    if 0 < width <= WIDEST:
        while done < n and (bit + done * width) & 7 != 0:
            done += 1  # up to a whole byte
        inside = _one_by_one(run, bit, width, done, end, table, last, out)
        at = run + ((bit + done * width) >> 3)
        while n - done >= LANES and end - at >= _READ:
            inside &= look_up_sixteen(at, width, table, last, out + 4 * done)
            done, at = done + LANES, at + 2 * width
    return inside & _one_by_one(run, bit + done * width, width, n - done, end, table, last, out + 4 * done)
