"""Whether an account works: tested with a call that has no effect."""

from dataclasses import dataclass
from typing import Literal

from regworker.domain.outcome import (
    Absent,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from worker.providers.base import Provider

#: Nobody's address: `.invalid` is never a domain (RFC 2606).
EMAIL = "registration-worker-check@example.invalid"

#: Valid for every provider's form; no account has it.
PASSWORD = "No-Account.1"  # noqa: S105 -- no account has it


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check. `state`: `refused` by the provider, `unreached` without a complete
    answer, ..."""

    state: Literal["works", "refused", "unreached", "unchecked"]
    words: str


async def check(provider: Provider) -> Checked:
    """Test an account. A provider without a `check` of its own is `unchecked`."""
    ask = getattr(provider, "check", None)
    if ask is None:
        return Checked("unchecked", "the provider has no check")
    try:
        return _read(await ask())
    except Exception as error:  # noqa: BLE001 -- of a plugin; its text may hold anything
        return Checked("unreached", f"the provider's check failed: {type(error).__name__}")


def _read(outcome: Outcome) -> Checked:
    match outcome:
        case Absent() | Registered() | Unresolvable():
            return Checked("works", "the provider answered and accepted the credentials")
        case Refused(reason):
            return Checked("refused", reason)
        case Unknown(reason) | Retryable(reason):
            return Checked("unreached", reason)
        case Rejected():
            return Checked("unreached", "the provider rejected the look-up")
