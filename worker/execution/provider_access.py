"""An attempt's access to its provider: the opened payload, the account's settings, the calls."""

from collections.abc import Callable
from typing import Any, Protocol, assert_never

from regworker import tracing
from regworker.ledger.records import Claim, Record
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring, kid_of
from worker.providers.base import Answer, JobReference, Lost, NotSent, Provider, Request, Send
from worker.providers.registry import Accounts, Registry

Heard = Callable[[Answer | NotSent | Lost], None]


class Sender(Protocol):
    """Makes the `Send` of one attempt: within a budget, and only while the lease lives."""

    def sender(self, claim: Claim, may_send: Callable[[], bool], budget: float) -> Send:
        """`budget`: the time limit of one call; `may_send`: called before any bytes are sent."""
        ...


class NotHere(Exception):  # noqa: N818 -- nothing is wrong with the job
    """Raised when this worker does not have the account; another worker may have it."""


class ProviderAccess:
    """All providers, as this worker can reach them."""

    def __init__(
        self, registry: Registry, accounts: Accounts, keyring: Keyring, transport: Sender
    ) -> None:
        self._registry = registry
        self._accounts = accounts
        self._keyring = keyring
        self._transport = transport

    def send(self, claim: Claim, may_send: Callable[[], bool], budget: float, heard: Heard) -> Send:
        """The `Send` for the calls of one attempt; each call is a span of its trace.

        `heard` gets what came of each call.
        """
        account = f"{claim.record.provider}/{claim.record.account}"
        return _watched(self._transport.sender(claim, may_send, budget), account, heard)

    def registration(self, record: Record) -> bytes:
        """A job's registration as JSON. Raises `SealingError`: `WrongSeal` if it belongs to another
        job."""
        return self._keyring.open(record.payload, seals.payload(record))

    def open(self, record: Record, plain: bytes, send: Send) -> tuple[Provider, Any]:
        """A job's provider with its account, and the registration as the provider's model.

        Raises `NotHere` and `InvalidJob`.
        """
        try:
            job = JobReference(record.id, record.idempotency_key)
            provider = self._accounts.open(record.provider, record.account, send, job)
        except KeyError:
            raise NotHere(
                f"account {record.provider}/{record.account} is not configured at this worker"
            ) from None
        return provider, self._registry.read_json(record.provider, plain)

    def missing_key(self, record: Record) -> str | None:
        """The id of the key with which a payload is sealed, if this worker does not have it."""
        kid = kid_of(record.payload)
        return None if kid in self._keyring.kids else kid


def _watched(send: Send, account: str, heard: Heard) -> Send:
    async def watched(request: Request) -> Answer | NotSent | Lost:
        # No URL: it may contain a user and a password, or a customer's data.
        with tracing.span("http.client", f"{request.method} {account}") as tell:
            tell(method=request.method)
            answer = await send(request)
            match answer:
                case Answer(status=status):
                    tell(status=status)
                case NotSent(reason) | Lost(reason):
                    tell(came=type(answer).__name__.lower(), reason=reason)
                case _:
                    assert_never(answer)
        heard(answer)
        return answer

    return watched
