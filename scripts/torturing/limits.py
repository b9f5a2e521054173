"""Hard limits: data of many times the memory limit, where the operating system grants no more than that.

    python -m torturing.limits [--limit 1GB] [--group-limit 520MB] [--times 20] [--scratch DIR] [--short]

(from scripts/)

28 float32 columns of noise, as large on disk as in memory, are trained on for two epochs with checkpoints, and
predicted, first under a limit of the address space (RLIMIT_AS), then in a control group, each equal to --memory-limit.
Jobs must end, with all rows, and stay below the limit. Then small data under address-space limits from 16 MB up: every
one must end with a result or with an error that says what would do, and none may hang or crash.

A control group is made below the one of this process, if that is allowed (as root, mostly).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamgd.memory import format_bytes, parse_bytes

from .outcome import Outcome

#: Rows a shard, in row groups of 65,536: 119 MB.
SHARD_ROWS = 1 << 20
#: The least round limits under which 28 float32 columns in such row groups train.
LEAST_ADDRESS_SPACE, LEAST_GROUP = 1_000_000_000, 520_000_000
#: Seconds for a job on small data; a gigabyte more takes so many more, on a slow disk.
SECONDS, SECONDS_A_GIGABYTE = 120, 60
#: Errors that say that there is too little memory.
TYPED = ("MemoryLimitError", "OutOfMemory")


@dataclass(frozen=True)
class Group:
    """A control group of its own for a command.

    Attributes
    ----------
    path : Path
        Its directory.
    peak : Path
        The file that tells the most it took, page cache and all.
    """

    path: Path
    peak: Path

    def enter(self) -> None:
        """Move this process into it."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes
    ----------
    code : int or None
        Its return code; None if it had to be killed since it did not end.
    result : dict
        The JSON object that it printed.
    messages : str
        The end of what it said.
    mapped : int
        The most address space that was seen.
    seconds : float
        Time from its start to its end.
    """

    code: int | None
    result: dict[str, Any]
    messages: str
    mapped: int
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether it said in words that there is too little memory."""
        return self.code == 2 and self.result.get("error") in TYPED

    def __str__(self) -> str:
        how = "did not end" if self.code is None else f"return code {self.code}"
        return f"{how} after {self.seconds:.1f} s, {self.result.get('message') or self.messages!r}"


def make_shards(directory: Path, size: int, shard_rows: int = SHARD_ROWS) -> int:
    """Write shards of noise of so many bytes in all; return their rows.

    The second and later shards are copies of the first, which no cache knows.
    """
    directory.mkdir(parents=True)
    rng, first = np.random.default_rng(0), directory / "part-0000.parquet"
    columns: dict[str, Any] = {f"x{j}": rng.normal(size=shard_rows).astype(np.float32) for j in range(28)}
    columns["y"] = (columns["x0"] - columns["x1"] + rng.logistic(size=shard_rows) > 0).astype(np.int8)
    pq.write_table(pa.table(columns), first, row_group_size=65_536, use_dictionary=False)
    shards = max(1, -(-size // first.stat().st_size))
    for shard in range(1, shards):
        shutil.copyfile(first, directory / f"part-{shard:04d}.parquet")
    return shards * shard_rows


def address_space(limit: int) -> Callable[[], None]:
    """What limits the address space of the process that calls it."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def group(limit: int) -> Iterator[Group | None]:
    """A control group below that of this process, of so many bytes and without swap; None if none can be made."""
    made, peak = None, ""
    try:
        for mount, below, most, swap, peak in _controllers():  # noqa: B007  # used below
            made = mount / below / f"streamgd-{os.getpid()}"
            made.mkdir()
            if (made / most).exists():
                (made / most).write_text(str(limit))
                if (made / swap).exists():
                    (made / swap).write_text(str(limit) if swap.endswith("memsw.limit_in_bytes") else "0")
                break
            made.rmdir()
            made = None
    except OSError:
        if made is not None and made.exists():
            made.rmdir()
        made = None
    try:
        yield None if made is None else Group(made, made / peak)
    finally:
        if made is not None:
            made.rmdir()


def _controllers() -> Iterator[tuple[Path, str, str, str, str]]:
    """Where groups of memory are: mount, this process's group, and the names of the limits and of the peak."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes"
            yield Path("/sys/fs/cgroup/memory"), path.lstrip("/"), *names
        elif not controllers:
            yield Path("/sys/fs/cgroup"), path.lstrip("/"), "memory.max", "memory.swap.max", "memory.peak"


def run_limited(
    arguments: Sequence[object], limit: Callable[[], None], scratch: Path, seconds: float = SECONDS
) -> Ended:
    """Run ``streamgd`` with arguments in a process that ``limit`` is called in first."""

    def begin() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit()

    command = [sys.executable, "-m", "streamgd", *map(str, arguments), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    began, mapped = time.monotonic(), 0
    with (scratch / "out").open("w+") as out, (scratch / "err").open("w+") as err:
        # Into files, not pipes: nobody reads while it is watched.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, preexec_fn=begin
        )
        code = None
        try:
            while (code := process.poll()) is None and time.monotonic() < began + seconds:
                mapped = max(mapped, _address_space_of(process.pid))
                time.sleep(0.02)
        finally:
            if code is None:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        printed, messages = out.read(), err.read()
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return Ended(code, json.loads(lines[-1]) if lines else {}, messages[-500:], mapped, time.monotonic() - began)


def _address_space_of(process: int) -> int:
    """The most bytes that a process has mapped so far; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak:")), 0)


def larger_than_memory(
    data: Path, rows: int, limit: int, enter: Callable[[], None], scratch: Path, *, name: str, seconds: float
) -> Outcome:
    """Train two epochs with checkpoints, and predict, in a process that may take ``limit`` bytes."""
    outcome, model, predicted = Outcome(), scratch / "model", scratch / "predicted"
    memory = ["--memory-limit", f"{limit}B"]
    jobs = {
        "train": [
            *("train", data, "--target", "y", "--epochs", "2", "--model", model, *memory),
            *("--checkpoint", scratch / "checkpoints", "--checkpoint-seconds", "2"),
        ],
        "predict": ["predict", model, data, "--out", predicted, *memory],
    }
    for job, arguments in jobs.items():
        ended, wrong = run_limited(arguments, enter, scratch, seconds), []
        peak, seen = ended.result.get("peak_rss_bytes", 0), ended.result.get("rows")
        if ended.code != 0:
            wrong.append(str(ended))
        elif seen != rows * (2 if job == "train" else 1):
            wrong.append(f"{seen} rows instead of {rows} an epoch")
        elif not 0 < peak <= limit:
            wrong.append(f"a peak of {format_bytes(peak)}")
        what = f"{job}, {name}"
        outcome.count(what, "; ".join(wrong) or None)
        if ended.code == 0:
            outcome.notes.append(
                f"{what} of {format_bytes(limit)}: peak {format_bytes(peak)} resident, {format_bytes(ended.mapped)} "
                f"mapped, {ended.seconds:.0f} s"
            )
    if predicted.exists():
        found = sum(pq.read_metadata(path).num_rows for path in predicted.iterdir())
        outcome.count(f"predictions, {name}", None if found == rows else f"{found} rows instead of {rows}")
    shutil.rmtree(predicted, ignore_errors=True)
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    return outcome


def every_limit(data: Path, limits: Sequence[int], scratch: Path) -> Outcome:
    """Train, measure and predict under each of these limits of the address space."""
    outcome, model, done = Outcome(), scratch / "small-model", []
    train = ["train", data, "--target", "y", "--epochs", "1", "--cache", "none"]
    trained = run_limited([*train, "--model", model], lambda: None, scratch)
    outcome.count("no limit", None if trained.code == 0 else str(trained))
    jobs = {
        "train": train,
        "evaluate": ["evaluate", model, data],
        "predict": ["predict", model, data, "--out", scratch / "p"],
    }
    for limit in sorted(limits):
        for job, arguments in jobs.items():
            ended = run_limited([*arguments, "--memory-limit", f"{limit}B"], address_space(limit), scratch)
            fine = ended.code == 0 or ended.refused
            outcome.count(f"{job}, small address spaces", None if fine else f"{format_bytes(limit)}: {ended}")
            if job == "train" and ended.code == 0:
                done.append(limit)
            elif job == "train" and done:
                outcome.count(
                    "larger limits", f"{format_bytes(limit)} does not do, {format_bytes(done[0])} did: {ended}"
                )
    if done:
        outcome.notes.append(f"the least address space tried that trains: {format_bytes(done[0])}")
    shutil.rmtree(scratch / "p", ignore_errors=True)
    return outcome


def run(
    scratch: Path,
    *,
    short: bool = False,
    limit: int = LEAST_ADDRESS_SPACE,
    group_limit: int = LEAST_GROUP,
    times: float = 20,
) -> Outcome:
    """All of it; the short form has data of a quarter of the limit, and few limits.

    Parameters
    ----------
    scratch : Path
        An empty directory on a disk with room for twice the data, as the second epoch is read from a cache.
    short : bool
        Whether to do a little of it.
    limit, group_limit : int
        The limits of the address space and of the control group in bytes.
    times : float
        How many times as large as ``limit`` the data are.
    """
    outcome = Outcome()
    times = 0.25 if short else times
    if (room := shutil.disk_usage(scratch).free / 2.5) < limit * times:
        outcome.skipped.append(f"there is room for data of {room / limit:.1f} times the limit only")
        times = room / limit
    data = scratch / "data"
    rows = make_shards(data, int(limit * times), SHARD_ROWS >> 2 if short else SHARD_ROWS)
    seconds = SECONDS + SECONDS_A_GIGABYTE * limit * times / 1e9
    name = f"data of {times:.3g} × the limit, address space"
    outcome.add(larger_than_memory(data, rows, limit, address_space(limit), scratch, name=name, seconds=seconds))
    with group(group_limit) as made:
        if made is None:
            outcome.skipped.append("no control group may be made here")
        else:
            name = f"data of {times * limit / group_limit:.3g} × the limit, control group"
            outcome.add(larger_than_memory(data, rows, group_limit, made.enter, scratch, name=name, seconds=seconds))
            if made.peak.exists():
                most = format_bytes(int(made.peak.read_text()))
                outcome.notes.append(f"the control group took {most} at most, with the page cache")
    shutil.rmtree(data)
    small = scratch / "small"
    make_shards(small, 1, 1 << 17)
    step = 128_000_000 if short else 16_000_000
    outcome.add(every_limit(small, range(16_000_000, int(1.3 * LEAST_ADDRESS_SPACE), step), scratch))
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default=f"{LEAST_ADDRESS_SPACE // 10**6}MB")
    parser.add_argument("--group-limit", default=f"{LEAST_GROUP // 10**6}MB")
    parser.add_argument("--times", type=float, default=20)
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where the data are made; a temporary directory")
    parser.add_argument("--short", action="store_true", help="a little of it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamgd-limits-", dir=options.scratch) as scratch:
        sizes = {"limit": parse_bytes(options.limit), "group_limit": parse_bytes(options.group_limit)}
        outcome = run(Path(scratch), short=options.short, times=options.times, **sizes)
    print(outcome)
    sys.exit(bool(outcome.failures))


if __name__ == "__main__":
    main()
