"""Pages of a column chunk as `streamgd.kernels.decode` takes them: what their headers say, checked, and their bytes.

All pages that are wanted of a chunk are unpacked in one call, if they are packed by Snappy or not at all, and of small
row groups many chunks: whatever is done for each page or chunk by the interpreter counts, since a row group has
hundreds of these and dozens of those.
"""

from __future__ import annotations

import numpy as np

from .decode import BEGIN, CELLS, CODED, END, LEVELS, N_CELLS, NULLS, VALUES
from .intrinsics import address_of, jit, kernel
from .snappy import SPARE, are_literals, copy_block, join_literals, unpack_snappy
from .thrift import (
    BODY,
    CHECKSUM,
    CODEC,
    COMPRESSED,
    COUNT,
    DATA_PAGE,
    DATA_PAGE_V2,
    DICTIONARY_PAGE,
    ENCODING,
    IN_FILE,
    IS_COMPRESSED,
    LEVEL_ENCODING,
    LIST_BYTES,
    NULL_BYTES,
    SIZE,
    START,
    TYPE,
    UNCOMPRESSED,
    chunk_pages,
    read_at,
)

#: Codecs by their number in the footer.
UNPACKED, SNAPPY = 0, 1
#: Encodings of values.
PLAIN, PLAIN_DICTIONARY, RLE, DICTIONARY = 0, 2, 3, 8


@kernel
def list_pages(headers, packed, nullable, rows, unpacked, pages, ends):
    """See what the pages of a column chunk are.

    Parameters
    ----------
    headers : ndarray of int64, shape (n, HEADER_FIELDS)
        What `streamgd.kernels.thrift` tells of each.
    packed, nullable : bool
        Whether the chunk has a codec, and whether its pages have bits that say what is null.
    rows, unpacked : int
        Rows and unpacked bytes that it has as the footer says.
    pages : ndarray of int64, shape (n, PAGE_FIELDS)
        Takes what they are, but for where their bytes are.
    ends : ndarray of int64, shape (n + 1, 2)
        Takes how many rows and unpacked bytes there are before each, and in all.

    Returns
    -------
    direct : bool
        False if they are not for `decode_rows`, or odd in any way.
    plain : bool
        Whether a page of data has plain values.
    """
    ends[0], dictionary, plain = 0, False, False
    for k in range(len(headers)):
        kind, size, in_file, values = headers[k, TYPE], headers[k, SIZE], headers[k, IN_FILE], headers[k, COUNT]
        encoding, levels = headers[k, ENCODING], np.int64(0)
        ends[k + 1, 0], ends[k + 1, 1] = ends[k, 0], ends[k, 1] + size
        if ends[k + 1, 1] > unpacked or headers[k, CHECKSUM] >= 0 or values < 0:
            return False, plain
        if (not packed or headers[k, IS_COMPRESSED] == 0) and in_file != size:
            return False, plain
        if kind == DICTIONARY_PAGE:
            if k > 0 or (encoding != PLAIN and encoding != PLAIN_DICTIONARY):
                return False, plain
            dictionary = True
        else:
            if encoding == PLAIN:
                plain = True
            elif not dictionary or (encoding != PLAIN_DICTIONARY and encoding != DICTIONARY):
                return False, plain
            ends[k + 1, 0] += values
            if kind == DATA_PAGE:
                if nullable:
                    if headers[k, LEVEL_ENCODING] != RLE:
                        return False, plain
                    levels = np.int64(-1)
            elif kind == DATA_PAGE_V2:
                levels = headers[k, NULL_BYTES]
                if headers[k, LIST_BYTES] != 0 or levels < 0 or levels > min(in_file, size):
                    return False, plain
                if levels > 0 and not nullable:
                    return False, plain
            else:
                return False, plain
        pages[k, VALUES], pages[k, CODED] = values, encoding != PLAIN
        pages[k, NULLS], pages[k, LEVELS] = levels != 0, levels
        pages[k, BEGIN], pages[k, END], pages[k, CELLS], pages[k, N_CELLS] = 0, 0, 0, 0
    return ends[len(headers), 0] == rows, plain


@kernel
def unpack_pages(raw, begin, headers, first, last, codec, out, pages):
    """Unpack some pages of a column chunk one after the other.

    Parameters
    ----------
    raw : ndarray of uint8
        Bytes of the chunk as they lie in the file, from that of number ``begin`` on, with all of these pages.
    headers : ndarray of int64, shape (n, HEADER_FIELDS)
        All pages, which `list_pages` has found fit.
    first, last : int
        The first that is wanted, and that after the last.
    codec : int
        `SNAPPY`, or `UNPACKED`: then they stay where they are.
    out : int
        Address of room for as many bytes as their headers say, and `streamgd.kernels.snappy.SPARE`.
    pages : ndarray of int64, shape (n, PAGE_FIELDS)
        Takes where their bytes are.

    Returns
    -------
    bool
        False if one cannot be unpacked.
    """
    for k in range(first, last):
        at, size, in_file = address_of(raw) + headers[k, BODY] - begin, headers[k, SIZE], headers[k, IN_FILE]
        if codec == UNPACKED:
            pages[k, BEGIN], pages[k, END] = at, at + size
            continue
        prefix = max(pages[k, LEVELS], 0)  # bits of nulls are never packed in the second version
        if headers[k, IS_COMPRESSED] == 0 or size == prefix:
            copy_block(out, at, size)
        else:
            copy_block(out, at, prefix)
            if not unpack_snappy(at + prefix, at + in_file, out + prefix, size - prefix):
                return False
        pages[k, BEGIN], pages[k, END] = out, out + size
        out += size
    return True


@jit
def _join_pages(raw, headers, pages):
    """Make the pages of a chunk whole where they are, if they are not packed but by name; else leave them."""
    for k in range(len(headers)):
        at, size = address_of(raw) + headers[k, BODY], headers[k, SIZE]
        whole = headers[k, IS_COMPRESSED] == 0
        if not whole and (pages[k, LEVELS] > 0 or not are_literals(at, at + headers[k, IN_FILE], size)):
            return False
    for k in range(len(headers)):
        at = address_of(raw) + headers[k, BODY]
        if headers[k, IS_COMPRESSED] != 0:
            at = join_literals(at, at + headers[k, IN_FILE])
        pages[k, BEGIN], pages[k, END] = at, at + headers[k, SIZE]
    return True


@kernel
def read_chunks(descriptor, chunks, nullable, rows, raw, headers, out, pages, ends, told):
    """Read some column chunks of a file, and unpack all of their pages.

    Parameters
    ----------
    descriptor : int
        The open file.
    chunks : ndarray of int64, shape (n, CHUNK_FIELDS)
        What `streamgd.kernels.thrift` tells of each; all are packed by Snappy, or not at all.
    nullable : ndarray of bool, shape (n,)
        Whether pages of each have bits that say what is null.
    rows : ndarray of int64, shape (n,)
        Rows of each.
    raw : ndarray of uint8
        Room for the largest as it lies in the file, if it is packed.
    headers : ndarray of int64, shape (most, HEADER_FIELDS)
        Room for the headers of all pages of one.
    out : ndarray of uint8
        Takes what they unpack to, or how they lie in the file if that is more, with `streamgd.kernels.snappy.SPARE`.
    pages : ndarray of int64, shape (room, PAGE_FIELDS)
        Takes the pages of one after those of the other, as long as there is room, ...
    ends : ndarray of int64, shape (>= room + n, 2)
        ... and what `list_pages` says of rows and bytes.
    told : ndarray of int64, shape (n, 3)
        Takes the number of pages of each, whether one of data has plain values, and whether the first is a dictionary.

    Returns
    -------
    int
        Number of chunks up to the first that is not for this, or is odd in any way; or all.
    """
    first, done, nothing = np.int64(0), np.int64(0), np.int64(0)
    for k in range(len(chunks)):
        codec, size, unpacked = chunks[k, CODEC], chunks[k, COMPRESSED], chunks[k, UNCOMPRESSED]
        packed = codec == SNAPPY
        # What is hardly packed may stay where it is read to.
        stays = not packed or 64 * size > 63 * unpacked
        place, taken = (out[done:] if stays else raw), (max(size, unpacked) + SPARE if packed else size)
        if min(size, unpacked) < 0 or size > len(place) or taken > len(out) - done:
            return k
        data, at = place[:size], 0
        while at < size:
            n = read_at(descriptor, address_of(data) + at, size - at, chunks[k, START] + at)
            if n <= 0:
                return k
            at += n
        n, end = chunk_pages(data, size, packed, headers)
        if n < 0 or end < size or first + n > len(pages):
            return k
        own, mine = pages[first : first + n], ends[first + k : first + k + n + 1]
        fit, plain = list_pages(headers[:n], packed, nullable[k], rows[k], unpacked, own, mine)
        if not fit:
            return k
        if not (packed and stays and _join_pages(data, headers[:n], own)):
            if packed and stays:
                copy_block(address_of(raw), address_of(data), size)
                data = raw
            if not unpack_pages(data, nothing, headers, nothing, n, codec, address_of(out) + done, own):
                return k
        told[k, 0], told[k, 1], told[k, 2] = n, plain, n > 0 and headers[0, TYPE] == DICTIONARY_PAGE
        first, done = first + n, done + taken
    return len(chunks)
