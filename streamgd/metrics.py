"""Metrics of a stream: one pass, a fixed amount of memory, no row kept.

Every metric has ``update`` (a batch of rows), ``merge`` (another one's rows, for partitions) and ``compute`` (plain
Python numbers; None where a metric is not defined, so that the result is valid JSON). How the rows were cut into
batches and partitions changes a result by float64 rounding only. An update that raises has added nothing. With sample
weights every mean is a weighted one, as in scikit-learn.

The ROC AUC needs the order of all margins. It comes from a histogram over fixed bins, so it is known up to the pairs of
a positive and a negative row in one bin, and that bound is computed beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import BadWeight, DataError
from .ranks import BYTES_PER_BIN, FLOOR_EXPONENT, MANTISSA_BITS, RankHistogram

_Vector: TypeAlias = npt.NDArray[np.float64]

# Rows that are worked on at once, so that temporaries are 128 kB each whatever the batch. Measured for BinaryMetrics:
# 17-18 ns a row, as with 8,192 and 32,768; 22 with 4,096 and 16-24 with 65,536, which does not fit the L2 cache.
_PIECE = 16_384

_MOST_AUC_CLASSES = 50
_MULTICLASS_BYTES = 16 * 2**20

# Sums of squares of 1e9 such numbers are finite.
_LARGEST = 1e140
_LOG_OF_ZERO = math.log(5e-324)
_ADVICE = "look for features far outside the range of the training data, or for a model that has diverged"


class BinaryMetrics:
    """Log loss, accuracy and ROC AUC of margins for two classes.

    The bins of the ROC AUC are 2**-19 wide around 0, grow to |margin| / 2**13, and end at ±2**16, beyond which all
    margins share a bin. Memory is that of the bins, at most 11.5 MB; pages of bins without margins are never touched.

    Examples
    --------
    >>> metrics = BinaryMetrics()
    >>> metrics.update([-2.0, -1.0, 0.5, 3.0], [0, 1, 0, 1])
    >>> result = metrics.compute()
    >>> result["rows"], result["accuracy"], result["roc_auc"], result["roc_auc_error"]
    (4, 0.5, 0.75, 0.0)
    """

    def __init__(self) -> None:
        self._sums = _Sums()
        self._ranks = RankHistogram(MANTISSA_BITS, octaves=22, signs=2)

    def update(self, margin: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        margin : array_like, shape (n,)
            Xw + b, the log-odds of the second class.
        y : array_like, shape (n,)
            0 or 1.
        sample_weight : array_like, shape (n,), optional
            Not negative; 1 each if not given.

        Raises
        ------
        DataError
            If a margin is NaN or beyond ±1e140.
        BadWeight
            If a weight is negative, NaN or infinite.
        ValueError
            If the shapes differ, or a `y` is neither 0 nor 1.
        """
        z_all, y_all, w_all = _columns(margin, y, sample_weight)
        _require_usable(z_all, "margins")
        if not ((y_all == 0) | (y_all == 1)).all():
            raise ValueError("y holds something else than 0 and 1: pass the positions in classes_, not the labels")
        for piece in _pieces(len(z_all)):
            z, positive, w = z_all[piece], y_all[piece], w_all[piece]
            negative = 1.0 - positive
            # log(1 + exp(-s z)) with s = ±1 the sign that y wants: exp of a number <= 0 cannot overflow.
            loss = np.log1p(np.exp(-np.abs(z))) + np.maximum((negative - positive) * z, 0.0)
            self._sums.add(loss, (z > 0) == (positive > 0), w)
            self._ranks.add(z, w * positive, w * negative)

    def merge(self, other: BinaryMetrics) -> None:
        """Add the rows that `other` has seen.

        Parameters
        ----------
        other : BinaryMetrics
            Left as it is.
        """
        self._sums.merge(other._sums)
        self._ranks.merge(other._ranks)

    def compute(self) -> dict[str, float | int | None]:
        """Metrics of all rows so far.

        Returns
        -------
        dict
            ``rows``, ``log_loss`` (natural logarithm), ``accuracy`` (of margin > 0), ``roc_auc`` and ``roc_auc_error``:
            the ROC AUC of the float64 margins is not farther than this from ``roc_auc``, since only the order of pairs
            in one bin is unknown. None without rows of positive weight; the last two also if one class is absent.
        """
        auc, error = self._ranks.auc() or (None, None)
        return {
            **self._sums.compute(),
            "roc_auc": auc,
            "roc_auc_error": error,
        }


class MulticlassMetrics:
    """Log loss, accuracy and one-vs-rest ROC AUC of log-probabilities for any number of classes.

    The bins of the ROC AUC take at most 16 MiB however many classes there are, so they are wider for more classes: for
    normally distributed scores the bound was 2e-5 with 3 classes and 1e-3 with 50.

    Parameters
    ----------
    n_classes : int
        At least 2. Above 50 there is no ROC AUC.

    Examples
    --------
    >>> import numpy as np
    >>> metrics = MulticlassMetrics(3)
    >>> probability = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]
    >>> metrics.update(np.log(probability), [0, 1, 2, 2])
    >>> result = metrics.compute()
    >>> result["rows"], result["accuracy"], round(result["roc_auc"], 4)
    (4, 0.75, 0.8611)
    """

    def __init__(self, n_classes: int) -> None:
        if n_classes < 2:
            raise ValueError(f"n_classes is {n_classes}: expected at least 2")
        self._n_classes = n_classes
        self._sums = _Sums()
        self._ranks: list[RankHistogram] = []
        if n_classes <= _MOST_AUC_CLASSES:
            # Logarithms of float64 probabilities have one sign and end at -745.
            octaves = 10 - FLOOR_EXPONENT
            bits = int(math.log2(_MULTICLASS_BYTES / (n_classes * octaves * BYTES_PER_BIN)))
            bits = min(bits, MANTISSA_BITS)
            self._ranks = [RankHistogram(bits, octaves=octaves, signs=1) for _ in range(n_classes)]

    def update(
        self, log_probability: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> None:
        """Add rows.

        Parameters
        ----------
        log_probability : array_like, shape (n, n_classes)
            Natural logarithms, best from a log-softmax: near probability 1 they tell rows apart that the probabilities
            do not. Minus infinity counts as the logarithm of the smallest positive float64, -744.4, so that the log
            loss is finite.
        y : array_like, shape (n,)
            Positions of the classes, 0 to n_classes - 1.
        sample_weight : array_like, shape (n,), optional
            Not negative; 1 each if not given.

        Raises
        ------
        DataError
            If a log-probability is NaN.
        BadWeight
            If a weight is negative, NaN or infinite.
        ValueError
            If the shapes differ, a `y` is not a position, or a log-probability is positive.
        """
        scores = np.asarray(log_probability, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != self._n_classes:
            raise ValueError(f"log_probability has shape {scores.shape}: expected (n, {self._n_classes})")
        # Column 0 stands in for the check of lengths.
        _, y_all, w_all = _columns(scores[:, 0], y, sample_weight)
        codes = y_all.astype(np.intp)
        if not (np.array_equal(codes, y_all) and ((codes >= 0) & (codes < self._n_classes)).all()):
            raise ValueError(f"y holds something else than 0 to {self._n_classes - 1}: pass the positions in classes_")
        largest = scores.max(initial=-np.inf)
        if np.isnan(largest):
            raise DataError(f"log-probabilities are NaN: expected numbers of at most 0; {_ADVICE}")
        if largest > 1e-6:
            raise ValueError(
                f"log_probability holds {largest:.6g}: expected logarithms (at most 0), not probabilities or margins"
            )
        for piece in _pieces(len(scores)):
            log_p, code, w = scores[piece], codes[piece], w_all[piece]
            of_truth = log_p[np.arange(len(code)), code]
            loss = -np.where(of_truth == -np.inf, _LOG_OF_ZERO, of_truth)
            # A class a row, contiguous: each is one pass of its histogram. Probability 1 counts as just below.
            by_class = np.minimum(log_p.T, -5e-324, order="C")
            self._sums.add(loss, by_class.argmax(axis=0) == code, w)
            for k, ranks in enumerate(self._ranks):
                is_k = (code == k).astype(np.float64)
                ranks.add(by_class[k], w * is_k, w * (1.0 - is_k))

    def merge(self, other: MulticlassMetrics) -> None:
        """Add the rows that `other` has seen.

        Parameters
        ----------
        other : MulticlassMetrics
            Of as many classes; left as it is.

        Raises
        ------
        ValueError
            If it has another number of classes.
        """
        if other._n_classes != self._n_classes:
            raise ValueError(f"cannot merge metrics of {other._n_classes} classes into those of {self._n_classes}")
        self._sums.merge(other._sums)
        for mine, theirs in zip(self._ranks, other._ranks, strict=True):
            mine.merge(theirs)

    def compute(self) -> dict[str, float | int | None]:
        """Metrics of all rows so far.

        Returns
        -------
        dict
            ``rows``, ``log_loss`` (natural logarithm), ``accuracy`` (of the most probable class, the first of equals),
            ``roc_auc`` (unweighted mean over the classes, each against the rest) and ``roc_auc_error``: the ROC AUC of
            the float64 log-probabilities is not farther than this from ``roc_auc``. None without rows of positive
            weight; the last two also if a class is absent or there are more than 50.
        """
        known = [pair for pair in (ranks.auc() for ranks in self._ranks) if pair is not None]
        complete = len(known) == self._n_classes
        return {
            **self._sums.compute(),
            "roc_auc": sum(auc for auc, _ in known) / len(known) if complete else None,
            "roc_auc_error": sum(error for _, error in known) / len(known) if complete else None,
        }


class RegressionMetrics:
    """Root mean squared error, mean absolute error and R² of predictions.

    The variance of the target is kept as a mean and a sum of squared deviations from it, merged piece by piece
    (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), and
    the mean as its distance from the first target, so that targets such as 1e9 + noise lose no digits.

    Examples
    --------
    >>> metrics = RegressionMetrics()
    >>> metrics.update([2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
    >>> {name: round(value, 4) for name, value in metrics.compute().items()}
    {'rows': 4, 'rmse': 0.6124, 'mae': 0.5, 'r2': 0.9486}
    """

    def __init__(self) -> None:
        self._rows = 0
        self._weighted_rows = 0
        self._weight = self._squared = self._absolute = 0.0
        # Mean of the target = shift + mean; deviations = Σ w (y - mean)².
        self._shift = self._mean = self._deviations = 0.0

    def update(self, prediction: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        prediction : array_like, shape (n,)
            In the unit of the target.
        y : array_like, shape (n,)
            The target.
        sample_weight : array_like, shape (n,), optional
            Not negative; 1 each if not given.

        Raises
        ------
        DataError
            If a prediction or a target is NaN or beyond ±1e140.
        BadWeight
            If a weight is negative, NaN or infinite.
        ValueError
            If the shapes differ.
        """
        prediction_all, y_all, w_all = _columns(prediction, y, sample_weight)
        _require_usable(prediction_all, "predictions")
        _require_usable(y_all, "targets")
        for piece in _pieces(len(y_all)):
            target, w = y_all[piece], w_all[piece]
            error = np.abs(prediction_all[piece] - target)
            self._squared += float((w * error * error).sum())
            self._absolute += float((w * error).sum())
            self._weighted_rows += int(np.count_nonzero(w))
            weight = float(w.sum())
            if weight > 0:
                shift = self._shift if self._weight > 0 else float(target[w.argmax()])
                distance = target - shift
                mean = float((w * distance).sum()) / weight
                distance -= mean
                deviations = float((w * distance * distance).sum())
                self._add_moments(weight, shift, mean, deviations)
        self._rows += len(y_all)

    def merge(self, other: RegressionMetrics) -> None:
        """Add the rows that `other` has seen.

        Parameters
        ----------
        other : RegressionMetrics
            Left as it is.
        """
        self._rows += other._rows
        self._weighted_rows += other._weighted_rows
        self._squared += other._squared
        self._absolute += other._absolute
        if other._weight > 0:
            self._add_moments(other._weight, other._shift, other._mean, other._deviations)

    def _add_moments(self, weight: float, shift: float, mean: float, deviations: float) -> None:
        if self._weight == 0:
            self._weight, self._shift, self._mean, self._deviations = weight, shift, mean, deviations
            return
        total = self._weight + weight
        distance = (shift - self._shift) + (mean - self._mean)
        self._deviations += deviations + distance * distance * self._weight * (weight / total)
        self._mean += distance * (weight / total)
        self._weight = total

    def compute(self) -> dict[str, float | int | None]:
        """Metrics of all rows so far.

        Returns
        -------
        dict
            ``rows``, ``rmse`` and ``mae`` in the unit of the target, ``r2``. None without rows of positive weight, and
            ``r2`` of fewer than two of them. Of a constant target ``r2`` is 1 if every prediction is right, else 0, as
            scikit-learn has it.
        """
        mean_squared = _ratio(self._squared, self._weight)
        r2: float | None
        if self._weighted_rows < 2:
            r2 = None
        elif self._deviations > 0:
            r2 = 1.0 - self._squared / self._deviations
        else:
            r2 = 1.0 if self._squared == 0 else 0.0
        return {
            "rows": self._rows,
            "rmse": None if mean_squared is None else math.sqrt(mean_squared),
            "mae": _ratio(self._absolute, self._weight),
            "r2": r2,
        }


class _Sums:
    """Rows, and means of the losses and of the right answers."""

    def __init__(self) -> None:
        self.rows = 0
        self.weight = self.loss = self.correct = 0.0

    def add(self, loss: _Vector, correct: npt.NDArray[np.bool_], weight: _Vector) -> None:
        self.rows += len(loss)
        self.loss += float((weight * loss).sum())
        self.correct += float((weight * correct).sum())
        self.weight += float(weight.sum())

    def merge(self, other: _Sums) -> None:
        self.rows += other.rows
        self.loss += other.loss
        self.correct += other.correct
        self.weight += other.weight

    def compute(self) -> dict[str, float | int | None]:
        return {
            "rows": self.rows,
            "log_loss": _ratio(self.loss, self.weight),
            "accuracy": _ratio(self.correct, self.weight),
        }


def _columns(
    first: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None
) -> tuple[_Vector, _Vector, _Vector]:
    """Three float64 vectors of one length; weights of 1 take no memory."""
    scores, target = np.asarray(first, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if sample_weight is None:
        weights: _Vector = np.broadcast_to(np.float64(1.0), target.shape)
    else:
        weights = np.asarray(sample_weight, dtype=np.float64)
        if len(weights) and not (weights.min() >= 0 and weights.max() < np.inf):
            raise BadWeight(
                f"sample weights run from {weights.min()} to {weights.max()}: expected finite numbers that are not "
                "negative; leave these rows out or give them weight 0"
            )
    if scores.ndim != 1 or scores.shape != target.shape or scores.shape != weights.shape:
        raise ValueError(
            f"shapes differ: predictions {scores.shape}, y {target.shape}, sample_weight {weights.shape}; "
            "expected one number a row in each"
        )
    return scores, target, weights


def _pieces(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _PIECE):
        yield slice(start, start + _PIECE)


def _require_usable(values: _Vector, what: str) -> None:
    # Not isfinite(values).all(): the two ends need no temporary, and NaN spreads to both.
    if len(values) and not (values.min() >= -_LARGEST and values.max() <= _LARGEST):
        bad = len(values) - np.count_nonzero(np.abs(values) <= _LARGEST)
        raise DataError(f"{bad} of {len(values)} {what} are NaN or beyond ±{_LARGEST}; {_ADVICE}")


def _ratio(total: float, weight: float) -> float | None:
    return total / weight if weight > 0 else None
