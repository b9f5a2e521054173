"""Strings as they stand in a page, against those that Arrow holds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data.strings import hash_values
from streamgd.kernels.plain import plain_hashes

SEED = 0x9747_B28C

sizes = st.sampled_from([0, 1, 3, 4, 7, 8, 8, 8, 12, 15, 16, 17, 40])


@st.composite
def strings(draw: st.DrawFn) -> list[bytes]:
    """Mostly short ones, of which hundreds are hashed together."""
    n, random = draw(st.sampled_from([0, 1, 5, 300, 700])), draw(st.randoms(use_true_random=False))
    some = [random.randbytes(size) for size in draw(st.lists(sizes, min_size=1, max_size=6))]
    return [random.choice(some) for _ in range(n)]


def page(values: list[bytes]) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def hashes(body: bytes, room: int) -> np.ndarray | None:
    """Hashes of the strings of a page, which ends where its memory does; None if they do not end in it."""
    data, out = np.frombuffer(body, np.uint8).copy(), np.zeros(room, np.uint32)
    n = plain_hashes(data.ctypes.data, data.ctypes.data + len(data), np.uint32(SEED), out)
    assert n < 0 or (out[n:] == 0).all()
    return None if n < 0 else out[:n]


@settings(deadline=None)
@given(strings(), st.sampled_from([0, 1, 256, 1000]))
def test_hashes_are_those_of_arrows_strings(values: list[bytes], room: int) -> None:
    expected = hash_values(pa.array(values[:room], pa.binary()), SEED, 0)
    np.testing.assert_array_equal(hashes(page(values), room), expected)


@settings(deadline=None)
@given(strings().filter(bool), st.integers(0, 10_000))
def test_strings_that_are_cut_are_not_hashed(values: list[bytes], cut: int) -> None:
    body = page(values)
    body = body[: cut % len(body)]
    whole, at = 0, 0
    for value in values:
        if at + 4 + len(value) > len(body):
            break
        whole, at = whole + 1, at + 4 + len(value)
    found = hashes(body, len(values))
    assert (found is None) == (at < len(body))
    assert found is None or len(found) == whole


def test_a_length_that_no_page_has_is_refused() -> None:
    for size in (13, 1 << 31, (1 << 32) - 1):
        assert hashes(page([b"a" * 8] * 20) + size.to_bytes(4, "little") + b"b" * 12, 30) is None
