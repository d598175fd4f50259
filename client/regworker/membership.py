"""How a member of a consumer group reads a results stream: the rules, without input or output."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from regworker.clock import steady
from regworker.ledger import Command
from regworker.ledger.calls import scripts
from regworker.ledger.records import text
from regworker.ledger.steps import Ask, Exchange, Steps
from regworker.ledger.streams import START, Found, GroupReader, later

log = logging.getLogger(__name__)

#: Seconds of one blocking read: shorter than the connection's timeout, so that a quiet stream does
#: not count as a dead server; and how long `stop` may take.
BLOCK = 1.0

#: Seconds of one blocking read, at least, even if an entry can be claimed soon.
SHORTEST = 0.01

#: Replies for a group that does not exist (any more), or whose stream was deleted during a read.
_LOST = ("NOGROUP", "UNBLOCKED")


class Membership:
    """One member of a group: its entries, its reads, its claims."""

    def __init__(
        self,
        group: GroupReader,
        start: str,
        claim_after: float,
        *,
        named: bool,
    ) -> None:
        """`named`: its name is permanent, so it is not removed from the group at its end."""
        self.joined = False
        self.stopping = False
        self.waiting: deque[Found] = deque()
        self.claim_after = claim_after
        self._group = group
        self._start = start
        self._named = named
        self._backlog: str | None = None
        """The last entry found of those that an earlier process with this name got; None: all
        found."""
        self._last = "-"
        """The last entry that this member received, as far as it knows."""
        self._cursor = START
        """How far the group was searched for unacknowledged entries."""
        self._fresh_until = 0.0
        self._claim_at = 0.0

    @property
    def stale(self) -> bool:
        """Whether its fetched entries must be renewed before they are returned."""
        return bool(self.waiting) and steady() > self._fresh_until

    def next(self) -> Found | None:
        """The fetched entries, one at a time."""
        return self.waiting.popleft() if self.waiting and not self.stopping else None

    def keep(self, found: list[Found]) -> None:
        """Store fetched entries until they are returned."""
        self.waiting.extend(found)
        self._fresh_until = steady() + self.claim_after / 2

    def turn(self, patience: float) -> Steps[list[Found]]:
        """Present entries, or those that arrive within `patience` seconds, or within a second."""
        if self.stopping:
            return []
        try:
            if not self.joined:
                yield from self._join()
                self.joined, self._backlog, self._last = True, "-", "-"
            return (
                (yield from self._own())
                or (yield from self._claim())
                or (yield from self._read(patience))
            )
        except ResponseError as error:
            if not str(error).startswith(_LOST):
                raise
            log.warning("group %s of %s is lost; made again", self._group.name, self._group.stream)
            self.joined = False
            return []

    def ack(self, entries: Sequence[str]) -> Steps[None]:
        """Acknowledge entries."""
        stream, name = self._group.stream, self._group.name
        yield Ask(lambda redis: redis.xack(stream, name, *entries))

    def renew(self) -> Steps[None]:
        """Keep the fetched entries; drop those that were delivered to others meanwhile."""
        try:
            pending = yield from self._pending([one.entry for one in self.waiting])
            me = self._group.reader
            ours = {one for one, how in pending.items() if text(how["consumer"]) == me}
            self.waiting = deque(one for one in self.waiting if one.entry in ours)
            if ours:
                stream, name = self._group.stream, self._group.name
                held = sorted(ours)
                yield Ask(lambda redis: redis.xclaim(stream, name, me, 0, held, justid=True))
        except ResponseError as error:
            if not str(error).startswith(_LOST):
                raise
            self.waiting.clear()
        self._fresh_until = steady() + self.claim_after / 2

    def leave(self) -> Steps[None]:
        """Release the fetched entries; leave the group, if the member holds no others."""
        waiting = [one.entry for one in self.waiting]
        yield from self._ask(self._group.leave(waiting, named=self._named))

    def call(self, name: str) -> None:
        """Give it its name, before its first step."""
        self._group = replace(self._group, reader=name)

    def _join(self) -> Steps[None]:
        stream, name, start = self._group.stream, self._group.name, self._start
        try:
            yield Ask(lambda redis: redis.xgroup_create(stream, name, start, mkstream=True))
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        if self._start == "$":
            # "Now" is when this consumer began, even if the group must be created again.
            groups = yield Ask(lambda redis: redis.xinfo_groups(stream))
            [position] = [one["last-delivered-id"] for one in groups if text(one["name"]) == name]
            self._start = text(position)

    def _own(self) -> Steps[list[Found]]:
        """Take entries that an earlier process with this name got and did not acknowledge."""
        if self._backlog is None:
            return []
        found = self._seen((yield from self._ask(self._group.read(self._backlog, again=True))))
        self._backlog = found[-1].entry if found else None
        return found

    def _claim(self) -> Steps[list[Found]]:
        """Take entries that any member got `claim_after` seconds ago and did not acknowledge."""
        while steady() >= self._claim_at:
            command = self._group.left(self.claim_after, self._cursor)
            self._cursor, found = yield from self._ask(command)
            if self._cursor == START:
                # Twice in that time, so that a dead consumer's entries are claimed soon after it.
                self._claim_at = steady() + self.claim_after / 2
            if found:
                return self._seen(found)
        return []

    def _read(self, patience: float) -> Steps[list[Found]]:
        until = max(SHORTEST, min(BLOCK, patience, self._claim_at - steady()))
        wait = until if patience > 0 else 0
        return self._seen((yield from self._ask(self._group.read(self._last), wait)))

    def _pending(self, entries: list[str]) -> Steps[dict[str, Any]]:
        """The state of these entries in the group: consumer, deliveries; without acknowledged
        ones."""

        def look(redis: Any) -> Any:
            pipeline = redis.pipeline(transaction=False)
            for entry in entries:
                pipeline.xpending_range(self._group.stream, self._group.name, entry, entry, 1)
            return pipeline.execute()

        found = yield Ask(look)
        return {text(one["message_id"]): one for [one] in filter(None, found)}

    def _ask(self, command: Command[Any], wait: float = 0) -> Steps[Any]:
        try:
            answer = yield Exchange(self._group.asking(command, wait))
        except NoScriptError:
            source = scripts()[command.script]
            yield Ask(lambda redis: redis.script_load(source))
            answer = yield Exchange(self._group.asking(command))
        return command.read(answer)

    def _seen(self, found: list[Found]) -> list[Found]:
        for one in found:
            self._last = later(self._last, one.entry)
        return found
