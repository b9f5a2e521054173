"""A directory of checkpoints: who may write to it, which one is the newest that is whole, and which may go."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from .atomic import replacing
from .checkpoint import Arrays, Origin, Saved
from .errors import CheckpointError, CheckpointInUse, CheckpointMismatch, ConfigError
from .tensorfile import read, write

#: Changes when older files cannot be read any more.
FORMAT = 1
KEY = "streamgd-checkpoint"
#: Checkpoints that are kept: the newest may be damaged by what made the job end.
KEPT = 3
LOCK, FINISHED = "lock", "finished.json"
_NUMBERED = re.compile(r"checkpoint-(\d{9,})\.safetensors")
_LEFTOVER = re.compile(r"\.(checkpoint|pass)-.*\.tmp")


class CheckpointDirectory:
    """Checkpoints of one job; locked as long as the process lives or until it is closed.

    Parameters
    ----------
    path : Path
        The directory; made if it is not there.
    origin : Origin
        What the job is of.
    resume : bool
        Whether to go on from the newest checkpoint. If not, those of a job that was not finished are not replaced.

    Attributes
    ----------
    saved : Saved or None
        The checkpoint to go on from.
    remarks : list of str
        What a user should know.

    Raises
    ------
    CheckpointInUse
        Another process holds the lock.
    CheckpointMismatch, CheckpointError
        What is there is of another job, is damaged, or would be lost.
    """

    def __init__(self, path: Path, origin: Origin, *, resume: bool) -> None:
        self.path, self.origin = path, origin
        self.remarks: list[str] = []
        self._handle = _lock(path)
        try:
            self._sweep()
            self._numbers = _numbers(path)
            self.saved = self._newest(resume)
            self.passes = PassLog(path, self._digest())
            if self.saved is None:
                self._clear()
        except BaseException:
            self.close()
            raise

    @property
    def newest_path(self) -> Path | None:
        """The newest checkpoint."""
        return _file(self.path, self._numbers[-1]) if self._numbers else None

    def save(self, header: dict[str, Any], arrays: Arrays) -> Path:
        """Write a checkpoint, whole or not at all, and remove what is older than the last few; return its path."""
        path = _file(self.path, self._numbers[-1] + 1 if self._numbers else 1)
        write(path, KEY, {"format": FORMAT, **header, "origin": self.origin.to_json()}, arrays)
        self._numbers.append(number_of(path))
        while len(self._numbers) > KEPT:
            with suppress(OSError):  # one more than wanted harms nobody
                _file(self.path, self._numbers[0]).unlink(missing_ok=True)
            self._numbers.pop(0)
        return path

    def finished(self, weights_sha256: str) -> None:
        """Note that the job is done and its model written: the directory may be used for another."""
        with replacing(self.path / FINISHED) as temporary:
            temporary.write_text(json.dumps({"weights_sha256": weights_sha256}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the directory."""
        self._handle.close()

    def _sweep(self) -> None:
        """Remove what a killed process did not finish writing."""
        for name in os.listdir(self.path):
            if _LEFTOVER.fullmatch(name):
                (self.path / name).unlink(missing_ok=True)

    def _newest(self, resume: bool) -> Saved | None:
        """The newest checkpoint that is whole; those that are not are removed once one is found."""
        if not resume:
            if self._numbers and not (self.path / FINISHED).is_file():
                raise CheckpointMismatch(
                    f"{str(self.path)!r} holds checkpoints of a job that was not finished: give --resume to go on from "
                    f"the newest, or another directory, or remove it to begin anew."
                )
            return None
        saved, damage = _newest_whole(self.path, self._numbers)
        if saved is not None:
            self.origin.check(saved.header["origin"], saved.where)
            for _ in damage:
                _file(self.path, self._numbers.pop()).unlink()
            self.remarks += [f"{error} The one before it is taken." for error in damage]
        elif damage:
            raise CheckpointError(
                f"no checkpoint in {str(self.path)!r} can be read: {damage[0]} Remove the directory to begin anew."
            )
        return saved

    def _clear(self) -> None:
        """Make room for another job."""
        for number in self._numbers:
            _file(self.path, number).unlink(missing_ok=True)
        self._numbers = []
        self.passes.forget(0)
        (self.path / FINISHED).unlink(missing_ok=True)

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.origin.to_json(), sort_keys=True).encode()).hexdigest()


def load_checkpoint(path: Path) -> Saved:
    """Read a checkpoint file.

    Raises
    ------
    CheckpointError
        It is damaged or foreign.
    """
    header, arrays = read(path, KEY, f"checkpoint {str(path)!r}", CheckpointError, format=FORMAT)
    origin = header.get("origin")
    if not isinstance(origin, dict) or set(origin) != set(Origin.__dataclass_fields__):
        raise CheckpointError(f"checkpoint {str(path)!r} does not say what it is of.")
    return Saved(path, header, arrays)


def find_checkpoint(path: Path) -> Saved | None:
    """The checkpoint at a path, or the newest that is whole in a directory; None if it is neither.

    Raises
    ------
    CheckpointError
        The file, or all of the directory, is damaged.
    """
    if path.is_file():
        return load_checkpoint(path) if _NUMBERED.fullmatch(path.name) else None
    saved, damage = _newest_whole(path, _numbers(path)) if path.is_dir() else (None, [])
    if saved is None and damage:
        raise damage[-1]
    return saved


def number_of(path: Path) -> int:
    """Number of a checkpoint, by the name of its file; -1 of anything else."""
    match = _NUMBERED.fullmatch(path.name)
    return int(match[1]) if match else -1


def _file(directory: Path, number: int) -> Path:
    return directory / f"checkpoint-{number:09d}.safetensors"


def _numbers(directory: Path) -> list[int]:
    """Numbers of the checkpoints in a directory, ascending."""
    return sorted(number for path in directory.iterdir() if (number := number_of(path)) >= 0)


def _newest_whole(directory: Path, numbers: Sequence[int]) -> tuple[Saved | None, list[CheckpointError]]:
    """The newest of some checkpoints that is whole, if any is, and what is wrong with those after it."""
    damage: list[CheckpointError] = []
    for number in reversed(numbers):
        try:
            return load_checkpoint(_file(directory, number)), damage
        except CheckpointError as error:
            damage.append(error)
    return None, damage


class PassLog:
    """What passes of L-BFGS gave, a file each: the method is made again from them, bit for bit, without the data.

    Parameters
    ----------
    path : Path
        Their directory.
    job : str
        What identifies the job.
    """

    def __init__(self, path: Path, job: str) -> None:
        self._path, self._job = path, job

    def get(self, number: int) -> Arrays | None:
        """Arrays of a pass; None if it was not written, or is damaged."""
        path = self._file(number)
        if not path.exists():
            return None
        try:
            header, arrays = read(path, KEY, f"pass file {str(path)!r}", CheckpointError, format=FORMAT)
        except CheckpointError:
            self.forget(number)  # it is done again, and so are those after it
            return None
        if header != {"format": FORMAT, "job": self._job, "pass": number}:
            raise CheckpointError(f"pass file {str(path)!r} is of another job; remove it.")
        return arrays

    def put(self, number: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Write a pass."""
        write(self._file(number), KEY, {"format": FORMAT, "job": self._job, "pass": number}, arrays)

    def forget(self, number: int) -> None:
        """Remove passes from a number on."""
        while (path := self._file(number)).exists():
            path.unlink()
            number += 1

    def _file(self, number: int) -> Path:
        return self._path / f"pass-{number:06d}.safetensors"


def _lock(path: Path) -> io.FileIO:
    """Lock the directory for this process, and for as long as it lives."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = io.FileIO(os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    except OSError as error:
        raise ConfigError(f"--checkpoint {path} cannot be used: {error.strerror}; name a directory.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = handle.read(200).decode(errors="replace").strip() or "another process"
        handle.close()
        raise CheckpointInUse(
            f"{str(path)!r} is in use by {holder}, which writes its checkpoints there: wait for it, or name another "
            f"directory."
        ) from error
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle
