"""Where calls of the kernel end, and how often weights enter their average."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamgd.data.shuffle import Plan
from streamgd.data.stream import Window
from streamgd.state import SNAPSHOTS
from streamgd.steps import CELLS_PER_CALL, Calls


@given(
    total=st.integers(1, 10**9),
    windows=st.integers(1, 1000),
    stride=st.sampled_from([4, 48, 10_000, 10**7]),
    missing=st.floats(0, 1),
)
def test_averages_are_taken_about_64_times_an_epoch_and_at_its_end(
    total: int, windows: int, stride: int, missing: float
) -> None:
    plan = Plan(np.array([total]), -(-total // min(windows, total)))
    job = cast(Any, SimpleNamespace(encoder=SimpleNamespace(layout=SimpleNamespace(stride=stride))))
    calls, taken = Calls.of(job, plan), 0
    assert 1 <= calls.rows <= max(1, CELLS_PER_CALL // stride) and calls.snapshot % calls.rows == 0
    for index in range(plan.n_windows):
        n = total * (index + 1) // plan.n_windows - total * index // plan.n_windows
        n -= int(n * missing * 0.1)  # some rows have no target
        order = cast(Any, range(n))  # only its length is looked at
        one = Window(np.empty((0, 4), np.float32), order, 0, index, index == plan.n_windows - 1, 0, 0, [])
        assert calls.end(one, 0) == min(n, calls.rows) and calls.end(one, max(0, n - 1)) == n
        taken += sum(calls.are_averaged(one, row) for row in range(calls.snapshot, n, calls.snapshot))
        taken += calls.are_averaged(one, n)
        if index == plan.n_windows - 1:
            assert calls.are_averaged(one, n)
    assert min(total, SNAPSHOTS) // 2 <= taken <= 2 * SNAPSHOTS
