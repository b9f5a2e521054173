"""What others may count on: public names, the version, which module imports what, and an exit code for each error."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TypeGuard

import pytest

import streamgd
from streamgd import errors

TOP = Path(__file__).parent.parent
PACKAGE = TOP / "streamgd"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAZY = ["numba", "pyarrow", "sklearn", "dask", "distributed", "pandas", "scipy", "safetensors", "numpy"]


def imports(path: Path) -> set[str]:
    """Full names of all modules that a module imports, wherever in it."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def test_the_public_names() -> None:
    assert streamgd.__all__ == ["ParquetStream", "SGDClassifier", "SGDRegressor", "SGDSearchCV", "load", "tune"]
    for name in streamgd.__all__:
        assert inspect.getdoc(getattr(streamgd, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = streamgd.nothing


def test_one_version() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert streamgd.__version__ == project["version"]


HELP = """
import sys
from streamgd.cli import main
sys.argv = ["streamgd", "--help"]
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize("code", ["import streamgd", HELP], ids=["import", "help"])
def test_names_and_help_import_nothing_heavy(code: str) -> None:
    code += f"\nimport sys, json; print(json.dumps([name for name in {LAZY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    found, where = roots(path), part(path)
    if where != "kernels":
        assert not found & {"numba", "llvmlite"}
    if where != "data" and path.name not in ("estimator_data.py", "frames.py", "predictions.py"):
        assert "pyarrow" not in found
    if where != "cluster":
        assert not found & {"dask", "distributed"}
    within = {name.removeprefix("streamgd.") for name in imports(path) if name.startswith("streamgd.")}
    layers = {name.split(".")[0] for name in within}
    if where == "kernels":
        assert layers <= {"kernels"}
    if where == "data":
        assert not layers & {"trainer", "job", "estimators", "cli", "cluster", "config", "modelfile", "progress"}
    if path.name == "model.py":
        assert not layers & {"data", "modelfile", "job"}
    if path.name not in ("cli.py", "search.py", "__init__.py", "__main__.py"):
        assert not layers & {"cli", "estimators"}
    if path.name not in (
        "cli.py",
        "train_command.py",
        "estimators.py",
        "estimator_base.py",
        "progress.py",
        "race.py",
        "__init__.py",
    ):
        assert "trainer" not in layers


ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_an_exit_code(kind: type[errors.StreamgdError]) -> None:
    assert issubclass(kind, errors.StreamgdError)
    assert inspect.getdoc(kind)
    expected = 2 if issubclass(kind, errors.ConfigError) else 3 if issubclass(kind, errors.DataError) else 1
    if kind is errors.Interrupted:
        expected = 4
    assert kind.exit_code == expected
    # Whoever catches the built-in error that fits also catches ours.
    if issubclass(kind, errors.ConfigError | errors.DataError):
        assert issubclass(kind, ValueError)


def test_each_error_is_raised_somewhere() -> None:
    source = "\n".join(path.read_text() for path in MODULES if path.name != "errors.py")
    bases = {base for kind in ERRORS for base in kind.__mro__[1:]}
    assert [kind.__name__ for kind in ERRORS if kind not in bases and kind.__name__ not in source] == []


def _let_go(function: ast.FunctionDef) -> list[str]:
    """Arrays that a function makes, and whose addresses it goes on to use where none of their names stands any more."""
    made: dict[str, int] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call | ast.Tuple):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for target, value in zip(targets, values, strict=False):
                if isinstance(target, ast.Name) and ast.unparse(value).startswith("np."):
                    made[target.id] = min(node.lineno, made.get(target.id, node.lineno))
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While)]
    kept = {ast.unparse(node.args[0]) for node in ast.walk(function) if _calls(node, "keep")}
    found = []
    for node in ast.walk(function):
        if _calls(node, "address_of"):
            name = ast.unparse(node.args[0]).split("[")[0]
            begins = [loop.lineno for loop in loops if loop.lineno <= node.lineno <= (loop.end_lineno or 0)]
            if name in made and name not in kept and not any(made[name] < begin for begin in begins):
                found.append(f"{function.name}: {name}")
    return found


def _calls(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def test_kernels_keep_the_arrays_whose_addresses_they_use():
    """Numba frees an array where its name stands last; another thread may then write where it was."""
    bad = "def f():\n    a, b = np.empty(3), 1\n    at = address_of(a[1])\n    for i in b:\n        g(at)\n"
    for end, expected in (("    keep(b)", ["f: a"]), ("    keep(a)", [])):
        (function,) = ast.parse(bad + end).body
        assert isinstance(function, ast.FunctionDef)
        assert _let_go(function) == expected
    for path in (PACKAGE / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert not _let_go(node), path.name


def test_kernels_take_addresses_as_signed_numbers():
    """Numba has ``array.ctypes.data`` unsigned, and makes a float64 of it where an offset is added."""
    paths = [path for path in (PACKAGE / "kernels").glob("*.py") if path.name not in ("warm.py", "intrinsics.py")]
    assert len(paths) > 20 and not [path.name for path in paths if ".ctypes.data" in path.read_text()]
