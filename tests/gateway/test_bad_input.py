"""The service refuses any bad input clearly, without a traceback and in bounded memory, and
keeps running."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from regworker.domain.errors import MOST_PROBLEMS
from tests.gateway.service import Gateway
from tests.integration.jobs import skypostal
from worker.gateway.connection import HEADER_TIME
from worker.gateway.server import KEEP_ALIVE

MB = 1024 * 1024


def body(**changes: object) -> bytes:
    """A job as JSON."""
    return json.dumps({**skypostal(), **changes}).encode()


BODIES = {
    "empty": (b"", 422, ""),
    "no JSON": (b"{", 422, ""),
    "a list": (b"[]", 422, ""),
    "a number": (b"1", 422, ""),
    "no UTF-8": (b'{"provider": "\xff"}', 422, ""),
    "UTF-16": ('{"provider": "skypostal"}'.encode("utf-16"), 422, ""),
    "a NUL": (body(idempotency_key="a\0b"), 422, "idempotency_key"),
    "a raw NUL": (b'{"provider": "a\0b"}', 422, ""),
    "half a pair": (body(idempotency_key="\ud800"), 422, "idempotency_key"),
    "half a pair in metadata": (body(metadata={"a": "\ud800"}), 422, "metadata"),
    "NaN": (body(metadata={"a": float("nan")}), 422, ""),
    "Infinity": (body(metadata={"a": float("inf")}), 422, ""),
    "1e400": (body().replace(b'"provider"', b'"x": 1e400, "provider"'), 422, ""),
    "many digits": (body().replace(b'"provider"', b'"x": %b, "provider"' % (b"9" * 9999)), 422, ""),
    "a name twice": (body().replace(b"{", b'{"provider": "open2b", ', 1), 422, "provider"),
    "deep": (b'{"registration":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, 422, ""),
    "deep lists": (b"[" * 100_000, 422, ""),
    "some hundred lists": (
        body().replace(b'"registration":', b'"registration":' + b"[" * 600 + b"]" * 600 + b',"x":'),
        422,
        "registration",
    ),
    "wrong types": (body(provider=5, account=[], lane={}, reply_to="x"), 422, "provider"),
    "no fields": (b"{}", 422, "provider"),
    "too large for a job": (body(metadata={"a": "x" * 70_000}), 422, ""),
    "too large": (body(metadata={"a": "x" * MB}), 413, ""),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_by_its_field(shop: httpx.Client, name: str) -> None:
    """The answer is a problem that names the field and says that nothing was accepted."""
    sent, status, field = BODIES[name]
    answer = shop.post("/v1/jobs", content=sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["verdict"] == "not accepted"
    if status == 422:
        fields = [one["field"] for one in answer.json()["errors"]]
        assert any(one.startswith(field) for one in fields), fields


_NAMES = b",".join(b'"%x":0' % number for number in range(55_000))

_JOB = b'{"provider":"skypostal","idempotency_key":"costly","registration":{'

#: Bodies of nearly the largest size. Each would take a minute or more if the time grew with the
#: square of the size. Unicode's normal form sorts the marks on a letter.
COSTLY = {
    "names": b'{%b,"z":0,"z":0}' % _NAMES,
    "marks": b'{"provider":"skypostal","registration":{},"idempotency_key":"a%b"}'
    % ("\u0301" * 125_000 + "\u0323" * 125_000).encode(),
}

#: Bodies with a problem in each of their parts.
WRONG = {
    "names": b"%b%b}}" % (_JOB, _NAMES),
    "items": b'%b"customer_phone":[{}%b]}}' % (_JOB, b",{}" * 170_000),
}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:batch"])
@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_body_delays_nobody(
    gateway: Gateway, shop: httpx.Client, name: str, path: str
) -> None:
    """A body of the largest size is refused, alone and in a batch, while another client is
    served."""
    headers = {} if path.endswith("batch") else {"idempotency-key": "other"}
    with ThreadPoolExecutor(4) as pool:
        refused = [
            pool.submit(shop.post, path, content=COSTLY[name], headers=headers) for _ in range(4)
        ]
        assert gateway.http.get("/v1/health").status_code == 200
        for one in refused:
            answer = one.result()
            found = answer.json()
            assert found["status"] == 422, answer.text
            assert found["verdict"] == "not accepted"


@pytest.mark.parametrize("name", WRONG)
def test_countless_problems_are_not_all_listed(shop: httpx.Client, name: str) -> None:
    """The answer lists the first ones, and says how many more there are."""
    answer = shop.post("/v1/jobs", content=WRONG[name])
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert len(errors) == MOST_PROBLEMS + 1
    assert "more problems" in errors[-1]["message"]


def raw(gateway: Gateway, *parts: bytes, pause: float = 0.0) -> bytes:
    """The answer to these bytes, read until the connection is closed."""
    address = urlsplit(gateway.url)
    seen = b""
    with socket.create_connection((address.hostname, address.port), 60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while part := connection.recv(65536):
                seen += part
        except ConnectionError:
            pass  # the service closed the connection while we were still sending
    return seen


def head(shop: httpx.Client, *more: str) -> bytes:
    """The head of a request that enqueues a job."""
    token = shop.headers["authorization"]
    lines = ["POST /v1/jobs HTTP/1.1", "host: x", f"authorization: {token}", "connection: close"]
    return "".join(f"{line}\r\n" for line in (*lines, *more)).encode() + b"\r\n"


def test_white_space_around_the_values_of_headers_is_no_part_of_them(
    gateway: Gateway, shop: httpx.Client
) -> None:
    """A token, a length and a type, as some clients and proxies write them."""
    sent = body()
    headers = [
        "POST /v1/jobs HTTP/1.1",
        "host:\tx ",
        f"authorization:  {shop.headers['authorization']} \t",
        f"content-length: {len(sent)} ",
        "content-type: application/json\t",
        "connection: close ",
    ]
    answer = raw(gateway, "\r\n".join((*headers, "", "")).encode() + sent)
    assert answer.split(b" ")[1] == b"201", answer


def test_lies_about_sizes_and_headers_are_refused(gateway: Gateway, shop: httpx.Client) -> None:
    """Each request gets a 4xx or a closed connection, and no job is accepted."""
    many = [f"x-{number}: 1" for number in range(10_000)]
    accepted = gateway.ledger.redis.hget("{reg}:stats", "accepted")
    cases = {
        "10,000 headers": (head(shop, *many), b"431"),
        "a large header": (head(shop, "x: " + "y" * 100_000), b"431"),
        "a long path": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"431"),
        "a length that is none": (head(shop, "content-length: ten"), b"400"),
        "a negative length": (head(shop, "content-length: -1"), b"400"),
        "a huge length": (head(shop, "content-length: 99999999999"), b"413"),
        "two lengths": (head(shop, "content-length: 1", "content-length: 2"), b"400"),
        "both": (head(shop, "content-length: 5", "transfer-encoding: chunked"), b"400"),
        "a chunk that is none": (head(shop, "transfer-encoding: chunked") + b"zz\r\n{}", b"400"),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    }
    for name, (sent, status) in cases.items():
        answer = raw(gateway, sent)
        assert answer == b"" or answer.split(b" ")[1] == status, (name, answer[:200])
    endless = [
        head(shop, "transfer-encoding: chunked"),
        *[b"10000\r\n%b\r\n" % (b"x" * 65536)] * 64,
    ]
    answer = raw(gateway, *endless)
    assert answer == b"" or answer.split(b" ")[1] in {b"413", b"400"}
    assert gateway.ledger.redis.hget("{reg}:stats", "accepted") == accepted
    assert gateway.http.get("/v1/health").status_code == 200


def test_a_slow_client_keeps_no_connection(gateway: Gateway, shop: httpx.Client) -> None:
    """After half a head and then silence, the client gets 408 and is closed; others are served
    meanwhile."""
    address = urlsplit(gateway.url)
    slow = [socket.create_connection((address.hostname, address.port), 60) for _ in range(200)]
    for one in slow:
        one.sendall(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n")
    assert shop.post("/v1/jobs", content=body()).status_code == 201
    for one in slow:
        one.settimeout(HEADER_TIME + 60)
        assert one.recv(100).startswith(b"HTTP/1.1 408")
        one.close()


def test_a_refused_request_keeps_no_connection(gateway: Gateway) -> None:
    """Whoever sends a part of the body after the refusal, or the rest of it, and then nothing, is
    closed."""
    address = urlsplit(gateway.url)
    start = b"POST /v1/jobs:batch HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
    rests = (b"a", b"a" * 9)
    opened = [socket.create_connection((address.hostname, address.port), 60) for _ in rests]
    for one, rest in zip(opened, rests, strict=True):
        one.sendall(start)
        seen = b""
        while not seen.endswith(b"}"):
            seen += one.recv(65536)
        assert seen.split(b" ")[1] in {b"401", b"429"}
        one.sendall(rest)
    for one in opened:
        one.settimeout(KEEP_ALIVE + 60)
        assert one.recv(100) == b"", "nothing more is sent"
        one.close()


def test_memory_stays_bounded(gateway: Gateway, shop: httpx.Client) -> None:
    """Nearly 100 MB of requests raise the service's memory by less than 32 MB."""
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    for _ in range(4):
        raw(gateway, head(shop, "transfer-encoding: chunked"), b"1000000\r\n" + b"x" * 16 * MB)
    with shop.stream("POST", "/v1/jobs:batch", content=(b"x" * MB for _ in range(32))) as answer:
        found = [json.loads(line) for line in answer.iter_lines()]
    assert [one["status"] for one in found] == [413]
    assert process.memory_info().rss - before < 32 * MB


def test_nothing_of_it_is_in_the_log(gateway: Gateway) -> None:
    """The log has no traceback and no error of the service."""
    said = gateway.log.read_text("utf-8")
    assert "traceback" not in said
    assert "a request failed" not in said
