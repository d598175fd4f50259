"""Tasks of a person on call: settle a review, pause an account, redrive a job, run the doctor."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regworker.domain.errors import InvalidOutcome
from tests.integration.installation import PATIENCE, Installation, ended, installation
from tests.integration.jobs import ACTOR, email_of, open2b, skypostal
from worker.cli.local import stack
from worker.operations.admin_actions import AdminActions
from worker.providers.registry import Registry


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation for all tests of this file."""
    # No call here may reach its time limit: that would change the job's history.
    patient = {"call_budget": 10.0, "settle_delay": 11.0, "lease": 15.0}
    with installation(tmp_path_factory.mktemp("on_call"), max_attempts=2, **patient) as running:
        yield running


def regworker(
    here: Installation, *arguments: str, given: str = "", code: int = 0
) -> list[dict[str, Any]]:
    """Run a command with `--json` in the installation's environment; the objects it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env={**os.environ, **here.environment, "REGWORKER_OPERATOR": "ann"},
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if "--json" not in arguments:
        return []
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(here: Installation, *arguments: str, code: int = 1) -> str:
    """A command's error message on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env={**os.environ, **here.environment, "REGWORKER_OPERATOR": "ann"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def in_review(here: Installation) -> tuple[dict[str, Any], str]:
    """Bring a job into review: its e-mail is taken, and its call was lost."""
    first = skypostal()
    here.run(first)
    job = skypostal(email_of(first))
    job["registration"]["customer_password"] = "another"
    rule = {"kind": "drop_before_commit", "email": email_of(job)}
    here.sandbox.faults.configure({"script": [rule]})
    job_id = here.producer.enqueue(job).job_id
    here.wait_for(job_id, "review")
    return job, job_id


def test_a_review_is_listed_with_its_reason(here: Installation) -> None:
    """Which job, since when, and what could not be found out."""
    _, job_id = in_review(here)
    listed = {one["job_id"]: one for one in regworker(here, "review", "list", "--json")}
    assert "does not open" in listed[job_id]["why"]
    [shown] = regworker(here, "review", "show", job_id, "--json")
    assert any(step["what"].startswith("asking") for step in shown["timeline"])


def test_a_review_resolved_as_registered_publishes_the_outcome_once(here: Installation) -> None:
    """The credentials come from a file, and the event contains them."""
    _, job_id = in_review(here)
    outcome = '{"customer_box_id": 5, "customer_key": "found by hand"}'
    decided = ("--registered", "--outcome", "-", "--who", "ann")
    regworker(here, "review", "resolve", job_id, *decided, "--json", given=outcome)
    event = here.producer.wait(job_id)
    assert event["type"] == "registration.registered"
    assert event["data"]["outcome"] == json.loads(outcome)
    kinds = [json.loads(text)["type"] for text in here.events(job_id)]
    assert kinds == ["registration.review", "registration.registered"]
    assert "registered by ann" in [what for _, what in here.producer.status(job_id).timeline]
    regworker(here, "review", "resolve", job_id, "--resend", code=1)


WRONG_OUTCOMES = {
    "none": (None, "customer_box_id: is required"),
    "empty": ("{}", "customer_key: is required"),
    "nonsense": ('{"nonsense": 1}', "nonsense: is not a field"),
    "half": ('{"customer_box_id": 5}', "customer_key: is required"),
    "a text for a number": ('{"customer_box_id": "5", "customer_key": "k"}', "customer_box_id: "),
    "no box": ('{"customer_box_id": 0, "customer_key": "k"}', "customer_box_id: "),
    "an empty key": ('{"customer_box_id": 5, "customer_key": ""}', "customer_key: "),
    "more": ('{"customer_box_id": 5, "customer_key": "k", "x": 1}', "x: is not a field"),
}


def test_an_outcome_that_the_provider_never_gives_is_refused(
    here: Installation, tmp_path: Path
) -> None:
    """The job stays in review, since "registered" is final. The error names the fields."""
    _, job_id = in_review(here)
    decided = ["review", "resolve", job_id, "--registered"]
    for number, (outcome, said) in enumerate(WRONG_OUTCOMES.values()):
        file = tmp_path / f"{number}.json"
        file.write_text(outcome or "")
        options = ["--outcome", str(file)] if outcome else []
        error = refused(here, *decided, *options)
        assert said in error
        assert "skypostal has the fields customer_box_id, customer_key" in error
    for content in (b"\xff", b"[1]", b"no"):
        file.write_bytes(content)
        assert "--outcome" in refused(here, *decided, "--outcome", str(file), code=2)
    settings = here.producer.settings
    with AdminActions(settings) as operator, pytest.raises(InvalidOutcome, match="customer_key"):
        operator.registered(job_id, {"customer_box_id": 7}, ACTOR)
    assert here.producer.status(job_id).state == "review"
    assert len(here.events(job_id)) == 1


def test_a_provider_that_does_not_say_what_it_gives_is_given_something() -> None:
    """An external provider may have no model of its outcome; an empty outcome is still refused."""
    registry = Registry(["tests.integration.acme:Acme"])
    assert registry.outcome("acme", {"acme_id": 1}) == {"acme_id": 1}
    for nothing in ({}, None, [1]):
        with pytest.raises(InvalidOutcome, match="outcome: is required"):
            registry.outcome("acme", nothing)


def test_a_review_resolved_as_rejected_says_why(here: Installation) -> None:
    """And it leaves the list."""
    _, job_id = in_review(here)
    regworker(here, "review", "resolve", job_id, "--rejected", "somebody else's address")
    event = here.producer.wait(job_id)
    assert event["data"]["errors"][0]["message"] == "somebody else's address"
    listed = regworker(here, "review", "list", "--json")
    assert job_id not in [one["job_id"] for one in listed]


def test_a_review_that_is_resent_asks_before_it_calls(here: Installation) -> None:
    """The other customer no longer exists: the lookup finds nobody, so the job is called once."""
    job, job_id = in_review(here)
    here.sandbox.accounts.clear()
    regworker(here, "review", "resolve", job_id, "--resend")
    event = here.producer.wait(job_id, PATIENCE)
    assert event["type"] == "registration.registered"
    calls = [seen.call for seen in here.sandbox.requests.find(email=email_of(job))]
    assert calls[-1] == "customer-registration"
    assert calls[-2] in {"customer-login", "customer-get-info"}
    assert here.made(email_of(job)) == 1


def test_an_abandoned_job_is_redriven_once_asked_after(here: Installation) -> None:
    """The producer must send the same content again; other content is refused."""
    job = open2b()
    rule = {"kind": "too_many", "times": 2, "email": email_of(job)}
    here.sandbox.faults.configure({"script": [rule]})
    event = here.run(job)
    assert event["type"] == "registration.abandoned"
    other = open2b(idempotency_key=job["idempotency_key"])
    regworker(here, "redrive", "-", given=json.dumps(other) + "\n", code=1)
    regworker(here, "redrive", "-", given=json.dumps(job) + "\n")
    here.wait_for(event["subject"], "registered")
    calls = [seen.call for seen in here.sandbox.requests.find(email=email_of(job))]
    assert calls == ["storefront.sign-up"] * 2 + ["storefront.login", "storefront.sign-up"]
    assert here.made(email_of(job)) == 1


def test_a_paused_account_lets_no_call_through_until_it_is_resumed(here: Installation) -> None:
    """Its jobs wait without using up an attempt; the other account continues."""
    regworker(here, "providers", "pause", "open2b/default", "--why", "maintenance")
    receipt = here.producer.enqueue(open2b())
    stack.until(lambda: here.producer.status(receipt.job_id).why == "paused", "the wait")
    assert here.run(skypostal())["type"] == "registration.registered"
    states = regworker(here, "providers", "list", "--json")
    [paused] = [one for one in states if one["paused"]]
    assert (paused["provider"], paused["reason"]) == ("open2b", "maintenance")
    regworker(here, "providers", "resume", "open2b/default")
    event = here.producer.wait(receipt.job_id, PATIENCE)
    assert event["data"]["attempts"] == 1


def test_refused_credentials_are_told_and_jobs_go_on_when_resumed(here: Installation) -> None:
    """401 opens the breaker with its reason, and an alert is logged; no job fails. What was called
    is asked about first: something on the way may have refused."""
    here.sandbox.configure({"skypostal": {"app_key": "another"}})
    receipts = list(here.producer.enqueue_many([skypostal() for _ in range(3)]))
    ids = [receipt.job_id for receipt in receipts]  # type: ignore[union-attr]

    def held() -> bool:
        statuses = [here.producer.status(job_id) for job_id in ids]
        return all(one.state in {"queued", "unknown"} and "refused" in one.why for one in statuses)

    stack.until(held, "all are held")
    found = regworker(here, "doctor", "--json")
    assert any(one["subject"] == "skypostal/default" and one["level"] != "ok" for one in found)
    here.wait_for_line('"alert": "refused"')
    here.sandbox.configure({"skypostal": {"app_key": None}})
    regworker(here, "providers", "resume", "skypostal/default")
    for job_id in ids:
        event = here.producer.wait(job_id, PATIENCE)
        assert event["data"]["attempts"] == 1, "what was refused has spent no attempt"


@pytest.mark.parametrize(
    ("config", "subject"),
    [
        ({"appendonly": "no"}, "persistence"),
        ({"appendonly": "yes", "maxmemory-policy": "allkeys-lru"}, "eviction"),
    ],
)
def test_a_server_that_would_lose_jobs_is_refused(
    tmp_path: Path, config: dict[str, str], subject: str
) -> None:
    """By the worker at its start and by the doctor, with what to change; a setting overrides it."""
    server = stack.start_valkey(tmp_path / "valkey", **config)
    values = ("http://127.0.0.1:1", "k:" + "A" * 43, "whsec_" + "A" * 32)
    environment = stack.environment(server.connection_url, *values)
    try:
        for command in (stack.worker_command(), [sys.executable, "-m", "worker.cli", "doctor"]):
            done = ended(command, environment, tmp_path)
            assert done.returncode == 1
            assert f"{subject}: " in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        with (
            (tmp_path / "log").open("wb") as log,
            stack.process(stack.worker_command("--allow-unsafe"), environment, tmp_path, log),
        ):
            text = tmp_path / "log"
            stack.until(lambda: "ready." in text.read_text("utf-8"), "the worker is ready")
    finally:
        server.stop()
