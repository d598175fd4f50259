"""All that one sandbox knows: accounts, requests, faults and both providers' switches."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sandbox import checks, settings
from sandbox.accounts import Accounts
from sandbox.call_limit import CallLimit
from sandbox.faults import Faults
from sandbox.request_log import RequestLog
from sandbox.settings import Open2bSettings, SkyPostalSettings


@dataclass
class Sandbox:
    """The state behind a sandbox's HTTP; tests in the same process may read it directly."""

    accounts: Accounts = field(default_factory=Accounts)
    requests: RequestLog = field(default_factory=RequestLog)
    faults: Faults = field(default_factory=Faults)
    skypostal: SkyPostalSettings = field(default_factory=SkyPostalSettings)
    open2b: Open2bSettings = field(default_factory=Open2bSettings)
    open2b_calls: CallLimit = field(default_factory=CallLimit)
    #: Work that is done after its request: late commits.
    late: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._first = (self.skypostal, self.open2b)

    def configure(self, value: object) -> None:
        """Change switches: `{"skypostal": {...}, "open2b": {...}}`; switches that are not named
        stay.

        All or nothing: on `BadControl` everything stays unchanged.
        """
        given = checks.mapping(value, "settings")
        checks.known(given, ("skypostal", "open2b"), "settings")
        skypostal = settings.merge(self.skypostal, given.get("skypostal", {}), "skypostal")
        open2b = settings.merge(self.open2b, given.get("open2b", {}), "open2b")
        self.skypostal, self.open2b = skypostal, open2b

    def settings(self) -> dict[str, Any]:
        """The switches as JSON, without secrets."""
        return {
            "skypostal": settings.public(self.skypostal),
            "open2b": settings.public(self.open2b),
        }

    def reset(self) -> None:
        """Delete accounts, requests and faults; reset the switches."""
        self.accounts.clear()
        self.requests.clear()
        self.faults.configure({})
        self.open2b_calls.clear()
        self.skypostal, self.open2b = self._first
