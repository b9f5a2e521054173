"""Footers and page headers as pyarrow has them, and bytes that are none."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.kernels import thrift as kernels
from tests import strategies as sgst
from tests.thrift import varint

CODECS = ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]


def footer(path: Path) -> np.ndarray:
    data = path.read_bytes()
    return np.frombuffer(data[-8 - int.from_bytes(data[-8:-4], "little") : -8], np.uint8)


def written(data: st.DataObject, directory: str) -> tuple[Path, Any]:
    """A shard of random columns, written in a random way, and its footer by pyarrow."""
    table = data.draw(sgst.tables(min_rows=1, max_rows=60))
    path = Path(directory) / "a.parquet"
    options = {
        "compression": data.draw(st.sampled_from(CODECS)),
        "use_dictionary": data.draw(st.booleans()),
        "data_page_version": data.draw(st.sampled_from(["1.0", "2.0"])),
        "data_page_size": data.draw(st.sampled_from([1, 40, 1 << 20])),
        "write_batch_size": data.draw(st.sampled_from([1, 7, 1024])),
        "write_statistics": data.draw(st.booleans()),
        "write_page_checksum": data.draw(st.booleans()),
        "write_page_index": data.draw(st.booleans()),
    }
    table = table.replace_schema_metadata({"note": "x" * data.draw(st.integers(0, 300))})
    pq.write_table(table, path, row_group_size=data.draw(st.integers(1, 70)), **options)
    return path, pq.ParquetFile(path).metadata


def read_chunks(path: Path, metadata: Any) -> np.ndarray:
    table = np.empty((metadata.num_row_groups * metadata.num_columns, kernels.CHUNK_FIELDS), np.int64)
    assert kernels.column_chunks(footer(path), metadata.num_columns, table) == len(table)
    return table


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_chunks_and_pages_are_those_of_pyarrow(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path, metadata = written(data, directory)
        table, place = read_chunks(path, metadata), 0
        for group in range(metadata.num_row_groups):
            for leaf in range(metadata.num_columns):
                chunk, found = metadata.row_group(group).column(leaf), table[place]
                start = chunk.data_page_offset
                if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                    start = chunk.dictionary_page_offset
                assert found[[kernels.ROW_GROUP, kernels.LEAF]].tolist() == [group, leaf]
                assert found[kernels.VALUES] == chunk.num_values
                assert found[kernels.UNCOMPRESSED] == chunk.total_uncompressed_size
                assert found[kernels.COMPRESSED] == chunk.total_compressed_size
                assert found[kernels.START] == start and found[kernels.ENCRYPTED] == 0
                place += 1
        pages = np.empty((len(table), kernels.PAGE_FIELDS), np.int64)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert kernels.walk_pages(descriptor, table, 1 << 62, pages) == len(table)
        finally:
            os.close(descriptor)
        assert (pages[:, kernels.PAGE_VALUES] == table[:, kernels.VALUES]).all()
        assert (pages[:, kernels.PAGES] >= 1).all()
        # Headers are counted in the size of a chunk, and not in that of a page.
        assert (pages[:, kernels.INFLATED] < table[:, kernels.UNCOMPRESSED]).all()


def zigzag(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


# Values of all types of Thrift, as (type, bytes); in a list a boolean takes a byte, in a struct none.
plain = st.one_of(
    st.integers(-(2**31), 2**31 - 1).map(lambda n: (5, zigzag(n))),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: (6, zigzag(n))),
    st.integers(-(2**15), 2**15 - 1).map(lambda n: (4, zigzag(n))),
    st.integers(0, 255).map(lambda n: (3, bytes([n]))),
    st.binary(min_size=8, max_size=8).map(lambda b: (7, b)),
    st.binary(min_size=16, max_size=16).map(lambda b: (13, b)),
    st.binary(max_size=20).map(lambda b: (8, varint(len(b)) + b)),
)


def struct(fields: list[tuple[int, bytes, int]]) -> tuple[int, bytes]:
    """A struct of fields with gaps between their numbers; a large one is written out."""
    out = b""
    number = 0
    for kind, value, gap in fields:
        number += gap
        out += bytes([gap << 4 | kind]) + value if gap < 16 else bytes([kind]) + zigzag(number) + value
    return 12, out + b"\0"


def sequence(items: list[tuple[int, bytes]], kind: int) -> tuple[int, bytes]:
    """A list or set of values of one type: those of the first's."""
    of = items[0][0] if items else 5
    items = [item for item in items if item[0] == of]
    head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + varint(len(items))
    return kind, head + b"".join(value for _, value in items)


def mapping(items: list[tuple[tuple[int, bytes], tuple[int, bytes]]]) -> tuple[int, bytes]:
    if not items:
        return 11, b"\0"
    key, value = items[0][0][0], items[0][1][0]
    items = [item for item in items if (item[0][0], item[1][0]) == (key, value)]
    return 11, varint(len(items)) + bytes([key << 4 | value]) + b"".join(k[1] + v[1] for k, v in items)


gaps = st.one_of(st.integers(1, 15), st.integers(16, 500))
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(st.tuples(inner | st.sampled_from([(1, b""), (2, b"")]), gaps), max_size=5).map(
            lambda items: struct([(kind, value, gap) for (kind, value), gap in items])
        ),
        st.tuples(st.lists(inner | st.just((1, b"\1")), max_size=20), st.sampled_from([9, 10])).map(
            lambda both: sequence(*both)
        ),
        st.lists(st.tuples(inner, inner), max_size=4).map(mapping),
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(values, max_size=4), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.data())
def test_what_is_not_known_is_passed_over(
    extra: list[tuple[int, bytes]], size: int, compressed: int, data: st.DataObject
) -> None:
    """Fields of later versions, of any type: the header ends where it ends."""
    fields = [(5, zigzag(0), 1), (5, zigzag(size), 1), (5, zigzag(compressed), 1)]
    inner = struct([(5, zigzag(17), 1), *((kind, value, 20) for kind, value in extra)])
    fields += [(*inner, 2), *((kind, value, 20) for kind, value in extra)]
    _, whole = struct(fields)
    header = np.empty(kernels.HEADER_FIELDS, np.int64)
    rest = data.draw(st.binary(max_size=20))
    assert kernels.page_header(np.frombuffer(whole + rest, np.uint8), header) == len(whole)
    assert header[:4].tolist() == [0, size, compressed, 17]
    end = data.draw(st.integers(0, len(whole) - 1))
    assert kernels.page_header(np.frombuffer(whole[:end], np.uint8), header) == -1


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=80), st.integers(0, 5))
def test_bytes_that_are_nothing_end_at_no_place(noise: bytes, leaves: int) -> None:
    data, header = np.frombuffer(noise, np.uint8), np.empty(kernels.HEADER_FIELDS, np.int64)
    assert -1 <= kernels.page_header(data, header) <= len(noise)
    table = np.empty((10, kernels.CHUNK_FIELDS), np.int64)
    assert -1 <= kernels.column_chunks(data, leaves, table) <= len(table)


def test_a_struct_that_ends_in_the_number_of_a_field() -> None:
    """What is found missing stays missing, though the value that follows has a known length (8 bytes, 1, 16)."""
    header, start = np.empty(kernels.HEADER_FIELDS, np.int64), b"\x15\x00\x15\x02\x15\x02"
    for kind in (7, 3, 13, 12):
        data = np.frombuffer(start + b"\x2c" + bytes([kind]), np.uint8)
        assert kernels.page_header(data, header) == -1
        data = np.frombuffer(start + b"\x2c\x1c" + bytes([kind]) + b"\xff", np.uint8)
        assert kernels.page_header(data, header) == -1


def test_what_is_nested_too_deep_or_too_long_is_refused() -> None:
    header = np.empty(kernels.HEADER_FIELDS, np.int64)
    for kind in (0x1C, 0x19):  # a struct in a struct, a list in a list
        deep = np.full(100_000, kind, np.uint8)
        assert kernels.page_header(deep, header) == -1
    # A list of 2^60 elements, a string of 2^62 bytes, a number without an end.
    for data in (b"\x19\xf5" + varint(2**60), b"\x18" + varint(2**62), b"\x15" + b"\xff" * 50):
        assert kernels.page_header(np.frombuffer(data + bytes(50), np.uint8), header) == -1


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_damaged_file_ends_at_no_place(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path, metadata = written(data, directory)
        table = read_chunks(path, metadata)
        whole = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            whole[data.draw(st.integers(0, len(whole) - 9))] = data.draw(st.integers(0, 255))
        path.write_bytes(whole)
        found = table.copy()
        assert -1 <= kernels.column_chunks(footer(path), metadata.num_columns, found) <= len(table)
        for chunks in (table, found):
            pages = np.zeros((len(table), kernels.PAGE_FIELDS), np.int64)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                assert 0 <= kernels.walk_pages(descriptor, chunks, 1 << 62, pages) <= len(table)
            finally:
                os.close(descriptor)
            assert (pages >= 0).all()
