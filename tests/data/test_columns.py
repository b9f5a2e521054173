"""What becomes of columns: by their types, by what the user says, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from streamgd.data.buffers import is_number
from streamgd.data.columns import check_columns, find_columns, is_category, is_string, is_vector
from streamgd.data.table import TableSource
from streamgd.errors import ConfigError, MissingColumn, SchemaMismatch, UnusableColumns
from streamgd.features import KINDS, Column, FeatureSpec, Layout, Selection

from .test_encode import LISTS, NUMBERS

STRINGS = (
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
)


def empty(schema: pa.Schema) -> TableSource:
    """A table of one row of nulls."""
    return TableSource(pa.table([pa.nulls(1, field.type) for field in schema], schema=schema))


def names_of(schema: pa.Schema, target=None, weight=None, drop=(), only=None) -> list[str]:
    columns = find_columns(
        empty(schema), target=target, weight=weight, selection=Selection(drop=tuple(drop)), only=only
    )
    return [column.name for column in columns]


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_columns_of_numbers(kind):
    assert is_number(kind) and not is_vector(kind)


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_columns_of_strings_are_categories(kind):
    assert is_string(kind) and is_category(kind) and not is_number(kind)
    assert find_columns(empty(pa.schema([("a", kind)]))) == (Column("a", "category"),)


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_columns_of_vectors(kind):
    assert is_vector(kind) and not is_number(kind)


UNUSABLE = {
    "day": pa.date32(),
    "time": pa.timestamp("us"),
    "span": pa.duration("s"),
    "nested": pa.list_(pa.list_(pa.float32())),
    "words": pa.list_(pa.string()),
    "record": pa.struct([("a", pa.int8())]),
    "pairs": pa.map_(pa.string(), pa.int8()),
}


def test_all_columns_that_cannot_be_features_are_listed_with_their_types():
    schema = pa.schema([("a", pa.int8()), *UNUSABLE.items()])
    with pytest.raises(UnusableColumns) as caught:
        find_columns(empty(schema))
    for name, kind in UNUSABLE.items():
        assert f"{name} ({kind})" in str(caught.value)
    assert f"--drop {','.join(UNUSABLE)} " in str(caught.value)
    assert names_of(schema, drop=list(UNUSABLE)) == ["a"]
    with pytest.raises(UnusableColumns, match=r"day \(date32"):
        find_columns(empty(schema), only=["a", "day"])


def test_features_are_all_columns_but_the_target_the_weight_the_dropped_and_an_index_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"y": [0, 1], "b": [1.0, 2.0], "a": [3, 4], "w": [1, 1], "c": [0, 0]}, index=[5, 7])
    schema = pa.Schema.from_pandas(frame)
    assert "__index_level_0__" in schema.names
    assert names_of(schema, "y", "w", ["c"]) == ["b", "a"]
    assert names_of(schema, "y", only=["a", "__index_level_0__"]) == ["a", "__index_level_0__"]
    assert names_of(pa.schema([("__index_level_0__x", pa.int8())])) == ["__index_level_0__x"]


@pytest.mark.parametrize(
    ("named", "role"),
    [({"target": "q"}, "target"), ({"weight": "q"}, "weight"), ({"drop": ["q"]}, "drop"), ({"only": ["q"]}, "feature")],
    ids=str,
)
def test_columns_that_are_not_there_are_named(named, role):
    with pytest.raises(MissingColumn, match=f"{role} column 'q'.*a, b"):
        names_of(pa.schema([("a", pa.int8()), ("b", pa.int8())]), **named)


@pytest.mark.parametrize("named", [{"target": "a", "drop": ["b"]}, {"only": []}], ids=str)
def test_no_column_left_is_an_error(named):
    with pytest.raises(UnusableColumns, match="no column is left"):
        names_of(pa.schema([("a", pa.int8()), ("b", pa.int8())]), **named)


def test_columns_and_their_kinds():
    lists = pa.array([None, None, [1, 2, 3], [4, 5, 6]], pa.list_(pa.int8()))
    table = pa.table(
        {
            "y": [0, 1, 0, 1],
            "b": [True] * 4,
            "v": lists,
            "f": pa.array([[1, 2]] * 4, pa.list_(pa.float32(), 2)),
            "a": [1] * 4,
        }
    )
    for row_group_rows in (1, 4):
        source = TableSource(table, row_group_rows)
        assert find_columns(source, target="y", selection=Selection(drop=("a",))) == (
            Column("b", "number"),
            Column("v", "vector", 3),
            Column("f", "vector", 2),
        )
        assert find_columns(source, only=["a", "v"]) == (Column("a", "number"), Column("v", "vector", 3))
    with pytest.raises(MissingColumn, match="'q'"):
        find_columns(source, target="q")


@pytest.mark.parametrize(
    ("lists", "kind"),
    [
        ([None, None], pa.list_(pa.float32())),
        ([[], None, []], pa.list_(pa.float32())),
        ([[], []], pa.list_(pa.null())),
        ([[], []], pa.list_(pa.float32(), 0)),
    ],
    ids=str,
)
def test_lists_that_hold_nothing_cannot_be_features(lists, kind):
    source = TableSource(pa.table({"a": np.arange(len(lists)), "v": pa.array(lists, kind)}), 1)
    with pytest.raises(UnusableColumns, match=r"'v'.*drop"):
        find_columns(source)


def test_what_the_user_says_of_columns():
    schema = pa.schema(
        [
            ("y", pa.int8()),
            ("n", pa.int64()),
            ("c", pa.int16()),
            ("s", pa.string()),
            ("t", pa.string()),
            ("d", pa.date32()),
            ("at", pa.timestamp("us", "Europe/Zurich")),
            ("x", pa.float32()),
        ]
    )
    selection = Selection(
        categorical=("c",),
        text=("t",),
        calendar=("at", "d"),
        interactions=(("n", "x"), ("s", "n"), ("hour(at)", "s"), ("x", "x")),
    )
    found = find_columns(empty(schema), target="y", selection=selection)
    assert [(column.label, column.kind, column.parts) for column in found] == [
        ("n", "number", ()),
        ("c", "category", ()),
        ("s", "category", ()),
        ("t", "text", ()),
        ("month(d)", "month", ()),
        ("weekday(d)", "weekday", ()),
        ("month(at)", "month", ()),
        ("weekday(at)", "weekday", ()),
        ("hour(at)", "hour", ()),
        ("x", "number", ()),
        ("n*x", "product", ("n", "x")),
        ("s*n", "scaled", ("n", "s")),
        ("hour(at)*s", "cross", ("hour(at)", "s")),
        ("x*x", "product", ("x", "x")),
    ]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"categorical": ("x",)}, r"'x' is named as categorical, but is float.*strings, integers or booleans"),
        ({"text": ("n",)}, r"'n' is named as text, but is int64"),
        ({"calendar": ("s",)}, r"'s' is named as calendar, but is string"),
        ({"text": ("s",), "categorical": ("s",)}, r"'s' is named as text, and as categorical"),
        ({"text": ("s",), "drop": ("s",)}, r"'s' is named as text, and as drop"),
        ({"categorical": ("y",)}, r"'y' is named as categorical, and as target"),
        ({"interactions": (("n", "q"),)}, r"n\*q names 'q', which is no feature; there are n, s, x"),
        ({"interactions": (("n", "y"),)}, r"names 'y', which is no feature"),
        ({"text": ("s",), "interactions": (("n", "s"),)}, r"names a text or a list"),
    ],
    ids=str,
)
def test_what_cannot_be_is_an_error_that_says_why(selection, message):
    schema = pa.schema([("y", pa.int8()), ("n", pa.int64()), ("s", pa.string()), ("x", pa.float32())])
    with pytest.raises(ConfigError, match=message):
        find_columns(empty(schema), target="y", selection=Selection(**selection))


@pytest.mark.parametrize("role", ["categorical", "text", "calendar"])
def test_columns_that_are_said_something_of_must_be_there(role):
    with pytest.raises(MissingColumn, match=f"{role} column 'q'"):
        find_columns(empty(pa.schema([("a", pa.int8())])), selection=Selection(**{role: ("q",)}))


def test_dates_are_refused_with_the_way_to_use_them():
    with pytest.raises(UnusableColumns, match=r"day \(date32.*--calendar day\..*--drop day "):
        find_columns(empty(pa.schema([("a", pa.int8()), ("day", pa.date32())])))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("product", "cross", "scaled")])
def test_a_model_s_columns_must_be_of_their_kind(kind):
    good = {"number": pa.int8(), "missing": pa.float32(), "vector": pa.list_(pa.int8()), "category": pa.string()}
    good |= {"text": pa.large_string(), "month": pa.date32(), "weekday": pa.date64(), "hour": pa.timestamp("s")}
    column = Column("a", kind, 2 if kind == "vector" else 1)
    check_columns([column], pa.schema([("a", good[kind])]))
    with pytest.raises(SchemaMismatch, match=rf"'a' holds .* \({kind}\), but in the data it is duration"):
        check_columns([column], pa.schema([("a", pa.duration("s"))]))
    with pytest.raises(MissingColumn, match="the model's column 'a'"):
        check_columns([column], pa.schema([("b", good[kind])]))


def test_every_kind_of_column_survives_its_json_form():
    columns = [
        Column("a", kind, 3 if kind == "vector" else 1, ("x", "y") if kind in ("product", "cross", "scaled") else ())
        for kind in KINDS
    ]
    for column in columns:
        assert Column.from_json(column.to_json()) == column
        for broken in (
            {"kind": "q"},
            {"name": 3},
            {"size": -1},
            {"size": True},
            {"parts": ["x"]},
            {"parts": [1, 2]},
            {"varied": 1},
        ):
            with pytest.raises(ValueError, match="not a column"):
                Column.from_json(column.to_json() | broken)


def test_cells_do_not_overlap():
    for p in (0, 1, 3, 14, 15, 16, 30):
        for weight in (False, True):
            for n_index, n_text in ((0, 0), (1, 0), (26, 0), (0, 1), (3, 2)):
                layout = Layout(p, True, weight, n_index, 0, n_text)
                assert layout.y_cell == p and layout.width > p + weight
                assert layout.text_cell == layout.width + n_index
                assert layout.stride >= layout.text_cell + 3 * n_text
                assert layout.stride in (4, 8) or layout.stride % 16 == 0


def test_scaled_features_know_the_cell_of_their_number():
    columns = [Column("v", "vector", 3), Column("s", "category"), Column("n", "number")]
    spec = FeatureSpec.raw([*columns, Column("s*n", "scaled", parts=("n", "s"))])
    assert spec.scaled_cells.tolist() == [3]
    spec = spec.hashed(5, np.array([1.0, 1, 1, 4]))
    np.testing.assert_array_equal(spec.kernel_factor, [[3], [0.25]])
    assert (spec.n_features, spec.n_inputs, spec.n_slots) == (4, 6, 32)
