"""A score for every row: one output shard per input shard, written beside and renamed when whole.

Where the output is not local, a shard is written to a temporary file here, and sent when it is whole.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ..atomic import make_directory, replacing
from ..errors import ConfigError, OutputError, ReadFailed
from ..executors import Executor, Watch
from ..model import Model
from .columns import require
from .encode import Encoder
from .evaluate import encoded, model_encoder, predictions, with_dictionaries
from .paths import filesystem_of, is_uri
from .remote import patiently
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
    executor: Executor | None = None,
    watch: Watch = lambda _: False,
) -> list[Path | str]:
    """Predict every row of every shard.

    Parameters
    ----------
    source : ParquetSource
        The data; the target need not be there.
    model : Model
        What predicts.
    out : path or URI
        Directory; made if it is not there. Shards keep their names and sub-directories.
    keep : sequence of str
        Columns that are carried over; partition columns that stand in the paths of the output are not written again.
    n_jobs : int
        Shards at a time.
    done : callable, optional
        Told the name and rows of each shard that is whole, where that is here.
    executor : Executor, optional
        Who predicts, a shard at a time; by default ``n_jobs`` threads. Elsewhere ``out`` must lead to the same place.
    watch : callable, optional
        Told by an executor now and then how many shards are done.

    Returns
    -------
    list of Path, or of str
        Files written, in the order of the shards; URIs, if that is what was given.

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
        require(source.schema, name, "keep", source.manifest.odd)
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
    schema = pa.schema([*(source.schema.field(name) for name in keep), *((n, a.type) for n, a in outputs.items())])
    encoder = model_encoder(model, source)
    place = _Remote.of(out) if is_uri(out) else _Local(Path(out))
    place.prepare(names, set(source.local_paths))
    scoring = _Scoring(with_dictionaries(source, model), model, encoder, place, names, keep, schema)
    if executor is not None:
        written: list[Path | str] = executor.reduce(_Writing(), scoring, None, len(names), watch)
        return written

    def write(shard: int) -> Path | str:
        path, rows = scoring.write(shard)
        if done is not None:
            done(str(path), rows)
        return path

    return parallel(write, range(len(names)), n_jobs)


@dataclass(frozen=True)
class _Writing:
    """Scoring as a round: a shard each part."""

    def part(self, shared: _Scoring, start: None, number: int) -> list[Path | str]:
        """Write a shard."""
        return [shared.write(number)[0]]

    def join(self, shared: _Scoring, start: None, left: list[Path | str], right: list[Path | str]) -> list[Path | str]:
        """What was written."""
        return [*left, *right]


@dataclass(frozen=True)
class _Scoring:
    """What a score of every row takes."""

    source: ParquetSource
    model: Model
    encoder: Encoder
    place: _Local | _Remote
    names: list[Path]
    keep: Sequence[str]
    schema: pa.Schema

    def through(self, change: Callable[[Any], Any], number: int) -> _Scoring:
        """The same of what ``change`` makes of the source."""
        return replace(self, source=change(self.source))

    def write(self, shard: int) -> tuple[Path | str, int]:
        """Predict a shard; its path and rows."""
        rows, manifest = 0, self.source.manifest
        with self.place.writing(self.names[shard]) as (temporary, path), _writer(temporary, self.schema) as writer:
            for row_group in range(*np.searchsorted(manifest.shard, [shard, shard + 1])):
                for batch, encoded_rows in encoded(self.source, self.encoder, row_group, self.keep):
                    columns = [plain(batch.column(name), self.schema.field(name).type) for name in self.keep]
                    columns += predictions(self.model, self.model.margins(encoded_rows, self.encoder.layout)).values()
                    writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
                    rows += batch.num_rows
        return path, rows


@dataclass(frozen=True)
class _Local:
    """A directory."""

    out: Path

    def prepare(self, names: Sequence[Path], inputs: set[str]) -> None:
        """Make the directory, and refuse what would be written elsewhere, or over the data."""
        if overwritten := [name for name in names if os.path.realpath(self.out / name) in inputs]:
            raise ConfigError(
                f"--out {self.out} would replace the input shard {overwritten[0]}; give another directory."
            )
        try:
            make_directory(self.out)
        except OutputError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTDIR):
                raise
            raise ConfigError(f"--out {self.out} is, or lies below, a file; name a directory.") from error
        for below in names:
            _check_inside(self.out, below)

    @contextmanager
    def writing(self, name: Path) -> Iterator[tuple[Path, Path]]:
        """Give a temporary path, and that of the shard once it is whole."""
        _check_inside(self.out, name)  # again: hours may have passed
        with replacing(self.out / name) as temporary:
            yield temporary, self.out / name


@dataclass(frozen=True)
class _Remote:
    """A directory of a filesystem that is not local."""

    uri: str
    filesystem: Any
    path: str

    @classmethod
    def of(cls, out: str | os.PathLike[str]) -> _Remote:
        """Find the filesystem of a URI."""
        uri = os.fspath(out).rstrip("/")
        return cls(uri, *filesystem_of(uri))

    def prepare(self, names: Sequence[Path], inputs: set[str]) -> None:
        """Make the directory, where the filesystem has such."""
        with _told(self.uri):
            self.filesystem.create_dir(self.path, recursive=True)

    @contextmanager
    def writing(self, name: Path) -> Iterator[tuple[Path, str]]:
        """Give a temporary path here, whose file is sent once it is whole."""
        base, _, query = self.uri.partition("?")
        uri, target = f"{base}/{name.as_posix()}" + (f"?{query}" if query else ""), f"{self.path}/{name.as_posix()}"
        with tempfile.TemporaryDirectory(prefix="streamgd-") as scratch:
            temporary = Path(scratch) / "shard.parquet"
            yield temporary, uri
            with _told(uri):
                patiently(partial(self._send, str(temporary), target), uri)

    def _send(self, here: str, there: str) -> None:
        self.filesystem.create_dir(there.rpartition("/")[0], recursive=True)
        pafs.copy_files(here, there, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self.filesystem)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn a failure of the storage of an output into its error."""
    try:
        yield
    except (ReadFailed, OSError) as error:
        reason = error.__cause__ if isinstance(error, ReadFailed) else error
        raise OutputError(getattr(reason, "errno", None) or errno.EIO, str(reason), uri) from error


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
