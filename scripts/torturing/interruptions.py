"""Interruptions: every mini-batch boundary, SIGKILL at any instant, SIGTERM and SIGINT.

Each must end with the weights of the run that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import streamgd
from streamgd.checkpointdir import CheckpointDirectory, load_checkpoint
from streamgd.errors import CheckpointError

from .jobs import SECONDS, CommandLineJob, result, write_shards
from .outcome import Outcome

#: Seconds within which a process that is asked to end must have kept what it learned.
PROMPT = 2.0
#: Options of the jobs that are killed: a mini-batch of one row is slow, and checkpoints are written all the time.
SLOW = ("--batch-size", "1", "--epochs", "3", "--window-rows", "60000", "--checkpoint-rows", "30000")


def every_boundary(scratch: Path, points: int = 2000, every: int = 1) -> Outcome:
    """Resume a run of three epochs at every mini-batch boundary, with and without a cache, on 1 to 3 threads."""
    rows = 10 * max(40, points // 3)
    data = write_shards(scratch / "rows", rows, shards=3, row_group_rows=rows // 20)
    settings = {"epochs": 3, "batch_size": 10, "window_rows": rows // 5}
    whole = streamgd.SGDClassifier(**settings).fit(str(data), "y").model_.sha256()
    archive, outcome = scratch / "archive", Outcome()
    archive.mkdir()
    _archiving(archive, lambda: _fit(data, scratch / "first", settings, checkpoint_rows=1))
    for number, file in enumerate(sorted(archive.iterdir())[::every]):
        kept = scratch / "kept"
        kept.mkdir()
        os.link(file, kept / file.name)
        threads, cache = 1 + number % 3, ("auto", None)[number // 3 % 2]
        found = _fit(data, kept, settings, resume=True, n_jobs=threads, cache=cache)
        outcome.count(
            "resume at a mini-batch boundary", None if found == whole else f"{file.name}, {threads} threads, {cache}"
        )
        shutil.rmtree(kept)
    return outcome


def _fit(data: Path, kept: Path, settings: dict[str, int], **more: object) -> str:
    model = streamgd.SGDClassifier(**settings, checkpoint=kept, **more).fit(str(data), "y").model_
    return str(model.sha256())


def _archiving(archive: Path, work: Callable[[], object]) -> None:
    """Do some work, all of whose checkpoints are kept."""
    save = CheckpointDirectory.save

    def save_and_keep(self: CheckpointDirectory, *args: object) -> Path:
        path = save(self, *args)  # type: ignore[arg-type]
        os.link(path, archive / path.name)
        return path

    CheckpointDirectory.save = save_and_keep  # type: ignore[method-assign]
    try:
        work()
    finally:
        CheckpointDirectory.save = save  # type: ignore[method-assign]


def undisturbed(scratch: Path, rows: int) -> tuple[CommandLineJob, object]:
    """A job for the command line, and its weights."""
    job = CommandLineJob(write_shards(scratch / "shards", rows), scratch / "checkpoints", SLOW[:-2])
    code, found, messages = result(job.start())
    if code != 0:
        raise RuntimeError(f"the job does not run: {messages}")
    return CommandLineJob(job.data, job.checkpoints, SLOW), found["weights_sha256"]


def newest(directory: Path) -> int:
    """Number of the newest checkpoint that is whole; 0 if there is none."""
    for path in sorted(directory.glob("checkpoint-*.safetensors"), reverse=True):
        try:
            load_checkpoint(path)
            return int(path.stem.split("-")[1])
        except (CheckpointError, FileNotFoundError):
            continue
    return 0


def kills(scratch: Path, times: int = 200, seed: int = 0, rows: int = 800_000) -> Outcome:
    """SIGKILL at random instants, one in four while a checkpoint is being written; then ``--resume``."""
    job, whole = undisturbed(scratch, rows)
    draw, outcome, done = random.Random(seed), Outcome(), 0
    while done < times:
        job.begin_anew()
        before = 0
        while True:
            process = job.resume()
            _await_checkpoint(job, process, before)
            if done < times:
                time.sleep(draw.random() * 0.5)
                if draw.random() < 0.5:  # some find none being written before the job ends
                    _await_writing(job, process)
                process.kill()
            code, found, messages = result(process)
            if code != -signal.SIGKILL:
                break
            done, now = done + 1, newest(job.checkpoints)
            instant = "while a checkpoint was being written" if writing(job.checkpoints) else "at any instant"
            lost = None if now >= max(1, before) else f"checkpoint {before} is lost, {now} is the newest"
            outcome.count(f"SIGKILL {instant}", lost)
            before = now
        right = code == 0 and found.get("weights_sha256") == whole
        outcome.count("job resumed to its end", None if right else f"exit code {code}, {found}: {messages[-500:]}")
    return outcome


def newest_name(directory: Path) -> int:
    """Number of the newest checkpoint, whole or not."""
    names = [path.stem for path in directory.glob("checkpoint-*.safetensors")] if directory.exists() else []
    return max((int(name.split("-")[1]) for name in names), default=0)


def writing(directory: Path) -> bool:
    """Whether a checkpoint is being written, or was when its writer died."""
    return any(name.startswith(".checkpoint-") for name in os.listdir(directory))


def _await_checkpoint(job: CommandLineJob, process: subprocess.Popen[str], before: int) -> None:
    """Wait for a checkpoint after number ``before``, or for the end."""
    _wait_for(lambda: newest_name(job.checkpoints) > before or process.poll() is not None)


def _await_writing(job: CommandLineJob, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint is being written, or for the end."""
    _wait_for(lambda: writing(job.checkpoints) or process.poll() is not None)


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.0002)


def signals(scratch: Path, times: int = 100, seed: int = 0, rows: int = 800_000) -> Outcome:
    """SIGTERM and SIGINT at random instants, once, twice or to the whole process group; then ``--resume``."""
    job, whole = undisturbed(scratch, rows)
    draw, outcome, done, slowest = random.Random(seed), Outcome(), 0, 0.0
    while done < times:
        job.begin_anew()
        before = 0
        while True:
            process = job.resume()
            _await_checkpoint(job, process, before)
            if done < times:
                time.sleep(draw.random() * 0.4)
                began = time.monotonic()
                kind = _ask_to_end(process, draw)
            code, found, messages = result(process)
            seconds = time.monotonic() - began
            if code == 0:
                break
            done, slowest = done + 1, max(slowest, seconds)
            now = newest(job.checkpoints)
            wrong = [
                f"exit code {code}" if code != 4 else "",
                f"{seconds:.1f} s" if seconds > PROMPT else "",
                f"checkpoint {now} after {before}" if now < max(1, before) else "",
                "" if "--resume" in messages else f"no word of --resume: {messages[-300:]}",
            ]
            outcome.count(kind, "; ".join(filter(None, wrong)) or None)
            before = now
        right = found.get("weights_sha256") == whole
        outcome.count("job resumed to its end", None if right else f"exit code {code}, {found}: {messages[-500:]}")
    outcome.notes.append(f"the slowest ended after {slowest:.2f} s")
    return outcome


def _ask_to_end(process: subprocess.Popen[str], draw: random.Random) -> str:
    """Send a signal, in one of the ways in which they come."""
    number = draw.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
    way = draw.choice(["once", "twice", "group"])
    for _ in range(2 if way == "twice" else 1):
        if way == "group" and process.poll() is None:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    name = signal.Signals(number).name
    return {"once": name, "twice": f"{name} twice", "group": f"{name} to the process group"}[way]
