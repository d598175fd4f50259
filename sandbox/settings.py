"""The switches of both providers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from sandbox import checks
from sandbox.checks import BadControl


@dataclass(frozen=True, slots=True)
class SkyPostalSettings:
    """How the SkyPostal sandbox behaves."""

    #: Whether an e-mail can be registered only once.
    unique: bool = True
    #: The partner's credentials; None: any are accepted, but some are required.
    user_code: int | None = None
    app_key: str | None = None
    #: The answer to wrong credentials (unknown, so both can be tested): `http_401` or
    #: `verify_false`.
    bad_credentials: str = "http_401"


@dataclass(frozen=True, slots=True)
class Open2bSettings:
    """The setup of the Open2b sandbox's store. The defaults fit the documented example."""

    unique: bool = True
    #: Existing carts (tokens).
    carts: tuple[str, ...] = ("ebe766e73af1128d13217f1bcea6b9d9",)
    #: Existing newsletter lists.
    newsletter_lists: tuple[int, ...] = (5, 7)
    #: Processings that a customer must consent to.
    mandatory_consents: tuple[int, ...] = ()
    #: Whether an e-mail must be verified before registration, and the codes that are valid then.
    #: Invented: a code is valid for any e-mail, and is ignored unless one is required.
    verification_required: bool = False
    verification_codes: tuple[str, ...] = ("AT67N3FG",)
    #: New customers cannot log in until approved.
    customers_disabled_until_approved: bool = False
    #: None: not checked.
    public_key: str | None = None
    secret_key: str | None = None
    #: The documented limit: 1000 calls in 5 minutes. Off, since it would disturb most tests.
    call_limit: bool = False
    call_limit_calls: int = 1000
    call_limit_seconds: float = 300.0
    #: The status of a call beyond it: undocumented. None: no Retry-After header.
    call_limit_status: int = 429
    call_limit_retry_after: int | None = None


Settings = SkyPostalSettings | Open2bSettings
S = TypeVar("S", SkyPostalSettings, Open2bSettings)


def merge(settings: S, value: object, where: str) -> S:
    """Change the switches named in `value`; `BadControl` names what is wrong."""
    changes = checks.mapping(value, where)
    checks.known(changes, (item.name for item in fields(settings)), where)
    return replace(
        settings, **{name: _CHECKS[name](item, f"{where}.{name}") for name, item in changes.items()}
    )


def public(settings: Settings) -> dict[str, Any]:
    """The switches as JSON, with `***` for a secret that is set."""
    return {
        name: "***" if name in ("app_key", "secret_key") and value else value
        for name, value in asdict(settings).items()
    }


def _optional(check: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    return lambda value, where: None if value is None else check(value, where)


def _each(check: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    def check_each(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise BadControl(f"{where} must be a list.")
        return tuple(check(item, f"{where}[{index}]") for index, item in enumerate(value))

    return check_each


def _bad_credentials(value: object, where: str) -> str:
    if value not in ("http_401", "verify_false"):
        raise BadControl(f"{where} must be http_401 or verify_false.")
    return str(value)


def _error_status(value: object, where: str) -> int:
    status = checks.whole(value, where, 400)
    if status > 599:
        raise BadControl(f"{where} must be an HTTP error status.")
    return status


_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "unique": checks.boolean,
    "user_code": _optional(checks.whole),
    "app_key": _optional(checks.text),
    "bad_credentials": _bad_credentials,
    "carts": _each(checks.text),
    "newsletter_lists": _each(checks.whole),
    "mandatory_consents": _each(checks.whole),
    "verification_required": checks.boolean,
    "verification_codes": _each(checks.text),
    "customers_disabled_until_approved": checks.boolean,
    "public_key": _optional(checks.text),
    "secret_key": _optional(checks.text),
    "call_limit": checks.boolean,
    "call_limit_calls": checks.whole,
    "call_limit_seconds": checks.seconds,
    "call_limit_status": _error_status,
    "call_limit_retry_after": _optional(checks.whole),
}
