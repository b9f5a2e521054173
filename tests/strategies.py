"""Hypothesis strategies for data: schemas, tables with nulls, and the ways to cut tables into shards and row groups."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
DECIMALS = (pa.decimal128(5, 2), pa.decimal128(18, 0), pa.decimal128(38, 10))
NUMBERS = (*INTEGERS, *FLOATS, *DECIMALS, pa.bool_())
LISTS = (pa.list_(pa.float32()), pa.list_(pa.int16()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 3))
STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
TYPES = (*NUMBERS, *LISTS, *STRINGS)

# Dots, spaces and prefixes of one another: what column selection by path can trip over.
NAMES = ("a", "a.b", "a.b.c", "b", "x y", "élan", "list", "item", "A")


def values(type_: pa.DataType) -> SearchStrategy[object]:
    """Values of an Arrow type, without null; no NaN, which equals nothing."""
    if pa.types.is_integer(type_):
        bits = type_.bit_width
        signed = pa.types.is_signed_integer(type_)
        return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)
    if pa.types.is_floating(type_):
        return st.floats(width=type_.bit_width, allow_nan=False)
    if pa.types.is_decimal(type_):
        most = 10**type_.precision - 1
        return st.integers(-most, most).map(lambda digits: _decimal(digits, type_.scale))
    if pa.types.is_boolean(type_):
        return st.booleans()
    if pa.types.is_fixed_size_list(type_):
        return st.lists(values(type_.value_type), min_size=type_.list_size, max_size=type_.list_size)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return st.lists(values(type_.value_type), max_size=4)
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def _decimal(digits: int, scale: int) -> Decimal:
    return Decimal((digits < 0, tuple(int(digit) for digit in str(abs(digits))), -scale))


def arrays(type_: pa.DataType, rows: int, *, nulls: bool = True) -> SearchStrategy[pa.Array]:
    """Arrays of a length, with nulls unless they are ruled out."""
    element = st.none() | values(type_) if nulls else values(type_)
    return st.lists(element, min_size=rows, max_size=rows).map(lambda items: _array(items, type_))


def _array(items: list[object], type_: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type_):
        return pa.array(items, type_.value_type).dictionary_encode().cast(type_)
    return pa.array(items, type_)


@st.composite
def tables(
    draw: st.DrawFn,
    types: Sequence[pa.DataType] = TYPES,
    *,
    min_rows: int = 1,
    max_rows: int = 30,
    max_columns: int = 5,
    nulls: bool = True,
) -> pa.Table:
    """Tables with random columns of some types."""
    rows = draw(st.integers(min_rows, max_rows))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=max_columns, unique=True))
    return pa.table({name: draw(arrays(draw(st.sampled_from(types)), rows, nulls=nulls)) for name in names})


@st.composite
def splits(draw: st.DrawFn, rows: int, *, min_size: int = 0) -> list[int]:
    """Sizes of consecutive pieces that add up to a number of rows."""
    sizes = []
    while rows:
        sizes.append(draw(st.integers(min(max(min_size, 0), rows), rows)))
        rows -= sizes[-1]
        if len(sizes) == 6:
            sizes.append(rows)
            break
    return sizes or [0]


@st.composite
def layouts(draw: st.DrawFn, rows: int) -> list[list[int]]:
    """Sizes of row groups, shard by shard, that add up to a number of rows."""
    return [draw(splits(shard)) for shard in draw(splits(rows))]


def cut(table: pa.Table, sizes: Sequence[int]) -> list[pa.Table]:
    """Slices of a table by their sizes."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(table.slice(start, size))
        start += size
    return pieces


def write_shard(path: Path, row_groups: Sequence[pa.Table]) -> None:
    """A Parquet file with exactly these row groups."""
    with pq.ParquetWriter(path, row_groups[0].schema) as writer:
        for row_group in row_groups:
            writer.write_table(row_group, row_group_size=max(1, row_group.num_rows))


def write_shards(directory: str | Path, table: pa.Table, layout: Sequence[Sequence[int]]) -> None:
    """Shards ``part-000.parquet``, ... with row groups of given sizes; all of them together are the table."""
    for number, (shard, sizes) in enumerate(zip(cut(table, [sum(sizes) for sizes in layout]), layout, strict=True)):
        write_shard(Path(directory) / f"part-{number:03}.parquet", cut(shard, sizes))
