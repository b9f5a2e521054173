"""Train linear and logistic models by mini-batch gradient descent on Parquet data of any size, in fixed memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .addressspace import require_room, reserve_little

if TYPE_CHECKING:
    from .data.batches import ParquetStream
    from .estimators import SGDClassifier, SGDRegressor, load
    from .search import SGDSearchCV, tune

__version__ = "0.1.0"
__all__ = ["ParquetStream", "SGDClassifier", "SGDRegressor", "SGDSearchCV", "load", "tune"]

_HOMES = {
    "ParquetStream": ".data.batches",
    "SGDClassifier": ".estimators",
    "SGDRegressor": ".estimators",
    "SGDSearchCV": ".search",
    "load": ".estimators",
    "tune": ".search",
}


def __dir__() -> list[str]:
    """Name what there is, for completion."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: the import of the package itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    reserve_little()
    require_room()
    return getattr(import_module(_HOMES[name], __name__), name)
