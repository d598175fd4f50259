"""The main job from end to end: what a producer sees in each case.

Everything is real: Valkey, the worker process, HTTP, the providers' sandbox and the receiver.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat

from regworker.domain.errors import IdempotencyConflict, InvalidJob, JobNotCancellable
from regworker.ledger.admin import hold
from regworker.producer import Receipt, Refused
from tests.integration.installation import Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli.local import stack

BOTH = pytest.mark.parametrize("job", [skypostal, open2b])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation for all tests of this file; they share no jobs."""
    with installation(tmp_path_factory.mktemp("registrations")) as running:
        yield running


def fail(here: Installation, job: dict[str, Any], *faults: dict[str, Any]) -> None:
    """Make the provider fail this job's calls in this way, one after another."""
    script = [{"email": email_of(job), **fault} for fault in faults]
    here.sandbox.faults.configure({"script": script})


def test_a_customer_of_skypostal_is_registered(here: Installation) -> None:
    """The event holds the customer's box id and key, as SkyPostal gave them."""
    job = skypostal(metadata={"order": "A-17"})
    event = here.run(job)
    [account] = here.sandbox.accounts.find(email=email_of(job))
    assert event["type"] == "registration.registered"
    assert event["data"]["outcome"] == {
        "customer_box_id": account.box_id,
        "customer_key": account.customer_key,
    }
    assert event["data"]["metadata"] == {"order": "A-17"}
    assert event["data"]["attempts"] == 1


def test_a_customer_of_open2b_is_registered(here: Installation) -> None:
    """The event holds the customer's key, as Open2b's header gave it."""
    job = open2b()
    event = here.run(job)
    [account] = here.sandbox.accounts.find(email=email_of(job))
    assert event["data"]["outcome"] == {"customer_key": account.customer_key}


@BOTH
def test_the_provider_gets_what_the_job_holds_and_nothing_else(
    here: Installation, job: Any
) -> None:
    """One call per job if nothing fails, to the documented path."""
    one = job()
    here.run(one)
    [seen] = here.sandbox.requests.find(email=email_of(one))
    assert (seen.status, seen.committed) == (200, True)


def test_the_event_on_the_stream_is_a_cloudevent(here: Installation) -> None:
    """Any CloudEvents library reads it."""
    receipt = here.producer.enqueue(skypostal())
    here.producer.wait(receipt.job_id)
    [text] = here.events(receipt.job_id)
    message = HTTPMessage({"content-type": "application/cloudevents+json"}, text)
    event = from_http(message, JSONFormat())
    assert event.get_type() == "registration.registered"
    assert event.get_subject() == receipt.job_id


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "commit_then_drop"},
        {"kind": "reset", "commit": True},
        {"kind": "hang", "commit": True},
        {"kind": "server_error", "status": 502, "commit": True},
        {"kind": "html", "commit": True},
        {"kind": "truncated", "commit": True},
        {"kind": "missing_key"},
        {"kind": "late_commit", "delay": 1.3},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_lost_answer_makes_no_second_customer(
    here: Installation, job: Any, fault: dict[str, Any]
) -> None:
    """The provider created the customer, the answer was lost: a lookup finds it, one event reports
    it."""
    one = job()
    fail(here, one, fault)
    receipt = here.producer.enqueue(one)
    event = here.producer.wait(receipt.job_id)
    assert event["type"] == "registration.registered"
    assert event["data"]["recovered"] is True
    assert event["data"]["attempts"] == 1
    assert here.made(email_of(one)) == 1
    assert len(here.events(receipt.job_id)) == 1


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_before_commit"},
        {"kind": "reset"},
        {"kind": "server_error", "status": 503},
        {"kind": "hang"},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_request_without_effect_is_sent_again_once_absence_is_proved(
    here: Installation, job: Any, fault: dict[str, Any]
) -> None:
    """After the settle delay the lookup finds nobody, so a second call creates the customer."""
    one = job()
    fail(here, one, fault)
    event = here.run(one)
    assert event["data"]["attempts"] == 2
    assert event["data"]["recovered"] is False
    assert here.made(email_of(one)) == 1
    calls = [seen.call for seen in here.sandbox.requests.find(email=email_of(one))]
    assert calls[1] in {"customer-login", "storefront.login"}, "asked before it was sent again"


def test_a_job_told_to_wait_is_sent_again_without_asking(here: Installation) -> None:
    """429 provably has no effect: no lookup, and no call before Retry-After."""
    job = open2b()
    fail(here, job, {"kind": "too_many", "retry_after": 1})
    event = here.run(job)
    first, second = here.sandbox.requests.find(email=email_of(job))
    assert event["data"]["attempts"] == 2
    assert second.time - first.time >= 1.0


def test_an_address_that_exists_is_the_producers_news(here: Installation) -> None:
    """The error is `already_exists`, with the provider's text; the first customer is unchanged."""
    first = skypostal()
    here.run(first)
    event = here.run(skypostal(email_of(first)))
    assert event["type"] == "registration.rejected"
    [error] = event["data"]["errors"]
    assert (error["code"], error["field"]) == ("already_exists", "customer_email")
    assert here.made(email_of(first)) == 1


@BOTH
def test_an_existing_account_is_adopted_when_the_job_asks_and_its_password_opens_it(
    here: Installation, job: Any
) -> None:
    """`if_exists: adopt` turns a duplicate into the credentials of the account that is there."""
    first = job()
    ended = here.run(first)
    event = here.run(job(email_of(first), if_exists="adopt"))
    assert event["data"]["recovered"] is True
    assert event["data"]["outcome"] == ended["data"]["outcome"]


def test_an_existing_account_with_another_password_is_not_adopted(here: Installation) -> None:
    """The existing account's key is not given out."""
    first = skypostal()
    here.run(first)
    job = skypostal(email_of(first), if_exists="adopt")
    job["registration"]["customer_password"] = "another"
    event = here.run(job)
    assert event["data"]["errors"][0]["code"] == "already_exists"


def test_a_lost_call_for_an_address_somebody_else_has_needs_a_person(here: Installation) -> None:
    """It is unknown whose account it is: the job goes to review, and an event says so."""
    first = skypostal()
    here.run(first)
    job = skypostal(email_of(first))
    job["registration"]["customer_password"] = "another"
    fail(here, job, {"kind": "drop_before_commit"})
    receipt = here.producer.enqueue(job)
    here.wait_for(receipt.job_id, "review")
    [text] = here.events(receipt.job_id)
    assert json.loads(text)["type"] == "registration.review"
    assert here.made(email_of(first)) == 1


def test_a_duplicate_after_a_lost_call_needs_a_person_where_nobody_can_be_looked_up(
    here: Installation,
) -> None:
    """Without a secret key an Open2b store does not say whose address it is."""
    first = open2b()
    here.run(first)
    job = open2b(email_of(first))
    job["registration"]["customer"]["password"] = "another one"
    fail(here, job, {"kind": "drop_before_commit"})
    receipt = here.producer.enqueue(job)
    status = here.wait_for(receipt.job_id, "review")
    assert "duplicate" in status.why
    assert status.attempts == 2


def test_a_refusal_names_our_code_and_the_providers_own(here: Installation) -> None:
    """Open2b's `cart NotFound` becomes `not_found`, with its type and words beside it."""
    job = open2b()
    job["registration"]["customer"]["cart"] = "0" * 32
    [error] = here.run(job)["data"]["errors"]
    assert error["code"] == "not_found"
    assert error["provider_code"] == "NotFound"
    assert error["field"] == "cart"


def test_a_webhook_carries_the_same_bytes_as_the_stream(here: Installation) -> None:
    """And a Standard Webhooks signature that the official library verifies."""
    receipt = here.producer.enqueue(open2b(reply_to=["results", "crm"]))
    [delivery] = here.wait_for_hook(receipt.job_id)
    [event] = here.events(receipt.job_id)
    assert delivery.verified
    assert hashlib.sha256(delivery.body).digest() == hashlib.sha256(event).digest()
    assert delivery.webhook_id == json.loads(event)["id"]


def test_a_webhook_that_fails_comes_again_under_the_same_id(here: Installation) -> None:
    """At least once; its id identifies repeats."""
    here.receiver.behave({"script": [{"status": 503, "times": 1}]})
    receipt = here.producer.enqueue(open2b(reply_to=["crm"]))
    deliveries = here.wait_for_hook(receipt.job_id)
    assert [one.status for one in deliveries] == [503, 204]
    assert len({one.webhook_id for one in deliveries}) == 1
    assert here.events(receipt.job_id) == [], "a job that names no stream is on none"


def test_a_repeat_with_the_same_content_is_the_same_job(here: Installation) -> None:
    """Also with the fields in another order: one call, one customer, the stored outcome."""
    job = skypostal()
    event = here.run(job)
    turned = dict(reversed(job["registration"].items()))
    receipt = here.producer.enqueue({**job, "registration": turned})
    assert receipt.repeat
    assert here.producer.wait(receipt.job_id) == event
    assert here.made(email_of(job)) == 1


def test_a_repeat_with_other_content_is_refused(here: Installation) -> None:
    """The key is taken; the first job is untouched."""
    job = skypostal()
    event = here.run(job)
    other = skypostal(idempotency_key=job["idempotency_key"])
    with pytest.raises(IdempotencyConflict, match="idempotency_key"):
        here.producer.enqueue(other)
    assert here.producer.wait(event["subject"]) == event
    assert here.made(email_of(other)) == 0


def test_a_job_past_its_deadline_is_abandoned_and_its_producer_hears_of_it(
    here: Installation,
) -> None:
    """No call is made for it."""
    job = open2b(deadline=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    event = here.run(job)
    assert event["type"] == "registration.abandoned"
    assert event["data"]["errors"][0]["code"] == "deadline"
    assert here.sandbox.requests.find(email=email_of(job)) == []


def test_the_error_of_an_abandoned_job_says_in_words_what_it_waited_for(here: Installation) -> None:
    """Its producer does not know the ledger's names."""
    here.ledger(hold(("open2b", "default"), "pause", "maintenance"))
    try:
        event = here.run(open2b(deadline=(datetime.now(UTC) + timedelta(seconds=2)).isoformat()))
    finally:
        here.ledger(hold(("open2b", "default"), "resume", ""))
    message = event["data"]["errors"][0]["message"]
    assert message.endswith("succeeded; last: an operator has paused the account")


def test_a_job_that_waits_can_be_taken_back(here: Installation) -> None:
    """Until a request is sent, its producer may cancel it."""
    job = open2b()
    fail(here, job, {"kind": "too_many", "retry_after": 600})
    receipt = here.producer.enqueue(job)
    wait_for_first_attempt(here, receipt.job_id)
    status = here.producer.cancel(receipt.job_id)
    assert status.state == "cancelled"
    assert here.producer.wait(receipt.job_id)["type"] == "registration.cancelled"
    assert here.producer.cancel(receipt.job_id).state == "cancelled", "again does no harm"


def test_a_job_that_is_over_cannot_be_taken_back(here: Installation) -> None:
    """The customer exists; "cancelled" would be false."""
    event = here.run(open2b())
    with pytest.raises(JobNotCancellable, match="registered"):
        here.producer.cancel(event["subject"])


def wait_for_first_attempt(here: Installation, job_id: str) -> None:
    """Wait until a job was tried once and waits for its next try."""

    def tried() -> bool:
        status = here.producer.status(job_id)
        return status.state == "queued" and status.attempts > 0

    stack.until(tried, f"a first attempt at {job_id}")


def test_every_problem_of_a_job_is_named_at_once(here: Installation) -> None:
    """Also if both the job and its registration are wrong; fields are spelt as the provider's."""
    job = open2b(lane="urgent", shoe_size=44)
    job["registration"]["customer"]["password"] = "short"
    job["registration"]["customer"]["address"]["planet"] = "Earth"
    with pytest.raises(InvalidJob) as refused:
        here.producer.enqueue(job)
    assert {problem.field for problem in refused.value.problems} == {
        "lane",
        "shoe_size",
        "registration.customer.password",
        "registration.customer.address.planet",
    }


def test_one_bad_job_among_many_holds_up_none(here: Installation) -> None:
    """`enqueue_many` answers for each, in order."""
    jobs = [open2b(), {"provider": "open2b"}, skypostal(), skypostal(account="nobody")]
    results = list(here.producer.enqueue_many(jobs))
    assert [type(one) for one in results] == [Receipt, Refused, Receipt, Refused]
    assert "REGWORKER_ACCOUNTS__SKYPOSTAL__NOBODY" in str(results[3].error)


def test_nothing_is_left_in_the_ledger_but_the_finished_records(here: Installation) -> None:
    """After all these tests: no alarm, no payload, no lease; every record expires."""
    redis = here.ledger.redis
    for key in redis.scan_iter("{reg}:job:*"):
        record = redis.hgetall(key)
        if record[b"state"] in {b"registered", b"rejected", b"abandoned", b"cancelled"}:
            assert b"payload" not in record
            assert b"lease_until" not in record or record[b"lease_until"] == b"0"
            assert redis.pttl(key) > 0
