"""Damage to a small file: every prefix, and every byte with some of its bits flipped.

A file that is damaged is an error of its own class, or what padded it was damaged and it says what it said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from .outcome import Outcome

Content = TypeVar("Content")

MASKS = (*(1 << bit for bit in range(8)), 0xFF)


def damage(data: bytes, masks: tuple[int, ...] = MASKS) -> Iterator[tuple[str, bytes]]:
    """Yield what was done to a file, and the bytes that came of it."""
    for n in range(len(data)):
        yield f"its first {n} of {len(data)} bytes", data[:n]
    for more in (b"\0", b" ", data):
        yield f"{len(more)} more bytes {more[:1]!r}", data + more
    for place, byte in enumerate(data):
        for mask in masks:
            yield f"byte {place} with 0x{mask:02x} flipped", data[:place] + bytes([byte ^ mask]) + data[place + 1 :]


def run(
    path: Path,
    load: Callable[[Path], Content],
    same: Callable[[Content], bool],
    error: type[Exception],
    masks: tuple[int, ...] = MASKS,
    every: int = 1,
) -> Outcome:
    """Load every damaged form of a file, which is whole again afterwards.

    Parameters
    ----------
    path : Path
        The file.
    load : callable
        Reads it.
    same : callable
        Whether what was read is what the whole file says.
    error : type
        What a damaged file raises.
    masks : tuple of int
        Bits to flip.
    every : int
        Try one form of damage in so many.
    """
    outcome, data = Outcome(), path.read_bytes()
    try:
        for what, damaged in islice(damage(data, masks), 0, None, every):
            path.write_bytes(damaged)
            outcome.count(f"{path.name}, damaged", _failure(lambda: same(load(path)), error, what))
    finally:
        path.write_bytes(data)
    outcome.count(f"{path.name}, whole", None if same(load(path)) else "it is not what it was")
    return outcome


def _failure(loads_the_same: Callable[[], bool], error: type[Exception], what: str) -> str | None:
    try:
        return None if loads_the_same() else f"{what} gave something else"
    except error:
        return None
    except Exception as other:
        return f"{what} raised {type(other).__name__}: {other}"
