"""The examples of the README run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(TOP / "data")
    return tmp_path


def run(command: list[str], place: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_opens_with_the_two_commands() -> None:
    assert [line.split()[0] for line in blocks("sh")[0].splitlines()] == ["./scripts/demo", "./scripts/test"]
    assert all(os.access(TOP / script, os.X_OK) for script in ("scripts/demo", "scripts/test"))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_examples_run(number: int, place: Path) -> None:
    run([sys.executable, "-c", blocks("python")[number]], place)


def test_the_command_line_example_runs(place: Path) -> None:
    text = run(["bash", "-euc", blocks("sh")[1]], place)
    assert "log_loss" in text
    assert sorted(path.name for path in (place / "scores").iterdir()) == ["part-00.parquet", "part-01.parquet"]
    assert "distance" in text  # inspect shows features by name
