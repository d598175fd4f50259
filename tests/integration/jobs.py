"""Jobs for tests: the providers' documented examples, under a key and an e-mail of one's own."""

import copy
from itertools import count
from typing import Any

from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION

_numbers = count(1)


def skypostal(email: str | None = None, **job: Any) -> dict[str, Any]:
    """A SkyPostal job; without an e-mail, one that nobody else has."""
    number = next(_numbers)
    registration = copy.deepcopy(SKYPOSTAL_REGISTRATION)
    del registration["copa_id"]
    registration["customer_email"] = email or f"customer{number}@example.com"
    key = f"sky-{number}"
    return {
        "provider": "skypostal", "idempotency_key": key, "registration": registration, **job
    }  # fmt: skip


def open2b(email: str | None = None, **job: Any) -> dict[str, Any]:
    """An Open2b job; without an e-mail, one that nobody else has."""
    number = next(_numbers)
    registration = copy.deepcopy(OPEN2B_SIGN_UP)
    registration["customer"]["address"]["email"] = email or f"customer{number}@example.com"
    key = f"o2b-{number}"
    return {
        "provider": "open2b", "idempotency_key": key, "registration": registration, **job
    }  # fmt: skip


def email_of(job: dict[str, Any]) -> str:
    """The e-mail that a job registers."""
    registration = job["registration"]
    if job["provider"] == "skypostal":
        return str(registration["customer_email"])
    return str(registration["customer"]["address"]["email"])
