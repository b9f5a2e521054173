"""A score for every row: one output shard per input shard, written beside and renamed when whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import make_directory, replacing
from ..errors import ConfigError, OutputError
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
        be written over the data, or outside of the directory.
    OutputError
        An output shard cannot be written; what was there before is as it was.
    """
    outputs = predictions(model, np.empty(0 if model.n_outputs == 1 else (0, model.n_outputs)))
    for name in keep:
        require(source.schema, name, "keep")
        if name in outputs:
            raise ConfigError(f"--keep {name}: the output has a column of this name already; leave it out.")
    if len(set(keep)) != len(keep):
        raise ConfigError(f"--keep {','.join(keep)} names a column twice.")
    names = [_output_name(name) for name in source.names]
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
        make_directory(out)
    except OutputError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR):
            raise
        raise ConfigError(f"--out {os.fspath(out)} is, or lies below, a file; name a directory.") from error
    for below in names:
        _check_inside(Path(out), below)

    def write(shard: int) -> Path:
        path, rows = Path(out) / names[shard], 0
        _check_inside(Path(out), names[shard])  # again: hours may have passed
        with replacing(path) as temporary, _writer(temporary, schema) as writer:
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


def _output_name(name: str) -> Path:
    """Name of an output shard, below the directory of the output."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:  # object stores take any name
        raise ConfigError(f"shard {name!r}: an output shard of this name would lie outside of --out; predict it alone.")
    return Path(path.with_suffix(".parquet"))


def _check_inside(out: Path, name: Path) -> None:
    """Refuse to write where a symbolic link leads out of the directory: whoever made it is not who named that."""
    root, place = os.path.realpath(out), os.path.realpath(out / name.parent)
    if os.path.commonpath([root, place]) != root:
        raise ConfigError(
            f"--out {out}: the output shard {name} would be written to {place}, outside of the directory; remove the "
            f"symbolic link that leads there, or name another directory."
        )


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer that is closed once, and whose closing does not hide what came first."""
    writer = pq.ParquetWriter(path, schema)
    try:
        yield writer
    except BaseException:
        with suppress(Exception):
            writer.close()
        raise
    else:
        writer.close()
    finally:
        writer.is_open = False  # or it closes itself once more when it is collected, and complains
