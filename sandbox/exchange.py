"""One call at a provider: record it, choose its fault, carry it out or not, answer or not."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import assert_never

from starlette.responses import Response

from sandbox.accounts import Account
from sandbox.bomb import bomb
from sandbox.connection import NoAnswer, Repeated, Truncated
from sandbox.faults import Fault
from sandbox.request_log import SeenRequest
from sandbox.state import Sandbox

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer, and the account that it created, if any."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    made: Account | None = None

    def response(self) -> Response:
        """Make the HTTP response."""
        return Response(self.body, self.status, self.headers, self.media_type)


@dataclass(frozen=True, slots=True)
class Call:
    """One call, read but not yet carried out."""

    provider: str
    name: str
    email: str | None
    #: Carries out the call, atomically, and returns the provider's answer.
    perform: Callable[[], Answer]
    #: A success that did nothing and contains no key (for faults without `commit`).
    pretence: Answer
    #: Removes the key from an answer, for `missing_key`.
    without_key: Callable[[Answer], Answer]


async def exchange(sandbox: Sandbox, call: Call) -> Response:
    """Carry out a call with its fault."""
    fault = sandbox.faults.take(call.provider, call.name, call.email)
    kind = fault.kind if fault else None
    seen = sandbox.requests.arrived(call.provider, call.name, call.email, kind)
    if fault is not None and fault.kind == "slow":
        await asyncio.sleep(fault.delay)
    answer = _answer(sandbox, call, fault, seen)
    if isinstance(answer, Answer):
        seen.status = answer.status
        return answer.response()
    if isinstance(answer, Truncated | Repeated):
        seen.status = answer.status_code
    return answer


def _answer(
    sandbox: Sandbox, call: Call, fault: Fault | None, seen: SeenRequest
) -> Answer | Response:
    if fault is None:
        return _commit(call, seen)
    done = _commit(call, seen) if fault.commit else call.pretence
    match fault.kind:
        case "none" | "slow":
            return _commit(call, seen)
        case "drop_before_commit":
            return NoAnswer()
        case "commit_then_drop":
            _commit(call, seen)
            return NoAnswer()
        case "late_commit":
            _commit_late(sandbox, call, seen, fault.delay)
            return NoAnswer(fault.hold)
        case "too_many":
            return _text(429, "Too Many Requests", _retry_after(fault))
        case "server_error":
            return _text(fault.status, "Server Error", _retry_after(fault))
        case "html":
            page = b"<!DOCTYPE html><html><body><h1>Please stand by</h1></body></html>"
            return Answer(200, page, HTML)
        case "truncated":
            return Truncated(done.body, done.status, done.headers, done.media_type)
        case "missing_key":
            return call.without_key(done)
        case "reset":
            return NoAnswer(reset=True)
        case "unauthorized":
            return _text(401, "Unauthorized")
        case "forbidden":
            return _text(403, "Forbidden")
        case "hang":
            return NoAnswer(hold=None)
        case "repeated":
            came = _commit(call, seen)
            return Repeated(fault.delay, came.body, came.status, came.headers, came.media_type)
        case "bomb":
            return Answer(200, bomb(), JSON, {"Content-Encoding": "gzip, gzip"})
        case _:
            assert_never(fault.kind)


def _commit(call: Call, seen: SeenRequest) -> Answer:
    answer = call.perform()
    seen.committed = answer.made is not None
    return answer


def _commit_late(sandbox: Sandbox, call: Call, seen: SeenRequest, delay: float) -> None:
    async def later() -> None:
        await asyncio.sleep(delay)
        _commit(call, seen)

    task = asyncio.get_running_loop().create_task(later())
    sandbox.late.add(task)
    task.add_done_callback(sandbox.late.discard)


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, text.encode(), TEXT, headers or {})


def _retry_after(fault: Fault) -> dict[str, str]:
    if fault.retry_after_date is not None:
        then = datetime.now(UTC) + timedelta(seconds=fault.retry_after_date)
        return {"Retry-After": format_datetime(then, usegmt=True)}
    return {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
