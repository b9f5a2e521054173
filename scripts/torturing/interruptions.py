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
from dataclasses import dataclass
from pathlib import Path

import streamgd
from streamgd.checkpointdir import CheckpointDirectory, find_checkpoint, number_of
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
    try:
        saved = find_checkpoint(directory)
    except CheckpointError:
        return 0
    return 0 if saved is None else number_of(saved.path)


def newest_name(directory: Path) -> int:
    """Number of the newest checkpoint, whole or not."""
    return max(map(number_of, directory.iterdir()), default=0) if directory.exists() else 0


@dataclass(frozen=True)
class Ended:
    """How a process ended that was disturbed: its code and messages, when, and the newest checkpoint before and now."""

    code: int
    messages: str
    seconds: float
    before: int
    now: int


def disturbed(
    scratch: Path,
    times: int,
    rows: int,
    disturb: Callable[[CommandLineJob, subprocess.Popen[str]], tuple[str, float]],
    judge: Callable[[CommandLineJob, str, Ended], tuple[str, str | None] | None],
) -> Outcome:
    """Disturb running jobs, and resume each until it is done.

    Parameters
    ----------
    scratch : Path
        Where to write.
    times : int
        How many processes to disturb.
    rows : int
        Of the data.
    disturb : callable
        Does so, and returns how and when (`time.monotonic`).
    judge : callable
        Given how, returns the name of the case and what went wrong, if anything; None if the job came to its end.
    """
    job, whole = undisturbed(scratch, rows)
    outcome, done, kind, began = Outcome(), 0, "", 0.0
    while done < times:
        job.begin_anew()
        before = 0
        while True:
            process = job.resume()
            _wait_for(process, lambda before=before: newest_name(job.checkpoints) > before)
            if done < times:
                kind, began = disturb(job, process)
            code, found, messages = result(process)
            ended = Ended(code, messages, time.monotonic() - began, before, newest(job.checkpoints))
            if (case := judge(job, kind, ended)) is None:
                break
            outcome.count(*case)
            done, before = done + 1, ended.now
        right = code == 0 and found.get("weights_sha256") == whole
        outcome.count("job resumed to its end", None if right else f"exit code {code}, {found}: {messages[-500:]}")
    return outcome


def kills(scratch: Path, times: int = 200, seed: int = 0, rows: int = 800_000) -> Outcome:
    """SIGKILL at random instants, one in four while a checkpoint is being written; then ``--resume``."""
    draw = random.Random(seed)

    def disturb(job: CommandLineJob, process: subprocess.Popen[str]) -> tuple[str, float]:
        time.sleep(draw.random() * 0.5)
        if draw.random() < 0.5:  # some find none being written before the job ends
            _wait_for(process, lambda: writing(job.checkpoints))
        process.kill()
        return "SIGKILL", time.monotonic()

    def judge(job: CommandLineJob, kind: str, ended: Ended) -> tuple[str, str | None] | None:
        if ended.code != -signal.SIGKILL:
            return None
        instant = "while a checkpoint was being written" if writing(job.checkpoints) else "at any instant"
        kept = ended.now >= max(1, ended.before)
        lost = None if kept else f"checkpoint {ended.before} is lost, {ended.now} is the newest"
        return f"{kind} {instant}", lost

    return disturbed(scratch, times, rows, disturb, judge)


def writing(directory: Path) -> bool:
    """Whether a checkpoint is being written, or was when its writer died."""
    return any(name.startswith(".checkpoint-") for name in os.listdir(directory))


def _wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for something, or for the end of a process."""
    end = time.monotonic() + SECONDS
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0002)


def signals(scratch: Path, times: int = 100, seed: int = 0, rows: int = 800_000) -> Outcome:
    """SIGTERM and SIGINT at random instants, once, twice or to the whole process group; then ``--resume``."""
    draw, seconds = random.Random(seed), [0.0]

    def disturb(_: CommandLineJob, process: subprocess.Popen[str]) -> tuple[str, float]:
        time.sleep(draw.random() * 0.4)
        began = time.monotonic()
        return _ask_to_end(process, draw), began

    def judge(_: CommandLineJob, kind: str, ended: Ended) -> tuple[str, str | None] | None:
        if ended.code == 0:
            return None
        seconds.append(ended.seconds)
        wrong = [
            f"exit code {ended.code}" if ended.code != 4 else "",
            f"{ended.seconds:.1f} s" if ended.seconds > PROMPT else "",
            f"checkpoint {ended.now} after {ended.before}" if ended.now < max(1, ended.before) else "",
            "" if "--resume" in ended.messages else f"no word of --resume: {ended.messages[-300:]}",
        ]
        return kind, "; ".join(filter(None, wrong)) or None

    outcome = disturbed(scratch, times, rows, disturb, judge)
    outcome.notes.append(f"the slowest ended after {max(seconds):.2f} s")
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
