"""Every setting with a URL, every odd URL, every entry point: it works, or the error says what to
do."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from regworker import AsyncProducer, AsyncResultConsumer, Producer, ResultConsumer
from regworker.domain.errors import SettingsError, UnknownJob
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.conftest import start_valkey
from tests.integration.installation import SECRET
from worker import celery
from worker.broker.wakeups import Wakeups
from worker.cli.app import run
from worker.monitoring.overview import Observer
from worker.process.runtime import Runtime

#: Part of each password; no part of it may be shown.
CANARY = ("canary", "kanari")

#: By setting: the settings that go with it, and the form of a valid URL.
SETTINGS = {
    "REDIS_URL": {},
    "BROKER_URL": {},
    "ENDPOINTS__CRM__URL": {"ENDPOINTS__CRM__KIND": "webhook", "ENDPOINTS__CRM__SECRETS": SECRET},
    "ACCOUNTS__OPEN2B__EU__BASE_URL": {},
    "SENTRY_DSN": {},
    "OUTBOX_URL": {},
    "PROXY": {},
}

SERVERS = ("REDIS_URL", "BROKER_URL")
WEB = ("ENDPOINTS__CRM__URL", "ACCOUNTS__OPEN2B__EU__BASE_URL", "SENTRY_DSN")

#: Refused: the settings, the URL, and a word of the advice.
REFUSED: list[tuple[tuple[str, ...], str, str]] = [
    (SERVERS, "redis://:canary#kanari@h:6379/0", "%23"),
    (SERVERS, "redis://:canary[kanari@h:6379/0", "%5B"),
    (SERVERS, "redis://:canary]kanari@h:6379/0", "%5D"),
    (SERVERS, "redis://:canary/kanari@h:6379/0", "%2F"),
    (SERVERS, "redis://:canary?kanari@h:6379/0", "%3F"),
    (SERVERS, "redis://:canary;kanari@h:6379/0", "%3B"),
    (SERVERS, "redis://:canary kanari@h:6379/0", "percent-encode"),
    (SERVERS, "redis://:canary\\kanari@h:6379/0", "percent-encode"),
    (SERVERS, "redis://:canary@h:kanari/0", "port"),
    (SERVERS, "redis://:canary@h:99999/0", "port"),
    (SERVERS, "redis://:canary@h:0/0", "port"),
    (SERVERS, "redis://:canary@:6379/0", "no host"),
    (SERVERS, "redis://", "no host"),
    (SERVERS, "redis://:canary@[::1/0", "%5B"),
    (SERVERS, "redis://:canary@h/kanari", "database"),
    (SERVERS, "redis://:canary@h/1?db=2", "twice"),
    (SERVERS, "redis://:canary@h/0?color=kanari", "known:"),
    (SERVERS, "redis://:canary@h/0?socket_timeout=kanari", "known:"),
    (SERVERS, "redis://:canary@h/0?retry_on_error=kanari", "known:"),
    (SERVERS, "redis://:canary@h/0?kanari=1", "known:"),
    (SERVERS, "redis://:canary@h/0?sslkanari=1", "always verified"),
    (SERVERS, "redis://:canary@h/0?db=1&db=kanari", "twice"),
    (SERVERS, "rediss://u:canary\uff1fkanari@h:6379/0", "percent-encode"),
    (SERVERS, "sentinel://u:canary\uff1akanari@h:26379/main/0", "percent-encode"),
    (SERVERS, "redis://:canary@h/0?protocol=kanari", "protocol"),
    (SERVERS, "rediss://:canary@h/0?ssl_cert_reqs=none", "always verified"),
    (SERVERS, "unix://:canary@kanari", "socket"),
    (SERVERS, "sentinel://:canary@h:26379/0", "service"),
    (SERVERS, "sentinel://:canary@h:26379,kanari:x/main/0", "port"),
    (SERVERS, "sentinel://:canary@h:26379,,/main/0", "no host"),
    (SERVERS, "memcached://:canary@kanari", "redis://"),
    (SERVERS, "canary", "redis://"),
    (SERVERS, "redis:/canary@kanari", "redis://"),
    (SERVERS, '"', "redis://"),
    (("REDIS_URL",), "amqp://u:canary@kanari", "redis://"),
    (("REDIS_URL",), "redis://:canary@h;redis://:kanari@g", "sentinel://"),
    (("BROKER_URL",), "amqp://u:canary@h;redis://:kanari@g", "one"),
    (("BROKER_URL",), "amqp://u:canary@h/v?color=kanari", "known:"),
    (("BROKER_URL",), "amqp://u:canary@h:kanari/v", "port"),
    (("BROKER_URL",), "amqp://:?canaryzzx;canaryzz@h/0", "known:"),
    (("BROKER_URL",), "amqps://u:canary\u2100kanari@h/v", "percent-encode"),
    (("BROKER_URL",), "amqp://u:canary#kanari@h/v", "%23"),
    (("BROKER_URL",), "amqp://u:canary%zzkanari@h//", "% is %25"),
    (("BROKER_URL",), "amqp://u:kanari@h//;amqp://u:canary%@h//", "% is %25"),
    (SERVERS, "sentinel://u:canary%ffkanari@h:26379/main/0", "% is %25"),
    (WEB, "ftp://canary@kanari/1", "http"),
    (WEB, "canary", "http"),
    (WEB, "https://canary:kanari", ""),
    (WEB, "https://[canary/1", ""),
    (WEB[:2], "https://h/canary%zz/kanari", "%25"),
    (WEB[:1], "https://h/?canary=%ff&kanari=%", "%25"),
    (WEB[1:2], "https://h/canary%ff/kanari", "%25"),
    (("PROXY",), "http://u:canary%zzkanari@h:3128", "%25"),
    (("OUTBOX_URL",), "canary://kanari:x@h/d", "dialect+driver://"),
    (("OUTBOX_URL",), "postgresql+psycopg://u:canary@h:kanari/d", "dialect+driver://"),
    (("OUTBOX_URL",), "canary", "dialect+driver://"),
]


def producer() -> None:
    """A service."""
    with Producer():
        pass


def async_producer() -> None:
    """A service with an event loop."""

    async def make() -> None:
        async with AsyncProducer():
            pass

    asyncio.run(make())


def consumer() -> None:
    """A reader of results."""
    with ResultConsumer("g"):
        pass


def async_consumer() -> None:
    """The same with an event loop."""

    async def make() -> None:
        async with AsyncResultConsumer("g"):
            pass

    asyncio.run(make())


def observer() -> None:
    """The exporter, top, stats, health."""
    with Observer(Settings.load()):
        pass


def runtime() -> None:
    """The worker's own runtime."""
    Runtime(Settings.load(), celery.new_app(Settings.load()))


CALLS: list[Callable[[], None]] = [
    *(producer, async_producer, consumer, async_consumer, observer, runtime)
]
COMMANDS = ("stats", "doctor", "status nobody", "results groups", "outbox relay --once")


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the variables."""
    monkeypatch.setenv("REGWORKER_SEALING_KEYS", Keyring.new("test"))
    for name in ("REDIS_URL", "BROKER_URL"):
        monkeypatch.delenv(f"REGWORKER_{name}", raising=False)

    def set_(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"REGWORKER_{name}", value)

    return set_


CASES = [(name, url, word) for names, url, word in REFUSED for name in names]


@pytest.mark.parametrize(("name", "url", "word"), CASES)
def test_what_cannot_be_read_in_one_way_is_refused_by_name_everywhere(
    environ: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    name: str,
    url: str,
    word: str,
) -> None:
    """Worker, service and command say what to do, without any part of a password."""
    environ(**SETTINGS[name], **{name: url})
    said: dict[str, str] = {}
    # Only a worker reads accounts; only the outbox's relay reads its database's URL.
    calls = {"ACCOUNTS__OPEN2B__EU__BASE_URL": [runtime], "OUTBOX_URL": []}.get(name, CALLS)
    for call in calls:
        with pytest.raises(SettingsError) as caught:
            call()
        [(variable, what)] = caught.value.problems
        assert variable == f"REGWORKER_{name}"
        said[call.__name__] = what
        assert caught.value.__cause__ is None
    if name not in {"ACCOUNTS__OPEN2B__EU__BASE_URL", "OUTBOX_URL"}:
        with pytest.raises(SystemExit):
            celery._from_environment()
        said["celery"] = capsys.readouterr().err
    commands = {"ACCOUNTS__OPEN2B__EU__BASE_URL": (), "OUTBOX_URL": COMMANDS[-1:]}
    for command in commands.get(name, COMMANDS):
        assert run(command.split()) == 1
        out, said[command] = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in said[command]
        assert f"REGWORKER_{name}" in said[command]
    for text in said.values():
        assert word in text
        assert not [part for part in CANARY if part in text]


@dataclass
class Servers:
    """A server with a password, with every form of URL for it."""

    tcp: str
    socket: Path
    password: str

    def url(self, form: str) -> str:
        """A URL of a form, with the password escaped."""
        port = str(urlsplit(self.tcp).port)
        return form.format(port=port, socket=self.socket, password="ca%23%5B%2F%3F%40nary")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server for this module."""
    folder = tmp_path_factory.mktemp("s")
    password, socket = "ca#[/?@nary", folder / "s"
    started = start_valkey(unixsocket=str(socket), bind="127.0.0.1 -::1")
    found = Servers(started.connection_url, socket, password)
    with Producer(redis_url=started.connection_url, sealing_keys=Keyring.new("a")) as plain:
        redis: Any = plain._shell._ledger.redis
        redis.acl_setuser(
            "u",
            enabled=True,
            passwords=[f"+{password}"],
            commands=["+@all"],
            keys=["*"],
            channels=["*"],
        )
    yield found
    started.stop()


WORKS = [
    "redis://u:{password}@127.0.0.1:{port}/0",
    "'redis://u:{password}@127.0.0.1:{port}/0'",
    '  "redis://u:{password}@localhost:{port}"  ',
    "REDIS://u:{password}@localhost:{port}/",
    "valkey://u:{password}@localhost:{port}/3",
    "redis://u:{password}@localhost:{port}?db=3",
    "redis://u:{password}@localhost:{port}/0?protocol=3",
    "redis://u:{password}@localhost:{port}/0?protocol=2",
    "redis://u:{password}@[::1]:{port}/0",
    "unix://u:{password}@{socket}",
    "unix://u:{password}@{socket}?db=3",
    "redis+socket://u:{password}@{socket}?virtual_host=3",
]


@pytest.mark.parametrize("form", WORKS)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a service's own"])
def test_what_can_be_read_works_everywhere(
    environ: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: Servers,
    form: str,
    beside: bool,
) -> None:
    """As the ledger and as the broker; the broker in Celery's own variables belongs to the
    surrounding service and is not used.
    """
    environ(REDIS_URL=server.url(form), BROKER_URL=server.url(form))
    if beside:
        for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
            monkeypatch.setenv(name, "redis://127.0.0.1:1/0")
        for name in ("BROKER_URL", "REDIS_URL", "CELERY_RESULT_BACKEND"):
            monkeypatch.setenv(name, "redis://127.0.0.1:1/0")
    with Producer() as one, pytest.raises(UnknownJob):
        one.status("nobody")

    async def ask() -> None:
        async with AsyncProducer() as one:
            with pytest.raises(UnknownJob):
                await one.status("nobody")
        async with AsyncResultConsumer("g") as reader:
            assert await reader.receive(0.0) == []

    asyncio.run(ask())
    with ResultConsumer("g") as reader:
        assert reader.receive(0.0) == []
    settings = Settings.load()
    with Observer(settings) as eyes:
        assert eyes.look().queues is not None
    app = celery.new_app(settings)
    assert Wakeups(app).envelopes(settings.redis_url), "the broker is the ledger's server"
    with app.connection_for_write() as connection:
        shown = connection.as_uri() + repr(connection)
    app.close()
    assert run(["stats", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)
    for text in (shown, err, repr(settings)):
        assert "nary" not in text.replace("canary", "")
