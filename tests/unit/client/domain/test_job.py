"""The fields of a job, the id that follows from its key, and when two jobs are the same."""

import uuid
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from regworker.domain.job import NAME, Cancel, Job, canonical, job_id

PLAIN: dict[str, Any] = {
    "provider": "skypostal",
    "idempotency_key": "crm-8841",
    "registration": {"customer_password": "canary"},
}
NAMES = st.text("ab9", min_size=1, max_size=4)
KEYS = st.text(
    st.characters(exclude_categories=["Cc", "Cn", "Cs", "Zl", "Zp"]), min_size=1, max_size=255
).filter(lambda key: len(normalize("NFC", key)) <= 255)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def job(**more: Any) -> Job:
    """A job."""
    return Job.model_validate({**PLAIN, **more})


def test_a_job_needs_three_fields() -> None:
    """All other fields have safe defaults."""
    one = job()
    assert (one.account, one.reply_to, one.lane) == ("default", ("results",), "live")
    assert (one.if_exists, one.deadline, one.metadata) == ("reject", None, {})


@pytest.mark.parametrize("field", sorted(PLAIN))
def test_what_is_missing_is_named(field: str) -> None:
    """A job without one of the three fields is refused, and the message names the field."""
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
        {"idempotency_key": "a\n"},
        {"idempotency_key": "a\x00"},
        {"idempotency_key": "a\x85"},
        {"idempotency_key": "a\u2028"},
        {"idempotency_key": "a\ud800"},
        {"idempotency_key": "a\u0378"},
        {"idempotency_key": 17},
        {"idempotency_key": "k" * 256},
        {"idempotency_key": "\ufb2c" * 100},  # three characters each in NFC
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
    """The message names the field, and shows no value."""
    with pytest.raises(ValidationError) as caught:
        job(**more)
    assert "canary" not in str(caught.value)


def test_a_jobs_text_does_not_show_its_registration() -> None:
    """A job in a log shows no password."""
    assert "canary" not in repr(job())


@pytest.mark.parametrize("key", ["order-\u0378", "\U000e0080", "a\uffff"])
def test_a_character_that_is_not_known_here_makes_no_job(key: str) -> None:
    """Another Python may know it, and put the key into another form: that would be another job."""
    with pytest.raises(
        ValidationError, match=r"a character that Unicode .* does not have"
    ) as caught:
        job(idempotency_key=key)
    with pytest.raises(ValidationError, match="does not have"):
        Cancel(provider="open2b", idempotency_key=key)
    assert [error["loc"] for error in caught.value.errors()] == [("idempotency_key",)]


@given(KEYS)
def test_a_key_is_compared_in_one_form(key: str) -> None:
    """All Unicode spellings of a key are the same job; receipts and events have one form of it."""
    composed, apart = (job(idempotency_key=normalize(form, key)) for form in ("NFC", "NFD"))
    assert composed.id == apart.id == job_id("skypostal", "default", key)
    assert composed.idempotency_key == apart.idempotency_key == normalize("NFC", key)


@given(provider=NAMES, account=NAMES, key=KEYS)
def test_an_id_is_a_uuid_that_follows_from_the_key(provider: str, account: str, key: str) -> None:
    """The same scope has the same id everywhere; it is a valid UUID of version 8."""
    id_ = job_id(provider, account, key)
    assert id_ == job(provider=provider, account=account, idempotency_key=key).id
    assert uuid.UUID(id_).version == 8
    assert uuid.UUID(id_).variant == uuid.RFC_4122


class Provider(str, Enum):  # noqa: UP042 -- as hosts write it
    """A host's own names: on Python 3.11, its members are formatted as `Provider.OPEN2B`."""

    OPEN2B = "open2b"


def test_a_member_of_an_enumeration_is_its_value() -> None:
    """The same job, however its provider is written."""
    assert job_id(Provider.OPEN2B, "default", "k") == job_id("open2b", "default", "k")


def test_an_id_never_changes() -> None:
    """Other systems store ids; this one is from the first release."""
    assert job().id == "6c12cb00-c37f-88d5-aecf-20725109134a"


@given(st.tuples(NAMES, NAMES, KEYS), st.tuples(NAMES, NAMES, KEYS))
def test_two_scopes_have_two_ids(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Provider, account and key each change the id."""
    assert (job_id(*one) == job_id(*other)) == (one == other)


def test_content_never_changes() -> None:
    """Ledgers store fingerprints of the content, and recognise repeats by them."""
    fixed = job(metadata={"b": [1.5, None, "ü"], "a": True}, reply_to=["results", "crm"])
    assert fixed.content(b'{"x":1}') == (
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
    """The JSON is written by hand, because it is made for each of a million jobs."""
    one = job(metadata=metadata, reply_to=reply_to, if_exists=if_exists)
    rest = {"id": one.id, "if_exists": if_exists, "metadata": metadata, "reply_to": reply_to}
    assert one.content(b"r") == canonical(rest) + b"\0r"


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_the_order_of_fields_makes_no_other_content(metadata: dict[str, Any]) -> None:
    """Two producers that order their JSON fields differently send the same job."""
    turned = dict(reversed(metadata.items()))
    assert job(metadata=metadata).content(b"r") == job(metadata=turned).content(b"r")
    assert canonical(metadata) == canonical(turned)


@pytest.mark.parametrize(
    "more",
    [{"metadata": {"a": 1}}, {"if_exists": "adopt"}, {"reply_to": ["crm"]}],
    ids=str,
)
def test_what_a_job_asks_for_is_content(more: dict[str, Any]) -> None:
    """A change under the same key is a conflict."""
    assert job(**more).content(b"r") != job().content(b"r")
    assert job().content(b"r") != job().content(b"s")


def test_how_urgent_a_job_is_is_no_content() -> None:
    """A repeat an hour later, with another lane or deadline, is the same job."""
    later = job(lane="bulk", deadline=datetime(2027, 1, 1, tzinfo=UTC))
    assert later.content(b"r") == job().content(b"r")
