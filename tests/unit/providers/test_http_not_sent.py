"""Calls that are provably not sent: no byte left this machine."""

import asyncio
import socket
from typing import Any

import pytest

from tests.unit.providers.calls import (
    AMPLE,
    OK,
    SHORT,
    Sent,
    answering,
    call,
    outcome,
    read_request,
    serving,
    silent,
    transport,
)
from worker.providers.base import NotSent, Request


def test_a_refused_connection_is_not_sent() -> None:
    """No server listens, so nothing is sent."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    sent = asyncio.run(call(f"http://127.0.0.1:{port}/"))
    assert sent == NotSent("not connected: connection refused")


def test_a_host_that_does_not_exist_is_not_sent() -> None:
    """There is no address, so nothing is sent."""
    assert isinstance(asyncio.run(call("http://nobody.invalid/")), NotSent)


@pytest.mark.parametrize(
    "url",
    [
        *("http://[", "ftp://127.0.0.1/", "nowhere", "", "http://", "http://:80/"),
        *("http://a:99999/", "http://a:b/", "http://a..b/", "http://\ud800/", "http://a/\ud800"),
        *("http://a\n/", f"http://{'a' * 64}.invalid/", f"http://a/{'b' * 70000}", "http://::1/"),
    ],
)
def test_an_url_that_is_none_is_not_sent(url: str) -> None:
    """A wrong base_url harms no customer."""
    assert isinstance(asyncio.run(call(url)), NotSent)


UNSENDABLE = {
    "a newline": {"X-Key": "abc\n"},
    "a newline inside": {"X-Key": "a\r\nX-Other: b"},
    "a euro sign": {"X-Key": "€"},
    "a letter of Latin-1": {"X-Key": "clé"},
    "NUL": {"X-Key": "a\0b"},
    "a lone surrogate": {"X-Key": "\ud800"},
    "a space before": {"X-Key": " a"},
    "a name with a newline": {"X-Key\n": "a"},
    "a name with a space": {"X Key": "a"},
    "an empty name": {"": "a"},
    **{f"control character {code}": {"X-Key": f"a{chr(code)}b"} for code in (1, 8, 11, 27, 127)},
}


@pytest.mark.parametrize("headers", UNSENDABLE.values(), ids=UNSENDABLE)
def test_a_header_that_cannot_be_sent_is_not_sent(headers: dict[str, str]) -> None:
    """A key with a newline harms no customer: no connection is made."""

    async def main() -> None:
        async with serving(answering(OK)) as server, transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            sent = await send(Request(server.url(), {}, headers))
            assert isinstance(sent, NotSent), sent
            assert "characters" in sent.reason
            assert server.connections == 0

    asyncio.run(main())


UNWRITABLE: dict[str, Any] = {
    "an object": {"password": object()},
    "a lone surrogate": {"name": "\ud800"},
    "bytes that are no UTF-8": {"name": b"\xff"},
}


@pytest.mark.parametrize("body", UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_body_that_cannot_be_written_is_not_sent(body: Any) -> None:
    """A body that JSON cannot express fails before a connection is made."""

    async def main() -> None:
        async with serving(answering(OK)) as server, transport() as carrier:
            sent = await carrier.sender(lambda: True, AMPLE)(Request(server.url(), body))
            assert isinstance(sent, NotSent), sent
            assert server.connections == 0

    asyncio.run(main())


def test_failing_tls_is_not_sent() -> None:
    """A server that doesn't speak TLS receives no part of the request."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    assert outcome(plain, scheme="https") == NotSent("not connected: TLS failed")


def test_a_budget_that_ends_while_connecting_is_not_sent() -> None:
    """A TLS handshake without an end uses up the time for connecting, and nothing is sent."""
    assert outcome(silent, scheme="https", budget=SHORT) == NotSent("not connected: timeout")


@pytest.mark.parametrize("turns", range(6))
def test_a_server_of_these_tests_ends_with_a_connection_that_it_has_only_just_accepted(
    turns: int,
) -> None:
    """However far the loop has come with it, nothing waits for it."""

    async def main() -> None:
        async with asyncio.timeout(AMPLE):
            async with serving(silent) as server:
                client = socket.create_connection(("127.0.0.1", server.port))
                for _ in range(turns):
                    await asyncio.sleep(0)
        client.close()

    asyncio.run(main())


def test_without_a_lease_nothing_is_even_connected() -> None:
    """A worker that could not renew its lease sends nothing."""

    async def main() -> tuple[Sent, int]:
        async with serving(answering(OK)) as server:
            return await call(server.url(), may_send=lambda: False), server.connections

    assert asyncio.run(main()) == (NotSent("lease lost", ours=True), 0)


@pytest.mark.parametrize("calls_before", [0, 1], ids=["new connection", "used connection"])
def test_a_lease_lost_while_connecting_writes_nothing(calls_before: int) -> None:
    """The lease is checked again after connecting, before the first byte."""
    seen = bytearray()
    closed = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(calls_before):
            await read_request(reader)
            writer.write(OK)
        seen.extend(await reader.read(1))
        closed.set()

    async def main() -> Sent:
        async with serving(handler) as server:
            async with transport() as carrier:
                for _ in range(calls_before):
                    await carrier.sender(lambda: True, AMPLE)(Request(server.url(), {}))
                held = iter([True, False])
                sent = await carrier.sender(lambda: next(held), AMPLE)(Request(server.url(), {}))
            await closed.wait()
            assert server.connections == 1
            return sent

    assert asyncio.run(main()) == NotSent("lease lost", ours=True)
    assert seen == b""
