"""From Arrow's columns to encoded rows: convert, centre, fill and transpose, one call a record batch.

A group of 16 columns is transposed in vector registers, 16 rows at a time, straight from Arrow's buffers where
they hold float32 without nulls. Any other column is first converted to float32 in a scratch tile that stays in
the cache. Both ways give the same bits: an offset that is a float32 is subtracted in float32, which rounds as
float64 and then float32 does; any other offset takes the long way.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .intrinsics import address_of, jit, kernel, pointer, uint8_at
from .tiles import LANES, keep_eight, transpose_tile

TILE_ROWS = 256

#: Codes of the physical types of a column's buffer. Each costs 0.15 s when the kernel is compiled; types that are not
#: here are cast by Arrow.
FLOAT32, FLOAT64, INT32, INT64, BOOL = range(5)


@jit
def _convert(values, first, n, out):
    for i in range(n):
        out[i] = np.float64(values[first + i])


@jit
def bit(address, i):
    """Bit i of Arrow's bitmap at an address."""
    return (uint8_at(address, np.int64(i) >> 3) >> np.uint8(i & 7)) & np.uint8(1)


@jit
def read_column(code, address, valid, valid_offset, first, n, out):
    """Values ``first .. first+n-1`` of a column as float64, NaN where null.

    ``address`` and ``valid`` are addresses of Arrow's buffers (``valid`` 0: no nulls). For numbers ``address``
    already points at the column's first value; for booleans and the validity bitmap ``valid_offset`` counts the
    bits before it.
    """
    end = (first + n,)
    if code == FLOAT32:
        _convert(carray(pointer(address), end, np.float32), first, n, out)
    elif code == FLOAT64:
        _convert(carray(pointer(address), end, np.float64), first, n, out)
    elif code == INT32:
        _convert(carray(pointer(address), end, np.int32), first, n, out)
    elif code == INT64:
        _convert(carray(pointer(address), end, np.int64), first, n, out)
    else:
        for i in range(n):
            out[i] = np.float64(bit(address, valid_offset + first + i))
    if valid != 0:
        bits, whole = valid_offset + first, 0
        if bits & 7 == 0:  # eight at a time, without a branch to guess: 0.3 ns a value, where one by one it is 2
            whole = n & ~7
            for i in range(0, whole, 8):
                keep_eight(address_of(out) + i * 8, uint8_at(valid, (bits + i) >> 3))
        for i in range(whole, n):
            out[i] = np.nan if bit(valid, valid_offset + first + i) == 0 else out[i]  # without a branch to guess


@kernel
def find_buffers(array, places, widths, addresses, valids, valid_offsets):
    """Addresses of the buffers of some columns of a record batch, as `encode_columns` takes them.

    ``array`` is the address of the batch's ``ArrowArray`` (Arrow's C data interface: eight fields of 8 bytes, of
    which 0 is the length, 1 the null count, 2 the offset, 4 the number of children, 5 the buffers, 6 the children).
    Walking it here costs 1 µs for 28 columns, asking pyarrow for the buffers of each 100.
    """
    top = carray(pointer(array), (8,), np.int64)
    children = carray(pointer(top[6]), (top[4],), np.int64)
    for k in range(len(places)):
        column = carray(pointer(children[places[k]]), (8,), np.int64)
        buffers = carray(pointer(column[5]), (2,), np.int64)
        offset = column[2] + top[2]
        addresses[k] = buffers[1] + offset * widths[k]
        valids[k] = buffers[0] if column[1] != 0 else 0
        valid_offsets[k] = offset


@kernel
def encode_columns(
    codes,  # int64[c]
    addresses,  # int64[c]
    valids,  # int64[c]
    valid_offsets,  # int64[c]
    offsets,  # float64[c]: subtracted before rounding to float32
    fills,  # float32[c]: stands for missing values, after the offset
    n,
    cell,  # cell of the first column
    out,  # float32[>= n, stride]: cells cell..cell+c-1 of each row are written, and up to 15 more after them
    infinite,  # int64[c]: counts values that are not finite and not missing
):
    """Encode n rows of c columns; what lies after them in a row must be written later."""
    c, stride = len(codes), out.shape[1]
    wide, scratch = np.empty(TILE_ROWS, np.float64), np.empty((LANES, TILE_ROWS), np.float32)
    nothing = np.zeros(TILE_ROWS, np.float32)  # fills the cells between the last column and the end of a line
    sources = np.empty(LANES, np.int64)
    group_offsets, group_fills = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for first in range(0, n, TILE_ROWS):
        size = min(TILE_ROWS, n - first)
        whole = size - size % LANES
        for group in range(0, c, LANES):
            width = min(LANES, c - group)
            for k in range(width, LANES):
                sources[k], group_offsets[k], group_fills[k] = address_of(nothing), np.float32(0), np.float32(0)
            for k in range(width):
                column = group + k
                group_fills[k] = fills[column]
                near = np.float32(offsets[column])
                if codes[column] == FLOAT32 and valids[column] == 0 and np.float64(near) == offsets[column]:
                    sources[k], group_offsets[k] = addresses[column] + first * 4, near
                    continue
                read_column(codes[column], addresses[column], valids[column], valid_offsets[column], first, size, wide)
                for i in range(size):
                    scratch[k, i] = np.float32(wide[i] - offsets[column])
                sources[k], group_offsets[k] = address_of(scratch[k]), np.float32(0)
            odd = np.int64(0)
            vectors = whole if cell + group + LANES <= stride else 0
            for i in range(0, vectors, LANES):
                odd |= transpose_tile(
                    address_of(sources),
                    i,
                    address_of(group_offsets),
                    address_of(group_fills),
                    address_of(out) + (first * stride + cell + group) * 4,
                    stride,
                )
            for k in range(width):
                values = carray(pointer(sources[k]), (size,), np.float32)
                for i in range(vectors, size):
                    value = values[i] - group_offsets[k]
                    finite = abs(value) < np.inf
                    out[first + i, cell + group + k] = value if finite else group_fills[k]
                    odd |= not finite
                if odd != 0:
                    for i in range(size):
                        infinite[group + k] += abs(values[i] - group_offsets[k]) == np.inf


@kernel
def encode_lists(code, address, valid, valid_offset, starts, present, size, offsets, fills, n, cell, out):
    """Encode n rows of a list column into cells ``cell .. cell+size-1``; return how many values are infinite.

    Row i holds ``size`` values from place ``starts[i]`` of the values' buffer, or is missing (``present[i]`` 0).
    """
    infinite = 0
    wide = np.empty(size, np.float64)
    for i in range(n):
        wide[:] = np.nan
        if present[i]:
            read_column(code, address, valid, valid_offset, starts[i], size, wide)
        for j in range(size):
            value = np.float32(wide[j] - offsets[j])
            finite = abs(value) < np.inf
            out[i, cell + j] = value if finite else fills[j]
            infinite += abs(value) == np.inf
    return infinite
