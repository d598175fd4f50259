"""The consumer groups of the results streams, and how far each is behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from regworker.domain.actor import Actor
from regworker.ledger import SyncLedger
from regworker.ledger.admin import drop_group as drop
from regworker.ledger.records import text
from regworker.ledger.streams import edge
from regworker.ledger.transitions import STREAMS
from regworker.results import RESULTS


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """A consumer group, and how far it is behind. Ages in seconds."""

    stream: str
    name: str
    consumers: int
    pending: int
    """Delivered and not acknowledged."""
    lag: int | None
    """Not delivered yet; None if the server cannot tell."""
    idle: float | None
    """Since any of its consumers last read; None if it has none."""
    behind: float
    """The age of its oldest entry that is unread or not acknowledged; 0: none."""


def groups(ledger: SyncLedger, stream: str) -> list[ConsumerGroup]:
    """The consumer groups of a stream; empty if the stream does not exist."""
    redis: Any = ledger.redis
    try:
        found = ledger.patiently(lambda: redis.xinfo_groups(stream), 10)
    except ResponseError as error:
        # A key of another type is no stream; the other streams must still be read.
        if not any(one in str(error) for one in ("no such key", "WRONGTYPE")):
            raise
        return []
    there = (_group(ledger, stream, one) for one in found)
    return [one for one in there if one is not None]


def _group(ledger: SyncLedger, stream: str, info: Mapping[str, Any]) -> ConsumerGroup | None:
    """A group; None if it was dropped meanwhile."""
    name = text(info["name"])
    last = text(info["last-delivered-id"])

    def look(redis: Any) -> Any:
        pipeline = redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.xpending(stream, name)
        pipeline.xinfo_consumers(stream, name)
        return pipeline.execute()

    try:
        (seconds, micros), pending, consumers = ledger.ask(look)
    except ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        return None
    oldest = pending["min"] or ledger(edge(stream, last))
    now = seconds + micros / 1e6
    since = int(text(oldest).partition("-")[0]) / 1000 if oldest else now
    return ConsumerGroup(
        stream=stream,
        name=name,
        consumers=info["consumers"],
        pending=info["pending"],
        lag=info.get("lag"),
        idle=min((one["idle"] / 1000 for one in consumers), default=None),
        behind=max(0.0, now - since),
    )


def streams(ledger: SyncLedger) -> list[str]:
    """The streams that workers have announced, and the one that always exists."""
    redis: Any = ledger.redis
    forms = ledger.patiently(lambda: redis.hvals(STREAMS), 10)
    return sorted({RESULTS, *(text(form).partition(" ")[2] for form in forms)})


def drop_group(ledger: SyncLedger, stream: str, group: str, actor: Actor) -> bool:
    """Drop a consumer group; False if it did not exist. Its unread entries can then be trimmed."""
    return ledger(drop(stream, group, actor))
