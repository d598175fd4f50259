"""Looking at the whole installation from outside: the ledger, its server, and the broker.

For the exporter, `regworker top`, `stats` and `health`. Needs neither a sealing key nor an account.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from celery import Celery
from kombu import Connection

from worker.celery import new_app
from worker.ledger import SyncLedger
from worker.ledger.gauges import Gauges, gauges, mend
from worker.settings import Settings
from worker.wakeups import DOOR, QUEUES

#: Seconds the ledger is waited for: whoever looks wants to hear that it is away.
PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class Server:
    """What the ledger's server says of itself. Bytes."""

    version: str
    memory: int
    memory_limit: int
    aof_enabled: bool
    aof_ok: bool
    primary: bool
    clients: int

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Self:
        """Read a server's `INFO`."""
        name = "valkey" if info.get("valkey_version") else "redis"
        written = ("aof_last_write_status", "aof_last_bgrewrite_status")
        return cls(
            version=f"{name} {info.get(f'{name}_version', '?')}",
            memory=int(info.get("used_memory", 0)),
            memory_limit=int(info.get("maxmemory", 0)),
            aof_enabled=bool(int(info.get("aof_enabled", 0))),
            aof_ok=all(info.get(one, "ok") == "ok" for one in written),
            primary=info.get("role", "master") == "master",
            clients=int(info.get("connected_clients", 0)),
        )


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything, at one moment. `queues`: messages on each of the broker's; None: it is away."""

    gauges: Gauges
    server: Server
    queues: Mapping[str, int] | None


class Lookout:
    """Looks. Close it, or use it as a context manager; not to be shared between threads."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = SyncLedger(settings.redis_url)
        self._app: Celery = new_app(settings)
        self._broker: Connection | None = None

    def gauges(self) -> Gauges:
        """What the ledger holds. Raises `LedgerUnavailable`."""
        found = self.ledger(gauges(), PATIENCE)
        if found.astray:
            self.ledger(mend(found.astray), PATIENCE)
        return found

    def look(self) -> Overview:
        """All of it. Raises `LedgerUnavailable`."""
        found = self.gauges()
        info: Any = self.ledger.patiently(self.ledger.redis.info, PATIENCE)
        return Overview(found, Server.read(info), self._queues())

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
                self._broker.ensure_connection(max_retries=1, interval_start=0)
            return {queue: self._waiting(self._broker, queue) for queue in (DOOR, *QUEUES.values())}
        except Exception:  # noqa: BLE001 -- whatever a transport raises: it is away
            self._hang_up()
            return None

    def _waiting(self, broker: Connection, queue: str) -> int:
        try:
            with broker.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except broker.channel_errors:
            # A list that is empty is none to Redis; a queue that no worker has declared is empty.
            return 0

    def _hang_up(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            with suppress(Exception):
                broker.release()
