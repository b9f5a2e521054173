"""What a user sees while a job runs: a live display on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
from dataclasses import asdict
from math import isfinite
from time import monotonic
from types import TracebackType
from typing import Any, Self

from .log import as_json, say
from .memory import format_bytes, peak_rss
from .state import Progress

PLAIN_SECONDS = 5.0
EPOCH_SECONDS = 1.0
LIVE_SECONDS = 0.2


def rate_line(progress: Progress) -> str:
    """Rates of the job so far: rows and bytes a second, and time left.

    Examples
    --------
    >>> from streamgd.trainer import Progress, Times
    >>> rate_line(Progress(0, 1, 500, 1000, 4, 0.5, 2.0, Times(bytes=1e6)))
    '250 rows/s, 500.0 kB/s, 2 s left'
    """
    seconds = max(progress.seconds, 1e-9)
    return (
        f"{progress.rows / seconds:,.0f} rows/s, {format_bytes(progress.times.bytes / seconds)}/s, "
        f"{duration(progress.seconds_left)} left"
    )


def division_line(progress: Progress) -> str:
    """How the time of reading, encoding, waiting and computing divides.

    Reading and encoding are done by several threads, next to the computing.
    """
    times = progress.times
    spent = {
        "reading": times.reading,
        "encoding": times.encoding,
        "waiting": times.waiting,
        "computing": times.computing,
    }
    total = max(sum(spent.values()), 1e-9)
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in spent.items())


def standing_line(progress: Progress) -> str:
    """How far a round is, and who is at work; empty where that says nothing."""
    standing = progress.standing
    if standing is None:
        return ""
    done = f"{standing.partitions_done} of {standing.partitions} partitions"
    line = f"round {standing.round + 1} of {standing.rounds}, {done}"
    return line if standing.workers is None else f"{line}, {standing.workers} workers"


def counted(n: int, what: str) -> str:
    """So many of something.

    Examples
    --------
    >>> counted(1, "shard"), counted(1200, "row group")
    ('1 shard', '1,200 row groups')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time for people.

    Examples
    --------
    >>> duration(7.2), duration(75), duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def kind_of_loss(epoch: int) -> str:
    """What the loss of rows before they are learned from says: only in the first epoch were they not seen before."""
    return "progressive" if epoch == 0 else "training"


class PlainDisplay:
    """A line to standard error every few seconds, at the ends of epochs that take a second or more, and at the end."""

    def __init__(self) -> None:
        self._last = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        """Tell where the job stands."""
        wait = EPOCH_SECONDS if progress.ended else PLAIN_SECONDS
        if not progress.over and monotonic() - self._last < wait:
            return
        self._last = monotonic()
        share = progress.rows / max(1, progress.total_rows)
        validation = "" if progress.validation_loss is None else f", validation loss {progress.validation_loss:.5g}"
        say(
            "progress",
            f"epoch {progress.epoch + 1}/{progress.epochs} {share:4.0%}  loss {progress.loss:.5g}{validation}  "
            f"{rate_line(progress)}  ({standing_line(progress) or division_line(progress)})",
        )


class JsonDisplay(PlainDisplay):
    """The same as JSON lines, and one for every epoch."""

    def __call__(self, progress: Progress) -> None:
        """Tell where the job stands."""
        if not progress.ended and monotonic() - self._last < PLAIN_SECONDS:
            return
        self._last = monotonic()
        seconds = max(progress.seconds, 1e-9)
        say(
            "progress",
            "",
            epoch=progress.epoch + 1,
            epochs=progress.epochs,
            epoch_ended=progress.ended,
            rows=progress.rows,
            total_rows=progress.total_rows,
            steps=progress.steps,
            loss=_finite(progress.loss),
            validation_loss=_finite(progress.validation_loss),
            seconds=round(progress.seconds, 3),
            rows_per_second=round(progress.rows / seconds),
            seconds_left=round(progress.seconds_left, 3),
            peak_rss_bytes=peak_rss(),
            **({} if progress.standing is None else asdict(progress.standing)),
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


class LiveDisplay:
    """A bar and three lines that are kept up to date on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=False)
        self._last = 0.0

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, progress: Progress) -> None:
        """Draw where the job stands."""
        if not progress.over and monotonic() - self._last < LIVE_SECONDS:
            return
        self._last = monotonic()
        self._live.update(self._picture(progress), refresh=True)

    def _picture(self, progress: Progress) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_row("epoch", f"{progress.epoch + 1} of {progress.epochs}, step {progress.steps:,}")
        grid.add_row("rows", ProgressBar(total=max(1, progress.total_rows), completed=progress.rows, width=48))
        grid.add_row("", f"{progress.rows:,} of {progress.total_rows:,}")
        grid.add_row("speed", rate_line(progress))
        loss = f"{progress.loss:.5f} {kind_of_loss(progress.epoch)}"
        if progress.validation_loss is not None:
            loss += f", {progress.validation_loss:.5f} validation"
        grid.add_row("loss", loss)
        grid.add_row("time", division_line(progress))
        if line := standing_line(progress):
            grid.add_row("round", line)
        return grid


def display() -> LiveDisplay | PlainDisplay:
    """The display that fits standard error."""
    if as_json():
        return JsonDisplay()
    return LiveDisplay() if sys.stderr.isatty() else PlainDisplay()
