"""The scikit-learn face: estimators that also take paths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if

from .data.frames import is_dask_frame
from .errors import ConfigError
from .estimator_base import Estimator
from .estimator_data import COLUMN_PARAMETERS
from .model import Model
from .modelfile import load_model

#: Parameters that say nothing of the model.
_OF_MACHINE = ("cache", "memory_limit", "n_jobs")


def _gives_probabilities(estimator: Any) -> bool:
    if estimator.loss not in (None, "log_loss", "modified_huber"):
        raise AttributeError(f"loss={estimator.loss!r} gives no probabilities; use 'log_loss' or 'modified_huber'.")
    return True


class SGDClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """Linear classifier trained by mini-batch gradient descent on data of any size.

    Parameters
    ----------
    loss : {"log_loss", "hinge", "squared_hinge", "modified_huber", "perceptron"}, optional
        "log_loss", which is the default, is logistic regression, by softmax for more than two classes; the others are
        for two.
    epsilon, quantile : float, optional
        For losses of `SGDRegressor`.
    penalty : {"l2", "l1", "elasticnet", None}, default="l2"
        Half the squared norm of the weights, the sum of their absolute values, or both; never of the intercept.
        Weights are those of standardised numbers (see ``standardize``) and of categories.
    alpha : float, optional
        The objective is mean loss + alpha * penalty. By default 1 / (sum of the rows' weights), which is C=1 in
        scikit-learn's `LogisticRegression`, but at most 0.01.
    l1_ratio : float, optional
        Share of the absolute values in "elasticnet"; 0.15 by default.
    optimizer : {"adagrad", "sgd", "momentum", "nesterov", "rmsprop", "adam", "ftrl", "lbfgs"}, optional
        Rule of a step. "lbfgs" takes whole passes instead, and reaches the optimum. By default "adagrad", or with "l1"
        and "elasticnet" "ftrl", which leaves true zeros (the others do so only where a step sees many rows).
    learning_rate : {"constant", "invscaling", "optimal", "cosine", "step"}, optional
        Schedule, counted in steps (mini-batches): ``eta0``, ``eta0 / (step + 1)**power_t``,
        ``1 / (alpha (t0 + step))``, half a cosine from ``eta0`` to 0 over all epochs, or ``eta0 * decay**epoch``. By
        default "constant" for AdaGrad and FTRL, which have rates of their own, else "invscaling".
    eta0 : float, optional
        Initial learning rate for scaled features. The default depends on the optimizer, on the mean square length of a
        row, so that it fits few features as well as many, and for few rows on their number.
    power_t, decay : float, optional
        Of "invscaling" (0.25 by default) and "step" (0.5).
    warmup_steps : int, default=0
        Steps in which the learning rate rises to what the schedule says.
    momentum, beta_1, beta_2 : float, optional
        For "momentum" and "nesterov" (0.9 by default), "adam" (0.9 and 0.999) and "rmsprop" (``beta_2``, 0.99).
    clip_norm : float, optional
        A step's gradient, of scaled features, is made no longer than this.
    average : bool, optional
        Whether the model is an average of the weights over training, weighted towards its end. By default yes, unless
        every step sees all rows, or for FTRL.
    polish : int, optional
        At most so many passes of L-BFGS after the steps. By default none; but 100 for at most 16,384 rows, if no
        parameter of steps is given, the loss is smooth and the penalty "l2": their optimum costs next to nothing.
    fit_intercept : bool, default=True
        Whether there is an intercept.
    standardize : bool, default=True
        Whether steps are those of numbers divided by their typical magnitude (the root of E x^4 / E x^2 about the mean:
        1.7 standard deviations of a normal feature, 1 for a rare 0/1 feature; bounded for long tails), and the penalty
        that of numbers divided by their standard deviation. Coefficients are always of the features as they are.
    epochs : int, optional
        Passes over the data: 5 by default, at most if ``early_stopping``; of L-BFGS at most 1000.
    batch_size : int, None or "auto", default="auto"
        Rows a step: 1 is SGD, None is batch gradient descent (one step an epoch from all rows). "auto" leaves about
        1,000 steps an epoch, with at most 256 rows a step, or 1,024 of hashed categories. A step uses the *mean*
        gradient of its rows.
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
    class_weight : dict, "balanced" or None, default=None
        Factors of the weights of the rows of each class (1 for those that are not named); "balanced" gives all classes
        the same sum.
    drop : str or list of str, optional
        Columns that are not features. This and the next four are for shards, tables and DataFrames.
    categorical : str or list of str, optional
        Integers that are categories; strings are anyway.
    text : str or list of str, optional
        Strings that are texts: their words, and pairs of words, are features.
    calendar : str or list of str, optional
        Dates and timestamps that become month, day of the week and hour, as categories.
    interactions : list of str or of pairs, optional
        Pairs of features such as ``"carrier*origin"``; parts of a calendar are called ``hour(name)``. Two categories
        make a category, two numbers their product, one each a slope for each category.
    missing_indicator : bool, default=False
        Whether each number with missing values gets a 0/1 feature that says where.
    hash_bits : int, optional
        Categories and words share 2**hash_bits weights, at most 2**28; by default from a sample of the data.
    cache : "auto", path or None, default="auto"
        Where the first epoch leaves encoded rows for the later ones: by default in a temporary file, if rows are read
        more than once and the disk has room; in a directory, where a later `fit` on the same shards finds them; or
        nowhere. It never changes a result.
    on_error : {"raise", "skip"}, default="raise"
        Whether row groups and shards that cannot be read or encoded end the training, or are left out and counted. What
        failed to be read because of the storage is never left out.
    partitions : int, default=1
        Streams that the rows are dealt to, each trained on a thread of its own between synchronisations. Unlike
        ``n_jobs`` it changes the result.
    checkpoint : path, optional
        Directory in which what was learned is kept, so that a process that dies loses nothing; see ``resume``.
    checkpoint_seconds : float, optional
        From one checkpoint to the next; 60 by default. There is also one at the end of each epoch and round.
    checkpoint_rows : int, optional
        Rows from one checkpoint to the next, at most.
    resume : bool, default=False
        Whether `fit` goes on from the newest checkpoint, if there is one, to the bits of a run without interruption.
    memory_limit : str or int, optional
        Bound for the whole process, such as "1GB". A quarter of the memory by default.
    n_jobs : int, optional
        Threads that read and encode; all processors by default. They never change a result.
    random_state : int, RandomState or None, default=0
        Order of the rows. Equal data, parameters and seeds give equal weights to the last bit.

    Attributes
    ----------
    coef_ : ndarray of float64, shape (1, n) or (n_classes, n)
        Coefficients of the numbers as they are, in the order of ``model_.spec.feature_names()``.
    intercept_ : ndarray of float64, shape (1,) or (n_classes,)
        Intercepts.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_features_in_, feature_names_in_
        Number and names of the columns.
    n_iter_ : int
        Epochs done.
    result_ : Result
        Rows, steps, losses by epoch, seconds, peak memory; after L-BFGS ``objective`` and ``gradient_norm``.
    model_ : Model
        All that predicts, with the weights of hashed features.

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
        tags.classifier_tags.multi_class = self.loss in (None, "log_loss")
        return tags

    def decision_function(self, X: Any) -> Any:
        """Margins of rows: of the second class (for "log_loss" its log-odds), or of each class if there are more.

        Parameters
        ----------
        X : as in `fit`
            Rows. For shards, the margins of all rows are held in memory: 8 bytes a row.

        Returns
        -------
        ndarray of float64, shape (n_samples,), or (n_samples, n_classes) if there are more than two
            Of a Dask DataFrame a Dask Series or Array, of which nothing is computed yet.
        """
        if is_dask_frame(X):
            return self._lazily("margins", X)
        return self._margins(X)

    def predict(self, X: Any, *, out: Any = None, keep: Sequence[str] = (), client: Any = None) -> Any:
        """Class labels of rows, or output shards with a score for every row.

        Parameters
        ----------
        X : as in `fit`
            Rows. For shards without ``out``, the margins of all rows are held in memory: 8 bytes a row.
        out : path or URI, optional
            Directory to which, for shards, a shard each is written with a score for every row, as ``streamgd predict``
            does it; no more rows are in memory than record batches.
        keep : list of str
            Columns that are carried over to ``out``.
        client : distributed.Client, optional
            Of a Dask cluster whose workers write ``out``, a shard each at a time.

        Returns
        -------
        ndarray of shape (n_samples,), or list of paths
            Of a Dask DataFrame a Dask Series, of which nothing is computed yet.
        """
        if (found := self._elsewhere(X, out, keep, client)) is not None:
            return found
        margins = self._margins(X)
        return self.classes_[self.model_.codes(margins)]

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes in the order of ``classes_``; ndarray of float64, (n_samples, n_classes).

        Of a Dask DataFrame a Dask Array, of which nothing is computed yet. Only of losses that give probabilities:
        "log_loss" and "modified_huber".
        """
        if is_dask_frame(X):
            return self._lazily("probabilities", X)
        margins = self._margins(X)
        probabilities = self.model_.probabilities(margins)
        assert probabilities is not None
        return probabilities

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, client: Any = None) -> float:
        """Accuracy on rows given as in `fit`; shards are streamed, ``client`` computes Dask DataFrames."""
        stored = self._stored_metrics(X, y, sample_weight, client)
        return float(super().score(X, y, sample_weight) if stored is None else stored["accuracy"])

    def _adopt(self, model: Model) -> None:
        super()._adopt(model)
        self.classes_ = np.array(model.classes)


class SGDRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """Linear regression trained by mini-batch gradient descent on data of any size.

    Parameters are those of `SGDClassifier`, but for ``class_weight``, which does nothing here, and these. The target is
    divided by its standard deviation while training (not for "poisson"), so that learning rates fit any unit; ``alpha``
    then weighs the penalty against the loss in these units.

    Parameters
    ----------
    loss : {"squared_error", "huber", "epsilon_insensitive", "quantile", "poisson"}, optional
        Half the squared difference, which is the default; the same up to ``epsilon`` and linear beyond; the absolute
        difference beyond ``epsilon``; that of a quantile; that of counts, whose logarithm is linear.
    epsilon : float, optional
        Of "huber" and "epsilon_insensitive", in units of the target; by default 1.35 and 0.1 standard deviations of it.
    quantile : float, optional
        Of "quantile"; 0.5 by default, which is the median.

    Attributes
    ----------
    coef_ : ndarray of float64, shape (n,)
        Coefficients of the numbers as they are.
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

    def predict(self, X: Any, *, out: Any = None, keep: Sequence[str] = (), client: Any = None) -> Any:
        """Predicted values of rows, or output shards with a value for every row.

        Parameters
        ----------
        X : as in `fit`
            Rows. For shards without ``out``, the values of all rows are held in memory: 8 bytes a row.
        out, keep, client
            As in `SGDClassifier.predict`.

        Returns
        -------
        ndarray of float64, shape (n_samples,), or list of paths
            Of a Dask DataFrame a Dask Series, of which nothing is computed yet.
        """
        if (found := self._elsewhere(X, out, keep, client)) is not None:
            return found
        margins = self._margins(X)
        return self.model_.values(margins)

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, client: Any = None) -> float:
        """R² on rows given as in `fit`; shards are streamed, ``client`` computes Dask DataFrames."""
        stored = self._stored_metrics(X, y, sample_weight, client)
        return float(super().score(X, y, sample_weight) if stored is None else stored["r2"])

    def _adopt(self, model: Model) -> None:
        super()._adopt(model)
        self.coef_ = self.coef_[0]


def load(path: str | os.PathLike[str]) -> SGDClassifier | SGDRegressor:
    """Load a model file as a fitted estimator.

    Parameters
    ----------
    path : path
        File that `save` or ``streamgd train --model`` wrote.

    Returns
    -------
    SGDClassifier or SGDRegressor
        It predicts; training can begin anew with `fit`, with the parameters of before, but for those of the machine
        (``cache``, ``memory_limit``, ``n_jobs``) and of checkpoints.

    Raises
    ------
    ModelFileError
        The file is damaged, foreign, or of a later version.
    """
    model = load_model(path)
    kind = SGDClassifier if model.task == "classification" else SGDRegressor
    estimator = kind(model.loss)
    try:
        estimator = kind(**{**_told_parameters(model.training, kind().get_params()), "loss": model.loss})
        estimator._config()
    except (ConfigError, TypeError, ValueError):  # the file says it otherwise than this version, or is made up
        estimator = kind(model.loss)
    estimator._adopt(model)
    return estimator


def _told_parameters(training: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an estimator as a model file tells them, but for those of a machine.

    Raises
    ------
    TypeError, ValueError
        The file tells something else.
    """
    config = training.get("config", {})
    if not isinstance(config, dict):
        raise TypeError(f"config is {config!r}")
    found = {name: value for name, value in config.items() if name in known and name not in _OF_MACHINE}
    if "seed" in config:
        found["random_state"] = config["seed"]
    if found.get("class_weight") not in (None, "balanced"):
        found["class_weight"] = dict(found["class_weight"])
    for name in COLUMN_PARAMETERS:
        found[name] = list(found.get(name, ())) or None
    found["interactions"] = ["*".join(pair) for pair in config.get("interactions", ())] or None
    return found
