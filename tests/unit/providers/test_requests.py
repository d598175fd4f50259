"""What a provider may send: methods, queries, forms, exact bytes and tokens."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest

from regworker.domain.outcome import Refused, Retryable
from tests.unit.providers.calls import OK, Sent, serving, transport
from worker.providers import oauth
from worker.providers.base import Answer, Lost, NotSent, Request, Send, to_bytes, with_query

AMPLE = 10.0


def sent(make: Callable[[str], Request]) -> bytes:
    """A request as its server receives it."""
    came: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        size = sum(int(one[15:]) for one in lines if one.startswith(b"content-length:"))
        came.append(head + await reader.readexactly(size))
        writer.write(OK)
        await writer.drain()

    async def both() -> Sent:
        async with serving(answer) as server, transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            return await send(make(server.url()))

    assert isinstance(asyncio.run(both()), Answer)
    return came[0]


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "PATCH", "DELETE"])
def test_a_request_goes_by_its_method_and_with_exactly_its_bytes(method: Any) -> None:
    """The bytes that were signed are the bytes that are sent."""
    content = b'{ "a" :1}' if method in {"POST", "PUT", "PATCH"} else b""
    came = sent(lambda url: Request(url, method=method, content=content))
    assert came.startswith(f"{method} / HTTP/1.1\r\n".encode())
    assert came.endswith(b"\r\n\r\n" + content)


def test_json_is_what_to_bytes_says() -> None:
    """A provider can sign it before it is sent."""
    body = {"name": "Ad\u00e9", "n": 1.5}
    came = sent(lambda url: Request(url, body))
    assert came.endswith(b"\r\n\r\n" + to_bytes(body))
    assert b"content-type: application/json\r\n" in came.lower()


def test_a_form_is_encoded_as_one() -> None:
    """It has its own content type, once."""
    came = sent(lambda url: Request.form(url, [("a", "1 &"), ("a", "\u00e9")], {"x-own": "y"}))
    assert came.endswith(b"\r\n\r\na=1+%26&a=%C3%A9")
    assert came.lower().count(b"content-type:") == 1
    assert b"content-type: application/x-www-form-urlencoded\r\n" in came.lower()
    assert b"x-own: y\r\n" in came.lower()


def test_a_query_stands_behind_the_url() -> None:
    """It is percent-encoded, and follows a query that is in the URL already."""
    assert with_query("https://h/p", {"a": "1 &"}) == "https://h/p?a=1+%26"
    assert with_query("https://h/p?x=y", [("a", "1"), ("a", "2")]) == "https://h/p?x=y&a=1&a=2"
    assert with_query("https://h/p", {}) == "https://h/p"
    assert sent(lambda url: Request.get(url, {"q": "\u00e9"})).startswith(b"GET /?q=%C3%A9 ")


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("content", [b"{}", b""])
def test_no_request_is_repeated_on_our_behalf(method: Any, content: bytes) -> None:
    """Libraries repeat a GET, PUT or DELETE if a kept connection breaks; the worker doesn't."""
    numbers = count()
    came: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"content-length: 2" in head.lower():
                await reader.readexactly(2)
            came.append(head)
            if next(numbers):
                return  # closed without an answer
            writer.write(OK)
            await writer.drain()

    async def both() -> list[Sent]:
        async with serving(answer) as server, transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            request = Request(server.url(), method=method, content=content)
            return [await send(request), await send(request)]

    first, second = asyncio.run(both())
    assert isinstance(first, Answer)
    assert second == Lost("connection closed")
    assert len(came) == 2


def test_an_answer_that_was_there_before_a_request_without_body_is_not_its_own() -> None:
    """The rule is the same as for every other request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(OK.replace(b"{}", b"[]"))  # no request belongs to this
        await writer.drain()
        await reader.read()

    async def both() -> list[Sent]:
        async with serving(answer) as server, transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            first = await send(Request.get(server.url()))
            await asyncio.sleep(0.2)
            return [first, await send(Request.get(server.url()))]

    for found in asyncio.run(both()):
        assert isinstance(found, Answer)
        assert found.body == b"{}"


# ── tokens ────────────────────────────────────────────────────────────────────────────────────

_numbers = count()


def credentials() -> oauth.ClientCredentials:
    """Credentials that no other test uses."""
    return oauth.ClientCredentials(f"https://h/{next(_numbers)}", "me", "canary", "customers")


def answering(*answers: Answer | NotSent | Lost) -> tuple[Send, list[Request]]:
    """A `Send` with these answers, and the requests that it got."""
    given: list[Request] = []
    left = iter(answers)

    async def send(request: Request) -> Answer | NotSent | Lost:
        given.append(request)
        await asyncio.sleep(0)
        return next(left)

    return send, given


def token(body: bytes, status: int = 200) -> Answer:
    """An answer of the token server."""
    return Answer(status, {}, body)


def asked(work: Callable[[], Awaitable[Any]]) -> Any:
    """The result in a new loop."""

    async def run() -> Any:
        return await work()

    return asyncio.run(run())


def test_one_token_is_fetched_for_all_who_wait() -> None:
    """It is used until shortly before its end; the client's id and secret are in a header."""
    ours = credentials()
    send, given = answering(token(b'{"access_token": "T1", "expires_in": 3600}'))

    async def many() -> Any:
        return await asyncio.gather(*(oauth.bearer(ours, send) for _ in range(5)))

    assert asked(many) == [{"authorization": "Bearer T1"}] * 5
    [request] = given
    assert request.encoded() == b"grant_type=client_credentials&scope=customers"
    assert request.headers == oauth.basic("me", "canary")
    assert "canary" not in repr(ours)


def test_a_token_that_is_refused_is_fetched_again() -> None:
    """After `forget`, and after it has expired."""
    ours = credentials()
    send, given = answering(
        token(b'{"access_token": "T1", "expires_in": 3600}'),
        token(b'{"access_token": "T2", "expires_in": "soon"}'),
    )

    async def twice() -> list[Any]:
        first = await oauth.bearer(ours, send)
        oauth.forget(ours)
        return [first, await oauth.bearer(ours, send)]

    assert asked(twice) == [{"authorization": "Bearer T1"}, {"authorization": "Bearer T2"}]
    assert len(given) == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (NotSent("not connected"), Retryable),
        (Lost("timeout"), Retryable),
        (token(b"", 503), Retryable),
        (token(b"<html>"), Retryable),
        (token(b'{"access_token": "a\\nb"}'), Retryable),
        (token(b'{"access_token": 7}'), Retryable),
        (token(b"{}", 429), Retryable),
        (token(b"{}", 400), Refused),
        (token(b"{}", 401), Refused),
    ],
)
def test_without_a_token_nothing_was_sent(answer: Any, kind: type) -> None:
    """So the attempt is repeated, or the account is held."""
    send, _ = answering(answer)
    assert isinstance(asked(lambda: oauth.bearer(credentials(), send)), kind)


def test_all_who_wait_for_a_token_share_its_failure() -> None:
    """A token endpoint that hangs takes the time of one call from each, not that of all before it.
    Whoever comes later asks again."""
    ours = credentials()
    send, given = answering(Lost("timeout"), token(b'{"access_token": "T1"}'))

    async def many() -> Any:
        waited = await asyncio.gather(*(oauth.bearer(ours, send) for _ in range(5)))
        return [*waited, await oauth.bearer(ours, send)]

    *waited, later = asked(many)
    assert waited == [Retryable("no token: timeout")] * 5
    assert later == {"authorization": "Bearer T1"}
    assert len(given) == 2


def test_a_fetch_that_lost_its_lease_is_nobody_elses_failure() -> None:
    """The next one that waits asks for the token itself."""
    ours = credentials()
    send, given = answering(NotSent("lease lost", ours=True), token(b'{"access_token": "T1"}'))

    async def both() -> Any:
        return await asyncio.gather(*(oauth.bearer(ours, send) for _ in range(2)))

    assert asked(both)[1] == {"authorization": "Bearer T1"}
    assert len(given) == 2


def test_a_token_that_this_worker_did_not_ask_for_spends_no_attempt() -> None:
    """Its lease was lost: nothing was sent."""
    send, _ = answering(NotSent("lease lost", ours=True))
    found = asked(lambda: oauth.bearer(credentials(), send))
    assert found == Retryable("no token: lease lost", spends=False)
