"""What a job survives: a worker that pauses, a ledger that dies, a provider that hangs."""

import signal
from pathlib import Path
from typing import Any

from regworker.domain.event import EventType
from regworker.domain.outcome import Code, Fault
from regworker.event_builder import EventBuilder
from regworker.ledger.admin import resolve
from regworker.ledger.records import Claim
from regworker.ledger.transitions import Decision, claim, settle
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR, email_of, open2b, skypostal
from tests.integration.ledger_steps import DAY, RULES, SETTLE
from worker.cli.local import stack


def timeline(here: Installation, job_id: str) -> list[str]:
    """What happened to a job, step by step."""
    return [what for _, what in here.producer.status(job_id).timeline]


def wait_for_step(here: Installation, job_id: str, text: str) -> None:
    """Wait until a step of a job's timeline contains this text."""

    def said() -> bool:
        return any(text in step for step in timeline(here, job_id))

    stack.until(said, f"{text!r} of {job_id}")


def slow(here: Installation, job: dict[str, Any], *more: dict[str, Any]) -> None:
    """Make the provider slow for this job's call, and fail its lookups as given."""
    # Long enough to stop a worker before its answer comes.
    call = {"kind": "slow", "delay": 5.0, "call": "customer-registration"}
    here.sandbox.faults.configure(
        {"script": [{"email": email_of(job), **rule} for rule in (call, *more)]}
    )


def test_a_late_answer_of_a_worker_that_stood_still_counts(tmp_path: Path) -> None:
    """Its lease expired and no lookup was possible: "registered" is still a fact, reported once."""
    # A time limit far longer than a slow machine needs to start the second worker.
    pace = {"call_budget": 200, "settle_delay": 240, "lease": 2, "lease_renewal": 0.5}
    with installation(tmp_path, **pace) as here:
        job = skypostal()
        slow(here, job, {"kind": "server_error", "call": "customer-login", "times": None})
        job_id = here.producer.enqueue(job).job_id
        stack.until(lambda: here.sandbox.requests.find(email=email_of(job)) != [], "the call")
        here.workers[0].send_signal(signal.SIGSTOP)
        here.start_worker()
        wait_for_step(here, job_id, "ran out")
        stack.until(lambda: here.made(email_of(job)) == 1, "the provider's commit")
        assert here.producer.status(job_id).state == "unknown"
        here.workers[0].send_signal(signal.SIGCONT)
        event = here.producer.wait(job_id, PATIENCE)
        assert event["data"]["recovered"] is False
        assert "a late answer: registered" in timeline(here, job_id)
        assert len(here.events(job_id)) == 1


def test_a_customer_that_was_made_for_a_job_that_a_person_has_rejected_is_reported(
    tmp_path: Path,
) -> None:
    """The person could not know of it. The job's event says that there is none."""
    pace = {"call_budget": 200, "settle_delay": 240, "lease": 2, "lease_renewal": 0.5}
    with installation(tmp_path, **pace) as here:
        job = skypostal()
        slow(here, job)
        job_id = here.producer.enqueue(job).job_id
        stack.until(lambda: here.sandbox.requests.find(email=email_of(job)) != [], "the call")
        here.workers[0].send_signal(signal.SIGSTOP)
        stack.until(lambda: here.made(email_of(job)) == 1, "the provider's commit", PATIENCE)
        reject(here, job_id)
        here.workers[0].send_signal(signal.SIGCONT)

        def reported() -> bool:
            lines = here.log().read_text("utf-8", "replace").splitlines()
            return any(job_id in line and '"late"' in line for line in lines)

        stack.until(reported, "the report", PATIENCE)
        assert here.producer.status(job_id).state == "rejected"


def reject(here: Installation, job_id: str) -> None:
    """Let another worker take a job over and send it to a person, who rejects it."""
    events = EventBuilder(Settings.load(sealing_keys=KEYS), Keyring.parse(KEYS))
    fault = (Fault(Code.PROVIDER_ERROR, "", "nobody is there"),)
    taken: list[Any] = []

    def over() -> bool:
        taken[:] = [here.ledger(claim(job_id, RULES, 0.5))]
        return isinstance(taken[0], Claim)

    stack.until(over, "the end of the lease", PATIENCE)
    [held] = taken
    review = events.failed(EventType.REVIEW, held.record, held.at, fault)
    here.ledger(settle(held, Decision("unresolvable", "nobody is there"), SETTLE, review))
    rejected = events.failed(EventType.REJECTED, held.record, held.at, fault)
    here.ledger(resolve(held.record, "rejected", ACTOR, DAY, 7 * DAY, rejected))


def test_a_worker_that_stood_still_between_claim_and_call_sends_nothing_more(
    tmp_path: Path,
) -> None:
    """Paused for longer than its lease, then resumed: only the other worker makes the call."""
    pace = {"call_budget": 3, "settle_delay": 4, "lease": 1.5, "lease_renewal": 0.5}
    with installation(tmp_path, **pace) as here:
        jobs = [skypostal() for _ in range(200)]
        receipts = list(here.producer.enqueue_many(jobs))
        here.wait_for(receipts[0].job_id, "registered")  # type: ignore[union-attr]
        # In the middle of other steps; which ones is left to chance.
        here.workers[0].send_signal(signal.SIGSTOP)
        here.start_worker()
        here.wait_for(receipts[-1].job_id, "registered")  # type: ignore[union-attr]
        here.workers[0].send_signal(signal.SIGCONT)
        for job, receipt in zip(jobs, receipts, strict=True):
            event = here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]
            assert event["type"] == "registration.registered"
            assert here.made(email_of(job)) == 1
            assert len(here.events(event["subject"])) == 1


def test_jobs_survive_the_ledgers_sudden_death(tmp_path: Path) -> None:
    """kill -9 of Valkey during the work; restarted on its file, the work continues."""
    with installation(tmp_path) as here:
        here.sandbox.configure({"skypostal": {"unique": False}, "open2b": {"unique": False}})
        here.sandbox.faults.configure({"rates": {"slow": {"probability": 1, "delay": 0.3}}})
        jobs = [job() for _ in range(30) for job in (skypostal, open2b)]
        receipts = list(here.producer.enqueue_many(jobs))
        here.wait_for(receipts[0].job_id, "registered")  # type: ignore[union-attr]
        here.restart_valkey()
        for job, receipt in zip(jobs, receipts, strict=True):
            event = here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]
            assert event["type"] == "registration.registered"
            assert here.made(email_of(job)) == 1
            assert len(here.events(event["subject"])) == 1
        assert here.workers[0].poll() is None, "the worker has lived through it"


def test_a_provider_that_hangs_takes_not_every_slot(tmp_path: Path) -> None:
    """It gets five of ten slots at most: the other provider's jobs continue."""
    cap = {"accounts__skypostal__default__max_in_flight": 5, "concurrency": 10}
    # No hanging call ends by itself, and frees its slot, during the test.
    pace = {"call_budget": 200, "settle_delay": 210, "lease": 200}
    with installation(tmp_path, **pace, **cap) as here:
        rule = {"kind": "hang", "provider": "skypostal", "times": None}
        here.sandbox.faults.configure({"script": [rule]})
        hanging = list(here.producer.enqueue_many([skypostal() for _ in range(40)]))
        stack.until(
            lambda: len(here.sandbox.requests.find(provider="skypostal")) == 5, "five calls hang"
        )
        for _ in range(10):
            assert here.run(open2b())["type"] == "registration.registered"
        assert len(here.sandbox.requests.find(provider="skypostal")) == 5
        states = {here.producer.status(one.job_id).why for one in hanging}  # type: ignore[union-attr]
        assert "full" in states
        here.workers[0].kill()  # to stop, it would wait for the hanging calls


def test_a_breaker_opens_on_faults_and_closes_by_a_single_probe(tmp_path: Path) -> None:
    """While it is open no call is made and no attempt is used; the first success closes it."""
    breaker = {"breaker_threshold": 3, "breaker_pause": 1.5}
    with installation(tmp_path, concurrency=1, **breaker) as here:
        rule = {"kind": "server_error", "status": 503, "provider": "open2b", "times": 3}
        here.sandbox.faults.configure({"script": [rule]})
        receipts = list(here.producer.enqueue_many([open2b() for _ in range(8)]))
        ids = [one.job_id for one in receipts]  # type: ignore[union-attr]

        def held() -> bool:
            return any(here.producer.status(job_id).why == "breaker" for job_id in ids)

        stack.until(held, "the open breaker")
        for job_id in ids:
            event = here.producer.wait(job_id, PATIENCE)
            assert event["type"] == "registration.registered"
            assert event["data"]["attempts"] <= 2
