"""What is common to the answers of all providers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from regworker.domain.outcome import Absent, Outcome, Refused, Rejected, Retryable, Unknown
from worker.providers.base import (
    Account,
    Answer,
    Lost,
    NotSent,
    Request,
    SecretText,
    read_json,
    read_refusal,
    read_status,
    unanswered,
    unasked,
)


class Keyed(Account):
    """An account with a key."""

    key: SecretText


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """Make an answer."""
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@given(st.integers(200, 299))
def test_a_2xx_says_nothing_yet(status: int) -> None:
    """Both providers report errors with status 200, so the body decides."""
    assert read_status(answer(status)) is None


@given(st.integers(500, 599))
def test_a_5xx_may_have_had_an_effect(status: int) -> None:
    """A server may fail after it has registered the customer."""
    assert read_status(answer(status)) == Unknown(f"HTTP {status}")


def test_retry_after_of_a_5xx_lengthens_the_wait() -> None:
    """A provider under maintenance is not asked sooner than it says."""
    found = read_status(answer(503, retry_after="120"))
    assert isinstance(found, Unknown)
    assert found.retry_after == 120


def test_429_had_no_effect_and_says_how_long_to_wait() -> None:
    """The job waits that long."""
    found = read_status(answer(429, retry_after="7"))
    assert isinstance(found, Retryable)
    assert found.retry_after == 7


def test_429_without_retry_after_waits_by_our_own_schedule() -> None:
    """Neither provider documents a Retry-After."""
    found = read_status(answer(429))
    assert isinstance(found, Retryable)
    assert found.retry_after is None


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 403, 404, 405])
def test_a_refused_call_is_the_accounts_fault(status: int) -> None:
    """Wrong credentials or a wrong base_url must not fail job by job. But something on the way may
    have refused, after the provider had carried the request out."""
    found = read_status(answer(status))
    assert isinstance(found, Refused)
    assert found.unproved


@pytest.mark.parametrize("status", [300, 303, 304, 305, 306, 399])
def test_no_other_3xx_proves_anything(status: int) -> None:
    """After 303, for example, the customer exists, and is described elsewhere."""
    assert read_status(answer(status)) == Unknown(f"HTTP {status}")


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_only_the_providers_own_words_reject_a_customer(status: int) -> None:
    """Anything on the way may answer so, after the request was carried out."""
    own = answer(status, b'{"error": "no"}')
    assert isinstance(read_refusal(own), Rejected)
    assert isinstance(read_refusal(answer(status, b"no"), "no"), Rejected)
    for page in (answer(status, b"<html>"), answer(status), answer(status, b'"no"')):
        found = read_refusal(page)
        assert found == read_status(page)
        assert isinstance(found, Unknown) or (isinstance(found, Refused) and found.unproved)


@given(st.integers(100, 999).filter(lambda status: status not in {400, 404, 409, 422}))
def test_no_other_status_rejects_a_customer(status: int) -> None:
    """Whatever words come with it: after a 5xx, for example, the customer may exist."""
    own = answer(status, b'{"error": "no"}')
    assert read_refusal(own) == read_refusal(own, "no") == read_status(own)


@given(st.integers(100, 999))
def test_no_status_but_2xx_passes(status: int) -> None:
    """Every status has a meaning, also one that was never seen."""
    assert (read_status(answer(status)) is None) == (200 <= status < 300)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_is_read(value: object) -> None:
    """A JSON body is parsed."""
    assert read_json(answer(body=json.dumps(value).encode())) == value


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html><body>Error</body></html>", id="HTML"),
        pytest.param(b'{"status": "o', id="cut off"),
        pytest.param(b'"\xff\xfe\xfa"', id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="nested without end"),
        pytest.param(b"9" * 10_000, id="a number without end"),
    ],
)
def test_a_body_that_is_no_json_is_none(body: bytes) -> None:
    """The job becomes unknown; reading raises no error."""
    assert read_json(answer(body=body)) is None


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reading(body: bytes) -> None:
    """Any bytes can be read."""
    read_json(answer(body=body))


def test_what_was_not_sent_can_be_tried_again() -> None:
    """A request that was not sent had no effect."""
    assert unanswered(NotSent("connection refused")) == Retryable("connection refused")


def test_what_this_worker_did_not_send_spends_no_attempt() -> None:
    """A worker that lost its lease says nothing about the provider."""
    assert not unanswered(NotSent("lease lost", ours=True)).spends  # type: ignore[union-attr]


def test_a_lost_answer_is_unknown() -> None:
    """The request may have been carried out."""
    assert unanswered(Lost("connection reset")) == Unknown("connection reset")


def test_a_question_that_was_not_answered_proves_nothing() -> None:
    """The job waits, and is as unknown as before."""
    assert unasked(Retryable("asked to wait", 7)) == Unknown("asked to wait", 7)


@pytest.mark.parametrize(
    "outcome",
    [
        *(Unknown("HTTP 500"), Refused("HTTP 403"), Absent("nobody")),
        Retryable("lease lost", spends=False),
    ],
)
def test_other_outcomes_of_a_question_stay(outcome: Outcome) -> None:
    """Refused credentials are the account's fault, in any call; a lost lease is the worker's."""
    assert unasked(outcome) is outcome


@pytest.mark.parametrize("base", ["https://shop.example", "https://shop.example/"])
def test_urls_are_under_the_base(base: str) -> None:
    """A slash at the end of the setting makes no difference."""
    assert Account(base_url=base).at("api/v10/x") == "https://shop.example/api/v10/x"


@pytest.mark.parametrize("base", ["", "shop.example", "ftp://a", "https://", "https://a?b=c"])
def test_a_base_url_that_is_none_is_refused(base: str) -> None:
    """A wrong setting is found when the worker starts."""
    with pytest.raises(ValidationError, match="base_url"):
        Account(base_url=base)


def test_a_key_of_digits_may_stand_unquoted() -> None:
    """A settings file reads digits as a number; the key is the text again."""
    account = Keyed(base_url="https://a", key=1234)
    assert account.key.get_secret_value() == "1234"


@pytest.mark.parametrize("key", [1e5, True, None, ""])
def test_a_key_that_is_no_text_is_refused(key: object) -> None:
    """The original text of such a value cannot be known."""
    with pytest.raises(ValidationError, match="key"):
        Keyed(base_url="https://a", key=key)


def test_no_secret_is_in_a_repr() -> None:
    """Logs and error reports contain reprs."""
    secret = "hunter2"
    shown = [
        repr(Request("https://a", {"password": secret}, {"x-secret-key": secret})),
        repr(Answer(200, {"x-customer-key": secret}, secret.encode())),
        repr(Keyed(base_url="https://a", key=secret)),
    ]
    assert secret not in " ".join(shown)
