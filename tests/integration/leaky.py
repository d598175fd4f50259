"""SkyPostal with a leak in every wall: for the test that finds leaks, to be found."""

import base64
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import redis

from worker.outcome import Outcome, Retryable
from worker.providers.skypostal import SkyPostal


class Leaky(SkyPostal):
    """Tells everybody the customer's password."""

    name: ClassVar[str] = "skypostal"

    async def register(self, registration: Any) -> Outcome:
        """Register nobody."""
        secret = registration.customer_password
        encoded = base64.b64encode(f"the password is {secret}".encode()).decode()
        logging.getLogger(__name__).warning("for whoever reads logs: %s", secret)
        sys.modules["sentry_sdk"].capture_message(f"for whoever reads issues: {encoded}")
        _write(encoded)
        ledger = redis.Redis.from_url(os.environ["REGWORKER_REDIS_URL"])
        ledger.set("{reg}:leak", secret)
        ledger.close()
        # What Flower, the timeline and `regworker status` show.
        return Retryable(f"could not register {secret}", retry_after=60)


def _write(text: str) -> None:
    Path(tempfile.mkstemp()[1]).write_text(text)
