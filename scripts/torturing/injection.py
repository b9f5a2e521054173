"""File operations that fail: in Python, or below it in a shared library that is loaded before the C library.

Both count the operations that change something below a directory, and let one of them fail. So nothing has to be
listed that is to fail: what a save does is found out by a run that lets none fail.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

SOURCE = Path(__file__).with_name("faults.c")

BY_DESCRIPTOR = ("fsync", "close", "pwrite", "truncate", "ftruncate", "fchmod")
BY_PATH = {"open": 0, "mkdir": 0, "chmod": 0, "replace": 1, "rename": 1, "link": 1}
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY


@dataclass(frozen=True)
class Fault:
    """An operation that fails, counted from 1, and how: with which errno, and whether a write is first done in part."""

    at: int
    number: int
    partial: bool = False

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]}{' after a part' if self.partial else ''} in operation {self.at}"


#: Lets operations below a directory fail, and gives a function that tells how many there have been.
Injector = Callable[[Path, Fault], AbstractContextManager[Callable[[], int]]]


class _Counter:
    """Counts the operations on what is below a directory."""

    def __init__(self, directory: Path, fault: Fault) -> None:
        self.directory, self.fault = str(directory), fault
        self.done = 0
        self.descriptors: set[int] = set()
        self._pending, self._lock = False, Lock()

    def below(self, path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return text == self.directory or text.startswith(self.directory + "/")

    def error(self) -> OSError:
        return OSError(self.fault.number, os.strerror(self.fault.number))

    def is_next(self) -> bool:
        with self._lock:
            self.done += 1
            return self.done == self.fault.at

    def operation(self) -> None:
        if self.is_next():
            raise self.error()

    def written(self, n: int) -> int:
        """How many of n bytes are written now; what is done in part fails when it is gone on with."""
        if self._pending:
            self._pending = False
            raise self.error()
        if not self.is_next():
            return n
        if not self.fault.partial or n < 2:
            raise self.error()
        self._pending = True
        return n // 2


class _File(io.FileIO):
    """A file that Python opens for writing."""

    def __init__(self, path: Any, mode: str, counter: _Counter) -> None:
        counter.operation()
        self._counter = counter
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        view = memoryview(data)
        return super().write(view[: self._counter.written(len(view))])

    def close(self) -> None:
        if not self.closed:
            super().close()  # it is closed all the same, as Linux does
            self._counter.operation()


@contextmanager
def in_python(directory: Path, fault: Fault) -> Iterator[Callable[[], int]]:
    """Let an operation fail where Python asks the operating system for it."""
    counter, opened = _Counter(directory, fault), builtins.open
    real = {name: getattr(os, name) for name in (*BY_DESCRIPTOR, *BY_PATH)}

    def by_descriptor(name: str) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            if descriptor not in counter.descriptors:
                return real[name](descriptor, *arguments)
            if name == "pwrite":
                data, place = arguments
                return real[name](descriptor, data[: counter.written(len(data))], place)
            if name == "close":
                counter.descriptors.discard(descriptor)
                real[name](descriptor)
                return counter.operation()
            counter.operation()
            return real[name](descriptor, *arguments)

        return call

    def by_path(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            reads = name == "open" and not arguments[1] & CHANGING
            if reads or not counter.below(arguments[BY_PATH[name]]):
                return real[name](*arguments, **options)
            counter.operation()
            found = real[name](*arguments, **options)
            if name == "open":
                counter.descriptors.add(found)
            return found

        return call

    def open_file(path: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
        if not counter.below(path) or not set(mode) & set("wax+"):
            return opened(path, mode, buffering, *arguments, **options)
        raw = _File(path, mode.replace("b", "").replace("t", ""), counter)
        buffered = raw if buffering == 0 else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered)  # type: ignore[type-var]

    try:
        builtins.open = io.open = open_file
        for name in real:
            setattr(os, name, by_path(name) if name in BY_PATH else by_descriptor(name))
        yield lambda: counter.done
    finally:
        builtins.open = io.open = opened
        for name, function in real.items():
            setattr(os, name, function)


@contextmanager
def below_python(directory: Path, fault: Fault) -> Iterator[Callable[[], int]]:
    """Let an operation fail in the library that was loaded before the C library: Arrow's as well."""
    library = ctypes.CDLL(None)
    library.streamgd_count.restype = ctypes.c_long
    library.streamgd_arm(os.fsencode(directory), ctypes.c_long(fault.at), fault.number, int(fault.partial))
    try:
        yield library.streamgd_count
    finally:
        library.streamgd_arm(b"", ctypes.c_long(0), 0, 0)


def compiled(directory: Path) -> Path | None:
    """The library, compiled into a directory; None if that cannot be done here."""
    compiler, library = shutil.which("cc"), directory / "faults.so"
    if compiler is None:
        return None
    done = subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=False)
    return library if done.returncode == 0 else None


def preloaded(library: Path, directory: Path | None = None, fault: Fault | None = None) -> dict[str, str]:
    """The environment of a process that has the library, and maybe a fault from its start."""
    found = os.environ | {"LD_PRELOAD": str(library)}
    if fault is not None:
        found |= {"STREAMGD_FAULT_DIRECTORY": str(directory), "STREAMGD_FAULT_AT": str(fault.at)}
        found |= {"STREAMGD_FAULT_ERRNO": str(fault.number), "STREAMGD_FAULT_PARTIAL": str(int(fault.partial))}
    return found
