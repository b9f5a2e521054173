"""Whether a job gets a cache of encoded blocks, where, and what it must be of to be used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import __version__
from ..memory import available_memory, format_bytes
from .cache import FORMAT, BlockCache, Shape, kept_cache, temporary_cache
from .encode import Encoder
from .reading import digest
from .rowgroups import Source
from .shuffle import Plan

#: A cache that nobody asked for takes at most this share of the memory, so that the page cache of the operating
#: system holds it, or so many times the bytes of the shards: reading more from the disk would save nothing.
MEMORY_SHARE, SHARD_SHARE = 0.5, 2.0


def open_cache(
    cache: str | None,
    source: Source,
    encoder: Encoder,
    plan: Plan,
    *,
    passes: int,
    text_bytes: int,
    partitions: int = 1,
) -> tuple[BlockCache | None, str]:
    """Open the cache of a job, and say what its user should know.

    Parameters
    ----------
    cache : str or None
        ``"auto"``, a directory, or None for none.
    source, encoder, plan
        What is read, what becomes of it, and in which windows.
    passes : int
        Times that the rows are read.
    text_bytes : int
        Bytes of the hashes of n-grams a row.
    partitions : int
        Streams that read the rows; if it is one, rows that fit into a window stay in memory.
    """
    layout = encoder.layout
    shape = Shape(layout.row_bytes, layout.text_cell, layout.n_text)
    rows = source.manifest.rows
    if cache is None or source.in_memory:
        return None, ""
    if cache != "auto":
        found = kept_cache(Path(cache), rows, shape, _key(source, encoder))
    elif passes < 2 or (plan.n_windows == 1 and partitions == 1):  # read once, or kept in memory
        return None, ""
    else:
        size = source.manifest.n_rows * (shape.row_bytes + text_bytes)
        if size > max(MEMORY_SHARE * available_memory(), SHARD_SHARE * float(source.manifest.file_bytes.sum())):
            return None, (
                f"no cache of encoded blocks is made: it would take {format_bytes(size)}, more than half the memory "
                f"and more than twice the shards, which are faster to read again. --cache DIR makes one all the same."
            )
        found = temporary_cache(rows, shape, size)
    if isinstance(found, str):
        return None, f"{found}: later epochs read the shards again."
    return found, found.remark


def _key(source: Source, encoder: Encoder) -> dict[str, Any]:
    """What a cache is of; where it differs is what a message names. Numbers are compared to the last bit."""
    columns = [column.to_json() for column in encoder.spec.columns]
    for column in columns:
        del column["varied"]  # how it is read changes nothing
    spec, target = encoder.spec, encoder.target
    order = encoder.dictionaries.order
    numbers: list[NDArray[Any] | None] = [spec.offset, spec.fill, spec.factor, encoder.class_weight]
    numbers += [] if order is None else [order.moved, order.place]
    text = [
        encoder.weight,
        float(encoder.weight_scale).hex(),
        *(None if x is None else x.tobytes().hex() for x in numbers),
    ]
    if target is not None:
        classes = None if target.classes is None else (str(target.classes.type), target.classes.to_pylist())
        text += [target.name, repr(classes), *(float(x).hex() for x in (target.offset, target.scale, target.least))]
    return {
        "version": f"{__version__}, format {FORMAT}",
        "shards": source.identity(),
        "columns": columns,
        "encoding": digest(repr(text)),
    }
