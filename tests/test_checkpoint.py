"""A run that goes on from a checkpoint ends with the bits of one that was never interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamgd import SGDClassifier, checkpointdir, tensorfile, trainer
from streamgd.checkpoint import Origin, Saved, begin
from streamgd.checkpointdir import CheckpointDirectory, PassLog, load_checkpoint
from streamgd.config import Config
from streamgd.data.seen import Seen
from streamgd.data.source import ParquetSource
from streamgd.data.table import TableSource
from streamgd.errors import CheckpointError, CheckpointInUse, CheckpointMismatch, ConfigError, Interrupted
from streamgd.job import Feed, Job, prepare
from streamgd.keeper import Keeper
from streamgd.kernels.drain import ROWS
from streamgd.state import Progress, Result, State, Story
from streamgd.trainer import train, validation_loss

from .conftest import Write, classification, regression

KEPT = Path("kept")


@dataclass
class Recorder:
    """A directory that keeps all checkpoints, in memory, as files would hold them."""

    kept: list[Saved] = field(default_factory=list)
    saved: Saved | None = None
    passes: PassLog | None = None
    newest_path: Path | None = None

    def save(self, header: dict[str, Any], arrays: dict[str, Any]) -> Path:
        copies = {name: array.copy() for name, array in arrays.items()}
        self.kept.append(Saved(KEPT, json.loads(json.dumps(header)), copies))
        return KEPT

    def close(self) -> None:
        pass


def keeper(directory: Any, rows: int | None = None) -> Keeper:
    return Keeper(directory, seconds=1e9, rows=rows)


def hashed(rows: int = 3000, seed: int = 0) -> pa.Table:
    """Two numbers, two categories, some rows without a target."""
    table = classification(rows, 2, seed)
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 40, rows)
    y = table["y"].to_numpy() ^ (codes % 3 == 0)
    words = pa.array([f"v{code}" for code in codes])
    some = pa.array(["a", "b", None, "d"]).take(pa.array(codes % 4))
    return (
        table.set_column(2, "y", pa.array(y, mask=rng.random(rows) < 0.01))
        .append_column("c", words)
        .append_column("d", some)
    )


def set_up(source: Any, config: Config, *, validation: Any = None, seen: Seen | None = None) -> tuple[Job, Feed]:
    return prepare(source, "y", config, validation=validation, seen=seen)


def run(source: Any, config: Config, kept: Any = None, rows: int | None = None, *, validation: Any = None) -> Result:
    job, feed = set_up(source, config, validation=validation)
    return train(job, feed, State.start(job), Story(), keeper=kept and keeper(kept, rows))


def go_on(saved: Saved, source: Any, config: Config, *, validation: Any = None) -> Result:
    saved = replace(saved, arrays={name: array.copy() for name, array in saved.arrays.items()})  # training changes them
    job, feed = set_up(source, config, validation=validation, seen=saved.seen())
    state, story = saved.restore(job, feed)
    return train(job, feed, state, story)


def told(result: Result) -> tuple[Any, ...]:
    """All that must not depend on interruptions."""
    return (
        result.model.sha256(),
        result.rows,
        result.epochs,
        result.steps,
        result.losses,
        result.validation_losses,
        result.skipped_rows,
    )


OPTIMIZERS = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "ftrl"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_at_every_mini_batch_gives_equal_weights(write: Write, optimizer: str) -> None:
    source = ParquetSource(write(hashed(1200), shards=2, row_group_rows=100), n_jobs=1)
    config = Config(optimizer=optimizer, epochs=2, batch_size=50, window_rows=400, seed=3, cache=None)
    kept = Recorder()
    whole = run(source, config, kept, rows=1)
    assert told(run(source, config)) == told(whole)  # writing checkpoints changes nothing
    assert len(kept.kept) >= 2 * 24
    assert len({tuple(saved.header["position"]) for saved in kept.kept}) == len(kept.kept)
    for saved in kept.kept[::3]:
        assert told(go_on(saved, source, config)) == told(whole)


@pytest.mark.parametrize(
    "config",
    [
        Config(loss="log_loss", penalty="elasticnet", alpha=1e-4, l1_ratio=0.3, optimizer="ftrl"),
        Config(average=False, learning_rate="cosine"),
        Config(learning_rate="optimal", optimizer="sgd", alpha=1e-3),
        Config(learning_rate="step", warmup_steps=7, optimizer="adam", clip_norm=1.0),
        Config(class_weight="balanced", missing_indicator=True, interactions=(("c", "x0"), ("c", "d")), polish=4),
        Config(batch_size=None, optimizer="sgd"),
        Config(batch_size=1),
        Config(batch_size=257),
        Config(shuffle=False),
        Config(partitions=3, polish=4),
        Config(standardize=False, fit_intercept=False, eta0=0.01),
    ],
    ids=lambda config: ",".join(f"{k}={v}" for k, v in vars(config).items() if v != getattr(Config(), k)),
)
@pytest.mark.parametrize("cache", ["auto", None])
def test_resume_of_every_kind_of_job(write: Write, config: Config, cache: str | None) -> None:
    source = ParquetSource(write(hashed(), shards=3, row_group_rows=170), n_jobs=2)
    window = None if not config.shuffle else 900
    config = replace(config, epochs=3, window_rows=window, seed=1, cache=cache)
    kept = Recorder()
    whole = run(source, config, kept, rows=400)
    assert len(kept.kept) >= 4
    for saved in kept.kept[:: max(1, len(kept.kept) // 5)]:
        for n_jobs in (1, 3):
            assert told(go_on(saved, source, replace(config, n_jobs=n_jobs))) == told(whole)


def test_resume_of_rows_that_fit_in_one_window() -> None:
    source = TableSource(hashed())
    config, kept = Config(epochs=3, batch_size=64), Recorder()
    whole = run(source, config, kept, rows=64)
    for saved in kept.kept[::9]:
        assert told(go_on(saved, source, config)) == told(whole)


def test_resume_keeps_the_state_of_early_stopping(write: Write) -> None:
    source = ParquetSource(write(hashed(), row_group_rows=170))
    validation = ParquetSource(write(hashed(900, seed=5), "validation"))
    config = Config(epochs=30, early_stopping=True, n_iter_no_change=2, batch_size=32, eta0=2.0, seed=2)
    kept = Recorder()
    whole = run(source, config, kept, validation=validation)
    assert whole.epochs < 30
    for saved in kept.kept:
        assert told(go_on(saved, source, config, validation=validation)) == told(whole)


def test_an_epoch_whose_rows_are_done_is_validated_after_resuming(write: Write, monkeypatch: Any) -> None:
    """What another thread keeps while the validation runs."""
    source = ParquetSource(write(hashed(), row_group_rows=170))
    validation = ParquetSource(write(hashed(900, seed=5), "validation"))
    config = Config(epochs=3, early_stopping=True, window_rows=700)
    for partitions in (1, 3):
        config, kept = replace(config, partitions=partitions), Recorder()
        whole = run(source, config, validation=validation)
        job, feed = set_up(source, config, validation=validation)
        ours = keeper(kept)
        with monkeypatch.context() as patch:

            def validate(*args: Any, ours: Keeper = ours) -> float:
                assert ours.rescue(1.0)
                ours._lock.release()
                return validation_loss(*args)

            patch.setattr(trainer, "validation_loss", validate)
            train(job, feed, State.start(job), Story(), keeper=ours)
        behind = [saved for saved in kept.kept if len(saved.arrays["losses"]) == saved.header["position"][0]]
        pending = [saved for saved in behind if saved.header["position"][1] > 0]
        assert len(pending) == 3
        for saved in kept.kept:
            assert told(go_on(saved, source, config, validation=validation)) == told(whole)


@pytest.mark.parametrize("polish", [False, True])
def test_passes_of_lbfgs_are_not_done_again(tmp_path: Path, write: Write, polish: bool) -> None:
    source = ParquetSource(write(hashed(), row_group_rows=170))
    config = Config(polish=12, epochs=2) if polish else Config(optimizer="lbfgs", epochs=12)
    whole = run(source, config)
    origin = Origin.of(config, "y", None, source)
    with keeper(CheckpointDirectory(tmp_path / "k", origin, resume=False)) as ours:
        job, feed = set_up(source, config)
        assert told(train(job, feed, State.start(job), Story(), keeper=ours)) == told(whole)
        files = sorted((tmp_path / "k").glob("pass-*"))
        assert len(files) == 12
    for left in (12, 7, 1, 0):
        for path in files[left:]:
            path.unlink(missing_ok=True)
        with keeper(CheckpointDirectory(tmp_path / "k", origin, resume=True)) as ours:
            saved = ours.directory.saved  # type: ignore[union-attr]
            assert saved is not None
            job, feed = set_up(source, config, seen=saved.seen())
            result = train(job, feed, *saved.restore(job, feed), keeper=ours)
        assert (told(result), result.objective) == (told(whole), whole.objective)
        assert result.gradient_norm == whole.gradient_norm


def test_softmax_and_regression_resume(write: Write) -> None:
    table = hashed()
    three = table.set_column(2, "y", pa.array(np.arange(3000) % 7 % 3))
    for data, config in ((three, Config()), (regression(3000), Config(loss="huber", optimizer="adam"))):
        source = TableSource(data, 170)
        config, kept = replace(config, epochs=2, window_rows=800, polish=3), Recorder()
        whole = run(source, config, kept, rows=700)
        for saved in kept.kept:
            assert told(go_on(saved, source, config)) == told(whole)


def directory(path: Path, config: Config, source: Any, *, resume: bool) -> CheckpointDirectory:
    return CheckpointDirectory(path, Origin.of(config, "y", None, source), resume=resume)


@pytest.fixture
def kept(tmp_path: Path, write: Write) -> tuple[Path, Config, ParquetSource, Result]:
    """A directory with the checkpoints of a job that was not finished."""
    source = ParquetSource(write(hashed(), shards=3, row_group_rows=170))
    config = Config(epochs=3, window_rows=900)
    with keeper(directory(tmp_path / "kept", config, source, resume=False), 300) as ours:
        job, feed = set_up(source, config)
        result = train(job, feed, State.start(job), Story(), keeper=ours)
    return tmp_path / "kept", config, source, result


def resumed(path: Path, config: Config, source: ParquetSource) -> Result:
    with keeper(directory(path, config, source, resume=True)) as ours:
        assert ours.directory is not None and ours.directory.saved is not None
        return go_on(ours.directory.saved, source, config)


def files(path: Path) -> list[Path]:
    return sorted(path.glob("checkpoint-*"))


def test_the_last_three_are_kept_and_any_of_them_does(kept: Any) -> None:
    path, config, source, result = kept
    assert len(files(path)) == 3
    while names := files(path):
        assert told(resumed(path, config, source)) == told(result)
        assert files(path) == names
        names[-1].unlink()


def test_of_damaged_ones_the_one_before_is_taken_and_a_remark_says_so(kept: Any) -> None:
    path, config, source, result = kept
    newest, before = files(path)[-1], files(path)[-2]
    newest.write_bytes(newest.read_bytes()[:-1])
    with directory(path, config, source, resume=True) as opened:
        assert opened.saved is not None and opened.saved.path == before
        assert len(opened.remarks) == 1 and newest.name in opened.remarks[0]
        assert opened.newest_path == before and not newest.exists()
    assert told(resumed(path, config, source)) == told(result)


def test_if_all_are_damaged_an_error_says_so_and_none_is_removed(kept: Any) -> None:
    path, config, source, _ = kept
    for name in files(path):
        name.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        directory(path, config, source, resume=True)
    assert len(files(path)) == 3


def test_another_configuration_is_refused_and_every_difference_named(kept: Any) -> None:
    path, config, source, _ = kept
    other = replace(config, alpha=0.1, epochs=4)
    with pytest.raises(
        CheckpointMismatch, match=r"alpha is 0\.1 and was None; epochs is 4 and was 3|epochs is 4 .*alpha"
    ):
        directory(path, other, source, resume=True)
    with pytest.raises(CheckpointMismatch, match="target is 'x0' and was 'y'"):
        CheckpointDirectory(path, Origin.of(config, "x0", None, source), resume=True)
    free = replace(config, n_jobs=1, cache=None, memory_limit=1 << 40)
    directory(path, free, source, resume=True).close()


def test_a_lower_memory_limit_that_makes_other_windows_is_refused(kept: Any) -> None:
    path, config, source, _ = kept
    with directory(path, config, source, resume=True) as opened:
        job, feed = set_up(source, config)
        lowered = replace(feed, memory=replace(feed.memory, window_rows=500))
        with pytest.raises(CheckpointMismatch, match="window_rows of 500, where it was 900"):
            opened.saved.restore(job, lowered)


@pytest.mark.parametrize("change", ["gone", "new", "longer", "rewritten", "renamed"])
def test_changed_shards_are_refused_by_name(kept: Any, change: str, tmp_path: Path) -> None:
    path, config, _, _ = kept
    data = tmp_path / "data"
    shard = data / "part-01.parquet"
    table = pq.read_table(shard)
    if change == "gone":
        shard.unlink()
    elif change == "new":
        pq.write_table(table, data / "part-09.parquet")
    elif change == "longer":
        pq.write_table(pa.concat_tables([table, table]), shard, row_group_size=170)
    elif change == "rewritten":
        values = table.set_column(0, "x0", pa.array(table["x0"].to_numpy() + 1.0))
        pq.write_table(values, shard, row_group_size=170)
    else:
        shard.rename(data / "part-1.parquet")
    words = {"gone": "is gone", "new": "part-09.parquet is new", "renamed": "part-1.parquet is new"}
    said = words.get(change, "part-01.parquet (has|was written anew)")
    with pytest.raises(CheckpointError, match=said):
        directory(path, config, ParquetSource(data), resume=True)


def test_a_touched_shard_is_the_same(kept: Any, tmp_path: Path) -> None:
    path, config, _, _ = kept
    (tmp_path / "data" / "part-01.parquet").touch()
    directory(path, config, ParquetSource(tmp_path / "data"), resume=True).close()


def test_a_job_that_was_not_finished_is_not_replaced(kept: Any) -> None:
    path, config, source, result = kept
    with pytest.raises(CheckpointMismatch, match="give --resume"):
        directory(path, config, source, resume=False)
    with keeper(directory(path, config, source, resume=True)) as ours:
        ours.finished(result.model)
    other = replace(config, seed=5)
    with directory(path, other, source, resume=False) as opened:
        assert opened.saved is None and opened.newest_path is None
    assert not files(path) and not (path / "finished.json").exists()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path, kept: Any) -> None:
    path, config, source, _ = kept
    code = (
        "import sys, os; from pathlib import Path; from streamgd.checkpointdir import _lock; "
        "_lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code.replace("_lock(Path", "held = _lock(Path"), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointInUse, match=f"process {other.pid}"):
            directory(path, config, source, resume=True)
    finally:
        other.kill()
        other.wait()
    directory(path, config, source, resume=True).close()


def test_leftovers_of_a_killed_process_are_swept(kept: Any) -> None:
    path, config, source, _ = kept
    leftover, foreign = path / ".checkpoint-000000009.safetensors.x1y2.tmp", path / "notes.txt"
    leftover.write_bytes(b"half")
    foreign.write_text("mine")
    directory(path, config, source, resume=True).close()
    assert not leftover.exists() and foreign.exists()


HARM = {
    "counters": lambda a: a["counters"].__setitem__(0, -1),
    "carried": lambda a: a["counters"].__setitem__(2, 1 << 40),
    "touched": lambda a: a.__setitem__("touched", np.array([1 << 40])),
    "touched list": lambda a: a["counters"].__setitem__(3, 2),
    "nan": lambda a: a["params"].__setitem__((0, 0), np.nan),
    "table": lambda a: a["table"].__setitem__((0, 0), np.inf),
    "shape": lambda a: a.__setitem__("slots", a["slots"][:1]),
    "type": lambda a: a.__setitem__("average", a["average"].astype("f4")),
    "missing": lambda a: a.pop("carry"),
    "failed": lambda a: a["failed"].__setitem__(0, 5),
    "losses": lambda a: a.__setitem__("losses", a["losses"].reshape(1, -1)),
}
LIES = {
    "position": lambda h: h.__setitem__("position", [99, 0, 0]),
    "window": lambda h: h.__setitem__("position", [1, 99, 0]),
    "rows": lambda h: h.__setitem__("position", [1, 0, 1 << 40]),
    "no position": lambda h: h.pop("position"),
    "text": lambda h: h.__setitem__("position", ["0", 0, 0]),
    "story": lambda h: h["story"].__setitem__("no_gain", -1),
    "surprise": lambda h: h["story"].__setitem__("surprise", 1),
    "over": lambda h: h["story"].__setitem__("over", 1),
    "snapshots": lambda h: h.__setitem__("snapshots", [1, 5]),
    "seconds": lambda h: h.__setitem__("seconds", "long"),
    "shape": lambda h: h.pop("shape"),
    "seen": lambda h: h.__setitem__("seen", {}),
    "scales": lambda h: h["seen"]["scales"]["mean"].append(1.0),
    "scales short": lambda h: [h["seen"]["scales"][name].pop() for name in ("mean", "scale", "magnitude", "missing")],
    "classes": lambda h: h["seen"]["labels"].__setitem__("classes", [1, 1]),
    "class type": lambda h: h["seen"]["labels"].__setitem__("class_type", "date"),
    "rows seen": lambda h: h["seen"]["labels"].__setitem__("rows", -1),
    "mean": lambda h: h["seen"]["labels"].__setitem__("mean", "0"),
}


@pytest.mark.parametrize("harm", [*HARM, *LIES])
def test_a_checkpoint_of_a_stranger_is_checked(kept: Any, harm: str) -> None:
    """Its hash is right, but what it holds would be read beyond an array, or give another model."""
    path, config, source, _ = kept
    newest = files(path)[-2]  # within an epoch
    header, arrays = tensorfile.read(newest, checkpointdir.KEY, "it", CheckpointError)
    if harm in HARM:
        HARM[harm](arrays)
    if harm in LIES:
        LIES[harm](header)
    tensorfile.write(newest, checkpointdir.KEY, header, arrays)
    with pytest.raises(CheckpointError, match=r"does not hold a state|numbers a row"):
        go_on(load_checkpoint(newest), source, config)


def test_a_keeper_that_is_asked_to_end_keeps_everything(tmp_path: Path, write: Write) -> None:
    source = ParquetSource(write(hashed(), shards=3, row_group_rows=170))
    config = Config(epochs=3, window_rows=900, batch_size=16)
    whole = run(source, config)
    path, ends = tmp_path / "kept", 0
    while True:
        with keeper(directory(path, config, source, resume=ends > 0), 150) as ours:
            assert ours.directory is not None
            job, feed = set_up(source, config)
            state, story = begin(job, feed, ours.directory.saved)
            rows = int(state.counters[ROWS]) + 500

            def ask(progress: Progress, rows: int = rows, ours: Keeper = ours) -> None:
                if progress.rows >= rows:
                    ours.asked.set()

            try:
                result = train(job, feed, state, story, keeper=ours, callback=ask)
            except Interrupted as error:
                assert "--resume" in str(error) and str(ours.directory.newest_path) in str(error)
                assert error.exit_code == 4
                ends += 1
                continue
        break
    assert ends >= 10
    assert told(result) == told(whole)


def test_an_estimator_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 3))
    y = (X[:, 0] + rng.normal(size=4000) > 0).astype(int)
    kept = tmp_path / "kept"
    whole = SGDClassifier(epochs=4).fit(X, y)
    first = SGDClassifier(epochs=4, checkpoint=kept).fit(X, y)
    again = SGDClassifier(epochs=4, checkpoint=kept, resume=True).fit(X, y)
    for one in (first, again):
        np.testing.assert_array_equal(one.coef_, whole.coef_)
    with pytest.raises(CheckpointError, match="the table was written anew"):
        SGDClassifier(epochs=4, checkpoint=kept, resume=True).fit(X + 1, y)
    with pytest.raises(ConfigError, match="resume"):
        SGDClassifier(resume=True).fit(X, y)
    with pytest.raises(ConfigError, match="checkpoint_rows"):
        SGDClassifier(checkpoint_rows=5).fit(X, y)
    with pytest.raises(ConfigError, match="partial_fit"):
        SGDClassifier(checkpoint=kept).partial_fit(X, y, classes=[0, 1])
