"""A provider's text, made safe for events and logs: providers quote what they received."""

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from unicodedata import combining, normalize
from urllib.parse import unquote_to_bytes

#: A longer text of a provider is no sentence, but a page or a stack trace.
MAX_WORDS = 500

#: Replaces a text that quotes a secret in a spelling that cannot be cut out.
QUOTES_A_SECRET = "(not shown: the provider's text quotes a secret of this job)"  # noqa: S105

#: From so many letters and digits on, they alone identify a secret, whatever is between them: a
#: PIN has four. Fewer occur in most sentences, so of such a secret the punctuation must match, too.
_SHORTEST = 4

#: The longest usual spelling of a character: four bytes of UTF-8, percent-encoded.
_LONGEST_SPELLING = 12

#: Of a longer secret, only the beginning is compared, and nothing is cut out: both take time.
_MOST = 1000

#: Marks on one letter: normalizing takes time by the square of their number.
_MOST_MARKS = 8

#: Encodings inside encodings that are undone, such as JSON in a page in a URL.
_ROUNDS = 4

_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")

#: A character's number, as in JSON, JavaScript, Python and C, or the character itself.
_BACKSLASH = re.compile(
    r"(?:[\\%]u|\\x|\\U000|\\u\{)(?P<hex>(?<=x)[0-9A-Fa-f]{2}|(?<=u)[0-9A-Fa-f]{4}"
    r"|(?<=000)[0-9A-Fa-f]{5}|(?<=\{)[0-9A-Fa-f]{1,5}\})"
    r"|\\(?P<octal>[0-3][0-7]{2})|\\(?P<space>[bfnrtv])|\\(?P<itself>.)"
)


def shown(words: str, secrets: Iterable[object]) -> str:
    """A provider's text, made safe for events and logs: one line, limited, without secrets.

    A secret that is quoted as it is, in any case of letters, or as in HTML or JSON, becomes `***`.
    In any other spelling (escaped differently, without its punctuation, with other accents or in
    another charset) it removes the whole text. None and empty secrets are skipped.
    """
    every = sorted({str(one) for one in secrets if one is not None}, key=len, reverse=True)
    longest = min(len(every[0]), _MOST) if every else 0
    line = _one_line(words)
    # Enough for a secret that begins within what is shown.
    window = line[: MAX_WORDS + _LONGEST_SPELLING * longest]
    # The longest first: a secret that starts with another one would leave its end.
    for secret in every:
        # What is cut off must not move into what is shown: such a text is removed, too.
        if window == line and len(secret) <= _MOST and (spelt := _usual(secret)):
            usual = "|".join(map(re.escape, spelt))
            line = window = re.sub(usual, "***", line, flags=re.IGNORECASE)
        if quotes(window, secret[:_MOST]):
            return QUOTES_A_SECRET
    return window[:MAX_WORDS]


def _one_line(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _usual(secret: str) -> set[str]:
    return {_one_line(secret), html.escape(secret), json.dumps(secret)[1:-1]} - {""}


class _Bare(NamedTuple):
    """A text without what differs between two spellings of it, in three ways."""

    close: str
    """In one case, without spaces."""
    letters: str
    """Letters and digits only, without accents."""
    ascii: str
    """Without what another charset would change."""


def _bare(text: str) -> _Bare:
    composed = normalize("NFKC", _with_few_marks(text)).upper().casefold()
    plain = normalize("NFKD", composed)
    return _Bare(
        "".join(sign for sign in composed if sign.isprintable() and not sign.isspace()),
        "".join(sign for sign in plain if sign.isalnum()),
        "".join(sign for sign in composed if sign.isascii() and sign.isalnum()),
    )


def _with_few_marks(text: str) -> str:
    kept, marks = [], 0
    for sign in text:
        marks = marks + 1 if combining(sign) else 0
        if marks <= _MOST_MARKS:
            kept.append(sign)
    return "".join(kept)


def quotes(text: str, secret: str) -> bool:
    """Whether a text contains a secret, however it is spelt."""
    wanted = _bare(secret)
    # What is left in ASCII of a word in another script, a year perhaps, identifies nothing.
    foreign = 2 * len(wanted.ascii) <= len(wanted.letters)
    least = (1, _SHORTEST, len(secret) + 1 if foreign else _SHORTEST)
    return any(
        len(one) >= length and one in found
        for stage in _undone(text)
        for one, found, length in zip(wanted, _bare(stage), least, strict=True)
    )


def _undone(text: str) -> Iterator[str]:
    """The text, and what is left of it when its escapes are undone one after the other."""
    yield text
    for _ in range(_ROUNDS):
        before = text
        for undo in (html.unescape, _unpercented, _unescaped):
            after = undo(text)
            if after != text:
                yield (text := after)
        if text == before:
            return


def _unpercented(text: str) -> str:
    def decoded(found: re.Match[str]) -> str:
        raw = unquote_to_bytes(found[0])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    return _PERCENT.sub(decoded, text)


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        if number := found["hex"]:
            return chr(int(number.rstrip("}"), 16))
        if number := found["octal"]:
            return chr(int(number, 8))
        return " " if found["space"] else found["itself"]

    return _BACKSLASH.sub(character, text)
