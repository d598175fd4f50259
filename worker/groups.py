"""The consumer groups of the results streams, and how far each is behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from worker.ledger import SyncLedger
from worker.ledger.commands import STREAMS
from worker.ledger.records import text
from worker.results import RESULTS


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, and how far behind it is. Ages in seconds."""

    stream: str
    name: str
    consumers: int
    pending: int
    """Given out, and not acknowledged."""
    lag: int | None
    """Not given out yet; None where the server can't tell."""
    idle: float | None
    """Since any of its consumers last asked; None where it has none."""
    behind: float
    """The age of the oldest entry that it has still to read or to acknowledge; 0: none."""


def groups(ledger: SyncLedger, stream: str) -> list[Group]:
    """The consumer groups of a stream; none where there is no such stream."""
    redis: Any = ledger.redis
    try:
        found = ledger.patiently(lambda: redis.xinfo_groups(stream), 10)
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return []
    return [_group(redis, stream, one) for one in found]


def _group(redis: Any, stream: str, info: Mapping[str, Any]) -> Group:
    name = text(info["name"])
    last = text(info["last-delivered-id"])
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.xpending(stream, name)
    pipeline.xrange(stream, f"({last}", count=1)
    pipeline.xinfo_consumers(stream, name)
    (seconds, micros), pending, unread, consumers = pipeline.execute()
    oldest = pending["min"] or (unread[0][0] if unread else None)
    now = seconds + micros / 1e6
    since = int(text(oldest).partition("-")[0]) / 1000 if oldest else now
    return Group(
        stream=stream,
        name=name,
        consumers=info["consumers"],
        pending=info["pending"],
        lag=info.get("lag"),
        idle=min((one["idle"] / 1000 for one in consumers), default=None),
        behind=max(0.0, now - since),
    )


def streams(ledger: SyncLedger) -> list[str]:
    """The streams that workers have announced, and the one that is always there."""
    redis: Any = ledger.redis
    forms = ledger.patiently(lambda: redis.hvals(STREAMS), 10)
    return sorted({RESULTS, *(text(form).partition(" ")[2] for form in forms)})


def drop_group(ledger: SyncLedger, stream: str, group: str) -> bool:
    """Drop a consumer group; False where there was none. What it had still to read can go then."""
    redis: Any = ledger.redis
    try:
        return bool(ledger.patiently(lambda: redis.xgroup_destroy(stream, group), 10))
    except ResponseError as error:
        if "requires the key to exist" not in str(error):
            raise
        return False
