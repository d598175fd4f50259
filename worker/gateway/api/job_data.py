"""`POST /v1/jobs:export` and `POST /v1/jobs:forget`: the stored data of one job, for an operator.

The body names the job: an idempotency key may be a person's e-mail, and a URL is logged.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from redis.exceptions import NoPermissionError

from regworker.domain.actor import MOST_REASON, Actor
from regworker.domain.errors import InvalidJob, Problem, problems_of
from regworker.domain.job import Cancel
from regworker.ledger.steps import Steps
from worker.gateway.api import answers
from worker.gateway.api.admission import Operator
from worker.gateway.api.bodies import whole
from worker.gateway.api.parsing import parsed
from worker.gateway.auth import Principal
from worker.gateway.problems import RIGHTS, HttpProblem, NotTaken
from worker.gateway.services import services
from worker.operations.job_data import JobData

router = APIRouter()

T = TypeVar("T")

#: Seconds for the whole request: it searches the results streams.
PATIENCE = 60.0


@router.post("/v1/jobs:export")
async def export(request: Request, principal: Operator) -> Response:
    """Everything that is stored about a job."""
    _, found = await _carried(request, principal, lambda data: data.export)
    return _answer(found)


@router.post("/v1/jobs:forget")
async def forget(request: Request, principal: Operator) -> Response:
    """Erase what is stored about a finished job. May be repeated."""
    job_id, done = await _carried(request, principal, lambda data: data.forget)
    return _answer({"job_id": job_id, **asdict(done)})


async def _carried(
    request: Request,
    principal: Principal,
    act: Callable[[JobData], Callable[[str, Actor], Steps[T]]],
) -> tuple[str, T]:
    """Find the job, and run the action on it."""
    here = services(request)
    body = await whole(here, principal, request.scope, request.receive)
    named, why = _named(parsed(body))
    job_id = named.target
    await here.gate.recheck(principal)
    if named.job_id is None:
        answers.check_account(principal, named.provider, named.account)
    data = JobData(here.settings)
    try:
        if principal.accounts is not None:
            owner = await here.client.carry(data.owner(job_id))
            answers.check_found(principal, job_id, owner.provider, owner.account)
        actor = Actor(principal.name, where="api", why=why)
        return job_id, await here.client.carry(act(data)(job_id, actor), PATIENCE)
    except NoPermissionError:
        raise NotTaken(HttpProblem(403, "no-rights", RIGHTS)) from None


def _named(given: dict[str, Any]) -> tuple[Cancel, str]:
    """The job, named as in a request to cancel it, and the reason."""
    why = given.pop("why", "")
    if not isinstance(why, str) or len(why) > MOST_REASON:
        what = f"must be text of at most {MOST_REASON} characters"
        raise InvalidJob([Problem("invalid", "why", what)])
    if "reply_to" in given:
        raise InvalidJob([Problem("invalid", "reply_to", "the answer is this one")])
    try:
        return Cancel.model_validate(given), why
    except ValidationError as error:
        raise InvalidJob(problems_of(error)) from None


def _answer(found: dict[str, Any]) -> Response:
    return Response(json.dumps(found).encode(), media_type="application/json")
