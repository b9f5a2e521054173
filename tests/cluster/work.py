"""What workers import for tests: work that tells who did it, and sources that harm their reader."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgd.data.rowgroups import RowGroupReader
from streamgd.data.source import ParquetSource
from streamgd.errors import UnreadableShard


@dataclass(frozen=True)
class Brackets:
    """Work that shows the tree in which parts were joined; some take their time, but only the first who tries."""

    seconds: float = 0.0
    slow: tuple[int, ...] = ()
    directory: str = ""

    def part(self, shared: str, start: int, number: int) -> str:
        time.sleep(self.seconds)
        if number in self.slow:
            try:
                (Path(self.directory) / f"part-{number}").touch(exist_ok=False)
            except FileExistsError:
                return f"{shared}{start + number}"
            time.sleep(60)
        return f"{shared}{start + number}"

    def join(self, shared: str, start: int, left: str, right: str) -> str:
        return f"({left} {right})"


class Poisoned(ParquetSource):
    """Shards that Arrow reads, of which one row group kills who reads it."""

    poison = ("part-01.parquet", 2)

    def raw(self, row_group: int, columns: Any) -> None:
        return None

    def open(self, row_group: int, columns: Any, batch_rows: int) -> RowGroupReader:
        shard, index = int(self.manifest.shard[row_group]), int(self.manifest.index[row_group])
        reader = super().open(row_group, columns, batch_rows)
        if (self.names[shard], index) == self.poison and os.environ.get("STREAMGD_POISON"):

            def deadly() -> Any:
                os.kill(os.getpid(), signal.SIGKILL)
                yield

            return RowGroupReader(deadly(), reader.rows, reader.where)
        return reader


@dataclass(frozen=True)
class Failing:
    """Work of which some parts are bad."""

    failing: tuple[int, ...]

    def part(self, shared: str, start: int, number: int) -> int:
        if number in self.failing:
            raise UnreadableShard(f"number {number} is bad")
        return number

    def join(self, shared: str, start: int, left: int, right: int) -> int:
        return left + right


@dataclass(frozen=True)
class Where:
    """Says which processes took parts, which take a while."""

    seconds: float

    def part(self, shared: Any, start: Any, number: int) -> list[int]:
        time.sleep(self.seconds)
        return [os.getpid()]

    def join(self, shared: Any, start: Any, left: list[int], right: list[int]) -> list[int]:
        return left + right
