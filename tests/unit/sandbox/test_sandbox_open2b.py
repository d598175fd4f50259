"""The sandbox's Open2b store answers as the documentation of the real one says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import httpx
import pytest

from sandbox.call_limit import CallLimit
from sandbox.documented import OPEN2B_CUSTOMER_KEY, OPEN2B_SIGN_UP, OPEN2B_SIGNED_UP
from sandbox.server import SandboxServer

SIGN_UP = "/api/v10/storefront.sign-up"
LOGIN = "/api/v10/storefront.login"
FIND = "/api/v10/commerce.customers.find"
EMAIL = "holmes@inv-london.com"
PASSWORD = "I9bV2crS"
KEY = "X-Customer-Key"


@pytest.fixture(scope="module")
def client(running: SandboxServer) -> Iterator[httpx.Client]:
    """One client for this file."""
    with httpx.Client(base_url=running.url) as client:
        yield client


@pytest.fixture
def http(server: SandboxServer, client: httpx.Client) -> httpx.Client:
    """A client of the freshly reset sandbox."""
    assert server.sandbox.requests.find() == []
    return client


def sign_up(path: str = "", value: Any = None) -> dict[str, Any]:
    """The documented body; one member, given by its dotted path, is changed or (...) left out."""
    body: dict[str, Any] = deepcopy(OPEN2B_SIGN_UP)
    if path:
        *outer, name = path.split(".")
        inside = body
        for step in outer:
            inside = inside[step]
        inside[name] = value
        if value is ...:
            del inside[name]
    return body


def error(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a call that is refused, and return the error."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200
    assert KEY not in answer.headers
    assert answer.json()["status"] == "error"
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_the_documented_example_signs_up(http: httpx.Client) -> None:
    """The documented request gets the documented body, and a key of the documented form."""
    answer = http.post(SIGN_UP, json=OPEN2B_SIGN_UP)
    assert answer.status_code == 200
    assert answer.json() == OPEN2B_SIGNED_UP
    assert len(answer.headers[KEY]) == len(OPEN2B_CUSTOMER_KEY)


DOCUMENTED_ERRORS = [
    ({}, "customer.cart", "f" * 32, ("cart", "NotFound", f"Cart '{'f' * 32}' does not exist")),
    (
        {},
        "customer.address.email",
        "holmes",
        ("email", "InvalidValue", "'holmes' is not a well formed email address"),
    ),
    (
        {},
        "customer.newsletterLists",
        [5, 8],
        ("newsletterLists", "NotFound", "Newsletter list 8 does not exist"),
    ),
    (
        {"mandatory_consents": [3, 4]},
        "customer.privacyConsents",
        [3],
        ("privacyConsents", "InvalidValue", "Consent to processing 4 is required"),
    ),
    (
        {"verification_required": True},
        "verificationCode",
        "WRONG-1",
        ("verificationCode", "InvalidValue", "Verification code 'WRONG-1' is not valid"),
    ),
    (
        {"verification_required": True},
        "verificationCode",
        ...,
        ("verificationCode", "Missing", "Verification code is required"),
    ),
]


@pytest.mark.parametrize(("store", "path", "value", "expected"), DOCUMENTED_ERRORS)
def test_documented_errors_come_as_documented(
    server: SandboxServer,
    http: httpx.Client,
    store: dict[str, Any],
    path: str,
    value: object,
    expected: tuple[str, str, str],
) -> None:
    """Each documented error has HTTP 200 and the documented text, and creates no customer."""
    server.sandbox.configure({"open2b": store})
    found = error(http, SIGN_UP, sign_up(path, value))
    assert (found["field"], found["type"], found["description"]) == expected
    assert len(server.sandbox.accounts) == 0


def test_a_known_email_already_exists(http: httpx.Client) -> None:
    """A second sign-up with an e-mail is refused with the documented text."""
    assert http.post(SIGN_UP, json=OPEN2B_SIGN_UP).json() == {"status": "ok"}
    assert error(http, SIGN_UP, sign_up()) == {
        "field": "email",
        "type": "AlreadyExists",
        "description": f"Email '{EMAIL}' already exists",
    }


@pytest.mark.parametrize("unique", [True, False])
def test_simultaneous_sign_ups(server: SandboxServer, http: httpx.Client, unique: bool) -> None:
    """Of many at once one succeeds; with uniqueness off, each creates a customer."""
    server.sandbox.configure({"open2b": {"unique": unique}})
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: http.post(SIGN_UP, json=OPEN2B_SIGN_UP), range(20)))
    made = [answer.headers[KEY] for answer in answers if KEY in answer.headers]
    assert len(made) == len(set(made)) == (1 if unique else 20)
    assert server.sandbox.accounts.count("open2b") == len(made)


def test_a_verified_email_signs_up(server: SandboxServer, http: httpx.Client) -> None:
    """If verification is required, a valid code is enough."""
    server.sandbox.configure({"open2b": {"verification_required": True}})
    assert KEY in http.post(SIGN_UP, json=sign_up()).headers


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("extra", "extra"),
        ("customer.extra", "extra"),
        ("customer.address.extra", "extra"),
    ],
)
def test_unknown_fields_are_refused(http: httpx.Client, path: str, field: str) -> None:
    """An undocumented field is refused, at any level."""
    assert error(http, SIGN_UP, sign_up(path, "x")) == {
        "field": "unknown",
        "type": "UnknownField",
        "description": f"Field '{field}' is unknown",
    }


@pytest.mark.parametrize(
    "path",
    [
        "customer",
        "customer.address",
        "customer.privacyConsents",
        "customer.password",
        "customer.address.email",
    ],
)
def test_required_fields_are_required(http: httpx.Client, path: str) -> None:
    """A sign-up without a required field is refused, and the error names the field."""
    field = path.rpartition(".")[2]
    assert error(http, SIGN_UP, sign_up(path, ...)) == {
        "field": field,
        "type": "Missing",
        "description": f"{field} is required",
    }


#: [doc] "sign-up": the limits of every string.
LIMITS = {
    "customer.cart": (32, 32),
    "customer.address.firstName": (1, 25),
    "customer.address.lastName": (1, 25),
    "customer.address.personalCode": (0, 20),
    "customer.address.companyName": (0, 100),
    "customer.address.companyCode": (0, 20),
    "customer.address.companyCode2": (0, 20),
    "customer.address.street1": (1, 60),
    "customer.address.street2": (0, 60),
    "customer.address.city": (1, 25),
    "customer.address.postalCode": (1, 20),
    "customer.address.stateProv": (0, 3),
    "customer.address.country": (2, 2),
    "customer.address.phoneNumber": (0, 15),
    "customer.address.mobileNumber": (0, 15),
    "customer.address.faxNumber": (0, 15),
    "customer.password": (6, 16),
    "customer.invoiceRecipient": (0, 256),
    "verificationCode": (6, 32),
}


@pytest.mark.parametrize("path", LIMITS)
def test_strings_have_their_documented_lengths(
    server: SandboxServer, http: httpx.Client, path: str
) -> None:
    """The shortest and the longest string are valid; one character less or more is refused."""
    shortest, longest = LIMITS[path]
    server.sandbox.configure({"open2b": {"unique": False, "carts": ["x" * 32]}})
    for length in (shortest, longest):
        body = sign_up(path, "x" * length)
        body["customer"]["cart"] = "x" * 32
        assert http.post(SIGN_UP, json=body).json() == {"status": "ok"}
    for length in {longest + 1, max(shortest - 1, 0)} - {shortest}:
        found = error(http, SIGN_UP, sign_up(path, "x" * length))
        assert (found["field"], found["type"]) == (path.rpartition(".")[2], "InvalidValue")


def test_an_email_has_120_characters_at_most(http: httpx.Client) -> None:
    """A longer e-mail is refused, although it is well formed."""
    found = error(http, SIGN_UP, sign_up("customer.address.email", "x" * 115 + "@e.com"))
    assert (found["field"], found["type"]) == ("email", "InvalidValue")


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("customer.privacyConsents", [0], "InvalidValue"),
        ("customer.privacyConsents", [257], "InvalidValue"),
        ("customer.newsletterLists", [0], "InvalidValue"),
        ("customer.privacyConsents", "12", "Malformed"),
        ("customer.privacyConsents", [True], "Malformed"),
        ("customer.password", 123456, "Malformed"),
        ("customer.password", None, "Malformed"),
        ("customer.address", [], "Malformed"),
    ],
)
def test_numbers_and_types_are_checked(
    http: httpx.Client, path: str, value: object, kind: str
) -> None:
    """Numbers outside the documented limits, and values of other types, are refused."""
    found = error(http, SIGN_UP, sign_up(path, value))
    assert (found["field"], found["type"]) == (path.rpartition(".")[2], kind)


@pytest.mark.parametrize(
    "path",
    [
        "customer.cart",
        "customer.newsletterLists",
        "customer.invoiceRecipient",
        "customer.address.companyName",
        "verificationCode",
    ],
)
def test_optional_fields_are_optional(http: httpx.Client, path: str) -> None:
    """A sign-up may leave out the other fields."""
    assert KEY in http.post(SIGN_UP, json=sign_up(path, ...)).headers


def test_the_customer_can_log_in(http: httpx.Client) -> None:
    """E-mail and password return the customer's key."""
    made = http.post(SIGN_UP, json=OPEN2B_SIGN_UP)
    answer = http.post(LOGIN, json={"email": EMAIL, "password": PASSWORD})
    assert answer.json() == {"status": "ok"}
    assert answer.headers[KEY] == made.headers[KEY]


@pytest.mark.parametrize(
    ("email", "password", "disabled"),
    [
        (EMAIL, "I9bV2crs", False),
        ("nobody@inv-london.com", PASSWORD, False),
        (EMAIL, PASSWORD, True),
    ],
)
def test_a_login_that_fails_does_not_say_why(
    server: SandboxServer, http: httpx.Client, email: str, password: str, disabled: bool
) -> None:
    """A wrong password, an unknown e-mail and an unapproved customer get the same error."""
    http.post(SIGN_UP, json=OPEN2B_SIGN_UP)
    server.sandbox.configure({"open2b": {"customers_disabled_until_approved": disabled}})
    assert error(http, LOGIN, {"email": email, "password": password}) == {
        "field": "email",
        "type": "InvalidCombination",
        "description": "email or password is incorrect",
    }


@pytest.mark.parametrize(
    ("body", "field", "kind"),
    [
        ({"email": EMAIL}, "password", "Missing"),
        ({"email": "x", "password": PASSWORD}, "email", "InvalidValue"),
        ({"email": EMAIL, "password": "123"}, "password", "InvalidValue"),
        ({"email": EMAIL, "password": PASSWORD, "x": 1}, "unknown", "UnknownField"),
    ],
)
def test_a_login_is_checked(
    http: httpx.Client, body: dict[str, Any], field: str, kind: str
) -> None:
    """A login that does not follow the documentation is refused like a sign-up."""
    found = error(http, LOGIN, body)
    assert (found["field"], found["type"]) == (field, kind)


def test_customers_are_found_by_email(http: httpx.Client) -> None:
    """A search returns the requested fields of the customers with the e-mail, in any case."""
    http.post(SIGN_UP, json=OPEN2B_SIGN_UP)
    search = {"conditions": {"email": EMAIL.upper()}, "fields": ["id", "email"], "limit": 1}
    assert http.post(FIND, json=search).json() == {
        "status": "ok",
        "customers": [{"id": 1, "email": EMAIL}],
    }


def test_nobody_is_found_by_an_unknown_email(http: httpx.Client) -> None:
    """A search for an unknown e-mail returns an empty list."""
    search = {"conditions": {"email": "nobody@inv-london.com"}, "fields": ["id"]}
    assert http.post(FIND, json=search).json() == {"status": "ok", "customers": []}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (SIGN_UP, {"X-Public-Key": "public"}, 200),
        (SIGN_UP, {}, 403),
        (SIGN_UP, {"X-Public-Key": "other"}, 403),
        (FIND, {"X-Secret-Key": "secret"}, 200),
        (FIND, {"X-Public-Key": "public"}, 403),
    ],
)
def test_keys_are_checked_where_the_store_has_any(
    server: SandboxServer, http: httpx.Client, path: str, headers: dict[str, str], status: int
) -> None:
    """Public methods need the public key, private ones the secret key."""
    server.sandbox.configure({"open2b": {"public_key": "public", "secret_key": "secret"}})
    body = OPEN2B_SIGN_UP if path == SIGN_UP else {}
    assert http.post(path, json=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", SIGN_UP, b"", 405),
        ("PUT", SIGN_UP, b"{}", 405),
        ("POST", "/api/v10/storefront.sign-in", b"{}", 404),
        ("POST", "/api/v11/storefront.sign-up", b"{}", 404),
        ("POST", SIGN_UP, b"{", 400),
        ("POST", SIGN_UP, b"[]", 400),
    ],
)
def test_what_is_no_call_is_not_answered_in_json(
    http: httpx.Client, method: str, path: str, content: bytes, status: int
) -> None:
    """A wrong method, an unknown API method and a broken body get another status, in plain text."""
    answer = http.request(method, path, content=content)
    assert answer.status_code == status
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()


def test_the_call_limit_counts_all_calls(server: SandboxServer, http: httpx.Client) -> None:
    """Calls beyond the limit get the configured status, and have no effect."""
    limit = {"call_limit": True, "call_limit_calls": 2, "call_limit_retry_after": 9}
    server.sandbox.configure({"open2b": limit})
    login = {"email": EMAIL, "password": PASSWORD}
    assert [http.post(LOGIN, json=login).status_code for _ in range(2)] == [200, 200]
    refused = http.post(SIGN_UP, json=OPEN2B_SIGN_UP)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "9")
    assert len(server.sandbox.accounts) == 0


def test_the_call_limit_is_a_sliding_window() -> None:
    """A call is allowed again once the oldest has left the window."""
    clock = iter([0.0, 100.0, 299.0, 300.0, 301.0])
    limit = CallLimit(now=lambda: next(clock))
    admitted = [limit.admit(2, 300) for _ in range(5)]
    assert admitted == [True, True, False, True, False]


def test_the_request_ledger_knows_each_calls_email(
    server: SandboxServer, http: httpx.Client
) -> None:
    """The e-mail of each call is recorded; its password never."""
    http.post(SIGN_UP, json=OPEN2B_SIGN_UP)
    http.post(LOGIN, json={"email": EMAIL, "password": PASSWORD})
    http.post(FIND, json={"conditions": {"email": EMAIL}})
    seen = server.sandbox.requests.find("open2b", email=EMAIL)
    assert [(request.call, request.committed) for request in seen] == [
        ("storefront.sign-up", True),
        ("storefront.login", False),
        ("commerce.customers.find", False),
    ]
    assert PASSWORD not in repr(seen)
