"""The command line: JSON, exit codes, messages, displays, and what it does not import."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from streamgd.cli import app

from .conftest import FLIGHTS, Write, classification, regression

DROP = "month,day"
TRAIN_KEYS = {
    *("rows", "epochs", "steps", "seconds", "rows_per_second", "train_loss", "peak_rss_bytes", "weights_sha256"),
    *("skipped_rows", "window_rows", "model"),
}


def run(*arguments: Any, code: int = 0) -> Any:
    """Run a command in this process; its JSON, or its text."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def as_json(*arguments: Any, code: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json", code=code)
    assert len(done.stdout.strip().splitlines()) == 1
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def failure(*arguments: Any, code: int) -> str:
    """Message of a command that fails, the same in text and in JSON."""
    told = run(*arguments, code=code).stderr
    found = as_json(*arguments, code=code)
    assert found["exit_code"] == code and found["error"]
    assert f"error: {found['message']}" in told
    return str(found["message"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "late.safetensors"
    as_json("train", FLIGHTS / "train", "--target", "late", "--drop", DROP, "--epochs", 1, "--model", path)
    return path


def test_train_tells_what_it_did(tmp_path: Path) -> None:
    command = ["train", FLIGHTS / "train", "--target", "late", "--drop", DROP, "--epochs", 2, "--model"]
    found = as_json(*command, tmp_path / "m.safetensors", "--memory-limit", "1GB", "--seed", 5)
    assert found.keys() >= TRAIN_KEYS
    assert found["rows"] == 2 * 261_651 and found["epochs"] == 2 and found["model"] == str(tmp_path / "m.safetensors")
    assert 0.5 < found["train_loss"] < 0.55 and found["skipped_rows"] == 0
    assert found["peak_rss_bytes"] < 10**9 or "pytest" in sys.modules  # this process has imported more
    again = as_json(*command, tmp_path / "n.safetensors", "--seed", 5, "--threads", 1)
    assert again["weights_sha256"] == found["weights_sha256"]
    assert as_json(*command, tmp_path / "n.safetensors")["weights_sha256"] != found["weights_sha256"]
    text = run(*command, tmp_path / "m.safetensors")
    assert re.search(r"loss +0\.5[12]\d+ progressive", text.stdout) and "rows/s" in text.stderr


def test_evaluate_and_predict(model: Path, tmp_path: Path) -> None:
    found = as_json("evaluate", model, FLIGHTS / "test")
    assert found["rows"] == 65_695 and 0.52 < found["log_loss"] < 0.53
    assert 0.64 < found["roc_auc"] < 0.66 and 0.7 < found["accuracy"] < 0.8 and found["roc_auc_error"] < 1e-4
    assert "roc_auc" in run("evaluate", model, FLIGHTS / "test").stdout
    told = as_json("predict", model, FLIGHTS / "test", "--out", tmp_path / "out", "--keep", "hour,flight,late")
    assert told["rows"] == 65_695 and told["shards"] == 2
    for shard in sorted((FLIGHTS / "test").iterdir()):
        scores, rows = pq.read_table(tmp_path / "out" / shard.name), pq.read_table(shard)
        assert scores.column_names == ["hour", "flight", "late", "prediction", "probability"]
        assert scores.select(["hour", "flight", "late"]).equals(rows.select(["hour", "flight", "late"]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["part-00.parquet", "part-01.parquet"]


def test_a_regression(write: Write, tmp_path: Path) -> None:
    path = write(regression(2000), row_group_rows=500)
    as_json("train", path, "--target", "y", "--model", tmp_path / "m")
    found = as_json("evaluate", tmp_path / "m", path)
    assert found.keys() >= {"rows", "rmse", "mae", "r2"} and found["r2"] > 0.9
    as_json("predict", tmp_path / "m", path, "--out", tmp_path / "out")
    assert pq.read_table(tmp_path / "out").column_names == ["prediction"]
    assert as_json("train", path, "--target", "y", "--task", "regression")["model"] is None
    assert "classes" in failure("train", path, "--target", "y", "--task", "classification", code=3)


def test_inspect(model: Path, tmp_path: Path) -> None:
    shards = as_json("inspect", FLIGHTS / "train", "--memory-limit", "1GB")
    assert shards["rows"] == 261_651 and shards["row_groups"] == 32 and shards["memory"]["memory_limit"] == 10**9
    assert {"name": "distance", "type": "int16", "use": "number"} in shards["columns"]
    strings = as_json("inspect", shard(tmp_path / "s.parquet", s=["a", "b"], x=[1, 2], d=[timedelta(1), None]))
    uses = {column["name"]: column["use"] for column in strings["columns"]}
    assert uses == {"s": "category", "x": "number", "d": "not usable"}
    text = run("inspect", FLIGHTS / "train").stdout
    assert "261,651" in text and "distance" in text and "windows" in text
    found = as_json("inspect", model, "--top", 3)
    assert len(found["largest"]) == 3 and found["features"] == 11 and found["target"] == "late"
    assert found["training"]["epochs"] == 1
    sizes = [abs(row["standardised"]) for row in found["largest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert found["largest"][0]["feature"] in run("inspect", model).stdout
    assert found["largest"][0]["feature"].startswith("#")
    named = as_json("inspect", model, FLIGHTS / "test", "--top", 30)
    assert not any(row["feature"].startswith("#") for row in named["largest"])
    assert {"hour", "carrier=B6"} <= {row["feature"] for row in named["largest"]}
    text = run("inspect", model, FLIGHTS / "test").stdout
    assert "origin=" in text or "dest=" in text or "carrier=" in text


def shard(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_the_optimum_and_a_polish_are_told(write: Write) -> None:
    path = write(classification(1000))
    best = as_json("train", path, "--target", "y", "--optimizer", "lbfgs")
    assert best["gradient_norm"] < 1e-7 and best["polish_passes"] == 0 and best["epochs"] > 3
    assert "progressive" not in run("train", path, "--target", "y", "--optimizer", "lbfgs").stdout
    few = as_json("train", path, "--target", "y", "--epochs", 2)
    assert few["epochs"] == 2 and few["rows"] == 2000 and few["polish_passes"] > 1
    assert few["objective"] == pytest.approx(best["objective"], rel=1e-9)
    assert "passes of L-BFGS" in run("train", path, "--target", "y").stdout
    assert as_json("train", path, "--target", "y", "--polish", 0)["gradient_norm"] is None


def test_bad_data_are_told_apart(tmp_path: Path) -> None:
    x = [1.0, 2.0, 3.0]
    train = ("train", "--target", "y")
    assert "no-such-place" in failure("train", tmp_path / "no-such-place", "--target", "y", code=3)
    (tmp_path / "empty").mkdir()
    assert ".parquet" in failure("train", tmp_path / "empty", "--target", "y", code=3)
    for name, columns, words in (
        ("rows", {"x": pa.array([], pa.float64()), "y": pa.array([], pa.int8())}, ["no rows"]),
        ("target", {"x": x, "z": x}, ["target", "'y'", "x, z"]),
        ("null", {"x": x, "y": pa.nulls(3, pa.int8())}, ["null", "3 rows"]),
        ("single", {"x": x, "y": [1, 1, 1]}, ["single class"]),
        ("nan", {"x": x, "y": [1.0, float("nan"), 2.0]}, ["nan.parquet", "row group 0", "must be finite"]),
        ("infinite", {"x": x, "y": [1.0, float("inf"), 2.0]}, ["infinite.parquet", "inf"]),
        ("feature", {"x": [1.0, np.inf, 2.0], "y": [0, 1, 0]}, ["feature.parquet", "'x'", "--drop x"]),
        ("spans", {"x": x, "s": [timedelta(1)] * 3, "y": [0, 1, 0]}, ["s (duration", "--drop s"]),
    ):
        message = failure(*train, shard(tmp_path / f"{name}.parquet", **columns), code=3)
        assert all(word in message for word in words), message
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "broken.parquet" in failure(*train, tmp_path / "broken.parquet", code=3)
    both = tmp_path / "both"
    both.mkdir()
    shard(both / "a.parquet", x=x, y=[0, 1, 0])
    shard(both / "b.parquet", x=["p", "q", "r"], y=[0, 1, 0])
    message = failure(*train, both, code=3)
    assert all(word in message for word in ("b.parquet", "x", "string", "double")), message


def test_a_bad_model_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"no model")
    assert "not a safetensors file" in failure("evaluate", tmp_path / "m.safetensors", FLIGHTS / "test", code=3)
    assert "cannot be read" in failure("predict", tmp_path / "none", FLIGHTS / "test", "--out", tmp_path, code=3)


def test_wrong_arguments(tmp_path: Path, write: Write) -> None:
    path = write(classification(100))
    run("train", path, "--target", "y", "--no-such-option", code=2)
    run("train", path, code=2)
    assert "adagrad" in failure("train", path, "--target", "y", "--optimizer", "best", code=2)
    assert "momentum does nothing" in failure("train", path, "--target", "y", "--momentum", 0.5, code=2)
    assert "a lot" in failure("train", path, "--target", "y", "--memory-limit", "a lot", code=2)
    small = as_json("train", path, "--target", "y", "--memory-limit", "100MB", code=2)
    assert small["error"] == "MemoryLimitError" and re.search(
        r"at least \d.*Give --memory-limit \d+MB", small["message"]
    )
    assert "'some'" in failure("train", path, "--target", "y", "--batch-size", "some", code=2)
    assert "task" in failure("train", path, "--target", "y", "--task", "ranking", code=2)
    assert "'all'" in failure("train", path, "--target", "y", "--batch-size", "x", code=2)
    # Before training, not after.
    assert "is a directory" in failure("train", path, "--target", "y", "--model", tmp_path, code=2)


def test_a_config_file_gives_defaults(tmp_path: Path, write: Write) -> None:
    path = write(classification(300))
    config = tmp_path / "job.toml"
    config.write_text(f'shards = ["{path}"]\ntarget = "y"\nepochs = 3\nbatch-size = "16"\ndrop = ["x2"]\n')
    found = as_json("train", "--config", config)
    assert (found["epochs"], found["batch_size"], found["features"]) == (3, 16, 2)
    assert as_json("train", "--config", config, "--epochs", 1)["epochs"] == 1
    config.write_text(f'shards = ["{path}"]\ntarget = "y"\ndrop = "x1,x2"\njson = true\nintercept = false\n')
    assert json.loads(run("train", "--config", config).stdout)["features"] == 1
    config.write_text("epoch = 3\n")
    assert "epoch" in run("train", path, "--target", "y", "--config", config, code=2).stderr
    config.write_text("epochs = \n")
    assert "TOML" in run("train", path, "--target", "y", "--config", config, code=2).stderr


def test_null_targets_are_told(write: Write) -> None:
    table = classification(100)
    holes = pa.array([None if i % 10 == 0 else y for i, y in enumerate(table["y"].to_pylist())], pa.int8())
    done = run("train", write(table.set_column(3, "y", holes)), "--target", "y", "--json")
    assert json.loads(done.stdout)["skipped_rows"] == 10
    assert "10 rows have no target" in done.stderr


def test_validation_stops_early(write: Write) -> None:
    path = write(classification(2000), row_group_rows=100)
    found = as_json("train", path, "--target", "y", "--epochs", 40, "--validation", path)
    assert found["epochs"] == len(found["validation_losses"]) < 40
    assert as_json("train", path, "--target", "y", "--epochs", 40, "--early-stopping")["epochs"] < 40


def test_a_terminal_gets_a_live_display(tmp_path: Path) -> None:
    """Rates, loss, epoch and the division of time are drawn; standard output is left for the result."""
    command = [sys.executable, "-m", "streamgd", "train", str(FLIGHTS / "train"), "--target", "late", "--drop", DROP]
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*command, "--epochs", "3"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(slave)
        seen, deadline = b"", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen += os.read(master, 65_536)
                except OSError:
                    break
        out, _ = process.communicate(timeout=30)
    os.close(master)
    assert process.returncode == 0 and b"progressive" in out
    for word in (b"epoch", b"rows/s", b"MB/s", b"left", b"reading", b"computing", b"\x1b["):
        assert word in seen, seen[-2000:]


@pytest.mark.parametrize("command", [["-m", "streamgd", "--help"], ["-c", "import streamgd"]])
def test_help_and_import_load_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"numpy", "numba", "pyarrow", "sklearn", "dask", "distributed", "pandas", "scipy"}


def test_a_model_never_replaces_something_else(write: Write, tmp_path: Path) -> None:
    path = write(classification(200))
    shard_path = path / "part-00.parquet"
    before = shard_path.read_bytes()
    command = ("train", path, "--target", "y", "--epochs", 1, "--model")
    assert "no model file" in failure(*command, shard_path, code=2)
    assert shard_path.read_bytes() == before
    assert "no directory" in failure(*command, tmp_path / "nowhere" / "m", code=2)
    assert "is a directory" in failure(*command, tmp_path, code=2)
    as_json(*command, tmp_path / "m")
    as_json(*command, tmp_path / "m")  # a model may be replaced
    assert "a file" in failure("predict", tmp_path / "m", path, "--out", shard_path, code=2)
    assert "leave it out of drop" in failure("train", path, "--target", "y", "--drop", "y", code=2)
    assert run("--version").stdout.startswith("streamgd ")


def test_lines_in_a_pipe_are_few(write: Write) -> None:
    done = run("train", write(classification(100)), "--target", "y", "--epochs", 200)
    assert len([line for line in done.stderr.splitlines() if line.startswith("epoch")]) <= 5
