"""The publishers of the settings' endpoints, also when the settings change."""

import asyncio
from collections.abc import Awaitable, Callable, Container
from functools import partial
from pathlib import Path
from typing import assert_never

from celery import Celery

from regworker.settings import (
    Endpoint,
    QueueEndpoint,
    Settings,
    StreamEndpoint,
    WebhookEndpoint,
)
from worker.execution.distrusted_hosts import StrayAnswers
from worker.publishers.base import Publisher
from worker.publishers.queue import QueuePublisher
from worker.publishers.webhook import WebhookPublisher

#: The longest duration of a delivery or a call, in seconds.
LONGEST = 120.0

Close = Callable[[], Awaitable[None]]


class Endpoints:
    """The endpoints that get their events by deliveries. Both mappings remain the same objects.

    `disable_after`: seconds, by endpoint; from the settings.
    """

    def __init__(self, settings: Settings, app: Celery, strays: StrayAnswers) -> None:
        self._settings = settings
        self._app = app
        self._strays = strays
        self._closing: dict[asyncio.Task[None], Close] = {}
        self.publishers: dict[str, Publisher] = self._made(settings, settings.endpoints)
        self.disable_after: dict[str, float] = _disable_after(settings)

    def use(self, settings: Settings) -> None:
        """Deliver to the endpoints of these settings from now on."""
        new, old = settings.endpoints, self._settings.endpoints
        changed = {name for name in {*new, *old} if new.get(name) != old.get(name)}
        # The contents of files may have changed, too.
        changed |= {name for name, one in new.items() if _files(settings, one)}
        made = self._made(settings, changed)
        for name in changed:
            if (before := self.publishers.pop(name, None)) is not None:
                self.close_later(before.aclose)
        self.publishers.update(made)
        self.disable_after.clear()
        self.disable_after.update(_disable_after(settings))
        self._settings = settings

    async def aclose(self) -> None:
        """Close all connections."""
        closing, self._closing = self._closing, {}
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        # Together: a publisher whose broker hangs takes seconds.
        closes = (*closing.values(), *(one.aclose for one in self.publishers.values()))
        came = await asyncio.gather(*(close() for close in closes), return_exceptions=True)
        if faults := [one for one in came if isinstance(one, Exception)]:
            raise faults[0]

    def close_later(self, close: Close) -> None:
        """Close connections once their requests have ended; at the latest when the process ends."""

        async def wait() -> None:
            await asyncio.sleep(LONGEST)
            del self._closing[task]
            await close()

        task = asyncio.ensure_future(wait())
        self._closing[task] = close

    def _made(self, settings: Settings, names: Container[str]) -> dict[str, Publisher]:
        found: dict[str, Publisher] = {}
        for name, endpoint in settings.endpoints.items():
            if name not in names:
                continue
            match endpoint:
                case WebhookEndpoint():
                    stray = partial(self._strays.endpoint, name)
                    found[name] = WebhookPublisher(endpoint, stray, settings.way_out)
                case QueueEndpoint():
                    found[name] = QueuePublisher(endpoint.queue, self._app.connection_for_write)
                case StreamEndpoint():
                    pass  # the ledger's own scripts write to them
                case _:
                    assert_never(endpoint)
        return found


def _files(settings: Settings, endpoint: Endpoint) -> tuple[Path, ...]:
    if isinstance(endpoint, WebhookEndpoint):
        return settings.way_out.to(endpoint).files
    return ()


def _disable_after(settings: Settings) -> dict[str, float]:
    return {name: one.disable_after for name, one in settings.delivered().items()}
