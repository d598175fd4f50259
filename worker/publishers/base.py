"""What a publisher is: one try at bringing one event to one endpoint."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Arrived:
    """The endpoint has the event."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Not taken this time. `retry_after`: seconds the endpoint asked for."""

    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The endpoint wants no events any more, neither this one nor others."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotTried:
    """A fault of ours: something is missing in this worker. It says nothing of the endpoint."""

    reason: str


Delivered = Arrived | Later | Gone | NotTried


class Publisher(Protocol):
    """One endpoint."""

    async def publish(self, event_id: str, event: bytes) -> Delivered:
        """Try once. Never raises for the network's sake; may deliver an event more than once."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
