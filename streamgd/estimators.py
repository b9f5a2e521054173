"""The scikit-learn face: estimators that also take paths."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin

from .estimator_base import Estimator
from .model import Model, sigmoid
from .modelfile import load_model


class SGDClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
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
        stored = self._stored_metrics(X, y, sample_weight)
        return float(super().score(X, y, sample_weight) if stored is None else stored["accuracy"])

    def _adopt(self, model: Model) -> None:
        super()._adopt(model)
        self.coef_ = self.coef_[np.newaxis]
        self.classes_ = np.array(model.classes)


class SGDRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
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
        stored = self._stored_metrics(X, y, sample_weight)
        return float(super().score(X, y, sample_weight) if stored is None else stored["r2"])


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
