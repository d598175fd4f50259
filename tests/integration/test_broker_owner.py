"""Two installations on one broker would take each other's messages: the second one refuses."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from kombu import Connection
from redis import Redis

from regworker.ledger.identity import IDENTITY
from regworker.settings import Settings
from tests.integration.brokers import BROKERS
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import borrowed, rabbitmqctl
from worker.broker.broker_owner import OWNER, BrokerOwner
from worker.cli.local import stack
from worker.monitoring import prometheus
from worker.monitoring.overview import Observer
from worker.operations.admin_actions import AdminActions


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
        until_the_doctor_says(here, "unsafe")
        assert b'regworker_workers_at_broker{owner="other"} 1.0' in metrics(here)
        here.ledger.ask(lambda redis: redis.delete(OWNER))
        until_the_doctor_says(here, "ok")
        assert b'regworker_workers_at_broker{owner="this"} 1.0' in metrics(here)


def test_a_worker_that_may_not_look_whose_broker_it_is_says_so(tmp_path: Path) -> None:
    """Its jobs go on; otherwise nobody would know that a second installation is not noticed."""
    with stack.valkey(tmp_path) as server:
        url = urlsplit(server.connection_url)
        # A key that is denied to a user who may use all others.
        with Redis.from_url(server.connection_url) as broker:
            ours = ["registrations", "registrations[^.]*", "registrations.[b-hj-z]*"]
            broker.acl_setuser(
                "narrow", enabled=True, passwords=["+pw"], categories=["+@all"], channels=["*"],
                keys=["_kombu.*", "unacked*", "celeryev*", "*.pidbox*", *ours],
            )  # fmt: skip
        narrow = url._replace(netloc=f"narrow:pw@{url.netloc}").geturl()
        with installation(tmp_path, broker_url=narrow) as here:
            here.wait_for_line("it is not known whose broker this is")
            until_the_doctor_says(here, "warning")


def until_the_doctor_says(here: Installation, level: str) -> None:
    """Wait until the doctor reports the broker's owner so."""
    settings = Settings.load(redis_url=here.environment["REGWORKER_REDIS_URL"], sealing_keys=KEYS)

    def said() -> bool:
        with AdminActions(settings) as admin:
            found = {one.subject: one.level for one in admin.examine()}
        return found.get("broker's owner") == level

    stack.until(said, f"the doctor says {level}", PATIENCE)


def metrics(here: Installation) -> bytes:
    """What the exporter shows."""
    url = here.environment["REGWORKER_REDIS_URL"]
    with Observer(Settings.load_for_client(redis_url=url, sealing_keys="")) as observer:
        return prometheus.of_all(observer.look())


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


async def looks(worker: BrokerOwner, ledger: Any, broker: Any) -> bool:
    """A look of a worker, as its runtime takes every ten seconds: whether the broker is its own."""
    await worker.learn(ledger)
    found = await worker.claim(broker, lambda: worker.learn(ledger))
    await worker.keep(ledger)
    return found == "this"


def test_workers_agree_after_ledger_and_broker_were_emptied(tmp_path: Path) -> None:
    """If one that is just being started is faster, its name stays, and the others take it. None is
    refused or reported meanwhile."""

    async def names(url: str) -> list[str]:
        async with redis.asyncio.Redis.from_url(url) as server:
            old, new, newest = BrokerOwner(), BrokerOwner(), BrokerOwner()

            assert await looks(old, server, server)
            await server.flushall()
            for worker in (new, old, newest, new, old):
                assert await looks(worker, server, server)
            found = await server.hget(IDENTITY, "installation"), await server.get(OWNER)
            return [str(one) for one in found]

    with stack.valkey(tmp_path) as server:
        ledger, broker = asyncio.run(names(server.connection_url))
        assert ledger == broker


def test_on_rabbitmq_a_worker_has_the_broker_again_without_the_other(tmp_path: Path) -> None:
    """The other installation's worker has ended: the alert ends by itself, as the runbook says."""
    with borrowed() as url, installation(tmp_path, broker_url=url) as here:
        here.wait_for_line("ready.")
        until_the_doctor_says(here, "ok")
        with Connection(url) as other:
            channel = other.default_channel
            channel.exchange_delete(OWNER)
            name = {"alternate-exchange": f"{OWNER}.another"}
            channel.exchange_declare(
                OWNER, "fanout", durable=False, auto_delete=True, arguments=name
            )
            channel.queue_declare("others", exclusive=True, durable=False)
            channel.queue_bind("others", OWNER)
            until_the_doctor_says(here, "unsafe")
        until_the_doctor_says(here, "ok")


def test_a_ledger_that_was_emptied_gets_its_name_again(tmp_path: Path) -> None:
    """Its broker has the name: a worker that has just been started takes it, too."""

    async def turns(url: str, other: str) -> list[bool]:
        async with (
            redis.asyncio.Redis.from_url(url) as ledger,
            redis.asyncio.Redis.from_url(other) as broker,
        ):
            old, new = BrokerOwner(), BrokerOwner()

            assert await looks(old, ledger, broker)
            await ledger.flushdb()
            return [await looks(worker, ledger, broker) for worker in (new, old, new)]

    with stack.valkey(tmp_path) as server:
        url = server.connection_url
        assert asyncio.run(turns(f"{url}/0", f"{url}/1")) == [False, True, True]


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


def test_a_worker_that_lost_a_race_does_not_keep_the_others_exchange() -> None:
    """When the other installation is stopped, the broker is free, although this worker runs on."""
    with borrowed() as url, Connection(url) as mine, Connection(url) as next_one:
        others = Connection(url)

        class Slow(BrokerOwner):
            """Another installation comes between its two commands."""

            rival: BrokerOwner | None = BrokerOwner()

            def _declared(self, connection: Any) -> bool:
                done = super()._declared(connection)
                if self.rival is not None:
                    rival, self.rival = self.rival, None
                    assert rival.claim_rabbitmq(others, "rival") == "this"
                return done

        assert Slow().claim_rabbitmq(mine, "slow") == "other"
        others.release()
        free = BrokerOwner()
        stack.until(lambda: free.claim_rabbitmq(next_one, "next") == "this", "it is free", PATIENCE)


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
