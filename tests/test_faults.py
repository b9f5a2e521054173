"""Disks that fail and are full, as `scripts/torturing/faults.py` makes them: a part of what it does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.torturing import faults, flips, injection
from scripts.torturing.injection import Fault, in_python
from scripts.torturing.outcome import Outcome
from streamgd import atomic, tensorfile
from streamgd.errors import ModelFileError
from streamgd.modelfile import load_model, save_model
from tests.test_modelfile import SMALL, content

SUBJECTS = ("model", "checkpoint", "predictions")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = injection.compiled(tmp_path_factory.mktemp("library"))
    if found is None:
        pytest.skip("there is no C compiler")
    return found


def subject(name: str, scratch: Path) -> faults.Subject:
    return next(some for some in faults.subjects(scratch) if some.name == name)


def check(outcome: Outcome, least: int) -> None:
    assert not outcome.failures, str(outcome)
    assert sum(outcome.cases.values()) >= least, str(outcome)


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_operation_of_python_that_fails_hurts_nothing(name: str, tmp_path: Path) -> None:
    outcome = faults.every_operation(subject(name, tmp_path), in_python, tmp_path)
    check(outcome, 60)
    assert len(outcome.cases) == 2


def test_an_operation_of_a_cache_that_fails_costs_time_only(tmp_path: Path) -> None:
    check(faults.every_operation_of_a_cache(in_python, tmp_path, [errno.EIO]), 20)


def test_operations_below_python_that_fail_hurt_nothing(library: Path, tmp_path: Path) -> None:
    outcome = faults.in_child("native", tmp_path, injection.preloaded(library))
    check(outcome, 250)
    assert len(outcome.cases) == 7
    # Arrow opens and writes what Python does not see.
    seen = faults.every_operation(subject("predictions", tmp_path), in_python, tmp_path, [errno.EIO])
    assert outcome.cases["predictions, over an old one"] > 2 * seen.cases["predictions, over an old one"]


def test_commands_tell_a_full_disk(library: Path, tmp_path: Path) -> None:
    check(faults.command_line(library, tmp_path, [Fault(4, errno.ENOSPC, partial=True)]), 2)


def test_files_that_may_not_be_long_hurt_nothing(tmp_path: Path) -> None:
    check(faults.in_child("short", tmp_path), 100)


def test_a_full_disk_hurts_nothing(tmp_path: Path) -> None:
    outcome = faults.in_child("full", tmp_path)
    if outcome.skipped:
        pytest.skip(outcome.skipped[0])
    check(outcome, 100)


def test_the_device_that_is_always_full_is_told(tmp_path: Path) -> None:
    check(faults.dev_full(tmp_path), 2)


def test_no_damaged_model_is_another_model(tmp_path: Path) -> None:
    save_model(SMALL, tmp_path / "m")
    expected = content(SMALL)
    outcome = flips.run(tmp_path / "m", load_model, lambda model: content(model) == expected, ModelFileError, (1, 0x20))
    check(outcome, 3 * (tmp_path / "m").stat().st_size)


@contextmanager
def in_place(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path):
        yield path


@pytest.mark.parametrize(
    ("module", "name", "flaw", "told"),
    [
        (tensorfile, "replacing", in_place, "is not as it was"),
        (atomic, "_undo", lambda *_: None, "is not as it was"),
        (atomic, "_keep", lambda target, _: os.path.lexists(target), "is not as it was"),
        (atomic, "_told", lambda error, path: error, "it ended with OSError"),
    ],
)
def test_these_tests_can_fail(module: Any, name: str, flaw: Any, told: str, tmp_path: Path, monkeypatch: Any) -> None:
    """What was safe is made unsafe in one place, and it is noticed."""
    monkeypatch.setattr(module, name, flaw)
    outcome = faults.every_operation(subject("model", tmp_path), in_python, tmp_path, [errno.EIO])
    assert any(told in failure for failure in outcome.failures), str(outcome)


def test_damage_that_goes_unnoticed_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    outcome = flips.run(tmp_path / "f", Path.read_bytes, lambda data: data == b"abc", OSError)
    assert len(outcome.failures) == 3 + 3 + 3 * len(flips.MASKS)
    assert (tmp_path / "f").read_bytes() == b"abc"
