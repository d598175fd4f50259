"""Open2b 7.5: sign a customer up at a store (API v10).

Sources: Open2b pages `storefront.sign-up`, `storefront.login`, `commerce.customers.find` (7.5) and
"Error handling"; the headers with keys are documented for 7.8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from worker.outcome import (
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

SIGN_UP = "storefront.sign-up"
LOGIN = "storefront.login"
FIND = "commerce.customers.find"

#: Error types in our codes ("Error handling", "Common errors"); any other is `provider_error`.
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
#: Where field and type together say more than the type (sign-up page, "Errors").
CODES_OF_FIELDS: Mapping[tuple[str, str], Code] = {
    ("verificationCode", "Missing"): Code.VERIFICATION_REQUIRED,
}


def _string(minimum: int, maximum: int) -> Any:
    return Field(default="", min_length=minimum, max_length=maximum)


class Address(Body):
    """The billing address. Limits as documented; only the e-mail is needed to ask afterwards.

    Which other fields a store requires, the page doesn't say: that is left to the store.
    """

    firstName: str = _string(1, 25)  # noqa: N815
    lastName: str = _string(1, 25)  # noqa: N815
    personalCode: str = Field(default="", max_length=20, repr=False)  # noqa: N815
    companyName: str = _string(0, 100)  # noqa: N815
    companyCode: str = _string(0, 20)  # noqa: N815
    companyCode2: str = _string(0, 20)  # noqa: N815
    street1: str = _string(1, 60)
    street2: str = _string(0, 60)
    city: str = _string(1, 25)
    postalCode: str = _string(1, 20)  # noqa: N815
    stateProv: str = _string(0, 3)  # noqa: N815
    country: str = Field(default="", pattern=r"^[A-Za-z]{2}$", description="ISO code.")
    phoneNumber: str = _string(0, 15)  # noqa: N815
    mobileNumber: str = _string(0, 15)  # noqa: N815
    faxNumber: str = _string(0, 15)  # noqa: N815
    email: str = Field(min_length=3, max_length=120)


class Customer(Body):
    """The customer to sign up."""

    cart: Annotated[str, Field(min_length=32, max_length=32)] | None = None
    address: Address
    privacyConsents: list[Annotated[int, Field(ge=1, le=256)]] = Field(  # noqa: N815
        description="The processings consented to."
    )
    password: str = Field(min_length=6, max_length=16, repr=False)
    invoiceRecipient: str = Field(  # noqa: N815
        default="", max_length=256, description="Electronic invoice: recipient code or PEC."
    )
    newsletterLists: list[Annotated[int, Field(ge=1)]] = Field(default=[])  # noqa: N815


class Open2bRegistration(Body):
    """The documented body (sign-up page, "Request")."""

    customer: Customer
    verificationCode: str = Field(  # noqa: N815
        default="", min_length=6, max_length=32, repr=False
    )


FIELDS = frozenset(
    name for model in (Open2bRegistration, Customer, Address) for name in model.model_fields
)


class Open2bAccount(base.Account):
    """One store. Keys are for stores of versions that ask for them."""

    rate: Annotated[int, Field(ge=0)] = 1000
    """Calls in `rate_period` seconds, across all workers; documented: 1000 in 5 minutes."""
    rate_period: Annotated[float, Field(gt=0)] = 300.0
    """Seconds over which `rate` counts."""
    public_key: SecretText | None = None
    """Sent as `X-Public-Key`, where the store asks for it; secret."""
    secret_key: SecretText | None = None
    """Lets a lost answer be asked after with certainty (`commerce.customers.find`)."""

    def secrets(self) -> list[str]:
        """The keys that are set."""
        return [key.get_secret_value() for key in (self.public_key, self.secret_key) if key]


@dataclass(frozen=True, slots=True)
class _Ok:
    """`status: ok`; with the header's key, where there is one."""

    body: dict[str, Any]
    customer_key: str


@dataclass(frozen=True, slots=True)
class _Error:
    """`status: error`: field and type are what counts, the description is for people."""

    field: str
    type: str
    description: str


class Open2b:
    """One store of Open2b."""

    name: ClassVar[str] = "open2b"
    Registration: ClassVar[type[BaseModel]] = Open2bRegistration
    Account: ClassVar[type[base.Account]] = Open2bAccount

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
            case _Error() as error:
                return self._rejected(error, registration)
            case outcome:
                return outcome

    async def find_out(self, registration: Open2bRegistration) -> Outcome:
        """Log in with the job's own password; failing that, search its e-mail with our key."""
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

    async def _search(self, email: str) -> Outcome:
        if self._account.secret_key is None:
            # Sign-up itself refuses a known e-mail, so a repeat makes no second customer.
            return Absent("the login is refused; without a secret_key nobody can be searched for")
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
        secrets = [
            registration.customer.password,
            registration.customer.address.personalCode,
            registration.verificationCode,
            *self._account.secrets(),
        ]
        code = CODES_OF_FIELDS.get((error.field, error.type)) or CODES.get(error.type)
        fault = Fault(
            code or Code.PROVIDER_ERROR,
            # Known names stay whole, whatever short secret they happen to contain.
            error.field if error.field in FIELDS else shown(error.field, secrets),
            shown(error.description, secrets),
            provider_code=error.type if error.type in CODES else shown(error.type, secrets),
        )
        return Rejected((fault,))


def _read(answer: Answer) -> _Ok | _Error | Outcome:
    """Read a body of status 200; errors come with that status, too ("Error handling")."""
    match read_json(answer):
        case {"status": "ok"} as body:
            return _Ok(body, answer.headers.get("x-customer-key", "").strip())
        case {"status": "error", "error": {"type": str(kind), **error}}:
            field, description = error.get("field"), error.get("description")
            return _Error(
                field if isinstance(field, str) else "",
                kind,
                description if isinstance(description, str) else "",
            )
        case _:
            return Unknown("the answer has another shape than documented")


def _found(body: dict[str, Any], email: str) -> Outcome:
    match body.get("customers"):
        case []:
            return Absent("neither login nor search knows the e-mail")
        case [*customers] if any(_has(customer, email) for customer in customers):
            return Unresolvable("the e-mail has an account that this password doesn't open")
        case _:
            return Unknown("the search answered something else than was asked")


def _has(customer: Any, email: str) -> bool:
    match customer:
        case {"email": str(theirs)}:
            return theirs.casefold() == email.casefold()
        case _:
            return False


def _unexpected(question: str, error: _Error) -> Unknown:
    # Neither yes nor no. Known types are told; others might hold anything.
    return Unknown(f"{question}: {error.type if error.type in CODES else 'unknown error'}")
