"""A provider whose process does not end: something hangs after everything was closed."""

import threading
from typing import ClassVar

from celery import signals

from worker.monitoring import stop_watch
from worker.providers.skypostal import SkyPostal

# For the test: seconds instead of half a minute.
stop_watch.IDLE = 1.0


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def wait_for_nobody(**_: object) -> None:
    """Hangs."""
    threading.Event().wait()


class Stuck(SkyPostal):
    """The provider."""

    name: ClassVar[str] = "skypostal"
