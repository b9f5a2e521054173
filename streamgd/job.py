"""What is fixed before the first step: features, labels, scales, order, memory; what weights mean after the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiling import compile_apart
from .config import Config
from .data.cache import BlockCache
from .data.caching import open_cache
from .data.columns import find_columns
from .data.encode import Encoder
from .data.labels import Labels
from .data.profile import Scales
from .data.rowgroups import Source
from .data.seen import Seen
from .data.shuffle import HELD_OUT, Plan, random_order
from .data.target import Target
from .data.threads import available_cpus
from .errors import CheckpointError, ConfigError
from .executors import Executor
from .features import Column, FeatureSpec
from .kernels.problem import Problem, common
from .look import check_classes, look, recall, weigh
from .losses import Loss
from .memory import job_limit, process_bytes
from .memoryplan import MemoryPlan, Table, plan_memory
from .model import Model
from .slotorder import AT_HAND, EVERY, SHARED, SlotOrder

#: Rows that are expected of data that come in lots, and the least bits of hashes for them.
ENDLESS_ROWS, ENDLESS_HASH_BITS = 1_000_000, 18
#: Snapshots of a hashed weight an epoch for each mean visit to it. Averaging a slot costs 2 ns or 3, visiting it 5 to
#: 10: averages of a click log take 20 of 270 ns a row. Of 8, 14 or 28 an epoch, test losses are within 0.00004.
VISITS_A_SNAPSHOT = 0.125


@dataclass(frozen=True)
class Job:
    """All that is fixed before the first step and stays fixed while data come and go."""

    config: Config
    target: str
    loss: Loss
    labels: Labels
    scales: Scales
    seen: Seen
    encoder: Encoder
    batch_rows: int
    inverse_scale: NDArray[np.float64]
    spread: NDArray[np.float64]
    eta0: float
    start: NDArray[np.float64]
    polish: int
    beside: tuple[Job, ...] = ()

    @property
    def outputs(self) -> int:
        """Margins a row of a model."""
        return self.labels.outputs

    @property
    def models(self) -> tuple[Job, ...]:
        """The job of each model that is trained on the same mini-batches: of this one, or of several side by side."""
        return self.beside or (self,)

    def with_encoder(self, encoder: Encoder) -> Job:
        """The same with another encoder, also of the models that are trained side by side."""
        return replace(self, encoder=encoder, beside=tuple(replace(one, encoder=encoder) for one in self.beside))

    @cached_property
    def settings(self) -> NDArray[np.float64] | None:
        """What they differ in, as kernels take it; None of a single one."""
        return np.array([job.problem.settings() for job in self.beside]) if self.beside else None

    @property
    def loss_unit(self) -> float:
        """What a loss of scaled targets is times in units of the target."""
        return float(self.labels.scale) ** self.loss.degree

    @property
    def table_every(self) -> int:
        """Snapshots of the dense weights for one of the table, so that these cost little beside the steps."""
        layout, slots = self.encoder.layout, max(1, self.encoder.spec.n_slots)
        visits = self.labels.rows * (layout.n_index + self.scales.words)
        return max(1, int(64 / max(2.0, min(64.0, VISITS_A_SNAPSHOT * visits / slots))))

    @cached_property
    def table(self) -> Table:
        """Shape of the table of hashed weights."""
        config, slots = self.config, self.encoder.spec.n_slots
        polished = any(one.polish for one in self.models)
        descended = slots and self.scales.distinct if config.by_passes or polished else 0
        outputs = self.outputs * len(self.models)
        return Table(slots, outputs, config.method.slots, config.averaged, descended, config.streams)

    @property
    def at_hand(self) -> int:
        """How many of the most common slots every mini-batch goes through. The same for all that are trained beside."""
        if self.encoder.dictionaries.order is None or not self.config.method.rests:
            return 0
        # As a float, since a mini-batch of all rows is longer than any integer of an array.
        often = self.scales.common_rows * float(EVERY * self.batch_rows) >= self.scales.sampled
        return min(int(often.sum()), self.encoder.spec.n_slots, AT_HAND)

    @cached_property
    def problem(self) -> Problem:
        """What the kernel minimises, and how."""
        config = self.config
        epoch_steps = -(-self.labels.rows // self.batch_rows)
        return Problem(
            rare=None if common(self.loss.code, config.method.code) else True,
            loss=self.loss.code,
            loss_args=config.loss_args(self.loss, self.labels.scale),
            optimizer=config.method.code,
            optimizer_args=config.optimizer_args(),
            slots=config.method.slots,
            schedule=config.schedule.code,
            schedule_args=config.schedule_args(float(self.eta0), epoch_steps),
            l1=config.l1,
            l2=config.l2,
            clip_norm=float(config.clip_norm or 0.0),
            fit_intercept=config.fit_intercept,
            batch_size=self.batch_rows,
            at_hand=self.at_hand,
        )


@dataclass(frozen=True)
class Feed:
    """Rows to train on, their order, and the memory to do it in."""

    source: Source
    plan: Plan
    memory: MemoryPlan
    validation: Source | None = None
    cache: BlockCache | None = None
    cache_remark: str = ""

    def remarks(self) -> list[str]:
        """What a user should know before training."""
        found, memory = self.source.left_out.remarks(), self.memory
        found += [self.cache_remark] if self.cache_remark else []
        found += [] if self.validation is None else self.validation.left_out.remarks()
        if memory.lowered:
            found.append(
                f"{memory.limited_by} lowers the window from {memory.wanted_rows:,} to {self.plan.capacity:,} rows: "
                f"the shuffle is coarser, and the weights differ from those of a larger limit."
            )
        if memory.hash_bits < memory.wanted_hash_bits:
            found.append(
                f"{memory.limited_by} lowers the table of hashed weights from 2^{memory.wanted_hash_bits} to "
                f"2^{memory.hash_bits}: more features share a weight."
            )
        if self.plan.streamed:
            found.append(
                f"there are row groups of up to {int(self.source.manifest.rows.max()):,} rows, which are streamed "
                f"through windows of {self.plan.capacity:,} rows and shuffled only inside them. If rows lie sorted, "
                f"write the data with smaller row groups, or give a larger window."
            )
        return found


def rows_of_batch(config: Config, spec: FeatureSpec, labels: Labels) -> int:
    """Rows a mini-batch of training on features for labels."""
    hashed = bool(spec.group("index")) and not spec.group("text") and labels.outputs == 1
    return config.batch_rows(labels.rows, hashed)


def prepare(
    source: Source,
    target: str,
    config: Config,
    *,
    weight: str | None = None,
    classes: Sequence[Any] | None = None,
    endless: bool = False,
    validation: Source | None = None,
    beside: Sequence[Config] = (),
    seen: Seen | None = None,
    executor: Executor | None = None,
) -> tuple[Job, Feed]:
    """Look at the data and fix everything that is not learned.

    ``classes`` are labels that may come besides those in the data; ``endless`` says that these are only the first rows;
    ``beside`` are configurations of models to train side by side, of which ``config`` is one; ``seen`` is what an
    earlier look at the same data told, which is then not taken again; ``executor`` is who reads the labels, if not this
    process.

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
    source = source.for_job(config.on_error)
    validation = None if validation is None else validation.for_job(config.on_error)
    columns = find_columns(source, target=target, weight=weight, selection=config.selection)
    raw = Encoder(FeatureSpec.raw(columns), Target(target), weight)
    hashed = any(column.group != "dense" for column in columns)
    compile_apart(hashed, max(1, len(beside)), bool(beside))
    # Before anything is read: a process that has read already keeps some of it.
    resident = process_bytes(config.memory_limit)
    n_jobs = _plan_memory(source, raw, config, Table(), 0, validation, resident).n_jobs
    if seen is None:
        source, seen = look(source, raw, config, classes=classes, n_jobs=n_jobs, executor=executor)
    else:
        source = recall(source, seen)
    labels, scales = seen.labels, seen.scales
    if len(scales.mean) != raw.spec.n_features:
        raise CheckpointError(
            f"the checkpoint is of {len(scales.mean)} numbers a row, and the data have {raw.spec.n_features}."
        )
    loss = config.loss_for(labels.task)
    check_classes(labels, loss, target)
    raw, labels = weigh(raw, labels, config)
    total_weight = None if endless else labels.rows * labels.weight_mean
    config = config.settled(total_weight)
    start = _start(labels, loss, config)
    if not loss.degree:
        labels = replace(labels, scale=1.0)
    least = 0.0 if loss.link == "log" else -np.inf
    raw = replace(raw, target=labels.target(target))
    columns = tuple(replace(column, varied=column.label in scales.varied) for column in columns)
    source = source.with_dictionaries(FeatureSpec.raw(columns).dictionaries)
    if config.missing_indicator:
        columns, scales = _with_indicators(columns, scales)
    if not config.fit_intercept or loss.link == "log":  # nothing takes a mean back that is taken off
        labels = replace(labels, mean=0.0)
    inverse_scale = 1.0 / scales.magnitude if config.standardize else np.ones(len(scales.mean))
    spec = _specify(columns, scales, 1.0 / inverse_scale, config, endless)
    encoder = replace(raw, spec=spec, target=replace(labels.target(target), least=least))
    length = _row_length(encoder, scales, inverse_scale)
    rows, row_groups = ENDLESS_ROWS if endless else labels.rows, int(np.count_nonzero(source.manifest.rows))
    polish = 0 if endless else config.polish_passes(loss, labels.rows, row_groups, labels.clustering)
    if config.streams > 1 or config.by_passes or polish:
        seen, scales = replace(seen, scales=seen.scales.with_common(SHARED)), scales.with_common(SHARED)
    job = Job(
        config=config,
        target=target,
        loss=loss,
        labels=labels,
        scales=scales,
        seen=seen,
        encoder=encoder,
        batch_rows=rows_of_batch(config, spec, labels),
        inverse_scale=inverse_scale,
        spread=np.append(scales.scale * inverse_scale if config.standardize else np.ones_like(inverse_scale), 0.0),
        eta0=config.initial_rate(loss, length, rows),
        start=start,
        polish=polish,
    )
    if beside:
        job = replace(
            job, beside=tuple(_variant(job, other.settled(total_weight), length, row_groups) for other in beside)
        )
    compile_apart(hashed, job.outputs * len(job.models), bool(beside))
    memory = _plan_memory(source, encoder, config, job.table, scales.text_bytes, validation, resident)
    if memory.hash_bits < spec.hash_bits:
        if config.hash_bits is not None:
            raise ConfigError(
                f"a table of 2^{spec.hash_bits} hashed weights does not fit in the memory limit, which has room for "
                f"2^{memory.hash_bits}: lower hash_bits, or raise memory_limit."
            )
        spec = replace(spec, hash_bits=memory.hash_bits)
        encoder = replace(encoder, spec=spec)
    if len(scales.common) and encoder.is_orderable:
        encoder = encoder.with_order(SlotOrder.of(scales.common, spec.n_slots))
    job = job.with_encoder(encoder)
    return job, _feed(job, source, memory, validation)


def _variant(job: Job, config: Config, length: float, row_groups: int) -> Job:
    """The job of another configuration on the same data."""
    config.check_beside(job.config)
    config.loss_for(job.labels.task)
    rows = job.labels.rows
    return replace(
        job,
        config=config,
        eta0=config.initial_rate(job.loss, length, rows),
        polish=config.polish_passes(job.loss, rows, row_groups, job.labels.clustering),
        beside=(),
    )


def _specify(
    columns: tuple[Column, ...], scales: Scales, magnitude: NDArray[np.float64], config: Config, endless: bool
) -> FeatureSpec:
    """What becomes of each column: its zero, if there is an intercept to take it back, and its hashes."""
    spec = FeatureSpec.raw(columns)
    spec = spec.centred(scales.mean, scales.scale) if config.fit_intercept else spec.uncentred(scales.mean)
    if any(column.group != "dense" for column in columns):
        bits = max(scales.hash_bits(), ENDLESS_HASH_BITS) if endless else scales.hash_bits()
        return spec.hashed(config.hash_bits or bits, magnitude)
    if config.hash_bits is not None:
        raise ConfigError("hash_bits does nothing: no feature is hashed. Leave it out, or name columns as categorical.")
    return spec


def _row_length(encoder: Encoder, scales: Scales, inverse_scale: NDArray[np.float64]) -> float:
    """Root mean square length of a row: scaled features, hashed ones of value 1, and the 1 of the intercept."""
    layout, variance = encoder.layout, (scales.scale * inverse_scale) ** 2
    hashed = layout.n_index - layout.n_scaled + variance[encoder.spec.scaled_cells].sum() + scales.words
    return float(np.sqrt(1.0 + variance.sum() + hashed))


def _start(labels: Labels, loss: Loss, config: Config) -> NDArray[np.float64]:
    """Intercepts of the base rate: log-odds, log-probabilities or a log; a regression's mean is already taken off."""
    if not config.fit_intercept or loss.link not in ("logit", "log"):
        return np.zeros(1)
    if labels.class_weight is None:
        return np.full(1, np.log(max(labels.mean, 1e-300)))
    logs = np.log(np.maximum(labels.class_weight, 0.5))
    start: NDArray[np.float64] = logs[1:] - logs[0] if len(logs) == 2 else logs - logs.mean()
    return start


def _with_indicators(columns: tuple[Column, ...], scales: Scales) -> tuple[tuple[Column, ...], Scales]:
    """Columns with a 0/1 feature for each number that is missing somewhere in the sample."""
    spec = FeatureSpec.raw(columns)
    cells = {column.name: spec.cell(column.label) for column in columns if column.kind == "number"}
    missing = [name for name, cell in cells.items() if scales.missing[cell] > 0]
    places = np.array([cells[name] for name in missing], np.int64)
    return (*columns, *(Column(name, "missing") for name in missing)), scales.with_indicators(places)


def feed(job: Job, source: Source) -> Feed:
    """Plan memory and order for another source.

    Raises
    ------
    MemoryLimitError
        The source cannot be streamed in the memory limit.
    """
    source = source.for_job(job.config.on_error)
    memory = _plan_memory(source, job.encoder, job.config, job.table, job.scales.text_bytes)
    return _feed(job, source, memory)


def _feed(job: Job, source: Source, memory: MemoryPlan, validation: Source | None = None) -> Feed:
    plan = Plan(
        source.manifest.rows,
        memory.window_rows,
        row_cost=job.encoder.row_cost,
        seed=job.config.seed,
        shuffle=job.config.shuffle,
    )
    passes = job.config.passes + job.polish
    text_bytes = job.scales.text_bytes
    cache, remark = open_cache(
        job.config.cache,
        source,
        job.encoder,
        plan,
        passes=passes,
        text_bytes=text_bytes,
        partitions=job.config.streams,
    )
    return Feed(source, plan, memory, validation, cache, remark)


def _plan_memory(
    source: Source,
    encoder: Encoder,
    config: Config,
    table: Table,
    text_bytes: int,
    validation: Source | None = None,
    resident: int = 0,
) -> MemoryPlan:
    return plan_memory(
        source.manifest,
        encoder,
        config,
        config.n_jobs or available_cpus(),
        table=table,
        text_bytes=text_bytes,
        validation=None if validation is None else validation.manifest,
        resident=resident,
        bound=job_limit(config.memory_limit),
    )


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


def finish(job: Job, params: NDArray[np.float64], table: NDArray[np.float32] | None) -> Model:
    """Coefficients of the features as they are in the data, from weights of standardised ones.

    Parameters
    ----------
    job : Job
        What was trained.
    params : ndarray of float64, shape (outputs, n_features + 1)
        Weights of scaled dense features, and the intercept.
    table : ndarray of float32, shape (2**hash_bits, outputs), or None
        Weights of hashed features, as the encoder orders them.
    """
    labels, spec = job.labels, job.encoder.spec
    coef = params[:, :-1] * job.inverse_scale * labels.scale
    hashed_index, hashed = None, None
    if table is not None:
        by_slot = job.encoder.dictionaries.by_slot(table)
        hashed_index = np.flatnonzero(by_slot.any(axis=1)).astype(np.uint32)
        hashed = (by_slot[hashed_index] * labels.scale).astype(np.float32)
    return Model(
        task=labels.task,
        loss=job.loss.name,
        target=job.target,
        spec=spec,
        coef=coef,
        intercept=params[:, -1] * labels.scale + labels.mean - coef @ spec.offset,
        scale=job.scales.scale,
        missing=job.scales.missing,
        hashed_index=hashed_index,
        hashed=hashed,
        classes=None if labels.classes is None else labels.classes.to_pylist(),
        class_type=None if labels.classes is None else str(labels.classes.type),
    )
