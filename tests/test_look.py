"""What is told of data that are wrong in more than one way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamgd as sg
from streamgd import look
from streamgd.errors import DataError, SingleClass

from .conftest import Write, classification


def test_what_is_wrong_with_labels_is_told_first(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(*_: Any, **__: Any) -> None:
        raise DataError("the sample is bad")

    monkeypatch.setattr(look, "measure_scales", sample)
    good = classification(500)
    one = good.set_column(good.column_names.index("y"), "y", pa.array(np.zeros(500, np.int8)))
    with pytest.raises(SingleClass):
        sg.SGDClassifier().fit(write(one, "one"), "y")
    with pytest.raises(DataError, match="the sample is bad"):
        sg.SGDClassifier().fit(write(good, "good"), "y")
