"""The sandbox's SkyPostal answers as the documentation of the real one says."""

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import httpx
import pytest

from sandbox import skypostal
from sandbox.documented import SKYPOSTAL_REGISTERED, SKYPOSTAL_REGISTRATION
from sandbox.server import SandboxServer

CUSTOMER = "/wcf-services/service-customer.svc"
REGISTER = f"{CUSTOMER}/customer/customer-registration"
LOGIN = f"{CUSTOMER}/customer/customer-login"
LOOK_UPS = [
    f"{CUSTOMER}/partner/customer-get-info",
    "/wcf-services/service-partner.svc/partner/customer-get-info",
]
CREDENTIALS = {"user_code": 1, "app_key": "any"}


@pytest.fixture(scope="module")
def http(running: SandboxServer) -> Iterator[httpx.Client]:
    """A client of the sandbox."""
    with httpx.Client(base_url=running.url) as client:
        yield client


def registration(**changes: Any) -> dict[str, Any]:
    """Change members of the documented body; `...` removes one."""
    body = {**CREDENTIALS, **deepcopy(SKYPOSTAL_REGISTRATION), **changes}
    return {name: value for name, value in body.items() if value is not ...}


def ask(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a call, and return the one item of its answer."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    [item] = answer.json()
    assert isinstance(item, dict)
    return item


def refusal(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """Send a call that is refused, and return the text."""
    item = ask(http, path, body)
    assert item["_verify"] is False
    assert item["error"]["system_error"] is False
    return str(item["error"]["error_description"])


@pytest.mark.usefixtures("server")
def test_the_documented_example_registers(http: httpx.Client) -> None:
    """The documented request gets the documented answer, except for the random key."""
    item = ask(http, REGISTER, registration())
    assert len(base64.b64decode(item["customer_key"], validate=True)) == 32
    [documented] = SKYPOSTAL_REGISTERED
    assert item == documented | {"customer_key": item["customer_key"]}


@pytest.mark.usefixtures("server")
def test_box_ids_count_up(http: httpx.Client) -> None:
    """Each new customer gets the next box."""
    boxes = [
        ask(http, REGISTER, registration(customer_email=f"{i}@e.com"))["customer_box_id"]
        for i in range(3)
    ]
    assert boxes == [811111, 811112, 811113]


def test_credentials_may_be_nested(server: SandboxServer, http: httpx.Client) -> None:
    """`user_info` may hold the credentials, too."""
    server.sandbox.configure({"skypostal": {"user_code": 7, "app_key": "right"}})
    nested = registration(
        user_code=..., app_key=..., user_info={"user_code": 7, "app_key": "right"}
    )
    assert ask(http, REGISTER, nested)["_verify"] is True


@pytest.mark.parametrize(
    "wrong",
    [
        {"user_code": 8},
        {"app_key": "wrong"},
        {"user_code": ...},
        {"app_key": ...},
        {"user_code": "7"},
        {"user_info": {}},
        {"user_info": None},
    ],
)
def test_wrong_credentials_get_401(
    server: SandboxServer, http: httpx.Client, wrong: dict[str, Any]
) -> None:
    """Unknown, missing or malformed credentials are refused, and no customer is created."""
    server.sandbox.configure({"skypostal": {"user_code": 7, "app_key": "right"}})
    body = registration(**({"user_code": 7, "app_key": "right"} | wrong))
    assert http.post(REGISTER, json=body).status_code == 401
    assert len(server.sandbox.accounts) == 0


def test_wrong_credentials_may_get_a_verify_false(
    server: SandboxServer, http: httpx.Client
) -> None:
    """The real behaviour is not known, so a setting chooses between the two."""
    server.sandbox.configure({"skypostal": {"user_code": 7, "bad_credentials": "verify_false"}})
    assert refusal(http, REGISTER, registration(user_code=8)) == skypostal.BAD_CREDENTIALS


@pytest.mark.usefixtures("server")
def test_a_known_email_is_refused_in_the_known_words(http: httpx.Client) -> None:
    """A second registration of an e-mail, in any case, is refused at HTTP 200."""
    ask(http, REGISTER, registration())
    assert (
        refusal(http, REGISTER, registration(customer_email="JohnDoe@Email.com"))
        == "The email account sent is already registered and associated with a box."
    )


@pytest.mark.parametrize("unique", [True, False])
def test_simultaneous_registrations(
    server: SandboxServer, http: httpx.Client, unique: bool
) -> None:
    """Of many at once one succeeds; with uniqueness off, each creates a customer."""
    server.sandbox.configure({"skypostal": {"unique": unique}})
    with ThreadPoolExecutor(10) as pool:
        items = list(pool.map(lambda _: ask(http, REGISTER, registration()), range(20)))
    made = [item["customer_box_id"] for item in items if item["_verify"]]
    assert len(made) == len(set(made)) == (1 if unique else 20)
    assert server.sandbox.accounts.count("skypostal") == len(made)


REQUIRED = [
    "language_code",
    "copa_id",
    "customer_first_name",
    "customer_last_name",
    "customer_identity_number",
    "customer_birth_date",
    "customer_email",
    "customer_password",
    "customer_gender",
    "customer_address",
    "customer_phone",
]


@pytest.mark.parametrize("field", REQUIRED)
def test_required_fields_are_required(
    server: SandboxServer, http: httpx.Client, field: str
) -> None:
    """A registration without a required field is refused, and the error names the field."""
    assert (
        refusal(http, REGISTER, registration(**{field: ...})) == f"The field {field} is required."
    )
    assert len(server.sandbox.accounts) == 0


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("field", sorted(set(SKYPOSTAL_REGISTRATION) - set(REQUIRED)))
@pytest.mark.parametrize("value", [..., None])
def test_optional_fields_are_optional(http: httpx.Client, field: str, value: object) -> None:
    """Other fields may be missing or null."""
    assert ask(http, REGISTER, registration(**{field: value}))["_verify"] is True


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language_code", "FRA"),
        ("copa_id", "616"),
        ("copa_id", True),
        ("customer_first_name", ""),
        ("customer_identity_number", 11111111),
        ("customer_tax_number", "11111"),
        ("customer_birth_date", "1980-02-30"),
        ("customer_birth_date", "19.08.1980"),
        ("customer_email", "johndoe"),
        ("customer_password", ""),
        ("customer_gender", "X"),
        ("customer_email_agreement", "no"),
        ("customer_referred_by", "811111"),
        ("customer_address", "123 Fake St."),
        ("customer_phone", ["123456789", "987654321"]),
    ],
)
def test_invalid_values_are_refused(http: httpx.Client, field: str, value: object) -> None:
    """A value of a wrong type or outside the documented ones is refused, and the error names it."""
    body = registration(**{field: value})
    assert refusal(http, REGISTER, body) == f"The field {field} is not valid."


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("field", "change", "text"),
    [
        ("customer_address", lambda items: items * 2, "must hold exactly 1"),
        ("customer_address", lambda items: [], "must hold exactly 1"),
        ("customer_phone", lambda items: items[:1], "must hold at least 2"),
    ],
)
def test_there_is_one_address_and_two_phones_or_more(
    http: httpx.Client, field: str, change: Any, text: str
) -> None:
    """Exactly one address and at least two phones are required."""
    body = registration(**{field: change(SKYPOSTAL_REGISTRATION[field])})
    assert refusal(http, REGISTER, body) == f"The field {field} {text}."


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("within", "field", "value", "text"),
    [
        ("customer_address", "city_code", "95411", "is not valid"),
        ("customer_address", "zip_code", None, "is required"),
        ("customer_phone", "phone_type", 3, "is not valid"),
        ("customer_phone", "phone_extension", 333, "is not valid"),
        ("customer_phone", "phone_area_code", None, "is required"),
    ],
)
def test_addresses_and_phones_are_looked_into(
    http: httpx.Client, within: str, field: str, value: object, text: str
) -> None:
    """The error names a wrong field inside an address or a phone."""
    body = registration()
    body[within][0][field] = value
    assert refusal(http, REGISTER, body) == f"The field {field} {text}."


@pytest.mark.usefixtures("server")
def test_the_customer_can_log_in(http: httpx.Client) -> None:
    """The e-mail, in any case, with its password returns the registration's credentials."""
    made = ask(http, REGISTER, registration())
    item = ask(
        http,
        LOGIN,
        {**CREDENTIALS, "customer_email": "JOHNDOE@email.com", "customer_password": "pass123"},
    )
    assert item["_verify"] is True
    assert item["customer_box_id"] == made["customer_box_id"]
    assert item["customer_key"] == made["customer_key"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("password", ["pass124", "pass123 ", ""])
def test_a_wrong_password_opens_nothing(http: httpx.Client, password: str) -> None:
    """The answer to a wrong password has no credentials of the customer."""
    ask(http, REGISTER, registration())
    body = {**CREDENTIALS, "customer_email": "johndoe@email.com", "customer_password": password}
    item = ask(http, LOGIN, body)
    assert item["_verify"] is False
    assert not item["customer_key"]


@pytest.mark.parametrize("path", LOOK_UPS)
def test_a_partner_can_look_a_customer_up(
    server: SandboxServer, http: httpx.Client, path: str
) -> None:
    """Under either path, the e-mail returns the documented members, and the e-mail in upper
    case."""
    made = ask(http, REGISTER, registration())
    item = ask(http, path, {**CREDENTIALS, "customer_email": "johndoe@email.com"})
    [account] = server.sandbox.accounts.find()
    assert re.fullmatch(r"/Date\(\d{13}-0400\)/", item["activation_date"])
    assert item == {
        "_verify": True,
        "activation_date": skypostal.date(account.created_at),
        "enrolment_date": skypostal.date(account.created_at),
        "customer_box_id": made["customer_box_id"],
        "customer_key": made["customer_key"],
        "customer_email": "JOHNDOE@EMAIL.COM",
        "customer_first_name": "John",
        "customer_last_name": "Doe",
        "is_active": True,
        "is_business": True,
        "is_enable": True,
        "is_vip": False,
        "error": {"error_description": "", "error_location": "", "system_error": False},
    }


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("path", LOOK_UPS)
def test_a_look_up_of_nobody_finds_nobody(http: httpx.Client, path: str) -> None:
    """An unknown e-mail gets `_verify: false`."""
    body = {**CREDENTIALS, "customer_email": "nobody@email.com"}
    assert refusal(http, path, body) == skypostal.NOBODY


def test_dates_are_written_as_seen() -> None:
    """A time is in milliseconds, with the zone beside it."""
    assert skypostal.date(335505600) == "/Date(335505600000-0400)/"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", f"{CUSTOMER}/customer/customer-registrate", b"{}", 404),
        ("GET", REGISTER, b"", 405),
        ("POST", REGISTER, b"{", 400),
        ("POST", REGISTER, b"[]", 400),
        ("POST", REGISTER, b"\xff", 400),
    ],
)
def test_what_is_no_call_gets_a_page(
    http: httpx.Client, method: str, path: str, content: bytes, status: int
) -> None:
    """A wrong path, method or body gets another status and HTML."""
    answer = http.request(method, path, content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")


def test_every_request_is_noted_without_secrets(server: SandboxServer, http: httpx.Client) -> None:
    """The list has call, e-mail and status, and whether an account was created."""
    ask(http, REGISTER, registration())
    ask(http, LOOK_UPS[0], {**CREDENTIALS, "customer_email": "johndoe@email.com"})
    first, second = server.sandbox.requests.find("skypostal")
    assert (first.call, first.email) == ("customer-registration", "johndoe@email.com")
    assert (first.status, first.committed, first.fault) == (200, True, None)
    assert (second.call, second.status, second.committed) == ("customer-get-info", 200, False)
    assert "pass123" not in repr([first, second])
