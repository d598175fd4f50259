"""What the pages need, opened once per process: `page_services(request)`."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from redis.exceptions import NoPermissionError

from regworker.core import known_record
from regworker.domain.errors import JobNotOver, NoSealingKeys, SettingsError
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.records import Record
from regworker.ledger.steps import Steps, carry
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, variable
from worker.gateway.pages.history import History
from worker.gateway.problems import RIGHTS, HttpProblem, NotTaken
from worker.intake.quarantine import Quarantine
from worker.operations.admin_actions import AdminActions
from worker.operations.deliveries import DeliveryAdmin
from worker.operations.job_data import JobData
from worker.operations.jobs import JobList
from worker.operations.questions import Questions
from worker.providers.registry import Registry

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds for which a page waits for a ledger that does not answer.
PATIENCE = 3.0

#: Seconds for an export or erasure: it searches the results streams.
WHOLE = 60.0


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a provider's outcome model, for a form."""

    name: str
    whole_number: bool
    required: bool


@dataclass(frozen=True, slots=True)
class BulkAction:
    """An act on many jobs. `words` and `follows`: what it does, and what follows for each job."""

    state: State
    words: str
    follows: str
    done: str
    """The word for its result."""
    final: bool = True
    """Whether it ends the job."""


BULK_ACTIONS: Mapping[str, BulkAction] = {
    "job.cancel": BulkAction(
        State.QUEUED,
        "Cancel queued jobs",
        "the job ends as cancelled, its registration is erased, and its producer is notified. No "
        "request of it is sent any more",
        "cancelled",
    ),
    "review.rejected": BulkAction(
        State.REVIEW,
        "Reject jobs in review",
        "the job ends as rejected. Its producer is notified that there is no customer, with your "
        "words as the reason",
        "rejected",
    ),
    "review.resend": BulkAction(
        State.REVIEW,
        "Try jobs in review again",
        "a worker asks the provider first, and sends the registration again only if nobody is "
        "there",
        "resent",
        final=False,
    ),
}
"""By the act's name in the audit log."""


class PageServices:
    """Reads and acts for the pages. Thread-safe: what is not is created for each use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = SyncLedger(settings.redis_url)
        self.history = History(settings)
        self._registry = Registry(settings.providers)
        self._keyring = Keyring.of(settings)
        self.has_keys = bool(self._keyring.kids)
        self._event_builder = EventBuilder(settings, self._keyring)
        self._questions: Questions | None = None

    def use(self, settings: Settings, keyring: Keyring) -> None:
        """From now on, use other keys, which the settings hold too."""
        self._keyring.use(keyring)
        self.settings = settings
        self._questions = None

    def need_keys(self) -> None:
        """Raise `NoSealingKeys` if there are none."""
        if not self.has_keys:
            raise NoSealingKeys([(variable("sealing_keys"), "is not set here, and this needs it")])

    @property
    def bulk_actions(self) -> Mapping[str, BulkAction]:
        """The acts on many jobs that are possible here: each writes an event, and so needs keys."""
        return BULK_ACTIONS if self.has_keys else {}

    def data(self, act: Callable[[JobData], Steps[T]]) -> T:
        """Run an export or erasure. Raises `NotTaken`."""
        try:
            return carry(act(JobData(self.settings)), lambda step: self.ledger.carry(step, WHOLE))
        except JobNotOver as error:
            raise NotTaken(HttpProblem(409, "not-over", str(error))) from None
        except NoPermissionError:
            raise NotTaken(HttpProblem(403, "no-rights", RIGHTS)) from None

    def record(self, job_id: str) -> Record:
        """A job. Raises `UnknownJob`, `UnreadableRecord`."""
        return carry(known_record(job_id), lambda step: self.ledger.carry(step, PATIENCE))

    def event(self, record: Record) -> dict[str, Any] | None:
        """The last event of a job; None if there is none, or no key here opens it."""
        try:
            return self._event_builder.last(record)
        except Exception as error:  # noqa: BLE001 -- a page shows the rest of the job
            log.warning("an event cannot be shown (%s)", type(error).__name__)
            return None

    @property
    def jobs(self) -> JobList:
        """Lists of jobs."""
        return JobList(self.ledger)

    @property
    def deliveries(self) -> DeliveryAdmin:
        """Deliveries and endpoints."""
        return DeliveryAdmin(self.ledger)

    @property
    def questions(self) -> Questions | None:
        """Looks up customers; None if the accounts' settings of this process are not valid."""
        if self._questions is None:
            try:
                self._questions = Questions(self.settings)
            except SettingsError as error:
                log.warning("providers cannot be asked: %s", error)
        return self._questions

    @contextmanager
    def acting(self) -> Iterator[AdminActions]:
        """Carries out a person's acts on jobs and accounts."""
        with AdminActions(self.settings) as admin:
            yield admin

    @contextmanager
    def quarantine(self) -> Iterator[Quarantine]:
        """The messages that were set aside."""
        made = Quarantine(self.settings)
        try:
            yield made
        finally:
            made.close()

    def outcome_fields(self, provider: str) -> list[Field]:
        """The fields of a provider's outcome; empty if it has no model."""
        if provider not in set(self._registry):
            return []
        model: type[BaseModel] | None = getattr(self._registry[provider], "Gives", None)
        if model is None:
            return []
        return [
            Field(one.alias or name, one.annotation is int, one.is_required())
            for name, one in model.model_fields.items()
        ]

    def may(self, record: Record, act: str) -> bool:
        """Whether an act is possible in a job's state. Each writes an event, and so needs sealing
        keys."""
        return self.has_keys and _FITS[act](record)

    def close(self) -> None:
        """Close all connections."""
        self.history.close()
        self.ledger.close()


_FITS: dict[str, Callable[[Record], bool]] = {
    "cancel": lambda record: record.state is State.QUEUED,
    "settle": lambda record: record.state is State.REVIEW,
    "correct": lambda record: bool(record.decided and not record.corrected),
}


def page_services(request: Request) -> PageServices:
    """Those of a request's process; also a FastAPI dependency."""
    found: PageServices = request.app.state.page_services
    return found
