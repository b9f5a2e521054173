"""What is fixed before the first step: features, labels, scales, order, memory; what weights mean after the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .data.encode import Encoder
from .data.labels import Labels, scan_labels
from .data.profile import Scales, find_columns, measure_scales
from .data.rowgroups import Source
from .data.shuffle import HELD_OUT, Plan, random_order
from .data.target import Target
from .data.threads import available_cpus
from .errors import ConfigError, TooManyClasses
from .features import FeatureSpec
from .losses import Loss
from .memory import current_rss
from .memoryplan import MemoryPlan, plan_memory
from .model import Model


@dataclass(frozen=True)
class Job:
    """All that is fixed before the first step and stays fixed while data come and go."""

    config: Config
    target: str
    loss: Loss
    labels: Labels
    scales: Scales
    encoder: Encoder
    batch_rows: int
    inverse_scale: NDArray[np.float64]
    eta0: float


@dataclass(frozen=True)
class Feed:
    """Rows to train on, their order, and the memory to do it in."""

    source: Source
    plan: Plan
    memory: MemoryPlan
    validation: Source | None = None

    def remarks(self) -> list[str]:
        """What a user should know before training."""
        found, memory = [], self.memory
        if memory.lowered:
            found.append(
                f"the memory limit lowers the window from {memory.wanted_rows:,} to {self.plan.capacity:,} rows: the "
                f"shuffle is coarser, and the weights differ from those of a larger limit."
            )
        if self.plan.streamed:
            found.append(
                f"there are row groups of up to {int(self.source.manifest.rows.max()):,} rows, which are streamed "
                f"through windows of {self.plan.capacity:,} rows and shuffled only inside them. If rows lie sorted, "
                f"write the data with smaller row groups, or give a larger window."
            )
        return found


def prepare(
    source: Source,
    target: str,
    config: Config,
    *,
    weight: str | None = None,
    drop: Sequence[str] = (),
    classes: Sequence[Any] | None = None,
    validation: Source | None = None,
) -> tuple[Job, Feed]:
    """Look at the data and fix everything that is not learned.

    Raises
    ------
    DataError
        The data cannot be trained on; the class of the error says why.
    ConfigError
        A parameter is wrong.
    MemoryLimitError
        The job does not fit in ``memory_limit``.
    """
    config.check()
    if config.early_stopping and validation is None:
        source, validation = hold_out(source, config.validation_fraction, config.seed)
    columns = find_columns(source, target=target, weight=weight, drop=drop)
    # Before anything is read: a process that has read already keeps some of it.
    memory = _plan_memory(
        source, Encoder(FeatureSpec.raw(columns), Target(target), weight), config, validation, current_rss()
    )
    n_jobs = memory.n_jobs
    labels = scan_labels(source, target, task=config.task, weight=weight, classes=classes, n_jobs=n_jobs)
    loss = config.loss_for(labels.task)
    if labels.classes is not None and len(labels.classes) > 2:
        raise TooManyClasses(
            f"Only binary classification is supported. Target {target!r} holds {len(labels.classes)} classes; loss="
            f"{loss.name!r} tells two apart. For numbers use --task regression."
        )
    scales = measure_scales(
        source, columns, weight=weight, weight_scale=1.0 / labels.weight_mean, seed=config.seed, n_jobs=n_jobs
    )
    if config.fit_intercept:
        spec = FeatureSpec.centred(columns, scales.mean, scales.scale)
    else:  # nothing can be centred, for there is no intercept to take it back
        spec, labels = FeatureSpec.uncentred(columns, scales.mean), replace(labels, mean=0.0)
    encoder = Encoder(spec, labels.target(target), weight, 1.0 / labels.weight_mean)
    inverse_scale = 1.0 / scales.magnitude if config.standardize else np.ones(len(scales.mean))
    length = float(np.sqrt(1.0 + ((scales.scale * inverse_scale) ** 2).sum()))
    job = Job(
        config=config,
        target=target,
        loss=loss,
        labels=labels,
        scales=scales,
        encoder=encoder,
        batch_rows=config.batch_rows(labels.rows),
        inverse_scale=inverse_scale,
        eta0=config.initial_rate(loss, length),
    )
    return job, _feed(job, source, memory, validation)


def feed(job: Job, source: Source) -> Feed:
    """Plan memory and order for another source.

    Raises
    ------
    MemoryLimitError
        The source cannot be streamed in the memory limit.
    """
    return _feed(job, source, _plan_memory(source, job.encoder, job.config))


def _feed(job: Job, source: Source, memory: MemoryPlan, validation: Source | None = None) -> Feed:
    plan = Plan(
        source.manifest.rows,
        memory.window_rows,
        n_columns=job.encoder.row_values,
        seed=job.config.seed,
        shuffle=job.config.shuffle,
    )
    return Feed(source, plan, memory, validation)


def _plan_memory(
    source: Source, encoder: Encoder, config: Config, validation: Source | None = None, resident: int = 0
) -> MemoryPlan:
    held_out = None if validation is None else validation.manifest
    jobs = config.n_jobs or available_cpus()
    return plan_memory(source.manifest, encoder, config, jobs, validation=held_out, resident=resident)


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """Split a source into training and held-out row groups, chosen at random by the seed."""
    filled = np.flatnonzero(source.manifest.rows)
    held = max(1, round(fraction * len(filled)))
    if held >= len(filled):
        raise ConfigError(
            f"early_stopping holds out {fraction:.0%} of the row groups, but the data have {len(filled)}: "
            f"give validation data, or write the data with smaller row groups."
        )
    order = filled[random_order(len(filled), seed, 0, HELD_OUT)]
    return source.subset(np.sort(order[held:])), source.subset(np.sort(order[:held]))


def finish(job: Job, params: NDArray[np.float64]) -> Model:
    """Coefficients of the features as they are in the data, from weights of standardised ones."""
    labels = job.labels
    coef = params[:-1] * job.inverse_scale * labels.scale
    intercept = params[-1] * labels.scale + labels.mean - coef @ job.encoder.spec.offset
    return Model(
        task=labels.task,
        loss=job.loss.name,
        target=job.target,
        spec=job.encoder.spec,
        coef=coef,
        intercept=float(intercept),
        scale=job.scales.scale,
        missing=job.scales.missing,
        classes=None if labels.classes is None else labels.classes.to_pylist(),
        class_type=None if labels.classes is None else str(labels.classes.type),
    )
