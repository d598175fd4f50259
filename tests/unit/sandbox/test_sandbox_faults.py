"""Each fault happens on the wire as named, and the account is created or not, as documented."""

import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from sandbox.checks import BadControl
from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION
from sandbox.faults import Faults
from sandbox.server import SandboxServer

SIGN_UP = "/api/v10/storefront.sign-up"
REGISTER = "/wcf-services/service-customer.svc/customer/customer-registration"
KEY = "X-Customer-Key"
#: Long enough to connect and send on a busy machine, too short for a fault to end.
IMPATIENT = httpx.Timeout(5, read=0.05)


@pytest.fixture(scope="module")
def http(running: SandboxServer) -> Iterator[httpx.Client]:
    """A client of the sandbox."""
    with httpx.Client(base_url=running.url, timeout=5) as client:
        yield client


def script(server: SandboxServer, *rules: dict[str, Any]) -> None:
    """Apply these faults to the next calls."""
    server.sandbox.faults.configure({"script": list(rules)})


def sign_up(http: httpx.Client, email: str = "a@example.com") -> httpx.Response:
    """Sign a customer up at Open2b."""
    body = deepcopy(OPEN2B_SIGN_UP)
    body["customer"]["address"]["email"] = email
    return http.post(SIGN_UP, json=body)


def register(http: httpx.Client) -> httpx.Response:
    """Register a customer at SkyPostal."""
    credentials = {"user_code": 1, "app_key": "any"}
    return http.post(REGISTER, json=SKYPOSTAL_REGISTRATION | credentials)


def made(server: SandboxServer) -> int:
    """Count the accounts, and check that the list of requests agrees."""
    committed = [seen for seen in server.sandbox.requests.find() if seen.committed]
    assert len(committed) == len(server.sandbox.accounts)
    return len(committed)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is true; fail after five seconds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.002)


def committed(server: SandboxServer) -> bool:
    """Whether the account of a request exists by now."""
    return any(seen.committed for seen in server.sandbox.requests.find())


def open_raw(server: SandboxServer) -> socket.socket:
    """Send a sign-up over a bare socket, to see the connection itself."""
    body = json.dumps(OPEN2B_SIGN_UP).encode()
    head = f"POST {SIGN_UP} HTTP/1.1\r\nHost: store\r\nContent-Length: {len(body)}\r\n\r\n"
    url = urlsplit(server.url)
    raw = socket.create_connection((url.hostname, url.port), timeout=5)
    raw.sendall(head.encode() + body)
    return raw


@pytest.mark.parametrize(("kind", "accounts"), [("drop_before_commit", 0), ("commit_then_drop", 1)])
def test_a_dropped_connection_is_closed_without_a_byte(
    server: SandboxServer, kind: str, accounts: int
) -> None:
    """The client reads the end of the connection and nothing else; the account exists or not, as
    chosen."""
    script(server, {"kind": kind})
    with open_raw(server) as raw:
        assert raw.recv(1000) == b""
    assert made(server) == accounts
    [seen] = server.sandbox.requests.find()
    assert (seen.fault, seen.status) == (kind, None)


@pytest.mark.parametrize("commit", [True, False])
def test_a_reset_is_a_reset(server: SandboxServer, commit: bool) -> None:
    """TCP resets the client's connection; `commit` decides whether the account is created."""
    script(server, {"kind": "reset", "commit": commit})
    with open_raw(server) as raw, pytest.raises(ConnectionResetError):
        raw.recv(1000)
    assert made(server) == commit


@pytest.mark.parametrize("call", [sign_up, register])
def test_an_http_client_sees_a_drop_as_a_protocol_error(
    server: SandboxServer, http: httpx.Client, call: Callable[[httpx.Client], httpx.Response]
) -> None:
    """At either provider, httpx raises a RemoteProtocolError for a drop after the request."""
    script(server, {"kind": "commit_then_drop"})
    with pytest.raises(httpx.RemoteProtocolError):
        call(http)
    assert made(server) == 1


def test_a_late_commit_comes_after_the_client_gave_up(
    server: SandboxServer, http: httpx.Client
) -> None:
    """The client times out before the account exists; it is created nevertheless."""
    script(server, {"kind": "late_commit", "delay": 0.3})
    with pytest.raises(httpx.ReadTimeout):
        http.post(SIGN_UP, json=OPEN2B_SIGN_UP, timeout=IMPATIENT)
    assert made(server) == 0
    eventually(lambda: committed(server))


def test_a_late_commit_may_come_after_a_drop(server: SandboxServer) -> None:
    """The connection can be dropped before the account is created."""
    script(server, {"kind": "late_commit", "delay": 0.3, "hold": 0})
    with open_raw(server) as raw:
        assert raw.recv(1000) == b""
    assert made(server) == 0
    eventually(lambda: committed(server))


def test_a_late_commit_may_hold_the_connection_past_it(server: SandboxServer) -> None:
    """The connection can be held until after the account is created, and then dropped."""
    script(server, {"kind": "late_commit", "delay": 0, "hold": 0.1})
    with open_raw(server) as raw:
        eventually(lambda: committed(server))
        assert raw.recv(1000) == b""


def test_a_slow_answer_is_a_right_one(server: SandboxServer, http: httpx.Client) -> None:
    """A slow call takes longer, and has the usual answer."""
    script(server, {"kind": "slow", "delay": 0.1})
    started = time.monotonic()
    assert KEY in sign_up(http).headers
    assert time.monotonic() - started >= 0.1
    assert made(server) == 1


def test_a_slow_call_is_carried_out_although_the_client_left(
    server: SandboxServer, http: httpx.Client
) -> None:
    """A client that gives up on a slow call does not stop it."""
    script(server, {"kind": "slow", "delay": 0.2})
    with pytest.raises(httpx.ReadTimeout):
        http.post(SIGN_UP, json=OPEN2B_SIGN_UP, timeout=IMPATIENT)
    eventually(lambda: committed(server))


@pytest.mark.parametrize(
    ("parameters", "header"),
    [
        ({}, None),
        ({"retry_after": 7}, "7"),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, "Wed, 21 Oct 2026 07:28:00 GMT"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "status"),
    [({"kind": "too_many"}, 429), ({"kind": "server_error", "status": 503}, 503)],
)
def test_being_told_to_wait(
    server: SandboxServer,
    http: httpx.Client,
    kind: dict[str, Any],
    status: int,
    parameters: dict[str, Any],
    header: str | None,
) -> None:
    """429 and 5xx have Retry-After in seconds, as a date, or not at all; no account is created."""
    script(server, kind | parameters)
    answer = sign_up(http)
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, header)
    assert made(server) == 0


def test_retry_after_may_be_a_date_from_now(server: SandboxServer, http: httpx.Client) -> None:
    """A script can ask for an HTTP date that is some seconds after the answer."""
    script(server, {"kind": "too_many", "retry_after_date": 60})
    then = parsedate_to_datetime(sign_up(http).headers["retry-after"])
    assert 57 < then.timestamp() - time.time() <= 60


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("commit", [True, False])
def test_a_server_error_says_nothing_about_the_account(
    server: SandboxServer, http: httpx.Client, status: int, commit: bool
) -> None:
    """With any 5xx, `commit` decides whether the account is created."""
    script(server, {"kind": "server_error", "status": status, "commit": commit})
    assert sign_up(http).status_code == status
    assert made(server) == commit


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("call", [sign_up, register])
def test_a_page_instead_of_json(
    server: SandboxServer,
    http: httpx.Client,
    call: Callable[[httpx.Client], httpx.Response],
    commit: bool,
) -> None:
    """The answer is a page with 200 and without a key; `commit` decides whether the account is
    created."""
    script(server, {"kind": "html", "commit": commit})
    answer = call(http)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert KEY not in answer.headers
    assert made(server) == commit


@pytest.mark.parametrize("commit", [True, False])
def test_a_truncated_answer_breaks_off(server: SandboxServer, commit: bool) -> None:
    """The header promises the whole length, half of the JSON comes, and the connection closes."""
    script(server, {"kind": "truncated", "commit": commit})
    with open_raw(server) as raw, raw.makefile("rb") as stream:
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-length: 16" in head.lower()
    assert body == b'{"status'
    assert (KEY.lower().encode() in head.lower()) == commit
    assert made(server) == commit


def test_an_http_client_sees_a_truncated_answer_as_a_protocol_error(
    server: SandboxServer, http: httpx.Client
) -> None:
    """httpx notices SkyPostal's truncated answer; the account was created."""
    script(server, {"kind": "truncated"})
    with pytest.raises(httpx.RemoteProtocolError):
        register(http)
    assert made(server) == 1


@pytest.mark.parametrize("delay", [0, 0.01])
def test_an_answer_may_come_twice(server: SandboxServer, delay: float) -> None:
    """The same bytes come twice, at once or later, and the connection stays open."""
    script(server, {"kind": "repeated", "delay": delay})
    with open_raw(server) as raw, raw.makefile("rb") as stream:
        first = stream.read(len(b"HTTP/1.1 200"))
        answer = first + stream.readline()
        while not answer.endswith(b"\r\n\r\n"):
            answer += stream.readline()
        answer += stream.read(16)
        assert stream.read(len(answer)) == answer
    assert answer.startswith(b"HTTP/1.1 200")
    assert made(server) == 1


@pytest.mark.parametrize("commit", [True, False])
def test_an_answer_may_be_a_bomb(server: SandboxServer, commit: bool) -> None:
    """One or two kilobytes unpack, by two decoders, to more than a gigabyte."""
    script(server, {"kind": "bomb", "commit": commit})
    with open_raw(server) as raw:
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += raw.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-encoding: gzip, gzip" in head.lower()
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += raw.recv(65536)
    assert length < 16384
    once = zlib.decompressobj(31).decompress(body)
    assert once.startswith(b"\x1f\x8b")
    assert len(zlib.decompressobj(31).decompress(once, 2**24)) == 2**24
    assert made(server) == commit


def test_open2b_may_say_ok_without_a_key(server: SandboxServer, http: httpx.Client) -> None:
    """The account is created, and the answer says ok without the key."""
    script(server, {"kind": "missing_key"})
    answer = sign_up(http)
    assert answer.json() == {"status": "ok"}
    assert KEY not in answer.headers
    assert made(server) == 1


def test_skypostal_may_answer_in_an_odd_shape(server: SandboxServer, http: httpx.Client) -> None:
    """The account is created, and the answer has the shape of another service's."""
    script(server, {"kind": "missing_key"})
    assert set(register(http).json()) == {"data", "additional_info", "error"}
    assert made(server) == 1


def test_an_ok_without_a_key_may_be_a_lie(server: SandboxServer, http: httpx.Client) -> None:
    """With `commit` off the answer says ok without a key, and no account is created."""
    script(server, {"kind": "missing_key", "commit": False})
    assert sign_up(http).json() == {"status": "ok"}
    assert made(server) == 0


@pytest.mark.parametrize(("kind", "status"), [("unauthorized", 401), ("forbidden", 403)])
def test_credentials_may_be_refused(
    server: SandboxServer, http: httpx.Client, kind: str, status: int
) -> None:
    """The answer is 401 or 403 for any credentials, and no account is created."""
    script(server, {"kind": kind})
    assert register(http).status_code == status
    assert made(server) == 0


@pytest.mark.parametrize("commit", [True, False])
def test_a_hanging_provider_waits_for_the_client_to_leave(
    server: SandboxServer, http: httpx.Client, commit: bool
) -> None:
    """There is no answer; `commit` decides whether the account is created."""
    script(server, {"kind": "hang", "commit": commit})
    with pytest.raises(httpx.ReadTimeout):
        http.post(SIGN_UP, json=OPEN2B_SIGN_UP, timeout=IMPATIENT)
    eventually(lambda: committed(server) if commit else server.sandbox.requests.find())
    assert made(server) == commit


def test_a_connection_works_again_after_a_fault(server: SandboxServer, http: httpx.Client) -> None:
    """After its last call a fault has no effect."""
    script(server, {"kind": "drop_before_commit"})
    with pytest.raises(httpx.RemoteProtocolError):
        sign_up(http)
    assert KEY in sign_up(http).headers


def test_a_commit_behind_a_fault_keeps_to_the_rules(
    server: SandboxServer, http: httpx.Client
) -> None:
    """A sign-up that would be refused creates no account during a fault, either."""
    sign_up(http)
    script(server, {"kind": "server_error", "commit": True})
    assert sign_up(http).status_code == 500
    assert made(server) == 1


def test_a_script_is_spent_in_its_order(server: SandboxServer, http: httpx.Client) -> None:
    """Each rule applies to its number of calls, then the next rule; then there are no faults."""
    script(server, {"kind": "none"}, {"kind": "too_many", "times": 2}, {"kind": "forbidden"})
    statuses = [sign_up(http, f"{i}@example.com").status_code for i in range(5)]
    assert statuses == [200, 429, 429, 403, 200]


@pytest.mark.parametrize(
    "other",
    [{"provider": "skypostal"}, {"call": "storefront.login"}, {"email": "b@example.com"}],
)
def test_a_rule_holds_for_its_calls_only(
    server: SandboxServer, http: httpx.Client, other: dict[str, str]
) -> None:
    """A rule for another provider, call or e-mail does not apply to this call, and stays."""
    script(server, {"kind": "forbidden"} | other)
    assert sign_up(http).status_code == 200
    assert len(server.sandbox.faults.public()["script"]) == 1


def test_a_rule_finds_its_call(server: SandboxServer, http: httpx.Client) -> None:
    """A rule matches by provider, call and e-mail, the latter in any case."""
    exactly = {"provider": "open2b", "call": "storefront.sign-up", "email": "A@Example.com"}
    script(server, {"kind": "forbidden", "times": None} | exactly)
    assert [sign_up(http).status_code for _ in range(3)] == [403] * 3


def kinds(rates: dict[str, Any], seed: int, calls: int = 2000) -> list[str | None]:
    """Draw faults for this number of calls."""
    faults = Faults()
    faults.configure({"rates": rates, "seed": seed})
    drawn = (faults.take("open2b", "storefront.sign-up", None) for _ in range(calls))
    return [fault.kind if fault else None for fault in drawn]


def test_rates_are_kept() -> None:
    """Each kind happens about as often as its rate."""
    drawn = kinds({"reset": 0.1, "slow": {"probability": 0.3, "delay": 0.01}}, seed=3)
    assert 150 < drawn.count("reset") < 250
    assert 500 < drawn.count("slow") < 700


def test_a_seed_gives_one_sequence() -> None:
    """The same seed gives the same faults, and another one gives others."""
    rates = {"reset": 0.5}
    assert kinds(rates, seed=1) == kinds(rates, seed=1)
    assert kinds(rates, seed=1) != kinds(rates, seed=2)


def test_a_rate_may_be_for_some_calls_only() -> None:
    """A rate for another provider never applies to this one's calls."""
    assert set(kinds({"reset": {"probability": 1, "provider": "skypostal"}}, seed=1)) == {None}


def test_the_script_comes_before_the_rates() -> None:
    """While a rule applies, rates don't, even if the rule is that there is no fault."""
    faults = Faults()
    faults.configure({"script": [{"kind": "none"}], "rates": {"reset": 1}})
    drawn = [faults.take("open2b", "storefront.login", None) for _ in range(2)]
    assert [fault.kind for fault in drawn if fault] == ["none", "reset"]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "faults must be an object."),
        ({"scripts": []}, "faults.scripts is unknown; faults takes rates, script, seed."),
        ({"script": "drop"}, "faults.script must be a list of rules."),
        ({"script": [1]}, "faults.script[0] must be an object."),
        ({"script": [{}]}, "faults.script[0].kind must be one of none, drop_before_commit,"),
        ({"script": [{"kind": "crash"}]}, "faults.script[0].kind must be one of none,"),
        (
            {"script": [{"kind": "hang", "delay": 1}]},
            "faults.script[0].delay is unknown; hang takes commit.",
        ),
        (
            {"script": [{"kind": "drop_before_commit", "commit": True}]},
            "faults.script[0].commit is unknown; drop_before_commit takes no parameters.",
        ),
        (
            {"script": [{"kind": "slow", "delay": -1}]},
            "faults.script[0].delay must be a number of seconds, 0 or more.",
        ),
        (
            {"script": [{"kind": "html", "commit": "yes"}]},
            "faults.script[0].commit must be true or false.",
        ),
        (
            {"script": [{"kind": "server_error", "status": 404}]},
            "faults.script[0].status must be 500, 502, 503 or 504.",
        ),
        (
            {"script": [{"kind": "reset", "times": 0}]},
            "faults.script[0].times must be a whole number of at least 1.",
        ),
        (
            {"script": [{"kind": "reset"}, {"kind": "reset", "provider": "ups"}]},
            "faults.script[1].provider must be one of skypostal, open2b.",
        ),
        ({"script": [{"kind": "reset", "email": 1}]}, "faults.script[0].email must be a string."),
        ({"rates": {"crash": 1}}, "faults.rates.crash.kind must be one of none,"),
        (
            {"rates": {"reset": 1.5}},
            "faults.rates.reset.probability must be a probability from 0 to 1.",
        ),
        ({"rates": {"reset": 0.6, "hang": 0.6}}, "faults.rates must add up to 1 at most."),
        ({"seed": "x"}, "faults.seed must be a whole number of at least 0."),
    ],
)
def test_a_wrong_script_is_refused_in_a_sentence(value: object, sentence: str) -> None:
    """The error names the field and its valid values, and the old script stays."""
    faults = Faults()
    faults.configure({"script": [{"kind": "reset"}]})
    with pytest.raises(BadControl) as refused:
        faults.configure(value)
    assert str(refused.value).startswith(sentence)
    assert faults.public()["script"] == [{"kind": "reset", "commit": False, "times": 1}]


def test_what_is_left_can_be_put_again() -> None:
    """The description of the remaining faults is valid input."""
    faults = Faults()
    rules = [
        {"kind": "late_commit", "delay": 2.0, "hold": 0.5, "call": "storefront.login", "times": 2},
        {"kind": "too_many", "retry_after": "7", "times": None},
    ]
    rates = {"slow": {"probability": 0.25, "delay": 3.0, "provider": "open2b"}}
    faults.configure({"script": rules, "rates": rates, "seed": 5})
    assert faults.public() == {"script": rules, "rates": rates, "seed": 5}
    faults.configure(faults.public())
