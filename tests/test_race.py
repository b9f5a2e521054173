"""Models side by side: each gets the bits that it gets alone, and those that are dropped are the right ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import ParameterGrid

import streamgd as sg
from streamgd import race as race_module
from streamgd.config import TUNABLE
from streamgd.data.source import as_source
from streamgd.data.stream import Times
from streamgd.errors import ConfigError, TrainingDiverged
from streamgd.job import Feed, Job, finish, prepare
from streamgd.model import Model
from streamgd.race import Standing, _Field, race
from streamgd.state import SNAPSHOTS, Progress, State
from streamgd.trainer import advance, train, validation_loss

from .conftest import Write, classification, matrix, regression

Points = list[dict[str, Any]]


def mixed(rows: int, classes: int | None, seed: int = 0) -> pa.Table:
    """Numbers, a category with gaps and a text, all of which matter to ``y``: so many classes, or a number."""
    rng = np.random.default_rng(seed)
    x, c, good = rng.normal(size=(rows, 2)), rng.integers(0, 20, rows), rng.random(rows) < 0.4
    margin = x @ [1.0, -0.5] + np.sin(c) + good + 0.3 * rng.normal(size=rows)
    y = margin if classes is None else np.searchsorted(np.quantile(margin, np.arange(1, classes) / classes), margin)
    return pa.table(
        {
            **{"x0": x[:, 0], "x1": x[:, 1]},
            "c": pa.array([f"c{i}" for i in c], mask=rng.random(rows) < 0.1),
            "t": np.where(good, "a good thing", rng.choice(["a thing", "no thing at all"], rows)),
            "y": y,
        }
    )


def in_classes(rows: int, seed: int = 0) -> pa.Table:
    """Numbers and three classes."""
    return mixed(rows, 3, seed).drop(["c", "t"])


TABLES: dict[str, tuple[Any, dict[str, Any], Callable[..., pa.Table]]] = {
    "numbers": (sg.SGDClassifier, {}, classification),
    "classes": (sg.SGDClassifier, {}, in_classes),
    "regression": (sg.SGDRegressor, {}, regression),
    "hashed": (sg.SGDClassifier, {"text": ["t"]}, lambda *a: mixed(a[0], 2, *a[1:])),
    "categories": (sg.SGDClassifier, {}, lambda *a: mixed(a[0], 2, *a[1:]).drop(["t"])),
    "hashed classes": (sg.SGDClassifier, {"text": ["t"]}, lambda *a: mixed(a[0], 4, *a[1:])),
    "hashed regression": (sg.SGDRegressor, {"text": ["t"]}, lambda *a: mixed(a[0], None, *a[1:])),
}
#: What all models share, and in what they differ.
WAYS: dict[str, tuple[dict[str, Any], Any]] = {
    "adagrad": ({"batch_size": 8}, {"alpha": [1e-5, 0.1], "eta0": [0.05, 0.5]}),
    "sgd": ({"optimizer": "sgd", "average": False}, {"eta0": [0.01, 0.1], "clip_norm": [None, 0.05]}),
    "schedules": ({"optimizer": "sgd", "learning_rate": "invscaling"}, {"power_t": [0.1, 0.5], "warmup_steps": [0, 9]}),
    "momentum": (
        {"optimizer": "momentum", "learning_rate": "step", "batch_size": 37},
        {"momentum": [0.5, 0.9], "decay": [0.3, 0.9]},
    ),
    "adam": ({"optimizer": "adam", "average": True}, {"beta_1": [0.5, 0.9], "beta_2": [0.9, 0.999]}),
    "l1": ({"penalty": "l1"}, {"alpha": [1e-4, 0.02], "eta0": [0.05, 0.5]}),
    "elasticnet": ({"penalty": "elasticnet", "optimizer": "adagrad"}, {"l1_ratio": [0.0, 0.9], "alpha": [1e-3, 0.05]}),
    "penalties": (
        {"optimizer": "ftrl", "batch_size": 37},
        [{"penalty": ["l2", "l1"], "alpha": [1e-3, 0.05]}, {"penalty": ["none"]}],
    ),
    "partitions": ({"partitions": 2}, {"alpha": [1e-5, 0.1], "eta0": [0.05, 0.5]}),
    # Few rows are polished unless a step is spoken of.
    "polish": ({}, [{"alpha": [1e-4, 1.0]}, {"eta0": [0.2]}]),
}


#: Every way with one output, and with several those that touch what is theirs: sums, states, passes.
PAIRS = [
    *((table, way) for table in ("numbers", "hashed") for way in WAYS),
    *((table, way) for table in TABLES if table not in ("numbers", "hashed") for way in ("adagrad", "penalties")),
    *((table, "polish") for table in ("hashed classes", "regression")),
]


@dataclass
class Raced:
    """A race, and the models of all that were left in it, by their places in the grid."""

    standings: list[Standing]
    models: dict[int, Model]
    template: Any

    def of(self, index: int) -> Standing:
        return next(standing for standing in self.standings if standing.index == index)


Race = Callable[..., Raced]


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> Race:
    """A race whose final models are all written down when they meet the validation data."""

    def run(template: Any, points: Points, data: Any, validation: Any, **options: Any) -> Raced:
        models: list[Model] = []

        def note(job: Job, feed: Feed, model: Model) -> float:
            models.append(model)
            return validation_loss(job, feed, model)

        with monkeypatch.context() as patched:
            patched.setattr(race_module, "validation_loss", note)
            standings = race(*prepared(template, points, data, validation), points, **options)
        left = sorted(standing.index for standing in standings if not standing.dropped and not standing.diverged)
        return Raced(standings, dict(zip(left, models, strict=True)), template)

    return run


def prepared(template: Any, points: Points, data: Any, validation: Any = None) -> tuple[Job, Feed]:
    configs = [clone(template).set_params(**point)._config() for point in points]
    held_out = None if validation is None else as_source(validation)
    return prepare(as_source(data), "y", configs[0], validation=held_out, beside=configs)


def alone(template: Any, point: dict[str, Any], data: Any, **fitting: Any) -> Any:
    return clone(template).set_params(**point).fit(data, "y", **fitting)


def one_of(table: str, way: str, write: Write) -> tuple[Any, Points, Any, Any]:
    """An estimator that takes several windows, a grid, shards, and other rows."""
    (kind, columns, rows), (shared, grid) = TABLES[table], WAYS[way]
    template = kind(epochs=2, window_rows=150, **columns, **shared)
    return template, list(ParameterGrid(grid)), write(rows(400), shards=2, row_group_rows=60), rows(90, 5)


def test_everything_that_may_differ_does_so_here() -> None:
    assert {name for _, grid in WAYS.values() for point in ParameterGrid(grid) for name in point} == set(TUNABLE)


@pytest.mark.parametrize(("table", "way"), PAIRS)
def test_each_gets_the_bits_that_it_gets_alone(table: str, way: str, write: Write, raced: Race) -> None:
    template, points, path, other = one_of(table, way, write)
    found = raced(template, points, path, other, halving=False)
    assert len({model.sha256() for model in found.models.values()}) == len(points)
    for index, point in enumerate(points):
        by_itself = alone(template, point, path)
        assert found.models[index].sha256() == by_itself.model_.sha256()
        assert found.of(index).params == point
        assert found.of(index).progressive_loss == by_itself.result_.losses[0]
        assert found.of(index).rows == by_itself.t_ == 800
    best = found.standings[0]
    expected = alone(template, best.params, path, validation=other).result_
    assert best.result is not None and best.result.model.sha256() == expected.model.sha256()
    for name in ("rows", "epochs", "steps", "window_rows", "skipped_rows", "polish_passes", "objective"):
        assert getattr(best.result, name) == getattr(expected, name), name
    if not expected.polish_passes:
        assert best.validation_loss == expected.validation_losses[-1]
    assert [standing.result for standing in found.standings[1:]] == [None] * (len(points) - 1)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("way", ["adagrad", "momentum", "l1"])
def test_who_is_left_never_notices_who_is_dropped(table: str, way: str, write: Write) -> None:
    """Whoever is dropped, wherever: amid a mini-batch, a window, an epoch; up to the last but one."""
    template, points, path, _ = one_of(table, way, write)
    job, feed = prepared(template, points, path)
    field, rng, drops = _Field(job, points), np.random.default_rng(len(table + way)), 0
    for moment in advance(field.learners, feed, Times()):
        if rng.random() < 0.05 and len(field.alive) > 1:
            n, drops = len(field.alive), drops + 1
            field.keep(sorted(rng.choice(n, rng.integers(1, n), replace=False).tolist()))
        last = moment
    assert last.ended and drops > 0 and len(field.jobs) == len(field.alive) < len(points)
    for place, (index, model_job) in enumerate(zip(field.alive, field.jobs, strict=True)):
        model = finish(model_job, *field.learners.state.weights(field.learners.job, place))
        assert model.sha256() == alone(template, points[index], path).model_.sha256()


@pytest.mark.parametrize("table", TABLES)
def test_survivors_of_halving_get_the_bits_that_they_get_alone(table: str, write: Write, raced: Race) -> None:
    template, _, path, other = one_of(table, "adagrad", write)
    points: Points = [{"eta0": eta0} for eta0 in (1e-4, 0.03, 0.3, 30.0, 300.0)]
    found = raced(template, points, path, other)
    assert len(found.models) == 2
    for index, model in found.models.items():
        assert model.sha256() == alone(template, points[index], path).model_.sha256()
    for standing in found.standings:
        rows = Rows.of(template, standing.params, path)
        # Up to where it was dropped, its loss is that of the same rows alone.
        assert standing.progressive_loss == rows.means[standing.rows if standing.dropped else 400]


#: Learning rates of SGD on a regression with which it diverges at once, or never.
SOON, NEVER = 1e20, 0.1


@pytest.mark.parametrize(
    ("table", "later", "epoch"), [("regression", 1.4, 0), ("hashed regression", 0.4, 0), ("hashed regression", 0.3, 1)]
)
def test_who_diverges_is_dropped_and_harms_nobody(
    table: str, later: float, epoch: int, write: Write, raced: Race
) -> None:
    kind, columns, rows = TABLES[table]
    template = kind(optimizer="sgd", learning_rate="constant", epochs=2, window_rows=300, **columns)
    points: Points = [{"eta0": eta0} for eta0 in (NEVER, SOON, later, NEVER / 10)]
    path, other = write(rows(1000), row_group_rows=70), rows(90, 5)
    found = raced(template, points, path, other, halving=False)
    for index in (0, 3):
        assert found.models[index].sha256() == alone(template, points[index], path).model_.sha256()
    assert {standing.index for standing in found.standings[2:]} == {1, 2}
    for index, first, last in ((1, 1, 99), (2, 100 + 900 * epoch, 999 + 1000 * epoch)):
        with pytest.raises(TrainingDiverged):
            alone(template, points[index], path)
        standing = found.of(index)
        assert standing.diverged and first <= standing.rows <= last and standing.validation_loss is None
    json.dumps([standing.to_json() for standing in found.standings], allow_nan=False)


@pytest.mark.parametrize("table", ["regression", "hashed regression"])
def test_all_but_one_may_diverge(table: str, write: Write, raced: Race) -> None:
    kind, columns, rows = TABLES[table]
    template = kind(optimizer="sgd", learning_rate="constant", epochs=2, window_rows=300, **columns)
    points: Points = [{"eta0": eta0} for eta0 in (SOON, NEVER, 2 * SOON)]
    path = write(rows(1000), row_group_rows=70)
    found = raced(template, points, path, rows(90, 5))
    assert found.models[1].sha256() == alone(template, points[1], path).model_.sha256()
    assert [standing.diverged for standing in found.standings] == [False, True, True]


@pytest.mark.parametrize("halving", [True, False])
def test_nothing_is_left_if_all_diverge(halving: bool) -> None:
    template = sg.SGDRegressor(optimizer="sgd", learning_rate="constant")
    for rates in ([SOON, 2 * SOON, 3 * SOON, 4 * SOON], [SOON, 1.5, 3.0], [SOON]):
        points: Points = [{"eta0": eta0} for eta0 in rates]
        with pytest.raises(TrainingDiverged, match="eta0"):
            race(*prepared(template, points, regression(1000)), points, halving=halving)


@dataclass
class Rows:
    """Mean loss of the first rows, by how many they are, in the first epoch of a model that is trained alone."""

    means: dict[int, float]

    @classmethod
    def of(cls, template: Any, point: dict[str, Any], data: Any) -> Rows:
        means: dict[int, float] = {}

        def note(progress: Progress) -> None:
            if progress.epoch == 0:
                means[progress.rows] = progress.loss

        job, feed = prepare(as_source(data), "y", clone(template).set_params(**point)._config())
        train(job, feed, State.start(job), callback=note)
        return cls(means)

    def since(self, start: int, stop: int) -> float:
        """Mean loss of the rows between two places."""
        before = self.means[start] * start if start else 0.0
        return (self.means[stop] * stop - before) / (stop - start)


def halved(models: list[Rows], rows: int, *, recent: bool = True) -> dict[int, int]:
    """Places of the models that halving drops, and after how many rows: by the loss since the last time, or of all."""
    left, since, parts = list(range(len(models))), 0, 1
    dropped: dict[int, int] = {}
    while 2**parts < len(models):
        parts += 1
    for part in range(parts - 1, 0, -1):
        now = min(n for n in models[0].means if n >= rows / 2**part)
        better = sorted(left, key=lambda k: models[k].since(since if recent else 0, now))
        keep = max(2, (len(left) + 1) // 2)
        dropped |= {k: now for k in better[keep:]}
        left, since = sorted(better[:keep]), now
    return dropped


@pytest.mark.parametrize(
    ("n", "counts"),
    [
        (1, {}),
        (2, {}),
        (3, {1024: 1}),
        (4, {1024: 2}),
        (5, {512: 2, 1024: 1}),
        (8, {512: 4, 1024: 2}),
        (9, {256: 4, 512: 2, 1024: 1}),
    ],
)
def test_the_worse_half_is_dropped_until_two_are_left(n: int, counts: dict[int, int], raced: Race) -> None:
    table, rates = classification(2048), np.random.default_rng(n).permutation(np.geomspace(1e-3, 50, n))
    template = sg.SGDClassifier(epochs=1, batch_size=4)
    points: Points = [{"eta0": float(eta0)} for eta0 in rates]
    found = raced(template, points, table, table)
    dropped = {s.index: s.rows for s in found.standings if s.dropped}
    assert {at: list(dropped.values()).count(at) for at in dropped.values()} == counts
    assert dropped == halved([Rows.of(template, point, table) for point in points], 2048)
    assert len(found.models) == n - len(dropped) <= 2
    raced_all = raced(template, points, table, table, halving=False)
    assert not any(standing.dropped for standing in raced_all.standings)


def test_it_is_the_recent_loss_that_decides(raced: Race) -> None:
    """A long step costs much in the beginning, and a short one all along."""
    table, template = classification(2048), sg.SGDClassifier(epochs=1)
    points: Points = [{"eta0": eta0} for eta0 in (100.0, 30.0, 10.0, 0.01, 1.0)]
    models = [Rows.of(template, point, table) for point in points]
    expected = {0: 512, 1: 512, 3: 1024}
    found = raced(template, points, table, table)
    assert halved(models, 2048) == expected == {s.index: s.rows for s in found.standings if s.dropped}
    assert halved(models, 2048, recent=False) == {0: 512, 1: 512, 2: 1024}
    behind = {s.index: s.behind for s in found.standings}
    best = min(model.since(0, 512) for model in models)
    assert all(behind[k] == pytest.approx(models[k].since(0, 512) - best, rel=1e-6) for k in (0, 1))
    best = min(models[k].since(512, 1024) for k in (2, 3, 4))
    assert behind[3] == pytest.approx(models[3].since(512, 1024) - best, rel=1e-6)
    assert behind[2] is None and behind[4] is None


def test_who_diverges_leaves_room_for_others(raced: Race) -> None:
    """Two are left of those that did not diverge, not one."""
    table, template = regression(2048), sg.SGDRegressor(optimizer="sgd", learning_rate="constant", epochs=1)
    points: Points = [{"eta0": eta0} for eta0 in (SOON, 1e-3, 2 * SOON, 1e-2, 3 * SOON, 3e-2, 4 * SOON, 5 * SOON)]
    found = raced(template, points, table, table)
    assert sorted(found.models) == [3, 5] and (found.of(1).dropped, found.of(1).rows) == (True, 512)
    found = raced(template, [{"eta0": SOON}, {"eta0": 0.01}, {"eta0": 0.03}, {"eta0": 2 * SOON}], table, table)
    assert sorted(found.models) == [1, 2]


def test_rows_without_a_target_are_not_counted(raced: Race) -> None:
    table = classification(4096)
    holes = pa.array([y if i % 4 == 0 else None for i, y in enumerate(table["y"].to_pylist())], pa.int8())
    template = sg.SGDClassifier(epochs=2)
    points: Points = [{"eta0": eta0} for eta0 in (1e-3, 0.1, 1.0, 30.0)]
    found = raced(template, points, table.set_column(3, "y", holes), table)
    dropped = [standing for standing in found.standings if standing.dropped]
    assert len(dropped) == 2 and all(512 <= standing.rows < 600 for standing in dropped)
    assert found.standings[0].result is not None and found.standings[0].result.skipped_rows == 3072


def test_nobody_is_dropped_before_the_second_step(raced: Race) -> None:
    """Up to the first all have the same loss."""
    table, template = classification(1000), sg.SGDClassifier(epochs=2, window_rows=1000)
    points: Points = [{"eta0": eta0} for eta0 in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3)]
    for batch_size, left in ((100, 2), (150, 3), (300, 6), (None, 6)):
        found = raced(template.set_params(batch_size=batch_size), points, table, table)
        assert len(found.models) == left
        assert all(standing.rows >= 2 * (batch_size or 0) for standing in found.standings if standing.dropped)
    assert [standing.index for standing in found.standings] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(ConfigError, match="single step"):
        race(*prepared(template, points, table), points)


def test_the_validation_loss_ranks_them_if_there_is_one(raced: Race) -> None:
    """The rows that they learn from like a weak penalty; turned labels like a strong one."""
    table = classification(2000)
    turned = table.set_column(3, "y", pa.array(1 - table["y"].to_numpy()))
    template = sg.SGDClassifier(epochs=2, batch_size=8)
    points: Points = [{"alpha": alpha} for alpha in (0.1, 1e-4, 10.0, 1.0)]
    by_rows = race(*prepared(template, points, table), points, halving=False)
    assert [standing.index for standing in by_rows] == [1, 0, 3, 2]
    assert all(standing.validation_loss is None for standing in by_rows)
    found = raced(template, points, table, turned, halving=False)
    assert [standing.index for standing in found.standings] == [2, 3, 0, 1]
    for standing in found.standings:
        by_itself = alone(template, standing.params, table)
        expected = log_loss(matrix(turned)[1], by_itself.predict_proba(turned))
        assert standing.validation_loss == pytest.approx(expected, rel=1e-9)
        assert standing.progressive_loss == by_itself.result_.losses[0]
    # Who was dropped comes last, though it would have been the first.
    halving = raced(template, points, table, turned)
    assert [standing.index for standing in halving.standings] == [0, 1, 3, 2]
    assert [standing.dropped for standing in halving.standings] == [False, False, True, True]


def test_the_rank_of_a_standing() -> None:
    nan = float("nan")
    ordered = [
        Standing(4, {}, 0.9, 0.1),
        Standing(2, {}, 0.1, 0.2),
        Standing(3, {}, 0.2, 0.2),
        Standing(9, {}, 0.0, nan),
        Standing(5, {}, 0.3),
        Standing(0, {}, nan),
        Standing(1, {}, 0.01, dropped=True),
        Standing(7, {}, 0.02, dropped=True),
        Standing(6, {}, 0.001, dropped=True, diverged=True),
    ]
    shuffled = [ordered[k] for k in np.random.default_rng(0).permutation(len(ordered))]
    assert sorted(shuffled, key=lambda standing: standing.rank) == ordered
    json.dumps([standing.to_json() for standing in ordered], allow_nan=False)


def test_progress_is_told_of_the_best_that_is_left(raced: Race) -> None:
    table, template = regression(1000), sg.SGDRegressor(optimizer="sgd", learning_rate="constant", epochs=2)
    points: Points = [{"eta0": eta0} for eta0 in (SOON, 0.03, 1e-3)]
    told: list[Progress] = []
    race(*prepared(template, points, table), points, callback=told.append)
    assert [progress.rows for progress in told] == sorted(progress.rows for progress in told)
    assert len(told) > SNAPSHOTS and told[-1].over and [progress.ended for progress in told].count(True) == 2
    assert told[-1].rows == told[-1].total_rows == 2000 and np.isfinite([progress.loss for progress in told]).all()
    ends = [progress.loss for progress in told if progress.ended]
    assert ends == alone(template, points[1], table).result_.losses


def test_early_stopping_is_refused() -> None:
    template, points = sg.SGDClassifier(early_stopping=True), [{"eta0": 0.1}, {"eta0": 0.2}]
    with pytest.raises(ConfigError, match="early_stopping"):
        race(*prepared(template, points, classification(500)), points)


@pytest.mark.parametrize(
    ("shared", "points", "word"),
    [
        ({}, [{"penalty": "l2"}, {"penalty": "l1"}], "adagrad and ftrl"),
        ({}, [{"eta0": 0.1}, {"batch_size": 8}], "batch_size must be the same"),
        ({"optimizer": "lbfgs"}, [{"alpha": 0.1}, {"alpha": 0.2}], "lbfgs"),
        # Each is asked what it is asked alone.
        ({"penalty": "elasticnet", "optimizer": "sgd", "polish": 3}, [{"l1_ratio": 0.0}, {"l1_ratio": 0.5}], "L-BFGS"),
    ],
)
def test_what_cannot_be_trained_side_by_side_is_refused(shared: dict[str, Any], points: Points, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        prepared(sg.SGDClassifier(**shared), points, classification(200))
