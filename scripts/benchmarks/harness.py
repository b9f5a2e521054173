"""Contenders run in turn in every round, so that a machine that changes its speed changes it for all."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

#: What --only names; pyarrow's scans always run.
FAMILIES = ("streamgd", "sklearn", "vw", "river")


@dataclass(frozen=True)
class Sample:
    """One measurement: what took how long for how many rows, and of which parts that consists."""

    name: str
    rows: int
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """What runs in turn with others; a run may give several samples. Its first run is not counted."""

    family: str
    name: str
    run: Callable[[], list[Sample]]


@dataclass(frozen=True)
class Bar:
    """A ratio of medians: a row of the fastest of ``over`` takes so many times as long as one of ``under``."""

    text: str
    over: tuple[str, ...]
    under: str
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        if self.least is not None:
            return f"at least {self.least:g}"
        return f"at most {self.most:g}" if self.most is not None else ""


@dataclass(frozen=True)
class Part:
    """Contenders that share a table; ``profiled`` is the sample whose parts are shown."""

    about: str
    contenders: Sequence[Contender]
    bars: Sequence[Bar] = ()
    title: str = ""
    profiled: str = ""


@dataclass(frozen=True)
class Measured:
    """Samples of a part by their names, and why contenders failed."""

    part: Part
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def times(self) -> dict[str, list[float]]:
        """Seconds a row of each round."""
        return {name: [sample.seconds / sample.rows for sample in found] for name, found in self.samples.items()}

    def medians(self) -> dict[str, float]:
        """Median seconds a row."""
        return {name: median(found) for name, found in self.times().items()}

    def ratio(self, bar: Bar) -> float | None:
        """What a bar is about, if all of it was measured."""
        medians = self.medians()
        over = [medians[name] for name in bar.over if name in medians]
        return min(over) / medians[bar.under] if over and bar.under in medians else None

    def profile(self) -> dict[str, float]:
        """Median seconds a row of each part of the profiled sample."""
        found = self.samples.get(self.part.profiled, [])
        names = found[0].parts if found else ()
        return {name: median(sample.parts[name] / sample.rows for sample in found) for name in names}


def timed(family: str, name: str, run: Callable[[], int]) -> Contender:
    """Contender of a function that returns the number of rows it read."""

    def sample() -> list[Sample]:
        began = perf_counter()
        rows = run()
        return [Sample(name, rows, perf_counter() - began)]

    return Contender(family, name, sample)


def measure(parts: Sequence[Part], rounds: int) -> list[Measured]:
    """Run all once without the clock (files get into the page cache, kernels are compiled), then in rounds.

    A contender that fails is left out from then on, so that hours of others are not lost; the report says so.
    """
    results = [Measured(part) for part in parts]
    for number in range(rounds + 1):
        for result in results:
            for contender in result.part.contenders:
                if contender.name in result.failed:
                    continue
                gc.collect()
                try:
                    samples = contender.run()
                except Exception as error:
                    traceback.print_exc()
                    result.failed[contender.name] = f"{type(error).__name__}: {error}"
                    continue
                for sample in samples if number else ():
                    result.samples.setdefault(sample.name, []).append(sample)
        print(f"round {number} of {rounds}" if number else "ran once without the clock", file=sys.stderr)
    return results
