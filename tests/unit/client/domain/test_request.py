"""An asynchronous request is parsed as far as possible; the only error is `Unreadable`."""

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.domain.job import MAX_JOB_BYTES, Job
from regworker.domain.request import MOST_BYTES, Origin, Unreadable, read

ORIGIN = Origin("task", "one")
ID = "01b0aaaa-aaaa-8aaa-8aaa-aaaaaaaaaaaa"

#: Any JSON value, and texts that JSON can spell but UTF-8 cannot.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = [
    "provider",
    "account",
    "idempotency_key",
    "reply_to",
    "metadata",
    "job_id",
    "registration",
]


def echo(**given: Any) -> dict[str, Any]:
    """The fields of a job that its answer echoes, without the key."""
    found = read("register", {"idempotency_key": "k", **given}, ORIGIN).echo.model_dump()
    return {name: value for name, value in found.items() if name in given}


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from(["register", "cancel"]))
def test_whatever_it_holds_it_is_answered_or_set_aside(content: Any, request: Any) -> None:
    """Any content gives an echo that can be written and is bounded in size, or `Unreadable`."""
    try:
        entry = read(request, content, ORIGIN)
    except Unreadable:
        return
    assert len(entry.echo.model_dump_json()) < 2 * MAX_JOB_BYTES
    assert entry.echo.idempotency_key or entry.echo.job_id


@given(st.binary() | JSON.map(json.dumps).map(str.encode))
def test_whatever_text_it_is_it_is_answered_or_set_aside(content: bytes) -> None:
    """Any text that is no request raises `Unreadable`, and no other error."""
    with pytest.raises(Unreadable):
        read("register", content, ORIGIN)


def test_each_field_is_said_again_if_it_can_be() -> None:
    """A wrong field does not keep the other fields from being echoed."""
    good = {"provider": "open2b", "account": "shop", "metadata": {"a": 1}, "reply_to": ("crm",)}
    assert echo(**good) == good
    for name, nothing in {
        "provider": None,
        "account": None,
        "metadata": {},
        "reply_to": (),
    }.items():
        for wrong in (5, "WITH: signs", ["A b"], {"a": 10**400}, {"a": "x" * MAX_JOB_BYTES}):
            if name == "metadata" and wrong == {}:
                continue
            assert echo(**{**good, name: wrong}) == {**good, name: nothing}


def test_the_job_that_is_meant_follows_from_what_can_be_read() -> None:
    """The id follows from provider, account and key, as for the job itself."""
    given_ = {"provider": "open2b", "idempotency_key": "k"}
    job = Job.model_validate({**given_, "registration": {}})
    assert read("register", given_, ORIGIN).echo.target == job.id
    assert read("cancel", json.dumps(given_), ORIGIN).echo.target == job.id
    assert read("register", {**given_, "account": 5}, ORIGIN).echo.target is None
    assert read("register", {**given_, "job_id": ID}, ORIGIN).echo.target == job.id


@pytest.mark.parametrize("form", [ID, ID.encode(), f'"{ID}"', {"job_id": ID}])
def test_a_job_to_cancel_may_be_named_by_its_id(form: Any) -> None:
    """The id may be bare, a JSON text or a field."""
    assert read("cancel", form, ORIGIN).echo.target == ID


def test_what_is_larger_than_any_job_is_not_looked_into() -> None:
    """A larger text is not parsed; the largest job still fits when every character is escaped."""
    longest = {"idempotency_key": "k", "metadata": {"a": "\x01" * (MAX_JOB_BYTES - 100)}}
    assert read("register", json.dumps(longest), ORIGIN).echo.idempotency_key == "k"
    with pytest.raises(Unreadable, match="larger than"):
        read("register", '{"idempotency_key": "k"}'.ljust(MOST_BYTES + 1), ORIGIN)


def test_what_is_nested_too_deep_is_set_aside() -> None:
    """Nesting is limited for objects and for texts."""
    deep: dict[str, Any] = {"idempotency_key": "k"}
    for _ in range(100_000):
        deep = {"idempotency_key": "k", "a": deep}
    with pytest.raises(Unreadable):
        read("register", deep, ORIGIN)
    with pytest.raises(Unreadable):
        read("register", '{"idempotency_key": "k", "a": ' * 100_000, ORIGIN)


def test_the_order_of_fields_is_no_difference() -> None:
    """Clients that order the fields differently send the same request."""
    one = read("register", {"idempotency_key": "k", "provider": "p"}, ORIGIN)
    other = read("register", {"provider": "p", "idempotency_key": "k"}, ORIGIN)
    assert one.content == other.content


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("order 17", "order 17"),
        ("ключ-1", "ключ-1"),
        ("e\u0301", "é"),
        ("a\nb", "a\ufffdb"),
        ("k" * 300, "k" * 255),
        (17, "17"),
    ],
)
def test_a_key_that_can_be_read_is_said_again(key: Any, shown: str) -> None:
    """A key that no job can have is echoed too, so that the sender gets an answer; it has no job
    id."""
    for given_ in ({"idempotency_key": key}, json.dumps({"idempotency_key": key})):
        found = read("register", given_, ORIGIN).echo
        assert found.idempotency_key == shown
    found = read("register", {"provider": "open2b", "idempotency_key": key}, ORIGIN).echo
    valid = isinstance(key, str) and key in {"order 17", "ключ-1", "e\u0301"}
    assert (found.target is not None) == valid


def test_marked_values_are_read_as_text() -> None:
    """Celery's clients can mark dates and others; each is the text that JSON would have. A number
    that is as long as a computer's memory is not written out."""
    marked = {
        "date": date(1980, 8, 19),
        "moment": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "time": time(12, 30),
        "id": UUID(ID),
        "text": b"\xc3\xa9",
        "bytes": b"\xff",
        "price": Decimal("1.50"),
        "bomb": Decimal("1E+999999999"),
    }
    job = {"idempotency_key": "k", "registration": marked, "metadata": {"bomb": marked["bomb"]}}
    found = read("register", job, ORIGIN)
    assert found.given["registration"] == {
        "date": "1980-08-19",
        "moment": "2026-03-01T12:00:00+00:00",
        "time": "12:30:00",
        "id": ID,
        "text": "é",
        "bytes": "/w==",
        "price": "1.50",
        "bomb": "1E+999999999",
    }
    assert found.echo.metadata == {"bomb": "1E+999999999"}
    assert read("register", found.content, ORIGIN) == found


@pytest.mark.parametrize("key", ["", None, True, 1.5, [], {}, 10**400])
def test_what_is_no_key_is_none(key: Any) -> None:
    """Without a usable key nobody can be answered, so the request goes to the quarantine."""
    with pytest.raises(Unreadable):
        read("register", {"idempotency_key": key}, ORIGIN)
