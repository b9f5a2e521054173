"""Data sets with fixed seeds, written once as shards of Parquet (snappy)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from . import generators

#: Slow contenders read no fewer rows, unless there are fewer.
LEAST_SLOW = 1_000
#: Rows of a shard, unless there are fewer.
LEAST_ROWS = 1_000


@dataclass(frozen=True)
class Kind:
    """How a data set is made: default and least number of rows, rows for slow contenders, shards, row groups."""

    about: str
    tables: Callable[[list[int]], Iterator[pa.Table]]
    rows: int
    least: int
    shards: int
    row_group: int
    slow: int = 131_072


KINDS = {
    "numbers": Kind(
        "28 nullable float32 columns (no value is missing) and an int8 target",
        generators.numbers,
        rows=8_388_608,
        least=4_096,
        shards=8,
        row_group=65_536,
        slow=524_288,
    ),
    "clicks": Kind(
        "13 nullable int32 columns (0 to 40 % null), 26 of strings of 8 characters with 3 to 1,000,000 different "
        "values, and an int8 target",
        generators.clicks,
        rows=8_388_608,
        least=4_096,
        shards=4,
        row_group=131_072,
        slow=2_097_152,  # to begin a table of 4 million weights is 5 % of it, and a fifth of half a million rows
    ),
    "text": Kind(
        "one column of about 200 words a row, of a vocabulary of 50,000, and an int8 target",
        generators.text,
        rows=100_000,
        least=2_000,
        shards=4,
        row_group=10_000,
        slow=20_000,
    ),
    "wide-1000": Kind(
        "1,000 float32 columns and an int8 target",
        partial(generators.wide, 1_000),
        rows=524_288,
        least=2_000,
        shards=4,
        row_group=16_384,
    ),
    "wide-10000": Kind(
        "10,000 float32 columns and an int8 target",
        partial(generators.wide, 10_000),
        rows=40_960,
        least=1_000,
        shards=4,
        row_group=2_048,
    ),
    "wide-vector": Kind(
        "one column of lists of 768 float32 (fixed_size_list) and an int8 target",
        partial(generators.vectors, 768),
        rows=524_288,
        least=2_000,
        shards=4,
        row_group=16_384,
    ),
    "softmax-10": Kind(
        "28 float32 columns and an int32 target of 10 classes",
        partial(generators.classes, 10),
        rows=1_048_576,
        least=4_096,
        shards=4,
        row_group=65_536,
    ),
    "softmax-100": Kind(
        "28 float32 columns and an int32 target of 100 classes",
        partial(generators.classes, 100),
        rows=1_048_576,
        least=8_192,
        shards=4,
        row_group=65_536,
    ),
}


@dataclass(frozen=True)
class Data:
    """Shards on disk, and how many rows slow contenders read."""

    about: str
    directory: Path
    rows: int
    slow: int
    row_group: int

    @property
    def shards(self) -> list[Path]:
        return shards(self.directory)

    @property
    def features(self) -> list[str]:
        return [name for name in pq.read_schema(self.shards[0]).names if name != "y"]

    def batches(self, rows: int, size: int) -> Iterator[pa.RecordBatch]:
        """The first rows, in record batches of at most so many."""
        for path in self.shards:
            for batch in pq.ParquetFile(path).iter_batches(size, use_threads=True):
                yield batch.slice(0, rows)
                rows -= batch.num_rows
                if rows <= 0:
                    return


def shards(directory: Path) -> list[Path]:
    """Shards of a directory in order."""
    return sorted(directory.glob("*.parquet"))


def find_data(name: str, place: Path, share: float, slow_share: float) -> Data:
    """Data set in a place, written if it is not there; shares are of the default numbers of rows."""
    kind, directory = KINDS[name], place / name
    wanted = max(kind.least, round(kind.rows * share))
    if not shards(directory):
        print(f"writing {wanted:,} rows to {directory}", file=sys.stderr)
        write(kind, directory, wanted)
    rows = sum(pq.read_metadata(path).num_rows for path in shards(directory))
    if rows != wanted:
        print(f"{directory} holds {rows:,} rows, not {wanted:,}; they are used", file=sys.stderr)
    slow = min(rows, max(LEAST_SLOW, round(kind.slow * slow_share)))
    about = f"{kind.about[0].upper()}{kind.about[1:]}; {rows:,} rows in row groups of {kind.row_group:,}, snappy."
    return Data(about, directory, rows, slow, kind.row_group)


def under_more_names(data: Data, times: int) -> Data:
    """The same shards so many times, as links: more rows to read, which take no more room."""
    directory = data.directory.with_name(f"{data.directory.name}-times-{times}")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path in data.shards:
        for number in range(times):
            (directory / f"{number}-{path.name}").hardlink_to(path)
    about = f"{data.about} Each shard is read under {times} names: {times * data.rows:,} rows."
    return replace(data, about=about, directory=directory, rows=times * data.rows)


def write(kind: Kind, directory: Path, rows: int) -> None:
    """Write shards, all or none."""
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    n = min(kind.shards, max(1, rows // LEAST_ROWS))
    bounds = [rows * shard // n for shard in range(n + 1)]
    sizes = [stop - start for start, stop in pairwise(bounds)]
    for shard, table in enumerate(kind.tables(sizes)):
        path = unfinished / f"part-{shard}.parquet"
        pq.write_table(table, path, row_group_size=kind.row_group, compression="snappy")
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
