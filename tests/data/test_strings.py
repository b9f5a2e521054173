"""Hashed features of a row: the same in any batch, row group, dictionary or form of string; and found again by name."""

from __future__ import annotations

from datetime import UTC, datetime
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data.encode import Encoder
from streamgd.data.source import ParquetSource
from streamgd.data.strings import DictionaryHashes, column_seeds, hash_values, hash_words, write_indices
from streamgd.data.table import TableSource
from streamgd.data.target import Target
from streamgd.features import Column, FeatureSpec
from tests import strategies as sgst

FORMS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
COLUMNS = (
    Column("x", "number"),
    Column("c", "category"),
    Column("d", "category"),
    Column("n", "category"),
    Column("at", "month"),
    Column("at", "weekday"),
    Column("at", "hour"),
    Column("t", "text"),
    Column("u", "text"),
    Column("c*hour(at)", "cross", parts=("c", "hour(at)")),
    Column("x*d", "scaled", parts=("x", "d")),
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
# Until 2037, up to which databases of time zones agree.
times = st.datetimes(datetime(1970, 1, 2), datetime(2037, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(1, 30))

    def column(element, kind):
        items = draw(st.lists(st.none() | element, min_size=rows, max_size=rows))
        return pa.array(items, kind) if not pa.types.is_dictionary(kind) else pa.array(items).cast(kind)

    few = st.sampled_from(draw(st.lists(words, min_size=1, max_size=4)))
    return pa.table(
        {
            "x": column(st.floats(-5, 5, width=32), pa.float32()),
            "c": column(few, pa.string()),
            "d": column(words, pa.string()),
            "n": column(st.integers(-3, 3), pa.int32()),
            "at": column(times, pa.timestamp("us", "America/New_York")),
            "t": column(st.lists(words, max_size=6).map(" ".join), pa.string()),
            "u": column(words, pa.string()),
            "y": pa.array(draw(st.lists(st.none() | st.integers(0, 1), min_size=rows, max_size=rows)), pa.int8()),
        }
    )


def features(encoder: Encoder, batches) -> list[tuple]:
    """Cells of each row that does not lack a target: numbers, hashes, and the hashes of each text."""
    found = []
    layout = encoder.layout
    for batch in batches:
        rows, alive = encoder.new_rows(batch.num_rows), []
        n = encoder.encode(batch, rows, "here", alive)
        cells = rows.view(np.uint32)
        held = {array.ctypes.data: array for array in alive}
        for i in range(n):
            texts = []
            for t in range(layout.n_text):
                low, high, count = (
                    int(cell) for cell in cells[i, layout.text_cell + 3 * t : layout.text_cell + 3 * t + 3]
                )
                address = low | high << 32
                array = next(a for start, a in held.items() if start <= address <= start + a.nbytes)
                place = (address - array.ctypes.data) // 4
                texts.append(tuple(array[place : place + count].tolist()))
            numbers = rows[i, : layout.n_features + layout.has_target].tobytes()
            found.append((numbers, tuple(cells[i, layout.width : layout.text_cell].tolist()), *texts))
    return found


ENCODER = Encoder(FeatureSpec.raw(COLUMNS), Target("y", pa.array([0, 1], pa.int8())))


def in_python(row: dict) -> tuple:
    """Hashes of a row, one value at a time."""

    def one(label, value):
        text = None if value is None else str(value)
        return int(hash_values(pa.array([text], pa.string()), *column_seeds(label))[0])

    at = row["at"]
    parts = [None if at is None else part for part in ((at.month, at.weekday(), at.hour) if at else (0, 0, 0))]
    calendar = [one(f"{kind}(at)", part) for kind, part in zip(("month", "weekday", "hour"), parts, strict=True)]
    return one("c", row["c"]), one("d", row["d"]), one("n", row["n"]), *calendar


@settings(deadline=None, max_examples=40)
@given(tables())
def test_hashes_are_those_of_single_values(table):
    found = features(ENCODER, table.combine_chunks().to_batches())
    rows = [row for row in table.to_pylist() if row["y"] is not None]
    assert [hashes[:6] for _, hashes, *_ in found] == [in_python(row) for row in rows]
    for (_, _, t, u), row in zip(found, rows, strict=True):
        for name, grams in (("t", t), ("u", u)):
            tokens, _ = hash_words(Column(name, "text"), pa.array([row[name]], pa.string()))
            assert grams == tuple(tokens.tolist())


@settings(deadline=None, max_examples=50)
@given(tables(), st.data())
def test_the_same_row_gives_the_same_features_in_any_batch_and_form(table, data):
    expected = features(ENCODER, table.combine_chunks().to_batches())
    for name in ("c", "d", "t", "u"):
        kind = data.draw(st.sampled_from(FORMS))
        if pa.types.is_dictionary(kind):
            encoded = table[name].combine_chunks().dictionary_encode()
            table = table.set_column(table.column_names.index(name), name, encoded)
        else:
            table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    kind = data.draw(st.sampled_from([pa.int8(), pa.int64(), pa.string()]))
    table = table.set_column(3, "n", table["n"].cast(kind))
    (whole,) = table.combine_chunks().to_batches()
    slices = [
        whole.slice(sum(sizes[:i]), sizes[i])
        for sizes in [data.draw(sgst.splits(len(whole)))]
        for i in range(len(sizes))
    ]
    assert features(ENCODER, [piece for piece in slices if piece.num_rows]) == expected


@settings(deadline=None, max_examples=40)
@given(tables(), st.data())
def test_the_same_row_gives_the_same_features_from_any_row_group_and_dictionary(table, data):
    expected = features(ENCODER, table.combine_chunks().to_batches())
    with TemporaryDirectory() as directory:
        sizes = data.draw(sgst.splits(table.num_rows, min_size=1))
        for number, piece in enumerate(sgst.cut(table, sizes)):
            pq.write_table(
                piece,
                f"{directory}/{number:03}.parquet",
                row_group_size=data.draw(st.integers(1, 20)),
                use_dictionary=data.draw(st.sampled_from([True, False, ["c"]])),
                dictionary_pagesize_limit=data.draw(st.sampled_from([1, 16, 1 << 20])),
                data_page_size=data.draw(st.sampled_from([1, 64, 1 << 20])),
            )
        source = ParquetSource(directory)
        if data.draw(st.booleans()):
            source = source.with_dictionaries(["c", "d", "n"])
        batches: list = []
        for row_group in range(source.manifest.n_row_groups):
            reader = source.open(row_group, ENCODER.columns, data.draw(st.integers(1, 20)))
            batches.extend(reader.read(int(source.manifest.rows[row_group])))
        assert features(ENCODER, batches) == expected


def test_dictionaries_come_as_they_lie_and_only_where_they_are_asked_for(tmp_path):
    table = pa.table({"c": ["a", "b", None] * 50, "d": ["x"] * 150})
    pq.write_table(table, tmp_path / "a.parquet")
    plain = ParquetSource(str(tmp_path))
    asked = plain.with_dictionaries(["c"])
    for source, kinds in ((plain, [False, False]), (asked, [True, False])):
        (batch,) = source.open(0, ["c", "d"], 1000).read(150)
        assert [pa.types.is_dictionary(kind) for kind in batch.schema.types] == kinds
        assert batch.to_pylist() == table.to_pylist()
        assert source.schema.types == [pa.string(), pa.string()]


def test_shards_whose_strings_have_other_forms_are_one_column(tmp_path):
    for number, kind in enumerate(FORMS):
        values = pa.array(["a", None, "b"]) if number < 3 else pa.array(["a", None, "b"]).dictionary_encode()
        column = values.cast(kind) if number < 3 else values
        pq.write_table(pa.table({"c": column}), tmp_path / f"{number}.parquet")
    pq.write_table(pa.table({"c": pa.nulls(3)}), tmp_path / "9.parquet")
    source = ParquetSource(str(tmp_path)).with_dictionaries(["c"])
    encoder = Encoder(FeatureSpec.raw([Column("c", "category")]))
    found = [features(encoder, source.open(g, ["c"], 10).read(3)) for g in range(source.manifest.n_row_groups)]
    assert found[:4] == [found[0]] * 4
    _, missing = column_seeds("c")
    assert [hashes for _, hashes in found[4]] == [(missing,)] * 3 and found[0][1][1] == (missing,)


def test_a_string_is_hashed_once_where_arrow_hands_it_out_again(monkeypatch, tmp_path):
    """However many record batches a row group comes in."""
    from streamgd.data import strings

    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"c": [f"v{i}" for i in rng.integers(0, 500, 20_000)]}), tmp_path / "a.parquet")
    source = ParquetSource(str(tmp_path)).with_dictionaries(["c"])
    hashed = []
    real = strings.hash_values
    monkeypatch.setattr(
        strings, "hash_values", lambda values, *seeds: hashed.append(len(values)) or real(values, *seeds)
    )
    features(Encoder(FeatureSpec.raw([Column("c", "category")])), source.open(0, ["c"], 1000).read(20_000))
    assert sum(hashed) == 500


def test_a_table_is_its_own_source_of_dictionaries():
    source = TableSource(pa.table({"c": ["a"]}))
    assert source.with_dictionaries(["c"]) is source


@pytest.mark.parametrize("values", [[], ["a", None, "b"]])
def test_columns_without_rows_or_values(values):
    encoder = Encoder(FeatureSpec.raw([Column("c", "category"), Column("t", "text")]))
    batch = pa.record_batch({"c": pa.array(values, pa.string()), "t": pa.nulls(len(values))})
    assert len(features(encoder, [batch])) == len(values)


def test_values_of_an_empty_dictionary_are_an_error_unless_they_are_null() -> None:
    column, out = Column("c", "category"), np.zeros((3, 1), np.uint32)
    empty = pa.array([], pa.string())
    null = pa.DictionaryArray.from_arrays(pa.array([None] * 3, pa.int32()), empty)
    write_indices([column], pa.record_batch({"c": null}), 0, out, DictionaryHashes())
    assert (out == out[0]).all()
    wrong = pa.DictionaryArray.from_arrays(pa.array([0, None, 0], pa.int32()), empty, safe=False)
    with pytest.raises(ValueError, match="'c' holds a value that its dictionary does not have"):
        write_indices([column], pa.record_batch({"c": wrong}), 0, out, DictionaryHashes())
