"""A job may come by any door: each takes the same jobs, and refuses the same, in the same words."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.doors import DOORS, hand_in, id_of, record, refused, take_back
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.job import MAX_JOB_BYTES
from worker.ledger.operations import hold
from worker.sealing import Keyring

KEYRING = Keyring.parse(KEYS)

pytestmark = pytest.mark.parametrize("door", DOORS)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation for all doors."""
    with installation(tmp_path_factory.mktemp("doors")) as running:
        yield running


def sealed(job: dict[str, Any], keyring: Keyring = KEYRING) -> dict[str, Any]:
    """The same job, its registration sealed by its sender."""
    return {**job, "registration": keyring.seal(json.dumps(job["registration"]).encode())}


# ── what is taken ─────────────────────────────────────────────────────────────────────────────


def test_a_job_is_registered_and_its_metadata_said_again(here: Installation, door: str) -> None:
    """In the event, and on the webhook that the job names."""
    job = skypostal(metadata={"order": "A-17", "größe": [1, None]}, reply_to=["results", "crm"])
    event = here.producer.wait(hand_in(here, door, job), PATIENCE)
    assert event["type"] == "registration.registered"
    assert event["data"]["metadata"] == job["metadata"]
    assert here.made(email_of(job)) == 1
    assert here.wait_for_hook(id_of(job))


def test_a_registration_may_come_sealed(here: Installation, door: str) -> None:
    """By whoever holds a key of the keyring; handed in again plain, it is the same job."""
    job = open2b()
    event = here.producer.wait(hand_in(here, door, sealed(job)), PATIENCE)
    assert event["type"] == "registration.registered"
    assert here.producer.enqueue(job).repeat


def test_a_customer_who_exists_may_be_adopted(here: Installation, door: str) -> None:
    """If the password is theirs; else the job is rejected."""
    first = open2b()
    here.run(first)
    adopted = open2b(email_of(first), if_exists="adopt")
    event = here.producer.wait(hand_in(here, door, adopted), PATIENCE)
    assert (event["type"], event["data"]["recovered"]) == ("registration.registered", True)
    other = open2b(email_of(first))
    event = here.producer.wait(hand_in(here, door, other), PATIENCE)
    assert event["data"]["errors"][0]["code"] == "already_exists"


def test_a_job_past_its_deadline_is_abandoned(here: Installation, door: str) -> None:
    """Without a call."""
    job = skypostal(deadline="2020-01-01T00:00:00Z")
    event = here.producer.wait(hand_in(here, door, job), PATIENCE)
    assert event["type"] == "registration.abandoned"
    assert event["data"]["errors"][0]["code"] == "deadline"
    assert here.made(email_of(job)) == 0


def test_lane_and_deadline_are_the_jobs_own(here: Installation, door: str) -> None:
    """As the ledger keeps them."""
    job = skypostal(lane="bulk", deadline="2100-01-01T00:00:00Z")
    hand_in(here, door, job)
    assert (record(here, job).lane, record(here, job).deadline_at) == ("bulk", 4_102_444_800_000)


def test_a_job_can_be_taken_back_before_it_leaves(here: Installation, door: str) -> None:
    """It ends in `cancelled`, and no call is made."""
    job = open2b(metadata={"order": "A-17"})
    here.ledger(hold("open2b", "default", "pause", "a test"))
    try:
        hand_in(here, door, job)
        take_back(here, door, job)
    finally:
        here.ledger(hold("open2b", "default", "resume", ""))
    [event] = map(json.loads, here.events(id_of(job)))
    assert event["type"] == "registration.cancelled"
    assert event["data"]["metadata"] == {"order": "A-17"}
    assert here.made(email_of(job)) == 0


# ── what is not ───────────────────────────────────────────────────────────────────────────────


def wrong(kind: str) -> tuple[dict[str, Any], str, str, str]:
    """A bad job; the code and the field that are named, and a word of the message."""
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
            bad = sealed(job)
            bad["registration"] = bad["registration"][:-8] + "AAAAAAAA"
            return bad, "invalid", "registration", "changed since it was sealed"
        case "a text that is no JWE":
            return {**job, "registration": "canary"}, "invalid", "registration", "sealed"
        case "something else sealed":
            bad = {**job, "registration": KEYRING.seal(b'"canary"')}
            return bad, "invalid", "registration", "dictionary"
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
    ],
)
def test_a_bad_job_is_refused_by_its_field_and_loses_nothing_else(
    here: Installation, door: str, kind: str
) -> None:
    """Named errors; the job that comes next, under the same key, is taken."""
    job, code, field, word = wrong(kind)
    [error] = refused(here, door, job)
    assert (error["code"], error["field"]) == (code, field)
    assert word in error["message"]
    assert "canary" not in str(error)
    good = {**skypostal(), "idempotency_key": job["idempotency_key"]}
    event = here.producer.wait(hand_in(here, door, good), PATIENCE)
    assert event["type"] == "registration.registered"


def test_other_content_under_a_key_is_refused(here: Installation, door: str) -> None:
    """And the first job goes on to its one outcome."""
    job = open2b()
    hand_in(here, door, job)
    other = {**job, "metadata": {"another": True}}
    [error] = refused(here, door, other)
    assert (error["code"], error["field"]) == ("idempotency_conflict", "idempotency_key")
    assert id_of(job) in error["message"]
    assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
    subjects = [json.loads(event)["subject"] for event in here.events(id_of(job))]
    assert subjects.count(id_of(job)) == 1
