"""Look-ups about a job, and account checks without one: what a provider receives, and its
errors."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from regworker.domain.outcome import Absent, Outcome, Registered, Unknown
from regworker.domain.states import State
from regworker.ledger.records import TAKEN
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.execution.decision import refused_again
from worker.operations.questions import Questions
from worker.providers import base
from worker.providers.base import JobReference, Send
from worker.providers.check import check
from worker.providers.registry import NO_JOB, Accounts, Registry

KEYS = "test:" + "A" * 43


class Form(BaseModel):
    """An empty form."""


class Referring:
    """A provider that looks a customer up by the job's id."""

    name: ClassVar[str] = "referring"
    Registration: ClassVar[type[BaseModel]] = Form
    Account: ClassVar[type[base.Account]] = base.Account
    asked: ClassVar[list[JobReference]] = []
    finds: ClassVar[Outcome] = Absent("nobody has this reference")

    def __init__(self, account: base.Account, send: Send, job: JobReference) -> None:
        self._job = job

    async def register(self, registration: Form) -> Outcome:
        """Not called."""
        raise AssertionError

    async def find_out(self, registration: Form) -> Outcome:
        """Look up by the job's id."""
        self.asked.append(self._job)
        return self.finds

    async def check(self) -> Outcome:
        """Raise an error."""
        raise LookupError("canary")


@pytest.fixture
def settings() -> Settings:
    """Settings with one account at this provider."""
    return Settings.load(
        sealing_keys=KEYS,
        providers=[f"{__name__}:Referring"],
        accounts={"referring": {"default": {"base_url": "https://referring.example"}}},
    )


def in_review(why: str = "", log: str = "", unproved: int = 0) -> Any:
    """A job in review."""
    record: Any = SimpleNamespace(
        id="job-1",
        idempotency_key="order-1",
        provider="referring",
        account="default",
        state=State.REVIEW,
        if_exists="reject",
        metadata="",
        reply_to=(),
        why=why,
        log=log,
        unproved=unproved,
    )
    record.payload = Keyring.parse(KEYS).seal(json.dumps({}).encode(), seals.payload(record))
    return record


def test_a_person_who_asks_asks_about_that_job(settings: Settings) -> None:
    """With any other reference no customer would be found, and a second one would be made."""
    assert Questions(settings).ask(in_review()).what == "absent"
    assert Referring.asked == [JobReference("job-1", "order-1")]


#: Both mean that a customer with this address exists, or may exist.
_REFUSED = refused_again(Absent("nobody")).reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("record", "finds", "what"),
    [
        (in_review(), Absent("nobody"), "absent"),
        (in_review(_REFUSED), Absent("nobody"), "unclear"),
        (in_review("another reason", f"1 review: {_REFUSED}\n2 unknown"), Absent("no"), "unclear"),
        (in_review(unproved=TAKEN), Absent("nobody"), "unclear"),
        (in_review(), Absent("the login is refused", login_only=True), "unclear"),
        (in_review(_REFUSED), Registered({}), "ours"),
        (in_review(_REFUSED), Unknown("HTTP 500"), "unasked"),
    ],
)
def test_who_may_be_there_is_never_called_absent(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, record: Any, finds: Outcome, what: str
) -> None:
    """A person gets the answer that a worker would act on."""
    monkeypatch.setattr(Referring, "finds", finds)
    found = Questions(settings).ask(record)
    assert found.what == what
    assert found.reason or what == "ours"


def test_a_check_that_fails_is_no_fault_of_the_worker(settings: Settings) -> None:
    """The other accounts are still checked; the text of the error is not shown."""

    async def send(_: Any) -> Any:
        raise AssertionError

    accounts = Accounts(Registry(settings.providers), settings.accounts)
    found = asyncio.run(check(accounts.open("referring", "default", send, NO_JOB)))
    assert (found.state, found.words) == ("unreached", "the provider's check failed: LookupError")
