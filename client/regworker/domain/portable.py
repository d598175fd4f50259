"""JSON that every parser accepts: checked when a value comes in, and before one is written.

Python writes JSON that other parsers refuse: NaN and 1e400, half of a surrogate pair, numbers of a
thousand digits, lists nested a hundred levels deep. Such a value must not reach a job's event,
which could then never be written.
"""

import math
import re

#: Levels of nesting. Parsers stop at 64 (.NET), 100 (Ruby), 200 (ours) and more.
DEEPEST = 32

#: A field name that may be shown: short, and in the style of programmers. Any other name may be
#: anything, even a password.
NAME = re.compile(r"[A-Za-z_](?:[A-Za-z_-]|[0-9](?![0-9]{2})){0,39}")

#: Shown instead.
UNNAMED = "(a name that is not shown)"


def shown_name(name: object) -> str:
    """A field's name, made safe for messages, wherever it comes from."""
    if isinstance(name, int):
        return str(name)
    return name if isinstance(name, str) and NAME.fullmatch(name) else UNNAMED


def plain(text: str) -> str:
    """The text, with control codes (of a terminal, of the direction of writing) and unprintable
    characters escaped."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def flaw(value: object, most: int = 10**7, *, path: str = "") -> str:
    """What prevents a value from being portable JSON, with its place; empty if nothing does.

    `most`: about how many characters are allowed. No value is shown.
    """
    try:
        _Walk(most).into(value, 1)
    except _FlawError as error:
        where = ".".join([*([path] if path else []), *reversed(error.path)])
        return f"{where} {error.what}" if where else error.what
    return ""


class _FlawError(Exception):
    def __init__(self, what: str) -> None:
        self.what = what
        #: The names on the path to it, the innermost first: each level adds its own.
        self.path: list[str] = []


class _Walk:
    def __init__(self, most: int) -> None:
        self._left = most

    def into(self, value: object, depth: int) -> None:
        if isinstance(value, str):
            self._text(value)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _FlawError("is a number that JSON does not allow (NaN or infinite)")
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise _FlawError("is a number of more than 64 bits")
        elif isinstance(value, dict):
            self._deeper(depth)
            for name, item in value.items():
                if not isinstance(name, str):
                    raise _FlawError("has a name that is not text")
                try:
                    self._text(name)
                    self.into(item, depth + 1)
                except _FlawError as error:
                    error.path.append(shown_name(name))
                    raise
        elif isinstance(value, list | tuple):
            self._deeper(depth)
            for number, item in enumerate(value):
                try:
                    self.into(item, depth + 1)
                except _FlawError as error:
                    error.path.append(str(number))
                    raise
        elif value is not None:
            raise _FlawError(f"is not JSON ({type(value).__name__})")
        self._spend(1)

    def _text(self, text: str) -> None:
        self._spend(len(text))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _FlawError("holds half of a surrogate pair, which is not text") from None

    def _deeper(self, depth: int) -> None:
        if depth > DEEPEST:
            raise _FlawError(f"is nested more than {DEEPEST} levels deep")

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _FlawError("is too large")
