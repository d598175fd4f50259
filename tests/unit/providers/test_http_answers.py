"""Answers over real sockets: which parts are read."""

import asyncio
import base64
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from regworker.domain.retry import parse_retry_after
from tests.unit.providers.calls import (
    AMPLE,
    OK,
    Sent,
    answering,
    call,
    outcome,
    read_request,
    serving,
    transport,
)
from worker.providers.base import Answer, Lost, Request
from worker.providers.http import MAX_ANSWER, _Call


def test_a_whole_answer_comes_back_with_status_headers_and_body() -> None:
    """An answer has its status, its headers by names in lower case, and its body as bytes."""
    reply = b"HTTP/1.1 500 Oops\r\nX-Customer-Key: k\r\nContent-Length: 3\r\n\r\nabc"
    sent = outcome(answering(reply))
    assert isinstance(sent, Answer)
    assert (sent.status, sent.headers["x-customer-key"], sent.body) == (500, "k", b"abc")


def test_an_answer_is_read_in_pieces_for_which_no_memory_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The C library maps each piece that is larger than 128 KiB, and unmaps it again."""
    sizes: list[Any] = []
    hold = _Call.hold

    def noting(call: _Call, connection: Any) -> None:
        sizes.append(connection.transport.max_size)
        hold(call, connection)

    monkeypatch.setattr(_Call, "hold", noting)
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000
    sent = outcome(answering(reply))
    assert isinstance(sent, Answer)
    assert len(sent.body) == 500_000
    assert sizes == [64 * 1024]


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["X-Customer-Key: k"], "k"),
        (["X-Customer-Key: k", "x-customer-key: k"], "k"),
        (["X-Customer-Key: k"] * 5, "k"),
        (["X-Customer-Key: k", "X-Customer-Key: other"], None),
        (["X-Customer-Key: k", "x-customer-key: K"], None),
        (["X-Customer-Key: k", "X-Customer-Key: k", "X-CUSTOMER-KEY: other"], None),
    ],
)
def test_a_header_that_came_with_two_values_has_none(lines: list[str], key: str | None) -> None:
    """The same value twice is one value; two different values are in doubt, and never joined."""
    reply = "\r\n".join(["HTTP/1.1 200 OK", *lines, "Content-Length: 0", "", ""]).encode()
    sent = outcome(answering(reply))
    assert isinstance(sent, Answer)
    assert sent.headers.get("x-customer-key") == key
    assert sent.conflicting == (frozenset() if key else {"x-customer-key"})


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([f"Set-Cookie: {'x' * 60_000}"], id="60 KB"),
        pytest.param([f"X-{n}: {n}" for n in range(300)], id="300"),
        pytest.param([f"Via: gateway {n}" for n in range(300)], id="300 of one name"),
        pytest.param([f"Set-Cookie: {n}{'x' * 3000}" for n in range(300)], id="900 KB in all"),
    ],
)
def test_many_and_long_headers_are_read(lines: list[str]) -> None:
    """Long headers before the answer's key don't hide it."""
    head = ["HTTP/1.1 200 OK", *lines, "X-Customer-Key: k", "Content-Length: 2", "", "{}"]
    sent = outcome(answering("\r\n".join(head).encode()))
    assert isinstance(sent, Answer)
    assert (sent.headers["x-customer-key"], sent.body) == ("k", b"{}")


def test_the_body_is_sent_as_json_by_post_with_the_given_headers() -> None:
    """The provider receives exactly the content of the request."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)
        await writer.drain()

    async def main() -> None:
        async with serving(handler) as server, transport() as carrier:
            request = Request(server.url(path="/a/b"), {"name": "Zoë"}, {"X-Public-Key": "pk"})
            await carrier.sender(lambda: True, AMPLE)(request)

    asyncio.run(main())
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a/b HTTP/1.1\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"x-public-key: pk" in head.lower()
    assert body == '{"name":"Zoë"}'.encode()


def test_every_call_says_who_calls_and_what_is_accepted() -> None:
    """The head has what it needs, each header once, and nothing from a library or the
    environment."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    outcome(handler)
    lines = seen[0].partition(b"\r\n\r\n")[0].lower().split(b"\r\n")[1:]
    head = dict(line.split(b": ", 1) for line in lines)
    assert len(head) == len(lines)
    assert head.pop(b"host").startswith(b"127.0.0.1:")
    assert head == {
        b"accept": b"application/json",
        b"accept-encoding": b"identity",
        b"content-length": b"22",
        b"content-type": b"application/json",
        b"user-agent": b"registration-worker",
    }


def test_a_user_and_a_password_in_the_url_are_sent_as_such() -> None:
    """For a test system behind a password: `https://user:password@host`."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async def main() -> Sent:
        async with serving(handler) as server:
            return await call(server.url().replace("//", "//us%20er:p%40ss@", 1))

    assert isinstance(asyncio.run(main()), Answer)
    given = base64.b64encode(b"us er:p@ss")
    assert b"\r\nauthorization: Basic " + given + b"\r\n" in seen[0]
    assert seen[0].startswith(b"POST / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_answer_is_read(name: str, compress: Callable[[bytes], bytes]) -> None:
    """Every encoding that the request accepts is understood."""
    body = compress(b'{"name": "John"}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = outcome(answering(head.encode() + body))
    assert isinstance(sent, Answer)
    assert sent.body == b'{"name": "John"}'


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0)),
        ("gzip, deflate", gzip.compress(zlib.compress(b"{}"), mtime=0)),
        ("gzip\r\nContent-Encoding: gzip", gzip.compress(b"{}", mtime=0)),
        ("gzip\r\nContent-Encoding: identity", gzip.compress(b"{}", mtime=0)),
        ("br", b"\x0b\x02\x80{}\x03"),
        ("zstd", b"(\xb5/\xfd"),
        ("compress", b"{}"),
        ("aes128gcm", b"{}"),
        ("identity, gzip", gzip.compress(b"{}", mtime=0)),
        ("", b"{}"),
    ],
)
def test_what_was_not_asked_for_is_not_unpacked(encoding: str, body: bytes) -> None:
    """The outcome is unknown, with the reason."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = outcome(answering(head.encode() + body))
    assert sent == Lost("answer with a content-encoding that we did not request")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(b"{}", mtime=0)[:-1], id="cut off"),
        pytest.param(gzip.compress(b"{}", mtime=0) + b"x", id="something behind"),
        pytest.param(gzip.compress(b"{}", mtime=0) * 101, id="more than a hundred"),
        pytest.param(gzip.compress(b"{}", mtime=0) + zlib.compress(b"{}"), id="another kind"),
        pytest.param(gzip.compress(b"{}", mtime=0) * 2 + b"\x1f\x8b", id="half a member"),
        pytest.param(b"{}", id="not compressed"),
    ],
)
def test_what_is_not_compressed_as_it_says_is_lost(body: bytes) -> None:
    """Half of an answer does not count."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = outcome(answering(head.encode() + body))
    assert sent == Lost("answer is not compressed as its header says")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", gzip.compress(b'{"a":', mtime=0) + gzip.compress(b"1}", mtime=0)),
        ("x-gzip", gzip.compress(b'{"a":1}', mtime=0) + gzip.compress(b"", mtime=0) * 99),
        ("deflate", zlib.compress(b'{"a":1}', wbits=-zlib.MAX_WBITS)),
        ("deflate", zlib.compress(b'{"a":1}')),
    ],
)
def test_every_form_of_a_compressed_answer_is_read(name: str, body: bytes) -> None:
    """A gzip file of several members, and a deflate stream with and without zlib's header."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = outcome(answering(head.encode() + body))
    assert isinstance(sent, Answer)
    assert sent.body == b'{"a":1}'


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", gzip.compress(b"x" * (MAX_ANSWER // 2 + 1), mtime=0) * 2),
        ("deflate", zlib.compress(b"x" * (MAX_ANSWER + 1), wbits=-zlib.MAX_WBITS)),
    ],
)
def test_every_form_of_a_compressed_answer_has_the_limit(name: str, body: bytes) -> None:
    """All members together count."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    assert outcome(answering(head.encode() + body)) == Lost("answer too large")


#: Headers that ask to wait, and for how many seconds in all.
WAITS = [
    (["Retry-After: 3", "Retry-After: 100"], 100),
    (["Retry-After: 100", "retry-after: 3"], 100),
    (["Retry-After: 3, 100"], 100),
    (["Retry-After: soon", "Retry-After: 3"], 3),
    (["Retry-After: 3", "Retry-After: Sun, 01 Mar 2020 12:00:00 GMT"], 3),
    (["Retry-After: 7", "Retry-After: 7"], 7),
    (["Retry-After: soon", "Retry-After: later"], None),
    ([], None),
]


@pytest.mark.parametrize(("lines", "seconds"), WAITS)
def test_the_longest_wait_that_an_answer_asks_for_counts(
    lines: list[str], seconds: float | None
) -> None:
    """In one header or in several: a proxy adds its own."""
    reply = "\r\n".join(["HTTP/1.1 429 Slow down", *lines, "Content-Length: 0", "", ""]).encode()
    sent = outcome(answering(reply))
    assert isinstance(sent, Answer)
    assert parse_retry_after(sent.headers.get("retry-after")) == seconds


def test_a_small_answer_that_grows_past_the_limit_is_not_kept() -> None:
    """The limit counts the unpacked bytes of a body."""
    body = gzip.compress(b"x" * 4 * MAX_ANSWER, mtime=0)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    assert outcome(answering(head.encode() + body)) == Lost("answer too large")


def test_an_answer_of_exactly_the_limit_is_taken() -> None:
    """A body of 1 MiB is read."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_ANSWER}\r\n\r\n".encode()
    sent = outcome(answering(head + b"x" * MAX_ANSWER))
    assert isinstance(sent, Answer)
    assert len(sent.body) == MAX_ANSWER


def test_a_longer_answer_is_not_read_to_its_end() -> None:
    """No provider sends a body larger than 1 MiB."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {100 * MAX_ANSWER}\r\n\r\n".encode()
    assert outcome(answering(head + b"x" * 2 * MAX_ANSWER)) == Lost("answer too large")


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    """A registration is sent only to the URL in the account's settings."""
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            writer.write(b"HTTP/1.1 307 Moved\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")

    sent = outcome(handler)
    assert isinstance(sent, Answer)
    assert sent.status == 307
    assert len(requests) == 1


def test_cookies_are_not_kept_between_calls() -> None:
    """One customer's session is never sent with another customer's registration."""
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with serving(handler) as server, transport() as carrier:
            for _ in range(2):
                await carrier.sender(lambda: True, AMPLE)(Request(server.url(), {}))

    asyncio.run(main())
    assert b"cookie" not in requests[1].lower()


@pytest.mark.parametrize(("fresh", "connections"), [(False, 1), (True, 2)])
def test_a_connection_is_used_again_unless_fresh_ones_are_wanted(
    fresh: bool, connections: int
) -> None:
    """Two calls in a row share a connection, if the account allows it."""

    async def main() -> int:
        async with serving(answering(OK)) as server, transport() as carrier:
            for _ in range(2):
                send = carrier.sender(lambda: True, AMPLE, fresh=fresh)
                assert isinstance(await send(Request(server.url(), {})), Answer)
            return server.connections

    assert asyncio.run(main()) == connections


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations pass only through configured proxies."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert isinstance(outcome(answering(OK)), Answer)
