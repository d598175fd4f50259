"""How a worker process shows that it is there, and well: signs of life in the ledger, and HTTP.

The ledger's are for whoever looks from anywhere (`regworker top`, `health`); HTTP is for
Prometheus and for probes, and answers also when the rest of the process hangs.
"""

import json
import os
import socket
from contextlib import suppress

import structlog

from worker import __version__
from worker.errors import LedgerUnavailable, SettingsError
from worker.leases import Leases
from worker.ledger import AsyncLedger
from worker.ledger.gauges import Beat, beat, resign
from worker.metrics import Meter
from worker.scrape import JSON, NoPort, Page, Pages, Scrape
from worker.settings import Settings, variable
from worker.vitals import REMEMBERED, SILENT, Vitals, silent

log = structlog.get_logger(__name__)

#: Seconds between looks whether the process has started.
STARTING = 0.5


def own_name() -> str:
    """This process among all workers, as leases and timelines name it: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Presence:
    """This process as others see it."""

    def __init__(
        self,
        ledger: AsyncLedger,
        leases: Leases,
        settings: Settings,
        meter: Meter,
        vitals: Vitals,
    ) -> None:
        self._ledger = ledger
        self._leases = leases
        self._settings = settings
        self._meter = meter
        self._vitals = vitals
        self._scrape: Scrape | None = None

    def serve(self) -> None:
        """Serve metrics and probes, if a port is set. Raises `SettingsError` if none is free."""
        port, address = self._settings.metrics_port, self._settings.metrics_address
        if port is None:
            return
        try:
            self._scrape = Scrape.start(address, port, self._pages())
        except NoPort as error:
            raise SettingsError([(variable("metrics_port"), str(error))]) from None
        log.info("metrics", address=address, port=self._scrape.port)

    async def beat_once(self) -> float:
        """Give a sign of life; seconds until the next.

        The first when messages are taken: whoever is ended while it starts takes no leave, and is
        not to be missed.
        """
        self._vitals.mark("loop")
        if not self._vitals.ready:
            return STARTING
        period = self._vitals.period
        # That the ledger is away others will notice, and say.
        with suppress(LedgerUnavailable):
            await self._ledger(beat(self._beat(), REMEMBERED), patience=period)
        return period

    async def leave(self) -> None:
        """Take leave in order, so that nobody looks for this process; and serve no more."""
        if self._scrape is not None:
            self._scrape.stop()
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
            # A child of a pool of processes carries one at a time.
            slots=settings.concurrency if settings.pool == "loop" else 1,
            up=self._vitals.up,
            in_flight=len(self._leases),
            metrics=f"{host}:{self._scrape.port}" if self._scrape else "",
            parts=self._vitals.parts(),
            at=0,
        )

    def _pages(self) -> Pages:
        from worker import exposition

        def metrics() -> Page:
            text = exposition.of_process(self._meter, self._vitals, len(self._leases))
            return Page(text, exposition.TYPE)

        return {"/metrics": metrics, "/health": self._health, "/ready": self._ready}

    def _health(self) -> Page:
        """200 while every part works; 503 and which doesn't."""
        found = silent(self._vitals.parts())
        why = {part: f"{SILENT[part]} ({age:.0f} s)" for part, age in found.items()}
        return _page(not found, healthy=not found, silent=why)

    def _ready(self) -> Page:
        """200 once it takes messages from the broker, while every part works."""
        ready = self._vitals.ready and not silent(self._vitals.parts())
        return _page(ready, ready=ready)


def _page(good: bool, **said: object) -> Page:
    return Page(json.dumps(said).encode() + b"\n", JSON, 200 if good else 503)
