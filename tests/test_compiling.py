"""Kernels are compiled by a child, which leaves them on the disk and ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from streamgd.compiling import compile_apart
from streamgd.kernels import warm

TRAINED = """
import pkgutil, sys
from importlib import import_module

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import streamgd, streamgd.kernels
from streamgd.kernels.warm import compiled_mark

assert not compiled_mark(False, 1, False).exists()
rng = np.random.default_rng(0)
numbers = {name: rng.normal(size=30_000).astype(np.float32) for name in "ab"}
table = pa.table({**numbers, "y": rng.integers(0, 2, 30_000).astype(np.int8)})
pq.write_table(table, sys.argv[1], row_group_size=10_000)
streamgd.SGDClassifier(epochs=1, polish=0).fit(sys.argv[1], "y")
modules = [import_module(f"streamgd.kernels.{found.name}") for found in pkgutil.iter_modules(streamgd.kernels.__path__)]
compiled = {
    name
    for module in modules
    for name, kernel in vars(module).items()
    if not isinstance(kernel, type) and hasattr(kernel, "stats")
    if kernel.stats.cache_misses and kernel.stats.cache_path
}
assert compiled <= {"column_chunks"}, compiled  # of footers, which are read to know what a job needs
"""
THEN = """
from streamgd.compiling import warm
from streamgd.kernels.drain import drain
from streamgd.kernels.warm import compiled_mark

assert compiled_mark(False, 1, False).exists()
assert not compiled_mark(True, 1, False).exists() and not compiled_mark(False, 2, False).exists()
warm(False)
assert not drain.stats.cache_misses and len(drain.stats.cache_hits) == 1
"""


def begun(code: str, cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "NUMBA_CACHE_DIR": str(cache)})


def children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def soon(condition: Any) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def test_a_job_compiles_nothing_itself_and_its_child_once(tmp_path: Path) -> None:
    """Kernels that only the reading of labels or pages calls among them."""
    for code in (TRAINED, THEN):
        with begun(code, tmp_path / "cache", str(tmp_path / "a.parquet")) as process:
            assert process.wait(timeout=300) == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    with begun("from streamgd.compiling import compile_apart\ncompile_apart(True)", tmp_path) as process:
        assert soon(lambda: children(process.pid))
        (child,) = children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert soon(lambda: not Path(f"/proc/{child}").exists())
    assert not list(tmp_path.rglob("compiled-*"))


@pytest.mark.parametrize("name", ["python", "worker"])
def test_without_a_child_that_compiles_all_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails leaves no mark; and what is no Python is not run at all."""
    program, ran, mark = tmp_path / name, tmp_path / "ran", tmp_path / "mark"
    program.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("streamgd.compiling.compiled_mark", lambda *_: mark)
    compile_apart(False)
    assert not mark.exists()
    assert ran.exists() == (name == "python")


def test_other_sources_have_another_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = warm.compiled_mark(False, 1, False)
    (tmp_path / "warm.py").write_text("")
    monkeypatch.setattr(warm, "__file__", str(tmp_path / "warm.py"))
    assert warm.compiled_mark(False, 1, False) != before
