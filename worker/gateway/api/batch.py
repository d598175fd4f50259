"""`POST /v1/jobs:batch`: NDJSON in both directions, one line of result for each line.

Only one line and one group of jobs are held in memory, however many there are. While the client
does not read its results, no more of its jobs are read.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from regworker.core import Given
from regworker.domain.errors import (
    InvalidJob,
    LedgerUnavailable,
    SettingsError,
)
from regworker.domain.receipt import Receipt, Refused
from regworker.domain.request import MOST_BYTES
from worker.gateway.api import answers
from worker.gateway.api.admission import Sender
from worker.gateway.api.parsing import parsed
from worker.gateway.auth import Principal
from worker.gateway.middleware import Message, Receive, Send
from worker.gateway.middleware import Scope as AsgiScope
from worker.gateway.problems import HttpProblem, NotTaken, problem_of
from worker.gateway.services import Services, services

log = structlog.get_logger(__name__)

router = APIRouter()

#: Jobs that are sent to the ledger together.
GROUP = 100

#: Seconds in which the client neither sends nor reads a byte, after which it is gone.
QUIET = 60.0

#: Bytes a second that a client must send, over a time of `QUIET` seconds: less than any network
#: gives. One that sends a byte now and then would keep its connection for ever.
SLOWEST = 256.0

#: The answer ends after a line with one of these: the token is gone, or nothing works now.
LAST = {401, 503}

_CUT = None
"""Replaces a line that is too long: its content is not kept."""

_Line = tuple[int, bytes | None]


@router.post("/v1/jobs:batch")
async def batch(request: Request, principal: Sender) -> Response:
    """Accept jobs, one per line; a result for each, in order."""
    return _Results(request, services(request), principal)


class _Results(Response):
    """An answer that is written while the request is still being read."""

    def __init__(self, request: Request, here: Services, principal: Principal) -> None:
        self._request, self._here, self._principal = request, here, principal
        super().__init__()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Read groups of lines, and write the result of each line. Raises `NotTaken` before it
        answers."""
        async with self._here.gate.waits(self._principal):
            await self._answer(send)

    async def _answer(self, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for group in _groups(self._request):
                trace = self._request.headers.get("traceparent", "")
                results = await _accepted(self._here, self._principal, group, trace)
                lines = b"".join(json.dumps(one).encode() + b"\n" for one in results)
                async with asyncio.timeout(QUIET):
                    await send({"type": "http.response.body", "body": lines, "more_body": True})
                if any(one["status"] in LAST for one in results):
                    break
        except (ClientDisconnect, TimeoutError):
            return
        last: Message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(last)


async def _groups(request: Request) -> AsyncIterator[list[_Line]]:
    """Lines as they arrive, numbered from 1; the lines of one part of the body are one group.

    Raises `TimeoutError` if the client is silent, or too slow.
    """
    number, rest, cut = 0, bytearray(), False
    group: list[_Line] = []
    stream = aiter(request.stream())
    clock, patience = asyncio.get_running_loop().time, QUIET
    while True:
        begun = clock()
        async with asyncio.timeout(patience):
            part = await anext(stream, None)
        # Only the time in which we wait for the client counts.
        patience = min(QUIET, patience - (clock() - begun) + len(part or b"") / SLOWEST)
        lines = (b"" if part is None else part).split(b"\n")
        ended = part is None
        for position, piece in enumerate(lines):
            if not cut:
                rest += piece
                if len(rest) > MOST_BYTES:
                    cut = True
                    rest.clear()
            if position == len(lines) - 1 and not ended:
                break
            number += 1
            if cut or rest.strip():
                group.append((number, _CUT if cut else bytes(rest)))
            rest.clear()
            cut = False
            if len(group) >= GROUP:
                yield group
                group = []
        if group:
            yield group
            group = []
        if ended:
            return


async def _accepted(
    here: Services, principal: Principal, group: list[_Line], trace: str
) -> list[dict[str, Any]]:
    """The result of each line of a group, in order."""
    try:
        await here.gate.recheck(principal)
    except (NotTaken, LedgerUnavailable) as error:
        refused = problem_of(error).content()
        return [{"line": number, **refused} for number, _ in group]
    results: dict[int, dict[str, Any]] = {}
    good: list[tuple[int, Given]] = []
    for number, line in group:
        try:
            if line is None:
                what = f"the line is longer than {MOST_BYTES} bytes"
                raise NotTaken(HttpProblem(413, "too-large", what))  # noqa: TRY301
            given = parsed(line)
            answers.check_account(principal, given.get("provider"), given.get("account", "default"))
            good.append((number, given))
        except (InvalidJob, NotTaken) as error:
            results[number] = problem_of(error).content()
        except Exception as error:  # noqa: BLE001 -- it is this line's
            results[number] = _failed(error)
    accepted = await _results(here, principal, good, trace)
    for (number, _), one in zip(good, accepted, strict=True):
        match one:
            case Receipt():
                status = 200 if one.repeat else 201
                results[number] = {"status": status, **answers.receipt(one)}
            case Refused():
                results[number] = problem_of(answers.refused(principal, one)).content()
            case _:
                results[number] = one
    return [{"line": number, **results[number]} for number, _ in group]


async def _results(
    here: Services, principal: Principal, good: list[tuple[int, Given]], trace: str
) -> list[Receipt | Refused | dict[str, Any]]:
    """The result of each job, or what to answer. A fault of one job is not that of the others."""
    try:
        return [*await here.way_in.accept_many(good, principal.name, trace)]
    except (LedgerUnavailable, SettingsError) as error:
        return [problem_of(error).content()] * len(good)
    except Exception as error:  # noqa: BLE001 -- it is logged for the job that causes it
        if len(good) == 1:
            return [_failed(error)]
    found: list[Receipt | Refused | dict[str, Any]] = []
    for job in good:
        [one] = await _results(here, principal, [job], trace)
        if isinstance(one, dict) and one["status"] in LAST:
            return [*found, *[one] * (len(good) - len(found))]
        found.append(one)
    return found


def _failed(error: Exception) -> dict[str, Any]:
    log.error("a line of a batch failed", exc_info=error)
    return problem_of(error).content()
