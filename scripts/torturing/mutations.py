"""What can happen to a shard: flipped bits, lost ends, wrong numbers in headers and footers, pages in other places."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np

from .good_shards import TARGETS, Number, Shard, read_varint, varint

EXTREMES = (
    *(0, 1, -1, 2, 3, 5, 8, 127, 128, 255, 32767, 65535, 2**20, 2**28, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**40),
    *(2**62, 2**63 - 1, -(2**63), 10**9),
)
#: Places of a file, in FileMetaData: of chunks, pages, indexes and row groups.
OFFSETS = ((4, 1, 2), (4, 1, 3, 9), (4, 1, 3, 10), (4, 1, 3, 11), (4, 1, 4), (4, 1, 6), (4, 5))
CHUNK_BYTES = (4, 1, 3, 7)
Mutation = Callable[[Shard, Sequence[Shard], Random], tuple[bytes, str]]


def _extreme(value: int, draw: Random) -> int:
    near = (
        value - 1,
        value + 1,
        2 * value,
        value // 2,
        -value,
        value + 2**32,
        draw.randrange(16),
        draw.randrange(2048),
    )
    found = draw.choice((*near, *EXTREMES))
    return min(max(found, -(2**63)), 2**63 - 1)


def _span(draw: Random, start: int, stop: int, most: int = 4096) -> tuple[int, int]:
    """A range inside another: short ones as often as long ones."""
    length = min(int(2 ** draw.uniform(0, np.log2(most))), stop - start)
    first = draw.randrange(start, stop - length + 1)
    return first, first + length


def _bits(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    data, places = bytearray(shard.data), []
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        places.append(draw.randrange(8 * len(data)))
        data[places[-1] // 8] ^= 1 << places[-1] % 8
    return bytes(data), f"bits {places}"


def _bytes_in(data: bytes, spans: Sequence[tuple[int, int]], draw: Random) -> tuple[bytes, str]:
    out, changes = bytearray(data), []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(*draw.choice(spans))
        out[at] = draw.choice((0, 1, 127, 128, 255, out[at] ^ 1 << draw.randrange(8), draw.randrange(256)))
        changes.append(f"{at}={out[at]}")
    return bytes(out), f"bytes {' '.join(changes)}"


def _bytes(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    return _bytes_in(shard.data, [(0, len(shard.data))], draw)


def _footer_bytes(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    return _bytes_in(shard.data, [(shard.footer, len(shard.data) - 8)], draw)


def _header_bytes(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    page = draw.choice(shard.pages)
    return _bytes_in(shard.data, [(page.start, page.body)], draw)


def _body_bytes(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """In the first bytes of pages stand levels, bit widths, and the headers of encodings."""
    page = draw.choice([page for page in shard.pages if page.stop > page.body])
    return _bytes_in(shard.data, [(page.body, min(page.stop, page.body + draw.choice((8, 32, 1024))))], draw)


def _values(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """What a page says first after its levels: a bit width and a run of a dictionary's index, or sizes of blocks."""
    shard = shard if shard.plain else draw.choice([one for one in others if one.plain])
    pages = [page for page in shard.pages if page.stop > page.values + 16]
    page = draw.choice([page for page in pages if page.indices] or pages if draw.random() < 0.5 else pages)
    width, run = draw.choice((0, 1, 7, 8, 31, 33, 255)), varint(draw.choice((2, 80, 320, 2**20, 2**31 - 2)))
    coded = draw.choice((b"", bytes([width]))) + run + (draw.choice(EXTREMES) & (1 << 64) - 1).to_bytes(8, "little")
    if page.indices and draw.random() < 0.5:
        coded = b"\x20" + varint(320) + (draw.choice(EXTREMES) & (1 << 32) - 1).to_bytes(4, "little")
    elif draw.random() < 0.3:
        coded = coded[: draw.choice((1, 2, 4))]
    return (
        shard.data[: page.values] + coded + shard.data[page.values + len(coded) :],
        f"{coded.hex()} at {page.values}, chunk {page.chunk} of {shard.name}",
    )


def _truncated(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    length = draw.choice((draw.randrange(len(shard.data)), draw.randrange(16), len(shard.data) - draw.randrange(1, 16)))
    return shard.data[:length], f"{length} of {len(shard.data)} bytes"


def _inserted(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    at, (_, length) = draw.randrange(len(shard.data)), _span(draw, 0, 4096)
    return shard.data[:at] + draw.randbytes(length) + shard.data[at:], f"{length} random bytes at {at}"


def _deleted(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    start, stop = _span(draw, 0, len(shard.data))
    return shard.data[:start] + shard.data[stop:], f"{start}-{stop}"


def _duplicated(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    start, stop = _span(draw, 0, len(shard.data))
    at = draw.choice((stop, draw.randrange(len(shard.data))))
    return shard.data[:at] + shard.data[start:stop] + shard.data[at:], f"{start}-{stop} once more at {at}"


def _overwritten(value: int, shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    start, stop = _span(draw, 0, len(shard.data))
    return shard.data[:start] + bytes([value]) * (stop - start) + shard.data[stop:], f"{start}-{stop}"


def _integers(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    size = draw.choice((4, 8))
    page = draw.choice(shard.pages)
    at = draw.choice((page.body, page.start, shard.footer, draw.randrange(len(shard.data)))) + draw.choice((0, 0, 4, 9))
    at = min(at, len(shard.data) - size)
    value = draw.choice(EXTREMES) & (1 << 8 * size) - 1
    return shard.data[:at] + value.to_bytes(size, "little") + shard.data[at + size :], f"{value} at {at}, {size} bytes"


def _edited(data: bytes, changes: Sequence[tuple[Number, int]], start: int, stop: int) -> bytes:
    """A part of a file with other numbers."""
    out = bytearray(data[start:stop])
    for number, value in sorted(changes, key=lambda change: change[0].start, reverse=True):
        out[number.start - start : number.stop - start] = number.coded(value)
    return bytes(out)


def _with_footer(body: bytes, footer: bytes) -> bytes:
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _footer_numbers(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """Numbers, lengths and counts of the footer, which is whole otherwise."""
    kind = draw.choice(("number",) * 6 + ("length", "count"))
    paths = sorted({number.path for number in shard.numbers if number.what == kind})
    path = draw.choice(paths)  # else most would be statistics
    chosen = [number for number in shard.numbers if (number.what, number.path) == (kind, path)]
    if draw.random() < 0.7:
        chosen = [draw.choice(chosen)]
    value = _extreme(chosen[0].value, draw)
    footer = _edited(shard.data, [(number, value) for number in chosen], shard.footer, len(shard.data) - 8)
    what = f"{kind} {'.'.join(map(str, path))} at {chosen[0].start}{' and all others' if chosen[1:] else ''}"
    return _with_footer(shard.data[: shard.footer], footer), f"{what}: {chosen[0].value} becomes {value}"


def _page_numbers(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """A number of a page header; all that comes after moves, and the footer says so."""
    page = draw.choice(shard.pages)
    number = draw.choice([number for number in page.numbers if number.what == "number"])
    value = _extreme(number.value, draw)
    header = _edited(shard.data, [(number, value)], page.start, page.body)
    moved = len(header) - (page.body - page.start)
    changes = [
        (other, other.value + moved) for other in shard.numbers if other.path in OFFSETS and other.value > page.start
    ]
    total = [other for other in shard.numbers if other.path == CHUNK_BYTES][page.chunk]
    footer = _edited(shard.data, [*changes, (total, total.value + moved)], shard.footer, len(shard.data) - 8)
    body = shard.data[: page.start] + header + shard.data[page.body : shard.footer]
    what = f"{'.'.join(map(str, number.path))} of the page at {page.start}, chunk {page.chunk}"
    return _with_footer(body, footer), f"{what}: {number.value} becomes {value}"


def _arrow_schema(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """Arrow's own schema, a flatbuffer in base64 among the key-value metadata."""
    shard = shard if b"ARROW:schema" in shard.data else draw.choice([s for s in others if b"ARROW:schema" in s.data])
    length, start = read_varint(shard.data, shard.data.rindex(b"ARROW:schema") + len("ARROW:schema") + 1)
    message, what = _bytes_in(base64.b64decode(shard.data[start : start + length]), [(0, length * 3 // 4 - 2)], draw)
    return shard.data[:start] + base64.b64encode(message) + shard.data[start + length :], f"{what} of {shard.name}"


def _swapped(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    start, stop = _span(draw, 0, len(shard.data) // 2)
    first, last = _span(draw, len(shard.data) // 2, len(shard.data))
    data = shard.data
    return data[:start] + data[first:last] + data[stop:first] + data[start:stop] + data[last:], (
        f"{start}-{stop} and {first}-{last}"
    )


def _swapped_pages(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """A page, or its body, where another was; the footer is whole."""
    left, right = sorted(draw.sample(shard.pages, 2), key=lambda page: page.start)
    bodies, data = draw.random() < 0.5, shard.data
    a, b = (left.body, right.body) if bodies else (left.start, right.start)
    moved = data[:a] + data[b : right.stop] + data[left.stop : b] + data[a : left.stop] + data[right.stop :]
    return moved, f"{a}-{left.stop} and {b}-{right.stop}"


def _footer_length(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    length = len(shard.data) - 8 - shard.footer
    value = draw.choice(
        (_extreme(length, draw), len(shard.data) - draw.randrange(16), length + draw.randrange(-64, 64))
    )
    value &= (1 << 32) - 1
    return shard.data[:-8] + struct.pack("<I", value) + b"PAR1", f"{length} becomes {value}"


def _grafted(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """The footer of another shard."""
    other = draw.choice([one for one in others if one is not shard])
    body = shard.data[: shard.footer]
    if draw.random() < 0.5:  # so that places are within the file
        body = (body + bytes(other.footer))[: other.footer]
    return _with_footer(body, other.data[other.footer : -8]), f"the footer of {other.name}"


def _twice(shard: Shard, others: Sequence[Shard], draw: Random) -> tuple[bytes, str]:
    """A number of the footer and bytes of a page."""
    data, first = _footer_numbers(shard, others, draw)
    page = draw.choice(shard.pages)
    data, second = _bytes_in(data, [(page.start, page.stop)], draw)
    return data, f"{first}; {second}"


MUTATIONS: dict[str, Mutation] = {
    "bits": _bits,
    "bytes": _bytes,
    "footer bytes": _footer_bytes,
    "footer numbers": _footer_numbers,
    "footer length": _footer_length,
    "arrow schema": _arrow_schema,
    "page header bytes": _header_bytes,
    "page header numbers": _page_numbers,
    "page body bytes": _body_bytes,
    "page values": _values,
    "integers": _integers,
    "truncated": _truncated,
    "inserted": _inserted,
    "deleted": _deleted,
    "duplicated": _duplicated,
    "zeros": partial(_overwritten, 0),
    "ones": partial(_overwritten, 255),
    "swapped": _swapped,
    "swapped pages": _swapped_pages,
    "foreign footer": _grafted,
    "footer and page": _twice,
}


@dataclass(frozen=True)
class Mutant:
    """A file, and what to do with it."""

    kind: str
    what: str
    data: bytes
    job: str
    target: str
    weight: str | None
    beside: Shard


def mutant(shards: Sequence[Shard], seed: int, number: int) -> Mutant:
    """Make a mutant; equal seeds and numbers give equal ones with one version of pyarrow.

    Parameters
    ----------
    shards : sequence of Shard
        What `good_shards` gave.
    seed, number : int
        Which mutant; numbers go round the kinds of mutations.
    """
    draw, kind = Random(f"{seed}/{number}"), list(MUTATIONS)[number % len(MUTATIONS)]
    shard = draw.choice([one for one in shards if one.plain] if draw.random() < 0.5 else shards)
    job = draw.choice(("train",) * 11 + ("train, good first",) * 3 + ("train, good last",) * 3 + ("predict",) * 3)
    target, weight = draw.choice(TARGETS), draw.choice((None, None, None, "short"))
    data, what = MUTATIONS[kind](shard, shards, draw)
    what = f"{what}; {shard.name}, {job} {target}{' by weight' if weight else ''}"
    return Mutant(kind, what, data, job, target, weight, draw.choice(shards))
