"""Webhooks: signed HTTP requests by the Standard Webhooks specification."""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import AddrInfoType
from standardwebhooks import Webhook

from worker.errors import causes
from worker.publishers.addresses import inside
from worker.publishers.base import Arrived, Delivered, Gone, Later
from worker.retry import parse_retry_after
from worker.settings import WebhookEndpoint

#: Seconds for all of one request (Standard Webhooks, "Timeouts": 15 to 30).
BUDGET = 15.0

#: Bytes of an answer that are read, so that its connection can be used again. Nothing in it is of
#: use but its status; of a longer one the connection is closed.
MOST_ANSWER = 64 * 1024

#: Bytes of an answer that are kept, for a person to look at.
KEPT_ANSWER = 512

#: Seconds an unused connection is kept: less than the 5 after which many servers close theirs.
KEEP_ALIVE = 4.0

#: Names looked up at a time for one endpoint. Threads of its own: the system's resolver can hang
#: for half a minute, and the rest of the process needs the shared ones.
LOOK_UPS = 2

CONTENT_TYPE = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back of a request. `head`: the first bytes of the answer's body."""

    status: int
    retry_after: str | None = None
    head: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer: why."""

    reason: str


class WebhookPublisher:
    """Delivers to one configured URL. No redirects, no private addresses unless allowed."""

    def __init__(self, endpoint: WebhookEndpoint) -> None:
        self._endpoint = endpoint
        self._signers = [Webhook(secret.get_secret_value()) for secret in endpoint.secrets]
        self._guard = _Guard(endpoint.allow_private)
        self._session: aiohttp.ClientSession | None = None

    async def publish(self, event_id: str, event: bytes) -> Delivered:
        """POST the event once: 2xx is success, 410 means never again, all else means later."""
        match await self.send(event_id, event):
            case Unanswered(reason):
                return Later(reason)
            case Answer(status) if 200 <= status < 300:
                return Arrived(f"HTTP {status}")
            case Answer(410):
                return Gone("HTTP 410")
            case Answer(status) if 300 <= status < 400:
                return Later(f"HTTP {status}: a redirect, which is not followed")
            case Answer(status, retry_after):
                return Later(f"HTTP {status}", parse_retry_after(retry_after))

    async def send(self, event_id: str, event: bytes) -> Answer | Unanswered:
        """POST the event once; whatever came back."""
        end = asyncio.get_running_loop().time() + BUDGET
        try:
            async with asyncio.timeout_at(end):
                response = await self._post(event_id, event)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Unanswered(_reason(error))
        try:
            # It has answered, whatever becomes of the rest.
            with suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout_at(end):
                    head = await _head(response)
                    return _answer(response, head)
            return _answer(response)
        finally:
            response.close()

    async def aclose(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        self._guard.stop()

    async def _post(self, event_id: str, event: bytes) -> aiohttp.ClientResponse:
        # Not before the first event: a session belongs to the loop that it was made in.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=httpx.create_ssl_context(),
                    limit=0,  # the ledger's places cap events in flight, over all workers
                    use_dns_cache=False,
                    keepalive_timeout=KEEP_ALIVE,
                    resolver=self._guard,
                    socket_factory=self._guard.socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
            )
        headers = {
            "content-type": CONTENT_TYPE,
            "user-agent": "registration-worker",
            "accept-encoding": "identity",
            **self._sign(event_id, event),
        }
        url = self._endpoint.url
        return await self._session.post(url, data=event, headers=headers, allow_redirects=False)

    def _sign(self, event_id: str, event: bytes) -> dict[str, str]:
        now = datetime.now(UTC)
        text = event.decode()
        # One signature for each secret, so that a receiver may change over in its own time.
        signatures = " ".join(signer.sign(event_id, now, text) for signer in self._signers)
        return {
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signatures,
        }


class Refused(OSError):  # noqa: N818 -- what became of the connection
    """Raised before connecting to an address that is inside; says of what kind it is."""


class _Guard(AbstractResolver):
    """Looks names up, and lets nobody connect to an address that is inside.

    A name is looked up once for each connection, and the addresses found are those connected to:
    it cannot lead outside when it is checked and inside when it is used. Asked again with each
    socket, since aiohttp asks no resolver about what looks like an address.
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="look-up")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name; refused if any of them is inside."""
        look_up = partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        for _, _, _, _, address in found:
            self._check(str(address[0]))
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    def socket(self, address: AddrInfoType) -> socket.socket:
        """A socket for an address: the last thing before it is connected to."""
        family, kind, protocol, _, where = address
        self._check(str(where[0]))
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """Called by aiohttp with each session."""

    def stop(self) -> None:
        """End the threads, without waiting for a look-up that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, address: str) -> None:
        if not self._allowed and (kind := inside(address)):
            raise Refused(
                f"refused: the URL leads to a {kind} address (ALLOW_PRIVATE=true would allow it)"
            )


async def _head(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of the body; read to its end, unless that is far."""
    head, size = b"", 0
    async for chunk in response.content.iter_any():
        head += chunk[: KEPT_ANSWER - len(head)]
        size += len(chunk)
        if size > MOST_ANSWER:
            break
    return head


def _answer(response: aiohttp.ClientResponse, head: bytes = b"") -> Answer:
    return Answer(response.status, response.headers.get("retry-after"), head)


#: Words for what went wrong, the most telling first. No texts of exceptions, but our own: they
#: hold addresses, and what was answered.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "the URL's host is not known to the DNS"),
    (ConnectionRefusedError, "connection refused"),
    (ssl.SSLCertVerificationError, "the certificate is not trusted"),
    (ssl.SSLError, "TLS failed"),
    (aiohttp.InvalidURL, "the URL leads nowhere"),
    (aiohttp.ServerDisconnectedError, "connection closed without an answer"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection reset"),
    (aiohttp.ClientResponseError, "the answer is not HTTP"),
    (TimeoutError, "no answer in time"),
)


def _reason(error: BaseException) -> str:
    found = list(causes(error))
    for cause in found:
        if isinstance(cause, Refused):
            return str(cause)
    for cause in found:
        for kind, words in _WORDS:
            if isinstance(cause, kind):
                return words
    return type(error).__name__
