"""Whether an installation keeps its promise: what would lose jobs, and what to change.

A worker checks this when it starts; `regworker doctor` shows it all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.settings import Settings, variable

Level = Literal["ok", "warning", "unsafe"]

#: Oldest servers whose scripts, streams and AOF are as the ledger needs them.
OLDEST = {"valkey": (8, 0), "redis": (7, 0)}

#: Seconds. An alarm this late means that no clock is running, or none that gets through.
LATE = 60.0

#: Seconds. A consumer group that is a day behind has been forgotten, or its consumers are down.
FORGOTTEN = 86400.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `unsafe`: jobs would be lost; `advice` says what to change."""

    level: Level
    subject: str
    found: str
    advice: str = ""


def server(info: Mapping[str, Any]) -> list[Finding]:
    """What a server's `INFO` says of the ledger's safety."""
    return [_version(info), _policy(info), _aof(info), _role(info)]


def pace(settings: Settings) -> list[Finding]:
    """Durations that are allowed, and may surprise."""
    margin = settings.settle_delay - settings.call_budget
    found = f"settle_delay {settings.settle_delay:g} s, call_budget {settings.call_budget:g} s"
    if margin >= settings.call_budget:
        return [Finding("ok", "settle delay", found)]
    advice = f"set {variable('settle_delay')} to at least twice {variable('call_budget')}"
    return [Finding("warning", "settle delay", f"{found}: little margin", advice)]


def alarms(overdue: float) -> Finding:
    """How late the oldest alarm is; seconds, negative while none is due."""
    if overdue < LATE:
        return Finding("ok", "alarm clock", f"the oldest alarm is {max(0.0, overdue):.1f} s late")
    return Finding(
        "unsafe",
        "alarm clock",
        f"the oldest alarm is {overdue:.0f} s late: no worker looks at the clock",
        "start a worker, or look into the workers' logs for `a loop's turn failed`",
    )


def announced(names: int) -> Finding:
    """How many accounts and endpoints workers have announced."""
    if names:
        return Finding("ok", "workers", f"{names} accounts and endpoints announced")
    advice = "start a worker: no job is accepted before one has announced what it serves"
    return Finding("warning", "workers", "nothing announced yet", advice)


def waiting_for_a_person(reviews: int) -> Finding:
    """How many jobs are in review."""
    if not reviews:
        return Finding("ok", "reviews", "none")
    return Finding("warning", "reviews", f"{reviews} jobs wait for a person", "regworker review")


def consumer_group(name: str, stream: str, behind: float, lag: int | None) -> Finding:
    """How far a consumer group is behind; `behind`: the age of the oldest it has to read (s)."""
    subject = f"group {name}"
    if behind < FORGOTTEN:
        return Finding("ok", subject, f"reads {stream}")
    found = f"{behind / 86400:.1f} days behind in {stream}, {'?' if lag is None else lag} not read"
    advice = f"start its consumers, or drop it: regworker results drop-group {name}"
    return Finding("warning", subject, f"{found}: nothing of that is trimmed", advice)


def account(name: str, breaker: str, paused: bool, reason: str) -> Finding:
    """Whether an account's calls go through."""
    if paused:
        return Finding("warning", name, f"paused: {reason}", f"regworker providers resume {name}")
    if breaker == "refused":
        advice = f"mend the account's settings, then: regworker providers resume {name}"
        return Finding("warning", name, f"refused: {reason}", advice)
    if breaker == "open":
        return Finding("warning", name, f"breaker open: {reason}", "it probes by itself")
    return Finding("ok", name, "calls go through")


def _version(info: Mapping[str, Any]) -> Finding:
    name = "valkey" if info.get("valkey_version") else "redis"
    text = str(info.get(f"{name}_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    oldest = OLDEST[name]
    if version >= oldest:
        return Finding("ok", "version", f"{name} {text}")
    advice = f"use Redis >= 7 or Valkey >= 8 behind {variable('redis_url')}"
    return Finding("unsafe", "version", f"{name} {text} is too old", advice)


def _policy(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Finding("ok", "eviction", policy)
    advice = "set `maxmemory-policy noeviction`: another policy drops jobs when memory is full"
    return Finding("unsafe", "eviction", policy, advice)


def _aof(info: Mapping[str, Any]) -> Finding:
    if not int(info.get("aof_enabled", 0)):
        advice = "set `appendonly yes`: a restart would forget what was claimed, and call again"
        return Finding("unsafe", "persistence", "no append-only file", advice)
    if info.get("aof_last_write_status", "ok") != "ok":
        advice = "look at the server's disk: it cannot write its append-only file"
        return Finding("unsafe", "persistence", "the append-only file is not written", advice)
    return Finding("ok", "persistence", "append-only file")


def _role(info: Mapping[str, Any]) -> Finding:
    role = str(info.get("role", "master"))
    if role == "master":
        return Finding("ok", "role", "primary")
    advice = f"{variable('redis_url')} must name the primary"
    return Finding("unsafe", "role", role, advice)
