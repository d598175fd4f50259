"""A provider that fails as code does that nobody reviewed: with the customer in its errors."""

from typing import ClassVar

from pydantic import BaseModel

from tests.integration.acme import AcmeRegistration
from worker.outcome import Outcome, Unknown
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
        """Fail, twice over."""
        found: dict[str, Outcome] = {}
        try:
            return found[registration.password]
        except KeyError as error:
            who = f"{registration.email} ({registration.password})"
            raise ValueError(f"cannot register {who}") from error

    async def find_out(self, registration: AcmeRegistration) -> Outcome:
        """Never find out."""
        return Unknown(f"not implemented for {registration.email.partition('@')[2]}")
