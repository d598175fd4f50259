"""Errors as RFC 9457 `application/problem+json`, each with its meaning for the caller's job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobForgotten,
    JobNotCancellable,
    JobNotOver,
    LedgerUnavailable,
    NoSealingKeys,
    Problem,
    RegistrationWorkerError,
    SealingError,
    SettingsError,
    UnknownJob,
    UnreadableRecord,
    problems_of,
)
from regworker.domain.request import MOST_BYTES

MEDIA_TYPE = "application/problem+json"

RIGHTS = (
    "this service's user at the ledger lacks permissions: give it those of the role operator "
    "(`regworker acl operator`)"
)

INVALID = "a parameter is not valid; see `errors`"

Verdict = Literal["accepted", "not accepted", "repeat it"]
"""What an answer means for the request: it took effect, it had none, or this is unknown."""

#: Seconds after which a caller may repeat a request whose effect is unknown.
RETRY_AFTER = 1


@dataclass(frozen=True, slots=True)
class HttpProblem:
    """An error as it is sent. `name`: the last part of its `type`; `errors`: one for each field."""

    status: int
    name: str
    detail: str
    errors: Sequence[Problem] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Whether to repeat the request unchanged, with the same key."""
        return "repeat it" if self.status == 429 or self.status >= 500 else "not accepted"

    def content(self) -> dict[str, Any]:
        """Its members."""
        found: dict[str, Any] = {
            "type": f"urn:registration-worker:problem:{self.name}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "verdict": self.verdict,
            **self.more,
        }
        if self.errors:
            found["errors"] = [
                {"code": one.code, "field": one.field, "message": one.message}
                for one in self.errors
            ]
        return found

    def response(self) -> Response:
        """The answer."""
        body = json.dumps(self.content()).encode()
        return Response(body, self.status, dict(self.headers), media_type=MEDIA_TYPE)


class NoAnswer(LedgerUnavailable):
    """Raised if no worker answered in time."""


class Full(Exception):  # noqa: N818 -- an answer
    """Raised if a process has too many connections."""


class NotTaken(Exception):  # noqa: N818 -- an answer
    """Raised anywhere in a request to answer it with a problem."""

    def __init__(self, problem: HttpProblem) -> None:
        self.problem = problem
        super().__init__(problem.detail)


def problem_of(error: Exception) -> HttpProblem:
    """The problem for an error of the client library."""
    match error:
        case NotTaken(problem=problem):
            return problem
        case InvalidJob(problems=problems):
            what = "the job is not valid; correct the fields in `errors` and send it again"
            return HttpProblem(422, "invalid-job", what, problems)
        case JobForgotten(job_id=job_id):
            what = "the idempotency key was used by a job whose data was erased on request"
            return HttpProblem(410, "forgotten", what, more={"job_id": job_id})
        case JobNotOver():
            return HttpProblem(409, "not-over", str(error))
        case IdempotencyConflict(job_id=job_id):
            what = "the idempotency key is taken by a job with other content"
            return HttpProblem(409, "idempotency-conflict", what, more={"job_id": job_id})
        case UnknownJob():
            return HttpProblem(404, "unknown-job", "no such job, or past its retention, or erased")
        case UnreadableRecord(job_id=job_id):
            what = "the ledger's record of this job cannot be read; tell the service's operator"
            return HttpProblem(422, "unreadable-record", what, more={"job_id": job_id})
        case JobNotCancellable():
            return HttpProblem(409, "not-cancellable", str(error))
        case Full():
            what = "this process has too many connections; repeat it later"
            headers = {**_later(), "connection": "close"}
            return HttpProblem(503, "full", what, headers=headers)
        case NoAnswer():
            what = f"{error}; nothing is known: repeat it under the same key"
            return HttpProblem(503, "no-answer", what, headers=_later())
        case LedgerUnavailable():
            what = (
                "the ledger did not answer; it may have acted: repeat the request with the same key"
            )
            return HttpProblem(503, "unavailable", what, headers=_later())
        case NoSealingKeys():
            what = (
                "this service has no sealing keys, and this needs them: do it with the command "
                "`regworker` where they are"
            )
            return HttpProblem(403, "no-keys", what)
        case SettingsError():
            what = (
                "no worker has announced what this job needs; repeat the request when workers run"
            )
            return HttpProblem(503, "no-worker", what, headers=_later())
        case SealingError():
            what = (
                "this service lacks the key that opens the job's event; its operator adds it to "
                "REGWORKER_SEALING_KEYS; repeat the request then"
            )
            return HttpProblem(503, "no-key", what, headers=_later())
        case RequestValidationError():
            return HttpProblem(422, "invalid-parameter", INVALID, problems_of(_Errors(error)))
        case HTTPException(status_code=status):
            name, what = _OF_HTTP.get(status, ("http", "the request was refused"))
            return HttpProblem(status, name, what, headers=error.headers or {})
        case RegistrationWorkerError():
            return HttpProblem(422, "refused", str(error))
        case _:
            what = "failed unexpectedly; it may have acted: repeat the request with the same key"
            return HttpProblem(500, "unexpected", what, headers=_later())


_OF_HTTP = {
    404: ("no-such-path", "there is nothing at this path"),
    405: ("no-such-method", "this path does not allow this method"),
    413: ("too-large", f"the body is larger than {MOST_BYTES} bytes"),
}


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def _later() -> dict[str, str]:
    return {"retry-after": str(RETRY_AFTER)}


def _allowed(request: Request) -> list[str]:
    """The methods of a path, of all its routes: Starlette names those of one."""
    scopes = {one: {**request.scope, "method": one} for one in _METHODS}
    routes = request.app.routes
    return [
        one
        for one, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]


class _Errors:
    """FastAPI's errors in pydantic's form, which its own class does not have."""

    def __init__(self, error: RequestValidationError) -> None:
        self._error = error

    def errors(self, **_: bool) -> list[Any]:
        """Without the leading `query` or `path`, and without the input."""
        return [{**one, "loc": one["loc"][1:]} for one in self._error.errors()]


def install(app: FastAPI, direct: Mapping[str, str]) -> None:
    """Answer every error of the application with a problem. `direct`: methods of paths that are
    served without it."""

    async def answer(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem.status == 405:
            allowed = _allowed(request)
            if request.url.path in direct:
                allowed.append(direct[request.url.path])
            problem = replace(problem, headers={"allow": ", ".join(allowed)})
        page = getattr(app.state, "error_page", None)
        if page is not None and not request.url.path.startswith("/v1"):
            shown: Response = page(request, problem)
            return shown
        return problem.response()

    # Any other exception is a bug: Starlette sends the answer, and raises it again, so that the
    # outermost layer logs it.
    known = (NotTaken, RegistrationWorkerError, RequestValidationError, HTTPException)
    for kind in (*known, Exception):
        app.add_exception_handler(kind, answer)
