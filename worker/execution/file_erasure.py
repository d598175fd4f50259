"""Removes plain registrations from the servers' files, in limited time after their jobs are
accepted.

Unsealed input is in the server's append-only file, and perhaps in a snapshot, until the files are
rewritten. Each worker records plain input before it is processed; one of them has the files
rewritten when no more arrives, and once per period while it does.

Not covered are replicas' own files, and RabbitMQ's store: docs/guide/sealing.md.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio
import structlog
from redis.exceptions import RedisError, ResponseError

from regworker.clock import steady
from regworker.ledger import AsyncLedger
from regworker.ledger.admin import erase, erased, note_plain
from regworker.ledger.records import text
from worker.telemetry import alert

log = structlog.get_logger(__name__)

#: Shares of a period: between two notes; and without a note, after which all requests are done.
NOTES, QUIET = 1 / 10, 1 / 2

#: Seconds between notes and turns if files are never rewritten: only the doctor reads the notes.
UNHEEDED = 60.0

#: Seconds between checks whether a file is written, and until the worker gives up.
LOOK, LONGEST = 0.5, 3600.0


class Eraser:
    """Lets the ledger's server, and the broker's if it is a Redis, rewrite their files.

    `period`: seconds between two rewrites, at least; 0: never.
    """

    def __init__(
        self, ledger: AsyncLedger, period: float, broker: redis.asyncio.Redis | None = None
    ) -> None:
        self._ledger = ledger
        self._period = period
        self._broker = broker
        self._between = period * NOTES or UNHEEDED
        self._noted = -math.inf
        self._told = ""

    async def note(self) -> None:
        """Note that something in plain text arrived and is about to be processed."""
        if steady() - self._noted >= self._between:
            await self._ledger(note_plain())
            self._noted = steady()

    async def erase_once(self) -> float:
        """Rewrite the files if that is due; return the seconds until the next turn."""
        if not self._period:
            return UNHEEDED
        quiet = self._period * QUIET
        begun = await self._ledger(erase(self._period, quiet))
        if begun is not None:
            why = await self._rewrite()
            await self._ledger(erased(begun, quiet, why), patience=60)
            self._tell(why)
        return min(60.0, self._period / 4)

    async def aclose(self) -> None:
        """Close the connection to the broker's server."""
        if self._broker is not None:
            await self._broker.aclose()

    async def _rewrite(self) -> str:
        """Why a file could not be rewritten; '' if all were."""
        servers = {"the ledger's server": self._ledger.redis, "the broker's": self._broker}
        seen: set[str] = set()
        for name, server in servers.items():
            if server is None:
                continue
            try:
                info: Any = await server.info()
                if info["run_id"] not in seen:
                    seen.add(info["run_id"])
                    await _rewrite(server, info)
            except (RedisError, OSError, TimeoutError, _Failed) as error:
                return f"{name}: {type(error).__name__}: {str(error)[:100]}"
        return ""

    def _tell(self, why: str) -> None:
        if why and why != self._told:
            alert("plain registrations stay in files", kind="erasure", reason=why)
        elif not why:
            log.info("files are rewritten: what came plain is in none of them")
        self._told = why


class _Failed(Exception):  # noqa: N818
    """A file was not written."""


async def _rewrite(server: redis.asyncio.Redis, info: dict[str, Any]) -> None:
    run = info["run_id"]
    if await _told(server, "auto-aof-rewrite-percentage") == "0":
        raise _Failed("auto-aof-rewrite-percentage is 0, as during a backup")
    if int(info.get("aof_enabled", 0)):
        await _start(server.bgrewriteaof, lambda: _persistence(server, run))
        await _written(server, run, "aof_rewrite", "aof_last_bgrewrite_status")
    if int(info.get("rdb_saves", 0)) or await _told(server, "save"):
        await _start(lambda: server.bgsave(schedule=False), lambda: _persistence(server, run))
        await _written(server, run, "rdb_bgsave", "rdb_last_bgsave_status")


async def _start(
    command: Callable[[], Awaitable[Any]], look: Callable[[], Awaitable[dict[str, Any]]]
) -> None:
    """Start a rewrite once no other runs: that one may have begun too early."""
    end = steady() + LONGEST
    while True:
        found = await look()
        busy = (int(found.get(name, 0)) for name in _BUSY)
        if not any(busy):
            try:
                await command()
            except ResponseError as error:
                # Another worker was quicker.
                if "in progress" not in str(error):
                    raise
            else:
                return
        if steady() > end:
            raise _Failed("the server writes another file all the time")
        await asyncio.sleep(LOOK)


_BUSY = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")


async def _written(server: redis.asyncio.Redis, run: str, what: str, status: str) -> None:
    end = steady() + LONGEST
    while True:
        found = await _persistence(server, run)
        names = (f"{what}_in_progress", f"{what}_scheduled")
        if not any(int(found.get(name, 0)) for name in names):
            if found.get(status, "ok") != "ok":
                raise _Failed(f"{status} is {found[status]}")
            return
        if steady() > end:
            raise _Failed("it was not written within an hour")
        await asyncio.sleep(LOOK)


async def _persistence(server: redis.asyncio.Redis, run: str) -> dict[str, Any]:
    found: dict[str, Any] = await server.info("persistence", "server")
    if found["run_id"] != run:
        raise _Failed("the server was restarted meanwhile")
    return found


async def _told(server: redis.asyncio.Redis, name: str) -> str:
    """A setting of the server; '' if it does not show it."""
    try:
        found: Any = await server.config_get(name)
    except ResponseError:
        return ""
    return "".join(text(value) for value in found.values())
