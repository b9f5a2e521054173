"""Rows straight from pages are those that Arrow reads, and what is odd is left to Arrow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data import chunks, direct, openchunks
from streamgd.data.blocks import BlockReader
from streamgd.data.columns import find_columns
from streamgd.data.direct import recipe
from streamgd.data.encode import Encoder
from streamgd.data.source import ParquetSource
from streamgd.data.target import Target
from streamgd.errors import DataError
from streamgd.features import FeatureSpec, Selection
from streamgd.slotorder import SlotOrder
from tests import strategies as sgst

CODECS = st.sampled_from(["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
SIMPLE = (
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float32(), pa.float64(), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())),
    *(pa.date32(), pa.timestamp("ms"), pa.timestamp("us", "Europe/Paris"), pa.timestamp("ns")),
)


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return st.integers(-(2**15), 2**15)
    if pa.types.is_floating(kind):
        return st.sampled_from([0.0, -0.0, 1.5, -3.25, 1e-40, 1e30, float("nan")])
    if pa.types.is_binary(kind):
        return st.binary(max_size=5)
    if pa.types.is_integer(kind):
        least, most = (
            (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) if "u" not in str(kind) else (0, 255)
        )
        return st.integers(-100, 100).map(lambda value: max(value, least)) | st.sampled_from([least, most])
    return sgst.values(kind)


@st.composite
def columns(draw: st.DrawFn, kind: pa.DataType, rows: int) -> pa.Array:
    """Runs of equal values and of nulls, and values that all differ."""
    value = values(kind)
    items: list[Any] = []
    while len(items) < rows:
        n = draw(st.integers(1, rows))
        if draw(st.booleans()):
            items += [draw(st.none() | value)] * n
        else:
            some = draw(st.lists(st.none() | value, min_size=1, max_size=12))
            items += (some * n)[:n]
    items = items[:rows]
    if pa.types.is_dictionary(kind):
        return pa.array(items, pa.string()).dictionary_encode()
    whole = pa.int64() if pa.types.is_timestamp(kind) else pa.int32()
    return pa.array(items, whole).cast(kind) if kind in (pa.date32(),) or whole == pa.int64() else pa.array(items, kind)


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Table, Selection, dict[str, Any]]:
    rows = draw(st.integers(1, 80))
    kinds = draw(st.lists(st.sampled_from(SIMPLE), min_size=1, max_size=20))
    table = pa.table({f"c{i}": draw(columns(kind, rows)) for i, kind in enumerate(kinds)})
    names = table.schema.names
    by_kind: dict[str, tuple[str, ...]] = {
        "calendar": tuple(n for n in names if pa.types.is_temporal(table.schema.field(n).type)),
        "categorical": tuple(
            n
            for n in names
            if (pa.types.is_integer(table.schema.field(n).type) or pa.types.is_boolean(table.schema.field(n).type))
            and draw(st.booleans())
        ),
    }
    selection = Selection(**by_kind, missing_indicator=draw(st.booleans()))
    target = draw(columns(draw(st.sampled_from([pa.int8(), pa.string(), pa.bool_(), pa.float64()])), rows))
    if pa.types.is_floating(target.type):
        target = pa.array([None if v is None or v != v else v for v in target.to_pylist()], pa.float64())
    table = table.append_column("y", target)
    required = draw(st.booleans())
    fields = [f.with_nullable(not required or table[f.name].null_count > 0) for f in table.schema]
    options = {
        "compression": draw(CODECS | st.fixed_dictionaries(dict.fromkeys(table.column_names, CODECS))),
        "use_dictionary": draw(st.booleans()),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
        "data_page_size": draw(st.sampled_from([1, 40, 1 << 20])),
        "write_batch_size": draw(st.sampled_from([1, 7, 1024])),
        "dictionary_pagesize_limit": draw(st.sampled_from([1, 30, 1 << 20])),
        "row_group_size": draw(st.integers(1, 90)),
    }
    return table.cast(pa.schema(fields)), selection, options


def encoder_of(table: pa.Table, source: ParquetSource, selection: Selection) -> Encoder:
    """Any fills, and offsets of which every second is a float32."""
    found = find_columns(source, target="y", selection=selection)
    spec = FeatureSpec.raw(found)
    n = spec.n_features
    offsets = np.linspace(-0.3, 2.7, n)
    offsets[::2] = offsets[::2].astype(np.float32)
    spec = spec.centred(offsets, np.ones(n)) if n else spec
    y = table["y"].combine_chunks()
    classes = None if pa.types.is_floating(y.type) else y.unique().drop_null()
    return Encoder(spec, Target("y", classes))


def read(
    source: ParquetSource, encoder: Encoder, row_group: int, cuts: list[tuple[int, bool]], direct: bool
) -> tuple[list[Any], bool]:
    """Rows of each piece that is not skipped, and what is left out; and whether Arrow was needed."""
    reader = BlockReader(source, encoder, row_group, recipe(encoder) if direct else None)
    found = []
    for n, skipped in cuts:
        if skipped:
            reader.skip(n)
            continue
        rows = encoder.new_rows(n)
        blocks = list(reader.read(n, rows))
        kept = np.concatenate([block.encoded.view(np.uint32)[:, : encoder.layout.text_cell] for block in blocks])
        found.append((kept.tolist(), np.concatenate([block.dropped for block in blocks]).tolist()))
    if reader.done == reader.rows:
        reader.finish()
    return found, reader._batches is not None


@settings(deadline=None, max_examples=150)
@given(cases(), st.data())
def test_rows_are_those_of_arrow(case: tuple[pa.Table, Selection, dict[str, Any]], data: st.DataObject) -> None:
    """However few rows are unpacked at a time, and whether chunks are read together, or whole, or by their headers; and
    whether they hold hashes, or places of slots.
    """
    table, selection, options = case
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "_STEP_ROWS", data.draw(st.sampled_from([1, 7, 30, 1 << 16])))
        patch.setattr(chunks, "_KEPT_BYTES", data.draw(st.sampled_from([0, 200, 4 << 20])))
        patch.setattr(openchunks, "_TOGETHER_BYTES", data.draw(st.sampled_from([0, 500, 64 << 20])))
        patch.setattr(chunks, "_HEADER_BYTES", data.draw(st.sampled_from([1, 30, 4096])))
        pq.write_table(table, Path(directory) / "a.parquet", **options)
        source = ParquetSource(directory, n_jobs=1)
        encoder = encoder_of(table, source, selection)
        if data.draw(st.booleans()):
            encoder = encoder.with_order(SlotOrder.of(np.arange(0, 2**32, 2**27, dtype=np.uint32), 2**16))
        source = source.with_dictionaries(encoder.spec.dictionaries)
        for row_group in range(source.manifest.n_row_groups):
            rows = int(source.manifest.rows[row_group])
            cuts = [(n, data.draw(st.booleans())) for n in data.draw(sgst.splits(rows)) if n]
            straight, by_arrow = read(source, encoder, row_group, cuts, True)
            assert straight == read(source, encoder, row_group, cuts, False)[0]
            # Bits may be encoded in runs, or be followed by some that are none of the classes; all else is read here.
            assert not by_arrow or any(pa.types.is_boolean(field.type) for field in table.schema)


def numbers(rows: int = 5000) -> pa.Table:
    rng = np.random.default_rng(3)
    words = pa.array([None if k % 7 == 0 else f"w{k % 900}" for k in rng.integers(0, 3000, rows)])
    x = pa.array(rng.normal(size=rows).astype(np.float32), mask=rng.random(rows) < 0.2)
    return pa.table({"x": x, "k": rng.integers(0, 40, rows), "s": words, "y": rng.integers(0, 2, rows)})


def opened(path: Path) -> tuple[ParquetSource, Encoder]:
    source = ParquetSource(path, n_jobs=1)
    encoder = encoder_of(numbers(), source, Selection())
    return source.with_dictionaries(encoder.spec.dictionaries), encoder


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_each_thread_unpacks_by_a_codec_of_its_own(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a row group that a window has cut is read on by another thread: gzip's codec has a state."""
    pq.write_table(numbers(), tmp_path / "a.parquet", compression=codec, data_page_size=500, write_batch_size=100)
    monkeypatch.setattr(direct, "_STEP_ROWS", 1000)
    source, encoder = opened(tmp_path)
    reader = BlockReader(source, encoder, 0, recipe(encoder))
    first, second = encoder.new_rows(1000), encoder.new_rows(4000)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: list(reader.read(1000, first))).result()
        theirs = pool.submit(lambda: dict(chunks.thread_memory._codecs)).result()
    own = {number: pa.Codec(chunks.CODECS[number]) for number in theirs}
    used: list[str] = []

    class Told:
        def __init__(self, number: int) -> None:
            self.number = number

        def decompress(self, *given: Any) -> Any:
            used.append(threading.current_thread().name)
            return own[self.number].decompress(*given)

    monkeypatch.setattr(chunks.thread_memory, "_codecs", {number: Told(number) for number in theirs})
    list(reader.read(4000, second))
    assert used and set(used) == {threading.current_thread().name}
    assert reader._batches is None


@pytest.mark.parametrize("step", [1000, 1 << 16])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_what_is_damaged_is_what_arrow_makes_of_it(
    tmp_path: Path, codec: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flipped byte crashes it, and none gives other rows than Arrow's."""
    monkeypatch.setattr(direct, "_STEP_ROWS", step)
    path = tmp_path / "a.parquet"
    pq.write_table(numbers(), path, compression=codec, data_page_size=8000)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    source, encoder = opened(path)
    rng, errors = np.random.default_rng(0), 0

    def result(source: ParquetSource, direct: bool) -> Any:
        try:
            return read(source, encoder, 0, [(3000, False), (2000, False)], direct)[0]
        except DataError as error:
            return str(error)

    for _ in range(80):
        damaged = bytearray(whole)
        for place in rng.integers(4, footer, rng.integers(1, 4)):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        arrow = result(source, False)
        if "its dictionary does not have" in arrow:  # Arrow makes one of two equal strings, and is one short
            arrow = result(source.with_dictionaries([]), False)
        straight = result(source, True)
        assert straight == arrow or (isinstance(straight, str) and isinstance(arrow, str))
        errors += isinstance(arrow, str)
    assert errors > 5


@pytest.mark.parametrize(
    "options",
    [
        {"write_page_checksum": True},
        {"use_dictionary": False, "column_encoding": {"x": "BYTE_STREAM_SPLIT"}},
        {"use_dictionary": False, "column_encoding": {"k": "DELTA_BINARY_PACKED"}},
        {"use_dictionary": False, "column_encoding": {"s": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_what_is_not_known_is_left_to_arrow(tmp_path: Path, options: dict[str, Any]) -> None:
    pq.write_table(numbers(), tmp_path / "a.parquet", **options)
    source, encoder = opened(tmp_path)
    cuts = [(1000, True), (4000, False)]
    straight, by_arrow = read(source, encoder, 0, cuts, True)
    assert by_arrow
    assert straight == read(source, encoder, 0, cuts, False)[0]


@pytest.mark.parametrize("direct", [False, True])
def test_infinity_is_told_as_before(tmp_path: Path, direct: bool) -> None:
    table = numbers().set_column(0, "x", pa.array([1.0, float("inf")] * 2500))
    pq.write_table(table, tmp_path / "a.parquet")
    source, encoder = opened(tmp_path)
    with pytest.raises(DataError, match=r"column 'x' holds infinity.* in 2500 place"):
        read(source, encoder, 0, [(5000, False)], direct)


def lists() -> Iterator[tuple[Selection, pa.Array]]:
    yield Selection(), pa.array([[1.0, 2.0]] * 5000)
    yield Selection(text=("t",)), pa.array(["a b"] * 5000)
    yield Selection(interactions=(("x", "k"),)), pa.array([1] * 5000)


@pytest.mark.parametrize("case", list(lists()), ids=["lists", "texts", "products"])
def test_features_of_other_kinds_are_left_to_arrow(tmp_path: Path, case: tuple[Selection, pa.Array]) -> None:
    pq.write_table(numbers().append_column("t", case[1]), tmp_path / "a.parquet")
    assert recipe(encoder_of(numbers(), ParquetSource(tmp_path), case[0])) is None
