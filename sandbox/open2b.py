"""Open2b 7.5, as far as registration goes: sign up, log in, search customers.

Shapes: [doc] Open2b pages "sign-up", "login", "customers.find" and "Error handling". Invented:
statuses and bodies of what isn't answered in JSON (only "403 Forbidden" is documented), the order
of checks, and that a login gives the same key as the sign-up.
"""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox import open2b_rules
from sandbox.accounts import Account, EmailTaken, NewAccount
from sandbox.exchange import TEXT, Answer, Call, exchange
from sandbox.open2b_rules import Error
from sandbox.state import Sandbox

API = "/api/v10"
KEY_HEADER = "X-Customer-Key"

Body = dict[str, Any]


def routes(sandbox: Sandbox) -> list[Route]:
    """Route everything under `/api/v10` to this provider."""

    async def answer(request: Request) -> Response:
        return await exchange(sandbox, _read(sandbox, request, await request.body()))

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [Route(f"{API}/{{method:path}}", answer, methods=methods)]


def _read(sandbox: Sandbox, request: Request, raw: bytes) -> Call:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    return Call(
        provider="open2b",
        name=request.url.path.rpartition("/")[2],
        email=_email_of(body),
        perform=partial(_perform, sandbox, request, body),
        pretence=_ok(),
        without_key=_without_key,
    )


def _email_of(body: object) -> str | None:
    """The e-mail, wherever each of the three calls has it."""
    for path in (("email",), ("customer", "address", "email"), ("conditions", "email")):
        value = body
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str):
            return value
    return None


def _perform(sandbox: Sandbox, request: Request, body: object) -> Answer:
    work = METHODS.get(request.url.path.removeprefix(f"{API}/"))
    if work is None:
        return _not_json(404, "Not Found: method does not exist")
    if request.method != "POST":
        return _not_json(405, "Method Not Allowed")
    if not _key_holds(sandbox, request, private=work is _find):
        return _not_json(403, "Forbidden: malformed or missing key")
    if not _within_limit(sandbox):
        return _over_limit(sandbox)
    if not isinstance(body, dict):
        return _not_json(400, "Bad Request: not a JSON object")
    try:
        return work(sandbox, request, body)
    except Error as error:
        shown = {"field": error.field, "type": error.type, "description": error.description}
        return Answer(200, json.dumps({"status": "error", "error": shown}).encode())


def _key_holds(sandbox: Sandbox, request: Request, *, private: bool) -> bool:
    """Check the keys of later versions [doc 7.8], if the store has any."""
    if private:
        return sandbox.open2b.secret_key in (None, request.headers.get("X-Secret-Key"))
    return sandbox.open2b.public_key in (None, request.headers.get("X-Public-Key"))


def _within_limit(sandbox: Sandbox) -> bool:
    store = sandbox.open2b
    return not store.call_limit or sandbox.open2b_calls.admit(
        store.call_limit_calls, store.call_limit_seconds
    )


def _over_limit(sandbox: Sandbox) -> Answer:
    wait = sandbox.open2b.call_limit_retry_after
    headers = {} if wait is None else {"Retry-After": str(wait)}
    refused = _not_json(sandbox.open2b.call_limit_status, "Call limit reached")
    return replace(refused, headers=headers)


def _sign_up(sandbox: Sandbox, request: Request, body: Body) -> Answer:
    open2b_rules.SIGN_UP("request", body)
    _check_store(sandbox, body)
    customer = body["customer"]
    address = customer["address"]
    new = NewAccount(
        provider="open2b",
        store=request.url.hostname or "",
        email=address["email"],
        password=customer["password"],
        customer_key=base64.urlsafe_b64encode(os.urandom(48)).decode(),
        first_name=address.get("firstName", ""),
        last_name=address.get("lastName", ""),
        is_business=bool(address.get("companyName")),
    )
    try:
        made = sandbox.accounts.create(new, unique=sandbox.open2b.unique)
    except EmailTaken:
        description = f"Email '{new.email}' already exists"
        raise Error("email", "AlreadyExists", description) from None
    return _ok(made)


def _check_store(sandbox: Sandbox, body: Body) -> None:
    """Check what depends on the store's setup: carts, lists, consents, verification."""
    store, customer = sandbox.open2b, body["customer"]
    cart = customer.get("cart")
    if cart is not None and cart not in store.carts:
        raise Error("cart", "NotFound", f"Cart '{cart}' does not exist")
    for wanted in customer.get("newsletterLists", ()):
        if wanted not in store.newsletter_lists:
            description = f"Newsletter list {wanted} does not exist"
            raise Error("newsletterLists", "NotFound", description)
    for consent in store.mandatory_consents:
        if consent not in customer["privacyConsents"]:
            description = f"Consent to processing {consent} is required"
            raise Error("privacyConsents", "InvalidValue", description)
    if store.verification_required:
        code = body.get("verificationCode")
        if code is None:
            raise Error("verificationCode", "Missing", "Verification code is required")
        if code not in store.verification_codes:
            description = f"Verification code '{code}' is not valid"
            raise Error("verificationCode", "InvalidValue", description)


def _log_in(sandbox: Sandbox, request: Request, body: Body) -> Answer:
    open2b_rules.LOGIN("request", body)
    account = sandbox.accounts.log_in("open2b", body["email"], body["password"])
    if account is None or sandbox.open2b.customers_disabled_until_approved:
        raise Error("email", "InvalidCombination", "email or password is incorrect")
    return replace(_ok(account), made=None)


def _find(sandbox: Sandbox, request: Request, body: Body) -> Answer:
    open2b_rules.FIND("request", body)
    accounts = sandbox.accounts.find("open2b", body.get("conditions", {}).get("email"))
    first = body.get("first", 0)
    page = accounts[first : first + body.get("limit", len(accounts))]
    wanted = body.get("fields", list(FIELDS))
    for name in wanted:
        if name not in FIELDS:
            raise Error("fields", "InvalidValue", "fields is not a valid value")
    found = [{name: FIELDS[name](sandbox, account) for name in wanted} for account in page]
    return Answer(200, json.dumps({"status": "ok", "customers": found}).encode())


METHODS: dict[str, Callable[[Sandbox, Request, Body], Answer]] = {
    "storefront.sign-up": _sign_up,
    "storefront.login": _log_in,
    "commerce.customers.find": _find,
}

#: The fields of a found customer that the sandbox knows; all are returned if none are named.
FIELDS: dict[str, Callable[[Sandbox, Account], object]] = {
    "id": lambda _, account: account.seq,
    "email": lambda _, account: account.email,
    "canLogin": lambda sandbox, _: not sandbox.open2b.customers_disabled_until_approved,
    "hasPassword": lambda _, __: True,
    "fullName": lambda _, account: f"{account.first_name} {account.last_name}".strip(),
    "creationTime": lambda _, account: int(account.created_at),
}


def _ok(made: Account | None = None) -> Answer:
    headers = {} if made is None else {KEY_HEADER: made.customer_key}
    return Answer(200, json.dumps({"status": "ok"}).encode(), headers=headers, made=made)


def _without_key(answer: Answer) -> Answer:
    return replace(answer, headers={})


def _not_json(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), TEXT)
