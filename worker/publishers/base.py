"""What a publisher is: it tries once to deliver one event to one endpoint."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Arrived:
    """The endpoint has the event."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Not accepted this time. `retry_after`: seconds that the endpoint asked for."""

    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The endpoint wants no further events at all."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotTried:
    """This worker lacks something. It says nothing about the endpoint."""

    reason: str


@dataclass(frozen=True, slots=True)
class Misplaced:
    """The delivery's content is sealed for another place, and is not sent."""

    reason: str


Delivered = Arrived | Later | Gone | NotTried | Misplaced


class Publisher(Protocol):
    """One endpoint."""

    async def publish(
        self, event_id: str, event: bytes, *, fresh: bool = False, traceparent: str = ""
    ) -> Delivered:
        """Try once. Never raises for network errors; may deliver an event more than once.

        `fresh`: on a new connection, if the endpoint has connections of its own. `traceparent`: the
        header of W3C Trace Context, if requests have headers.
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
