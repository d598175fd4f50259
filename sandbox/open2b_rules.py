"""What Open2b asks of a sign-up, a login and a search.

Names, limits and the description texts: [doc] Open2b 7.5 pages "sign-up", "login",
"customers.find", and "Error handling" (7.8). Invented: the order of the checks, that a wrong type
is `Malformed` and a wrong length `InvalidValue`, and that `field` is the innermost name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Invented: which addresses the store accepts is not documented.
EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


@dataclass(frozen=True, slots=True)
class Error(Exception):
    """One documented error; the store reports one at a time."""

    field: str
    type: str
    description: str


Check = Callable[[str, Any], None]


def string(minimum: int, maximum: int) -> Check:
    """Require a string of so many characters."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, str):
            raise malformed(name)
        if not minimum <= len(value) <= maximum:
            raise Error(name, "InvalidValue", f"{name} is not a valid value")

    return check


def integers(minimum: int, maximum: int | None = None) -> Check:
    """Require a list of whole numbers within limits."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, list):
            raise malformed(name)
        for item in value:
            if not isinstance(item, int) or isinstance(item, bool):
                raise malformed(name)
            if item < minimum or (maximum is not None and item > maximum):
                raise Error(name, "InvalidValue", f"{name} is not a valid value")

    return check


def integer(name: str, value: object) -> None:
    """Require one whole number, 0 or more."""
    integers(0)(name, [value])


def strings(name: str, value: object) -> None:
    """Require a list of strings."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise malformed(name)


def email(name: str, value: object) -> None:
    """Require a well-formed address within the documented length."""
    string(3, 120)(name, value)
    if not EMAIL.fullmatch(str(value)):
        raise Error(name, "InvalidValue", f"'{value}' is not a well formed email address")


def or_null(check: Check) -> Check:
    """Allow null, too."""
    return lambda name, value: None if value is None else check(name, value)


def members(checks: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """Require an object of these members."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, dict):
            raise malformed(name)
        for member in value:
            if member not in checks:
                raise Error("unknown", "UnknownField", f"Field '{member}' is unknown")
        for member in required:
            if member not in value:
                raise Error(member, "Missing", f"{member} is required")
        for member, item in value.items():
            checks[member](member, item)

    return check


def malformed(name: str) -> Error:
    """The error for a value of a wrong type."""
    return Error(name, "Malformed", f"{name} is not syntactically correct")


ADDRESS = members(
    {
        "firstName": string(1, 25),
        "lastName": string(1, 25),
        "personalCode": string(0, 20),
        "companyName": string(0, 100),
        "companyCode": string(0, 20),
        "companyCode2": string(0, 20),
        "street1": string(1, 60),
        "street2": string(0, 60),
        "city": string(1, 25),
        "postalCode": string(1, 20),
        "stateProv": string(0, 3),
        "country": string(2, 2),
        "phoneNumber": string(0, 15),
        "mobileNumber": string(0, 15),
        "faxNumber": string(0, 15),
        "email": email,
    },
    # inferred: an account needs it; the page does not say which other members are required
    required=("email",),
)
SIGN_UP = members(
    {
        "customer": members(
            {
                "cart": or_null(string(32, 32)),
                "address": ADDRESS,
                "privacyConsents": integers(1, 256),
                "password": string(6, 16),
                "invoiceRecipient": string(0, 256),
                "newsletterLists": integers(1),
            },
            required=("address", "privacyConsents", "password"),
        ),
        "verificationCode": string(6, 32),
    },
    required=("customer",),
)
LOGIN = members({"email": email, "password": string(4, 16)}, required=("email", "password"))
#: The sandbox knows one of the documented conditions; others are unknown fields to it.
FIND = members(
    {
        "conditions": members({"email": string(3, 120)}),
        "fields": strings,
        "order": strings,
        "limit": integer,
        "first": integer,
    }
)
