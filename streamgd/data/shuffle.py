"""The order of rows: a pure function of the seed, the epoch and the window.

An epoch permutes segments (row groups, or pieces of them) and cuts the result into windows of nearly equal
size. A window is taken in a uniformly random order of its rows. So the state of a stream is three integers, and
any window can be made again without its history. This is the two-level shuffle of CorgiPile (Xu et al., SIGMOD
2022) with exact resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.shuffle import permutation

#: The default window is a tenth of the rows, between these bounds in encoded bytes ...
WINDOW_BYTES = (16 << 20, 32 << 20)
#: ... but it holds at least so many row groups, if those take at most so many bytes. Two windows are in memory at a
#: time, and memory that is touched first costs more than what is done with it: on a virtual machine whose host takes
#: back what is free 2 s a GB, so a window is as large as the shuffle needs and no larger. Measured on 4 M rows of 28
#: columns sorted by class: windows of 4, 8 and all of 61 row groups give a log loss of 0.6155, 0.6154 and 0.6151.
WINDOW_ROW_GROUPS = 4
MOST_WINDOW_BYTES = 256 << 20

#: Row groups of which a window would hold less than this many whole ones are cut into segments ...
FEW_ROW_GROUPS = 2
#: ... of which it holds this many, so that it resembles the whole ...
SEGMENTS = 128
#: ... if reading them out of order costs at most this many numbers more (a few seconds).
EXTRA_VALUES = 1_000_000_000

#: Third parts of keys that are not windows (`numpy.random.SeedSequence` pads keys with 0, so lengths do not tell).
SEGMENT_ORDER, SAMPLE, HELD_OUT, WINDOW_ORDER, PLACE_ORDER, PARTITIONS = range(1 << 31, (1 << 31) + 6)


def random_seed(*key: int) -> np.uint64:
    """64 random bits for a key of non-negative integers; keys that differ anywhere give unrelated bits."""
    return np.uint64(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def random_order(n: int, *key: int) -> NDArray[np.uint32]:
    """Uniformly random order of 0..n-1 for a key, the same for ever."""
    return shuffled(np.arange(n, dtype=np.uint32), *key)


def shuffled(numbers: NDArray[np.uint32], *key: int) -> NDArray[np.uint32]:
    """Numbers in the `random_order` of as many."""
    out = np.empty_like(numbers)
    permutation(random_seed(*key), numbers, out)
    return out


def default_window_rows(rows: NDArray[np.int64], row_bytes: int) -> int:
    """Window in rows from the data alone.

    Parameters
    ----------
    rows : ndarray of int64, shape (n_row_groups,)
        Rows of each row group.
    row_bytes : int
        Bytes of an encoded row.

    Returns
    -------
    int
        At most the number of rows.
    """
    total = int(rows.sum())
    least, most, limit = (bound // row_bytes for bound in (*WINDOW_BYTES, MOST_WINDOW_BYTES))
    share = min(max(-(-total // 10), least), most)
    row_groups = WINDOW_ROW_GROUPS * total // max(1, int(np.count_nonzero(rows)))
    return max(1, min(total, max(share, min(row_groups, limit))))


@dataclass(frozen=True)
class Run:
    """Spans of one row group that are read in one go.

    Attributes
    ----------
    row_group : int
        Number of the row group in the manifest.
    spans : tuple of (int, int)
        First row and end of each span, ascending.
    """

    row_group: int
    spans: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        """Rows in the spans."""
        return sum(stop - start for start, stop in self.spans)


class Plan:
    """Windows of every epoch over row groups of given sizes.

    Parameters
    ----------
    rows : ndarray of int64, shape (n_row_groups,)
        Rows of each row group.
    window_rows : int
        Wanted rows a window; the epoch is cut into equal parts nearest to it.
    row_cost : int
        Numbers that a row is worth, to judge what reading out of order costs.
    seed : int
        Seed of the order.
    shuffle : bool
        If false, segments and rows come as they lie.
    extra_values : int, optional
        Numbers that may be decoded more than once for the sake of the shuffle.

    Attributes
    ----------
    n_windows : int
        Windows an epoch.
    scattered : bool
        Whether row groups that are large for the window are cut into segments that are read out of order, each
        window skipping to the rows it needs. It costs decoding again, so it is done for data that are small
        enough. Otherwise a large row group is streamed from its start to its end.
    streamed : bool
        Whether there are such row groups and they are streamed, so that the shuffle sees no further than a window.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        window_rows: int,
        *,
        row_cost: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        extra_values: int | None = None,
    ) -> None:
        self.seed, self.shuffle = seed, shuffle
        self.total = int(rows.sum())
        self.n_windows = max(1, -(-self.total // max(1, window_rows)))
        window = min(window_rows, self.total)
        pieces = np.where(
            rows * FEW_ROW_GROUPS > window, -(-rows // max(1, -(-window // SEGMENTS))), np.minimum(rows, 1)
        )
        most = EXTRA_VALUES if extra_values is None else extra_values
        extra = float((rows * np.minimum(pieces, self.n_windows)).sum()) / 2 * row_cost
        self.scattered = shuffle and self.n_windows > 1 and bool((pieces > 1).any()) and extra <= most
        self.streamed = shuffle and self.n_windows > 1 and bool((pieces > 1).any()) and not self.scattered
        self._row_group = np.repeat(np.arange(len(rows)), pieces) if self.scattered else np.flatnonzero(rows)
        first = np.cumsum(pieces) - pieces
        piece = np.arange(len(self._row_group)) - np.repeat(first, pieces) if self.scattered else 0
        length = rows[self._row_group]
        parts = pieces[self._row_group] if self.scattered else np.ones_like(length)
        self._start = length * piece // parts
        self._stop = length * (piece + 1) // parts
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def capacity(self) -> int:
        """Rows of the largest window."""
        return -(-self.total // self.n_windows)

    def window(self, epoch: int, index: int) -> list[Run]:
        """What to read for a window, in the order of row groups."""
        order, end = self._segments(epoch)
        low, high = (self.total * i // self.n_windows for i in (index, index + 1))
        first, last = np.searchsorted(end, low, side="right"), np.searchsorted(end, high, side="left")
        spans: dict[int, list[tuple[int, int]]] = {}
        for place in range(int(first), min(int(last), len(order) - 1) + 1):
            segment = order[place]
            begin = int(end[place] - self._stop[segment] + self._start[segment])
            start = int(self._start[segment]) + max(0, low - begin)
            stop = int(self._stop[segment]) - max(0, int(end[place]) - high)
            if stop > start:
                spans.setdefault(int(self._row_group[segment]), []).append((start, stop))
        return [Run(row_group, tuple(sorted(parts))) for row_group, parts in sorted(spans.items())]

    def row_order(self, epoch: int, index: int, rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The rows of a window in the order in which they are taken."""
        return shuffled(rows, self.seed, epoch, index) if self.shuffle else rows

    def _segments(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of the segments in an epoch, and the number of rows up to the end of each.

        Of every ``n_windows`` neighbours each window gets one: a random order in which every window spans the
        data from end to end. Rows that lie sorted are then dealt out evenly, where a plain permutation would leave
        the share of a class in a window to chance.
        """
        if self._epoch is None or self._epoch[0] != epoch:
            n = len(self._row_group)
            order = np.arange(n)
            if self.shuffle:
                stratum = order // self.n_windows
                rank = (
                    np.lexsort((random_order(n, self.seed, epoch, SEGMENT_ORDER), stratum)) - stratum * self.n_windows
                )
                window = np.empty(n, np.int64)
                window[:] = random_order(self.n_windows, self.seed, epoch, WINDOW_ORDER)[rank]
                # By stratum, what the ends of windows cut off would be late rows, and later windows get it.
                order = np.lexsort((random_order(n, self.seed, epoch, PLACE_ORDER), window))
            self._epoch = epoch, order, np.cumsum((self._stop - self._start)[order])
        return self._epoch[1], self._epoch[2]
