"""Each entry point accepts the same jobs and refuses the same ones with the same errors."""

import json
from collections.abc import Iterator
from typing import Any
from unicodedata import normalize

import pytest

from regworker.domain.job import MAX_JOB_BYTES, Job
from regworker.ledger.admin import hold
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from tests.integration.entry_points import (
    ENTRY_POINTS,
    hand_in,
    id_of,
    record,
    refusals,
    refused,
    take_back,
)
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, sealed, skypostal

KEYRING = Keyring.parse(KEYS)

pytestmark = pytest.mark.parametrize("entry_point", ENTRY_POINTS)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation for all entry points."""
    with installation(tmp_path_factory.mktemp("entry_points")) as running:
        yield running


# ── accepted jobs ────────────────────────────────────────────────────────────────────────────


def test_a_job_is_registered_and_its_metadata_said_again(
    here: Installation, entry_point: str
) -> None:
    """The event, and the webhook that the job names, contain the metadata."""
    job = skypostal(metadata={"order": "A-17", "größe": [1, None]}, reply_to=["results", "crm"])
    event = here.producer.wait(hand_in(here, entry_point, job), PATIENCE)
    assert event["type"] == "registration.registered"
    assert event["data"]["metadata"] == job["metadata"]
    assert here.made(email_of(job)) == 1
    assert here.wait_for_hook(id_of(job))


@pytest.mark.parametrize("key", ["order 17", "ключ-1", "e\u0301tat", "=1+1", "--key", "a" * 255])
def test_any_text_is_a_key(here: Installation, entry_point: str, key: str) -> None:
    """The key finds the job again, and the event contains the key in its normalized form."""
    job = skypostal(idempotency_key=f"{entry_point} {key}"[:255])
    event = here.producer.wait(hand_in(here, entry_point, job), PATIENCE)
    assert event["data"]["idempotency_key"] == normalize("NFC", job["idempotency_key"])
    found = here.producer.status(key=job["idempotency_key"], provider="skypostal")
    assert found.state == "registered"


@pytest.mark.parametrize(
    ("key", "shown"),
    [("a\nb", "a\ufffdb"), ("k" * 256, "k" * 255), (17, "17"), ("a\u0378", "a\u0378")],
    ids=repr,
)
def test_a_key_that_no_job_can_have_is_reported(
    here: Installation, entry_point: str, key: Any, shown: str
) -> None:
    """The producer gets an error, or an event identifies the job for its sender."""
    [error] = refused(here, entry_point, skypostal(idempotency_key=key))
    assert error["field"] == "idempotency_key"
    if entry_point != "producer":
        assert refusals(here)[-1]["data"]["idempotency_key"] == shown
        assert "job_id" not in refusals(here)[-1]["data"]


def test_a_registration_may_come_sealed(here: Installation, entry_point: str) -> None:
    """Anyone with a key of the keyring may seal; the same job sent again in plain text is a
    repeat."""
    job = open2b()
    event = here.producer.wait(hand_in(here, entry_point, sealed(job, KEYRING)), PATIENCE)
    assert event["type"] == "registration.registered"
    assert here.producer.enqueue(job).repeat


def test_a_customer_who_exists_may_be_adopted(here: Installation, entry_point: str) -> None:
    """The customer is adopted if the password is right; otherwise the job is rejected."""
    first = open2b()
    here.run(first)
    adopted = open2b(email_of(first), if_exists="adopt")
    event = here.producer.wait(hand_in(here, entry_point, adopted), PATIENCE)
    assert (event["type"], event["data"]["recovered"]) == ("registration.registered", True)
    other = open2b(email_of(first))
    event = here.producer.wait(hand_in(here, entry_point, other), PATIENCE)
    assert event["data"]["errors"][0]["code"] == "already_exists"


def test_a_job_past_its_deadline_is_abandoned(here: Installation, entry_point: str) -> None:
    """It is abandoned without a call."""
    job = skypostal(deadline="2020-01-01T00:00:00Z")
    event = here.producer.wait(hand_in(here, entry_point, job), PATIENCE)
    assert event["type"] == "registration.abandoned"
    assert event["data"]["errors"][0]["code"] == "deadline"
    assert here.made(email_of(job)) == 0


def test_lane_and_deadline_are_the_jobs_own(here: Installation, entry_point: str) -> None:
    """The ledger keeps both."""
    job = skypostal(lane="bulk", deadline="2100-01-01T00:00:00Z")
    hand_in(here, entry_point, job)
    assert (record(here, job).lane, record(here, job).deadline_at) == ("bulk", 4_102_444_800_000)


def test_a_job_can_be_taken_back_before_it_leaves(here: Installation, entry_point: str) -> None:
    """It ends in `cancelled`, and no request is sent."""
    job = open2b(metadata={"order": "A-17"})
    here.ledger(hold(("open2b", "default"), "pause", "a test"))
    try:
        hand_in(here, entry_point, job)
        take_back(here, entry_point, job)
    finally:
        here.ledger(hold(("open2b", "default"), "resume", ""))
    [event] = map(json.loads, here.events(id_of(job)))
    assert event["type"] == "registration.cancelled"
    assert event["data"]["metadata"] == {"order": "A-17"}
    assert here.made(email_of(job)) == 0


# ── refused jobs ─────────────────────────────────────────────────────────────────────────────


def wrong(kind: str) -> tuple[dict[str, Any], str, str, str]:
    """An invalid job; the expected code and field, and a word of the message."""
    job = skypostal()
    registration = job["registration"]
    match kind:
        case "too large":
            return {**job, "metadata": {"a": "x" * MAX_JOB_BYTES}}, "invalid", "", "bytes"
        case "an unknown field":
            return {**job, "colour": "canary"}, "invalid", "colour", "not a field"
        case "an unknown field in the registration":
            bad = {**job, "registration": {**registration, "shoe_size": "canary"}}
            return bad, "invalid", "registration.shoe_size", "not a field"
        case "a field left out":
            short = {k: v for k, v in registration.items() if k != "customer_email"}
            bad = {**job, "registration": short}
            return bad, "missing", "registration.customer_email", "required"
        case "an endpoint that is not configured":
            return {**job, "reply_to": ["nobody"]}, "invalid", "reply_to", "REGWORKER_ENDPOINTS"
        case "an account that is not configured":
            return {**job, "account": "nobody"}, "invalid", "account", "REGWORKER_ACCOUNTS"
        case "an unknown provider":
            return {**job, "provider": "nobody"}, "invalid", "provider", "is none of"
        case "sealed under an unknown kid":
            other = Keyring.parse(Keyring.new("other"))
            return sealed(job, other), "invalid", "registration", "kid 'other'"
        case "a broken tag":
            bad = sealed(job, KEYRING)
            bad["registration"] = bad["registration"][:-8] + "AAAAAAAA"
            return bad, "invalid", "registration", "was changed"
        case "a text that is no JWE":
            return {**job, "registration": "canary"}, "invalid", "registration", "sealed"
        case "something else sealed":
            bad = sealed({**job, "registration": "canary"}, KEYRING)
            return bad, "invalid", "registration", "must be an object"
        case "another job's registration":
            bad = {**job, "registration": sealed(skypostal(), KEYRING)["registration"]}
            return bad, "invalid", "registration", "sealed as the registration of"
        case "sealed for another endpoint":
            bad = {**sealed(job, KEYRING), "reply_to": ["results", "crm"]}
            return bad, "invalid", "registration", "sealed for ['results']"
        case "a payload of the ledger":
            plain, seal = json.dumps(registration).encode(), seals.payload(Job(**job))
            bad = {**job, "registration": KEYRING.seal(plain, seal)}
            return bad, "invalid", "registration", "sealed as 'payload'"
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "too large",
        "an unknown field",
        "an unknown field in the registration",
        "a field left out",
        "an endpoint that is not configured",
        "an account that is not configured",
        "an unknown provider",
        "sealed under an unknown kid",
        "a broken tag",
        "a text that is no JWE",
        "something else sealed",
        "another job's registration",
        "sealed for another endpoint",
        "a payload of the ledger",
    ],
)
def test_a_bad_job_is_refused_by_its_field_and_loses_nothing_else(
    here: Installation, entry_point: str, kind: str
) -> None:
    """The errors name the field; the next job under the same key is accepted."""
    job, code, field, word = wrong(kind)
    [error] = refused(here, entry_point, job)
    assert (error["code"], error["field"]) == (code, field)
    assert word in error["message"]
    assert "canary" not in str(error)
    good = {**skypostal(), "idempotency_key": job["idempotency_key"]}
    event = here.producer.wait(hand_in(here, entry_point, good), PATIENCE)
    assert event["type"] == "registration.registered"


def test_other_content_under_a_key_is_refused(here: Installation, entry_point: str) -> None:
    """And the first job continues to its one outcome."""
    job = open2b()
    hand_in(here, entry_point, job)
    other = {**job, "metadata": {"another": True}}
    [error] = refused(here, entry_point, other)
    assert (error["code"], error["field"]) == ("idempotency_conflict", "idempotency_key")
    assert id_of(job) in error["message"]
    assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
    subjects = [json.loads(event)["subject"] for event in here.events(id_of(job))]
    assert subjects.count(id_of(job)) == 1
