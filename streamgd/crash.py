"""What to do when a library crashes: name the shard that it was decoding, and end; the last checkpoint stands.

A decoder that meets what its authors did not think of may end the process (SIGSEGV, SIGABRT) instead of raising an
error. Nothing can be done before it happens without decoding everything twice. So while a command runs, these signals
have a handler, which runs on the thread that crashed; each thread notes what it is about to decode, which costs
nothing. The process cannot go on: its memory may be damaged.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .errors import ReadFailed, StreamgdError, UnreadableShard
from .shortage import exhausted, out_of_memory

SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
#: Seconds after which the system ends a process whose handler waits for something that the crash left locked.
DEADLINE = 10


class _Now(threading.local):
    where: str | None = None


_now = _Now()


@contextmanager
def decoding(where: str) -> Iterator[None]:
    """Note what this thread decodes."""
    _now.where = where
    try:
        yield
    finally:
        _now.where = None


@contextmanager
def crashes_told(tell: Callable[[StreamgdError], None]) -> Iterator[None]:
    """Handle crashes while a block runs.

    Parameters
    ----------
    tell : callable
        Told of the error: the last thing that happens.
    """
    libc = ctypes.CDLL(None)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    first = threading.Lock()

    def crashed(number: int) -> None:
        if not first.acquire(blocking=False):  # another thread crashed before, and ends the process
            time.sleep(DEADLINE)
        libc.alarm(DEADLINE)
        code, name = 1, signal.Signals(number).name
        with suppress(BaseException):  # whatever goes wrong now, the process must end
            if exhausted():  # a library ended the process for want of a thread, or of memory
                error: StreamgdError = out_of_memory(f"a library ended the process ({name})")
            elif _now.where is None and number == signal.SIGBUS:
                error = ReadFailed(
                    "a file that is used as memory, such as that of a cache, was cut short, or its disk failed "
                    "(SIGBUS). Run again, from the last checkpoint if there is one."
                )
            elif _now.where is None:
                faulthandler.dump_traceback()
                error = StreamgdError(
                    f"the process crashed with {name} where no shard was being decoded: please report it."
                )
            else:
                error = UnreadableShard(
                    f"{_now.where} crashes the decoder ({name}): the file is damaged, or the library has a defect. "
                    f"Write the shard again or leave it out."
                )
            code = error.exit_code
            tell(error)
        os._exit(code)

    handler = kind(crashed)
    before = {number: libc.signal(number, ctypes.cast(handler, ctypes.c_void_p)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            libc.signal(number, old)
