"""The pool, and the hub that fetches messages for it and sleeps until it is woken."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from kombu.message import Message

from worker.broker.wakeups import QUEUES, REQUESTS
from worker.process import greenlets
from worker.process.consumer import Consumer
from worker.process.pool import TaskPool, _apply
from worker.process.priorities import Turnstile


class Hub:
    """Celery's hub; counts how often it is woken."""

    woken = 0

    def call_soon(self, callback: Any) -> None:
        """Wake the hub."""
        self.woken += 1


async def run_one(pool: TaskPool) -> None:
    """Run a task that takes a slot and releases it."""
    ran = asyncio.Event()
    pool.apply_async(ran.set, callback=lambda _: None)
    await ran.wait()
    await asyncio.sleep(0)  # the slot becomes free in this turn of the loop
    assert pool.info["running"] == 0


def test_a_slot_that_comes_free_wakes_the_hub_that_found_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a message would wait although a slot is free. Waking the hub once is enough."""
    pool, hub = TaskPool(limit=1), Hub()
    # Only the part of the consumer that asks for slots: a whole one would need a worker.
    consumer = Consumer.__new__(Consumer)
    consumer.pool = pool
    consumer._keeper = SimpleNamespace(full=False)
    consumer._reader = None

    async def run() -> None:
        loop = asyncio.get_running_loop()
        runtime = SimpleNamespace(loop=loop, turnstile=Turnstile(), in_loop=lambda: True)
        monkeypatch.setattr("worker.process.pool.runtime", lambda app: runtime)
        pool.start()
        pool.register_with_event_loop(hub)
        assert consumer._room() == 1
        await run_one(pool)
        assert hub.woken == 0
        monkeypatch.setattr(state, "reserved_requests", {"a request"})
        assert consumer._room() == 0
        await run_one(pool)
        await run_one(pool)
        assert hub.woken == 1
        assert consumer._room_for_wakeups() < 0, "the slot is kept for the hub"
        assert consumer._room() == 0
        await run_one(pool)
        assert hub.woken == 2, "also if the first call was lost with its connection"
        monkeypatch.setattr(state, "reserved_requests", set())
        consumer._keeper.full = True
        assert consumer._room() == 0, "what waits for the quarantine is bounded"

    asyncio.run(run())


def test_what_the_quarantine_has_makes_room_for_wake_ups() -> None:
    """Otherwise the reader would look for room twice a second, behind a list of junk."""
    consumer, kept, looked = Consumer.__new__(Consumer), [], []
    consumer._keeper = SimpleNamespace(keep=lambda _, done: kept.append(done))
    consumer._reader = SimpleNamespace(look_soon=lambda: looked.append(1))
    consumer.task_consumer = None
    consumer.call_soon = lambda *_: None
    consumer.set_aside(Message(b"junk", headers={}), "junk")
    assert looked == []
    [done] = kept
    done()
    assert looked == [1]


def test_a_request_runs_beside_full_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes milliseconds, and may have been taken just before the slots were full."""
    pool = TaskPool(limit=1)
    begun: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        runtime = SimpleNamespace(loop=loop, turnstile=Turnstile(), in_loop=lambda: True)
        monkeypatch.setattr("worker.process.pool.runtime", lambda app: runtime)
        pool.start()
        ends = asyncio.Event()

        async def work(name: str) -> None:
            begun.append(name)
            await ends.wait()

        def start(name: str, queue: str) -> None:
            target = lambda *_: greenlets.wait(work(name))  # noqa: E731
            request = {"delivery_info": {"routing_key": queue}}
            pool.apply_async(target, (name, name, request), callback=lambda _: None)

        for name in ("live 1", "live 2"):
            start(name, QUEUES["live"])
        for name in ("request 1", "request 2"):
            start(name, REQUESTS)
        for _ in range(20):  # turns of the loop in which too many would begin
            await asyncio.sleep(0)
        assert begun == ["live 1", "request 1"]
        ends.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == ["live 1", "request 1", "request 2", "live 2"]

    asyncio.run(run())


def test_a_live_job_waits_for_no_bulk_jobs_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bulk jobs are claimed at a time, however many slots are free; one without a claim
    ends."""
    pool, turnstile = TaskPool(limit=10), Turnstile(2)
    begun: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        runtime = SimpleNamespace(loop=loop, turnstile=turnstile, in_loop=lambda: True)
        monkeypatch.setattr("worker.process.pool.runtime", lambda app: runtime)
        pool.start()
        claims = {name: asyncio.Event() for name in ("b1", "b2", "b3", "b4", "live")}
        ends = asyncio.Event()

        async def attempt(name: str) -> None:
            begun.append(name)
            await claims[name].wait()
            if name == "b1":
                return
            turnstile.passed()
            await ends.wait()

        def start(name: str) -> None:
            queue = QUEUES["live" if name == "live" else "bulk"]
            target = lambda *_: greenlets.wait(attempt(name))  # noqa: E731
            request = {"delivery_info": {"routing_key": queue}}
            pool.apply_async(target, (name, name, request), callback=lambda _: None)

        async def begins(*names: str) -> None:
            for _ in range(20):  # turns of the loop in which too many would begin
                await asyncio.sleep(0)
            assert begun == list(names)

        for name in ("b1", "b2", "b3", "b4"):
            start(name)
        await begins("b1", "b2")
        start("live")
        await begins("b1", "b2", "live")
        claims["b2"].set()
        await begins("b1", "b2", "live", "b3")
        claims["b1"].set()
        await begins("b1", "b2", "live", "b3", "b4")
        for claim in claims.values():
            claim.set()
        ends.set()
        await begins("b1", "b2", "live", "b3", "b4")
        assert pool.info["running"] == 0

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_waits_for_a_slot_is_forgotten_with_its_connection() -> None:
    """Celery no longer counts it then, and it comes again: it would be there many times."""
    pool = TaskPool(limit=1)
    pool._in_loop, pool._loop = (lambda: False), SimpleNamespace(call_soon_threadsafe=print)
    consumer = Consumer.__new__(Consumer)
    consumer.controller, consumer.task_buckets, consumer.pool = None, {}, pool
    consumer.timer = None
    for _ in range(3):
        for _ in range(5):
            pool.on_apply(print)
        consumer.on_close()
        assert pool._line == []


@pytest.mark.parametrize("kind", [SystemExit, OSError])
def test_a_slot_comes_back_whatever_happens_to_its_log_line(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full."""

    class Held:
        id = "a"

        def on_success(self, *_: Any) -> None:
            raise kind

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    held = Held()
    monkeypatch.setattr("worker.process.pool.log", SimpleNamespace(exception=full))
    state.task_reserved(held)
    with pytest.raises(OSError, match="no space"):
        _apply(lambda: None, (), {}, held.on_success, None)
    assert held not in state.reserved_requests
