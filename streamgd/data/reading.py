"""What reading row groups needs: files kept open, columns decoded abreast, errors that name the place."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from ..addressspace import address_space_limit
from ..crash import decoding
from ..errors import MissingColumn, ReadFailed, SchemaMismatch, StreamgdError, UnreadableShard
from ..shortage import is_shortage, out_of_memory

# Opening a file costs 15-30 µs a row group of it at 28 columns, so threads keep files open; this bounds what they keep.
OPEN_FILES = 16
OPEN_FOOTER_BYTES = 16 << 20

# What the operating system says when storage failed, or it had no room left: nothing about the data.
_STORAGE = {
    *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EPIPE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN),
}


class Recent:
    """Things by number, those that were used last: so many at most, and of more than one so many bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, number: int) -> Any:
        """A thing, or None."""
        if number not in self._found:
            return None
        self._found.move_to_end(number)
        return self._found[number][0]

    def add(self, number: int, thing: Any, size: int, most_bytes: int) -> None:
        """Keep a thing of so many bytes; others are let go of if there are too many."""
        self._found[number] = thing, size
        while len(self) > self._most or (len(self) > 1 and sum(size for _, size in self._found.values()) > most_bytes):
            self._found.popitem(last=False)


class OpenFiles(threading.local):
    """The files that each thread used last."""

    def __init__(self) -> None:
        self._files = Recent(OPEN_FILES)

    def get(self, shard: int, opener: Callable[[], Any], footer_bytes: int) -> Any:
        """The file of a shard, opened if it is not open; others are closed if there are too many."""
        file = self._files.get(shard)
        if file is None:
            file = opener()
            self._files.add(shard, file, file.metadata.serialized_size, footer_bytes)
        return file


def marked(batches: Iterator[Any], where: str) -> Iterator[Any]:
    """The same record batches; while one is decoded, its thread is known to be at it."""
    batches = iter(batches)
    while True:
        with decoding(where):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def let_go(batches: Iterator[Any], rows: int) -> Iterator[Any]:
    """End a reader with its last batch, not after it: so it keeps no column chunks while others decode theirs."""
    for batch in batches:
        rows -= batch.num_rows
        beyond = next(batches, None) if rows <= 0 else None
        yield batch
        if beyond is not None:
            yield beyond


def abreast(readers: Sequence[Iterator[Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Advance readers of some columns each over the same rows: columns by name, and their rows."""
    waiting: list[Any] = [None] * len(readers)
    while True:
        for place, reader in enumerate(readers):
            if waiting[place] is None:
                waiting[place] = next((batch for batch in reader if batch.num_rows), None)
        lengths = {0 if batch is None else batch.num_rows for batch in waiting}
        length = min(lengths)
        if length == 0:
            if lengths != {0}:
                raise pa.ArrowInvalid("its columns have different numbers of rows")
            return
        columns: dict[str, Any] = {}
        for place, batch in enumerate(waiting):
            whole = batch.num_rows == length
            part = batch if whole else batch.slice(0, length)
            # By name: asked for "a", pyarrow also reads a column "a.b", which might belong to a struct.
            columns.update(zip(part.schema.names, part.columns, strict=True))
            waiting[place] = None if whole else batch.slice(length)
        yield columns, length


@contextmanager
def reading(where: str, culprit: Callable[[], str] = str) -> Iterator[None]:
    """Turn whatever goes wrong in Arrow or in a filesystem into an error that names the place.

    ``culprit`` is asked what to add to the name of the place.
    """
    try:
        yield
    except StreamgdError:
        raise
    except Exception as exc:  # pyarrow raises a dozen types, filesystems of fsspec those of their own libraries
        reason = str(exc).strip().rstrip(".")
        if address_space_limit() is not None and is_shortage(exc):
            raise out_of_memory(f"{where} cannot be read: {reason or type(exc).__name__}") from exc
        if isinstance(exc, MemoryError) or getattr(exc, "errno", None) in _STORAGE:
            short = "there is not enough memory" if isinstance(exc, MemoryError) else "its storage failed"
            raise ReadFailed(f"{where} cannot be read, since {short}: {reason}. Mend that, and run again.") from exc
        raise UnreadableShard(
            f"{where}{culprit()} cannot be read: {reason}; write the shard again or leave it out"
        ) from exc


def broken_column(columns: Sequence[str], reader: Callable[[str], Iterator[Any]]) -> str:
    """Find which of some columns cannot be read, by reading each of them; as a part of a message."""
    for column in columns if len(columns) > 1 else ():
        try:
            for _ in reader(column):
                pass
        except Exception:  # as above
            return f", column {column}"
    return f", column {columns[0]}" if len(columns) == 1 else ""


def select(schema: Any, columns: Sequence[str], batch_rows: int, odd: Mapping[str, str] | None = None) -> Any:
    """Columns of a schema by name, checked; ``odd`` says what is wrong with others."""
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}, expected at least 1")
    if isinstance(columns, str):
        raise TypeError(f"columns is the string {columns!r}, expected a sequence of names")
    known = set(schema.names)
    missing = [name for name in columns if name not in known]
    if odd and missing and missing[0] in odd:
        raise SchemaMismatch(odd[missing[0]])
    if missing:
        raise MissingColumn(f"no column {', '.join(missing)} in the data; there are {', '.join(schema.names)}")
    return pa.schema([schema.field(name) for name in columns])


def digest(text: str, *arrays: NDArray[Any]) -> str:
    """SHA-256 of a text and of numbers."""
    found = hashlib.sha256(f"{len(text)} {text}".encode("utf-8", "surrogateescape"))
    for numbers in arrays:
        found.update(len(numbers).to_bytes(8, "little") + numbers.astype("<i8").tobytes())
    return found.hexdigest()
