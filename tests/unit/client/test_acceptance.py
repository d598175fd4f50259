"""Every job is checked in one place: all of its problems are reported at once, and it is stored
sealed."""

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict

from regworker.acceptance import Intake, admitted
from regworker.domain.errors import IdempotencyConflict, InvalidJob, SettingsError
from regworker.domain.job import MAX_JOB_BYTES, Job, canonical
from regworker.domain.states import State
from regworker.ledger.records import Accepted, Conflict, Unconfigured
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from worker.providers.registry import Registry

KEYRING = Keyring.parse(Keyring.new("test"))


class Plain:
    """A provider with two fields."""

    name = "plain"

    class Registration(BaseModel):
        """The registration of this provider."""

        model_config: ClassVar = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

        email: str
        password: str
        note: str | None = None

    class Account(BaseModel):
        """The account of this provider."""


INTAKE = Intake(Registry([f"{__name__}:Plain"]), KEYRING, 3600)
REGISTRATION = {"email": "a@example.com", "password": "canary"}


def given(**more: Any) -> dict[str, Any]:
    """A job as a producer sends it."""
    return {
        "provider": "plain",
        "idempotency_key": "crm-1",
        "registration": REGISTRATION,
        **more,
    }


def problems(job: Any) -> list[tuple[str, str]]:
    """The problems of a job: code and field."""
    with pytest.raises(InvalidJob) as caught:
        INTAKE.check(job)
    assert "canary" not in str(caught.value)
    return [(one.code, one.field) for one in caught.value.problems]


#: The position of the payload among the arguments of `accept`.
PAYLOAD = 12


def payload(job: Job, registration: bytes) -> Any:
    """The part of the accept command that holds the registration."""
    return INTAKE.command(job, registration).args[PAYLOAD]


def test_a_good_job_is_taken_with_its_registration_as_it_was_given() -> None:
    """Fields that were left out stay left out."""
    job, registration = INTAKE.check(given())
    assert job.idempotency_key == "crm-1"
    assert json.loads(registration) == REGISTRATION


def test_a_registration_is_canonical_json_whoever_wrote_it() -> None:
    """Repeats are recognised by this text, so it must not change between releases."""
    plain = {"password": "ü", "email": "a@example.com", "note": None}
    _, registration = INTAKE.check(given(registration=plain))
    assert registration == canonical(plain)
    assert registration == '{"email":"a@example.com","note":null,"password":"ü"}'.encode()


@pytest.mark.parametrize(
    "value", [datetime.now(UTC), object(), {"a"}, b"a", 1j], ids=lambda one: type(one).__name__
)
def test_what_is_no_json_is_named(value: object) -> None:
    """A producer in Python can pass any object."""
    job = given(registration={**REGISTRATION, "note": value})
    assert problems(job) == [("invalid", "registration.note")]


def test_a_job_object_is_checked_like_any_other() -> None:
    """A `Job` object may hold a registration that is not valid."""
    assert INTAKE.check(Job.model_validate(given()))[1]
    assert problems(Job.model_validate(given(registration={"email": "a"}))) == [
        ("missing", "registration.password")
    ]


def test_everything_that_is_wrong_is_named_at_once() -> None:
    """The sender can fix a job in one go."""
    wrong = given(lane="fast", color="red", registration={"email": 1, "extra": "canary"})
    assert sorted(problems(wrong)) == [
        ("invalid", "color"),
        ("invalid", "lane"),
        ("invalid", "registration.email"),
        ("invalid", "registration.extra"),
        ("missing", "registration.password"),
    ]


def test_an_unknown_provider_is_named() -> None:
    """The message lists the known providers."""
    with pytest.raises(InvalidJob, match=r"'other' is none of: plain"):
        INTAKE.check(given(provider="other"))


@pytest.mark.parametrize("job", [{}, {"provider": 1}, {"provider": "plain", "registration": []}])
def test_what_is_hardly_a_job_is_refused(job: Any) -> None:
    """A job without fields, or with fields of wrong types, has ordinary problems."""
    assert problems(job)


@pytest.mark.parametrize("job", ["canary", None, 7, ["canary"]])
def test_what_is_no_object_is_refused(job: Any) -> None:
    """A JSON text may hold another type."""
    assert problems(job) == [("invalid", "")]


def test_a_job_that_is_too_large_is_refused() -> None:
    """The largest job is far larger than a filled-in form."""
    assert problems(given(metadata={"a": "x" * MAX_JOB_BYTES})) == [("invalid", "")]


def test_only_metadata_and_registration_can_make_a_job_too_large() -> None:
    """All other fields at their longest have less than half of the limit, so that without metadata
    a short registration is enough to know that the job fits."""
    longest: dict[str, Any] = {
        "provider": "p" * 64,
        "account": "a" * 64,
        "idempotency_key": "\U0001f600" * 255,
        "reply_to": ["r" * 64] * 8,
        "lane": "live",
        "if_exists": "reject",
        "deadline": "9999-12-31T23:59:59.999999+00:00",
        "traceparent": f"00-{'1' * 32}-{'1' * 16}-01",
        "metadata": {},
        "registration": {},
    }
    assert longest.keys() == Job.model_fields.keys()
    text = Job.model_validate(longest).model_dump_json()
    assert len(text.encode()) < MAX_JOB_BYTES // 2


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"a": "\ud800"}},
        {"registration": {**REGISTRATION, "note": "\ud800"}},
    ],
    ids=["metadata", "registration"],
)
def test_text_that_cannot_be_written_is_refused(more: dict[str, Any]) -> None:
    """JSON readers accept half of a surrogate pair, but the job's event could not be written
    later."""
    [(_, field)] = problems(json.loads(json.dumps(given(**more))))
    assert field == next(iter(more))


def test_a_job_that_is_too_deep_is_refused() -> None:
    """A job that consists of brackets is a problem, not a crash."""
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert problems(given(metadata=deep))


@pytest.mark.parametrize("depth", [100, 300, 600, 900, 3000])
@pytest.mark.parametrize("field", ["registration", "metadata", "reply_to", "account", "deadline"])
def test_lists_at_any_depth_in_any_field_are_a_problem(field: str, depth: int) -> None:
    """Also at depths that only some steps of the check can walk through."""
    deep: Any = []
    for _ in range(depth):
        deep = [deep]
    for value in (deep, {"a": deep}):
        for from_json in (True, False):
            with pytest.raises(InvalidJob) as caught:
                INTAKE.check(given(**{field: value}), from_json=from_json)
            assert caught.value.problems[0].field.startswith((field, "registration"))


def test_the_registration_travels_sealed() -> None:
    """The command that accepts a job contains no secret in plain text."""
    job, registration = INTAKE.check(given())
    command = INTAKE.command(job, registration)
    assert not [part for part in command.args if "canary" in str(part)]
    assert KEYRING.open(payload(job, registration), seals.payload(job)) == registration


def sealed(content: Any, keyring: Keyring = KEYRING) -> dict[str, Any]:
    """A job whose registration was sealed by its sender."""
    plain = json.dumps(content).encode()
    return given(registration=keyring.seal(plain, seals.registration(given())))


def test_a_registration_that_comes_sealed_is_the_same_as_a_plain_one() -> None:
    """It is opened, checked, and sealed again under the first key."""
    assert INTAKE.check(sealed(REGISTRATION)) == INTAKE.check(given())
    assert problems(sealed({"email": "a"})) == [("missing", "registration.password")]


def test_a_registration_that_cannot_be_opened_is_named_with_all_that_is_wrong_besides() -> None:
    """Its content cannot be checked, but all other fields are."""
    other = Keyring.parse(Keyring.new("other"))
    bad = {**sealed(REGISTRATION, other), "lane": "fast"}
    assert sorted(problems(bad)) == [("invalid", "lane"), ("invalid", "registration")]
    assert problems(sealed("canary")) == [("invalid", "registration")]
    text = given(registration=KEYRING.seal(b"{canary", seals.registration(given())))
    assert problems(text) == [("invalid", "registration")]


def test_where_sealing_is_required_a_plain_registration_is_refused() -> None:
    """The other problems are reported with it; a sealed registration is accepted."""
    with pytest.raises(InvalidJob, match="REGWORKER_REQUIRE_SEALED") as caught:
        INTAKE.check(given(registration={"email": "a"}), sealed_only=True)
    assert {one.field for one in caught.value.problems} == {"registration", "registration.password"}
    assert INTAKE.check(sealed(REGISTRATION), sealed_only=True)[1]


def test_a_sealed_job_may_be_as_large_as_a_plain_one() -> None:
    """The limit counts the job, not the overhead of sealing."""
    large = {**REGISTRATION, "note": "x" * (MAX_JOB_BYTES - 1000)}
    job, registration = INTAKE.check(sealed(large))
    assert KEYRING.open(payload(job, registration), seals.payload(job)) == registration
    assert problems(sealed({**large, "note": "x" * MAX_JOB_BYTES})) == [("invalid", "")]


def test_the_order_of_fields_makes_no_other_job() -> None:
    """A repeat is recognised in any order of the JSON fields."""
    turned = dict(reversed(REGISTRATION.items()))
    one, other = INTAKE.check(given()), INTAKE.check(given(registration=turned))
    assert INTAKE.fingerprints(*one) == INTAKE.fingerprints(*other)


def test_another_password_makes_another_job() -> None:
    """With the same key it is a conflict."""
    other = INTAKE.check(given(registration={**REGISTRATION, "password": "other"}))
    assert INTAKE.fingerprints(*other) != INTAKE.fingerprints(*INTAKE.check(given()))


def test_the_deadline_is_the_jobs_own_if_it_has_one() -> None:
    """Without its own deadline the setting applies, counted from acceptance by the server's
    clock."""
    assert INTAKE.command(*INTAKE.check(given())).args[2:4] == (3_600_000, 0)
    own = INTAKE.command(*INTAKE.check(given(deadline="2000-01-01T00:00:09Z")))
    assert own.args[2:4] == (0, 946_684_809_000)


def test_the_ledgers_yes_is_passed_on() -> None:
    """The producer gets the ledger's answer unchanged."""
    job, _ = INTAKE.check(given())
    answer = Accepted(job.id, State.QUEUED, 1, repeat=False)
    assert admitted(job.idempotency_key, answer) is answer


def test_a_conflict_names_the_key() -> None:
    """The error names the key and the job that has it."""
    job, _ = INTAKE.check(given())
    with pytest.raises(IdempotencyConflict, match="crm-1") as caught:
        admitted(job.idempotency_key, Conflict(job.id))
    assert caught.value.job_id == job.id


KNOWN = ("account:plain:default", "account:other:secret", "endpoint:results", "key:k1:0a1b")

INSTALLATION = [
    pytest.param((), (), "REGWORKER_REDIS_URL", "no worker has announced itself", id="nobody"),
    pytest.param(
        ("key:k2:9f9f",),
        KNOWN,
        "REGWORKER_SEALING_KEYS",
        "no worker has the first key, 'k2'; they have k1: use the keys of your workers",
        id="unknown key",
    ),
    pytest.param(
        ("account:plain:other", "key:k1:9f9f"),
        KNOWN,
        "REGWORKER_SEALING_KEYS",
        "'k1' differs from the workers' key of this name",
        id="another key of the name",
    ),
]


@pytest.mark.parametrize(("names", "known", "setting", "said"), INSTALLATION)
def test_a_setting_that_fits_no_worker_is_no_fault_of_the_job(
    names: tuple[str, ...], known: tuple[str, ...], setting: str, said: str
) -> None:
    """It raises `SettingsError`: a producer that drops invalid jobs must keep this one until its
    settings are fixed."""
    job, _ = INTAKE.check(given())
    with pytest.raises(SettingsError) as caught:
        admitted(job.idempotency_key, Unconfigured(names or ("account:plain:default",), known))
    [(name, what)] = caught.value.problems
    assert name == setting
    assert said in what


def test_what_no_worker_serves_names_the_setting() -> None:
    """The message names the variable to set, and the place."""
    job, _ = INTAKE.check(given())
    with pytest.raises(InvalidJob) as caught:
        admitted(job.idempotency_key, Unconfigured(("account:plain:other", "endpoint:crm"), KNOWN))
    [account, endpoint] = caught.value.problems
    assert "workers have: default" in account.message
    assert "workers have: results" in endpoint.message
    assert (account.field, endpoint.field) == ("account", "reply_to")
    assert "REGWORKER_ACCOUNTS__PLAIN__OTHER__..." in account.message
    assert "REGWORKER_ENDPOINTS__CRM__..." in endpoint.message
