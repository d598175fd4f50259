"""The registrations: SkyPostal's documented example, with a unique e-mail."""

import copy
from typing import Any

from sandbox.documented import SKYPOSTAL_REGISTRATION

CREDENTIALS = {"user_code": 396, "app_key": "not-a-secret-of-anybody"}

#: The path for registrations of every provider's account in a benchmark.
PATH = "/wcf-services/service-customer.svc/customer/customer-registration"

#: One job in so many has a webhook in addition to the results stream (ours only).
HOOK_EVERY = 10


def registration(number: int) -> dict[str, Any]:
    """The documented body, as in our jobs."""
    body = copy.copy(SKYPOSTAL_REGISTRATION)
    body["customer_email"] = f"customer{number}@example.com"
    del body["copa_id"]
    return body


def body(number: int) -> dict[str, Any]:
    """The body with credentials, as it is posted: the job of other queues."""
    return {**CREDENTIALS, **registration(number), "copa_id": SKYPOSTAL_REGISTRATION["copa_id"]}


def number_of(given: dict[str, Any]) -> int:
    """The number of a body."""
    email: str = given["customer_email"]
    return int(email.removeprefix("customer").partition("@")[0])


def job(number: int, **more: Any) -> dict[str, Any]:
    """A job of ours; one in ten has a webhook."""
    hooked = ["results", "crm"] if number % HOOK_EVERY == 0 else ["results"]
    return {
        "provider": "skypostal",
        "idempotency_key": f"bench-{number}",
        "registration": registration(number),
        "reply_to": hooked,
        **more,
    }
