"""Weights of hashed features get back the names of what was hashed."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest

import streamgd as sg
from streamgd.data.naming import hash_shares, name_hashes
from streamgd.data.table import TableSource
from streamgd.inspection import inspect_model


def trained(table: pa.Table, **parameters):
    return sg.SGDClassifier(epochs=3, hash_bits=20, **parameters).fit(table, "y").model_


def table_of(n=600):
    rng = np.random.default_rng(0)
    c, d = rng.choice(["AA", "UA", None], n), rng.choice([7, 8], n)
    texts = rng.choice(["The Good, good food", "bad-food zürich", "日本 \u201cok\u201d", None], n)
    at = [datetime(2013, 1 + i % 12, 3, i % 24) for i in range(n)]
    y = (c == "AA") ^ (rng.random(n) < 0.1)
    return pa.table({"c": c, "d": d, "t": texts, "at": at, "x": rng.normal(size=n), "y": y.astype(int)})


def test_every_weight_finds_its_name():
    table = table_of()
    pairs = (("c", "d"), ("x", "c"))
    model = trained(table, categorical="d", text="t", calendar="at", interactions=pairs)
    found = name_hashes(TableSource(table), model, model.hashed_index.tolist())
    assert set(found) == set(model.hashed_index.tolist())
    names = {name for names in found.values() for name in names}
    assert names >= {
        *("c=AA", "c=UA", "c=(missing)", "d=7", "d=8", "month(at)=1", "month(at)=12", "hour(at)=23", "weekday(at)=0"),
        *("t:the", "t:good", "t:the good", "t:good good", "t:good food", "t:zürich", "t:日本 ok", "t:(missing)"),
        *("c=AA*d=7", "c=(missing)*d=8", "x*c=AA", "x*c=(missing)"),
    }
    assert all(len(names) == 1 for names in found.values())


def test_shares_are_how_often_a_hash_occurs():
    table = table_of().select(["c", "x", "y"])
    model = trained(table)
    shares = hash_shares(TableSource(table, 100), model)[model.hashed_index]
    (names,) = ([name_hashes(TableSource(table), model, [int(i)])[int(i)][0] for i in model.hashed_index],)
    counts = {f"c={value or '(missing)'}": table["c"].to_pylist().count(value) / 600 for value in ("AA", "UA", None)}
    assert dict(zip(names, shares, strict=True)) == counts


def test_inspect_ranks_categories_beside_numbers():
    table = table_of()
    model = trained(table, drop=["t", "at", "d"])
    named = inspect_model(model, 10, TableSource(table))["largest"]
    assert named[0]["feature"] == "c=AA" and named[0]["standardised"] > 0
    assert {row["feature"] for row in named} == {"c=AA", "c=UA", "c=(missing)", "x"}
    plain = inspect_model(model, 10)["largest"]
    assert sum(row["feature"].startswith("#") for row in plain) == 3


def test_a_hash_that_the_sample_lacks_keeps_its_number():
    table = table_of()
    model = trained(table, drop=["t", "at", "d"])
    other = table.set_column(0, "c", pa.array(["other"] * 600))
    features = {row["feature"] for row in inspect_model(model, 10, TableSource(other))["largest"]}
    assert any(name.startswith("#") for name in features) and "c=AA" not in features


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_bytes_that_are_no_text_are_named_with_marks(kind, encoded):
    """Random bytes among letters and spaces: every weight is named, and every name can be printed."""
    rng = np.random.default_rng(0)
    letters = [b"a", b"B", b" ", "é".encode(), "日".encode(), *(bytes([code]) for code in range(0x80, 0x100, 5))]
    values = [b"".join(rng.choice(np.array(letters, object), 12)) for _ in range(60)] + [None]
    raw = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}[kind]
    strings = pa.Array.from_buffers(kind, len(values), pa.array(values, raw).buffers())
    if encoded and kind != pa.string_view():
        strings = strings.dictionary_encode()
    once = pa.table({"c": strings, "t": strings, "d": strings, "y": np.arange(61) % 2})
    table = pa.concat_tables([once] * 4)
    model = trained(table, text="t", interactions=(("c", "d"),))
    found = name_hashes(TableSource(table), model, model.hashed_index.tolist())
    assert set(found) == set(model.hashed_index.tolist())
    names = [name for names in found.values() for name in names]
    assert "\ufffd" in "".join(names)
    for name in names:
        name.encode()
