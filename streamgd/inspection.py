"""What `streamgd inspect` tells of shards and of models, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from .config import Config
from .data.buffers import is_number
from .data.encode import Encoder, is_vector
from .data.profile import find_columns
from .data.source import ParquetSource
from .data.threads import available_cpus
from .features import FeatureSpec
from .memoryplan import plan_memory
from .model import Model


def inspect_shards(source: ParquetSource, config: Config) -> dict[str, Any]:
    """Schema, row groups, sizes, and how the memory limit would be spent on all usable columns."""
    manifest = source.manifest
    fields = [{"name": field.name, "type": str(field.type), "use": _use(field.type)} for field in source.schema]
    usable = [field["name"] for field in fields if field["use"] != "not usable yet"]
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
    return "number" if is_number(kind) else "list of numbers" if is_vector(kind) else "not usable yet"


def inspect_model(model: Model, top: int = 20) -> dict[str, Any]:
    """A model's task, training, and the features whose standardised weights are the largest."""
    names = model.spec.feature_names()
    standardised = model.coef * model.scale
    order = np.argsort(-np.abs(standardised), kind="stable")[:top]
    mean = model.spec.offset + model.spec.fill
    return {
        "kind": "model",
        "task": model.task,
        "loss": model.loss,
        "target": model.target,
        "classes": model.classes,
        "features": model.spec.n_features,
        "intercept": model.intercept,
        "weights_sha256": model.sha256(),
        "largest": [
            {
                "feature": names[j],
                "coefficient": float(model.coef[j]),
                "standardised": float(standardised[j]),
                "mean": float(mean[j]),
                "scale": float(model.scale[j]),
                "missing": float(model.missing[j]),
            }
            for j in order
        ],
        "training": model.training,
    }
