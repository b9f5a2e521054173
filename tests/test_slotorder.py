"""The order of slots is a permutation, and changes nothing but where weights lie."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streamgd as sg
from streamgd import job
from streamgd.data.encode import Encoder
from streamgd.data.source import as_source
from streamgd.slotorder import EVERY, SHARED, SlotOrder

from .conftest import Write

hashes = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 40), max_size=60).map(lambda x: np.array(x, np.uint32))


def places(order: SlotOrder, hashes: np.ndarray) -> np.ndarray:
    found = hashes.copy()
    order.place_all(found)
    return found


@settings(deadline=None)
@given(hashes, st.sampled_from([64, 1024, 1 << 20]))
@example(np.array([5, 2**32 - 1, 3, 5, 2**27], np.uint32), 1 << 28)
def test_a_permutation_that_begins_with_what_is_common(common: np.ndarray, n_slots: int) -> None:
    order = pickle.loads(pickle.dumps(SlotOrder.of(common, n_slots)))
    slots = list(dict.fromkeys((common % n_slots).tolist()))
    np.testing.assert_array_equal(places(order, np.array(slots, np.uint32)), np.arange(len(slots)))
    some = np.arange(min(n_slots, 4096), dtype=np.uint32)
    there = places(order, some)
    assert len(set(there.tolist())) == len(some) and there.max() < n_slots
    if n_slots <= 1 << 24:  # a float32 tells so many apart
        found = order.by_slot(np.arange(n_slots, dtype=np.float32)[:, np.newaxis])
        np.testing.assert_array_equal(found[some, 0], there)
    still = np.setdiff1d(some, [*slots, *range(len(slots))]).astype(np.uint32)
    np.testing.assert_array_equal(places(order, still), still)
    # Whole hashes are told apart by the bits of a slot alone.
    np.testing.assert_array_equal(places(order, some | np.uint32(n_slots)), there)


def orders_made(monkeypatch: pytest.MonkeyPatch) -> list[SlotOrder]:
    """The orders of the jobs that follow, one after the other."""
    made, ordered = list[SlotOrder](), Encoder.with_order
    monkeypatch.setattr(Encoder, "with_order", lambda self, order: made.append(order) or ordered(self, order))
    return made


def table_of(n: int) -> pa.Table:
    rng = np.random.default_rng(0)
    few, many = rng.geometric(0.2, n), (rng.pareto(1, n) * 30).astype(np.int64) % 5000
    at = np.datetime64("2013-01-01T00:00") + rng.integers(0, 300 * 24, n) * np.timedelta64(1, "h")
    x = rng.normal(size=n)
    margin = np.sin(few) + np.sin(many) + 0.5 * x
    y = rng.choice(["no", "yes", "maybe"], n) if n % 2 else (rng.random(n) < 1 / (1 + np.exp(-margin))).astype(np.int8)
    return pa.table(
        {
            "few": pa.array([f"f{i}" for i in few], mask=rng.random(n) < 0.1),
            "many": [f"m{i}" for i in many],
            "n": (few % 7).astype(np.int16),
            "at": at.astype("datetime64[s]"),
            "x": x,
            "y": y,
        }
    )


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (3000, {"epochs": 2, "eta0": 0.1}),
        (3000, {"epochs": 2, "cache": "auto", "hash_bits": 7, "batch_size": 50}),
        (3000, {"optimizer": "ftrl", "penalty": "l1", "alpha": 1e-3, "batch_size": 16}),
        (3001, {"epochs": 2, "optimizer": "momentum", "window_rows": 700}),
        (3000, {"optimizer": "lbfgs", "epochs": 5}),
        (3000, {"partitions": 4, "polish": 3}),
    ],
)
def test_a_model_is_the_same_to_the_bit(
    write: Write, monkeypatch: pytest.MonkeyPatch, rows: int, options: dict[str, Any]
) -> None:
    path = write(table_of(rows), shards=2, row_group_rows=250)
    monkeypatch.setattr(job, "AT_HAND", 0)

    def fitted() -> sg.SGDClassifier:
        return sg.SGDClassifier(categorical="n", calendar="at", random_state=3, **options).fit(path, "y")

    made = orders_made(monkeypatch)
    one = fitted()
    assert len(made) == 1 and len(made[0].moved) > 50
    monkeypatch.setattr(Encoder, "is_orderable", False)
    other = fitted()
    assert len(made) == 1
    assert one.model_.hashed_index is not None and other.model_.hashed_index is not None
    np.testing.assert_array_equal(one.model_.hashed_index, other.model_.hashed_index)
    if options.get("optimizer") == "lbfgs" or "polish" in options:  # SciPy sums over the weights in their order
        np.testing.assert_allclose(one.model_.hashed, other.model_.hashed, rtol=1e-3, atol=1e-5)
    else:
        np.testing.assert_array_equal(one.model_.hashed, other.model_.hashed)
        np.testing.assert_array_equal(one.coef_, other.coef_)
    assert one.score(path, "y") == pytest.approx(other.score(path, "y"), abs=1e-9)


@pytest.mark.parametrize(("optimizer", "alpha"), [("adagrad", 1e-3), ("sgd", 1e-3), ("ftrl", 1e-4), ("adagrad", 0.0)])
def test_slots_at_hand_are_pulled_by_the_penalty_in_each_step(
    write: Write, monkeypatch: pytest.MonkeyPatch, optimizer: str, alpha: float
) -> None:
    """Others are for all steps at once when they are met, which is the same within a few parts in a thousand."""
    path = write(table_of(3000), shards=2, row_group_rows=250)
    near, found = [], []
    at_hand = job.Job.at_hand.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(job.Job, "at_hand", property(lambda self: near.append(at_hand(self)) or near[-1]))
    for most in (21, 0):
        monkeypatch.setattr(job, "AT_HAND", most)
        clf = sg.SGDClassifier(optimizer=optimizer, alpha=alpha, drop="at", batch_size=64, random_state=3)
        found.append(clf.fit(path, "y").model_.hashed)
        assert {*near} == {most}
        near.clear()
    np.testing.assert_allclose(*found, rtol=5e-3, atol=1e-4)
    assert np.array_equal(*found) == (alpha == 0.0 or optimizer == "ftrl")  # whose weights follow from sums alone


def test_slots_that_come_often_are_at_hand(write: Write) -> None:
    table = table_of(3000)
    path = write(table, shards=2, row_group_rows=250)
    rows = np.concatenate([table[name].value_counts().field("counts").to_numpy() for name in ("few", "many")])
    for batch_size in (1, 64, 1000):
        config = sg.SGDClassifier(drop="at", batch_size=batch_size)._config()
        prepared, _ = job.prepare(as_source(path), "y", config)
        assert prepared.at_hand == prepared.problem.at_hand == (rows[rows > 1] * batch_size * EVERY >= 3000).sum()


def test_no_more_slots_are_at_hand_than_there_are(write: Write) -> None:
    path = write(table_of(3000), row_group_rows=250)
    clf = sg.SGDClassifier(drop="at", hash_bits=5, batch_size=1000, epochs=2)
    prepared, _ = job.prepare(as_source(path), "y", clf._config())
    assert prepared.at_hand == 32 < len(prepared.scales.common)
    assert 0.5 < clf.fit(path, "y").score(path, "y") < 1


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "rmsprop", "adam"])
def test_no_slots_are_at_hand_where_each_step_changes_them(write: Write, optimizer: str) -> None:
    path = write(table_of(3000), row_group_rows=250)
    source, config = as_source(path), sg.SGDClassifier(optimizer=optimizer, drop="at")._config()
    prepared, _ = job.prepare(source, "y", config)
    assert prepared.at_hand == prepared.problem.at_hand == 0


def test_a_job_that_may_be_shared_out_is_small(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes with each task of a cluster, up to 256 kB."""
    n, made = 60_000, orders_made(monkeypatch)
    values = np.random.default_rng(0).permutation(np.arange(n) % (n // 3))
    path = write(pa.table({"c": [f"v{i}" for i in values], "y": (values % 2).astype(np.int8)}), row_group_rows=20_000)
    for options in ({}, {"partitions": 2}, {"polish": 1}, {"optimizer": "lbfgs"}):
        sg.SGDClassifier(epochs=1, **options).fit(path, "y")  # type: ignore[arg-type]
    alone, *shared = (len(order.moved) for order in made)
    assert alone > 20_000
    assert all(SHARED <= moved <= 2 * SHARED for moved in shared)
    assert len(pickle.dumps(made[1])) + 8 * SHARED < 200_000
