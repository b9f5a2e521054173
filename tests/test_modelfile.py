"""Model files: what is read is what was written, or an error; and nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from streamgd import modelfile, tensorfile
from streamgd.errors import ModelFileError
from streamgd.features import Column, FeatureSpec
from streamgd.model import Model
from streamgd.modelfile import load_model, save_model

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
plain = st.recursive(st.none() | st.booleans() | finite | st.integers() | text, st.lists, max_leaves=5)
LABELS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int8": st.integers(-128, 127),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "double": finite,
    "string": text,
    "large_string": text,
}


@st.composite
def models(draw: st.DrawFn) -> Model:
    columns = []
    for name in draw(st.lists(text, min_size=1, max_size=4, unique=True)):
        size = draw(st.none() | st.integers(1, 3))
        columns.append(Column(name, "number") if size is None else Column(name, "vector", size))
    n = sum(column.size for column in columns)

    def array(dtype: Any = np.float64) -> Any:
        values = st.floats(width=32 if dtype is np.float32 else 64, allow_nan=False, allow_infinity=False)
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), dtype)

    class_type = draw(st.none() | st.sampled_from(sorted(LABELS)))
    labels = LABELS[class_type or "bool"]
    most = 2 if class_type == "bool" else 4
    classes = sorted(draw(st.lists(labels, min_size=2, max_size=most, unique=True))) if class_type else None
    outputs = len(classes) if classes and len(classes) > 2 else 1
    spec = replace(FeatureSpec.raw(columns), offset=array(), fill=array(np.float32))
    index = hashed = None
    if draw(st.booleans()):
        more = [Column("c" * 9, "category"), Column("t" * 9, "text"), Column("d" * 9, "hour")]
        more.append(Column("p" * 9, "cross", parts=("c" * 9, f"hour({'d' * 9})")))
        spec = replace(spec, columns=(*columns, *more), hash_bits=draw(st.integers(5, 28)))
        places = draw(st.lists(st.integers(0, spec.n_slots - 1), max_size=4, unique=True))
        index = np.array(sorted(places), np.uint32)
        weights = st.floats(width=32, allow_nan=False, allow_infinity=False)
        drawn = draw(st.lists(weights, min_size=len(index) * outputs, max_size=len(index) * outputs))
        hashed = np.array(drawn, np.float32).reshape(len(index), outputs)
    return Model(
        task="classification" if class_type else "regression",
        loss="log_loss" if class_type else "squared_error",
        target=draw(text),
        spec=spec,
        coef=np.array([array() for _ in range(outputs)]).reshape(outputs, n),
        intercept=np.array([draw(finite) for _ in range(outputs)]),
        scale=array(),
        missing=array(),
        hashed_index=index,
        hashed=hashed,
        classes=classes,
        class_type=class_type,
        training=draw(st.dictionaries(text, plain, max_size=3)),
    )


def content(model: Model) -> tuple[Any, ...]:
    arrays = (model.coef, model.intercept, model.spec.offset, model.spec.fill, model.scale, model.missing)
    arrays += tuple(array for array in (model.spec.factor, model.hashed_index, model.hashed) if array is not None)
    rest = (model.task, model.loss, model.target, model.spec.columns, model.classes, model.class_type, model.training)
    rest = (model.spec.hash_bits, *rest)
    return (*((a.dtype, a.shape, a.tobytes()) for a in arrays), json.dumps(rest[-1]), *map(repr, rest[:-1]))


COLUMNS = (
    Column("a", "number"),
    Column("v", "vector", 2),
    Column("c", "category"),
    Column("a*c", "scaled", parts=("a", "c")),
)
SMALL = Model(
    task="classification",
    loss="log_loss",
    target="late",
    spec=replace(
        FeatureSpec.raw(COLUMNS),
        offset=np.array([1.0, 2.0, 3.0]),
        fill=np.zeros(3, np.float32),
        hash_bits=4,
        factor=np.array([0.5]),
    ),
    coef=np.array([[0.5, -0.25, 0.125]]),
    intercept=np.array([-1.5]),
    hashed_index=np.array([3, 9], np.uint32),
    hashed=np.array([[0.5], [-2.0]], np.float32),
    scale=np.array([1.0, 2.0, 4.0]),
    missing=np.array([0.0, 0.1, 0.0]),
    classes=["no", "yes"],
    class_type="string",
    training={"rows": 10, "config": {"alpha": 1e-06}},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_model(SMALL, path)
    return path


@given(models())
@settings(deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, model: Model) -> None:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    assert content(loaded) == content(model)
    assert loaded.sha256() == model.sha256()
    written = path.read_bytes()
    save_model(loaded, path)
    assert path.read_bytes() == written


def test_other_tools_can_read_the_arrays(file: Path) -> None:
    tensors = load_file(file)
    assert np.array_equal(tensors["coef"], SMALL.coef)
    assert tensors["intercept"] == SMALL.intercept


def survives(path: Path, data: bytes) -> bool:
    """Whether damaged data still load, which they may only do as the same model."""
    path.write_bytes(data)
    try:
        loaded = load_model(path)
    except ModelFileError as error:
        assert str(path) in str(error)
        return False
    assert content(loaded) == content(SMALL)
    return True


def test_no_prefix_is_a_model(file: Path) -> None:
    data = file.read_bytes()
    assert survives(file, data)
    assert not any(survives(file, data[:n]) for n in range(len(data)))
    assert not survives(file, data + b"\0")


@pytest.mark.parametrize("mask", [0x01, 0x02, 0x20, 0x80, 0xFF])
def test_no_flipped_byte_makes_another_model(file: Path, mask: int) -> None:
    data = file.read_bytes()
    alive = 0
    for place in range(len(data)):
        alive += survives(file, data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
    assert alive <= 16  # only in what pads the header


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_noise_is_no_model(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "m.safetensors"
    assert not survives(path, noise)
    assert not survives(path, struct.pack("<Q", len(noise)) + noise)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any], *, honest: bool = True) -> None:
    """Change a model file as its author could: the hashes fit again."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][modelfile.KEY])
    tensors = load_file(path)
    raw = change(header, tensors)
    if honest and {"coef", "intercept"} <= set(tensors):
        weights = np.append(tensors["coef"].ravel(), tensors["intercept"].ravel()).astype("<f8").tobytes()
        for name, kind in (("hashed_index", "<u4"), ("hashed", "<f4")):
            weights += tensors[name].astype(kind).tobytes() if name in tensors else b""
        header["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    if isinstance(raw, str):
        save_file(tensors, path, metadata={modelfile.KEY: raw})
        return
    entries = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # as save_file lays them
    header.pop("sha256")
    described = [[name, tensorfile._NAMES[tensors[name].dtype], tensors[name].shape] for name in entries]
    digest = hashlib.sha256(json.dumps([header, described], sort_keys=True).encode())
    for name in entries:
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    save_file(tensors, path, metadata={modelfile.KEY: json.dumps(header | {"sha256": digest.hexdigest()})})


def test_rewriting_is_possible(file: Path) -> None:
    rewrite(file, lambda header, tensors: header.update(target="other"))
    assert load_model(file).target == "other"


def change(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda header, tensors: header.__setitem__(name, value)


def array(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda header, tensors: tensors.__setitem__(name, np.asarray(value))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (change("format", 4), "format 4; this streamgd reads format 3. It was written by a later"),
        (change("format", 2), "format 2; this streamgd reads format 3. It was written by an earlier"),
        (change("format", "1"), "not written by streamgd"),
        (change("format", True), "not written by streamgd"),
        (change("task", "ranking"), "no loss"),
        (change("task", "regression"), "no loss"),
        (change("loss", "os.system"), "no loss"),
        (change("loss", ["log_loss"]), "damaged"),
        (change("classes", None), "needs classes"),
        (change("classes", ["no"]), "needs classes"),
        (change("classes", ["no", "maybe", "yes"]), "coef"),
        (change("classes", ["no", "no"]), "different labels"),
        (change("classes", ["no", 1]), "different labels"),
        (change("classes", ["no", "\ud800"]), "damaged"),
        (change("class_type", "int64"), "different labels"),
        (change("class_type", "list<int8>"), "needs classes"),
        (change("class_type", ["string"]), "damaged"),
        (change("target", None), "target"),
        (change("training", []), "training"),
        (change("columns", []), "bits"),
        (change("columns", [column.to_json() for column in COLUMNS[:2]]), "bits"),
        (change("columns", [column.to_json() for column in COLUMNS[:3]]), "factor"),
        (change("columns", [column.to_json() for column in (*COLUMNS[:2], COLUMNS[3])]), "not there"),
        (change("columns", [column.to_json() for column in (*COLUMNS, COLUMNS[2])]), "twice"),
        (change("hash", "fnv"), "fnv"),
        (change("hash_bits", 3), "beyond the table"),
        (change("hash_bits", 0), "bits"),
        (change("hash_bits", 29), "bits"),
        (change("hash_bits", True), "bits"),
        (array("hashed_index", np.array([9, 3], np.uint32)), "ascending"),
        (array("hashed_index", np.array([3, 3], np.uint32)), "ascending"),
        (array("hashed_index", np.array([3], np.uint32)), "hashed"),
        (array("hashed", np.array([[0.5], [np.inf]], np.float32)), "NaN"),
        (array("factor", np.array([np.nan])), "NaN"),
        (change("columns", None), "damaged"),
        (change("columns", [{"name": "a", "kind": "number", "size": 3, "parts": [], "varied": False}]), "size"),
        (change("columns", [{"name": "a", "kind": "code", "size": 3, "parts": [], "varied": False}]), "column"),
        (change("columns", [{"name": 5, "kind": "vector", "size": 3, "parts": [], "varied": False}]), "column"),
        (change("columns", [{"name": "a", "kind": "vector", "size": -3, "parts": [], "varied": False}]), "size"),
        (
            change(
                "columns",
                [COLUMNS[2].to_json(), {"name": "a", "kind": "vector", "size": 10**15, "parts": [], "varied": False}],
            ),
            "array",
        ),
        (change("columns", [{"kind": "vector", "size": 3, "parts": [], "varied": False}]), "name"),
        (lambda header, tensors: header.pop("columns"), "columns"),
        (lambda header, tensors: tensors.pop("fill"), "arrays"),
        (array("more", [1.0]), "arrays"),
        (array("coef", [[0.5, np.nan, 0.125]]), "NaN"),
        (array("coef", [[0.5, np.inf, 0.125]]), "NaN"),
        (array("intercept", [np.nan]), "NaN"),
        (array("scale", [np.nan, 1.0, 1.0]), "NaN"),
        (array("coef", np.zeros(4)), "coef"),
        (array("coef", np.zeros((3, 1))), "coef"),
        (array("coef", np.zeros(3, np.float32)), "coef"),
        (array("fill", np.zeros(3)), "fill"),
        (lambda header, tensors: "null", "streamgd"),
        (lambda header, tensors: "[" * 100_000, "damaged"),
        (lambda header, tensors: '{"format": 3, "training": {"loss": 1e400}}', "damaged"),
        *(
            (lambda header, tensors, n=n: '{"format": 3, "x": ' + "[" * n + "]" * n + "}", "damaged")
            for n in (500, 900)
        ),
        (lambda header, tensors: '{"format": 1, "format": 1}', "twice"),
        (lambda header, tensors: json.dumps(header | {"training": {"loss": float("nan")}}), "NaN"),
        (lambda header, tensors: "{" + '"a": 1' + "0" * 5000 + "}", "damaged"),
    ],
)
def test_what_cannot_be_is_told(file: Path, spoil: Callable[..., Any], told: str) -> None:
    rewrite(file, spoil)
    with pytest.raises(ModelFileError) as caught:
        load_model(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("class_type", "classes"),
    [("int8", [0, 128]), ("uint8", [-1, 1]), ("int64", [0, 2**63]), ("int64", [False, True]), ("bool", [0, 1])],
)
def test_labels_fit_their_type(file: Path, class_type: str, classes: list[Any]) -> None:
    rewrite(file, lambda header, tensors: header.update(class_type=class_type, classes=classes))
    with pytest.raises(ModelFileError, match="different labels"):
        load_model(file)


def test_other_weights_need_another_hash(file: Path) -> None:
    rewrite(file, array("coef", [[0.5, -0.25, 0.25]]), honest=False)
    with pytest.raises(ModelFileError, match="hash"):
        load_model(file)


def test_a_foreign_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {modelfile.KEY: "{}"}, {modelfile.KEY: "no json"}):
        save_file({"weight": np.zeros((2, 2))}, path, metadata=metadata)
        with pytest.raises(ModelFileError, match="not written by streamgd"):
            load_model(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 2**31])
def test_a_huge_header_is_not_allocated(file: Path, length: int) -> None:
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(ModelFileError, match="cut short"):
        load_model(file)


def test_a_huge_header_that_is_there_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**33 + 8)
    with pytest.raises(ModelFileError):
        load_model(path)


def test_keys_of_the_outer_header_are_unique(file: Path) -> None:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    outer = data[8 : 8 + length].rstrip()
    again = outer[:-1] + b',"coef":{"dtype":"F64","shape":[1,3],"data_offsets":[0,24]}}'
    file.write_bytes(struct.pack("<Q", len(again)) + again + data[8 + length :])
    with pytest.raises(ModelFileError, match="twice"):
        load_model(file)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="regular file"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelFileError, match="regular file"):  # and not a wait for ever
        load_model(tmp_path / "fifo")


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="JSON"):
        save_model(replace(SMALL, training={"loss": float("nan")}), path)
    assert list(tmp_path.iterdir()) == []


def test_loading_imports_nothing_that_a_file_names(file: Path, tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was imported')")
    trap = {"__reduce__": ["trap", "run"], "module": "trap", "py/object": "trap.Trap", "_target_": "trap.run"}
    rewrite(file, lambda header, tensors: header.update(trap, training=trap, target="trap"))
    code = f"""
import sys, streamgd
estimator = streamgd.load({str(file)!r})
before = set(sys.modules)
streamgd.load({str(file)!r})
assert set(sys.modules) == before
assert "trap" not in sys.modules
print(estimator.model_.target)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert done.stdout.strip() == "trap", done.stderr


def test_a_model_is_told_without_its_weights() -> None:
    assert repr(SMALL).startswith(f"<Model of {SMALL.target!r}: ") and "array" not in repr(SMALL)
