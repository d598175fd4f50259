"""Webhooks: signed HTTP requests by the Standard Webhooks specification."""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from urllib.parse import quote

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.connector import AddrInfoType
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from standardwebhooks import Webhook
from yarl import URL

from regworker.addresses import like_an_address
from regworker.domain.errors import causes
from regworker.domain.retry import parse_retry_after
from regworker.settings import WebhookEndpoint
from regworker.way_out import WayOut
from worker.http.client import FAULTS, MAX_HEADERS, HttpClient, Response
from worker.http.connections import (
    Connector,
    HttpExchange,
    TooLarge,
    UnaskedBytes,
    certificate_fault,
    system_fault,
)
from worker.http.look_ups import LookUps
from worker.http.tunnel import ProxyRefused
from worker.publishers.address_check import inside
from worker.publishers.base import Arrived, Delivered, Gone, Later

#: The time limit of one request, in seconds (Standard Webhooks, "Timeouts": 15 to 30).
BUDGET = 15.0

#: Bytes of an answer that are read to reuse its connection. Only the status matters; after a longer
#: answer the connection is closed.
MOST_ANSWER = 64 * 1024

#: Bytes of an answer that are kept for people.
KEPT_ANSWER = 512

#: Scheme and host of a URL, and the rest.
_URL = re.compile(r"([^/]*//[^/?#]*)(.*)", re.DOTALL)

#: Characters that a request line contains unchanged.
_PRINTABLE = "".join(map(chr, range(ord("!"), ord("~") + 1)))

#: Sent with every event.
HEADERS = {
    "accept-encoding": "identity",
    "content-type": "application/cloudevents+json",
    "user-agent": "registration-worker",
}


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """The answer to a request. `head`: the first bytes of its body."""

    status: int
    retry_after: str | None = None
    head: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer, with the reason."""

    reason: str


class WebhookPublisher:
    """Delivers to one configured URL. No redirects; no private addresses unless allowed."""

    def __init__(
        self,
        endpoint: WebhookEndpoint,
        stray: Callable[[], None] = lambda: None,
        way: WayOut = WayOut(),  # noqa: B008 -- nothing changes it
    ) -> None:
        """`stray`: called when unrequested bytes arrive from the endpoint.

        `way`: the route of all connections, unless the endpoint has its own.
        """
        self._stray = stray
        self._way = way.to(endpoint)
        self._url = as_given(endpoint.url)
        self._signers = [Webhook(secret.get_secret_value()) for secret in endpoint.secrets]
        self._guard = _Guard(endpoint.allow_private)
        self._clients: dict[bool, HttpClient] = {}

    async def publish(
        self, event_id: str, event: bytes, *, fresh: bool = False, traceparent: str = ""
    ) -> Delivered:
        """POST the event once: 2xx is success, 410 means never again, anything else means later."""
        match await self.send(event_id, event, fresh=fresh, traceparent=traceparent):
            case Unanswered(reason):
                return Later(reason)
            case WebhookAnswer(status) if 200 <= status < 300:
                return Arrived(f"HTTP {status}")
            case WebhookAnswer(410):
                return Gone("HTTP 410")
            case WebhookAnswer(status) if 300 <= status < 400:
                return Later(f"HTTP {status}: a redirect, which is not followed")
            case WebhookAnswer(status, retry_after):
                return Later(f"HTTP {status}", parse_retry_after(retry_after))

    async def send(
        self, event_id: str, event: bytes, *, fresh: bool = False, traceparent: str = ""
    ) -> WebhookAnswer | Unanswered:
        """POST the event once; return any answer."""
        end = asyncio.get_running_loop().time() + BUDGET
        exchange = HttpExchange(self._stray)
        try:
            async with asyncio.timeout_at(end):
                headers = {**self._sign(event_id, event), **_traced(traceparent)}
                client = self._client(fresh)
                response = await client.request(exchange, "POST", self._url, headers, event)
        except FAULTS as error:
            return Unanswered(_reason(error))
        came = await _rest(response, end)
        return Unanswered("more than one answer arrived") if exchange.doubtful else came

    async def aclose(self) -> None:
        """Close the connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    def _client(self, fresh: bool) -> HttpClient:
        # Not before the first event: a connector belongs to the loop in which it is created.
        if (client := self._clients.get(fresh)) is None:
            connector = Connector(
                self._way,
                self._guard,
                self._guard.check_target,
                use_dns_cache=False,
                socket_factory=self._guard.open_socket,
                force_close=fresh,
            )
            client = self._clients[fresh] = HttpClient(connector, HEADERS)
        return client

    def _sign(self, event_id: str, event: bytes) -> dict[str, str]:
        now = datetime.now(UTC)
        text = event.decode()
        # One signature for each secret, so that a receiver can change its secret at any time.
        signatures = " ".join(signer.sign(event_id, now, text) for signer in self._signers)
        return {
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signatures,
        }


def _traced(traceparent: str) -> dict[str, str]:
    return {"traceparent": traceparent} if traceparent else {}


def as_given(url: str) -> URL:
    """The URL byte for byte, since a signature may cover it: `%2F` in a query stays `%2F`.

    Only what a request line cannot contain is encoded: a host in other letters, a space, an `é`.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return URL(url)
    origin, rest = found.groups()
    if not origin.isascii():
        origin = str(URL(origin))
    return URL(origin + quote(rest, safe=_PRINTABLE), encoded=True)


class AddressRefused(OSError):  # noqa: N818 -- what became of the connection
    """Raised before connecting to a non-public address; names its kind."""


class _Guard(LookUps):
    """Resolves names, and prevents connections to non-public addresses.

    A name is resolved once for each connection, and only the checked addresses are connected to: a
    name cannot be public when it is checked and private when it is used. Each socket is checked
    again, since aiohttp does not resolve what looks like an address.
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name; refused if any of them is non-public."""
        found = await super().resolve(host, port, family)
        for one in found:
            self._check(one["host"])
        return found

    def open_socket(self, address: AddrInfoType) -> socket.socket:
        """A socket for an address: the last step before it is connected."""
        family, kind, protocol, _, where = address
        self._check(str(where[0]))
        return socket.socket(family, kind, protocol)

    def check_target(self, host: str) -> None:
        """Refuse to request a non-public address from a proxy. Only the proxy resolves names, but
        `localhost` is the proxy's own machine by its definition (RFC 6761)."""
        name = host.rstrip(".").lower()
        if name == "localhost" or name.endswith(".localhost"):
            name = "127.0.0.1"
        with suppress(ValueError):
            name = str(ip_address(name))
        if ":" in name or like_an_address(name):
            self._check(name)

    def _check(self, address: str) -> None:
        if not self._allowed and (kind := inside(address)):
            raise AddressRefused(
                f"refused: the URL leads to a {kind} address (ALLOW_PRIVATE=true would allow it)"
            )


async def _rest(response: Response, end: float) -> WebhookAnswer:
    """The answer with the first bytes of its body; the status counts, whatever becomes of the
    body."""
    head = b""
    try:
        with suppress(*FAULTS):
            async with asyncio.timeout_at(end):
                head = await _head(response)
    finally:
        response.close()
    return WebhookAnswer(response.status, response.retry_after, head)


async def _head(response: Response) -> bytes:
    """The first bytes of the body; it is read to its end, unless it is too long."""
    head, size = b"", 0
    async for chunk in response.content.iter_any():
        head += chunk[: KEPT_ANSWER - len(head)]
        size += len(chunk)
        if size > MOST_ANSWER:
            break
    return head


#: Texts for errors, the most specific first. Not the exceptions' own texts, except ours: they
#: contain addresses and answers.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "the URL's host name is not in the DNS"),
    (ConnectionRefusedError, "connection refused"),
    (ssl.SSLError, "TLS failed"),
    (UnaskedBytes, "the server sent bytes before the request"),
    (TooLarge, "the answer is too large"),
    (aiohttp.InvalidURL, "the URL cannot be reached"),
    (aiohttp.ServerDisconnectedError, "connection closed without an answer"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection reset"),
    (LineTooLong, "the answer is too large"),
    (
        HttpProcessingError,
        f"the answer is not HTTP, or has more than {MAX_HEADERS} headers",
    ),
    (TimeoutError, "no answer in time"),
)


def _reason(error: BaseException) -> str:
    found = list(causes(error))
    for cause in found:
        if isinstance(cause, AddressRefused | ProxyRefused):
            return str(cause)
    for cause in found:
        if fault := certificate_fault(cause):
            return fault
        for kind, words in _WORDS:
            if isinstance(cause, kind):
                return words
    return system_fault(error) or type(error).__name__
