"""Providers' answers are understood correctly, or lead to an unknown outcome; never half
understood."""

import json
import sys
from collections.abc import Callable
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regworker.domain.outcome import Registered, Rejected, Unknown, Unresolvable
from tests.unit.providers import test_open2b, test_skypostal
from worker.providers.base import Answer, read_json, same_email, whole


def spelt(text: str, charset: str = "") -> Answer:
    """Make an answer with this text as its body, in the charset that its header names."""
    named = {"content-type": f"application/json; charset={charset}"} if charset else {}
    return Answer(200, named, text.encode(charset or "utf-8"))


# ── encodings of a body ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "charset",
    ["ISO-8859-1", "iso-8859-15", "windows-1252", "UTF-8", "ISO8859-1", "Latin_1", "cp1252", "L9"],
)
@given(st.text(st.characters(codec="cp1252", min_codepoint=0xA0, max_codepoint=0xFF)))
def test_a_body_is_read_in_the_charset_that_its_header_names(charset: str, text: str) -> None:
    """An `é` in ISO-8859-1 does not break the answer."""
    try:
        answer = spelt(json.dumps({"text": text}, ensure_ascii=False), charset)
    except UnicodeEncodeError:  # a letter that iso-8859-15 does not have
        return
    try:
        answer.body.decode()
    except UnicodeDecodeError:
        assert read_json(answer) == {"text": text}


@pytest.mark.parametrize("named", ["ISO-8859-1", "utf-8", "", "nonsense", '"UTF-8"'])
@given(st.text())
def test_utf8_is_read_as_such_whatever_the_header_says(named: str, text: str) -> None:
    """Many servers name another charset by habit, and send UTF-8."""
    body = json.dumps({"text": text}, ensure_ascii=False)
    header = {"content-type": f"application/json;charset={named}"}
    try:
        answer = Answer(200, header, body.encode())
    except UnicodeEncodeError:
        return
    assert read_json(answer) == {"text": text}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_a_mark_in_front_of_a_body_is_no_part_of_it(encoding: str) -> None:
    """Windows writes a byte order mark before UTF-8."""
    assert read_json(Answer(200, {}, '{"text": "é"}'.encode(encoding))) == {"text": "é"}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {}, b'{"text": "\xe9"}'),
        Answer(200, {"content-type": "application/json; charset=nonsense"}, b'{"a": "\xe9"}'),
        Answer(200, {"content-type": "text/json; charset=unicode_escape"}, b'{"a": "\xe9"}'),
        Answer(200, {"content-type": "text/json; charset=zip"}, b'{"a": "\xe9"}'),
        Answer(200, {}, b'{"a": NaN}'),
        Answer(200, {}, b'{"key": "one", "key": "other"}'),
        Answer(200, {}, b'[{"a": [{"key": 1, "b": 2, "key": null}]}]'),
        Answer(200, {}, b'{"a": -Infinity}'),
        Answer(200, {}, b'{"a": "\xed\xa0\x80"}'),
        Answer(200, {}, b"[" * 100_000),
        Answer(200, {}, b"1" * 5000),
    ],
)
def test_what_cannot_be_read_is_none(answer: Answer) -> None:
    """The worker looks a job up if it cannot read the answer."""
    assert read_json(answer) is None


def test_a_refusal_in_latin_1_is_a_refusal() -> None:
    """Its message is shown, and the job is not left unknown."""
    error = {"error_description": "Dirección inválida", "error_location": "", "system_error": False}
    body = json.dumps([{"_verify": False, "error": error}], ensure_ascii=False)
    outcome = test_skypostal.Wire(spelt(body, "iso-8859-1")).register()
    assert isinstance(outcome, Rejected)
    assert outcome.errors[0].message == "Dirección inválida"


# ── numbers ───────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 2**53 - 1))
def test_a_whole_number_may_be_written_with_a_point(number: int) -> None:
    """`1.0` is 1 in JSON, and many languages' libraries write it so."""
    outcome = test_skypostal.Wire(test_skypostal.yes(customer_box_id=float(number))).register()
    assert isinstance(outcome, Registered)
    box_id = outcome.data["customer_box_id"]
    assert (type(box_id), box_id) == (int, number)


DOUBTFUL = {
    "text": "811111",
    "zero": 0,
    "negative": -811111,
    "negative, with a point": -1.0,
    "a fraction": 811111.5,
    "past what a double can count": 1e17,
    "infinity": 1e400,
    "true": True,
    "null": None,
    "a list": [811111],
    "empty text": "",
}


@pytest.mark.parametrize("box_id", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_box_id_that_may_be_no_box_id_is_doubted(box_id: object) -> None:
    """The job becomes unknown and is looked up; the reason says what is wrong."""
    text = json.dumps(json.loads(test_skypostal.yes(customer_box_id=box_id).body))
    answer = Answer(200, {}, text.replace("Infinity", "1e400").encode())
    outcome = test_skypostal.Wire(answer).register()
    assert outcome == Unknown("success, but customer_box_id is not a positive whole number")


@pytest.mark.parametrize("key", [None, "", " ", 5, ["K"]])
def test_a_success_without_a_key_is_doubted(key: object) -> None:
    """A customer without a key is useless."""
    outcome = test_skypostal.Wire(test_skypostal.yes(customer_key=key)).register()
    assert outcome == Unknown("success without customer_key")


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none()))
def test_only_numbers_are_whole_numbers(value: Any) -> None:
    """Any JSON value gives the same number, or none."""
    found = whole(value)
    assert found is None or (found == value and not isinstance(value, bool))


# ── e-mails ───────────────────────────────────────────────────────────────────────────────────

#: How servers change an address that they store.
CHANGES: dict[str, Callable[[str], str]] = {
    "as it was": str,
    "in capitals": str.upper,
    "in small letters": str.lower,
    "folded": str.casefold,
    "padded": lambda text: f"  {text}\t\r\n",
    "padded by a no-break space": lambda text: f"\xa0{text}\u3000",
    "decomposed": lambda text: normalize("NFD", text),
    "composed": lambda text: normalize("NFC", text),
    "capitals, decomposed": lambda text: normalize("NFD", text.upper()),
    "capitals in Turkish": lambda text: text.replace("i", "İ").upper(),
    "small letters in Turkish": lambda text: text.replace("İ", "i").replace("I", "ı").lower(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@given(st.text(min_size=1))
@example("ılgaz@example.com")
@example("İLGAZ@example.com")
@example("straße@example.com")
@example("ﬁn@example.com")
@example("Σίσυφος@example.com")
@example("e\u0301@example.com")
@example("i\u0316@example.com")
@example("\u0130\u0316\u0307i\u0307\u0316@example.com")
def test_an_email_that_comes_back_otherwise_is_the_same(
    change: Callable[[str], str], email: str
) -> None:
    """Providers store addresses in capitals, with spaces, or in another form of Unicode."""
    assert same_email(email, change(email))


def test_every_letter_is_the_same_in_capitals() -> None:
    """This holds for every letter of Unicode."""
    letters = map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)])
    wrong = [
        letter
        for letter in letters
        if letter.upper() != letter.lower()
        and not same_email(f"a{letter}@b", f"A{letter}@B".upper())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "other",
    ["johndoe@email.con", "johndoe @email.com", "johnd0e@email.com", "", "jöhndoe@email.com"],
)
def test_another_email_is_another(other: str) -> None:
    """Addresses that differ by more than their case belong to different customers."""
    assert not same_email("johndoe@email.com", other)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("email", ["johndoe@email.com", "ılgaz.işik@email.com"])
def test_a_customer_found_under_another_spelling_is_found(
    change: Callable[[str], str], email: str
) -> None:
    """At both providers: a login proves it, and a search finds who has the address."""
    registration = test_skypostal.put(("customer_email",), email)
    wire = test_skypostal.Wire(test_skypostal.yes(customer_email=change(email)))
    assert isinstance(wire.find_out(registration), Registered)
    registration = test_open2b.put(("customer", "address", "email"), email)
    refused = test_open2b.error("email", "InvalidCombination")
    store = test_open2b.Wire(refused, test_open2b.found(change(email)))
    assert isinstance(store.find_out(registration, secret_key="k"), Unresolvable)


def test_an_answer_about_another_customer_is_doubted() -> None:
    """A success that names another e-mail address is not the answer to this job."""
    answer = test_skypostal.yes(customer_email="somebody.else@email.com")
    assert isinstance(test_skypostal.Wire(answer).register(), Unknown)
