"""What each request needs before anything of it is read: a token with a right, each parameter once,
and a body that is not encoded."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from regworker.domain.errors import MOST_PROBLEMS, Problem
from regworker.domain.portable import shown_name
from worker.gateway.auth import Principal, Scope
from worker.gateway.problems import INVALID, HttpProblem, NotTaken
from worker.gateway.services import Services, services


async def admit(here: Services, asked: Mapping[str, Any], right: Scope | None = None) -> Principal:
    """The sender of a request. Raises `NotTaken`: first for its token, then for its form.

    `asked`: the request's ASGI scope.
    """
    principal = await here.gate.admit(asked, right)
    if asked["method"] == "GET":  # no other one has parameters
        _each_once(asked["query_string"])
    for name, value in asked["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            what = "the body has a Content-Encoding: send it as it is"
            headers = {"accept-encoding": "identity"}
            raise NotTaken(HttpProblem(415, "encoded", what, headers=headers))
    return principal


def _each_once(query: bytes) -> None:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    times = Counter(name for name, _ in pairs)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        errors = [Problem("invalid", shown_name(name), "is given twice") for name in twice]
        raise NotTaken(HttpProblem(422, "invalid-parameter", INVALID, errors[:MOST_PROBLEMS]))


def _with(right: Scope | None) -> Any:
    async def admitted(request: Request) -> Principal:
        return await admit(services(request), request.scope, right)

    return Depends(admitted)


# FastAPI runs dependencies before it refuses a route's own parameters.
Anybody = Annotated[Principal, _with(None)]
"""The sender, with any valid token."""
Sender = Annotated[Principal, _with("enqueue")]
Reader = Annotated[Principal, _with("read")]
Operator = Annotated[Principal, _with("operate")]
