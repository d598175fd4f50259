"""The one way in: everything that is wrong is said at once, and nothing is kept plain."""

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict

from worker.errors import IdempotencyConflict, InvalidJob
from worker.intake import Intake, admitted
from worker.job import MAX_JOB_BYTES, Job, canonical
from worker.ledger.records import Accepted, Conflict, Unconfigured
from worker.lifecycle import State
from worker.providers.registry import Registry
from worker.sealing import Keyring

KEYRING = Keyring.parse(Keyring.new("test"))


class Plain:
    """A provider with two fields."""

    name = "plain"

    class Registration(BaseModel):
        """What it takes."""

        model_config: ClassVar = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

        email: str
        password: str
        note: str | None = None


INTAKE = Intake(Registry([f"{__name__}:Plain"]), KEYRING, 3600)
REGISTRATION = {"email": "a@example.com", "password": "canary"}


def given(**more: Any) -> dict[str, Any]:
    """A job as it comes in."""
    return {
        "provider": "plain",
        "idempotency_key": "crm-1",
        "registration": REGISTRATION,
        **more,
    }


def problems(job: Any) -> list[tuple[str, str]]:
    """What is wrong with a job: code and field."""
    with pytest.raises(InvalidJob) as caught:
        INTAKE.check(job)
    assert "canary" not in str(caught.value)
    return [(one.code, one.field) for one in caught.value.problems]


#: Where `accept` has the payload among its arguments.
PAYLOAD = 12


def payload(job: Job, registration: bytes) -> Any:
    """What a job is accepted with of its registration."""
    return INTAKE.command(job, registration).args[PAYLOAD]


def test_a_good_job_is_taken_with_its_registration_as_it_was_given() -> None:
    """What was left out stays left out."""
    job, registration = INTAKE.check(given())
    assert job.idempotency_key == "crm-1"
    assert json.loads(registration) == REGISTRATION


def test_a_registration_is_canonical_json_whoever_wrote_it() -> None:
    """What repeats are known by is made of it, and was so in earlier releases."""
    plain = {"password": "ü", "email": "a@example.com", "note": None}
    _, registration = INTAKE.check(given(registration=plain))
    assert registration == canonical(plain)
    assert registration == '{"email":"a@example.com","note":null,"password":"ü"}'.encode()


@pytest.mark.parametrize(
    "value", [datetime.now(UTC), object(), {"a"}, b"a", 1j], ids=lambda one: type(one).__name__
)
def test_what_is_no_json_is_named(value: object) -> None:
    """A producer in Python can hand over anything."""
    job = given(registration={**REGISTRATION, "note": value})
    assert problems(job) == [("invalid", "registration.note")]


def test_a_job_object_is_checked_like_any_other() -> None:
    """Having built a `Job` says nothing of its registration."""
    assert INTAKE.check(Job.model_validate(given()))[1]
    assert problems(Job.model_validate(given(registration={"email": "a"}))) == [
        ("missing", "registration.password")
    ]


def test_everything_that_is_wrong_is_named_at_once() -> None:
    """Whoever mends a job should have to mend it once."""
    wrong = given(lane="fast", color="red", registration={"email": 1, "extra": "canary"})
    assert sorted(problems(wrong)) == [
        ("invalid", "color"),
        ("invalid", "lane"),
        ("invalid", "registration.email"),
        ("invalid", "registration.extra"),
        ("missing", "registration.password"),
    ]


def test_an_unknown_provider_is_named() -> None:
    """The message says which ones there are."""
    with pytest.raises(InvalidJob, match=r"'other' is none of: plain"):
        INTAKE.check(given(provider="other"))


@pytest.mark.parametrize("job", [{}, {"provider": 1}, {"provider": "plain", "registration": []}])
def test_what_is_hardly_a_job_is_refused(job: Any) -> None:
    """No fields, or fields of another kind, are problems like any others."""
    assert problems(job)


@pytest.mark.parametrize("job", ["canary", None, 7, ["canary"]])
def test_what_is_no_object_is_refused(job: Any) -> None:
    """Not every JSON text is an object."""
    assert problems(job) == [("invalid", "")]


def test_a_job_that_is_too_large_is_refused() -> None:
    """A form somebody filled in is small."""
    assert problems(given(metadata={"a": "x" * MAX_JOB_BYTES})) == [("invalid", "")]


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"a": "\ud800"}},
        {"registration": {**REGISTRATION, "note": "\ud800"}},
    ],
    ids=["metadata", "registration"],
)
def test_text_that_cannot_be_written_is_refused(more: dict[str, Any]) -> None:
    """Half of a surrogate pair is taken by JSON readers, and would break the job's event later."""
    assert problems(json.loads(json.dumps(given(**more))))


def test_a_job_that_is_too_deep_is_refused() -> None:
    """A job of brackets only is a problem, not a crash."""
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert problems(given(metadata=deep))


def test_the_registration_travels_sealed() -> None:
    """No part of the command that accepts a job holds a plain secret."""
    job, registration = INTAKE.check(given())
    command = INTAKE.command(job, registration)
    assert not [part for part in command.args if "canary" in str(part)]
    assert KEYRING.open(payload(job, registration)) == registration


def sealed(content: Any, keyring: Keyring = KEYRING) -> dict[str, Any]:
    """A job whose registration was sealed by its sender."""
    return given(registration=keyring.seal(json.dumps(content).encode()))


def test_a_registration_that_comes_sealed_is_the_same_as_a_plain_one() -> None:
    """Opened, checked, and sealed again under the first key."""
    assert INTAKE.check(sealed(REGISTRATION)) == INTAKE.check(given())
    assert problems(sealed({"email": "a"})) == [("missing", "registration.password")]


def test_a_registration_that_cannot_be_opened_is_named_with_all_that_is_wrong_besides() -> None:
    """Its content is nobody's to judge, the rest of the job is."""
    other = Keyring.parse(Keyring.new("other"))
    bad = {**sealed(REGISTRATION, other), "lane": "fast"}
    assert sorted(problems(bad)) == [("invalid", "lane"), ("invalid", "registration")]
    assert problems(sealed("canary")) == [("invalid", "registration")]
    text = given(registration=KEYRING.seal(b"{canary"))
    assert problems(text) == [("invalid", "registration")]


def test_where_sealing_is_required_a_plain_registration_is_refused() -> None:
    """Everything else is said with it; a sealed one is taken."""
    with pytest.raises(InvalidJob, match="REGWORKER_REQUIRE_SEALED") as caught:
        INTAKE.check(given(registration={"email": "a"}), sealed_only=True)
    assert {one.field for one in caught.value.problems} == {"registration", "registration.password"}
    assert INTAKE.check(sealed(REGISTRATION), sealed_only=True)[1]


def test_a_sealed_job_may_be_as_large_as_a_plain_one() -> None:
    """What counts is the job, not what sealing adds to it."""
    large = {**REGISTRATION, "note": "x" * (MAX_JOB_BYTES - 1000)}
    job, registration = INTAKE.check(sealed(large))
    assert KEYRING.open(payload(job, registration)) == registration
    assert problems(sealed({**large, "note": "x" * MAX_JOB_BYTES})) == [("invalid", "")]


def test_the_order_of_fields_makes_no_other_job() -> None:
    """A repeat is recognised whoever wrote its JSON."""
    turned = dict(reversed(REGISTRATION.items()))
    one, other = INTAKE.check(given()), INTAKE.check(given(registration=turned))
    assert INTAKE.fingerprints(*one) == INTAKE.fingerprints(*other)


def test_another_password_makes_another_job() -> None:
    """Under the same key that is a conflict."""
    other = INTAKE.check(given(registration={**REGISTRATION, "password": "other"}))
    assert INTAKE.fingerprints(*other) != INTAKE.fingerprints(*INTAKE.check(given()))


def test_the_deadline_is_the_jobs_own_if_it_has_one() -> None:
    """Else it is the setting's, counted from acceptance by the server's clock."""
    assert INTAKE.command(*INTAKE.check(given())).args[2:4] == (3_600_000, 0)
    own = INTAKE.command(*INTAKE.check(given(deadline="2000-01-01T00:00:09Z")))
    assert own.args[2:4] == (0, 946_684_809_000)


def test_the_ledgers_yes_is_passed_on() -> None:
    """An accepted job is an accepted job."""
    job, _ = INTAKE.check(given())
    answer = Accepted(job.id, State.QUEUED, 1, repeat=False)
    assert admitted(job, answer) is answer


def test_a_conflict_names_the_key() -> None:
    """And the job that has it."""
    job, _ = INTAKE.check(given())
    with pytest.raises(IdempotencyConflict, match="crm-1") as caught:
        admitted(job, Conflict(job.id))
    assert caught.value.job_id == job.id


def test_what_no_worker_serves_names_the_setting() -> None:
    """The message says which variable is to be set, and where."""
    job, _ = INTAKE.check(given())
    with pytest.raises(InvalidJob) as caught:
        admitted(job, Unconfigured(("account:plain:other", "endpoint:crm")))
    [account, endpoint] = caught.value.problems
    assert (account.field, endpoint.field) == ("account", "reply_to")
    assert "REGWORKER_ACCOUNTS__PLAIN__OTHER__..." in account.message
    assert "REGWORKER_ENDPOINTS__CRM__..." in endpoint.message
