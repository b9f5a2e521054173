"""What is seen before training does not depend on what is looked at beside what."""

from __future__ import annotations

from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamgd as sg
from streamgd import look
from streamgd.errors import DataError, SingleClass

from .conftest import Write, classification


@pytest.mark.parametrize("n_jobs", [1, 2, 4])
def test_what_is_wrong_with_labels_is_told_first(n_jobs: int, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(*_: Any, **__: Any) -> None:
        raise DataError("the sample is bad")

    monkeypatch.setattr(look, "measure_scales", sample)
    good = classification(500)
    one = good.set_column(good.column_names.index("y"), "y", pa.array(np.zeros(500, np.int8)))
    with pytest.raises(SingleClass):
        sg.SGDClassifier(n_jobs=n_jobs).fit(write(one, "one"), "y")
    with pytest.raises(DataError, match="the sample is bad"):
        sg.SGDClassifier(n_jobs=n_jobs).fit(write(good, "good"), "y")


@pytest.mark.parametrize("parameters", [{}, {"class_weight": "balanced"}, {"weight": "w"}, {"on_error": "skip"}])
def test_the_sample_is_measured_beside_labels_unless_it_depends_on_them(
    parameters: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does, it is measured when they are known; the weights are the same in any case."""
    table = classification(3000).append_column("w", pa.array(np.random.default_rng(1).random(3000) + 0.5))
    data, scanned, early = write(table, shards=2, row_group_rows=250), [], []
    scan, measure = look.scan_labels, look.measure_scales

    def scanning(*args: Any, **named: Any) -> Any:
        if n_jobs > 1 and not parameters:
            assert began.wait(30)  # beside
        found = scan(*args, **named)
        scanned.append(True)
        return found

    def measuring(*args: Any, **named: Any) -> Any:
        began.set()
        early.append(not scanned)
        return measure(*args, **named)

    monkeypatch.setattr(look, "scan_labels", scanning)
    monkeypatch.setattr(look, "measure_scales", measuring)
    models = []
    for n_jobs in (1, 3):
        began = Event()
        scanned.clear()
        named = {key: value for key, value in parameters.items() if key != "weight"}
        fitted = sg.SGDClassifier(epochs=1, n_jobs=n_jobs, drop=["w"] if "weight" not in parameters else (), **named)
        models.append(fitted.fit(data, "y", **({"sample_weight": "w"} if "weight" in parameters else {})))
    assert early == [False, not parameters]
    assert models[0].model_.sha256() == models[1].model_.sha256()
