"""The memory limit holds for the whole process, however long the data or large their row groups.

The same as scripts/memory with less data twice over; figures of the full form are in the README.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.torturing import limits
from scripts.torturing.outcome import Outcome
from streamgd.addressspace import MAPPED_BYTES, THREAD_BYTES
from streamgd.config import Config
from streamgd.data.encode import Encoder
from streamgd.data.rowgroups import Manifest
from streamgd.errors import MemoryLimitError
from streamgd.features import Column, FeatureSpec
from streamgd.memory import Limit
from streamgd.memoryplan import Table, plan_memory, reader_bytes

from .conftest import TOP, Write

LIMIT = 700_000_000


def _script() -> Any:
    loader = SourceFileLoader("memory_script", str(TOP / "scripts" / "memory"))
    spec = importlib.util.spec_from_loader("memory_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    script, found = _script(), {}
    directory: Path = tmp_path_factory.mktemp("memory")
    for name, place in script.make_data(directory, LIMIT, 3).items():
        result = script.train(place, f"{LIMIT}B")
        assert result["skipped_rows"] == 0
        found[name] = result["peak_rss_bytes"]
    return found


def test_peaks_stay_under_the_limit(peaks: dict[str, int]) -> None:
    """Data of 4 and 8 times the limit, a row group that is larger than it, and millions of different strings.

    The long form, of 20 and 40 times, is scripts/memory.
    """
    assert len(peaks) == 4
    assert all(150_000_000 < peak < LIMIT for peak in peaks.values()), peaks


def test_twice_the_data_take_no_more_memory(peaks: dict[str, int]) -> None:
    once, twice, *_ = peaks.values()
    assert twice < 1.05 * once  # the first process compiles kernels if nobody has, which takes 100 MB


@st.composite
def manifests(draw: st.DrawFn) -> tuple[Manifest, Encoder]:
    features = draw(st.integers(1, 300))
    rows = np.array(draw(st.lists(st.integers(1, 10**7), min_size=1, max_size=20)), np.int64)
    shards = np.sort(draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows))))
    manifest = Manifest(
        shard=shards.astype(np.int32),
        index=np.arange(len(rows), dtype=np.int32),
        rows=rows,
        bytes=rows * features * draw(st.integers(1, 8)),
        file_bytes=np.ones(6, np.int64),
        schema=pa.schema([(f"x{j}", pa.float32()) for j in range(features)]),
    )
    return manifest, Encoder(FeatureSpec.raw([Column(f"x{j}", "number") for j in range(features)]))


def test_of_many_columns_a_reader_holds_no_more_than_some_row_groups() -> None:
    """It was thought to have a buffer of 1 MB for each of 10,000 columns, of which a row group has 8 kB."""
    columns, rows = 10_000, np.full(20, 2048)
    manifest = Manifest(
        shard=np.zeros(20, np.int32),
        index=np.arange(20, dtype=np.int32),
        rows=rows,
        bytes=rows * columns * 4,
        file_bytes=np.ones(1, np.int64),
        schema=pa.schema([(f"x{j}", pa.float32()) for j in range(columns)]),
    )
    encoder = Encoder(FeatureSpec.raw([Column(f"x{j}", "number") for j in range(columns)]))
    assert reader_bytes(manifest, encoder) < 7 * manifest.bytes[0]


@settings(deadline=None)
@given(
    manifests(),
    st.integers(10**8, 5 * 10**9),
    st.integers(1, 64),
    st.none() | st.integers(1, 10**6),
    st.integers(0, 3 * 10**9),
    st.booleans(),
)
def test_a_plan_adds_up_or_says_what_would_do(
    data: tuple[Manifest, Encoder], limit: int, n_jobs: int, window_rows: int | None, resident: int, validated: bool
) -> None:
    """Whatever the data: the parts of a plan are within the limit, and a limit that is asked for is enough."""
    manifest, encoder = data
    validation = manifest if validated else None

    def plan(limit: int, n_jobs: int = n_jobs, resident: int = resident) -> Any:
        config = Config(memory_limit=limit, window_rows=window_rows)
        return plan_memory(manifest, encoder, config, n_jobs, validation=validation, resident=resident)

    try:
        found = plan(limit)
    except MemoryLimitError as error:
        least = int(str(error).split("--memory-limit ")[1].split("MB")[0]) * 10**6
        assert least > limit
        found, limit = plan(least), least
    taken = max(found.base, resident) + found.window + found.decode * found.n_jobs + found.waiting
    assert taken <= limit
    assert 1 <= found.n_jobs <= n_jobs
    assert 1 <= found.window_rows <= found.wanted_rows <= manifest.n_rows
    # Neither threads nor what the process takes decide on the window, and so on the weights.
    assert plan(limit, 1, 0).window_rows == found.window_rows
    unlimited = plan_memory(manifest, encoder, Config(window_rows=window_rows), n_jobs, resident=resident)
    assert unlimited.window_rows == found.wanted_rows


@settings(deadline=None)
@given(manifests(), st.integers(10**8, 5 * 10**9), st.integers(1, 28), st.integers(1, 12), st.integers(0, 2))
def test_a_table_of_weights_that_does_not_fit_is_smaller(
    data: tuple[Manifest, Encoder], limit: int, bits: int, outputs: int, states: int
) -> None:
    """It takes no more than half of what is left, and leaves room for all else."""
    manifest, encoder = data
    table = Table(1 << bits, outputs, states)
    try:
        found = plan_memory(manifest, encoder, Config(memory_limit=limit), 1, table=table)
    except MemoryLimitError:
        return
    assert found.wanted_hash_bits == bits and 0 <= found.hash_bits <= bits
    assert found.base + found.window + found.decode + found.waiting <= limit
    free = plan_memory(manifest, encoder, Config(), 1, table=table)
    assert free.hash_bits == bits and free.base >= table.bytes(1 << bits)


def test_a_smaller_table_is_said_to_be(write: Write) -> None:
    columns = {"c": [f"v{i}" for i in range(200_000)], "y": np.arange(200_000) % 2}
    path = write(pa.table(columns), row_group_rows=20_000)
    command = [sys.executable, "-m", "streamgd", "train", str(path), "--target", "y", "--memory-limit", "480MB"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"lowers the table of hashed weights from 2\^20 to 2\^1[0-9]", done.stderr)
    done = subprocess.run([*command, "--hash-bits", "28"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2 and "2^28 hashed weights does not fit" in done.stderr


@settings(deadline=None)
@given(manifests(), st.integers(10**8, 5 * 10**9), st.integers(1, 64), st.integers(0, 3 * 10**9), st.booleans())
def test_a_limit_of_the_system_is_kept_with_no_memory_limit(
    data: tuple[Manifest, Encoder], limit: int, n_jobs: int, resident: int, mapped: bool
) -> None:
    """A plan within it, or a limit that would do; and the window is that of an equal memory limit."""
    manifest, encoder = data
    mapped_bytes = MAPPED_BYTES if mapped else 0

    def plan(config: Config, bound: Limit | None, n_jobs: int = n_jobs, resident: int = resident) -> Any:
        return plan_memory(manifest, encoder, config, n_jobs, resident=resident, bound=bound)

    bound = Limit(limit, "the limit of something", mapped_bytes)
    try:
        found = plan(Config(), bound)
    except MemoryLimitError as error:
        told = str(error)
        assert "the limit of something is" in told
        if mapped:
            limit = 1024 * int(told.split("'ulimit -v ")[1].split("'")[0]) - MAPPED_BYTES
        else:
            limit = 10**6 * int(told.split("Give it ")[1].split(" MB")[0])
        assert limit >= bound.bytes
        bound = Limit(limit, bound.name, mapped_bytes)
        found = plan(Config(), bound)
    stacks = THREAD_BYTES * (found.n_jobs - 1) if mapped else 0
    assert max(found.base, resident) + found.window + found.decode * found.n_jobs + found.waiting + stacks <= limit
    assert found.limited_by == bound.name
    assert plan(Config(), bound, 1, 0).window_rows == found.window_rows
    assert plan(Config(memory_limit=limit), None, 1, 0).window_rows == found.window_rows


def check(outcome: Outcome, least: int) -> None:
    assert not outcome.failures, str(outcome)
    assert sum(outcome.cases.values()) >= least, str(outcome)


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@on_linux
def test_larger_than_the_address_space_that_there_is(tmp_path: Path) -> None:
    """The least round limit of the address space; scripts/torturing/limits.py has data of 20 times that."""
    limit, data = limits.LEAST_ADDRESS_SPACE, tmp_path / "data"
    rows = limits.make_shards(data, 60_000_000, 1 << 18)
    enter = limits.address_space(limit)
    check(limits.larger_than_memory(data, rows, limit, enter, tmp_path, name="address space", seconds=120), 3)


@on_linux
def test_larger_than_a_control_group(tmp_path: Path) -> None:
    limit, data = limits.LEAST_GROUP, tmp_path / "data"
    rows = limits.make_shards(data, 60_000_000, 1 << 18)
    with limits.group(limit) as made:
        if made is None:
            pytest.skip("no control group may be made here")
        check(limits.larger_than_memory(data, rows, limit, made.enter, tmp_path, name="group", seconds=120), 3)


@on_linux
def test_any_address_space_is_enough_or_refused(tmp_path: Path) -> None:
    """None is so small that a command hangs, as OpenBLAS did without memory for its threads, or crashes."""
    limits.make_shards(tmp_path / "data", 1, 1 << 17)
    sizes = [size * 10**6 for size in (32, 200, 500, 650, 760, 850, 1000)]
    check(limits.every_limit(tmp_path / "data", sizes, tmp_path), 3 * len(sizes))
