"""The bytes of a request, and what becomes of its connection."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from yarl import URL

from regworker.way_out import WayOut
from tests.unit.providers.calls import serving
from worker.http.client import URLS, HttpClient, UnsendableError
from worker.http.connections import Connector, HttpExchange
from worker.http.look_ups import LookUps


def written(
    method: str,
    url: str,
    headers: Mapping[str, str] = {},
    size: int = 0,
    *,
    fresh: bool = False,
) -> list[str]:
    """The lines of a request's head."""

    async def main() -> bytes:
        client = HttpClient(connector(force_close=fresh), {"accept": "text/plain"})
        try:
            return client._head(method, client._target(URL(url)), headers, size)
        finally:
            await client.close()

    *lines, end, after = asyncio.run(main()).decode().split("\r\n")
    assert end == after == ""
    return lines


def connector(**settings: Any) -> Connector:
    """Connections to anywhere, in the running loop."""
    return Connector(WayOut(), LookUps(), **settings)


def served(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    use: Callable[[HttpClient, URL], Awaitable[None]],
) -> int:
    """Use a client with a server; the number of the server's connections."""

    async def main() -> int:
        client = HttpClient(connector())
        async with serving(handler) as server:
            try:
                await use(client, URL(server.url()))
            finally:
                await client.close()
            return server.connections

    return asyncio.run(main())


async def asked(client: HttpClient, url: URL, body: bytes = b"") -> tuple[int, bytes]:
    """The status and the body of an answer."""
    response = await client.request(HttpExchange(lambda: None), "POST", url, {}, body)
    try:
        return response.status, await response.content.read()
    finally:
        response.close()


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://example.test", "/", "example.test"),
        ("http://example.test:80/a?b=c#d", "/a?b=c", "example.test"),
        ("http://example.test:8080/a%2Fb", "/a%2Fb", "example.test:8080"),
        ("https://example.test:443/", "/", "example.test"),
        ("https://example.test:80/", "/", "example.test:80"),
        ("http://[::1]:8080/", "/", "[::1]:8080"),
        ("http://EXAMPLE.test/É?é=ü", "/%C3%89?%C3%A9=%C3%BC", "example.test"),
        ("http://exämple.test/", "/", "xn--exmple-cua.test"),
    ],
)
def test_a_request_names_its_host_and_its_path(url: str, line: str, host: str) -> None:
    """The port is named unless it is the scheme's own."""
    assert written("GET", url) == [f"GET {line} HTTP/1.1", f"host: {host}", "accept: text/plain"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("size", [0, 7])
def test_a_request_says_how_long_it_is(method: str, size: int) -> None:
    """A method without a body, as a rule, does not."""
    length = [] if method == "GET" and not size else [f"content-length: {size}"]
    assert written(method, "http://h/", {}, size)[3:] == length


@pytest.mark.parametrize("method", ["get", "HEAD", "", "POST /x HTTP/1.1\r\nx: y\r\n\r\nGET"])
def test_only_the_known_methods_are_sent(method: str) -> None:
    """The answer to `HEAD` would be read otherwise."""
    with pytest.raises(UnsendableError, match="method"):
        written(method, "http://h/")


def test_a_header_of_the_request_replaces_one_of_the_client() -> None:
    """However it is spelled; and a user's and a password's of the URL."""
    given = {"Accept": "a/b", "HOST": "other", "X-Y": "z", "Authorization": "Bearer t"}
    assert written("GET", "http://us:pw@h/", given)[1:] == [
        "host: other",
        "authorization: Bearer t",
        "accept: a/b",
        "x-y: z",
    ]


def test_a_connection_for_one_call_is_not_kept_by_the_server() -> None:
    """So it says `connection: close`."""
    assert written("GET", "http://h/", fresh=True)[-1] == "connection: close"


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "Transfer-Encoding"])
def test_only_the_client_says_where_a_request_ends(name: str) -> None:
    """Two statements could make a proxy and a server read two requests."""
    with pytest.raises(UnsendableError, match="how long the request is"):
        written("POST", "http://h/", {name: "0"}, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", f"a{c}b") for c in "\r\n\0\x7fé\x0b"]
    + [("x", " a"), ("x", "a\r\ny: b")]
    + [(f"x{c}y", "a") for c in ": \r\n\té"]
    + [("", "a")],
)
def test_a_header_cannot_contain_another(name: str, value: str) -> None:
    """Nor anything that a server may read in two ways; the error does not show it."""
    with pytest.raises(UnsendableError) as caught:
        written("POST", "http://h/", {name: value})
    assert str(caught.value) == "a header holds characters that HTTP cannot carry"


@pytest.mark.parametrize(
    "url", ["/relative", "ftp://h/", "ws://h/", "file:///etc/passwd", "mailto:a@b"]
)
def test_only_http_is_spoken(url: str) -> None:
    """And only to a host."""
    with pytest.raises(aiohttp.InvalidURL):
        written("GET", url)


def test_a_path_that_is_given_as_it_is_cannot_contain_a_second_line() -> None:
    """A webhook's URL is sent byte for byte."""

    async def main() -> None:
        client = HttpClient(connector())
        try:
            for path in ("/a b", "/a HTTP/1.1\r\nx: y", "/\0", "/é"):
                with pytest.raises(aiohttp.InvalidURL):
                    client._target(URL(f"http://h{path}", encoded=True))
        finally:
            await client.close()

    asyncio.run(main())


def test_the_urls_of_many_customers_are_not_kept() -> None:
    """A look-up's URL may contain a customer's address."""

    async def main() -> None:
        client = HttpClient(connector())
        for number in range(2 * URLS):
            client._target(URL(f"http://h/{number}"))
        assert len(client._targets) <= URLS
        await client.close()

    asyncio.run(main())


def test_a_connection_is_used_again() -> None:
    """For one request after another."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def use(client: HttpClient, url: URL) -> None:
        for _ in range(3):
            assert await asked(client, url) == (200, b"{}")

    assert served(handler, use) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", 200),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", 101),
    ],
)
def test_an_interim_answer_is_not_the_answer(head: bytes, status: int) -> None:
    """Except 101, after which no answer follows; its connection is not used again."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await reader.read()

    async def use(client: HttpClient, url: URL) -> None:
        for _ in range(2):
            assert (await asked(client, url))[0] == status

    assert served(handler, use) == 2


def test_a_broken_body_loses_no_status_behind_an_interim_answer() -> None:
    """Although all of it arrives together."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        writer.write(interim + b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n")
        await reader.read()

    async def use(client: HttpClient, url: URL) -> None:
        response = await client.request(HttpExchange(lambda: None), "POST", url, {}, b"")
        response.close()
        assert response.status == 200

    served(handler, use)
