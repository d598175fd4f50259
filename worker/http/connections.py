"""HTTP connections to providers and webhooks: how they are pooled, and which answer counts.

The rule: an answer belongs to a request only if nothing was on the connection before it. So

- bytes that arrive while nobody waits close the connection at once, and are reported;
- before a request is written, the connection is checked again, in the kernel's buffer too;
- an answer with more bytes behind it is doubtful, unless its request was the connection's first:
  which of the two is the answer to this request cannot be known.

HTTP/1.1 leaves one window: a stray answer that arrives on a used connection after the next request
was written. Only a connection for each call (`Connector(force_close=True)`) closes it.
"""

import asyncio
import errno
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import AddrInfoType, Connection
from aiohttp.tracing import Trace

from regworker.way_out import WayOut
from worker.http.look_ups import LookUps
from worker.http.tunnel import ProxyRefused, open_tunnel

#: How long an unused connection is kept, in seconds. Less than the 5 s after which common servers
#: (Apache, Node, uvicorn) close theirs: a request sent while the server closes the connection is a
#: lost answer.
KEEP_ALIVE = 4.0

#: Bytes read from a connection at a time. With asyncio's 256 KiB, the C library maps and unmaps
#: memory for each answer, which takes ten times as long as the read.
READ = 64 * 1024

#: The most bytes of one answer as received: head, body and any interim answers before it. Limits on
#: parts of an answer still allow very many parts; this one does not.
MAX_BYTES = 1280 * 1024

#: `SO_LINGER` off: closing sends what is left to send, and ends the connection in order.
CLOSE_IN_ORDER = struct.pack("ii", 0, 0)

#: The end of an answer's head.
_END = b"\r\n\r\n"

#: Turns of the event loop until it has read the kernel's buffer.
TURNS = 2

#: Texts for a certificate's fault, by OpenSSL's verification code (`x509_vfy.h`).
_CERTIFICATE = {
    9: "certificate not valid yet",
    10: "certificate expired",
    62: "certificate is for another host",
    64: "certificate is for another host",
}
_UNKNOWN_CA = frozenset({18, 19, 20, 21})

#: Texts for a server's alerts about our certificate, by OpenSSL's names. With TLS 1.3 they may
#: arrive after the request was sent, since the handshake ends here before it ends there.
_REFUSED = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server requires a client certificate",
    **dict.fromkeys(
        (
            "SSLV3_ALERT_BAD_CERTIFICATE",
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            "SSLV3_ALERT_CERTIFICATE_REVOKED",
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
            "TLSV1_ALERT_UNKNOWN_CA",
        ),
        "the server refused our client certificate",
    ),
}


class UnaskedBytes(aiohttp.ClientConnectionError):
    """Raised when a server sent bytes before the request was written; nothing was written."""


class TooLarge(aiohttp.ClientPayloadError):
    """Raised when more than `MAX_BYTES` came as one answer."""


class HttpExchange:
    """One request under way.

    `stray`: called when unrequested bytes arrive on its connection, during the request or after it.
    `doubtful`: the answer may belong to another request.
    """

    def __init__(self, stray: Callable[[], None]) -> None:
        self.stray = stray
        self.doubtful = False

    def hold(self, connection: "Watched") -> None:
        """Called with the connection before anything is written to it. It may raise: then nothing
        is."""

    def give_up(self) -> None:
        """Called if no answer is expected any more, before the connection is closed."""


class Watched(ResponseHandler):
    """A connection that knows whether an answer is expected on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        #: The exchange that used this connection last.
        self.exchange: HttpExchange | None = None
        self.used = False
        self._waiting = False
        self._first = True
        self._parsing = False
        self._headed = False
        self._ended_by: BaseException | None = None
        self._stray_seen = False
        self._came = 0
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare to check the kernel's buffer."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: BaseException | None) -> None:
        """After the end of the connection, nothing more can arrive."""
        self._parsing = True
        self._ended_by = exc
        super().connection_lost(exc)

    async def settled(self) -> bool:
        """Whether nothing has arrived: no unrequested bytes, and no end of the connection."""
        if self._quiet():
            return True
        # The event loop reads what is waiting, and `data_received` checks it. (It need not be a
        # stray answer: TLS 1.3 sends session tickets after the handshake.)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return self._quiet()

    async def fault(self) -> BaseException:
        """Why a new connection was not quiet: TLS's error, or bytes that nobody asked for."""
        for _ in range(TURNS):  # until asyncio has passed the error on
            await asyncio.sleep(0)
        error = self._ended_by
        return error if error is not None and certificate_fault(error) else UnaskedBytes()

    def write(self, request: bytes) -> None:
        """Send a request. An answer is expected from now on."""
        self._first, self.used = not self.used, True
        self._waiting, self._came, self._headed = True, 0, False
        cast(asyncio.Transport, self.transport).write(request)

    @property
    def unsent(self) -> int:
        """Bytes of the request that the kernel has not taken yet."""
        transport: Any = self.transport
        # TLS's own transport does not count what it has encrypted.
        tls = getattr(transport, "_ssl_protocol", None)
        inner = transport if tls is None else tls._transport
        size: int = 0 if inner is None else inner.get_write_buffer_size()
        return size

    def close(self) -> None:
        """Close it in order; while an answer is expected, reset it: nothing more may be sent."""
        if self._waiting:
            self.abort()
        self._in_order()
        super().close()

    def eof_received(self) -> None:
        """The server has closed it; asyncio closes it on this side."""
        if not self._waiting:
            self._in_order()
        super().eof_received()

    def _in_order(self) -> None:
        # Not after `abort`: what is in the kernel's buffer is not sent any more.
        if self.is_connected():
            # There may be no socket any more (OSError; with TLS, AttributeError).
            with suppress(OSError, AttributeError):
                made = cast(asyncio.Transport, self.transport).get_extra_info("socket")
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_IN_ORDER)

    def rest(self, *, answered: bool) -> None:
        """No answer is expected any more. `answered`: because a complete one has arrived."""
        self._waiting = False
        if answered and not self._parsing and self._has_more():
            self._stray()

    def data_received(self, data: bytes) -> None:
        """Take the bytes of an expected answer; any other bytes end the connection."""
        if not self._waiting:
            if data:
                self._stray()
            return
        self._came += len(data)
        if self._came > MAX_BYTES:
            self._give_up()
            return
        if data and self.unsent:
            # The request is not sent yet. An early answer is legal, but may belong to another
            # request. (Without data, aiohttp parses what it has kept.)
            self._doubt()
        self._parsing = True
        # Each head alone: aiohttp drops it if what follows it in the same bytes is no HTTP.
        at = 0
        while not self._headed and not self._exception and (end := data.find(_END, at)) >= 0:
            super().data_received(data[at : end + len(_END)])
            at = end + len(_END)
            self._headed = not self._interim()
        if at == 0 or (at < len(data) and not self._exception):
            super().data_received(data[at:])
        self._parsing = False
        if self._exception and self._payload is not None and not self._payload.is_eof():
            # aiohttp reports it only to whoever waits for an answer's head.
            self._payload.set_exception(self._exception)
        if not self._waiting and (self._exception or self._has_more()):
            self._stray()

    def _quiet(self) -> bool:
        return self.is_connected() and not self.should_close and not self._poll.poll(0)

    def _give_up(self) -> None:
        payload, error = self._payload, TooLarge()
        self.abort()
        self.set_exception(error)
        if payload is not None:
            payload.set_exception(error)

    def _interim(self) -> bool:
        """Whether the head that was read last announces another one (RFC 9110, section 15.2)."""
        if not self._buffer:
            return False
        (message, _), _ = self._buffer[-1]
        return 100 <= message.code < 200 and message.code != 101

    def _has_more(self) -> bool:
        """Whether something came behind the answer."""
        return bool(self._buffer or self._tail) or self._in_a_message()

    def _in_a_message(self) -> bool:
        # The next request gets a new parser, so this one may be ended.
        try:
            return self._parser is not None and self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 -- whatever it is, the answer was over
            return True

    def _stray(self) -> None:
        self._doubt()
        if self._stray_seen or self.transport is None:
            return
        self._stray_seen = True
        self.force_close()
        self.transport.abort()
        if self.exchange is not None:
            self.exchange.stray()

    def _doubt(self) -> None:
        if self.exchange is not None and not self._first:
            self.exchange.doubtful = True


class Connector(aiohttp.TCPConnector):
    """Lends connections on which nothing has arrived."""

    def __init__(
        self,
        way: WayOut,
        look_ups: LookUps,
        check_target: Callable[[str], None] = lambda _: None,
        proxy_socket: Callable[[AddrInfoType], socket.socket] = lambda one: socket.socket(*one[:3]),
        **settings: Any,
    ) -> None:
        """`look_ups`: of hosts and of proxies.

        `check_target`: raises for a host that may not be requested from a proxy.

        `proxy_socket`: makes the socket for a connection to a proxy.
        """
        self._way = way
        self._look_ups = look_ups
        self._check_target = check_target
        self._proxy_socket = proxy_socket
        self.context = settings["ssl"] = way.context
        if not settings.get("force_close"):
            settings["keepalive_timeout"] = KEEP_ALIVE
        # The ledger limits the calls in flight, across all workers.
        super().__init__(limit=0, resolver=look_ups, **settings)
        self._factory: Any = partial(Watched, self._loop)

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's signature
    ) -> ResponseHandler:
        # Not with aiohttp's own proxy support: the proxy's answer would count as the server's.
        if (proxy := self._way.proxy) is None:
            return await super()._create_connection(req, traces, timeout)
        host = req.url.raw_host or ""
        self._check_target(host)
        if req.url.scheme != "https":
            raise ProxyRefused("only encrypted connections may use a proxy")
        port = req.url.port or 443
        made = await open_tunnel(proxy, host, port, self._look_ups, self._proxy_socket)
        try:
            # Before this call no byte of TLS is sent; before its end no byte of the request.
            _, protocol = await self._loop.create_connection(
                self._factory, ssl=self.context, server_hostname=host, sock=made
            )
        except BaseException:
            made.close()
            raise
        return cast(ResponseHandler, protocol)

    async def lend(
        self, address: aiohttp.ClientRequest, exchange: HttpExchange, seconds: float | None
    ) -> Connection:
        """A pooled connection without unread bytes, or a new one, made within so many seconds.

        The request must be written to it at once: whatever arrives later counts as its answer.
        """
        while True:
            connection = await self.connect(address, [], _connecting(seconds))
            watched = cast(Watched, connection.protocol)
            if not watched.used:
                watched.exchange = exchange
            try:
                clean = await watched.settled()
                fault = None if clean or watched.used else await watched.fault()
            except BaseException:
                connection.close()
                raise
            if clean:
                break
            connection.close()
            if fault is not None:
                raise fault
        try:
            exchange.hold(watched)
        except BaseException:
            # Not kept: how long the server will keep it is known only from its last answer on.
            connection.close()
            raise
        watched.exchange = exchange
        return connection

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        # Called for a complete answer, and when an answer is given up (`should_close`).
        cast(Watched, protocol).rest(answered=not should_close)
        super()._release(key, protocol, should_close=should_close)


@lru_cache(maxsize=16)
def _connecting(seconds: float | None) -> aiohttp.ClientTimeout:
    # For the DNS lookup, TCP and TLS.
    return aiohttp.ClientTimeout(connect=seconds)


def certificate_fault(error: BaseException) -> str | None:
    """The fault of a server's certificate, or what the server said about ours, as text; None if
    the error is another one."""
    # aiohttp's errors of this type have no reason.
    if isinstance(error, ssl.SSLError) and (said := _REFUSED.get(getattr(error, "reason", ""))):
        return said
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    # aiohttp's own error, which wraps the other, has no code.
    code = getattr(error, "verify_code", 0)
    if code in _UNKNOWN_CA:
        return "certificate of an unknown CA"
    return _CERTIFICATE.get(code, "certificate not trusted")


def system_fault(error: BaseException) -> str | None:
    """What this machine's system said, such as "too many open files"; None if it was not the
    system that failed."""
    number: Any = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number in errno.errorcode else None
