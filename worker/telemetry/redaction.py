"""Removes secrets from output: log lines, breadcrumbs, events, spans.

It is the second line of defence. The first is that no secret is passed on: no arguments, no bodies,
no local variables, no exceptions' texts that may quote their input.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from regworker import frames
from regworker.domain.errors import RegistrationWorkerError

SECRET = "[secret]"  # noqa: S105 -- replaces a secret

#: Deeper than any intended output; deeper structures are cut off.
DEEPEST = 12

#: Longer texts are cut: no line is a document.
LONGEST = 4000

#: Parts of field names whose values are always redacted, at any depth and of any type.
_WORDS = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "cookie",
    "signature",
    "identity_number",
    "identitynumber",
    "tax_number",
    "taxnumber",
    "personalcode",
    "personal_code",
    "verificationcode",
    "verification_code",
    "companycode",
    "invoicerecipient",
    "birth",
    "email",
    "phone",
)

#: Names that are secret only as a whole word: `key` must not hide `monkey`.
_WHOLE = re.compile(r"(?:^|[^a-z])(?:keys?|jwe|dsn|pwd|sealed|payload)(?:$|[^a-z])")

#: The producer's own name for a job: not secret, although it is called a key.
_PUBLIC = frozenset({"idempotency_key", "idempotency-key", "public_key"})

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

#: Secrets that are recognized by their form, anywhere.
_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A JWE or JWT in compact form begins with `{"` in base64.
    (re.compile(r"eyJ[\w-]{6,}+(?:\.[\w-]*){2,4}"), "[sealed]"),
    (re.compile(r"(whsec|rwt)_[\w+/=-]+"), SECRET),
    # An entry of the keyring: `kid:` and 32 bytes in base64url.
    (re.compile(r"(?<![\w.-])([\w.-]{1,64}):[\w-]{43}=?(?![\w=-])"), rf"\1:{SECRET}"),
    (re.compile(r"(://)[^\s/@]+@"), r"\1***@"),
)

#: A name in a text, and what separates it from its value: JSON (also JSON in JSON), Python, a
#: query, a header, and a pair in a list (`('authorization', 'Basic ...')`).
_NAME = re.compile(
    r"""
    (?<![\w-]) [\d_-]*+ (?P<name>[A-Za-z][\w-]*+)
    (?: \\*["']? \s* [:=] [=>]? \s* | \\*["'] \s* , \s* (?= [bBrRuU]{0,2} \\*["'] ) )
    """,
    re.VERBOSE,
)

#: A value in quotes. The second one may be cut off; one before a letter is a part of the value.
_QUOTED = re.compile(
    r"""[bBrRuU]{0,2} (?P<open>\\*["']) .*? (?P<close> (?<!\\)(?P=open)(?![\w"']) | \Z )""",
    re.VERBOSE | re.DOTALL,
)

#: A value without quotes, right after `=` as in a query. Any other value may contain spaces (a
#: header, a list), so it ends with its line.
_WORD = re.compile(r"(?![\[({])[^\s&]+")

#: Headers, whose values contain spaces and `=`.
_HEADERS = ("authorization", "cookie")

#: What we say of a setting (`REGWORKER_SEALING_KEYS: is required`): a sentence, and not its value.
_OF_A_SETTING = re.compile(
    r"REGWORKER_[A-Z0-9_]+: (?=(?i:input|value|is|are|must|may|can|cannot|has|have|holds?|no|not"
    r"|names?|needs?|goes|gives?|set|does|do|belongs|there|an?|the|this|without|more|another|only)"
    r" [a-z])"
)

#: What we say of a field (`registration.customer.password: is required`), as `InvalidJob` and
#: `InvalidOutcome` do: its path, and the beginning of a sentence.
_PATH = re.compile(r"(?<![\w.-])(?:registration|outcome|metadata)\.(?:[\w-]+\.)*\Z")
_OF_A_FIELD = re.compile(
    r"(?:must|may|is|are|can|cannot|has|have|holds?|needs?) [a-z]|[A-Z][a-z]+ should [a-z]"
)

#: Longer than any path to a field.
_LONGEST_PATH = 500


#: Every text with a secret contains one of these; most texts contain none.
_SIGNS = (":", "=", "', ", '", ', "eyJ", "whsec_", "rwt_")


@lru_cache(maxsize=1024)
def is_secret(name: object) -> bool:
    """Whether a field of that name may hold a secret, or personal data."""
    if not isinstance(name, str):
        return False
    lower = name.lower()
    if lower in _PUBLIC:
        return False
    if any(word in lower for word in _WORDS):
        return True
    return _WHOLE.search(_CAMEL.sub("_", name).lower()) is not None


def scrub(value: Any, depth: int = 0) -> Any:
    """A copy without secrets: by field names, and by their form in texts."""
    if depth > DEEPEST:
        return "[cut off]"
    # Most values are texts or numbers, so these are checked first.
    if isinstance(value, str):
        return scrub_text(value, depth)
    if isinstance(value, int | float):
        return value
    match value:
        case dict():
            return {
                name: SECRET if is_secret(name) and _holds(item) else scrub(item, depth + 1)
                for name, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [scrub(item, depth + 1) for item in value]
        case bytes() | bytearray():
            return "[bytes]"
        case BaseException():
            return name_of(value)
        case _:
            return value


def scrub_text(text: str, depth: int = 0) -> str:
    """A text without anything that looks like a secret; JSON inside is redacted by field names."""
    if text[:1] in {"{", "["}:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return json.dumps(scrub(found, depth + 1))[:LONGEST]
    # A part of a secret cannot be recognized: so more is searched than is kept.
    clean = text[: 2 * LONGEST]
    if any(sign in clean for sign in _SIGNS):
        for looks, instead in _LOOKS:
            clean = looks.sub(instead, clean)
        clean = "".join(_without(clean))
    return (clean if len(text) <= 2 * LONGEST else clean[:-LONGEST])[:LONGEST]


def _holds(value: Any) -> bool:
    # A flag or None reveals nothing; a number may be a person's tax number.
    return value is not None and not isinstance(value, bool) and value not in ("", [], {})


def _without(text: str) -> Iterator[str]:
    """The text in pieces, without the values of secret names."""
    kept = at = 0
    while found := _NAME.search(text, at):
        at = found.end()
        if not is_secret(found["name"]) or _of_ours(text, found):
            continue
        yield text[kept:at]
        in_query = found[0].endswith("=") and not found["name"].lower().endswith(_HEADERS)
        if quoted := _QUOTED.match(text, at):
            yield f"{quoted['open']}{SECRET}{quoted['close']}"
            at = quoted.end()
        elif in_query and (word := _WORD.match(text, at)):
            yield SECRET
            at = word.end()
        elif line := text[at:].partition("\n")[0]:
            yield SECRET
            at += len(line)
        kept = at
    yield text[kept:]


def _of_ours(text: str, found: re.Match[str]) -> bool:
    """Whether a name is followed by a sentence of ours about it, and not by its value."""
    if _OF_A_SETTING.match(text, found.start()):
        return True
    if not _OF_A_FIELD.match(text, found.end()):
        return False
    start = found.start("name")
    return _PATH.search(text, max(0, start - _LONGEST_PATH), start) is not None


#: Packages whose exceptions mention servers and connections, not sent data.
_SPEAK = frozenset({"redis", "kombu", "amqp", "celery", "billiard", "socket", "ssl"})

#: Texts in which redis-py and the server nevertheless repeat a command with its arguments.
_REPEATS = re.compile(
    r"Command # \d+ \(.*\) of pipeline caused error: |,? with args beginning.*", re.DOTALL
)


def text_of(error: BaseException) -> str:
    """The text of an exception as far as it may be shown; empty if it may quote data.

    The only function that makes such a text, for log lines and for Sentry.

    `KeyError`, `ValueError`, validation errors and HTTP clients' errors repeat their input, which
    here is a registration, an answer with a customer's key, or a URL with a token.
    """
    if not speaks(type(error)):
        return ""
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        # By its number: code that raises one itself may have put anything into its text.
        return os.strerror(error.errno) if isinstance(error.errno, int) else ""
    return " ".join(scrub_text(_REPEATS.sub("", str(error))).split())[:300]


def speaks(kind: type[BaseException]) -> bool:
    """Whether texts of this kind of exception may be shown."""
    module = kind.__module__
    if module == "builtins":
        return issubclass(kind, OSError)
    # All of our own, wherever defined: their texts name fields and settings, and contain no secret.
    return issubclass(kind, RegistrationWorkerError) or module.partition(".")[0] in _SPEAK


def name_of(error: BaseException) -> str:
    """An exception's type, and its text if that may be shown."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """The places of an exception, without variables' values, and without texts that may contain
    any."""
    return frames.traceback_of(error, name_of)
