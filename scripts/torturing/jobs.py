"""A small job for the command line, and the bits that it ends with when nobody disturbs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Longest that a job may take.
SECONDS = 300


def write_shards(directory: Path, rows: int, seed: int = 0, shards: int = 4, row_group_rows: int = 20_000) -> Path:
    """Write numbers and categories with gaps, some rows without a target ``y``; return the directory."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    for shard in range(shards):
        n = rows // shards
        X = rng.normal(size=(n, 4)).astype(np.float32)
        codes = rng.integers(0, 300, n)
        y = (X @ [1.0, -2.0, 0.5, 0.0] + (codes % 7 - 3) + rng.logistic(size=n) > 0).astype(np.int8)
        names = pa.array([f"c{code}" for code in range(300)]).take(pa.array(codes, mask=rng.random(n) < 0.05))
        columns = {f"x{j}": pa.array(X[:, j], mask=rng.random(n) < 0.02) for j in range(4)}
        table = pa.table({**columns, "c": names, "y": pa.array(y, mask=rng.random(n) < 0.01)})
        pq.write_table(table, directory / f"part-{shard}.parquet", row_group_size=row_group_rows)
    return directory


def _hear_interrupts() -> None:
    """As in the foreground: a shell starts what is in the background, and all that this starts, without SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class CommandLineJob:
    """``streamgd train`` with checkpoints in a directory of their own.

    Attributes
    ----------
    data : Path
        Its shards.
    checkpoints : Path
        Where it keeps what it learned.
    options : tuple of str
        More options.
    """

    data: Path
    checkpoints: Path
    options: tuple[str, ...] = ()

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start it, in a process group of its own."""
        command = [sys.executable, "-m", "streamgd", "train", str(self.data), "--target", "y", "--json", *self.options]
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        return subprocess.Popen(
            [*command, *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
            preexec_fn=_hear_interrupts,
        )

    def resume(self, *more: str) -> subprocess.Popen[str]:
        """Start it with ``--resume``."""
        return self.start("--checkpoint", str(self.checkpoints), "--resume", *more)

    def begin_anew(self) -> None:
        """Forget what it learned."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def result(job: subprocess.Popen[str]) -> tuple[int, dict[str, object], str]:
    """Exit code, JSON object and messages of a job that ends."""
    out, err = job.communicate(timeout=SECONDS)
    return job.returncode, json.loads(out) if out.strip() else {}, err
