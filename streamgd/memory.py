"""How much memory there is, how much this process takes, and how people write amounts of it.

Everything is in bytes. The limit of a job is derived from what the *container* may use, not from what the machine
has, so the control groups of the process are asked as well.
"""

from __future__ import annotations

import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .addressspace import MAPPED_BYTES, address_space_limit, address_space_taken, ulimit
from .errors import ConfigError, MemoryLimitError

_DECIMAL_UNITS = ("", "k", "m", "g", "t", "p")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?\s*([kmgtp]?)(i?)b?", re.IGNORECASE)


def parse_bytes(text: str | int | float) -> int:
    """Read an amount of memory.

    Parameters
    ----------
    text : str, int or float
        A number of bytes, or a number and a unit in upper or lower case: ``kB MB GB TB PB`` are powers of 1000,
        ``KiB MiB GiB TiB PiB`` are powers of 1024. The ``B`` may be left out.

    Returns
    -------
    int
        Bytes, at least 1; fractions of a byte are dropped.

    Raises
    ------
    ConfigError
        If it is anything else, or less than one byte.

    Examples
    --------
    >>> parse_bytes("1GB"), parse_bytes("1.5GiB"), parse_bytes("300M"), parse_bytes(4096)
    (1000000000, 1610612736, 300000000, 4096)
    """
    if isinstance(text, str):
        match = _AMOUNT.fullmatch(text.strip())
        if match is None or (match[4] and not match[3]):
            raise _not_an_amount(text)
        unit = (1024 if match[4] else 1000) ** _DECIMAL_UNITS.index(match[3].lower())
        digits = match[1] + (match[2] or "")
        # Whole numbers stay integers: a float holds only 53 bits.
        amount: int | float = int(digits) * unit if digits.isdecimal() else float(digits) * unit
    elif isinstance(text, bool) or not isinstance(text, int | float):
        raise _not_an_amount(text)
    else:
        amount = text
    if not 1 <= amount < math.inf:
        raise _not_an_amount(text)
    return int(amount)


def _not_an_amount(found: object) -> ConfigError:
    return ConfigError(
        f"{found!r} is not an amount of memory: expected a positive number of bytes, or a number with a unit, "
        "such as '1GB', '512MB', '1.5GiB' or '300M'"
    )


def format_bytes(n: int | float) -> str:
    """Write an amount of memory for people, with the largest decimal unit that leaves a number of at least 1.

    Parameters
    ----------
    n : int or float
        Bytes.

    Returns
    -------
    str
        One decimal and a unit; whole bytes below 1000.

    Examples
    --------
    >>> format_bytes(1_234_567_890), format_bytes(512), format_bytes(999_950)
    ('1.2 GB', '512 B', '1.0 MB')
    """
    # 999,950 would round to "1000.0 kB", so the step to the next unit comes at what rounds to 1000.
    if abs(n) < 999.5:
        return f"{n:.0f} B"
    value = n / 1000
    for unit in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.95:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"


def available_memory(root: Path = Path("/")) -> int:
    """Memory that this process may use at most.

    Parameters
    ----------
    root : Path, default /
        Where ``proc`` and ``sys`` are mounted; tests put a made-up tree there.

    Returns
    -------
    int
        Bytes: the least of the physical memory, the limits of the process's control groups (version 1 or 2) with
        all their ancestors, and the soft limit of the address space (``ulimit -v``).

    Examples
    --------
    >>> available_memory() > 0
    True
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    # Under lxcfs the file tells the container's share, where sysconf may tell the machine's.
    total = _kibibytes(root / "proc/meminfo", b"MemTotal:")
    if total is not None:
        limits.append(total)
    limits += _cgroup_limits(root)
    if (address_space := address_space_limit()) is not None:
        limits.append(address_space)
    return min(limit for limit in limits if limit > 0)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Limits of the control groups that /proc/self/cgroup names and of all groups above them."""
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:  # version 2; under "unified" where version 1 is mounted as well
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            # A process above memory.high is throttled until it hardly moves, so that is a limit too.
            names: tuple[str, ...] = ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / directory for directory in {controllers, "memory"}]
            names = ("memory.limit_in_bytes",)
        else:
            continue
        # Inside a container the path may be the host's ("/docker/<id>") or lead out of the namespace ("/../x"): then
        # the groups below the mount do not exist here, and the walk ends at the mount, the container's own group.
        steps = [step for step in PurePosixPath(group).parts if step not in ("/", "..")]
        for mount in mounts:
            for depth in range(len(steps), -1, -1):
                directory = mount.joinpath(*steps[:depth])
                for name in names:
                    value = _read_text(directory / name).strip()
                    if value.isdecimal():  # not "max"; version 1 writes a number beyond any memory instead
                        yield int(value)


def default_memory_limit() -> int:
    """Memory limit of a job that names none: a quarter of `available_memory`.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> default_memory_limit() == available_memory() // 4
    True
    """
    return available_memory() // 4


@dataclass(frozen=True)
class Limit:
    """Most resident memory that a job may have, and what says so.

    Attributes
    ----------
    bytes : int
        The limit.
    name : str
        What limits.
    mapped : int
        What it counts besides resident memory: ``bytes`` are what that leaves.
    """

    bytes: int
    name: str = "the memory limit"
    mapped: int = 0

    def refusal(self, process: int, needed: int, what: str, rest: str) -> MemoryLimitError:
        """An error for ``what``, which needs more than there is, for the process and the ``rest``."""
        if self.mapped:
            remedy = f"Give {ulimit(needed + self.mapped)} or more."
        elif self.name == Limit.name:
            remedy = f"Give --memory-limit {-(-needed // 1_000_000)}MB (memory_limit= in Python) or more."
        else:
            remedy = f"Give it {-(-needed // 1_000_000)} MB or more."
        found, least, taken = (format_bytes(size + self.mapped) for size in (self.bytes, needed, process))
        return MemoryLimitError(
            f"{self.name} is {found}, but {what} needs at least {least}: {taken} for the process, {rest}. {remedy}"
        )


def job_limit(memory_limit: int | None, root: Path = Path("/")) -> Limit | None:
    """What a job is limited by.

    Parameters
    ----------
    memory_limit : int, optional
        What the user says. If there is nothing, the control group's limit is the job's: beyond it the kernel ends the
        process.
    root : Path, default /
        As for `available_memory`.

    Returns
    -------
    Limit or None
        The least that may be resident; None if there is no limit but that of the machine.

    Examples
    --------
    >>> job_limit(100_000_000).bytes
    100000000
    """
    limits = [] if memory_limit is None else [Limit(memory_limit)]
    if memory_limit is None:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        groups = [size for size in _cgroup_limits(root) if 0 < size < machine]
        limits += [Limit(size, "the limit of the control group") for size in groups]
    if (address_space := address_space_limit()) is not None:
        left = address_space - MAPPED_BYTES
        limits.append(Limit(left, "the limit of the address space (ulimit -v)", MAPPED_BYTES))
    return min(limits, key=lambda limit: limit.bytes, default=None)


def process_bytes(memory_limit: int | None = None) -> int:
    """What this process takes of a job's limit now.

    Parameters
    ----------
    memory_limit : int, optional
        As for `job_limit`.

    Returns
    -------
    int
        Resident bytes. If the address space is limited, at least what the process has mapped beyond what every process
        maps, less the room by which that limit is the larger of the two.

    Examples
    --------
    >>> process_bytes() > 0
    True
    """
    resident, bound, address_space = current_rss(), job_limit(memory_limit), address_space_limit()
    if address_space is None or bound is None:
        return resident
    room = address_space - MAPPED_BYTES - bound.bytes
    return max(resident, address_space_taken() - MAPPED_BYTES - room)


def peak_rss() -> int:
    """Largest resident memory that this process had so far.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> peak_rss() > 1_000_000
    True
    """
    # Not ru_maxrss where there is a choice: Linux hands it down through fork and exec, so that a small program started
    # by a large one reports the peak of its parent. VmHWM belongs to the address space and starts anew with exec.
    # The kernel counts pages in batches per processor: 0.1 MB less than the largest VmRSS was seen.
    peak = _kibibytes(Path("/proc/self/status"), b"VmHWM:")
    return _max_rss() if peak is None else peak


def current_rss() -> int:
    """Resident memory of this process now.

    Returns
    -------
    int
        Bytes. Where there is no ``/proc`` (macOS) the standard library does not tell it, and this is the peak.

    Examples
    --------
    >>> 0 < current_rss()
    True
    """
    current = _kibibytes(Path("/proc/self/status"), b"VmRSS:")
    return _max_rss() if current is None else current


def _max_rss() -> int:
    # Bytes on macOS, kibibytes on Linux and the BSDs.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kibibytes(path: Path, key: bytes) -> int | None:
    """Bytes of a line such as ``VmHWM:  1234 kB``; None without the file or the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def _read_text(path: Path) -> str:
    """Text of a small file, empty if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
