"""Calls through a proxy, and with a client certificate: what is sent, and what is certain."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from regworker.domain.errors import SettingsError
from regworker.settings import Settings, WebhookEndpoint
from regworker.way_out import ProxyServer, WayOut
from tests.ambiguous import AMBIGUOUS
from tests.loops import end_all
from tests.tls import Authority
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.http import HttpTransport
from worker.providers.registry import Accounts, Registry
from worker.publishers.webhook import Unanswered, WebhookAnswer, WebhookPublisher, _Guard

CREDENTIALS = f"Basic {base64.b64encode(b'corp:p@ss canary').decode()}"
SECRET = SecretStr("whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ==")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Network:
    """A provider with TLS, and a proxy that misbehaves in a given way."""

    authority: Authority
    client_certificate: bool = False
    certificate: str = "good"
    """Of the provider: one of `tests.tls.KINDS`."""
    lie: str = ""
    asked: list[bytes] = field(default_factory=list)
    """The heads of requests to the proxy."""
    came: list[bytes] = field(default_factory=list)
    """The requests that reached the provider."""
    provider: int = 0
    proxy: int = 0

    @property
    def way(self) -> WayOut:
        """The route through the proxy."""
        proxy = ProxyServer("127.0.0.1", self.proxy, CREDENTIALS)
        return WayOut(proxy, str(self.authority.file))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as the provider."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.came.append(head + await reader.readexactly(size))
            writer.write(OK)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as the proxy."""
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            await self._lie_or_connect(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _lie_or_connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        established = b"HTTP/1.1 200 Connection established\r\n\r\n"
        match self.lie:
            case "407" | "403" | "502" as status:
                writer.write(b"HTTP/1.1 %s No\r\ncontent-length: 0\r\n\r\n" % status.encode())
                return
            case "closes":
                return
            case "no HTTP":
                writer.write(b"SSH-2.0-OpenSSH_9\r\n\r\n")
                return
            case "endless head":
                writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000)
                return
            case "more than its answer":
                writer.write(established + OK)
                await reader.read()
                return
            case "accepts and drops":
                writer.write(established)
                return
            case "closes in the handshake":
                writer.write(established)
                await reader.read(1)
                return
            case "answers for the provider":
                writer.write(established)
                await reader.read(1)
                writer.write(OK)
                await reader.read()
                return
            case "is the provider itself":
                writer.write(established)
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(self.authority.certificate("self-signed"))
                await writer.start_tls(context)
                await self.answer(reader, writer)
                return
        upstream = await asyncio.open_connection("127.0.0.1", self.provider)
        writer.write(established)
        await self._carry((reader, writer), upstream)

    async def _carry(self, one: Streams, other: Streams) -> None:
        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

        back = asyncio.ensure_future(pass_on(other[0], one[1]))
        there = asyncio.ensure_future(pass_on(one[0], other[1]))
        try:
            if self.lie.startswith("after forwarding"):
                while not self.came:  # noqa: ASYNC110 -- there is no event
                    await asyncio.sleep(0)
                back.cancel()
                if self.lie.endswith("502"):
                    one[1].write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
                return
            await asyncio.wait([back, there], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (back, there):
                task.cancel()
            await asyncio.gather(back, there, return_exceptions=True)
            other[1].close()


@asynccontextmanager
async def running(network: Network) -> AsyncIterator[Network]:
    """Run both until the end."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(network.authority.certificate(network.certificate))
    if network.client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(network.authority.file)
    provider = await asyncio.start_server(network.answer, "127.0.0.1", 0, ssl=context)
    proxy = await asyncio.start_server(network.connect, "127.0.0.1", 0)
    network.provider = provider.sockets[0].getsockname()[1]
    network.proxy = proxy.sockets[0].getsockname()[1]
    try:
        yield network
    finally:
        await end_all(provider, proxy)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The only authority that is trusted here."""
    return Authority(tmp_path_factory.mktemp("authority"))


def call(network: Network, way: Callable[[Network], WayOut], url: str = "https://localhost") -> Any:
    """The result of one call to the provider."""

    async def both() -> Any:
        async with running(network):
            transport = HttpTransport()
            send = transport.sender(lambda: True, 5.0, way=way(network))
            try:
                return await send(Request(f"{url}:{network.provider}/", {"name": "Ada"}))
            finally:
                await transport.aclose()

    return asyncio.run(both())


def through_the_proxy(network: Network) -> WayOut:
    """The route of these tests."""
    return network.way


def test_a_call_goes_through_the_proxy(authority: Authority) -> None:
    """The proxy learns the host's name and its own credentials, and nothing else."""
    network = Network(authority)
    found = call(network, through_the_proxy)
    assert isinstance(found, Answer)
    [head] = network.asked
    assert head.startswith(f"CONNECT localhost:{network.provider} HTTP/1.1\r\n".encode())
    assert f"Proxy-Authorization: {CREDENTIALS}".encode() in head
    assert b"Ada" not in head
    assert len(network.came) == 1
    assert b"authorization" not in network.came[0].lower()


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("407", "the proxy refused our credentials"),
        ("403", "the proxy opened no connection (HTTP 403)"),
        ("502", "the proxy opened no connection (HTTP 502)"),
        ("closes", "the proxy closed the connection"),
        ("no HTTP", "the proxy's answer is not HTTP"),
        ("endless head", "the proxy's answer is too large"),
        ("more than its answer", "the proxy sent more than its answer"),
        ("accepts and drops", "connection"),
        ("closes in the handshake", "connection"),
        ("answers for the provider", "TLS failed"),
        ("is the provider itself", "certificate"),
    ],
)
def test_what_a_proxy_does_before_tls_has_begun_is_not_sent(
    authority: Authority, lie: str, reason: str
) -> None:
    """Whatever the proxy answers: no byte of the request was sent."""
    network = Network(authority, lie=lie)
    found = call(network, through_the_proxy)
    assert isinstance(found, NotSent), found
    assert reason in found.reason
    assert not network.came
    assert "canary" not in repr(found)


@pytest.mark.parametrize("lie", ["after forwarding, closes", "after forwarding, 502"])
def test_an_answer_that_is_lost_behind_a_proxy_is_unknown(authority: Authority, lie: str) -> None:
    """The request has arrived."""
    network = Network(authority, lie=lie)
    found = call(network, through_the_proxy)
    assert isinstance(found, Lost), found
    assert len(network.came) == 1


def test_a_proxy_that_is_not_there(authority: Authority, unused_port: int) -> None:
    """Nothing was sent."""
    found = call(Network(authority), lambda _: WayOut(ProxyServer("127.0.0.1", unused_port)))
    assert found == NotSent("not connected: connection refused")


def test_nothing_plain_goes_through_a_proxy(authority: Authority) -> None:
    """The settings refuse it by name; if it got that far nevertheless, nothing would be sent."""
    network = Network(authority)
    found = call(network, through_the_proxy, "http://localhost")
    assert isinstance(found, NotSent)
    assert not network.asked


@pytest.mark.parametrize("own", [True, False])
def test_a_provider_may_ask_for_our_certificate(authority: Authority, own: bool) -> None:
    """Without the certificate, the provider does not answer."""
    pair = str(authority.certificate("good")) if own else None

    def way(network: Network) -> WayOut:
        return WayOut(network.way.proxy, network.way.ca_file, pair)

    network = Network(authority, client_certificate=True)
    found = call(network, way)
    assert isinstance(found, Answer if own else Lost | NotSent)
    assert len(network.came) == own


# ── webhooks ──────────────────────────────────────────────────────────────────────────────────


def hook(
    network: Network, host: str, unchecked: str = "", **more: Any
) -> WebhookAnswer | Unanswered:
    """The result of one webhook. `unchecked`: a host that the settings did not check."""

    async def both() -> Any:
        async with running(network):
            url = f"https://{host}:{network.provider}/hook"
            endpoint = WebhookEndpoint(kind="webhook", url=url, secrets=[SECRET], **more)
            endpoint.url = url.replace(host, unchecked or host)
            publisher = WebhookPublisher(endpoint, way=network.way)
            try:
                return await publisher.send("evt", b"{}")
            finally:
                await publisher.aclose()

    return asyncio.run(both())


def test_a_webhook_goes_through_the_proxy(authority: Authority) -> None:
    """The proxy resolves the name; only the proxy knows its address."""
    network = Network(authority, certificate="other host")
    found = hook(network, "other.example")
    assert isinstance(found, WebhookAnswer)
    assert found.status == 200
    assert len(network.asked) == 1


def test_a_webhook_may_go_directly(authority: Authority) -> None:
    """Without the proxy that all others use."""
    network = Network(authority)
    found = hook(network, "localhost", proxy="direct", allow_private=True)
    assert isinstance(found, WebhookAnswer)
    assert not network.asked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "a.b.localhost"])
def test_no_proxy_is_asked_for_an_address_inside(authority: Authority, host: str) -> None:
    """The proxy may be able to reach addresses that this worker cannot."""
    network = Network(authority)
    found = hook(network, host)
    assert isinstance(found, Unanswered)
    assert "loopback" in found.reason
    assert not network.asked


@pytest.mark.parametrize("host", ["localhost.", "a.localhost..", "127.0.0.1."])
def test_no_proxy_is_asked_for_such_an_address_with_a_dot(host: str) -> None:
    """The settings refuse these; the check before a request does so, too."""
    with pytest.raises(OSError, match="loopback"):
        _Guard(False).check_target(host)
    _Guard(False).check_target("localhost.example.")
    _Guard(True).check_target(host)


#: The HTTP library itself refuses marks without a letter.
@pytest.mark.parametrize("host", [one for one in AMBIGUOUS if not {*one} & {"\ufe0f", "\u034f"}])
def test_no_proxy_is_asked_for_a_host_that_it_could_read_as_an_address(
    authority: Authority, host: str
) -> None:
    """Even if it got past the settings: the proxy would take 0x7f000001 for its own machine."""
    network = Network(authority)
    found = hook(network, "example.com", unchecked=host)
    assert isinstance(found, Unanswered)
    assert not network.asked


def test_a_proxy_is_asked_for_an_address_inside_where_that_is_allowed(
    authority: Authority,
) -> None:
    """`ALLOW_PRIVATE` counts for the proxy, too."""
    network = Network(authority)
    assert isinstance(hook(network, "localhost", allow_private=True), WebhookAnswer)
    assert len(network.asked) == 1


# ── settings ──────────────────────────────────────────────────────────────────────────────────


BASE: dict[str, Any] = {"sealing_keys": "test:" + "A" * 43}
ACCOUNT = {"base_url": "https://store.example"}


def problems(account: dict[str, Any] | None = None, **values: Any) -> dict[str, str]:
    """The problems of the settings, by variable."""
    fields = {"open2b": {"main": {**ACCOUNT, **(account or {})}}}

    def load() -> None:
        settings = Settings.load(**BASE, **values)
        Accounts(Registry(settings.providers), fields, settings.way_out)

    with pytest.raises(SettingsError) as caught:
        load()
    assert "canary" not in str(caught.value)
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    "proxy",
    [
        *("https://h:3128", "socks5://h:1080", "http://h", "http://:3128", "h:3128", "http://h:0"),
        *("http://u:canary@h:x", "http://u:canary@h:3128/path", "http://u:canary@h:3128?a=b"),
        "http://u:\u00e9canary@h:3128",
    ],
)
def test_what_is_no_proxy_is_refused_by_name(proxy: str) -> None:
    """The error shows the right form, and no password."""
    assert (
        "is not of the form http://user:password@host:port"
        in problems(proxy=proxy)["REGWORKER_PROXY"]
    )
    found = problems({"proxy": proxy})
    assert "is not of the form" in found["REGWORKER_ACCOUNTS__OPEN2B__MAIN__PROXY"]


def test_a_plain_provider_behind_a_proxy_is_refused() -> None:
    """The proxy could read the traffic and answer in the provider's place."""
    plain = {"base_url": "http://127.0.0.1:8080"}
    found = problems(plain, proxy="http://h:3128")
    assert "a proxy could read" in found["REGWORKER_ACCOUNTS__OPEN2B__MAIN__BASE_URL"]
    hooks = {"crm": {"kind": "webhook", "url": "http://h/x", "secrets": [SECRET], "allow_http": 1}}
    assert "a proxy could read" in str(problems(proxy="http://h:3128", endpoints=hooks))
    settings = Settings.load(**BASE, proxy="http://h:3128")
    direct = {"open2b": {"main": {**plain, "proxy": "direct"}}}
    accounts = Accounts(Registry(settings.providers), direct, settings.way_out)
    assert accounts.way(("open2b", "main")).proxy is None


def test_files_that_do_not_fit_are_named(authority: Authority, tmp_path: Path) -> None:
    """When a worker starts, not at its first call."""
    certificate, other = authority.certificate("good"), authority.certificate("expired")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for given in (
        {"client_cert_file": str(certificate), "client_key_file": str(other)},
        {"client_cert_file": str(empty)},
        {"client_key_file": str(certificate)},
        {"ca_file": str(empty)},
        {"client_cert_file": "/no/such"},
    ):
        assert problems(**given)
        assert problems(given)


def test_the_credentials_of_a_proxy_are_nowhere_shown() -> None:
    """Neither in the text of the settings nor in that of a route."""
    settings = Settings.load(**BASE, proxy="http://corp:p%40ss%20canary@h:3128")
    assert settings.way_out.proxy == ProxyServer("h", 3128, CREDENTIALS)
    assert "canary" not in repr(settings)
    assert CREDENTIALS not in repr(settings.way_out)
