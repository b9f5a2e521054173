"""The loop against answers of others: a plain NumPy loop, scikit-learn, repeated rows, rows in other units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

import streamgd as sg
from streamgd.config import Config
from streamgd.data.evaluate import evaluate, margins, mean_loss
from streamgd.data.source import ParquetSource, as_source
from streamgd.data.table import TableSource
from streamgd.errors import ConfigError, TooManyClasses, TrainingDiverged
from streamgd.job import Job, hold_out, prepare
from streamgd.kernels import reference, reference_losses
from streamgd.model import Model, sigmoid
from streamgd.state import AVERAGE_POWER, SNAPSHOTS, Progress, Result, State
from streamgd.steps import CELLS_PER_CALL
from streamgd.trainer import train

from .conftest import FLIGHTS, Write, classification, matrix, regression
from .kernels.arguments import STEPPING as OPTIMIZERS

TABLES = {"log_loss": classification, "squared_error": regression}
# float32 rows and gradients against float64.
ROUNDING = 2e-5
#: Full gradient steps that reach the optimum of well-behaved data.
BATCH = {"batch_size": None, "optimizer": "nesterov", "learning_rate": "constant", "momentum": 0.9}


def fit(data: Any, *, callback: Any = None, **parameters: Any) -> Result:
    kept = ("weight", "classes", "validation")
    rest = {name: parameters.pop(name) for name in kept if name in parameters}
    if "validation" in rest:
        rest["validation"] = as_source(rest["validation"])
    job, data = prepare(as_source(data), "y", Config(**parameters), **rest)
    return train(job, data, State.start(job), callback=callback)


def predicted(model: Model, data: Any) -> Any:
    return margins(as_source(data), model)


class Plain:
    """Mini-batch gradient descent as a textbook has it, on float64 arrays."""

    def __init__(self, job: Job, batches: Iterator[Any], rows: int) -> None:
        config, spec, n = job.config, job.encoder.spec, len(job.inverse_scale)
        loss, value = reference_losses.LOSSES[job.loss.code], 0.0
        loss_args = np.array(config.loss_args(job.loss, job.labels.scale))
        self.params = State.start(job).params[0]
        self.average, snapshots, seen = self.params.copy(), 0, 0
        slots = np.zeros((2, n + 1))
        rates = np.array(config.schedule_args(job.eta0, -(-rows // job.batch_rows)))
        for step, (X, y) in enumerate(batches):
            X = (X.astype(np.float64) - spec.offset) * job.inverse_scale
            if job.labels.task == "regression":
                y = (y.astype(np.float64) - job.labels.mean) / job.labels.scale
            values, r = loss(X @ self.params[:n] + self.params[n], y, loss_args)
            value += values.sum()
            gradient = np.append(X.T @ r, r.sum()) / len(y)
            gradient[n] *= config.fit_intercept
            before, eta = (reference.learning_rate(config.schedule.code, rates, t) for t in (max(step - 1, 0), step))
            optimizer_args = np.array(config.optimizer_args())
            pull = config.l1, config.l2, job.spread
            reference.update(config.method.code, optimizer_args, before, eta, step, *pull, gradient, self.params, slots)
            seen += len(y)
            if seen % -(-rows // SNAPSHOTS) == 0:
                snapshots += 1
                share = (AVERAGE_POWER + 1) / (AVERAGE_POWER + snapshots)
                self.average += share * (self.params - self.average)
        self.loss = value / seen * job.labels.scale**2


def weights(job: Job, model: Model) -> Any:
    """Weights of scaled features, from the coefficients of features as they are."""
    scale = job.labels.scale
    intercept = model.intercept + model.coef @ job.encoder.spec.offset - job.labels.mean
    return np.append(model.coef[0] / job.inverse_scale, intercept) / scale


def batches(path: Path, epochs: int, *, seed: int = 3, batch_size: int = 37) -> Iterator[Any]:
    stream = sg.ParquetStream(path, batch_size=batch_size, target="y", seed=seed, window_rows=300)
    for _ in range(epochs):
        yield from stream


@pytest.mark.parametrize("loss", TABLES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [None, "constant", "optimal"])
def test_it_is_a_plain_loop_over_the_stream(write: Write, loss: str, optimizer: str, schedule: str | None) -> None:
    path = write(TABLES[loss](1000), shards=3, row_group_rows=70)
    alpha = 1.0 if schedule == "optimal" else 1e-3
    config = Config(
        loss=loss, optimizer=optimizer, learning_rate=schedule, alpha=alpha, batch_size=37, window_rows=300, seed=3
    )
    job, data = prepare(ParquetSource(path), "y", Config(**config.to_json() | {"epochs": 2, "average": False}))
    assert data.plan.n_windows == 4
    result = train(job, data, State.start(job))
    plain = Plain(job, batches(path, 2), 1000)
    other = Plain(job, batches(path, 2, seed=4), 1000)
    assert result.steps == 2 * 28  # the last of an epoch is short
    assert np.allclose(weights(job, result.model), plain.params, rtol=0, atol=ROUNDING)
    # The order of the rows shows, so a wrong one would be noticed.
    assert np.abs(other.params - plain.params).max() > 10 * ROUNDING


@pytest.mark.parametrize("loss", TABLES)
def test_the_progressive_loss_is_that_before_each_step(write: Write, loss: str) -> None:
    path = write(TABLES[loss](1000), shards=3, row_group_rows=70)
    job, data = prepare(ParquetSource(path), "y", Config(batch_size=37, window_rows=300, seed=3, epochs=1, loss=loss))
    result = train(job, data, State.start(job))
    plain = Plain(job, batches(path, 1), 1000)
    assert result.train_loss == pytest.approx(plain.loss, rel=1e-5)
    assert result.losses == [result.train_loss]


def test_the_average_is_weighted_towards_the_end(write: Write) -> None:
    path = write(classification(64 * 64), shards=2, row_group_rows=512)
    job, data = prepare(ParquetSource(path), "y", Config(batch_size=32, window_rows=1 << 20, epochs=2))
    assert (data.plan.n_windows, CELLS_PER_CALL // job.encoder.layout.stride > 64) == (1, True)
    result = train(job, data, State.start(job))
    stream = sg.ParquetStream(path, batch_size=32, target="y", window_rows=1 << 20)
    plain = Plain(job, (batch for _ in range(2) for batch in stream), 64 * 64)
    assert np.allclose(weights(job, result.model), plain.average, rtol=0, atol=ROUNDING)
    assert np.abs(plain.params - plain.average).max() > 10 * ROUNDING


@pytest.mark.parametrize("loss", TABLES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_batch_size_is_batch_gradient_descent_on_all_shards(write: Write, loss: str, optimizer: str) -> None:
    table = TABLES[loss](1000)
    path = write(table, shards=4, row_group_rows=90)
    # The intercept starts at the base rate, where its first gradient is rounding, of which AdaGrad makes a whole step.
    free = not OPTIMIZERS[optimizer].scale_free
    config = Config(batch_size=None, optimizer=optimizer, epochs=20, loss=loss, fit_intercept=free)
    job, data = prepare(ParquetSource(path), "y", config)
    result = train(job, data, State.start(job))
    X, y = matrix(table)
    plain = Plain(job, ((X, y) for _ in range(20)), 1000)
    assert (result.steps, result.epochs, result.rows) == (20, 20, 20_000)
    assert np.allclose(weights(job, result.model), plain.params, rtol=0, atol=ROUNDING)
    # The windows are cut elsewhere, the sums are the same but for rounding.
    job, data = prepare(ParquetSource(path), "y", Config(**job.config.to_json() | {"window_rows": 300, "seed": 9}))
    assert np.allclose(weights(job, train(job, data, State.start(job)).model), plain.params, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("loss", TABLES)
def test_one_row_a_step_is_stochastic_gradient_descent(write: Write, loss: str) -> None:
    path = write(TABLES[loss](1000), shards=3, row_group_rows=70)
    config = Config(batch_size=1, window_rows=300, seed=3, epochs=1, average=False, loss=loss, optimizer="sgd")
    job, data = prepare(ParquetSource(path), "y", config)
    result = train(job, data, State.start(job))
    assert result.steps == result.rows == 1000
    plain = Plain(job, batches(path, 1, batch_size=1), 1000)
    assert np.allclose(weights(job, result.model), plain.params, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("batch_size", [1, 32, 1000, None, "auto"])
def test_threads_never_change_a_weight(write: Write, batch_size: Any) -> None:
    path = write(classification(5000), shards=5, row_group_rows=130)
    hashes = {
        fit(path, batch_size=batch_size, window_rows=900, epochs=2, n_jobs=n_jobs).model.sha256()
        for n_jobs in (1, 2, 4, 4)
    }
    assert len(hashes) == 1
    assert fit(path, batch_size=batch_size, window_rows=900, epochs=2, seed=1).model.sha256() not in hashes


def test_threads_never_change_a_weight_of_the_flights() -> None:
    def train_flights(n_jobs: int) -> str:
        job, data = prepare(
            ParquetSource(FLIGHTS / "train"),
            "late",
            Config(epochs=1, n_jobs=n_jobs, window_rows=30_000),
        )
        return train(job, data, State.start(job)).model.sha256()

    assert train_flights(1) == train_flights(2) == train_flights(4) == train_flights(4)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_batch_gradient_descent_reaches_the_logistic_regression_of_others(fit_intercept: bool) -> None:
    table = classification(2000)
    X, y = matrix(table)
    alpha = 0.02
    model = fit(
        table, alpha=alpha, standardize=False, fit_intercept=fit_intercept, eta0=0.1, epochs=2000, **BATCH
    ).model
    other = LogisticRegression(C=1 / (alpha * len(y)), fit_intercept=fit_intercept, tol=1e-10, max_iter=1000).fit(X, y)
    assert np.allclose(model.coef, other.coef_, rtol=1e-4, atol=1e-5)
    assert model.intercept[0] == pytest.approx(float(np.ravel(other.intercept_)[0]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_batch_gradient_descent_reaches_the_least_squares_of_others(fit_intercept: bool, alpha: float) -> None:
    table = regression(2000)
    X, y = matrix(table)
    model = fit(
        table, alpha=alpha, standardize=False, fit_intercept=fit_intercept, eta0=0.02, epochs=2000, **BATCH
    ).model
    other: Any = (
        Ridge(alpha * len(y), fit_intercept=fit_intercept) if alpha else LinearRegression(fit_intercept=fit_intercept)
    )
    other.fit(X, y)
    assert np.allclose(model.coef[0], other.coef_, rtol=1e-4, atol=1e-4)
    assert model.intercept[0] == pytest.approx(float(other.intercept_), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_penalty_is_of_weights_of_standardised_features(optimizer: str) -> None:
    # The optimum on features of unit variance; each optimizer finds it.
    table = classification(1000)
    X, y = matrix(table)
    job, _ = prepare(TableSource(table), "y", Config())
    Z = (X - X.mean(0)) / job.scales.scale
    alpha = 0.05
    other = LogisticRegression(C=1 / (alpha * len(y)), tol=1e-10).fit(Z, y)
    # RMSProp's steps stay as long as its rate, so that must fall.
    schedule = "invscaling" if optimizer == "rmsprop" else "constant"
    parameters = {"power_t": 0.5} if schedule == "invscaling" else {}
    parameters |= {"batch_size": None, "learning_rate": schedule, "epochs": 1500}
    model = fit(table, alpha=alpha, optimizer=optimizer, **parameters).model
    assert np.allclose(model.coef * job.scales.scale, other.coef_, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", TABLES)
@pytest.mark.parametrize("standardize", [True, False])
def test_integer_weights_are_repeated_rows(loss: str, standardize: bool) -> None:
    table = TABLES[loss](500)
    times = np.random.default_rng(5).integers(0, 4, 500)
    weighted = table.append_column("w", pa.array(times))
    repeated = table.take(np.repeat(np.arange(500), times))
    parameters = {**BATCH, "epochs": 30, "alpha": 1e-3, "loss": loss, "standardize": standardize}
    one, other = fit(weighted, weight="w", **parameters), fit(repeated, **parameters)
    assert np.allclose(predicted(one.model, table), predicted(other.model, table), rtol=1e-6, atol=1e-5)
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
    # Only ratios count.
    ten = fit(table.append_column("w", pa.array(times * 10.0)), weight="w", **parameters)
    assert np.allclose(ten.model.coef, one.model.coef, rtol=1e-6, atol=1e-8)
    assert not np.allclose(predicted(one.model, table), predicted(fit(table, **parameters).model, table), atol=1e-3)


@pytest.mark.parametrize("loss", TABLES)
@pytest.mark.parametrize("standardize", [True, False])
def test_rows_of_weight_zero_do_not_matter(loss: str, standardize: bool) -> None:
    table = TABLES[loss](500)
    strange = pa.table({**{f"x{j}": np.full(200, 1000.0 * j + 77) for j in range(3)}, "y": table["y"][:200]})
    both = pa.concat_tables([table, strange]).append_column("w", pa.array([1.0] * 500 + [0.0] * 200))
    parameters = {**BATCH, "epochs": 30, "loss": loss, "standardize": standardize}
    one, other, counted = (
        fit(both, weight="w", **parameters),
        fit(table, **parameters),
        fit(both.drop(["w"]), **parameters),
    )
    assert np.allclose(predicted(one.model, table), predicted(other.model, table), rtol=1e-6, atol=1e-4)
    assert not np.allclose(predicted(counted.model, table), predicted(other.model, table), atol=0.1)


@pytest.mark.parametrize("held_out", ["path", "row groups"])
@pytest.mark.parametrize("loss", TABLES)
def test_early_stopping_keeps_the_best_epoch(write: Write, held_out: str, loss: str) -> None:
    # Few rows and many features: training goes on learning the noise.
    path = write(TABLES[loss](120, 40, seed=1), shards=2, row_group_rows=6)
    validation = write(TABLES[loss](400, 40, seed=1 if loss == "squared_error" else 2), "validation")
    parameters: dict[str, Any] = {
        "loss": loss,
        "epochs": 300,
        "early_stopping": True,
        "tol": 0.0,
        "n_iter_no_change": 4,
        "alpha": 0.0,
        "optimizer": "sgd",
        "learning_rate": "constant",
        "batch_size": 1,
    }
    if held_out == "path":
        result = fit(path, validation=validation, **parameters)
        score: Any = ParquetSource(validation)
    else:
        result = fit(path, validation_fraction=0.3, **parameters)
        score = hold_out(ParquetSource(path), 0.3, 0)[1]
    losses = result.validation_losses
    assert result.epochs == len(losses) == len(result.losses) < 300
    best = int(np.argmin(losses))
    assert best == result.epochs - 1 - 4  # and four more that gained nothing
    assert mean_loss(score, result.model) == pytest.approx(losses[best], rel=1e-12)
    # The same weights as training for just as long.
    shorter = parameters | {"epochs": best + 1, "n_iter_no_change": 300}
    again = (
        fit(path, validation=validation, **shorter)
        if held_out == "path"
        else fit(path, validation_fraction=0.3, **shorter)
    )
    assert again.model.sha256() == result.model.sha256()


def test_a_gain_below_tol_is_none(write: Write) -> None:
    path = write(classification(2000), row_group_rows=50)
    result = fit(path, early_stopping=True, tol=10.0, n_iter_no_change=2, epochs=50)
    assert result.epochs == 3
    assert len(result.validation_losses) == 3


def test_held_out_row_groups_are_not_trained_on(write: Write) -> None:
    path = write(classification(2000), row_group_rows=50)
    result = fit(path, early_stopping=True, validation_fraction=0.25, epochs=2)
    assert result.rows == 2 * 1500
    kept, held = (part.manifest.index.tolist() for part in hold_out(ParquetSource(path), 0.25, 0))
    assert sorted(kept + held) == list(range(40))
    assert len(held) == 10
    assert hold_out(ParquetSource(path), 0.25, 1)[1].manifest.index.tolist() != held
    with pytest.raises(ConfigError, match="smaller row groups"):
        fit(write(classification(100), "one group"), early_stopping=True)


def test_validation_without_early_stopping_only_tells(write: Write) -> None:
    path, validation = write(classification(500)), write(classification(100, seed=7), "validation")
    told = fit(path, epochs=3, validation=validation)
    plain = fit(path, epochs=3)
    assert len(told.validation_losses) == told.epochs == 3
    assert told.model.sha256() == plain.model.sha256()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
def test_divergence_names_the_step(optimizer: str) -> None:
    with pytest.raises(TrainingDiverged, match=r"step \d+ \(epoch 1\)") as caught:
        fit(regression(1000), optimizer=optimizer, eta0=1e6, batch_size=10, learning_rate="constant")
    assert "eta0=1e+06" in str(caught.value)
    assert "try" in str(caught.value)


@pytest.mark.parametrize("loss", TABLES)
@pytest.mark.parametrize(
    ("change", "standardize"),
    [("times a million", True), ("plus a billion", True), ("plus a billion", False)],  # of a scale it makes much
)
def test_units_of_features_do_not_matter(loss: str, change: str, standardize: bool) -> None:
    table = TABLES[loss](2000)
    x = table["x1"].to_numpy()
    other = table.set_column(1, "x1", pa.array(x * 1e6 if change == "times a million" else x + 1e9))
    parameters = {"loss": loss, "standardize": standardize, "epochs": 3}
    one, two = (predicted(fit(data, **parameters).model, data) for data in (table, other))
    assert np.allclose(one, two, rtol=0, atol=1e-4 * one.std())


def test_units_of_a_regression_target_do_not_matter() -> None:
    table = regression(2000)
    other = table.set_column(3, "y", pa.array(table["y"].to_numpy() * 1e9 + 1e12))
    one, two = predicted(fit(table).model, table), predicted(fit(other).model, table)
    assert np.allclose(one, (two - 1e12) / 1e9, rtol=0, atol=1e-4 * one.std())


def test_a_null_target_is_left_out_and_counted_once(write: Write) -> None:
    table = classification(1000)
    null = np.random.default_rng(1).random(1000) < 0.3
    holes = table.set_column(3, "y", pa.array(table["y"].to_numpy(), mask=null))
    for name, parameters in (("one window", {}), ("more", {"window_rows": 300})):
        path = write(holes, name, shards=3, row_group_rows=90)
        result = fit(path, epochs=3, **parameters)
        assert result.skipped_rows == null.sum()
        assert result.rows == 3 * (~null).sum()
    parameters = {**BATCH, "standardize": False, "eta0": 0.1, "epochs": 500, "alpha": 0.01}
    assert np.allclose(
        fit(holes, **parameters).model.coef, fit(table.filter(~null), **parameters).model.coef, rtol=1e-4
    )


def test_the_window_is_reported(write: Write) -> None:
    path = write(classification(1000), row_group_rows=10)
    assert fit(path, window_rows=250).window_rows == 250
    assert fit(path, window_rows=300).window_rows == 250  # four equal ones
    assert fit(path, window_rows=10**9).window_rows == 1000
    assert fit(path).window_rows == 1000  # small data are one window


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge", "perceptron", "modified_huber"])
def test_losses_of_two_classes_do_not_take_more(loss: str) -> None:
    table = pa.table({"x": [1.0, 2.0, 3.0], "y": ["a", "b", "c"]})
    with pytest.raises(TooManyClasses, match=r"3 classes.*log_loss"):
        fit(table, loss=loss)


def test_callbacks_hear_of_every_epoch(write: Write) -> None:
    heard: list[Progress] = []
    path, validation = write(classification(2000), row_group_rows=100), write(classification(100), "validation")
    result = fit(path, epochs=3, validation=validation, callback=heard.append)
    ends = [progress for progress in heard if progress.ended]
    assert [progress.epoch for progress in ends] == [0, 1, 2]
    assert [progress.validation_loss for progress in ends] == result.validation_losses
    assert [progress.loss for progress in ends] == result.losses
    assert [progress.rows for progress in ends] == [2000, 4000, 6000]
    assert {progress.total_rows for progress in heard} == {6000}
    assert heard[-1].steps == result.steps
    assert all(a.rows <= b.rows and a.seconds <= b.seconds for a, b in pairwise(heard))


def test_a_failing_callback_ends_training(write: Write) -> None:
    def fail(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(write(classification(2000), row_group_rows=100), window_rows=500, callback=fail)


def test_a_window_of_a_tenth_is_as_good_as_a_full_shuffle(write: Write) -> None:
    everything = classification(250_000, 10)
    table, held_out = everything.slice(0, 200_000), TableSource(everything.slice(200_000))
    by_class = table.take(np.argsort(table["y"].to_numpy(), kind="stable"))
    at_random = table.take(np.random.default_rng(9).permutation(len(table)))
    paths = {
        name: write(rows, name, shards=4, row_group_rows=2000)
        for name, rows in (("by class", by_class), ("at random", at_random))
    }

    def log_loss(name: str, **parameters: Any) -> float:
        result = fit(paths[name], epochs=1, **parameters)
        assert result.window_rows == parameters.get("window_rows", result.window_rows)
        return float(evaluate(held_out, result.model)["log_loss"])

    windows = log_loss("by class", window_rows=20_000)
    assert windows < 1.01 * log_loss("at random", window_rows=20_000)
    assert windows < 1.01 * log_loss("at random", window_rows=200_000)
    assert log_loss("by class", shuffle=False) > 1.2 * windows


def test_log_odds_begin_at_the_base_rate() -> None:
    table = classification(1000)
    job, _ = prepare(TableSource(table), "y", Config())
    share = table["y"].to_numpy().mean()
    assert sigmoid(State.start(job).params[0, -1:])[0] == pytest.approx(share)
    job, _ = prepare(TableSource(table), "y", Config(fit_intercept=False))
    assert not State.start(job).params.any()
