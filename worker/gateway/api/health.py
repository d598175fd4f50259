"""`GET /v1/health`: whether this process can work now. It needs no token."""

from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from regworker.domain.errors import LedgerUnavailable
from worker.gateway.problems import problem_of
from worker.gateway.services import services

router = APIRouter()

#: Seconds: a probe needs the present state.
PATIENCE = 2.0


@router.get("/v1/health")
async def health(request: Request) -> Response:
    """200 if the ledger answers, 503 if it does not."""
    ledger = services(request).ledger
    try:
        await ledger.patiently(ledger.redis.ping, PATIENCE)
    except (LedgerUnavailable, RedisError):
        return problem_of(LedgerUnavailable()).response()
    return Response(b'{"ledger":"answers"}', media_type="application/json")
