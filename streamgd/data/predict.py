"""A score for every row: one output shard per input shard, written beside and renamed when whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import replacing
from ..errors import ConfigError
from ..model import Model
from .columns import require
from .evaluate import encoded, model_encoder, predictions, with_dictionaries
from .source import ParquetSource
from .threads import parallel
from .widen import plain


def write_predictions(
    source: ParquetSource,
    model: Model,
    out: str | os.PathLike[str],
    *,
    keep: Sequence[str] = (),
    n_jobs: int = 1,
    done: Callable[[str, int], None] | None = None,
) -> list[Path]:
    """Predict every row of every shard.

    Parameters
    ----------
    source : ParquetSource
        The data; the target need not be there.
    model : Model
        What predicts.
    out : path
        Directory; made if it is not there. Shards keep their names and sub-directories.
    keep : sequence of str
        Columns that are carried over; partition columns that stand in the paths of the output are not written again.
    n_jobs : int
        Shards at a time.
    done : callable, optional
        Told the name and rows of each shard that is whole.

    Returns
    -------
    list of Path
        Files written, in the order of the shards.

    Raises
    ------
    MissingColumn, ConfigError
        A column to keep is not in the data, has the name of an output column, or is named twice; or predictions would
        be written over the data.
    """
    outputs = predictions(model, np.empty(0 if model.n_outputs == 1 else (0, model.n_outputs)))
    for name in keep:
        require(source.schema, name, "keep")
        if name in outputs:
            raise ConfigError(f"--keep {name}: the output has a column of this name already; leave it out.")
    if len(set(keep)) != len(keep):
        raise ConfigError(f"--keep {','.join(keep)} names a column twice.")
    names = [Path(name).with_suffix(".parquet") for name in source.names]
    if len(set(names)) != len(names):
        raise ConfigError("two input shards would be written to one output file; predict them one by one.")
    # What stands in the path of every output shard is a column to its readers, and cannot be one of the file too.
    keep = [
        name
        for name in keep
        if name not in source.partition_keys or not all(f"{name}=" in path.as_posix() for path in names)
    ]
    inputs = set(source.local_paths)
    if overwritten := [name for name in names if os.path.realpath(Path(out) / name) in inputs]:
        raise ConfigError(
            f"--out {os.fspath(out)} would replace the input shard {overwritten[0]}; give another directory."
        )
    schema = pa.schema([*(source.schema.field(name) for name in keep), *((n, a.type) for n, a in outputs.items())])
    encoder, source = model_encoder(model, source), with_dictionaries(source, model)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--out {os.fspath(out)} is, or lies below, a file; name a directory.") from error

    def write(shard: int) -> Path:
        path, rows = Path(out) / names[shard], 0
        with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for row_group in range(*np.searchsorted(source.manifest.shard, [shard, shard + 1])):
                for batch, encoded_rows in encoded(source, encoder, row_group, keep):
                    columns = [plain(batch.column(name), schema.field(name).type) for name in keep]
                    columns += predictions(model, model.margins(encoded_rows, encoder.layout)).values()
                    writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
                    rows += batch.num_rows
        if done is not None:
            done(str(path), rows)
        return path

    return parallel(write, range(len(names)), n_jobs)
