"""The pool, and the hub that takes messages for it: it sleeps until somebody wakes it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from worker.consuming import Consumer
from worker.pool import TaskPool


class Hub:
    """Celery's loop; counts how often it is woken."""

    woken = 0

    def call_soon(self, callback: Any) -> None:
        """Wake up, for this."""
        self.woken += 1


async def run_one(pool: TaskPool) -> None:
    """Run something that takes a slot, and gives it back."""
    ran = asyncio.Event()
    pool.apply_async(ran.set, callback=lambda _: None)
    await ran.wait()
    await asyncio.sleep(0)  # the slot comes free in the same turn of the loop as we go on
    assert pool.info["running"] == 0


def test_a_slot_that_comes_free_wakes_the_hub_that_found_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a message would wait, with a slot free, for whatever wakes it next. Once is enough."""
    pool, hub = TaskPool(limit=1), Hub()
    # Of the consumer no more than asks for room: all of it would need a worker around it.
    consumer = Consumer.__new__(Consumer)
    consumer.pool = pool

    async def run() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr("worker.pool.runtime", lambda app: SimpleNamespace(loop=loop))
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

    asyncio.run(run())
