"""A provider that fails as code does that nobody reviewed: with the customer in its errors."""

from typing import Any, ClassVar

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
        given: dict[str, Any] = registration.model_dump()
        try:
            return {given["password"]: Unknown("")}["nothing of that name"]
        except KeyError as error:
            raise ValueError(f"cannot register {given}") from error

    async def find_out(self, registration: AcmeRegistration) -> Outcome:
        """Never find out."""
        return Unknown(f"not implemented for {registration.email.partition('@')[2]}")
