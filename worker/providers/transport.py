"""Carries requests to providers over HTTP, and says of each what is certain.

    Answer    a whole answer came back
    NotSent   no byte of the request left: no connection was handed over for it
    Lost      anything else

What an exception is called proves little: httpx-aiohttp turns aiohttp's `ClientConnectionError`,
also that of a connection reset after the request was sent, into `httpx.ConnectTimeout`. To call
that "not sent" would register a customer twice. So the connector keeps the evidence: whether it
handed a connection over to this very call.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from aiohttp.connector import AddrInfoType, Connection
from aiohttp.tracing import Trace
from httpx_aiohttp import AiohttpTransport
from pydantic_core import to_json

from worker.errors import causes
from worker.providers.base import Answer, Lost, NotSent, Request, Send

#: A provider's longest documented answer has a few hundred bytes; a page of HTML some 10 KiB.
MAX_ANSWER = 1024 * 1024

#: Bytes read from a connection at a time. For asyncio's own 256 KiB, the C library maps and unmaps
#: memory for each answer, which takes ten times as long as reading it.
READ = 64 * 1024

#: How long an unused connection is kept, in seconds. Less than the 5 s after which common servers
#: (Apache, Node, uvicorn) close theirs: a request sent into a connection that is just being
#: closed is a lost answer.
KEEP_ALIVE = 4.0

#: What of the budget connecting may take. The rest is for the answer: a request sent with no
#: time left to hear of it is a lost answer, where one not sent is just tried again.
CONNECT_SHARE = 0.5

#: What is believed to have happened before sending, if no connection was handed over either.
BEFORE_SENDING = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
    TimeoutError,  # the budget's
)

#: Sent with every call. What is accepted, httpx decodes.
HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "content-type": "application/json",
    "user-agent": "registration-worker",
}

#: Words for causes, the most telling first. No texts of exceptions: they hold URLs and bodies.
WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name not resolved"),
    (ssl.SSLCertVerificationError, "certificate not trusted"),
    (ssl.SSLError, "TLS failed"),
    (aiohttp.ServerDisconnectedError, "connection closed"),
    (aiohttp.ClientPayloadError, "answer cut off"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection reset"),
    (aiohttp.ClientResponseError, "answer is not HTTP"),
    (TimeoutError, "timeout"),
)

#: `SO_LINGER` on, with 0 seconds: closing resets the connection and drops what wasn't sent.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
CLOSE_IN_ORDER = struct.pack("ii", 0, 0)


class Transport:
    """One pool of connections for all providers of a process, in one event loop.

    httpx's transport without its client, which costs as much as the call itself, for what is not
    wanted here: redirects, cookies, proxies and passwords from the environment, hooks.

    `user_timeout`: seconds after which the kernel, too, gives up on bytes that nobody has
    acknowledged; the call budget.
    """

    def __init__(self, user_timeout: float = 20.0) -> None:
        self._user_timeout = user_timeout
        self._pool: AiohttpTransport | None = None

    def sender(self, may_send: Callable[[], bool], budget: float) -> Send:
        """Make a `Send` that keeps within `budget` seconds a request, all in all.

        `may_send` is asked before connecting, and again with the connection at hand: connecting
        takes time, in which a lease can be lost.
        """

        async def send(request: Request) -> Answer | NotSent | Lost:
            if not may_send():
                return NotSent("lease lost", ours=True)
            call = _Call(may_send)
            token = _CALL.set(call)
            try:
                async with asyncio.timeout(budget):
                    return await self._carry(request, call, budget)
            except _LeaseLostError:
                return NotSent("lease lost", ours=True)
            except Exception as error:  # noqa: BLE001 -- whatever it is, something may have left
                return classify(error, connected=call.connected)
            finally:
                call.let_go()
                _CALL.reset(token)

        return send

    async def aclose(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def _carry(self, request: Request, call: "_Call", budget: float) -> Answer | Lost:
        posted = httpx.Request(
            "POST",
            _url(request.url),
            headers=request.headers or None,
            # By `content=`, httpx would look for what it has to add. aiohttp adds it anyway.
            stream=httpx.ByteStream(to_json(request.body)),
            # httpx's pool timeout is the whole of connecting to aiohttp: lookup, TCP and TLS.
            extensions={"timeout": {"pool": budget * CONNECT_SHARE}},
        )
        posted.read()
        response = await self._open().handle_async_request(posted)
        body = None
        try:
            body = await _read(response)
        finally:
            if body is None:
                # Before the response is closed: that waits for the request to be written.
                call.let_go()
            await response.aclose()
        if body is None:
            return Lost("answer too large")
        call.answered = True
        return Answer(response.status_code, response.headers, body)

    def _open(self) -> AiohttpTransport:
        # Not before the first call: a session belongs to the loop that it was made in.
        if self._pool is None:
            context = httpx.create_ssl_context()
            session = aiohttp.ClientSession(
                connector=_Connector(
                    ssl=context,
                    limit=0,  # the ledger's bulkhead caps calls in flight, over all workers
                    keepalive_timeout=KEEP_ALIVE,
                    socket_factory=self._socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=HEADERS,
            )
            self._pool = AiohttpTransport(verify=context, client=session)
        return self._pool

    def _socket(self, address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        # Or the kernel goes on for minutes to deliver a request from its buffer, long after we
        # gave up on it and asked whether it had arrived. Linux only; elsewhere the reset on
        # giving up has to do.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            patience = int(self._user_timeout * 1000)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        return made


def classify(error: BaseException, *, connected: bool) -> NotSent | Lost:
    """What a failed call proves. `connected`: it had a connection to write to.

    Both must speak for "not sent": the evidence and the exception.
    """
    reason = _reason(error)
    if not connected and isinstance(error, BEFORE_SENDING):
        return NotSent(f"not connected: {reason}")
    return Lost(reason)


def _reason(error: BaseException) -> str:
    for cause in causes(error):
        for kind, words in WORDS:
            if isinstance(cause, kind):
                return words
    return type(error).__name__


@lru_cache(maxsize=256)
def _url(url: str) -> httpx.URL:
    # An account has three or four; to take one apart costs 10 us.
    return httpx.URL(url)


async def _read(response: httpx.Response) -> bytes | None:
    """The whole body, decoded; None if it is too large."""
    body = bytearray()
    async for chunk in _chunks(response):
        body += chunk
        if len(body) > MAX_ANSWER:
            return None
    return bytes(body)


def _chunks(response: httpx.Response) -> AsyncIterable[bytes]:
    stream = response.stream
    if isinstance(stream, httpx.AsyncByteStream) and "content-encoding" not in response.headers:
        # Past the three layers that decode: there is nothing to do for them.
        return stream
    return response.aiter_bytes()


class _LeaseLostError(Exception):
    """The lease went while connecting; nothing was written."""


class _Call:
    """One call, and the connection that it holds."""

    def __init__(self, may_send: Callable[[], bool]) -> None:
        self.may_send = may_send
        self.connected = False
        self.answered = False
        self._connection: asyncio.Transport | None = None
        self._holders: dict[asyncio.Transport, _Call] = {}

    def hold(
        self, connection: asyncio.Transport, holders: "dict[asyncio.Transport, _Call]"
    ) -> None:
        """Take a connection over, and make sure that it doesn't outlive this call unanswered."""
        self._connection, self._holders = connection, holders
        holders[connection] = self
        # From now until there is an answer, also if this process is killed.
        _set_linger(connection, RESET_ON_CLOSE)

    def let_go(self) -> None:
        """End the hold: without an answer, what wasn't sent yet must never arrive."""
        connection, self._connection = self._connection, None
        # aiohttp puts a connection back when the answer's last byte arrives, which is before we
        # read it: it may be another call's by now.
        if connection is None or self._holders.get(connection) is not self:
            return
        del self._holders[connection]
        if self.answered:
            _set_linger(connection, CLOSE_IN_ORDER)
        else:
            connection.abort()


_CALL: ContextVar[_Call] = ContextVar("call")


class _Connector(aiohttp.TCPConnector):
    """The one place where a request gets a connection; nothing of it is written before."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._holders: dict[asyncio.Transport, _Call] = {}

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's signature
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        call = _CALL.get()
        if not call.may_send():
            connection.release()
            raise _LeaseLostError
        call.connected = True
        if (transport := connection.transport) is not None:
            if hasattr(transport, "max_size"):
                transport.max_size = READ
            call.hold(transport, self._holders)
        return connection


def _set_linger(connection: asyncio.Transport, linger: bytes) -> None:
    with suppress(OSError):  # closed already
        connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
