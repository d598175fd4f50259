"""Which outcomes can be written, and what replaces those that cannot."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json

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
from regworker.domain.portable import DEEPEST, UNNAMED, flaw, shown_name
from regworker.forms.open2b import Open2bRegistration
from regworker.forms.skypostal import SkyPostalRegistration
from tests.integration.odd import FIT, REPAIRED, UNFIT, WAITS
from worker.execution.writable import MOST_DATA, MOST_FAULTS, MOST_TEXT, writable


@pytest.mark.parametrize("found", UNFIT.values(), ids=UNFIT)
def test_an_outcome_that_cannot_be_written_is_for_a_person(found: Any) -> None:
    """It becomes a review; the reason names the fault, and can be written."""
    outcome = writable(found)
    assert isinstance(outcome, Unresolvable)
    assert outcome.reason.startswith("the provider's outcome cannot be written: ")
    assert len(outcome.reason.encode()) < 300


@pytest.mark.parametrize("found", [*REPAIRED.values(), *WAITS.values()], ids=[*REPAIRED, *WAITS])
def test_an_odd_text_does_not_change_what_an_outcome_means(found: Any) -> None:
    """An outcome keeps its kind, whatever its texts contain."""
    outcome = writable(found)
    assert type(outcome) is type(found)
    assert len(to_json(outcome)) < 100_000


@pytest.mark.parametrize("found", FIT.values(), ids=FIT)
def test_what_can_be_written_stays_as_it_is(found: Any) -> None:
    """Not a character of a customer's key changes."""
    assert writable(found) is found


@pytest.mark.parametrize(
    "found",
    [
        Registered({"customer_key": "k"}, recovered=True),
        Rejected((Fault(Code.INVALID, "email", "is odd", provider_code="E1"),)),
        Retryable("asked to wait", 3.0, spends=False),
        Refused("HTTP 403", unproved=True),
        Unknown("lost", 3.0),
        Absent("nobody", login_only=True),
        Unresolvable("somebody"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_an_outcome_without_a_fault_stays_as_it_is(found: Outcome) -> None:
    """With all that follows from it: what was proved, and how long to wait."""
    assert writable(found) == found


texts = st.text(st.characters(exclude_categories=[]), max_size=20)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(), st.dates()),
    lambda inner: st.lists(inner) | st.dictionaries(st.one_of(texts, st.integers()), inner),
    max_leaves=20,
)
outcomes = st.one_of(
    anything,
    st.builds(Registered, anything, anything),
    st.builds(Rejected, anything),
    st.builds(
        Rejected,
        st.lists(st.builds(Fault, st.sampled_from(Code), texts, texts, texts), min_size=1),
    ),
    st.builds(Retryable, texts, anything, anything),
    st.builds(Unknown, texts, st.floats()),
    *(st.builds(kind, anything) for kind in (Refused, Absent, Unresolvable)),
)


@given(outcomes)
def test_whatever_a_provider_returns_can_be_written(found: Any) -> None:
    """The result can be written as JSON, and every reader reads the same."""
    outcome = writable(found)
    assert isinstance(outcome, Outcome)
    written = to_json(outcome)
    from_json(written, allow_inf_nan=False)
    json.loads(written)
    match outcome:
        case Registered(data):
            assert outcome.data == found.data
            assert json.loads(to_json(data)) == data
        case Rejected(errors):
            assert 1 <= len(errors) <= MOST_FAULTS
        case Retryable(reason, wait) | Unknown(reason, wait):
            assert wait is None or wait >= 0
            assert len(reason) <= MOST_TEXT
        case _:
            assert len(outcome.reason) <= MOST_TEXT


@given(st.integers(MOST_DATA - 100, MOST_DATA + 100))
def test_data_has_a_limit(length: int) -> None:
    """Some KiB are enough for a provider's data."""
    assert bool(flaw({"key": "x" * length}, MOST_DATA)) is (length > MOST_DATA - 5)


@pytest.mark.parametrize(("levels", "good"), [(DEEPEST, True), (DEEPEST + 1, False)])
def test_nesting_has_a_limit(levels: int, good: bool) -> None:
    """Some readers refuse deeper JSON."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    assert (flaw(value) == "") is good


def test_a_flaw_is_named_by_its_place_and_not_by_its_value() -> None:
    """The message helps to find the flaw, and shows no content."""
    value = {"keys": [{"box": 1}, {"hunter2 is it": "hunter2\ud800"}]}
    assert flaw(value, path="data") == (
        f"data.keys.1.{UNNAMED} holds half of a surrogate pair, which is not text"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("customer_email", "customer_address", "address_01", "companyCode2", "zip-code", "_x"),
        *("invoiceRecipient", 0, 12),
    ],
)
def test_a_name_that_looks_like_a_fields_is_shown(name: str | int) -> None:
    """A reader can find a misspelt field."""
    assert shown_name(name) == str(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "hunter 2", "p@ssw0rd", "correct horse", "x" * 41, "a.b", "4111111111111111", "é"),
        *(
            "AB123456",
            "secret\n",
            "{reg}:jobs",
            "\ud800",
            None,
            ("a",),
            "https://a",
            "eyJhbGciOiJk==",
        ),
    ],
)
def test_a_name_that_may_be_anything_is_not_shown(name: object) -> None:
    """No message shows a password that is in a field's place."""
    assert shown_name(name) == UNNAMED


class Line(BaseModel):
    """An object in a plugin's form."""

    zip_code: str = Field("", alias="zipCode")
    next: "Line | None" = None


class Form(BaseModel):
    """A plugin's form: its provider spells names differently; one type has no JSON schema."""

    lines: dict[str, list[Line]] = {}
    check: Callable[[], None] | None = Field(None, exclude=True)


FIELDS = [
    (SkyPostalRegistration, "customer_email"),
    (SkyPostalRegistration, "customer_phone.1.phone_number"),
    (SkyPostalRegistration, "customer_phone[1].phone_number"),
    (Open2bRegistration, "email"),
    (Open2bRegistration, "customer.address.email"),
    (Open2bRegistration, "/customer/privacyConsents/0"),
    (Line, "zipCode"),
    (Line, "zip_code"),
    (Line, "next.next.zipCode"),
    (Form, "lines"),
    (Line, ""),
]


@pytest.mark.parametrize(("form", "field"), FIELDS)
def test_a_field_that_the_form_has_is_named(form: type[BaseModel], field: str) -> None:
    """By its name or its path, in the provider's spelling."""
    found = Rejected((Fault(Code.INVALID, field, "is wrong", "Wrong"),))
    assert writable(found, form) == found


@pytest.mark.parametrize("form", [SkyPostalRegistration, Open2bRegistration, Line, Form])
@pytest.mark.parametrize(
    "field",
    [
        *("customer_email=ann@example.com", "Ann Adler", "12345678", "email ann@example.com"),
        *("customer.Adler", "lines.12345678", "0", ".", "[]", "\n", "x" * 2000),
    ],
)
def test_what_else_a_provider_calls_a_field_is_part_of_its_message(
    form: type[BaseModel], field: str
) -> None:
    """It may quote the customer, and people who may not see messages see fields."""
    outcome = writable(Rejected((Fault(Code.INVALID, field, "is wrong", "Wrong"),)), form)
    assert isinstance(outcome, Rejected)
    [fault] = outcome.errors
    text = f"{field}: is wrong"[:MOST_TEXT]
    assert fault == Fault(Code.INVALID, "", text, "Wrong")


@given(outcomes)
def test_any_outcome_stays_of_its_kind_whatever_its_fields_are(found: Any) -> None:
    """A field's name decides nothing."""
    assert type(writable(found, SkyPostalRegistration)) is type(writable(found))
