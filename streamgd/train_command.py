"""What ``streamgd train`` does once its options are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

from .cli_options import tell
from .cluster.options import ClusterOptions
from .errors import ConfigError
from .interrupt import Interruption
from .keeping import Keeping
from .log import say
from .progress import counted


def train_command(
    shards: list[str],
    target: str,
    settings: Any,
    weight: str | None,
    validation: list[str] | None,
    path: Path | None,
    keeping: Keeping,
    keeper: Any,
    cluster: ClusterOptions | None = None,
) -> dict[str, Any]:
    """Train, write the model, and return what ``--json`` prints.

    Raises
    ------
    StreamgdError
        A parameter or the data are wrong.
    """
    from .data.source import ParquetSource

    check_model_path(path)  # told before hours of training, not after
    source = ParquetSource(shards, n_jobs=settings.n_jobs, on_error=settings.on_error)
    compile_kernels(source, settings)
    held_out = None
    if validation:
        held_out = ParquetSource(validation, n_jobs=settings.n_jobs, on_error=settings.on_error)
    with working(cluster) as executor:
        return _train(source, held_out, target, settings, weight, path, keeping, keeper, executor)


def _train(
    source: Any,
    held_out: Any,
    target: str,
    settings: Any,
    weight: str | None,
    path: Path | None,
    keeping: Keeping,
    keeper: Any,
    executor: Any,
) -> dict[str, Any]:
    from .checkpoint import begin
    from .job import prepare
    from .keeper import place
    from .memory import format_bytes
    from .progress import display
    from .rounds import with_partitions
    from .trainer import train as run

    began = perf_counter()
    saved = keeping.open(keeper, settings, target, weight, source, held_out)
    for remark in keeper.remarks:
        warnings.warn(remark, stacklevel=1)
    seen = None if saved is None else saved.seen()
    kept = None if saved is None else saved.partitions
    settings = with_partitions(settings, source, kept, None if executor is None else executor.threads)
    job, feed = prepare(source, target, settings, weight=weight, validation=held_out, seen=seen, executor=executor)
    state, story = begin(job, feed, saved)
    began -= story.seconds
    memory, labels = feed.memory, job.labels
    say(
        "start",
        f"{source.manifest.n_rows:,} rows in {counted(source.manifest.n_row_groups, 'row group')} of "
        f"{counted(len(source.names), 'shard')}; {_features(job.encoder.spec)}; {labels.task} of {target!r} by "
        f"{job.loss.name}; windows of {feed.plan.capacity:,} rows ({format_bytes(memory.window)}); "
        f"{_hands(memory, settings, executor)}",
        rows=source.manifest.n_rows,
        row_groups=source.manifest.n_row_groups,
        shards=len(source.names),
    )
    if saved is not None:
        where = "all epochs are done" if story.over else place(story)
        say("resume", f"going on from {saved.path}: {where}", checkpoint=saved.path, epoch=story.position.epoch)
    elif keeping.resume:
        say("resume", f"there is no checkpoint in {keeping.directory} yet: beginning at the start")
    for remark in feed.remarks():
        warnings.warn(remark, stacklevel=1)
    with display() as show:
        result = run(job, feed, state, story, keeper=keeper, callback=show, executor=executor)
    for remark in result.remarks():
        warnings.warn(remark, stacklevel=1)
    summary = {
        **summarize(job, result, perf_counter() - began, path),
        "losses": result.losses,
        "validation_losses": result.validation_losses,
        "features": job.encoder.spec.n_inputs,
        "hash_bits": job.encoder.spec.hash_bits,
        "objective": result.objective,
        "gradient_norm": result.gradient_norm,
        "polish_passes": result.polish_passes,
        "batch_size": None if settings.batch_size is None else job.batch_rows,
        "label_clustering": labels.clustering,
        "partitions": settings.streams,
        "workers": None if executor is None else executor.workers,
        "epoch_seconds": result.epoch_seconds,
        "checkpoint": None if keeping.directory is None else str(keeping.directory),
        "resumed_from": None if saved is None else str(saved.path),
        "memory": memory.to_json(),
        "time": {
            "reading": result.times.reading,
            "encoding": result.times.encoding,
            "waiting": result.times.waiting,
            "computing": result.times.computing,
        },
    }
    save_trained(path, result, summary, settings)
    keeper.finished(result.model)
    say("end", "", **{name: summary[name] for name in ("rows", "epochs", "train_loss", "seconds", "weights_sha256")})
    return summary


@contextmanager
def hearing(keeping: Keeping, as_json: bool) -> Iterator[Any]:
    """Give a keeper that hears SIGTERM and SIGINT, if there is a directory for what was learned."""
    with ExitStack() as stack:
        interruption = None
        if keeping.directory is not None:
            interruption = stack.enter_context(Interruption(lambda error: tell(error, error.exit_code, as_json)))
        keeper = stack.enter_context(keeping.keeper())
        if interruption is not None:
            interruption.keeper = keeper
        yield keeper


@contextmanager
def working(options: ClusterOptions | None) -> Iterator[Any]:
    """Give who carries out rounds on a cluster, if there should be one."""
    if options is None:
        yield None
        return
    from .cluster.connect import carrying_out, connected

    with connected(options) as client:
        if options.dashboard:
            say("note", f"the dashboard of the cluster is at {client.dashboard_link}")
        executor = carrying_out(client)
        threads = executor.threads
        say(
            "cluster",
            f"{executor.workers} workers with {threads} threads at {executor.address}",
            workers=executor.workers,
            threads=threads,
            scheduler=executor.address,
        )
        yield executor


def _hands(memory: Any, settings: Any, executor: Any) -> str:
    """Who does the work, in words."""
    if executor is None:
        return counted(memory.n_jobs, "reading thread")
    return f"{settings.streams} partitions on {executor.workers} workers"


def summarize(job: Any, result: Any, seconds: float, path: Path | None) -> dict[str, Any]:
    """What every command that trains tells of its model."""
    from .memory import peak_rss

    return {
        "rows": result.rows,
        "epochs": result.epochs,
        "steps": result.steps,
        "seconds": seconds,
        "rows_per_second": result.rows / seconds,
        "train_loss": result.train_loss,
        "peak_rss_bytes": peak_rss(),
        "weights_sha256": result.model.sha256(),
        "skipped_rows": result.skipped_rows,
        "skipped_row_groups": result.skipped_row_groups,
        "window_rows": result.window_rows,
        "model": None if path is None else str(path),
        "task": job.labels.task,
        "loss": job.loss.name,
        "target": job.target,
    }


def save_trained(path: Path | None, result: Any, summary: dict[str, Any], settings: Any) -> None:
    """Write the model with what was told of it and how it was trained, if it has a place."""
    from .modelfile import save_model

    if path is not None:
        training = {**{k: v for k, v in summary.items() if k != "model"}, "config": settings.to_json()}
        save_model(replace(result.model, training=training), path)


def compile_kernels(source: Any, settings: Any, models: int = 1, beside: bool = False) -> None:
    """Compile what the job needs, and say so if it takes long."""
    from .compiling import compile_apart, warm
    from .data.columns import is_string

    began = perf_counter()
    hashed = any(map(is_string, source.schema.types)) or bool(settings.categorical or settings.calendar)
    compile_apart(hashed, models, beside)
    warm(hashed, models, beside)
    if (compiling := perf_counter() - began) > 1:
        say("note", f"compiled the kernels for this machine in {compiling:.1f} s; they are kept")


def _features(spec: Any) -> str:
    """What there is to learn from, in words."""
    dense, hashed = spec.n_features, spec.n_inputs - spec.n_features
    words = [counted(dense, "number")] if dense else []
    return " and ".join(
        words + ([f"{counted(hashed, 'hashed feature')} in 2^{spec.hash_bits} weights"] if hashed else [])
    )


def check_model_path(path: Path | None) -> None:
    """Refuse a model file that could not be written, or that would replace something else."""
    from .modelfile import looks_like_model

    if path is None:
        say("note", "no --model is given: the model will be measured but not kept")
    elif not path.parent.is_dir():
        raise ConfigError(f"--model {path}: there is no directory {path.parent}; make it, or name another.")
    elif path.is_dir():
        raise ConfigError(f"--model {path} is a directory; name a file.")
    elif not _can_write(path.parent):
        raise ConfigError(
            f"--model {path}: the directory cannot be written to, no file can be made in {path.parent}; name another."
        )
    elif path.exists() and not looks_like_model(path):
        raise ConfigError(f"--model {path} is there and is no model file, so it is not replaced; name another.")


def _can_write(directory: Path) -> bool:
    try:
        with TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def train_text(result: dict[str, Any]) -> str:
    """The result for people."""
    from .memory import format_bytes
    from .progress import kind_of_loss

    validation = result["validation_losses"]
    stepped, kind = result["gradient_norm"] is None or result["polish_passes"], kind_of_loss(result["epochs"] - 1)
    lines = [
        f"loss        {result['train_loss']:.6f} {kind + ', ' if stepped else ''}{result['loss']}"
        + (f"; {min(validation):.6f} validation" if validation else ""),
        *(
            [
                f"objective   {result['objective']:.6f}, its gradient has the norm {result['gradient_norm']:.2e}"
                + (f" after {result['polish_passes']} passes of L-BFGS" if result["polish_passes"] else "")
            ]
            if result["gradient_norm"] is not None
            else []
        ),
        f"rows        {result['rows']:,} in {result['epochs']} epochs, {result['steps']:,} steps",
        f"speed       {result['rows_per_second']:,.0f} rows/s from start to end, {result['seconds']:.2f} s",
        f"memory      {format_bytes(result['peak_rss_bytes'])} at the peak",
        f"weights     {result['weights_sha256']}",
        f"model       {result['model'] or 'not kept: no --model was given'}",
    ]
    return "\n".join(lines)
