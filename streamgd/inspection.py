"""What `streamgd inspect` tells of shards and of models, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .data.buffers import is_number
from .data.columns import find_columns, is_string, is_time, is_vector
from .data.encode import Encoder
from .data.naming import hash_shares, name_hashes
from .data.rowgroups import Source
from .data.source import ParquetSource
from .data.threads import available_cpus
from .features import FeatureSpec
from .memoryplan import plan_memory
from .model import Model


def inspect_shards(source: ParquetSource, config: Config) -> dict[str, Any]:
    """Schema, row groups, sizes, and how the memory limit would be spent on all usable columns."""
    manifest = source.manifest
    fields = [{"name": field.name, "type": str(field.type), "use": _use(field.type)} for field in source.schema]
    fields += [{"name": name, "type": "differs", "use": "only with --drop"} for name in manifest.odd]
    fields += [{"name": name, "type": "not in all shards", "use": "left out"} for name in manifest.extra]
    usable = [field["name"] for field in fields if field["use"] in ("number", "list of numbers", "category")]
    plan: dict[str, Any] | None = None
    if usable:
        spec = FeatureSpec.raw(find_columns(source, only=usable))
        plan = plan_memory(manifest, Encoder(spec), config, config.n_jobs or available_cpus()).to_json()
        plan["windows"] = -(-manifest.n_rows // plan["window_rows"])
        plan["row_bytes"] = Encoder(spec).layout.row_bytes
    return {
        "kind": "shards",
        "shards": len(source.names),
        "rows": manifest.n_rows,
        "row_groups": manifest.n_row_groups,
        "row_group_rows": {
            "least": int(manifest.rows.min()),
            "median": int(np.median(manifest.rows)),
            "most": int(manifest.rows.max()),
        },
        "file_bytes": int(manifest.file_bytes.sum()),
        "uncompressed_bytes": int(manifest.bytes.sum()),
        "columns": fields,
        "memory": plan,
    }


def _use(kind: Any) -> str:
    if is_number(kind):
        return "number"
    if is_vector(kind):
        return "list of numbers"
    return "category" if is_string(kind) else "only with --calendar" if is_time(kind) else "not usable"


def inspect_model(model: Model, top: int = 20, source: Source | None = None) -> dict[str, Any]:
    """A model's task, training, and the features whose standardised weights are the largest.

    Hashes do not tell what was hashed: the values of hashed features are found again in a sample of ``source``, and how
    often they occur, by which their weights are standardised. Without it they are called by their hash.
    """
    spec = model.spec
    names = [name for column in spec.group("dense") for name in column.feature_names()]
    standardised = model.coef * model.scale
    mean = spec.offset + spec.fill
    rows: list[dict[str, Any]] = []
    for c, j in _largest(standardised, top):
        rows.append(
            {
                "feature": names[j],
                "output": c,
                "coefficient": float(model.coef[c, j]),
                "standardised": float(standardised[c, j]),
                "mean": float(mean[j]),
                "scale": float(model.scale[j]),
                "missing": float(model.missing[j]),
            }
        )
    if model.hashed is not None and model.hashed_index is not None:
        share = np.ones(len(model.hashed)) if source is None else hash_shares(source, model)[model.hashed_index]
        scale = np.ones_like(share) if source is None else np.sqrt(share * np.maximum(1 - share, 0))
        weights = (model.hashed * scale[:, np.newaxis]).astype(np.float32)
        places = _largest(weights, top)
        wanted = sorted({int(model.hashed_index[i]) for _, i in places})
        found = {} if source is None else name_hashes(source, model, wanted)
        for c, i in places:
            index = int(model.hashed_index[i])
            row = {"feature": " or ".join(found.get(index, [f"#{index}"])), "output": c}
            row |= {"coefficient": float(model.hashed[i, c]), "standardised": float(weights[i, c])}
            rows.append(row if source is None else row | {"mean": float(share[i]), "scale": float(scale[i])})
    rows.sort(key=lambda row: -abs(row["standardised"]))
    return {
        "kind": "model",
        "task": model.task,
        "loss": model.loss,
        "target": model.target,
        "classes": model.classes,
        "features": model.spec.n_inputs,
        "hash_bits": model.spec.hash_bits,
        "hashed_weights": 0 if model.hashed is None else len(model.hashed),
        "intercept": model.intercept.tolist(),
        "weights_sha256": model.sha256(),
        "largest": rows[:top],
        "training": model.training,
    }


def _largest(weights: NDArray[Any], top: int) -> list[tuple[int, int]]:
    """Output and feature of the largest weights of an array [outputs, features], or [features, outputs] if hashed."""
    flat = np.argsort(-np.abs(weights).ravel(), kind="stable")[:top]
    first, second = np.unravel_index(flat, weights.shape)
    hashed = weights.dtype == np.float32
    return [(int(b), int(a)) if hashed else (int(a), int(b)) for a, b in zip(first, second, strict=True)]
