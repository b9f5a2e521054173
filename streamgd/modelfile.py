"""Models as safetensors files: arrays, and one JSON text in the header. Nothing in a file is ever run.

A file from a stranger is read with suspicion, see `streamgd.tensorfile`, and every name, shape and number is checked.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFileError
from .features import MOST_HASH_BITS, Column, FeatureSpec
from .losses import LOSSES
from .model import Model
from .tensorfile import MOST_HEADER_BYTES, read, write

FORMAT = 3
KEY = "streamgd"
CLASS_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), int),
    **dict.fromkeys(("string", "large_string"), str),
    **dict.fromkeys(("float", "double", "halffloat"), (int, float)),
    "bool": bool,
}
TENSORS = {
    **dict.fromkeys(("coef", "intercept", "offset", "factor", "scale", "missing"), "<f8"),
    **dict.fromkeys(("fill", "hashed"), "<f4"),
    "hashed_index": "<u4",
}
HASH = "MurmurHash3_x86_32"
MOST_CLASSES = 100_000


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model file, whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written; a file that was there before is as it was.
    """
    header = {
        "format": FORMAT,
        "task": model.task,
        "loss": model.loss,
        "target": model.target,
        "classes": model.classes,
        "class_type": model.class_type,
        "columns": [column.to_json() for column in model.spec.columns],
        "hash": HASH,
        "hash_bits": model.spec.hash_bits,
        "weights_sha256": model.sha256(),
        "training": model.training,
    }
    outputs = model.n_outputs
    arrays: dict[str, NDArray[Any]] = {
        "coef": model.coef,
        "intercept": model.intercept,
        "offset": model.spec.offset,
        "fill": model.spec.fill,
        "factor": model.spec.factor,
        "scale": model.scale,
        "missing": model.missing,
        "hashed_index": np.empty(0, np.uint32) if model.hashed_index is None else model.hashed_index,
        "hashed": np.empty((0, outputs), np.float32) if model.hashed is None else model.hashed,
    }
    write(path, KEY, header, {name: arrays[name].astype(kind, copy=False) for name, kind in TENSORS.items()})


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model file.

    Raises
    ------
    ModelFileError
        The file is not there, damaged, foreign, or of a later version.
    """
    where = f"model file {os.fspath(path)!r}"
    header, tensors = read(path, KEY, where, format=FORMAT)
    try:
        if set(tensors) != set(TENSORS):
            raise ValueError(f"it holds the arrays {sorted(tensors)}, expected {sorted(TENSORS)}")
        model = _build(header, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{where} is damaged: {error}. Train again, or restore the file.") from error
    if model.sha256() != header.get("weights_sha256"):
        raise ModelFileError(f"{where} is damaged: its weights do not have the hash that its header names.")
    return model


def looks_like_model(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: with the length of a JSON header, and the header."""
    try:
        if not path.is_file():  # to open a FIFO would be to wait
            return False
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and struct.unpack("<Q", start[:8])[0] <= MOST_HEADER_BYTES and start[8:] == b"{"


def _is_label(label: Any, class_type: str) -> bool:
    of_type = isinstance(label, CLASS_TYPES[class_type]) and isinstance(label, bool) == (class_type == "bool")
    if not of_type or "int" not in class_type:
        return of_type
    bounds = np.iinfo(class_type)
    return bool(bounds.min <= int(label) <= bounds.max)


def _build(header: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Model:
    columns = tuple(Column.from_json(value) for value in header["columns"])
    spec = _spec(columns, header, tensors)
    task, loss = header["task"], header["loss"]
    if loss not in LOSSES or LOSSES[loss].task != task:
        raise ValueError(f"{loss!r} is no loss for {task!r}")
    classes, class_type = header["classes"], header["class_type"]
    if task == "classification":
        if not isinstance(classes, list) or not 2 <= len(classes) <= MOST_CLASSES or class_type not in CLASS_TYPES:
            raise ValueError("a classification needs classes")
        if not all(_is_label(label, class_type) for label in classes) or len(set(classes)) != len(classes):
            raise ValueError(f"classes {classes[:20]!r} are not different labels of type {class_type}")
    elif classes is not None or class_type is not None:
        raise ValueError("a regression has no classes")
    if not isinstance(header["target"], str) or not isinstance(header["training"], dict):
        raise ValueError("the target or the description of the training is missing")
    json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair is no text
    outputs = 1 if classes is None or len(classes) == 2 else len(classes)
    hashed = tensors["hashed_index"]
    _check_arrays(tensors, spec, outputs)
    if len(hashed) and not spec.hash_bits:
        raise ValueError("it holds hashed weights, but no feature is hashed")
    if len(hashed) and (hashed[-1] >= spec.n_slots or not (hashed[1:] > hashed[:-1]).all()):
        raise ValueError("the places of the hashed weights are not ascending, or beyond the table")
    return Model(
        task=task,
        loss=loss,
        target=header["target"],
        spec=spec,
        coef=tensors["coef"],
        intercept=tensors["intercept"],
        scale=tensors["scale"],
        missing=tensors["missing"],
        hashed_index=hashed if spec.hash_bits else None,
        hashed=tensors["hashed"] if spec.hash_bits else None,
        classes=classes,
        class_type=class_type,
        training=header["training"],
    )


def _spec(columns: tuple[Column, ...], header: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> FeatureSpec:
    bits = header["hash_bits"]
    hashed = any(column.group != "dense" for column in columns)
    if header["hash"] != HASH:
        raise ValueError(f"its features are hashed by {header['hash']!r}, this streamgd hashes by {HASH}")
    if type(bits) is not int or not hashed <= bits <= MOST_HASH_BITS * hashed:
        raise ValueError(f"{bits!r} is no number of bits of hashes")
    labels = [column.label for column in columns]
    if len(set(labels)) != len(labels):
        raise ValueError("a feature occurs twice")
    arrays = [tensors[name].astype(kind) for name, kind in (("offset", "f8"), ("fill", "f4"), ("factor", "f8"))]
    spec = FeatureSpec(columns, arrays[0], arrays[1], bits, arrays[2])
    groups = {column.label: column.group for column in columns if column.kind != "vector"}
    wanted = {"product": ["dense", "dense"], "cross": ["index", "index"], "scaled": ["dense", "index"]}
    for column in columns:
        if column.parts and [groups.get(part) for part in column.parts] != wanted[column.kind]:
            raise ValueError(f"{column.name!r} is a pair of features that are not there")
    return spec


def _check_arrays(tensors: dict[str, NDArray[Any]], spec: FeatureSpec, outputs: int) -> None:
    n = sum(column.size for column in spec.columns if column.group == "dense")
    shapes = {
        **dict.fromkeys(("offset", "fill", "scale", "missing"), (n,)),
        "coef": (outputs, n),
        "intercept": (outputs,),
        "factor": (len(spec.group("scaled")),),
        "hashed_index": (len(tensors["hashed_index"].ravel()),),
        "hashed": (len(tensors["hashed_index"].ravel()), outputs),
    }
    for name, kind in TENSORS.items():
        found = tensors[name]
        if found.dtype != np.dtype(kind) or found.shape != shapes[name]:
            raise ValueError(f"array {name!r} is {found.dtype}{found.shape}, expected {kind}{shapes[name]}")
        if not np.isfinite(found).all():
            raise ValueError(f"array {name!r} holds NaN or infinity")
