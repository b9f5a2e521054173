"""To a cluster: one on this machine that lives as long as the job, or the scheduler of another."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.security import Security

from ..errors import ClusterLost, ConfigError
from .executor import Dask
from .options import ClusterOptions
from .tasks import described
from .tree import UNHEARD

#: Seconds to connect, and for workers to say what they are.
CONNECTING, DESCRIBING = 30.0, 60.0
#: Ctrl-C reaches all processes of a terminal: workers leave it to the job, also those that a nanny starts later.
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
#: What Dask writes down for its dashboard alone: where threads are, 100 times a second, and how quick its loops are, 50
#: times. It is not done where nobody can look; with two workers on two processors it costs 6 % of their time.
_UNSEEN = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
}


@contextmanager
def connected(options: ClusterOptions) -> Iterator[Client]:
    """Give a client of a cluster; one on this machine is started, and ended when the block ends.

    Raises
    ------
    ClusterLost
        Nobody answers at the address.
    """
    with ExitStack() as stack:
        # What goes wrong is told by errors; what Dask logs of workers that die and of its own end is noise beside them.
        for name in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler", "tornado"):
            stack.enter_context(_quiet(name))
        if options.local:
            address: Any = stack.enter_context(_cluster(options))
        else:
            address = options.where
        security = Security(require_encryption=False)
        if options.where.startswith("tls://"):
            security = Security(
                tls_ca_file=os.fspath(options.tls_ca or ""),
                tls_client_cert=os.fspath(options.tls_cert or ""),
                tls_client_key=os.fspath(options.tls_key or ""),
                require_encryption=True,
            )
        try:
            client = Client(
                address,
                security=None if options.local else security,
                timeout=CONNECTING,
                set_as_default=False,
                # Else what is fetched goes by the scheduler: 64 MB in 0.24 s. Of another cluster, only that one may
                # be in reach.
                direct_to_workers=bool(options.local),
            )
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise ClusterLost(
                f"no scheduler answers at {options.where} ({str(error) or type(error).__name__}). See that one runs "
                f"there (dask scheduler), and that this machine may reach it."
            ) from error
        stack.callback(_leave, client)
        yield client


@contextmanager
def _cluster(options: ClusterOptions) -> Iterator[LocalCluster]:
    if options.dashboard:
        address, without, settings = "127.0.0.1:8787", {}, {}
    else:  # Dask has a server for its state all the same
        address, without, settings = "127.0.0.1:0", {"dashboard": False}, _UNSEEN
    with _ignoring(signal.SIGINT), dask.config.set(settings):  # workers are given what is set when they start
        cluster = LocalCluster(
            n_workers=options.local,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=address,
            memory_limit=0,  # what a task takes is planned for; Dask would write to the disk, or wait
            scheduler_kwargs=without,
            preload=[_DEAF],
            silence_logs=logging.CRITICAL,
        )
    with cluster:
        yield cluster


def _leave(client: Client) -> None:
    with suppress(OSError, TimeoutError, RuntimeError):
        client.close(timeout=2)


@contextmanager
def _ignoring(number: signal.Signals) -> Iterator[None]:
    """Start processes that do not hear a signal; only the main thread can."""
    try:
        before = signal.signal(number, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def carrying_out(client: Client) -> Dask:
    """Who carries out rounds on the workers of a client, and warns of those that may change bits."""

    def greet(workers: list[str]) -> None:
        for remark in compare(client, workers):
            warnings.warn(remark, stacklevel=2)

    return Dask(client, greet=greet)


def compare(client: Client, workers: list[str]) -> list[str]:
    """See that workers can do the work, and say what may change bits: other versions, or another kind of processor.

    Those that do not answer are not asked again; they may be gone already.

    Raises
    ------
    ConfigError
        A worker has another streamgd, or none.
    """
    try:
        found: Mapping[str, Any] = client.sync(
            client._run, described, workers=workers, on_error="return", callback_timeout=DESCRIBING
        )
    except UNHEARD:
        return []
    return differences(described(), found)


def differences(here: Mapping[str, str], workers: Mapping[str, Any]) -> list[str]:
    """What differs between this process and workers, which may make their weights differ in the last bits.

    Raises
    ------
    ConfigError
        A worker has another streamgd, or none.
    """
    remarks: dict[str, list[str]] = {}
    for address, there in workers.items():
        if isinstance(there, BaseException):
            raise ConfigError(
                f"worker {address} cannot run streamgd ({type(there).__name__}: {there}). Install streamgd "
                f"{here['streamgd']} where workers run, in the environment that starts them."
            )
        if there["streamgd"] != here["streamgd"]:
            raise ConfigError(
                f"worker {address} has streamgd {there['streamgd']}, and this process {here['streamgd']}: install the "
                f"same everywhere."
            )
        for name, value in there.items():
            if value != here[name]:
                remarks.setdefault(f"{name} {value} where this process has {here[name]}", []).append(address)
    return [
        f"{len(addresses)} of {len(workers)} workers ({addresses[0]}{', ...' if len(addresses) > 1 else ''}) have "
        f"{what}: a run elsewhere, or in which they take other parts, may differ in the last bits of its weights."
        for what, addresses in remarks.items()
    ]
