"""Medians, bars and profiles as Markdown and as JSON."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from .harness import Measured

PACKAGES = ("streamgd", "pyarrow", "numba", "numpy", "pandas", "scikit-learn", "vowpalwabbit", "river")


def machine() -> str:
    """Processor, cores and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu}, {cores} processors; Python {platform.python_version()}, {', '.join(versions)}"


def table(result: Measured) -> list[str]:
    """Medians per row and rates relative to the fastest scan."""
    times, medians = result.times(), result.medians()
    scan = min((value for name, value in medians.items() if name.startswith("pyarrow")), default=None)
    lines = [
        "| contender | rows read | ns a row, median (min to max) | M rows/s | of pyarrow's scan |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, value in sorted(medians.items(), key=lambda item: item[1]):
        low, high = min(times[name]), max(times[name])
        share = "" if scan is None else f"{scan / value:.2f}"
        lines.append(
            f"| {name} | {result.samples[name][0].rows:,} | {value * 1e9:,.1f} ({low * 1e9:,.1f} to {high * 1e9:,.1f}) "
            f"| {1e-6 / value:.3g} | {share} |"
        )
    return lines


def bars(result: Measured) -> list[str]:
    """Ratios of medians beside what is wanted."""
    if not result.part.bars:
        return []
    lines = ["", "| bar | measured | wanted |", "|---|---:|---:|"]
    for bar in result.part.bars:
        ratio = result.ratio(bar)
        lines.append(f"| {bar.text} | {'not measured' if ratio is None else f'{ratio:.2f}'} | {bar.wanted} |")
    return lines


def profile(result: Measured) -> list[str]:
    """Where the time of a row goes."""
    found = result.profile()
    if not found:
        return []
    lines = ["", f"| where the time of a row goes: {result.part.profiled} | ns a row |", "|---|---:|"]
    return [*lines, *(f"| {name} | {seconds * 1e9:,.1f} |" for name, seconds in found.items())]


def section(shape: str, results: list[Measured]) -> str:
    """Section of a shape, as Markdown."""
    lines = [f"## {shape}"]
    for result in results:
        if result.part.title:
            lines += ["", f"### {result.part.title}"]
        lines += ["", result.part.about, ""]
        lines += [f"**{name} failed:** {' '.join(reason.split())}\n" for name, reason in result.failed.items()]
        lines += [*table(result), *bars(result), *profile(result)]
    return "\n".join(lines) + "\n"


def figures(results: list[Measured]) -> list[dict[str, Any]]:
    """The same figures as plain JSON values, a dict for each part."""
    return [
        {
            "title": result.part.title,
            "about": result.part.about,
            "rows": {name: found[0].rows for name, found in result.samples.items()},
            "seconds_per_row": result.times(),
            "bars": [
                {"bar": bar.text, "measured": result.ratio(bar), "least": bar.least, "most": bar.most}
                for bar in result.part.bars
            ],
            "profile": result.profile(),
            "failed": result.failed,
        }
        for result in results
    ]


def heading(rounds: int) -> str:
    """Top of the document: machine, versions, what is timed."""
    return (
        f"# Times\n\n{machine()}; {rounds} round{'s' * (rounds > 1)}.\n\n"
        "What is timed is the whole pipeline, from files in the page cache to a finished model, unless the name of a "
        "contender says otherwise.\n"
    )
