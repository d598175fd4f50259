"""Ledger and broker behind Sentinels: all clients follow a failover without a restart."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from regworker import AsyncProducer, AsyncResultConsumer, Producer
from regworker.domain.errors import SettingsError
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import quarantined
from regworker.ledger.steps import carry
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, installation
from tests.integration.jobs import skypostal
from tests.integration.load import doctors, load, regworker
from tests.sentinels import SERVICE, Sentinels, sentinels
from worker.broker.wakeups import QUEUES
from worker.celery import new_app
from worker.cli.local import stack
from worker.monitoring.overview import Observer

#: This file starts many programs, one after the other; each may be slow on a busy machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """For tests that do not change the primary."""
    with sentinels(tmp_path_factory.mktemp("sentinels")) as here:
        yield here


def test_a_failover_under_load_is_followed_without_a_restart(tmp_path: Path) -> None:
    """kill -9 of the primary: the same worker and producer continue, each job is published, and
    malformed messages are set aside. The doctor's report is right before and after.
    """
    with (
        # No claim or acceptance is lost: one replica has it before the answer.
        sentinels(tmp_path / "servers", min_replicas_to_write="1") as servers,
        installation(tmp_path, ledger_url=servers.url(), broker_url="") as here,
    ):
        here.wait_for_line("ready.")
        assert doctors(here)["role"]["found"] == "primary"
        assert doctors(here)["broker"]["level"] == "ok"
        with load(here) as running:
            stack.until(lambda: len(running.published) > 20, "results", PATIENCE)
            killed = servers.kill_primary()
            # Nothing is reported as healthy meanwhile: `doctor` and `health` say that the primary
            # is away.
            servers.wait_for_failover()
            after = len(running.published)
            stack.until(lambda: len(running.published) > after + 20, "results again", PATIENCE)
        assert here.workers[0].poll() is None
        here.ledger.ask(
            lambda redis: redis.lpush(QUEUES["live"], "junk", b"\xff\xfe", "[1"), PATIENCE
        )
        stack.until(lambda: here.ledger(quarantined(10))[0] == 3, "three in quarantine", PATIENCE)
        assert here.run(skypostal(lane="live"))["type"] == "registration.registered"
        found = doctors(here)
        assert found["role"]["found"] == "primary"
        assert found["broker"]["level"] == "ok"
        assert found["sentinels"]["found"].startswith("3 know each other, quorum 2")
        assert regworker(here, "health").returncode == 0
        exported = regworker(here, "exporter", "--once").stdout
        assert "regworker_ledger_up 1" in exported
        # The old primary comes back as a replica and is not used.
        killed.start()
        stack.until(lambda: killed.info()["role"] == "slave", "a replica again", PATIENCE)
        assert here.run(skypostal())["type"] == "registration.registered"
        assert [len(ids) for ids in running.published.values() if len(ids) != 1] == []


def test_who_looks_is_told_while_there_is_no_primary(tmp_path: Path) -> None:
    """The doctor, health and the exporter report it in a sentence, without a traceback."""
    with (
        sentinels(tmp_path / "servers", replicas=1) as servers,
        installation(tmp_path, workers=0, ledger_url=servers.url(), broker_url="") as here,
    ):
        for one in servers.servers:
            one.kill()
        for command in (["doctor"], ["health"], ["stats"], ["status", "nobody"]):
            done = regworker(here, *command)
            assert done.returncode == 1
            assert "did not answer" in done.stderr + done.stdout
            assert "Traceback" not in done.stderr
        done = regworker(here, "exporter", "--once")
        assert done.returncode == 1
        assert "regworker_ledger_up 0" in done.stdout
        for one in servers.sentinels:
            one.kill()
        done = regworker(here, "stats")
        assert done.returncode == 1
        assert "no Sentinel answered" in done.stderr


def test_a_primary_that_was_demoted_is_not_used(tmp_path: Path) -> None:
    """It was frozen and replaced; when it wakes as a primary, all clients use the new one."""
    with (
        sentinels(tmp_path) as servers,
        Producer(redis_url=servers.url(), sealing_keys=KEYS) as producer,
    ):
        ledger: SyncLedger = producer._shell._ledger
        ledger.ask(lambda redis: redis.set("before", 1))
        old = servers.freeze_primary()
        new = servers.wait_for_failover()
        ledger.ask(lambda redis: redis.set("after", 1), PATIENCE)
        old.thaw()
        for _ in range(50):
            ledger.ask(lambda redis: redis.incr("after"), PATIENCE)
            ledger.redis.connection_pool.disconnect()
        with new.client() as client:
            assert client.get("after") == b"51"


def test_a_sentinel_that_is_behind_is_outvoted(servers: Sentinels) -> None:
    """The majority counts; of two answers, that of the later failover."""
    from regworker.ledger.servers import Sentinels as Asked

    roles = {
        1: {"ip": "old", "port": "1", "config-epoch": "3"},
        2: {"ip": "new", "port": "2", "config-epoch": "4"},
        3: OSError("away"),
    }
    asked = Asked((("s", 1), ("s", 3), ("s", 2)), SERVICE, {})
    order: list[int] = []

    def ask(place: tuple[str, int]) -> dict[str, str]:
        order.append(place[1])
        match roles[place[1]]:
            case OSError() as error:
                raise error
            case answer:
                return answer

    found = carry(asked._asking(), ask)
    assert found == ("new", 2)
    assert order == [1, 3, 2]
    assert asked._order == (("s", 1), ("s", 2), ("s", 3))


def test_every_client_reaches_the_primary(servers: Sentinels) -> None:
    """Sync and asynchronous, producers and consumers, the broker and monitoring."""
    settings = Settings.load(redis_url=servers.url(3), sealing_keys=KEYS)
    port = servers.primary.port

    async def ask() -> None:
        async with AsyncProducer(settings) as producer:
            assert (await producer._shell.ledger.redis.info())["tcp_port"] == port
        async with AsyncResultConsumer("g", settings=settings) as reader:
            assert await reader.receive(0.0) == []
        ledger = AsyncLedger(servers.url())
        assert await ledger.now() > 0
        await ledger.aclose()

    asyncio.run(ask())
    with Observer(settings) as eyes:
        found = eyes.look()
        assert found.server.primary
        assert found.queues is not None
    app = new_app(settings)
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        assert client.info()["tcp_port"] == port
        assert client.connection_pool.connection_kwargs["db"] == 3
    app.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:{sentinel}/0", "is a Sentinel"),
        ("redis://127.0.0.1:{sentinel}/1", "is a Sentinel"),
        ("sentinel://127.0.0.1:{sentinel}/nobody/0", "know no service"),
        ("sentinel://127.0.0.1:{server}/ledger/0", "is not a Sentinel"),
    ],
)
def test_a_mix_up_of_servers_and_sentinels_is_told(
    servers: Sentinels, url: str, words: str
) -> None:
    """At first use, with the variable's name: in a worker and in a service, sync or not."""
    given = url.format(sentinel=servers.sentinels[0].port, server=servers.primary.port)
    with (
        Producer(redis_url=given, sealing_keys=KEYS) as producer,
        pytest.raises(SettingsError, match=f"REGWORKER_REDIS_URL: .*{words}"),
    ):
        producer.status("nobody")

    async def ask() -> None:
        async with AsyncProducer(redis_url=given, sealing_keys=KEYS) as producer:
            with pytest.raises(SettingsError, match=f"REGWORKER_REDIS_URL: .*{words}"):
                await producer.status("nobody")

    asyncio.run(ask())


def test_sentinels_may_have_a_password_of_their_own(tmp_path: Path) -> None:
    """As an option of the URL; the servers' own password needs no option."""
    with sentinels(tmp_path, replicas=1, watchers=1) as servers:
        for one in servers.servers:
            with one.client() as client:
                client.config_set("masterauth", "data")
                client.config_set("requirepass", "data")
        with servers.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "SET", SERVICE, "auth-pass", "data")

        def reached(options: str = "") -> Any:
            host = f"127.0.0.1:{servers.sentinels[0].port}"
            url = f"sentinel://:data@{host}/{SERVICE}/0{options}"
            with closing(SyncLedger(url)) as ledger:
                return ledger.now()

        def demand(password: str) -> None:
            with servers.sentinels[0].client() as client:
                client.acl_setuser(
                    "watched",
                    enabled=True,
                    passwords=[f"+{password}"],
                    commands=["+@all"],
                    channels=["*"],
                )
                client.execute_command("ACL", "SETUSER", "default", "resetpass", f">{password}")

        assert reached() > 0
        demand("data")
        assert reached() > 0
        with servers.sentinels[0].client("watched", "data") as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", ">own")
        assert reached("?sentinel_password=own") > 0
        assert reached("?sentinel_username=watched&sentinel_password=data") > 0
        with pytest.raises(SettingsError, match="sentinel_password"):
            reached()
