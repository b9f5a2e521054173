"""Parquet's own account of its pages: footers and headers of pages, in Thrift's compact protocol.

pyarrow tells nothing of pages before it has decompressed them, and ends the process on some footers when it is asked
for column chunks. Everything is bounded: nothing is read beyond the end, structs are nested so deep and no deeper, and
what cannot be read ends at -1. The formats are those of parquet.thrift in apache/parquet-format and of
thrift-compact-protocol.md in apache/thrift.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .intrinsics import address_of, jit, kernel

#: What `column_chunks` tells of each: its row group, the leaf of the schema, codec, values, uncompressed and compressed
#: bytes, where its pages begin (-1 if that is not said), whether it is encrypted, and its physical type.
ROW_GROUP, LEAF, CODEC, VALUES, UNCOMPRESSED, COMPRESSED, START, ENCRYPTED, PHYSICAL = range(9)
CHUNK_FIELDS = 9
#: What a header of a page tells: its type, uncompressed and compressed bytes, values, how these and the levels are
#: encoded, whether it has a checksum, bytes of the levels of lists and of nulls, and whether the values are compressed
#: (these three of a page of the second version). -1 where it does not say. And, after it, where its bytes begin.
TYPE, SIZE, IN_FILE, COUNT, ENCODING, LEVEL_ENCODING, CHECKSUM, LIST_BYTES, NULL_BYTES, IS_COMPRESSED, BODY = range(11)
HEADER_FIELDS = 11
#: What `walk_pages` tells: memory that the largest page of data takes, and the largest dictionary (as they lie in the
#: file and uncompressed), values of all pages, pages, and of the page that inflates most its bytes, and compressed.
PAGE, DICTIONARY, PAGE_VALUES, PAGES, INFLATED, INFLATED_FROM = range(6)
PAGE_FIELDS = 6
#: A header takes some dozens of bytes, more where it holds a least and a largest value; pyarrow reads up to 16 MB.
HEADER_BYTES, LARGEST_HEADER = 256, 16 << 20
#: Structs and lists are nested so deep at most.
DEPTH = 64
#: More pages of a chunk are no pages.
MOST_PAGES = 1 << 22

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(14)
#: Types of pages.
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.uintp, types.uint64, types.int64))


@jit
def read_at(descriptor, address, n, at):
    """Read at most n bytes from a place of an open file to an address; return how many, or -1."""
    return _pread(np.int32(descriptor), address, np.uint64(n), at)


@jit
def _varint(data, at):
    """A number of 7 bits a byte, and where it ends."""
    value, shift = np.uint64(0), np.uint64(0)
    while 0 <= at < len(data) and shift < np.uint64(64):
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return value, at
        shift += np.uint64(7)
    return np.uint64(0), -1


@jit
def _integer(data, at):
    """A signed number, and where it ends."""
    value, at = _varint(data, at)
    return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at


@jit
def _size(data, at):
    """A number of bytes or elements, at most as many as there are bytes left, and where they begin."""
    value, at = _varint(data, at)
    if at < 0 or value > np.uint64(len(data) - at):
        return 0, -1
    return np.int64(value), at


@jit
def _field(data, at, number):
    """Number and type of the next field of a struct, after that of ``number``, and where its value begins."""
    if not 0 <= at < len(data):
        return 0, _STOP, -1
    kind, step = np.int64(data[at] & 15), np.int64(data[at] >> 4)
    at += 1
    if kind == _STOP or step:
        return number + step, kind, at
    number, at = _integer(data, at)
    return number, kind, at


@jit
def _elements(data, at):
    """Number and type of the elements of a list, and where they begin."""
    if not 0 <= at < len(data):
        return 0, _STOP, -1
    count, kind = np.int64(data[at] >> 4), np.int64(data[at] & 15)
    at += 1
    if count == 15:
        count, at = _size(data, at)
    return count, kind, at


@jit
def _skip(data, at, kind, scratch):
    """Where the value of a field of a type ends; ``scratch`` (int64[2, DEPTH]) is used on the way."""
    if kind in (_TRUE, _FALSE):
        return at
    if kind in (_I16, _I32, _I64):
        return _varint(data, at)[1]
    if kind == _BINARY:
        size, at = _size(data, at)
        return at + size if at >= 0 else -1
    return _skip_nested(data, at, kind, scratch[0], scratch[1])


@jit
def _skip_nested(data, at, kind, kinds, left):
    # Of each value that others are nested in: types of these (of a key and a value, 256 more), and how many are left;
    # -1 of the fields of a struct, which say their types themselves.
    kinds[0], left[0] = kind, 1
    depth = 0
    while depth >= 0:
        if left[depth] == 0:
            depth -= 1
            continue
        kind = kinds[depth]
        inside = depth > 0 and left[depth] > 0
        if left[depth] < 0:
            _, kind, at = _field(data, at, np.int64(0))
            if at < 0:
                return -1
            if kind == _STOP:
                left[depth] = 0
                continue
        elif kind >= 256:
            kind = (kind >> 4) & 15 if left[depth] % 2 == 0 else kind & 15
        if left[depth] > 0:
            left[depth] -= 1
        if kind in (_TRUE, _FALSE):
            at += inside  # the header of a field holds it, an element takes a byte
        elif kind == _BYTE:
            at += 1
        elif kind in (_I16, _I32, _I64):
            _, at = _varint(data, at)
        elif kind == _DOUBLE:
            at += 8
        elif kind == _UUID:
            at += 16
        elif kind == _BINARY:
            size, at = _size(data, at)
            at = at + size if at >= 0 else at
        elif depth + 1 < DEPTH and (kind in (_LIST, _SET)):
            depth += 1
            left[depth], kinds[depth], at = _elements(data, at)
        elif depth + 1 < DEPTH and kind == _MAP:
            depth += 1
            left[depth], at = _size(data, at)
            kinds[depth] = _STOP
            if at >= 0 and left[depth]:
                if at >= len(data):
                    return -1
                left[depth], kinds[depth] = 2 * left[depth], 256 + np.int64(data[at])
                at += 1
        elif depth + 1 < DEPTH and kind == _STRUCT:
            depth += 1
            kinds[depth], left[depth] = _STOP, -1
        else:
            return -1
        if at < 0 or at > len(data):
            return -1
    return at


@jit
def _chunk(data, at, out, scratch):
    """Read a column chunk into a row of the table; return where it ends."""
    number, dictionary = np.int64(0), np.int64(0)
    while True:
        number, kind, at = _field(data, at, number)
        if at < 0 or kind == _STOP:
            break
        if number == 8:
            out[ENCRYPTED] = 1
        if number != 3 or kind != _STRUCT:
            at = _skip(data, at, kind, scratch)
            continue
        inner = np.int64(0)
        while True:
            inner, kind, at = _field(data, at, inner)
            if at < 0 or kind == _STOP:
                break
            if kind != _I32 and kind != _I64:
                at = _skip(data, at, kind, scratch)
                continue
            value, at = _integer(data, at)
            if inner == 1:
                out[PHYSICAL] = value
            elif inner == 4:
                out[CODEC] = value
            elif inner == 5:
                out[VALUES] = value
            elif inner == 6:
                out[UNCOMPRESSED] = value
            elif inner == 7:
                out[COMPRESSED] = value
            elif inner == 9:
                out[START] = value
            elif inner == 11:
                dictionary = value
    if 0 < dictionary < out[START]:
        out[START] = dictionary
    return at


@kernel
def column_chunks(data, leaves, out):
    """Read the column chunks of all row groups.

    Parameters
    ----------
    data : ndarray of uint8
        A footer: FileMetaData as it lies in the file.
    leaves : int
        Columns that each row group has.
    out : ndarray of int64, shape (most, CHUNK_FIELDS)
        Takes the chunks, row group by row group.

    Returns
    -------
    int
        Number of chunks; -1 if the footer cannot be read, or has others than these.
    """
    at, number, found, scratch = np.int64(0), np.int64(0), 0, np.empty((2, DEPTH), np.int64)
    while True:
        number, kind, at = _field(data, at, number)
        if at < 0:
            return -1
        if kind == _STOP:
            return found
        if number != 4 or kind != _LIST:
            at = _skip(data, at, kind, scratch)
            continue
        groups, kind, at = _elements(data, at)
        if kind != _STRUCT and groups:
            return -1
        for group in range(groups):
            inner, columns = 0, 0
            while True:
                inner, kind, at = _field(data, at, inner)
                if at < 0:
                    return -1
                if kind == _STOP:
                    break
                if inner != 1 or kind != _LIST:
                    at = _skip(data, at, kind, scratch)
                    continue
                columns, kind, at = _elements(data, at)
                if columns != leaves or kind != _STRUCT or found + columns > len(out):
                    return -1
                for leaf in range(columns):
                    out[found] = -1
                    out[found, ROW_GROUP], out[found, LEAF], out[found, ENCRYPTED] = group, leaf, 0
                    at = _chunk(data, at, out[found], scratch)
                    if at < 0:
                        return -1
                    found += 1
            if columns != leaves:
                return -1


@kernel
def page_header(data, out):
    """Read the header of a page at the start of some bytes.

    Parameters
    ----------
    data : ndarray of uint8
        The header and what follows it.
    out : ndarray of int64, shape (HEADER_FIELDS,)
        Takes what it says.

    Returns
    -------
    int
        Length of the header; -1 if it cannot be read.
    """
    return _page_header(data, out, np.empty((2, DEPTH), np.int64))


@jit
def _page_header(data, out, scratch):
    out[:] = -1
    at, number = np.int64(0), np.int64(0)
    while True:
        number, kind, at = _field(data, at, number)
        if at < 0:
            return -1
        if kind == _STOP:
            return at if min(out[TYPE], out[SIZE], out[IN_FILE]) >= 0 and max(out[1], out[2], out[3]) < 1 << 31 else -1
        if kind == _I32 and 1 <= number <= 3:
            out[number - 1], at = _integer(data, at)
        elif kind == _STRUCT and (number == 5 or number == 7 or number == 8):
            at = _values_header(data, at, number == 8, out, scratch)
        else:
            if number == 4:
                out[CHECKSUM] = 1
            at = _skip(data, at, kind, scratch)


@jit
def _values_header(data, at, second, out, scratch):
    """Read what the header says of the values; ``second``: in the second version. Return where that ends."""
    number = np.int64(0)
    while True:
        number, kind, at = _field(data, at, number)
        if at < 0 or kind == _STOP:
            return at
        if kind == _I32:
            value, at = _integer(data, at)
            if number == 1:
                out[COUNT] = value
            elif number == (4 if second else 2):
                out[ENCODING] = value
            elif number == 3 and not second:
                out[LEVEL_ENCODING] = value
            elif number == 5 and second:
                out[NULL_BYTES] = value
            elif number == 6 and second:
                out[LIST_BYTES] = value
        else:
            if number == 7 and second:
                out[IS_COMPRESSED] = kind == _TRUE
            at = _skip(data, at, kind, scratch)


@kernel
def chunk_pages(data, size, snappy, out):
    """Read the headers of the pages of a column chunk, or of what is left of it.

    Parameters
    ----------
    data : ndarray of uint8
        The first bytes, or all, as they lie in the file.
    size : int
        How many there are in all.
    snappy : bool
        Whether pages are packed by Snappy: then these begin with their size, which must be what the header says.
    out : ndarray of int64, shape (most, HEADER_FIELDS)
        Takes what they say; `BODY` counts from the first byte.

    Returns
    -------
    pages : int
        Pages whose headers are read, -1 if one is no header, or its page does not end in the chunk or is of another
        size. They are not all if ``out`` is full, or the next header does not stand in ``data`` as a whole.
    at : int
        Where the next header begins.
    """
    at, pages, scratch = 0, 0, np.empty((2, DEPTH), np.int64)
    while at < len(data) and pages < len(out):
        header = _page_header(data[at:], out[pages], scratch)
        if header < 0:
            return (pages, at) if len(data) < size else (-1, at)
        if out[pages, IN_FILE] > size - at - header:
            return -1, at
        out[pages, BODY] = at + header
        if snappy and out[pages, IS_COMPRESSED] != 0 and out[pages, SIZE] > 0:
            levels = max(out[pages, NULL_BYTES], 0) + max(out[pages, LIST_BYTES], 0)
            if levels > out[pages, IN_FILE]:
                return -1, at
            unpacked, begin = _varint(data, at + header + levels)
            if begin < 0 and len(data) < size:
                return pages, at
            if begin < 0 or np.int64(unpacked) != out[pages, SIZE] - levels:
                return -1, at
        at += header + out[pages, IN_FILE]
        pages += 1
    return pages, at


@jit
def _add_page(header, codec, out):
    """Add a page to what is told of all."""
    size, compressed = header[SIZE], header[IN_FILE]
    taken = compressed + (size if codec else 0)
    if header[TYPE] == DICTIONARY_PAGE:
        out[DICTIONARY] = max(out[DICTIONARY], taken)
    else:
        out[PAGE] = max(out[PAGE], taken)
        out[PAGE_VALUES] += max(0, header[COUNT])
    out[PAGES] += 1
    if size > out[INFLATED]:
        out[INFLATED], out[INFLATED_FROM] = size, compressed


@kernel
def add_page(header, codec, out):
    """Add a page, as `page_header` tells it, to what `walk_pages` tells of all."""
    _add_page(header, codec, out)


@kernel
def walk_pages(descriptor, chunks, most, out):
    """Read the headers of the pages of column chunks.

    Parameters
    ----------
    descriptor : int
        An open file.
    chunks : ndarray of int64, shape (n, CHUNK_FIELDS)
        As `column_chunks` tells them.
    most : int
        Pages of each after which to stop.
    out : ndarray of int64, shape (n, PAGE_FIELDS)
        Takes what their pages are like.

    Returns
    -------
    int
        Number of chunks up to the first with a header that cannot be read, or all.
    """
    header, data, scratch = (
        np.empty(HEADER_FIELDS, np.int64),
        np.empty(HEADER_BYTES, np.uint8),
        np.empty((2, DEPTH), np.int64),
    )
    for k in range(len(chunks)):
        out[k] = 0
        at, end = chunks[k, START], chunks[k, START] + chunks[k, COMPRESSED]
        while at < end and out[k, PAGES] < most:
            wanted = HEADER_BYTES
            while True:
                if wanted > len(data):
                    data = np.empty(wanted, np.uint8)
                there = read_at(descriptor, address_of(data), min(wanted, end - at), at)
                size = _page_header(data[: max(there, 0)], header, scratch)
                if size >= 0:
                    break
                if there < wanted or wanted >= LARGEST_HEADER:
                    return k
                wanted *= 16
            if out[k, PAGES] == MOST_PAGES:
                return k
            _add_page(header, chunks[k, CODEC], out[k])
            at += size + header[IN_FILE]
    return len(chunks)
