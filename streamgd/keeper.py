"""When checkpoints are written, and who writes them.

The thread that trains holds the keeper's lock while it changes the state, and lets go of it where it waits for data.
So another thread that wants to end the process finds a state that is whole: at once while training waits, be it for a
disk that never answers, and otherwise after the mini-batches under way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Self

from .checkpoint import pack
from .checkpointdir import CheckpointDirectory, PassLog
from .errors import ClusterLost, Interrupted
from .interrupt import NOTHING_YET
from .job import Feed, Job
from .kernels.drain import CARRIED, ROWS
from .log import say
from .model import Model
from .state import State, Story

#: Seconds between checkpoints, unless the user says otherwise.
SECONDS = 60.0


class Keeper:
    """Writes checkpoints when they are due, and ends training when it is asked to.

    Parameters
    ----------
    directory : CheckpointDirectory, optional
        Where to; without one nothing is written.
    seconds : float
        Time from one checkpoint to the next.
    rows : int, optional
        Rows from one to the next; it is written where a mini-batch ends.
    """

    def __init__(
        self, directory: CheckpointDirectory | None = None, *, seconds: float = SECONDS, rows: int | None = None
    ) -> None:
        self.directory = directory
        self.asked = threading.Event()
        self._seconds, self._rows = seconds, rows
        self._lock = threading.Lock()
        self._subject: tuple[Job, Feed, State, Story] | None = None
        self._began = self._written_at = monotonic()
        self._written_rows = 0
        self._kept: tuple[object, ...] | None = None

    @property
    def passes(self) -> PassLog | None:
        """Where passes of L-BFGS are kept."""
        return None if self.directory is None else self.directory.passes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.directory is not None:
            self.directory.close()

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the directory."""
        return [] if self.directory is None else self.directory.remarks

    def finished(self, model: Model) -> None:
        """Note that the model is where it belongs, so that the directory may be used for another job."""
        if self.directory is not None:
            self.directory.finished(model.sha256())

    @contextmanager
    def watching(self, job: Job, feed: Feed, state: State, story: Story) -> Iterator[None]:
        """Keep this state, from where it begins to where the block ends."""
        if self.directory is None:
            yield
            return
        with self._lock:
            self._subject, self._began = (job, feed, state, story), monotonic() - story.seconds
            self._written_rows = int(state.counters[ROWS])
            if self.directory.saved is None:
                self._save()
            else:
                self._kept = _mark(story)
            try:
                yield
            finally:
                self._subject = None

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Let others have the state while this thread changes nothing of it."""
        if self._subject is None:
            yield
            return
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def reached(self, round_ended: bool) -> None:
        """Write a checkpoint if one is due.

        Raises
        ------
        Interrupted
            Training was asked to end.
        """
        if self._subject is None:
            return
        state = self._subject[2]
        due = monotonic() - self._written_at >= self._seconds
        if self._rows is not None:
            due |= int(state.counters[ROWS]) - self._written_rows >= self._rows
        if due or round_ended or self.asked.is_set():
            self._save()
        if self.asked.is_set():
            raise Interrupted(self.farewell())

    def cut(self, at: int, stop: int) -> int:
        """End of the next call of the kernel, which begins ``at``: before ``stop`` if a checkpoint is due there.

        That is the end of a mini-batch, where a cut changes no bit.
        """
        if self._rows is None or self._subject is None:
            return stop
        job, _, state, _ = self._subject
        due = self._rows - (int(state.counters[ROWS]) - self._written_rows)
        first = job.batch_rows - int(state.counters[CARRIED])
        batches = max(0, -(-(due - first) // job.batch_rows))
        return min(stop, at + first + batches * job.batch_rows)

    def rescue(self, seconds: float) -> str:
        """Write a checkpoint from another thread than the one that trains, which has to let go in time; tell of it.

        Training cannot go on afterwards, so the process should end.
        """
        if self._lock.acquire(timeout=seconds) and self._subject is not None:
            self._save()
        return self.farewell()

    def farewell(self) -> str:
        """What to tell who ended the training."""
        kept = self._told()
        return NOTHING_YET if kept is None else f"interrupted; {kept}"

    def resumable(self, error: ClusterLost) -> ClusterLost:
        """The same error, which says what is kept."""
        if (kept := self._told()) is None:
            return error
        found = ClusterLost(f"{error} {kept[0].upper()}{kept[1:]} Another cluster, or this machine alone, can go on.")
        found.exit_code = Interrupted.exit_code
        return found

    def _told(self) -> str | None:
        kept = None if self.directory is None else self.directory.newest_path
        if kept is None:
            return None
        where = f" up to {place(self._subject[3])}" if self._subject and _mark(self._subject[3]) == self._kept else ""
        return f"what was learned{where} is kept in {kept}. Run the same command with --resume."

    def _save(self) -> None:
        """Write the state, unless it has been written."""
        if self._subject is None or self.directory is None:
            return
        job, feed, state, story = self._subject
        story.seconds = monotonic() - self._began
        if (mark := _mark(story)) != self._kept:
            began = monotonic()
            path = self.directory.save(*pack(job, feed, state, story))
            say("checkpoint", "", path=path, seconds=round(monotonic() - began, 3), rows=int(state.counters[ROWS]))
        self._kept = mark
        self._written_at, self._written_rows = monotonic(), int(state.counters[ROWS])


def _mark(story: Story) -> tuple[object, ...]:
    """What differs between states of one training."""
    return story.position, story.over


def place(story: Story) -> str:
    """Where training stands, in words."""
    position = story.position
    within = f", window {position.window + 1}" if position.window else ""
    return f"epoch {position.epoch - story.first_epoch + 1}{within}" + (
        f", row {position.rows:,} of it" if position.rows else ""
    )
