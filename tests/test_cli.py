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
import typer
from typer.testing import CliRunner

from streamgd.cli import app
from streamgd.config import TUNABLE

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
    # Generous, because the process of the tests has compiled every kernel; `test_memory_limit` holds a job to its own.
    found = as_json(*command, tmp_path / "m.safetensors", "--memory-limit", "3GB", "--seed", 5)
    assert found.keys() >= TRAIN_KEYS
    assert found["rows"] == 2 * 261_651 and found["epochs"] == 2 and found["model"] == str(tmp_path / "m.safetensors")
    assert 0.5 < found["train_loss"] < 0.55 and found["skipped_rows"] == 0
    assert found["memory"]["memory_limit"] == 3 * 10**9 and found["peak_rss_bytes"] > 10**8
    again = as_json(*command, tmp_path / "n.safetensors", "--seed", 5, "--threads", 1)
    assert again["weights_sha256"] == found["weights_sha256"]
    assert as_json(*command, tmp_path / "n.safetensors")["weights_sha256"] != found["weights_sha256"]
    text = run(*command, tmp_path / "m.safetensors")
    assert re.search(r"loss +0\.5[12]\d+ training", text.stdout) and "rows/s" in text.stderr


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
    assert process.returncode == 0 and b"training" in out
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


def test_who_reads_the_log_may_go(write: Write, tmp_path: Path) -> None:
    """A model is worth more than lines that nobody reads."""
    path, model = write(classification(100)), tmp_path / "m"
    command = [sys.executable, "-m", "streamgd", "train", path, "--target", "y", "--log-json", "--model", model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(timeout=120) == 0
    assert model.exists()


def test_a_model_that_could_not_be_written_is_refused_before_training(write: Write) -> None:
    train = "train", write(classification(100)), "--target", "y", "--model"
    assert "no file can be made in /proc" in failure(*train, "/proc/m", code=2)


def test_only_the_first_epoch_has_a_progressive_loss(write: Write) -> None:
    train = "train", write(classification(100)), "--target", "y", "--epochs"
    assert "progressive, log_loss" in run(*train, 1).stdout
    assert "training, log_loss" in run(*train, 2).stdout


def test_what_is_neither_shards_nor_a_model_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "neither a Parquet file nor a model" in failure("inspect", tmp_path / "x.csv", code=3)
    assert "begins with b'a,b" in failure("train", tmp_path / "x.csv", "--target", "a", code=3)


def test_a_misspelled_key_of_a_job_file_is_corrected(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('targt = "y"\n')
    done = run("train", FLIGHTS / "train", "--config", tmp_path / "job.toml", code=2)
    assert "Did you mean target?" in re.sub(r"[│\s]+", " ", done.stderr)


TUNE = ("--alpha", "1e-2,1e-4", "--eta0", "0.1, 0.3,10")


@pytest.mark.parametrize("rows", [classification, regression])
def test_tune_tells_how_all_models_fared(rows: Any, write: Write, tmp_path: Path) -> None:
    path = write(rows(2000), shards=2, row_group_rows=100)
    found = as_json("tune", path, "--target", "y", *TUNE, "--epochs", 2, "--model", tmp_path / "m")
    assert found.keys() >= TRAIN_KEYS | {"models", "best", "validation_loss"}
    points = [(alpha, eta0) for alpha in (1e-4, 1e-2) for eta0 in (0.1, 0.3, 10.0)]
    models = found["models"]
    assert sorted((model["alpha"], model["eta0"]) for model in models) == points
    assert found["best"] == {name: models[0][name] for name in ("alpha", "eta0")}
    assert [model["dropped"] for model in models] == [False, False, True, True, True, True]
    assert [model["rows"] == 4000 for model in models] == [not model["dropped"] for model in models]
    assert found["train_loss"] == models[0]["progressive_loss"] == min(m["progressive_loss"] for m in models[:2])
    assert not any(model["diverged"] or model["validation_loss"] is not None for model in models)
    alone = [f"--{name}={value}" for name, value in found["best"].items()]
    trained = as_json("train", path, "--target", "y", *alone, "--epochs", 2, "--model", tmp_path / "n")
    for name in ("weights_sha256", "rows", "steps", "epochs", "window_rows", "task", "loss"):
        assert found[name] == trained[name], name
    assert found["model"] == str(tmp_path / "m")
    scores = [as_json("evaluate", tmp_path / name, path) for name in "mn"]
    measure = "log_loss" if rows is classification else "rmse"
    assert scores[0][measure] == scores[1][measure] and scores[0]["rows"] == 2000
    told = as_json("inspect", tmp_path / "m")
    assert told["weights_sha256"] == found["weights_sha256"] and told["training"]["models"] == models
    assert told["training"]["config"].items() >= found["best"].items()


@pytest.mark.parametrize(
    ("name", "values", "more"),
    [
        ("alpha", "0.5,0.01", ""),
        ("eta0", "0.001,0.1", ""),
        ("penalty", "l1,none,l2", "--optimizer adagrad"),
        ("l1_ratio", "0.9,0.1", "--optimizer adagrad --penalty elasticnet"),
        ("power_t", "0.9,0.1", "--learning-rate invscaling"),
        ("decay", "0.1,0.9", "--learning-rate step --epochs 2"),
        ("warmup_steps", "500,0", "--learning-rate constant"),
        ("momentum", "0.99,0.5", "--optimizer momentum"),
        ("beta_1", "0.99,0.5", "--optimizer adam"),
        ("beta_2", "0.9,0.999", "--optimizer adam"),
        ("clip_norm", "0.001,1", ""),
    ],
)
def test_each_option_that_takes_a_list_makes_models(name: str, values: str, more: str, write: Write) -> None:
    command = write(classification(500)), "--target", "y", *more.split()
    option = f"--{name.replace('_', '-')}"
    found = as_json("tune", *command, option, values)
    assert sorted(str(model[name]) for model in found["models"]) == sorted(
        value if name in ("penalty", "warmup_steps") else str(float(value)) for value in values.split(",")
    )
    hashes = [as_json("train", *command, option, value)["weights_sha256"] for value in values.split(",")]
    best = as_json("train", *command, option, found["best"][name])
    assert found["weights_sha256"] == best["weights_sha256"]
    assert len(set(hashes)) == len(hashes) and found["weights_sha256"] in hashes


def test_lists_are_of_all_that_models_may_differ_in() -> None:
    listed = {param.name for param in typer.main.get_command(app).commands["tune"].params if param.metavar == "A,B,..."}
    assert listed == set(TUNABLE)


def test_validation_data_decide_which_model_is_best(write: Write) -> None:
    table = classification(1000)
    turned = table.set_column(3, "y", pa.array(1 - table["y"].to_numpy()))
    command = ("tune", write(table), "--target", "y", "--alpha", "1e-4,1,0.1", "--no-halving")
    found = as_json(*command, "--validation", write(turned, "turned"))
    assert [model["alpha"] for model in found["models"]] == [1.0, 0.1, 1e-4]
    losses = [model["validation_loss"] for model in found["models"]]
    assert losses == sorted(losses) and found["validation_loss"] == losses[0]
    without = as_json(*command)
    assert [model["alpha"] for model in without["models"]] == [1e-4, 0.1, 1.0] and without["validation_loss"] is None
    assert not any(model["dropped"] for model in without["models"])


def test_tune_draws_a_table(write: Write) -> None:
    path = write(regression(600))
    sgd = ("--optimizer", "sgd", "--learning-rate", "constant")
    done = run("tune", path, "--target", "y", *sgd, "--eta0", "1e20,0.01,0.001,0.003,1e-9", "--warmup-steps", "0")
    head, *rows = [line.split() for line in done.stdout.split("\n\n")[0].splitlines()]
    assert head == ["eta0", "warmup_steps", "progressive", "validation", "rows"]
    assert [row[:2] for row in rows[:2]] == [["0.01", "0"], ["0.003", "0"]] and all(len(row) == 4 for row in rows[:2])
    assert [row[-1] for row in rows[2:]] == ["behind", "behind", "diverged"] and rows[-1][0] == "1e+20"
    assert all(row[4] == "dropped," and float(row[5]) > 0 for row in rows[2:4])
    assert re.search(r"best +eta0 0.01, warmup_steps 0\n", done.stdout) and "not kept" in done.stdout
    assert "5 models side by side on 600 rows" in done.stderr and "no --model" in done.stderr
    assert (
        f"weights     {as_json('train', path, '--target', 'y', *sgd, '--eta0', 0.01)['weights_sha256']}" in done.stdout
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "nothing to compare.*--alpha"),
        (["--epochs", 3], "nothing to compare"),
        (["--alpha", "1e-3,a"], r"--alpha is '1e-3,a'; expected numbers"),
        (["--alpha", ","], r"--alpha is ','; expected numbers"),
        (["--alpha", ""], r"--alpha is ''; expected numbers"),
        (["--alpha", "0.1", "--eta0", ""], r"--eta0 is ''; expected numbers"),
        (["--warmup-steps", "1,1.5"], r"--warmup-steps is '1,1.5'; expected whole numbers"),
        (["--penalty", " "], "--penalty is ' '; expected words"),
        (["--penalty", "l2,best"], "penalty is 'best'"),
        (["--alpha", "0.1,-1"], "alpha is -1.0"),
        (["--alpha", "nan"], "alpha is nan"),
        (["--l1-ratio", "0.1,0.2"], "l1_ratio does nothing with penalty='l2'"),
        (["--penalty", "l2,none", "--alpha", "0.1"], "alpha does nothing with penalty='none'"),
        (["--momentum", "0.1,0.2"], "momentum does nothing"),
        (["--penalty", "l2,l1"], "different optimizers.*name one"),
        (["--alpha", "1,2", "--optimizer", "lbfgs"], "lbfgs"),
        (["--alpha", "1,2", "--batch-size", "all"], "give validation data"),
        (["--alpha", "1,2", "--model", "/"], "is a directory"),
    ],
)
def test_wrong_lists_are_told(options: list[Any], word: str, write: Write) -> None:
    assert re.search(word, failure("tune", write(classification(100)), "--target", "y", *options, code=2))


def test_tune_fails_as_train_does(write: Write, tmp_path: Path) -> None:
    path = write(regression(300))
    assert "nowhere" in failure("tune", tmp_path / "nowhere", "--target", "y", *TUNE, code=3)
    assert "'z'" in failure("tune", path, "--target", "z", *TUNE, code=3)
    diverging = ("--optimizer", "sgd", "--learning-rate", "constant", "--eta0", "1e20,1e21", "--model", tmp_path / "m")
    assert "eta0" in failure("tune", path, "--target", "y", *diverging, code=1)
    assert not (tmp_path / "m").exists()
    run("tune", path, "--target", "y", "--alpha", code=2)


def test_a_config_file_holds_lists(tmp_path: Path, write: Write) -> None:
    path = write(classification(300))
    config = tmp_path / "grid.toml"
    config.write_text(
        f'shards = ["{path}"]\ntarget = "y"\nepochs = 1\nalpha = [1e-4, 1e-2]\neta0 = 0.3\nhalving = false\n'
        'optimizer = "adagrad"\npenalty = ["l2", "l1"]\nwarmup-steps = [0, 5]\n'
    )
    found = as_json("tune", "--config", config)
    points = [(model["alpha"], model["penalty"], model["warmup_steps"], model["eta0"]) for model in found["models"]]
    assert sorted(points) == [(a, p, w, 0.3) for a in (1e-4, 1e-2) for p in ("l1", "l2") for w in (0, 5)]
    assert not any(model["dropped"] for model in found["models"]) and found["epochs"] == 1
    assert len(as_json("tune", "--config", config, "--alpha", "0.1")["models"]) == 4
    config.write_text("alphas = [1, 2]\n")
    assert "alphas" in run("tune", path, "--target", "y", "--config", config, code=2).stderr


def test_lines_for_monitors_are_json(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    command = [
        "train",
        FLIGHTS / "train",
        "--target",
        "late",
        "--epochs",
        2,
        "--checkpoint",
        kept,
        "--log-json",
        "--json",
    ]
    done = CliRunner().invoke(app, [str(argument) for argument in command])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(set(line) >= {"time", "event", "message"} for line in lines)
    events = [line["event"] for line in lines]
    assert [events.count(name) for name in ("start", "progress", "checkpoint", "end")] == [1, 2, 3, 1]
    progress = [line for line in lines if line["event"] == "progress"]
    result = json.loads(done.stdout)
    assert [line["epoch"] for line in progress] == [1, 2]
    assert progress[-1]["rows"] == progress[-1]["total_rows"] == result["rows"]
    assert next(line for line in lines if line["event"] == "end")["weights_sha256"] == result["weights_sha256"]
    failed = CliRunner().invoke(app, ["train", "nowhere", "--target", "late", "--log-json"])
    error = json.loads(failed.stderr.splitlines()[-1])
    assert (error["event"], error["error"], error["exit_code"]) == ("error", "PathNotFound", 3)
    again = CliRunner().invoke(app, ["train", "nowhere", "--target", "late"])
    assert again.stderr.splitlines()[-1].startswith("error: ")


def test_a_checkpoint_is_inspected_by_its_name_or_that_of_its_directory(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    result = as_json("train", FLIGHTS / "train", "--target", "late", "--epochs", 2, "--checkpoint", kept)
    newest = sorted(kept.glob("checkpoint-*"))[-1]
    for path in (kept, newest):
        found = as_json("inspect", path)
        assert found["kind"] == "checkpoint" and found["checkpoint"] == str(newest)
        assert (found["rows"], found["steps"], found["epochs_done"]) == (result["rows"], result["steps"], 2)
        assert found["losses"] == result["losses"] and found["config"]["epochs"] == 2
    assert "epochs=2" in CliRunner().invoke(app, ["inspect", str(kept)]).output
    newest.write_bytes(newest.read_bytes()[:-1])
    assert as_json("inspect", kept)["checkpoint"] != str(newest)
    assert as_json("inspect", newest, code=3)["error"] == "CheckpointError"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resume"], "give checkpoint"),
        (["--checkpoint-seconds", "5"], "does nothing without checkpoint"),
        (["--checkpoint", "kept", "--checkpoint-rows", "0"], "expected a number above 0"),
    ],
)
def test_options_of_checkpoints_that_cannot_be(options: list[str], said: str) -> None:
    found = as_json("train", FLIGHTS / "train", "--target", "late", *options, code=2)
    assert said in found["message"]


def test_resuming_tells_from_where(tmp_path: Path) -> None:
    kept, train = tmp_path / "kept", ("train", FLIGHTS / "train", "--target", "late", "--epochs", 2)
    first = as_json(*train, "--checkpoint", kept, "--resume")
    assert first["resumed_from"] is None and first["checkpoint"] == str(kept)
    again = as_json(*train, "--checkpoint", kept, "--resume")
    assert again["resumed_from"].startswith(str(kept))
    for name in ("weights_sha256", "rows", "steps", "losses", "epochs"):
        assert again[name] == first[name]
    other = as_json(*train, "--checkpoint", kept, "--resume", "--alpha", "0.5", code=2)
    assert other["error"] == "CheckpointMismatch" and "alpha is 0.5 and was None" in other["message"]
