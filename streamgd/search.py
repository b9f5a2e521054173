"""Finding good parameters: many models in one pass over the data, from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from .config import TUNABLE, Config
from .data.frames import is_stored, with_target
from .data.labels import scan_labels
from .data.rowgroups import Source
from .data.shuffle import HELD_OUT, random_order
from .data.table import TableSource
from .errors import ConfigError
from .estimator_base import Estimator
from .estimators import SGDClassifier, SGDRegressor
from .job import hold_out, prepare
from .race import Standing, race
from .state import Progress

#: Lists or arrays of values by the names of parameters, or a list of such.
Grid = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Attributes
    ----------
    best : SGDClassifier or SGDRegressor
        The best model, fitted.
    best_params : dict
        Its parameters of the grid.
    models : list of dict
        All models, best first: their parameters, ``progressive_loss``, ``validation_loss``, the ``rows`` they have
        learned from, and whether they were ``dropped`` (and how far ``behind`` the best then) or ``diverged``.
    """

    best: SGDClassifier | SGDRegressor
    best_params: dict[str, Any]
    models: list[dict[str, Any]]


def tune(
    data: Any,
    target: Any,
    grid: Grid,
    *,
    estimator: SGDClassifier | SGDRegressor | None = None,
    sample_weight: Any = None,
    validation: Any = None,
    halving: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> Tuning:
    """Train a model for each point of a grid side by side, in the passes over the data that one model takes.

    Each model gets the weights, to the last bit, that it would get alone.

    Parameters
    ----------
    data, target, sample_weight, validation
        As ``X``, ``y``, ``sample_weight`` and ``validation`` of `SGDClassifier.fit`.
    grid : dict of lists, or list of these
        Values of parameters, as scikit-learn's ``ParameterGrid`` takes them: of "alpha", "l1_ratio", "penalty", "eta0",
        "power_t", "decay", "warmup_steps", "momentum", "beta_1", "beta_2" and "clip_norm".
    estimator : SGDClassifier or SGDRegressor, optional
        All other parameters; by default those of the class that fits the target.
    halving : bool, default=True
        Whether to drop the worse half at ..., a quarter and half of the first epoch, until two are left.
    callback : callable, optional
        Told of progress (`streamgd.state.Progress`).

    Returns
    -------
    Tuning
        Ordered by the validation loss if there are validation data, else by the loss of the rows of the first epoch
        before they were learned from.

    Raises
    ------
    ConfigError
        The grid is empty or names what models side by side must share.
    TrainingDiverged
        All models did.

    Examples
    --------
    >>> import numpy as np, streamgd as sg
    >>> X = np.random.default_rng(0).normal(size=(2000, 3))
    >>> found = sg.tune(X, X @ [1.0, -2.0, 0.5] > 0, {"alpha": [1e-4, 1.0], "eta0": [0.1, 1.0]})
    >>> found.best_params["alpha"], len(found.models)
    (0.0001, 4)
    """
    data = with_target(data, target)
    template = _default(data, target) if estimator is None else _copy(estimator)
    configs, points = _configs(template, grid, free=estimator is None and is_stored(data))
    source, name, weight = template._training_source(data, target, sample_weight, reset=True)
    held_out = None if validation is None else template._validation_source(validation, weight)
    job, feed = prepare(source, name, configs[0], weight=weight, validation=held_out, beside=configs)
    for remark in feed.remarks():
        warnings.warn(remark, stacklevel=2)
    standings = race(job, feed, points, halving=halving, callback=callback)
    first = standings[0]
    assert first.result is not None
    for remark in first.result.remarks():
        warnings.warn(remark, stacklevel=2)
    kind = SGDClassifier if job.labels.task == "classification" else SGDRegressor
    best = clone(template) if isinstance(template, kind) else kind()
    best.set_params(**first.params)
    best._take(first.result)
    return Tuning(best, first.params, [standing.to_json() for standing in standings])


def _copy(estimator: Any) -> Any:
    """A copy that may be fitted."""
    if not isinstance(estimator, Estimator):
        raise ConfigError(f"estimator is {estimator!r}; expected an SGDClassifier or an SGDRegressor.")
    return clone(estimator)


def _default(data: Any, target: Any) -> Any:
    """An estimator of the class that fits the target."""
    regression = not is_stored(data) and type_of_target(target).startswith("continuous")
    return SGDRegressor() if regression else SGDClassifier()


def _configs(template: Any, grid: Grid, *, free: bool = False) -> tuple[list[Config], list[dict[str, Any]]]:
    """The configuration of each point of a grid; ``free`` leaves the task to the type of the target."""
    try:
        points = [dict(point) for point in ParameterGrid(grid)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the grid is {grid!r}; expected a dict of lists, or a list of these: {error}") from None
    names = {name for point in points for name in point}
    if unknown := sorted(names - set(TUNABLE)):
        raise ConfigError(
            f"the grid names {', '.join(unknown)}; models that are trained side by side may differ in "
            f"{', '.join(TUNABLE)}."
        )
    if not points or not names:
        raise ConfigError("the grid is empty; give for example {'alpha': [1e-6, 1e-5, 1e-4]}.")
    if getattr(template, "checkpoint", None) is not None:
        raise ConfigError("models that are trained side by side have no checkpoint; leave it out.")
    configs = []
    for point in points:
        one = clone(template).set_params(**point)
        if free:
            one._task = None
        configs.append(one._config())
    # random_state=None asks for any seed, and RandomState for its next: either way for one.
    configs = [replace(config, seed=configs[0].seed) for config in configs]
    for config in configs[1:]:
        config.check_beside(configs[0])
    return configs, points


def _offers(method: str) -> Callable[[Any], bool]:
    """Whether a search hands a method on to its best estimator."""
    return lambda search: bool(search.refit) and hasattr(getattr(search, "best_estimator_", search.estimator), method)


class SGDSearchCV(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """Search over a grid, all of whose models are trained side by side in the passes that one takes.

    Like scikit-learn's ``GridSearchCV``; scores are losses of held-out rows with the sign turned.

    Parameters
    ----------
    estimator : SGDClassifier or SGDRegressor
        All other parameters.
    param_grid : dict of lists, or list of these
        As `streamgd.tune` takes it.
    cv : int, optional
        Number of folds that row groups (rows, of arrays and tables) are dealt to; each is held out once. By default one
        part of the size of ``validation_fraction`` is held out.
    validation_fraction : float, default=0.1
        Share that is held out if there is no ``cv``, and `fit` is given no validation data.
    halving : bool, default=False
        Whether to drop the worse half of the models now and then. Those have no score.
    refit : bool, default=True
        Whether to train the best on all rows in the end.

    Attributes
    ----------
    best_params_, best_score_, best_index_
        The best point of the grid.
    best_estimator_ : SGDClassifier or SGDRegressor
        Trained on all rows with it, if ``refit``.
    cv_results_ : dict of arrays
        As of ``GridSearchCV``: "params", "param_...", "split0_test_score", ..., "mean_test_score", "std_test_score",
        "rank_test_score"; and "mean_progressive_loss" and "rows", which each has learned from.
    n_splits_ : int
        Parts that were held out.

    Examples
    --------
    >>> import numpy as np, streamgd as sg
    >>> X = np.random.default_rng(0).normal(size=(2000, 3))
    >>> search = sg.SGDSearchCV(sg.SGDClassifier(), {"alpha": [1e-4, 1e-2, 1.0]}, cv=3)
    >>> search.fit(X, X @ [1.0, -2.0, 0.5] > 0).best_params_
    {'alpha': 0.0001}
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        cv: int | None = None,
        validation_fraction: float = 0.1,
        halving: bool = False,
        refit: bool = True,
    ) -> None:
        self.estimator = estimator
        self.param_grid = param_grid
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.halving = halving
        self.refit = refit

    def __sklearn_tags__(self) -> Any:
        tags, inner = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.estimator_type = inner.estimator_type
        tags.classifier_tags, tags.regressor_tags = inner.classifier_tags, inner.regressor_tags
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> Self:
        """Search, and train the best on all rows.

        Parameters
        ----------
        X, y, sample_weight, validation
            As in `SGDClassifier.fit`; validation data take the place of rows that are held out.

        Returns
        -------
        self
            The fitted search.
        """
        template = _copy(self.estimator)
        configs, points = _configs(template, self.param_grid)
        source, target, weight = template._training_source(X, y, sample_weight, reset=True)
        if validation is None:
            if isinstance(source, TableSource):  # the order of its rows may be that of the classes
                source = source.shuffled(configs[0].seed)
            splits = self._splits(source, configs[0].seed)
        else:
            splits = [(source, template._validation_source(validation, weight))]
        classes = None
        if template._task == "classification":  # a fold may lack one
            jobs = template._jobs
            known = scan_labels(
                source.for_job(configs[0].on_error), target, task="classification", weight=weight, n_jobs=jobs
            ).classes
            classes = None if known is None else known.to_pylist()
        found: list[list[Standing]] = []
        for train, test in splits:
            job, feed = prepare(
                train, target, configs[0], weight=weight, validation=test, beside=configs, classes=classes
            )
            standings = race(job, feed, points, halving=self.halving)
            found.append(sorted(standings, key=lambda standing: standing.index))
        self._write_results(points, found)
        if self.refit:
            self.best_estimator_ = clone(self.estimator).set_params(**self.best_params_)
            self.best_estimator_.fit(X, y, sample_weight)
        return self

    def _splits(self, source: Source, seed: int) -> list[tuple[Source, Source]]:
        """Training and held-out row groups of each part."""
        if self.cv is not None and (not isinstance(self.cv, int) or self.cv < 2):
            raise ConfigError(f"cv is {self.cv!r}; expected a number of folds of at least 2, or None.")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {self.validation_fraction!r}; expected a number in (0, 1).")
        filled = np.flatnonzero(source.manifest.rows)
        if len(filled) < (self.cv or 2):
            raise ConfigError(
                f"{len(filled)} row groups are too few to hold some out with cv={self.cv}: give validation data, or "
                f"write the data with smaller row groups."
            )
        if self.cv is None:
            return [hold_out(source, self.validation_fraction, seed)]
        order = filled[random_order(len(filled), seed, 0, HELD_OUT)]
        return [
            (
                source.subset(np.setdiff1d(filled, order[fold :: self.cv])),
                source.subset(np.sort(order[fold :: self.cv])),
            )
            for fold in range(self.cv)
        ]

    def _write_results(self, points: list[dict[str, Any]], found: list[list[Standing]]) -> None:
        losses = [[s.validation_loss for s in standings] for standings in found]
        scores = -np.array([[np.nan if x is None else x for x in row] for row in losses], np.float64)
        mean = scores.mean(axis=0)
        filled = np.where(np.isnan(mean), -np.inf, mean)
        results: dict[str, Any] = {"params": points}
        for name in sorted({name for point in points for name in point}):
            column = np.ma.MaskedArray(np.empty(len(points), object), mask=True)
            for i, point in enumerate(points):
                if name in point:
                    column[i] = point[name]
            results[f"param_{name}"] = column
        results |= {f"split{i}_test_score": row for i, row in enumerate(scores)}
        results["mean_test_score"], results["std_test_score"] = mean, scores.std(axis=0)
        results["rank_test_score"] = (1 + (filled[:, np.newaxis] < filled).sum(axis=1)).astype(np.int32)
        results["mean_progressive_loss"] = np.mean([[s.progressive_loss for s in one] for one in found], axis=0)
        results["rows"] = np.sum([[s.rows for s in one] for one in found], axis=0)
        if np.isnan(mean).all():
            raise ConfigError("no model was left in every fold; leave out halving.")
        self.cv_results_, self.n_splits_ = results, len(found)
        self.best_index_ = int(np.argmin(results["rank_test_score"]))
        self.best_params_, self.best_score_ = points[self.best_index_], float(mean[self.best_index_])

    @property
    def classes_(self) -> Any:
        """Class labels of the best estimator."""
        return self._best().classes_

    @property
    def n_features_in_(self) -> int:
        """Number of columns of the best estimator."""
        return int(self._best().n_features_in_)

    def _best(self) -> Any:
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_

    @available_if(_offers("predict"))  # type: ignore[untyped-decorator]
    def predict(self, X: Any) -> Any:
        """Predict with the best estimator."""
        return self._best().predict(X)

    @available_if(_offers("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the best estimator."""
        return self._best().predict_proba(X)

    @available_if(_offers("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Any:
        """Margins of the best estimator."""
        return self._best().decision_function(X)

    @available_if(_offers("score"))  # type: ignore[untyped-decorator]
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy or coefficient of determination of the best estimator."""
        return float(self._best().score(X, y, sample_weight))
