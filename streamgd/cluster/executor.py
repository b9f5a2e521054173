"""Rounds on the workers of a Dask cluster.

Each part of a round, and each joining of neighbours, is a task with a key of its own: run, round, place in the tree,
attempt. Tasks are pure, so the scheduler may run them anywhere, and again where a worker was lost with what it had
made; nothing of a round is needed once its result was fetched. What the scheduler does not see is seen to here: workers
that are still there but silent, parts that take much longer than others, data that are gone. Then a part is begun again
elsewhere under a new key, with all that depends on it, and the first result of the whole tree counts. They are equal to
the bit, so it does not matter which.
"""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf
from time import monotonic, sleep
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import dask
from distributed import Client, Future
from distributed.scheduler import KilledWorker

from ..errors import ClusterLost, WorkersKilled
from ..executors import Watch, Work
from .tasks import Packed, given
from .tree import LOOKING, POLLING, UNHEARD, AnyFuture, Lost, Place, Tree

#: Seconds without any worker, or without the scheduler, after which training is given up.
PATIENCE = 60.0
#: A worker that sends no heartbeat for so many seconds is not counted on; of many workers, each sends them less often.
SILENCE, SILENCE_A_WORKER = 10.0, 1 / 40
#: Bytes of data that are sent with each task, and not as a task, for which all others would wait some ms.
SMALL, SMALL_JOB = 32 << 10, 256 << 10
#: Seconds for an answer.
ANSWERING = 5.0


class Dask:
    """Carries out rounds on the workers of a Dask cluster, however many there are at the time.

    Parameters
    ----------
    client : distributed.Client
        Connected to the scheduler.
    patience : float
        Seconds to wait for a worker when there is none, and for a scheduler that does not answer.
    greet : callable, optional
        Told the addresses of workers when they are seen for the first time.

    Attributes
    ----------
    begun_again : int
        Times that parts, or rounds, were begun again elsewhere.
    """

    def __init__(
        self,
        client: Client,
        *,
        patience: float = PATIENCE,
        greet: Callable[[list[str]], None] | None = None,
    ) -> None:
        self._client, self._patience, self._greet = client, patience, greet
        self._greeted: set[str] = set()
        self._run, self._rounds, self._attempts = secrets.token_hex(6), count(), count(1)
        self._seen = _Workers()
        self._looked = -inf
        self._shared: tuple[Any, Any] | None = None
        self._before: Tree | None = None
        self.begun_again = 0

    @property
    def workers(self) -> int:
        """Workers that answered when they were last looked at."""
        return len(self._seen.alive)

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return str(self._scheduler.address)

    @property
    def threads(self) -> int:
        """Threads of these workers; it is waited for the first.

        Raises
        ------
        ClusterLost
            There is none.
        """
        self._ready(lambda _: False)
        return self.threads_seen

    @property
    def threads_seen(self) -> int:
        """Threads of the workers that answered when they were last looked at."""
        return sum(self._seen.threads[address] for address in self._seen.alive)

    @property
    def silent(self) -> set[str]:
        """Addresses of workers that are there, but silent."""
        return self._seen.silent

    def reduce(self, work: Work, shared: Any, start: Any, n: int, watch: Watch) -> Any:
        """See `streamgd.executors.Executor`.

        Raises
        ------
        ClusterLost
            There has been no worker, or no scheduler, for longer than the patience.
        WorkersKilled
            A part kills whatever worker takes it.
        """
        number, careful = next(self._rounds), False
        while True:
            if not self._ready(watch):
                return None
            tree, found = Tree(self, work, n, number, careful), None
            try:
                tree.begin(shared, start)
                if self._before is not None:
                    self._before.let_go()
                found = tree.result(watch)
                return found
            except Lost:
                self._shared, self._looked = None, -inf
            except KilledWorker as error:
                # Whatever else waited for the worker is suspected as well, so all parts say what they read.
                if careful:
                    raise self._killed(tree, error) from None
                careful = True
            finally:
                # What a client says within 10 ms of having said something waits for these to be over. So a round that
                # is done is let go of only when the next one has begun, not just before.
                self._before = None if found is None else tree
                if found is None:
                    tree.let_go()
            self.begun_again += 1

    def _killed(self, tree: Tree, error: Any) -> WorkersKilled:
        """Say what workers read when they died."""
        found: dict[str, tuple[str, str] | None] = {}
        with suppress(*UNHEARD):
            self.look()
            found = self.ask(self._scheduler.get_metadata, keys=[self._run], default={})
        at_it = filter(None, map(found.get, tree.unfinished))
        suspects = sorted({where for where, address in at_it if address not in self._seen.alive})
        what = f"reading {' or '.join(suspects)}" if suspects else f"task {error.task}"
        return WorkersKilled(
            f"{what} has killed {error.allowed_failures + 1} workers one after the other, the last one at "
            f"{error.last_worker.address}. Look into its log: it may lack memory (rows that take more than was planned "
            f"for, or a worker with less than the memory limit), or a library crashes on these bytes. Give workers "
            f"more memory, or leave the shard out."
        )

    def _ready(self, watch: Watch) -> bool:
        """Wait until there is a worker, unless it is ended."""
        while not (monotonic() - self._looked < LOOKING or self.look()):
            if watch(0):
                return False
            sleep(POLLING)
        return True

    def look(self) -> bool:
        """Look who is there.

        Raises
        ------
        ClusterLost
            Nobody, for too long.
        """
        try:
            found = self.ask(self._scheduler.identity)["workers"]
        except UNHEARD as error:
            return self._seen.nobody(f"the scheduler of the cluster does not answer ({error!r})", self._patience)
        self._seen.heard({address: worker["last_seen"] for address, worker in found.items()})
        self._seen.threads = {address: worker["nthreads"] for address, worker in found.items()}
        if not self._seen.alive:
            what = f"{len(found)} workers are there but silent" if found else "the cluster has no worker"
            return self._seen.nobody(what, self._patience)
        self._seen.alone_since, self._looked = None, monotonic()
        if self._greet is not None and (strangers := set(self._seen.alive) - self._greeted):
            self._greeted |= strangers
            self._greet(sorted(strangers))
        return True

    @property
    def _scheduler(self) -> Any:
        return self._client.scheduler

    def ask(self, question: Callable[..., Any], *args: Any, seconds: float = ANSWERING, **kwargs: Any) -> Any:
        """Await an answer of the scheduler, but not for ever."""
        return self._client.sync(question, *args, callback_timeout=seconds, **kwargs)

    def fetch(self, futures: list[AnyFuture], seconds: float) -> list[Any]:
        """Bring what is done here.

        Raises
        ------
        TimeoutError
            It takes longer.
        """

        async def gathered() -> Any:
            return await self._client.gather(futures, asynchronous=True)

        found: list[Any] = self._client.sync(gathered, callback_timeout=seconds)
        return found

    def where(self, besides: str | None = None) -> dict[str, Any]:
        """Options for a task that should not go to a silent worker, nor to another one."""
        unwanted = self.silent | ({besides} if besides else set())
        alive = [address for address in self._seen.alive if address not in unwanted]
        return self.wish(alive) if unwanted else {}

    @staticmethod
    def wish(addresses: Sequence[str]) -> dict[str, Any]:
        """Options for a task that should go to one of some workers, if there are any.

        It is no restriction: a task that may run nowhere else would wait for ever.
        """
        return {"workers": list(addresses), "allow_other_workers": True} if addresses else {}

    def shares(self, places: Sequence[Place]) -> dict[str, list[Place]]:
        """Share places out to the threads of workers that answer, in turn; by address, "" if none answers."""
        threads = [address for address in self._seen.alive for _ in range(max(1, self._seen.threads[address]))]
        found: dict[str, list[Place]] = {}
        for number, place in enumerate(places):
            found.setdefault(threads[number % len(threads)] if threads else "", []).append(place)
        return found

    def send_start(self, start: Any) -> Any:
        """Give where a round starts to the cluster: with each task if it is small, which is faster."""
        return start if bytes_of(start) <= SMALL else self.send(start, "start")

    def send(self, what: Any, name: str) -> AnyFuture:
        """Give data to the cluster as a task without inputs.

        So the scheduler keeps them, and has another worker take them when those that have them are lost: scattered data
        would be gone, and the round with them. Of 64 MB that costs 0.1 s more.
        """
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):  # warns of 10 MB
            key = f"streamgd-{name}-{self._run}-{self.attempt()}"
            return self._client.submit(given, what, key=key, pure=False, **self.where())

    def send_shared(self, shared: Any) -> Any:
        """Give what is fixed for the job to the cluster, unless it has it.

        If it is small, it goes with each task, and a worker unpacks it once: the scheduler gives a task that needs what
        one worker has to this worker, and others stay idle.
        """
        if self._shared is None or self._shared[0] is not shared:
            sent: Any
            if bytes_of(shared) <= SMALL_JOB:
                sent = Packed(f"{self._run}-{self.attempt()}", cloudpickle.dumps(shared, protocol=5))
            else:
                sent = self.send(shared, "job")
            self._shared = shared, sent
        return self._shared[1]

    def attempt(self) -> int:
        """A number that no task has had."""
        return next(self._attempts)

    def key(self, name: str, number: int, place: Place, attempt: int) -> str:
        """Name of a task."""
        return f"streamgd-{name}-{self._run}-{number}-{place[0]}-{place[1]}-{attempt}"

    def submit(
        self, function: Callable[..., Any], *lists: Any, fixed: Mapping[str, Any], **kwargs: Any
    ) -> list[AnyFuture]:
        """Submit tasks; what is ``fixed`` is the same for all of them."""
        # Futures have to be seen by Client.map. All else must not be: from 100 kB on it would be a task named after the
        # argument alone, so that two rounds, or two jobs, take each other's for theirs.
        waited_for: dict[str, Any] = {name: value for name, value in fixed.items() if isinstance(value, Future)}
        bound = partial(function, **{name: value for name, value in fixed.items() if name not in waited_for})
        found: list[AnyFuture] = self._client.map(bound, *lists, pure=False, **waited_for, **kwargs)
        return found

    @property
    def topic(self) -> str:
        """Where the scheduler keeps what careful parts say."""
        return self._run

    def processing(self) -> dict[str, str]:
        """Worker of each task that is under way."""
        found = self.ask(self._scheduler.processing)
        return {key: address for address, keys in found.items() for key in keys}

    def idle(self, at: Mapping[str, str]) -> bool:
        """Whether some worker has nothing to do."""
        return bool(set(self._seen.alive) - set(at.values()))


def bytes_of(what: Any) -> int:
    """How long a pickle of something is; arrays are not copied to know it."""
    buffers: list[pickle.PickleBuffer] = []
    head = cloudpickle.dumps(what, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(one.raw().nbytes for one in buffers)


@dataclass
class _Workers:
    """Who was heard of last, by the clock here: those of other machines may differ."""

    last: dict[str, tuple[float, float]] = field(default_factory=dict)
    alive: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    alone_since: float | None = None
    threads: dict[str, int] = field(default_factory=dict)

    def heard(self, beats: dict[str, float]) -> None:
        """Take note of the times of heartbeats."""
        now = monotonic()
        self.last = {
            address: before if (before := self.last.get(address)) and before[0] == beat else (beat, now)
            for address, beat in beats.items()
        }
        most = SILENCE + SILENCE_A_WORKER * len(beats)
        self.silent = {address for address, (_, heard) in self.last.items() if now - heard > most}
        self.alive = [address for address in beats if address not in self.silent]

    def nobody(self, what: str, patience: float) -> bool:
        """Give up if nobody was there for too long."""
        now = monotonic()
        self.alone_since = self.alone_since or now
        self.alive = []
        if now - self.alone_since > patience:
            raise ClusterLost(f"{what}, for {patience:.0f} s now; training was given up.")
        return False
