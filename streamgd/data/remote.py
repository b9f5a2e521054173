"""Files that are not local: each request is tried three times before it is an error, and few of them are made.

An object store takes some 20 ms until the first byte of an answer comes, whatever was asked for. So column chunks of a
row group are fetched ahead in requests that span several of them, some requests at a time, and Arrow's readers find
them in memory. What was not fetched, they ask for themselves.
"""

from __future__ import annotations

import io
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ..addressspace import address_space_limit
from ..errors import ReadFailed, ShardChanged, StreamgdError

Result = TypeVar("Result")

#: Seconds before the second and the third try, in the mean. The third is late enough for a server that restarts.
WAITS = (0.5, 2.0)

#: Bytes that nobody asked for are fetched along if there are so many at most between two column chunks: about what a
#: connection of 50 MB/s delivers in the time that one more request would wait for its first byte.
GAP = 1 << 20
#: Bytes of a request at most: several times the gap, so that little of the time is waiting, and little enough that a
#: usual row group is several, which come at the same time. Between 2 and 8 MB it made no difference to a server on the
#: same machine.
REQUEST = 8 << 20
#: Requests of a row group that are under way at the same time.
AT_ONCE = 4
#: Of a row group that is too large to be held, each column is read through a buffer and some pieces, which take 1 MB:
#: one that is read from, and those that come. 127 MB in pages of 1 MB, the worst, take 1.9 s instead of 4.2 where an
#: answer takes 20 ms (with 4 requests at once 2.5), but 0.8 instead of 0.6 where it takes nothing.
BUFFER, PIECE, PIECES = 64 << 10, 320 << 10, 3
AT_ONCE_BUFFERED = 8

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


@dataclass
class _Stream:
    """A column chunk that is read from front to back, of which some pieces are there or under way.

    Attributes
    ----------
    at, end : int
        Where the piece that is asked for next begins, and where the chunk ends.
    piece : memoryview
        What was not read yet of the piece that came last.
    pieces : deque of Future
        Those after it.
    """

    at: int
    end: int
    piece: memoryview
    pieces: deque[Future[memoryview]]


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
        self._ahead: dict[int, memoryview] = {}
        self._streams: dict[int, _Stream] = {}  # by where each is read on
        self._pool: ThreadPoolExecutor | None = None
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

    def read(self, n: int = -1) -> Any:
        """Read that many bytes, or up to the end; what was fetched ahead is not copied."""
        left = max(0, self._size - self._place)
        wanted = left if n is None or n < 0 else min(n, left)
        ahead = self._ahead.pop(self._place, None)
        if ahead is not None and len(ahead) == wanted:
            found: Any = ahead
        elif wanted and (stream := self._streams.pop(self._place, None)) is not None:
            if self._place + wanted < stream.end:  # else another may begin there
                self._streams[self._place + wanted] = stream
            found = self._read_stream(stream, wanted)
        else:
            found = patiently(lambda: self._read(wanted), self._where) if wanted else b""
        self._place += len(found)
        return found

    @contextmanager
    def ahead(self, chunks: Iterable[tuple[int, int]], most: int) -> Iterator[bool]:
        """Fetch column chunks, each of which can be read once inside the context without a request.

        Bytes are let go when all that was fetched with them has been read and forgotten, or the context ends.

        Parameters
        ----------
        chunks : iterable of (int, int)
            Where each begins, and its bytes. What does not lie in the file is left to who reads it.
        most : int
            Bytes that may be fetched.

        Yields
        ------
        bool
            False if it were more: then nothing is fetched.
        """
        spans = coalesced(self._inside(chunks))
        fits = sum(stop - start for start, stop, _ in spans) <= most
        if fits:
            self._fetch(spans)
        try:
            yield fits
        finally:
            for at in (at for _, _, inside in spans for at, _ in inside) if fits else ():
                self._ahead.pop(at, None)

    def _fetch(self, spans: list[Span]) -> None:
        """Fetch what spans hold, a span of many bytes by several requests."""
        held = [np.empty(stop - start, np.uint8).data for start, stop, _ in spans]
        requests = [
            (start + done, place[done : done + REQUEST])
            for (start, _, _), place in zip(spans, held, strict=True)
            for done in range(0, len(place), REQUEST)
        ]
        # Where address space is limited, each thread takes some of it that nobody planned for.
        if len(requests) > 1 and address_space_limit() is None:
            with ThreadPoolExecutor(min(AT_ONCE, len(requests)), thread_name_prefix="streamgd-request") as pool:
                for _ in pool.map(self._request, requests):
                    pass
        else:
            for request in requests:
                self._request(request)
        for (start, _, inside), place in zip(spans, held, strict=True):
            self._ahead.update((at, place[at - start : at - start + n]) for at, n in inside)

    def _request(self, request: tuple[int, memoryview]) -> None:
        """Fill a place in memory from a place of the file."""
        at, place = request
        patiently(lambda: self._read_into(place, at), self._where)

    def _inside(self, chunks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those that lie in the file."""
        return [(at, n) for at, n in chunks if 0 < n <= self._size and 0 <= at <= self._size - n]

    def read_on(self, chunks: Iterable[tuple[int, int]]) -> None:
        """Fetch pieces of column chunks on threads, from now on, so that the next ones come while others are decoded.

        Parameters
        ----------
        chunks : iterable of (int, int)
            Where each begins, and its bytes. Each takes memory for `PIECES` pieces.
        """
        if address_space_limit() is not None:
            return
        self._pool = ThreadPoolExecutor(AT_ONCE_BUFFERED, thread_name_prefix="streamgd-request")
        streams = [_Stream(at, at + n, memoryview(b""), deque()) for at, n in self._inside(chunks)]
        self._streams = {stream.at: stream for stream in streams}
        for _ in range(PIECES - 1):
            for stream in streams:
                self._begin(stream)

    def _begin(self, stream: _Stream) -> None:
        """Begin to fetch the next piece of a column chunk."""
        if self._pool is not None and stream.at < stream.end:
            stop = min(stream.at + PIECE, stream.end)
            stream.pieces.append(self._pool.submit(self._piece, stream.at, stop - stream.at))
            stream.at = stop

    def _piece(self, at: int, n: int) -> memoryview:
        place = np.empty(n, np.uint8).data
        self._request((at, place))
        return place

    def _read_stream(self, stream: _Stream, wanted: int) -> Any:
        """Read on in a column chunk."""
        found, done = None, 0
        while True:
            part, stream.piece = stream.piece[: wanted - done], stream.piece[wanted - done :]
            if len(part) == wanted:
                return part
            if found is None:
                found = np.empty(wanted, np.uint8).data
            found[done : done + len(part)] = part
            done += len(part)
            if done == wanted:
                return found
            if not stream.pieces:  # beyond the chunk
                self._request((self._place + done, found[done:]))
                return found
            stream.piece = stream.pieces.popleft().result()
            self._begin(stream)

    def close(self) -> None:
        """Close the file."""
        self._stop()
        self._file = None  # closed with the last request that is under way
        super().close()

    def _stop(self) -> None:
        """Fetch nothing more on threads."""
        self._streams.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _read(self, n: int) -> bytes:
        with self._kept_if_good() as file:
            found: bytes = file.read_at(n, self._place)
            _require(len(found), n)
            return found

    def _read_into(self, place: memoryview, at: int) -> None:
        with self._kept_if_good() as file:
            # A stream of a part of the file has a position of its own, and needs no copy.
            _require(file.get_stream(at, len(place)).readinto(place), len(place))

    @contextmanager
    def _kept_if_good(self) -> Iterator[Any]:
        """The file, which is opened anew the next time if reading it fails."""
        try:
            yield self._opened()
        except Exception:
            self._file = None
            raise

    def _opened(self) -> Any:
        """The file, opened if it is not open, which it is not after a failure."""
        file = self._file  # once, since another thread may let go of it
        if file is None:
            file = self._filesystem.open_input_file(self._path)
            if hasattr(self, "_size") and file.size() != self._size:
                raise ShardChanged(
                    f"{self._where} has {file.size()} bytes now and had {self._size} a moment ago: somebody writes to "
                    f"it. Begin anew when it is whole."
                )
            self._file = file
        return file


#: Where bytes to be fetched begin and end, and the column chunks among them: where each begins, and its bytes.
Span = tuple[int, int, list[tuple[int, int]]]


def coalesced(chunks: Iterable[tuple[int, int]]) -> list[Span]:
    """Put column chunks together that lie close to each other, as long as one request can hold them.

    Examples
    --------
    >>> coalesced([(3 << 20, 50), (100, 50), (4, 96)])
    [(4, 150, [(4, 96), (100, 50)]), (3145728, 3145778, [(3145728, 50)])]
    """
    spans: list[Span] = []
    for at, n in sorted(chunks):
        if spans:
            start, stop, inside = spans[-1]
            end = max(stop, at + n)
            if at - stop <= GAP and end - start <= REQUEST:
                inside.append((at, n))
                spans[-1] = start, end, inside
                continue
        spans.append((at, at + n, [(at, n)]))
    return spans


def _require(found: int, wanted: int) -> None:
    if found < wanted:
        raise OSError(f"{found} bytes came where {wanted} were asked for")


def open_remote(filesystem: Any, path: str, where: str) -> tuple[Any, RemoteFile]:
    """Open a file whose reads are tried again if they fail: as Arrow's readers take it, and as it is."""
    remote = RemoteFile(filesystem, path, where)
    return pa.PythonFile(remote, mode="r"), remote
