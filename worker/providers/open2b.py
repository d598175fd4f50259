"""Open2b 7.5: sign a customer up at a store (API v10).

Sources: Open2b pages `storefront.sign-up`, `storefront.login`, `commerce.customers.find` (7.5) and
"Error handling"; the headers with keys are documented for 7.8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from regworker.domain.outcome import (
    Absent,
    Code,
    Fault,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Unknown,
    Unresolvable,
)
from regworker.forms.base import Body
from regworker.forms.open2b import Open2bAddress, Open2bCustomer, Open2bRegistration
from regworker.settings import HIGHEST, LONGEST
from worker.http.headers import HEADER_VALUE
from worker.providers import base
from worker.providers.base import (
    Answer,
    HeaderSecret,
    Request,
    Send,
    read_json,
    read_status,
    same_email,
    shown,
    unanswered,
    unasked,
)
from worker.providers.check import EMAIL, PASSWORD

SIGN_UP = "storefront.sign-up"
LOGIN = "storefront.login"
FIND = "commerce.customers.find"

#: Our codes for error types ("Error handling", "Common errors"); any other is `provider_error`.
CODES: Mapping[str, Code] = {
    "AlreadyExists": Code.ALREADY_EXISTS,
    "NotFound": Code.NOT_FOUND,
    "Missing": Code.MISSING,
    "MissingCombination": Code.MISSING,
    "UnknownField": Code.INVALID,
    "Malformed": Code.INVALID,
    "InvalidValue": Code.INVALID,
    "InvalidCombination": Code.INVALID,
    "AccessDenied": Code.ACCESS_DENIED,
}
#: The header of a customer's key, in answers to sign-up and login.
KEY = "x-customer-key"

#: If field and type together say more than the type alone (sign-up page, "Errors").
CODES_OF_FIELDS: Mapping[tuple[str, str], Code] = {
    ("verificationCode", "Missing"): Code.VERIFICATION_REQUIRED,
}


FIELDS = frozenset(
    name
    for model in (Open2bRegistration, Open2bCustomer, Open2bAddress)
    for name in model.model_fields
)


class Open2bOutcome(Body):
    """A store's data for a customer (the header of a sign-up's answer)."""

    customer_key: Annotated[str, Field(min_length=1, repr=False)]


class Open2bAccount(base.Account):
    """One store. Keys are for stores of versions that ask for them."""

    rate: Annotated[int, Field(ge=0, le=HIGHEST)] = 1000
    """The number of calls in `rate_period` seconds, across all workers; documented: 1000 in 5
    minutes."""
    rate_period: Annotated[float, Field(gt=0, le=LONGEST)] = 300.0
    """Seconds over which `rate` counts."""
    public_key: HeaderSecret | None = None
    """Sent as `X-Public-Key`, if the store requires it; secret."""
    secret_key: HeaderSecret | None = None
    """Allows workers to look customers up after a lost answer (`commerce.customers.find`)."""

    def secrets(self) -> list[str]:
        """The keys that are set."""
        return [key.get_secret_value() for key in (self.public_key, self.secret_key) if key]


@dataclass(frozen=True, slots=True)
class _Ok:
    """`status: ok`; with the header's key, if there is one."""

    body: dict[str, Any]
    customer_key: str


@dataclass(frozen=True, slots=True)
class _Error:
    """`status: error`: field and type count; the description is for people."""

    field: str
    type: str
    description: str


class Open2b:
    """One store of Open2b."""

    name: ClassVar[str] = "open2b"
    Registration: ClassVar[type[BaseModel]] = Open2bRegistration
    Account: ClassVar[type[base.Account]] = Open2bAccount
    Gives: ClassVar[type[BaseModel]] = Open2bOutcome

    def __init__(self, account: Open2bAccount, send: Send) -> None:
        self._account = account
        self._send = send

    async def register(self, registration: Open2bRegistration) -> Outcome:
        """Sign a customer up."""
        match await self._call(SIGN_UP, registration.model_dump(exclude_unset=True)):
            case _Ok(_, ""):
                return Unknown("ok without X-Customer-Key")
            case _Ok(_, key):
                return Registered({"customer_key": key})
            case _Error() as error if error.type in CODES:
                return self._rejected(error, registration)
            case _Error() as error:
                # "Unexpected error" and "timeout" are errors, too, and refuse nobody.
                return _unexpected("sign-up", error)
            case outcome:
                return outcome

    async def find_out(self, registration: Open2bRegistration) -> Outcome:
        """Log in with the job's own password; if that fails, search its e-mail with our key."""
        email, password = registration.customer.address.email, registration.customer.password
        match await self._call(LOGIN, {"email": email, "password": password}):
            case _Ok(_, ""):
                return Unknown("login without X-Customer-Key")
            case _Ok(_, key):
                return Registered({"customer_key": key}, recovered=True)
            case _Error("email", "InvalidCombination"):
                return await self._search(email)
            case _Error() as error:
                return _unexpected("login", error)
            case outcome:
                return unasked(outcome)

    async def check(self) -> Outcome:
        """Search for nobody; without a `secret_key`, try to log in as nobody."""
        if self._account.secret_key is not None:
            return await self._search(EMAIL)
        match await self._call(LOGIN, {"email": EMAIL, "password": PASSWORD}):
            case _Ok():
                return Unknown("the provider accepted a login that does not exist")
            case _Error("email", "InvalidCombination"):
                return Absent("the store answered")
            case _Error() as error:
                return _unexpected("login", error)
            case outcome:
                return unasked(outcome)

    async def _search(self, email: str) -> Outcome:
        if self._account.secret_key is None:
            # Sign-up itself refuses a known e-mail, so a repeat creates no second customer.
            return Absent(
                "the login is refused; without a secret_key, customers cannot be searched",
                login_only=True,
            )
        query = {"conditions": {"email": email}, "fields": ["id", "email"], "limit": 10}
        match await self._call(FIND, query, private=True):
            case _Ok(body):
                return _found(body, email)
            case _Error() as error:
                return _unexpected("search", error)
            case outcome:
                return unasked(outcome)

    async def _call(
        self, method: str, body: dict[str, Any], *, private: bool = False
    ) -> _Ok | _Error | Outcome:
        url = self._account.at(f"api/v10/{method}")
        sent = await self._send(Request(url, body, self._keys(private=private)))
        if not isinstance(sent, Answer):
            return unanswered(sent)
        said = read_status(sent) or _read(sent)
        if isinstance(said, _Error) and said.type == "AccessDenied" and said.field not in FIELDS:
            return Refused("AccessDenied: check the account's public_key and secret_key")
        return said

    def _keys(self, *, private: bool) -> dict[str, str]:
        name, key = ("X-Public-Key", self._account.public_key)
        if private:
            name, key = ("X-Secret-Key", self._account.secret_key)
        return {name: key.get_secret_value()} if key else {}

    def _rejected(self, error: _Error, registration: Open2bRegistration) -> Rejected:
        address = registration.customer.address
        secrets = [
            registration.customer.password,
            *(address.personalCode, address.companyCode, address.companyCode2),
            *(registration.verificationCode, registration.customer.invoiceRecipient),
            *self._account.secrets(),
        ]
        fault = Fault(
            CODES_OF_FIELDS.get((error.field, error.type)) or CODES[error.type],
            # Known names are not redacted, whatever short secret they happen to contain.
            error.field if error.field in FIELDS else shown(error.field, secrets),
            shown(error.description, secrets),
            provider_code=error.type,
        )
        return Rejected((fault,))


def _read(answer: Answer) -> _Ok | _Error | Outcome:
    """Parse a body of status 200; errors come with that status, too ("Error handling")."""
    match read_json(answer):
        case {"status": "ok"} as body:
            # Once, however often it occurs, even if a proxy joined the lines.
            keys = {key.strip(" \t") for key in answer.headers.get(KEY, "").split(",")}
            if KEY in answer.conflicting or len(keys) > 1:
                return Unknown("the answer has more than one X-Customer-Key")
            if not HEADER_VALUE.fullmatch(key := keys.pop()):
                return Unknown("the answer's X-Customer-Key is not plain text")
            return _Ok(body, key)
        case {"status": "error", "error": {"type": str(kind), **error}}:
            field, description = error.get("field"), error.get("description")
            return _Error(
                field if isinstance(field, str) else "",
                kind,
                description if isinstance(description, str) else "",
            )
        case _:
            return Unknown("the answer differs from the documentation")


def _found(body: dict[str, Any], email: str) -> Outcome:
    match body.get("customers"):
        case []:
            return Absent("neither login nor search finds the e-mail")
        case [*customers] if any(_has(customer, email) for customer in customers):
            return Unresolvable("the e-mail has an account that this password does not open")
        case _:
            return Unknown("the search answered about another e-mail")


def _has(customer: Any, email: str) -> bool:
    match customer:
        case {"email": str(theirs)}:
            return same_email(theirs, email)
        case _:
            return False


def _unexpected(question: str, error: _Error) -> Unknown:
    # Neither yes nor no. Only known types are shown, since others might contain anything.
    return Unknown(f"{question}: {error.type if error.type in CODES else 'unknown error'}")
