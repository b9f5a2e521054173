"""Files are there whole or not at all, whatever fails and when."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streamgd import atomic
from streamgd.atomic import make_directory, replacing
from streamgd.errors import DataError, OutputError, PathNotFound, StreamgdError


@pytest.fixture(params=["old", None], ids=["over an old file", "where there was none"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    if request.param is not None:
        path.write_text(request.param)
    return path


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_what_was_written_takes_the_name(target: Path) -> None:
    with replacing(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("new")
        before = contents(target.parent)
        before.pop(temporary.name)
        assert "new" not in before.values()
    assert contents(target.parent) == {"model": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_failure_inside_leaves_what_was(target: Path, error: type[BaseException]) -> None:
    before = contents(target.parent)
    with pytest.raises(error), replacing(target) as temporary:
        temporary.write_text("half")
        raise error
    assert contents(target.parent) == before


@pytest.mark.parametrize("call", ["open", "fsync", "close", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_what_was(target: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails where is in test_faults.py, this is what it looks like."""
    before, plain, calls = contents(target.parent), getattr(os, call), []

    def fail(*arguments: Any, **options: Any) -> None:
        if call == "close":
            plain(*arguments, **options)
        calls.append(arguments)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail)
        with pytest.raises(OutputError) as caught, replacing(target) as temporary:
            temporary.write_text("new")
    assert calls and contents(target.parent) == before
    told = caught.value
    assert (told.errno, told.strerror, told.filename) == (number, os.strerror(number), str(target))
    assert isinstance(told, OSError) and isinstance(told, StreamgdError) and told.exit_code == 1
    assert str(target) in str(told) and os.strerror(number) in str(told) and "is as it was" in str(told)
    assert ".tmp" not in str(told)


def test_an_error_of_the_block_is_typed(target: Path) -> None:
    before = contents(target.parent)
    with pytest.raises(OutputError, match="File too large") as caught, replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.EFBIG, "whatever the library says", str(temporary))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(target)
    with pytest.raises(OutputError, match="no number"), replacing(target):
        raise OSError("no number")
    for error in (DataError("bad row"), PathNotFound("no shard"), OutputError(5, "x", "another")):
        with pytest.raises(type(error)) as found, replacing(target):
            raise error
        assert found.value is error
    assert contents(target.parent) == before


def test_output_errors_survive_a_process_boundary() -> None:
    error = OutputError(28, "full", "/a/b")
    error.replaced = True
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno, again.filename, again.replaced) == (str(error), 28, "/a/b", True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_cleaning_up_hides_nothing(target: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        raise OSError(errno.EIO, "cannot close")

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "cannot remove")

    with monkeypatch.context() as patch, pytest.raises(error, match="first"), replacing(target):
        patch.setattr(atomic.os, "close", close)
        patch.setattr(atomic.os, "unlink", unlink)
        raise error("first")


def test_the_file_is_on_disk_before_its_name_and_the_directory_after(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(*names: object) -> None:
        done.append("name")
        replace(*names)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic.os, "fsync", note_fsync)
    monkeypatch.setattr(atomic.os, "replace", note_replace)
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert done == ["file", "name", "directory"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_any_new_file(target: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with replacing(target) as temporary:
            temporary.write_text("new")
        (target.parent / "plain").touch()
        assert os.umask(mask) == mask  # still as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    assert target.stat().st_mode == (target.parent / "plain").stat().st_mode


def test_directories_on_the_way_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "a" / "b" / "model") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a" / "b" / "model").read_text() == "new"


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
    assert contents(tmp_path) == {"model": "first"}


def test_the_umask_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for it changes it for a moment, for all threads of the process."""
    barrier = threading.Barrier(4)

    def write(number: int) -> int:
        barrier.wait()
        with replacing(tmp_path / str(number)) as temporary:
            temporary.write_text("new")
        return stat.S_IMODE((tmp_path / str(number)).stat().st_mode)

    def asked(_: int) -> int:
        raise AssertionError("it is asked for")

    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", asked)
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(write, range(4))) == {0o640}
    finally:
        monkeypatch.undo()
        os.umask(before)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 200 + "ü" * 27])
def test_names_may_be_as_long_as_a_directory_takes(tmp_path: Path, name: str) -> None:
    for text in ("old", "new"):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text(text)
        assert contents(tmp_path) == {name: text}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    for leads_to in ("elsewhere", "nowhere"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(leads_to)
        with pytest.raises(DataError), replacing(tmp_path / "link"):
            raise DataError
        assert os.readlink(tmp_path / "link") == leads_to
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert contents(tmp_path) == {"link": "new", "elsewhere": "mine"} and not (tmp_path / "link").is_symlink()


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "to").symlink_to("directory")
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}
    for name in before:
        with pytest.raises(OutputError, match="a directory, a device or the like"), replacing(tmp_path / name):
            raise AssertionError("it may not be written")
    assert {path.name: path.lstat() for path in tmp_path.iterdir()} == before
    with pytest.raises(OutputError), replacing("/dev/null"):
        raise AssertionError("it may not be written")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to("nothing")
    for path in ("file/model", "file/a/model", "nowhere/model"):
        with pytest.raises(OutputError), replacing(tmp_path / path):
            raise AssertionError("there is no place for it")
        with pytest.raises(OutputError):
            make_directory((tmp_path / path).parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nowhere"]


def test_directories_that_are_made_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a crash could take them away again, with the file."""
    flushed, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    make_directory(tmp_path / "a/b")
    assert flushed == [str(tmp_path), str(tmp_path / "a")]
    with replacing(tmp_path / "a/b/c/model") as temporary:
        flushed.clear()
    assert flushed == [str(temporary), str(tmp_path / "a/b/c")]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_filesystems_without_hard_links(target: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    def fail(_: object) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(atomic.os, "link", link)
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert contents(target.parent) == {"model": "new"}
    monkeypatch.setattr(atomic, "_flush_directory", fail)
    with pytest.raises(OutputError, match="may be gone after a crash") as caught, replacing(target) as temporary:
        temporary.write_text("newer")
    assert caught.value.replaced and contents(target.parent) == {"model": "newer"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES])
def test_directories_that_cannot_be_flushed(target: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *mode)

    monkeypatch.setattr(atomic.os, "open", refuse)
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert contents(target.parent) == {"model": "new"}
