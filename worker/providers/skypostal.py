"""SkyPostal: register and activate a virtual customer.

Sources: SkyPostal registration page ("Register and Activate Virtual Customer"), and the pages of
`customer-login` and `partner/customer-get-info`. Texts of errors are not documented; the one for
a known e-mail was seen in public clients.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from worker.outcome import (
    Absent,
    Code,
    Fault,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from worker.providers import base
from worker.providers.base import (
    Answer,
    Body,
    Request,
    SecretText,
    Send,
    read_json,
    read_status,
    shown,
    unanswered,
    unasked,
)

REGISTER = "service-customer.svc/customer/customer-registration"
#: The login's page prints the registration's URL; public clients use this one.
LOGIN = "service-customer.svc/customer/customer-login"
#: Under `service-customer.svc` by the documentation, `service-partner.svc` in public clients.
LOOK_UP = "{service}.svc/partner/customer-get-info"

EMAIL = re.compile(r"[^\s@]+@[^\s@.]+(\.[^\s@.]+)+")
BIRTH_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

#: Seen in public clients; compared without case and with any white space.
DUPLICATE = "the email account sent is already registered and associated with a box"
#: Inferred: a refusal that speaks of these is about our credentials, not about the customer.
CREDENTIALS = re.compile(r"\b(user[ _]?code|app[ _]?key)\b", re.IGNORECASE)


def _email(value: str) -> str:
    if not EMAIL.fullmatch(value):
        raise PydanticCustomError("email", "must be an e-mail address")
    return value


def _birth_date(value: str) -> str:
    with suppress(ValueError):
        if BIRTH_DATE.fullmatch(value) and date.fromisoformat(value):
            return value
    raise PydanticCustomError("date", "must be a real date, as YYYY-MM-DD")


Text = Annotated[str, Field(min_length=1)]


class Address(Body):
    """One item of `customer_address`."""

    city_code: int = Field(description="From geographic-get-cities.")
    locality_town: Text
    neighborhood: Text
    address_01: Text = Field(description="Street, number of the house, etc.")
    zip_code: Text


class Phone(Body):
    """One item of `customer_phone`."""

    phone_area_code: Text = Field(description="From geographic-get-countries, e.g. `+1`.")
    phone_number: Text
    phone_extension: str = ""
    # No `Literal`: it takes `true` for 1.
    phone_type: int = Field(ge=1, le=2, description="1: home or office, 2: mobile.")


class SkyPostalRegistration(Body):
    """The body without credentials and `copa_id` (registration page, "Request Parameters")."""

    language_code: Literal["ENG", "ESP"]
    customer_first_name: Text
    customer_last_name: Text
    customer_identity_number: Text = Field(repr=False)
    customer_tax_number: int = Field(default=0, repr=False, description="Of a company.")
    customer_birth_date: Annotated[str, AfterValidator(_birth_date)] = Field(
        json_schema_extra={"format": "date"}
    )
    customer_email: Annotated[str, AfterValidator(_email)] = Field(
        json_schema_extra={"format": "email"}
    )
    customer_password: Text = Field(repr=False, description="Any character; never trimmed.")
    customer_gender: Literal["M", "F"]
    customer_campaign: str = ""
    customer_email_agreement: bool = False
    customer_referred_by: int | None = Field(None, description="Box id of who referred them.")
    customer_address: list[Address] = Field(min_length=1, max_length=1)
    customer_phone: list[Phone] = Field(min_length=2, description="The first is the address's.")


class SkyPostalAccount(base.Account):
    """Credentials and identity of a partner, as SkyPostal gave them."""

    user_code: int
    """Number that SkyPostal gave; TEST and PROD have their own."""
    app_key: SecretText
    """Key that SkyPostal gave with it; secret."""
    copa_id: int
    """The commercial partner's number, sent with every registration."""
    credentials: Literal["flat", "nested"] = "flat"
    """Where they stand: flat in the body (documented), or in `user_info` (seen in clients)."""
    look_up: Literal["service-customer", "service-partner"] = "service-customer"
    """Which service looks customers up: the documented one, or that seen in clients."""

    def in_body(self) -> dict[str, Any]:
        """The credentials as every request's body holds them."""
        given = {"user_code": self.user_code, "app_key": self.app_key.get_secret_value()}
        return given if self.credentials == "flat" else {"user_info": given}


@dataclass(frozen=True, slots=True)
class _Customer:
    """`_verify: true`, with both credentials."""

    data: dict[str, Any]
    email: str | None

    def has(self, email: str) -> bool:
        # E-mails come back in upper case, and not from every call.
        return self.email is None or self.email.casefold() == email.casefold()


@dataclass(frozen=True, slots=True)
class _No:
    """`_verify: false`, for a reason that is in the customer's data."""

    text: str
    location: str


class SkyPostal:
    """One partner account at SkyPostal."""

    name: ClassVar[str] = "skypostal"
    Registration: ClassVar[type[BaseModel]] = SkyPostalRegistration
    Account: ClassVar[type[base.Account]] = SkyPostalAccount

    def __init__(self, account: SkyPostalAccount, send: Send) -> None:
        self._account = account
        self._send = send

    async def register(self, registration: SkyPostalRegistration) -> Outcome:
        """Register and activate a customer."""
        body = {"copa_id": self._account.copa_id, **registration.model_dump(exclude_unset=True)}
        match await self._call(REGISTER, body):
            case _Customer(data):
                return Registered(data)
            case _No() as no:
                return self._rejected(no, registration)
            case outcome:
                return outcome

    async def find_out(self, registration: SkyPostalRegistration) -> Outcome:
        """Log in with the job's own password; failing that, look its e-mail up."""
        email, password = registration.customer_email, registration.customer_password
        match await self._call(LOGIN, {"customer_email": email, "customer_password": password}):
            case _Customer() as found if found.has(email):
                return Registered(found.data, recovered=True)
            case _Customer():
                return Unknown("the login answered for another e-mail")
            case _No():
                return await self._look_up(email)
            case outcome:
                return unasked(outcome)

    async def _look_up(self, email: str) -> Outcome:
        path = LOOK_UP.format(service=self._account.look_up)
        match await self._call(path, {"customer_email": email}):
            case _Customer() as found if found.has(email):
                return Unresolvable("the e-mail has an account that this password doesn't open")
            case _Customer():
                return Unknown("the look-up answered for another e-mail")
            case _No():
                return Absent("neither login nor look-up knows the e-mail")
            case outcome:
                return unasked(outcome)

    async def _call(self, path: str, body: dict[str, Any]) -> _Customer | _No | Outcome:
        url = self._account.at(f"wcf-services/{path}")
        sent = await self._send(Request(url, self._account.in_body() | body))
        if not isinstance(sent, Answer):
            return unanswered(sent)
        said = _read(sent)
        if isinstance(said, _No) and _blames_us(said, body):
            return Refused("SkyPostal refused user_code or app_key: check the account's settings")
        return said

    def _rejected(self, no: _No, registration: SkyPostalRegistration) -> Rejected:
        secrets = (
            registration.customer_password,
            registration.customer_identity_number,
            registration.customer_tax_number or None,
            self._account.app_key.get_secret_value(),
        )
        message, location = shown(no.text, secrets), shown(no.location, secrets)
        if DUPLICATE in " ".join(no.text.split()).casefold():
            return Rejected((Fault(Code.ALREADY_EXISTS, "customer_email", message),))
        return Rejected((Fault(Code.PROVIDER_ERROR, location, message),))


def _read(answer: Answer) -> _Customer | _No | Outcome:
    """Judge by `_verify`, an array of one (registration page; refusals as seen in clients)."""
    match read_json(answer):
        case [{"_verify": True} as record]:
            return _customer(record)
        case [{"_verify": False, "error": {"error_description": str(text)} as error}]:
            return _no(answer, text, error)
        case _:
            return read_status(answer) or Unknown("the answer has another shape than documented")


def _customer(record: dict[str, Any]) -> _Customer | Outcome:
    match record:
        case {"customer_box_id": int(box_id), "customer_key": str(key)} if key and not isinstance(
            box_id, bool
        ):
            email = record.get("customer_email")
            data = {"customer_box_id": box_id, "customer_key": key}
            return _Customer(data, email if isinstance(email, str) else None)
        case _:
            return Unknown("success without customer_box_id and customer_key")


def _no(answer: Answer, text: str, error: dict[str, Any]) -> _No | Outcome:
    status = read_status(answer)
    if isinstance(status, Refused | Retryable) or (status and answer.status >= 500):
        return status
    if error.get("system_error", False) is not False:
        return Unknown("system_error: the call may have had an effect")
    if not text.strip():
        return Unknown("refused without a reason")
    location = error.get("error_location")
    return _No(text, location if isinstance(location, str) else "")


def _blames_us(no: _No, body: dict[str, Any]) -> bool:
    # Unless the words may be the customer's own, quoted: one odd name must not stop an account.
    quoted = any(CREDENTIALS.search(value) for value in _strings(body))
    return bool(CREDENTIALS.search(f"{no.location} {no.text}")) and not quoted


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _strings(item)
        case list():
            for item in value:
                yield from _strings(item)
