"""SkyPostal: register and activate a virtual customer.

Sources: SkyPostal registration page ("Register and Activate Virtual Customer"), and the pages of
`customer-login` and `partner/customer-get-info`. Texts of errors are not documented; the one for
a known e-mail was seen in public clients.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from regworker.domain.outcome import (
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
from regworker.forms.base import Body
from regworker.forms.skypostal import SkyPostalRegistration, Text
from worker.providers import base
from worker.providers.base import (
    Answer,
    Request,
    SecretText,
    Send,
    read_json,
    read_status,
    same_email,
    shown,
    unanswered,
    unasked,
    whole,
)
from worker.providers.check import EMAIL

REGISTER = "service-customer.svc/customer/customer-registration"
#: The login's page shows the registration's URL; public clients use this one.
LOGIN = "service-customer.svc/customer/customer-login"
#: Under `service-customer.svc` in the documentation, `service-partner.svc` in public clients.
LOOK_UP = "{service}.svc/partner/customer-get-info"


#: Seen in public clients; compared without case and white space.
DUPLICATE = "the email account sent is already registered and associated with a box"
#: Inferred: a refusal with these words is about our credentials, not about the customer.
CREDENTIALS = re.compile(r"\b(user[ _]?code|app[ _]?key)\b", re.IGNORECASE)
#: Inferred: with these words, in English or Spanish, the service says that it failed, and nothing
#: about the customer.
_FAILED = (
    r"time[ds]?[ -]?out|\w*exception|object reference not set|deadlock\w*|maintenance|overload\w*"
    r"|(internal|server|system|unexpected) error|error( has)? occurred|ocurri[oó] un error"
    r"|service( is)?( temporarily| currently)? (unavailable|not available)"
    r"|servicio no (est[aá] )?disponible|mantenimiento|error (interno|inesperado|del sistema)"
)
FAILED = re.compile(rf"\b({_FAILED})\b", re.IGNORECASE)
#: The same for a look-up. The answer to a registration may use the other words about what was sent:
#: "too many characters", "temporary addresses", "try again with another e-mail".
TROUBLE = re.compile(
    rf"\b({_FAILED}|unavailable|too many|busy|temporar\w*|no (est[aá] )?disponible"
    r"|(try|intente)\b.{0,40}\b(again|later|nuevo|tarde))\b",
    re.IGNORECASE,
)

#: Pairs of quotation marks.
MARKS = (("'", "'"), ('"', '"'), ("«", "»"), ("“", "”"), ("‘", "’"), ("„", "“"))


def _numbers(value: Any) -> Any:
    return [one.strip() for one in value.split(",")] if isinstance(value, str) else value


class SkyPostalOutcome(Body):
    """SkyPostal's data for a customer ("Response Parameters" of the registration page)."""

    customer_box_id: Annotated[int, Field(ge=1)]
    customer_key: Annotated[Text, Field(repr=False)]


class SkyPostalAccount(base.Account):
    """Credentials and identity of a partner, as SkyPostal gave them."""

    user_code: int
    """The number that SkyPostal assigned; TEST and PROD differ."""
    app_key: SecretText
    """The key that SkyPostal assigned with it; secret."""
    copa_id: int
    """The commercial partner's number, sent with each registration that names no other."""
    copa_ids: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = ()
    """Other numbers that a registration may name, separated by commas. Default: any."""
    credentials: Literal["flat", "nested"] = "flat"
    """The position of the credentials: at the top of the body (documented), or in `user_info` (seen
    in clients)."""
    look_up: Literal["service-customer", "service-partner"] = "service-customer"
    """The service that looks customers up: the documented one, or the one seen in clients."""

    def in_body(self) -> dict[str, Any]:
        """The credentials as in every request's body."""
        given = {"user_code": self.user_code, "app_key": self.app_key.get_secret_value()}
        return given if self.credentials == "flat" else {"user_info": given}


@dataclass(frozen=True, slots=True)
class _Customer:
    """`_verify: true`, with both credentials."""

    data: dict[str, Any]
    email: Any

    def has(self, email: str) -> bool:
        # E-mails are returned in upper case, and not by every call.
        return self.email is None or (isinstance(self.email, str) and same_email(self.email, email))


@dataclass(frozen=True, slots=True)
class _No:
    """`_verify: false`, for a reason in the customer's data."""

    text: str
    location: str


class SkyPostal:
    """One partner account at SkyPostal."""

    name: ClassVar[str] = "skypostal"
    Registration: ClassVar[type[BaseModel]] = SkyPostalRegistration
    Account: ClassVar[type[base.Account]] = SkyPostalAccount
    Gives: ClassVar[type[BaseModel]] = SkyPostalOutcome

    def __init__(self, account: SkyPostalAccount, send: Send) -> None:
        self._account = account
        self._send = send

    async def register(self, registration: SkyPostalRegistration) -> Outcome:
        """Register and activate a customer."""
        account, named = self._account, registration.copa_id
        if named and account.copa_ids and named not in (account.copa_id, *account.copa_ids):
            problem = "is not one of the account's: see COPA_IDS of its settings"
            return Rejected((Fault(Code.INVALID, "copa_id", problem),))
        body = {"copa_id": account.copa_id, **registration.model_dump(exclude_unset=True)}
        match await self._call(REGISTER, body):
            case _Customer() as made if made.has(registration.customer_email):
                return Registered(made.data)
            case _Customer():
                return Unknown("the answer is about another e-mail")
            case _No() as no:
                return self._rejected(no, registration)
            case outcome:
                return outcome

    async def find_out(self, registration: SkyPostalRegistration) -> Outcome:
        """Log in with the job's own password; if that fails, look its e-mail up."""
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

    async def check(self) -> Outcome:
        """Look up nobody."""
        return await self._look_up(EMAIL)

    async def _look_up(self, email: str) -> Outcome:
        path = LOOK_UP.format(service=self._account.look_up)
        match await self._call(path, {"customer_email": email}):
            case _Customer() as found if found.has(email):
                return Unresolvable("the e-mail has an account that this password does not open")
            case _Customer():
                return Unknown("the look-up answered for another e-mail")
            case _No():
                return Absent("neither login nor look-up finds the e-mail")
            case outcome:
                return unasked(outcome)

    async def _call(self, path: str, body: dict[str, Any]) -> _Customer | _No | Outcome:
        url = self._account.at(f"wcf-services/{path}")
        sent = await self._send(Request(url, self._account.in_body() | body))
        if not isinstance(sent, Answer):
            return unanswered(sent)
        said = _read(sent)
        if not isinstance(said, _No):
            return said
        # Whoever chooses a password must not choose what a look-up's refusal means.
        values = _strings(body) if path == REGISTER else ()
        words = _unquoted(said.text, body["customer_email"], values)
        if path == REGISTER and FAILED.search(words):
            # Also if it names our credentials: it may have failed after it made the customer. If
            # they are wrong, the look-up says so.
            return Unknown("SkyPostal could not answer the registration")
        if CREDENTIALS.search(f"{said.location} {said.text}"):
            if not any(CREDENTIALS.search(value) for value in _strings(body)):
                return Refused(
                    "SkyPostal refused user_code or app_key: check the account's settings"
                )
            # The text may quote the customer: one odd name must not stop an account. But in a
            # look-up such a refusal proves nothing.
            if path != REGISTER:
                return Unknown(
                    "SkyPostal refused the e-mail or our credentials: it is unclear which"
                )
        if path != REGISTER and TROUBLE.search(words):
            return Unknown("SkyPostal could not answer the look-up")
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
            return read_status(answer) or Unknown("the answer differs from the documentation")


def _customer(record: dict[str, Any]) -> _Customer | Outcome:
    box_id, key = whole(record.get("customer_box_id")), record.get("customer_key")
    if box_id is None or box_id < 1:
        return Unknown("success, but customer_box_id is not a positive whole number")
    if not isinstance(key, str) or not key.strip():
        return Unknown("success without customer_key")
    data = {"customer_box_id": box_id, "customer_key": key}
    return _Customer(data, record.get("customer_email"))


def _no(answer: Answer, text: str, error: dict[str, Any]) -> _No | Outcome:
    status = read_status(answer)
    if isinstance(status, Refused):
        return Refused(status.reason)  # in SkyPostal's own words, so that it was not carried out
    if isinstance(status, Retryable) or (status and answer.status >= 500):
        return status
    if error.get("system_error", False) is not False:
        return Unknown("system_error: the call may have had an effect")
    if not text.strip():
        return Unknown("refused without a reason")
    location = error.get("error_location")
    return _No(text, location if isinstance(location, str) else "")


def _unquoted(text: str, email: str, values: Iterable[str]) -> str:
    """A text of SkyPostal's, in small letters, without what it surely quotes: the e-mail, and
    values in quotation marks. A name without them may be SkyPostal's own word, "Maintenance" for
    example."""
    text = text.lower()
    for value in values:
        for left, right in MARKS:
            text = text.replace(f"{left}{value.lower()}{right}", left + right)
    return text.replace(email.lower(), "")


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
