"""Files of arrays: what is read is what was written, or a typed error, and neither takes memory it does not need."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from safetensors import safe_open
from safetensors.numpy import save_file

from streamgd import tensorfile
from streamgd.errors import CheckpointError, ModelFileError
from streamgd.tensorfile import DTYPES, read, write

KEY = "streamgd-test"
HEADER = {"format": 1, "label": "ü", "numbers": [1, 0.1, None, True], "nested": {"b": {}, "a": []}}
ARRAYS = {"w": np.arange(3, dtype="<f8"), "flag": np.array([True, False]), "half": np.ones((1, 2), "<f2")}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=8)
dtypes = st.sampled_from([*DTYPES.values(), *(np.dtype(f">{kind}") for kind in ("f4", "f8", "i2", "u8"))])
arrays = dtypes.flatmap(lambda dtype: stnp.arrays(dtype, stnp.array_shapes(min_dims=0, min_side=0)))
views = st.sampled_from([lambda a: a, np.transpose, lambda a: a[..., ::2] if a.ndim else a, np.asfortranarray])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    write(path, KEY, HEADER, ARRAYS)
    return path


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    little = np.asarray(b, b.dtype.newbyteorder("<"))
    return (a.dtype, a.shape, a.tobytes()) == (little.dtype, b.shape, little.tobytes())


@given(st.dictionaries(text, values, max_size=4), st.dictionaries(text, st.tuples(arrays, views), max_size=4))
@example({}, {"b": (np.zeros(0), np.asarray), "a": (np.zeros(0, "i2"), np.asarray), "c": (np.ones(1, "?"), np.asarray)})
@settings(deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], made: dict[str, Any]
) -> None:
    """Whatever the types, shapes, strides and byte order; and other tools read it too."""
    made = {name: view(array) for name, (array, view) in made.items()}
    header.pop("sha256", None)
    path = tmp_path_factory.mktemp("tensors") / "f"
    write(path, KEY, header, made)
    found, tensors = read(path, KEY, "file f")
    assert found == header and list(map(type, found.values())) == list(map(type, header.values()))
    assert tensors.keys() == made.keys()
    for name, array in tensors.items():
        assert same(array, made[name])
        assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
    with safe_open(path, framework="numpy") as other:
        assert set(other.metadata()) == {KEY}
        assert {name for name in other.keys()} == made.keys()  # noqa: SIM118
        assert all(same(other.get_tensor(name), made[name]) for name in made)
    data = path.read_bytes()
    assert struct.unpack("<Q", data[:8])[0] % 8 == 0
    write(path, KEY, found, tensors)
    assert path.read_bytes() == data


def test_neither_way_copies_the_arrays(tmp_path: Path) -> None:
    """A table of hashed weights may be most of the memory there is."""
    path, size = tmp_path / "large", 32 << 20
    table = np.arange(size // 4, dtype=np.uint32).reshape(-1, 4)
    tracemalloc.start()
    try:
        write(path, KEY, HEADER, {"table": table, "accumulator": table})
        assert tracemalloc.get_traced_memory()[1] < size // 8
        tracemalloc.reset_peak()
        _, found = read(path, KEY, "file")
        assert 2 * size <= tracemalloc.get_traced_memory()[1] < 2 * size + size // 8
    finally:
        tracemalloc.stop()
    assert np.array_equal(found["table"], table) and np.array_equal(found["accumulator"], table)


def test_tuples_and_other_keys_are_what_json_makes_of_them(tmp_path: Path) -> None:
    """The hash is of what a reader finds, in whatever order of keys."""
    write(tmp_path / "f", KEY, {"a": (1, 2), "b": {10: 1, 9: 2}}, {})
    assert read(tmp_path / "f", KEY, "f") == ({"a": [1, 2], "b": {"10": 1, "9": 2}}, {})


@pytest.mark.parametrize(
    ("header", "made", "error"),
    [
        ({"a": float("nan")}, {}, ValueError),
        ({"a": np.float32(1)}, {}, TypeError),
        ({"a": {1: 1, "1": 2}}, {}, ValueError),
        ({}, {"a": np.array([1j])}, TypeError),
        ({}, {"a": np.array(["x"])}, TypeError),
        ({}, {"__metadata__": np.zeros(1)}, ValueError),
        ({}, {"a": np.array([None])}, TypeError),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, header: dict[str, Any], made: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        write(tmp_path / "f", KEY, header, made)
    assert not list(tmp_path.iterdir())


def damaged(data: bytes) -> Iterator[bytes]:
    yield from (data[:n] for n in range(len(data)))
    yield data + b"\0"
    for place in range(len(data)):
        yield from (data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :] for mask in (1, 2, 0x20, 0x80, 255))


def test_damage_anywhere_is_told(file: Path) -> None:
    path = file.parent / "damaged"
    alive = []
    for data in damaged(file.read_bytes()):
        path.write_bytes(data)
        try:
            header, tensors = read(path, KEY, "file d", CheckpointError)
        except CheckpointError as error:
            assert str(error).startswith("file d ")
            continue
        assert header == HEADER and all(same(tensors[name], ARRAYS[name]) for name in ARRAYS)
        alive.append(data)
    # White space that pads the header may become other white space, and "\u00fc" may be written "\u00FC".
    assert len(alive) <= 16


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_noise_is_no_file(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "f"
    for data in (noise, struct.pack("<Q", len(noise)) + noise):
        path.write_bytes(data)
        with pytest.raises(ModelFileError):
            read(path, KEY, "f")


def forge(path: Path, entries: dict[str, Any], data: bytes, header: Any = None, outer: str | None = None) -> None:
    """Write a file as somebody who means harm would: its hash is right, where there can be one."""
    header = {"format": 1} if header is None else header
    if isinstance(header, dict):
        order = sorted(entries, key=lambda name: (entries[name]["data_offsets"], name))
        described = [[name, entries[name]["dtype"], entries[name]["shape"]] for name in order]
        digest = hashlib.sha256(json.dumps([header, described], sort_keys=True).encode() + data)
        header = json.dumps(header | {"sha256": digest.hexdigest()})
    text = (json.dumps({"__metadata__": {KEY: header}, **entries}) if outer is None else outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin: Any, end: Any, shape: Any = (1,), dtype: Any = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def test_forging_is_possible(tmp_path: Path) -> None:
    """What the other tests refuse is refused for what they say, not for a wrong hash."""
    path = tmp_path / "f"
    entries = {"b": entry(0, 8), "a": entry(8, 8, (0, 3)), "c": entry(8, 12, (2, 2), "BOOL")}
    forge(path, entries, struct.pack("<d", 0.5) + b"\1\0\0\1", {"x": 1})
    header, tensors = read(path, KEY, "f")
    assert header == {"x": 1} and tensors["b"] == 0.5 and tensors["a"].shape == (0, 3)
    assert tensors["c"].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("entries", "size", "told"),
    [
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "array 'b' lies at"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "array 'b' lies at"),
        ({"a": entry(0, 8), "b": entry(16, 24)}, 24, "array 'b' lies at"),
        ({"a": entry(8, 16)}, 16, "array 'a' lies at"),
        ({"a": entry(0, 8)}, 16, "take 8 bytes, but 16"),
        ({"a": entry(0, 8)}, 7, "take 8 bytes, but 7"),
        ({}, 8, "take 0 bytes, but 8"),
        ({"a": entry(0, 16)}, 16, "lies at"),
        ({"a": entry(8, 0)}, 8, "lies at"),
        ({"a": entry(0, 8, (2**61,))}, 8, "too large"),
        ({"a": entry(0, 0, (2**32, 2**32))}, 0, "too large"),
        ({"a": entry(0, 0, (0, 2**62))}, 0, "too large"),
        ({"a": entry(0, 0, (0, 2**32, 2**32))}, 0, "too large"),
        ({"a": entry(0, 8, (2**63,))}, 8, "natural"),
        ({"a": entry(0, 8, (2**64 + 1,))}, 8, "natural"),
        ({"a": entry(0, 2**64 + 8)}, 8, "natural"),
        ({"a": entry(0, 8, (10**4000,))}, 8, "natural"),
        ({"a": entry(0, 8, (-1,))}, 8, "natural"),
        ({"a": entry(0, 8, (-1, -1))}, 8, "natural"),
        ({"a": entry(-8, 0)}, 8, "natural"),
        ({"a": entry(0, 8, (True,))}, 8, "natural"),
        ({"a": entry(0, 8, (1.0,))}, 8, "natural"),
        ({"a": entry(0, 8.0)}, 8, "natural"),
        ({"a": entry(0, 8, (1,) * 33)}, 8, "natural"),
        ({"a": entry(0, 8, 1)}, 8, "natural"),
        ({"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, 8, "natural"),
        ({"a": entry(0, 8, dtype="O")}, 8, "unknown type"),
        ({"a": entry(0, 8, dtype="C64")}, 8, "unknown type"),
        ({"a": entry(0, 8, dtype="F128")}, 8, "unknown type"),
        ({"a": entry(0, 8, dtype=None)}, 8, "unknown type"),
        ({"a": entry(0, 8, dtype=["F64"])}, 8, "unknown type"),
        ({"a": entry(0, 8) | {"more": 1}}, 8, "not described"),
        ({"a": {"dtype": "F64", "shape": [1]}}, 8, "not described"),
        ({"a": None}, 8, "not described"),
        ({"a": [0, 8]}, 8, "not described"),
    ],
)
def test_places_that_cannot_be_are_told(tmp_path: Path, entries: dict[str, Any], size: int, told: str) -> None:
    path = tmp_path / "f"
    text = json.dumps({"__metadata__": {KEY: '{"format": 1}'}, **entries})
    forge(path, {}, bytes(size), outer=text)
    with pytest.raises(ModelFileError, match=told) as caught:
        read(path, KEY, "file x")
    assert str(caught.value).startswith("file x is damaged") and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("null", "not written by streamgd"),
        ("[1]", "not written by streamgd"),
        ("{", "damaged"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "damaged"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "occurs twice"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "damaged"),
        ("{}", "hash"),
        ('{"sha256": null}', "hash"),
        (12, "not written by streamgd"),
    ],
)
def test_text_that_cannot_be_is_told(tmp_path: Path, header: Any, told: str) -> None:
    forge(tmp_path / "f", {}, b"", outer=json.dumps({"__metadata__": {KEY: header}}))
    with pytest.raises(ModelFileError, match=told):
        read(tmp_path / "f", KEY, "f")


@pytest.mark.parametrize(
    ("outer", "told"),
    [
        ("[]", "not written by streamgd"),
        ("{}", "not written by streamgd"),
        ('{"__metadata__": null}', "not written by streamgd"),
        ('{"__metadata__": {"format": "pt"}}', "not written by streamgd"),
        ('{"__metadata__": {}, "__metadata__": {}}', "occurs twice"),
        ('{"x": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "\udc80"}', "damaged"),
    ],
)
def test_an_outer_header_that_cannot_be_is_told(tmp_path: Path, outer: str, told: str) -> None:
    data = outer.encode("utf-8", "surrogateescape")
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(data)) + data)
    with pytest.raises(ModelFileError, match=told):
        read(tmp_path / "f", KEY, "f")


def test_a_truth_value_is_zero_or_one(tmp_path: Path) -> None:
    forge(tmp_path / "f", {"a": entry(0, 2, (2,), "BOOL")}, b"\0\2")
    with pytest.raises(ModelFileError, match="true and false"):
        read(tmp_path / "f", KEY, "f")


def test_a_foreign_file_is_told(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(2)}, tmp_path / "f", metadata={"other": "{}"})
    with pytest.raises(ModelFileError, match="not written by streamgd"):
        read(tmp_path / "f", KEY, "f")


@pytest.mark.parametrize(("found", "told"), [(0, "earlier"), (2, "later"), (True, "not written"), ("1", "not written")])
def test_the_format_is_told_before_the_hash(tmp_path: Path, found: Any, told: str) -> None:
    """Other formats may have another hash."""
    forge(tmp_path / "f", {}, b"", json.dumps({"format": found}))
    with pytest.raises(ModelFileError, match=told):
        read(tmp_path / "f", KEY, "f", format=1)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 2**28 + 1])
def test_a_header_that_is_not_there_is_not_allocated(file: Path, length: int) -> None:
    data = struct.pack("<Q", length) + file.read_bytes()[8:]
    file.write_bytes(data)
    os.truncate(file, 2**28 + len(data) if length == 2**28 + 1 else len(data))
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="cut short"):
            read(file, KEY, "f")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_with_holes_does_not_take_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may claim any amount and take none on the disk."""
    size = 1 << 40
    forge(tmp_path / "f", {}, b"", outer=json.dumps({"__metadata__": {KEY: "{}"}, "a": entry(0, size, (size // 8,))}))
    os.truncate(tmp_path / "f", (tmp_path / "f").stat().st_size + size)
    with pytest.raises(ModelFileError, match="does not fit into memory"):
        read(tmp_path / "f", KEY, "f")
    monkeypatch.setattr(tensorfile, "available_memory", lambda: 1 << 60)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tensorfile.np, "empty", full)
    with pytest.raises(ModelFileError, match="does not fit into memory"):
        read(tmp_path / "f", KEY, "f")


def test_a_file_that_is_cut_while_it_is_read_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = tensorfile._check_places

    def cut(*arguments: Any) -> None:
        check(*arguments)
        os.truncate(file, file.stat().st_size - 1)

    monkeypatch.setattr(tensorfile, "_check_places", cut)
    with pytest.raises(ModelFileError, match="shorter while it was read"):
        read(file, KEY, "f")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # their names are at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (make_socket, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "No such file"),
        (lambda path: path.touch(), "cut short"),
    ],
)
def test_what_is_no_file_is_told_at_once(tmp_path: Path, make: Callable[[Path], Any], told: str) -> None:
    make(tmp_path / "f")
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path / "f", KEY, "f", CheckpointError)


@pytest.mark.parametrize("path", ["a\0b", "/dev/stdin", "/dev/null", "/proc/self/maps", "x" * 300, ""])
def test_paths_that_are_no_files_are_told(path: str) -> None:
    with pytest.raises(ModelFileError):
        read(path, KEY, "f")


def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = os.stat

    def swap(path: Any, **options: Any) -> os.stat_result:
        found = look(path, **options)
        if path == file:
            file.unlink()
            os.mkfifo(file)
        return found

    monkeypatch.setattr(tensorfile.os, "stat", swap)
    with pytest.raises(ModelFileError, match="not a regular file"):
        read(file, KEY, "f")


def test_a_link_to_a_file_is_read(file: Path) -> None:
    (file.parent / "link").symlink_to(file.name)
    assert read(file.parent / "link", KEY, "f")[0] == HEADER
