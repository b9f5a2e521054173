"""Snappy's blocks, against Arrow's codec and against what a few lines of Python make of each element."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamgd.kernels.intrinsics import address_of
from streamgd.kernels.snappy import SPARE, are_literals, join_literals, unpack_snappy
from tests.thrift import varint

CANARY = 0xA5
CODEC = pa.Codec("snappy")


@njit
def _unpack(data, n, out, size):
    return unpack_snappy(address_of(data), address_of(data) + n, address_of(out), size)


def unpack(block: bytes, size: int) -> bytes | None:
    """Unpack a block from memory that ends where it ends; nothing but what may be written is."""
    data = np.frombuffer(block, np.uint8).copy()
    out = np.full(size + 2 * SPARE, CANARY, np.uint8)
    fit = _unpack(data, len(data), out, size)
    assert (out[size + SPARE :] == CANARY).all()
    return out[:size].tobytes() if fit else None


@njit
def _join(data, n, size):
    at = address_of(data)
    fit = are_literals(at, at + n, size)
    return fit, join_literals(at, at + n) - at if fit else 0


def join(block: bytes, size: int) -> bytes | None:
    """Join literals where they lie; nothing outside of the block is written."""
    data = np.concatenate([np.frombuffer(block, np.uint8), np.full(SPARE, CANARY, np.uint8)])
    fit, begin = _join(data, len(block), size)
    assert (data[len(block) :] == CANARY).all() and (fit or data[: len(block)].tobytes() == block)
    return data[begin : begin + size].tobytes() if fit else None


def size_of(block: bytes) -> bytes:
    """The bytes at the start of a block that say its size."""
    last = next((k for k, byte in enumerate(block) if byte < 128), len(block) - 1)
    return block[: last + 1]


@st.composite
def elements(draw: st.DrawFn, kinds: int = 3) -> tuple[bytes, bytes]:
    """A block of literals and copies of every kind, or of so many, and what is packed in it."""
    block, whole = b"", bytearray()
    for _ in range(draw(st.integers(0, 30))):
        kind = draw(st.integers(0, kinds)) if whole else 0
        if kind == 0:
            n = draw(st.one_of(st.integers(1, 70), st.sampled_from([60, 61, 256, 257, 65_536, 65_537])))
            piece = draw(st.randoms(use_true_random=False)).randbytes(n)
            sizes = [k for k in range(1, 5) if n - 1 < 1 << 8 * k]
            more = draw(st.sampled_from(sizes if n > 60 else [0, *sizes]))
            block += bytes([(59 + more) << 2]) + (n - 1).to_bytes(more, "little") if more else bytes([(n - 1) << 2])
            block += piece
            whole += piece
            continue
        most = min(len(whole), (1 << 11, 1 << 16, 1 << 32)[kind - 1] - 1)
        offset = draw(st.one_of(st.integers(1, most), st.integers(1, min(most, 20))))
        n = draw(st.integers(4, 11) if kind == 1 else st.integers(1, 64))
        if kind == 1:
            block += bytes([(offset >> 8) << 5 | (n - 4) << 2 | 1, offset & 255])
        else:
            block += bytes([(n - 1) << 2 | kind]) + offset.to_bytes(2 if kind == 2 else 4, "little")
        for _ in range(n):
            whole.append(whole[-offset])
    return varint(len(whole)) + block, bytes(whole)


@settings(deadline=None)
@given(elements())
def test_every_kind_of_element(made: tuple[bytes, bytes]) -> None:
    block, whole = made
    assert unpack(block, len(whole)) == whole
    assert CODEC.decompress(block, len(whole), asbytes=True) == whole


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 200)), max_size=20))
def test_what_arrow_packs(pieces: list[tuple[bytes, int]]) -> None:
    whole = b"".join(piece * times for piece, times in pieces)
    assert unpack(CODEC.compress(whole, asbytes=True), len(whole)) == whole


@settings(max_examples=300, deadline=None)
@given(elements(), st.data())
def test_damage_is_what_arrow_says_it_is(made: tuple[bytes, bytes], data: st.DataObject) -> None:
    block, whole = bytearray(made[0]), made[1]
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(block[: data.draw(st.sampled_from([len(block), len(block) - 1, len(block) // 2]))])
    try:
        expected = CODEC.decompress(damaged, len(whole), asbytes=True)
    except (OSError, pa.ArrowException):
        expected = None
    told = sum((byte & 127) << 7 * k for k, byte in enumerate(size_of(damaged)))
    if told != len(whole):
        expected = None  # Arrow leaves what a block does not fill, which no page may
    assert unpack(damaged, len(whole)) == expected


@settings(deadline=None)
@given(elements(0))
def test_literals_are_joined_where_they_lie(made: tuple[bytes, bytes]) -> None:
    block, whole = made
    assert join(block, len(whole)) == whole


@settings(max_examples=300, deadline=None)
@given(elements(0) | elements(), st.data())
def test_only_literals_are_joined(made: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Of whatever is not as it should be, none is; and what is joined is what would be unpacked."""
    block, whole = bytearray(made[0]), made[1]
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, min(len(block), 40) - 1))
        block[place] ^= 1 << data.draw(st.integers(0, 7))
    elif data.draw(st.booleans()):
        del block[data.draw(st.integers(0, len(block) - 1)) :]
    joined = join(bytes(block), len(whole))
    assert joined is None or joined == unpack(bytes(block), len(whole))
