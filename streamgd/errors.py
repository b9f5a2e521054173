"""Every error a user can meet.

Each message says what was found, what was expected and what to do. The exit code of the command line is a
property of the class: 2 wrong arguments, 3 bad data or model file, 4 interrupted and resumable, 1 anything else.
"""

from __future__ import annotations

import json


class StreamgdError(Exception):
    """Base of all errors that streamgd raises on purpose."""

    exit_code = 1


def error_json(error: Exception, code: int) -> str:
    """What ``--json`` prints of an error that ends a command with an exit code."""
    return json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": code})


class ConfigError(StreamgdError, ValueError):
    """A parameter is wrong, contradicts another, or would do nothing for the chosen solver."""

    exit_code = 2


class MemoryLimitError(ConfigError):
    """The job cannot run in the memory limit; the message names the least limit that would do."""


class OutOfMemory(MemoryLimitError, MemoryError):
    """Memory, address space or a thread was not to be had, although there should have been enough of it."""


class DataError(StreamgdError, ValueError):
    """The data cannot be trained on, evaluated or predicted as they are."""

    exit_code = 3


class PathNotFound(DataError, FileNotFoundError):
    """A path, glob or URI leads to nothing."""


class NoShards(DataError):
    """A directory or glob holds no Parquet file."""


class EmptyData(DataError):
    """There are shards, but no rows in them."""


class UnreadableShard(DataError):
    """A shard is not a readable Parquet file, or its footer and its pages disagree."""


class SchemaMismatch(DataError):
    """A shard lacks a column of the first shard, or has it with a type that does not widen safely."""


class MissingColumn(DataError):
    """A column that was named (target, weight, drop, keep, a feature of the model) is not in the data."""


class UnusableColumns(DataError):
    """Columns that cannot become features; the message lists them with their types."""


class TargetError(DataError):
    """Base of what can be wrong with the target column."""


class AllNullTarget(TargetError):
    """The target has no value in any row."""


class SingleClass(TargetError):
    """A classification target holds one class only."""


class TooManyClasses(TargetError):
    """A classification target holds more classes than the loss can tell apart."""


class NonFiniteTarget(TargetError):
    """The target holds NaN or infinity."""


class UnknownLabel(TargetError):
    """A label occurs that training did not know."""


class BadWeight(DataError):
    """A sample weight is missing, negative, NaN or infinite, or all of them are zero."""


class NonFiniteFeature(DataError):
    """A feature column holds infinity or a number that float32 cannot hold."""


class ListLengthMismatch(DataError):
    """A list column holds lists of different lengths."""


class ReadFailed(DataError):
    """Storage or memory failed, not the data: rows that are there could not be read, so they are never left out."""


class ShardChanged(DataError):
    """A shard is gone, or is not the one that it was when the job began."""


class ModelFileError(DataError):
    """A model file is damaged, foreign, or of a version that this streamgd does not read."""


class CheckpointError(DataError):
    """Checkpoint files are damaged or foreign, or of data that are not these."""


class CheckpointMismatch(ConfigError):
    """A checkpoint is of another configuration, or a directory holds one that would be lost."""


class CheckpointInUse(StreamgdError):
    """Another process writes checkpoints to the same directory."""


class Interrupted(StreamgdError):
    """Training was asked to stop; what was learned stands in a checkpoint."""

    exit_code = 4


class ClusterLost(StreamgdError):
    """A cluster has no workers, or its scheduler is gone; if there are checkpoints, another cluster can go on."""


class WorkersKilled(StreamgdError):
    """A task has killed several workers one after the other; the message names what it read."""


class OutputError(StreamgdError, OSError):
    """A file cannot be written; built as an OSError is, from an errno, its text and the path.

    Attributes
    ----------
    replaced : bool
        Whether the new file is there all the same, but may not be after a crash.
    """

    replaced = False

    def __str__(self) -> str:
        fate = "it is there, but may be gone after a crash" if self.replaced else "what was there before is as it was"
        return (
            f"{self.filename} cannot be written: {self.strerror}; {fate}. "
            f"Free space there, see that it may be written to, or name another place."
        )


class TrainingDiverged(StreamgdError, ArithmeticError):
    """The weights are no longer finite; the message names the step and likely causes."""
