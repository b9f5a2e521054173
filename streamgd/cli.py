"""The command line. Standard output is the result; progress, warnings and errors go to standard error."""

from __future__ import annotations

import json
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, NoReturn

import typer

from .errors import ConfigError, DataError, StreamgdError


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        print(f"streamgd {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="streamgd",
    help="Train linear and logistic models on Parquet data of any size, in fixed memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_OTHER = 1


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show it.")] = False,
) -> None:
    """Take the options before a command."""


def main() -> None:
    """Run the command line."""
    app()


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turn errors that a user can meet into one message and an exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            yield
    except StreamgdError as error:
        _fail(type(error).__name__, str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        _fail("Interrupted", "interrupted; nothing was saved.", EXIT_OTHER, as_json)
    except OSError as error:
        _fail(type(error).__name__, str(error), EXIT_OTHER, as_json)


def _fail(name: str, message: str, code: int, as_json: bool) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": name, "message": message, "exit_code": code}))
    raise typer.Exit(code)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults of the other options from a TOML file."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not TOML: {error}") from error
    known: dict[str, str] = {}
    many = {parameter.name for parameter in context.command.params if getattr(parameter, "multiple", False)}
    for parameter in context.command.params:
        for name in [parameter.name, *parameter.opts]:
            if name and parameter.name and parameter.name != "config":
                known[name.lstrip("-").replace("-", "_")] = parameter.name
    values = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(values) - set(known)):
        raise typer.BadParameter(f"{path} sets {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    values = {known[name]: value for name, value in values.items()}
    values = {name: [value] if name in many and isinstance(value, str) else value for name, value in values.items()}
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _columns(text: list[str] | None) -> list[str]:
    return [name.strip() for part in text or [] for name in part.split(",") if name.strip()]


def _batch_size(text: str) -> int | Literal["auto"] | None:
    if text in ("auto", "all"):
        return "auto" if text == "auto" else None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--batch-size is {text!r}; expected a number of rows, 'all' or 'auto'.") from None


def _class_weight(text: str | None) -> Any:
    if text in (None, "balanced"):
        return text
    try:
        weights = json.loads(text)
    except ValueError:
        weights = None
    if not isinstance(weights, dict):
        raise ConfigError(f"--class-weight is {text!r}; expected 'balanced' or a JSON object of labels and weights.")
    return weights


Shards = Annotated[list[str], typer.Argument(metavar="SHARDS...", help="Files, directories, globs or URIs.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file that train wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; the log goes to standard error.")]
Threads = Annotated[int | None, typer.Option(help="Threads; all processors by default. They never change a result.")]
Limit = Annotated[
    str | None, typer.Option(help="Bound for the whole process, such as 1GB; a quarter of the memory by default.")
]
Drop = Annotated[list[str] | None, typer.Option(metavar="COLS", help="Columns that are not features, with commas.")]


@app.command()
def train(
    shards: Shards,
    target: Annotated[str, typer.Option(metavar="COL", help="Column to predict.")],
    task: Annotated[
        str | None, typer.Option(help="classification or regression; by default by the type of the target.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="log_loss (the default), hinge, squared_hinge, modified_huber or perceptron; squared_error (the "
            "default), huber, epsilon_insensitive, quantile or poisson."
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adagrad (the default), sgd, momentum, nesterov, rmsprop, adam, ftrl (the default with l1); lbfgs "
            "takes whole passes."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; 5, and at most 1000 of lbfgs.")] = None,
    polish: Annotated[
        int | None, typer.Option(help="Passes of L-BFGS afterwards, at most; 100 for few rows by default.")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Rows a step; 'all' is batch gradient descent.")] = "auto",
    alpha: Annotated[
        float | None, typer.Option(help="Factor of the penalty; 1 / (sum of the rows' weights) by default.")
    ] = None,
    penalty: Annotated[str, typer.Option(help="l2, l1, elasticnet or none.")] = "l2",
    l1_ratio: Annotated[float | None, typer.Option(help="Share of l1 in elasticnet; 0.15 by default.")] = None,
    eta0: Annotated[
        float | None, typer.Option(help="Initial learning rate for scaled features; by default from the data.")
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="Schedule: constant, invscaling, optimal, cosine or step.")
    ] = None,
    power_t: Annotated[float | None, typer.Option(help="Exponent of invscaling; 0.25 by default.")] = None,
    decay: Annotated[float | None, typer.Option(help="Factor an epoch of step; 0.5 by default.")] = None,
    warmup_steps: Annotated[int, typer.Option(help="Steps in which the learning rate rises to what it will be.")] = 0,
    momentum: Annotated[float | None, typer.Option(help="For momentum and nesterov; 0.9 by default.")] = None,
    beta_1: Annotated[float | None, typer.Option("--beta-1", help="For adam; 0.9 by default.")] = None,
    beta_2: Annotated[
        float | None, typer.Option("--beta-2", help="For adam and rmsprop; 0.999 and 0.99 by default.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Longest gradient of a mini-batch.")] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Of huber and epsilon_insensitive, in units of the target; 1.35 and 0.1 of its deviation."),
    ] = None,
    quantile: Annotated[float | None, typer.Option(help="Of loss quantile; 0.5 by default.")] = None,
    average: Annotated[
        bool | None, typer.Option(help="Whether the model is an average of the weights over training.")
    ] = None,
    fit_intercept: Annotated[bool, typer.Option("--intercept/--no-intercept", help="Whether to fit one.")] = True,
    standardize: Annotated[bool, typer.Option(help="Whether steps and penalty are of scaled features.")] = True,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced, or a JSON object of labels and weights such as '{\"1\": 5}'.")
    ] = None,
    shuffle: Annotated[bool, typer.Option(help="Whether rows come in a random order.")] = True,
    window_rows: Annotated[
        int | None, typer.Option(help="Rows that are shuffled together; by default from the data.")
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(metavar="SHARDS", help="Shards on which to stop early; may be repeated.")
    ] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop early on held-out row groups if there is no --validation.")
    ] = False,
    drop: Drop = None,
    categorical: Annotated[
        list[str] | None,
        typer.Option(metavar="COLS", help="Integers that are categories, with commas; strings are anyway."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="COLS", help="Strings that are texts: words, and pairs of them.")
    ] = None,
    calendar: Annotated[
        list[str] | None, typer.Option(metavar="COLS", help="Dates and times: month, weekday, hour as categories.")
    ] = None,
    interactions: Annotated[
        list[str] | None, typer.Option(metavar="PAIRS", help="Pairs of features such as carrier*origin, with commas.")
    ] = None,
    missing_indicator: Annotated[
        bool, typer.Option("--missing-indicator", help="A 0/1 feature for each number that has gaps.")
    ] = False,
    hash_bits: Annotated[
        int | None, typer.Option(help="2^B weights for hashed features; by default from the data, at most 28.")
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COL", help="Column of sample weights.")] = None,
    memory_limit: Limit = None,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Order of the rows; equal seeds give equal weights.")] = 0,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the model.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", is_eager=True, callback=_read_config, help="TOML file of any of these options."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on the columns of shards."""
    with reporting(as_json):
        from .config import Config, parse_pair
        from .memory import parse_bytes

        settings = Config(
            task=task,  # type: ignore[arg-type]
            loss=loss,
            epsilon=epsilon,
            quantile=quantile,
            penalty=penalty,
            alpha=alpha,
            l1_ratio=l1_ratio,
            optimizer=optimizer,
            learning_rate=learning_rate,
            eta0=eta0,
            power_t=power_t,
            decay=decay,
            warmup_steps=warmup_steps,
            momentum=momentum,
            beta_1=beta_1,
            beta_2=beta_2,
            clip_norm=clip_norm,
            average=average,
            polish=polish,
            fit_intercept=fit_intercept,
            standardize=standardize,
            epochs=epochs,
            batch_size=_batch_size(batch_size),
            shuffle=shuffle,
            window_rows=window_rows,
            early_stopping=early_stopping or bool(validation),
            class_weight=_class_weight(class_weight),
            drop=tuple(_columns(drop)),
            categorical=tuple(_columns(categorical)),
            text=tuple(_columns(text)),
            calendar=tuple(_columns(calendar)),
            interactions=tuple(parse_pair(pair) for pair in _columns(interactions)),
            missing_indicator=missing_indicator,
            hash_bits=hash_bits,
            memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
            n_jobs=threads,
            seed=seed,
        ).check()
        from .train_command import train_command, train_text

        _print(train_command(shards, target, settings, weight, validation, model), as_json, train_text)


def _open(
    model: Path, shards: list[str], limit: str | None, threads: int | None, *, metrics: bool = False
) -> tuple[Any, Any, int]:
    """The model, the source, and the threads that fit in the memory limit."""
    from .data.evaluate import model_encoder
    from .data.source import ParquetSource
    from .memoryplan import scoring_threads
    from .modelfile import load_model

    loaded = load_model(model)
    source = ParquetSource(shards, n_jobs=threads)
    jobs = scoring_threads(source.manifest, model_encoder(loaded, source), limit, threads, metrics=metrics)
    return loaded, source, jobs


@app.command()
def evaluate(
    model: ModelFile,
    shards: Shards,
    target: Annotated[
        str | None, typer.Option(metavar="COL", help="Target column; that of training by default.")
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COL", help="Column of sample weights.")] = None,
    memory_limit: Limit = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a model on shards, in one pass."""
    with reporting(as_json):
        from .data.evaluate import evaluate as run
        from .memory import peak_rss

        began = perf_counter()
        loaded, source, jobs = _open(model, shards, memory_limit, threads, metrics=True)
        result = run(source, loaded, target=target, weight=weight, n_jobs=jobs)
        result |= {"model": str(model), "seconds": perf_counter() - began, "peak_rss_bytes": peak_rss()}
        _print(result, as_json, _evaluate_text)


def _evaluate_text(result: dict[str, Any]) -> str:
    names = [name for name in result if name not in ("model", "seconds", "peak_rss_bytes", "roc_auc_error")]
    lines = [f"{name:14}{_number(result[name])}" for name in names]
    if result.get("roc_auc_error") is not None:
        lines = [line + f" ± {result['roc_auc_error']:.1g}" if line.startswith("roc_auc") else line for line in lines]
    return "\n".join(lines)


@app.command()
def predict(
    model: ModelFile,
    shards: Shards,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Directory of the output shards, one an input shard; probability is that of the second class.",
        ),
    ],
    keep: Annotated[list[str] | None, typer.Option(metavar="COLS", help="Columns to carry over, with commas.")] = None,
    memory_limit: Limit = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a score for every row of shards."""
    with reporting(as_json):
        from .data.predict import write_predictions
        from .memory import peak_rss

        began = perf_counter()
        loaded, source, jobs = _open(model, shards, memory_limit, threads)
        total = len(source.names)
        written = 0

        def done(path: str, rows: int) -> None:
            nonlocal written
            written += 1
            print(f"{path}: {rows:,} rows ({written} of {total} shards)", file=sys.stderr, flush=True)

        paths = write_predictions(source, loaded, out, keep=_columns(keep), n_jobs=jobs, done=done)
        seconds = perf_counter() - began
        result = {
            "rows": source.manifest.n_rows,
            "shards": len(paths),
            "out": str(out),
            "seconds": seconds,
            "rows_per_second": source.manifest.n_rows / seconds,
            "peak_rss_bytes": peak_rss(),
        }
        _print(
            result, as_json, lambda r: f"{r['rows']:,} rows in {r['shards']} shards of {r['out']}, {r['seconds']:.2f} s"
        )


@app.command()
def inspect(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS...|MODEL [SHARDS...]",
            help="Shards; or a model file, and shards in which the values of its hashed features are found again.",
        ),
    ],
    memory_limit: Limit = None,
    threads: Threads = None,
    window_rows: Annotated[int | None, typer.Option(help="Rows that are shuffled together.")] = None,
    top: Annotated[int, typer.Option(help="Features of a model to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the schema, sizes and memory plan of shards, or the largest weights of a model."""
    with reporting(as_json):
        from .data.source import ParquetSource

        if _is_model(what[0]):
            from .inspection import inspect_model
            from .modelfile import load_model
            from .tables import model_table

            model = load_model(what[0])
            source = ParquetSource(what[1:], n_jobs=threads) if what[1:] else None
            _print(inspect_model(model, top, source), as_json, model_table)
            return
        from .config import Config
        from .inspection import inspect_shards
        from .memory import parse_bytes
        from .tables import shards_table

        limit = None if memory_limit is None else parse_bytes(memory_limit)
        settings = Config(memory_limit=limit, n_jobs=threads, window_rows=window_rows).check()
        _print(inspect_shards(ParquetSource(what, n_jobs=threads), settings), as_json, shards_table)


def _is_model(path: str) -> bool:
    """Whether a path is a file that does not begin as a Parquet file does."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return path.endswith(".safetensors") or start not in (b"PAR1", b"PARE", b"")


def _number(value: Any) -> str:
    return "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6f}"


def _print(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], Any]) -> None:
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    shown = text(result)
    if isinstance(shown, str):
        print(shown)
        return
    from rich.console import Console

    Console().print(shown)
