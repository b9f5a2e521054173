"""The shuffled stream alone: mini-batches as arrays, for whoever has another use for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, UnusableColumns
from ..features import FeatureSpec
from .columns import find_columns
from .encode import Encoder
from .shuffle import Plan, default_window_rows
from .source import as_source
from .stream import START, Position, Window, WindowStream
from .target import Target
from .threads import available_cpus


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


class Batch(NamedTuple):
    """A mini-batch.

    Attributes
    ----------
    X : ndarray of float32, shape (n, n_features)
        Features; NaN where missing.
    y : ndarray of float32, shape (n,), or None
        Target.
    """

    X: NDArray[np.float32]
    y: NDArray[np.float32] | None


class ParquetStream:
    """Mini-batches of shuffled rows from Parquet shards, resumable at any mini-batch.

    Each pass over the object is one epoch: every row once, in a fresh order. Memory is two windows and the record
    batches being decoded, however long the data.

    Parameters
    ----------
    data : str, path, list of these, pyarrow Table or Dataset
        Shards: files, directories, globs or URIs.
    batch_size : int, default=1024
        Rows a mini-batch; the last of an epoch may be shorter.
    target : str, optional
        A column of numbers that becomes ``y``; rows in which it is null are left out. Without it, ``y`` is None.
    columns : list of str, optional
        Features, in this order. By default all columns but the target; each must be numbers, or lists of numbers
        of one length.
    seed : int, default=0
        Order of the rows.
    shuffle : bool, default=True
        If false, rows come as they lie.
    window_rows : int, optional
        Rows that are shuffled together. By default a tenth of the data, within bounds.
    n_jobs : int, optional
        Threads that decode; by default the processors of the machine. They never change the order.

    Examples
    --------
    >>> import pyarrow as pa, streamgd as sg
    >>> table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "y": [0, 1, 0, 1]})
    >>> stream = sg.ParquetStream(table, batch_size=3, target="y", seed=1)
    >>> [batch.X.shape for batch in stream]
    [(3, 1), (1, 1)]
    >>> stream.state_dict()
    {'epoch': 1, 'window': 0, 'rows': 0}
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int = 1024,
        target: str | None = None,
        columns: Sequence[str] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window_rows: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("window_rows", window_rows), ("n_jobs", n_jobs)):
            if (value is not None or name == "batch_size") and (not _is_count(value) or value == 0):
                raise ConfigError(f"{name} is {value!r}; expected an integer of at least 1.")
        if not _is_count(seed) or seed >= 2**32:
            raise ConfigError(f"the seed is {seed!r}; expected an integer from 0 to {2**32 - 1}.")
        self.batch_size = batch_size
        self.n_jobs = n_jobs or available_cpus()
        self.source = as_source(data, self.n_jobs)
        found = find_columns(self.source, target=target, only=columns)
        if hashed := [column.name for column in found if column.group != "dense"]:
            raise UnusableColumns(
                f"a stream gives numbers, and these columns are strings: {', '.join(hashed)}. Name the features with "
                f"columns=[...]."
            )
        self.encoder = Encoder(FeatureSpec.raw(found), None if target is None else Target(target))
        self.window_rows = window_rows or default_window_rows(self.source.manifest.rows, self.encoder.layout.row_bytes)
        self.plan = Plan(
            self.source.manifest.rows,
            self.window_rows,
            row_cost=self.encoder.row_cost,
            seed=seed,
            shuffle=shuffle,
        )
        self._position = Position()

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of ``X``."""
        return self.encoder.spec.feature_names()

    def state_dict(self) -> dict[str, int]:
        """Place after the last mini-batch that was taken; three integers, since rows can be read again."""
        return self._position._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a place that `state_dict` of a stream with the same data and parameters gave."""
        known = isinstance(state, dict) and set(state) == set(START._fields)
        if not known or not all(_is_count(value) for value in state.values()):
            raise ConfigError(f"{state!r} is no state of a stream; it is a dict of {', '.join(START._fields)}.")
        position = Position(**state)
        if position.window >= self.plan.n_windows or position.rows > self.plan.capacity:
            raise ConfigError(
                f"{state!r} is no place in a stream of {self.plan.n_windows} window(s) of {self.plan.capacity} rows an "
                f"epoch. Give the data and parameters that the state is from."
            )
        self._position = position

    def __iter__(self) -> Iterator[Batch]:
        start = self._position
        pending: list[NDArray[np.float32]] = []
        size = 0
        stream = WindowStream(
            self.source, self.encoder, self.plan, n_jobs=self.n_jobs, start=start, stop=Position(start.epoch + 1)
        )
        with closing(iter(stream)) as windows:  # type: ignore[type-var]
            for window in windows:
                done = start.rows if window.index == start.window else 0
                n = len(window.order)
                while done < n:
                    take = min(self.batch_size - size, n - done)
                    pending.append(window.rows[window.order[done : done + take]])
                    done, size = done + take, size + take
                    if size == self.batch_size:
                        self._position = _after(window, done)
                        yield self._batch(pending)
                        pending, size = [], 0
        self._position = Position(start.epoch + 1)
        if pending:
            yield self._batch(pending)

    def _batch(self, parts: list[NDArray[np.float32]]) -> Batch:
        layout = self.encoder.layout
        rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
        y = rows[:, layout.y_cell].copy() if layout.has_target else None
        return Batch(np.ascontiguousarray(rows[:, : layout.n_features]), y)


def _after(window: Window, done: int) -> Position:
    """Place after so many rows of a window."""
    if done < len(window.order):
        return Position(window.epoch, window.index, done)
    return Position(window.epoch + 1) if window.last else Position(window.epoch, window.index + 1)
