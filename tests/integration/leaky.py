"""SkyPostal with a leak on every path: it proves that the test for leaks finds them."""

import base64
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import redis

from regworker.domain.outcome import Outcome, Retryable
from worker.providers.skypostal import SkyPostal


class Leaky(SkyPostal):
    """Leaks the customer's password everywhere."""

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
        # Flower, the timeline and `regworker status` show this reason.
        return Retryable(f"could not register {secret}", retry_after=60)


def _write(text: str) -> None:
    Path(tempfile.mkstemp()[1]).write_text(text)
