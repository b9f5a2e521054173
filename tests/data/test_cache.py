"""The cache of encoded blocks: the same weights with it, without it, when it is full, damaged, or of other data."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamgd import SGDClassifier
from streamgd.config import Config
from streamgd.data import cache as caches
from streamgd.data.cache import INDEX, ROWS, TEXTS, Shape, kept_cache, temporary_cache
from streamgd.data.mapped import MappedRows
from streamgd.data.shuffle import Run
from streamgd.data.source import ParquetSource
from streamgd.job import prepare
from streamgd.kernels.hashing import write_texts
from streamgd.state import Result, State
from streamgd.trainer import train

from ..conftest import Write


def _files_are_mapped() -> bool:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        try:
            MappedRows(file.fileno(), 4096)
        except OSError:
            return False
        return True


mapping = pytest.mark.skipif(not _files_are_mapped(), reason="this system does not map files so that errors are told")


def table(rows: int = 1500, *, seed: int = 0, texts: bool = True, nulls: float = 0.1) -> pa.Table:
    """Numbers, a category, a text or eight other categories, weights, and a target with gaps."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "a": rng.normal(size=rows),
        "b": pa.array(rng.normal(size=rows).astype(np.float32), mask=rng.random(rows) < 0.2),
        "c": rng.choice(["x", "y", "z"], rows),
        "w": rng.uniform(0.5, 2, rows),
    }
    if texts:
        words = np.array(["red", "green", "blue", "grey"])
        columns["t"] = [" ".join(rng.choice(words, rng.integers(0, 6))) for _ in range(rows)]
    else:
        columns |= {f"c{k}": [f"v{value}" for value in rng.geometric(0.2, rows)] for k in range(8)}
    y, missing = rng.integers(0, 2, rows), rng.random(rows) < nulls
    y[:2], missing[:2] = (0, 1), False  # both classes are there
    columns["y"] = pa.array(y, mask=missing)
    return pa.table(columns)


def fit(path: Any, **parameters: Any) -> tuple[Result, ParquetSource, list[str]]:
    """Train; return the result, the source, and what was remarked before."""
    options = {"epochs": 3, "window_rows": 200, "polish": 0, "weight": "w"} | parameters
    weight = options.pop("weight")
    source = ParquetSource(path)
    opened: list[int] = []
    job, feed = prepare(source, "y", Config(**options).check(), weight=weight)

    def counting(way: Callable[..., Any]) -> Any:
        def counted(row_group: int, *args: Any) -> Any:
            found = way(row_group, *args)
            opened.extend([row_group] if found is not None else [])
            return found

        return counted

    feed.source.open, feed.source.raw = counting(feed.source.open), counting(feed.source.raw)  # type: ignore[method-assign]
    result = train(job, feed, State.start(job))
    result.opened = opened  # type: ignore[attr-defined]
    return result, source, feed.remarks()


def sha(path: Any, **parameters: Any) -> str:
    return fit(path, **parameters)[0].model.sha256()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(50, 1500),
    row_group_rows=st.sampled_from([7, 100, 333, 2000]),
    shards=st.integers(1, 3),
    window_rows=st.sampled_from([40, 200, 701]),
    n_jobs=st.integers(1, 3),
    texts=st.booleans(),
    nulls=st.sampled_from([0.0, 0.1, 0.8]),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
)
def test_weights_are_the_same_with_and_without(
    rows, row_group_rows, shards, window_rows, n_jobs, texts, nulls, shuffle, seed, tmp_path_factory
):
    """Whatever the row groups, the windows that cut them, rows without a target, texts, and threads."""
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("cache")
    data = table(rows, seed=seed, texts=texts, nulls=nulls)
    data = data.append_column("k", pa.array(np.arange(rows) % 5))
    for shard in range(shards):
        piece = data.slice(shard * rows // shards, (shard + 1) * rows // shards - shard * rows // shards)
        pq.write_table(piece, path / f"{shard}.parquet", row_group_size=row_group_rows)
    options: dict[str, Any] = {
        "n_jobs": n_jobs,
        "seed": seed,
        "text": ("t",) if texts else (),
        "task": "classification",
    }
    options |= {"shuffle": shuffle} | ({"window_rows": window_rows} if shuffle else {"window_rows": None})
    cached, _, _ = fit(path, cache="auto", **options)
    plain, _, _ = fit(path, cache=None, **options)
    assert cached.model.sha256() == plain.model.sha256()
    assert cached.losses == plain.losses and cached.skipped_rows == plain.skipped_rows
    assert not cached.trouble


def test_later_epochs_do_not_read_shards(write: Write) -> None:
    path = write(table(), row_group_rows=100)
    cached, source, _ = fit(path, cache="auto", text=("t",), epochs=4)
    assert len(cached.opened) <= 2 * source.manifest.n_row_groups  # type: ignore[attr-defined]
    plain, _, _ = fit(path, cache=None, text=("t",), epochs=4)
    assert len(plain.opened) >= 4 * source.manifest.n_row_groups  # type: ignore[attr-defined]


@mapping
def test_later_epochs_learn_from_rows_where_they_lie(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first window, which is begun before all rows are there, and for texts, whose addresses change."""
    copied: list[Run] = []
    get = caches.BlockCache.get

    def counting(self: Any, run: Run, *args: Any) -> Any:
        copied.append(run)
        return get(self, run, *args)

    monkeypatch.setattr(caches.BlockCache, "get", counting)
    asked = []
    for texts in (False, True):
        path = write(table(texts=texts), f"texts {texts}", row_group_rows=100)
        fit(path, cache="auto", epochs=4, text=("t",) if texts else ())
        asked.append(len(copied))
        copied.clear()
    assert asked[1] / 4 <= asked[0] < asked[1] / 2  # the first epoch asks for each run, too


@mapping
@pytest.mark.parametrize("after", [0, 1, 2, 30])
def test_rows_that_cannot_be_mapped_cost_time_only(write: Write, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Where the system does not map them they are read from the cache, where the disk fails from the shards."""
    path = write(table(texts=False), row_group_rows=100)
    expected, calls, bring = sha(path, cache=None), [0], MappedRows.bring

    def fail(self: Any, first: int, end: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.EFAULT, "Bad address")
        bring(self, first, end)

    monkeypatch.setattr(MappedRows, "bring", fail)
    result, _, _ = fit(path, cache="auto")
    assert result.model.sha256() == expected and calls[0] > after
    assert bool(result.trouble) == (after > 0)


@mapping
def test_memory_of_mapped_rows_comes_and_goes(tmp_path: Path) -> None:
    path, row = tmp_path / "rows", 4096
    path.write_bytes(np.arange(64 * row // 4, dtype=np.float32).tobytes() + b"half a row")

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        found = [next(line for line in lines if line.startswith("Rss")) for line in lines if line.endswith(str(path))]
        return sum(int(line.split()[1]) for line in found) * 1024

    with path.open("rb") as file:
        mapped = MappedRows(file.fileno(), row)
    mapped.let_go(0, 1)
    assert mapped.rows.shape == (64, 1024) and resident() == 0
    mapped.bring(8, 24)
    assert 16 * row <= resident() <= 64 * row
    np.testing.assert_array_equal(mapped.rows[8:24].ravel(), np.arange(8 * 1024, 24 * 1024, dtype=np.float32))
    mapped.let_go(0, 64)
    assert resident() == 0
    for first, end in ((0, 65), (-1, 3), (5, 4)):
        with pytest.raises(OSError, match="shorter"):
            mapped.bring(first, end)
    values = np.ones(1 << 20, np.float32)
    mapped.forget(values)
    assert np.count_nonzero(values) < 2 * 4096 // 4  # but for the pages at its ends
    mapped.forget(values[:3])
    rows = mapped.rows
    del mapped
    assert rows[63, 1023] == 64 * 1024 - 1  # what is mapped lives as long as its rows


@mapping
def test_pieces_from_all_over_a_file_are_not_mapped(tmp_path: Path) -> None:
    """Since what lies around them would be, too."""
    with (tmp_path / "rows").open("wb+") as file:
        os.truncate(file.fileno(), 64 << 20)
        mapped = MappedRows(file.fileno(), 1 << 10)
    assert mapped.are_near([(0, 8192)]) and mapped.are_near([(5000, 20_000), (40_000, 55_000)])
    assert mapped.are_near([]) and mapped.are_near([(3, 3), (10, 11)])
    assert not mapped.are_near([(first, first + 100) for first in range(0, 65_536, 8192)])
    assert not mapped.are_near([(first, first + 100) for first in range(0, 65_536, 1024)])
    assert mapped.are_near([(first, first + 1000) for first in range(0, 65_536, 1024)])


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_without_rows_is_not_mapped(tmp_path: Path, size: int) -> None:
    (tmp_path / "rows").write_bytes(bytes(size))
    with (tmp_path / "rows").open("rb") as file, pytest.raises(OSError, match="empty"):
        MappedRows(file.fileno(), 128)


def test_passes_of_lbfgs_and_a_polish_use_it(write: Write) -> None:
    path = write(table(), row_group_rows=100)
    for options in ({"optimizer": "lbfgs", "epochs": 6, "polish": None}, {"polish": 5}):
        cached, source, _ = fit(path, cache="auto", **options)
        assert len(cached.opened) <= 2 * source.manifest.n_row_groups  # type: ignore[attr-defined]
        assert cached.model.sha256() == sha(path, cache=None, **options)


def test_nothing_is_left_behind(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr(caches, "filesystem", lambda directory: "ext4")
    source = ParquetSource(write(table(), row_group_rows=100))
    job, feed = prepare(source, "y", Config(epochs=2, window_rows=200).check())

    def held() -> list[str]:
        numbers = os.listdir("/proc/self/fd")
        links = [os.readlink(f"/proc/self/fd/{n}") for n in numbers if os.path.islink(f"/proc/self/fd/{n}")]
        return [link for link in links if link.startswith(str(place))]

    assert len(held()) == 2 and all(link.endswith("(deleted)") for link in held())
    train(job, feed, State.start(job))
    assert not held() and not list(place.iterdir())


def test_a_directory_is_used_again(write: Write, tmp_path: Path) -> None:
    path, place = write(table(), row_group_rows=100), tmp_path / "kept"
    first, _, remarks = fit(path, cache=str(place), text=("t",))
    assert not remarks
    assert {file.name for file in place.iterdir()} == {INDEX, ROWS, TEXTS, "lock"}
    again, _, remarks = fit(path, cache=str(place), text=("t",))
    assert not again.opened and not remarks  # type: ignore[attr-defined]
    once, _, _ = fit(path, cache=str(place), text=("t",), epochs=1)
    assert not once.opened  # type: ignore[attr-defined]
    # What is learned from them may differ: the rows are the same.
    other, _, _ = fit(path, cache=str(place), text=("t",), alpha=0.1, hash_bits=7, window_rows=300, n_jobs=1)
    assert not other.opened  # type: ignore[attr-defined]
    assert first.model.sha256() == again.model.sha256() == sha(path, cache=None, text=("t",))
    assert other.model.sha256() == sha(path, cache=None, text=("t",), alpha=0.1, hash_bits=7, window_rows=300)


def change_shard(path: Path, place: Path) -> None:
    shard = path / "part-00.parquet"
    os.utime(shard, ns=(1, 1))


def change_index(path: Path, place: Path) -> None:
    index = place / INDEX
    index.write_bytes(index.read_bytes()[:-40] + b"x" * 40)


def cut_index(path: Path, place: Path) -> None:
    (place / INDEX).write_bytes((place / INDEX).read_bytes()[:30])


def change_version(path: Path, place: Path) -> None:
    key, pieces = caches._load_index(place / INDEX)
    caches._save_index(place / INDEX, key | {"version": "0.0.0"}, pieces)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (change_shard, {}, "other shards"),
        (change_version, {}, "another version"),
        (None, {"drop": ("b",)}, "other columns"),
        (None, {"weight": None, "drop": ("w",)}, "encoded otherwise"),
        (None, {"class_weight": "balanced"}, "encoded otherwise"),
        (cut_index, {}, None),
    ],
)
def test_a_cache_of_something_else_is_made_anew(
    write: Write, tmp_path: Path, change: Any, options: dict[str, Any], says: str | None
) -> None:
    path, place = write(table(), row_group_rows=100), tmp_path / "kept"
    fit(path, cache=str(place))
    if change is not None:
        change(path, place)
    found, _, remarks = fit(path, cache=str(place), **options)
    assert found.opened  # type: ignore[attr-defined]
    assert found.model.sha256() == sha(path, cache=None, **options)
    assert (says is None and not remarks) or says in remarks[0]
    again, _, remarks = fit(path, cache=str(place), **options)
    assert not again.opened and not remarks  # type: ignore[attr-defined]


def test_files_that_were_cut_are_noticed(write: Write, tmp_path: Path) -> None:
    path, place = write(table(), row_group_rows=100), tmp_path / "kept"
    expected = fit(path, cache=str(place), text=("t",))[0].model.sha256()
    for name in (ROWS, TEXTS):
        os.truncate(place / name, os.path.getsize(place / name) // 2)
        found, _, _ = fit(path, cache=str(place), text=("t",))
        assert "shorter than it was" in found.trouble[0]
        assert found.model.sha256() == expected
        assert not (place / INDEX).exists()
        fit(path, cache=str(place), text=("t",))


@pytest.mark.parametrize("after", [0, 1, 5, 20])
@pytest.mark.parametrize("kept", [False, True])
def test_a_full_disk_costs_time_only(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, kept: bool
) -> None:
    path, place = write(table(), row_group_rows=100), tmp_path / "kept"
    expected = sha(path, cache=None, text=("t",))
    plain, calls = os.pwrite, 0

    def full(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(descriptor, data[: max(1, len(data) // 2)], offset)  # and what is written is written in parts

    monkeypatch.setattr(os, "pwrite", full)
    found, _, _ = fit(path, cache=str(place) if kept else "auto", text=("t",))
    assert found.model.sha256() == expected
    assert "No space left on device" in found.trouble[0] and found.trouble[0] in found.remarks()
    if kept:
        assert {file.name for file in place.iterdir()} == {"lock"}


def test_one_job_a_directory(write: Write, tmp_path: Path) -> None:
    path, place = write(table(), row_group_rows=100), tmp_path / "kept"
    source = ParquetSource(path)
    busy, feed = prepare(source, "y", Config(epochs=2, window_rows=200, cache=str(place)).check(), weight="w")
    _, _, remarks = fit(path, cache=str(place))
    assert "is used by another job" in remarks[0]
    train(busy, feed, State.start(busy))
    assert not fit(path, cache=str(place))[2]


def test_a_directory_that_cannot_be_is_told(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    path = write(table(), row_group_rows=100)
    found, _, remarks = fit(path, cache=str(tmp_path / "file"))
    assert "cannot be used" in remarks[0] and found.opened  # type: ignore[attr-defined]
    place = tmp_path / "kept"
    place.mkdir()
    (place / ROWS).symlink_to(tmp_path / "elsewhere")
    assert "cannot be used" in fit(path, cache=str(place))[2][0]
    assert not (tmp_path / "elsewhere").exists()


def test_no_cache_is_made_where_none_helps(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(table(), row_group_rows=100)

    def made(**options: Any) -> bool:
        values = {"epochs": 3, "window_rows": 200, "polish": 0} | options
        feed = prepare(ParquetSource(path), "y", Config(**values).check())[1]
        if feed.cache is not None:
            feed.cache.close()
        return feed.cache is not None

    assert made()
    assert not made(epochs=1)
    assert not made(window_rows=5000)  # rows stay in memory
    assert not made(cache=None)
    monkeypatch.setattr("streamgd.data.caching.MEMORY_SHARE", 0.0)
    monkeypatch.setattr("streamgd.data.caching.SHARD_SHARE", 0.0)
    assert not made()


def test_no_temporary_cache_in_memory_or_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, shape = np.array([10]), Shape(64, 16, 0)
    assert "free" in str(temporary_cache(rows, shape, 1 << 60))
    monkeypatch.setattr(caches, "filesystem", lambda directory: "tmpfs")
    assert "is in memory" in str(temporary_cache(rows, shape, 1))


def test_the_type_of_a_filesystem_is_found() -> None:
    assert caches.filesystem("/proc/self") == "proc"


def test_an_epoch_that_began_in_its_middle_leaves_nothing_half(tmp_path: Path) -> None:
    """Row groups that it wrote in part are written anew by the next one."""
    made = kept_cache(tmp_path, np.array([4, 4]), Shape(8, 0, 0), {"version": "1"})
    assert not isinstance(made, str)
    rows, none = np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(0, np.int64)
    made.put(0, 0, 2, 2, rows[2:], none, [])
    made.put(1, 0, 0, 4, rows, none, [])
    made.put(0, 0, 0, 2, rows[:2], none, [])  # late, of an epoch that is over
    assert made.holds(0) and not made.holds(1) and not made.complete
    out = np.zeros((4, 2), np.float32)
    assert made.get(Run(0, ((1, 3),)), out, []) == 2
    np.testing.assert_array_equal(out[:2], rows[1:3])
    assert made.get(Run(1, ((0, 1),)), out, []) is None
    made.close()
    assert {file.name for file in tmp_path.iterdir()} == {"lock"}


def test_the_estimator_takes_it(write: Write, tmp_path: Path) -> None:
    path = write(table(texts=False, nulls=0.0), row_group_rows=100)
    one = SGDClassifier(epochs=2, window_rows=200, cache=tmp_path / "kept").fit(path, "y")
    two = SGDClassifier(epochs=2, window_rows=200, cache=None).fit(path, "y")
    assert one.model_.sha256() == two.model_.sha256() and (tmp_path / "kept" / INDEX).exists()
    with pytest.raises(Exception, match="cache directory does nothing in partial_fit"):
        SGDClassifier(cache=tmp_path / "kept").partial_fit(path, "y", classes=[0, 1])


@pytest.mark.parametrize("cells", [(0, 0xFFFFFFFF), (1, 0x7FFFFFFF), (1, 0xFFFFFFFF), (2, 0xFFFFFFFF), (2, 1 << 20)])
@pytest.mark.parametrize("row", [0, 1, -1])
def test_addresses_of_texts_that_are_damaged_are_not_gone_to(tmp_path: Path, cells: tuple[int, int], row: int) -> None:
    """A row says where its hashes lie, and kernels would read there."""
    shape = Shape(32, 4, 1)
    made = kept_cache(tmp_path, np.array([4]), shape, {"version": "1"})
    assert not isinstance(made, str)
    hashes = np.arange(7, dtype=np.uint32)
    rows = np.zeros((4, 8), np.float32)
    write_texts(hashes.ctypes.data, np.array([2, 2, 6, 7]), 4, shape.text_cell, rows.view(np.uint32))
    made.put(0, 0, 0, 4, rows, np.zeros(0, np.int64), [hashes])
    run, out, texts = Run(0, ((0, 4),)), np.zeros((4, 8), np.float32), []
    assert made.get(run, out, texts) == 4 and np.array_equal(texts[0], hashes)
    place, value = cells
    stored = np.memmap(tmp_path / ROWS, np.uint32, "r+", shape=(4, 8))
    stored[row, shape.text_cell + place] = value
    stored.flush()
    texts.clear()
    assert made.get(run, out, texts) is None and not texts
    assert "given up" in made.trouble and ("damaged" in made.trouble or "shorter" in made.trouble)
    made.close()
    assert {file.name for file in tmp_path.iterdir()} == {"lock"}


def test_no_directory_for_temporary_files_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(caches.tempfile, "gettempdir", none)
    assert "no directory for temporary files" in str(temporary_cache(np.array([10]), Shape(64, 16, 0), 1))


@pytest.mark.parametrize("call", ["mkstemp", "statvfs"])
def test_a_directory_for_temporary_files_that_fails_costs_time_only(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], caches.tempfile.mkstemp

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if call == "mkstemp" and len(calls) == 1:
            return real(*arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(caches, "filesystem", lambda directory: "ext4")
    monkeypatch.setattr(caches, "SPARE_BYTES", 0)
    monkeypatch.setattr(caches.tempfile if call == "mkstemp" else caches.os, call, fail)
    before = set(os.listdir("/proc/self/fd"))
    found = temporary_cache(np.array([10]), Shape(64, 16, 0), 1)
    assert f"{tmp_path} cannot be used (No space left on device)" in str(found)
    assert set(os.listdir("/proc/self/fd")) == before and not list(tmp_path.iterdir())


def test_a_directory_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / TEXTS).mkdir()
    before = set(os.listdir("/proc/self/fd"))
    assert "cannot be used" in str(kept_cache(tmp_path, np.array([4]), Shape(8, 0, 0), {"version": "1"}))
    assert set(os.listdir("/proc/self/fd")) == before
