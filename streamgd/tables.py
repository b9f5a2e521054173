"""Tables for people of what `inspection` found."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .memory import format_bytes


def shards_table(found: dict[str, Any]) -> Group:
    """Sizes, columns and memory plan of shards."""
    sizes = _pairs()
    groups = found["row_group_rows"]
    sizes.add_row("shards", f"{found['shards']:,}")
    sizes.add_row("rows", f"{found['rows']:,}")
    sizes.add_row("row groups", f"{found['row_groups']:,} of {groups['least']:,} to {groups['most']:,} rows")
    sizes.add_row(
        "size", f"{format_bytes(found['file_bytes'])}, {format_bytes(found['uncompressed_bytes'])} uncompressed"
    )
    columns = Table("column", "type", "use", box=None, pad_edge=False, header_style="bold")
    for column in found["columns"]:
        columns.add_row(Text(column["name"]), Text(column["type"]), column["use"])
    parts: list[Any] = [sizes, Text(), columns]
    if plan := found["memory"]:
        memory = _pairs()
        memory.add_row("memory limit", format_bytes(plan["memory_limit"]))
        memory.add_row("process", format_bytes(plan["base_bytes"]))
        memory.add_row(
            "windows",
            f"{plan['windows']:,} of {plan['window_rows']:,} rows of {plan['row_bytes']} bytes; "
            f"{format_bytes(plan['window_bytes'])} in memory",
        )
        memory.add_row(
            "decoding", f"{format_bytes(plan['decode_bytes_per_thread'])} for each of {plan['threads']} threads"
        )
        parts += [Text(), memory]
    return Group(*parts)


def model_table(found: dict[str, Any]) -> Group:
    """Kind of a model and its largest weights."""
    about = _pairs()
    about.add_row("model", f"{found['task']} of {found['target']} by {found['loss']}")
    if found["classes"] is not None:
        about.add_row("classes", ", ".join(map(repr, found["classes"])))
    about.add_row("features", f"{found['features']:,}")
    about.add_row("intercept", f"{found['intercept']:.6g}")
    about.add_row("weights", found["weights_sha256"])
    weights = Table("feature", box=None, pad_edge=False, header_style="bold")
    for name in ("coefficient", "standardised", "mean", "scale", "missing"):
        weights.add_column(name, justify="right")
    for row in found["largest"]:
        numbers = [f"{row[name]:.5g}" for name in ("coefficient", "standardised", "mean", "scale")]
        weights.add_row(Text(row["feature"]), *numbers, f"{row['missing']:.1%}")
    return Group(about, Text(), weights)


def _pairs() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    return grid
