"""SkyPostal: valid registrations, and the meaning of its answers."""

import asyncio
import copy
import json
import re
from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from regworker.domain.errors import InvalidJob
from regworker.domain.outcome import (
    Absent,
    Code,
    Fault,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from regworker.forms.skypostal import SkyPostalRegistration
from sandbox.documented import SKYPOSTAL_REGISTRATION
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.registry import Registry
from worker.providers.skypostal import SkyPostal, SkyPostalAccount

#: The registration page's example, without credentials and partner.
EXAMPLE = {name: value for name, value in SKYPOSTAL_REGISTRATION.items() if name != "copa_id"}
APP_KEY = "1656d700707ad9a77f737e5df3db088a"
ACCOUNT: dict[str, Any] = {
    "base_url": "https://api-box-test.skypostal.com",
    "user_code": "396",
    "app_key": APP_KEY,
    "copa_id": "616",
}
KEY = "YpbCNpzqxYqVWv+tzg4e4Ex6ALiT+DfKSYA3NY2dZcw="
DUPLICATE = "The email account sent is already registered and associated with a box."
SERVICES = "https://api-box-test.skypostal.com/wcf-services"

NO_ERROR = {"error_description": "", "error_location": "", "system_error": False}


def yes(**fields: Any) -> Answer:
    """Make the documented answer of success, with some fields changed."""
    record = {"_verify": True, "customer_box_id": 811111, "customer_key": KEY, "error": NO_ERROR}
    return Answer(200, {}, json.dumps([record | fields]).encode())


def no(
    text: str = "No.", *, status: int = 200, location: str = "", system: object = False
) -> Answer:
    """Make a refusal as in the code of public clients."""
    error = {"error_description": text, "error_location": location, "system_error": system}
    return Answer(status, {}, json.dumps([{"_verify": False, "error": error}]).encode())


class Wire:
    """A `Send` that answers in order, and records what was sent."""

    def __init__(self, *answers: Answer | NotSent | Lost) -> None:
        self.requests: list[Request] = []
        self._answers = list(answers)

    async def send(self, request: Request) -> Answer | NotSent | Lost:
        """Answer a request."""
        self.requests.append(request)
        return self._answers.pop(0)

    def register(self, registration: dict[str, Any] = EXAMPLE, **account: Any) -> Outcome:
        """Register over this wire."""
        provider = SkyPostal(SkyPostalAccount(**ACCOUNT | account), self.send)
        return asyncio.run(provider.register(SkyPostalRegistration(**registration)))

    def find_out(self, registration: dict[str, Any] = EXAMPLE, **account: Any) -> Outcome:
        """Find out over this wire."""
        provider = SkyPostal(SkyPostalAccount(**ACCOUNT | account), self.send)
        return asyncio.run(provider.find_out(SkyPostalRegistration(**registration)))


# -- valid registrations ---------------------------------------------------------------------


def put(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """Copy the example, with another value at a path."""
    changed = copy.deepcopy(EXAMPLE)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def without(path: tuple[str | int, ...]) -> dict[str, Any]:
    """Copy the example, without the value at a path."""
    changed = copy.deepcopy(EXAMPLE)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return changed


def accepted(registration: dict[str, Any]) -> bool:
    """Return whether the model accepts a registration, the same in Python and as JSON."""
    found = []
    readings: list[Callable[[], SkyPostalRegistration]] = [
        lambda: SkyPostalRegistration.model_validate(registration),
        lambda: SkyPostalRegistration.model_validate_json(json.dumps(registration)),
    ]
    for read in readings:
        try:
            found.append(read().model_dump(exclude_unset=True) == registration)
        except ValidationError:
            found.append(False)
    assert found[0] == found[1]
    return found[0]


ADDRESS, PHONE = ("customer_address", 0), ("customer_phone", 1)
TEXTS: list[tuple[str | int, ...]] = [
    ("customer_first_name",),
    ("customer_last_name",),
    ("customer_identity_number",),
    ("customer_password",),
    *((*ADDRESS, name) for name in ("locality_town", "neighborhood", "address_01", "zip_code")),
    *((*PHONE, name) for name in ("phone_area_code", "phone_number")),
]
OPTIONAL_TEXTS: list[tuple[str | int, ...]] = [("customer_campaign",), (*PHONE, "phone_extension")]
NUMBERS: list[tuple[str | int, ...]] = [("customer_tax_number",), (*ADDRESS, "city_code")]
OPTIONAL: list[tuple[str | int, ...]] = [
    ("customer_tax_number",),
    ("customer_campaign",),
    ("customer_email_agreement",),
    ("customer_referred_by",),
    (*PHONE, "phone_extension"),
]
REQUIRED: list[tuple[str | int, ...]] = [
    *((name,) for name in EXAMPLE if (name,) not in OPTIONAL),
    *((*ADDRESS, name) for name in EXAMPLE["customer_address"][0]),
    *((*PHONE, name) for name in EXAMPLE["customer_phone"][1] if name != "phone_extension"),
]

characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, min_size=1)
not_texts = st.none() | st.integers() | st.booleans() | st.lists(st.text(characters))
not_numbers = st.none() | st.booleans() | st.floats(allow_nan=False) | st.from_regex(r"[0-9]+")


@given(st.sampled_from(TEXTS + OPTIONAL_TEXTS), texts)
def test_any_text_is_sent_as_it_was_given(path: tuple[str | int, ...], text: str) -> None:
    """Nothing is trimmed or normalised: a password may contain any character."""
    assert accepted(put(path, text))


@given(st.sampled_from(TEXTS + OPTIONAL_TEXTS), not_texts)
def test_a_text_that_is_none_is_refused(path: tuple[str | int, ...], value: object) -> None:
    """The number 007 is not the text "007"."""
    assert not accepted(put(path, value))


@pytest.mark.parametrize("path", TEXTS)
def test_a_required_text_is_not_empty(path: tuple[str | int, ...]) -> None:
    """An empty text is refused like a missing one."""
    assert not accepted(put(path, ""))


@pytest.mark.parametrize("path", OPTIONAL_TEXTS)
def test_an_optional_text_may_be_empty(path: tuple[str | int, ...]) -> None:
    """The documented example has an empty extension."""
    assert accepted(put(path, ""))


@given(st.sampled_from([*NUMBERS, ("customer_referred_by",)]), st.integers(-(10**18), 10**18))
def test_numbers_stay_numbers(path: tuple[str | int, ...], number: int) -> None:
    """SkyPostal receives the same number."""
    assert accepted(put(path, number))


@given(st.sampled_from(NUMBERS), not_numbers)
def test_a_number_that_is_none_is_refused(path: tuple[str | int, ...], value: object) -> None:
    """The values "11111", true and 1.5 are not converted to numbers."""
    assert not accepted(put(path, value))


@pytest.mark.parametrize("path", REQUIRED)
def test_a_required_field_is_required(path: tuple[str | int, ...]) -> None:
    """A registration without a documented required field is refused, and the error names the
    field."""
    with pytest.raises(ValidationError) as caught:
        SkyPostalRegistration.model_validate(without(path))
    assert caught.value.errors()[0]["loc"] == path


@pytest.mark.parametrize("path", OPTIONAL)
def test_an_optional_field_may_be_left_out(path: tuple[str | int, ...]) -> None:
    """A missing field is not sent."""
    assert accepted(without(path))


@pytest.mark.parametrize(
    "path", [("copa_id",), ("app_key",), ("customer_mail",), (*ADDRESS, "street"), (*PHONE, "x")]
)
def test_a_field_that_is_not_documented_is_refused(path: tuple[str | int, ...]) -> None:
    """A misspelt field is found before the call; credentials are not part of a job."""
    assert not accepted(put(path, "x"))


@given(st.dates())
def test_every_date_is_a_birth_date(date: Any) -> None:
    """The documented form is YYYY-MM-DD."""
    assert accepted(put(("customer_birth_date",), date.isoformat()))


@pytest.mark.parametrize(
    "value",
    ["", "1980-02-30", "1980-13-01", "19800819", "1980-8-19", "19.08.1980", "1980-W34-2",
     "1980-08-19T00:00", " 1980-08-19", "1980-08-19\n", "١٩٨٠-08-19", "0000-01-01"],
)  # fmt: skip
def test_a_birth_date_that_is_none_is_refused(value: str) -> None:
    """A date has that form, and exists in the calendar."""
    assert not accepted(put(("customer_birth_date",), value))


@pytest.mark.parametrize(
    "value", ["a@b.co", "John.Doe+tag@EMAIL.com", "josé@correo.example", "x@a.b.c.d", "'@x.y"]
)
def test_an_email_is_sent_untouched(value: str) -> None:
    """Its case and its symbols are kept."""
    assert accepted(put(("customer_email",), value))


@pytest.mark.parametrize(
    "value",
    ["", "john", "@email.com", "john@", "john@email", "john@@email.com", "a@b@c.de", "jo hn@e.com",
     " john@e.com", "john@e.com ", "john@e.com\n", "john@.com", "john@e.", "john@e..com"],
)  # fmt: skip
def test_an_email_that_is_none_is_refused(value: str) -> None:
    """An impossible address is found before the call."""
    assert not accepted(put(("customer_email",), value))


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        (("language_code",), ["ENG", "ESP"], ["eng", "EN", "", None, "POR"]),
        (("customer_gender",), ["M", "F"], ["m", "", None, "X"]),
        (("customer_email_agreement",), [True, False], ["true", 1, 0, None]),
        ((*PHONE, "phone_type"), [1, 2], [0, 3, "1", 1.0, True, None]),
        (("customer_referred_by",), [None, 811111], ["811111", True, 1.0]),
        (
            ("customer_address",),
            [EXAMPLE["customer_address"]],
            [[], EXAMPLE["customer_address"] * 2, EXAMPLE["customer_address"][0], None],
        ),
        (
            ("customer_phone",),
            [EXAMPLE["customer_phone"], EXAMPLE["customer_phone"] * 2],
            [[], EXAMPLE["customer_phone"][:1], None],
        ),
    ],
)
def test_only_documented_values_pass(
    path: tuple[str | int, ...], good: list[Any], bad: list[Any]
) -> None:
    """Choices and lists contain what the documentation lists."""
    assert all(accepted(put(path, value)) for value in good)
    assert not any(accepted(put(path, value)) for value in bad)


def test_an_error_names_no_value() -> None:
    """Errors are logged, and values are personal data."""
    with pytest.raises(ValidationError) as caught:
        SkyPostalRegistration.model_validate(put(("customer_password",), 4711))
    assert "4711" not in str(caught.value)


def test_a_repr_holds_neither_password_nor_identity() -> None:
    """Logs contain reprs."""
    text = repr(SkyPostalRegistration(**EXAMPLE))
    assert not any(secret in text for secret in ("pass123", "11111111", "=11111"))


# -- answers to a registration ---------------------------------------------------------------


def test_the_documented_example_is_sent_as_documented() -> None:
    """The request is the one on the registration page."""
    wire = Wire(yes())
    wire.register()
    assert wire.requests[0].url == f"{SERVICES}/service-customer.svc/customer/customer-registration"
    assert wire.requests[0].body == {
        "user_code": 396,
        "app_key": APP_KEY,
        "copa_id": 616,
        **EXAMPLE,
    }


@pytest.mark.parametrize("allowed", [{}, {"copa_ids": "617, 618"}, {"copa_ids": [618]}])
def test_a_registration_may_name_its_commercial_partner(allowed: dict[str, Any]) -> None:
    """As documented; for this job it replaces the account's own."""
    wire = Wire(yes())
    wire.register({**EXAMPLE, "copa_id": 618}, **allowed)
    assert wire.requests[0].body["copa_id"] == 618


def test_an_account_may_list_the_commercial_partners_that_are_allowed() -> None:
    """Any other one is refused before the call."""
    wire = Wire(yes())
    outcome = wire.register({**EXAMPLE, "copa_id": 619}, copa_ids="617,618")
    assert outcome == Rejected((Fault(Code.INVALID, "copa_id", ANY),))
    assert wire.requests == []


@pytest.mark.parametrize("name", ["user_code", "app_key", "base_url"])
def test_a_credential_in_a_registration_is_refused_as_one(name: str) -> None:
    """The message says where credentials belong, and does not repeat them."""
    registry = Registry(["worker.providers.skypostal:SkyPostal"])
    with pytest.raises(InvalidJob) as caught:
        registry.validate("skypostal", {**EXAMPLE, name: APP_KEY})
    [problem] = caught.value.problems
    assert problem.field == f"registration.{name}"
    assert f"set REGWORKER_ACCOUNTS__SKYPOSTAL__<ACCOUNT>__{name.upper()}" in problem.message
    assert "belongs to the account" in problem.message
    assert APP_KEY not in str(caught.value)


def test_credentials_can_be_nested() -> None:
    """Some clients send them in `user_info`; a setting of the account chooses that."""
    wire = Wire(yes())
    wire.register(credentials="nested")
    body = wire.requests[0].body
    assert body["user_info"] == {"user_code": 396, "app_key": APP_KEY}
    assert not {"user_code", "app_key"} & body.keys()


def test_success_gives_both_credentials() -> None:
    """They are the customer's box id and key."""
    expected = Registered({"customer_box_id": 811111, "customer_key": KEY})
    assert Wire(yes()).register() == expected


def test_success_counts_at_any_status() -> None:
    """`_verify` decides, not the HTTP status."""
    assert isinstance(Wire(Answer(500, {}, yes().body)).register(), Registered)


@pytest.mark.parametrize(
    "text", [DUPLICATE, DUPLICATE.upper(), f"\n {DUPLICATE}  ", DUPLICATE.replace(" ", "\u00a0 ")]
)
def test_a_known_email_already_exists(text: str) -> None:
    """The known text is recognised in any case and with any white space."""
    outcome = Wire(no(text)).register()
    assert isinstance(outcome, Rejected)
    assert [(e.code, e.field) for e in outcome.errors] == [(Code.ALREADY_EXISTS, "customer_email")]


@pytest.mark.parametrize("status", [200, 400, 409, 422])
def test_any_other_refusal_is_told_in_the_providers_words(status: int) -> None:
    """A refusal with an unknown text is final, and the event has the text."""
    outcome = Wire(no("The city is closed.", location="city_code", status=status)).register()
    fault = Fault(Code.PROVIDER_ERROR, "city_code", "The city is closed.")
    assert outcome == Rejected((fault,))


def test_a_refusal_may_leave_out_what_is_no_system_error() -> None:
    """Only clients' code shows what SkyPostal answers, and not every client reads that field."""
    refusal = [{"_verify": False, "error": {"error_description": "The city is closed."}}]
    outcome = Wire(Answer(200, {}, json.dumps(refusal).encode())).register()
    assert outcome == Rejected((Fault(Code.PROVIDER_ERROR, "", "The city is closed."),))


@pytest.mark.parametrize("secret", ["pass123", "11111111", "11111", APP_KEY, APP_KEY.upper()])
def test_no_secret_is_told_on(secret: str) -> None:
    """If a provider quotes a secret, the event doesn't."""
    outcome = Wire(no(f"Bad value '{secret}'.", location=secret)).register()
    assert outcome == Rejected((Fault(Code.PROVIDER_ERROR, "***", "Bad value '***'."),))


@pytest.mark.parametrize(
    "refusal",
    [
        no("The user code or the app key is not valid."),
        no("Invalid credential", location="app_key"),
        no("Denied", status=401),
        Answer(403, {}, b"Forbidden"),
        Answer(404, {}, b"<html>"),
        Answer(302, {"location": "/"}, b""),
    ],
)
def test_refused_credentials_are_the_accounts_fault(refusal: Answer) -> None:
    """A wrong key stops the account, and fails no job."""
    assert isinstance(Wire(refusal).register(), Refused)


def test_a_customer_called_app_key_stops_no_account() -> None:
    """A refusal that quotes the job concerns the job."""
    registration = put(("customer_first_name",), "App_Key")
    outcome = Wire(no("Name 'APP_KEY' is not valid.")).register(registration)
    assert isinstance(outcome, Rejected)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(no("Oops", system=True), id="system error"),
        pytest.param(no("Oops", system="yes"), id="odd system_error"),
        pytest.param(no("Oops", status=500), id="HTTP 500 with a refusal"),
        pytest.param(no(""), id="no reason"),
        pytest.param(no("  "), id="a blank reason"),
        pytest.param(yes(customer_box_id=None), id="no box id"),
        pytest.param(yes(customer_box_id="811111"), id="box id is a text"),
        pytest.param(yes(customer_box_id=True), id="box id is true"),
        pytest.param(yes(customer_key=""), id="empty key"),
        pytest.param(yes(customer_key=None), id="no key"),
        pytest.param(yes(_verify="true"), id="_verify is a text"),
        pytest.param(yes(_verify=1), id="_verify is a number"),
        pytest.param(yes(_verify=None), id="no _verify"),
        pytest.param(Answer(200, {}, b"[]"), id="empty array"),
        pytest.param(Answer(200, {}, b"[{}, {}]"), id="array of two"),
        pytest.param(Answer(200, {}, b'[{"_verify": false}]'), id="no error"),
        pytest.param(Answer(200, {}, b'[{"_verify": false, "error": null}]'), id="null error"),
        pytest.param(Answer(200, {}, yes().body[1:-1]), id="object instead of array"),
        pytest.param(
            Answer(200, {}, b'{"data": [], "additional_info": null, "error": null}'),
            id="another service's shape",
        ),
        pytest.param(Answer(200, {}, b"<html>Maintenance</html>"), id="HTML"),
        pytest.param(Answer(200, {}, yes().body[:-9]), id="cut off"),
        pytest.param(Answer(200, {}, b""), id="empty"),
        pytest.param(Answer(500, {}, b"<html>"), id="HTTP 500"),
        pytest.param(Answer(400, {}, b"<html>"), id="HTTP 400"),
        pytest.param(Lost("connection reset"), id="lost"),
    ],
)
def test_anything_else_is_unknown(answer: Answer | Lost) -> None:
    """The worker looks the job up, and sends nothing again."""
    assert isinstance(Wire(answer).register(), Unknown)


def test_not_sent_can_be_tried_again() -> None:
    """Nothing was sent, so nothing happened."""
    assert Wire(NotSent("refused")).register() == Retryable("refused")


def test_told_to_wait_waits() -> None:
    """After 429 the job waits."""
    outcome = Wire(Answer(429, {"retry-after": "9"}, b"")).register()
    assert isinstance(outcome, Retryable)
    assert outcome.retry_after == 9


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["_verify", "error", "customer_box_id", "customer_key", "data"]), inner
        )
    ),
    max_leaves=8,
)


@given(json_values, st.integers(100, 599))
def test_no_answer_breaks_the_reading(value: object, status: int) -> None:
    """Every answer gives an outcome, and never raises an error."""
    Wire(Answer(status, {}, json.dumps(value).encode())).register()


# -- look-ups --------------------------------------------------------------------------------


def test_a_login_that_succeeds_is_proof() -> None:
    """The account opens with our password, so it is ours. E-mails are returned in upper case."""
    wire = Wire(yes(customer_email="JOHNDOE@EMAIL.COM"))
    expected = Registered({"customer_box_id": 811111, "customer_key": KEY}, recovered=True)
    assert wire.find_out() == expected
    assert wire.requests == [
        Request(
            f"{SERVICES}/service-customer.svc/customer/customer-login",
            {
                "user_code": 396,
                "app_key": APP_KEY,
                "customer_email": "johndoe@email.com",
                "customer_password": "pass123",
            },
        )
    ]


def test_a_login_without_an_email_is_proof_too() -> None:
    """The documented answer has no e-mail."""
    assert isinstance(Wire(yes()).find_out(), Registered)


def test_whom_neither_login_nor_look_up_knows_is_absent() -> None:
    """Nobody has that e-mail."""
    wire = Wire(no(), no())
    assert isinstance(wire.find_out(), Absent)
    assert wire.requests[1].url == f"{SERVICES}/service-customer.svc/partner/customer-get-info"
    assert wire.requests[1].body == {
        "user_code": 396,
        "app_key": APP_KEY,
        "customer_email": "johndoe@email.com",
    }


def test_the_look_up_can_be_under_the_other_service() -> None:
    """Some clients use `service-partner.svc`; a setting of the account chooses that."""
    wire = Wire(no(), no())
    wire.find_out(look_up="service-partner")
    assert wire.requests[1].url == f"{SERVICES}/service-partner.svc/partner/customer-get-info"


def test_somebody_whom_our_password_does_not_open_is_for_a_person_to_judge() -> None:
    """The customer may be ours, or may have existed before."""
    assert isinstance(Wire(no(), yes(customer_email="JohnDoe@Email.com")).find_out(), Unresolvable)


SOMEBODY_ELSE = yes(customer_email="JANE@EMAIL.COM")
UNASKED = [
    pytest.param(NotSent("refused"), id="not sent"),
    pytest.param(Lost("reset"), id="lost"),
    pytest.param(Answer(429, {}, b""), id="asked to wait"),
    pytest.param(Answer(503, {}, b""), id="HTTP 503"),
    pytest.param(Answer(200, {}, b"<html>"), id="HTML"),
    pytest.param(Answer(200, {}, b"[]"), id="empty array"),
    pytest.param(no("Oops", system=True), id="system error"),
    pytest.param(SOMEBODY_ELSE, id="somebody else"),
]


@pytest.mark.parametrize("answer", UNASKED)
def test_a_login_that_could_not_be_asked_leaves_it_unknown(answer: Answer | Lost) -> None:
    """No answer never means absence."""
    wire = Wire(answer)
    assert isinstance(wire.find_out(), Unknown)
    assert len(wire.requests) == 1


@pytest.mark.parametrize("answer", UNASKED)
def test_a_look_up_that_could_not_be_asked_leaves_it_unknown(answer: Answer | Lost) -> None:
    """A refused login alone doesn't mean absence."""
    assert isinstance(Wire(no(), answer).find_out(), Unknown)


def test_a_question_told_to_wait_waits() -> None:
    """Retry-After holds for look-ups, too."""
    outcome = Wire(Answer(429, {"retry-after": "9"}, b"")).find_out()
    assert isinstance(outcome, Unknown)
    assert outcome.retry_after == 9


REFUSED = [Answer(401, {}, b""), no("The app key is not valid.")]


@pytest.mark.parametrize("answers", [(REFUSED[0],), (REFUSED[1],), (no(), REFUSED[0])])
def test_refused_credentials_are_not_taken_for_absence(answers: tuple[Answer, ...]) -> None:
    """A wrong key says nothing about the customer."""
    assert isinstance(Wire(*answers).find_out(), Refused)


def test_a_failure_that_names_our_credentials_holds_the_account_only_in_a_look_up() -> None:
    """The registration may have been carried out before; if they are wrong, the look-up says so."""
    failed = no("Internal error: the app key is not valid.")
    assert isinstance(Wire(failed).register(), Unknown)
    assert isinstance(Wire(failed).find_out(), Refused)


#: Refusals that name a credential: in the text or in the place, in any spelling.
BLAMES = [
    no("The app key is not valid."),
    no("Invalid APP_KEY"),
    no("Access denied", location="user_code"),
    no("The user code does not exist.", status=400),
]


@pytest.mark.parametrize("blames", BLAMES)
@pytest.mark.parametrize("login_answers", [True, False])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("customer_email",), "appkey@example.com"),
        (("customer_email",), "app_key@example.com"),
        (("customer_email",), "user.code@user-code.user_code.example"),
        (("customer_password",), "my user code 1"),
        (("customer_password",), "App Key 12"),
    ],
)
def test_no_word_of_a_sender_makes_absence_of_a_refused_key(
    path: tuple[str, ...], value: str, login_answers: bool, blames: Answer
) -> None:
    """Whoever chooses an e-mail or a password must not choose what a look-up's refusal means."""
    answers = (no(), blames) if login_answers else (blames, no())
    found = Wire(*answers).find_out(put(path, value))
    assert isinstance(found, Refused | Unknown)


@pytest.mark.parametrize(
    "text",
    [
        "Service temporarily unavailable, please try again later.",
        "The server is busy",
        "Request timed out.",
        "Unexpected error",
        "Servicio no disponible. Intente de nuevo más tarde.",
    ],
)
@pytest.mark.parametrize("login_answers", [True, False])
def test_trouble_in_a_look_up_is_no_absence(text: str, login_answers: bool) -> None:
    """Whoever cannot look, does not know that nobody is there."""
    trouble = no(text)
    answers = (no(), trouble) if login_answers else (trouble, no())
    assert isinstance(Wire(*answers).find_out(), Unknown)


@pytest.mark.parametrize(
    "text",
    [
        "Timeout expired. The timeout period elapsed prior to completion of the operation.",
        "Service temporarily unavailable, please try again later.",
        "System.Exception: the object is in use.",
        "Timeout expired (customer-registration, user_code 396).",
        "Internal server error",
        "El servicio no está disponible: error interno.",
        "System.NullReferenceException: the customer is null.",
        "Object reference not set to an instance of an object.",
        "Transaction (Process ID 52) was deadlocked on lock resources.",
        "An error has occurred.",
        "Ocurrió un error al procesar la solicitud.",
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_a_registration_that_failed_at_skypostal_is_not_rejected(text: str, status: int) -> None:
    """A service that failed has refused nobody, and may have made the customer before."""
    assert isinstance(Wire(no(text, status=status)).register(), Unknown)


@pytest.mark.parametrize(
    "text",
    [
        "Too many characters in zip_code.",
        "Temporary e-mail addresses are not accepted.",
        "The city is unavailable for this partner. Please try again with another one.",
        "The phone is busy",
    ],
)
def test_a_refusal_of_what_was_sent_is_a_rejection(text: str) -> None:
    """It would be the same the next time."""
    assert isinstance(Wire(no(text)).register(), Rejected)


QUOTED = "mantenimiento@system-error.example"


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("customer_email",), QUOTED, f"The email {QUOTED.upper()} is not valid."),
        (("customer_first_name",), "Maintenance", "The name 'MAINTENANCE' is not allowed."),
        (("customer_last_name",), "Error Interno", "Valor “Error Interno” no permitido"),
    ],
)
def test_a_refusal_that_quotes_what_was_sent_is_a_rejection(
    path: tuple[str, ...], value: str, text: str
) -> None:
    """Its words are the customer's, and say nothing about the service."""
    assert isinstance(Wire(no(text)).register(put(path, value)), Rejected)


@pytest.mark.parametrize("text", ["Maintenance in progress", "'Maintenance': time out", "Time out"])
def test_no_name_makes_a_refusal_of_a_service_that_failed(text: str) -> None:
    """The customer may have been made before."""
    named = put(("customer_first_name",), "Maintenance")
    assert isinstance(Wire(no(text)).register(named), Unknown)


def test_no_pattern_is_made_of_what_a_customer_chose() -> None:
    """Of a job's two thousand values, that took a second, in which all other jobs waited; and
    Python keeps patterns."""
    re.purge()
    named = put(("customer_first_name",), "Zephyrine")
    assert isinstance(Wire(no("The name 'Zephyrine' is not valid.")).register(named), Rejected)
    patterns: Any = re._cache  # type: ignore[attr-defined]
    assert patterns
    assert "Zephyrine" not in str(list(patterns))


@pytest.mark.parametrize("login_answers", [True, False])
def test_a_look_up_that_quotes_the_e_mail_is_answered(login_answers: bool) -> None:
    """Otherwise such a customer would go to a person after each lost answer."""
    quoting = no(f"There is no customer {QUOTED}")
    answers = (no(), quoting) if login_answers else (quoting, no())
    assert isinstance(Wire(*answers).find_out(put(("customer_email",), QUOTED)), Absent)


def test_no_password_makes_absence_of_trouble() -> None:
    """Whoever chooses it must not choose what a look-up's refusal means."""
    trouble = no("The server is 'busy'")
    assert isinstance(Wire(trouble).find_out(put(("customer_password",), "busy")), Unknown)


@pytest.mark.parametrize("email", [["box@example.com"], 7, {}, False])
def test_an_e_mail_that_is_no_text_is_another_ones(email: object) -> None:
    """Only an answer without any may do without the comparison."""
    assert isinstance(Wire(yes(customer_email=email)).register(), Unknown)


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_a_refusal_in_skypostals_own_words_had_no_effect(status: int) -> None:
    """Only a page of somebody else on the way may replace the answer to a registration."""
    own, page = no("Denied", status=status), Answer(status, {}, b"<html>")
    assert [
        refused.unproved
        for refused in (Wire(own).register(), Wire(page).register())
        if isinstance(refused, Refused)
    ] == [False, True]


# -- the account -----------------------------------------------------------------------------


def test_the_account_may_come_as_numbers() -> None:
    """A settings file has numbers, the environment has texts."""
    account = SkyPostalAccount(**ACCOUNT | {"user_code": 396, "app_key": 1234, "copa_id": 616})
    assert account.in_body() == {"user_code": 396, "app_key": "1234"}


def test_the_account_shows_no_key() -> None:
    """Settings are printed."""
    assert APP_KEY not in repr(SkyPostalAccount(**ACCOUNT))
