"""The benchmarks run from end to end on a few rows; what they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent.parent / "scripts" / "bench"


def test_every_shape_runs(tmp_path: Path) -> None:
    out = tmp_path / "bench.md"
    only = ["--only", "streamgd,sklearn"]
    arguments = [
        "--rows",
        "2000",
        "--slow-rows",
        "500",
        "--rounds",
        "1",
        *only,
        "--data",
        tmp_path / "data",
        "--out",
        out,
    ]
    done = subprocess.run(
        [sys.executable, BENCH, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(out.with_suffix(".json").read_text())
    assert set(found["shapes"]) == {
        *("numbers", "cache", "clicks", "text", "wide", "softmax", "models", "partitions", "cluster"),
    }
    for parts in found["shapes"].values():
        assert parts and all(not part["failed"] and part["seconds_per_row"] for part in parts)
        for part in parts:
            assert any(name.startswith("streamgd") for name in part["seconds_per_row"])
    assert "where the time of a row goes" in out.read_text() and found["machine"] in out.read_text()
