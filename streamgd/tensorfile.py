"""Files of named arrays and one JSON text, read with suspicion: what model files and checkpoints have in common.

A file is in the safetensors format: the length of a JSON header, the header, and the bytes of the arrays one after
another. A hash over the text, the names, types and shapes, and all bytes tells damage anywhere.

A file from a stranger runs nothing and allocates nothing that it does not hold: every size is compared with the size
of the file first. Arrays are neither copied on the way out nor on the way in, for a table of hashed weights may take
gigabytes: the bytes go by the digest while they are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from .atomic import replacing
from .errors import ModelFileError, StreamgdError
from .memory import available_memory

MOST_HEADER_BYTES = 256 << 20
#: NumPy takes no more.
MOST_DIMENSIONS = 32
#: Bytes that are hashed, then written or after they were read, while they are in the cache of the CPU.
PIECE = 1 << 20
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_REGULAR = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class _Entry(NamedTuple):
    """Where an array lies in the data of a file, and what it is."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def write(
    path: str | os.PathLike[str], key: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write a file of arrays, whole or not at all.

    Parameters
    ----------
    path : path
        Where to.
    key : str
        Says whose file it is: the name of the JSON text in the header.
    header : mapping
        JSON values, finite numbers; ``sha256`` is added.
    arrays : mapping of str to ndarray
        Integers, floats or booleans. Those that are not C-contiguous and little-endian are copied, others are not.

    Raises
    ------
    OutputError
        The file cannot be written; a file that was there before is as it was.
    """
    if "__metadata__" in arrays:
        raise ValueError("no array can have the name __metadata__")
    # Largest items first, so that each array lies at a multiple of its item size for readers that map the file.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    entries, tensors, at = [], [], 0
    for name in names:
        array = arrays[name]
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        if little.dtype not in _NAMES:
            raise TypeError(f"array {name!r} is {little.dtype}, which the format does not have")
        entries.append(_Entry(at, at + little.nbytes, name, _NAMES[little.dtype], little.shape))
        tensors.append(_bytes(little))
        at += little.nbytes
    # What is hashed is what a reader will find: JSON turns tuples into lists, and keys into text.
    plain = _parse(json.dumps(header, allow_nan=False))
    digest = _digest(plain, sorted(entries))  # empty arrays lie anywhere, a reader takes them by their names
    for piece in _pieces(tensors):
        digest.update(piece)
    outer: dict[str, Any] = {"__metadata__": {key: json.dumps(plain | {"sha256": digest.hexdigest()})}}
    for entry in entries:
        outer[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes could not be read again")
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:
        for piece in (memoryview(struct.pack("<Q", len(text)) + text), *_pieces(tensors)):
            while piece:
                piece = piece[file.write(piece) :]


def read(
    path: str | os.PathLike[str],
    key: str,
    where: str,
    error: type[StreamgdError] = ModelFileError,
    *,
    format: int | None = None,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a file of arrays.

    Parameters
    ----------
    path : path
        Where from; it may be a symbolic link.
    key : str
        As it was written.
    where : str
        What messages call the file.
    error : type
        The class of all errors.
    format : int, optional
        What stands under ``format`` in the header of a file that can be read.

    Returns
    -------
    header : dict
        As it was written, as JSON gives it.
    arrays : dict of str to ndarray
        Writable, little-endian, and nobody else's.

    Raises
    ------
    error
        The file is not there, not regular, damaged, foreign, or of another format.
    """
    with _typed(error, where), _regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = struct.unpack("<Q", _exactly(file, 8))[0] if size >= 8 else 1 << 64
        if length > min(MOST_HEADER_BYTES, size - 8):
            raise _Found("is not a safetensors file, or is cut short")
        if size > available_memory():  # a file with holes may seem to hold any amount
            raise MemoryError
        header, entries = _header(_exactly(file, length), key)
        if format is not None:
            _check_format(header, format)
        _check_places(entries, size - 8 - length)
        expected = header.pop("sha256", None)
        digest, arrays = _digest(header, entries), {}
        for entry in entries:
            array = np.empty(entry.shape, DTYPES[entry.dtype])
            for piece in _pieces([_bytes(array)]):
                _fill(file, piece)
                digest.update(piece)
            if entry.dtype == "BOOL" and (array.view(np.uint8) > 1).any():
                raise ValueError(f"array {entry.name!r} holds other bytes than true and false")
            arrays[entry.name] = array
        if digest.hexdigest() != expected:
            raise ValueError("what it holds does not have the hash that it names")
        return header, arrays


class _Found(Exception):
    """What is the matter with a file that is not damaged."""


@contextmanager
def _typed(error: type[StreamgdError], where: str) -> Iterator[None]:
    """Make one class of error of all that can go wrong while a file is read."""
    try:
        yield
    except _Found as found:
        raise error(f"{where} {found}.") from found
    except OSError as found:
        raise error(f"{where} cannot be read: {found.strerror or found}.") from found
    except MemoryError as found:
        raise error(f"{where} does not fit into memory; read it where there is more.") from found
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as found:
        told = "its header is nested too deeply" if isinstance(found, RecursionError) else str(found)
        raise error(f"{where} is damaged, or was not written by streamgd: {told}. Restore or replace it.") from found


@contextmanager
def _regular(path: str | os.PathLike[str]) -> Iterator[io.FileIO]:
    """Open a regular file; nothing else is read or waited for, even if it takes the place of one at this moment."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening some devices does something
        raise _Found("is not a regular file")
    with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, _REGULAR)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _Found("is not a regular file")
        yield file


def _header(text: bytes, key: str) -> tuple[dict[str, Any], list[_Entry]]:
    """The JSON text of a file, and its arrays in the order in which they lie."""
    outer = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    metadata = outer.pop("__metadata__", None) if isinstance(outer, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(key), str):
        raise _Found("was not written by streamgd")
    header = _parse(metadata[key])
    if not isinstance(header, dict):
        raise _Found("was not written by streamgd")
    return header, sorted(_entry(name, value) for name, value in outer.items())


def _entry(name: str, value: Any) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"array {name!r} is not described by a type, a shape and offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"array {name!r} is of an unknown type")
    if not _naturals(shape) or len(shape) > MOST_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the offsets of array {name!r} are not natural numbers")
    # Also where another dimension is zero: NumPy would refuse the array.
    if math.prod(length or 1 for length in shape) * DTYPES[dtype].itemsize >= 1 << 63:
        raise ValueError(f"array {name!r} is too large")
    return _Entry(offsets[0], offsets[1], name, dtype, tuple(shape))


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_format(header: dict[str, Any], known: int) -> None:
    found = header.get("format")
    if type(found) is not int:
        raise _Found("was not written by streamgd")
    if found != known:
        age = "a later" if found > known else "an earlier"
        raise _Found(
            f"has format {found}; this streamgd reads format {known}. It was written by {age} version: use that one"
        )


def _check_places(entries: list[_Entry], size: int) -> None:
    """Arrays cover the data of a file, without gaps and once each."""
    at = 0
    for entry in entries:
        needed = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.begin != at or entry.end - entry.begin != needed:
            raise ValueError(
                f"array {entry.name!r} lies at bytes {entry.begin} to {entry.end}, not at {needed} from {at}"
            )
        at = entry.end
    if at != size:
        raise ValueError(f"its arrays take {at} bytes, but {size} are there")


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _digest(header: Any, entries: list[_Entry]) -> Any:
    """Hash of all but the bytes of the arrays."""
    described = [header, [[entry.name, entry.dtype, entry.shape] for entry in entries]]
    return hashlib.sha256(json.dumps(described, sort_keys=True, allow_nan=False).encode())


def _bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array."""
    if not array.size:
        return memoryview(b"")
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _pieces(tensors: list[memoryview]) -> Iterator[memoryview]:
    for tensor in tensors:
        for begin in range(0, len(tensor), PIECE):
            yield tensor[begin : begin + PIECE]


def _fill(file: io.FileIO, piece: memoryview) -> None:
    """Read as many bytes as there is room for."""
    while piece:
        n = file.readinto(piece)
        if not n:
            raise ValueError("it became shorter while it was read")
        piece = piece[n:]


def _exactly(file: io.FileIO, n: int) -> bytes:
    found = bytearray(n)
    _fill(file, memoryview(found))
    return bytes(found)
