"""The outcomes of one attempt at a job: a closed union, matched with `assert_never`.

Exceptions are for faults, not for outcomes. An unexpected exception counts as `Unknown`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """Our stable error codes, the same for all providers."""

    INVALID = "invalid"
    MISSING = "missing"
    ALREADY_EXISTS = "already_exists"
    NOT_FOUND = "not_found"
    VERIFICATION_REQUIRED = "verification_required"
    ACCESS_DENIED = "access_denied"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    DEADLINE = "deadline"
    ATTEMPTS = "attempts"
    PROVIDER_ERROR = "provider_error"


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason of a refusal: our `code`, the provider's `field` and text.

    `provider_code` is the provider's own type of error, if it has one (Open2b's `AlreadyExists`);
    `field` is in the provider's spelling, empty if the provider names none.
    """

    code: Code
    field: str
    message: str
    provider_code: str | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """The customer exists. `data`: what the provider returned (keys: secret).

    `recovered`: found by a lookup, not in the answer to our own call.
    """

    data: dict[str, Any] = field(repr=False)
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The provider refused this registration for good."""

    errors: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Retryable:
    """Provably without effect: not sent, or the provider asked us to wait.

    `retry_after`: seconds for which the provider asked us to wait. `spends`: whether it used up an
    attempt; a failure of this worker (a missing key, for example) does not.
    """

    reason: str
    retry_after: float | None = None
    spends: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """Our credentials, or the call as such, were refused: the account's fault, not the job's.

    Provably without effect, unless it is `unproved`. Opens the account's breaker until an operator
    closes it; spends no attempt.
    """

    reason: str
    unproved: bool = False
    """Something on the way to the provider may have refused, after the provider had carried the
    request out: the job is unknown, and the worker asks once the account is resumed."""
    taken: bool = False
    """As in `Unknown`."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """May have been carried out. Only a lookup can decide.

    `retry_after`: seconds; lengthens the settle delay.
    """

    reason: str
    retry_after: float | None = None
    taken: bool = False
    """The provider refused the call because the customer exists, and did not answer whose it is."""


@dataclass(frozen=True, slots=True)
class Absent:
    """From `find_out` only: there is no customer. Believed once the settle delay is over."""

    reason: str
    login_only: bool = False
    """Only the login was tried: there may be a customer with another password. For a provider that
    refuses a known customer when it is sent again; a person is not shown a plain no."""


@dataclass(frozen=True, slots=True)
class Unresolvable:
    """From `find_out` only: the provider cannot tell, so a person must decide."""

    reason: str


Outcome = Registered | Rejected | Retryable | Refused | Unknown | Absent | Unresolvable
