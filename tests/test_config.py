"""Parameters of training: what is wrong or does nothing is refused, and what None means."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgd.config import (
    AUTO_BATCH,
    AUTO_HASHED_BATCH,
    ENDLESS_ALPHA,
    MOST_ALPHA,
    STEPS_PER_EPOCH,
    Config,
    parse_pair,
)
from streamgd.errors import ConfigError
from streamgd.losses import LOSSES
from streamgd.optimizers import OPTIMIZERS
from streamgd.penalties import PENALTIES
from streamgd.schedules import SCHEDULES

HEAVY_BALLS = [name for name, optimizer in OPTIMIZERS.items() if "momentum" in dict(optimizer.parameters)]
OTHERS = [name for name in OPTIMIZERS if name not in HEAVY_BALLS]


def test_the_defaults_pass() -> None:
    assert Config().check() == Config()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("learning_rate", [None, *SCHEDULES])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_combination_passes(optimizer: str, learning_rate: str | None, loss: str) -> None:
    config = Config(optimizer=optimizer, learning_rate=learning_rate, loss=loss)
    if config.by_passes and (learning_rate is not None or not LOSSES[loss].smooth):
        with pytest.raises(ConfigError, match=r"lbfgs|L-BFGS"):
            config.check()
        return
    config.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("alpha", "tol", "power_t") for value in (-1e-9, math.nan, math.inf, "1", True)),
        *(("eta0", value) for value in (0, 0.0, -1, math.nan, math.inf, "1", True)),
        *(
            (name, value)
            for name in ("momentum", "beta_1", "beta_2")
            for value in (-0.1, 1, 1.0, math.nan, "0.9", True)
        ),
        *((name, value) for name in ("decay", "clip_norm") for value in (0, -1, math.nan, "1", True)),
        *(("l1_ratio", value) for value in (-0.1, 1.1, math.nan, "1", True)),
        *(("quantile", value) for value in (0, 1, math.nan, True)),
        *(("epsilon", value) for value in (-1, math.nan, "1")),
        *(("hash_bits", value) for value in (0, 29, 1.0, "18", True)),
        *((name, value) for name in ("polish", "warmup_steps") for value in (-1, 1.0, "1", True)),
        *(("class_weight", value) for value in ("equal", 3, [1, 2])),
        *(("validation_fraction", value) for value in (0, 1, -0.1, math.nan, None, True)),
        *(
            (name, value)
            for name in ("epochs", "n_iter_no_change", "window_rows", "batch_size", "n_jobs")
            for value in (0, -1, 1.0, "3", True)
        ),
        *(("seed", value) for value in (-1, 2**32, 0.0, "0", None, True)),
        ("optimizer", "adam "),
        ("learning_rate", "Constant"),
        ("penalty", "l3"),
        ("loss", "loglike"),
        ("batch_size", "all"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value}).check()  # type: ignore[arg-type]
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("useless", "values"),
    [
        *(("momentum", {"momentum": 0.5, "optimizer": name}) for name in OTHERS),
        *(("power_t", {"power_t": 0.5, "learning_rate": name}) for name in ("constant", "optimal", "cosine")),
        ("power_t", {"power_t": 0.5, "optimizer": "adagrad"}),  # whose schedule is constant
        ("eta0", {"eta0": 0.5, "learning_rate": "optimal"}),
        ("window_rows", {"window_rows": 5, "shuffle": False}),
        *(("decay", {"decay": 0.5, "learning_rate": name}) for name in ("constant", "invscaling")),
        ("beta_1", {"beta_1": 0.5, "optimizer": "rmsprop"}),
        ("beta_2", {"beta_2": 0.5, "optimizer": "adagrad"}),
        ("epsilon", {"epsilon": 0.5, "loss": "squared_error"}),
        ("quantile", {"quantile": 0.5, "loss": "huber"}),
        *(
            (name, {name: value, "optimizer": "lbfgs"})
            for name, value in (
                ("batch_size", 10),
                ("average", True),
                ("polish", 3),
                ("shuffle", False),
                ("clip_norm", 1.0),
                ("warmup_steps", 5),
                ("early_stopping", True),
                ("learning_rate", "constant"),
            )
        ),
        ("alpha", {"alpha": 0.5, "penalty": None}),
        ("alpha", {"alpha": 0.5, "penalty": "none"}),
        *(
            (name, {name: value})
            for name, value in (("tol", 0.5), ("n_iter_no_change", 7), ("validation_fraction", 0.5))
        ),
    ],
)
def test_what_does_nothing_is_refused(useless: str, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{useless} does nothing") as caught:
        Config(**values).check()  # type: ignore[arg-type]
    assert "leave it out" in str(caught.value)
    values.pop(useless)
    Config(**values).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tol", "n_iter_no_change", "validation_fraction"])
def test_early_stopping_has_parameters_of_its_own(name: str) -> None:
    values = {"tol": 0.5, "n_iter_no_change": 7, "validation_fraction": 0.5}
    Config(early_stopping=True, **{name: values[name]}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"alpha": 0.0}, {"penalty": None}, {"penalty": "none"}])
def test_optimal_needs_a_penalty(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="optimal"):
        Config(learning_rate="optimal", **values).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_has_one_task(loss: object) -> None:
    assert loss in LOSSES.values()
    for task in ("classification", "regression"):
        config = Config(loss=loss.name)  # type: ignore[attr-defined]
        if task == loss.task:  # type: ignore[attr-defined]
            assert config.loss_for(task) is loss  # type: ignore[arg-type]
            continue
        with pytest.raises(ConfigError, match=task):
            config.loss_for(task)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=task):
            dataclasses.replace(config, task=task).check()  # type: ignore[arg-type]


def test_each_task_has_a_default_loss() -> None:
    assert Config().loss_for("classification").name == "log_loss"
    assert Config().loss_for("regression").name == "squared_error"


def test_penalties_are_factors_of_absolute_and_squared_weights() -> None:
    assert Config(alpha=0.25).l2 == 0.25
    assert Config(penalty=None).l2 == Config(penalty="none").l2 == 0
    assert {*PENALTIES} == {"l2", "l1", "elasticnet", "none"}
    for name, l1_ratio, shares in (
        ("l1", None, (0.5, 0)),
        ("elasticnet", None, (0.075, 0.425)),
        ("elasticnet", 1.0, (0.5, 0)),
    ):
        config = Config(penalty=name, alpha=0.5, l1_ratio=l1_ratio).check()
        assert (config.l1, config.l2) == pytest.approx(shares)
    with pytest.raises(ConfigError, match="l1_ratio does nothing"):
        Config(l1_ratio=0.5).check()


def test_the_default_penalty_weighs_as_much_as_one_row() -> None:
    """As C=1 in scikit-learn's LogisticRegression; bounded, should weights add up to little."""
    assert Config().settled(1000.0).l2 == pytest.approx(1e-3)
    assert Config().settled(1e-6).l2 == MOST_ALPHA
    assert Config().settled(None).l2 == ENDLESS_ALPHA
    assert Config(alpha=0.5).settled(1000.0).l2 == 0.5


@pytest.mark.parametrize("values", [{"optimizer": "lbfgs"}, {"polish": 3}])
def test_l_bfgs_needs_derivatives(values: dict[str, object]) -> None:
    for loss in ("hinge", "perceptron"):
        with pytest.raises(ConfigError, match=r"continuous derivative.*leave out"):
            Config(loss=loss, **values).check()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="penalty with a derivative"):
        Config(penalty="l1", alpha=0.1, **values).check().loss_for("classification")  # type: ignore[arg-type]


def test_a_polish_would_undo_early_stopping() -> None:
    with pytest.raises(ConfigError, match=r"best epoch.*leave out one"):
        Config(polish=3, early_stopping=True).check()
    Config(polish=0, early_stopping=True).check()


def test_pairs_are_written_with_a_star() -> None:
    assert parse_pair(" carrier * hour(at) ") == ("carrier", "hour(at)")
    assert parse_pair(("carrier", "hour(at)")) == parse_pair(["carrier", "hour(at)"]) == ("carrier", "hour(at)")
    for wrong in ("a", "a*", "a*b*c", "", ("a",), ("a", "b", "c"), ("a", 3), 7):
        with pytest.raises(ConfigError, match=r"expected two features"):
            parse_pair(wrong)


@given(st.integers(1, 10**12), st.booleans(), st.sampled_from(["sgd", "adagrad", "adam"]))
def test_auto_batches_leave_about_a_thousand_steps(rows: int, hashed: bool, optimizer: Any) -> None:
    size = Config(optimizer=optimizer).batch_rows(rows, hashed)
    most = AUTO_HASHED_BATCH if hashed and optimizer != "sgd" else AUTO_BATCH
    assert 1 <= size <= most
    assert size.bit_count() == 1  # a power of two, so that a tenth more data changes nothing
    steps = rows / size
    assert steps >= STEPS_PER_EPOCH or size == 1
    assert steps < 2 * STEPS_PER_EPOCH or size == most


@given(st.integers(1, 10**12), st.integers(1, 10**9))
def test_a_batch_size_is_what_it_says(rows: int, size: int) -> None:
    assert Config(batch_size=size).batch_rows(rows) == size
    assert Config(batch_size=None).batch_rows(rows) > 10**15


def test_rates_fit_the_length_of_rows_and_the_curvature_of_the_loss() -> None:
    # Largest rate at which full gradient steps of a quadratic with this curvature and row length do not diverge: 2 / L.
    for loss in LOSSES.values():
        for length in (0.5, 1.0, 30.0):
            assert Config(optimizer="sgd").initial_rate(loss, length, 10**6) <= 2 / (loss.curvature * length**2)
            for optimizer in OPTIMIZERS:
                config = Config(optimizer=optimizer)
                assert config.initial_rate(loss, 2 * length, 50) < config.initial_rate(loss, length, 50)
                assert dataclasses.replace(config, eta0=0.125).initial_rate(loss, length, 50) == 0.125


def test_few_rows_take_longer_steps_of_adagrad() -> None:
    loss = LOSSES["log_loss"]
    rates = [Config().initial_rate(loss, 2.0, rows) for rows in (10, 300, 3000, 30_000, 10**5, 10**9)]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(1.5) and rates[-1] == rates[-2] == 0.5


def test_weights_are_averaged_unless_steps_see_all_rows() -> None:
    assert Config().averaged
    assert Config(batch_size=1).averaged
    assert not Config(batch_size=None).averaged
    assert Config(batch_size=None, average=True).averaged
    assert not Config(average=False).averaged


def test_it_goes_into_json_and_back() -> None:
    config = Config(optimizer="nesterov", momentum=0.5, batch_size=None, window_rows=10, text=("a", "b"))
    again = Config(**json.loads(json.dumps(config.to_json())))
    assert again.to_json() == json.loads(json.dumps(config.to_json())) and again.momentum == 0.5
