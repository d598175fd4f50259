"""What is done to endpoints, and to the deliveries that wait for them: one function for each.

An endpoint that says that it is gone, or does nothing but fail for days, is disabled: what is due
to it is dead at once, kept, and replayed when an operator has enabled it again. As with
`commands`, each function makes a `Command`.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from worker.ledger.commands import DEAD, PREFIX, Command, Publication, ms
from worker.ledger.records import Flat, Wake, pairs, text


def endpoint_key(name: str) -> str:
    """The key of an endpoint's record."""
    return f"{PREFIX}endpoint:{name}"


def pending_key(name: str) -> str:
    """The key of an endpoint's pending deliveries, by when they were made (ms)."""
    return f"{PREFIX}pending:{name}"


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint that deliveries go to, as all workers see it. Times in ms; 0: never."""

    name: str
    at: int
    """The server's time of this."""
    pending: int
    trying: int
    in_line: int
    max_in_flight: int
    failing_since: int
    """When the first of the failures was after which it has taken nothing."""
    failures: int
    disabled: bool
    disabled_at: int
    since: int
    """Since when it was of no use, when it was disabled last."""
    why: str
    disables: int
    """How often it has been disabled."""

    @classmethod
    def read(cls, name: str, answer: Flat) -> Self:
        """Read the answer of `endpoint`."""
        found = pairs(answer[4:])
        numbers = ("max_in_flight", "failing_since", "failures", "disabled_at", "since", "disables")
        return cls(
            name=name,
            at=int(answer[0]),
            pending=int(answer[1]),
            trying=int(answer[2]),
            in_line=int(answer[3]),
            disabled=found.get("disabled") == "1",
            why=found.get("why", ""),
            **{one: int(found.get(one) or 0) for one in numbers},
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that is pending or dead, for a person to look at. Times in ms; 0: none."""

    id: str
    job_id: str
    event_id: str
    endpoint: str
    state: str
    tries: int
    created_at: int
    due_at: int
    dead_at: int
    why: str
    """What its last try came to."""

    #: The fields of its hash that it is read from.
    FIELDS: ClassVar = (
        *("job", "event_id", "endpoint", "state", "why"),
        *("tries", "created_at", "due_at", "dead_at"),
    )

    @classmethod
    def read(cls, id_: str, values: Sequence[Any]) -> Self | None:
        """Read `FIELDS`; None where the delivery has gone."""
        if values[3] is None:
            return None
        found = {name: text(one or b"") for name, one in zip(cls.FIELDS, values, strict=True)}
        number = {name: int(found[name] or 0) for name in _NUMBERS}
        return cls(
            id=id_,
            job_id=found["job"],
            event_id=found["event_id"],
            endpoint=found["endpoint"],
            state=found["state"],
            why=found["why"],
            **number,
        )


_NUMBERS = ("tries", "created_at", "due_at", "dead_at")


def serve(max_in_flight: Mapping[str, int], dead_retention: float) -> Command[None]:
    """Tell the ledger what the endpoints of this worker may get at a time; seconds."""
    limits = [part for pair in max_in_flight.items() for part in pair]
    return Command("serve", (), (ms(dead_retention), *limits), lambda _: None)


def look_at_endpoint(name: str) -> Command[EndpointState]:
    """Read an endpoint's record, and count its deliveries."""

    def read(answer: Any) -> EndpointState:
        return EndpointState.read(name, answer)

    return Command("endpoint", (endpoint_key(name),), (name,), read)


def disable(
    seen: EndpointState, why: str, publication: Publication, *, only_if_failing: bool
) -> Command[tuple[Wake, ...] | None]:
    """Send nothing more to an endpoint; whom the event wakes, None where it has moved since seen.

    `only_if_failing`: not if it has taken anything since.
    """

    def read(answer: Any) -> tuple[Wake, ...] | None:
        return tuple(Wake(text(one), "delivery") for one in answer[1:]) if answer[0] else None

    return Command(
        "disable",
        (endpoint_key(seen.name),),
        (
            seen.disables + 1,
            seen.failing_since if only_if_failing else "",
            seen.failing_since or seen.at,
            why,
            *publication.args(),
        ),
        read,
    )


def enable(name: str) -> Command[bool]:
    """Send to an endpoint again; False where it was not disabled."""
    return Command("enable", (endpoint_key(name),), (secrets.token_hex(8),), bool)


def bury(name: str, most: int) -> Command[int]:
    """Give up what is pending to a disabled endpoint, at most `most` deliveries; how many."""
    return Command("bury", (endpoint_key(name),), (name, most), int)


def replay(ids: Sequence[str]) -> Command[tuple[str, ...]]:
    """Send dead deliveries again: `replayed`, `gone` or `disabled` (its endpoint is), for each."""
    arguments = (secrets.token_hex(8), *ids)
    return Command("replay", (DEAD,), arguments, lambda answer: tuple(map(text, answer)))
