"""Reads the whole installation from outside: the ledger, its server, and the broker.

For the exporter, `regworker top`, `stats` and `health`. It needs neither a sealing key nor an
account.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from celery import Celery
from kombu import Connection

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import SyncLedger
from regworker.ledger.snapshot import Beat, Snapshot, snapshot, whole
from regworker.settings import Settings
from worker.broker import nodes
from worker.broker.wakeups import QUEUES, REQUESTS
from worker.celery import new_app
from worker.monitoring.server_info import HIDDEN, look

#: Seconds to wait for the ledger: a reader should soon learn that it is away.
PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class Server:
    """What the ledger's server reports. Bytes. None: it does not show the value, or has none."""

    version: str
    memory: int | None
    memory_limit: int | None
    aof_enabled: bool | None
    aof_ok: bool | None
    primary: bool
    clients: int | None

    @property
    def memory_used(self) -> float | None:
        """The used share of its memory; None: it shows none, or has no limit."""
        if not self.memory_limit or self.memory is None:
            return None
        return self.memory / self.memory_limit

    @property
    def written(self) -> bool | None:
        """Whether it writes an append-only file; None: it does not show this, or needs none."""
        return self.aof_enabled and self.aof_ok

    @classmethod
    def read(cls, info: Mapping[str, Any], durability: str = "aof") -> Self:
        """Read a server's `INFO`; `durability`: `REGWORKER_DURABILITY`."""
        name = "valkey" if info.get("valkey_version") else "redis"
        written = ("aof_last_write_status", "aof_last_bgrewrite_status")
        shown = HIDDEN not in info
        has = bool(int(info.get("aof_enabled", 0)))
        judged = shown and (has or durability == "aof")
        return cls(
            version=f"{name} {info.get(f'{name}_version', '?')}",
            memory=int(info.get("used_memory", 0)) if shown else None,
            memory_limit=int(info.get("maxmemory", 0)) if shown else None,
            aof_enabled=has if judged else None,
            aof_ok=all(info.get(one, "ok") == "ok" for one in written) if judged else None,
            primary=info.get("role", "master") == "master",
            clients=int(info.get("connected_clients", 0)) if shown else None,
        )


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything, at one moment. `queues`: messages on each of the broker's; None: the broker is
    away."""

    snapshot: Snapshot
    server: Server
    queues: Mapping[str, int] | None


class Observer:
    """Reads the state. Close it, or use it as a context manager; not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = SyncLedger(settings.redis_url)
        self._durability = settings.durability
        self._app: Celery = new_app(settings)
        self._broker: Connection | None = None

    def snapshot(self) -> Snapshot:
        """What the ledger holds. Raises `LedgerUnavailable`, also if an index cannot be read: its
        jobs would count as none."""
        found = whole(self.ledger, PATIENCE)
        if found.broken:
            broken = ", ".join(found.broken)
            raise LedgerUnavailable(
                f"{broken}: not what the ledger has there; see regworker doctor"
            )
        return found

    def workers(self) -> list[Beat]:
        """The workers that have not gone silent. Raises `LedgerUnavailable`."""
        found = self.ledger(snapshot(), PATIENCE)
        return [one for one in found.workers if one.condition(found.at) != "silent"]

    def look(self) -> Overview:
        """Everything. Raises `LedgerUnavailable`."""
        found = self.snapshot()
        info = self.ledger.ask(look, PATIENCE)
        return Overview(found, Server.read(info, self._durability), self._queues())

    def close(self) -> None:
        """Close all connections."""
        self.ledger.close()
        self._hang_up()
        self._app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _queues(self) -> dict[str, int] | None:
        try:
            if self._broker is None:
                self._broker = self._app.connection_for_write()
                nodes.reach(self._broker)
            return {
                queue: self._waiting(self._broker, queue) for queue in (REQUESTS, *QUEUES.values())
            }
        except Exception:  # noqa: BLE001 -- whatever a transport raises: it is away
            self._hang_up()
            return None

    def _waiting(self, broker: Connection, queue: str) -> int:
        try:
            with broker.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except broker.channel_errors:
            # In Redis an empty list does not exist; a queue that no worker has declared is empty.
            return 0

    def _hang_up(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            with suppress(Exception):
                broker.release()
