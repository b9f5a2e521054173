"""Amounts of memory as people write them, limits of machines and containers (made-up trees), and measured peaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgd import memory, shortage
from streamgd.addressspace import MAPPED_BYTES
from streamgd.errors import ConfigError, DataError, MemoryLimitError, OutOfMemory
from streamgd.memory import (
    available_memory,
    current_rss,
    default_memory_limit,
    format_bytes,
    job_limit,
    parse_bytes,
    peak_rss,
    process_bytes,
)
from streamgd.shortage import is_shortage, shortage_told

ROOT = Path(__file__).parent.parent
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1GB", 10**9),
        ("1 gb", 10**9),
        (" 512MB ", 512 * 10**6),
        ("300M", 300 * 10**6),
        ("2G", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("1.5gib", 3 * 2**29),
        ("4Ki", 4096),
        ("16 KiB", 2**14),
        ("1TB", 10**12),
        ("2TiB", 2**41),
        ("1PB", 10**15),
        (".5kB", 500),
        ("1.GB", 10**9),
        ("1e9", 10**9),
        ("2.5e3kB", 2_500_000),
        ("123", 123),
        ("123B", 123),
        ("9007199254740993", 2**53 + 1),
        (7, 7),
        (1.5e9, 1_500_000_000),
        (1.9, 1),
    ],
)
def test_parse_bytes(text, expected):
    result = parse_bytes(text)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "1 G B",
        "1XB",
        "1,5GB",
        "1iB",
        "i",
        "-1GB",
        "0",
        "0.5",
        "0GB",
        "1e999",
        "nan",
        "inf",
        "1GBit",
        "1_000",
        0,
        -5,
        float("nan"),
        float("inf"),
        True,
        None,
        b"1GB",
        [1],
    ],
)
def test_what_is_not_an_amount_is_refused_with_examples(text):
    with pytest.raises(ConfigError) as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)
    assert "'1.5GiB'" in str(caught.value)


@settings(deadline=None)
@given(st.integers(1, 9 * 10**17))
def test_format_bytes_is_read_back_within_its_rounding(n):
    text = format_bytes(n)
    assert parse_bytes(text) == pytest.approx(n, rel=0.051)
    number = float(text.split()[0])
    assert 1 <= number < 1000


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (25e9, "25.0 GB"),
        (10**15, "1.0 PB"),
        (10**19, "10000.0 PB"),
    ],
)
def test_format_bytes(n, expected):
    assert format_bytes(n) == expected


MB = 10**6


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


# Each tree: the files, and the limit that they mean. All limits are below what any machine has.
TREES = {
    "no limit": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"}, None),
    "v2": ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": 64 * MB}, 64 * MB),
    "v2, the parent is tighter": (
        {
            "proc/self/cgroup": "0::/a/b/c",
            "sys/fs/cgroup/a/b/c/memory.max": "max",
            "sys/fs/cgroup/a/b/memory.max": 80 * MB,
            "sys/fs/cgroup/a/memory.max": 70 * MB,
        },
        70 * MB,
    ),
    "v2, throttled below the limit": (
        {
            "proc/self/cgroup": "0::/a",
            "sys/fs/cgroup/a/memory.max": 64 * MB,
            "sys/fs/cgroup/a/memory.high": 48 * MB,
        },
        48 * MB,
    ),
    "v2 in a container with its own namespace": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 32 * MB},
        32 * MB,
    ),
    "v2 outside of the namespace": (
        {"proc/self/cgroup": "0::/../../other", "sys/fs/cgroup/memory.max": 32 * MB},
        32 * MB,
    ),
    "another group does not count": (
        {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/b/memory.max": 32 * MB},
        None,
    ),
    "v1": (
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/jobs/one\n0::/",
            "sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": 96 * MB,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        },
        96 * MB,
    ),
    "v1, docker: the path is the host's": (
        {"proc/self/cgroup": "4:memory:/docker/0123", "sys/fs/cgroup/memory/memory.limit_in_bytes": 96 * MB},
        96 * MB,
    ),
    "v1, mounted with another controller": (
        {
            "proc/self/cgroup": "4:cpuset,memory:/a",
            "sys/fs/cgroup/cpuset,memory/a/memory.limit_in_bytes": 96 * MB,
        },
        96 * MB,
    ),
    "v1 and v2 side by side": (
        {
            "proc/self/cgroup": "4:memory:/a\n0::/a",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 96 * MB,
            "sys/fs/cgroup/unified/a/memory.max": 60 * MB,
        },
        60 * MB,
    ),
    "a group with a colon in its name": (
        {"proc/self/cgroup": "0::/a:b", "sys/fs/cgroup/a:b/memory.max": 64 * MB},
        64 * MB,
    ),
    "lxcfs": ({"proc/meminfo": "MemTotal:       65536 kB\nMemFree: 1 kB"}, 65536 * 1024),
    "damaged files": ({"proc/self/cgroup": "what\n::\n\n", "sys/fs/cgroup/memory.max": "", "proc/meminfo": ""}, None),
    "nothing mounted, as on macOS": ({}, None),
}


@pytest.mark.parametrize("name", TREES)
def test_available_memory_is_the_least_limit(name, tmp_path):
    files, expected = TREES[name]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert available_memory(write(tmp_path, files)) == (physical if expected is None else expected)


def run(code, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, **options
    )
    return result.stdout.split()


@on_linux
def test_available_memory_heeds_ulimit():
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (200_000_000, resource.RLIM_INFINITY))
from streamgd.memory import available_memory, default_memory_limit
print(available_memory(), default_memory_limit())
"""
    assert run(code) == ["200000000", "50000000"]


def test_default_is_a_quarter():
    assert default_memory_limit() == available_memory() // 4


@on_linux
def test_peak_stays_when_memory_is_given_back():
    code = """
from streamgd.memory import current_rss, peak_rss
before = current_rss()
data = bytearray(100_000_000)
during = current_rss()
del data
print(before, during, current_rss(), peak_rss())
"""
    before, during, after, peak = map(int, run(code))
    assert during - before == pytest.approx(100e6, rel=0.05)
    assert after - before < 10e6
    assert during - 2e6 < peak < during + 10e6


@on_linux
def test_peak_is_not_inherited_from_the_parent():
    # ru_maxrss would be: this parent holds 200 MB when it starts the child.
    ballast = bytearray(200_000_000)
    (peak,) = map(int, run("from streamgd.memory import peak_rss; print(peak_rss())"))
    assert peak < len(ballast) / 2


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_peak_without_proc(monkeypatch, platform, unit):
    class Usage:
        ru_maxrss = 123

    monkeypatch.setattr(memory, "_kibibytes", lambda path, key: None)
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: Usage)
    assert peak_rss() == current_rss() == 123 * unit


def test_the_module_imports_nothing_heavy():
    code = "import sys; import streamgd.memory; print(*sorted(sys.modules))"
    assert not {"numpy", "pyarrow", "numba"} & set(run(code))


def test_a_job_is_limited_by_what_the_user_says_or_else_by_the_control_group(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    group = tmp_path / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("123456789\n")
    found = job_limit(None, tmp_path)
    assert found is not None and (found.bytes, found.mapped) == (123456789, 0) and "control group" in found.name
    assert job_limit(10**9, tmp_path) == memory.Limit(10**9)
    (group / "memory.max").write_text("max\n")
    assert job_limit(None, tmp_path) is None


@on_linux
@pytest.mark.parametrize("said", [None, 200_000_000, 2_000_000_000])
def test_what_is_mapped_is_taken_off_a_limit_of_the_address_space(said):
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (700_000_000, resource.RLIM_INFINITY))
from streamgd.memory import job_limit
found = job_limit({said})
print(found.bytes, found.mapped)
"""
    left = 700_000_000 - MAPPED_BYTES
    expected = [said, 0] if said is not None and said < left else [left, MAPPED_BYTES]
    assert [int(number) for number in run(code)] == expected


@on_linux
def test_what_a_process_maps_counts_where_the_address_space_is_limited():
    code = """
import mmap, resource
from streamgd.memory import current_rss, process_bytes
block = mmap.mmap(-1, 1_000_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(process_bytes() - current_rss())
resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, resource.RLIM_INFINITY))
print(process_bytes())
"""
    before, after = map(int, run(code))
    assert abs(before) < 10e6
    assert 1_000_000_000 - MAPPED_BYTES < after < 1_100_000_000 - MAPPED_BYTES


@on_linux
def test_libraries_are_told_to_reserve_little_only_where_the_address_space_is_limited():
    code = """
import os, resource, sys
names = ["OPENBLAS_NUM_THREADS", "MIMALLOC_ARENA_RESERVE"]
for name in names: os.environ.pop(name, None)
from streamgd.addressspace import reserve_little
reserve_little()
print(*(os.environ.get(name, "-") for name in names))
resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, resource.RLIM_INFINITY))
os.environ["OPENBLAS_NUM_THREADS"] = "3"
reserve_little()
print(*(os.environ.get(name, "-") for name in names))
"""
    assert run(code) == ["-", "-", "3", "65536"]


@on_linux
def test_no_library_is_loaded_without_room_for_it():
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (300_000_000, resource.RLIM_INFINITY))
import streamgd
try:
    streamgd.SGDClassifier
except MemoryError as error:
    print("other")
except Exception as error:
    print(type(error).__name__, "numpy" in sys.modules, "ulimit" in str(error))
"""
    assert run(code) == ["MemoryLimitError", "False", "True"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("can't start new thread")],
    ids=repr,
)
def test_shortages_become_one_error(error):
    with pytest.raises(OutOfMemory, match="not enough memory") as raised, shortage_told():
        raise error
    assert isinstance(raised.value, MemoryLimitError) and isinstance(raised.value, MemoryError)
    assert raised.value.exit_code == 2 and raised.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("x"), OSError(28, "No space left"), DataError("y"), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, shortage_told():
        raise error
    assert raised.value is error


def test_a_file_that_asks_for_too_much_is_no_shortage_where_nothing_is_limited(monkeypatch):
    error = OSError("Couldn't deserialize thrift: std::bad_alloc")
    monkeypatch.setattr(shortage, "address_space_limit", lambda: None)
    assert not is_shortage(error)
    monkeypatch.setattr(shortage, "address_space_limit", lambda: 1 << 60)
    assert is_shortage(error)
    assert process_bytes() > 0
