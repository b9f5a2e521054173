"""What computes each partition of a Dask DataFrame by itself, in the thread that asks.

Nothing is scheduled and nothing is persisted, so a task that reads partitions waits for no other task. Only what the
user has persisted is fetched, by its key.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import dask.config
import dask.local
import numpy as np
from dask._task_spec import DataNode, convert_legacy_graph

from ..errors import ReadFailed

#: Graphs of partitions are pickled in groups of about so many bytes, counted one by one, and of so many partitions at
#: most: neighbours have nearly all in common. 1,000 partitions of `read_parquet` with a filter, 29 columns, take 0.9 MB
#: in groups and 7.5 MB one by one; all at once they are smaller still, but one that is wanted takes its group: 0.6 ms.
GROUP_BYTES, GROUP_PARTITIONS = 1 << 18, 64
#: What was persisted and is lost may be computed again, and is waited for so many seconds, asking so often. Not for
#: ever: the thread that waits may be the one that would compute it.
FETCH_SECONDS, FETCH_AGAIN = 60.0, 0.5
#: Partitions whose graphs are looked at, and how many times the tasks of all may be those of the whole graph before a
#: user is told.
LOOKED_AT, SHARED = 3, 2.0


class Partition:
    """What computes one partition.

    Parameters
    ----------
    graph : dict of graph nodes by key
        Tasks.
    key : tuple
        The task that gives the partition.
    needed : list
        Keys of what was persisted, which no task gives.
    """

    def __init__(self, graph: dict[Any, Any], key: Any, needed: list[Any]) -> None:
        self.graph, self.key, self.needed = graph, key, needed

    @classmethod
    def of(cls, graph: Mapping[Any, Any], key: Any) -> Partition:
        """Cut one out of the graph of a frame."""
        tasks: dict[Any, Any] = {}
        needed: list[Any] = []
        waiting = [key]
        while waiting:
            name = waiting.pop()
            if name in graph and name not in tasks:
                tasks[name] = graph[name]
                waiting += tasks[name].dependencies
            elif name not in graph and name not in needed:
                needed.append(name)
        return cls(tasks, key, needed)

    def compute(self, values: Sequence[Any]) -> Any:
        """Give the partition, by this thread; ``values`` are those that are ``needed``."""
        held = {key: DataNode(key, value) for key, value in zip(self.needed, values, strict=True)}
        return dask.local.get_sync(self.graph | held, self.key)


class Graphs:
    """What computes each partition of a frame by itself.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        The frame.
    client : distributed.Client, optional
        Whose futures there may be in it.
    """

    def __init__(self, frame: Any, client: Any) -> None:
        # What shuffles from peer to peer needs the scheduler's help: a thread alone cannot compute it.
        with dask.config.set({"dataframe.shuffle.method": "tasks"}):
            optimised = frame.optimize()
            graph = dict(optimised.__dask_graph__())
        self._keys: list[Any] = list(optimised.__dask_keys__())
        self._futures = _futures(graph)
        self.client = client or next((future.client for future in self._futures.values()), None)
        tasks = convert_legacy_graph({key: node for key, node in graph.items() if key not in self._futures})
        self._graph: Mapping[Any, Any] | None = tasks
        self._lock = threading.Lock()
        self._groups: list[bytes] = []
        self._size = 1

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> Partition:
        if self._graph is not None:
            return Partition.of(self._graph, self._keys[number])
        group: list[Partition] = pickle.loads(self._groups[number // self._size])
        return group[number % self._size]

    @property
    def shared(self) -> float:
        """Tasks of all partitions, each computed by itself, for one of the whole graph; by a few partitions."""
        if not self._graph:
            return 1.0
        looked_at = np.linspace(0, len(self) - 1, LOOKED_AT).astype(int)
        return float(np.mean([len(self[number].graph) for number in looked_at]) * len(self) / len(self._graph))

    def futures(self, part: Partition) -> list[Any]:
        """Give what a partition needs that was persisted."""
        return [self._futures.get(key) or _future(key, self.client) for key in part.needed]

    def compute(self, number: int) -> Any:
        """Compute one partition, by this thread."""
        part = self[number]
        if self._graph is None:
            return part.compute(_fetch(part.needed) if part.needed else [])
        return part.compute([_result(future) for future in self.futures(part)])

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            if not self._groups:
                size = GROUP_BYTES // len(cloudpickle.dumps(self[0]))
                self._size = min(max(size, 1), GROUP_PARTITIONS)
                for first in range(0, len(self), self._size):
                    group = [self[number] for number in range(first, min(first + self._size, len(self)))]
                    self._groups.append(cloudpickle.dumps(group))
        return {"_keys": self._keys, "_groups": self._groups, "_size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Futures stay with their client, which keeps what they stand for.
        self.__dict__.update(state, _graph=None, _futures={}, client=None, _lock=threading.Lock())


def _futures(graph: Mapping[Any, Any]) -> dict[Any, Any]:
    """What is persisted among the nodes of a graph, by key."""
    if "distributed" not in sys.modules:  # its import takes a second
        return {}
    from distributed import Future

    return {key: node for key, node in graph.items() if isinstance(node, Future)}


def _future(key: Any, client: Any) -> Any:
    """What a task of a graph refers to by its key alone."""
    from distributed import Client, Future

    client = client or Client.current()
    if key not in client.futures:
        raise ReadFailed(
            f"{key} of the Dask DataFrame is neither one of its tasks nor persisted. Make the frame again."
        )
    return Future(key, client)


@contextmanager
def cluster_failures(what: str) -> Iterator[None]:
    """Tell failures of a cluster, which say nothing of the data, from those of what it computes."""
    if "distributed" not in sys.modules:
        yield
        return
    from distributed import CancelledError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError) as error:
        raise ReadFailed(
            f"{what} is persisted no more, or the cluster is gone: {type(error).__name__}: {error}. Make the frame "
            "again, and run again."
        ) from error


def wait_for(future: Any) -> None:
    """Wait for what is persisted; raise what went wrong with it."""
    with cluster_failures(f"{future.key} of the Dask DataFrame"):
        error = future.exception()
        if error is not None:
            raise error


def _result(future: Any) -> Any:
    """What is persisted, brought here."""
    with cluster_failures(f"{future.key} of the Dask DataFrame"):
        return future.result()


def _fetch(keys: Sequence[Any]) -> list[Any]:
    """What is persisted under some keys, brought here from the workers that have it, or found on this one."""
    from distributed import Client, Worker, get_worker
    from distributed.utils import sync

    node: Any
    try:
        node = get_worker()
    except ValueError:  # in a thread that a task has started
        node = next((worker for worker in Worker._instances if worker.status.name == "running"), None)
    node = node or Client.current()
    found = sync(node.loop, _gather, node, keys)
    return [found[key] for key in keys]


async def _gather(node: Any, keys: Sequence[Any]) -> dict[Any, Any]:
    from distributed.utils_comm import gather_from_workers

    here = getattr(node, "data", {})
    found = {key: here[key] for key in keys if key in here}
    waited = 0.0
    while missing := [key for key in keys if key not in found]:
        who_has = await node.scheduler.who_has(keys=missing)
        data, *_ = await gather_from_workers({key: who for key, who in who_has.items() if who}, rpc=node.rpc)
        found.update(data)
        if data:
            continue
        if waited >= FETCH_SECONDS:
            raise ReadFailed(
                f"{missing[0]}, which is persisted, is on no worker: one may have died, or the frame was let go. "
                "Persist it again, wait for it, and run again."
            )
        waited += FETCH_AGAIN
        await asyncio.sleep(FETCH_AGAIN)
    return found
