"""A process that was asked to stop ends, whatever hangs in it, and the log says what."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.doubles import differing
from worker.monitoring import stop_watch
from worker.monitoring.liveness import Liveness, Pulse
from worker.monitoring.stop_watch import IDLE, PERIOD, StopWatch

LATE = 5.0


def end(code: int) -> None:
    """Replaces the end of the process."""
    assert code == 1


async def inner(secret: str) -> str:
    """A task that waits for ever."""
    await asyncio.Event().wait()
    return secret


async def outer(secret: str) -> str:
    """Waits for that."""
    return await inner(secret)


@contextmanager
def a_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A running loop with two tasks that do not end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="io")
    thread.start()

    async def begin() -> list[asyncio.Task[str]]:
        tasks = [asyncio.ensure_future(outer("canary")) for _ in range(2)]
        await asyncio.sleep(0)  # they have started
        return tasks

    tasks = asyncio.run_coroutine_threadsafe(begin(), loop).result()

    async def finish() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(finish(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def looks(watch: StopWatch, seconds: float) -> bool:
    """The looks of so many seconds; whether the last one ended the process."""
    *before, last = [_look(watch) for _ in range(round(seconds / PERIOD))]
    assert not any(before)
    return last


def _look(watch: StopWatch) -> bool:
    ended = watch.look_once()
    # In a second between two looks, a loop turns.
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), watch._loop).result()
    return ended


def liveness() -> Liveness:
    """The marks of a process whose tasks may take 8 * 1 + 240 + 60 seconds."""
    return Liveness(60, 1, Pulse())


def test_a_late_worker_says_once_what_each_thread_and_task_does() -> None:
    """By file, line and function, without values."""
    with a_loop() as loop, capture_logs() as logs:
        watch = StopWatch(loop, liveness(), LATE, end)
        assert not looks(watch, LATE)
        assert not logs
        assert not looks(watch, IDLE - LATE)
    [line] = logs
    assert line["event"] == "worker does not stop"
    assert {"MainThread", "io"} <= {one["name"] for one in line["threads"]}
    main = next(one for one in line["threads"] if one["name"] == "MainThread")
    assert any(place.endswith(" look_once") for place in main["where"])
    [task] = line["tasks"]
    assert task["count"] == 2
    names = [place.rpartition(" ")[2] for place in task["where"]]
    assert names == ["outer", "inner", "wait"]
    assert "canary" not in str(logs)


def test_a_worker_without_a_task_is_ended() -> None:
    """With an exit code that says so, after a line with an alert."""
    with a_loop() as loop, capture_logs() as logs:
        watch = StopWatch(loop, liveness(), LATE, end)
        assert looks(watch, IDLE + PERIOD)
    assert (logs[-1]["event"], logs[-1]["alert"]) == ("worker ended by force", "hung")
    assert logs[-1]["tasks"]


def test_a_task_is_waited_for_until_it_counts_as_hanging() -> None:
    """Its call may have created a customer. Once it has ended, the limit without a task counts."""
    with a_loop() as loop, capture_logs() as logs:
        marks = liveness()
        watch = StopWatch(loop, marks, LATE, end)
        with marks.task():
            assert looks(watch, marks.task_limit + PERIOD)
        watch = StopWatch(loop, marks, LATE, end)
        with marks.task():
            assert not looks(watch, 2 * IDLE)
        assert looks(watch, IDLE + PERIOD)
    assert logs[-1]["event"] == "worker ended by force"


def test_a_task_in_a_loop_that_is_blocked_is_not_waited_for() -> None:
    """For example by a log line, if the pipe is full and nobody reads it."""
    released, blocked = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        released.wait()

    with a_loop() as loop, capture_logs() as logs:
        marks = liveness()
        watch = StopWatch(loop, marks, LATE, end)
        loop.call_soon_threadsafe(block)
        blocked.wait()
        with marks.task():
            *before, last = [watch.look_once() for _ in range(round(IDLE / PERIOD) + 2)]
        released.set()
    assert not any(before)
    assert last
    assert logs[-1]["event"] == "worker ended by force"


def test_a_hanging_log_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the log may hang, too."""
    released = threading.Event()
    monkeypatch.setattr(stop_watch, "REPORT", 0.01)

    class Hangs:
        def critical(self, *_: Any, **__: Any) -> None:
            released.wait()

        warning = critical

    monkeypatch.setattr(stop_watch, "log", Hangs())
    with a_loop() as loop:
        watch = StopWatch(loop, liveness(), LATE, end)
        assert looks(watch, IDLE + PERIOD)
        released.set()


def test_a_process_that_can_start_no_thread_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.12 at its very end, or a container at its limit of processes."""

    class Thread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with a_loop() as loop:
        watch = StopWatch(loop, liveness(), LATE, end)
        monkeypatch.setattr(stop_watch, "threading", differing(threading, Thread=Thread))
        ended = looks(watch, IDLE + PERIOD)
        monkeypatch.undo()
    assert ended


def test_it_watches_in_a_thread_that_keeps_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the process is asked to stop."""
    monkeypatch.setattr(stop_watch, "PERIOD", 0.001)
    monkeypatch.setattr(stop_watch, "IDLE", 0.002)
    ended: Queue[threading.Thread] = Queue()
    with a_loop() as loop, capture_logs():
        watch = StopWatch(loop, liveness(), LATE, lambda _: ended.put(threading.current_thread()))
        watch.begin()
        watch.begin()
        thread = ended.get()
        assert thread.daemon
        thread.join()
    assert ended.empty()
