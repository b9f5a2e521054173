"""What a checkpoint holds: everything that training needs to go on to the same bits, and what it is a checkpoint of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .config import Config
from .data.rowgroups import Source
from .data.seen import Seen
from .data.stream import Position
from .errors import CheckpointError, CheckpointMismatch
from .job import Feed, Job, finish
from .kernels.drain import CARRIED, ROWS, STEP, TOUCHED
from .model import Model
from .state import State, Story

#: Parameters that change no weight, so that a job may be resumed with others.
FREE = ("cache", "n_jobs", "memory_limit", "on_error")
#: Names of differing shards that a message lists.
LISTED = 5
_LISTS = ("losses", "validation_losses", "epoch_seconds")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Origin:
    """What a job is of, as JSON values: its configuration, the columns, and a line for each shard."""

    config: dict[str, Any]
    target: str
    weight: str | None
    shards: list[list[Any]]
    validation: list[list[Any]] | None

    @classmethod
    def of(
        cls, config: Config, target: str, weight: str | None, source: Source, validation: Source | None = None
    ) -> Origin:
        """Describe a job; the footers of its shards are read for it."""
        said = {name: value for name, value in config.to_json().items() if name not in FREE}
        tables = [None if one is None else [list(line) for line in one.shards()] for one in (source, validation)]
        return cls(_plain(said), target, weight, tables[0] or [], tables[1])

    def to_json(self) -> dict[str, Any]:
        """The same as one object."""
        return dict(vars(self))

    def check(self, found: Mapping[str, Any], where: str) -> None:
        """Refuse what a checkpoint says of another job.

        Raises
        ------
        CheckpointMismatch
            It has another configuration; the message names what differs.
        CheckpointError
            It is of other shards; the message names them.
        """
        before = {"target": found["target"], "weight": found["weight"], **found["config"]}
        now = {"target": self.target, "weight": self.weight, **self.config}
        if differing := [name for name in {**now, **before} if now.get(name) != before.get(name)]:
            said = "; ".join(f"{name} is {now.get(name)!r} and was {before.get(name)!r}" for name in differing)
            raise CheckpointMismatch(
                f"{where} is of another configuration: {said}. Give what was given before, or another --checkpoint "
                f"directory to begin anew."
            )
        for what, ours, theirs in (
            ("", self.shards, found["shards"]),
            ("validation ", self.validation, found["validation"]),
        ):
            if changes := _changes(ours or [], theirs or []):
                more = f" and {len(changes) - LISTED} more" if len(changes) > LISTED else ""
                raise CheckpointError(
                    f"{where} is of other {what}shards: {'; '.join(changes[:LISTED])}{more}. Restore them, or begin "
                    f"anew with another --checkpoint directory."
                )


def _plain(value: Any) -> Any:
    """What a value is after it was JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _changes(ours: list[list[Any]], theirs: list[list[Any]]) -> list[str]:
    """What differs between two tables of shards: name, bytes, rows, digest of the footer."""
    now, before = ({line[0]: line[1:] for line in table} for table in (ours, theirs))
    changes = [f"{name} is gone" for name in before if name not in now]
    changes += [f"{name} is new" for name in now if name not in before]
    for name, (size, rows, footer) in now.items():
        if name not in before or [size, rows, footer] == before[name]:
            continue
        old_size, old_rows, _ = before[name]
        if (size, rows) == (old_size, old_rows):
            changes.append(f"{name} was written anew (its footer differs)")
        else:
            changes.append(f"{name} has {rows:,} rows in {size:,} bytes and had {old_rows:,} in {old_size:,}")
    if not changes and list(now) != list(before):
        changes.append("they come in another order")
    return changes


def pack(job: Job, feed: Feed, state: State, story: Story) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a checkpoint; the arrays are those of the state, not copies."""
    arrays = {name: getattr(state, name) for name in State.shapes(job)}
    arrays["touched"] = state.touched[: int(state.counters[TOUCHED])]
    arrays |= {name: np.array(getattr(story, name), "<f8") for name in _LISTS}
    if story.best is not None:
        score, model = story.best
        arrays |= {"best_score": np.array([score]), "best_coef": model.coef, "best_intercept": model.intercept}
        if model.hashed_index is not None and model.hashed is not None:
            arrays |= {"best_index": model.hashed_index, "best_hashed": model.hashed}
    header = {
        "version": __version__,
        "position": list(story.position),
        "story": {name: getattr(story, name) for name in ("first_epoch", "no_gain", "skipped", "over")},
        "seconds": [story.seconds, story.epoch_began],
        "snapshots": [state.snapshots, state.table_snapshots],
        "shape": _shape(job, feed),
        "seen": job.seen.to_json(),
        "skipped_row_groups": sorted(map(list, feed.source.left_out.row_groups)),
    }
    return header, arrays


def _shape(job: Job, feed: Feed) -> dict[str, int]:
    """What a memory limit may lower, or a cluster decide."""
    return {
        "window_rows": feed.memory.window_rows,
        "hash_bits": job.encoder.spec.hash_bits,
        "partitions": job.config.streams,
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read."""

    path: Path
    header: dict[str, Any]
    arrays: Arrays

    @property
    def where(self) -> str:
        """Name it for a message."""
        return f"checkpoint {str(self.path)!r}"

    def to_json(self) -> dict[str, Any]:
        """What it is a checkpoint of and how far that got, for people.

        Raises
        ------
        CheckpointError
            The file does not hold it.
        """
        try:
            header, origin, counters = self.header, self.header["origin"], self.arrays["counters"]
            epoch, window, rows = header["position"]
            validation = origin["validation"]
            return {
                "kind": "checkpoint",
                "checkpoint": str(self.path),
                "version": header["version"],
                "epochs_done": epoch - header["story"]["first_epoch"],
                "position": {"epoch": epoch, "window": window, "rows": rows},
                "rows": int(counters[ROWS]),
                "steps": int(counters[STEP]),
                "seconds": header["seconds"][0],
                "losses": self.arrays["losses"].tolist(),
                "validation_losses": self.arrays["validation_losses"].tolist(),
                "target": origin["target"],
                "shards": len(origin["shards"]),
                "data_rows": sum(line[2] for line in origin["shards"]),
                "validation_shards": None if validation is None else len(validation),
                "config": origin["config"],
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise self._damaged(error) from error

    def seen(self) -> Seen:
        """What was seen of the data before training.

        Raises
        ------
        CheckpointError
            The file does not hold it.
        """
        try:
            return Seen.from_json(self.header["seen"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._damaged(error) from error

    @property
    def partitions(self) -> int:
        """Partitions of the job.

        Raises
        ------
        CheckpointError
            The file does not say.
        """
        try:
            found = self.header["shape"]["partitions"]
            if type(found) is not int or found < 1:
                raise ValueError(f"{found!r} partitions")
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error
        return found

    def restore(self, job: Job, feed: Feed) -> tuple[State, Story]:
        """State and story of the job, which own the arrays.

        Raises
        ------
        CheckpointMismatch
            The memory limit makes windows or the table of another size.
        CheckpointError
            The file does not hold a state of this job.
        """
        try:
            now, before = _shape(job, feed), self.header["shape"]
            if differing := [name for name in now if now[name] != before[name]]:
                said = " and ".join(f"{name} of {now[name]:,}, where it was {before[name]:,}" for name in differing)
                raise CheckpointMismatch(
                    f"{self.where} cannot be continued: --memory-limit gives a {said}. Give the limit of before."
                )
            return self._state(job), self._story(job, feed)
        except CheckpointMismatch:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.where} does not hold a state of this job: {error}. Remove it, or begin anew.")

    def _state(self, job: Job) -> State:
        shapes = State.shapes(job)
        found = {name: self._array(name, kind, None if name == "touched" else s) for name, (s, kind) in shapes.items()}
        carried, touched = (int(found["counters"][place]) for place in (CARRIED, TOUCHED))
        slots, listed = job.encoder.spec.n_slots, found["touched"]
        if found["counters"].min() < 0 or carried >= job.batch_rows or (found["failed"] != -1).any():
            raise ValueError("its counters are out of range")
        if listed.ndim != 1 or len(listed) != min(touched, shapes["touched"][0][0]) or not _within(listed, slots):
            raise ValueError("its list of hashed weights is out of range")
        room = np.zeros(shapes["touched"][0], "<i8")
        room[: len(listed)] = listed
        snapshots, table_snapshots = self.header["snapshots"]
        if type(snapshots) is not int or type(table_snapshots) is not int or not 0 <= table_snapshots <= snapshots:
            raise ValueError("its numbers of snapshots are out of range")
        arrays: dict[str, Any] = {"table": None, "table_average": None, **found, "touched": room}
        return State(**arrays, snapshots=snapshots, table_snapshots=table_snapshots)

    def _array(self, name: str, kind: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
        found = self.arrays[name]
        if found.dtype != np.dtype(kind) or (shape is not None and found.shape != shape):
            raise ValueError(f"array {name!r} is {found.dtype}{found.shape}, expected {kind}{shape}")
        numbers = found[:, :-1] if name == "table" else found  # last in a slot is the number of a step, not a float
        # The extremes are NaN if any is: no array of flags as long as the table.
        if kind.startswith("<f") and found.size and not (math.isfinite(numbers.min()) and math.isfinite(numbers.max())):
            raise ValueError(f"array {name!r} holds NaN or infinity")
        return found

    def _story(self, job: Job, feed: Feed) -> Story:
        told, seconds = self.header["story"], [float(value) for value in self.header["seconds"]]
        position = Position(*self.header["position"])
        numbers = [*position, told["first_epoch"], told["no_gain"], told["skipped"]]
        if any(type(number) is not int or number < 0 for number in numbers) or type(told["over"]) is not bool:
            raise ValueError("its position is not made of counts")
        last = told["first_epoch"] + job.config.passes
        windows = feed.plan.n_windows if job.config.streams == 1 else feed.source.manifest.n_rows
        if position.epoch > last or position.window > windows or position.rows > feed.plan.capacity:
            raise ValueError(f"its position {tuple(position)} is beyond the end")
        lists = {name: self.arrays[name] for name in _LISTS}
        if any(found.dtype != np.dtype("<f8") or found.ndim != 1 for found in lists.values()):
            raise ValueError("its losses are not numbers")
        story = Story(position=position, **told, **{name: found.tolist() for name, found in lists.items()})
        story.seconds, story.epoch_began = seconds
        for shard, index in self.header["skipped_row_groups"]:
            feed.source.left_out.row_groups.add((int(shard), int(index)))
        if "best_score" in self.arrays:
            story.best = float(self.arrays["best_score"][0]), self._best(job)
        return story

    def _best(self, job: Job) -> Model:
        model = finish(job, np.zeros((job.outputs, len(job.inverse_scale) + 1)), None)
        coef, intercept = self._array("best_coef", "<f8", model.coef.shape), self._array("best_intercept", "<f8", None)
        if intercept.shape != model.intercept.shape:
            raise ValueError("its best model has other classes")
        if not job.encoder.spec.hash_bits:
            return replace(model, coef=coef, intercept=intercept)
        index = self._array("best_index", "<u4", None)
        hashed = self._array("best_hashed", "<f4", (len(index), job.outputs))
        if index.ndim != 1 or not _within(index, job.encoder.spec.n_slots) or (np.diff(index.astype("<i8")) <= 0).any():
            raise ValueError("the hashed weights of its best model are out of range")
        return replace(model, coef=coef, intercept=intercept, hashed_index=index, hashed=hashed)


def begin(job: Job, feed: Feed, saved: Saved | None) -> tuple[State, Story]:
    """State and story to train from: those of a checkpoint, or of the start."""
    return (State.start(job), Story()) if saved is None else saved.restore(job, feed)


def _within(places: NDArray[Any], length: int) -> bool:
    return not len(places) or (int(places.min()) >= 0 and int(places.max()) < length)
