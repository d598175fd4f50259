"""A provider's text shows no secret, however the provider spells it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.providers.conformance import SPELLINGS
from worker.providers.quoting import MAX_WORDS, QUOTES_A_SECRET, quotes, shown

PASSWORD = "Tr0ub'4d/r&\"é<x> y"


@given(st.text(), st.text(min_size=1).filter(str.strip), st.text())
def test_no_secret_is_shown(before: str, secret: str, after: str) -> None:
    """If a provider quotes the password, our events don't."""
    marked = shown(f"{before}{secret}{after}", [secret])
    assert marked == QUOTES_A_SECRET or secret not in marked.replace("***", "")


@given(
    st.sampled_from(sorted(SPELLINGS)),
    st.sampled_from(sorted(SPELLINGS)),
    st.text("abcdeé123'\"&<>/\\%;ßıÅпя ", min_size=6, max_size=16).filter(
        lambda text: sum(one.isascii() and one.isalnum() for one in text) > 5
    ),
)
def test_no_secret_is_shown_in_any_spelling(one: str, other: str, secret: str) -> None:
    """Also spelt in two ways, one inside the other."""
    words = f"Value '{SPELLINGS[other](SPELLINGS[one](secret))}' is weak"
    assert secret.lower() not in shown(words, [secret]).lower()
    assert not quotes(shown(words, [secret]), secret)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("secret", [PASSWORD, "cnry'pass", "12.345.678-9", "4711", "'a\"/"])
def test_each_spelling_of_a_secret_is_found(spelling: str, secret: str) -> None:
    """Of a password, of a number with dots, of a PIN and of a password without letters."""
    spelt = SPELLINGS[spelling](secret)
    if secret == "'a\"/" and spelling in {"SQL", "a shell", "without punctuation"}:
        return  # too few letters to say that it is the same
    words = shown(f"Value '{spelt}' is weak", [None, "", "other", secret])
    assert words in {"Value '***' is weak", QUOTES_A_SECRET}


def test_a_secret_that_is_quoted_as_it_is_leaves_the_rest() -> None:
    """Support needs the provider's reason; so in upper case, in HTML and in JSON."""
    words = "PASS&1 pass&amp;1 / tab\\there / tab here"
    assert shown(words, ["pass&1", "tab\there"]) == "*** *** / *** / ***"


def test_a_secret_that_begins_like_another_is_hidden_whole() -> None:
    """No part of the longer secret is shown."""
    assert shown("abcdef", ["abc", "abcdef"]) == "***"


@pytest.mark.parametrize("secrets", [["ab12'cd", "ab"], ["ab", "ab12'cd"]])
def test_a_short_secret_does_not_hide_a_longer_one(secrets: list[str]) -> None:
    """The shorter one is a part of it, and would be cut out of it first."""
    assert shown("Bad value ab12&#39;cd", secrets) == QUOTES_A_SECRET


@pytest.mark.parametrize("secret", ["7", "a1", "x-9", "!?"])
def test_a_short_secret_does_not_hide_every_text(secret: str) -> None:
    """Up to three letters and digits occur in most sentences: only the secret itself is removed."""
    words = "City 1a 9x is required, see 17 rules"
    assert shown(words, [secret]) == words.replace(secret, "***")


def test_a_secret_at_the_end_of_what_is_shown_is_not_shown_in_part() -> None:
    """Whatever else is quoted before it."""
    for before in range(MAX_WORDS - 40, MAX_WORDS + 10):
        for spelt in SPELLINGS.values():
            found = shown("x" * before + spelt(PASSWORD) + "x" * MAX_WORDS, [PASSWORD])
            assert found in {QUOTES_A_SECRET, "x" * MAX_WORDS}
    assert shown(f"{PASSWORD} " * 100, [PASSWORD]) == QUOTES_A_SECRET


def test_missing_secrets_hide_nothing() -> None:
    """Optional fields that are missing are skipped."""
    assert shown("City is required", [None, ""]) == "City is required"


def test_a_providers_words_are_one_short_line() -> None:
    """A page or a control sequence in an error's text does not spoil a log line."""
    words = shown("a\n\x1b[31mb\x00" + "c" * 10_000, [])
    assert words.isprintable()
    assert words.startswith("a [31mb c")
    assert len(words) == MAX_WORDS


@pytest.mark.parametrize("odd", ["a\u0301\u0316" * 20_000, "\u0301" * 60_000, "é" * 60_000])
def test_no_secret_keeps_a_worker_busy(odd: str) -> None:
    """Normalizing takes time by the square of the marks on a letter: without a limit, this takes
    minutes."""
    for _ in range(20):
        assert shown(f"Value {odd} is weak", [odd]) == QUOTES_A_SECRET
        assert shown("The e-mail is known", [odd]) == "The e-mail is known"


def test_a_foreign_secret_is_not_known_by_its_year() -> None:
    """Its letters are what identifies it."""
    assert shown("valid from 2024 on", ["пароль2024"]) == "valid from 2024 on"
    assert "пароль" not in shown("Пароль2024 is weak", ["пароль2024"])
