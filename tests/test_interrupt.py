"""Signals to a real process: wherever it is, it keeps what it learned, says how to go on, and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import TOP, Write, classification

#: Before the command runs: the Nth row group of training, which Arrow reads, takes for ever, deep in a system call that
#: nobody can end.
BLOCKED = """
import ctypes, sys, time
from streamgd.data.source import ParquetSource
from streamgd import keeper
batches, opened = ParquetSource._batches, []
def block(self, *args):
    opened.append(args)
    if any(thread.name == "streamgd-signals" for thread in __import__("threading").enumerate()) and TRAINING:
        if len(opened) > {after}:
            print("blocked", file=sys.stderr, flush=True)
            ctypes.CDLL(None).sleep(1000)
    yield from batches(self, *args)
ParquetSource._batches, ParquetSource.raw = block, lambda *args: None
TRAINING = []
watching = keeper.Keeper.watching
def watch(self, *args):
    TRAINING.append(1); opened.clear()
    return watching(self, *args)
keeper.Keeper.watching = watch
"""
RUN = "\nfrom streamgd.__main__ import main\nmain()\n"
SECONDS = 120


@pytest.fixture
def data(write: Write) -> Path:
    return write(classification(30_000), shards=3, row_group_rows=1000)


def start(code: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code + RUN, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell may have ignored
        **more,
    )


def arguments(data: Path, kept: Path | None, *more: object) -> list[object]:
    train = ["train", data, "--target", "y", "--json", "--epochs", 3, "--window-rows", 4000, "--cache", "none"]
    return [*train, *(["--checkpoint", kept, *more] if kept is not None else more)]


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process says until it has said something."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"it never said {text!r}")


def ended(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, json.loads(out) if out.strip() else None, err


@pytest.mark.parametrize("after", [0, 17])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_reader_that_is_blocked_does_not_keep_a_process_from_ending(
    data: Path, tmp_path: Path, after: int, number: signal.Signals
) -> None:
    kept = tmp_path / "kept"
    code, whole, _ = ended(start("", *arguments(data, tmp_path / "other")))
    assert code == 0
    process = start(BLOCKED.format(after=after), *arguments(data, kept))
    wait_for(process, "blocked")
    time.sleep(0.3)  # until nothing but the reader is at work
    process.send_signal(number)
    process.send_signal(number)
    code, said, err = ended(process)
    assert code == 4, err
    assert said["error"] == "Interrupted" and said["exit_code"] == 4 and "--resume" in said["message"]
    assert str(next(iter(sorted(kept.glob("checkpoint-*"), reverse=True)))) in err
    code, result, err = ended(start("", *arguments(data, kept, "--resume")))
    assert code == 0, err
    assert result["weights_sha256"] == whole["weights_sha256"]
    if after:
        assert int(result["resumed_from"].split("-")[-1].split(".")[0]) > 1


def test_while_it_is_imported_nothing_is_lost_either(data: Path, tmp_path: Path) -> None:
    code = "import os, signal, sys\nsys.stderr.write('started\\n')\n" + (
        "class Kill:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'streamgd.cli': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Kill())\n"
    )
    code, said, err = ended(start(code, *arguments(data, tmp_path / "kept")))
    assert (code, said["exit_code"]) == (4, 4)
    assert "nothing is lost" in err


def test_without_checkpoints_a_signal_does_what_it_always_does(data: Path) -> None:
    blocked = BLOCKED.format(after=5).replace('thread.name == "streamgd-signals"', "True")
    process = start(blocked, *arguments(data, None))
    wait_for(process, "blocked")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == -signal.SIGTERM


def test_under_timeout(data: Path, tmp_path: Path) -> None:
    """Which hands on the signal that it gets as it would its own."""
    kept = tmp_path / "kept"
    command = [sys.executable, "-c", BLOCKED.format(after=9) + RUN, *map(str, arguments(data, kept))]
    process = subprocess.Popen(
        ["timeout", "--preserve-status", "100", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(process, "blocked")
    process.terminate()
    code, said, err = ended(process)
    assert (code, said["exit_code"]) == (4, 4), err
    assert list(kept.glob("checkpoint-*"))


def test_signals_that_were_ignored_stay_so(data: Path, tmp_path: Path) -> None:
    """As a shell does for jobs in the background."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + BLOCKED.format(after=0)
    process = start(code, *arguments(data, tmp_path / "kept"))
    wait_for(process, "blocked")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 4


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_who_does_not_read_what_it_says_does_not_keep_it(data: Path, tmp_path: Path) -> None:
    """Standard error is a pipe that is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told, noted = 'print("blocked", file=sys.stderr, flush=True)', 'open("blocked", "w").close()'
    code = BLOCKED.format(after=0).replace(told, noted)
    process = subprocess.Popen(
        [sys.executable, "-c", code + RUN, *map(str, arguments(data, tmp_path / "kept"))],
        stdout=subprocess.DEVNULL,
        stderr=writer,
        cwd=tmp_path,
    )
    try:
        while not (tmp_path / "blocked").exists():
            assert process.poll() is None
            time.sleep(0.01)
        try:
            while os.write(writer, b"x" * 4096):
                pass
        except BlockingIOError:
            os.set_blocking(writer, True)
        process.terminate()
        assert process.wait(10) == 4
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


CRASH = """
import ctypes, threading
import pyarrow.parquet as pq
iter_batches = pq.ParquetFile.iter_batches
def crash(self, *args, **kwargs):
    for batch in iter_batches(self, *args, **kwargs):
        if {when}:
            {how}
        yield batch
pq.ParquetFile.iter_batches = crash
"""
CRASH_WITHOUT_ARROW = """
import ctypes
from streamgd.data.direct import PageRows
PageRows.encode = lambda *args: ctypes.CDLL(None).memset(8, 1, 100)
"""
CUT = """
import os
from streamgd import steps
drain = steps.drain
def cut(rows, *args):
    if len(rows) > 10_000:  # not those of a window alone
        os.truncate({path!r}, 0)
    return drain(rows, *args)
steps.drain = cut
"""
HOWS = {
    "SIGSEGV": "ctypes.CDLL(None).memset(8, 1, 100)",
    "SIGABRT": "ctypes.CDLL(None).abort()",
    "with the lock of the interpreter": "ctypes.string_at(0)",
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_a_crash_of_the_decoder_is_an_error_that_names_the_shard(
    data: Path, tmp_path: Path, how: str, command: str
) -> None:
    if command != "train" and how != "SIGSEGV":
        pytest.skip("the way is the same for all commands")
    model, kept = tmp_path / "model.safetensors", tmp_path / "kept"
    more: list[object] = arguments(data, kept, "--model", model)
    if command != "train":
        code, _, err = ended(start("", *more))
        assert code == 0, err
        more = [command, model, data, "--json", *(["--out", tmp_path / "out"] if command == "predict" else [])]
    when = "threading.current_thread().name.startswith('streamgd')" if command == "train" else "True"
    code, said, err = ended(start(CRASH.format(how=HOWS[how], when=when), *more))
    assert code == 3, err
    assert said["error"] == "UnreadableShard" and said["exit_code"] == 3
    assert "crashes the decoder (SIG" in said["message"] and "shard part-0" in said["message"]


def test_a_crash_without_arrow_is_one_too(data: Path) -> None:
    code, said, err = ended(start(CRASH_WITHOUT_ARROW, *arguments(data, None)))
    assert code == 3, err
    assert "crashes the decoder (SIGSEGV" in said["message"] and "shard part-0" in said["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux")
def test_a_cache_that_is_cut_while_it_is_used_is_an_error_that_says_so(data: Path, tmp_path: Path) -> None:
    options = [
        *arguments(data, tmp_path / "kept")[:-4],
        "--cache",
        tmp_path / "cache",
        "--checkpoint",
        tmp_path / "kept",
    ]
    code, said, err = ended(start(CUT.format(path=str(tmp_path / "cache" / "rows.bin")), *options))
    assert code == 3 and said["error"] == "ReadFailed", err
    assert "was cut short" in said["message"] and "checkpoint" in said["message"]


@pytest.mark.parametrize("what", ["boundaries", "kills", "signals", "damage", "hostile"])
def test_a_little_torture(what: str) -> None:
    done = subprocess.run(
        [sys.executable, TOP / "scripts" / "torture", what, "--short"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("then", ["time.sleep(1000)", "raise UnreadableShard('half imported')"])
def test_ctrl_c_without_a_checkpoint_is_never_lost(data: Path, then: str) -> None:
    """Whatever takes it for an error of its own, or for nothing."""
    code = f"""
import sys, time
from streamgd import train_command
from streamgd.errors import UnreadableShard
def lose(*args):
    try:
        print("blocked", file=sys.stderr, flush=True)
        time.sleep(1000)
    except KeyboardInterrupt:
        {then}
train_command.train_command = lose
"""
    process = start(code, *arguments(data, None))
    wait_for(process, "blocked")
    process.send_signal(signal.SIGINT)
    code, said, err = ended(process)
    assert code == 1, err
    assert said["error"] == "Interrupted" and "With --checkpoint" in said["message"]


def test_ctrl_c_while_it_is_imported_ends_it() -> None:
    hear = (
        "import os, signal\nfrom streamgd.interrupt import hear_early\nsignal.signal(2, signal.default_int_handler)\n"
    )
    process = start(hear + "hear_early(['train'])\nos.kill(os.getpid(), 2)\n", "train")
    assert ended(process)[0] == -signal.SIGINT
