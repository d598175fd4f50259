"""What real workers send to Sentry, captured by a server that accepts its envelopes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.entry_points import hand_in, plain_client
from tests.integration.hooks import hooks
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.sentry_ingest import Ingest, ingest
from worker.broker.wakeups import REGISTER, REQUESTS
from worker.cli.local import stack


def fault(here: Installation, job: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
    """Make the job's calls fail in this way; return the job."""
    script = here.sandbox.faults.public()["script"]
    rule = {"kind": kind, "email": email_of(job), **more}
    here.sandbox.faults.configure({"script": [*script, rule]})
    return job


def until(found: Callable[[], object], what: str) -> None:
    """Wait for what Sentry gets; it is sent in the background."""
    stack.until(lambda: bool(found()), what, PATIENCE)


def titled(sentry: Ingest, title: str) -> list[Any]:
    """The events of the only issue with this text in its title."""
    issues = {key: events for key, events in sentry.issues().items() if title in key[-1]}
    assert len(issues) <= 1, list(issues)
    return [event for events in issues.values() for event in events]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Ingest]]:
    """An installation that reports to Sentry."""
    folder = tmp_path_factory.mktemp("watched")
    with ingest() as sentry, installation(folder, sentry_dsn=sentry.dsn) as here:
        yield here, sentry


def test_faults_of_one_kind_are_one_issue_with_the_jobs_as_tags(
    watched: tuple[Installation, Ingest],
) -> None:
    """Lost answers, reviews and refused accounts are three issues, however many jobs they
    affect."""
    here, sentry = watched
    lost = [fault(here, skypostal(), "commit_then_drop") for _ in range(3)]
    ids = [here.run(job)["subject"] for job in lost]
    until(lambda: len(titled(sentry, "skypostal: the answer to a call was lost")) == 3, "lost")
    events = titled(sentry, "skypostal: the answer to a call was lost")
    assert {event["tags"]["job"] for event in events} == set(ids)
    for event in events:
        assert event["level"] == "warning"
        assert event["tags"]["provider"] == "skypostal"
        assert event["tags"]["attempt"] == "1"
        assert event["environment"] == "production"

    reviews = []
    for _ in range(2):
        job = fault(here, skypostal(email_of(lost[0])), "drop_before_commit")
        job["registration"]["customer_password"] = "another"
        reviews.append(here.producer.enqueue(job).job_id)
        here.wait_for(reviews[-1], "review")
    until(lambda: len(titled(sentry, "skypostal cannot say")) == 2, "the reviews")
    for event in titled(sentry, "skypostal cannot say"):
        assert event["tags"]["job"] in reviews
        crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
        assert set(crumbs) <= {"called", "asked"}, "an attempt's own, and no other job's"

    here.sandbox.configure({"open2b": {"public_key": "another"}})
    for _ in range(2):
        here.producer.enqueue(open2b())
    until(lambda: titled(sentry, "account open2b/default is refused"), "the refusal")
    assert not sentry.refused


def test_a_delivery_that_goes_dead_is_an_issue_of_its_endpoint(
    watched: tuple[Installation, Ingest],
) -> None:
    """With the job's id, without the endpoint's URL."""
    here, sentry = watched
    here.receiver.behave({"script": [{"status": 410}]})
    job_id = here.run(skypostal(reply_to=["results", "crm"]))["subject"]
    until(lambda: titled(sentry, "deliveries to crm die"), "the dead delivery")
    [event] = titled(sentry, "deliveries to crm die")
    assert event["tags"]["job"] == job_id
    assert event["tags"]["endpoint"] == "crm"
    assert b"/hooks/crm" not in b"".join(sentry.raw)


def test_a_dead_worker_is_told_by_the_one_that_goes_on(
    watched: tuple[Installation, Ingest],
) -> None:
    """kill -9 leaves no time for a report; the expired lease is reported."""
    here, sentry = watched
    here.wait_for_line("ready.")
    here.workers[0].terminate()
    assert here.workers[0].wait(PATIENCE) == 0
    # This worker's call must not end before it is killed.
    patient = here.start_worker(call_budget=100, settle_delay=110)
    here.wait_for_line("ready.", 1)
    job = fault(here, skypostal(), "hang", commit=True)
    job_id = here.producer.enqueue(job).job_id
    stack.until(lambda: here.made(email_of(job)) > 0, "the call", PATIENCE)
    patient.kill()
    here.start_worker()
    here.producer.wait(job_id, PATIENCE)
    until(lambda: titled(sentry, "a worker was lost while calling skypostal"), "the loss")
    [event] = titled(sentry, "a worker was lost while calling skypostal")
    assert event["tags"]["job"] == job_id


#: A producer in another service: with its own Sentry, and our library.
PRODUCER = """
import json, sys
import sentry_sdk
from regworker.producer import Producer

sentry_sdk.init(dsn=sys.argv[1], traces_sample_rate=1.0)
with Producer() as producer, sentry_sdk.start_transaction(name="sign-up", op="http.server") as page:
    receipt = producer.enqueue(json.loads(sys.argv[2]))
    print(json.dumps({"job": receipt.job_id, "trace": page.trace_id}))
"""


def enqueue_traced(here: Installation, dsn: str, job: dict[str, Any]) -> dict[str, str]:
    """Enqueue from a process with tracing; return the job's id and the trace's."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), **here.environment}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER, dsn, json.dumps(job)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_trace_leads_from_the_producer_through_every_attempt_to_the_webhook(
    tmp_path: Path,
) -> None:
    """Also through attempts that an alarm wakes. With no rate set for workers, they send no
    traces."""
    with ingest() as sentry, hooks() as crm, installation(
        tmp_path, workers=0, broker_url="", sentry_dsn=sentry.dsn, endpoints__crm__url=crm.url
    ) as here:  # fmt: skip
        stack.wait_for_worker(here.ledger, here.start_worker())
        lost = enqueue_traced(here, sentry.dsn, fault(here, open2b(), "commit_then_drop"))
        here.producer.wait(lost["job"], PATIENCE)
        until(lambda: sentry.events, "the lost answer")
        # The producer's trace alone turns tracing on nowhere; the errors of its jobs still carry
        # its id.
        assert sentry.events[0]["contexts"]["trace"]["trace_id"] == lost["trace"]
        assert sentry.events[0]["transaction"] == "registrations.attempt"
        assert {one["transaction"] for one in sentry.transactions} == {"sign-up"}

        here.start_worker(sentry_traces_sample_rate=1)
        here.wait_for_line("ready.", 1)
        here.workers[0].terminate()
        assert here.workers[0].wait(PATIENCE) == 0
        job = fault(here, skypostal(reply_to=["results", "crm"]), "too_many", times=2)
        begun = enqueue_traced(here, sentry.dsn, job)
        here.producer.wait(begun["job"], PATIENCE)
        stack.until(lambda: bool(crm.requests), "the webhook", PATIENCE)

        def mine() -> list[Any]:
            return [one for one in sentry.transactions if trace_of(one) == begun["trace"]]

        expected = ["registrations.attempt"] * 3 + ["registrations.deliver", "sign-up"]
        stack.until(
            lambda: sorted(one["transaction"] for one in mine()) == expected, "all of it", PATIENCE
        )
        [page] = [one for one in mine() if one["transaction"] == "sign-up"]
        spans = {span["span_id"] for span in page["spans"]}
        for one in mine():
            if one is page:
                continue
            assert one["contexts"]["trace"]["parent_span_id"] in spans
            assert one["tags"]["job"] == begun["job"]
            [call] = [span for span in one["spans"] if span["op"] == "http.client"]
            assert call["description"] in {"POST skypostal/default", "POST crm"}
        texts = b"".join(b"%r" % (headers,) for headers in crm.requests).lower()
        assert b"sentry" not in texts, "receivers have no business with our traces"
        assert b"baggage" not in texts

        # Through the other entry points: a message's own headers; otherwise one trace per job.
        with plain_client(here.valkey.connection_url) as client:
            headers = {"sentry-trace": f"{THEIRS}-{'b' * 16}-1"}
            client.send_task(REGISTER, [open2b()], queue=REQUESTS, headers=headers)
        until(lambda: steps(sentry, THEIRS) == ["attempt", "register"], "the message's trace")
        ids = [hand_in(here, "stream", open2b()) for _ in range(2)]
        until(lambda: all(traces(sentry, job_id) for job_id in ids), "the stream's traces")
        first, second = (traces(sentry, job_id) for job_id in ids)
        assert not first & second
        assert not sentry.refused


#: The trace of a client that enqueues with a Celery message.
THEIRS = "a" * 32


def steps(sentry: Ingest, trace: str) -> list[str]:
    """The steps of a trace, by name."""
    mine = [one["transaction"] for one in sentry.transactions if trace_of(one) == trace]
    return sorted(name.removeprefix("registrations.") for name in mine)


def traces(sentry: Ingest, job_id: str) -> set[str]:
    """The traces that a job is in."""
    mine = [one for one in sentry.transactions if one.get("tags", {}).get("job") == job_id]
    return {trace_of(one) for one in mine}


def trace_of(transaction: Any) -> str:
    """The trace that a transaction belongs to."""
    return str(transaction["contexts"]["trace"]["trace_id"])


def test_a_fault_of_a_plugin_is_told_without_what_it_choked_on(tmp_path: Path) -> None:
    """The place, the error's type and the job; no variables and no text of the error."""
    providers = "tests.integration.clumsy:Clumsy"
    accounts = {"accounts__clumsy__default__base_url": "http://127.0.0.1:1"}
    secret = "canary-of-clumsy"
    with ingest() as sentry, installation(tmp_path, workers=0) as here:
        for name in [name for name in here.environment if "ACCOUNTS" in name]:
            del here.environment[name]
        worker = here.start_worker(providers=providers, sentry_dsn=sentry.dsn, **accounts)
        stack.wait_for_worker(here.ledger, worker)
        settings = here.producer.settings.model_copy(update={"providers": [providers]})
        with type(here.producer)(settings) as producer:
            registration = {"email": "a@example.com", "password": secret}
            job = {"provider": "clumsy", "idempotency_key": "1", "registration": registration}
            job_id = producer.enqueue(job).job_id
        until(lambda: [one for one in sentry.events if "exception" in one], "the fault")
        [event] = [one for one in sentry.events if "exception" in one][:1]
        kinds = [value["type"] for value in event["exception"]["values"]]
        assert kinds == ["KeyError", "ValueError"]
        for value in event["exception"]["values"]:
            assert not value["value"]
            assert all("vars" not in frame for frame in value["stacktrace"]["frames"])
        last = event["exception"]["values"][-1]["stacktrace"]["frames"][-1]
        assert last["function"] == "register"
        assert event["tags"]["job"] == job_id
        for texts in (b"".join(sentry.raw), here.log().read_bytes()):
            assert secret.encode() not in texts
            assert b"a@example.com" not in texts
        here.wait_for_line("ValueError")


def test_a_sentry_that_is_ill_costs_nothing(tmp_path: Path) -> None:
    """It fails, then hangs: jobs continue, and a stopped worker exits with 0."""
    with ingest() as sentry, installation(tmp_path, sentry_dsn=sentry.dsn) as here:
        for status in (500, 0):
            sentry.status, before = status, sentry.asked
            for _ in range(3):
                event = here.run(fault(here, skypostal(), "commit_then_drop"))
                assert event["type"] == "registration.registered"
            stack.until(lambda before=before: sentry.asked > before, "Sentry was asked", PATIENCE)  # type: ignore[misc]
        here.workers[0].send_signal(signal.SIGTERM)
        assert here.workers[0].wait(PATIENCE) == 0
        lines = here.log().read_text("utf-8").splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines), "nor does it say so"
