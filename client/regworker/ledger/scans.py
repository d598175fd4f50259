"""Reads all members of a set, hash or sorted set, or all keys, in pages of bounded size.

A server's cursor is valid only in the process that issued it: in another one, after a restart or a
failover, it skips members. So a scan leaves a mark in the process, checks it with each page, and
starts again where the mark is missing.

The mark is a script, which a server keeps in its memory only: it is in no file, and replicas do not
get it. Unlike `INFO`, managed services do not hide it.
"""

import hashlib
import secrets
from typing import Any
from weakref import WeakKeyDictionary

from regworker.domain.errors import LedgerUnavailable

#: Members that one command reads: well below a millisecond, in which the server does nothing else.
SCANNED = 1000

#: How often a scan starts before it fails: the server does not stay the same for long enough.
MOST_STARTS = 10

#: By connection pool, the last mark of its scans: a process needs no more than one.
_LAST: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class Scan:
    """One scan. Until it is `done`: give `page` to the ledger as a question, and its answer to
    `take`."""

    def __init__(
        self, command: str, *key: str, match: str | None = None, count: int = SCANNED
    ) -> None:
        """`command`: sscan, hscan or zscan, with a key; or scan, without one."""
        self.done = False
        self.first = True
        """Whether the scan has just started, perhaps again: pages before do not count."""
        self._command, self._key = command, key
        self._how: dict[str, Any] = {"match": match, "count": count}
        self._cursor = self._starts = 0
        self._mark = ""
        self._unmarked = False

    def page(self, redis: Any) -> Any:
        """Read the next page; `redis`: redis-py's client, of either kind."""
        pipeline = redis.pipeline(transaction=False)
        if self._unmarked:
            # A new one for each try: another process may have got the one before.
            self._mark = _LAST[redis.connection_pool] = f"return '{secrets.token_hex(8)}'"
            pipeline.script_load(self._mark)
        elif not self._cursor:
            self._mark = _LAST.get(redis.connection_pool, "")
        pipeline.script_exists(_digest(self._mark))
        getattr(pipeline, self._command)(*self._key, cursor=self._cursor, **self._how)
        return pipeline.execute()

    def take(self, answer: Any) -> dict[bytes, Any]:
        """The members in a page, with the values of a hash, or the scores of a sorted set.

        Raises `LedgerUnavailable` if the scan cannot be completed.
        """
        *_, [marked], (cursor, members) = answer
        self.first = not self._cursor
        if not marked and (cursor or not self.first):
            return self._start()
        self._cursor, self._unmarked, self.done = cursor, False, not cursor
        return dict.fromkeys(members) if self._command in {"scan", "sscan"} else dict(members)

    def _start(self) -> dict[bytes, Any]:
        self._starts += 1
        if self._starts > MOST_STARTS:
            raise LedgerUnavailable(
                f"incomplete: the ledger's server was restarted or replaced {MOST_STARTS} times "
                "while it was read; repeat this when the server is stable"
            )
        self._cursor, self._unmarked, self.first = 0, True, True
        return {}


def scanned(redis: Any, command: str, *key: str, match: str | None = None) -> dict[bytes, Any]:
    """Everything that a scan finds, as a request for `SyncLedger.ask`."""
    scan, found = Scan(command, *key, match=match), dict[bytes, Any]()
    while not scan.done:
        some = scan.take(scan.page(redis))
        found = some if scan.first else found | some
    return found


def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
