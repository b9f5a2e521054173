"""The command that trains many models in one pass."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from . import cli_options as opt
from .cli_options import columns_of, print_result, reporting
from .errors import ConfigError

_tuned = partial(typer.Option, metavar="A,B,...", rich_help_panel="What is tuned")
Values = Annotated[str | None, _tuned(help="One or more values, with commas.")]
Words = Annotated[str | None, _tuned(help="One or more of l2, l1, elasticnet, none.")]
Halving = Annotated[
    bool, typer.Option("--halving/--no-halving", help="Drop the worse half at ..., a quarter and half of the rows.")
]


def tune(
    shards: opt.Shards,
    target: opt.Target,
    alpha: Values = None,
    eta0: Values = None,
    penalty: Words = None,
    l1_ratio: Values = None,
    power_t: Values = None,
    decay: Values = None,
    warmup_steps: Values = None,
    momentum: Values = None,
    beta_1: Annotated[str | None, _tuned("--beta-1", help="One or more values, with commas.")] = None,
    beta_2: Annotated[str | None, _tuned("--beta-2", help="One or more values, with commas.")] = None,
    clip_norm: Values = None,
    halving: Halving = True,
    task: opt.Task = None,
    loss: opt.Loss = None,
    optimizer: opt.Optimizer = None,
    epochs: opt.Epochs = None,
    polish: opt.Polish = None,
    batch_size: opt.BatchSize = "auto",
    learning_rate: opt.LearningRate = None,
    epsilon: opt.Epsilon = None,
    quantile: opt.Quantile = None,
    average: opt.Average = None,
    fit_intercept: opt.FitIntercept = True,
    standardize: opt.Standardize = True,
    class_weight: opt.ClassWeight = None,
    shuffle: opt.Shuffle = True,
    window_rows: opt.WindowRows = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARDS", help="Shards whose loss decides in the end; may be repeated."),
    ] = None,
    drop: opt.Drop = None,
    categorical: opt.Categorical = None,
    text: opt.Text = None,
    calendar: opt.Calendar = None,
    interactions: opt.Interactions = None,
    missing_indicator: opt.MissingIndicator = False,
    hash_bits: opt.HashBits = None,
    weight: opt.Weight = None,
    cache: opt.Cache = "auto",
    on_error: opt.OnError = "raise",
    partitions: opt.Partitions = None,
    memory_limit: opt.Limit = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    model: opt.ModelOut = None,
    config: opt.ConfigFile = None,
    as_json: opt.Json = False,
) -> None:
    """Train a model for each combination of values in one pass over the data, and keep the best."""
    options = locals()
    with reporting(as_json):
        from .config import TUNABLE

        settings = opt.settings_from(options, without=TUNABLE)
        given = {
            "alpha": _numbers("--alpha", alpha),
            "eta0": _numbers("--eta0", eta0),
            "penalty": _words("--penalty", penalty),
            "l1_ratio": _numbers("--l1-ratio", l1_ratio),
            "power_t": _numbers("--power-t", power_t),
            "decay": _numbers("--decay", decay),
            "warmup_steps": _numbers("--warmup-steps", warmup_steps, whole=True),
            "momentum": _numbers("--momentum", momentum),
            "beta_1": _numbers("--beta-1", beta_1),
            "beta_2": _numbers("--beta-2", beta_2),
            "clip_norm": _numbers("--clip-norm", clip_norm),
        }
        grid = {name: values for name, values in given.items() if values is not None}
        print_result(run(shards, target, settings, grid, weight, validation, model, halving), as_json, tune_text)


def _words(option: str, text: str | None, what: str = "words") -> list[str] | None:
    words = None if text is None else columns_of([text])
    if words == []:
        raise ConfigError(f"{option} is {text!r}; expected {what} with commas between them.")
    return words


def _numbers(option: str, text: str | None, *, whole: bool = False) -> list[Any] | None:
    what = "whole numbers" if whole else "numbers"
    words = _words(option, text, what)
    try:
        return None if words is None else [int(word) if whole else float(word) for word in words]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected {what} with commas between them.") from None


def run(
    shards: list[str],
    target: str,
    settings: Any,
    grid: dict[str, list[Any]],
    weight: str | None,
    validation: list[str] | None,
    path: Path | None,
    halving: bool,
) -> dict[str, Any]:
    """Train all combinations, write the best model, and return what ``--json`` prints."""
    from .data.source import ParquetSource
    from .job import prepare
    from .progress import display
    from .race import race
    from .train_command import check_model_path, compile_kernels, save_trained, summarize

    if not grid:
        raise ConfigError("there is nothing to compare; give for example --alpha 1e-6,1e-5,1e-4.")
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    configs = [replace(settings, **point).check() for point in points]
    check_model_path(path)
    source = ParquetSource(shards, n_jobs=settings.n_jobs, on_error=settings.on_error)
    compile_kernels(source, settings, len(points), beside=True)
    began = perf_counter()
    held_out = None
    if validation:
        held_out = ParquetSource(validation, n_jobs=settings.n_jobs, on_error=settings.on_error)
    job, feed = prepare(source, target, configs[0], weight=weight, validation=held_out, beside=configs)
    print(
        f"{len(points)} models side by side on {source.manifest.n_rows:,} rows, {job.labels.task} of {target!r} by "
        f"{job.loss.name}" + ("" if held_out else "; compared by rows of the first epoch before they are learned from"),
        file=sys.stderr,
    )
    for remark in feed.remarks():
        warnings.warn(remark, stacklevel=1)
    with display() as show:
        standings = race(job, feed, points, halving=halving, callback=show)
    result = standings[0].result
    assert result is not None
    for remark in result.remarks():
        warnings.warn(remark, stacklevel=1)
    summary = {
        "models": [standing.to_json() for standing in standings],
        "best": standings[0].params,
        "validation_loss": standings[0].validation_loss,
        **summarize(job, result, perf_counter() - began, path),
    }
    save_trained(path, result, summary, job.models[standings[0].index].config)
    return summary


def tune_text(result: dict[str, Any]) -> Any:
    """The models, best first, for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = list(result["best"])
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for name in ("progressive", "validation", "rows", ""):
        table.add_column(name, justify="right" if name else "left")
    for model in result["models"]:
        values = [f"{model[name]:g}" if isinstance(model[name], float) else str(model[name]) for name in names]
        losses = ["" if x is None else f"{x:.6f}" for x in (model["progressive_loss"], model["validation_loss"])]
        fate = "diverged" if model["diverged"] else "dropped" if model["dropped"] else ""
        if model["behind"] is not None and not model["diverged"]:
            fate = f"dropped, {model['behind']:.4f} behind"
        table.add_row(*values, *losses, f"{model['rows']:,}", fate)
    best = ", ".join(f"{name} {value}" for name, value in result["best"].items())
    words = [
        "",
        f"best        {best}",
        f"speed       {result['rows_per_second']:,.0f} rows/s from start to end, {result['seconds']:.2f} s",
        f"weights     {result['weights_sha256']}",
        f"model       {result['model'] or 'not kept: no --model was given'}",
    ]
    return Group(table, Text("\n".join(words)))
