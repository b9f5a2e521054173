"""Compile kernels in a process of their own.

Compiling takes 300 MB more than running does, and a process does not give them back. So where a machine compiles for
the first time, a child does it and leaves the kernels on the disk, and a job keeps to its memory limit then, too.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

from .features import Layout
from .kernels.warm import compiled_mark, warm_up
from .log import say


def warm(hashed: bool, outputs: int = 1, beside: bool = False) -> None:
    """Compile what a job needs, or load it from the disk; see `compile_apart`."""
    warm_up(Layout(1, has_target=True).cells, hashed, min(outputs, 2), beside)


def compile_apart(hashed: bool, outputs: int = 1, beside: bool = False) -> None:
    """Have a child compile what a job needs, unless this machine has it already.

    If the child comes to nothing, kernels are compiled when they are called.

    Parameters
    ----------
    hashed : bool
        Whether features are hashed.
    outputs : int
        Numbers that are predicted for a row, of all models.
    beside : bool
        Whether models are trained side by side.
    """
    mark = compiled_mark(hashed, outputs, beside)
    if mark.exists() or not Path(sys.executable or "").name.startswith("python"):  # embedded: who knows what it runs
        return
    say("note", "compiling kernels for this machine, which takes 20 to 40 s the first time")
    arguments = [sys.executable, "-P", "-m", __name__, *map(str, map(int, (hashed, outputs, beside)))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with Popen(arguments, env=environment, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as child:
        try:
            done = child.wait() == 0
        except BaseException:
            child.kill()
            raise
    if done:
        with suppress(OSError):  # it is looked for again the next time
            mark.touch()


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told_hashed, told_outputs, told_beside = map(int, sys.argv[1:])
    warm(bool(told_hashed), told_outputs, bool(told_beside))
