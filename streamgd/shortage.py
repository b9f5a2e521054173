"""Memory that is not to be had although it was planned for: one error, whichever library met it."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .addressspace import address_space_limit, address_space_taken, ulimit
from .errors import OutOfMemory, StreamgdError

#: What libraries say in errors of other types.
_SAID = (
    "cannot allocate memory",
    "can't start new thread",
    "failed to map segment",
    "failed to create thread",
)
#: With less address space than this, whatever goes wrong does so for want of it: a thread takes 8 MB, and threads of
#: libraries more.
LEAST_ROOM = 24 << 20


@contextmanager
def shortage_told() -> Iterator[None]:
    """Make one error of all that a shortage of memory raises. It serves as a decorator, too."""
    try:
        yield
    except StreamgdError:
        raise
    except Exception as error:  # of any library; what is no shortage goes on as it is
        if not is_shortage(error):
            raise
        traceback.clear_frames(error.__traceback__)  # what they hold may be what there is not enough of
        raise out_of_memory(str(error) or type(error).__name__) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error comes of a shortage of memory, address space or threads.

    Examples
    --------
    >>> is_shortage(MemoryError()), is_shortage(RuntimeError("can't start new thread")), is_shortage(ValueError())
    (True, True, False)
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    if any(said in text for said in _SAID):
        return True
    if isinstance(error, ImportError | SystemError | OSError | RuntimeError) and exhausted():
        return True
    # Without a limit it is a damaged file that asks for more than there is anywhere.
    return "bad_alloc" in text and address_space_limit() is not None


def exhausted() -> bool:
    """Whether the limit of the address space leaves next to nothing."""
    limit = address_space_limit()
    return limit is not None and limit - address_space_taken() < LEAST_ROOM


def out_of_memory(reason: str) -> OutOfMemory:
    """An error that says what to do."""
    limit = address_space_limit()
    if limit is None:
        remedy = "Give fewer --threads or a smaller --memory-limit, or end what else takes the memory."
    else:
        taken = address_space_taken() / 1e6
        remedy = (
            f"The address space is limited to {limit / 1e6:.0f} MB, of which {taken:.0f} MB are taken. Give "
            f"{ulimit(limit + limit // 4)} or more, or fewer --threads."
        )
    return OutOfMemory(f"there is not enough memory: {reason.strip().rstrip('.')}. {remedy}")
