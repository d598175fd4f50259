"""Jobs over HTTP: each answer says accepted, not accepted, or repeat it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from regworker import InvalidJob, Producer
from regworker.domain.event import EventType
from regworker.domain.job import Job
from regworker.event_builder import EventBuilder
from regworker.ledger import AsyncLedger, streams
from regworker.ledger.transitions import cancel, job_key, look
from regworker.results import RESULTS, is_sealed, opener
from regworker.sealing.keyring import Keyring
from regworker.tracing import carried_by
from tests.gateway.service import KEYS, Gateway
from tests.integration.jobs import open2b, sealed, skypostal
from worker.cli.local import stack
from worker.gateway import feed
from worker.gateway.auth import Principal

NOBODY = "00000000-0000-8000-8000-000000000000"


def test_a_job_is_accepted_once(gateway: Gateway, shop: httpx.Client) -> None:
    """The answer is 201, then 200 for each repeat and 409 for other content; the ledger has one
    job."""
    job = skypostal()
    first = shop.post("/v1/jobs", json=job)
    assert first.status_code == 201, first.text
    found = first.json()
    assert first.headers["location"] == f"/v1/jobs/{found['job_id']}"
    assert (found["verdict"], found["repeat"], found["state"]) == ("accepted", False, "queued")
    again = shop.post("/v1/jobs", json=job)
    assert again.status_code == 200
    assert again.json() == {**found, "repeat": True}
    other = shop.post("/v1/jobs", json={**job, "metadata": {"other": 1}})
    assert other.status_code == 409
    assert other.headers["content-type"] == "application/problem+json"
    assert (other.json()["verdict"], other.json()["job_id"]) == ("not accepted", found["job_id"])
    record = gateway.ledger(look(found["job_id"]))
    assert record is not None
    assert record.by == "shop"


def test_a_record_that_cannot_be_read_is_its_jobs_problem(
    gateway: Gateway, shop: httpx.Client
) -> None:
    """Each answer about the job names it; the other lines of a batch are accepted."""
    jobs = [open2b() for _ in range(3)]
    bad = Job.model_validate({**jobs[1], "registration": {}}).id
    gateway.ledger.redis.set(job_key(bad), "junk")
    lines = "\n".join(map(json.dumps, jobs))
    results = [json.loads(one) for one in shop.post("/v1/jobs:batch", content=lines).iter_lines()]
    assert [one["status"] for one in results] == [201, 422, 201]
    for answer in (
        shop.post("/v1/jobs", json=jobs[1]),
        shop.get(f"/v1/jobs/{bad}"),
        shop.get("/v1/jobs", params={"provider": "open2b", "key": jobs[1]["idempotency_key"]}),
        shop.delete(f"/v1/jobs/{bad}"),
    ):
        found = answer.json()
        assert (answer.status_code, found["verdict"]) == (422, "not accepted")
        assert found["type"].endswith(":unreadable-record")
        assert found["job_id"] == results[1]["job_id"] == bad


def test_a_job_belongs_to_the_trace_of_its_request(gateway: Gateway, shop: httpx.Client) -> None:
    """The header `traceparent` sets it; a job's own field wins, and a malformed header is
    ignored."""
    kept: dict[str, str] = {}

    def trace_of(job_id: str) -> str:
        record = gateway.ledger(look(job_id))
        assert record is not None
        return carried_by(record.trace)

    header, own = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")
    given: dict[str, tuple[str, dict[str, str]]] = {
        "header": (header, {}),
        "own": (header, {"traceparent": own}),
        "malformed": ("00-1-2-3", {"traceparent": "00"}),
    }
    for name, (sent, more) in given.items():
        job, headers = {**open2b(), **more}, {"traceparent": sent}
        answer = shop.post("/v1/jobs", json=job, headers=headers)
        assert answer.status_code == 201, answer.text
        kept[name] = trace_of(answer.json()["job_id"])
        line = json.dumps({**open2b(), **more})
        answer = shop.post("/v1/jobs:batch", content=line, headers=headers)
        assert trace_of(answer.json()["job_id"]) == kept[name]
    assert kept == {"header": header, "own": own, "malformed": ""}


def test_every_problem_is_named_as_the_python_client_names_it(
    gateway: Gateway, shop: httpx.Client
) -> None:
    """The answer is 422 with the provider's own field names, and shows no value."""
    job = skypostal()
    job["registration"]["customer_email"] = "secret@@example"
    del job["registration"]["customer_first_name"]
    job["lane"] = "fast"
    answer = shop.post("/v1/jobs", json=job)
    assert answer.status_code == 422
    with Producer(gateway.settings) as producer, pytest.raises(InvalidJob) as error:
        producer.enqueue(job)
    assert [(one["code"], one["field"], one["message"]) for one in answer.json()["errors"]] == [
        (one.code, one.field, one.message) for one in error.value.problems
    ]
    assert len(answer.json()["errors"]) >= 2
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ('"{key}"', 201),
        ("{key}", 201),
        ('"other"', 422),
        ('"{key}', 422),
        ('"{key}";a=1', 422),
        ("é", 422),
    ],
)
@pytest.mark.parametrize("own", [True, False], ids=["in both", "in the header"])
def test_a_key_comes_in_the_header_or_in_the_body(
    shop: httpx.Client, header: str, status: int, own: bool
) -> None:
    """A header may be quoted as in the draft, or bare; header and body must agree."""
    job = open2b()
    key = f"{job.pop('idempotency_key')}-{status}-{own}-{len(header)}"
    if own:
        job["idempotency_key"] = key
    sent = header.format(key=key).encode()
    answer = shop.post("/v1/jobs", json=job, headers=[(b"idempotency-key", sent)])
    if not own and header == '"other"':
        status = 201
    assert answer.status_code == status, answer.text
    if status == 422:
        assert answer.json()["errors"][0]["field"] == "idempotency_key"


@pytest.mark.parametrize("name", [{"provider": "É"}, {"account": "a b"}, {"key": "a\nb"}])
def test_a_name_that_no_job_can_have_is_that_of_no_job(
    shop: httpx.Client, name: dict[str, str]
) -> None:
    """The contract takes any text."""
    answer = shop.get("/v1/jobs", params={"provider": "open2b", "key": "k", **name})
    assert answer.status_code == 404
    assert answer.json()["type"].endswith(":unknown-job")


def test_a_key_that_other_versions_of_unicode_read_otherwise_is_named(shop: httpx.Client) -> None:
    """It is not unknown: another service may have accepted it."""
    key = "order-\u0378"
    enqueued = shop.post("/v1/jobs", json=open2b(idempotency_key=key))
    looked_up = shop.get("/v1/jobs", params={"provider": "open2b", "key": key})
    for answer, field in ((enqueued, "idempotency_key"), (looked_up, "key")):
        assert answer.status_code == 422
        [error] = answer.json()["errors"]
        assert error["field"].endswith(field)
        assert "a character that Unicode" in error["message"]


def test_a_registration_may_come_sealed(shop: httpx.Client) -> None:
    """A JWE is accepted if it is bound to its job; for another job it is refused."""
    job = sealed(skypostal(), Keyring.parse(KEYS))
    answer = shop.post("/v1/jobs", json=job)
    assert answer.status_code == 201, answer.text
    moved = shop.post("/v1/jobs", json={**job, "idempotency_key": "another"})
    assert moved.status_code == 422
    assert moved.json()["errors"][0]["field"] == "registration"


def test_each_of_many_at_once_is_answered_by_itself(gateway: Gateway, shop: httpx.Client) -> None:
    """Valid jobs, invalid jobs and jobs for an unknown endpoint at once: each gets its own
    answer."""
    kinds: list[tuple[int, Callable[[], dict[str, Any]]]] = [
        (201, skypostal),
        (422, lambda: {**open2b(), "lane": "fast"}),
        (422, lambda: {**skypostal(), "reply_to": ["nowhere"]}),
        (201, open2b),
    ]
    asked = [(status, make()) for _ in range(20) for status, make in kinds]
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda one: shop.post("/v1/jobs", json=one[1]), asked)
        for (status, job), answer in zip(asked, answers, strict=True):
            assert answer.status_code == status, answer.text
            if status == 201:
                assert answer.json()["idempotency_key"] == job["idempotency_key"]
                record = gateway.ledger(look(answer.json()["job_id"]))
                assert record is not None
                assert (record.provider, record.by) == (job["provider"], "shop")


def finish(gateway: Gateway, job_id: str) -> None:
    """End a job with an event, as when an operator cancels it."""
    record = gateway.ledger(look(job_id))
    assert record is not None
    builder = EventBuilder(gateway.settings, Keyring.parse(KEYS))
    publication = builder.failed(EventType.CANCELLED, record, int(time.time() * 1000), ())
    gateway.ledger(cancel(record, 3600, publication))


def test_a_client_waits_for_the_end(gateway: Gateway, shop: httpx.Client) -> None:
    """By id and by key, the answer comes when the job ends, not when the wait ends."""
    job = open2b()
    job_id = shop.post("/v1/jobs", json=job).json()["job_id"]
    assert shop.get(f"/v1/jobs/{job_id}?wait=0.05").json()["final"] is False
    names = {"provider": job["provider"], "key": job["idempotency_key"], "wait": 60}
    found: list[dict[str, Any]] = []
    waits: list[Callable[[], Any]] = [
        lambda: found.append(shop.get(f"/v1/jobs/{job_id}?wait=60").json()),
        lambda: found.append(shop.get("/v1/jobs", params=names).json()),
    ]
    threads = [threading.Thread(target=one) for one in waits]
    for one in threads:
        one.start()
    finish(gateway, job_id)
    for one in threads:
        one.join(30)
    assert [one["state"] for one in found] == ["cancelled", "cancelled"]
    assert found[0]["event"]["type"] == "registration.cancelled"


def test_a_job_is_cancelled_until_it_is_over(shop: httpx.Client) -> None:
    """Cancelling answers 200, also for a repeat, and 404 for an unknown job."""
    job_id = shop.post("/v1/jobs", json=open2b()).json()["job_id"]
    assert shop.delete(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"
    assert shop.delete(f"/v1/jobs/{job_id}").status_code == 200, "a repeat does no harm"
    assert shop.delete(f"/v1/jobs/{NOBODY}").status_code == 404
    assert shop.get(f"/v1/jobs/{NOBODY}").status_code == 404
    assert shop.get("/v1/jobs/nonsense").status_code == 422


def test_events_come_to_whose_they_are(gateway: Gateway, shop: httpx.Client) -> None:
    """A client gets its own events, or with read:all everybody's; the cursor skips others'
    events and misses none."""
    with (
        gateway.client("--may", "read:all", name="audit") as all_,
        gateway.client(name="other") as other,
    ):
        start = shop.get("/v1/events").json()["cursor"]
        jobs = [shop.post("/v1/jobs", json=open2b()).json()["job_id"] for _ in range(3)]
        theirs = other.post("/v1/jobs", json=open2b()).json()["job_id"]
        heard: list[dict[str, Any]] = []
        waiting = threading.Thread(
            target=lambda: heard.append(
                shop.get("/v1/events", params={"after": start, "wait": 60}).json()
            )
        )
        waiting.start()
        for one in [theirs, *jobs]:
            finish(gateway, one)
        waiting.join(30)

        def events(client: httpx.Client, after: str) -> list[str]:
            answer = client.get("/v1/events", params={"after": after}).json()
            return [one["subject"] for one in answer["events"]]

        first = [one["subject"] for one in heard[0]["events"]]
        assert first + events(shop, heard[0]["cursor"]) == jobs
        assert events(other, start) == [theirs]
        assert events(all_, start) == [theirs, *jobs]
        assert events(all_, "0")[-4:] == [theirs, *jobs]
        assert other.get(f"/v1/jobs/{jobs[0]}").status_code == 404
        assert other.delete(f"/v1/jobs/{jobs[0]}").status_code == 404
        assert all_.get(f"/v1/jobs/{theirs}").json()["final"]


def test_a_later_job_of_a_key_shows_no_event_of_the_first(
    gateway: Gateway, shop: httpx.Client
) -> None:
    """A key may be used again once its first job is no longer kept, also by another token. Each
    token reads the events of its own job only."""
    with (
        gateway.client("--may", "read:all", name="audit") as all_,
        gateway.client(name="other") as other,
    ):
        start = shop.get("/v1/events").json()["cursor"]
        job = open2b()

        def ended(client: httpx.Client, customer: str) -> str:
            made = client.post("/v1/jobs", json={**job, "metadata": {"customer": customer}})
            assert made.status_code == 201
            job_id = str(made.json()["job_id"])
            client.delete(f"/v1/jobs/{job_id}")
            return job_id

        def customers(client: httpx.Client) -> list[str]:
            found = client.get("/v1/events", params={"after": start}).json()["events"]
            return [one["data"]["metadata"]["customer"] for one in found]

        job_id = ended(shop, "Ann")
        assert (customers(shop), customers(other)) == (["Ann"], [])
        gateway.ledger.redis.delete(job_key(job_id))
        assert (customers(shop), customers(other)) == ([], [])
        assert ended(other, "Bob") == job_id
        assert (customers(shop), customers(other)) == ([], ["Bob"])
        assert customers(all_) == ["Ann", "Bob"]


def test_a_forgotten_job_has_no_event(gateway: Gateway, shop: httpx.Client) -> None:
    """Its event is not shown again, by a service that has shown it before."""
    cursor = shop.get("/v1/events").json()["cursor"]
    shop.get("/v1/events", params={"after": cursor, "wait": 0.05})
    stack.until(
        lambda: any(one["cmd"] == "xread" for one in gateway.ledger.redis.client_list()),
        "the service follows the stream",
    )

    def waited() -> str:
        return shop.get("/v1/events", params={"after": cursor, "wait": 60}).text

    job = {**open2b(), "metadata": {"email": "somebody@example.com"}}
    job_id = shop.post("/v1/jobs", json=job).json()["job_id"]
    shop.delete(f"/v1/jobs/{job_id}")
    assert "somebody@example.com" in waited()
    with gateway.client("--may", "operate", name="desk") as desk:
        assert desk.post("/v1/jobs:forget", json={"job_id": job_id}).status_code == 200
    assert shop.get(f"/v1/jobs/{job_id}").status_code == 404
    later = shop.post("/v1/jobs", json=open2b()).json()["job_id"]
    shop.delete(f"/v1/jobs/{later}")
    found = waited()
    assert "somebody@example.com" not in found
    assert [one["subject"] for one in json.loads(found)["events"]] == [later]


@pytest.mark.parametrize("wait", [0.0, 60.0])
def test_a_search_past_others_events_ends(
    gateway: Gateway, shop: httpx.Client, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    """After its time the answer has no events; further requests with its cursor reach them."""
    monkeypatch.setattr(feed, "SCAN", 0.0)
    monkeypatch.setattr(streams, "PAGE", 1)
    start = shop.get("/v1/events").json()["cursor"]
    with gateway.client(name="other") as other:
        for client in (other, other, shop):
            job_id = client.post("/v1/jobs", json=open2b()).json()["job_id"]
            client.delete(f"/v1/jobs/{job_id}")
    settings, reader = gateway.settings, Principal("shop", "token", "", frozenset({"read"}))

    async def answers() -> list[int]:
        ledger = AsyncLedger(str(settings.redis_url))
        events = feed.EventFeed(ledger, opener(settings), is_sealed(settings, RESULTS))
        stopping, cursor, found = asyncio.Event(), start, list[int]()
        try:
            while not any(found):
                shown, cursor = await events.after(cursor, reader, wait, stopping)
                found.append(len(shown))
        finally:
            await events.aclose()
            await ledger.aclose()
        return found

    assert asyncio.run(answers()) == [0, 0, 1]


def lines(jobs: int) -> Iterator[bytes]:
    """Lines with jobs, and some lines that hold none."""
    for number in range(jobs):
        yield json.dumps(skypostal(f"batch{number}@example.com")).encode() + b"\n"
    yield b"\n" + b"x" * (600 * 1024) + b"\n"
    yield b'{"provider": "skypostal"}\n' + b"[]\n"
    yield json.dumps(skypostal("last@example.com")).encode()


def test_a_line_that_is_too_deep_ends_no_batch(shop: httpx.Client) -> None:
    """It is refused like any other bad line, and the lines beside it are accepted."""
    good = [json.dumps(skypostal()).encode() for _ in range(2)]
    deep = b'{"provider":"open2b","idempotency_key":"deep","registration":%b%b}' % (
        *(b"[" * 700, b"]" * 700),
    )
    answer = shop.post("/v1/jobs:batch", content=b"\n".join([good[0], deep, good[1]]))
    assert [json.loads(one)["status"] for one in answer.text.splitlines()] == [201, 422, 201]


def test_a_job_is_found_by_a_key_that_normalizing_makes_shorter(shop: httpx.Client) -> None:
    """255 characters are the limit of the normalized key, for both."""
    key = "e\u0301" * 200
    made = shop.post("/v1/jobs", json={**skypostal(), "idempotency_key": key})
    assert made.status_code == 201
    found = shop.get("/v1/jobs", params={"provider": "skypostal", "key": key})
    assert found.json()["job_id"] == made.json()["job_id"]


def test_a_batch_answers_a_line_for_each(shop: httpx.Client) -> None:
    """Results are in order and numbered, for valid and invalid lines; the last line needs no
    line end."""
    with shop.stream("POST", "/v1/jobs:batch", content=lines(250)) as answer:
        found = [json.loads(line) for line in answer.iter_lines()]
    assert [one["line"] for one in found] == [*range(1, 251), 252, 253, 254, 255]
    assert [one["status"] for one in found[250:]] == [413, 422, 422, 201]
    assert {one["verdict"] for one in found[:250]} == {"accepted"}


def test_a_batch_tells_as_it_goes(gateway: Gateway, shop: httpx.Client) -> None:
    """The result of a line arrives before the next line is sent."""
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        token = shop.headers["authorization"]
        head = f"POST /v1/jobs:batch HTTP/1.1\r\nhost: x\r\nauthorization: {token}"
        connection.sendall(f"{head}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        seen = b""
        for number in range(1, 4):
            line = json.dumps(skypostal()).encode() + b"\n"
            connection.sendall(b"%x\r\n%b\r\n" % (len(line), line))
            while b'{"line": %d' % number not in seen:
                part = connection.recv(65536)
                assert part, seen
                seen += part


def test_a_ledger_that_is_away_means_repeat_it(gateway: Gateway, shop: httpx.Client) -> None:
    """Without a ledger a job and a line of a batch get 503; afterwards the same request is
    accepted."""
    job = skypostal()
    shop.get(f"/v1/jobs/{NOBODY}")
    process, port = gateway.valkey._process, gateway.valkey.port
    assert process is not None
    process.kill()
    process.wait()
    try:
        answers = [
            shop.post("/v1/jobs", json=job),
            gateway.http.get("/v1/health"),
        ]
    finally:
        gateway.valkey._process = None
        gateway.valkey._desired_port = port
        gateway.valkey.start(timeout=stack.START)
    assert [one.status_code for one in answers] == [503, 503]
    assert answers[0].json()["verdict"] == "repeat it"
    assert "retry-after" in answers[0].headers
    stack.until(
        lambda: gateway.http.get("/v1/health").status_code == 200, "the service is well again"
    )
    assert shop.post("/v1/jobs", json=job).status_code in {200, 201}
