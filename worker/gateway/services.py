"""What every request needs, opened once per process: `request.app.state.services`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from regworker.carriers import AsyncShell
from regworker.ledger import AsyncLedger
from regworker.results import RESULTS, is_sealed
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.gateway import metrics
from worker.gateway.batching import Batching
from worker.gateway.bearer import Gate
from worker.gateway.client_address import Proxies
from worker.gateway.feed import EventFeed
from worker.gateway.keyless_intake import KeylessIntake
from worker.monitoring import otlp_export, prometheus
from worker.monitoring.http_server import MetricsServer, Page
from worker.monitoring.metrics import Tally

#: Seconds for which a request waits for the ledger, before the caller is asked to repeat it.
PATIENCE = 5.0


@dataclass(slots=True)
class Services:
    """The ledger through the client library. All requests share its connections."""

    settings: Settings
    keyring: Keyring
    """The only one of `client` and `feed`."""
    client: AsyncShell
    """`client.core` has the rules (accept, status, cancel); `client.carry` carries them out."""
    way_in: Batching | KeylessIntake
    """Accepts and cancels jobs: itself, or without sealing keys through a worker."""
    gate: Gate
    feed: EventFeed
    requests: Tally
    stopping: asyncio.Event
    """Set when the process is asked to stop: waiting requests answer at once."""

    end_telemetry: Callable[[], None] = lambda: None
    served: MetricsServer | None = None
    """`/metrics`, on REGWORKER_METRICS_PORT and not on the service's own port."""

    @property
    def ledger(self) -> AsyncLedger:
        """Carries single commands: `await services.ledger(command)`."""
        return self.client.ledger

    @classmethod
    def open(cls, settings: Settings) -> "Services":
        """Open the services in the running loop. They connect at their first use."""
        keyring = Keyring.of(settings)
        client = AsyncShell(settings, PATIENCE, keyring)
        stopping = asyncio.Event()
        feed = EventFeed(client.ledger, keyring.open, is_sealed(settings, RESULTS))
        requests = metrics.requests()
        gate = Gate(client.ledger, Proxies(settings.serve_trusted_proxy))

        counted = (requests, gate.refused)
        end = otlp_export.send(settings, "registration-gateway", counted)

        def page() -> Page:
            return Page(prometheus.of_process(counted), prometheus.TYPE)

        served = None
        if settings.metrics_port is not None:
            served = MetricsServer.start(
                settings.metrics_address, settings.metrics_port, {"/metrics": page}
            )
        way_in = Batching(client) if keyring.kids else KeylessIntake(client)
        return cls(settings, keyring, client, way_in, gate, feed, requests, stopping, end, served)

    def use(self, settings: Settings, keyring: Keyring) -> None:
        """From now on, use other keys, which the settings hold too."""
        self.keyring.use(keyring)
        self.settings = settings

    async def aclose(self) -> None:
        """Close all connections."""
        self.stopping.set()
        if self.served is not None:
            await asyncio.to_thread(self.served.stop)
        await self.feed.aclose()
        await self.way_in.aclose()
        await self.client.aclose()
        await asyncio.to_thread(self.end_telemetry)


def services(request: Any) -> Services:
    """The services of a request's process; also a FastAPI dependency."""
    found: Services = request.app.state.services
    return found
