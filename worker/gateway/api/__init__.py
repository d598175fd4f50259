"""The HTTP API, at /v1."""

from fastapi import APIRouter

from worker.gateway.api import batch, enqueue, events, health, job_data, jobs

router = APIRouter()
for part in (health, jobs, batch, job_data, events):
    router.include_router(part.router)

DIRECT = (enqueue.ROUTE,)
"""Routes outside of the router."""
