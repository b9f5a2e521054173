"""A scheduler and workers as real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from scripts.torturing.processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Two workers of one thread each, for tests that do them no harm."""
    with Processes(tmp_path_factory.mktemp("cluster"), 2) as cluster:
        yield cluster


@pytest.fixture
def client(processes: Processes) -> Iterator[Client]:
    """A client of these."""
    with Client(processes.address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[Processes]:
    """A scheduler of its own, without workers yet."""
    with Processes(tmp_path / "victims") as cluster:
        yield cluster
