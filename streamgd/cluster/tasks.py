"""What workers run: parts of rounds, and what joins them."""

from __future__ import annotations

import pickle
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from distributed import get_worker
from distributed.utils import sync

from .. import __version__
from ..data.rowgroups import RowGroupReader, Source
from ..executors import Work, fold
from ..kernels.warm import processor


def described() -> dict[str, str]:
    """What decides whether two processes give the same bits."""
    found = {name: version(name) for name in ("numpy", "numba", "llvmlite", "pyarrow", "scipy")}
    return {"streamgd": __version__, **found, "Python": platform.python_version(), "processor": processor()}


def given(what: Any) -> Any:
    """Data that a task carries."""
    return what


class Packed(NamedTuple):
    """What is fixed for a job, pickled, and a name of it that nothing else has."""

    name: str
    pickle: bytes

    def unpacked(self) -> Any:
        """What it holds, the same for all tasks of this worker."""
        with _UNPACKING:
            if self.name not in _UNPACKED:
                _UNPACKED[self.name] = pickle.loads(self.pickle)
                while len(_UNPACKED) > KEPT:
                    _UNPACKED.popitem(last=False)
            _UNPACKED.move_to_end(self.name)
            return _UNPACKED[self.name]


#: Jobs that a worker keeps unpacked: the scan of labels, and training.
KEPT = 2
_UNPACKED: OrderedDict[str, Any] = OrderedDict()
_UNPACKING = threading.Lock()


def part(group: tuple[int, int], *, work: Work, shared: Any, start: Any, topic: str | None) -> Any:
    """What neighbours make of a round together; with a ``topic`` the scheduler is told what is read before it is."""
    shared = shared.unpacked() if isinstance(shared, Packed) else shared
    announcing = topic is not None and hasattr(shared, "through")
    one = partial(_announced, topic, work) if announcing else work.part
    return fold((one(shared, start, number) for number in range(*group)), partial(work.join, shared, start))


def _announced(topic: str | None, work: Work, shared: Any, start: Any, number: int) -> Any:
    worker = get_worker()
    keys = [topic, worker.get_current_task()]

    def tell(where: str | None) -> None:
        # A round trip a row group, so it is done only where workers die.
        value = None if where is None else [where, worker.address]
        sync(worker.loop, worker.scheduler.set_metadata, keys=keys, value=value)

    found = work.part(shared.through(lambda source: Announced(source, tell), number), start, number)
    tell(None)
    return found


def join(left: Any, right: Any, *, work: Work, shared: Any, start: Any) -> Any:
    """What two neighbours are together."""
    shared = shared.unpacked() if isinstance(shared, Packed) else shared
    return work.join(shared, start, left, right)


class Announced:
    """A source that tells which row group it is about to read.

    Parameters
    ----------
    source : Source
        What is read.
    tell : callable
        Told the name of a row group.
    """

    def __init__(self, source: Source, tell: Callable[[str], None]) -> None:
        self._source, self._tell, self._told = source, tell, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def open(self, row_group: int, columns: Any, batch_rows: int) -> RowGroupReader:
        """See `streamgd.data.rowgroups.Source`."""
        reader = self._source.open(row_group, columns, batch_rows)
        return RowGroupReader(self._batches(reader), reader.rows, reader.where)

    def _batches(self, reader: RowGroupReader) -> Iterator[Any]:
        batches = reader.read(reader.rows)
        while True:
            if self._told != reader.where:
                self._tell(reader.where)
                self._told = reader.where
            batch = next(batches, None)
            if batch is None:
                break
            yield batch
        reader.finish()
