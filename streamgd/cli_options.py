"""What the commands share: their options, errors and exit codes, and how results are printed."""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from . import log
from .addressspace import require_room
from .crash import crashes_told
from .errors import ConfigError, Interrupted, StreamgdError, error_json
from .interrupt import NOTHING_KEPT, CtrlC
from .log import say
from .shortage import shortage_told

if TYPE_CHECKING:
    from .cluster.options import ClusterOptions
    from .config import Config

EXIT_OTHER = 1


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turn errors that a user can meet into one message and an exit code."""
    ctrl_c = CtrlC(lambda error: tell(error, EXIT_OTHER, as_json))
    try:
        with ctrl_c, warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say("warning", _labelled("warning", str(message)))
            with crashes_told(lambda error: tell(error, error.exit_code, as_json)), shortage_told():
                require_room()
                yield
    except (StreamgdError, OSError, KeyboardInterrupt) as error:
        if ctrl_c.pressed or isinstance(error, KeyboardInterrupt):
            fail(Interrupted(NOTHING_KEPT), EXIT_OTHER, as_json)
        fail(error, getattr(error, "exit_code", EXIT_OTHER), as_json)


def fail(error: Exception, code: int, as_json: bool) -> NoReturn:
    """Tell an error and end with its exit code."""
    tell(error, code, as_json)
    raise typer.Exit(code)


def tell(error: Exception, code: int, as_json: bool) -> None:
    """Tell an error, on standard error and with ``--json`` on standard output."""
    text = str(error) if isinstance(error, Interrupted) else _labelled("error", str(error))
    say("error", text, error=type(error).__name__, exit_code=code)
    if as_json:
        print(error_json(error, code), flush=True)


def _labelled(label: str, message: str) -> str:
    """A message with what it is before it, which JSON tells by a field."""
    return message if log.as_json() else f"{label}: {message}"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
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
    many = {p.name for p in context.command.params if getattr(p, "multiple", False) or p.nargs != 1}
    for parameter in context.command.params:
        for name in [parameter.name, *parameter.opts]:
            if name and parameter.name and parameter.name != "config":
                known[name.lstrip("-").replace("-", "_")] = parameter.name
    values = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(values) - set(known)):
        options = sorted({name.replace("_", "-") for name in known.values()})
        near = [one for name in unknown for one in get_close_matches(name.replace("_", "-"), options, 1)]
        meant = f" Did you mean {', '.join(near)}?" if near else ""
        raise typer.BadParameter(f"{path} sets {', '.join(unknown)}, which is no option.{meant} See --help.")
    values = {known[name]: value for name, value in values.items()}
    values = {name: [value] if name in many and isinstance(value, str) else value for name, value in values.items()}
    # Where commas part values on the command line, a list does here.
    values = {
        name: ",".join(map(str, value)) if isinstance(value, list) and name not in many else value
        for name, value in values.items()
    }
    context.default_map = {**(context.default_map or {}), **values}
    return path


def columns_of(text: list[str] | None) -> list[str]:
    """Names between commas."""
    return [name.strip() for part in text or [] for name in part.split(",") if name.strip()]


def batch_rows(text: str) -> int | Literal["auto"] | None:
    """What ``--batch-size`` says."""
    if text in ("auto", "all"):
        return "auto" if text == "auto" else None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--batch-size is {text!r}; expected a number of rows, 'all' or 'auto'.") from None


def class_weights(text: str | None) -> Any:
    """What ``--class-weight`` says."""
    if text in (None, "balanced"):
        return text
    try:
        weights = json.loads(text)
    except ValueError:
        weights = None
    if not isinstance(weights, dict):
        raise ConfigError(f"--class-weight is {text!r}; expected 'balanced' or a JSON object of labels and weights.")
    return weights


def _log_json(wanted: bool) -> bool:
    log.lines_as_json(wanted)
    return wanted


def _under(title: str) -> Any:
    """Options that are told under a title: those of training alone fill some screens."""
    return partial(typer.Option, rich_help_panel=title)


_model, _features, _steps = _under("What is learned"), _under("Features"), _under("How it is learned")
_stopping, _resources = _under("When to stop"), _under("Threads and memory")
_lasting, _cluster = _under("Jobs that last"), _under("A Dask cluster")

Shards = Annotated[list[str], typer.Argument(metavar="SHARDS...", help="Files, directories, globs or URIs.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file that train wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; the log goes to standard error.")]
Threads = Annotated[int | None, _resources(help="Threads; all processors by default. They never change a result.")]
Limit = Annotated[
    str | None, _resources(help="Bound for the whole process, such as 1GB; a quarter of the memory by default.")
]
Drop = Annotated[list[str] | None, _features(metavar="COLS", help="Columns that are not features, with commas.")]
Target = Annotated[str, typer.Option(metavar="COL", help="Column to predict.")]
Task = Annotated[str | None, _model(help="classification or regression; by default by the type of the target.")]
Loss = Annotated[
    str | None,
    _model(
        help="log_loss (the default), hinge, squared_hinge, modified_huber or perceptron; squared_error (the "
        "default), huber, epsilon_insensitive, quantile or poisson."
    ),
]
Optimizer = Annotated[
    str | None,
    _steps(
        help="adagrad (the default), sgd, momentum, nesterov, rmsprop, adam, ftrl (the default with l1); lbfgs "
        "takes whole passes."
    ),
]
Epochs = Annotated[int | None, _steps(help="Passes over the data; 5, and at most 1000 of lbfgs.")]
Polish = Annotated[int | None, _steps(help="Passes of L-BFGS afterwards, at most; 100 for few rows by default.")]
BatchSize = Annotated[str, _steps(help="Rows a step; 'all' is batch gradient descent.")]
Alpha = Annotated[float | None, _model(help="Factor of the penalty; 1 / (sum of the rows' weights) by default.")]
Penalty = Annotated[str, _model(help="l2, l1, elasticnet or none.")]
L1Ratio = Annotated[float | None, _model(help="Share of l1 in elasticnet; 0.15 by default.")]
Eta0 = Annotated[float | None, _steps(help="Initial learning rate for scaled features; by default from the data.")]
LearningRate = Annotated[str | None, _steps(help="Schedule: constant, invscaling, optimal, cosine or step.")]
PowerT = Annotated[float | None, _steps(help="Exponent of invscaling; 0.25 by default.")]
Decay = Annotated[float | None, _steps(help="Factor an epoch of step; 0.5 by default.")]
WarmupSteps = Annotated[int, _steps(help="Steps in which the learning rate rises to what it will be.")]
Momentum = Annotated[float | None, _steps(help="For momentum and nesterov; 0.9 by default.")]
Beta1 = Annotated[float | None, _steps("--beta-1", help="For adam; 0.9 by default.")]
Beta2 = Annotated[float | None, _steps("--beta-2", help="For adam and rmsprop; 0.999 and 0.99 by default.")]
ClipNorm = Annotated[float | None, _steps(help="Longest gradient of a mini-batch.")]
Epsilon = Annotated[
    float | None,
    _model(help="Of huber and epsilon_insensitive, in units of the target; 1.35 and 0.1 of its deviation."),
]
Quantile = Annotated[float | None, _model(help="Of loss quantile; 0.5 by default.")]
Average = Annotated[bool | None, _steps(help="Whether the model is an average of the weights over training.")]
FitIntercept = Annotated[bool, _model("--intercept/--no-intercept", help="Whether to fit one.")]
Standardize = Annotated[bool, _model(help="Whether steps and penalty are of scaled features.")]
ClassWeight = Annotated[
    str | None, _model(help="balanced, or a JSON object of labels and weights such as '{\"1\": 5}'.")
]
Shuffle = Annotated[bool, _steps(help="Whether rows come in a random order.")]
WindowRows = Annotated[int | None, _steps(help="Rows that are shuffled together; by default from the data.")]
Validation = Annotated[
    list[str] | None, _stopping(metavar="SHARDS", help="Shards on which to stop early; may be repeated.")
]
EarlyStopping = Annotated[
    bool, _stopping("--early-stopping", help="Stop early on held-out row groups if there is no --validation.")
]
Categorical = Annotated[
    list[str] | None,
    _features(metavar="COLS", help="Integers that are categories, with commas; strings are anyway."),
]
Text = Annotated[list[str] | None, _features(metavar="COLS", help="Strings that are texts: words, and pairs of them.")]
Calendar = Annotated[
    list[str] | None, _features(metavar="COLS", help="Dates and times: month, weekday, hour as categories.")
]
Interactions = Annotated[
    list[str] | None, _features(metavar="PAIRS", help="Pairs of features such as carrier*origin, with commas.")
]
MissingIndicator = Annotated[
    bool, _features("--missing-indicator", help="A 0/1 feature for each number that has gaps.")
]
HashBits = Annotated[
    int | None, _features(help="2^B weights for hashed features; by default from the data, at most 28.")
]
Weight = Annotated[str | None, _model(metavar="COL", help="Column of sample weights.")]
Cache = Annotated[
    str,
    _resources(
        metavar="auto|none|DIR",
        help="Where the first epoch leaves encoded rows for later ones; a directory is kept.",
    ),
]
OnError = Annotated[
    str,
    _lasting(
        metavar="raise|skip",
        help="Whether row groups and shards that cannot be read or encoded end the job, or are left out and counted.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    _lasting(metavar="DIR", help="Keep what was learned here, now and then and when SIGTERM or Ctrl-C comes."),
]
CheckpointSeconds = Annotated[float | None, _lasting(help="Seconds from one checkpoint to the next; 60 by default.")]
CheckpointRows = Annotated[int | None, _lasting(help="Rows from one checkpoint to the next, at most.")]
Resume = Annotated[
    bool, _lasting("--resume", help="Go on from the newest checkpoint; from the start if there is none.")
]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json", callback=_log_json, is_eager=True, help="Lines on standard error are JSON objects, for monitors."
    ),
]
Partitions = Annotated[
    int | None, _resources(help="Streams that rows are dealt to, each trained on its own thread between rounds.")
]
Cluster = Annotated[
    str | None,
    _cluster(
        metavar="local:N|tcp://...",
        help="Work on N processes of this machine, or on the workers of a Dask scheduler, which read the shards.",
    ),
]
TlsCa = Annotated[Path | None, _cluster(metavar="FILE", help="Certificate authority of a tls:// scheduler (PEM).")]
TlsCert = Annotated[Path | None, _cluster(metavar="FILE", help="Certificate to show to a tls:// scheduler.")]
TlsKey = Annotated[Path | None, _cluster(metavar="FILE", help="Key of the certificate.")]
Dashboard = Annotated[bool, _cluster("--dashboard", help="Dask's dashboard on 127.0.0.1:8787, with --cluster local:N.")]
Seed = Annotated[int, _steps(help="Order of the rows; equal seeds give equal weights.")]
ModelOut = Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the model.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", is_eager=True, callback=read_config, help="TOML file of any of these options."),
]


def settings_from(options: Mapping[str, Any], *, without: Collection[str] = ()) -> Config:
    """The configuration that the options of a command give, by the names of its parameters."""
    from .config import Config, parse_pair
    from .memory import parse_bytes

    limit = options["memory_limit"]
    values = {field.name: options[field.name] for field in fields(Config) if field.name in options}
    values |= {name: tuple(columns_of(options[name])) for name in ("drop", "categorical", "text", "calendar")}
    values |= {
        "batch_size": batch_rows(options["batch_size"]),
        "class_weight": class_weights(options["class_weight"]),
        "interactions": tuple(parse_pair(pair) for pair in columns_of(options["interactions"])),
        "cache": None if options["cache"] == "none" else options["cache"],
        "memory_limit": None if limit is None else parse_bytes(limit),
        "n_jobs": options["threads"],
    }
    return Config(**{name: value for name, value in values.items() if name not in without})


def cluster_options(
    cluster: str | None, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, dashboard: bool = False
) -> ClusterOptions | None:
    """What the options say of a cluster."""
    from .cluster.options import ClusterOptions

    if cluster is not None:
        return ClusterOptions(cluster, tls_ca, tls_cert, tls_key, dashboard).check()
    if tls_ca or tls_cert or tls_key or dashboard:
        raise ConfigError("--tls-ca, --tls-cert, --tls-key and --dashboard do nothing without --cluster.")
    return None


def print_result(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], Any]) -> None:
    """Print a result as JSON or as what ``text`` makes of it."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    shown = text(result)
    if isinstance(shown, str):
        print(shown)
        return
    from rich.console import Console

    Console().print(shown)
