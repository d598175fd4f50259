"""A third provider in full: adding a provider takes no more than a file like this one."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from regworker.domain.outcome import Absent, Code, Fault, Outcome, Registered, Rejected, Unknown
from worker.providers import base
from worker.providers.base import Answer, NotSent, Request, Send, read_json, read_status, shown


class AcmeRegistration(BaseModel):
    """The fields that Acme requires."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    email: str = Field(min_length=3)
    password: str = Field(min_length=1, repr=False)


class Acme:
    """An account at Acme."""

    name: ClassVar[str] = "acme"
    Registration: ClassVar[type[BaseModel]] = AcmeRegistration
    Account: ClassVar[type[base.Account]] = base.Account

    def __init__(self, account: base.Account, send: Send) -> None:
        self._account = account
        self._send = send

    async def register(self, registration: AcmeRegistration) -> Outcome:
        """POST /customers."""
        return await self._call("customers", registration)

    async def find_out(self, registration: AcmeRegistration) -> Outcome:
        """POST /sessions."""
        found = await self._call("sessions", registration)
        match found:
            case Registered(data):
                return Registered(data, recovered=True)
            case Rejected():
                return Absent("no such customer")
            case _:
                return found

    async def _call(self, path: str, registration: AcmeRegistration) -> Outcome:
        answer = await self._send(Request(self._account.at(path), registration.model_dump()))
        if not isinstance(answer, Answer):
            kind = base.Retryable if isinstance(answer, NotSent) else Unknown
            return kind(answer.reason)
        match read_status(answer) or read_json(answer):
            case {"id": int(number)}:
                return Registered({"acme_id": number})
            case {"error": str(text)}:
                words = shown(text, [registration.password])
                return Rejected((Fault(Code.PROVIDER_ERROR, "", words),))
            case outcome if isinstance(outcome, Outcome):
                return outcome
            case _:
                return Unknown("odd answer")
