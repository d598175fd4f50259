"""Carries requests to providers over HTTP, and says of each what is certain.

    Answer    a whole answer came back
    NotSent   no byte of the request left: no connection was handed over for it
    Lost      anything else

What an exception is called proves little: aiohttp's `ClientConnectionError` may be raised before
there is a connection, and after the request was sent. To call the second "not sent" would register
a customer twice. So the connector keeps the evidence: whether it handed a connection over to this
very call.
"""

import asyncio
import socket
import ssl
import struct
import zlib
from collections.abc import Awaitable, Callable, Container, Mapping
from contextlib import suppress
from functools import lru_cache

import aiohttp
from aiohttp.connector import AddrInfoType
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong, PayloadEncodingError
from yarl import URL

from regworker.domain.errors import causes
from regworker.way_out import WayOut
from worker.http.client import MAX_HEADERS, HttpClient, Response, UnsendableError
from worker.http.connections import (
    Connector,
    HttpExchange,
    TooLarge,
    UnaskedBytes,
    Watched,
    certificate_fault,
    system_fault,
)
from worker.http.look_ups import LookUps
from worker.http.tunnel import ProxyRefused
from worker.providers.base import Answer, Lost, NotSent, Request, Send

#: A provider's longest documented answer has a few hundred bytes; an HTML page some 10 KiB.
MAX_ANSWER = 1024 * 1024

#: The share of the time limit for connecting. The rest is for the answer: a request that is sent
#: too late is a lost answer, but one that is not sent is simply retried.
CONNECT_SHARE = 0.5

#: Sent with every call. Answers have some hundred bytes: compressing them saves nothing.
HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": "registration-worker",
}

#: Without a proxy, a client certificate, or an own authority.
DIRECTLY = WayOut()


#: Texts for errors, the most specific first. Not the exceptions' own texts: they contain URLs and
#: bodies.
WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name not resolved"),
    (ssl.SSLError, "TLS failed"),
    (UnaskedBytes, "the server sent bytes before the request"),
    (TooLarge, "answer too large"),
    (aiohttp.ServerDisconnectedError, "connection closed"),
    (aiohttp.ClientPayloadError, "answer cut off"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection reset"),
    (LineTooLong, "answer too large"),
    (PayloadEncodingError, "answer cut off"),
    (HttpProcessingError, f"answer is not HTTP, or has more than {MAX_HEADERS} headers"),
    (TimeoutError, "timeout"),
)

#: Encodings that are decoded, for servers that compress without being asked: one of these, once.
#: `gzip, gzip` made 1.1 GB of 988 bytes.
DECODERS = frozenset({"gzip", "x-gzip", "deflate"})
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32

#: The first bytes of a gzip file's members, and how many members are read: the rest is copied for
#: each.
_GZIP = b"\x1f\x8b"
MOST_MEMBERS = 100

#: `SO_LINGER` on, with 0 seconds: closing resets the connection and drops what was not sent.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class HttpTransport:
    """The connections of a process to all providers, in one event loop.

    `user_timeout`: seconds after which the kernel, too, gives up unacknowledged bytes; the time
    limit of a call.
    """

    def __init__(self, user_timeout: float = 20.0) -> None:
        self._user_timeout = user_timeout
        self._look_ups = LookUps()
        self._clients: dict[tuple[bool, WayOut], HttpClient] = {}

    def sender(
        self,
        may_send: Callable[[], bool],
        budget: float,
        stray: Callable[[], None] = lambda: None,
        *,
        fresh: bool = False,
        way: WayOut = DIRECTLY,
    ) -> Send:
        """Make a `Send` that takes at most `budget` seconds per request, in total.

        `may_send` is called before connecting, and again once connected: a lease can be lost while
        connecting. `stray` is called when unrequested bytes arrive. `fresh`: a new connection for
        each call. `way`: how to connect.
        """

        async def send(request: Request) -> Answer | NotSent | Lost:
            if not may_send():
                return NotSent("lease lost", ours=True)
            call = _Call(may_send, stray)
            try:
                async with asyncio.timeout(budget):
                    return await _carry(request, call, self._client(fresh, way), budget)
            except _LeaseLostError:
                return NotSent("lease lost", ours=True)
            except Exception as error:  # noqa: BLE001 -- whatever it is, something may have left
                return classify(error, connected=call.connected)
            finally:
                call.give_up()

        return send

    def keep(self, ways: Container[WayOut]) -> Callable[[], Awaitable[None]]:
        """Keep the connections of these routes only.

        Returns a function that closes the others, once their calls have ended.
        """
        others = {key for key in self._clients if key[1] not in ways}
        clients = [self._clients.pop(key) for key in others]

        async def close() -> None:
            for client in clients:
                await client.close()

        return close

    async def aclose(self) -> None:
        """Close all connections."""
        await self.keep(())()

    def _client(self, fresh: bool, way: WayOut) -> HttpClient:
        # Not before the first call: a connector belongs to the loop in which it is created.
        if (client := self._clients.get((fresh, way))) is None:
            connector = Connector(
                way,
                self._look_ups,
                proxy_socket=self._socket,
                socket_factory=self._socket,
                force_close=fresh,
            )
            client = self._clients[fresh, way] = HttpClient(connector, HEADERS)
        return client

    def _socket(self, address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        # Also if this process is killed: without an answer, unsent bytes must never be sent.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        # Otherwise the kernel would try for minutes to deliver a request from its buffer, long
        # after the worker gave up and looked up whether it had arrived. Linux only; elsewhere the
        # reset on giving up must suffice.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            patience = int(self._user_timeout * 1000)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        return made


def classify(error: BaseException, *, connected: bool) -> NotSent | Lost:
    """What a failed call proves. `connected`: it had a connection to write to.

    Without one nothing was sent, whatever the error; with one, something may have been sent.
    """
    reason = _reason(error)
    return Lost(reason) if connected else NotSent(f"not connected: {reason}")


def _reason(error: BaseException) -> str:
    for cause in causes(error):
        if isinstance(cause, ProxyRefused | UnsendableError):
            return str(cause)
        if fault := certificate_fault(cause):
            return fault
        for kind, words in WORDS:
            if isinstance(cause, kind):
                return words
    return system_fault(error) or type(error).__name__


async def _carry(
    request: Request, call: "_Call", client: HttpClient, budget: float
) -> Answer | Lost:
    response = await client.request(
        call,
        request.method,
        url_of(request.url),
        _headers(request),
        request.encoded(),
        budget * CONNECT_SHARE,
    )
    body = None
    try:
        body = await _read(response.content)
    finally:
        call.answered = body is not None
        call.give_up()
        response.close()
    if body is None:
        return Lost("answer too large")
    if call.doubtful:
        return Lost("more than one answer arrived")
    return _answer(response, body)


@lru_cache(maxsize=256)
def url_of(url: str) -> URL:
    """An account's URL for aiohttp. An account has three or four; parsing each takes 10 us."""
    return URL(url)


async def _read(content: aiohttp.StreamReader) -> bytes | None:
    """The whole raw body; None if it is too large."""
    body = await content.readany()
    while not content.at_eof() and len(body) <= MAX_ANSWER:
        body += await content.readany()
    return body if len(body) <= MAX_ANSWER else None


def _answer(response: Response, body: bytes) -> Answer | Lost:
    headers: dict[str, str] = {}
    conflicting: set[str] = set()
    for raw_name, raw_value in response.raw_headers:
        name, value = raw_name.decode("latin-1").lower(), _text(raw_value)
        if headers.setdefault(name, value) != value:
            conflicting.add(name)
    # Each value is one layer of compression.
    encoding = ", ".join(response.headers.getall("content-encoding", ["identity"])).lower()
    for name in conflicting:
        del headers[name]
    if (wait := response.retry_after) is not None:
        headers["retry-after"] = wait
        conflicting.discard("retry-after")
    if encoding not in {"identity", *DECODERS}:
        return Lost("answer with a content-encoding that we did not request")
    if encoding != "identity" and body:
        unpacked = _unpack(body, encoding)
        if not isinstance(unpacked, bytes):
            return unpacked
        body = unpacked
    return Answer(response.status, headers, body, frozenset(conflicting))


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _unpack(body: bytes, encoding: str) -> bytes | Lost:
    """Decompress; it stops at the limit, however large the body would become."""
    # Some servers send `deflate` without zlib's header (RFC 9110, section 8.4.1.2).
    for bits in (GZIP_OR_ZLIB, *([-zlib.MAX_WBITS] if encoding == "deflate" else [])):
        with suppress(zlib.error):
            unpacked = _decompressed(body, bits)
            return unpacked if len(unpacked) <= MAX_ANSWER else Lost("answer too large")
    return Lost("answer is not compressed as its header says")


def _decompressed(body: bytes, bits: int) -> bytes:
    """All members of a gzip file (RFC 1952, section 2.2), or one stream of another kind; at most a
    byte more than the limit. Raises `zlib.error`."""
    unpacked = b""
    for _ in range(MOST_MEMBERS):
        decoder = zlib.decompressobj(bits)
        unpacked += decoder.decompress(body, MAX_ANSWER + 1 - len(unpacked))
        if len(unpacked) > MAX_ANSWER:
            return unpacked
        body = decoder.unused_data
        if not decoder.eof or (body and not body.startswith(_GZIP)):
            break
        if not body:
            return unpacked
    raise zlib.error


def _headers(request: Request) -> Mapping[str, str]:
    if request.content_type == HEADERS["content-type"]:
        return request.headers
    return {**request.headers, "content-type": request.content_type}


class _LeaseLostError(Exception):
    """The lease was lost while connecting; nothing was written."""


class _Call(HttpExchange):
    """One call and its connection."""

    def __init__(self, may_send: Callable[[], bool], stray: Callable[[], None]) -> None:
        super().__init__(stray)
        self.may_send = may_send
        self.connected = False
        self.answered = False
        self._connection: Watched | None = None

    def hold(self, connection: Watched) -> None:
        """Take a connection over, if the lease was not lost while connecting."""
        if not self.may_send():
            raise _LeaseLostError
        self.connected = True
        self._connection = connection

    def give_up(self) -> None:
        """Without an answer, reset the connection: unsent bytes must never be sent."""
        connection, self._connection = self._connection, None
        # It returns to the pool when the answer's last byte arrives, before we read that: another
        # call may already use it.
        if connection is None or connection.exchange is not self or self.answered:
            return
        if connection.transport is not None:
            connection.transport.abort()
