"""What came of a torture that is no random one: how often it was tried, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Cases by what was tortured, what went wrong, and what could not be tried here."""

    cases: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, name: str, failure: str | None) -> None:
        """Add a case, and what went wrong in it."""
        self.cases[name] = self.cases.get(name, 0) + 1
        if failure is not None:
            self.failures.append(f"{name}: {failure}")

    def add(self, other: Outcome) -> None:
        """Add the cases of another outcome."""
        for name, cases in other.cases.items():
            self.cases[name] = self.cases.get(name, 0) + cases
        self.failures += other.failures
        self.skipped += other.skipped
        self.notes += other.notes

    def __str__(self) -> str:
        lines = [f"{cases:8,} {name}" for name, cases in self.cases.items()]
        lines += [*self.notes, *(f"skipped: {text}" for text in self.skipped)]
        lines += [f"FAILED {text}" for text in self.failures]
        return "\n".join([*lines, f"{sum(self.cases.values()):8,} cases, {len(self.failures)} failures"])
