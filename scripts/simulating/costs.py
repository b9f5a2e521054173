"""What things cost, as measured on a machine that is named."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

#: Costs that were measured once, for whoever does not measure his own.
KEPT = Path(__file__).with_name("costs.json")

#: Seconds for which a part is slower or faster; longer ones even it out. Parts of 0.09 s differed by 11 %, of 1.4 s by
#: 5 %.
PIECE = 0.3


@dataclass(frozen=True)
class Line:
    """Seconds that grow with something: ``fixed`` and ``each``."""

    fixed: float = 0.0
    each: float = 0.0

    def __call__(self, n: float) -> float:
        """Seconds of so many."""
        return self.fixed + self.each * n


@dataclass(frozen=True)
class Shape:
    """What a partition of some data costs by its rows, and the state that it learns.

    Attributes
    ----------
    part : Line
        Seconds by rows, of one process that is alone.
    spread : float
        Standard deviation of the logarithm of the seconds of equal parts that take no longer than `PIECE`.
    beside, crowded : float
        Times as long that a part takes where each processor of the machine has one, and where it has two.
    join : float
        Seconds to join two states.
    between : float
        Seconds between two rounds, in which the driver takes note of what came of one.
    size : int
        Bytes of a state.
    index, slots : int
        Hashed features of a row, and the slots that these share.
    """

    part: Line
    spread: float
    beside: float
    crowded: float
    join: float
    between: float
    size: int
    index: int = 0
    slots: int = 0


@dataclass(frozen=True)
class Costs:
    """Seconds of what a round is made of.

    Attributes
    ----------
    machine : str
        What it was measured on.
    shapes : dict of str to Shape
        What parts cost, for each shape of data.
    round : float
        A round of one task that does nothing, with a small state.
    task, level : float
        Of the scheduler for each further task; for each level of joins.
    send, move, fetch : Line
        A state from the driver to a worker, from worker to worker, and from a worker to the driver; by bytes.
    """

    machine: str
    shapes: dict[str, Shape]
    round: float
    task: float
    level: float
    send: Line
    move: Line
    fetch: Line

    @classmethod
    def read(cls, path: Path) -> Self:
        """Costs of a file."""
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def typical(cls, several: list[Self]) -> Self:
        """Of each cost the median over several measurements."""
        return cls.of(_medians([asdict(one) for one in several]))

    @classmethod
    def of(cls, found: dict[str, Any]) -> Self:
        """Costs of what `dataclasses.asdict` makes of them."""
        lines = {name: Line(**found[name]) for name in ("send", "move", "fetch")}
        shapes = {name: Shape(**{**one, "part": Line(**one["part"])}) for name, one in found["shapes"].items()}
        return cls(**{**found, **lines, "shapes": shapes})

    def write(self, path: Path) -> None:
        """Write them to a file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def over(self, bandwidth: float) -> Costs:
        """The same over a network of so many bytes a second, where that is slower than what processors do."""
        links = {"send": 2, "move": 1, "fetch": 2}  # through the scheduler; from worker to worker
        lines = {name: getattr(self, name) for name in links}
        return replace(
            self, **{name: Line(line.fixed, max(line.each, links[name] / bandwidth)) for name, line in lines.items()}
        )


def _medians(found: list[Any]) -> Any:
    """The median of numbers; of dictionaries that of each entry."""
    if isinstance(found[0], dict):
        return {name: _medians([one[name] for one in found]) for name in found[0]}
    return found[0] if isinstance(found[0], str) else type(found[0])(median(found))
