"""Tokens: shown once, stored as a hash, limited in scope, and revoked within seconds."""

import asyncio
import json
import socket
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from regworker.ledger import AsyncLedger
from regworker.ledger.admin import TOKENS
from tests.gateway.service import Gateway
from tests.integration.jobs import open2b, skypostal
from worker.cli.local import stack
from worker.gateway import bearer as bearer_
from worker.gateway.auth import Principal
from worker.gateway.bearer import ALL_WAITING, FAILURES, LONGEST, MOST_WAITING
from worker.gateway.client_address import Proxies
from worker.gateway.connection import MOST_CONNECTIONS
from worker.gateway.problems import NotTaken
from worker.operations.audit import AuditFilter, AuditLog
from worker.operations.tokens import TokenError, TokenStore

UNKNOWN = "00000000-0000-8000-8000-000000000000"


def bearer(token: str) -> dict[str, str]:
    """The Authorization header for a token."""
    return {"authorization": f"Bearer {token}"}


def test_only_a_hash_is_kept(gateway: Gateway) -> None:
    """The secret appears only in the one line that `new` prints."""
    made = json.loads(gateway.cli("tokens", "new", "--name", "once", "--json"))
    secret = made["token"].rpartition("_")[2]
    assert gateway.http.get("/v1/events", headers=bearer(made["token"])).status_code == 200
    kept = b"".join(gateway.ledger.redis.hvals(TOKENS))
    assert secret.encode() not in kept
    assert secret not in gateway.cli("tokens", "list", "--json")
    assert made["id"] in gateway.cli("tokens", "list")
    assert secret not in gateway.log.read_text("utf-8")


def test_a_revoked_token_is_refused(gateway: Gateway) -> None:
    """It is refused within seconds, also by a service that has just accepted it."""
    made = json.loads(gateway.cli("tokens", "new", "--name", "gone", "--json"))
    assert gateway.http.get("/v1/events", headers=bearer(made["token"])).status_code == 200
    revoke(gateway, made["token"])


class Open:
    """A request on a connection of its own, whose body and answer come in parts."""

    def __init__(self, gateway: Gateway, token: str, request: str) -> None:
        address = urlsplit(gateway.url)
        self._connection = socket.create_connection((address.hostname, address.port), 30)
        head = f"{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        chunked = "transfer-encoding: chunked\r\n" if request.startswith("POST") else ""
        self._connection.sendall(f"{head}{chunked}connection: close\r\n\r\n".encode())

    def send(self, part: bytes) -> None:
        """Send a part of the body; an empty one ends it."""
        self._connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))

    def until(self, expected: bytes) -> bytes:
        """The answer up to and with these bytes, or all of it if they do not come."""
        seen = b""
        while expected not in seen and (part := self._connection.recv(65536)):
            seen += part
        return seen

    def says(self, expected: bytes, seconds: float) -> bool:
        """Whether it answers with these bytes within some seconds."""
        self._connection.settimeout(seconds)
        try:
            return expected in self.until(expected)
        except TimeoutError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def metrics(gateway: Gateway) -> str:
    """What the service shows to Prometheus."""
    port = gateway.environment["REGWORKER_METRICS_PORT"]
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text


def revoke(gateway: Gateway, token: str) -> None:
    """Revoke a token, and return when the service knows."""
    gateway.cli("tokens", "revoke", token.split("_")[1])

    def refused() -> bool:
        answer = gateway.http.get("/v1/events", headers=bearer(token))
        return answer.status_code in {401, 429}

    stack.until(refused, "the token is refused", 60)


def test_an_open_batch_ends_with_its_token(gateway: Gateway) -> None:
    """The next line gets 401, and the answer ends; the job is not accepted."""
    token = gateway.token()
    before, after = (json.dumps(open2b()).encode() + b"\n" for _ in range(2))
    with closing(Open(gateway, token, "POST /v1/jobs:batch")) as batch:
        batch.send(before)
        assert b'"status": 201' in batch.until(b'{"line": 1')
        jobs = gateway.ledger.redis.zcard("{reg}:open")
        revoke(gateway, token)
        batch.send(after)
        answer = batch.until(b"\r\n0\r\n\r\n")
    assert b'"line": 2' in answer
    assert b'"status": 401' in answer
    assert b'"verdict": "not accepted"' in answer
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert gateway.ledger.redis.zcard("{reg}:open") == jobs


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:export", "/v1/jobs:forget"])
def test_an_open_request_ends_with_its_token(gateway: Gateway, path: str) -> None:
    """A token that is revoked before the body is complete accepts and shows nothing."""
    token = gateway.token("--may", "enqueue,operate")
    job = open2b()
    name = {"provider": "open2b", "idempotency_key": job["idempotency_key"]}
    body = json.dumps(job if path == "/v1/jobs" else name).encode()
    with closing(Open(gateway, token, f"POST {path}")) as request:
        request.send(body[:1])
        revoke(gateway, token)
        request.send(body[1:])
        request.send(b"")
        assert request.until(b"\r\n").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("what", ["events", "job"])
def test_an_open_poll_ends_with_its_token(gateway: Gateway, shop: httpx.Client, what: str) -> None:
    """A request that waited is answered with 401, and not with what happened meanwhile."""
    token = gateway.token()
    job_id = shop.post("/v1/jobs", json=open2b()).json()["job_id"]
    cursor = shop.get("/v1/events").json()["cursor"]
    paths = {"events": f"/v1/events?after={cursor}&wait=60", "job": f"/v1/jobs/{job_id}?wait=60"}
    with closing(Open(gateway, token, f"GET {paths[what]}")) as poll:
        revoke(gateway, token)
        shop.delete(f"/v1/jobs/{job_id}")
        answer = poll.until(b"\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("may", "statuses"),
    [
        ("enqueue", (201, 403, 200)),
        ("read", (403, 200, 403)),
        ("read:all", (403, 200, 403)),
        ("operate", (403, 403, 200)),
    ],
)
def test_a_token_may_do_what_it_was_made_for(
    gateway: Gateway, shop: httpx.Client, may: str, statuses: tuple[int, int, int]
) -> None:
    """Enqueuing, reading and cancelling each need their scope; `operate` cancels any sender's
    job."""
    with gateway.client("--may", may, name="shop") as client:
        job = shop.post("/v1/jobs", json=skypostal()).json()["job_id"]
        found = (
            client.post("/v1/jobs", json=skypostal()).status_code,
            client.get(f"/v1/jobs/{job}").status_code,
            client.delete(f"/v1/jobs/{job}").status_code,
        )
    assert found == statuses


def audited(gateway: Gateway, job_id: str) -> list[tuple[str, str, str]]:
    """Who did what with a job, and from where, by the audit log."""
    found = AuditLog(gateway.ledger).newest(AuditFilter(job=job_id), most=9)
    return [(one.who, one.what, one.where) for one in found]


def test_cancelling_somebody_elses_job_is_audited(gateway: Gateway, shop: httpx.Client) -> None:
    """The audit log and the job's timeline name the token. Cancelling an own job is no act of an
    operator."""
    theirs, own = (shop.post("/v1/jobs", json=skypostal()).json()["job_id"] for _ in range(2))
    with gateway.client("--may", "operate", name="desk") as desk:
        done = desk.delete(f"/v1/jobs/{theirs}").json()
    assert done["timeline"][-1]["what"] == "cancelled by desk"
    assert audited(gateway, theirs) == [("desk", "job.cancel", "api")]
    with gateway.client("--may", "operate", name="shop") as same:
        done = same.delete(f"/v1/jobs/{own}").json()
    assert done["timeline"][-1]["what"] == "cancelled by its producer"
    assert audited(gateway, own) == []


def test_a_token_is_limited_to_its_accounts(gateway: Gateway, shop: httpx.Client) -> None:
    """It can enqueue and read jobs of these accounts only, also in a batch."""
    with gateway.client("--account", "open2b/default", name="shop") as client:
        assert client.post("/v1/jobs", json=open2b()).status_code == 201
        assert client.post("/v1/jobs", json=skypostal()).status_code == 403
        lines = f"{json.dumps(open2b())}\n{json.dumps(skypostal())}\n"
        answer = client.post("/v1/jobs:batch", content=lines)
        assert [json.loads(one)["status"] for one in answer.text.splitlines()] == [201, 403]
        theirs = shop.post("/v1/jobs", json=skypostal()).json()["job_id"]
        assert client.get(f"/v1/jobs/{theirs}").status_code == 404


def _by_id(job_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    body = {"json": {"job_id": job_id}}
    return [
        ("GET", f"/v1/jobs/{job_id}", {}),
        ("DELETE", f"/v1/jobs/{job_id}", {}),
        ("POST", "/v1/jobs:export", body),
        ("POST", "/v1/jobs:forget", body),
    ]


def _by_key(key: str) -> list[tuple[str, str, dict[str, Any]]]:
    named = {"provider": "skypostal", "account": "default"}
    body = {"json": {**named, "idempotency_key": key}}
    return [
        ("GET", "/v1/jobs", {"params": {**named, "key": key}}),
        ("POST", "/v1/jobs", {"json": {**skypostal(), "idempotency_key": key}}),
        ("POST", "/v1/jobs:batch", {"json": {**skypostal(), "idempotency_key": key}}),
        ("POST", "/v1/jobs:export", body),
        ("POST", "/v1/jobs:forget", body),
    ]


@pytest.mark.parametrize("may", ["enqueue,read", "enqueue,read:all", "enqueue,read:all,operate"])
@pytest.mark.parametrize("name", ["shop", "other"], ids=["of its own name", "of another name"])
@pytest.mark.parametrize("ended", [False, True], ids=["queued", "ended"])
def test_a_token_that_is_limited_learns_of_no_other_accounts_jobs(
    gateway: Gateway, shop: httpx.Client, may: str, name: str, ended: bool
) -> None:
    """Whether a job exists or not: every route answers the same, by its id and by its key."""
    job = skypostal()
    job_id = shop.post("/v1/jobs", json=job).json()["job_id"]
    if ended:
        shop.delete(f"/v1/jobs/{job_id}")
    before = shop.get(f"/v1/jobs/{job_id}").json()
    with gateway.client("--may", may, "--account", "open2b/default", name=name) as narrow:

        def answers(job_id: str, key: str) -> list[tuple[int, str]]:
            asked = [narrow.request(how, url, **more) for how, url, more in _by_id(job_id)]
            asked += [narrow.request(how, url, **more) for how, url, more in _by_key(key)]
            return [(one.status_code, one.text) for one in asked]

        found = answers(job_id, job["idempotency_key"])
        assert found == answers(UNKNOWN, "nobody@example.com")
        own = narrow.get("/v1/events", params={"after": "0"}).json()["events"]
        assert job_id not in [one["subject"] for one in own]
    assert shop.get(f"/v1/jobs/{job_id}").json() == before


def test_a_token_that_is_limited_sees_no_other_names(gateway: Gateway, shop: httpx.Client) -> None:
    """An error names the other endpoints and accounts only to a token for all accounts."""
    wrong = [{**open2b(), "reply_to": ["nowhere"]}, {**open2b(), "account": "gone"}]
    options = ("--account", "open2b/default", "--account", "open2b/gone")
    with gateway.client(*options, name="narrow") as narrow:
        for client, listed in ((shop, True), (narrow, False)):
            said = [client.post("/v1/jobs", json=job).json()["errors"] for job in wrong]
            lines = "\n".join(json.dumps(job) for job in wrong)
            batch = client.post("/v1/jobs:batch", content=lines).text.splitlines()
            said += [json.loads(line)["errors"] for line in batch]
            for [error], field in zip(said, ["reply_to", "account"] * 2, strict=True):
                assert error["field"] == field
                assert "of any worker" in error["message"] or "of open2b is" in error["message"]
                assert ("workers have" in error["message"]) == listed


def test_a_token_has_a_pace(gateway: Gateway) -> None:
    """The answer is 429, and says how long to wait."""
    with gateway.client("--rate", "0.01") as client:
        first, second = client.get("/v1/events"), client.get("/v1/events")
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["verdict"] == "repeat it"
    assert int(second.headers["retry-after"]) > 60


@pytest.mark.parametrize("what", ["events", "job", "batch", "enqueue", "export"])
def test_waiting_requests_of_one_token_are_limited(
    gateway: Gateway, shop: httpx.Client, what: str
) -> None:
    """Beyond the limit the answer is 429, whether they wait for news or for their own body; other
    tokens may still wait, and this one again later."""
    assert MOST_WAITING <= MOST_CONNECTIONS // 2
    assert ALL_WAITING <= MOST_CONNECTIONS * 3 // 4
    job_id = shop.post("/v1/jobs", json=open2b()).json()["job_id"]
    cursor = shop.get("/v1/events").json()["cursor"]
    start = f"/v1/jobs/{job_id}?" if what == "job" else f"/v1/events?after={cursor}"
    token = gateway.token("--rate", "2", "--may", "enqueue,read,operate")
    bodies = {"batch": "/v1/jobs:batch", "enqueue": "/v1/jobs", "export": "/v1/jobs:export"}
    ask = f"POST {bodies[what]}" if what in bodies else f"GET {start}&wait=60"

    def refused(opened: ExitStack) -> bool:
        """Whether one more may not wait; it may also be refused by its pace."""
        poll = opened.enter_context(closing(Open(gateway, token, ask)))
        return poll.says(b"of this token wait for news, or", 0.2)

    with ExitStack() as opened:
        stack.until(lambda: refused(opened), "too many are waiting", 60)
        assert shop.get(f"{start}&wait=0.01").status_code == 200
        assert 'refused_total{why="waiting"}' in metrics(gateway)
        shop.delete(f"/v1/jobs/{job_id}")  # ends the waiting for news

    def answered() -> bool:
        path = f"/v1/events?after={cursor}&wait=0.01"
        return gateway.http.get(path, headers=bearer(token)).status_code == 200

    stack.until(answered, "none is waiting", 60)


def test_waiting_requests_of_all_tokens_are_limited(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tokens together cannot use up a process' connections; later they may wait again."""
    monkeypatch.setattr(bearer_, "ALL_WAITING", 3)
    ids = [gateway.token(name=name).split("_")[1] for name in ("one", "two")]
    one, two = (Principal("shop", "token", "", token=id_) for id_ in ids)

    async def refused() -> None:
        ledger = AsyncLedger(str(gateway.settings.redis_url))
        gate = bearer_.Gate(ledger, Proxies(()))
        try:
            async with gate.waits(one), gate.waits(one):
                async with gate.waits(two):
                    with pytest.raises(NotTaken, match="3 requests of all tokens") as caught:
                        await gate.waits(two).__aenter__()
                    assert caught.value.problem.status == 429
                async with gate.waits(two):
                    pass
            assert dict(gate.refused.read()) == {("all_waiting",): 1}
        finally:
            await ledger.aclose()

    asyncio.run(refused())


@pytest.mark.parametrize(
    "options",
    [("--name", "a:b"), ("--name", "x", "--may", "fly"), ("--name", "x", "--account", "open2b")],
)
def test_what_makes_no_token_says_why(gateway: Gateway, options: tuple[str, ...]) -> None:
    """The command fails with the reason, and stores nothing."""
    before = gateway.ledger.redis.hlen(TOKENS)
    with pytest.raises(AssertionError, match=r"name:|may|accounts"):
        gateway.cli("tokens", "new", *options)
    assert gateway.ledger.redis.hlen(TOKENS) == before


@pytest.mark.parametrize("rate", ["inf", "nan", "1e308", "1000001", "0", "-1"])
def test_a_rate_has_a_highest_value(gateway: Gateway, rate: str) -> None:
    """The command and the store name it, and store nothing."""
    before = gateway.ledger.redis.hlen(TOKENS)
    with pytest.raises(AssertionError, match=r"rate"):
        gateway.cli("tokens", "new", "--name", "x", f"--rate={rate}")
    with pytest.raises(TokenError, match=r"rate: .* at most 1,000,000 requests a second"):
        TokenStore(gateway.ledger).new("x", ("read",), rate=float(rate))
    assert gateway.ledger.redis.hlen(TOKENS) == before


@pytest.mark.parametrize(("rate", "status"), [(1e308, 200), (5e-324, 429)])
def test_a_stored_rate_of_any_size_works(gateway: Gateway, rate: float, status: int) -> None:
    """A token of an older version may have one beyond today's limits: its requests may wait, or it
    has to repeat them later."""
    made = json.loads(gateway.cli("tokens", "new", "--name", "old", "--json"))
    kept = json.loads(gateway.ledger.redis.hget(TOKENS, made["id"]))
    gateway.ledger.redis.hset(TOKENS, made["id"], json.dumps({**kept, "rate": rate}))
    headers = bearer(made["token"])
    cursor = gateway.http.get("/v1/events", headers=headers).json()["cursor"]
    path = f"/v1/events?after={cursor}&wait=0.01"
    answer = gateway.http.get(path, headers=headers)
    assert answer.status_code == status
    assert int(answer.headers.get("retry-after", 0)) <= LONGEST + 1


#: What replaces the fields of a stored token, or all of it.
JUNK: dict[str, Any] = {
    "no rate": {"rate": None},
    "an infinite rate": b'{"rate": Infinity}',
    "no number": {"rate": "many"},
    "an unknown scope": {"may": ["fly"]},
    "another id": {"id": "0" * 12},
    "a hash that is none": {"hash": "\xe9"},
    "a time without a date": {"created_at": 10**30},
    "a revocation without a date": {"revoked_at": 10**30},
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "no object": b"[1]",
    "nothing": b"",
    "deep": b"[" * 10_000,
}


@pytest.mark.parametrize("what", JUNK)
def test_a_token_that_cannot_be_read_opens_nothing(gateway: Gateway, what: str) -> None:
    """A request with it is refused like any other, whatever its secret; the list shows all others
    and names it, and it can be revoked."""
    good, bad = (json.loads(gateway.cli("tokens", "new", "--name", "j", "--json")) for _ in "12")
    kept = json.loads(gateway.ledger.redis.hget(TOKENS, bad["id"]))
    junk = JUNK[what]
    written = junk if isinstance(junk, bytes) else json.dumps({**kept, **junk})
    gateway.ledger.redis.hset(TOKENS, bad["id"], written)
    for secret in (bad["token"], f"rwt_{bad['id']}_{'A' * 43}"):
        answer = gateway.http.get("/v1/events", headers=bearer(secret))
        assert answer.status_code in {401, 429}, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        signed = gateway.http.post("/sign-in", data={"token": secret})
        assert signed.status_code in {403, 429}
    store = TokenStore(gateway.ledger)
    assert good["id"] in {one.id for one in store.all()}
    assert store.unreadable == [bad["id"]]
    assert good["id"] in gateway.cli("tokens", "list", "--json")
    assert bad["id"] in gateway.cli("tokens", "revoke", bad["id"])
    assert store.revoke(bad["id"]).revoked_at, "it may be repeated"
    assert bad["id"] in {one.id for one in store.all()}
    assert store.unreadable == []
    entry = AuditLog(gateway.ledger).newest(AuditFilter(), most=1)[0]
    assert (entry.what, entry.after) == ("token.revoke", "revoked")


def test_failed_attempts_are_limited(gateway: Gateway, shop: httpx.Client) -> None:
    """They get 401, and after some of them 429, also with forged addresses of clients; a good token
    from the same address still works."""
    wrong = [
        {},
        {"authorization": "Basic eDp5"},
        bearer("rwt_nonsense"),
        bearer(f"rwt_{'0' * 12}_{'A' * 43}"),
        bearer(shop.headers["authorization"].removeprefix("Bearer ")[:-1] + "~"),
        bearer(shop.headers["authorization"].removeprefix("Bearer ")[:-4] + "AAAA"),
    ]
    found = [
        gateway.http.get("/v1/events", headers={**one, "x-forwarded-for": f"192.0.2.{number}"})
        for number, one in enumerate(wrong * int(FAILURES))
    ]
    statuses = [one.status_code for one in found]
    assert set(statuses) == {401, 429}
    # One more attempt is allowed every few seconds, so the last answer may be 401.
    assert statuses.count(429) > len(statuses) / 2
    assert all("www-authenticate" in one.headers for one in found if one.status_code == 401)
    assert shop.get("/v1/events").status_code == 200


def test_refusals_are_counted(gateway: Gateway) -> None:
    """The metric counts refusals by route, never by path or token, on a separate port."""
    gateway.http.get("/v1/events")
    said = metrics(gateway)
    assert 'regworker_gateway_refused_total{why="' in said
    assert 'regworker_gateway_requests_total{route="/v1/events",status="' in said
    assert "rwt_" not in said
