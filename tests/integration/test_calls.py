"""What is asked at the same time is sent in one call, and each caller gets its own answer."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from regworker.domain.errors import LedgerUnavailable
from regworker.domain.job import Job
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.calls import LARGE, MOST
from regworker.ledger.records import Accepted, Claim, Unconfigured
from regworker.ledger.replication import Wanted
from regworker.ledger.transitions import (
    CONFIGURED,
    ClaimRules,
    Command,
    Publication,
    accept,
    claim,
    job_key,
)
from worker.cli.local import stack

ACCOUNTS = [Limits("acme", "free", 0, 0, 0)]


def run(url: str, use: Callable[[AsyncLedger], Awaitable[None]]) -> None:
    """Use an `AsyncLedger`."""

    async def main() -> None:
        ledger = AsyncLedger(url, wanted=Wanted())
        try:
            await ledger.redis.flushdb()
            await ledger(announce(ACCOUNTS, ["results", "crm"]))
            await use(ledger)
        finally:
            await ledger.redis.flushdb()
            await ledger.aclose()

    asyncio.run(main())


async def calls_since(ledger: AsyncLedger, before: int = 0) -> int:
    """How many scripts the server has run since then."""
    found: Any = await ledger.redis.info("commandstats")
    return int(found.get("cmdstat_evalsha", {"calls": 0})["calls"]) - before


def accepted(number: int, size: int = 10) -> Command[Any]:
    """A command to accept a job with so large a payload."""
    job = Job(provider="acme", account="free", idempotency_key=f"n{number}", registration={})
    return accept(job, "p" * size, ["k:" + "0" * 64], 30)


@pytest.mark.parametrize("count", [1, 2, MOST, MOST + 1, 3 * MOST])
def test_what_is_asked_together_is_one_call(redis_url: str, count: int) -> None:
    """Up to so many; each caller gets its own answer."""

    async def use(ledger: AsyncLedger) -> None:
        await ledger(accepted(-1))
        await asyncio.gather(*(ledger(accepted(-2 - number)) for number in range(2)))
        before = await calls_since(ledger)
        found = await asyncio.gather(*(ledger(accepted(number)) for number in range(count)))
        assert [one.job_id for one in found] == [accepted(n).args[0] for n in range(count)]
        assert await calls_since(ledger, before) == -(-count // MOST)

    run(redis_url, use)


def test_events_for_many_endpoints_are_written_in_several_calls() -> None:
    """Each endpoint's delivery takes the server as long as a small job."""
    few, many = (
        Publication("id", "type", b"event", "sealed", "kept", endpoints=tuple(map(str, range(n))))
        for n in (1, 8)
    )
    assert MOST * few.size < LARGE
    assert 5 * many.size < LARGE < MOST // 2 * many.size


def test_a_server_that_lost_its_scripts_gets_both(redis_url: str) -> None:
    """The script for one job, and the one for several."""

    async def use(ledger: AsyncLedger) -> None:
        await ledger.redis.script_flush()
        await ledger.redis.config_resetstat()
        found = await asyncio.gather(*(ledger(accepted(number)) for number in range(60)))
        assert all(isinstance(one, Accepted) and not one.repeat for one in found)
        stats: Any = await ledger.redis.info("commandstats")
        assert stats["cmdstat_script|load"]["calls"] == 2, "once for all who wait"
        assert isinstance(await ledger(accepted(5)), Accepted)

    run(redis_url, use)


def test_large_answers_come_in_several_calls(redis_url: str) -> None:
    """The server is not held by many large payloads at once; each claim is answered."""

    async def use(ledger: AsyncLedger) -> None:
        await ledger.many(accepted(number, size=300_000) for number in range(10))
        ids = [str(accepted(number).args[0]) for number in range(10)]
        asked = [claim(one, ClaimRules("w", 60, 60, 3, 20), 0.5) for one in ids]
        await ledger(claim("none", ClaimRules("w", 60, 60, 3, 20), 0.5))
        before = await calls_since(ledger)
        found = await asyncio.gather(*(ledger(one) for one in asked))
        assert [one.id for one in found if isinstance(one, Claim)] == ids
        assert all(len(one.record.payload) == 300_000 for one in found)
        assert await calls_since(ledger, before) == 7, "four together, and each other alone"

    run(redis_url, use)


def test_a_batch_of_unknown_accounts_holds_nobody_up(redis_url: str) -> None:
    """Each is answered with all known names, and the list is long: one in each call."""

    def unknown(number: int) -> Command[Any]:
        job = Job(provider="acme", account=f"x{number}", idempotency_key="1", registration={})
        return accept(job, "p", ["k:" + "0" * 64], 30)

    names = [f"account:acme:{'n' * 100}{number}" for number in range(10_000)]
    commands = [*map(unknown, range(4)), accepted(1)]

    async def use(ledger: AsyncLedger) -> None:
        await ledger.redis.sadd(CONFIGURED, *names)
        await ledger(accepted(2))
        before = await calls_since(ledger)
        found = await asyncio.gather(*map(ledger, commands))
        assert await calls_since(ledger, before) == 5, "one, and each other alone"
        assert [type(one) for one in found] == [Unconfigured] * 4 + [Accepted]
        with closing(SyncLedger(redis_url)) as threads:
            assert [type(one) for one in threads.many(commands)] == [type(one) for one in found]

    run(redis_url, use)


FAULTS: dict[str, dict[str, Any]] = {
    "full": {"maxmemory": 1},
    "a replica": {"replicaof": "127.0.0.1 1"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_passing_error_passes_for_all(tmp_path: Path, fault: str, count: int) -> None:
    """A batch has the errors of its commands: who may try again does, until its time is up."""
    commands = [accepted(number) for number in range(count)]

    async def use(url: str) -> list[Any]:
        ledger = AsyncLedger(url, wanted=Wanted())
        try:
            asked = (ledger(one, patience=0.1) for one in commands)
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await ledger.aclose()

    with stack.valkey(tmp_path) as valkey, closing(SyncLedger(valkey.connection_url)) as ledger:
        ledger(announce(ACCOUNTS, ["results"]))
        ledger.many(accepted(-1 - number) for number in range(2))
        server: Any = ledger.redis
        for name, value in FAULTS[fault].items():
            if name == "replicaof":
                server.replicaof(*value.split())
            else:
                server.config_set(name, value)
        with pytest.raises(LedgerUnavailable):
            ledger.many(commands, patience=0.1)
        found = asyncio.run(use(valkey.connection_url))
        assert [type(one) for one in found] == [LedgerUnavailable] * count


def test_a_record_that_is_too_large_is_an_error_of_its_own(redis_url: str) -> None:
    """Alone, its answer would be too long to be read; those of the others are not."""

    async def use(ledger: AsyncLedger) -> None:
        await ledger.many(accepted(number) for number in range(4))
        ids = [str(accepted(number).args[0]) for number in range(4)]
        await ledger.redis.hset(job_key(ids[1]), "payload", "p" * 9_000_000)
        asked = (ledger(claim(one, ClaimRules("w", 60, 60, 3, 20), 0.5)) for one in ids)
        found = await asyncio.gather(*asked, return_exceptions=True)
        kinds = [type(one) for one in found]
        assert kinds == [Claim, redis.ResponseError, Claim, Claim]

    run(redis_url, use)


def test_a_caller_that_leaves_keeps_no_other_from_its_answer(redis_url: str) -> None:
    """Its command is sent all the same."""

    async def use(ledger: AsyncLedger) -> None:
        tasks = [asyncio.ensure_future(ledger(accepted(number))) for number in range(6)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found].count(Accepted) == 5
        again = await ledger(accepted(2))
        assert isinstance(again, Accepted)
        assert again.repeat

    run(redis_url, use)


def test_threads_send_what_they_accept_together(redis_url: str) -> None:
    """A producer's jobs, in the order in which it gave them; large ones in calls of their own."""
    with closing(SyncLedger(redis_url)) as ledger:
        ledger.redis.flushdb()
        ledger(announce(ACCOUNTS, ["results", "crm"]))
        sizes = [70_000 if number % 10 == 0 else 10 for number in range(100)]
        found = ledger.many(accepted(number, size) for number, size in enumerate(sizes))
        assert [one.job_id for one in found] == [accepted(number).args[0] for number in range(100)]
        again = ledger.many([accepted(1), accepted(200), accepted(200), accepted(2)])
        assert [one.repeat for one in again] == [True, False, True, True]
        ledger.redis.flushdb()
