"""SIGTERM and SIGINT as a request to end: a checkpoint first, then exit code 4; without one, Ctrl-C at once.

Python runs signal handlers in the main thread between two of its instructions, and that thread may be deep in a read
from a disk that does not answer. So the handler does nothing, and a thread of its own hears of the signal through a
pipe that the interpreter writes to at once. It asks the training thread to end, which takes the mini-batches under
way; if that thread waits for something, it writes the checkpoint itself and ends the process. More signals change
nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .errors import Interrupted, StreamgdError, error_json

if TYPE_CHECKING:  # what it imports takes a second, in which signals should be heard
    from .keeper import Keeper

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds for the training thread to end by itself, and then to let go of the state.
PATIENCE, BUSY = 0.3, 1.5
#: Seconds to tell of it.
TELLING = 0.5
#: Seconds after which a Ctrl-C without a checkpoint was lost, or whoever should end waits for something.
LOST = 3.0
NOTHING_KEPT = "interrupted; nothing was saved. With --checkpoint DIR it would be."
NOTHING_YET = "interrupted before the first step of this run: nothing is lost. Run the same command with --resume."


def hear_early(arguments: Sequence[str]) -> None:
    """Hear signals while a command is being imported, when there is nothing to keep."""
    if not any(argument.startswith(("--checkpoint", "--config")) for argument in arguments):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return

    def end(*_: object) -> None:
        os.write(2, f"{NOTHING_YET}\n".encode())
        if "--json" in arguments:
            text = error_json(Interrupted(NOTHING_YET), Interrupted.exit_code)
            os.write(1, f"{text}\n".encode())
        os._exit(Interrupted.exit_code)

    for number in _heard():
        signal.signal(number, end)


def _heard() -> list[signal.Signals]:
    """Signals to hear: what was ignored stays so.

    A shell starts jobs in the background without SIGINT, nohup without SIGHUP.
    """
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class CtrlC:
    """Ctrl-C while a block runs that keeps nothing: KeyboardInterrupt, and the end of the process if that gets lost.

    It does where it is raised in what some library does by the way, such as an import.

    Parameters
    ----------
    tell : callable
        Told of the error if the process has to be ended.

    Attributes
    ----------
    pressed : bool
        Whether it was: then whatever the block raises came of it.
    """

    def __init__(self, tell: Callable[[StreamgdError], None]) -> None:
        self.pressed, self._tell = False, tell
        self._before: Any = None
        self._timer = threading.Timer(LOST, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        mine = threading.current_thread() is threading.main_thread()
        if mine and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        if not self.pressed:
            self.pressed = True
            self._timer.start()
        raise KeyboardInterrupt

    def _end(self) -> None:
        self._tell(Interrupted(NOTHING_KEPT))
        os._exit(1)


class Interruption:
    """Hears signals while a block runs.

    Parameters
    ----------
    tell : callable
        Told of the error if this thread has to end the process: the last thing that happens before.

    Attributes
    ----------
    keeper : Keeper or None
        What is asked to end training, and to keep what was learned, once there is something to keep.
    """

    def __init__(self, tell: Callable[[StreamgdError], None]) -> None:
        self.keeper: Keeper | None = None
        self._tell, self._over = tell, threading.Event()

    def __enter__(self) -> Self:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = writer
        self._before = {number: signal.signal(number, lambda *_: None) for number in _heard()}
        self._wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="streamgd-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    def _listen(self) -> None:
        while not self._over.is_set():
            if not set(os.read(self._reader, 64)) & set(self._before):
                continue
            if self.keeper is not None:
                self.keeper.asked.set()
            if not self._over.wait(PATIENCE):
                self._end()

    def _end(self) -> None:
        """Keep what was learned, and end the process without those who wait."""
        error: StreamgdError = Interrupted(NOTHING_YET)
        try:
            if self.keeper is not None:
                error = Interrupted(self.keeper.rescue(BUSY))
        except StreamgdError as problem:  # the disk is full
            error = problem
        # Who should read it may have stopped to, and let a write wait for ever.
        teller = threading.Thread(target=self._tell, args=(error,), daemon=True)
        teller.start()
        teller.join(TELLING)
        os._exit(error.exit_code)
