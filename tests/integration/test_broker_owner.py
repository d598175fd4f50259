"""Two installations on one broker would take each other's messages: the second one refuses."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from kombu import Connection

from regworker.ledger.identity import IDENTITY
from tests.integration.brokers import BROKERS
from tests.integration.installation import PATIENCE, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import borrowed, rabbitmqctl
from worker.broker.broker_owner import OWNER, BrokerOwner
from worker.cli.local import stack


@contextmanager
def a_broker(folder: Path, kind: str) -> Iterator[str]:
    """The URL of a broker."""
    if kind == "rabbitmq":
        with borrowed() as url:
            yield url
    else:
        with stack.valkey(folder) as server:
            yield server.connection_url


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_serves_one_installation(tmp_path: Path, kind: str) -> None:
    """The other's worker does not start, and its message names both settings."""
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        a_broker(tmp_path, kind) as url,
        installation(tmp_path / "a", broker_url=url) as first,
        installation(tmp_path / "b", workers=0, broker_url=url) as second,
    ):
        first.wait_for_line("ready.")
        assert second.start_worker().wait(PATIENCE) == 1
        said = second.log().read_text("utf-8")
        assert "REGWORKER_BROKER_URL" in said
        assert "REGWORKER_REDIS_URL" in said
        assert "Traceback" not in said
        first.start_worker()
        first.wait_for_line("ready.", 1)
        assert first.run(skypostal())["type"] == "registration.registered"


def test_a_worker_notices_another_installation_and_keeps_working(tmp_path: Path) -> None:
    """For example if the broker was emptied, and the other was started first."""
    with installation(tmp_path, broker_url="") as here:
        here.wait_for_line("ready.")
        here.ledger.ask(lambda redis: redis.set(OWNER, "another"))
        here.wait_for_line("the broker belongs to another installation")
        assert here.run(skypostal())["type"] == "registration.registered"


def test_an_emptied_ledger_keeps_its_broker(tmp_path: Path) -> None:
    """Running workers give it its name again, so that new ones start beside them."""
    with (
        stack.valkey(tmp_path) as broker,
        installation(tmp_path, broker_url=broker.connection_url) as here,
    ):
        here.wait_for_line("ready.")

        def name() -> Any:
            return here.ledger.ask(lambda redis: redis.hget(IDENTITY, "installation"))

        before = name()
        here.ledger.ask(lambda redis: redis.flushall())
        # A worker that is just being started may be faster.
        here.ledger.ask(lambda redis: redis.hset(IDENTITY, "installation", "another"))
        stack.until(lambda: name() == before, "the ledger's name", PATIENCE)
        here.start_worker()
        here.wait_for_line("ready.", 1)


def test_the_key_goes_without_its_workers(tmp_path: Path) -> None:
    """A new ledger may have the broker some time later, and nobody must clear anything."""
    with installation(tmp_path, broker_url="") as here:
        here.wait_for_line("ready.")
        assert 0 < here.ledger.ask(lambda redis: redis.ttl(OWNER)) <= 60


def test_workers_agree_after_ledger_and_broker_were_emptied(tmp_path: Path) -> None:
    """If one that is just being started is faster, its name stays, and the others take it."""

    async def names(url: str) -> list[str]:
        async with redis.asyncio.Redis.from_url(url) as server:
            old, new = BrokerOwner(), BrokerOwner()

            async def look(worker: BrokerOwner) -> bool:
                await worker.learn(server)
                return await worker.claim(server)

            assert await look(old)
            await server.flushall()
            assert await look(new)
            for worker in (old, new, old, new):
                await look(worker)
            assert await look(old)
            assert await look(new)
            found = await server.hget(IDENTITY, "installation"), await server.get(OWNER)
            return [one.decode() for one in found]

    with stack.valkey(tmp_path) as server:
        ledger, broker = asyncio.run(names(server.connection_url))
        assert ledger == broker


def test_an_exchange_without_a_queue_is_nobodys(tmp_path: Path) -> None:
    """A worker was killed between two commands; RabbitMQ would keep its exchange for ever."""
    with borrowed() as url:
        with Connection(url) as connection:
            connection.default_channel.exchange_declare(
                OWNER,
                "fanout",
                durable=False,
                auto_delete=True,
                arguments={"alternate-exchange": f"{OWNER}.another"},
            )
        with installation(tmp_path, broker_url=url) as here:
            here.wait_for_line("ready.")


def test_a_virtual_host_without_room_is_not_taken_for_anothers(tmp_path: Path) -> None:
    """RabbitMQ refuses a queue beyond the limit with the same code as a wrong exchange."""
    with borrowed() as url:
        name = url.rpartition("/")[2]
        with installation(tmp_path, broker_url=url) as here:
            here.wait_for_line("ready.")
            # What a worker needs besides, and nothing for its mark.
            rabbitmqctl("set_vhost_limits", "-p", name, '{"max-queues": 7}')
            try:
                here.start_worker()
                here.wait_for_line("it is not known whose broker this is", 1)
                here.wait_for_line("ready.", 1)
            finally:
                rabbitmqctl("clear_vhost_limits", "-p", name)
