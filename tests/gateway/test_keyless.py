"""A service without sealing keys: clients seal, a worker opens, and an action that needs keys
says so."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from regworker.domain.job import canonical
from regworker.ledger.transitions import job_key
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import variable
from tests.chaos.proxy import free_port
from tests.gateway.service import start
from tests.gateway.stage import PASSWORD
from tests.integration.entry_points import id_of
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli.local import stack
from worker.operations.audit import AuditFilter, AuditLog
from worker.operations.tokens import TokenStore

KEYRING = Keyring.parse(KEYS)


def sealed(job: dict[str, Any], keyring: Keyring = KEYRING) -> dict[str, Any]:
    """A job whose registration was sealed by its sender."""
    plain = canonical(job["registration"])
    return {**job, "registration": keyring.seal(plain, seals.registration(job))}


@dataclass
class Site:
    """A service without keys, and a worker with keys."""

    here: Installation
    running: ExitStack
    environment: dict[str, str]
    url: str
    process: Any
    headers: dict[str, str]

    @property
    def client(self) -> httpx.Client:
        """A client with a token."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=PATIENCE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The service and the worker, for the tests of this file."""
    folder = tmp_path_factory.mktemp("keyless")
    with ExitStack() as running:
        here = running.enter_context(installation(folder, broker_url=""))
        environment = {
            name: value
            for name, value in here.environment.items()
            if name != variable("sealing_keys")
        }
        environment["REGWORKER_SERVE_PASSWORD"] = PASSWORD
        environment["REGWORKER_SERVE_ROLE"] = "operator"
        # A test starts it again on the same port.
        port = str(free_port())
        url, process, _ = start(running, folder, environment, "--port", port)
        token, _ = TokenStore(here.ledger).new("shop", ("enqueue", "read"), rate=1e6)
        headers = {"authorization": f"Bearer {token}"}
        yield Site(here, running, environment, url, process, headers)


def test_a_sealed_registration_ends_as_a_customer(site: Site) -> None:
    """The answer is 201, and 200 for a repeat; the job ends, and the service cannot show its
    event."""
    job = open2b()
    with site.client as client:
        first = client.post("/v1/jobs", json=sealed(job))
        assert (first.status_code, first.json()["verdict"]) == (201, "accepted"), first.text
        again = client.post("/v1/jobs", json=sealed(job))
        assert (again.status_code, again.json()["job_id"]) == (200, first.json()["job_id"])
        found = client.get(f"{first.headers['location']}?wait=60").json()
        assert (found["state"], found["final"], found["event"]) == ("registered", True, None)
    assert site.here.made(email_of(job)) == 1


def test_what_is_not_sealed_is_refused_with_what_to_do(site: Site) -> None:
    """The service refuses plain jobs before it writes anything; the worker refuses what it
    cannot open."""
    plain = skypostal(metadata={"shop": 7}, unknown=1)
    with site.client as client:
        answer = client.post("/v1/jobs", json=plain)
        assert answer.status_code == 422
        errors = {one["field"]: one["message"] for one in answer.json()["errors"]}
        assert "sealed by its sender" in errors["registration"]
        assert "unknown" in errors
        other = Keyring.parse(Keyring.new("other"))
        moved = {**sealed(skypostal()), "idempotency_key": "another"}
        wrong = open2b()
        wrong["registration"]["customer"]["password"] = ""
        table = [(sealed(skypostal(), other), "sealed under kid"), (moved, "sealed as")]
        for job, said in [*table, (sealed(wrong), "")]:
            answer = client.post("/v1/jobs", json=job)
            assert answer.status_code == 422, answer.text
            assert said in answer.json()["errors"][0]["message"]
            assert wrong["idempotency_key"] not in str(answer.json()["errors"])
    # The sender got the answer, so no event reports the refusal again.
    assert not any(
        b"refused-" in one[1][b"event"] for one in site.here.ledger.redis.xrange("{reg}:results")
    )


def test_a_key_of_other_content_is_a_conflict(site: Site) -> None:
    """The answer is the same as with keys, although a worker compares the content."""
    job = skypostal()
    other = {**job, "metadata": {"other": True}}
    with site.client as client:
        first = client.post("/v1/jobs", json=sealed(job)).json()
        answer = client.post("/v1/jobs", json=sealed(other))
        assert (answer.status_code, answer.json()["job_id"]) == (409, first["job_id"])


def test_a_batch_has_a_line_for_each(site: Site) -> None:
    """A worker accepts each sealed line."""
    jobs = [sealed(skypostal()), skypostal(), sealed(skypostal())]
    lines = b"\n".join(canonical(job) for job in jobs)
    with site.client as client:
        answer = client.post("/v1/jobs:batch", content=lines)
    assert re.findall(r'"status": (\d+)', answer.text) == ["201", "422", "201"]


@pytest.mark.parametrize("junk", ["no hash", "a number that is none"])
def test_a_record_that_cannot_be_read_stops_no_line(site: Site, junk: str) -> None:
    """The worker answers its sender at once; the other lines are accepted."""
    jobs = [sealed(skypostal()) for _ in range(3)]
    bad = id_of(jobs[1])
    if junk == "no hash":
        site.here.ledger.redis.set(job_key(bad), "junk")
    else:
        site.here.ledger.redis.hset(
            job_key(bad), mapping={"state": "queued", "accepted_at": "many", "fingerprint": "k:1"}
        )
    with site.client as client:
        answer = client.post("/v1/jobs:batch", content=b"\n".join(map(canonical, jobs)))
        assert re.findall(r'"status": (\d+)', answer.text) == ["201", "422", "201"]
        assert f'unreadable-record", "title": "{HTTPStatus(422).phrase}"' in answer.text
        assert bad in answer.text
        assert client.delete(f"/v1/jobs/{bad}").status_code == 422


def test_a_queued_job_is_cancelled_by_a_worker(site: Site) -> None:
    """The worker cancels it once; a repeat gets the same answer."""
    with site.client as client:
        where = queued(site, client)
        assert client.delete(where).json()["state"] == "cancelled"
        assert client.delete(where).json()["state"] == "cancelled"
    assert audited(site, where) == []


def test_cancelling_somebody_elses_job_is_audited(site: Site) -> None:
    """The worker writes the name of the token to the audit log and to the job's timeline."""
    token, _ = TokenStore(site.here.ledger).new("desk", ("operate",))
    with site.client as client:
        where = queued(site, client)
        desk = {"authorization": f"Bearer {token}"}
        done = client.delete(where, headers=desk).json()
        assert client.delete(where, headers=desk).json()["state"] == "cancelled"
    assert done["timeline"][-1]["what"] == "cancelled by desk"
    assert audited(site, where) == [("desk", "job.cancel", "api")]


def queued(site: Site, client: httpx.Client) -> str:
    """The path of a job that waits, because the provider asked the worker to wait."""
    job = open2b()
    rule = {"kind": "too_many", "email": email_of(job), "retry_after": 3600}
    site.here.sandbox.faults.configure({"script": [rule]})
    where: str = client.post("/v1/jobs", json=sealed(job)).headers["location"]
    stack.until(lambda: client.get(where).json()["attempts"] == 1, "a call", PATIENCE)
    stack.until(lambda: client.get(where).json()["state"] == "queued", "its end", PATIENCE)
    return where


def audited(site: Site, where: str) -> list[tuple[str, str, str]]:
    """Who did what with a job, and from where, by the audit log."""
    wanted = AuditFilter(job=where.rpartition("/")[2])
    found = AuditLog(site.here.ledger).newest(wanted, most=9)
    return [(one.who, one.what, one.where) for one in found]


def test_pages_work_and_name_what_needs_keys(site: Site) -> None:
    """A person can sign in, look and pause; resolving and asking the provider are refused, with
    the reason."""
    site.here.run(skypostal("ann@example.com", idempotency_key="ann-1"))
    made = skypostal("ann@example.com", idempotency_key="ann-2")
    made["registration"]["customer_password"] = "another password"
    site.here.sandbox.faults.configure(
        {"script": [{"kind": "drop_before_commit", "email": email_of(made)}]}
    )
    job = site.here.producer.enqueue(made).job_id
    site.here.wait_for(job, "review")
    with httpx.Client(base_url=site.url, timeout=PATIENCE) as client:
        client.post("/sign-in", data={"name": "ann", "password": PASSWORD})
        for path in ("/", "/jobs", "/reviews", "/deliveries", "/accounts", "/audit", "/quarantine"):
            assert client.get(path).status_code == 200, path
        page = client.get(f"/jobs/{job}").text
        assert "no sealing keys" in page
        token = re.search(r'name="form_token" value="([^"]+)"', client.get("/accounts").text)
        assert token is not None
        form = {"form_token": token[1], "confirm": "yes", "why": "a test", "message": "x"}
        for act in ("ask", "found", "registered", "rejected", "resend", "cancel"):
            answer = client.post(f"/jobs/{job}/{act}", data=form)
            assert answer.status_code == 403, act
            assert "no sealing keys" in answer.text
        for act in ("pause", "resume"):
            answer = client.post(f"/accounts/open2b/default/{act}", data=form)
            assert answer.status_code == 303, answer.text


def test_a_client_that_repeats_loses_and_doubles_nothing(site: Site) -> None:
    """While no worker answers and the service is killed, a client repeats: in the end there is
    one job."""
    job = skypostal()
    seen: list[int] = []
    done: list[str] = []

    def repeat() -> None:
        while not done:
            try:
                answer = httpx.post(
                    f"{site.url}/v1/jobs", json=sealed(job), headers=site.headers, timeout=PATIENCE
                )
            except httpx.TransportError:
                seen.append(0)
                time.sleep(0.05)
                continue
            seen.append(answer.status_code)
            if answer.json()["verdict"] == "accepted":
                done.append(answer.json()["job_id"])
            else:
                assert answer.json()["verdict"] == "repeat it", answer.text

    before = int(site.here.ledger.redis.hget("{reg}:stats", "accepted") or 0)
    [worker] = site.here.workers
    worker.send_signal(signal.SIGSTOP)
    client = threading.Thread(target=repeat)
    try:
        client.start()
        stack.until(lambda: site.here.ledger.redis.xlen("{reg}:jobs") == 1, "a request", PATIENCE)
        site.process.kill()
        site.process.wait()
        port = str(urlsplit(site.url).port)
        start(site.running, site.here.folder, site.environment, "--port", port)
        stack.until(lambda: 503 in seen, "an answer without a worker", PATIENCE)
    finally:
        worker.send_signal(signal.SIGCONT)
    client.join(PATIENCE)
    assert 0 in seen
    assert seen[-1] in {200, 201}
    event = site.here.producer.wait(done[0], PATIENCE)
    assert event["type"] == "registration.registered"
    assert site.here.made(email_of(job)) == 1
    assert int(site.here.ledger.redis.hget("{reg}:stats", "accepted")) == before + 1
