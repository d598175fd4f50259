"""What is due to endpoints, and what they did not take: for a person to look at and to replay."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

from worker.errors import RegistrationWorkerError
from worker.ledger import SyncLedger
from worker.ledger.commands import CONFIGURED, DEAD, delivery_key, endpoint_name
from worker.ledger.endpoints import (
    EndpointState,
    Waiting,
    enable,
    endpoint_key,
    look_at_endpoint,
    pending_key,
    replay,
)

T = TypeVar("T")

#: Deliveries read, or replayed, in one round trip: a script of some milliseconds at the most.
BATCH = 200

#: Seconds that the ledger may be away.
PATIENCE = 10.0


class UnknownEndpoint(RegistrationWorkerError):  # noqa: N818
    """Raised when no worker delivers to an endpoint of that name: none has announced it."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which deliveries: all, but for what is given. Times are those at which they were made."""

    endpoint: str | None = None
    state: Literal["pending", "dead"] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def earliest(self) -> float:
        """In milliseconds."""
        return self.since.timestamp() * 1000 if self.since else -math.inf

    @property
    def latest(self) -> float:
        """In milliseconds."""
        return self.until.timestamp() * 1000 if self.until else math.inf


class Outbox:
    """The deliveries that are pending or dead, and the endpoints that they go to."""

    def __init__(self, ledger: SyncLedger) -> None:
        self._ledger = ledger

    def endpoints(self) -> list[EndpointState]:
        """Every endpoint that a worker delivers to, by name."""
        found = [self._ledger(look_at_endpoint(name)) for name in self._names()]
        return [one for one in found if one.max_in_flight]

    def endpoint(self, name: str) -> EndpointState:
        """One of them. Raises `UnknownEndpoint`."""
        if not self._patiently(lambda: self._ledger.redis.exists(endpoint_key(name))):
            raise UnknownEndpoint(f"no worker delivers to an endpoint {name}")
        return self._ledger(look_at_endpoint(name))

    def deliveries(self, wanted: Filter) -> Iterator[Waiting]:
        """Those that are pending, the oldest first of each endpoint; then the dead, as they died.

        Read as they are asked for: what arrives meanwhile may or may not be among them.
        """
        if wanted.state != "dead":
            names = [wanted.endpoint] if wanted.endpoint else self._names()
            for name in names:
                yield from self._read(self._pending(name, wanted), wanted)
        if wanted.state != "pending":
            yield from self._read(self._dead(wanted.endpoint), wanted)

    def died(self, name: str, since: int) -> Iterator[str]:
        """The ids of an endpoint's deliveries that died at or after a time (ms)."""
        return self._dead(name, since)

    def replay(self, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Send dead deliveries again; of each its id, and `replayed`, `gone` or `disabled`.

        Lazy, in batches: iterate to replay.
        """
        for batch in _batches(ids):
            said = self._ledger(replay(batch), PATIENCE)
            yield from zip(batch, said, strict=True)

    def enable(self, name: str) -> EndpointState:
        """Send to an endpoint again; how it stood before. Raises `UnknownEndpoint`."""
        before = self.endpoint(name)
        self._ledger(enable(name), PATIENCE)
        return before

    def _names(self) -> list[str]:
        names: Any = self._patiently(lambda: self._ledger.redis.smembers(CONFIGURED))
        prefix = endpoint_name("")
        found = (one.decode() for one in names)
        return sorted(one.removeprefix(prefix) for one in found if one.startswith(prefix))

    def _pending(self, name: str, wanted: Filter) -> Iterator[str]:
        key, bounds = pending_key(name), (wanted.earliest, wanted.latest)
        yield from self._pages(
            lambda start: self._ledger.redis.zrangebyscore(key, *bounds, start=start, num=BATCH)
        )

    def _dead(self, name: str | None, since: int = 0) -> Iterator[str]:
        found = self._pages(
            lambda start: self._ledger.redis.zrangebyscore(
                DEAD, since, math.inf, start=start, num=BATCH
            )
        )
        return (one for one in found if name is None or one.endswith(f":{name}"))

    def _pages(self, page: Any) -> Iterator[str]:
        start = 0
        while found := self._patiently(partial(page, start)):
            yield from (one.decode() for one in found)
            start += len(found)

    def _read(self, ids: Iterable[str], wanted: Filter) -> Iterator[Waiting]:
        for batch in _batches(ids):
            for id_, values in zip(batch, self._fields(batch), strict=True):
                one = Waiting.read(id_, values)
                # It may have arrived meanwhile, been replayed, or not been kept any more.
                if one is None or (wanted.state and one.state != wanted.state):
                    continue
                if wanted.earliest <= one.created_at <= wanted.latest:
                    yield one

    def _fields(self, ids: Sequence[str]) -> list[Any]:
        def carry() -> list[Any]:
            pipeline = self._ledger.redis.pipeline(transaction=False)
            for id_ in ids:
                pipeline.hmget(delivery_key(id_), list(Waiting.FIELDS))
            return list(pipeline.execute())

        return self._ledger.patiently(carry, PATIENCE)

    def _patiently(self, ask: Any) -> Any:
        return self._ledger.patiently(ask, PATIENCE)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch
