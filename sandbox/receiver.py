"""A webhook receiver that verifies and logs events, and fails on request.

Signatures are checked with the official Standard Webhooks library, so that what passes here also
passes at a real receiver.
"""

import asyncio
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import checks
from sandbox.connection import NoAnswer
from sandbox.control import read_json, refusing

#: A scripted status of 0: the delivery is logged, and its connection is closed without an answer.
DROP: Final = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One received delivery, and its answer."""

    name: str
    webhook_id: str | None
    event_id: str | None
    event_type: str | None
    subject: str | None
    #: Seconds since the epoch.
    time: float
    verified: bool
    #: The status of the answer; 0: none, the connection was closed.
    status: int
    #: The body as received. Only in this process: an event contains a customer's key.
    body: bytes = field(repr=False)

    def public(self) -> dict[str, Any]:
        """The delivery without its content, which is shown only as a fingerprint."""
        return {
            "name": self.name,
            "webhook_id": self.webhook_id,
            "event": {"id": self.event_id, "type": self.event_type, "subject": self.subject},
            "time": self.time,
            "verified": self.verified,
            "status": self.status,
            "body_sha256": hashlib.sha256(self.body).hexdigest(),
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """The next `times` deliveries get this status."""

    status: int
    times: int = 1
    retry_after: int | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> "Failure":
        """Parse a line of the script from JSON."""
        given = checks.mapping(value, where)
        checks.known(given, ("status", "times", "retry_after"), where)
        wait = given.get("retry_after")
        return cls(
            status=_status(given.get("status"), f"{where}.status"),
            times=checks.whole(given.get("times", 1), f"{where}.times", 1),
            retry_after=None if wait is None else checks.whole(wait, f"{where}.retry_after"),
        )

    def public(self) -> dict[str, Any]:
        """The line as JSON that `parse` reads."""
        return {"status": self.status, "times": self.times, "retry_after": self.retry_after}


class Receiver:
    """The receiver's state: its secrets, the deliveries so far, and its behaviour."""

    def __init__(self, secrets: Iterable[str], now: Callable[[], float] = time.time) -> None:
        self._webhooks = [Webhook(secret) for secret in secrets]
        self._now = now
        self._lock = threading.Lock()
        self._log: list[Delivery] = []
        self.behave({})

    @property
    def log(self) -> list[Delivery]:
        """The deliveries so far, oldest first."""
        with self._lock:
            return list(self._log)

    def verifies(self, body: bytes, headers: dict[str, str]) -> bool:
        """Whether any of the secrets has signed this."""
        return any(_verifies(webhook, body, headers) for webhook in self._webhooks)

    def behave(self, value: object) -> None:
        """Replace the behaviour: `{"script", "rate", "rate_status", "seed", "delay"}`.

        Omitted values have their defaults: no failures, no delay. All or nothing.
        """
        names = ("script", "rate", "rate_status", "seed", "delay")
        given = checks.mapping(value, "behaviour")
        checks.known(given, names, "behaviour")
        lines = given.get("script", [])
        if not isinstance(lines, list):
            raise checks.BadControl("behaviour.script must be a list.")
        script = [Failure.parse(line, f"behaviour.script[{i}]") for i, line in enumerate(lines)]
        rate = checks.probability(given.get("rate", 0.0), "behaviour.rate")
        rate_status = _status(given.get("rate_status", 503), "behaviour.rate_status")
        seed = checks.whole(given.get("seed", 1), "behaviour.seed")
        delay = checks.seconds(given.get("delay", 0.0), "behaviour.delay")
        with self._lock:
            self._script, self._rate, self._rate_failure = script, rate, Failure(rate_status)
            self._seed, self.delay = seed, delay
            self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose

    def behaviour(self) -> dict[str, Any]:
        """The rest of the behaviour."""
        with self._lock:
            return {
                "script": [failure.public() for failure in self._script],
                "rate": self._rate,
                "rate_status": self._rate_failure.status,
                "seed": self._seed,
                "delay": self.delay,
            }

    def failure(self) -> Failure | None:
        """Decide whether the present delivery fails; uses up the line that decided."""
        with self._lock:
            if self._script:
                failure = self._script[0]
                left = [replace(failure, times=failure.times - 1)] if failure.times > 1 else []
                self._script[:1] = left
                return failure
            return self._rate_failure if self._random.random() < self._rate else None

    def note(
        self, name: str, body: bytes, headers: dict[str, str], answer: tuple[bool, int]
    ) -> None:
        """Add a delivery to the log."""
        event = _event(body)
        verified, status = answer
        delivery = Delivery(
            name=name,
            webhook_id=headers.get("webhook-id"),
            event_id=event.get("id"),
            event_type=event.get("type"),
            subject=event.get("subject"),
            time=self._now(),
            verified=verified,
            status=status,
            body=body,
        )
        with self._lock:
            self._log.append(delivery)

    def reset(self) -> None:
        """Delete the deliveries, and reset the behaviour."""
        self.behave({})
        with self._lock:
            self._log.clear()


def receiver_routes(receiver: Receiver) -> list[Route]:
    """Route `/hooks/{name}`, `/hooks-log` and `/hooks-behaviour`."""

    async def receive(request: Request) -> Response:
        name, headers = request.path_params["name"], dict(request.headers)
        body = await request.body()
        await asyncio.sleep(receiver.delay)
        verified = receiver.verifies(body, headers)
        failure = receiver.failure() if verified else Failure(401)
        receiver.note(name, body, headers, (verified, 204 if failure is None else failure.status))
        return Response(status_code=204) if failure is None else _failed(failure)

    async def get_log(_: Request) -> Response:
        return JSONResponse([delivery.public() for delivery in receiver.log])

    async def reset(_: Request) -> Response:
        receiver.reset()
        return Response(status_code=204)

    async def get_behaviour(_: Request) -> Response:
        return JSONResponse(receiver.behaviour())

    async def put_behaviour(request: Request) -> Response:
        receiver.behave(await read_json(request))
        return await get_behaviour(request)

    return [
        Route("/hooks/{name}", receive, methods=["POST"]),
        Route("/hooks-log", get_log, methods=["GET"]),
        Route("/hooks-log", reset, methods=["DELETE"]),
        Route("/hooks-behaviour", get_behaviour, methods=["GET"]),
        Route("/hooks-behaviour", refusing(put_behaviour), methods=["PUT"]),
    ]


def create_receiver_app(receiver: Receiver) -> Starlette:
    """Make an app of the receiver alone."""
    return Starlette(routes=receiver_routes(receiver))


def _verifies(webhook: Webhook, body: bytes, headers: dict[str, str]) -> bool:
    try:
        webhook.verify(body, headers)
    except Exception:  # noqa: BLE001 - malformed headers raise more than WebhookVerificationError
        return False
    return True


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _failed(failure: Failure) -> Response:
    if failure.status == DROP:
        return NoAnswer()
    wait = failure.retry_after
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return Response(status_code=failure.status, headers=headers)


def _status(value: object, where: str) -> int:
    if value == DROP:
        return DROP
    status = checks.whole(value, where, 200)
    if status > 599:
        raise checks.BadControl(f"{where} must be an HTTP status, or 0 for no answer.")
    return status
