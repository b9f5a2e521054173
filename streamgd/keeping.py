"""What a user says of checkpoints: where, how often, and whether to go on from one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from .checkpoint import Saved
    from .config import Config
    from .data.rowgroups import Source
    from .keeper import Keeper


@dataclass(frozen=True)
class Keeping:
    """Parameters of checkpoints, which change no result.

    Attributes
    ----------
    checkpoint : path or None
        Their directory.
    checkpoint_seconds, checkpoint_rows : number or None
        From one to the next, at most.
    resume : bool
        Whether to go on from the newest, if there is one.
    """

    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_seconds: float | None = None
    checkpoint_rows: int | None = None
    resume: bool = False

    def check(self) -> Keeping:
        """Return self, or raise ConfigError for a value that is wrong or would do nothing."""
        for name in ("checkpoint_seconds", "checkpoint_rows"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ConfigError(f"{name} is {value!r}; expected a number above 0.")
            if value is not None and self.checkpoint is None:
                raise ConfigError(f"{name} does nothing without checkpoint; leave it out.")
        if self.resume and self.checkpoint is None:
            raise ConfigError(
                "resume goes on from a checkpoint: give checkpoint (--checkpoint), the directory of the last run's."
            )
        return self

    @property
    def directory(self) -> Path | None:
        """The directory."""
        return None if self.checkpoint is None else Path(self.checkpoint)

    def keeper(self) -> Keeper:
        """A keeper, which has no directory yet."""
        from .keeper import SECONDS, Keeper

        seconds = SECONDS if self.checkpoint_seconds is None else self.checkpoint_seconds
        return Keeper(seconds=seconds, rows=self.checkpoint_rows)

    def open(
        self,
        keeper: Keeper,
        config: Config,
        target: str,
        weight: str | None,
        source: Source,
        validation: Source | None = None,
    ) -> Saved | None:
        """Give the keeper its directory, and return the checkpoint to go on from, if there is one.

        Raises
        ------
        CheckpointInUse, CheckpointMismatch, CheckpointError
            See `CheckpointDirectory`.
        """
        if self.directory is None:
            return None
        from .checkpoint import Origin
        from .checkpointdir import CheckpointDirectory

        origin = Origin.of(config, target, weight, source, validation)
        keeper.directory = CheckpointDirectory(self.directory, origin, resume=self.resume)
        return keeper.directory.saved
