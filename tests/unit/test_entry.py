"""What comes in by an asynchronous door is read as far as it can be, and never fails otherwise."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.entry import MOST_BYTES, Origin, Unreadable, read
from worker.job import MAX_JOB_BYTES, Job

ORIGIN = Origin("task", "one")
ID = "01b0aaaa-aaaa-8aaa-8aaa-aaaaaaaaaaaa"

#: Anything that JSON can say, and texts that it can spell and nobody can write.
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
    """What is said again of a job, beyond its key."""
    found = read("register", {"idempotency_key": "k", **given}, ORIGIN).echo.model_dump()
    return {name: value for name, value in found.items() if name in given}


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from(["register", "cancel"]))
def test_whatever_it_holds_it_is_answered_or_set_aside(content: Any, request: Any) -> None:
    """And what is said again of it can be written, and is no larger than a job."""
    try:
        entry = read(request, content, ORIGIN)
    except Unreadable:
        return
    assert len(entry.echo.model_dump_json()) < 2 * MAX_JOB_BYTES
    assert entry.echo.idempotency_key or entry.echo.job_id


@given(st.binary() | JSON.map(json.dumps).map(str.encode))
def test_whatever_text_it_is_it_is_answered_or_set_aside(content: bytes) -> None:
    """No text makes a reader fail otherwise."""
    with pytest.raises(Unreadable):
        read("register", content, ORIGIN)


def test_each_field_is_said_again_if_it_can_be() -> None:
    """One that is wrong keeps no other from being said."""
    good = {"provider": "open2b", "account": "shop", "metadata": {"a": 1}, "reply_to": ("crm",)}
    assert echo(**good) == good
    for name, nothing in {
        "provider": None,
        "account": None,
        "metadata": {},
        "reply_to": (),
    }.items():
        for wrong in (5, "WITH: signs", ["A b"], {"a": "\ud800"}, {"a": "x" * MAX_JOB_BYTES}):
            if name == "metadata" and wrong == {}:
                continue
            assert echo(**{**good, name: wrong}) == {**good, name: nothing}


def test_the_job_that_is_meant_follows_from_what_can_be_read() -> None:
    """As it does for the job itself."""
    given_ = {"provider": "open2b", "idempotency_key": "k"}
    job = Job.model_validate({**given_, "registration": {}})
    assert read("register", given_, ORIGIN).echo.target == job.id
    assert read("cancel", json.dumps(given_), ORIGIN).echo.target == job.id
    assert read("register", {**given_, "account": 5}, ORIGIN).echo.target is None
    assert read("register", {**given_, "job_id": ID}, ORIGIN).echo.target == job.id


@pytest.mark.parametrize("form", [ID, ID.encode(), f'"{ID}"', {"job_id": ID}])
def test_a_job_to_cancel_may_be_named_by_its_id(form: Any) -> None:
    """Bare, as a JSON text, or as a field."""
    assert read("cancel", form, ORIGIN).echo.target == ID


def test_what_is_larger_than_any_job_is_not_looked_into() -> None:
    """However it is written: escaped, a job of the largest size still fits."""
    longest = {"idempotency_key": "k", "metadata": {"a": "\x01" * (MAX_JOB_BYTES - 100)}}
    assert read("register", json.dumps(longest), ORIGIN).echo.idempotency_key == "k"
    with pytest.raises(Unreadable, match="larger than"):
        read("register", '{"idempotency_key": "k"}'.ljust(MOST_BYTES + 1), ORIGIN)


def test_what_is_nested_too_deep_is_set_aside() -> None:
    """As an object and as a text."""
    deep: dict[str, Any] = {"idempotency_key": "k"}
    for _ in range(100_000):
        deep = {"idempotency_key": "k", "a": deep}
    with pytest.raises(Unreadable):
        read("register", deep, ORIGIN)
    with pytest.raises(Unreadable):
        read("register", '{"idempotency_key": "k", "a": ' * 100_000, ORIGIN)


def test_the_order_of_fields_is_no_difference() -> None:
    """One and the same request, whichever client wrote it."""
    one = read("register", {"idempotency_key": "k", "provider": "p"}, ORIGIN)
    other = read("register", {"provider": "p", "idempotency_key": "k"}, ORIGIN)
    assert one.content == other.content
