"""Webhooks on the wire: signed, limited in time and size, and never sent into a private network."""

import asyncio
import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from regworker import look_ups
from regworker.settings import WebhookEndpoint
from regworker.way_out import WayOut
from sandbox.server import ReceiverServer
from tests.doubles import differing
from tests.integration.outbox import Cli
from tests.loops import end_all
from tests.open_files import no_more
from tests.tls import SIGNS
from tests.unit.providers.test_http_answers import WAITS
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.http import HttpTransport
from worker.publishers import webhook
from worker.publishers.base import Arrived, Delivered, Gone, Later
from worker.publishers.webhook import WebhookPublisher

OLD, NEW = (
    "whsec_" + base64.b64encode(one).decode()
    for one in (b"the secret that we had before", b"the secret that we have now")
)
EVENT = json.dumps({"id": "e1", "type": "registration.registered", "subject": "j1"}).encode()


class Authority:
    """Signs certificates."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = (
            self._builder(self._name, self._key, (-9, 9))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(SIGNS, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
        )
        self.certificate = made.sign(self._key, hashes.SHA256()).public_bytes(PEM)

    def issue(self, host: str, days: tuple[int, int], *, alone: bool) -> bytes:
        """A certificate with its key, valid from and until so many days from now.

        `alone`: self-signed.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        signer = key if alone else self._key
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        made = (
            self._builder(name, key, days, name if alone else self._name)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(by, critical=False)
        )
        signed = made.sign(signer, hashes.SHA256())
        form = serialization.PrivateFormat.PKCS8
        private = key.private_bytes(PEM, form, serialization.NoEncryption())
        return signed.public_bytes(PEM) + private

    @staticmethod
    def _builder(
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: tuple[int, int],
        issuer: x509.Name | None = None,
    ) -> x509.CertificateBuilder:
        now, serial = datetime.now(UTC), x509.random_serial_number()
        builder = x509.CertificateBuilder(issuer or name, name, key.public_key(), serial)
        return builder.not_valid_before(now + timedelta(days[0])).not_valid_after(
            now + timedelta(days[1])
        )


PEM = serialization.Encoding.PEM

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


#: The faults of a certificate, and their names.
FAULTS = {
    "expired": "certificate expired",
    "not valid yet": "certificate not valid yet",
    "other host": "certificate is for another host",
    "unknown CA": "certificate of an unknown CA",
    "self-signed": "certificate of an unknown CA",
}


@pytest.fixture(scope="module")
def running() -> Iterator[ReceiverServer]:
    """One receiver for this file; it knows only the old secret."""
    with ReceiverServer([OLD]) as server:
        yield server


@pytest.fixture
def receiver(running: ReceiverServer) -> ReceiverServer:
    """The receiver in its initial state."""
    running.receiver.reset()
    return running


def endpoint(url: str, *secrets: str, **options: Any) -> WebhookEndpoint:
    """An endpoint for development, unless the options differ."""
    options = {"allow_http": True, "allow_private": True, **options}
    values = [SecretStr(one) for one in secrets or (OLD,)]
    return WebhookEndpoint(kind="webhook", url=url, secrets=values, **options)


async def publish(to: WebhookEndpoint, times: int = 1) -> list[Delivered]:
    """Publish the event several times with one publisher."""
    publisher = WebhookPublisher(to)
    try:
        return [await publisher.publish("e1", EVENT) for _ in range(times)]
    finally:
        await publisher.aclose()


@asynccontextmanager
async def server(handler: Handler, end: bytes = EVENT, **options: Any) -> AsyncIterator[int]:
    """A server that calls the handler once it has received an event; its port."""
    at_work: set[asyncio.Task[None]] = set()  # a loop alone does not keep its tasks

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def handle() -> None:
            try:
                await reader.readuntil(end)
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        at_work.add(asyncio.ensure_future(handle()))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, **options)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        await end_all(listening)


def answered_by(handler: Handler, times: int = 1) -> list[Delivered]:
    """The result of publishing to a server."""

    async def both() -> list[Delivered]:
        async with server(handler) as port:
            return await publish(endpoint(f"http://127.0.0.1:{port}/hook"), times)

    return asyncio.run(both())


# ── requests, and what answers mean ──────────────────────────────────────────────────────────


def test_each_of_several_secrets_signs(receiver: ReceiverServer) -> None:
    """A receiver that knows only the old secret, or only the new one, can verify the event."""
    url = f"{receiver.url}/hooks/crm"
    assert asyncio.run(publish(endpoint(url, NEW, OLD))) == [Arrived("HTTP 204")]
    [one] = receiver.receiver.log
    assert (one.verified, one.webhook_id, one.body) == (True, "e1", EVENT)
    assert asyncio.run(publish(endpoint(url, NEW))) == [Later("HTTP 401")]


@pytest.mark.parametrize(
    ("failure", "came"),
    [
        ({"status": 200}, Arrived("HTTP 200")),
        ({"status": 299}, Arrived("HTTP 299")),
        ({"status": 410}, Gone("HTTP 410")),
        ({"status": 404}, Later("HTTP 404")),
        ({"status": 500}, Later("HTTP 500")),
        ({"status": 429, "retry_after": 7}, Later("HTTP 429", 7.0)),
        ({"status": 307}, Later("HTTP 307: a redirect, which is not followed")),
        ({"status": 0}, Later("connection closed without an answer")),
    ],
    ids=str,
)
def test_only_2xx_is_success(
    receiver: ReceiverServer, failure: dict[str, Any], came: Delivered
) -> None:
    """410 means never again; anything else means later, at the time that the endpoint names."""
    receiver.receiver.behave({"script": [failure]})
    assert asyncio.run(publish(endpoint(f"{receiver.url}/hooks/crm"))) == [came]


def test_a_redirect_leads_nowhere(receiver: ReceiverServer) -> None:
    """It is not followed, not even to a place that would accept the event."""

    async def redirect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        where = f"location: {receiver.url}/hooks/crm".encode()
        head = b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\n"
        writer.write(head + where + b"\r\n\r\n")

    assert answered_by(redirect) == [Later("HTTP 307: a redirect, which is not followed")]
    assert receiver.receiver.log == []


def test_a_connection_is_used_again() -> None:
    """By one request after another, and also after an answer with a body."""
    ports = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
        await reader.readuntil(EVENT)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
        await writer.drain()

    assert answered_by(answer, times=2) == [Arrived("HTTP 200")] * 2
    assert len(ports) == 1


def test_all_of_a_request_has_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then, and so is never silent for long, is given up."""
    monkeypatch.setattr(webhook, "BUDGET", 0.3)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: 1\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    assert answered_by(drip) == [Later("no answer in time")]


def test_an_answer_counts_whatever_becomes_of_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status was 2xx: the receiver has the event, though the rest of the answer is lost."""
    monkeypatch.setattr(webhook, "BUDGET", 3.0)

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await writer.drain()
        await asyncio.Event().wait()

    assert answered_by(hang) == [Arrived("HTTP 200")]


#: Bodies after which nothing of their answer could be read.
BROKEN = {
    "no chunk": b"canary\r\n",
    "a chunk that is too large": b"1FFFFFFFFFFFFFFFFF\r\n",
    "a chunk without its end": b"2\r\nokXX\r\n",
    "a trailer that is none": b"2\r\nok\r\n0\r\nno colon here\r\n\r\n",
    "many trailers": b"2\r\nok\r\n0\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    "a long trailer": b"2\r\nok\r\n0\r\na: " + b"b" * 200_000 + b"\r\n\r\n",
    "a NUL in a trailer": b"2\r\nok\r\n0\r\na: b\0\r\n\r\n",
    "nothing more": b"5\r\nok",
}


@pytest.mark.parametrize("status", [200, 410, 503])
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_counts_if_its_body_is_no_http(name: str, segments: int, status: int) -> None:
    """The receiver has decided: its event is not sent again because of a body that nobody needs."""

    async def broken(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} X\r\nretry-after: 9\r\ntransfer-encoding: chunked\r\n\r\n"
        if segments == 1:
            writer.write(head.encode() + BROKEN[name])
        else:
            writer.write(head.encode())
            await writer.drain()
            for _ in range(10):  # the client reads it in one of these turns
                await asyncio.sleep(0)
            writer.write(BROKEN[name])
        await writer.drain()

    meant = {200: Arrived("HTTP 200"), 410: Gone("HTTP 410"), 503: Later("HTTP 503", 9.0)}
    assert answered_by(broken) == [meant[status]]


@pytest.mark.parametrize(("lines", "seconds"), WAITS)
def test_the_longest_wait_that_a_receiver_asks_for_counts(
    lines: list[str], seconds: float | None
) -> None:
    """As with a provider."""

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = ["HTTP/1.1 503 X", *lines, "content-length: 0", "", ""]
        writer.write("\r\n".join(head).encode())
        await writer.drain()

    assert answered_by(refuse) == [Later("HTTP 503", seconds)]


def test_a_body_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is read, then the connection is closed early; the status counts."""
    monkeypatch.setattr(webhook, "BUDGET", 600)
    closed = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        try:
            while True:
                writer.write(chunk)
                await writer.drain()
        except OSError:
            closed.set()
            raise

    async def both() -> None:
        async with server(flood) as port:
            to = endpoint(f"http://127.0.0.1:{port}/hook")
            assert await asyncio.wait_for(publish(to), 60) == [Arrived("HTTP 200")]
            await asyncio.wait_for(closed.wait(), 60)

    asyncio.run(both())


def test_what_is_no_http_is_named() -> None:
    """The error quotes nothing of the answer, since it goes into logs and timelines."""

    async def chat(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 canary ESMTP\r\n")
        await writer.drain()

    assert answered_by(chat) == [Later("the answer is not HTTP, or has more than 1000 headers")]


@pytest.mark.parametrize(
    "target",
    [
        "/hook",
        "/a%2Fb/%2e%2E/c?x=%2F%3D&y=%41+%20&sig=a%2Fb%2B=",
        "/a//b/../c/./d;p=1?q=/?#",
        "/%7a?100%25&~'()*!$,:@",
        "/%e2%82%ac?%E2%82%AC",
        "/é %2f?x=%2F%3d é&sig=%41",
    ],
)
def test_an_url_goes_out_byte_for_byte(target: str) -> None:
    """A signature in the URL may cover its spelling; only what HTTP cannot carry is encoded."""
    sent = target.partition("#")[0].replace("é", "%C3%A9").replace(" ", "%20")
    lines: list[bytes] = []

    async def both() -> list[Delivered]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            lines.append(await reader.readline())
            await reader.readuntil(EVENT)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
            writer.close()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        try:
            return await publish(endpoint(f"http://127.0.0.1:{port}{target}"))
        finally:
            await end_all(listening)

    assert asyncio.run(both()) == [Arrived("HTTP 204")]
    assert lines == [f"POST {sent} HTTP/1.1\r\n".encode()]


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_must_be_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """`SSL_CERT_FILE` names the user's own authority; without it an unknown one is refused."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async def both() -> list[Delivered]:
        async with server(answer, ssl=context) as port:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            return await publish(endpoint(f"https://localhost:{port}/hook", allow_http=False))

    refused = Later("certificate of an unknown CA")
    assert asyncio.run(both()) == [Arrived("HTTP 204") if trusted else refused]


@pytest.mark.parametrize("fault", ["good", *FAULTS])
def test_a_certificates_fault_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Expired, for another host, of an unknown CA: each is fixed in a different place."""
    authority, stranger = Authority("ours"), Authority("theirs")
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authority.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    signer = stranger if fault == "unknown CA" else authority
    name = "other.example" if fault == "other host" else "localhost"
    days = {"expired": (-2, -1), "not valid yet": (1, 2)}.get(fault, (-1, 1))
    served = tmp_path / "server.pem"
    served.write_bytes(signer.issue(name, days, alone=fault == "self-signed"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(served)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async def all_() -> tuple[list[Delivered], Any]:
        async with server(answer, ssl=context) as port:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            to = endpoint(f"https://localhost:{port}/hook", allow_http=False)
            delivered = await publish(to)
            if fault == "good":
                return delivered, None
            carrier = HttpTransport()
            send = carrier.sender(lambda: True, 20.0)
            sent = await send(Request(f"https://localhost:{port}/", {}))
            await carrier.aclose()
            return delivered, sent

    delivered, sent = asyncio.run(all_())
    if fault == "good":
        assert delivered == [Arrived("HTTP 204")]
    else:
        assert delivered == [Later(FAULTS[fault])]
        assert sent == NotSent(f"not connected: {FAULTS[fault]}")


def test_what_this_machines_system_refuses_is_named() -> None:
    """As the system names it; the class of an exception would blame the other side."""

    async def both() -> tuple[list[Delivered], Any]:
        carrier = HttpTransport()
        to = endpoint("http://127.0.0.1:1/hook")
        with no_more():
            delivered = await publish(to)
            sent = await carrier.sender(lambda: True, 20.0)(Request("http://127.0.0.1:1/", {}))
        await carrier.aclose()
        return delivered, sent

    delivered, sent = asyncio.run(both())
    assert delivered == [Later("too many open files")]
    assert sent == NotSent("not connected: too many open files")


# ── where a URL leads ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_requires_a_certificate_is_named(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """With TLS 1.3 its alert comes after the handshake, perhaps after the request. It is not taken
    for an answer or a closed connection; TLS 1.2 has no alert of its own for this."""
    authority = Authority("a CA")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "server.pem").write_bytes(authority.issue("localhost", (-1, 9), alone=False))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    listener = socket.create_server(("127.0.0.1", 0))
    way = WayOut(ca_file=str(tmp_path / "ca.pem"))

    def refuse() -> None:
        made, _ = listener.accept()
        # asyncio's server would send no alert.
        with made, pytest.raises(ssl.SSLError):
            context.wrap_socket(made, server_side=True)
        made.close()

    async def send() -> NotSent | Lost | Answer:
        transport = HttpTransport()
        try:
            url = f"https://localhost:{listener.getsockname()[1]}/"
            return await transport.sender(lambda: True, 20.0, way=way)(Request(url, {}))
        finally:
            await transport.aclose()

    with listener, ThreadPoolExecutor() as pool:
        refusing = pool.submit(refuse)
        sent = asyncio.run(send())
        refusing.result()
    assert not isinstance(sent, Answer)
    named = "requires a client certificate" if version == ssl.TLSVersion.TLSv1_3 else "TLS failed"
    assert named in sent.reason


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"),
        *("[::]", "[::ffff:7f00:1]"),
    ],
)
def test_an_url_that_leads_inside_is_refused(receiver: ReceiverServer, host: str) -> None:
    """However the address is written or named; the reason names the setting that would allow it."""
    port = receiver.url.rpartition(":")[2]
    to = endpoint(f"http://{host}:{port}/hooks/crm", allow_private=False)
    [came] = asyncio.run(publish(to))
    assert isinstance(came, Later)
    assert came.reason.startswith("refused: the URL leads to a")
    assert "ALLOW_PRIVATE" in came.reason
    assert receiver.receiver.log == []


def test_an_address_that_only_some_can_read_is_refused(receiver: ReceiverServer) -> None:
    """Even if it got past the settings: the system would take 2130706433 for loopback."""
    port = receiver.url.rpartition(":")[2]
    for host in ("2130706433", "0177.0.0.1", "0x7f000001", "127.1", "127.0.0.1.", "localhost."):
        to = endpoint("http://example.com", allow_private=False)
        to.url = f"http://{host}:{port}/hooks/crm"
        [came] = asyncio.run(publish(to))
        assert isinstance(came, Later)
    assert receiver.receiver.log == []


class Names:
    """Replaces the DNS: what each lookup returns, one after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: list[str]) -> None:
        self.looked_up = 0
        self.connected: list[str] = []
        self._found = list(found)
        names = self

        class Socket(socket.socket):
            def connect(self, address: Any) -> None:
                names.connected.append(address[0])
                if not address[0].startswith("127."):
                    raise ConnectionRefusedError
                super().connect(address)

        monkeypatch.setattr(look_ups, "socket", differing(socket, getaddrinfo=self._look_up))
        monkeypatch.setattr(webhook, "socket", differing(socket, socket=Socket))

    def _look_up(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert host == "crm.example.com"
        self.looked_up += 1
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self._found.pop(0)
        ]


def test_the_address_that_was_checked_is_the_one_connected_to(
    receiver: ReceiverServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is checked and loopback the next moment gets nothing.

    Each try looks the name up once; the next try checks the new address and refuses it.
    """
    port = receiver.url.rpartition(":")[2]
    names = Names(monkeypatch, ["93.184.215.14"], ["127.0.0.1"], ["127.0.0.1"])
    to = endpoint(f"http://crm.example.com:{port}/hooks/crm", allow_private=False)
    first, second, third = asyncio.run(publish(to, times=3))
    assert first == Later("connection refused")
    for came in (second, third):
        assert isinstance(came, Later)
        assert "loopback" in came.reason
    assert names.looked_up == 3
    assert names.connected == ["93.184.215.14"]
    assert receiver.receiver.log == []


def test_a_name_that_leads_outside_and_inside_is_refused(
    receiver: ReceiverServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever address would be tried first."""
    port = receiver.url.rpartition(":")[2]
    names = Names(monkeypatch, ["93.184.215.14", "127.0.0.1"])
    to = endpoint(f"http://crm.example.com:{port}/hooks/crm", allow_private=False)
    [came] = asyncio.run(publish(to))
    assert isinstance(came, Later)
    assert "loopback" in came.reason
    assert names.connected == []


def test_where_private_addresses_are_allowed_a_name_may_lead_there(
    receiver: ReceiverServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For development, and for a receiver in the same network."""
    port = receiver.url.rpartition(":")[2]
    Names(monkeypatch, ["127.0.0.1"])
    came = asyncio.run(publish(endpoint(f"http://crm.example.com:{port}/hooks/crm")))
    assert came == [Arrived("HTTP 204")]


# ── the command `webhook test` ───────────────────────────────────────────────────────────────


def crm(url: str, **more: str) -> dict[str, str]:
    """The settings of an endpoint for development."""
    allowed = {"ALLOW_HTTP": "true", "ALLOW_PRIVATE": "true"}
    fields = {"KIND": "webhook", "URL": url, "SECRETS": OLD, **allowed, **more}
    return {f"REGWORKER_ENDPOINTS__CRM__{name}": value for name, value in fields.items()}


def test_a_webhook_is_tried_by_hand(receiver: ReceiverServer) -> None:
    """A signed event of a type of its own is sent; the answer is shown."""
    [shown] = Cli(**crm(f"{receiver.url}/hooks/crm")).json("webhook", "test", "crm")
    [one] = receiver.receiver.log
    assert (shown["ok"], shown["status"]) == (True, 204)
    assert (one.verified, one.webhook_id, one.event_type) == (
        True,
        shown["webhook_id"],
        "webhook.test",
    )


def test_a_webhook_that_fails_by_hand_is_shown_with_its_answer() -> None:
    """The first bytes of the answer, without terminal escapes; the exit code is 1."""
    end = b'"data":{"endpoint":"crm"}}'

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b"\x1b[31mno such tenant\n\xff" + b"." * 5000
        head = f"HTTP/1.1 403 Forbidden\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    def tell(port: int) -> tuple[str, dict[str, Any]]:
        cli = Cli(**crm(f"http://127.0.0.1:{port}/x"))
        [shown] = cli.json("webhook", "test", "crm", code=1)
        return cli("webhook", "test", "crm", code=1), shown

    async def both() -> tuple[str, dict[str, Any]]:
        async with server(refuse, end) as port:
            return await asyncio.to_thread(tell, port)

    text, shown = asyncio.run(both())
    assert "403" in text
    assert "no such tenant" in text
    assert "\x1b" not in text
    assert shown["status"] == 403
    assert len(shown["answer"]) <= webhook.KEPT_ANSWER


def test_the_check_that_refuses_is_named_by_hand(receiver: ReceiverServer) -> None:
    """Before anything is sent."""
    settings = crm(f"{receiver.url}/hooks/crm", ALLOW_PRIVATE="false")
    [shown] = Cli(**settings).json("webhook", "test", "crm", code=1)
    assert "loopback" in shown["reason"]
    assert receiver.receiver.log == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no endpoint crm"),
        (
            {
                "REGWORKER_ENDPOINTS__CRM__KIND": "queue",
                "REGWORKER_ENDPOINTS__CRM__QUEUE": "bus",
            },
            "is a queue, not a webhook",
        ),
    ],
)
def test_only_a_webhook_that_is_configured_is_tried(settings: dict[str, str], words: str) -> None:
    """Anything else is wrong use of the command."""
    shown = Cli(**settings)("webhook", "test", "crm", code=2)
    assert words in " ".join(shown.replace("│", " ").split())


def test_a_secret_that_is_not_base64_is_refused_by_name(receiver: ReceiverServer) -> None:
    """And it is shown nowhere."""
    cli = Cli(**crm(receiver.url, SECRETS="whsec_canary!"))
    shown = cli("webhook", "test", "crm", code=1)
    assert "REGWORKER_ENDPOINTS__CRM__SECRETS" in shown
    assert "canary" not in shown


def test_a_secret_that_was_made_signs(receiver: ReceiverServer) -> None:
    """The setting accepts what the command prints."""
    made = Cli()("webhook", "secret").strip()
    to = endpoint(f"{receiver.url}/hooks/crm", made, OLD)
    assert asyncio.run(publish(to)) == [Arrived("HTTP 204")]
