"""Jobs for tests: the providers' documented examples, each with a key and an e-mail of its own."""

import copy
import json
from itertools import count
from typing import Any

from regworker.domain.actor import Actor
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION

_numbers = count(1)

ACTOR = Actor("ann", why="a test")
"""The name under which the tests act."""


def skypostal(email: str | None = None, **job: Any) -> dict[str, Any]:
    """A SkyPostal job; without `email`, it gets a unique address."""
    number = next(_numbers)
    registration = copy.deepcopy(SKYPOSTAL_REGISTRATION)
    del registration["copa_id"]
    registration["customer_email"] = email or f"customer{number}@example.com"
    key = f"sky-{number}"
    return {
        "provider": "skypostal", "idempotency_key": key, "registration": registration, **job
    }  # fmt: skip


def open2b(email: str | None = None, **job: Any) -> dict[str, Any]:
    """An Open2b job; without `email`, it gets a unique address."""
    number = next(_numbers)
    registration = copy.deepcopy(OPEN2B_SIGN_UP)
    registration["customer"]["address"]["email"] = email or f"customer{number}@example.com"
    key = f"o2b-{number}"
    return {
        "provider": "open2b", "idempotency_key": key, "registration": registration, **job
    }  # fmt: skip


def sealed(job: dict[str, Any], keyring: Keyring) -> dict[str, Any]:
    """The same job with its registration sealed by its sender."""
    plain = json.dumps(job["registration"]).encode()
    return {**job, "registration": keyring.seal(plain, seals.registration(job))}


def email_of(job: dict[str, Any]) -> str:
    """The e-mail address that a job registers."""
    registration = job["registration"]
    if job["provider"] == "skypostal":
        return str(registration["customer_email"])
    return str(registration["customer"]["address"]["email"])
