"""What SkyPostal asks of a registration.

Which fields there are, their types and which are required is documented ([doc] SkyPostal
registration page, "Request Parameters"). How violations are reported, and in which order,
is invented. Fields that are not documented are ignored: invented, too.
"""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any

#: Invented: which addresses SkyPostal accepts is not documented.
EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


def _text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _any_text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _boolean(value: object) -> bool:
    return isinstance(value, bool)


def _email(value: object) -> bool:
    return isinstance(value, str) and EMAIL.fullmatch(value) is not None


def _date(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return False
    try:
        dt.date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: value in values and not isinstance(value, bool)


Rules = Mapping[str, Callable[[object], bool]]

REQUIRED: Rules = {
    "language_code": _one_of("ENG", "ESP"),
    "copa_id": _number,
    "customer_first_name": _text,
    "customer_last_name": _text,
    "customer_identity_number": _text,
    "customer_birth_date": _date,
    "customer_email": _email,
    "customer_password": _text,
    "customer_gender": _one_of("M", "F"),
}
OPTIONAL: Rules = {
    "customer_tax_number": _number,
    "customer_campaign": _any_text,
    "customer_email_agreement": _boolean,
    "customer_referred_by": _number,
}
ADDRESS: Rules = {
    "city_code": _number,
    "locality_town": _text,
    "neighborhood": _text,
    "address_01": _text,
    "zip_code": _text,
}
PHONE: Rules = {
    "phone_area_code": _text,
    "phone_number": _text,
    "phone_type": _one_of(1, 2),
}
PHONE_OPTIONAL: Rules = {"phone_extension": _any_text}


def breach(body: Mapping[str, Any]) -> str | None:
    """The first violation in a registration; None if there is none."""
    return (
        _breach(body, REQUIRED, OPTIONAL)
        or _list_breach(body, "customer_address", ADDRESS, {}, exactly=1)
        or _list_breach(body, "customer_phone", PHONE, PHONE_OPTIONAL, at_least=2)
    )


def _breach(body: Mapping[str, Any], required: Rules, optional: Rules) -> str | None:
    for name, holds in required.items():
        if body.get(name) is None:
            return f"The field {name} is required."
        if not holds(body[name]):
            return f"The field {name} is not valid."
    for name, holds in optional.items():
        if body.get(name) is not None and not holds(body[name]):
            return f"The field {name} is not valid."
    return None


def _list_breach(
    body: Mapping[str, Any],
    name: str,
    required: Rules,
    optional: Rules,
    *,
    exactly: int | None = None,
    at_least: int = 0,
) -> str | None:
    items = body.get(name)
    if items is None:
        return f"The field {name} is required."
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return f"The field {name} is not valid."
    if exactly is not None and len(items) != exactly:
        return f"The field {name} must hold exactly {exactly}."
    if len(items) < at_least:
        return f"The field {name} must hold at least {at_least}."
    return next((text for item in items if (text := _breach(item, required, optional))), None)
