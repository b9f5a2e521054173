"""The scikit-learn face: estimators that also take paths.

Arrays and DataFrames become in-memory tables and go the same way as shards, so there is one path to test.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .config import Config
from .data.evaluate import evaluate, margins
from .data.rowgroups import Source
from .data.source import TableSource, as_source
from .data.threads import available_cpus
from .errors import ConfigError
from .features import Column
from .job import Feed, Job, feed, prepare
from .memory import parse_bytes
from .model import Model, sigmoid
from .modelfile import load_model, save_model
from .trainer import State, train

#: Parameters that go into `Config` as they are.
_CONFIG_PARAMETERS = tuple(name for name in Config.__dataclass_fields__ if name not in ("task", "memory_limit", "seed"))
_FEATURES, _TARGET, _WEIGHT = "X", "y", "sample_weight"


def _is_stored(data: Any) -> bool:
    """Whether data are shards or Arrow tables, whose target is a column, and not an array or DataFrame."""
    if isinstance(data, str | os.PathLike | pa.Table | pa.RecordBatch):
        return True
    if isinstance(data, list | tuple) and len(data) > 0:
        return all(isinstance(item, str | os.PathLike) for item in data)
    return hasattr(data, "files") and hasattr(data, "filesystem")


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share."""

    _task: Any

    def __init__(
        self,
        loss: str | None = None,
        *,
        penalty: str | None = "l2",
        alpha: float = 1e-6,
        optimizer: str = "adagrad",
        learning_rate: str | None = None,
        eta0: float | None = None,
        power_t: float | None = None,
        momentum: float | None = None,
        average: bool | None = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        epochs: int = 5,
        batch_size: int | str | None = "auto",
        shuffle: bool = True,
        window_rows: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        tol: float = 1e-4,
        drop: Sequence[str] | None = None,
        memory_limit: str | int | None = None,
        n_jobs: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.momentum = momentum
        self.average = average
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
        self.drop = drop
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> Self:
        """Train from the start.

        Parameters
        ----------
        X : path, list of paths, pyarrow Table or Dataset; or array-like of shape (n_samples, n_features)
            Shards (files, directories, globs, URIs); or rows in memory. Missing values (null, NaN) count as the
            mean of their column.
        y : str, or array-like of shape (n_samples,)
            Name of the target column; or the targets.
        sample_weight : str, or array-like of shape (n_samples,), optional
            Name of a column of weights; or the weights.
        validation : like X, optional
            Shards with the same columns (for arrays: X and y, or X, y and weights) on which the loss is measured
            after each epoch, and on which ``early_stopping`` decides.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        DataError
            The data cannot be trained on; its subclass says why.
        ConfigError
            A parameter is wrong, or does nothing for the chosen solver.
        TrainingDiverged
            A weight became infinite or NaN.
        """
        source, target, weight = self._training_source(X, y, sample_weight, reset=True)
        held_out = None if validation is None else self._validation_source(validation, weight)
        config = self._config()
        job, data = prepare(source, target, config, weight=weight, drop=self.drop or (), validation=held_out)
        self._train(job, data, State.start(job), 0)
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
                "this estimator was loaded from a model file, which predicts but holds no optimizer state: "
                "partial_fit cannot go on from it. Call fit."
            )
        if first and self._task == "classification" and classes is None:
            raise ConfigError("classes must be given in the first call of partial_fit: all labels that will occur.")
        if not first and classes is not None and list(np.unique(classes)) != list(self.classes_):
            raise ConfigError(f"classes are {classes!r}, but the first call said {self.classes_!r}.")
        config = self._config()
        if config.early_stopping:
            raise ConfigError("early_stopping does nothing in partial_fit, which trains one epoch; leave it out.")
        config = replace(config, epochs=1)
        columns = None if first else self.model_.spec.columns
        source, target, weight = self._training_source(X, y, sample_weight, reset=first, columns=columns)
        if first:
            labels = None if classes is None else np.unique(classes).tolist()
            job, data = prepare(source, target, config, weight=weight, drop=self.drop or (), classes=labels)
            state, self._calls = State.start(job), 0
        else:
            job = self._continued(config, target, weight)
            data, state = feed(job, source), self._state
        self._train(job, data, state, self._calls)
        return self

    def _continued(self, config: Config, target: str, weight: str | None) -> Job:
        """The job of the first call, for other data; what its state was made for cannot change."""
        job: Job = self._job
        for name in ("loss", "optimizer", "fit_intercept", "standardize"):
            if getattr(config, name) != getattr(job.config, name):
                raise ConfigError(
                    f"{name} was {getattr(job.config, name)!r} in the first call and is {getattr(config, name)!r} now; "
                    f"partial_fit cannot change it. Call fit."
                )
        return replace(
            job,
            config=config,
            encoder=replace(job.encoder, target=job.labels.target(target), weight=weight),
            batch_rows=config.batch_rows(job.labels.rows),
            eta0=job.eta0 if config.eta0 is None else config.eta0,
        )

    def _margins(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self, "model_")
        return margins(self._source(X), self.model_, self.n_jobs or available_cpus())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a safetensors file, whole or not at all; `streamgd.load` reads it."""
        check_is_fitted(self, "model_")
        save_model(self.model_, path)

    def _config(self) -> Config:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(0, 2**31 - 1)
        limit = None if self.memory_limit is None else parse_bytes(self.memory_limit)
        values = {name: getattr(self, name) for name in _CONFIG_PARAMETERS}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        return Config(task=self._task, memory_limit=limit, seed=int(seed), **values).check()

    def _train(self, job: Job, data: Feed, state: State, calls: int) -> None:
        if data.memory.lowered:
            warnings.warn(
                f"memory_limit lowers the window from {data.memory.wanted_rows} to {data.memory.window_rows} rows: the "
                f"shuffle is coarser, and the weights differ from those of a larger limit.",
                stacklevel=3,
            )
        result = train(job, data, state, first_epoch=calls)
        self._job, self._state, self._calls = job, state, calls + result.epochs
        self.result_ = result
        self._adopt(result.model)
        self.n_iter_ = result.epochs
        self.t_ = int(result.rows)

    def _adopt(self, model: Model) -> None:
        self.model_ = model
        self.coef_ = model.coef.copy()
        self.intercept_ = np.array([model.intercept])
        self.n_features_in_ = model.spec.n_features
        if model.spec.columns[0].name != _FEATURES or model.spec.columns[0].kind != "vector":
            self.feature_names_in_ = np.array(model.spec.feature_names(), dtype=object)

    def _training_source(
        self, X: Any, y: Any, weight: Any, *, reset: bool, columns: tuple[Column, ...] | None = None
    ) -> tuple[Source, str, str | None]:
        """The source, and the names of its target and weight columns; ``columns`` are those that a model knows."""
        if _is_stored(X):
            if not isinstance(y, str):
                raise ConfigError(f"y is {y!r}; with shards or tables it is the name of the target column.")
            if weight is not None and not isinstance(weight, str):
                raise ConfigError("with shards or tables sample_weight is the name of a column.")
            return as_source(X, self.n_jobs or available_cpus()), y, weight
        if self.drop:
            raise ConfigError("drop names columns of shards and tables; of arrays and DataFrames, leave them out of X.")
        named = hasattr(X, "columns")
        checked, y = validate_data(
            self,
            X,
            y,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            y_numeric=self._task == "regression",
            reset=reset,
        )
        if self._task == "classification":
            check_classification_targets(y)
        if columns is None:
            names = list(self.feature_names_in_) if named and hasattr(self, "feature_names_in_") else []
            unnamed = Column(_FEATURES, "vector", checked.shape[1])
            columns = tuple(Column(name, "number") for name in names) or (unnamed,)
        table = _features(checked, columns)
        target, weight_name = _unused(table, _TARGET), None
        table = table.append_column(target, pa.array(y))
        if weight is not None:
            weight_name = _unused(table, _WEIGHT)
            weights = _check_sample_weight(weight, checked, ensure_non_negative=True)
            table = table.append_column(weight_name, pa.array(weights))
        return TableSource(table), target, weight_name

    def _validation_source(self, validation: Any, weight: str | None) -> Source:
        if _is_stored(validation):
            return as_source(validation, self.n_jobs or available_cpus())
        if not isinstance(validation, tuple) or len(validation) not in (2, 3):
            raise ConfigError("validation is neither shards nor a tuple (X, y) or (X, y, sample_weight).")
        X, y, weights = validation if len(validation) == 3 else (*validation, None)
        if weights is None and weight is not None:
            weights = np.ones(len(y))
        return self._training_source(X, y, weights, reset=False)[0]

    def _source(self, X: Any) -> Source:
        """Rows to predict."""
        if _is_stored(X):
            return as_source(X, self.n_jobs or available_cpus())
        checked = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=False)
        return TableSource(_features(checked, self.model_.spec.columns))


def _features(X: NDArray[Any], columns: tuple[Column, ...]) -> pa.Table:
    """A table of features that lie side by side in an array."""
    arrays, first = {}, 0
    for column in columns:
        cells = np.ascontiguousarray(X[:, first : first + column.size])
        flat, first = pa.array(cells.ravel()), first + column.size
        arrays[column.name] = flat if column.kind == "number" else pa.FixedSizeListArray.from_arrays(flat, column.size)
    return pa.table(arrays)


def _unused(table: pa.Table, name: str) -> str:
    while name in table.column_names:
        name += "_"
    return name


class SGDClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Linear classifier trained by mini-batch gradient descent on data of any size.

    Parameters
    ----------
    loss : {"log_loss"}, optional
        "log_loss", which is the default, is logistic regression.
    penalty : {"l2", None}, default="l2"
        Half the squared norm of the weights of scaled features (see ``standardize``); never of the intercept.
    alpha : float, default=1e-6
        The objective is mean loss + alpha * penalty.
    optimizer : {"adagrad", "sgd", "momentum", "nesterov"}, default="adagrad"
        Rule of a step.
    learning_rate : {"constant", "invscaling", "optimal"}, optional
        Schedule, counted in steps (mini-batches): ``eta0``, ``eta0 / (step + 1)**power_t``, or
        ``1 / (alpha (t0 + step))``. By default "constant" for AdaGrad, which has rates of its own, else "invscaling".
    eta0 : float, optional
        Initial learning rate for scaled features. The default depends on the optimizer and on the mean square length
        of a row, so that it fits few features as well as many.
    power_t : float, optional
        Exponent of "invscaling"; 0.25 by default.
    momentum : float, optional
        For "momentum" and "nesterov"; 0.9 by default.
    average : bool, optional
        Whether the model is an average of the weights over training, weighted towards its end. By default yes,
        unless every step sees all rows.
    fit_intercept : bool, default=True
        Whether there is an intercept.
    standardize : bool, default=True
        Whether steps and penalty are those of features divided by their typical magnitude (the root of
        E x^4 / E x^2 about the mean: 1.7 standard deviations of a normal feature, 1 for a rare 0/1 feature).
        Coefficients are always of the features as they are.
    epochs : int, default=5
        Passes over the data, at most if ``early_stopping``.
    batch_size : int, None or "auto", default="auto"
        Rows a step: 1 is SGD, None is batch gradient descent (one step an epoch from all rows). "auto" leaves about
        1,000 steps an epoch, with at most 256 rows a step. A step uses the *mean* gradient of its rows.
    shuffle : bool, default=True
        Whether rows come in a fresh random order every epoch.
    window_rows : int, optional
        Rows that are shuffled together; by default a tenth of the data, within bounds.
    early_stopping : bool, default=False
        Stop when the validation loss has not improved by ``tol`` for ``n_iter_no_change`` epochs, and keep the
        weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of row groups held out for ``early_stopping`` if `fit` is given no validation data.
    n_iter_no_change : int, default=3
        See ``early_stopping``.
    tol : float, default=1e-4
        See ``early_stopping``.
    drop : list of str, optional
        Columns of shards that are not features.
    memory_limit : str or int, optional
        Bound for the whole process, such as "1GB". A quarter of the memory by default.
    n_jobs : int, optional
        Threads that read and encode; all processors by default. They never change a result.
    random_state : int, RandomState or None, default=0
        Order of the rows. Equal data, parameters and seeds give equal weights to the last bit.

    Attributes
    ----------
    coef_ : ndarray of float64, shape (1, n_features)
        Coefficients of the features as they are.
    intercept_ : ndarray of float64, shape (1,)
        Intercept.
    classes_ : ndarray of shape (2,)
        Class labels.
    n_features_in_, feature_names_in_
        Number and names of the features.
    n_iter_ : int
        Epochs done.
    result_ : Result
        Rows, steps, losses by epoch, seconds, peak memory.

    Examples
    --------
    >>> import numpy as np, streamgd as sg
    >>> X = np.random.default_rng(0).normal(size=(1000, 3))
    >>> clf = sg.SGDClassifier().fit(X, X @ [1.0, -2.0, 0.5] > 0)
    >>> clf.score(X, X @ [1.0, -2.0, 0.5] > 0) > 0.97
    True
    """

    _task = "classification"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Margins of rows: the log-odds of the second class.

        Parameters
        ----------
        X : as in `fit`
            Rows. For shards, the margins of all rows are held in memory: 8 bytes a row.

        Returns
        -------
        ndarray of float64, shape (n_samples,)
        """
        return self._margins(X)

    def predict(self, X: Any) -> NDArray[Any]:
        """Class labels of rows, as in `decision_function`; ndarray of shape (n_samples,)."""
        margin = self.decision_function(X)
        labels: NDArray[Any] = self.classes_[(margin > 0).astype(np.intp)]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of the classes in the order of ``classes_``; ndarray of float64, shape (n_samples, 2)."""
        positive = sigmoid(self.decision_function(X))
        return np.column_stack([1 - positive, positive])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on rows given as in `fit`; shards are streamed."""
        check_is_fitted(self, "model_")
        if _is_stored(X):
            source, target, weight = self._training_source(X, y, sample_weight, reset=False)
            jobs = self.n_jobs or available_cpus()
            return float(evaluate(source, self.model_, target=target, weight=weight, n_jobs=jobs)["accuracy"])
        return float(super().score(X, y, sample_weight))

    def _adopt(self, model: Model) -> None:
        super()._adopt(model)
        self.coef_ = self.coef_[np.newaxis]
        self.classes_ = np.array(model.classes)


class SGDRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """Linear regression trained by mini-batch gradient descent on data of any size.

    Parameters are those of `SGDClassifier`, but ``loss`` is "squared_error" (the default): half the squared
    difference. The target is standardised while training, so that learning rates fit any unit; ``alpha`` then
    weighs the penalty of the standardised weights against the loss in units of the target's variance.

    Attributes
    ----------
    coef_ : ndarray of float64, shape (n_features,)
        Coefficients of the features as they are.
    intercept_ : ndarray of float64, shape (1,)
        Intercept.
    n_features_in_, feature_names_in_, n_iter_, result_
        As in `SGDClassifier`.

    Examples
    --------
    >>> import numpy as np, streamgd as sg
    >>> X = np.random.default_rng(0).normal(size=(1000, 3))
    >>> reg = sg.SGDRegressor().fit(X, X @ [1.0, -2.0, 0.5] + 4)
    >>> reg.score(X, X @ [1.0, -2.0, 0.5] + 4) > 0.999
    True
    """

    _task = "regression"

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted values of rows.

        Parameters
        ----------
        X : as in `fit`
            Rows. For shards, the values of all rows are held in memory: 8 bytes a row.

        Returns
        -------
        ndarray of float64, shape (n_samples,)
        """
        return self._margins(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination on rows given as in `fit`; shards are streamed."""
        check_is_fitted(self, "model_")
        if _is_stored(X):
            source, target, weight = self._training_source(X, y, sample_weight, reset=False)
            jobs = self.n_jobs or available_cpus()
            return float(evaluate(source, self.model_, target=target, weight=weight, n_jobs=jobs)["r2"])
        return float(super().score(X, y, sample_weight))


def load(path: str | os.PathLike[str]) -> SGDClassifier | SGDRegressor:
    """Load a model file as a fitted estimator.

    Parameters
    ----------
    path : path
        File that `save` or ``streamgd train --model`` wrote.

    Returns
    -------
    SGDClassifier or SGDRegressor
        It predicts; training can begin anew with `fit`.

    Raises
    ------
    ModelFileError
        The file is damaged, foreign, or of a later version.
    """
    model = load_model(path)
    estimator = SGDClassifier(model.loss) if model.task == "classification" else SGDRegressor(model.loss)
    estimator._adopt(model)
    return estimator
