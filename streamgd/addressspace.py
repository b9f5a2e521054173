"""The limit of address space (``ulimit -v``, RLIMIT_AS), which counts whatever is mapped, touched or not.

Where there is none, mapping costs nothing, so libraries map far more than they touch: Arrow's mimalloc a gigabyte at
once, glibc 64 MB a thread, OpenBLAS 40 MB a processor. Where there is one they are told to be modest, before they are
loaded. What is left is a constant, the code of large libraries above all, and is taken off the limit when memory is
planned.

A library that gets no address space need not raise an error: OpenBLAS tries for ever, and the dynamic linker and LLVM
end the process. So there must be room for them before they are loaded.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from contextlib import suppress

from .errors import MemoryLimitError

#: What a process maps beyond what it touches, when it is modest: 335 MB, 20 more where scikit-learn is imported, and
#: what mimalloc has left of its last reserve.
MAPPED_BYTES = 400 << 20
#: What mimalloc reserves at once, in KiB.
RESERVE = 64 << 10
#: Address space of a thread's stack, and of a thread in all: mimalloc gives each segments of 32 MB of its own.
STACK_BYTES = 8 << 20
THREAD_BYTES = STACK_BYTES + (32 << 20)
#: What each library needs to be loaded; numba to compile the kernels as well. Measured: 84, 180, and 380 or, if the
#: kernels are on the disk, 285 MB.
LIBRARIES = {"numpy": 90_000_000, "pyarrow": 190_000_000, "numba": 420_000_000}
#: What the command line takes before a command loads them: 41 MB.
COMMAND_LINE = 64_000_000
#: glibc's numbers for the most arenas, each of which reserves 64 MB, and for its reserve for small pieces of memory.
M_ARENA_MAX, M_TOP_PAD = -8, -2
#: Large pieces fail first, then, which raises an error, and not those that the dynamic linker ends the process for.
SMALL_BYTES = 16 << 20


def address_space_limit() -> int | None:
    """Soft limit of the address space in bytes; None if there is none.

    Examples
    --------
    >>> address_space_limit() is None or address_space_limit() > 0
    True
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def address_space_taken() -> int:
    """Bytes that this process has mapped; 0 where there is no ``/proc``.

    Examples
    --------
    >>> address_space_taken() >= 0
    True
    """
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(file, 64).split()[0]) * resource.getpagesize()  # there may be no memory for more than this
    finally:
        os.close(file)


def reserve_little() -> None:
    """Tell libraries that are not loaded yet to map little, if the address space is limited.

    OpenBLAS gets one thread, since nothing here gains from more. Arrow keeps mimalloc, with a smaller reserve, which
    costs nothing: with glibc's allocator the process maps 60 MB less, but a row group of 200 MB takes six times as
    long and 200 MB more. glibc gets one arena. What the environment says already is left alone.
    """
    if address_space_limit() is None:
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MIMALLOC_ARENA_RESERVE", str(RESERVE))
    with suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_TOP_PAD, SMALL_BYTES)
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and soft > STACK_BYTES:
        threading.stack_size(STACK_BYTES)


def require_room() -> None:
    """Refuse to load libraries for which there is no address space.

    Raises
    ------
    MemoryLimitError
        The limit is too low; the message names one that would do.
    """
    limit, taken = address_space_limit(), address_space_taken()
    needed = taken + sum(size for name, size in LIBRARIES.items() if name not in sys.modules)
    if limit is not None and needed > limit:
        raise MemoryLimitError(
            f"the address space is limited to {limit / 1e6:.0f} MB, but the libraries alone take {needed / 1e6:.0f} MB "
            f"of it. Give {ulimit(needed)} or more (1.1 million is enough for most data), or limit resident memory "
            f"instead, with a control group."
        )


def ulimit(size: int) -> str:
    """How a shell allows so many bytes of address space."""
    return f"'ulimit -v {-(-size // 1024)}'"
