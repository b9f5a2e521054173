"""Files and names from strangers: nothing they say is run, nothing blocks, and nothing is written elsewhere."""

from __future__ import annotations

import ast
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import streamgd
from streamgd.cli import app
from streamgd.data import cachefiles
from streamgd.data.cache import LOCK, ROWS, TEXTS, Shape, kept_cache
from streamgd.data.predict import write_predictions
from streamgd.data.source import ParquetSource
from streamgd.errors import ConfigError, OutputError, PathNotFound, StreamgdError, UnreadableShard
from streamgd.features import Column, FeatureSpec
from streamgd.model import Model
from streamgd.modelfile import load_model, save_model

TOP = Path(__file__).parent.parent

FORBIDDEN = {
    "imports": {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "pty", "commands"},
    "names": {"eval", "exec", "compile", "__import__", "mktemp", "read_pickle", "to_pickle", "system", "popen"},
    "options": {"allow_pickle", "shell"},
}


def python_files() -> Iterator[Path]:
    yield from sorted((TOP / "streamgd").rglob("*.py"))
    for path in sorted((TOP / "scripts").rglob("*")):
        if path.suffix == ".py" or (path.is_file() and path.read_bytes()[:40].startswith(b"#!/usr/bin/env python")):
            yield path


def dangers(source: str) -> list[str]:
    """What a module could run of what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in FORBIDDEN["imports"]
            ]
        elif isinstance(node, ast.ImportFrom):
            found += [f"import {node.module}"] * ((node.module or "").split(".")[0] in FORBIDDEN["imports"])
            found += [f"import {alias.name}" for alias in node.names if alias.name in FORBIDDEN["names"]]
        elif isinstance(node, ast.Name):
            found += [node.id] * (node.id in FORBIDDEN["names"])
        elif isinstance(node, ast.Attribute):
            compiles = node.attr == "compile" and isinstance(node.value, ast.Name) and node.value.id == "re"
            found += [node.attr] * (node.attr in FORBIDDEN["names"] and not compiles)
            found += [f"{ast.unparse(node)}"] * (ast.unparse(node) in ("np.load", "numpy.load", "torch.load"))
        elif isinstance(node, ast.keyword):
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [f"{node.arg}={ast.unparse(node.value)}"] * (node.arg in FORBIDDEN["options"] and not off)
            # Numba reads its cache with pickle: see test_where_numba_keeps_kernels.
            found += ["cache=True"] * (node.arg == "cache" and ast.unparse(node.value) == "True")
    return found


@pytest.mark.parametrize("path", list(python_files()), ids=lambda path: str(path.relative_to(TOP)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    if path.parent == TOP / "streamgd" / "cluster":
        return  # whoever joins a cluster runs what it is sent; nothing of it is written to a file
    expected = ["cache=True"] if path.relative_to(TOP) == Path("streamgd/kernels/intrinsics.py") else []
    assert dangers(path.read_text()) == expected


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "def f():\n    import cloudpickle.cloudpickle",
        "import yaml",
        "from os import system",
        "eval(x)",
        "builtins.exec(x)",
        "f = compile",
        "code.compile(x)",
        "__import__(x)",
        "np.load(path)",
        "numpy.load(path, mmap_mode='r')",
        "np.lib.format.read_array(f, allow_pickle=True)",
        "read(f, allow_pickle=flag)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "tempfile.mktemp()",
        "pd.read_pickle(path)",
        "njit(cache=True)",
    ],
)
def test_what_would_run_it_is_found(source: str) -> None:
    assert dangers(source)


def test_what_is_harmless_is_not_found() -> None:
    harmless = "re.compile(x); json.load(f); subprocess.run(x, shell=False); streamgd.load(p); read(allow_pickle=False)"
    assert not dangers(harmless)


def test_where_numba_keeps_kernels() -> None:
    """It unpickles what it finds there, so nobody else may write there."""
    from streamgd.kernels.drain import drain

    directory = Path(drain._cache.cache_path)
    beside = directory.is_relative_to(Path(streamgd.__file__).parent)
    assert beside or not directory.is_relative_to(tempfile.gettempdir()) or "NUMBA_CACHE_DIR" in os.environ
    for path in (directory, *directory.glob("drain.*.nb?")):
        status = path.stat()
        assert status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o002, path


COEF = np.array([[0.5, -2.0]])


def model() -> Model:
    spec = FeatureSpec.raw([Column("a", "number"), Column("b", "number")]).centred(np.zeros(2), np.ones(2))
    rest: dict[str, Any] = {"classes": [0, 1], "class_type": "int64"}
    return Model("classification", "log_loss", "y", spec, COEF, np.zeros(1), np.ones(2), np.zeros(2), **rest)


TABLE = pa.table({"a": np.arange(8.0), "b": np.arange(8.0)[::-1], "y": [0, 1] * 4})


def shard(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(TABLE, path)
    return path


def snapshot(directory: Path, *but: Path) -> dict[str, object]:
    """All that is below a directory, except below some others."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        if not any(path.is_relative_to(other) for other in but):
            kind = path.lstat().st_mode
            found[str(path)] = (kind, os.readlink(path) if path.is_symlink() else None)
            if path.is_file():
                found[str(path)] = (kind, path.read_bytes())
    return found


def make_socket(path: Path) -> None:
    """Names of sockets are at most 108 bytes long."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
    finally:
        os.chdir(here)


NO_FILES: dict[str, Callable[[Path], Any]] = {
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a FIFO": lambda path: [os.mkfifo(path.with_name("fifo")), path.symlink_to("fifo")],
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link loop": lambda path: [path.symlink_to("other"), path.with_name("other").symlink_to(path.name)],
    "empty directory": os.mkdir,
    "directory that leads to itself": lambda path: [path.mkdir(), (path / "loop.parquet").symlink_to(path)],
}


def commands(model_path: Path, data: object, out: Path) -> list[list[object]]:
    return [
        ["train", data, "--target", "y", "--epochs", "1", "--model", out / "trained"],
        ["evaluate", model_path, data],
        ["predict", model_path, data, "--out", out / "scores"],
        ["inspect", data],
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", ["itself", "its directory", "a glob", "after a good shard"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(kind: str, form: str, tmp_path: Path) -> None:
    place = tmp_path / "in" / "x.parquet"
    place.parent.mkdir()
    NO_FILES[kind](place)
    good = shard(tmp_path / "good.parquet")
    spec: Any = {
        "itself": str(place),
        "its directory": str(place.parent),
        "a glob": str(place.parent / "x.*"),
        "after a good shard": [str(good), str(place)],
    }[form]
    with pytest.raises(StreamgdError) as caught:
        ParquetSource(spec)
    assert str(place if form != "its directory" else place.parent) in str(caught.value) or form == "a glob"
    save_model(model(), tmp_path / "model")
    (tmp_path / "out").mkdir()
    before = snapshot(tmp_path)
    shown = spec if isinstance(spec, list) else [spec]
    for command in commands(tmp_path / "model", shown[-1], tmp_path / "out"):
        done = CliRunner().invoke(app, [*map(str, command), "--json"])
        assert done.exit_code in (2, 3), done.output
        assert json.loads(done.stdout)["exit_code"] == done.exit_code
    assert snapshot(tmp_path) == before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/dev/tty", "/proc/self/mem", "/dev/fd/0", "/dev", "-"])
def test_devices_are_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(model(), tmp_path / "model")
    before = snapshot(tmp_path)
    for command in commands(tmp_path / "model", path, tmp_path):
        done = CliRunner().invoke(app, [*map(str, command), "--json"])
        assert done.exit_code in (2, 3), done.output
    assert snapshot(tmp_path) == before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", NO_FILES)
def test_models_that_are_no_files_are_refused(kind: str, tmp_path: Path) -> None:
    place, good = tmp_path / "in" / "model.safetensors", shard(tmp_path / "good.parquet")
    place.parent.mkdir()
    NO_FILES[kind](place)
    before = snapshot(tmp_path)
    for command in (["evaluate", place, good], ["predict", place, good, "--out", tmp_path / "out"]):
        done = CliRunner().invoke(app, [*map(str, command), "--json"])
        assert done.exit_code == 3, done.output
    done = CliRunner().invoke(app, ["inspect", str(place), "--json"])
    assert done.exit_code in (2, 3), done.output
    assert snapshot(tmp_path) == before
    if "link" in kind and "device" not in kind and "FIFO" not in kind:
        return
    # Nor is anything but a model replaced by a model.
    done = CliRunner().invoke(app, ["train", str(good), "--target", "y", "--model", str(place), "--json"])
    assert done.exit_code == 2, done.output
    with pytest.raises(OutputError):
        save_model(model(), place)
    assert snapshot(tmp_path) == before


names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0") | st.sampled_from(" -\n\r\t'\"\\$`;|&*?[]~%=.:"),
    min_size=1,
    max_size=12,
).filter(lambda name: name[0] not in "._" and "=" not in name[:-1])
directories = names.filter(lambda name: "=" not in name)  # a hive key, which all shards would need
values = st.sampled_from(
    ["%2Fetc%2Fpasswd", "..%2F..%2Fx", "%00", "%0A", "..", ".", "-1", "%", "%zz", "a b", "\n", "/"]
)


@settings(deadline=None, max_examples=60)
@given(
    files=st.lists(
        st.tuples(directories, names), min_size=1, max_size=4, unique_by=lambda pair: "/".join(pair).casefold()
    ),
    value=values.filter(lambda value: "/" not in value),
)
def test_shards_of_any_name_are_written_below_the_output(files: list[tuple[str, str]], value: str) -> None:
    """Hive values are decoded where they are data, never where they are names."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        expected = {f"day={value}/{directory}/{file}.parquet" for directory, file in files}
        for path in expected:
            shard(top / "in" / path)
        before = snapshot(top)
        written = write_predictions(ParquetSource(top / "in"), model(), top / "deep" / "out", keep=["a"])
        root = Path(os.path.commonpath([top / "in" / path for path in expected] + [top / "in" / min(expected)]))
        below = root if len(expected) > 1 else root.parent
        assert {str(path.relative_to(top / "deep/out")) for path in written} == {
            str((top / "in" / path).relative_to(below)) for path in expected
        }
        assert snapshot(top, top / "deep") == before
        assert all(pq.ParquetFile(path).read().num_rows == 8 for path in written)


def test_names_that_begin_with_a_dash_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "--out.parquet")
    save_model(model(), tmp_path / "-m")
    done = CliRunner().invoke(app, ["predict", "--out", "scores", "--json", "--", "-m", "--out.parquet"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["--out.parquet"]
    assert CliRunner().invoke(app, ["predict", "-m", "--out.parquet", "--out", "s", "--json"]).exit_code == 2


def test_paths_with_nul_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not a path"):
        ParquetSource("a\0b.parquet")
    with pytest.raises(StreamgdError):
        load_model("a\0b")


@pytest.mark.parametrize("up", ["in/../side", "in/deep/../../side", "link/../side"])
def test_shards_above_another_are_written_below_the_output(
    up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of shards never go up, whatever way led to them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("elsewhere/deep")  # link/.. is elsewhere
    for path in ("in/a.parquet", "in/deep/b.parquet", "side/c.parquet", "elsewhere/side/c.parquet"):
        shard(tmp_path / path)
    before = snapshot(tmp_path)
    source = ParquetSource(["in/a.parquet", f"{up}/c.parquet"])
    assert not any(".." in name for name in source.names)
    real = "elsewhere/side" if up.startswith("link") else "side"
    written = write_predictions(source, model(), tmp_path / "out")
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == ["in/a.parquet", f"{real}/c.parquet"]
    assert snapshot(tmp_path, tmp_path / "out") == before
    with pytest.raises(ConfigError, match="twice"):
        ParquetSource(["side/c.parquet", "in/../side/c.parquet"])


@pytest.mark.parametrize("key", ["b/../../../escaped.parquet", "//escaped.parquet", "b/..", "b/x\0y.parquet"])
def test_keys_of_object_stores_do_not_lead_out(key: str, tmp_path: Path) -> None:
    """There a name is any text."""
    fsspec = pytest.importorskip("fsspec")
    import pyarrow.fs as pafs

    class Store(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        """Takes keys as they are."""

        store: dict[str, Any] = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

    class Dataset:
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(Store()))
        files = ("bucket/a.parquet", f"bucket/{key}")

    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    for path in Dataset.files:
        with Store().open(path, "wb") as file:
            file.write(sink.getvalue().to_pybytes())
    source = ParquetSource(Dataset)
    assert len(source.names) == 2
    with pytest.raises(ConfigError, match="outside of --out"):
        write_predictions(source, model(), tmp_path / "out" / "scores")
    assert not list(tmp_path.iterdir())


def test_links_do_not_lead_out_of_the_output(tmp_path: Path) -> None:
    for day in (1, 2):
        shard(tmp_path / "in" / f"day={day}" / "part.parquet")
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "part.parquet").write_text("mine")
    (out / "day=2").symlink_to(elsewhere)
    before = snapshot(tmp_path)
    source = ParquetSource(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"day=2/part\.parquet would be written to .*elsewhere, outside"):
        write_predictions(source, model(), out)
    assert snapshot(tmp_path) == before
    (out / "day=2").unlink()
    (out / "day=2").symlink_to(tmp_path / "not there yet")
    with pytest.raises(ConfigError, match="outside"):
        write_predictions(source, model(), out)
    (out / "day=2").unlink()
    (out / "day=2").symlink_to("day=2")
    with pytest.raises(StreamgdError):
        write_predictions(source, model(), out)
    (out / "day=2").unlink()

    def trap(*_: object) -> None:  # while the first shard is being written
        (out / "day=2").symlink_to(elsewhere)

    with pytest.raises(ConfigError, match="outside"):
        write_predictions(source, model(), out, done=trap)
    assert snapshot(elsewhere) == {
        name: value for name, value in before.items() if name.startswith(str(elsewhere) + "/")
    }


def test_links_that_stay_in_the_output_are_followed(tmp_path: Path) -> None:
    """Whoever names a link names what it leads to, and a link inside of it leads nowhere else."""
    shard(tmp_path / "in" / "day=1" / "a.parquet")
    shard(tmp_path / "in" / "b.pq").rename(tmp_path / "in" / "day=1" / "b.pq")
    shard(tmp_path / "in" / "day=2" / "c.parquet")
    (tmp_path / "real" / "one").mkdir(parents=True)
    (tmp_path / "real" / "day=1").symlink_to("one")
    (tmp_path / "link").symlink_to("real")
    write_predictions(ParquetSource(tmp_path / "in"), model(), tmp_path / "link")
    found = sorted(str(path.relative_to(tmp_path / "real")) for path in (tmp_path / "real").rglob("*.parquet"))
    assert found == ["day=2/c.parquet", "one/a.parquet", "one/b.parquet"]


@pytest.mark.timeout(120)
def test_an_output_that_is_a_link_is_replaced_and_one_that_is_no_file_refused(tmp_path: Path) -> None:
    source = ParquetSource(shard(tmp_path / "in" / "part.parquet"))
    out = tmp_path / "out" / "part.parquet"
    out.parent.mkdir()
    (tmp_path / "precious").write_text("mine")
    out.symlink_to(tmp_path / "precious")
    write_predictions(source, model(), out.parent)
    assert (tmp_path / "precious").read_text() == "mine" and not out.is_symlink() and pq.read_table(out).num_rows == 8
    save_model(model(), tmp_path / "model")
    (tmp_path / "name").symlink_to("precious")
    save_model(model(), tmp_path / "name")
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "name").is_symlink()
    for make in (os.mkfifo, os.mkdir, make_socket, lambda path: path.symlink_to("/dev/null")):
        out.unlink() if not out.is_dir() else out.rmdir()
        make(out)
        before = snapshot(tmp_path)
        with pytest.raises(OutputError, match="a directory, a device or the like"):
            write_predictions(source, model(), out.parent)
        assert snapshot(tmp_path) == before


def test_a_directory_of_the_input_is_entered_once(tmp_path: Path) -> None:
    shard(tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "up").symlink_to("..")
    assert len(ParquetSource(tmp_path / "in").names) == 1
    with pytest.raises((PathNotFound, UnreadableShard)):
        ParquetSource(tmp_path / "in" / "a.parquet" / "x")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [LOCK, ROWS, TEXTS])
@pytest.mark.parametrize("kind", ["FIFO", "link", "anyone's", "another's"])
def test_a_cache_that_a_stranger_could_write_to_is_not_used(kind: str, name: str, tmp_path: Path) -> None:
    """Kernels go where cached rows say."""
    path = tmp_path / name
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "precious").write_text("mine")
        path.symlink_to("precious")
    else:
        path.write_text("of another")
        if kind == "another's" and os.geteuid() != 0:
            pytest.skip("only root can give files away")
        path.chmod(0o666) if kind == "anyone's" else os.chown(path, 12345, -1)
    before = snapshot(tmp_path)
    made = kept_cache(tmp_path, np.array([4]), Shape(8, 0, 0), {"version": "1"})
    assert isinstance(made, str) and "cannot be used" in made
    assert {key: value for key, value in snapshot(tmp_path).items() if key in before} == before


def test_files_of_a_cache_are_writable_for_nobody_else(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        os.close(cachefiles.own(tmp_path / "rows", os.O_RDWR | os.O_CREAT))
        os.close(cachefiles.own(tmp_path / "rows", os.O_RDONLY))
    finally:
        os.umask(before)
    assert not (tmp_path / "rows").stat().st_mode & 0o002
