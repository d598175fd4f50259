"""SkyPostal, as far as registration goes: register, log in, look up.

Shapes: [doc] SkyPostal pages "Register and Activate Virtual Customer", "Login customer account",
"Admin Get customer credentials". `_verify: false` and the text for a known e-mail: [seen].
All other error texts, and the answers to what isn't a call at all: invented.
"""

import base64
import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.accounts import Account, EmailTaken, NewAccount
from sandbox.exchange import HTML, TEXT, Answer, Call, exchange
from sandbox.skypostal_rules import breach
from sandbox.state import Sandbox

SERVICES = "/wcf-services"
#: [seen] in a public client's code.
EMAIL_KNOWN = "The email account sent is already registered and associated with a box."
#: Invented.
LOGIN_REFUSED = "The email or the password is not correct."
NOBODY = "There is no customer with this email."
BAD_CREDENTIALS = "The user code or the app key is not valid."
#: The time zone varies in what has been seen (-0500 in the documentation, too).
ZONE = timezone(timedelta(hours=-4))

Body = dict[str, Any]


def routes(sandbox: Sandbox) -> list[Route]:
    """Route everything under `/wcf-services` to this provider."""

    async def answer(request: Request) -> Response:
        return await exchange(sandbox, _read(sandbox, request, await request.body()))

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [Route(f"{SERVICES}/{{path:path}}", answer, methods=methods)]


def date(seconds: float) -> str:
    """A time in WCF's format: `/Date(335505600000-0400)/`."""
    offset = datetime.fromtimestamp(seconds, ZONE).strftime("%z")
    return f"/Date({int(seconds * 1000)}{offset})/"


def _read(sandbox: Sandbox, request: Request, raw: bytes) -> Call:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    email = body.get("customer_email") if isinstance(body, dict) else None
    return Call(
        provider="skypostal",
        name=request.url.path.rpartition("/")[2],
        email=email if isinstance(email, str) else None,
        perform=partial(_perform, sandbox, request, body),
        pretence=_json({"_verify": True, "customer_box_id": 0, "customer_key": ""}),
        without_key=_odd_shape,
    )


def _perform(sandbox: Sandbox, request: Request, body: object) -> Answer:
    work = CALLS.get(request.url.path.removeprefix(SERVICES))
    if work is None:
        return Answer(404, b"<html><body>Endpoint not found.</body></html>", HTML)
    if request.method != "POST":
        return Answer(405, b"<html><body>Method not allowed.</body></html>", HTML)
    if not isinstance(body, dict):
        return Answer(400, b"<html><body>Request Error</body></html>", HTML)
    if not _credentials_hold(sandbox, body):
        if sandbox.skypostal.bad_credentials == "verify_false":
            return _refusal(BAD_CREDENTIALS)
        return Answer(401, b"Unauthorized", TEXT)
    return work(sandbox, body)


def _credentials_hold(sandbox: Sandbox, body: Body) -> bool:
    """Check credentials: flat [doc], or nested in `user_info` [seen]."""
    given = body.get("user_info", body)
    if not isinstance(given, dict):
        return False
    user_code, app_key = given.get("user_code"), given.get("app_key")
    if not isinstance(user_code, int) or isinstance(user_code, bool):
        return False
    return (
        isinstance(app_key, str)
        and app_key != ""
        and sandbox.skypostal.user_code in (None, user_code)
        and sandbox.skypostal.app_key in (None, app_key)
    )


def _register(sandbox: Sandbox, body: Body) -> Answer:
    text = breach(body)
    if text is not None:
        return _refusal(text, location="customer-registration")
    new = NewAccount(
        provider="skypostal",
        store=str(body["copa_id"]),
        email=body["customer_email"],
        password=body["customer_password"],
        customer_key=base64.b64encode(os.urandom(32)).decode(),
        first_name=body["customer_first_name"],
        last_name=body["customer_last_name"],
        is_business=body.get("customer_tax_number") is not None,
    )
    try:
        made = sandbox.accounts.create(new, unique=sandbox.skypostal.unique)
    except EmailTaken:
        return _refusal(EMAIL_KNOWN, location="customer-registration")
    return _json(
        {"_verify": True, "customer_box_id": made.box_id, "customer_key": made.customer_key},
        made=made,
    )


def _log_in(sandbox: Sandbox, body: Body) -> Answer:
    email, password = body.get("customer_email"), body.get("customer_password")
    if not isinstance(email, str) or not isinstance(password, str):
        return _refusal("The fields customer_email and customer_password are required.")
    account = sandbox.accounts.log_in("skypostal", email, password)
    return _refusal(LOGIN_REFUSED) if account is None else _customer(account)


def _look_up(sandbox: Sandbox, body: Body) -> Answer:
    email = body.get("customer_email")
    if not isinstance(email, str):
        return _refusal("The field customer_email is required.")
    found = sandbox.accounts.find("skypostal", email)
    return _customer(found[0]) if found else _refusal(NOBODY)


CALLS: dict[str, Callable[[Sandbox, Body], Answer]] = {
    "/service-customer.svc/customer/customer-registration": _register,
    "/service-customer.svc/customer/customer-login": _log_in,
    "/service-customer.svc/partner/customer-get-info": _look_up,  # [doc]
    "/service-partner.svc/partner/customer-get-info": _look_up,  # [seen]
}


def _customer(account: Account) -> Answer:
    """Answer a login or a lookup. `customer_email`, in upper case, is [seen], not [doc].

    Invented: that a customer is active at once, and that a lookup of an e-mail with two accounts
    returns the oldest.
    """
    return _json(
        {
            "_verify": True,
            "activation_date": date(account.created_at),
            "customer_box_id": account.box_id,
            "customer_email": account.email.upper(),
            "customer_first_name": account.first_name,
            "customer_key": account.customer_key,
            "customer_last_name": account.last_name,
            "enrolment_date": date(account.created_at),
            "is_active": True,
            "is_business": account.is_business,
            "is_enable": True,
            "is_vip": False,
        }
    )


def _refusal(text: str, location: str = "") -> Answer:
    """Refuse: `_verify: false` at HTTP 200. The box id and key in this case are invented."""
    refused = {"_verify": False, "customer_box_id": 0, "customer_key": ""}
    return _json(refused, description=text, location=location)


def _json(
    item: Body, *, description: str = "", location: str = "", made: Account | None = None
) -> Answer:
    error = {
        "error_description": description,
        "error_location": location,
        "system_error": False,
    }
    return Answer(200, json.dumps([item | {"error": error}]).encode(), made=made)


def _odd_shape(answer: Answer) -> Answer:
    """The shape with which other SkyPostal services answer [seen]; its values are invented."""
    odd: Body = {"data": [], "additional_info": None, "error": None}
    return Answer(answer.status, json.dumps(odd).encode())
