"""A typed job is another way to write a dict, and behaves in the same way."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from regworker.acceptance import Intake
from regworker.domain.errors import InvalidJob, Problem
from regworker.domain.job import Job
from regworker.domain.notation import Notation
from regworker.forms.base import Form
from regworker.forms.registry import Forms
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.acme import AcmeRegistration
from tests.integration.jobs import open2b, skypostal

FORMS = Forms(
    [
        *Settings.model_fields["providers"].get_default(call_default_factory=True),
        "tests.integration.acme:Acme",
    ]
)
INTAKE = Intake(FORMS, Keyring.parse(Keyring.new("typed")), 60.0)

JOBS = {"skypostal": skypostal(), "open2b": open2b()}
SECRETS = ("customer_password", "customer_identity_number", "customer_tax_number", "password")


def typed(kind: type[BaseModel], value: Any) -> Any:
    """A dict as a typed object, with all of its parts."""
    if isinstance(value, list):
        return [typed(kind, one) for one in value]
    if not isinstance(value, dict):
        return value
    parts = {name: part(field.annotation) for name, field in kind.model_fields.items()}
    return kind(
        **{name: typed(of, one) if (of := parts.get(name)) else one for name, one in value.items()}
    )


def part(annotation: Any) -> type[BaseModel] | None:
    """The form that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := part(one))), None)


def form(provider: str, registration: Any) -> Any:
    """A registration as its provider's typed form."""
    return typed(FORMS.form(provider), registration)


def field(provider: str, name: str) -> Any:
    """The type of a form's field; None if there is no such field."""
    found = FORMS.form(provider).model_fields.get(name)
    return found and found.annotation


#: The ways to write a job.
WRITTEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a job, a form": lambda job: Job(
        **{**job, "registration": form(job["provider"], job["registration"])}
    ),
    "a job, a dict": lambda job: Job(**job),
    "a dict, a form": lambda job: {
        **job,
        "registration": form(job["provider"], job["registration"]),
    },
    "a dict with typed parts": lambda job: {
        **job,
        "registration": {
            name: typed(of, one) if (of := part(field(job["provider"], name))) else one
            for name, one in job["registration"].items()
        },
    },
    "a form whose parts are dicts": lambda job: Job(
        **{**job, "registration": FORMS.form(job["provider"])(**job["registration"])}
    ),
}


def problems(given: Any) -> list[Problem]:
    """All problems of a job."""
    with pytest.raises(InvalidJob) as caught:
        INTAKE.check(given)
    return sorted(caught.value.problems, key=lambda one: (one.field, one.message))


def paths(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The paths to all values of a registration."""
    items = enumerate(value) if isinstance(value, list) else value.items()
    for name, one in items:
        yield (*path, name)
        if isinstance(one, dict | list):
            yield from paths(one, *path, name)


def changed(job: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A job with one value of its registration changed."""
    made = copy.deepcopy(job)
    at = made["registration"]
    for name in path[:-1]:
        at = at[name]
    change(at, path[-1])
    return made


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    "left out": lambda at, name: at.pop(name),
    "of another type": lambda at, name: at.__setitem__(name, 2.5),
    "null": lambda at, name: at.__setitem__(name, None),
    "empty": lambda at, name: at.__setitem__(name, type(at[name])()),
    "under another name": lambda at, name: at.__setitem__(f"{name}s", at.pop(name)),
}
PLACES = [
    pytest.param(provider, path, id=".".join(map(str, (provider, *path))))
    for provider, job in JOBS.items()
    for path in paths(job["registration"])
    if not isinstance(path[-1], int)
]


def found(given: Any) -> Any:
    """The result of checking a job: its content and fingerprints, or its problems."""
    try:
        job, registration = INTAKE.check(given)
    except InvalidJob as error:
        return sorted((one.field, one.code, one.message) for one in error.problems)
    return job, registration, job.content(registration), INTAKE.fingerprints(job, registration)


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("provider", JOBS)
def test_a_typed_job_is_the_same_job(provider: str, written: Callable[[Any], Any]) -> None:
    """Content and fingerprints are the same bytes, and fields that were left out stay left out."""
    more = {"lane": "bulk", "reply_to": ["results"], "deadline": "2099-01-01T00:00:00Z"}
    for job in (JOBS[provider], {**JOBS[provider], **more, "metadata": {"a": [1, {"b": None}]}}):
        given = written(job)
        assert found(given) == found(job)
        assert isinstance(found(given), tuple)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("provider", "path"), PLACES)
def test_whatever_is_wrong_is_named_as_in_a_dict(
    provider: str, path: tuple[Any, ...], change: Callable[[Any, Any], None]
) -> None:
    """Each field of each form, left out, misspelt or wrong, gives the same problems as in a
    dict."""
    job = changed(JOBS[provider], path, change)
    wrong = {**job, "lane": "fast", "colour": "red", "idempotency_key": ""}
    for written in WRITTEN.values():
        assert found(written(job)) == found(job)
        assert found(written(wrong)) == found(wrong)


def test_everything_is_wrong_at_once() -> None:
    """One expression reports all problems of the job, of the registration and of a part of it."""
    registration = form(
        "skypostal",
        {**JOBS["skypostal"]["registration"], "customer_email": "@", "customer_phone": []},
    )
    registration.customer_address[0].zip_code = ""
    job = Job(provider="skypostal", idempotency_key="", registration=registration)
    assert [one.field for one in problems(job)] == [
        "idempotency_key",
        "registration.customer_address.0.zip_code",
        "registration.customer_email",
        "registration.customer_phone",
    ]


def test_the_form_of_another_provider_is_refused() -> None:
    """The messages use the field names of the job's own provider."""
    registration = form("open2b", JOBS["open2b"]["registration"])
    given = Job(provider="skypostal", idempotency_key="k", registration=registration)
    fields = {one.field for one in problems(given)}
    assert {"registration.customer", "registration.customer_email"} <= fields


def test_a_form_of_a_plugin_is_taken() -> None:
    """A plugin's form may be any pydantic model; one that was changed after creation is checked
    again."""
    registration = AcmeRegistration(email="a@example.com", password="p")
    job = {"provider": "acme", "idempotency_key": "k"}
    plain = {"email": "a@example.com", "password": "p"}
    for given in (Job(**job, registration=registration), {**job, "registration": registration}):
        assert found(given) == found({**job, "registration": plain})
    registration.email = "a"
    assert [one.field for one in problems({**job, "registration": registration})] == [
        "registration.email"
    ]


def notations(kind: type[Notation] = Notation) -> Iterator[type[Notation]]:
    """Typed objects of all kinds."""
    for one in kind.__subclasses__():
        if one.__module__.startswith("regworker."):
            yield one
            yield from notations(one)


KINDS = [one for one in notations() if one is not Form]


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_shown(kind: type[Notation]) -> None:
    """No way to print an object shows a secret, valid or not, even under a misspelt name."""
    secrets = [name for name in SECRETS if name in kind.model_fields]
    names = [*secrets, "pasword", "registration"]  # codespell:ignore pasword
    given = dict.fromkeys(names, "s3cret-canary")
    one = kind(**given)
    many = [one, {"of": one}]
    for shown in (repr(one), str(one), f"{one}", f"{many}", "%r" % (one,)):  # noqa: UP031
        assert "s3cret" not in shown
    with pytest.raises(InvalidJob) as caught:
        INTAKE.check(one if isinstance(one, Job) else {"provider": "open2b", "registration": one})
    assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.problems}"


@pytest.mark.parametrize("provider", JOBS)
def test_the_password_of_a_whole_job_is_not_shown(provider: str) -> None:
    """Neither the job nor its form or parts show it."""
    for written in (WRITTEN["a job, a form"], WRITTEN["a dict, a form"]):
        job = written(copy.deepcopy(JOBS[provider]))
        inner = JOBS[provider]["registration"]
        password = inner.get("customer_password") or inner["customer"]["password"]
        assert password not in f"{job!r} {job}"


def spelt(provider: str, registration: Any) -> Iterator[Any]:
    """A registration as its form: with typed parts, dicts, or JSON instead of parts."""
    kind = FORMS.form(provider)
    texts = {
        name: json.dumps(one) if part(field(provider, name)) else one
        for name, one in registration.items()
    }
    yield from (form(provider, registration), kind(**registration), kind(**texts))


@pytest.mark.parametrize(
    "wrong", [2.5, None, [], {}, [["s3cret"]], {"password": "s3cret"}], ids=repr
)
@pytest.mark.parametrize(("provider", "path"), PLACES)
def test_no_secret_is_shown_whatever_else_is_wrong(
    provider: str, path: tuple[Any, ...], wrong: Any
) -> None:
    """Each field in turn is wrong, so that the form holds the input as it was given."""
    job = copy.deepcopy(JOBS[provider])
    if provider == "open2b":
        job["registration"]["customer"]["password"] = "s3cret-canary"
    else:
        job["registration"]["customer_password"] = "s3cret-canary"
    job = changed(job, path, lambda at, name: at.__setitem__(name, wrong))
    for one in spelt(provider, job["registration"]):
        for colour in ({}, {"colour": "red"}):
            shown = [one, Job(**{**job, **colour, "registration": one})]
            for each in (
                *shown,
                Job(**{**job, **colour, "reply_to": [one], "metadata": {"a": job}}),
            ):
                assert "s3cret" not in f"{each!r} {each} {[each]}"
            for where in ("provider", "lane", "reply_to", "metadata", "deadline"):
                misplaced = Job(**{**job, where: job["registration"]})
                assert "s3cret" not in f"{misplaced!r} {misplaced}"


def test_what_holds_no_part_is_still_shown() -> None:
    """A person who looks at a job can see which one it is."""
    registration = form("skypostal", JOBS["skypostal"]["registration"])
    shown = repr(Job(**{**JOBS["skypostal"], "registration": registration}))
    assert JOBS["skypostal"]["idempotency_key"] in shown
    assert "SkyPostalAddress(" in repr(registration)
    assert registration.customer_email in repr(registration)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_pickled(kind: type[Notation], protocol: int) -> None:
    """A pickle would contain it in plain text."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps({"of": [kind(password="s3cret")]}, protocol)


@pytest.mark.parametrize("provider", JOBS)
def test_a_copy_is_the_same_job(provider: str) -> None:
    """Shallow and deep copies, also of a wrong job."""
    job = WRITTEN["a job, a form"](JOBS[provider])
    wrong = Job(**{**JOBS[provider], "colour": "red"})
    for one in (job, wrong):
        assert found(copy.copy(one)) == found(copy.deepcopy(one)) == found(one)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_validated_is_refused_as_ever(kind: type[Notation]) -> None:
    """Only constructors accept wrong values: `model_validate` reports them, also in parts."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"nonsense": 1})
    assert ("nonsense",) in [one["loc"] for one in caught.value.errors()]
    for name, inner in kind.model_fields.items():
        if part(inner.annotation):
            for value in ({"nonsense": 1}, [{"nonsense": 1}]):
                with pytest.raises(ValidationError) as caught:
                    kind.model_validate({name: value})
                assert name in [one["loc"][0] for one in caught.value.errors()]


def test_a_registration_without_an_end_is_refused() -> None:
    """A registration that contains itself is refused, as a dict and typed."""
    endless: dict[str, Any] = {}
    endless["customer"] = endless
    for given in (endless, FORMS.form("open2b")(**endless)):
        assert problems({**JOBS["open2b"], "registration": given})
