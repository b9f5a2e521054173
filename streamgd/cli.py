"""The command line. Standard output is the result; progress, warnings and errors go to standard error."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from . import cli_options as opt
from .cli_options import columns_of, print_result, reporting
from .cli_tune import tune
from .errors import DataError
from .keeping import Keeping
from .log import say


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


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show it.")] = False,
) -> None:
    """Take the options before a command."""


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def train(
    shards: opt.Shards,
    target: opt.Target,
    task: opt.Task = None,
    loss: opt.Loss = None,
    optimizer: opt.Optimizer = None,
    epochs: opt.Epochs = None,
    polish: opt.Polish = None,
    batch_size: opt.BatchSize = "auto",
    alpha: opt.Alpha = None,
    penalty: opt.Penalty = "l2",
    l1_ratio: opt.L1Ratio = None,
    eta0: opt.Eta0 = None,
    learning_rate: opt.LearningRate = None,
    power_t: opt.PowerT = None,
    decay: opt.Decay = None,
    warmup_steps: opt.WarmupSteps = 0,
    momentum: opt.Momentum = None,
    beta_1: opt.Beta1 = None,
    beta_2: opt.Beta2 = None,
    clip_norm: opt.ClipNorm = None,
    epsilon: opt.Epsilon = None,
    quantile: opt.Quantile = None,
    average: opt.Average = None,
    fit_intercept: opt.FitIntercept = True,
    standardize: opt.Standardize = True,
    class_weight: opt.ClassWeight = None,
    shuffle: opt.Shuffle = True,
    window_rows: opt.WindowRows = None,
    validation: opt.Validation = None,
    early_stopping: opt.EarlyStopping = False,
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
    cluster: opt.Cluster = None,
    tls_ca: opt.TlsCa = None,
    tls_cert: opt.TlsCert = None,
    tls_key: opt.TlsKey = None,
    dashboard: opt.Dashboard = False,
    memory_limit: opt.Limit = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    model: opt.ModelOut = None,
    checkpoint: opt.Checkpoint = None,
    checkpoint_seconds: opt.CheckpointSeconds = None,
    checkpoint_rows: opt.CheckpointRows = None,
    resume: opt.Resume = False,
    config: opt.ConfigFile = None,
    as_json: opt.Json = False,
    log_json: opt.LogJson = False,
) -> None:
    """Train a model on the columns of shards."""
    options = locals() | {"early_stopping": early_stopping or bool(validation)}
    with reporting(as_json):
        settings = opt.settings_from(options).check()
        from .train_command import hearing, train_command, train_text

        on = opt.cluster_options(cluster, tls_ca, tls_cert, tls_key, dashboard)
        keeping = Keeping(checkpoint, checkpoint_seconds, checkpoint_rows, resume).check()
        with hearing(keeping, as_json) as keeper:
            result = train_command(shards, target, settings, weight, validation, model, keeping, keeper, on)
            print_result(result, as_json, train_text)


def _open(
    model: Path, shards: list[str], limit: str | None, threads: int | None, *, keep: list[str] | None = None
) -> tuple[Any, Any, int]:
    """The model, the source, and the threads that fit in the memory limit."""
    from .data.evaluate import model_encoder
    from .data.source import ParquetSource
    from .memoryplan import scoring_threads
    from .modelfile import load_model

    loaded = load_model(model)
    source = ParquetSource(shards, n_jobs=threads)
    jobs = scoring_threads(source.manifest, model_encoder(loaded, source), loaded, limit, threads, keep=keep)
    return loaded, source, jobs


@app.command()
def evaluate(
    model: opt.ModelFile,
    shards: opt.Shards,
    target: Annotated[
        str | None, typer.Option(metavar="COL", help="Target column; that of training by default.")
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COL", help="Column of sample weights.")] = None,
    memory_limit: opt.Limit = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Measure a model on shards, in one pass."""
    with reporting(as_json):
        from .data.evaluate import evaluate as run
        from .memory import peak_rss

        began = perf_counter()
        loaded, source, jobs = _open(model, shards, memory_limit, threads)
        result = run(source, loaded, target=target, weight=weight, n_jobs=jobs)
        result |= {"model": str(model), "seconds": perf_counter() - began, "peak_rss_bytes": peak_rss()}
        print_result(result, as_json, _evaluate_text)


def _evaluate_text(result: dict[str, Any]) -> str:
    names = [name for name in result if name not in ("model", "seconds", "peak_rss_bytes", "roc_auc_error")]
    lines = [f"{name:14}{_number(result[name])}" for name in names]
    if result.get("roc_auc_error") is not None:
        lines = [line + f" ± {result['roc_auc_error']:.1g}" if line.startswith("roc_auc") else line for line in lines]
    return "\n".join(lines)


@app.command()
def predict(
    model: opt.ModelFile,
    shards: opt.Shards,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Directory or URI of output shards, one an input shard; probability is that of the second class.",
        ),
    ],
    keep: Annotated[list[str] | None, typer.Option(metavar="COLS", help="Columns to carry over, with commas.")] = None,
    cluster: opt.Cluster = None,
    tls_ca: opt.TlsCa = None,
    tls_cert: opt.TlsCert = None,
    tls_key: opt.TlsKey = None,
    memory_limit: opt.Limit = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Write a score for every row of shards."""
    with reporting(as_json):
        from .data.predict import write_predictions
        from .memory import peak_rss
        from .train_command import working

        on = opt.cluster_options(cluster, tls_ca, tls_cert, tls_key)
        began = perf_counter()
        loaded, source, jobs = _open(model, shards, memory_limit, threads, keep=columns_of(keep))
        total = len(source.names)
        written = 0

        def done(path: str, rows: int) -> None:
            nonlocal written
            written += 1
            say("progress", f"{path}: {rows:,} rows ({written} of {total} shards)", shard=path, rows=rows)

        def watch(shards_done: int) -> bool:
            nonlocal written
            if shards_done > written:
                written = shards_done
                say("progress", f"{written} of {total} shards", shards=written)
            return False

        with working(on) as executor:
            options: Any = {
                "keep": columns_of(keep),
                "n_jobs": jobs,
                "done": done,
                "executor": executor,
                "watch": watch,
            }
            paths = write_predictions(source, loaded, out, **options)
        seconds = perf_counter() - began
        result = {
            "rows": source.manifest.n_rows,
            "shards": len(paths),
            "out": str(out),
            "seconds": seconds,
            "rows_per_second": source.manifest.n_rows / seconds,
            "peak_rss_bytes": peak_rss(),
        }
        print_result(
            result, as_json, lambda r: f"{r['rows']:,} rows in {r['shards']} shards of {r['out']}, {r['seconds']:.2f} s"
        )


@app.command()
def inspect(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS...|MODEL [SHARDS...]|CHECKPOINT",
            help="Shards; a model file, and shards in which the values of its hashed features are found again; or a "
            "checkpoint, or a directory of them.",
        ),
    ],
    memory_limit: opt.Limit = None,
    threads: opt.Threads = None,
    window_rows: Annotated[int | None, typer.Option(help="Rows that are shuffled together.")] = None,
    top: Annotated[int, typer.Option(help="Features of a model to show.")] = 20,
    as_json: opt.Json = False,
) -> None:
    """Show the schema, sizes and memory plan of shards, the largest weights of a model, or how far a checkpoint got."""
    with reporting(as_json):
        from .checkpointdir import find_checkpoint
        from .data.source import ParquetSource

        if len(what) == 1 and (saved := find_checkpoint(Path(what[0]))) is not None:
            from .tables import checkpoint_table

            print_result(saved.to_json(), as_json, checkpoint_table)
            return
        if _is_model(what[0]):
            from .inspection import inspect_model
            from .modelfile import load_model, looks_like_model
            from .tables import model_table

            if not what[0].endswith(".safetensors") and not looks_like_model(Path(what[0])):
                raise DataError(f"{what[0]} is neither a Parquet file nor a model.")
            model = load_model(what[0])
            source = ParquetSource(what[1:], n_jobs=threads) if what[1:] else None
            print_result(inspect_model(model, top, source), as_json, model_table)
            return
        from .config import Config
        from .inspection import inspect_shards
        from .memory import parse_bytes
        from .tables import shards_table

        limit = None if memory_limit is None else parse_bytes(memory_limit)
        settings = Config(memory_limit=limit, n_jobs=threads, window_rows=window_rows).check()
        print_result(inspect_shards(ParquetSource(what, n_jobs=threads), settings), as_json, shards_table)


def _is_model(path: str) -> bool:
    """Whether a path is a file that does not begin as a Parquet file does."""
    from .data.shards import MAGIC

    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return path.endswith(".safetensors") or start not in (*MAGIC, b"")


def _number(value: Any) -> str:
    return "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6f}"


app.command()(tune)
