"""Reads an installation from outside: the ledger, the streams, the providers' own records."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import redis

from tests.chaos.junk import REASONS
from tests.chaos.load import Accepted

PREFIX = "{reg}:"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger's content at one moment."""

    #: Each job's hash.
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Member -> when its alarm is due (ms).
    alarms: dict[str, float] = field(default_factory=dict)
    #: The results stream, entry by entry.
    events: tuple[bytes, ...] = ()
    #: Calls in flight whose lease has not expired: job ids.
    in_flight: tuple[str, ...] = ()
    #: Jobs that wait for a place among an account's calls.
    waiting: tuple[str, ...] = ()
    #: Remaining deliveries with their states.
    deliveries: dict[str, str] = field(default_factory=dict)
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that a run has left behind."""

    accepted: tuple[Accepted, ...] = ()
    refused: frozenset[str] = frozenset()
    ledger: Ledger = field(default_factory=Ledger)
    accounts: tuple[dict[str, Any], ...] = ()
    requests: tuple[dict[str, Any], ...] = ()
    hooks: tuple[dict[str, Any], ...] = ()
    #: Errors outside of the records: a worker's exit code, an unexpected answer to a producer.
    unclean: tuple[str, ...] = ()
    #: Whether the ledger failed over: events may then be published again.
    fails_over: bool = False


def ledger(server: "redis.Redis") -> Ledger:
    """The ledger at one moment: everything is read in one transaction."""
    found = {key.decode() for key in server.scan_iter(f"{PREFIX}*", count=1000)}
    keys = sorted(found)
    jobs = [key for key in keys if key.startswith(f"{PREFIX}job:")]
    inflight = [key for key in keys if key.startswith(f"{PREFIX}inflight:")]
    waiting = [key for key in keys if key.startswith(f"{PREFIX}waiting:")]
    deliveries = [key for key in keys if key.startswith(f"{PREFIX}delivery:")]
    quarantine = [key for key in keys if key.startswith(f"{PREFIX}quarantine:")]
    pipe = server.pipeline(transaction=True)
    pipe.time()
    pipe.zrange(f"{PREFIX}alarms", 0, -1, withscores=True)
    pipe.xrange(f"{PREFIX}results")
    for key in inflight:
        pipe.zrange(key, 0, -1, withscores=True)
    for key in waiting:
        pipe.zrange(key, 0, -1)
    for key in deliveries:
        pipe.hget(key, "state")
    for key in jobs:
        pipe.hgetall(key)
    (seconds, micros), alarms, events, *rest = pipe.execute()
    now = seconds * 1000 + micros / 1000
    rest = iter(rest)
    flying = [member for _ in inflight for member, till in next(rest) if till > now]
    standing = [member for _ in waiting for member in next(rest)]
    states = {key: next(rest) for key in deliveries}
    return Ledger(
        jobs={key.removeprefix(f"{PREFIX}job:"): _texts(next(rest)) for key in jobs},
        alarms={member.decode(): due for member, due in alarms},
        events=tuple(fields[b"event"] for _, fields in events),
        in_flight=tuple(member.decode() for member in flying),
        waiting=tuple(member.decode() for member in standing),
        deliveries={key: state.decode() for key, state in states.items() if state},
        quarantined=sum(not _is_junk(server, key) for key in quarantine),
    )


def alarms(server: "redis.Redis") -> list[str]:
    """The members with an alarm: every unfinished job and delivery has one."""
    return [member.decode() for member in server.zrange(f"{PREFIX}alarms", 0, -1)]


def parsed(events: Iterable[bytes]) -> list[dict[str, Any]]:
    """Events as dictionaries."""
    return [json.loads(event) for event in events]


def _texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _is_junk(server: "redis.Redis", key: str) -> bool:
    """Whether a quarantined message is junk that the run itself sent."""
    return (server.hget(key, "reason") or b"").decode().startswith(REASONS)
