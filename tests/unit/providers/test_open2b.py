"""Open2b: valid registrations, and the meaning of its answers."""

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

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
from regworker.forms.open2b import Open2bRegistration
from sandbox.documented import OPEN2B_CUSTOMER_KEY, OPEN2B_SIGN_UP
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.open2b import Open2b, Open2bAccount

EXAMPLE = OPEN2B_SIGN_UP
EMAIL = "holmes@inv-london.com"
KEY = OPEN2B_CUSTOMER_KEY
API = "https://shop.example/api/v10"
KEYED: dict[str, Any] = {"secret_key": "sk-1", "public_key": "pk-1"}

Path = tuple[str, ...]
CUSTOMER = ("customer",)
ADDRESS = ("customer", "address")

#: The sign-up page's table of strings: field, shortest, longest.
STRINGS: list[tuple[Path, int, int]] = [
    ((*CUSTOMER, "cart"), 32, 32),
    ((*ADDRESS, "firstName"), 1, 25),
    ((*ADDRESS, "lastName"), 1, 25),
    ((*ADDRESS, "personalCode"), 0, 20),
    ((*ADDRESS, "companyName"), 0, 100),
    ((*ADDRESS, "companyCode"), 0, 20),
    ((*ADDRESS, "companyCode2"), 0, 20),
    ((*ADDRESS, "street1"), 1, 60),
    ((*ADDRESS, "street2"), 0, 60),
    ((*ADDRESS, "city"), 1, 25),
    ((*ADDRESS, "postalCode"), 1, 20),
    ((*ADDRESS, "stateProv"), 0, 3),
    ((*ADDRESS, "phoneNumber"), 0, 15),
    ((*ADDRESS, "mobileNumber"), 0, 15),
    ((*ADDRESS, "faxNumber"), 0, 15),
    ((*ADDRESS, "email"), 3, 120),
    ((*CUSTOMER, "password"), 6, 16),
    ((*CUSTOMER, "invoiceRecipient"), 0, 256),
    (("verificationCode",), 6, 32),
]
REQUIRED: list[Path] = [
    CUSTOMER,
    ADDRESS,
    (*ADDRESS, "email"),
    (*CUSTOMER, "privacyConsents"),
    (*CUSTOMER, "password"),
]
OPTIONAL: list[Path] = [
    *(path for path, _, _ in STRINGS if path not in REQUIRED),
    (*ADDRESS, "country"),
    (*CUSTOMER, "newsletterLists"),
]


def ok(body: dict[str, Any] | None = None, key: str = KEY) -> Answer:
    """Make the documented answer of success."""
    headers = {"x-customer-key": key} if key else {}
    return Answer(200, headers, json.dumps({"status": "ok"} | (body or {})).encode())


def error(field: object, kind: object, description: object = "No.") -> Answer:
    """Make the documented answer of an error: at status 200."""
    fault = {"field": field, "type": kind, "description": description}
    return Answer(200, {}, json.dumps({"status": "error", "error": fault}).encode())


def found(*emails: object) -> Answer:
    """Make the answer to a search."""
    customers = [{"id": number, "email": email} for number, email in enumerate(emails, 1)]
    return ok({"customers": customers}, key="")


WRONG_PASSWORD = error("email", "InvalidCombination", "email or password is incorrect")


class Wire:
    """A `Send` that answers in order, and records what was sent."""

    def __init__(self, *answers: Answer | NotSent | Lost) -> None:
        self.requests: list[Request] = []
        self._answers = list(answers)

    async def send(self, request: Request) -> Answer | NotSent | Lost:
        """Answer a request."""
        self.requests.append(request)
        return self._answers.pop(0)

    def provider(self, **account: Any) -> Open2b:
        """Open a store that uses this wire."""
        return Open2b(Open2bAccount(base_url="https://shop.example", **account), self.send)

    def register(self, registration: dict[str, Any] = EXAMPLE, **account: Any) -> Outcome:
        """Register over this wire."""
        read = Open2bRegistration.model_validate(registration)
        return asyncio.run(self.provider(**account).register(read))

    def find_out(self, registration: dict[str, Any] = EXAMPLE, **account: Any) -> Outcome:
        """Find out over this wire."""
        read = Open2bRegistration.model_validate(registration)
        return asyncio.run(self.provider(**account).find_out(read))


# -- valid registrations ---------------------------------------------------------------------


def _place(registration: dict[str, Any], path: Path) -> Any:
    for step in path[:-1]:
        registration = registration[step]
    return registration


def put(path: Path, value: object) -> dict[str, Any]:
    """Copy the example, with another value at a path."""
    changed = copy.deepcopy(EXAMPLE)
    _place(changed, path)[path[-1]] = value
    return changed


def without(path: Path) -> dict[str, Any]:
    """Copy the example, without the value at a path."""
    changed = copy.deepcopy(EXAMPLE)
    del _place(changed, path)[path[-1]]
    return changed


def accepted(registration: dict[str, Any]) -> bool:
    """Return whether the model accepts a registration, the same in Python and as JSON."""
    results = []
    readings: list[Callable[[], Open2bRegistration]] = [
        lambda: Open2bRegistration.model_validate(registration),
        lambda: Open2bRegistration.model_validate_json(json.dumps(registration)),
    ]
    for read in readings:
        try:
            results.append(read().model_dump(exclude_unset=True) == registration)
        except ValidationError:
            results.append(False)
    assert results[0] == results[1]
    return results[0]


characters = st.characters(exclude_categories=["Cs"])


def texts(shortest: int, longest: int) -> st.SearchStrategy[str]:
    """Make texts of this number of characters, of any kind."""
    return st.text(characters, min_size=shortest, max_size=longest)


@given(st.data(), st.sampled_from(STRINGS))
def test_a_string_within_its_limits_is_sent_as_given(
    data: st.DataObject, limits: tuple[Path, int, int]
) -> None:
    """Spaces, symbols and case are kept; the limits are the documented ones."""
    path, shortest, longest = limits
    assert accepted(put(path, data.draw(texts(shortest, longest))))


@pytest.mark.parametrize(("path", "shortest", "longest"), STRINGS)
def test_a_string_at_its_limits_passes_and_past_them_fails(
    path: Path, shortest: int, longest: int
) -> None:
    """One character more or less makes the difference."""
    assert accepted(put(path, "x" * shortest))
    assert accepted(put(path, "x" * longest))
    assert not accepted(put(path, "x" * (longest + 1)))
    assert shortest == 0 or not accepted(put(path, "x" * (shortest - 1)))


@pytest.mark.parametrize("path", [path for path, _, _ in STRINGS])
@pytest.mark.parametrize("value", [123456, True, 1.5, ["x"], {}])
def test_a_string_that_is_none_is_refused(path: Path, value: object) -> None:
    """The number 1 is not the text "1"."""
    assert not accepted(put(path, value))


@pytest.mark.parametrize("path", [path for path, _, _ in STRINGS])
def test_only_the_cart_may_be_null(path: Path) -> None:
    """The documentation says so."""
    assert accepted(put(path, None)) == (path[-1] == "cart")


@pytest.mark.parametrize(
    ("value", "good"),
    [("GB", True), ("it", True), ("", False), ("G", False), ("GBR", False), ("G1", False),
     ("GB\n", False), ("ÄÖ", False), (None, False)],
)  # fmt: skip
def test_a_country_has_two_letters(value: object, good: bool) -> None:
    """The country is an ISO code."""
    assert accepted(put((*ADDRESS, "country"), value)) == good


@given(st.lists(st.integers(1, 256)))
def test_consents_are_numbers_from_1_to_256(consents: list[int]) -> None:
    """Any number of them is valid, also none, because a store may ask for none."""
    assert accepted(put((*CUSTOMER, "privacyConsents"), consents))


@given(st.lists(st.integers(min_value=1, max_value=2**40)))
def test_newsletter_lists_are_numbers_from_1_on(lists: list[int]) -> None:
    """The documentation has no highest number."""
    assert accepted(put((*CUSTOMER, "newsletterLists"), lists))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("privacyConsents", [[0], [257], [-1], [True], ["1"], [1.0], [None], 1, None, {}]),
        ("newsletterLists", [[0], [-1], [True], ["1"], [1.0], [None], 1, None, {}]),
    ],
)
def test_other_items_are_refused(name: str, values: list[object]) -> None:
    """An item past its limits, or of another type, is found before the call."""
    assert not any(accepted(put((*CUSTOMER, name), value)) for value in values)


@pytest.mark.parametrize("path", REQUIRED)
def test_a_required_field_is_required(path: Path) -> None:
    """A registration without a documented required field is refused, and the error names the
    field."""
    with pytest.raises(ValidationError) as caught:
        Open2bRegistration.model_validate(without(path))
    assert caught.value.errors()[0]["loc"] == path


@pytest.mark.parametrize("path", OPTIONAL)
def test_an_optional_field_may_be_left_out(path: Path) -> None:
    """A missing field is not sent, because the store refuses unknown fields."""
    assert accepted(without(path))


@pytest.mark.parametrize("path", [("x",), (*CUSTOMER, "x"), (*ADDRESS, "street3")])
def test_a_field_that_is_not_documented_is_refused(path: Path) -> None:
    """The store would refuse it as `UnknownField`."""
    assert not accepted(put(path, "x"))


def test_an_error_names_no_value() -> None:
    """Errors are logged, and values are personal data."""
    with pytest.raises(ValidationError) as caught:
        Open2bRegistration.model_validate(put((*CUSTOMER, "password"), "hunter2-hunter2-hunter2"))
    assert "hunter2" not in str(caught.value)


def test_a_repr_holds_no_secret() -> None:
    """Logs contain reprs."""
    text = repr(Open2bRegistration.model_validate(EXAMPLE))
    assert not any(secret in text for secret in ("I9bV2crS", "AT67N3FG", "SH239IBA"))


def test_the_schema_shows_no_made_up_defaults() -> None:
    """A field that is left out has no default, and none is sent."""
    assert '"default"' not in json.dumps(Open2bRegistration.model_json_schema())


# -- answers to a sign-up --------------------------------------------------------------------


def test_the_documented_example_is_sent_as_documented() -> None:
    """The request is the one on the sign-up page, with nothing added."""
    wire = Wire(ok())
    wire.register()
    assert wire.requests == [Request(f"{API}/storefront.sign-up", EXAMPLE, {})]


def test_the_public_key_is_sent_where_there_is_one() -> None:
    """Stores of later versions ask for it; public methods don't use the secret key."""
    wire = Wire(ok())
    wire.register(**KEYED)
    assert wire.requests[0].headers == {"X-Public-Key": "pk-1"}


def test_success_gives_the_customer_key() -> None:
    """The key is in a header."""
    assert Wire(ok()).register() == Registered({"customer_key": KEY})


@pytest.mark.parametrize(
    ("field", "kind", "code"),
    [
        ("cart", "NotFound", Code.NOT_FOUND),
        ("email", "AlreadyExists", Code.ALREADY_EXISTS),
        ("email", "InvalidValue", Code.INVALID),
        ("newsletterLists", "NotFound", Code.NOT_FOUND),
        ("privacyConsents", "InvalidValue", Code.INVALID),
        ("verificationCode", "InvalidValue", Code.INVALID),
        ("verificationCode", "Missing", Code.VERIFICATION_REQUIRED),
        ("unknown", "UnknownField", Code.INVALID),
        ("city", "Missing", Code.MISSING),
        ("firstName", "MissingCombination", Code.MISSING),
        ("customer", "Malformed", Code.INVALID),
        ("stateProv", "InvalidCombination", Code.INVALID),
        ("cart", "AccessDenied", Code.ACCESS_DENIED),
    ],
)
def test_an_error_is_told_with_our_code_and_the_stores_own(
    field: str, kind: str, code: Code
) -> None:
    """Field and type decide the code; the message is the store's."""
    outcome = Wire(error(field, kind, "Some words.")).register()
    assert outcome == Rejected((Fault(code, field, "Some words.", kind),))


@pytest.mark.parametrize("kind", ["SomethingNew", "InternalError", "Timeout", "alreadyexists", ""])
def test_an_error_of_an_undocumented_type_refuses_nobody(kind: str) -> None:
    """The customer may have been created before the error."""
    outcome = Wire(error("email", kind, "Unexpected error, please try again.")).register()
    assert outcome == Unknown("sign-up: unknown error")


@pytest.mark.parametrize("key", ["a\x01b", "a\x7f", "a\u00a0", "\u00a0a", "clé"])
def test_a_key_that_is_no_plain_text_is_not_published(key: str) -> None:
    """It was changed on its way, and would open nothing."""
    assert isinstance(Wire(ok(key=key)).register(), Unknown)


@pytest.mark.parametrize("secret", ["I9bV2crS", "AT67N3FG", "SH239IBA", "sk-1", "PK-1"])
def test_no_secret_is_told_on(secret: str) -> None:
    """`Verification code '<code>' is not valid` is shown without the code."""
    answer = error("verificationCode", "InvalidValue", f"Code '{secret}' is not valid")
    outcome = Wire(answer).register(**KEYED)
    assert isinstance(outcome, Rejected)
    assert outcome.errors[0].message == "Code '***' is not valid"


def test_a_short_secret_leaves_names_alone() -> None:
    """A personal code `a` doesn't change the name of the error."""
    registration = put((*ADDRESS, "personalCode"), "a")
    outcome = Wire(error("email", "AlreadyExists", "a b")).register(registration)
    assert outcome == Rejected((Fault(Code.ALREADY_EXISTS, "email", "*** b", "AlreadyExists"),))


@pytest.mark.parametrize("field", [None, "", 7])
def test_an_error_without_a_field_is_told(field: object) -> None:
    """Not every error concerns one field."""
    outcome = Wire(error(field, "MissingCombination", None)).register()
    assert outcome == Rejected((Fault(Code.MISSING, "", "", "MissingCombination"),))


@pytest.mark.parametrize(
    "answer",
    [
        error("", "AccessDenied"),
        error("key", "AccessDenied"),
        Answer(403, {}, b"403 Forbidden"),
        Answer(404, {}, b"no such method"),
        Answer(405, {}, b"wrong method"),
        Answer(301, {"location": "https://www.shop.example/"}, b""),
    ],
)
def test_a_refused_call_is_the_accounts_fault(answer: Answer) -> None:
    """A wrong key or host stops the account, and fails no job."""
    assert isinstance(Wire(answer).register(), Refused)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ok(key=""), id="ok without the key"),
        pytest.param(ok(key="  "), id="ok with a blank key"),
        pytest.param(ok(key=f"{KEY}, other"), id="two keys in one line"),
        pytest.param(ok(key=f"{KEY},"), id="a key and an empty one"),
        pytest.param(Answer(200, {"x-customer-key": KEY}, b""), id="empty"),
        pytest.param(Answer(200, {"x-customer-key": KEY}, b"<html>"), id="HTML"),
        pytest.param(Answer(200, {"x-customer-key": KEY}, b'{"status": "o'), id="cut off"),
        pytest.param(Answer(200, {"x-customer-key": KEY}, b'["ok"]'), id="an array"),
        pytest.param(Answer(200, {"x-customer-key": KEY}, b'{"status": true}'), id="odd status"),
        pytest.param(Answer(200, {}, b'{"status": "error"}'), id="no error"),
        pytest.param(error("email", None), id="no type"),
        pytest.param(Answer(500, {"x-customer-key": KEY}, ok().body), id="HTTP 500"),
        pytest.param(Answer(400, {}, b"Bad Request"), id="HTTP 400"),
        pytest.param(Lost("timeout"), id="lost"),
    ],
)
def test_anything_else_is_unknown(answer: Answer | Lost) -> None:
    """The worker looks the job up, and sends nothing again."""
    assert isinstance(Wire(answer).register(), Unknown)


def test_a_key_that_comes_twice_is_one() -> None:
    """A proxy may join the lines."""
    assert Wire(ok(key=f"{KEY}, {KEY}")).register() == Registered({"customer_key": KEY})


def test_not_sent_can_be_tried_again() -> None:
    """Nothing was sent, so nothing happened."""
    assert Wire(NotSent("refused")).register() == Retryable("refused")


def test_the_call_limit_is_kept_to() -> None:
    """After 429 the job waits as long as the store says."""
    outcome = Wire(Answer(429, {"retry-after": "300"}, b"Too many calls")).register()
    assert isinstance(outcome, Retryable)
    assert outcome.retry_after == 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["ok", "error"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "error", "type", "field", "x"]), inner)
    ),
    max_leaves=8,
)


@given(json_values, st.integers(100, 599))
def test_no_answer_breaks_the_reading(value: object, status: int) -> None:
    """Every answer gives an outcome, and never raises an error."""
    Wire(Answer(status, {}, json.dumps(value).encode())).register()


# -- look-ups --------------------------------------------------------------------------------


def test_a_login_that_succeeds_is_proof() -> None:
    """The account opens with our password, so it is ours."""
    wire = Wire(ok())
    assert wire.find_out(**KEYED) == Registered({"customer_key": KEY}, recovered=True)
    body = {"email": EMAIL, "password": "I9bV2crS"}
    assert wire.requests == [Request(f"{API}/storefront.login", body, {"X-Public-Key": "pk-1"})]


def test_without_a_secret_key_a_refused_login_is_absence() -> None:
    """Sign-up itself refuses a known e-mail, so a repeat makes no second customer."""
    wire = Wire(WRONG_PASSWORD)
    found = wire.find_out()
    assert isinstance(found, Absent)
    assert found.login_only, "for a person, this is no proof"
    assert len(wire.requests) == 1


def test_with_a_secret_key_whom_the_search_does_not_know_is_absent() -> None:
    """Nobody has that e-mail; the search is a private method."""
    wire = Wire(WRONG_PASSWORD, found())
    assert isinstance(wire.find_out(**KEYED), Absent)
    query = {"conditions": {"email": EMAIL}, "fields": ["id", "email"], "limit": 10}
    headers = {"X-Secret-Key": "sk-1"}
    assert wire.requests[1] == Request(f"{API}/commerce.customers.find", query, headers)


def test_somebody_whom_our_password_does_not_open_is_for_a_person_to_judge() -> None:
    """It may be ours and wait for approval, or may have existed before."""
    assert isinstance(Wire(WRONG_PASSWORD, found(EMAIL.upper())).find_out(**KEYED), Unresolvable)


UNASKED = [
    pytest.param(NotSent("refused"), id="not sent"),
    pytest.param(Lost("reset"), id="lost"),
    pytest.param(Answer(429, {}, b""), id="asked to wait"),
    pytest.param(Answer(503, {}, b""), id="HTTP 503"),
    pytest.param(Answer(200, {}, b"<html>"), id="HTML"),
    pytest.param(error("email", "Malformed"), id="an error that is no no"),
    pytest.param(error("city", "InvalidCombination"), id="another field's error"),
    pytest.param(error("email", "SomethingNew"), id="a new error"),
    pytest.param(ok(key=""), id="ok without what was asked"),
]


@pytest.mark.parametrize("answer", UNASKED)
def test_a_login_that_could_not_be_asked_leaves_it_unknown(answer: Answer | Lost) -> None:
    """No answer never means absence."""
    wire = Wire(answer)
    assert isinstance(wire.find_out(**KEYED), Unknown)
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        *UNASKED,
        pytest.param(found("watson@inv-london.com"), id="somebody else"),
        pytest.param(found(None), id="somebody without an e-mail"),
        pytest.param(ok({"customers": None}), id="no list"),
        pytest.param(ok({"customers": {}}), id="an object"),
    ],
)
def test_a_search_that_could_not_be_asked_leaves_it_unknown(answer: Answer | Lost) -> None:
    """A refused login alone doesn't mean absence if a search is possible."""
    assert isinstance(Wire(WRONG_PASSWORD, answer).find_out(**KEYED), Unknown)


def test_a_question_told_to_wait_waits() -> None:
    """Retry-After holds for look-ups, too."""
    outcome = Wire(Answer(429, {"retry-after": "9"}, b"")).find_out()
    assert isinstance(outcome, Unknown)
    assert outcome.retry_after == 9


DENIED = [Answer(403, {}, b"Forbidden"), error("", "AccessDenied")]


@pytest.mark.parametrize("denied", DENIED)
def test_refused_keys_are_not_taken_for_absence(denied: Answer) -> None:
    """A wrong secret key says nothing about the customer."""
    assert isinstance(Wire(WRONG_PASSWORD, denied).find_out(**KEYED), Refused)


# -- the account -----------------------------------------------------------------------------


def test_the_documented_call_limit_is_the_default() -> None:
    """1000 calls in 5 minutes."""
    account = Open2bAccount(base_url="https://shop.example")
    assert (account.rate, account.rate_period) == (1000, 300)


def test_the_account_shows_no_key() -> None:
    """Settings are printed."""
    account = Open2bAccount(base_url="https://shop.example", **KEYED)
    assert "sk-1" not in repr(account)
    assert "pk-1" not in repr(account)
