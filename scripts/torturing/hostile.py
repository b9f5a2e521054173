"""Hostile Parquet: samples of a directory, and seeded mutants of good shards, are read, trained on and predicted.

    python -m torturing.hostile [--samples DIR] [--mutants N] [--seed S] [--keep DIR]        (from scripts/)

Each case runs in a process of its own with little address space and little time. It must train, or raise an error
of streamgd that names the shard: no other exception, no crash, no hang, and no more memory than its limit.
A mutant is made again from its seed and number: --first N --mutants 1.

Starting Python and compiling kernels takes seconds, so each worker does that once and forks a child a case. Forking is
safe here since nothing of a worker runs in threads between cases: streamgd ends its threads with the job, OpenBLAS is
told to have none, and Arrow's pools, which nothing has used, are made anew in a child.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from .cases import (
    ENDINGS,
    FLAGS,
    QUIET,
    SECONDS,
    Case,
    attempt,
    check_arrays,
    fit,
    forked,
    predict,
    run_mutant,
    run_sample,
)
from .good_shards import TARGETS, Shard, good_shards
from .mutations import MUTATIONS, mutant


def serve(seed: int, seconds: float, keep: Path | None, samples: bool) -> None:
    """Read cases from standard input, a line each, and answer each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    shards = good_shards()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        good = {shard.name: scratch / f"{shard.name}.parquet" for shard in shards}
        models = _warm(shards, good, scratch, samples)
        gc.collect()
        gc.freeze()
        for line in sys.stdin:
            request, place = json.loads(line), scratch / "case"
            place.mkdir()
            if isinstance(request, int):
                made = mutant(shards, seed, request)
                case = Case(f"{seed}/{request}", made.kind, made.what, "")
                path = place / "mutant.parquet"
                path.write_bytes(made.data)
                work = partial(run_mutant, made, place, good, models)
                names = ["mutant.parquet", "first.parquet", "other.parquet"]
            else:
                path = Path(request)
                case = Case(request, "sample", path.name, "")
                work, names = partial(run_sample, path, place / "out"), [path.name]
            found = forked(partial(attempt, work, path, names), scratch / "errors", seconds)
            case = replace(case, **found | {"flags": tuple(found["flags"])})
            if keep is not None and case.bad:
                name = case.name.replace("/", "-") if isinstance(request, int) else path.name
                stem = f"{case.ending}-{name.removesuffix('.parquet')}"
                shutil.copy(path, keep / f"{stem}.parquet")
                (keep / f"{stem}.txt").write_text(f"{case.line()}\n\n{case.detail}\n")
            shutil.rmtree(place)
            print(json.dumps(asdict(case)), file=answers, flush=True)


def _warm(shards: Sequence[Shard], good: dict[str, Path], scratch: Path, samples: bool) -> dict[str, Any]:
    """Train and predict on all that is good, so that kernels are compiled and there are models of all targets."""
    models: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for shard, target in zip(shards, TARGETS * 3, strict=True):
            good[shard.name].write_bytes(shard.data)
            models[target] = fit(good[shard.name], target).model_
        for path in good.values():
            check_arrays(path)
            predict(path, models["y"], scratch / "out")
        if samples:  # may hold numbers only, strings only ...
            names = shards[0].columns
            for kept in (["double"], ["tag"], ["double", "tag"]):
                for target in set(TARGETS):
                    drop = [name for name in names if name not in (*kept, target, "label", "y")]
                    if kept != [target]:
                        fit(path, target, drop=drop)
    return models


@dataclass
class Outcome:
    """What became of all cases.

    Attributes
    ----------
    counts : Counter of (kind, ending)
        Cases; a flag counts as an ending too.
    errors : Counter of (ending, type)
        Exceptions and signals.
    offenders : list of Case
        Those that break a promise.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    offenders: list[Case] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Count a case."""
        self.counts.update((case.kind, what) for what in (case.ending, *case.flags))
        if case.error:
            self.errors[case.ending, case.error] += 1
        if case.bad:
            self.offenders.append(case)

    @property
    def total(self) -> int:
        """Number of cases."""
        return sum(n for (_, ending), n in self.counts.items() if ending in ENDINGS)

    def table(self) -> str:
        """Counts as Markdown, by kind of mutation."""
        names = (*ENDINGS, *FLAGS)
        lines = ["| kind | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        kinds = list(dict.fromkeys(kind for kind, _ in self.counts))
        for kind in sorted(kinds, key=["sample", *MUTATIONS].index):
            lines.append(f"| {kind} | " + " | ".join(str(self.counts[kind, name]) for name in names) + " |")
        sums = [sum(self.counts[kind, name] for kind in kinds) for name in names]
        lines.append("| **all** | " + " | ".join(f"**{n}**" for n in sums) + " |")
        return "\n".join(lines)


class _Worker:
    """A process that answers cases."""

    def __init__(self, seed: int, seconds: float, keep: Path | None, samples: Path | None) -> None:
        command = [sys.executable, "-m", "torturing.hostile", "--serve", "--seed", str(seed), "--seconds", str(seconds)]
        command += [] if keep is None else ["--keep", str(keep)]
        command += [] if samples is None else ["--samples", str(samples)]
        scripts = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": path},
        )

    def ask(self, request: int | str) -> Case:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"a worker ended at {request}, with exit code {self.process.wait()}")
        told = json.loads(answer)
        return Case(**told | {"flags": tuple(told["flags"])})


def run(
    samples: Path | None,
    mutants: int,
    seed: int,
    *,
    first: int = 0,
    seconds: float = SECONDS,
    keep: Path | None = None,
    processes: int = 2,
    progress: Callable[[int, Case], None] | None = None,
) -> Outcome:
    """Try all files of a directory, and mutants of good shards.

    A case has "trained" (and predicted), or ended in an error of streamgd ("typed"), in any other exception
    ("untyped"), by a signal ("crash"), or not in time ("hang").

    Parameters
    ----------
    samples : Path or None
        Directory whose files are tried, with all below it.
    mutants : int
        Number of mutants.
    seed : int
        Which mutants.
    first : int
        Number of the first mutant.
    seconds : float
        Time for a case.
    keep : Path, optional
        Directory where files that break a promise are kept, each with what happened.
    processes : int
        Workers, of which each trains with two threads.
    progress : callable, optional
        Told the number of cases done, and each case.

    Returns
    -------
    Outcome
        Counts and offenders.
    """
    files = [] if samples is None else sorted(str(path.resolve()) for path in samples.rglob("*") if path.is_file())
    requests: Iterator[int | str] = chain(files, range(first, first + mutants))
    outcome, lock = Outcome(), Lock()
    if keep is not None:
        keep = keep.resolve()
        keep.mkdir(parents=True, exist_ok=True)

    def work(worker: _Worker) -> None:
        while True:
            with lock:
                request = next(requests, None)
            if request is None:
                return
            case = worker.ask(request)
            with lock:
                outcome.add(case)
                if progress is not None:
                    progress(outcome.total, case)

    workers = [_Worker(seed, seconds, keep, samples) for _ in range(max(1, min(processes, len(files) + mutants)))]
    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(work, workers))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.communicate()
    outcome.offenders.sort(key=lambda case: (ENDINGS.index(case.ending), case.name))
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, metavar="DIR", help="try all files in it")
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first mutant")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for a case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep files that break a promise here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seed, options.seconds, options.keep, options.samples is not None)
        return 0

    def progress(done: int, case: Case) -> None:
        if case.bad:
            print(case.line(), flush=True)
        if done % 500 == 0:
            print(f"{done} cases", file=sys.stderr, flush=True)

    outcome = run(
        options.samples,
        options.mutants,
        options.seed,
        first=options.first,
        seconds=options.seconds,
        keep=options.keep,
        processes=options.processes,
        progress=progress,
    )
    print(outcome.table())
    for (ending, error), n in sorted(outcome.errors.items()):
        print(f"{n:6} {ending} {error}")
    print(f"{outcome.total} cases, {len(outcome.offenders)} of them break a promise")
    return int(bool(outcome.offenders))


if __name__ == "__main__":
    sys.exit(main())
