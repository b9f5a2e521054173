"""streamgd in rounds, in this process or on workers of a Dask cluster on this machine."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache
from typing import Any

from streamgd.cluster.connect import connected
from streamgd.cluster.executor import Dask
from streamgd.cluster.options import ClusterOptions
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.executors import Serial
from streamgd.job import prepare
from streamgd.state import State
from streamgd.trainer import train

from .data import Data
from .harness import Contender, Sample

PARTITIONS = 8
_STARTED = ExitStack()
atexit.register(_STARTED.close)


@cache
def executor(workers: int) -> Any:
    """Who does the work; workers are started once."""
    if not workers:
        return Serial()
    return Dask(_STARTED.enter_context(connected(ClusterOptions(f"local:{workers}"))))


def in_rounds(data: Data, name: str, workers: int) -> Contender:
    """One epoch in rounds of eight partitions, from the first round to the last."""

    def run() -> list[Sample]:
        config = Config(epochs=1, partitions=PARTITIONS, polish=0, cache=None, n_jobs=1)
        job, feed = prepare(ParquetSource(data.directory), "y", config.check())
        result = train(job, feed, State.start(job), executor=executor(workers))
        return [Sample(name, result.rows, result.seconds)]

    return Contender("streamgd", name, run)
