"""One case: a file is read, trained on and predicted in a child with little address space and little time."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import pyarrow as pa

import streamgd as sg
from streamgd.data.buffers import is_number
from streamgd.data.columns import is_string, is_time, is_vector
from streamgd.data.predict import write_predictions
from streamgd.data.source import ParquetSource
from streamgd.errors import (
    AllNullTarget,
    DataError,
    EmptyData,
    MissingColumn,
    SingleClass,
    StreamgdError,
    TargetError,
    TooManyClasses,
    UnusableColumns,
)

from .good_shards import ROLES
from .mutations import Mutant

ADDRESS_SPACE, MEMORY_LIMIT, SECONDS = 2 << 30, 700_000_000, 10.0
ENDINGS = ("trained", "typed", "untyped", "crash", "hang")
FLAGS = ("unnamed", "memory", "unsound")
#: Errors about the whole of the data, or about the first shard's schema, which is that of all.
ABOUT_ALL = (AllNullTarget, SingleClass, TooManyClasses, MissingColumn, UnusableColumns, EmptyData)
#: For workers: the interpreter's threads are all there are, and Arrow does not reserve 1 GiB of addresses at once.
QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MIMALLOC_ARENA_RESERVE": "65536"}


def _estimator(classes: bool, **columns: Any) -> Any:
    kind = sg.SGDClassifier if classes else sg.SGDRegressor
    return kind(epochs=1, polish=0, n_jobs=2, cache=None, memory_limit=MEMORY_LIMIT, **columns)


def fit(path: Path, target: str, weight: str | None = None, drop: Sequence[str] = ()) -> Any:
    drop = [*drop, *({"label", "y"} - {target})]
    kept = {name: [one for one in names if one not in drop] for name, names in ROLES.items()}
    return _estimator(target != "y", drop=drop, **kept).fit(str(path), target, weight)


def predict(path: Path, model: Any, out: Path) -> None:
    write_predictions(ParquetSource(str(path), n_jobs=2), model, out, keep=["word", "price", "tag", "list"], n_jobs=2)


def run_mutant(made: Mutant, place: Path, good: dict[str, Path], models: dict[str, Any]) -> None:
    path = place / "mutant.parquet"
    if made.job == "predict":
        predict(path, models[made.target], place / "out")
    else:
        if made.job != "train":
            name = "first.parquet" if made.job == "train, good first" else "other.parquet"
            os.link(good[made.beside.name], place / name)
        fit(path if made.job == "train" else place, made.target, made.weight)


def run_sample(path: Path, out: Path) -> None:
    """Read every column by itself, then train with one of the first columns as the target, and predict."""
    source = ParquetSource(str(path), n_jobs=2)
    errors: list[StreamgdError] = []
    broken: set[str] = set()
    for name in source.schema.names:
        try:
            for row_group in range(source.manifest.n_row_groups):
                source.open(row_group, [name], 1024).finish()
        except StreamgdError as error:
            errors.append(error)
            broken.add(name)
    fields = [one for one in source.schema if one.name not in broken]
    times = [one.name for one in fields if is_time(one.type)]
    usable = [one.name for one in fields if is_number(one.type) or is_string(one.type)]
    vectors = [one.name for one in fields if is_vector(one.type)]
    for target, classes in ((target, classes) for target in usable[:4] for classes in (True, False)):
        for features in ([*usable, *times, *vectors], usable, [target, *usable[:3]]):
            drop = [name for name in source.schema.names if name not in features]
            calendar = [name for name in times if name in features]
            try:
                fitted = _estimator(classes, drop=drop, calendar=calendar).fit(str(path), target)
                write_predictions(source, fitted.model_, out, n_jobs=2)
            except TargetError as error:
                errors.append(error)
                break
            except StreamgdError as error:
                errors.append(error)
            else:
                return
    raise errors[0] if errors else TargetError(f"no column of {path.name} can be a target")


def check_arrays(path: Path) -> None:
    """Read all that a job reads, and raise ArrowInvalid if an array refers to what is not there.

    Kernels trust such numbers. Bytes that are no UTF-8 and decimals of too many digits do no harm.
    """
    source: Any = ParquetSource(str(path), n_jobs=2)
    hashed = [one.name for one in source.schema if is_string(one.type) and one.name not in ROLES["text"]]
    source = source.with_dictionaries(hashed)
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, source.schema.names, 1024)
        for column in (column for batch in reader.read(reader.rows) for column in batch.columns):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                if "UTF8" not in str(error) and "precision" not in str(error):
                    raise


@dataclass(frozen=True)
class Case:
    """What became of a file.

    Attributes
    ----------
    name : str
        Seed and number of a mutant, name of a sample.
    kind, what : str
        Mutation, and its details.
    ending : {"trained", "typed", "untyped", "crash", "hang"}
        See `run`.
    error : str
        Type of the exception, or the signal.
    detail : str
        Message, traceback, or what was on standard error.
    flags : tuple of str
        "unnamed" if a `DataError` names no shard; "memory" if more was taken than the limit, or asked for than there
        was; "unsound" if it trained though arrays refer to what is not there.
    seconds, peak : float, int
        Time, and largest resident memory in bytes.
    """

    name: str
    kind: str
    what: str
    ending: str
    error: str = ""
    detail: str = ""
    flags: tuple[str, ...] = ()
    seconds: float = 0.0
    peak: int = 0

    @property
    def bad(self) -> bool:
        """Whether it breaks a promise."""
        return self.ending not in ("trained", "typed") or bool(self.flags)

    def line(self) -> str:
        """Short form."""
        told = self.detail.strip().splitlines() or [""]
        last = told[-1] if self.ending == "untyped" else told[0]
        flags = f" ({', '.join(self.flags)})" if self.flags else ""
        peak = f"{self.seconds:.1f} s, {self.peak / 1e6:.0f} MB"
        return f"{self.name} {self.kind}: {self.what}\n    {self.ending}{flags}, {peak}, {self.error}: {last[:300]}"


def attempt(work: Callable[[], None], path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Do the work and say how it ended."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except StreamgdError as error:
        flags, cause = [], error.__cause__ or error.__context__
        if isinstance(error, DataError) and not isinstance(error, ABOUT_ALL):
            flags += [] if any(name in str(error) for name in names) else ["unnamed"]
        if isinstance(cause, MemoryError) or "bad_alloc" in str(error):
            flags.append("memory")
        return {"ending": "typed", "error": type(error).__name__, "detail": str(error), "flags": flags}
    except BaseException as error:
        flags = ["memory"] if isinstance(error, MemoryError) else []
        return {"ending": "untyped", "error": type(error).__name__, "detail": traceback.format_exc(), "flags": flags}
    try:
        check_arrays(path)
    except pa.ArrowInvalid as error:
        return {"ending": "trained", "detail": str(error), "flags": ["unsound"]}
    except StreamgdError:  # in a column that the job did not need
        pass
    return {"ending": "trained"}


def _child(work: Callable[[], dict[str, Any]], pipe: int, errors: Path, seconds: float) -> NoReturn:
    """Run in a forked process: never return to the loop of the worker."""
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), 2)
        faulthandler.enable()
        faulthandler.dump_traceback_later(0.95 * seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
        told = work()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        text = json.dumps(told).encode()
        while text:
            text = text[os.write(pipe, text) :]
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def forked(work: Callable[[], dict[str, Any]], errors: Path, seconds: float) -> dict[str, Any]:
    """Run work in a child; how it ended, or how the child did."""
    began, told = monotonic(), b""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        _child(work, write, errors, seconds)
    os.close(write)
    hung = True
    while hung and select.select([read], [], [], max(0.0, began + seconds - monotonic()))[0]:
        part = os.read(read, 1 << 16)
        told, hung = told + part, bool(part)
    os.close(read)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    found: dict[str, Any] = {"seconds": monotonic() - began, "peak": usage.ru_maxrss * 1024, "flags": []}
    if hung:
        cpu = usage.ru_utime + usage.ru_stime
        found |= {"ending": "hang", "error": f"{cpu:.1f} s of CPU"}
    elif told:
        found |= json.loads(told)
    else:
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
        found |= {"ending": "crash", "error": ended}
    if "detail" not in found and found["ending"] != "trained":
        found["detail"] = errors.read_text(errors="replace")[-8000:] if errors.exists() else ""
    if found["peak"] > MEMORY_LIMIT and "memory" not in found["flags"]:
        found["flags"].append("memory")
    return found
