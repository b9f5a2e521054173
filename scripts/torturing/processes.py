"""A Dask scheduler and workers as processes of their own, as somebody would start them by hand, to be killed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

#: Seconds for a process to be there.
STARTING = 60.0
_DIE_WITH_PARENT = 1


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _with_parent() -> None:
    """End when who started it ends, however that does."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Processes:
    """A scheduler, and workers that come and go; all are gone when the block ends.

    Parameters
    ----------
    directory : Path
        Scratch space, and the logs.
    workers : int
        Workers to begin with, each with one thread.
    nanny : bool
        Whether each is started by a nanny, which starts it again when it dies.
    """

    def __init__(self, directory: Path, workers: int = 0, *, nanny: bool = False) -> None:
        self.directory = directory
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self._first, self._nanny, self._started = workers, nanny, 0
        # A process that dies with its parent dies with the thread that started it.
        self._launcher = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self.start_scheduler()
            self.add(self._first)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_scheduler(self) -> None:
        """Start the scheduler, always on the same port."""
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        end = time.monotonic() + STARTING
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
                return
            if self.scheduler.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the scheduler did not start: {self.log('scheduler')}")

    def add(self, n: int = 1) -> None:
        """Start workers."""
        options = ["--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard", "--memory-limit", "0"]
        options += ["--local-directory", str(self.directory), "--death-timeout", "30"]
        options += [] if self._nanny else ["--no-nanny"]
        self.workers += [self._start("worker", self.address, *options) for _ in range(n)]

    def pids(self) -> list[int]:
        """Processes of workers; of those with a nanny that of the worker itself."""
        running = self.running()
        return [child for pid in running for child in workers_below(pid)] if self._nanny else running

    def running(self) -> list[int]:
        """Processes that were started as workers, or as their nannies, and have not ended."""
        return [worker.pid for worker in self.workers if worker.poll() is None]

    def log(self, name: str) -> str:
        """What processes of a name have printed."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.directory.glob(f"{name}-*.log"))

    def close(self) -> None:
        """End all."""
        everybody = [*self.workers, *([self.scheduler] if self.scheduler else [])]
        for process in everybody:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in everybody:
            process.wait()
        self._launcher.shutdown()

    def _start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        return self._launcher.submit(self._launch, what, *options).result()

    def _launch(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        self._started += 1
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        with open(self.directory / f"{what}-{self._started}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + what, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_with_parent,
                env=environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
                cwd=self.directory,
            )


def workers_below(nanny: int) -> list[int]:
    """Processes that a nanny started, but for those that only look after others."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = path.read_text().partition(" (")
            if int(rest.rpartition(") ")[2].split()[1]) == nanny:
                command = path.with_name("cmdline").read_bytes()
                if b"spawn_main" in command:
                    found.append(int(pid))
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2].split()[0] != "Z"
