"""What the estimators share: parameters, fitting, and where predictions go."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .checkpoint import begin
from .config import Config, parse_pair
from .data.evaluate import evaluate, margins
from .data.frames import is_dask_frame, is_stored, with_target
from .data.leftout import OnError
from .data.predict import write_predictions
from .data.rowgroups import Source
from .data.source import ParquetSource
from .errors import ConfigError
from .estimator_data import COLUMN_PARAMETERS, FEATURES, Sourced
from .executors import Executor
from .job import Feed, Job, feed, prepare, rows_of_batch
from .keeper import Keeper
from .keeping import Keeping
from .memory import parse_bytes
from .model import Model
from .modelfile import save_model
from .rounds import with_partitions
from .state import Result, State, Story
from .trainer import train

#: Parameters that go into `Config` as they are.
_CONFIG_PARAMETERS = tuple(
    name
    for name in Config.__dataclass_fields__
    if name not in ("task", "memory_limit", "seed", "interactions", *COLUMN_PARAMETERS)
)


class Estimator(Sourced):
    """What classifier and regressor share."""

    _task: Any

    def __init__(
        self,
        loss: str | None = None,
        *,
        epsilon: float | None = None,
        quantile: float | None = None,
        penalty: str | None = "l2",
        alpha: float | None = None,
        l1_ratio: float | None = None,
        optimizer: str | None = None,
        learning_rate: str | None = None,
        eta0: float | None = None,
        power_t: float | None = None,
        decay: float | None = None,
        warmup_steps: int = 0,
        momentum: float | None = None,
        beta_1: float | None = None,
        beta_2: float | None = None,
        clip_norm: float | None = None,
        average: bool | None = None,
        polish: int | None = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        epochs: int | None = None,
        batch_size: int | str | None = "auto",
        shuffle: bool = True,
        window_rows: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        tol: float = 1e-4,
        class_weight: Any = None,
        drop: str | Sequence[str] | None = None,
        categorical: str | Sequence[str] | None = None,
        text: str | Sequence[str] | None = None,
        calendar: str | Sequence[str] | None = None,
        interactions: Sequence[Any] | None = None,
        missing_indicator: bool = False,
        hash_bits: int | None = None,
        cache: str | os.PathLike[str] | None = "auto",
        on_error: OnError = "raise",
        partitions: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float | None = None,
        checkpoint_rows: int | None = None,
        resume: bool = False,
        memory_limit: str | int | None = None,
        n_jobs: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.loss = loss
        self.epsilon = epsilon
        self.quantile = quantile
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.momentum = momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.clip_norm = clip_norm
        self.average = average
        self.polish = polish
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.window_rows = window_rows
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.class_weight = class_weight
        self.drop = drop
        self.categorical = categorical
        self.text = text
        self.calendar = calendar
        self.interactions = interactions
        self.missing_indicator = missing_indicator
        self.hash_bits = hash_bits
        self.cache = cache
        self.on_error = on_error
        self.partitions = partitions
        self.checkpoint = checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        self.checkpoint_rows = checkpoint_rows
        self.resume = resume
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None, client: Any = None) -> Self:
        """Train from the start.

        Parameters
        ----------
        X : path, list of paths, pyarrow Table or Dataset, Dask DataFrame; or array-like (n_samples, n_features)
            Shards (files, directories, globs, URIs), or a Dask DataFrame, each of whose partitions is computed where
            it is read, whenever it is; or rows in memory. Missing values (null, NaN) count as the mean of their column.
        y : str, or array-like of shape (n_samples,)
            Name of the target column; or the targets.
        sample_weight : str, or array-like of shape (n_samples,), optional
            Name of a column of weights; or the weights.
        validation : like X, optional
            Shards with the same columns (for arrays: X and y, or X, y and weights) on which the loss is measured
            after each epoch, and on which ``early_stopping`` decides.
        client : distributed.Client, optional
            Of a Dask cluster, whose workers then read the shards (or compute the partitions) and train on them. They
            need streamgd, and to reach the shards. ``partitions`` is then by default a multiple of their threads.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ClusterLost, WorkersKilled
            The cluster has no workers any more, or a row group kills them.
        DataError
            The data cannot be trained on; its subclass says why.
        ConfigError
            A parameter is wrong, or does nothing for the chosen solver.
        TrainingDiverged
            A weight became infinite or NaN.
        """
        source, target, weight = self._training_source(X, y, sample_weight, reset=True, client=client)
        held_out = None if validation is None else self._validation_source(validation, weight, client)
        config = self._config()
        executor = None if client is None else _executor(client, source)
        keeping = self._keeping()
        with keeping.keeper() as keeper:
            saved = keeping.open(keeper, config, target, weight, source, held_out)
            seen, kept = (None, None) if saved is None else (saved.seen(), saved.partitions)
            config = with_partitions(config, source, kept, None if executor is None else executor.threads)
            job, data = prepare(
                source, target, config, weight=weight, validation=held_out, seen=seen, executor=executor
            )
            self._train(job, data, *begin(job, data, saved), keeper, executor)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train one epoch more, on these rows.

        The first call fixes the scales of the features (and of a regression's target) for all that follow.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array-like, optional
            All class labels; needed in a classifier's first call.

        Returns
        -------
        self
            The fitted estimator.
        """
        first = not hasattr(self, "_job")
        if first and hasattr(self, "model_"):
            raise ConfigError(
                "this estimator comes from a model file or from tune: it predicts, but holds no optimizer state, and "
                "partial_fit cannot go on from it. Call fit."
            )
        if first and self._task == "classification" and classes is None:
            raise ConfigError("classes must be given in the first call of partial_fit: all labels that will occur.")
        if not first and classes is not None and list(np.unique(classes)) != list(self.classes_):
            raise ConfigError(f"classes are {classes!r}, but the first call said {self.classes_!r}.")
        config = self._config()
        if config.early_stopping:
            raise ConfigError("early_stopping does nothing in partial_fit, which trains one epoch; leave it out.")
        if config.by_passes or config.polish or config.schedule.spans == "all":
            raise ConfigError(
                "partial_fit goes step by step through rows that come one lot after the other: leave out polish, "
                "optimizer='lbfgs' and learning_rate='cosine', which need to know all of them."
            )
        if config.cache not in ("auto", None):
            raise ConfigError("a cache directory does nothing in partial_fit, which reads rows once; leave it out.")
        if self._keeping().directory is not None:
            raise ConfigError("checkpoint does nothing in partial_fit, which trains one epoch; leave it out.")
        if config.streams > 1:
            raise ConfigError("partitions do nothing in partial_fit, whose rows come in lots; leave them out.")
        config = replace(config, epochs=1)
        columns = None if first else self.model_.spec.columns
        source, target, weight = self._training_source(X, y, sample_weight, reset=first, columns=columns)
        if first:
            labels = None if classes is None else np.unique(classes).tolist()
            job, data = prepare(
                source,
                target,
                config,
                weight=weight,
                classes=labels,
                endless=True,
            )
            state, self._calls = State.start(job), 0
        else:
            job = self._continued(config, target, weight)
            data, state = feed(job, source), self._state
        self._train(job, data, state, Story.begin(self._calls), Keeper())
        return self

    def _continued(self, config: Config, target: str, weight: str | None) -> Job:
        """The job of the first call, for other data; what its state was made for cannot change."""
        job: Job = self._job
        for name in ("loss", "epsilon", "quantile", "optimizer", "fit_intercept", "standardize", "class_weight"):
            if getattr(config, name) != getattr(job.config, name):
                raise ConfigError(
                    f"{name} was {getattr(job.config, name)!r} in the first call and is {getattr(config, name)!r} now; "
                    f"partial_fit cannot change it. Call fit."
                )
        return replace(
            job,
            config=config if config.alpha is not None else replace(config, alpha=job.config.alpha),
            encoder=replace(job.encoder, target=job.labels.target(target), weight=weight),
            batch_rows=rows_of_batch(config, job.encoder.spec, job.labels),
            eta0=job.eta0 if config.eta0 is None else config.eta0,
        )

    def _margins(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self, "model_")
        return margins(self._source(X), self.model_, self._jobs)

    def _lazily(self, what: str, X: Any) -> Any:
        """Predictions for a Dask DataFrame, of which nothing is computed yet."""
        from .cluster import predictions

        check_is_fitted(self, "model_")
        return getattr(predictions, f"lazy_{what}")(X, self.model_)

    def _elsewhere(self, X: Any, out: Any, keep: Sequence[str], client: Any) -> Any:
        """Predictions that are not held in memory, if these are such."""
        if out is None:
            if keep or client is not None:
                raise ConfigError("keep and client do nothing without out, the directory to write scores to.")
            return self._lazily("predictions", X) if is_dask_frame(X) else None
        check_is_fitted(self, "model_")
        if not is_stored(X) or is_dask_frame(X) or not isinstance(source := self._stored(X), ParquetSource):
            raise ConfigError("out is for shards, which are scored one by one; write other predictions yourself.")
        executor = None if client is None else _executor(client, source)
        names = [keep] if isinstance(keep, str) else list(keep)
        return write_predictions(source, self.model_, out, keep=names, n_jobs=self._jobs, executor=executor)

    def _stored_metrics(self, X: Any, y: Any, sample_weight: Any, client: Any = None) -> dict[str, Any] | None:
        """Metrics on shards or tables, streamed; None for rows that scikit-learn can score."""
        check_is_fitted(self, "model_")
        X = with_target(X, y)
        if not is_stored(X):
            return None
        source, target, weight = self._training_source(X, y, sample_weight, reset=False, strict=True, client=client)
        return evaluate(source, self.model_, target=target, weight=weight, n_jobs=self._jobs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a safetensors file, whole or not at all; `streamgd.load` reads it."""
        check_is_fitted(self, "model_")
        model = self.model_
        if "config" not in model.training:
            model = replace(model, training={**model.training, "config": self._config().to_json()})
        save_model(model, path)

    def _config(self) -> Config:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(0, 2**31 - 1)
        limit = None if self.memory_limit is None else parse_bytes(self.memory_limit)
        values = {name: getattr(self, name) for name in _CONFIG_PARAMETERS}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        values["n_jobs"] = None if self.n_jobs == -1 else values["n_jobs"]
        if self.cache is not None:
            values["cache"] = os.fspath(self.cache)
        for name in COLUMN_PARAMETERS:
            given = getattr(self, name)
            values[name] = (given,) if isinstance(given, str) else tuple(given or ())
        pairs = [self.interactions] if isinstance(self.interactions, str) else self.interactions or ()
        values["interactions"] = tuple(parse_pair(pair) for pair in pairs)
        return Config(task=self._task, memory_limit=limit, seed=int(seed), **values).check()

    def _keeping(self) -> Keeping:
        return Keeping(self.checkpoint, self.checkpoint_seconds, self.checkpoint_rows, self.resume).check()

    def _train(
        self, job: Job, data: Feed, state: State, story: Story, keeper: Keeper, executor: Executor | None = None
    ) -> None:
        for remark in (*keeper.remarks, *data.remarks()):
            warnings.warn(remark, stacklevel=3)
        if hasattr(data.source, "project"):  # a Dask DataFrame: other columns need not be computed
            data = replace(data, source=data.source.project(job.encoder.columns))
        result = train(job, data, state, story, keeper=keeper, executor=executor)
        for remark in result.remarks():
            warnings.warn(remark, stacklevel=3)
        keeper.finished(result.model)
        self._job, self._state, self._calls = job, state, story.first_epoch + result.epochs
        self._take(result)

    def _take(self, result: Result) -> None:
        """Become what training gave."""
        self.result_ = result
        self._adopt(result.model)
        self.n_iter_ = result.epochs
        self.t_ = int(result.rows)

    def _adopt(self, model: Model) -> None:
        self.model_ = model
        self.coef_ = model.coef.copy()
        self.intercept_ = model.intercept.copy()
        first, names = model.spec.columns[0], model.spec.names
        if first.name == FEATURES and first.kind == "vector":
            self.n_features_in_ = first.size
        else:
            self.n_features_in_ = len(names)
            self.feature_names_in_ = np.array(names, dtype=object)


def _executor(client: Any, source: Source) -> Any:
    """Who carries out rounds on the cluster of a client.

    Raises
    ------
    ConfigError
        The rows are in the memory of this process, or workers cannot do the work.
    """
    from .cluster.connect import carrying_out

    if isinstance(client, str):
        raise ConfigError(f"client is {client!r}; give the client of that cluster: distributed.Client({client!r}).")
    if source.in_memory:
        raise ConfigError(
            "client does nothing for rows that are in memory here: workers read shards or compute Dask DataFrames. "
            "Leave it out, or give paths that workers can reach."
        )
    return carrying_out(client)
