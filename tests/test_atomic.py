"""Files are there whole or not at all, whatever fails and when."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from streamgd import atomic
from streamgd.atomic import replacing


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


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was(target: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(target.parent)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(OSError, match="No space"), replacing(target) as temporary:
        temporary.write_text("new")
    assert contents(target.parent) == before


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
