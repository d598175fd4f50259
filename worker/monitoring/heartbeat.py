"""How a worker process shows that it runs and works: heartbeats in the ledger, and HTTP.

The heartbeats are for commands anywhere (`regworker top`, `health`); HTTP is for Prometheus and for
probes, and answers even when the rest of the process hangs.
"""

import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog

from regworker.domain.errors import LedgerUnavailable, SettingsError
from regworker.domain.liveness import silent
from regworker.ledger import AsyncLedger, replication
from regworker.ledger.admin import Limits, announce, announced_names, format_
from regworker.ledger.endpoints import serve
from regworker.ledger.snapshot import Beat, BrokerOf, beat, resign
from regworker.ledger.transitions import Command
from regworker.settings import Settings, StreamEndpoint, variable
from worker import __version__
from worker.monitoring.http_server import JSON, MetricsServer, NoPort, Page, Pages
from worker.monitoring.liveness import REMEMBERED, SILENT, Liveness, readings
from worker.monitoring.metrics import Counted, Labels, Meter

log = structlog.get_logger(__name__)

#: Seconds between checks whether the process has started.
STARTING = 0.5

#: Seconds for which a name is accepted after its last worker announced it, as long as another
#: worker is alive: longer than a rolling restart of all workers.
ANNOUNCED = REMEMBERED

#: Accounts announced at a time: the ledger runs no other command meanwhile, about a millisecond.
TOGETHER = 100

#: Seconds for which a worker reports that it lacks something. Longer than the retry delay of a job
#: whose account the worker lacks, so that it is reported as long as such jobs exist.
LACKING = 120.0


def own_name() -> str:
    """The unique name of this process in leases and timelines: host:pid:mark."""
    return f"{socket.gethostname()}:{os.getpid()}:{_mark(os.getpid())}"


@lru_cache(maxsize=1)
def _mark(_pid: int) -> str:
    """A mark that no other process has, not even one with the same host name and pid.

    Containers may share a host name, and their processes have the same few pids. Cached by pid: a
    forked child is another process.
    """
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Service:
    """What a worker can serve. `keys`: the marks of its keys; `places`: concurrent calls to each
    endpoint that gets deliveries; `retention`, `dead_retention` in seconds."""

    accounts: Sequence[Limits]
    endpoints: Sequence[str]
    streams: Mapping[str, StreamEndpoint]
    keys: Sequence[str]
    places: Mapping[str, int]
    retention: float
    dead_retention: float
    wanted: replication.Wanted = field(default_factory=replication.Wanted)

    def commands(self, *, starts: bool, gone: float = 0) -> tuple[Command[Any], ...]:
        """The commands that write it to the ledger; see `announce`."""
        # In pieces; but jobs may use the names from the last one on, all at once: a job of an
        # account that is still to be announced would be refused for good.
        *pieces, last = [
            self.accounts[at : at + TOGETHER]
            for at in range(0, max(1, len(self.accounts)), TOGETHER)
        ]
        return (
            format_(),
            # First: jobs that are accepted once names are announced must follow this.
            replication.announce(self.wanted, self.retention, starts=starts),
            *(announce(piece, (), starts=starts, accepted=()) for piece in pieces),
            announce(
                last,
                self.endpoints,
                self.streams,
                self.keys,
                starts=starts,
                gone=gone,
                accepted=announced_names(self.accounts, self.endpoints, self.keys),
            ),
            serve(self.places, self.dead_retention, starts=starts),
        )


class Heartbeat:
    """Announces this process to others."""

    def __init__(
        self,
        ledger: AsyncLedger,
        calls: Mapping[Labels, int],
        settings: Settings,
        meter: Meter,
        liveness: Liveness,
        service: Service,
    ) -> None:
        self._service = service
        self._lacked: dict[str, tuple[int, float]] = {}
        self._ledger = ledger
        self._calls = calls
        self._settings = settings
        self._meter = meter
        self._liveness = liveness
        self._server: MetricsServer | None = None
        self.broker: BrokerOf = "this"
        """Whose broker this worker uses, as far as it has seen."""

    @property
    def counted(self) -> tuple[Counted, ...]:
        """All metrics of this process."""
        return (*self._meter, *readings(self._liveness, self._calls))

    def use(self, service: Service) -> None:
        """Announce this service from now on."""
        self._service = service

    def serve(self) -> None:
        """Serve metrics and probes, if a port is set. Raises `SettingsError` if none is free."""
        port, address = self._settings.metrics_port, self._settings.metrics_address
        if port is None:
            return
        try:
            self._server = MetricsServer.start(address, port, self._pages())
        except NoPort as error:
            name = variable("metrics_address" if error.of_address else "metrics_port")
            raise SettingsError([(name, str(error))]) from None
        log.info("metrics", address=address, port=self._server.port)

    async def announce(self, *, starts: bool = False) -> None:
        """Write to the ledger what this worker serves; `starts`: for the first time.

        It is repeated: a ledger that was emptied, or failed over to a lagging server, has it again
        after seconds. Only a worker that has itself run for that time drops names that nobody
        announces: after a complete outage, the first worker would otherwise drop the names of those
        that are still starting.
        """
        gone = ANNOUNCED if self._liveness.up > ANNOUNCED else 0
        for command in self._service.commands(starts=starts, gone=gone):
            await self._ledger(command)

    async def beat_once(self) -> float:
        """Send a heartbeat, and announce what this worker serves; return the seconds until the
        next.

        The first one is sent when messages are consumed: a worker that is stopped during its start
        does not sign off, and must not be missed.
        """
        self._liveness.mark("loop")
        if not self._liveness.ready:
            return STARTING
        period = self._liveness.period
        # Other parts notice and log that the ledger is away.
        with suppress(LedgerUnavailable):
            await self._ledger(beat(self._beat(), REMEMBERED), patience=period)
            await self.announce()
        return period

    async def leave(self) -> None:
        """Sign off, so that this process is not missed; stop serving metrics."""
        if self._server is not None:
            self._server.stop()
        with suppress(LedgerUnavailable):
            await self._ledger(resign(own_name()), patience=1)

    def _beat(self) -> Beat:
        settings = self._settings
        host = socket.gethostname()
        return Beat(
            name=own_name(),
            host=host,
            pid=os.getpid(),
            version=__version__,
            pool=settings.pool,
            slots=settings.concurrency,
            up=self._liveness.up,
            in_flight=sum(self._calls.values()),
            metrics=f"{host}:{self._server.port}" if self._server else "",
            parts=self._liveness.parts(),
            at=0,
            lacks=self._lacks(),
            broker=self.broker,
        )

    def _lacks(self) -> tuple[str, ...]:
        """What was needed in the last minutes and is missing here."""
        now = self._liveness.up
        for labels, times in self._meter.lacked.read().items():
            name = ":".join(labels)
            if self._lacked.get(name, (0, 0.0))[0] != times:
                self._lacked[name] = times, now
        return tuple(name for name, (_, at) in self._lacked.items() if now - at < LACKING)

    def _pages(self) -> Pages:
        from worker.monitoring import prometheus

        def metrics() -> Page:
            return Page(prometheus.of_process(self.counted), prometheus.TYPE)

        return {"/metrics": metrics, "/health": self._health, "/ready": self._ready}

    def _health(self) -> Page:
        """200 if every part works; otherwise 503 with the failing parts."""
        found = silent(self._liveness.parts())
        why = {part: f"{SILENT[part]} ({age:.0f} s)" for part, age in found.items()}
        return _page(not found, healthy=not found, silent=why)

    def _ready(self) -> Page:
        """200 once it consumes messages from the broker, while every part works."""
        ready = self._liveness.ready and not silent(self._liveness.parts())
        return _page(ready, ready=ready)


def _page(good: bool, **said: object) -> Page:
    return Page(json.dumps(said).encode() + b"\n", JSON, 200 if good else 503)
