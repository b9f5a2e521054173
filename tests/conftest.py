"""What several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TOP = Path(__file__).parent.parent
FLIGHTS = TOP / "data" / "flights"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table as a directory of shards."""

    def write(table: pa.Table, name: str = "data", shards: int = 1, row_group_rows: int = 1 << 20) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        rows = -(-table.num_rows // shards)
        for shard in range(shards):
            piece = table.slice(shard * rows, rows)
            pq.write_table(piece, directory / f"part-{shard:02d}.parquet", row_group_size=row_group_rows)
        return directory

    return write


def classification(rows: int, features: int = 3, seed: int = 0) -> pa.Table:
    """Numbers of different means and scales, and a noisy 0/1 target ``y``."""
    X, margin = _features(rows, features, seed)
    y = np.random.default_rng(seed + 1).random(rows) < 1 / (1 + np.exp(-margin))
    return _table(X, y.astype(np.int8))


def regression(rows: int, features: int = 3, seed: int = 0) -> pa.Table:
    """Numbers of different means and scales, and a noisy target ``y`` of another mean and scale."""
    X, margin = _features(rows, features, seed)
    return _table(X, 20 * margin + 100 + 5 * np.random.default_rng(seed + 1).normal(size=rows))


def _features(rows: int, features: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, features))
    return X * 2.0 ** np.arange(features) - np.arange(features), X @ np.linspace(2, -1, features) - 0.5


def _table(X: Any, y: Any) -> pa.Table:
    return pa.table({**{f"x{j}": X[:, j] for j in range(X.shape[1])}, "y": y})


def matrix(table: pa.Table) -> tuple[Any, Any]:
    """Features and target of a table as arrays."""
    names = [name for name in table.column_names if name != "y"]
    return np.column_stack([table[name].to_numpy() for name in names]), table["y"].to_numpy()
