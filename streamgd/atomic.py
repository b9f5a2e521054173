"""Files that are there whole or not at all, and errors that say so."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError, StreamgdError

#: What filesystems say that have no hard links, or do not let this user make one.
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
#: What they say that cannot flush a directory, and what a directory says that may be written to but not read: all has
#: been done then that can be.
_NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its name when the block ends well, and is gone otherwise.

    The file is flushed to the disk before it is renamed, and the directory after it, so that after a crash either
    the old file or the new one is there. If ``path`` is a symbolic link, the link is replaced and not what it leads to.

    Raises
    ------
    OutputError
        An OSError here or in the block; or there is something else than a file. What was there before is as it was.
    """
    target = Path(path)
    with writing(target):
        _check_free(target)
        _make_directory(target.parent)
        descriptor, temporary = _create(target)
        old = _beside(target)
        try:
            try:
                yield temporary
                # Through the descriptor that saw all of the writing: one that is opened now might miss its errors.
                os.fsync(descriptor)
            except BaseException:
                with suppress(OSError):  # nor would one in closing or removing it tell what came first
                    os.close(descriptor)
                raise
            os.close(descriptor)
            existed = _keep(target, old)
            os.replace(temporary, target)
            try:
                _flush_directory(target.parent)
            except OSError as error:
                _undo(target, old, existed, error)
                raise
        finally:
            for left in (temporary, old):
                with suppress(OSError):
                    left.unlink(missing_ok=True)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make any OSError in the block that is no StreamgdError an OutputError that names ``path``."""
    try:
        yield
    except StreamgdError:
        raise
    except OSError as error:
        raise _told(error, path) from error


def make_directory(path: str | os.PathLike[str]) -> None:
    """Make a directory and those above it, unless they are there.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    with writing(path):
        _make_directory(Path(path))


def _told(error: OSError, path: str | os.PathLike[str]) -> OutputError:
    # The texts of Arrow's errors tell how it is made, and name the temporary file.
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(error.errno, reason, os.fspath(path))


def _check_free(target: Path) -> None:
    """Who is root could replace a device by a file, and would miss it."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise OutputError(errno.EEXIST, "there is a directory, a device or the like", os.fspath(target))


def _make_directory(path: Path) -> None:
    missing = []
    while path != path.parent and not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir():
                raise
        _flush_directory(directory.parent)


def _create(target: Path) -> tuple[int, Path]:
    """A new file, with the mode that any new file gets: to ask for the umask would be to change it for all threads."""
    while True:
        temporary = _beside(target)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileExistsError):
            return os.open(temporary, flags, 0o666), temporary


def _beside(target: Path) -> Path:
    """A hidden name that nothing has, no longer than a directory takes (255 bytes)."""
    shown = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{shown}.{os.urandom(8).hex()}.tmp")


def _keep(target: Path, old: Path) -> bool:
    """Give what is there now another name as well, where the filesystem has such names; tell whether anything is."""
    try:
        os.link(target, old, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return os.path.lexists(target)
    return True


def _undo(target: Path, old: Path, existed: bool, error: OSError) -> None:
    """Put back what was there before a rename that may not outlive a crash."""
    try:
        if existed:
            os.replace(old, target)
        else:
            target.unlink()
    except OSError:
        told = _told(error, target)
        told.replaced = True
        raise told from error


def _flush_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
