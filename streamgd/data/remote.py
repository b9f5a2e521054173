"""Files that are not local, whose reads fail now and then: each is tried three times before it is an error."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from ..errors import ReadFailed, ShardChanged, StreamgdError

Result = TypeVar("Result")

#: Seconds before the second and the third try, in the mean. The third is late enough for a server that restarts.
WAITS = (0.5, 2.0)

sleep: Callable[[float], None] = time.sleep
_random = random.Random()  # so that clients that failed together do not come back together


def patiently(action: Callable[[], Result], where: str) -> Result:
    """Do what may fail because of storage, and try again after a while if it does.

    What is not there is not tried again.

    Raises
    ------
    ReadFailed
        It failed three times.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except (FileNotFoundError, MemoryError, StreamgdError):
            raise
        except Exception as error:  # filesystems of fsspec raise errors of their own libraries
            if wait is None:
                reason = str(error).strip().rstrip(".") or type(error).__name__
                raise ReadFailed(
                    f"{where} cannot be read: its storage failed {len(WAITS) + 1} times in a row ({reason}). The rows "
                    f"are not left out, for they may be good: see that the storage can be reached, and run again."
                ) from error
            sleep(wait * _random.uniform(0.5, 1.5))
    raise AssertionError


class RemoteFile(io.RawIOBase):
    """A file of a filesystem, opened again where reading fails; for `pyarrow.PythonFile`.

    Parameters
    ----------
    filesystem : pyarrow.fs.FileSystem
        Where it is.
    path : str
        Its path.
    where : str
        Its name for messages.
    """

    def __init__(self, filesystem: Any, path: str, where: str) -> None:
        self._filesystem, self._path, self._where = filesystem, path, where
        self._file: Any = None
        self._place = 0
        self._size = patiently(lambda: int(self._opened().size()), where)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, n: int = -1) -> bytes:
        """Read that many bytes, or up to the end."""
        left = max(0, self._size - self._place)
        wanted = left if n is None or n < 0 else min(n, left)
        found = patiently(lambda: self._read(wanted), self._where) if wanted else b""
        self._place += len(found)
        return found

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _read(self, n: int) -> bytes:
        try:
            found: bytes = self._opened().read_at(n, self._place)
            if len(found) < n:
                raise OSError(f"{len(found)} bytes came where {n} were asked for")
            return found
        except Exception:
            self._file = None
            raise

    def _opened(self) -> Any:
        """The file, opened if it is not open, which it is not after a failure."""
        if self._file is None:
            file = self._filesystem.open_input_file(self._path)
            if hasattr(self, "_size") and file.size() != self._size:
                raise ShardChanged(
                    f"{self._where} has {file.size()} bytes now and had {self._size} a moment ago: somebody writes to "
                    f"it. Begin anew when it is whole."
                )
            self._file = file
        return self._file


def open_remote(filesystem: Any, path: str, where: str) -> Any:
    """Open a file whose reads are tried again if they fail, as Arrow's readers take it."""
    return pa.PythonFile(RemoteFile(filesystem, path, where), mode="r")
