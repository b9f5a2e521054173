"""Simulated rounds, against what can be said by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.simulating.costs import Costs, Line, Shape
from scripts.simulating.rounds import Machines, simulate

SMALL = Shape(Line(0.0, 1e-6), 0.0, 1.0, 2.0, 0.001, 0.0, 400)
LARGE = Shape(Line(0.0, 1e-6), 0.0, 1.0, 2.0, 0.010, 0.0, 1 << 25)
COSTS = Costs("a machine", {}, 0.010, 0.001, 0.005, Line(0, 1e-9), Line(0, 1e-9), Line(0, 1e-9))


def test_one_worker_has_what_tasks_cost_besides() -> None:
    epoch = simulate(COSTS, SMALL, Machines(1), 8, [1e5] * 3)
    assert epoch.seconds == pytest.approx(3 * (0.8 + 7 * SMALL.join + 0.010 + 0.001))
    assert epoch.tasks == 3 and epoch.efficiency == pytest.approx(0.807 / 0.818)


def test_more_workers_are_faster_and_less_efficient() -> None:
    epochs = [simulate(COSTS, SMALL, Machines(n), 64, [1e5] * 3) for n in (1, 2, 4, 16)]
    seconds, efficiency = [e.seconds for e in epochs], [e.efficiency for e in epochs]
    assert seconds == sorted(seconds, reverse=True) and efficiency == sorted(efficiency, reverse=True)
    assert seconds[0] / seconds[2] == pytest.approx(4, rel=0.05)


def test_workers_of_one_machine_share_its_processors() -> None:
    two, four = (simulate(COSTS, SMALL, Machines(n, cores=2), 8, [1e6]).seconds for n in (2, 4))
    assert four == pytest.approx(two, rel=0.02)


def test_large_states_take_their_way() -> None:
    """To four workers in three times the time of one copy, joined in two levels, and back."""
    copy = COSTS.move(LARGE.size)
    epoch = simulate(COSTS, LARGE, Machines(4), 4, [1e6])
    least = 0.010 + copy + copy + 1.0 + 2 * (copy + 0.005 + LARGE.join) + copy
    assert least <= epoch.seconds <= least + 2 * copy + 10 * COSTS.task


@settings(deadline=None, max_examples=30)
@given(
    workers=st.integers(1, 20),
    partitions=st.integers(1, 70),
    large=st.booleans(),
    deaths=st.sampled_from([0.0, 200.0, 2000.0]),
    stragglers=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_every_epoch_ends_and_its_time_is_told(
    workers: int, partitions: int, large: bool, deaths: float, stragglers: float, seed: int
) -> None:
    """Whatever dies; what is told adds up to the time that passed; equal seeds give equal epochs."""
    machines = Machines(workers, stragglers=stragglers, deaths=deaths, back=2.0)
    shape = LARGE if large else SMALL
    one, again = (simulate(COSTS, shape, machines, partitions, [2e5] * 3, seed) for _ in range(2))
    assert one == again
    assert sum(one.shares.values()) == pytest.approx(one.seconds)
    assert min(one.shares.values()) > -1e-9
    if not deaths and not stragglers:
        assert one.seconds >= 3 * 0.2 * partitions / workers


def test_deaths_cost_what_they_undo() -> None:
    quiet, deadly = (simulate(COSTS, SMALL, Machines(8, deaths=d), 32, [1e6] * 20, 1) for d in (0.0, 60.0))
    assert deadly.deaths > 0 and deadly.seconds > quiet.seconds
    assert deadly.tasks > quiet.tasks


def test_stragglers_have_twins() -> None:
    epoch = simulate(COSTS, SMALL, Machines(16, stragglers=0.1, straggling=100.0), 64, [1e6] * 5)
    assert epoch.twins > 0 and epoch.seconds < 5 * 60
