"""Checks that an outcome can be stored: the one check between a provider and the ledger.

A provider may be a plugin, and its customer's key anything that an answer contained. Without the
check, an outcome that cannot be stored would leave its job with a lease that expires again and
again. So the job goes to review, with a reason that says what is wrong.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from regworker.domain.outcome import (
    Absent,
    Code,
    Fault,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from regworker.domain.portable import flaw

#: The most characters of a provider's data for a customer. The documented data has two values of
#: some 60.
MOST_DATA = 16 * 1024

#: The most characters of a reason or message, and the most messages of one refusal.
MOST_TEXT = 1000
MOST_FAULTS = 50


def writable(found: Any, form: type[BaseModel] | None = None) -> Outcome:
    """The outcome in a form that can be stored; `Unresolvable` if that is impossible.

    Invalid characters in texts are repaired, because people read them. The customer's data is not
    repaired: a changed key would be useless.

    `form`: the registration's model. What an error calls its field goes into the message unless it
    is a name of this model: fields are shown to people who may not see a provider's text, which may
    quote the customer.
    """
    try:
        outcome = _checked(found)
    except _UnfitError as error:
        return Unresolvable(f"the provider's outcome cannot be written: {error}")
    except Exception as error:  # noqa: BLE001 -- a plugin's own kinds of values may do anything
        what = f"{type(error).__name__} while it was read"
        return Unresolvable(f"the provider's outcome cannot be written: {what}")
    if isinstance(outcome, Rejected) and form is not None:
        names = _names(form)
        return Rejected(tuple(_named(one, names) for one in outcome.errors))
    return outcome


def _checked(found: Any) -> Outcome:
    match found:
        case Registered(data, recovered):
            if not isinstance(data, dict):
                raise _UnfitError(f"its data is not an object ({type(data).__name__})")
            if what := flaw(data, MOST_DATA):
                raise _UnfitError(f"in its data, {what}")
            return found if type(recovered) is bool else Registered(data, bool(recovered))
        case Rejected(errors):
            return Rejected(_faults(errors))
        case Retryable(reason, retry_after, spends):
            return Retryable(_text(reason), _wait(retry_after), bool(spends))
        case Unknown(reason, retry_after):
            return Unknown(_text(reason), _wait(retry_after))
        case Absent(reason, login_only):
            return Absent(_text(reason), bool(login_only))
        case Refused(reason, unproved):
            return Refused(_text(reason), bool(unproved))
        case Unresolvable(reason):
            return Unresolvable(_text(reason))
        case _:
            raise _UnfitError(f"it is none ({type(found).__name__})")


class _UnfitError(Exception):
    """Says what is wrong, without any value."""


def _faults(errors: Any) -> tuple[Fault, ...]:
    if not isinstance(errors, Iterable):
        raise _UnfitError(f"its errors are not a list ({type(errors).__name__})")
    faults = tuple(_fault(one) for one, _ in zip(errors, range(MOST_FAULTS), strict=False))
    if not faults:
        raise _UnfitError("it rejects without an error")
    return faults


def _fault(one: Any) -> Fault:
    if not isinstance(one, Fault):
        raise _UnfitError(f"one of its errors is not a Fault ({type(one).__name__})")
    try:
        code = Code(one.code)
    except ValueError:
        raise _UnfitError("one of its errors has an unknown code") from None
    own = None if one.provider_code is None else _text(one.provider_code)
    return Fault(code, _text(one.field), _text(one.message), own)


def _named(one: Fault, names: frozenset[str]) -> Fault:
    steps = [step for step in _STEPS.split(one.field) if step]
    known = names.issuperset(steps[:1]) and all(
        step in names or _INDEX.fullmatch(step) for step in steps
    )
    if known and (steps or not one.field):
        return one
    return replace(one, field="", message=_text(f"{one.field}: {one.message}"))


#: A path in a form: `customer.address.email`, `customer_phone[1].phone_number`, `/customer/cart`.
_STEPS = re.compile(r"[./\[\]]+")
_INDEX = re.compile(r"[0-9]{1,2}")


@lru_cache(maxsize=64)
def _names(form: type[BaseModel]) -> frozenset[str]:
    """The names of a form's fields and of the objects in it, also as the provider spells them."""
    try:
        schemas = [form.model_json_schema(by_alias=by_alias) for by_alias in (True, False)]
    except Exception:  # noqa: BLE001 -- a plugin's own type may have no schema
        return frozenset(form.model_fields)
    return frozenset(_properties(schemas))


def _properties(schema: Any) -> Iterator[str]:
    inner = schema.values() if isinstance(schema, dict) else schema
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        yield from schema["properties"]
    for one in inner:
        if isinstance(one, dict | list):
            yield from _properties(one)


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise _UnfitError(f"one of its texts is not text ({type(text).__name__})")
    text = text[:MOST_TEXT]
    return str(text) if text.isascii() else text.encode(errors="replace").decode()


def _wait(seconds: Any) -> float | None:
    if seconds is None:
        return None
    if not isinstance(seconds, int | float):
        raise _UnfitError(f"its retry_after is not a number ({type(seconds).__name__})")
    if isinstance(seconds, float) and math.isnan(seconds):
        return None
    # An int may be larger than any float.
    return float(min(max(0, seconds), 10**9))
