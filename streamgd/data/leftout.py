"""What a job goes without since it cannot be read or encoded: counted and told, never dropped in silence."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ReadFailed, ShardChanged, StreamgdError, TooManyClasses
from .rowgroups import Manifest, Source

OnError = Literal["raise", "skip"]
#: Messages that are kept, each of another shard or row group; of the others there is a number.
MESSAGES = 20
#: What is wrong with more than the rows at hand: with the storage, the job or the data as a whole.
_NEVER = (ReadFailed, ShardChanged, TooManyClasses)


class LeftOut:
    """Shards and row groups that a job leaves out, noted by all threads that read the subsets of its source.

    Parameters
    ----------
    on_error : {"raise", "skip"}, optional
        Whether to leave out what is bad; None where a user has no choice, and so is told of none.

    Attributes
    ----------
    shards : list of str
        Names of shards without a footer that can be read.
    whole : dict
        Rows of each row group, by the number of its shard and its own in the shard, that is left out of the whole job:
        what was wrong with it was known before training.
    row_groups : set
        The same numbers of these, and of those of which rows were lost while training.
    messages : list of str
        What was wrong with the first of all these.
    error : DataError or None
        The first error: what to raise if nothing is left.
    """

    def __init__(self, on_error: OnError | None = None) -> None:
        self.on_error = on_error
        self.shards: list[str] = []
        self.whole: dict[tuple[int, int], int] = {}
        self.row_groups: set[tuple[int, int]] = set()
        self.messages: list[str] = []
        self.error: DataError | None = None
        self._told, self._told_of = 0, 0
        self._lock = threading.Lock()

    def fresh(self, on_error: OnError | None) -> LeftOut:
        """What a new job leaves out of the same source before it has read a row: shards."""
        other = LeftOut(on_error)
        other.shards, other.messages = [*self.shards], self.messages[: len(self.shards)]
        return other

    @property
    def rows(self) -> int:
        """Rows that no epoch sees, in row groups that were left out before training."""
        with self._lock:
            return sum(self.whole.values())

    def note_shard(self, name: str, error: StreamgdError) -> None:
        """Note that a shard is left out, or raise the error."""
        excused = self._excuse(error, "the shard")
        with self._lock:
            self.shards.append(name)
            self._remember(excused)

    def note(self, error: StreamgdError, manifest: Manifest, row_group: int, *, whole: bool = False) -> None:
        """Note that rows of a row group are left out, or that all of it is for the whole job; or raise the error."""
        excused = self._excuse(error, "the row group")
        key = int(manifest.shard[row_group]), int(manifest.index[row_group])
        with self._lock:
            if whole:
                self.whole[key] = int(manifest.rows[row_group])
            if key not in self.row_groups:
                self.row_groups.add(key)
                self._remember(excused)

    def restore(self, manifest: Manifest, row_groups: NDArray[Any]) -> None:
        """Leave out row groups that were left out of the job before it was interrupted."""
        for row_group in row_groups.tolist():
            key = int(manifest.shard[row_group]), int(manifest.index[row_group])
            self.whole[key] = int(manifest.rows[row_group])
            self.row_groups.add(key)

    def absorb(self, other: LeftOut) -> None:
        """Note what another process noted of the same job."""
        if other is self:
            return
        with self._lock:
            if fresh := other.row_groups - self.row_groups:
                self.error = self.error or other.error
                self.messages += [text for text in other.messages if text not in self.messages]
                del self.messages[MESSAGES:]
            self.row_groups |= fresh
            self.whole |= other.whole

    def merged(self, other: LeftOut) -> LeftOut:
        """What this one and another noted."""
        if other is self:
            return self
        both = copy.deepcopy(self)
        both.absorb(other)
        return both

    def remarks(self) -> list[str]:
        """What was left out since the last call: a few messages, and how many there are."""
        with self._lock:
            found = [f"left out: {message}" for message in self.messages[self._told :]]
            shards, row_groups = len(self.shards), len(self.row_groups)
            if shards + row_groups > self._told_of and shards + row_groups > 1:
                found.append(f"left out in all: {shards:,} shard(s) and {row_groups:,} row group(s), or parts of them.")
            self._told, self._told_of = len(self.messages), shards + row_groups
            return found

    def _excuse(self, error: StreamgdError, what: str) -> DataError:
        """The error, if what it is about may be left out."""
        if not isinstance(error, DataError) or isinstance(error, _NEVER):
            raise error
        if self.on_error == "raise":
            advice = f"on_error='skip' (--on-error skip) leaves {what} out and counts it"
            error.args = (f"{str(error).rstrip('.')}; {advice}.",)
        if self.on_error != "skip":
            raise error
        return error

    def _remember(self, error: DataError) -> None:
        # Not the error itself, which holds on to all that the frames hold that it went through.
        self.error = self.error or type(error)(str(error))
        if len(self.messages) < MESSAGES:
            self.messages.append(str(error))

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # others may note something meanwhile
            return {name: copy.copy(value) for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def places(manifest: Manifest, keys: Collection[tuple[int, int]]) -> NDArray[np.int64]:
    """Numbers in a manifest of row groups, which are given by the numbers of their shards and their own in these."""
    wanted = np.array([shard << 32 | index for shard, index in keys], np.int64)
    return np.flatnonzero(np.isin(manifest.shard.astype(np.int64) << 32 | manifest.index, wanted))


def refuse_nothing(source: Source, left_out: Collection[tuple[int, int]]) -> None:
    """Raise the first error there was if all row groups of a source are left out."""
    error = source.left_out.error
    if error is not None and len(places(source.manifest, left_out)) == source.manifest.n_row_groups:
        raise error


def remaining(source: Source) -> Source:
    """The source less the row groups that are left out whole.

    Raises
    ------
    DataError
        None is left: the first error there was.
    """
    gone = places(source.manifest, source.left_out.whole)
    if len(gone) == 0:
        return source
    refuse_nothing(source, source.left_out.whole)
    return source.subset(np.setdiff1d(np.arange(source.manifest.n_row_groups), gone))
