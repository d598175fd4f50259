"""From bytes to a job as it was sent. The client library's rules check its content."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from regworker.domain.errors import InvalidJob, Problem
from regworker.domain.job import one_form

#: A string of a structured field (RFC 8941, 3.3.3), as the draft of Idempotency-Key requires.
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')

_KEY = "idempotency_key"


def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object; `InvalidJob` for anything else, and for what two parsers could read
    differently.

    That is a name that occurs twice in an object, or a number that JSON does not have.
    """
    try:
        given = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise _refused("the body is not UTF-8") from None
    except RecursionError:
        raise _refused("the body is nested too deeply") from None
    except ValueError:
        # The parser's message may quote its input.
        raise _refused("the body is not JSON") from None
    if not isinstance(given, dict):
        raise _refused("the body must be a JSON object")
    return given


def keyed(asked: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The job with the key of the header `Idempotency-Key`, which must agree with its own."""
    headers = [value for name, value in asked["headers"] if name == b"idempotency-key"]
    if not headers:
        return given
    if len(headers) > 1:
        raise _refused("the header Idempotency-Key is given twice", _KEY)
    text = headers[0].decode("latin-1").strip()
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise _refused("the header Idempotency-Key is not a quoted string (RFC 8941)", _KEY)
        text = re.sub(r"\\(.)", r"\1", quoted[1])
    if not text.isascii():
        raise _refused("the header Idempotency-Key is not ASCII: send the key in the body", _KEY)
    own = given.get(_KEY)
    if own is None:
        return {**given, _KEY: text}
    if not isinstance(own, str) or one_form(own) != text:
        raise _refused("the header Idempotency-Key and the body's key differ", _KEY)
    return given


def _refused(what: str, field: str = "") -> InvalidJob:
    return InvalidJob([Problem("invalid", field, what)])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # In one pass: a body may have some ten thousand names.
        times = Counter(name for name, _ in pairs)
        twice = next(name for name, count in times.items() if count > 1)
        known = twice if re.fullmatch(r"\w{1,64}", twice, re.ASCII) else ""
        raise _refused("is given twice in one object" if known else "a name is given twice", known)
    return found


def _number(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise _refused("the body holds a number that is too large")
    return value


def _no_number(_: str) -> NoReturn:
    raise _refused("the body holds a number that JSON does not allow (NaN or Infinity)")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_number, parse_constant=_no_number)
