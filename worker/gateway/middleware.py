"""The outer layer of every request, as plain ASGI: size limits, headers, one log line.

Bodies are counted as they arrive, before anything parses them.
"""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from regworker.domain.request import MOST_BYTES
from worker.gateway.auth import Principal
from worker.gateway.connection import FULL, STREAMED
from worker.gateway.problems import Full, problem_of

log = structlog.get_logger("worker.gateway.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The path of probes. It is answered also if there are too many connections: its process works.
HEALTH = "/v1/health"

#: The default headers of every answer.
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

#: A slash in disguise, or a segment that leads elsewhere: a proxy that decides by the path may read
#: another one than this service.
_DISGUISED = re.compile(rb"%2f|%5c|\\|/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)

_NAMES = frozenset(name for name, _ in HEADERS)

#: A browser that used HTTPS must use HTTPS for a year.
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")


@dataclass(frozen=True, slots=True)
class Direct:
    """A route that is used so often that it bypasses the framework."""

    method: str
    path: str
    """The route's name in the log and the metrics."""
    app: App


class Edge:
    """The outermost layer of the application."""

    def __init__(
        self, app: Starlette, direct: Sequence[Direct] = (), most: int = MOST_BYTES
    ) -> None:
        """`most`: bytes of a body that is not streamed."""
        self._app = app
        self._direct = {(one.method, one.path): one for one in direct}
        self._most = most

    def _told(self, scope: Scope, status: int, seconds: float) -> None:
        # An accepted job needs no line: the ledger has its time and its token's name.
        if not (200 <= status < 300 and isinstance(scope.get("route"), Direct)):
            _line(scope, status, seconds)
        self._app.state.services.requests.add(_route(scope), str(status))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        app: App = self._app
        if direct := self._direct.get((scope["method"], scope["path"])):
            scope["app"], scope["route"], app = self._app, direct, direct.app

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_ours(message.get("headers", ()), scope["scheme"])
            await send(message)

        if scope.get("state", {}).get(FULL) and scope["path"] != HEALTH:
            self._app.state.services.gate.refused.add("full")
            app = _refused(Full())
        elif _DISGUISED.search(scope["raw_path"]):
            app = _refused(HTTPException(404))

        bounded = receive if scope["path"] == STREAMED else _Counted(scope, receive, self._most)
        try:
            await app(scope, bounded, answer)
        except ClientDisconnect:
            status = 0  # the client went away while it was sending; nobody got an answer
        except Exception as error:
            log.exception("a request failed")
            if not status:
                await problem_of(error).response()(scope, receive, answer)
        finally:
            self._told(scope, status, time.perf_counter() - begun)


def _refused(error: Exception) -> App:
    """An application that answers with a problem."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await problem_of(error).response()(scope, receive, send)

    return answer


class _Counted:
    """A body that is cut off when it gets too large, before it is read completely."""

    def __init__(self, scope: Scope, receive: Receive, most: int) -> None:
        length = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
        self._receive = receive
        self._most = most
        self._left = most - int(length) if length.isdigit() and len(length) < 20 else -1
        if self._left >= 0:
            self._left = most

    async def __call__(self) -> Message:
        """The next part."""
        if self._left >= 0:
            message = await self._receive()
            self._left -= len(message.get("body", b""))
        if self._left < 0:
            # The rest of it is not read, so the connection cannot be reused.
            what = f"the body is larger than {self._most} bytes"
            raise HTTPException(413, what, {"connection": "close"})
        return message


def _with_ours(given: Any, scheme: str) -> list[tuple[bytes, bytes]]:
    headers = list(given)
    names = {name for name, _ in headers}
    headers += HEADERS if names.isdisjoint(_NAMES) else [x for x in HEADERS if x[0] not in names]
    if scheme == "https":
        headers.append(_HTTPS_ONLY)
    return headers


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "-"))


def _line(scope: Scope, status: int, seconds: float) -> None:
    """One line per request: with the route, never the path or the query, which may contain
    anything."""
    principal: Principal | None = scope.get("state", {}).get("principal")
    log.info(
        "request",
        method=scope["method"] if scope["method"].isalpha() else "?",
        route=_route(scope),
        status=status,
        ms=round(seconds * 1000, 1),
        who=principal.name if principal else "",
        origin=(scope.get("client") or ("",))[0],
    )
