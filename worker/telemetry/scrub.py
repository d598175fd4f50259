"""Taking secrets out of what is told: log lines, breadcrumbs, events, spans.

The second line of defence. The first is that nothing secret is handed over: no arguments, no
bodies, no local variables, no texts of exceptions that may quote what they choked on.
"""

import json
import re
import traceback
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

SECRET = "[secret]"  # noqa: S105 -- what stands in a secret's place

#: Deeper than anything that is told on purpose; a structure that goes on is cut off there.
DEEPEST = 12

#: Longer texts are cut: no line is a document.
LONGEST = 4000

#: Parts of field names whose values never leave, at any depth and of any type.
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

#: Names that are secret as a whole word only: `key` must not hide `monkey`.
_WHOLE = re.compile(r"(?:^|[^a-z])(?:keys?|jwe|dsn|pwd|sealed|payload)(?:$|[^a-z])")

#: The producer's own name for a job, and no secret, although it is a key.
_PUBLIC = frozenset({"idempotency_key", "idempotency-key", "public_key"})

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

#: Secrets that are known by their looks, wherever they stand.
_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A JWE or JWT in compact form begins with `{"` in base64.
    (re.compile(r"eyJ[\w-]{6,}(?:\.[\w-]*){2,4}"), "[sealed]"),
    (re.compile(r"whsec_[\w+/=-]+"), SECRET),
    # An entry of the keyring: `kid:` and 32 bytes in base64url.
    (re.compile(r"(?<![\w.-])([\w.-]{1,64}):[\w-]{43}=?(?![\w=-])"), rf"\1:{SECRET}"),
    (re.compile(r"(://)[^\s/@]+@"), r"\1***@"),
)

#: `name: value` and `name=value` inside a text: JSON (also JSON in JSON), Python, a query.
_NAMED = re.compile(
    r"""
    (?P<name>[A-Za-z][\w-]{1,80}) (?P<rest>\\*["']? \s* [:=] \s*)
    (?: (?P<open>\\*["']) .*? (?<!\\)(?P=open) | [^\s,;&{}\[\]()"']+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def is_secret(name: object) -> bool:
    """Whether a field of that name may hold a secret, or something about a person."""
    return isinstance(name, str) and _is_secret(name)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    lower = name.lower()
    if lower in _PUBLIC:
        return False
    if any(word in lower for word in _WORDS):
        return True
    return _WHOLE.search(_CAMEL.sub("_", name).lower()) is not None


def scrub(value: Any, depth: int = 0) -> Any:
    """A copy without secrets: by the names of fields, and by their looks in texts."""
    if depth > DEEPEST:
        return "[cut off]"
    # Most of what is told is a text or a number, so these are asked for first.
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
        case _:
            return value


def scrub_text(text: str, depth: int = 0) -> str:
    """A text without what looks like a secret; JSON in it is scrubbed by its names."""
    if text[:1] in {"{", "["}:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return json.dumps(scrub(found, depth + 1))[:LONGEST]
    text = text[:LONGEST]
    # One of these is in each text that anything is to be taken out of; most have none.
    if not (":" in text or "=" in text or "eyJ" in text or "whsec_" in text):
        return text
    for looks, instead in _LOOKS:
        text = looks.sub(instead, text)
    return _NAMED.sub(_without, text)


def _holds(value: Any) -> bool:
    # A flag or nothing tells nothing; a number may be somebody's tax number.
    return value is not None and not isinstance(value, bool) and value not in ("", [], {})


def _without(found: re.Match[str]) -> str:
    if not is_secret(found["name"]):
        return found[0]
    quote = found["open"] or ""
    return f"{found['name']}{found['rest']}{quote}{SECRET}{quote}"


#: Packages whose exceptions speak of servers and connections, not of what was sent.
_SPEAK = frozenset({"redis", "kombu", "amqp", "celery", "billiard", "socket", "ssl"})

#: Where redis-py and the server repeat a command with its arguments all the same.
_REPEATS = re.compile(
    r"Command # \d+ \(.*\) of pipeline caused error: |,? with args beginning.*", re.DOTALL
)


def text_of(error: BaseException) -> str:
    """What may be told of an exception's text; empty where it may quote what it choked on.

    `KeyError`, `ValueError`, a validation error, an HTTP client's: all of them repeat input, and
    here the input is a registration, an answer with a customer's key, or a URL with a token.
    """
    if not speaks(type(error)):
        return ""
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        return error.strerror or ""
    return " ".join(scrub_text(_REPEATS.sub("", str(error))).split())[:300]


def speaks(kind: type[BaseException]) -> bool:
    """Whether texts of exceptions of a kind may be told."""
    module = kind.__module__
    if module == "builtins":
        return issubclass(kind, OSError)
    return module == "worker.errors" or module.partition(".")[0] in _SPEAK


def name_of(error: BaseException) -> str:
    """An exception's kind, and its text where that may be told."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """Where it happened, without values of variables, and without texts that may hold some."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _lines(before, seen)
        yield "-- which led to --"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"{frame.filename}:{frame.lineno} {frame.name}: {frame.line}"
    yield name_of(error)
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            if id(one) not in seen:
                yield "-- and in it --"
                yield from _lines(one, seen)
