from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgd.data.paths import HIVE_NULL, hive_column, relative_names, resolve
from streamgd.errors import ConfigError, NoShards, PathNotFound, SchemaMismatch, UnreadableShard


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make files, and say which of them something stands for, relative to the directory they are in."""
    monkeypatch.chdir(tmp_path)

    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return touch


def names(spec, root=None):
    root = Path.cwd() if root is None else root
    return [os.path.relpath(path, root) for path in resolve(spec).paths]


def test_a_directory_is_searched_to_the_bottom_in_sorted_order(make):
    make("d/b.parquet", "d/a.pq", "d/sub/deep/c.parq", "d/readme.md", "d/a.parquet.crc")
    assert names("d") == ["d/a.pq", "d/b.parquet", "d/sub/deep/c.parq"]
    assert names(Path("d")) == names("d/") == names("./d") == names(["d"]) == names("d")


def test_hidden_names_are_left_out_below_the_directory_only(make):
    make("_out/.d/a.parquet", "_out/_tmp/a.parquet", "_out/_a.parquet", "_out/.a.parquet", "_out/x/a.parquet")
    assert names("_out") == ["_out/x/a.parquet"]
    assert names("_out/*") == ["_out/x/a.parquet"]
    assert names("_out/_*") == ["_out/_a.parquet", "_out/_tmp/a.parquet"]
    assert names("_out/_a.parquet") == ["_out/_a.parquet"]


def test_a_named_file_may_have_any_extension(make):
    make("data.bin", "d/part-00000")
    assert names(["data.bin", "d/part-00000"]) == ["data.bin", "d/part-00000"]


def test_a_directory_named_like_a_file_is_a_directory(make):
    make("out.parquet/part-0.parquet", "d/x.parquet/part-0.parquet")
    assert names("out.parquet") == ["out.parquet/part-0.parquet"]
    assert names("d") == ["d/x.parquet/part-0.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/*.parquet", ["a1", "a2", "b1"]),
        ("d/a?.parquet", ["a1", "a2"]),
        ("d/[!a]*.parquet", ["b1"]),
        ("d/a[12].parquet", ["a1", "a2"]),
        ("d/*/a1.parquet", ["s/a1"]),
        ("d/**/a1.parquet", ["a1", "s/a1", "s/t/a1"]),
        ("d/**", ["a1", "a2", "b1", "s/a1", "s/t/a1"]),
        ("d/*", ["a1", "a2", "b1", "s/a1", "s/t/a1"]),
        ("d/s*", ["s/a1", "s/t/a1"]),
        ("*/s/*.parquet", ["s/a1"]),
    ],
)
def test_globs(make, pattern, expected):
    make("d/a1.parquet", "d/a2.parquet", "d/b1.parquet", "d/s/a1.parquet", "d/s/t/a1.parquet", "d/notes.txt")
    assert names(pattern) == [f"d/{name}.parquet" for name in expected]


def test_a_name_with_glob_characters_that_exists_is_meant(make):
    make("d/a[1].parquet", "d/a1.parquet", "e[2]/a.parquet", "e2/a.parquet")
    assert names("d/a[1].parquet") == ["d/a[1].parquet"]
    assert names("e[2]/*.parquet") == ["e[2]/a.parquet"]


def test_a_list_keeps_its_order(make):
    make("b/1.parquet", "b/2.parquet", "a/1.parquet")
    assert names(["b", Path("a")]) == ["b/1.parquet", "b/2.parquet", "a/1.parquet"]


def test_a_shard_named_twice_is_refused(make):
    make("d/a.parquet", "d/b.parquet")
    with pytest.raises(ConfigError, match=r"d/a\.parquet is named twice"):
        resolve(["d", "d/./a.parquet"])


def test_local_uris(make, tmp_path):
    make("d e/a 1.parquet", "d e/b[2].parquet")
    assert names(f"file://{tmp_path}/d%20e") == ["d e/a 1.parquet", "d e/b[2].parquet"]
    assert names(f"file://{tmp_path}/d e/*[1].parquet") == ["d e/a 1.parquet"]
    assert names(f"file://{tmp_path}/d e/a ?.parquet") == ["d e/a 1.parquet"]
    assert names([f"file://{tmp_path}/d e/b[2].parquet", "d e/a 1.parquet"])[0] == "d e/b[2].parquet"


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


def test_fsspec_uris(memory, make):
    for path in ("/d/a.parquet", "/d/k=1/b.parquet", "/d/_c.parquet", "/d/.x/d.parquet", "/d/e.txt"):
        memory.pipe(path, b"x")
    found = resolve("memory://d/a.parquet")
    assert isinstance(found.filesystem, pafs.PyFileSystem)
    assert found.paths == ("/d/a.parquet",)
    assert resolve("memory://d/k=1").paths == ("/d/k=1/b.parquet",)
    found = resolve("memory://d/k=*/*.parquet")
    assert (found.paths, found.hive) == (("/d/k=1/b.parquet",), ({"k": "1"},))
    with pytest.raises(SchemaMismatch):
        resolve("memory://d")
    with pytest.raises(PathNotFound, match="memory://d/nothing"):
        resolve("memory://d/nothing")
    make("a.parquet")
    with pytest.raises(ConfigError, match="different filesystems"):
        resolve(["memory://d/a.parquet", "a.parquet"])


def test_unknown_schemes_and_broken_uris_are_the_callers_mistake():
    with pytest.raises(ConfigError, match="nosuch://"):
        resolve("nosuch://a/b")
    with pytest.raises(ConfigError, match="not a URI"):
        resolve("file://%%%/a")


def test_messages_do_not_repeat_the_credentials_of_a_uri():
    with pytest.raises(ConfigError) as caught:
        resolve("nosuch://user:secret@host/path")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("spec", [None, 3, {"a": 1}, [], "", b"", ["a", 3], "a\0b", [["a"]]])
def test_what_is_no_path_is_refused(spec):
    with pytest.raises(ConfigError):
        resolve(spec)


def test_a_missing_path_names_itself_and_suggests(make):
    make("flights/train/a.parquet")
    with pytest.raises(PathNotFound, match=r"flights/trian does not exist.*did you mean train\?"):
        resolve("flights/trian")
    with pytest.raises(PathNotFound, match=r"fligths/train/\*\.parquet does not exist.*did you mean flights\?"):
        resolve("fligths/train/*.parquet")
    with pytest.raises(PathNotFound, match="no/such/place does not exist"):
        resolve(["flights", "no/such/place"])
    with pytest.raises(FileNotFoundError):
        resolve("nothing")


def test_nothing_in_a_directory_or_glob(make):
    make("d/readme.md", "d/_a.parquet")
    with pytest.raises(NoShards, match=r"directory d holds no file that ends in \.parquet"):
        resolve("d")
    with pytest.raises(NoShards, match=r"no shard matches d/x\*"):
        resolve("d/x*")
    with pytest.raises(NoShards):
        resolve("d/*")


def test_fifos_sockets_and_devices_are_refused_unopened(make, tmp_path):
    make("d/a.parquet")
    os.mkfifo(tmp_path / "d/z.parquet")
    os.mkfifo(tmp_path / "d/ignored")
    for spec in ("d", "d/z.parquet", "d/z*", "d/*", "/dev/null", "/dev/zero"):
        with pytest.raises(UnreadableShard, match="is not a regular file"):
            resolve(spec)
    os.remove(tmp_path / "d/z.parquet")
    assert names("d") == ["d/a.parquet"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.parquet")
        with pytest.raises(UnreadableShard, match="is not a regular file"):
            resolve("s.parquet")


def test_symbolic_links(make, tmp_path):
    make("real/a.parquet", "d/b.parquet")
    (tmp_path / "d/in").symlink_to(tmp_path / "real")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/c.parquet").symlink_to(tmp_path / "real/a.parquet")
    assert names("d") == ["d/b.parquet", "d/c.parquet", "d/in/a.parquet"]
    assert names("d/**/*.parquet") == names("d")
    (tmp_path / "d/dead.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnreadableShard, match=r"dead\.parquet .*symbolic link"):
        resolve("d")


def test_a_filesystem_that_refuses_is_an_error_of_ours():
    class Refusing(pafs.FileSystemHandler):
        get_type_name = normalize_path = get_file_info_selector = create_dir = delete_dir = delete_dir_contents = None
        delete_root_dir_contents = delete_file = move = copy_file = open_input_stream = open_input_file = None
        open_output_stream = open_append_stream = None

        def get_file_info(self, paths):
            raise RuntimeError("no credentials")

    dataset = SimpleNamespace(files=["bucket/a.parquet"], filesystem=pafs.PyFileSystem(Refusing()))
    with pytest.raises(UnreadableShard, match=r"bucket/a\.parquet cannot be looked up: no credentials"):
        resolve(dataset)


def test_hive_keys_count_below_what_was_named(make):
    make("d/year=2013/m=01/a.parquet", "d/year=2014/m=%C3%A9%2F/b.parquet", f"d/year=2014/m={HIVE_NULL}/c.parquet")
    assert list(resolve("d").hive) == [
        {"year": "2013", "m": "01"},
        {"year": "2014", "m": "é/"},
        {"year": "2014", "m": None},
    ]
    assert list(resolve("d/year=2013").hive) == [{"m": "01"}]
    assert list(resolve("d/year=201[3]/m=*/*.parquet").hive) == [{"year": "2013", "m": "01"}]
    assert list(resolve("d/year=2013/m=01/a.parquet").hive) == [{}]
    assert list(resolve("d/*/m=01").hive) == [{"year": "2013", "m": "01"}]


def test_hive_keys_must_agree(make):
    make("d/a=1/x.parquet", "d/b=1/y.parquet", "e/x.parquet", "e/k=1/y.parquet", "f/k=1/k=2/x.parquet")
    with pytest.raises(SchemaMismatch, match=r"d/b=1/y\.parquet has the hive keys b .*d/a=1/x\.parquet.* keys a"):
        resolve("d")
    with pytest.raises(SchemaMismatch, match="no hive key"):
        resolve("e")
    with pytest.raises(SchemaMismatch, match="key k twice"):
        resolve("f")


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        (["1", "-2", "007"], pa.array([1, -2, 7], pa.int64())),
        (["1", None], pa.array([1, None], pa.int64())),
        (["1", "2.5", "1e3", None], pa.array([1.0, 2.5, 1000.0, None], pa.float64())),
        (["1", "x"], pa.array(["1", "x"])),
        (["1_000"], pa.array(["1_000"])),
        (["nan"], pa.array(["nan"])),
        (["²"], pa.array(["²"])),
        ([str(2**63), "1"], pa.array([str(2**63), "1"])),
        ([None], pa.array([None], pa.string())),
        (["", "1"], pa.array(["", "1"])),
    ],
)
def test_hive_types(given_values, expected):
    found = hive_column(given_values)
    assert found.type == expected.type
    assert found.equals(expected)


def test_a_dataset_stands_for_its_files(make):
    dataset = pytest.importorskip("pyarrow.dataset")
    pq = pytest.importorskip("pyarrow.parquet")
    make("d/k=1/a.parquet", "d/k=2/b.parquet")
    for path in ("d/k=1/a.parquet", "d/k=2/b.parquet"):
        pq.write_table(pa.table({"x": [1]}), path)
    hive = dataset.dataset("d", partitioning="hive")
    assert list(resolve(hive).hive) == [{"k": "1"}, {"k": "2"}]
    assert names(hive) == ["d/k=1/a.parquet", "d/k=2/b.parquet"]
    assert list(resolve(dataset.dataset("d")).hive) == [{}, {}]
    with pytest.raises(ConfigError, match="filter"):
        resolve(hive.filter(dataset.field("x") > 0))
    with pytest.raises(ConfigError, match="DirectoryPartitioning"):
        resolve(dataset.dataset("d", partitioning=["k"]))


segments = st.lists(st.sampled_from(["a", "b", "c.parquet"]), min_size=1, max_size=4)


@given(st.lists(segments.map("/".join), min_size=1, max_size=6, unique=True), st.sampled_from(["/r", "bucket", "/r/s"]))
def test_relative_names_are_unique_and_do_not_depend_on_the_place(paths, root):
    short = relative_names([f"{root}/{path}" for path in paths])
    assert len(set(short)) == len(paths)
    assert short == relative_names([f"/else/where/{path}" for path in paths])
    assert all(path.endswith(name) for path, name in zip(paths, short, strict=True))
