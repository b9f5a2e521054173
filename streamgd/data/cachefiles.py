"""Files of the cache of encoded blocks: who may have written them, and where on the disk arrays lie in them."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def nameless(directory: str) -> tuple[int, int]:
    """Open two files without names, which are gone when the process is."""
    with ExitStack() as undo:
        descriptors = []
        for _ in range(2):
            descriptor, path = tempfile.mkstemp(prefix="streamgd-", dir=directory)
            undo.callback(os.close, descriptor)
            os.unlink(path)
            descriptors.append(descriptor)
        undo.pop_all()
        return descriptors[0], descriptors[1]


def own(path: Path, flags: int) -> int:
    """Open a regular file that no stranger can have written: its rows are not checked as shards are.

    To open anything else does not block.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o664)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, f"{path.name} is another user's, or anyone may write to it")
    return descriptor


def filesystem(directory: str) -> str:
    """Type of the filesystem of a directory, if the system tells."""
    real, best, kind = os.path.realpath(directory), "", ""
    with suppress(OSError), open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, place, name, *_ = line.split()
            inside = real == place or real.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(best):
                best, kind = place, name
    return kind


def _bytes(values: NDArray[Any]) -> memoryview:
    return memoryview(values).cast("B") if values.size else memoryview(b"")  # type: ignore[arg-type]


def write_at(descriptor: int, values: NDArray[Any], place: int) -> None:
    """Write an array to a place in a file."""
    view = _bytes(values)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def read_at(descriptor: int, values: NDArray[Any], place: int) -> None:
    """Fill an array from a place in a file."""
    view = _bytes(values)
    while view:
        n = os.preadv(descriptor, [view], place)
        if n == 0:
            raise OSError("it is shorter than it was")
        view, place = view[n:], place + n
