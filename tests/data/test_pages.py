"""What pages take is known before they are decompressed: planned for, or refused; never a surprise."""

from __future__ import annotations

import gc
import json
import struct
import subprocess
import sys
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd.data import pages as module
from streamgd.data import shards
from streamgd.data.encode import Encoder
from streamgd.data.pages import ALLOWED, Chunks, ChunkTable, leaves, walk, walk_remote
from streamgd.data.source import ParquetSource
from streamgd.errors import UnreadableShard
from streamgd.features import Column, FeatureSpec
from streamgd.kernels.thrift import PAGES
from streamgd.memoryplan import reader_bytes
from tests import strategies as sgst
from tests.thrift import varint

LIMIT = 600_000_000
ONE_PAGE = {"use_dictionary": False, "data_page_size": 1 << 30, "max_rows_per_page": 1 << 30, "write_statistics": False}


def chunks_of(path: Path, columns: list[str]) -> Chunks:
    """Chunks of columns of the first row group."""
    data, reader = path.read_bytes(), pq.ParquetFile(path)
    length = int.from_bytes(data[-8:-4], "little")
    table = ChunkTable(memoryview(data)[-8 - length : -8], reader.schema_arrow, reader.metadata.num_row_groups)
    return table.of(0, columns, "here")


def lie(path: Path) -> None:
    """Let the footer say that row groups and column chunks are small when they are unpacked."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    body, footer, metadata = data[: -8 - length], data[-8 - length : -8], pq.ParquetFile(path).metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        sizes = {group.column(k).total_uncompressed_size for k in range(group.num_columns)}
        for size in sizes | {group.total_byte_size}:
            assert b"\x16" + varint(2 * size) in footer
            footer = footer.replace(b"\x16" + varint(2 * size), b"\x16" + varint(2 * 4000))
    path.write_bytes(body + footer + struct.pack("<I", len(footer)) + b"PAR1")


MAIN = """
import atexit, sys
from streamgd.__main__ import main
from streamgd.memory import peak_rss
atexit.register(lambda: print("peak", peak_rss(), file=sys.stderr))
main()
"""


def train(path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Train in a process of its own, which keeps to its memory; its exit code, and what it printed."""
    command = [sys.executable, "-c", MAIN, "train", str(path), "--target", "y", "--json", "--epochs", "1"]
    command += ["--memory-limit", f"{LIMIT}B", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    assert 50_000_000 < int(done.stderr.split("peak ")[-1]) < LIMIT
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 million rows in a few KB, 320 MB of which are one page; honest, and not; and in pages as they should be."""
    rows = 40_000_000
    table = pa.table({"x": np.zeros(rows), "y": np.arange(rows, dtype=np.int8) % 2})
    found = {}
    for name, options in {
        "zstd": {"compression": "zstd", **ONE_PAGE},
        "brotli": {"compression": "brotli", **ONE_PAGE},
        "snappy": {"compression": "snappy", **ONE_PAGE},
        "in pages": {"compression": "zstd"},
    }.items():
        directory = tmp_path_factory.mktemp(name.replace(" ", "-"))
        pq.write_table(table, directory / "a.parquet", row_group_size=rows, **options)
        found[name] = directory
    for name in ("zstd", "brotli"):
        directory = tmp_path_factory.mktemp(f"lying-{name}")
        (directory / "a.parquet").write_bytes((found[name] / "a.parquet").read_bytes())
        lie(directory / "a.parquet")
        found[f"lying {name}"] = directory
    return found


@pytest.mark.parametrize("name", ["zstd", "brotli", "lying zstd", "lying brotli"])
def test_a_page_that_inflates_a_thousandfold_is_refused_where_it_is(bomb: dict[str, Path], name: str) -> None:
    assert (bomb[name] / "a.parquet").stat().st_size < 100_000
    code, told = train(bomb[name])
    assert code == 3 and told["error"] == "UnreadableShard"
    assert "shard a.parquet, row group 0, column y holds a page of 160.0 MB" in told["message"]
    assert "--on-error skip" in told["message"]


def test_large_pages_are_planned_for(bomb: dict[str, Path]) -> None:
    code, told = train(bomb["snappy"])
    assert code == 2 and told["error"] == "MemoryLimitError"
    code, told = train(bomb["in pages"])
    assert code == 0 and told["rows"] == 40_000_000


def test_what_is_refused_is_left_out(bomb: dict[str, Path], tmp_path: Path) -> None:
    good = pa.table({"x": np.arange(1000.0), "y": np.arange(1000, dtype=np.int8) % 2})
    pq.write_table(good, tmp_path / "b.parquet")
    (tmp_path / "a.parquet").symlink_to(bomb["lying zstd"] / "a.parquet")
    code, told = train(tmp_path, "--on-error", "skip")
    assert code == 0 and told["rows"] == 1000 and told["skipped_row_groups"] == 1


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_plan_has_the_pages_of_the_largest_row_group(tmp_path: Path, compression: str) -> None:
    x = np.random.default_rng(0).random(3_000_000)
    table = pa.table({"x": x, "y": np.arange(len(x)) % 3 == 0})
    pq.write_table(table.slice(0, 1000), tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=len(x), compression=compression, **ONE_PAGE)
    manifest = ParquetSource(tmp_path).manifest
    chunk = pq.ParquetFile(tmp_path / "b.parquet").metadata.row_group(0).column(0)
    # The page as it lies in the file, and unpacked if it was packed.
    expected = chunk.total_compressed_size + (24_000_000 if compression == "zstd" else 0) - ALLOWED
    assert manifest.large_pages == {"x": pytest.approx(expected, abs=1000)}
    encoder = Encoder(FeatureSpec.raw([Column("x", "number")]))
    other = Encoder(FeatureSpec.raw([Column("y", "number")]))
    assert reader_bytes(manifest, encoder) - reader_bytes(manifest, other) > manifest.large_pages["x"]
    assert ParquetSource(tmp_path / "a.parquet").manifest.large_pages == {}
    assert manifest.take(np.array([0])).large_pages == manifest.large_pages


def test_pages_far_larger_than_those_that_were_planned_with_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a shard that was not looked at, and that says that it is smaller than the others."""
    monkeypatch.setattr(shards, "SAMPLED", 1)
    x = np.random.default_rng(0).random(12_000_000)
    pq.write_table(pa.table({"x": x[:600_000]}), tmp_path / "a.parquet", compression="zstd")
    pq.write_table(pa.table({"x": x}), tmp_path / "b.parquet", compression="zstd", row_group_size=len(x), **ONE_PAGE)
    lie(tmp_path / "b.parquet")
    source = ParquetSource(tmp_path)
    assert source.manifest.large_pages == {}
    source.open(0, ["x"], 1000).skip(10)
    with pytest.raises(
        UnreadableShard, match=r"shard b\.parquet, row group 0, column x holds pages that take 18\d\.\d MB"
    ):
        source.open(1, ["x"], 1000).skip(10)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_local_and_remote_files_tell_the_same(data: st.DataObject) -> None:
    table = data.draw(sgst.tables(min_rows=1, max_rows=60))
    with TemporaryDirectory() as directory:
        path = Path(directory) / "a.parquet"
        options = {"compression": data.draw(st.sampled_from(["none", "zstd"])), "write_batch_size": 3}
        pq.write_table(table, path, row_group_size=25, data_page_size=data.draw(st.sampled_from([1, 1000])), **options)
        chunks = chunks_of(path, table.column_names)
        assert sorted(set(chunks.columns)) == sorted(table.column_names)
        with pafs.LocalFileSystem().open_input_file(str(path)) as file:
            for most in (1, 2, 1 << 60):
                local, remote = walk(str(path), chunks, "", most), walk_remote(file, chunks, "", most)
                np.testing.assert_array_equal(local, remote)
                assert (local[:, PAGES] <= most).all() and (local[:, PAGES] >= 1).all()


def test_pages_of_normal_files_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow writes them unless told otherwise: reading them costs what it did."""
    table = pa.table({f"x{k}": np.random.default_rng(k).random(65_536).astype(np.float32) for k in range(28)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=65_536)
    source = ParquetSource(tmp_path)

    def refuse(*args: Any) -> Any:
        raise AssertionError("pages were looked at")

    monkeypatch.setattr(shards, "walk", refuse)
    source.open(0, source.schema.names, 65_536).skip(65_536)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=65_536, compression="zstd")
    with pytest.raises(UnreadableShard, match="pages were looked at"):
        ParquetSource(tmp_path).open(0, ["x0"], 65_536).skip(1)


def test_lists_that_are_too_long_for_a_record_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant list is a few bytes however long it is."""
    monkeypatch.setattr(module, "LIST_BYTES", 1 << 20)
    lists = [[1.0] * 10] * 50 + [[1.0] * 100_000] * 50
    pq.write_table(pa.table({"v": pa.array(lists, pa.list_(pa.float32())), "x": range(100)}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    source = ParquetSource(tmp_path)
    source.open(0, ["x"], 100).skip(100)
    source.open(0, ["v"], 1).skip(100)
    with pytest.raises(UnreadableShard, match=r"row group 0, column v holds 5,000,500 values in 100 rows"):
        source.open(0, ["v"], 10).skip(1)


def test_leaves_are_those_of_parquet(tmp_path: Path) -> None:
    kinds = {
        "a.b": pa.list_(pa.struct({"c": pa.int8(), "d": pa.list_(pa.int16())})),
        "a": pa.struct({"b": pa.string(), "e": pa.dictionary(pa.int8(), pa.string())}),
        "m": pa.map_(pa.string(), pa.list_(pa.int8())),
        "f": pa.list_(pa.float32(), 3),
        "l": pa.large_list(pa.list_(pa.bool_())),
        "t": pa.timestamp("us"),
        "v": pa.string_view(),
    }
    table = pa.table({name: pa.nulls(3, kind) for name, kind in kinds.items()})
    pq.write_table(table, tmp_path / "a.parquet")
    schema = pq.ParquetFile(tmp_path / "a.parquet").metadata.schema
    assert sum(len(leaves(kind)) for kind in table.schema.types) == len(schema.names)
    chunks = chunks_of(tmp_path / "a.parquet", table.column_names)
    for k, name in enumerate(chunks.columns):
        assert schema.column(k).path.startswith(name)
        assert chunks.nested[k] == (schema.column(k).max_repetition_level > 0)
    assert chunks_of(tmp_path / "a.parquet", ["a"]).columns == ["a", "a"]


def test_footers_are_let_go_with_their_files(tmp_path: Path) -> None:
    """At once, not when Python looks for cycles: of a thousand shards each would keep its megabytes till then."""
    pq.write_table(pa.table({"v": [[1.0], [2.0]], "x": [1, 2]}), tmp_path / "a.parquet", compression="zstd")
    source = ParquetSource(tmp_path)
    gc.disable()
    try:
        opened = source._files.open(0)
        source._files.check_pages(0, source.manifest, opened.chunks, ["v", "x"], 100, "here")
        kept = weakref.ref(opened.metadata)
        del opened
        assert kept() is None
    finally:
        gc.enable()
