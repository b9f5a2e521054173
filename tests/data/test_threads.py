"""Work is done once, in order, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamgd.data.threads import Beside, Task


def wait(go: threading.Event) -> None:
    assert go.wait(60)


def test_what_is_given_runs_in_order_and_to_the_end() -> None:
    go, ran = threading.Event(), list[int]()
    with Beside("beside") as beside:
        beside.submit(lambda: wait(go))
        for k in range(100):
            beside.submit(lambda k=k: ran.append(k))  # type: ignore[misc]
        assert not ran
        go.set()
    assert ran == list(range(100))
    assert all(thread.name != "beside" for thread in threading.enumerate())


def test_an_error_ends_the_thread_after_what_was_given() -> None:
    ran = list[int]()
    with pytest.raises(ValueError, match="odd"), Beside("beside") as beside:
        beside.submit(lambda: ran.append(1))
        raise ValueError("odd")
    assert ran == [1]
    assert all(thread.name != "beside" for thread in threading.enumerate())


def raising() -> int:
    raise ValueError("odd")


@pytest.mark.parametrize("function", [lambda: 7, raising])
def test_a_task_is_done_once_whoever_waits_for_it(function: Callable[[], int]) -> None:
    begun, go, times = threading.Event(), threading.Event(), list[int]()

    def work() -> int:
        times.append(1)
        begun.set()
        assert go.wait(60)
        return function()

    task = Task(work)
    with ThreadPoolExecutor(4) as pool:
        pool.submit(task.run)
        assert begun.wait(60)
        waiting = [pool.submit(task.result) for _ in range(3)]
        task.run()  # another does it
        assert not task.done
        go.set()
        for one in waiting:
            if function is raising:
                with pytest.raises(ValueError, match="odd"):
                    one.result(60)
            else:
                assert one.result(60) == 7
    assert task.done
    assert times == [1]
