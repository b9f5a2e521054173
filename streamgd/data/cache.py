"""Encoded blocks on the local disk: written by the first epoch, read by the later ones in an order of their own.

An encoded row has a fixed length, so the file of rows is an array over all rows of all row groups in the order of the
manifest, and any span of it is one read, straight into the window. A row whose target is null leaves its place unused;
which these are is remembered. The hashes of texts lie in a second file, and the cells that hold their addresses in
memory hold places in that file on the disk.

What a window holds is the same with and without a cache, and so are the weights. A row group is read from the cache
only if all of it is there; if the disk is full or fails, the cache is given up, and shards are read as before.
"""

from __future__ import annotations

import fcntl
import io
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..kernels.hashing import move_texts
from ..tensorfile import read, write
from .cachefiles import filesystem, nameless, own, read_at, write_at
from .mapped import MappedRows
from .shuffle import Run

#: Changes when cached rows of the same data would differ.
FORMAT = 1
INDEX, ROWS, TEXTS, LOCK = "index.safetensors", "rows.bin", "texts.bin", "lock"
_KEY = "streamgd-cache"
#: Filesystems in memory: what is written there counts as memory.
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
#: Row groups that are written to at a time. Two epochs never write to one at once: where rows are left out, it depends
#: on the blocks of an epoch where the others lie.
LOCKS = 64
#: Disk that is left to others.
SPARE_BYTES = 1 << 30


class Shape(NamedTuple):
    """Sizes of encoded rows: bytes a row, the first cell of the texts, and how many text columns there are."""

    row_bytes: int
    text_cell: int
    n_text: int


class _Piece(NamedTuple):
    """A record batch of a row group, some of whose rows are left out, or that has texts."""

    start: int
    rows: int
    dropped: NDArray[np.int64]

    def place(self, row: int) -> int:
        """Where a row of the row group lies, counted in rows from the row group's first."""
        return row - int(np.searchsorted(self.dropped, row))


class Cache(Protocol):
    """What a stream asks of a cache, see `BlockCache`."""

    def get(self, run: Run, out: NDArray[np.float32], texts: list[NDArray[np.uint32]]) -> int | None:
        """Read the rows of a run, if they are all there."""

    def put(
        self,
        epoch: int,
        row_group: int,
        start: int,
        n: int,
        encoded: NDArray[np.float32],
        dropped: NDArray[np.int64],
        texts: Sequence[NDArray[np.uint32]],
    ) -> None:
        """Write encoded rows."""


class BlockCache:
    """Encoded rows of all row groups, some of which are there.

    Parameters
    ----------
    rows : ndarray of int64, shape (n_row_groups,)
        Rows of each row group.
    shape : Shape
        Of encoded rows.
    files : tuple of int
        Descriptors of the file of rows and of that of texts; closed with the cache.
    directory : Path, optional
        Where it is kept when the job ends.
    key : dict, optional
        What a later job must be about to use it.
    lock : int, optional
        Descriptor of a locked file, closed with the cache.
    remark : str
        What a user should know before training.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        shape: Shape,
        files: tuple[int, int],
        *,
        directory: Path | None = None,
        key: dict[str, Any] | None = None,
        lock: int | None = None,
        remark: str = "",
    ) -> None:
        self.remark, self.trouble = remark, ""
        self._rows, self._shape, self._files = rows, shape, files
        # As files they are closed even if nobody closes the cache.
        self._handles = [io.FileIO(descriptor) for descriptor in (*files, *([] if lock is None else [lock]))]
        self._directory, self._key = directory, key
        self._base = np.cumsum(rows) - rows
        self._done = np.zeros(len(rows), np.int64)
        self._epoch = np.full(len(rows), -1, np.int32)
        self._pieces: dict[int, list[_Piece]] = {}
        self._text_end = 0
        self._mapped: MappedRows | None = None
        self._may_be_mapped = not shape.n_text
        self._lock = threading.Lock()
        self._writing = [threading.Lock() for _ in range(LOCKS)]

    @property
    def complete(self) -> bool:
        """Whether all rows are there."""
        return not self.trouble and bool((self._done == self._rows).all())

    def holds(self, row_group: int) -> bool:
        """Whether all rows of a row group are there."""
        return not self.trouble and bool(self._done[row_group] == self._rows[row_group])

    def put(
        self,
        epoch: int,
        row_group: int,
        start: int,
        n: int,
        encoded: NDArray[np.float32],
        dropped: NDArray[np.int64],
        texts: Sequence[NDArray[np.uint32]],
    ) -> None:
        """Write the encoded rows of rows ``start`` to ``start + n`` of a row group.

        An epoch that begins in its middle leaves row groups half written; a later one begins them anew.

        Parameters
        ----------
        epoch : int
            Epoch that writes.
        row_group, start, n : int
            The rows.
        encoded : ndarray of float32, shape (n - len(dropped), stride)
            The same, less those left out.
        dropped : ndarray of int64
            Rows of the row group that are left out.
        texts : sequence of ndarray of uint32
            Hashes of each text column, to which the rows hold addresses.
        """
        with self._writing[row_group % LOCKS]:
            with self._lock:
                if self.trouble or self._epoch[row_group] > epoch or self._done[row_group] == self._rows[row_group]:
                    return
                if self._epoch[row_group] < epoch:
                    self._epoch[row_group], self._done[row_group] = epoch, 0
                    self._pieces.pop(row_group, None)
                text_place = self._text_end
                self._text_end += sum(hashes.nbytes for hashes in texts)
            try:
                if texts:
                    encoded = encoded.copy()
                    for number, hashes in enumerate(texts):
                        write_at(self._files[1], hashes, text_place)
                        move_texts(
                            encoded.view(np.uint32),
                            self._shape.text_cell + 3 * number,
                            text_place - hashes.ctypes.data,
                        )
                        text_place += hashes.nbytes
                write_at(self._files[0], encoded, (int(self._base[row_group]) + start) * self._shape.row_bytes)
            except OSError as error:
                self.give_up(error)
                return
            with self._lock:
                if self._epoch[row_group] == epoch:
                    self._done[row_group] += n
                    if texts or len(dropped):
                        self._pieces.setdefault(row_group, []).append(_Piece(start, n, dropped))
                        self._pieces[row_group].sort(key=lambda piece: piece.start)

    def mapped(self) -> MappedRows | None:
        """All rows as memory, if they are there, have no texts (whose addresses change), and the system allows it."""
        if self._mapped is None and self._may_be_mapped and self.complete:
            try:
                self._mapped = MappedRows(self._files[0], self._shape.row_bytes)
                self._may_be_mapped = len(self._mapped.rows) <= np.iinfo(np.uint32).max  # orders have no more bits
            except (OSError, ValueError):  # they are read instead
                self._may_be_mapped = False
        return self._mapped if self._may_be_mapped and not self.trouble else None

    def places(self, run: Run) -> list[tuple[int, int]]:
        """Where the rows of a run lie among all rows, the first and the end of each stretch."""
        base = int(self._base[run.row_group])
        return [(base + first, base + end) for first, end in self._places(run) if end > first]

    def get(self, run: Run, out: NDArray[np.float32], texts: list[NDArray[np.uint32]]) -> int | None:
        """Read the rows of a run into the first rows of ``out``; return how many, or None if they are not all there.

        ``texts`` takes the hashes that they hold addresses of.
        """
        if not self.holds(run.row_group):
            return None
        n = 0
        try:
            for first, end in self._places(run):
                n += self._read(run.row_group, first, end, out[n:], texts)
        except OSError as error:
            self.give_up(error)
            return None
        return n

    def _places(self, run: Run) -> Iterator[tuple[int, int]]:
        """Where the rows of a run lie, counted from the first of the row group: each pair within one record batch."""
        pieces = self._pieces.get(run.row_group, [])
        for position, stop in run.spans:
            for piece in pieces:
                if piece.start + piece.rows > position and piece.start < stop:
                    if piece.start > position:
                        yield position, piece.start
                        position = piece.start
                    end = min(stop, piece.start + piece.rows)
                    yield piece.place(position), piece.place(end)
                    position = end
            if position < stop:
                yield position, stop

    def _read(
        self, row_group: int, first: int, end: int, out: NDArray[np.float32], texts: list[NDArray[np.uint32]]
    ) -> int:
        rows = out[: end - first]
        read_at(self._files[0], rows, (int(self._base[row_group]) + first) * self._shape.row_bytes)
        for number in range(self._shape.n_text if len(rows) else 0):
            cell = self._shape.text_cell + 3 * number
            low, high, lengths = rows.view(np.uint32)[:, cell : cell + 3].T.astype(np.int64)
            places = low | high << 32
            place, last = int(places[0]), int(places[-1] + 4 * lengths[-1])
            # Kernels go where a row says, be that damaged.
            if not 0 <= place <= places.min() or places.max() > last or (lengths > (last - places) // 4).any():
                raise OSError("it is damaged")
            if last > os.fstat(self._files[1]).st_size:
                raise OSError("it is shorter than it was")
            hashes = np.empty((last - place) // 4, np.uint32)
            read_at(self._files[1], hashes, place)
            move_texts(rows.view(np.uint32), cell, hashes.ctypes.data - place)
            texts.append(hashes)
        return len(rows)

    def give_up(self, error: OSError) -> None:
        """Be of no use from now on, since the disk is not."""
        with self._lock:
            self.trouble = (
                f"the cache of encoded blocks was given up ({error.strerror or error}): later epochs read the shards "
                f"again. The weights are the same. Give --cache a directory with more room, or --cache none."
            )

    def close(self) -> None:
        """Keep the cache if it is whole and has a directory, and be done with it."""
        try:
            if self._directory is not None and self._key is not None and self.complete:
                for descriptor in self._files:
                    os.fsync(descriptor)
                _save_index(self._directory / INDEX, self._key, self._pieces)
        except OSError as error:
            self.give_up(error)
        finally:
            if self._directory is not None and not self.complete:
                for name in (INDEX, ROWS, TEXTS):
                    with suppress(OSError):
                        (self._directory / name).unlink(missing_ok=True)
            self._mapped, self._may_be_mapped = None, False
            for handle in self._handles:
                with suppress(OSError):
                    handle.close()

    def load(self, pieces: dict[int, list[_Piece]]) -> None:
        """Take all rows as written, with the pieces of an index."""
        self._done[:], self._pieces, self._key = self._rows, pieces, None


def temporary_cache(rows: NDArray[np.int64], shape: Shape, size: int) -> BlockCache | str:
    """A cache in files without names, which are gone when the process is; or why there is none."""
    found = []
    with suppress(OSError):  # there is no directory for temporary files
        for directory in dict.fromkeys((tempfile.gettempdir(), "/var/tmp")):
            try:
                status = os.statvfs(directory)
                free = status.f_bavail * status.f_frsize
                if filesystem(directory) in _IN_MEMORY:
                    found.append(f"{directory} is in memory")
                elif free < size + size // 4 + SPARE_BYTES:
                    found.append(f"{directory} has {free / 1e9:.1f} GB free")
                else:
                    return BlockCache(rows, shape, nameless(directory))
            except OSError as error:
                found.append(f"{directory} cannot be used ({error.strerror})")
    why = ", ".join(found) or "no directory for temporary files can be written to"
    return f"a cache of encoded blocks would take {size / 1e9:.1f} GB, and {why}"


def kept_cache(directory: Path, rows: NDArray[np.int64], shape: Shape, key: dict[str, Any]) -> BlockCache | str:
    """A cache in a directory, as an earlier job left it if that was about the same; or why there is none."""
    with ExitStack() as undo:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = own(directory / LOCK, os.O_RDWR | os.O_CREAT)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            known, pieces = _load_index(directory / INDEX)
            same = known == key and _whole(directory, rows, shape)
            if not same:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (directory / INDEX).unlink(missing_ok=True)
            files = []
            for name in (ROWS, TEXTS):
                files.append(own(directory / name, os.O_RDONLY if same else os.O_RDWR | os.O_CREAT))
                undo.callback(os.close, files[-1])
                if not same:
                    os.truncate(files[-1], 0)
        except BlockingIOError:
            return f"the cache directory {directory} is used by another job"
        except OSError as error:
            return f"the cache directory {directory} cannot be used ({error.strerror})"
        undo.pop_all()
    remark = ""
    if not same and known:
        parts = [part for part in key if known.get(part) != key[part]]
        remark = f"the cache in {directory} is of {_OTHERS[parts[0]] if parts else 'damaged files'}: it is made anew."
    cache = BlockCache(rows, shape, (files[0], files[1]), directory=directory, key=key, lock=lock, remark=remark)
    if same:
        cache.load(pieces)
    return cache


_OTHERS = {
    "version": "another version of streamgd",
    "shards": "other shards, or these have changed since",
    "columns": "other columns",
    "encoding": "columns that were encoded otherwise (other means, scales, classes or weights)",
}


def _whole(directory: Path, rows: NDArray[np.int64], shape: Shape) -> bool:
    with suppress(OSError):
        # A row left out at the very end has no place in the file.
        size = (directory / ROWS).stat().st_size
        return (directory / TEXTS).exists() and size <= int(rows.sum()) * shape.row_bytes and size > 0
    return False


def _save_index(path: Path, key: dict[str, Any], pieces: dict[int, list[_Piece]]) -> None:
    flat = [(group, piece) for group, some in sorted(pieces.items()) for piece in some]
    table = np.array([(group, piece.start, piece.rows, len(piece.dropped)) for group, piece in flat], np.int64)
    dropped = np.concatenate([np.zeros(0, np.int64), *(piece.dropped for _, piece in flat)])
    write(path, _KEY, {"of": key}, {"pieces": table.reshape(-1, 4), "dropped": dropped})


def _load_index(path: Path) -> tuple[dict[str, Any], dict[int, list[_Piece]]]:
    """What a cache is of, and its pieces; nothing if it cannot be read."""
    pieces: dict[int, list[_Piece]] = {}
    try:
        header, arrays = read(path, _KEY, "index", DataError)
        key, at = header["of"], 0
        for group, start, rows, n in arrays["pieces"].tolist():
            pieces.setdefault(group, []).append(_Piece(start, rows, arrays["dropped"][at : at + n]))
            at += n
    except (DataError, KeyError, ValueError, TypeError):
        return {}, {}
    return (key, pieces) if isinstance(key, dict) else ({}, {})


@contextmanager
def closing_cache(cache: BlockCache | None) -> Iterator[BlockCache | None]:
    """Close a cache at the end, if there is one."""
    try:
        yield cache
    finally:
        if cache is not None:
            cache.close()
