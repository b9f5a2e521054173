"""Partitions and rounds: the same bits whoever carries them out, and as good a model as one stream gives."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamgd import SGDClassifier, SGDRegressor
from streamgd.config import Config
from streamgd.data.source import as_source
from streamgd.data.stream import Times
from streamgd.data.table import TableSource
from streamgd.errors import ConfigError, TrainingDiverged, UnreadableShard
from streamgd.executors import Executor, Serial, Threads, middle
from streamgd.job import finish, prepare
from streamgd.kernels.combine import combine_dense, combine_tables
from streamgd.kernels.updates import settled as kernel_settled
from streamgd.optimizers import OPTIMIZERS
from streamgd.rounds import Dealt, Round, rounds_of
from streamgd.state import State
from streamgd.steps import Learners
from streamgd.trainer import advance, train

from .conftest import Write, classification, regression
from .kernels.arguments import STEPPING, problem

EXECUTORS: dict[str, Executor] = {"serial": Serial(), "threads": Threads(3)}
settled = njit(lambda *args: kernel_settled(*args))


def mixed(rows: int, seed: int = 0) -> pa.Table:
    """Numbers, a category, a text, and a target with gaps."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "green", "blue", "grey"])
    return pa.table(
        {
            "a": rng.normal(size=rows),
            "c": rng.choice(list("uvwxyz"), rows),
            "t": [" ".join(rng.choice(words, rng.integers(0, 6))) for _ in range(rows)],
            "y": pa.array(rng.integers(0, 2, rows), mask=rng.random(rows) < 0.05),
        }
    )


def fit(data: Any, **options: Any) -> Any:
    """Train with partitions; the result."""
    values = {"epochs": 3, "polish": 0, "partitions": 3} | options
    job, feed = prepare(as_source(data), "y", Config(**values).check())
    return train(job, feed, State.start(job))


@dataclass(frozen=True)
class Brackets:
    """Work that shows the tree in which parts were joined; some parts fail."""

    failing: tuple[int, ...] = ()

    def part(self, shared: str, start: int, number: int) -> str:
        if number in self.failing:
            raise ValueError(f"number {number}")
        return f"{shared}{start + number}"

    def join(self, shared: str, start: int, left: str, right: str) -> str:
        return f"({left} {right})"


def bracketed(first: int, last: int) -> str:
    """The same by recursion."""
    if last - first == 1:
        return f"x{first + 100}"
    half = middle(first, last)
    return f"({bracketed(first, half)} {bracketed(half, last)})"


@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
def test_parts_are_joined_in_one_fixed_tree(executor: Executor) -> None:
    for n in (1, 2, 3, 5, 6, 7, 8, 13, 64, 100):
        assert executor.reduce(Brackets(), "x", 100, n, lambda _: False) == bracketed(0, n)
    with pytest.raises(ValueError, match="number 3"):
        executor.reduce(Brackets((3, 7)), "x", 100, 10, lambda _: False)
    assert executor.reduce(Brackets(), "x", 100, 10, lambda done: done >= 4) is None


@pytest.mark.parametrize(
    ("partitions", "optimizer"),
    [(2, "sgd"), (2, "adagrad"), (2, "adam"), (5, "momentum"), (5, "adagrad"), (5, "rmsprop"), (5, "ftrl")],
)
def test_threads_never_change_a_weight(write: Write, optimizer: str, partitions: int) -> None:
    """Nor does a cache; but the number of partitions does."""
    path = write(mixed(840), shards=2, row_group_rows=60)
    options: dict[str, Any] = {"optimizer": optimizer, "text": ("t",), "window_rows": 150, "partitions": partitions}
    found = {
        fit(path, n_jobs=n_jobs, cache=cache, **options).model.sha256()
        for n_jobs, cache in ((1, None), (2, "auto"), (4, None))
    }
    assert len(found) == 1
    assert fit(path, **options | {"partitions": 1}).model.sha256() not in found


def test_every_row_is_learned_from_once_an_epoch(write: Write) -> None:
    table = mixed(1000)
    result = fit(write(table, row_group_rows=37), partitions=4, epochs=2)
    assert result.rows == 2 * (1000 - table["y"].null_count)
    assert result.skipped_rows == table["y"].null_count
    assert result.epochs == 2 and len(result.losses) == 2


def prepared(table: pa.Table, rows: int = 50, **options: Any) -> Any:
    values = {"epochs": 2, "polish": 0, "partitions": 3} | options
    return prepare(TableSource(table, row_group_rows=rows), "y", Config(**values).check())


def test_row_groups_are_dealt_out_evenly() -> None:
    job, feed = prepared(classification(1010), partitions=4)
    dealt = Dealt.of(job, feed).partitions
    rows = [partition.source.manifest.n_rows for partition in dealt]
    assert sum(rows) == 1010 and max(rows) - min(rows) <= 50
    assert len({partition.plan.seed for partition in dealt}) == 4
    starts = np.concatenate([partition.source.manifest.index for partition in dealt])
    assert sorted(starts.tolist()) == list(range(21))


def test_a_round_leaves_the_state_that_it_began_with() -> None:
    job, feed = prepared(mixed(600), text=("t",), window_rows=200)
    state = State.start(job)
    for now in (Round(0, 0, 1, 2), Round(0, 1, 2, 2)):
        before = {name: value.copy() for name, value in vars(state).items() if isinstance(value, np.ndarray)}
        dealt, parts = Dealt.of(job, feed), []
        for number in range(len(dealt.partitions)):
            one, two = (now.part(dealt, state.leaving(), number) for _ in range(2))
            assert one.state.params.tobytes() == two.state.params.tobytes()
            assert not one.state.carry.any()
            parts.append(one)
        travelling = [pickle.dumps(part.state) for part in parts]
        both = now.join(dealt, state, *parts[:2])
        assert [pickle.dumps(part.state) for part in parts] == travelling
        for name, value in before.items():
            assert value.tobytes() == getattr(state, name).tobytes(), name
        state.come_back(now.join(dealt, state, both, parts[2]).state)


def test_a_round_is_the_same_on_copies_that_travelled() -> None:
    job, feed = prepared(mixed(600), text=("t",), window_rows=200)
    dealt, start, now = Dealt.of(job, feed), State.start(job).leaving(), Round(0, 0, 1, 1)
    here = [now.part(dealt, start, number) for number in range(2)]
    far = pickle.loads(pickle.dumps(dealt))
    there = [pickle.loads(pickle.dumps(now.part(far, pickle.loads(pickle.dumps(start)), p))) for p in range(2)]
    one, two = now.join(dealt, start, *here), now.join(far, start, *there)
    assert one.state.params.tobytes() == two.state.params.tobytes()
    assert one.state.table is not None and two.state.table is not None
    assert one.state.table.tobytes() == two.state.table.tobytes()


def test_what_cannot_be_read_is_gathered_from_everywhere() -> None:
    _, feed = prepared(mixed(600))
    source, bad = feed.source.for_job("skip"), UnreadableShard("it is bad")
    far = pickle.loads(pickle.dumps(source))
    source.left_out.note(bad, source.manifest, 1)
    far.left_out.note(bad, source.manifest, 1)
    far.left_out.note(UnreadableShard("that too"), source.manifest, 4)
    both = source.left_out.merged(far.left_out)
    assert len(source.left_out.row_groups) == 1 and len(both.row_groups) == 2
    source.left_out.absorb(both)
    source.left_out.absorb(both)
    assert len(source.left_out.row_groups) == 2
    assert source.left_out.messages == ["it is bad", "that too"]


@pytest.mark.parametrize("options", [{"optimizer": "lbfgs", "epochs": 40, "polish": None}, {"polish": 40, "epochs": 1}])
def test_whole_passes_in_parts(write: Write, options: dict[str, Any]) -> None:
    """They give what one stream gives but for the order of sums, and the same bits on any number of threads."""
    path = write(mixed(1500), row_group_rows=50)
    values = {"text": ("t",), "cache": None, "alpha": 1e-2} | options
    one, *parts = (fit(path, partitions=P, n_jobs=n, **values) for P, n in ((1, 1), (5, 1), (5, 3)))
    assert parts[0].model.sha256() == parts[1].model.sha256() != one.model.sha256()
    assert parts[0].objective == pytest.approx(one.objective, rel=1e-4)
    assert parts[0].rows == one.rows
    if "optimizer" in options:
        np.testing.assert_allclose(parts[0].model.coef, one.model.coef, rtol=1e-3, atol=1e-5)
        assert parts[0].gradient_norm < 1e-4


def test_rounds_become_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    job, feed = prepared(classification(10_000), window_rows=150, rows=25)
    dealt = Dealt.of(job, feed).partitions
    counts = [len(rounds_of(job, epoch, dealt)) - 1 for epoch in range(8)]
    assert counts == [32, 16, 8, 4, 2, 1, 1, 1]
    monkeypatch.setattr("streamgd.rounds.PLENTY", 100)
    assert rounds_of(job, 0, dealt)[:7] == [0, 1, 2, 3, 4, 6, 8] and rounds_of(job, 0, dealt)[-1] == 32
    few = Dealt.of(*prepared(classification(1000), window_rows=150, rows=25)).partitions
    assert rounds_of(job, 0, few) == [0, 1, 2, 3]  # of four row groups at least


numbers = st.floats(-3, 3).map(lambda x: float(np.float32(x)))


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(STEPPING)),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    l1=st.sampled_from([0.0, 0.01]),
    l2=st.sampled_from([0.0, 0.1]),
)
def test_a_weight_is_a_mean_of_the_partitions(name: str, seed: int, share: float, l1: float, l2: float) -> None:
    """Weighed by the squared gradients of the round for AdaGrad and FTRL, else by rows; and sums of squares add up."""
    rng, p, optimizer = np.random.default_rng(seed), 40, OPTIMIZERS[name]
    what = problem(optimizer, l1=l1, l2=l2)._replace(schedule_args=(0.1, 0.25, 100.0, 0.0))
    start = rng.normal(size=(1, p)), rng.uniform(0.1, 1, (2, 1, p))
    parts = []
    for _ in range(2):
        met = rng.random((1, p)) < 0.7
        w = np.where(met, rng.normal(size=(1, p)), start[0])
        s = start[1] + met * rng.uniform(0.1, 1, (2, 1, p))
        parts.append((w, s))
    (left, left_slots), (right, right_slots) = ((w.copy(), s.copy()) for w, s in parts)
    combine_dense(what, None, 20, share, np.ones(p), *start, left, left_slots, right, right_slots)
    low, high = np.minimum(parts[0][0], parts[1][0]), np.maximum(parts[0][0], parts[1][0])
    assert (left >= low - 1e-12).all() and (left <= high + 1e-12).all()
    assert right.tobytes() == parts[1][0].tobytes() and right_slots.tobytes() == parts[1][1].tobytes()
    place = {"adagrad": 0, "ftrl": 1}.get(name)
    if place is None:
        np.testing.assert_allclose(left, share * parts[0][0] + (1 - share) * parts[1][0], atol=1e-12)
        return
    gains = [s[place] - start[1][place] for _, s in parts]
    np.testing.assert_allclose(left_slots[place], start[1][place] + gains[0] + gains[1])
    only = (gains[0] > 0) & (gains[1] == 0)
    np.testing.assert_allclose(left[only], parts[0][0][only])
    if name == "ftrl":  # the weight that its state stands for is the one it has
        for j in range(p):
            implied = settled(what, 0.1, 20, l1, l2, 1, left[0, j], left_slots[0, 0, j], left_slots[1, 0, j])
            assert implied == pytest.approx(left[0, j], abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(name=st.sampled_from(sorted(STEPPING)), seed=st.integers(0, 2**32 - 1), outputs=st.sampled_from([1, 3]))
def test_hashed_weights_are_combined_as_dense_ones(name: str, seed: int, outputs: int) -> None:
    """If nothing is left for the penalty to catch up on."""
    rng, n, optimizer, step = np.random.default_rng(seed), 16, OPTIMIZERS[name], 9
    what = problem(optimizer, l1=0.0, l2=0.0)._replace(schedule_args=(0.1, 0.25, 100.0, 0.0))
    cells = -(-((2 + optimizer.slots) * outputs + 1) // 4) * 4
    tables, dense = [], []
    for i in range(3):
        table = np.zeros((n, cells), np.float32)
        met = np.ones(n, bool) if i == 0 else rng.random(n) < 0.6
        table[:, : (1 + optimizer.slots) * outputs] = rng.uniform(0.1, 1, (n, (1 + optimizer.slots) * outputs))
        marks = table.view(np.int32)
        marks[:, -1] = 5 if i == 0 else step
        if i:
            table[:, outputs : (1 + optimizer.slots) * outputs] += tables[0][
                :, outputs : (1 + optimizer.slots) * outputs
            ]
            table[~met] = tables[0][~met]
        tables.append(table)
        states = np.zeros((2, outputs, n))
        for k in range(optimizer.slots):
            states[k] = table[:, (1 + k) * outputs : (2 + k) * outputs].T
        dense.append((table[:, :outputs].T.astype(np.float64), states))
    untouched = (tables[1] == tables[0]).all(axis=1) & (tables[2] == tables[0]).all(axis=1)
    before = tables[0].copy()
    steps = step, step, step
    args = [x for table in tables for x in (table, table.view(np.int32))]
    combine_tables(what, None, outputs, *steps, 0.4, *args)
    combine_dense(what, None, step, 0.4, np.ones(n), *dense[0], *dense[1], *dense[2])
    np.testing.assert_allclose(tables[1][:, :outputs].T, dense[1][0], rtol=1e-5, atol=1e-6)
    for k in range(optimizer.slots):
        found = tables[1][:, (1 + k) * outputs : (2 + k) * outputs].T
        if name != "ftrl" or k == 1:  # of FTRL the first follows from the weight
            np.testing.assert_allclose(found, dense[1][1][k], rtol=1e-5, atol=1e-6)
    assert (tables[1][untouched] == before[untouched]).all()
    assert tables[0].tobytes() == before.tobytes()
    assert (tables[1].view(np.int32)[~untouched, -1] == step).all()


def test_the_penalty_catches_up_before_weights_are_combined() -> None:
    """A slot that one partition met early and the other late: each as it would be read."""
    optimizer = OPTIMIZERS["sgd"]
    what = problem(optimizer, l2=0.5)._replace(schedule_args=(0.1, 0.25, 100.0, 0.0))
    tables = [np.zeros((2, 4), np.float32) for _ in range(3)]
    marks = [table.view(np.int32) for table in tables]
    for table, mark, at in zip(tables[1:], marks[1:], (4, 8), strict=True):
        table[0, 0], mark[0, -1] = 1.0, at
    combine_tables(what, None, 1, 10, 10, 10, 0.5, *[x for pair in zip(tables, marks, strict=True) for x in pair])
    assert tables[1][0, 0] == pytest.approx((1 / (1 + 0.1 * 6 * 0.5) + 1 / (1 + 0.1 * 2 * 0.5)) / 2)
    assert marks[1][0, -1] == 10 and marks[1][1, -1] == 0


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "ftrl"])
def test_many_partitions_are_nearly_as_good_as_one(write: Write, optimizer: str) -> None:
    """Also where rows lie sorted by class."""
    table = classification(20_000, features=6).sort_by("y")
    path, held = write(table, row_group_rows=250), classification(5_000, features=6, seed=7)

    def loss(**options: Any) -> float:
        clf = SGDClassifier(optimizer=optimizer, polish=0, **options).fit(path, "y")
        X, y = np.column_stack([held[name] for name in held.column_names[:-1]]), held["y"].to_numpy()
        names = held.column_names[:-1]
        margins = X @ clf.coef_[0] + clf.intercept_ if names else 0
        return float(np.mean(np.logaddexp(0, margins) - y * margins))

    one = loss(partitions=1)
    for partitions in (2, 8) if optimizer == "sgd" else (2, 8, 32):  # whose rate falls with the steps of a partition
        assert loss(partitions=partitions) < 1.02 * one


def test_numbers_too(write: Write) -> None:
    path = write(regression(4000, features=4), row_group_rows=100)
    one, many = (SGDRegressor(polish=0, partitions=P).fit(path, "y").score(path, "y") for P in (1, 8))
    assert many > one - 0.01


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partitions": 0}, "at least 1"),
        ({"partitions": 100}, "have 20 row groups"),
        ({"batch_size": None}, "takes all rows a step"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(TableSource(classification(1000), row_group_rows=50), **options)


def test_lots_of_rows_have_no_partitions() -> None:
    X, y = np.zeros((20, 1)), np.arange(20) % 2
    with pytest.raises(ConfigError, match="partitions do nothing"):
        SGDClassifier(partitions=2).partial_fit(X, y, classes=[0, 1])


def test_divergence_in_a_partition_ends_training() -> None:
    table = classification(2000)
    with pytest.raises(TrainingDiverged, match="made a weight infinite"):
        fit(table, loss="squared_hinge", optimizer="sgd", eta0=1e6, standardize=False)


def test_models_side_by_side_are_combined_each_for_itself(write: Write) -> None:
    path = write(mixed(1200), row_group_rows=60)
    configs = [Config(epochs=2, polish=0, partitions=3, text=("t",), eta0=eta0).check() for eta0 in (0.05, 0.2, 0.5)]
    job, feed = prepare(as_source(path), "y", configs[0], beside=configs)
    state = State.start(job)
    for _ in advance(Learners(job, state), feed, Times()):
        pass
    for k, config in enumerate(configs):
        alone_job, alone_feed = prepare(as_source(path), "y", config)
        alone = train(alone_job, replace(alone_feed, cache=None), State.start(alone_job))
        assert finish(job.models[k], *state.weights(job, k)).sha256() == alone.model.sha256()
