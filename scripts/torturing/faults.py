"""Disks that fail: every file operation of everything that is saved fails in turn, and nothing that was there is hurt.

    python -m torturing.faults        (from scripts/)

What is saved is a model, a checkpoint, a shard of predictions and a kept cache. A first run counts the file operations
that this takes, then one run each lets one of them fail: in Python, in a library below it that sees what Arrow does as
well, and below the command line. Then disks really are full: a file may not be longer than so many bytes, a filesystem
in memory has no more room, and there is /dev/full.

After every failure the old files are as they were to the last byte, nothing else is there, and the error is an
OutputError; a cache is given up with a remark, and the weights are the same.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import streamgd as sg
from streamgd import tensorfile
from streamgd.atomic import replacing
from streamgd.data import predict
from streamgd.data.source import ParquetSource
from streamgd.errors import OutputError
from streamgd.features import Column, FeatureSpec
from streamgd.model import Model
from streamgd.modelfile import save_model

from .injection import Fault, Injector, below_python, compiled, in_python, preloaded
from .outcome import Outcome

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
ROWS = 300
CACHED = {"lock", "index.safetensors", "rows.bin", "texts.bin"}


@dataclass(frozen=True)
class Subject:
    """Something that is saved in a directory, in an old version (0) and a new one (1)."""

    name: str
    save: Callable[[Path, int], object]


def subjects(scratch: Path) -> tuple[Subject, ...]:
    """A model, a checkpoint, and predictions."""
    models, rows = _models(), _shards(scratch)

    def save_checkpoint(directory: Path, version: int) -> None:
        arrays = {"w": np.full(700_000, version, np.float32), "n": np.arange(5)}  # more than one write takes
        tensorfile.write(directory / "checkpoint", "key", {"version": version}, arrays)

    def save_predictions(directory: Path, version: int) -> None:
        predict.write_predictions(ParquetSource(rows), models[version], directory)

    return (
        Subject("model", lambda directory, version: save_model(models[version], directory / "model")),
        Subject("checkpoint", save_checkpoint),
        Subject("predictions", save_predictions),
    )


def _models() -> list[Model]:
    columns = [Column(f"x{j}", "number") for j in range(3)]
    spec = FeatureSpec.raw(columns).centred(np.zeros(3), np.ones(3))
    rest: dict[str, Any] = {"classes": [0, 1], "class_type": "int64", "scale": np.ones(3), "missing": np.zeros(3)}
    coefs = [np.full((1, 3), 0.5), np.full((1, 3), 1.5)]
    return [Model("classification", "log_loss", "y", spec, coef, np.zeros(1), **rest) for coef in coefs]


def _shards(scratch: Path) -> Path:
    """A directory with a shard of numbers and texts."""
    directory = scratch / "shards"
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    X, words = rng.normal(size=(ROWS, 3)), np.array(["red", "green", "blue"])
    table = {f"x{j}": X[:, j] for j in range(3)} | {"y": (X.sum(axis=1) > 0).astype(np.int8)}
    table["t"] = [" ".join(rng.choice(words, rng.integers(0, 4))) for _ in range(ROWS)]
    pq.write_table(pa.table(table), directory / "part.parquet", row_group_size=100)
    return directory


def every_operation(subject: Subject, injector: Injector, scratch: Path, errors: Sequence[int] = ERRORS) -> Outcome:
    """Let each operation of a save fail in turn: over old files, and where there is not even a directory."""
    outcome = Outcome()
    for old in (True, False):
        where = f"{subject.name}, {'over an old one' if old else 'where nothing was'}"
        for fault in (*(Fault(0, number) for number in errors), Fault(0, errno.ENOSPC, partial=True)):
            for fault in (replace(fault, at=at) for at in count(1)):
                directory = _new(scratch / "out")
                if old:
                    subject.save(directory, 0)
                before = contents(directory)
                with injector(directory, fault) as done:
                    error = _raised(subject, directory)
                    if done() < fault.at:  # the operations have come to their end
                        break
                told = _refused(error, before, contents(directory), fault.number)
                outcome.count(where, told and f"{fault}: {told}")
    return outcome


def every_operation_of_a_cache(injector: Injector, scratch: Path, errors: Sequence[int] = ERRORS) -> Outcome:
    """Let each operation of a job that keeps a cache fail in turn."""
    outcome, rows = Outcome(), _shards(scratch)

    def train(directory: Path | None) -> tuple[str, list[str]]:
        """Weights, and what was remarked."""
        cache = None if directory is None else str(directory)
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            job = sg.SGDClassifier(epochs=2, window_rows=200, text=("t",), polish=0, cache=cache)
            weights = job.fit(rows, "y").model_.sha256()
        return weights, [str(remark.message) for remark in remarks if "cache" in str(remark.message)]

    expected, _ = train(None)
    for number in errors:
        for fault in (Fault(at, number, partial=at % 2 == 0) for at in count(1)):
            directory, told, weights, remarks = _new(scratch / "out") / "kept", None, "", [""]
            with injector(directory, fault) as done:
                try:
                    weights, remarks = train(directory)
                except Exception as raised:
                    told = f"it ended with {type(raised).__name__}: {raised}"
                if done() < fault.at:
                    break
            left = set(contents(directory))
            if told is None and weights != expected:
                told = "the weights are others"
            if not remarks and left != CACHED:  # a file that is flushed may fail to be closed
                told = told or "there is no remark"
            if more := left - CACHED:
                told = told or f"it left {', '.join(sorted(more))}"
            if {train(directory)[0] for _ in range(2)} != {expected}:
                told = told or "the weights are others when the directory is used again"
            outcome.count("kept cache", told and f"{fault}: {told}")
    return outcome


def short_files(subject: Subject, scratch: Path, steps: int = 40) -> Outcome:
    """Save where no file may be longer than so many bytes (SIGXFSZ, which Python ignores)."""
    outcome, whole = Outcome(), _whole(subject, scratch)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(map(len, whole.values()))
    for most in sorted({*range(10), *np.linspace(0, size, steps, dtype=int).tolist(), size - 1}):
        directory = _new(scratch / "out")
        subject.save(directory, 0)
        before = contents(directory)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            error = _raised(subject, directory)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        told = _all_or_nothing(error, before, contents(directory), whole)
        outcome.count(f"{subject.name}, short files", told and f"{most} of {size} bytes: {told}")
    return outcome


def full_disk(subject: Subject, disk: Path, scratch: Path) -> Outcome:
    """Save on a small filesystem that has less and less room."""
    outcome, whole = Outcome(), _whole(subject, scratch)
    needed = sum(map(len, whole.values())) // os.statvfs(disk).f_frsize + 2
    for room in range(needed + 2):
        directory, filler = _new(disk / "out"), disk / "filler"
        filler.unlink(missing_ok=True)
        subject.save(directory, 0)
        before, status = contents(directory), os.statvfs(disk)
        filler.write_bytes(bytes(max(0, status.f_bavail - room) * status.f_frsize))
        told = _all_or_nothing(_raised(subject, directory), before, contents(directory), whole)
        outcome.count(f"{subject.name}, full disk", told and f"{room} free blocks: {told}")
    return outcome


def dev_full(scratch: Path) -> Outcome:
    """Write to the device that fails as a full disk does."""
    outcome, device, out = Outcome(), Path("/dev/full"), _new(scratch / "out")
    schema = pa.schema([("prediction", pa.float64())])
    batch = pa.RecordBatch.from_arrays([pa.array(np.random.default_rng(0).normal(size=100_000))], schema=schema)

    def write_bytes(path: Path) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(b"x")

    def write_rows(path: Path) -> None:
        with predict._writer(path, schema) as writer:
            writer.write_batch(batch)

    for name, write in (("bytes", write_bytes), ("rows", write_rows)):
        error: Exception | None = None
        try:
            with replacing(out / name):
                write(device)
        except Exception as raised:
            error = raised
        outcome.count(f"/dev/full, {name}", _refused(error, {}, contents(out), errno.ENOSPC))
    return outcome


def command_line(library: Path, scratch: Path, faults: Iterable[Fault] | None = None) -> Outcome:
    """Run ``streamgd train`` and ``streamgd predict`` with an operation that fails."""
    outcome, rows, out = Outcome(), _shards(scratch), _new(scratch / "commands")
    out.mkdir()
    train = ["train", rows, "--target", "y", "--drop", "t", "--model", out / "model", "--cache", "none"]
    score = ["predict", scratch / "a-model", rows, "--out", out / "scores", "--keep", "t"]
    save_model(_models()[0], scratch / "a-model")
    for name, command in (("streamgd train", train), ("streamgd predict", score)):
        done = _streamgd(command, dict(os.environ))
        if done.returncode != 0:
            outcome.count(name, f"it does not work: {done.stderr}")
            continue
        before = contents(out)
        for fault in faults if faults is not None else (Fault(at, errno.ENOSPC, at % 2 == 0) for at in count(1)):
            done = _streamgd(command, preloaded(library, out, fault))
            if done.returncode == 0:
                break
            told = None
            if contents(out) != before:
                told = "what was there is not as it was"
            elif done.returncode != 1 or json.loads(done.stdout or "{}").get("error") != "OutputError":
                told = f"exit code {done.returncode}, {done.stdout}"
            elif "Traceback" in done.stderr or "Exception ignored" in done.stderr:
                told = done.stderr
            outcome.count(name, told and f"{fault}: {told}")
    return outcome


def _streamgd(arguments: Sequence[object], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamgd", *map(str, arguments), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def contents(directory: Path) -> dict[str, bytes]:
    """Files below a directory."""
    found = (path for path in directory.rglob("*") if not path.is_dir())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def _new(directory: Path) -> Path:
    """A directory that is not there yet, or not any more."""
    if directory.exists():
        shutil.rmtree(directory)
    return directory


def _whole(subject: Subject, scratch: Path) -> dict[str, bytes]:
    directory = _new(scratch / "whole")
    subject.save(directory, 1)
    return contents(directory)


def _raised(subject: Subject, directory: Path) -> Exception | None:
    try:
        subject.save(directory, 1)
    except Exception as error:
        return error
    return None


def _refused(
    error: Exception | None, before: dict[str, bytes], after: dict[str, bytes], number: int | None = None
) -> str | None:
    """What is wrong about a save that had to fail."""
    if after != before:
        changed = sorted({name for name in {*before, *after} if before.get(name) != after.get(name)})
        return f"{', '.join(changed)} is not as it was, after {error!r}"
    if not isinstance(error, OutputError) or error.replaced:
        return f"it ended with {error!r}"
    # Of a file that it cannot close Arrow does not tell why.
    if number is not None and (error.errno != number or os.strerror(number) not in str(error)):
        return None if "closing file" in str(error) else f"it was told as {error}"
    return None


def _all_or_nothing(
    error: Exception | None, before: dict[str, bytes], after: dict[str, bytes], whole: dict[str, bytes]
) -> str | None:
    if error is not None:
        return _refused(error, before, after)
    return None if after == whole else "what was saved is not whole"


def in_child(what: str, scratch: Path, environment: dict[str, str] | None = None) -> Outcome:
    """Do one of the things that need a process of their own: ``native``, ``short`` or ``full``."""
    own = scratch / what
    (own / "disk").mkdir(parents=True)
    prefix: list[str] = []
    if what == "full":
        # A mount namespace, so that the filesystem is gone with the process.
        mount = f'mount -t tmpfs -o size=8m tmpfs "{own}/disk" && exec "$0" "$@"'
        prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
        if (
            not shutil.which("unshare")
            or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
        ):
            return Outcome(skipped=["no filesystem may be mounted here: no disk was really full"])
    done = subprocess.run(
        [*prefix, sys.executable, "-m", __spec__.name, "--child", what, str(own)],
        env=environment,
        cwd=Path(__file__).resolve().parents[__spec__.name.count(".")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return Outcome(failures=[f"{what}: the process ended with {done.returncode}: {done.stderr[-2000:]}"])
    return Outcome(**json.loads(done.stdout))


def _child(what: str, scratch: Path) -> Outcome:
    outcome, some = Outcome(), subjects(scratch)
    for subject in some:
        subject.save(_new(scratch / "warm"), 1)  # kernels are compiled
    for subject in some:
        if what == "native":
            outcome.add(every_operation(subject, below_python, scratch))
        elif what == "short":
            outcome.add(short_files(subject, scratch))
        else:
            outcome.add(full_disk(subject, scratch / "disk", scratch))
    if what == "native":
        outcome.add(every_operation_of_a_cache(below_python, scratch, ERRORS[:1]))
    return outcome


def run(*, cli: bool = True) -> Outcome:
    """All of it; the command line, which takes seconds a fault, only if wanted."""
    with tempfile.TemporaryDirectory(prefix="streamgd-faults-") as name:
        outcome, scratch = Outcome(), Path(name)
        for subject in subjects(scratch):
            outcome.add(every_operation(subject, in_python, scratch))
        outcome.add(every_operation_of_a_cache(in_python, scratch))
        outcome.add(dev_full(scratch))
        outcome.add(in_child("short", scratch))
        outcome.add(in_child("full", scratch))
        if (library := compiled(scratch)) is None:
            outcome.skipped.append("there is no C compiler (cc): what Arrow does when a write fails was not seen")
            return outcome
        outcome.add(in_child("native", scratch, preloaded(library)))
        if cli:
            outcome.add(command_line(library, scratch))
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, directory = arguments.child
        print(json.dumps(asdict(_child(what, Path(directory)))))
        return
    outcome = run()
    print(outcome)
    sys.exit(bool(outcome.failures))


if __name__ == "__main__":
    main()
