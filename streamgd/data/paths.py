"""From what a user names (paths, directories, globs, URIs) to a list of shards.

Nothing is opened here, only looked up and listed, so a FIFO or a device cannot block. The order of the shards is a
function of their paths: each thing that was named keeps its place, what it stands for is sorted by path. Names
that begin with ``_`` or ``.`` are left out of directories and wildcards, as by Spark and Arrow.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from ..errors import ConfigError, NoShards, PathNotFound, SchemaMismatch, UnreadableShard

SUFFIXES = (".parquet", ".parq", ".pq")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MAGIC = re.compile(r"[*?[]")
_CREDENTIALS = re.compile(r"://[^/@]*@")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FILE, _DIRECTORY, _NOT_FOUND = pafs.FileType.File, pafs.FileType.Directory, pafs.FileType.NotFound


@dataclass(frozen=True)
class Shards:
    """The shards that a specification stands for.

    Attributes
    ----------
    filesystem : pyarrow.fs.FileSystem
        The one filesystem that all of them are on.
    paths : tuple of str
        Path of each shard on that filesystem, never empty.
    hive : tuple of mappings
        For each shard its ``key=value`` path components, decoded; None stands for a missing value. All shards have
        the same keys.
    """

    filesystem: Any
    paths: tuple[str, ...]
    hive: tuple[Mapping[str, str | None], ...]


@dataclass(frozen=True)
class _Place:
    """One thing that was named: how it is shown in messages, and where it is."""

    shown: str
    filesystem: Any
    path: str


def resolve(spec: object) -> Shards:
    """Find the shards that `spec` names.

    Parameters
    ----------
    spec : str, path, sequence of these, or pyarrow Dataset
        A file (of any extension), a directory (searched to the bottom for ``.parquet``, ``.parq`` and ``.pq``), a glob
        with ``* ? [ ] **``, or a URI of one of these (``file://``, ``s3://``, ``gs://``, ... through pyarrow, any other
        scheme through fsspec). All on one filesystem.

    Returns
    -------
    Shards

    Raises
    ------
    ConfigError
        `spec` is none of these, names a shard twice, or mixes filesystems.
    PathNotFound, NoShards
        A path leads to nothing; a directory or glob holds no shard.
    UnreadableShard
        A shard is not a regular file, or the filesystem refuses to list.
    SchemaMismatch
        The hive partition keys of the shards differ.

    Examples
    --------
    >>> resolve("no/such/place")
    Traceback (most recent call last):
    ...
    streamgd.errors.PathNotFound: no/such/place does not exist...
    """
    if hasattr(spec, "files") and hasattr(spec, "filesystem"):
        return _check(*_from_dataset(spec))
    entries = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    if not entries:
        raise ConfigError("no path was given; name at least one file, directory, glob or URI")
    places = [_place(entry) for entry in entries]
    filesystem = places[0].filesystem
    for place in places[1:]:
        if place.filesystem != filesystem:
            raise ConfigError(
                f"{places[0].shown} and {place.shown} are on different filesystems "
                f"({filesystem.type_name}, {place.filesystem.type_name}); all shards of a job must be on one"
            )
    # One call for all of them: object stores answer it in parallel.
    infos = _ask(places[0].shown, lambda: filesystem.get_file_info([place.path for place in places]))
    found: list[tuple[str, str | None]] = []
    for place, info in zip(places, infos, strict=True):
        found.extend(_expand(place, info.type))
    return _check(filesystem, [path for path, _ in found], [_hive(path, base) for path, base in found])


def relative_names(paths: Sequence[str]) -> list[str]:
    """Paths without the directory that all of them are in: short, unique, and the same wherever the data lie.

    Examples
    --------
    >>> relative_names(["/d/year=2013/a.parquet", "/d/year=2014/a.parquet"])
    ['year=2013/a.parquet', 'year=2014/a.parquet']
    >>> relative_names(["/d/a.parquet"])
    ['a.parquet']
    """
    split = [path.split("/") for path in paths]
    low, high = min(split), max(split)
    depth = 0
    while depth < min(len(low), len(high)) - 1 and low[depth] == high[depth]:
        depth += 1
    return ["/".join(parts[depth:]) for parts in split]


def hive_column(values: Sequence[str | None]) -> Any:
    """Values of one hive key, one a shard, as an Arrow array: int64 if all are, else float64 if all are, else string.

    Examples
    --------
    >>> hive_column(["01", "12", None]).type, hive_column(["1", "2.5"]).type, hive_column(["1", "x"]).type
    (DataType(int64), DataType(double), DataType(string))
    """
    given = [value for value in values if value is not None]
    if given and all(_INTEGER.fullmatch(value) for value in given):
        numbers = [None if value is None else int(value) for value in values]
        if all(number is None or -(2**63) <= number < 2**63 for number in numbers):
            return pa.array(numbers, pa.int64())
    # Integers that int64 cannot hold are identifiers; as floats they would collide.
    elif given and all(_FLOAT.fullmatch(value) for value in given):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array(values, pa.string())


def _from_dataset(dataset: Any) -> tuple[Any, list[str], list[dict[str, str | None]]]:
    """Files of a pyarrow FileSystemDataset, with its hive partitioning if it has one."""
    if getattr(dataset, "_scan_options", None):
        raise ConfigError("the Dataset has a filter, which would be ignored; pass the unfiltered Dataset")
    partitioning = getattr(dataset, "partitioning", None)
    keys = set(partitioning.schema.names) if partitioning is not None else set()
    if keys and type(partitioning).__name__ != "HivePartitioning":
        raise ConfigError(
            f"the Dataset has a {type(partitioning).__name__}; only hive partitioning (key=value directories) is read"
        )
    filesystem, paths = dataset.filesystem, list(dataset.files)
    if not paths:
        raise NoShards("the Dataset holds no file")
    for path, info in zip(paths, _ask(paths[0], lambda: filesystem.get_file_info(paths)), strict=True):
        _require_file(path, info.type)
    hive = [{key: value for key, value in _hive(path, "").items() if key in keys} for path in paths]
    return filesystem, paths, hive


def _check(filesystem: Any, paths: list[str], hive: list[dict[str, str | None]]) -> Shards:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ConfigError(f"shard {path} is named twice; its rows would count double, so name it once")
        seen.add(path)
    for path, keys in zip(paths, hive, strict=True):
        if set(keys) != set(hive[0]):
            raise SchemaMismatch(
                f"shard {path} has {_keys(keys)} in its path, shard {paths[0]} has {_keys(hive[0])}; "
                "all shards must have the same, so name the directory that holds the partitions, or the files"
            )
    return Shards(filesystem, tuple(paths), tuple(hive))


def _keys(keys: Mapping[str, object]) -> str:
    return f"the hive keys {', '.join(sorted(keys))}" if keys else "no hive key"


def is_uri(entry: object) -> bool:
    """Whether something is a URI, not a path."""
    return isinstance(entry, str | os.PathLike) and bool(_URI.match(os.fsdecode(entry)))


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Filesystem of a URI, and the path on it."""
    place = _place(uri)
    return place.filesystem, place.path


def _place(entry: object) -> _Place:
    if not isinstance(entry, (str, os.PathLike)):
        raise ConfigError(
            f"cannot read data from {type(entry).__name__}; expected a path, a directory, a glob, a URI, "
            "a list of these, or a pyarrow Table or Dataset"
        )
    text = os.fsdecode(entry)
    if not text or "\0" in text:
        raise ConfigError(f"{text!r} is not a path")
    if not _URI.match(text):
        parts = os.path.join(os.getcwd(), os.path.expanduser(text)).replace(os.sep, "/").split("/")
        parts = [parts[0], *(part for part in parts[1:] if part not in ("", "."))]
        if ".." in parts:
            # Not normpath: with a symbolic link before it, ".." is not the directory that is written before it. What
            # is written below another directory under the names of the shards must not go up from there.
            up = len(parts) - parts[::-1].index("..")
            if os.path.isdir(base := "/".join(parts[:up])):
                parts = [*os.path.realpath(base).rstrip("/").split("/"), *parts[up:]]
        path = "/".join(parts) or "/"
        return _Place(text.encode("utf-8", "replace").decode(), pafs.LocalFileSystem(), path)
    shown = _CREDENTIALS.sub("://***@", text)
    # A question mark begins the query of a URI only where key=value follows, else it is a wildcard.
    text_of_uri = re.sub(r"\?(?!\w+=)", "%3F", text)
    try:
        filesystem, path = pafs.FileSystem.from_uri(quote(text_of_uri, safe=":/?#@!$&'()*+,;=%~"))
    except pa.ArrowInvalid as exc:
        if "Unrecognized filesystem type" not in str(exc):
            raise ConfigError(f"{shown} is not a URI that can be read: {exc}") from exc
        filesystem, path = _fsspec(text, shown)
    except OSError as exc:
        raise UnreadableShard(f"{shown} cannot be reached: {exc}") from exc
    return _Place(shown, filesystem, path.rstrip("/") or "/")


def _fsspec(uri: str, shown: str) -> tuple[Any, str]:
    scheme = uri.split("://", 1)[0]
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]
    except ImportError as exc:
        raise ConfigError(f"{shown}: pyarrow does not know {scheme}://; install fsspec to read it") from exc
    try:
        filesystem, path = url_to_fs(uri)
    except (ImportError, ValueError) as exc:
        raise ConfigError(f"{shown}: no filesystem for {scheme}://: {exc}") from exc
    except OSError as exc:
        raise UnreadableShard(f"{shown} cannot be reached: {exc}") from exc
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _expand(place: _Place, kind: Any) -> list[tuple[str, str | None]]:
    """Shards of one place as (path, directory below which hive keys count)."""
    if kind == _DIRECTORY:
        found = [(path, place.path) for path in _shards_below(place, place.path)]
        if not found:
            raise NoShards(f"directory {place.shown} holds no file that ends in {', '.join(SUFFIXES)}")
        return list(found)
    if kind == _NOT_FOUND and _MAGIC.search(place.path):
        return _expand_glob(place)
    if kind == _NOT_FOUND:
        _not_found(place)
    _require_file(place.shown, kind)
    return [(place.path, None)]


def _expand_glob(place: _Place) -> list[tuple[str, str | None]]:
    parts = place.path.split("/")
    base, depth = "", 0
    # A directory may be called a[1]: as long as what is written exists, it is meant.
    while not _MAGIC.search(parts[depth]) or _kind(place, f"{base}{parts[depth]}") == _DIRECTORY:
        base, depth = f"{base}{parts[depth]}/", depth + 1
    base, pattern = base if base == "/" else base.rstrip("/"), parts[depth:]
    if _kind(place, base) != _DIRECTORY:
        _not_found(_Place(place.shown, place.filesystem, base))
    shards: set[str] = set()
    for path, matched in _match(place, base, pattern):
        if matched == _DIRECTORY:
            shards.update(_shards_below(place, path))
        elif pattern[-1] not in ("*", "**") or path.endswith(SUFFIXES):
            _require_file(path, matched)
            shards.add(path)
    if not shards:
        raise NoShards(f"no shard matches {place.shown}; the directory {base} exists, so check the pattern after it")
    return [(path, base) for path in sorted(shards)]


def _match(place: _Place, directory: str, pattern: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield what is in `directory` and matches `pattern`, component by component, as (path, file type)."""
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        below = list(_walk(place, directory))
        if not rest:
            yield from (found for found in below if found[1] != _DIRECTORY)
            return
        for found in [directory, *(path for path, kind in below if kind == _DIRECTORY)]:
            yield from _match(place, found, rest)
        return
    for info in _list(place, directory):
        name = info.base_name
        hidden = name[:1] in ("_", ".") and name[:1] != head[0]
        if not (name == head or (fnmatch.fnmatchcase(name, head) and not hidden)):
            continue
        if not rest:
            yield _join(directory, name), info.type
        elif info.type == _DIRECTORY:
            yield from _match(place, _join(directory, name), rest)


def _shards_below(place: _Place, directory: str) -> list[str]:
    # Spark writes directories that are named like a file, x.parquet/part-0.parquet.
    found = {path: kind for path, kind in _walk(place, directory) if path.endswith(SUFFIXES) and kind != _DIRECTORY}
    for path in sorted(found):
        _require_file(path, found[path])
    return sorted(found)


def _walk(place: _Place, directory: str) -> Iterator[tuple[str, Any]]:
    """Yield all that is below `directory` and not hidden, as (path, file type)."""
    if isinstance(place.filesystem, pafs.LocalFileSystem):
        yield from _walk_local(place, directory, set())
        return
    # One recursive listing: an object store needs a request a thousand keys, not one a directory.
    for info in _list(place, directory, recursive=True):
        path = info.path.rstrip("/")
        if not any(part[:1] in ("_", ".") for part in path[len(directory) :].split("/")):
            yield path, info.type


def _walk_local(place: _Place, directory: str, visited: set[tuple[int, int]]) -> Iterator[tuple[str, Any]]:
    """Enter each directory once, or symbolic links that form a cycle would be followed until the system refuses."""
    visited.add(_identity(place, directory))
    for info in _list(place, directory):
        path = _join(directory, info.base_name)
        if info.base_name[:1] in ("_", ".") or (info.type == _DIRECTORY and _identity(place, path) in visited):
            continue
        yield path, info.type
        if info.type == _DIRECTORY:
            yield from _walk_local(place, path, visited)


def _identity(place: _Place, path: str) -> tuple[int, int]:
    status = _ask(place.shown, lambda: os.stat(path))
    return status.st_dev, status.st_ino


def _list(place: _Place, directory: str, recursive: bool = False) -> list[Any]:
    if isinstance(place.filesystem, pafs.LocalFileSystem):
        # Arrow leaves out symbolic links that lead nowhere; a shard must not be missed in silence.
        asked: Any = [_join(directory, name) for name in _ask(place.shown, lambda: os.listdir(directory or "."))]
    else:
        asked = pafs.FileSelector(directory, recursive=recursive)
    infos: list[Any] = _ask(place.shown, lambda: place.filesystem.get_file_info(asked))
    return sorted(infos, key=lambda info: info.path)


def _kind(place: _Place, path: str) -> Any:
    return _ask(place.shown, lambda: place.filesystem.get_file_info(path).type)


def _ask(shown: str, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as exc:  # filesystems of fsspec raise errors of their own libraries
        raise UnreadableShard(f"{shown} cannot be looked up: {exc}; check the name and the permissions") from exc


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory else name


def _hive(path: str, base: str | None) -> dict[str, str | None]:
    """Partition values in the directories of `path` below `base`."""
    values: dict[str, str | None] = {}
    if base is None:
        return values
    for part in path[len(base) :].split("/")[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            key, value = unquote(key), unquote(value)
            if key in values:
                raise SchemaMismatch(f"shard {path} has the hive key {key} twice in its path")
            values[key] = None if value == HIVE_NULL else value
    return values


def _require_file(shown: str, kind: Any) -> None:
    if kind == _NOT_FOUND:
        raise UnreadableShard(f"shard {shown} does not exist, or is a symbolic link that leads nowhere")
    if kind != _FILE:
        raise UnreadableShard(f"shard {shown} is not a regular file (a FIFO, socket or device?) and cannot be read")


def _not_found(place: _Place) -> NoReturn:
    """Say what does not exist, where its path still led to something, and what is there."""
    parent, name = place.path, ""
    while "/" in parent.rstrip("/"):
        parent, _, name = parent.rstrip("/").rpartition("/")
        parent = parent or "/"
        if _kind(place, parent) == _DIRECTORY:
            break
    else:
        raise PathNotFound(f"{place.shown} does not exist")
    names: list[str] = []
    if isinstance(place.filesystem, pafs.LocalFileSystem):  # an object store may have millions of names there
        names = [info.base_name for info in _list(place, parent)]
    close = difflib.get_close_matches(name, names[:10_000], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "check the spelling"
    raise PathNotFound(f"{place.shown} does not exist: there is no {name} in {parent}; {hint}")
