"""Acts on endpoints, and on their waiting deliveries: one function for each.

An endpoint that answers that it is gone, or only fails for days, is disabled: its deliveries are
dead at once, kept, and replayed when an operator has enabled it again. As in `transitions`, each
function makes a `Command`.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from regworker.domain.actor import Actor, packed
from regworker.ledger.records import Flat, number, pairs, text
from regworker.ledger.transitions import ALARMS, DEAD, PREFIX, Command, Publication, ms


def endpoint_key(name: str) -> str:
    """The key of an endpoint's record."""
    return f"{PREFIX}endpoint:{name}"


def pending_key(name: str) -> str:
    """The key of an endpoint's pending deliveries, by their creation (ms)."""
    return f"{PREFIX}pending:{name}"


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint for deliveries, as all workers see it. Times in ms; 0: never."""

    name: str
    at: int
    """The server's time of this state."""
    pending: int
    trying: int
    in_line: int
    max_in_flight: int
    failing_since: int
    """The first failure since the last success."""
    failures: int
    disabled: bool
    disabled_at: int
    since: int
    """Since when it failed, when it was disabled last."""
    why: str
    disables: int
    """How often it was disabled."""
    stray_at: int
    """When it first sent unrequested bytes: each request gets a new connection."""

    @classmethod
    def read(cls, name: str, answer: Flat) -> Self:
        """Parse the answer of `endpoint`."""
        found = pairs(answer[4:])
        numbers = (
            *("max_in_flight", "failing_since", "failures"),
            *("disabled_at", "since", "disables", "stray_at"),
        )
        return cls(
            name=name,
            at=int(answer[0]),
            pending=int(answer[1]),
            trying=int(answer[2]),
            in_line=int(answer[3]),
            disabled=found.get("disabled") == "1",
            why=found.get("why", ""),
            **{one: number(found.get(one)) for one in numbers},
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending or dead delivery, for people. Times in ms; 0: none."""

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
    """The result of its last try."""

    #: The fields of its hash that are read.
    FIELDS: ClassVar = (
        *("job", "event_id", "endpoint", "state", "why"),
        *("tries", "created_at", "due_at", "dead_at"),
    )

    @classmethod
    def read(cls, id_: str, values: Sequence[Any]) -> Self | None:
        """Parse `FIELDS`; None if the delivery is gone."""
        if values[3] is None:
            return None
        found = {name: text(one or b"") for name, one in zip(cls.FIELDS, values, strict=True)}
        numbers = {name: number(found[name]) for name in _NUMBERS}
        return cls(
            id=id_,
            job_id=found["job"],
            event_id=found["event_id"],
            endpoint=found["endpoint"],
            state=found["state"],
            why=found["why"],
            **numbers,
        )


_NUMBERS = ("tries", "created_at", "due_at", "dead_at")


def serve(
    max_in_flight: Mapping[str, int], dead_retention: float, *, starts: bool = True
) -> Command[None]:
    """Write how many concurrent tries the endpoints of this worker allow; seconds.

    `starts`: this replaces the ledger's values.
    """
    limits = [part for pair in max_in_flight.items() for part in pair]
    return Command("serve", (), (int(starts), ms(dead_retention), *limits), lambda _: None)


def look_at_endpoint(name: str) -> Command[EndpointState]:
    """Read an endpoint's record, and count its deliveries."""

    def read(answer: Any) -> EndpointState:
        return EndpointState.read(name, answer)

    return Command("endpoint", (endpoint_key(name),), (name,), read)


def disable(
    seen: EndpointState, why: str, publication: Publication, *, only_if_failing: bool
) -> Command[bool]:
    """Send nothing more to an endpoint; False if it has changed since seen.

    `only_if_failing`: not if it has accepted anything since.
    """
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
        bool,
    )


def enable(name: str, actor: Actor | None = None) -> Command[bool]:
    """Enable an endpoint again; False if it was not disabled."""
    arguments = (secrets.token_hex(8), packed(actor), name)
    return Command("enable", (endpoint_key(name),), arguments, bool)


def bury(name: str, most: int) -> Command[int]:
    """Give up pending deliveries of a disabled endpoint, at most `most`; returns how many."""
    return Command("bury", (endpoint_key(name),), (name, most), int)


def replay(
    ids: Sequence[str], actor: Actor | None = None, ticket: str = ""
) -> Command[tuple[str, ...]]:
    """Replay dead deliveries: `replayed`, `gone` or `disabled` (its endpoint is), for each.

    `ticket`: an act that is repeated with it gets the first answers.
    """
    arguments = (ticket or secrets.token_hex(8), packed(actor), *ids)
    return Command("replay", (DEAD,), arguments, lambda answer: tuple(map(text, answer)))


def retry(ids: Sequence[str], actor: Actor, ticket: str = "") -> Command[tuple[str, ...]]:
    """Try pending deliveries now: `due`, `trying` (a worker has it) or `gone`, for each."""
    arguments = (ticket or secrets.token_hex(8), actor.packed, *ids)
    return Command("retry", (ALARMS,), arguments, lambda answer: tuple(map(text, answer)))
