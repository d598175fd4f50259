"""Reading a job's status, waiting for its end, cancelling it. `enqueue.py` accepts one."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator

from regworker.domain.actor import Actor
from regworker.domain.errors import UnknownJob
from regworker.domain.job import JobId, job_id, known_characters
from regworker.domain.receipt import Status
from worker.gateway.api import answers
from worker.gateway.api.admission import Anybody, Reader
from worker.gateway.auth import Principal
from worker.gateway.bearer import demand
from worker.gateway.services import Services, services

router = APIRouter()

#: Seconds for which a request may wait for news: shorter than most proxies wait for an answer.
LONGEST_WAIT = 60.0

Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT, allow_inf_nan=False)]
_Name = Annotated[str, Query(min_length=1, max_length=64)]
#: Longer than the longest key: a key is shorter once it is normalized.
_Key = Annotated[str, Query(min_length=1, max_length=1024), AfterValidator(known_characters)]

_JSON = "application/json"


@router.get("/v1/jobs")
async def by_key(
    request: Request,
    principal: Reader,
    provider: _Name,
    key: _Key,
    account: _Name = "default",
    wait: Wait = 0.0,
) -> Response:
    """The status of a job, by its provider, account and idempotency key."""
    answers.check_account(principal, provider, account)
    return await _shown(request, principal, job_id(provider, account, key), wait)


@router.get("/v1/jobs/{job_id}")
async def by_id(request: Request, principal: Reader, job_id: JobId, wait: Wait = 0.0) -> Response:
    """The status of a job, by its id; after its end, or after `wait` seconds."""
    return await _shown(request, principal, job_id, wait)


@router.delete("/v1/jobs/{job_id}")
async def cancel(request: Request, principal: Anybody, job_id: JobId) -> Response:
    """Cancel a job before any request is sent: an own job, or with `operate` any job.

    Cancelling the job of somebody else is in the audit log.
    """
    here = services(request)
    if not principal.may("operate"):
        demand(principal, "enqueue")
    whose, actor = principal.name, None
    try:
        found = await here.client.carry(here.client.core.status(job_id, whose))
    except UnknownJob:
        if not principal.may("operate"):
            raise
        actor = Actor(principal.name, where="api")
        found = await here.client.carry(here.client.core.status(job_id))
    answers.check_found(principal, job_id, found.provider, found.account)
    done = await here.way_in.cancel(job_id, None if actor else whose, actor)
    return Response(answers.status(done), media_type=_JSON)


async def _shown(request: Request, principal: Principal, job_id: str, wait: float) -> Response:
    here = services(request)
    whose = answers.owner(principal)
    found = await here.client.carry(here.client.core.status(job_id, whose))
    answers.check_found(principal, job_id, found.provider, found.account)
    if wait and not found.final:
        async with here.gate.waits(principal):
            found = await _after(here, found, wait)
        await here.gate.recheck(principal)
    return Response(answers.status(found), media_type=_JSON)


async def _after(here: Services, found: Status, wait: float) -> Status:
    """The status of a job after its end, after `wait` seconds, or when the process stops."""
    ended = asyncio.ensure_future(here.client.wait(found.job_id, wait))
    stopping = asyncio.ensure_future(here.stopping.wait())
    try:
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not isinstance(ended.exception(), TimeoutError):
            ended.result()
    finally:
        ended.cancel()
        stopping.cancel()
    return await here.client.carry(here.client.core.status(found.job_id))
