"""A provider with unreviewed code: its errors contain the customer's data."""

from typing import ClassVar

from pydantic import BaseModel

from regworker.domain.outcome import Outcome, Unknown
from tests.integration.acme import AcmeRegistration
from worker.providers import base
from worker.providers.base import Send


class Clumsy:
    """An account at Clumsy."""

    name: ClassVar[str] = "clumsy"
    Registration: ClassVar[type[BaseModel]] = AcmeRegistration
    Account: ClassVar[type[base.Account]] = base.Account

    def __init__(self, account: base.Account, send: Send) -> None:
        self._account = account

    async def register(self, registration: AcmeRegistration) -> Outcome:
        """Fail, and fail again while handling the error."""
        found: dict[str, Outcome] = {}
        try:
            return found[registration.password]
        except KeyError as error:
            who = f"{registration.email} ({registration.password})"
            raise ValueError(f"cannot register {who}") from error

    async def find_out(self, registration: AcmeRegistration) -> Outcome:
        """Always fail."""
        return Unknown(f"not implemented for {registration.email.partition('@')[2]}")
