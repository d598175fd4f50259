"""Writes one request to one connection, and reads the answer.

aiohttp makes and keeps the connections, and parses the answers. Its session and its types for
requests and answers are left out: they take as much CPU again, and they decide things that we must
decide (redirects, cookies, second tries, what a broken connection means).
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from regworker.domain.retry import longest_retry_after
from worker.http.connections import Connector, HttpExchange, Watched
from worker.http.headers import HEADER_NAME, HEADER_VALUE

#: The longest header line. Cookies and security policies of proxies reach 60 KiB.
MAX_FIELD = 128 * 1024

#: The most headers of one answer. A chain of gateways may add some hundreds.
MAX_HEADERS = 1000

#: Where a request ends is decided here: with a second statement of it, a proxy and a server may
#: read two requests (request smuggling).
FRAMING = frozenset({"content-length", "transfer-encoding"})

#: Methods, and whether a request without a body says so. (The answer to HEAD is read otherwise.)
METHODS = {"DELETE": True, "GET": False, "PATCH": True, "POST": True, "PUT": True}

#: URLs whose parts are kept. An account has three or four, and some contain a customer's key.
URLS = 256

#: How answers are parsed: as they are, without decompressing them.
_PARSING: dict[str, Any] = {
    "read_until_eof": True,
    "auto_decompress": False,
    "max_line_size": MAX_FIELD,
    "max_field_size": MAX_FIELD,
    "max_headers": MAX_HEADERS,
}


#: What a request raises, or the reading of its answer: also of a body that is no HTTP.
FAULTS = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


class UnsendableError(ValueError):
    """Raised before connecting for a request that HTTP cannot carry; its text shows no value."""


class Response:
    """An answer whose head has arrived."""

    __slots__ = ("_connection", "content", "headers", "raw_headers", "status")

    def __init__(self, message: Any, content: aiohttp.StreamReader, connection: Connection) -> None:
        self.status: int = message.code
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = message.raw_headers
        self.headers: CIMultiDictProxy[str] = message.headers
        self.content = content
        self._connection = connection

    @property
    def retry_after(self) -> str | None:
        """The longest wait that it asks for."""
        return longest_retry_after(self.headers.getall("retry-after", ()))

    def close(self) -> None:
        """End the answer. Its connection is kept only if the whole answer has arrived."""
        # It is no longer ours then.
        self._connection.close()


class HttpClient:
    """Sends requests over the connections of one connector.

    It follows no redirect, keeps no cookie, reads no environment, and sends nothing twice: the
    worker must decide what a lost answer means.
    """

    def __init__(
        self, connector: Connector, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`headers`: of each request, by their names in small letters."""
        self._connector = connector
        self._headers = dict(headers)
        self._targets: dict[URL, _Target] = {}

    async def request(
        self,
        exchange: HttpExchange,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes,
        connecting: float | None = None,
    ) -> Response:
        """Send a request, and wait for the head of its answer.

        `connecting`: seconds to connect. The caller closes the response in any case.

        Raises one of `FAULTS`.
        """
        target = self._target(url)
        request = self._head(method, target, headers, len(body)) + body
        connection = await self._connector.lend(target.address, exchange, connecting)
        watched = cast(Watched, connection.protocol)
        try:
            # No `await` between the check of the connection and this: nothing can arrive unseen.
            watched.set_response_params(**_PARSING)
            watched.write(request)
            while True:
                message, content = await watched.read()
                if not 100 <= message.code < 200 or message.code == 101:
                    break
            content.on_eof(partial(_arrived, connection))
        except BaseException:
            exchange.give_up()
            connection.close()
            raise
        return Response(message, content, connection)

    async def close(self) -> None:
        """Close all connections."""
        await self._connector.close()

    def _target(self, url: URL) -> "_Target":
        if (target := self._targets.get(url)) is None:
            if len(self._targets) >= URLS:
                self._targets.clear()
            target = self._targets[url] = _Target(url)
        return target

    def _head(self, method: str, target: "_Target", headers: Mapping[str, str], size: int) -> bytes:
        if method not in METHODS:
            raise UnsendableError(f"a request's method is one of {', '.join(METHODS)}")
        fields = {**target.headers, **self._headers}
        for name, value in headers.items():
            if not (HEADER_NAME.fullmatch(name) and HEADER_VALUE.fullmatch(value)):
                raise UnsendableError("a header holds characters that HTTP cannot carry")
            fields[name.lower()] = value
        if not FRAMING.isdisjoint(fields):
            raise UnsendableError("a header says how long the request is, which is not its part")
        if size or METHODS[method]:
            fields["content-length"] = str(size)
        if self._connector.force_close:
            fields["connection"] = "close"
        lines = "\r\n".join([f"{name}: {value}" for name, value in fields.items()])
        return f"{method} {target.path} HTTP/1.1\r\n{lines}\r\n\r\n".encode()


class _Target:
    """The parts of a URL, as a connector and a request need them."""

    def __init__(self, url: URL) -> None:
        if url.scheme not in {"http", "https"} or not url.raw_host:
            raise aiohttp.InvalidURL("")
        # What a connector is asked with. aiohttp makes one for each call.
        self.address = aiohttp.ClientRequest("GET", url, ssl=True)
        self.path = url.raw_path_qs
        # The host, and the URL's user and password.
        self.headers: dict[str, str] = {
            name: self.address.headers[name]
            for name in ("host", "authorization")
            if name in self.address.headers
        }
        values = (*self.headers.values(), self.path)
        if not {" ", "\t"}.isdisjoint(self.path) or not all(map(HEADER_VALUE.fullmatch, values)):
            raise aiohttp.InvalidURL("")


def _arrived(connection: Connection) -> None:
    """The answer's last byte is here: another request may use the connection, if it is open."""
    watched = cast(Watched | None, connection.protocol)
    if watched is not None and watched.unsent:
        # The server did not wait for the end of the request. It must not get more of it, nor read
        # the rest as the next one.
        watched.abort()
        connection.close()
    else:
        connection.release()
