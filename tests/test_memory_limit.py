"""The memory limit holds for the whole process, however long the data or large their row groups.

The same as scripts/memory with less data twice over; figures of the full form are in the README.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from .conftest import TOP

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
    for name, place in script.make_data(directory, LIMIT, 20).items():
        result = script.train(place, f"{LIMIT}B")
        assert result["skipped_rows"] == 0
        found[name] = result["peak_rss_bytes"]
    return found


def test_peaks_stay_under_the_limit(peaks: dict[str, int]) -> None:
    """Data of 20 and 40 times the limit, and a row group that is larger than it."""
    assert len(peaks) == 3
    assert all(150_000_000 < peak < LIMIT for peak in peaks.values()), peaks


def test_twice_the_data_take_no_more_memory(peaks: dict[str, int]) -> None:
    once, twice, _ = peaks.values()
    assert abs(twice - once) < 0.05 * once
