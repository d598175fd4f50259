"""What a job may hold, the id that follows from its key, and what makes two jobs the same."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.job import NAME, Job, canonical, job_id

PLAIN: dict[str, Any] = {
    "provider": "skypostal",
    "idempotency_key": "crm-8841",
    "registration": {"customer_password": "canary"},
}
NAMES = st.text("ab9", min_size=1, max_size=4)
KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def job(**more: Any) -> Job:
    """A job."""
    return Job.model_validate({**PLAIN, **more})


def test_a_job_needs_three_fields() -> None:
    """Everything else has a default that is safe."""
    one = job()
    assert (one.account, one.reply_to, one.lane) == ("default", ("results",), "live")
    assert (one.if_exists, one.deadline, one.metadata) == ("reject", None, {})


@pytest.mark.parametrize("field", sorted(PLAIN))
def test_what_is_missing_is_named(field: str) -> None:
    """A job without one of the three is refused by that field's name."""
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({name: value for name, value in PLAIN.items() if name != field})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "more",
    [
        {"color": "red"},
        {"provider": "Sky"},
        {"provider": "sky:postal"},
        {"provider": "sky__postal"},
        {"provider": "skypostal\n"},
        {"account": ""},
        {"account": "a" * 65},
        {"idempotency_key": ""},
        {"idempotency_key": "a b"},
        {"idempotency_key": "a\n"},
        {"idempotency_key": "é"},
        {"idempotency_key": "k" * 256},
        {"lane": "fast"},
        {"if_exists": "ignore"},
        {"reply_to": ["https://example.com"]},
        {"reply_to": ["a"] * 9},
        {"deadline": "2026-12-01T00:00:00"},
        {"deadline": "tomorrow"},
        {"metadata": []},
        {"registration": "canary"},
    ],
    ids=str,
)
def test_what_a_job_may_not_hold_is_refused(more: dict[str, Any]) -> None:
    """Names become parts of ledger keys and an URL is no endpoint; and no value is shown."""
    with pytest.raises(ValidationError) as caught:
        job(**more)
    assert "canary" not in str(caught.value)


def test_a_jobs_text_does_not_show_its_registration() -> None:
    """A job that gets into a log gives no password away."""
    assert "canary" not in repr(job())


@given(provider=NAMES, account=NAMES, key=KEYS)
def test_an_id_is_a_uuid_that_follows_from_the_key(provider: str, account: str, key: str) -> None:
    """The same scope has the same id anywhere; it is a valid UUID of version 8."""
    id_ = job_id(provider, account, key)
    assert id_ == job(provider=provider, account=account, idempotency_key=key).id
    assert uuid.UUID(id_).version == 8
    assert uuid.UUID(id_).variant == uuid.RFC_4122


def test_an_id_never_changes() -> None:
    """Ids are in other people's databases: this one is from the first release."""
    assert job().id == "6c12cb00-c37f-88d5-aecf-20725109134a"


@given(st.tuples(NAMES, NAMES, KEYS), st.tuples(NAMES, NAMES, KEYS))
def test_two_scopes_have_two_ids(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """A key is one customer at one account of one provider."""
    assert (job_id(*one) == job_id(*other)) == (one == other)


def test_content_never_changes() -> None:
    """Fingerprints of it are in ledgers, and repeats are known by them."""
    told = job(metadata={"b": [1.5, None, "ü"], "a": True}, reply_to=["results", "crm"])
    assert told.content(b'{"x":1}') == (
        b'{"id":"6c12cb00-c37f-88d5-aecf-20725109134a","if_exists":"reject",'
        b'"metadata":{"a":true,"b":[1.5,null,"\xc3\xbc"]},"reply_to":["results","crm"]}'
        b'\0{"x":1}'
    )


@given(
    st.dictionaries(st.text(max_size=5), JSON, max_size=4),
    st.lists(st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name) < 65), max_size=3),
    st.sampled_from(["reject", "adopt"]),
)
def test_content_is_canonical_json(
    metadata: dict[str, Any], reply_to: list[str], if_exists: str
) -> None:
    """It is spelt out by hand, for it is made for each of a million jobs."""
    one = job(metadata=metadata, reply_to=reply_to, if_exists=if_exists)
    rest = {"id": one.id, "if_exists": if_exists, "metadata": metadata, "reply_to": reply_to}
    assert one.content(b"r") == canonical(rest) + b"\0r"


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_the_order_of_fields_makes_no_other_content(metadata: dict[str, Any]) -> None:
    """Two producers that write their JSON in another order ask for the same."""
    turned = dict(reversed(metadata.items()))
    assert job(metadata=metadata).content(b"r") == job(metadata=turned).content(b"r")
    assert canonical(metadata) == canonical(turned)


@pytest.mark.parametrize(
    "more",
    [{"metadata": {"a": 1}}, {"if_exists": "adopt"}, {"reply_to": ["crm"]}],
    ids=str,
)
def test_what_a_job_asks_for_is_content(more: dict[str, Any]) -> None:
    """Asking for something else under the same key is a conflict."""
    assert job(**more).content(b"r") != job().content(b"r")
    assert job().content(b"r") != job().content(b"s")


def test_how_urgent_a_job_is_is_no_content() -> None:
    """A producer that repeats a request an hour later asks for the same thing."""
    later = job(lane="bulk", deadline=datetime(2027, 1, 1, tzinfo=UTC))
    assert later.content(b"r") == job().content(b"r")
