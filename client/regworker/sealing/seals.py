"""The kind and the owner of each sealed text, for its authenticated header.

    registration  sealed by its sender, for the job stream or a task; of `provider/account/key`
    payload       a registration in the ledger; of the job, and of all that its record asks for
    kept          what a job's record keeps of its last event; of the job
    event         an event, for deliveries and sealed streams; of the event, for its endpoints
    quarantine    a message set aside; of the quarantine's id, for the queue it came from

A text is opened only as what it is (`sealing.py`). So whoever can write to the server, and has no
key, cannot have one job's secrets sent, delivered or shown as another's.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from regworker.domain.job import canonical


class Seal(NamedTuple):
    """What a sealed text is (`typ`), whose (`sub`), and who may have its content (`aud`).

    The names are those of JOSE: RFC 7515, section 4.1.9, and RFC 7519, section 5.3.
    """

    typ: str
    sub: str
    aud: tuple[str, ...] = ()


REGISTRATION = "registration"


class Asked(Protocol):
    """The fields of a job, or of its record, besides the registration."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def provider(self) -> str: ...  # noqa: D102
    @property
    def account(self) -> str: ...  # noqa: D102
    @property
    def idempotency_key(self) -> str: ...  # noqa: D102
    @property
    def if_exists(self) -> str: ...  # noqa: D102
    @property
    def reply_to(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def metadata(self) -> dict[str, Any]: ...  # noqa: D102


def registration(job: Mapping[str, Any]) -> Seal:
    """The seal of a registration as submitted, even if the job is not valid.

    Neither a provider's name nor an account's contains a slash. The sender may omit `aud`;
    otherwise it names every endpoint that may get the result.
    """
    account, reply_to = job.get("account", "default"), job.get("reply_to", ("results",))
    names = reply_to if isinstance(reply_to, list | tuple) else ()
    sub = f"{job.get('provider')}/{account}/{job.get('idempotency_key')}"
    return Seal(REGISTRATION, sub, tuple(name for name in names if isinstance(name, str)))


def payload(job: Asked) -> Seal:
    """The seal of a job's registration in the ledger.

    The record has in plain text where the result goes, and what an existing account means: changing
    them there must not get anybody the customer's key.
    """
    asked = "\0".join((
        *(job.provider, job.account, job.idempotency_key, job.if_exists),
        *job.reply_to,
        canonical(job.metadata).decode() if job.metadata else "",
    ))  # fmt: skip
    return Seal("payload", f"{job.id}/{hashlib.sha256(asked.encode()).hexdigest()[:_DIGITS]}")


#: 128 bits: finding two records with one digest takes 2^64 tries, and a key to seal the first.
_DIGITS = 32


def kept(job_id: str) -> Seal:
    """The seal of what a job's record keeps of its last event."""
    return Seal("kept", job_id)


def event(event_id: str, *endpoints: str) -> Seal:
    """The seal of an event: with all its endpoints when sealing; with one endpoint when opening.

    A reader of a stream does not know the name of the endpoint for which it was written: it passes
    none.
    """
    return Seal("event", event_id, endpoints)


def quarantine(id_: str, queue: str) -> Seal:
    """The seal of a message in quarantine, which may be requeued only to its own queue."""
    return Seal("quarantine", id_, (queue,))
