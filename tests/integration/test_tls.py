"""Every client verifies the server's certificate and its host name; no setting turns this off."""

import asyncio
import gc
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from flower.utils.broker import Broker

from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.transitions import look
from regworker.results import ResultConsumer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, WebhookEndpoint
from tests.integration.installation import PATIENCE, ROOT, SECRET, ended, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import amqp_url
from tests.serving import serving
from tests.tls import KINDS, Authority, Front, fronts
from worker.celery import new_app
from worker.cli.local import stack
from worker.intake.job_stream import JobStream, Reader
from worker.monitoring.overview import Observer
from worker.providers import base
from worker.providers.http import HttpTransport
from worker.publishers import webhook

#: The kinds of servers behind TLS.
SERVERS = ("redis", "amqp", "http")

#: The cases: the server's certificate, and how the client knows its authority. Only the first two
#: are valid.
CASES = {
    "REGWORKER_CA_FILE": ("good", "REGWORKER_CA_FILE"),
    "SSL_CERT_FILE": ("good", "SSL_CERT_FILE"),
    "unknown authority": ("good", ""),
    # The authority is known as to every library: only the certificate can be wrong.
    **{kind: (kind, "SSL_CERT_FILE") for kind in KINDS[1:]},
}


@dataclass
class Servers:
    """Servers behind TLS, one for each kind of certificate."""

    authority: Authority
    fronts: dict[tuple[str, str], Front]
    amqp: str

    def settings(self, kind: str) -> Settings:
        """Settings that lead to the servers with that kind of certificate."""
        return Settings.load(
            redis_url=f"rediss://localhost:{self.fronts['redis', kind].port}/0",
            sealing_keys=Keyring.new("test"),
        )

    def amqps(self, kind: str) -> Settings:
        """The same settings with RabbitMQ as the broker."""
        parts = urlsplit(self.amqp)
        where = f"{parts.username}:{parts.password}@localhost:{self.fronts['amqp', kind].port}"
        url = urlunsplit(parts._replace(scheme="amqps", netloc=where))
        return Settings.load(redis_url="redis://127.0.0.1:1/0", broker_url=url, sealing_keys="")

    def https(self, kind: str) -> str:
        """The URL of a web server."""
        return f"https://localhost:{self.fronts['http', kind].port}/hook"

    def taken(self, kind: str) -> int:
        """How often a client accepted a certificate of that kind."""
        return sum(one.taken for (_, of), one in self.fronts.items() if of == kind)


class _Web(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Servers]:
    """Valkey, RabbitMQ and a web server behind TLS, with each kind of certificate."""
    authority, amqp = Authority(tmp_path_factory.mktemp("tls")), amqp_url()
    redis_port, amqp_port = urlsplit(redis_url).port or 0, urlsplit(amqp).port or 5672
    with serving(_Web) as port:
        ports = {"redis": redis_port, "amqp": amqp_port, "http": port}
        found = {
            (server, kind): Front(authority.certificate(kind), ports[server])
            for server in SERVERS
            for kind in KINDS
        }
        with fronts(*found.values()):
            yield Servers(authority, found, amqp)


def sync_ledger(servers: Servers, kind: str) -> bool:
    """The client of producers, the CLI and the quarantine."""
    with closing(SyncLedger(servers.settings(kind).redis_url)) as ledger:
        return bool(ledger.redis.ping())


def async_ledger(servers: Servers, kind: str) -> bool:
    """The worker's client: its shared connection and its other ones."""

    async def ask() -> bool:
        ledger = AsyncLedger(servers.settings(kind).redis_url)
        try:
            return (await ledger(look("nobody"), patience=0)) is None and bool(
                await ledger.redis.ping()
            )
        finally:
            await ledger.aclose()

    return asyncio.run(ask())


def job_stream(servers: Servers, kind: str) -> bool:
    """The connection on which a worker waits for the job stream."""

    async def ask() -> bool:
        nobody: Any = None
        url = servers.settings(kind).redis_url
        job_stream = JobStream(nobody, nobody, nobody, url, Reader("reader", 12))
        try:
            return bool(await job_stream._redis.ping())
        finally:
            await job_stream._redis.aclose()

    return asyncio.run(ask())


def results(servers: Servers, kind: str) -> bool:
    """A reader of results."""
    with ResultConsumer("tls", settings=servers.settings(kind)) as consumer:
        return bool(consumer._ledger.redis.ping())


def exporter(servers: Servers, kind: str) -> bool:
    """The exporter, `regworker top`, `stats`: the ledger and the broker."""
    with Observer(servers.settings(kind)) as observer:
        return observer.look().queues is not None


def command(servers: Servers, kind: str) -> bool:
    """A command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "stats", "--json"],
        env={**os.environ, "REGWORKER_REDIS_URL": servers.settings(kind).redis_url},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode == 0 and bool(json.loads(done.stdout))


def broker(servers: Servers, kind: str) -> bool:
    """Workers and publishers on Redis: a connection of their own, and a pooled one."""
    return _published(servers.settings(kind))


def amqps(servers: Servers, kind: str) -> bool:
    """The same, on RabbitMQ."""
    return _published(servers.amqps(kind))


def _published(settings: Settings) -> bool:
    app = new_app(settings)
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            connection.default_channel.queue_declare("tls", auto_delete=True)
        with app.producer_or_acquire() as producer:
            producer.publish("1", routing_key="tls")
        return True
    finally:
        app.close()


def flower(servers: Servers, kind: str) -> bool:
    """Flower's own reads of the broker's queues."""
    app = new_app(servers.settings(kind))
    uri = app.connection_for_read().as_uri(include_password=True)
    look_at = Broker(uri, broker_use_ssl=app.conf.broker_use_ssl, broker_options={})
    return bool(asyncio.run(look_at.queues(["registrations"])))


def provider(servers: Servers, kind: str) -> bool:
    """A call to a provider."""

    async def call() -> bool:
        transport = HttpTransport()
        send = transport.sender(lambda: True, PATIENCE, way=servers.settings(kind).way_out)
        try:
            found = await send(base.Request(servers.https(kind), {}))
        finally:
            await transport.aclose()
        if isinstance(found, base.NotSent):
            raise ConnectionError(found.reason)
        return isinstance(found, base.Answer)

    return asyncio.run(call())


def hook(servers: Servers, kind: str) -> bool:
    """A webhook."""
    url, way = servers.https(kind), servers.settings(kind).way_out
    endpoint = WebhookEndpoint(kind="webhook", url=url, secrets=[SECRET], allow_private=True)

    async def post() -> bool:
        publisher = webhook.WebhookPublisher(endpoint, way=way)
        try:
            found = await publisher.send("evt", b"{}")
        finally:
            await publisher.aclose()
        if isinstance(found, webhook.Unanswered):
            raise ConnectionError(found.reason)
        return True

    return asyncio.run(post())


Client = Callable[[Servers, str], bool]
CLIENTS: list[Client] = [
    *(sync_ledger, async_ledger, job_stream, results, exporter, command),
    *(broker, amqps, flower, provider, hook),
]


# A refused connection is closed in a later turn of the event loop, which has ended by then. It is
# collected in the same test, so that no other one gets the warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_a_client_takes_a_certificate_only_of_this_host_by_an_authority_that_is_known(
    servers: Servers, client: Client, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it sends nothing at all: no password, no command, no payload."""
    kind, trust = CASES[case]
    for name in ("REGWORKER_CA_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    if trust:
        monkeypatch.setenv(trust, str(servers.authority.file))
    monkeypatch.setenv("REGWORKER_SEALING_KEYS", Keyring.new("test"))
    before = servers.taken(kind)
    try:
        reached = client(servers, kind)
    except Exception as error:
        if case in {"REGWORKER_CA_FILE", "SSL_CERT_FILE"}:
            raise
        assert "certificate" in _words(error)  # noqa: PT017 -- also those without one pass here
        reached = False
    if not reached:
        gc.collect()
    assert reached is (case in {"REGWORKER_CA_FILE", "SSL_CERT_FILE"})
    assert (servers.taken(kind) > before) is reached


def _words(error: BaseException | None) -> str:
    return f"{error} {_words(error.__cause__ or error.__context__)}".lower() if error else ""


def test_a_worker_lives_behind_tls(servers: Servers, tmp_path: Path) -> None:
    """Ledger and broker are one server whose authority is known only by `REGWORKER_CA_FILE`: a job
    is accepted, woken, called and finished.
    """
    with installation(tmp_path, workers=0, broker_url="") as here:
        front = Front(servers.authority.certificate("good"), here.valkey.port)
        with fronts(front):
            url = f"rediss://localhost:{front.port}/0"
            here.start_worker(redis_url=url, ca_file=servers.authority.file)
            stack.wait_for_worker(here.ledger, here.workers[0])
            assert here.run(skypostal())["type"] == "registration.registered"
            stack.stop(here.workers[0])


def test_celeryconfig_cannot_switch_verification_off(tmp_path: Path) -> None:
    """Nor with Celery's own name for TLS, under which Celery verifies nothing by default."""
    (tmp_path / "celeryconfig.py").write_text("broker_use_ssl = {'ssl_cert_reqs': 0}\n")
    environment = {"REGWORKER_SEALING_KEYS": Keyring.new("test"), "PYTHONPATH": str(ROOT)}
    done = ended(stack.worker_command(), environment, tmp_path)
    assert done.returncode == 1
    assert "broker_use_ssl (in celeryconfig.py)" in done.stderr
    assert "REGWORKER_CA_FILE" in done.stderr


@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
def test_a_broker_is_verified_after_a_failover_too(scheme: str) -> None:
    """kombu starts anew, with its own defaults, for each URL of a list."""
    given = ";".join(f"{scheme}://{host}:1/0" for host in ("one", "two"))
    app = new_app(Settings.load(broker_url=given, sealing_keys=""))
    with app.connection_for_write() as connection:
        for host in ("one", "two", "one"):
            assert connection.hostname == host
            if scheme == "rediss":
                assert connection.ssl["ssl_cert_reqs"] == ssl.CERT_REQUIRED
                assert connection.ssl["ssl_check_hostname"] is True
            else:
                assert connection.ssl["server_hostname"] == host
            connection.maybe_switch_next()
    app.close()
