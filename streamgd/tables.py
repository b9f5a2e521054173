"""Tables for people of what `inspection` found."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .config import Config
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
    hashed = f", hashed ones in 2^{found['hash_bits']} weights" if found["hash_bits"] else ""
    about.add_row("features", f"{found['features']:,}{hashed}")
    about.add_row("intercept", ", ".join(f"{value:.6g}" for value in found["intercept"][:20]))
    about.add_row("weights", found["weights_sha256"])
    weights = Table("feature", box=None, pad_edge=False, header_style="bold")
    several = len(found["intercept"]) > 1
    for name in (*(["class"] if several else []), "coefficient", "standardised", "mean", "scale", "missing"):
        weights.add_column(name, justify="right")
    for row in found["largest"]:
        label = [Text(str(found["classes"][row["output"]]))] if several else []
        numbers = [
            f"{row[name]:.5g}" if name in row else "" for name in ("coefficient", "standardised", "mean", "scale")
        ]
        weights.add_row(Text(row["feature"]), *label, *numbers, f"{row['missing']:.1%}" if "missing" in row else "")
    if any(row["feature"].startswith("#") for row in found["largest"]):
        about.add_row("hashed", "#... are hashes: name shards after the model to see what was hashed")
    return Group(about, Text(), weights)


def checkpoint_table(found: dict[str, Any]) -> Table:
    """How far a job got, and what it was given."""
    about, place = _pairs(), found["position"]
    about.add_row("checkpoint", Text(found["checkpoint"]))
    within = f", and {place['rows']:,} rows of window {place['window'] + 1}" if place["window"] or place["rows"] else ""
    about.add_row("done", f"{found['epochs_done']} epochs{within}: {found['rows']:,} rows, {found['steps']:,} steps")
    about.add_row("seconds", f"{found['seconds']:,.1f}")
    for name in ("losses", "validation_losses"):
        if found[name]:
            about.add_row(name.replace("_", " "), ", ".join(f"{loss:.6f}" for loss in found[name][-8:]))
    about.add_row("data", f"{found['data_rows']:,} rows in {found['shards']:,} shards, target {found['target']}")
    default = Config().to_json()
    said = [
        f"{name}={value!r}"
        for name, value in found["config"].items()
        if default.get(name) not in (value, tuple(value) if isinstance(value, list) else value)
    ]
    about.add_row("given", Text(", ".join(said) or "nothing but defaults"))
    about.add_row("written by", f"streamgd {found['version']}")
    return about


def _pairs() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    return grid
