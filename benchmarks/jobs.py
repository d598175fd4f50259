"""What is to be registered: SkyPostal's documented example, under an e-mail of one's own."""

import copy
from typing import Any

from sandbox.documented import SKYPOSTAL_REGISTRATION

CREDENTIALS = {"user_code": 396, "app_key": "not-a-secret-of-anybody"}

#: Where every provider's account in a benchmark registers.
PATH = "/wcf-services/service-customer.svc/customer/customer-registration"

#: One job in so many names a webhook beside the results stream (ours only).
HOOK_EVERY = 10


def registration(number: int) -> dict[str, Any]:
    """The documented body, as a job of ours holds it."""
    body = copy.copy(SKYPOSTAL_REGISTRATION)
    body["customer_email"] = f"customer{number}@example.com"
    del body["copa_id"]
    return body


def body(number: int) -> dict[str, Any]:
    """The same with credentials, as it is posted: what other queues carry."""
    return {**CREDENTIALS, **registration(number), "copa_id": SKYPOSTAL_REGISTRATION["copa_id"]}


def number_of(given: dict[str, Any]) -> int:
    """Which one a body is."""
    email: str = given["customer_email"]
    return int(email.removeprefix("customer").partition("@")[0])


def job(number: int, **more: Any) -> dict[str, Any]:
    """A job of ours; one in ten with a webhook."""
    hooked = ["results", "crm"] if number % HOOK_EVERY == 0 else ["results"]
    return {
        "provider": "skypostal",
        "idempotency_key": f"bench-{number}",
        "registration": registration(number),
        "reply_to": hooked,
        **more,
    }
