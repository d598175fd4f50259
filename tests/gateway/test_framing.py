"""Where a request ends, and what its headers are, is read as a proxy in front reads it."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.chaos.proxy import free_port
from tests.gateway.service import Gateway, start
from tests.gateway.stage import PROXY, SERVE
from tests.integration.jobs import open2b
from worker.cli.local import stack

HEALTH = b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n"

#: A body without a length, and its end up to the trailers.
CHUNKED = "transfer-encoding: chunked"


@pytest.fixture(scope="module")
def behind(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a gateway that trusts a proxy; `REGWORKER_SERVE_GROUPS` gives its roles."""
    environment = {**gateway.environment, **SERVE, "REGWORKER_METRICS_PORT": str(free_port())}
    with ExitStack() as running:
        folder = tmp_path_factory.mktemp("behind")
        url, _, _ = start(running, folder, environment, "--port", "0")
        yield int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def port(gateway: Gateway) -> int:
    """The port of a gateway without a proxy."""
    return int(gateway.url.rpartition(":")[2])


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request's bytes."""
    return "\r\n".join([f"{line} HTTP/1.1", "host: x", *headers, "", ""]).encode() + body


@pytest.fixture(scope="module")
def desk(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with gateway.client("--may", "enqueue,read,operate") as client:
        yield client


def bearer(shop: httpx.Client) -> str:
    """The header with the client's token."""
    return f"authorization: {shop.headers['authorization']}"


def statuses(port: int, *parts: bytes, come_from: str = "127.0.0.1") -> list[int]:
    """The statuses of all answers on one connection; each part is sent when the one before has been
    read. The last request must end the connection."""
    seen = b""
    with socket.create_connection(("127.0.0.1", port), 60, (come_from, 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for number, part in enumerate(parts):
                connection.sendall(part)
                if number < len(parts) - 1:
                    _until_read(port, connection)
            while part := connection.recv(65536):
                seen += part
        except ConnectionError:
            pass  # the service closed the connection while we were still sending
    return [int(one[:3]) for one in seen.split(b"HTTP/1.1 ")[1:]]


def _until_read(port: int, connection: socket.socket) -> None:
    """Wait until the service has taken what was sent: its socket's receive queue is empty."""
    here = f":{connection.getsockname()[1]:04X} "
    there = f":{port:04X} "
    while True:
        for line in Path("/proc/net/tcp").read_text("ascii").splitlines():
            _, local, remote, _, queues, *_ = line.split()
            if f"{local} ".endswith(there) and f"{remote} ".endswith(here):
                if queues.endswith(":00000000"):
                    return
                break
        else:
            return  # closed


#: Each header that decides anything, with a value that would change the answer.
TRAILERS = {
    "x-forwarded-user": "boss@shop",
    "x-forwarded-groups": "sre",
    "x-forwarded-for": "8.8.8.8",
    "x-forwarded-proto": "https",
    "authorization": "Bearer rwt_x",
    "cookie": "a=b",
    "sec-fetch-site": "same-origin",
    "content-type": "application/json",
    "content-encoding": "gzip",
    "content-length": "5",
    "idempotency-key": "other",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    "expect": "100-continue",
    "host": "y",
    "x": "y",
}


@pytest.mark.parametrize("name", TRAILERS)
def test_a_trailer_is_refused(port: int, shop: httpx.Client, gateway: Gateway, name: str) -> None:
    """A trailer is no header: the request gets 400, no job is accepted, and nothing more is read
    from its connection."""
    body = json.dumps(open2b()).encode()
    sent = request(
        "POST /v1/jobs",
        bearer(shop),
        CHUNKED,
        body=b"%x\r\n%b\r\n0\r\n%b: %b\r\n\r\n"
        % (len(body), body, name.encode(), TRAILERS[name].encode()),
    )
    before = gateway.ledger.redis.hget("{reg}:stats", "accepted")
    assert statuses(port, sent + HEALTH) == [400]
    assert gateway.ledger.redis.hget("{reg}:stats", "accepted") == before


@pytest.mark.parametrize("parts", [1, 2])
def test_nobody_names_a_user_in_a_trailer(behind: int, parts: int) -> None:
    """A proxy removes the names that a client sends as headers, and not those in trailers: such a
    request is not answered as that user's."""
    head = request("GET /", "connection: close", CHUNKED)
    end = b"0\r\nX-Forwarded-User: boss@shop\r\nX-Forwarded-Groups: sre\r\n\r\n"
    sent = [head + end] if parts == 1 else [head, end]
    # In two parts, the page has redirected to the sign-in before the trailer is here.
    assert statuses(behind, *sent, come_from=PROXY) in ([400], [303])
    named = request("GET /", "connection: close", "x-forwarded-user: boss@shop", CHUNKED)
    end = b"0\r\nX-Forwarded-Groups: sre\r\n\r\n"
    assert statuses(behind, named + end, come_from=PROXY) == [400]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:batch"])
@pytest.mark.parametrize("start", [b"0\r\nX: ", b"5;x="], ids=["a trailer", "an extension"])
def test_what_is_no_body_has_a_limit(
    gateway: Gateway, port: int, shop: httpx.Client, path: str, start: bytes
) -> None:
    """An endless trailer, or an endless extension of a chunk, ends the connection, and is not
    kept."""
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    head = request(f"POST {path}", bearer(shop), CHUNKED)
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(head + start)
        with pytest.raises(ConnectionError):
            connection.sendall(b"a" * 64 * 1024 * 1024)
    assert process.memory_info().rss - before < 16 * 1024 * 1024


OFFERS = {
    "h2c": ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ"),
    "websocket": ("connection: upgrade", "upgrade: websocket"),
    "of any name": ("connection: keep-alive, Upgrade", "Upgrade: foo/1, bar"),
}


@pytest.mark.parametrize("form", ["length", "chunks"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", OFFERS)
def test_an_offer_to_change_the_protocol_is_ignored(
    port: int, shop: httpx.Client, name: str, parts: int, form: str
) -> None:
    """Its body is read as that of any other request, and the next request is the next one."""
    body = json.dumps(open2b()).encode()
    length = f"content-length: {len(body)}" if form == "length" else CHUNKED
    sent = body if form == "length" else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = request("POST /v1/jobs", bearer(shop), length, *OFFERS[name])
    last = request("GET /v1/health", "connection: close")
    requests = [head + sent + last] if parts == 1 else [head, sent + last]
    assert statuses(port, *requests) == [201, 200]


def test_a_body_is_never_read_as_a_request(port: int, shop: httpx.Client) -> None:
    """Whatever it holds and whatever its request offers, it gets one answer."""
    close = "connection: close, upgrade"
    length = f"content-length: {len(HEALTH)}"
    head = request("POST /v1/jobs", bearer(shop), length, close, "upgrade: h2c")
    assert statuses(port, head, HEALTH) == [422]
    assert statuses(port, head + HEALTH) == [422]


def test_many_offers_are_read_one_after_another(port: int) -> None:
    """Requests that follow each other in one segment are answered in their order."""
    offer = request("GET /v1/health", *OFFERS["h2c"])
    last = request("GET /v1/health", "connection: close")
    assert statuses(port, offer * 2000 + last) == [200] * 2001


@pytest.mark.parametrize("path", ["/sign-in", "/v1/jobs", "/v1/jobs:export"])
def test_a_client_that_goes_away_is_no_fault_of_ours(
    gateway: Gateway, port: int, desk: httpx.Client, path: str
) -> None:
    """Its request is logged and counted without a status."""
    form = "content-type: application/x-www-form-urlencoded"
    seen = gateway.log.stat().st_size
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(request(f"POST {path}", bearer(desk), form, "content-length: 9"))

    def line() -> dict[str, Any]:
        said = gateway.log.read_bytes()[seen:].splitlines()
        found = (json.loads(one) for one in said if f'"{path}"'.encode() in one)
        return next(found, {})

    stack.until(lambda: bool(line()), "its line in the log", 60)
    assert line()["status"] == 0


AMBIGUOUS = {
    "no host": b"GET /v1/health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "the same host twice": b"GET /v1/health HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET /v1/health HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/2.0": b"GET /v1/health HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /v1/health HTTP/0.9\r\nHost: a\r\n\r\n",
    "no version": b"GET /v1/health\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n",
    "a tunnel to a path": b"CONNECT /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "no URL": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a port that is none": b"GET http://x:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "half an address": b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "an offer with two hosts": request("GET /v1/health", "host: y", *OFFERS["h2c"]),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_request_is_refused(port: int, name: str) -> None:
    """It gets 400, and nothing behind it is read."""
    assert statuses(port, AMBIGUOUS[name] + HEALTH) == [400]


def test_a_probe_of_http_1_0_is_answered(port: int) -> None:
    """Load balancers send it without a host."""
    assert statuses(port, b"GET /v1/health HTTP/1.0\r\n\r\n") == [200]


@pytest.mark.parametrize(
    "path",
    [
        *("/v1%2fjobs", "/v1%2Fjobs", "/v1%5cjobs", "/v1\\jobs", "/v1/./jobs", "/v1/../v1/jobs"),
        *("/v1/%2e/jobs", "/v1/%2E%2e/v1/jobs", "/v1/.%2e/v1/jobs", "/v1/jobs/..%2f..", "/v1/.."),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_in_disguise_leads_nowhere(
    port: int, shop: httpx.Client, method: str, path: str
) -> None:
    """A proxy that allows only some paths may read it as another one."""
    body = json.dumps(open2b()).encode() if method == "POST" else b""
    length = f"content-length: {len(body)}"
    sent = request(f"{method} {path}", bearer(shop), length, "connection: close", body=body)
    assert statuses(port, sent) == [404]


@pytest.mark.parametrize("between", [b"", HEALTH], ids=["next", "next but one"])
def test_a_refusal_is_no_answer_to_an_earlier_request(
    port: int, shop: httpx.Client, between: bytes
) -> None:
    """A wrong request behind one that is not answered yet ends the connection: otherwise its status
    would be read as that of a job that may be accepted."""
    body = json.dumps(open2b()).encode()
    sent = request("POST /v1/jobs", bearer(shop), f"content-length: {len(body)}", body=body)
    assert statuses(port, sent + between + b"GET / HTTP/9.9\r\n\r\n") == []


def test_a_plain_request_is_read_as_ever(port: int, shop: httpx.Client) -> None:
    """Extensions of chunks of a usual length are ignored."""
    body = json.dumps(open2b()).encode()
    chunks = b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(body), body)
    sent = request("POST /v1/jobs", bearer(shop), CHUNKED, "connection: close", body=chunks)
    assert statuses(port, sent) == [201]
