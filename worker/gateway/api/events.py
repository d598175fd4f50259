"""`GET /v1/events`: events of jobs, by long poll; the client keeps the cursor."""

from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from worker.gateway.api.admission import Reader
from worker.gateway.api.jobs import Wait
from worker.gateway.services import services

router = APIRouter()

_Cursor = Annotated[str | None, Query(pattern=r"^(0|[0-9]{1,19}-[0-9]{1,19})$")]


@router.get("/v1/events")
async def events(
    request: Request, principal: Reader, after: _Cursor = None, wait: Wait = 0.0
) -> Response:
    """Events after a cursor, up to 100; `0`: from the first that is kept.

    It may answer without events before the end of the wait: the new cursor is further on.
    Without a cursor it answers at once, with the cursor after the newest event.
    """
    here = services(request)
    if after is None:
        return _answer([], await here.feed.last())
    start = "0-0" if after == "0" else after
    async with here.gate.waits(principal) if wait else nullcontext():
        found, cursor = await here.feed.after(start, principal, wait, here.stopping)
    await here.gate.recheck(principal)
    return _answer(found, cursor)


def _answer(found: list[bytes], cursor: str) -> Response:
    # An event has the same bytes on every channel.
    body = b'{"cursor":"%b","events":[%b]}' % (cursor.encode(), b",".join(found))
    return Response(body, media_type="application/json")
