"""The answers about jobs, as JSON."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic_core import to_json

from regworker.announced import without_names
from regworker.domain.errors import InvalidJob, RegistrationWorkerError, UnknownJob
from regworker.domain.receipt import Receipt, Refused, Status
from worker.gateway.auth import Principal
from worker.gateway.problems import HttpProblem, NotTaken


def receipt(one: Receipt) -> dict[str, Any]:
    """The answer for an accepted job or a repeat."""
    return {
        "verdict": "accepted",
        "job_id": one.job_id,
        "idempotency_key": one.idempotency_key,
        "state": str(one.state),
        "accepted_at": _time(one.accepted_at),
        "repeat": one.repeat,
    }


def status(one: Status) -> bytes:
    """The status of a job. Its event may contain the customer's keys."""
    found = asdict(one)
    found["final"] = one.final
    found["timeline"] = [{"at": at, "what": what} for at, what in one.timeline]
    times = {name: _time(value) for name, value in found.items() if isinstance(value, datetime)}
    return to_json({**found, **times})


def refused(principal: Principal, one: Refused) -> RegistrationWorkerError:
    """The error of a refused job, as far as the caller may see it."""
    if principal.accounts is None or not isinstance(one.error, InvalidJob):
        return one.error
    return InvalidJob(map(without_names, one.error.problems))


def owner(principal: Principal) -> str | None:
    """The owner whose jobs the caller may see: its own name; None: all jobs."""
    return None if principal.may("read:all") else principal.name


def check_account(principal: Principal, provider: Any, account: Any) -> None:
    """Raise `NotTaken` (403) if a token is limited to other accounts."""
    if principal.accounts is None or not (isinstance(provider, str) and isinstance(account, str)):
        return
    if not principal.may_use(provider, account):
        allowed = ", ".join(sorted(principal.accounts))
        what = f"this token is limited to the accounts {allowed}"
        raise NotTaken(HttpProblem(403, "forbidden", what))


def check_found(principal: Principal, job_id: str, provider: str, account: str) -> None:
    """Raise `UnknownJob` for a job of an account that the token may not use.

    The answer is that of a job that does not exist: an id is a hash of a key, so any other answer
    would show which keys the account has.
    """
    if not principal.may_use(provider, account):
        raise UnknownJob(f"job {job_id} is of an account that the token may not use")


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
