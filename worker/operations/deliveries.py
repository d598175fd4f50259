"""Pending and dead deliveries: for a person to read and to replay."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

from redis.exceptions import ResponseError

from regworker.domain.actor import Actor
from regworker.domain.errors import RegistrationWorkerError
from regworker.ledger import SyncLedger
from regworker.ledger.admin import trust
from regworker.ledger.endpoints import (
    EndpointState,
    Waiting,
    enable,
    endpoint_key,
    look_at_endpoint,
    pending_key,
    replay,
    retry,
)
from regworker.ledger.records import text
from regworker.ledger.transitions import (
    DEAD,
    announced,
    delivery_key,
    endpoint_name,
    were_announced,
)
from worker.operations.jobs import WrongCursor

T = TypeVar("T")

#: Deliveries read or replayed in one round trip: a script of some milliseconds at most.
BATCH = 200

#: Seconds for which the ledger may be away.
PATIENCE = 10.0


class UnknownEndpoint(RegistrationWorkerError):  # noqa: N818
    """Raised when no worker has announced an endpoint of that name."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which deliveries: all that match the given fields. Times are those of their creation."""

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


class DeliveryAdmin:
    """The pending and dead deliveries, and their endpoints."""

    def __init__(self, ledger: SyncLedger) -> None:
        self._ledger = ledger
        self.unreadable: list[str] = []
        """Keys that a list has skipped, because they hold no valid record."""

    def endpoints(self) -> list[EndpointState]:
        """Every endpoint that a worker delivers to, by name."""
        found = []
        for name in self._names():
            try:
                found.append(self._ledger(look_at_endpoint(name)))
            except (ResponseError, ValueError):
                self.unreadable.append(endpoint_key(name))
        return [one for one in found if one.max_in_flight]

    def endpoint(self, name: str) -> EndpointState:
        """An endpoint. Raises `UnknownEndpoint`."""
        if not self._patiently(lambda: self._ledger.redis.exists(endpoint_key(name))):
            raise UnknownEndpoint(f"no worker delivers to the endpoint {name}")
        return self._ledger(look_at_endpoint(name))

    def deliveries(self, wanted: Filter, after: str = "") -> Iterator[Waiting]:
        """The pending deliveries, the oldest first for each endpoint; then the dead ones, in order
        of death. `after`: only those behind one, by its `place`. Raises `WrongCursor`.

        They are read lazily: a delivery that arrives meanwhile may or may not be included.
        """
        state, start = _read_place(after)
        if wanted.state != "dead" and state != "dead":
            last = _endpoint_of(text(start[1]))
            for name in [wanted.endpoint] if wanted.endpoint else self._names():
                if name >= last:
                    found = self._pending(name, wanted, start if name == last else _START)
                    yield from self._read(found, replace(wanted, state="pending"))
        if wanted.state != "pending":
            dead = self._dead(wanted.endpoint, start if state == "dead" else _START)
            yield from self._read(dead, replace(wanted, state="dead"))

    def place(self, one: Waiting) -> str:
        """Where a delivery is in a list, to continue behind it."""
        key = DEAD if one.state == "dead" else pending_key(one.endpoint)
        # Not by its record, which may say something else; unless it has left the list.
        score: Any = self._patiently(lambda: self._ledger.redis.zscore(key, one.id))
        if score is None:
            score = one.dead_at if one.state == "dead" else one.created_at
        return f"{one.state} {score:.0f} {one.id}"

    def by_ids(self, ids: Iterable[str]) -> list[Waiting]:
        """The stored deliveries with these ids."""
        return list(self._read(ids, Filter()))

    def died(self, name: str, since: int) -> Iterator[str]:
        """The ids of an endpoint's deliveries that died at or after a time (ms)."""
        return self._dead(name, _START, since)

    def replay(
        self, ids: Iterable[str], actor: Actor, ticket: str = ""
    ) -> Iterator[tuple[str, str]]:
        """Replay dead deliveries; yields the id of each, and `replayed`, `gone` or `disabled`.

        Lazy, in batches: iterate to replay. `ticket`: of one batch, which may be a repeat.
        """
        for batch in _batches(ids):
            said = self._ledger(replay(batch, actor, ticket), PATIENCE)
            yield from zip(batch, said, strict=True)

    def retry(
        self, ids: Iterable[str], actor: Actor, ticket: str = ""
    ) -> Iterator[tuple[str, str]]:
        """Try pending deliveries now; yields the id of each, and `due`, `trying` or `gone`.

        Lazy, in batches: iterate to retry.
        """
        for batch in _batches(ids):
            said = self._ledger(retry(batch, actor, ticket), PATIENCE)
            yield from zip(batch, said, strict=True)

    def enable(self, name: str, actor: Actor) -> EndpointState:
        """Enable an endpoint again; return its previous state. Raises `UnknownEndpoint`."""
        before = self.endpoint(name)
        self._ledger(enable(name, actor), PATIENCE)
        return before

    def trust(self, name: str, actor: Actor) -> bool:
        """Reuse its connections again after a stray answer. Raises `UnknownEndpoint`."""
        self.endpoint(name)
        return self._ledger(trust(endpoint_key(name), "endpoint", name, actor), PATIENCE)

    def _names(self) -> list[str]:
        # Also endpoints that no worker has any more: there may be deliveries to them.
        found = {*self._ledger.ask(announced), *self._ledger.ask(were_announced)}
        prefix = endpoint_name("")
        return sorted(one.removeprefix(prefix) for one in found if one.startswith(prefix))

    def _pending(self, name: str, wanted: Filter, start: "_Place") -> Iterator[str]:
        return self._pages(pending_key(name), wanted.earliest, wanted.latest, start)

    def _dead(self, name: str | None, start: "_Place", since: int = 0) -> Iterator[str]:
        found = self._pages(DEAD, since, math.inf, start)
        return (one for one in found if name is None or _endpoint_of(one) == name)

    def _pages(self, key: str, low: float, high: float, last: "_Place") -> Iterator[str]:
        """The members of an index behind a place, in order; up to the one that is the last now.

        A page begins behind the previous one's last member, not at an offset: others leave the
        index meanwhile. Members of one score cannot be skipped, and are read again.
        """
        redis: Any = self._ledger.redis
        ends = self._patiently(lambda: redis.zrange(key, -1, -1, withscores=True))
        high = min([high, *(score for _, score in ends)])
        low, most = max(low, last[0]), BATCH
        while True:
            found = self._patiently(
                partial(redis.zrangebyscore, key, low, high, 0, most, withscores=True)
            )
            places = [(score, member) for member, score in found]
            yield from (text(member) for score, member in places if (score, member) > last)
            if len(found) < most:
                return
            low, last = places[-1][0], max(last, places[-1])
            most = BATCH + sum(score == low for score, _ in places)

    def _read(self, ids: Iterable[str], wanted: Filter) -> Iterator[Waiting]:
        for batch in _batches(ids):
            for id_, values in zip(batch, self._fields(batch), strict=True):
                try:
                    one = Waiting.read(id_, values)
                except (LookupError, ValueError, TypeError):
                    self.unreadable.append(delivery_key(id_))
                    continue
                # It may have arrived meanwhile, been replayed, or expired.
                if one is None or (wanted.state and one.state != wanted.state):
                    continue
                if wanted.earliest <= one.created_at <= wanted.latest:
                    yield one

    def _fields(self, ids: Sequence[str]) -> list[Any]:
        def carry() -> list[Any]:
            pipeline = self._ledger.redis.pipeline(transaction=False)
            for id_ in ids:
                pipeline.hmget(delivery_key(id_), list(Waiting.FIELDS))
            answers = pipeline.execute(raise_on_error=False)
            for one in answers:
                # A key that is no record is reported by `_read`. Any other error is the server's.
                if isinstance(one, Exception) and "WRONGTYPE" not in str(one):
                    raise one
            return list(answers)

        return self._ledger.patiently(carry, PATIENCE)

    def _patiently(self, ask: Any) -> Any:
        return self._ledger.patiently(ask, PATIENCE)


_Place = tuple[float, bytes]
"""Where something is in an index: score and member."""

_START: _Place = (-math.inf, b"")


def _read_place(after: str) -> tuple[str, _Place]:
    if not after:
        return "", _START
    found = re.fullmatch(r"(pending|dead) (\d{1,15}) (d:.+)", after, re.ASCII)
    if not found:
        raise WrongCursor("after: does not belong to this list; start again without it")
    return found[1], (float(found[2]), found[3].encode())


def _endpoint_of(id_: str) -> str:
    return id_.rpartition(":")[2]


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch
