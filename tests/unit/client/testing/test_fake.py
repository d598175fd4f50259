"""The fakes for a host's tests behave like the real producer."""

import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobNotCancellable,
    LedgerUnavailable,
    UnknownJob,
)
from regworker.domain.event import Event, EventType
from regworker.producer import AsyncProducer, Producer, Refused
from regworker.testing import (
    AsyncFakeProducer,
    Ending,
    FakeProducer,
    abandoned,
    cancelled,
    corrected,
    event,
    registered,
    rejected,
    review,
    signed,
)
from regworker.testing.events import OUTCOMES
from sandbox.faults import KINDS, PARAMETERS
from tests.integration.jobs import open2b, skypostal

SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ=="

ENDINGS: list[Ending] = [
    registered(),
    registered({"customer_key": "mine"}, recovered=True),
    rejected("already_exists", "email", "is known", "AlreadyExists"),
    abandoned(),
    cancelled(),
    review(),
]


def methods(kind: type) -> dict[str, Any]:
    """The public methods of a producer, by name."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: one for name, one in found if not name.startswith("_")}


@pytest.mark.parametrize(
    ("fake", "real"), [(FakeProducer, Producer), (AsyncFakeProducer, AsyncProducer)]
)
def test_a_fake_takes_what_a_producer_takes(fake: type, real: type) -> None:
    """Each public method exists, with the same parameters and defaults."""
    for name, method in methods(real).items():
        wanted = [(one.name, one.default) for one in inspect.signature(method).parameters.values()]
        taken = inspect.signature(methods(fake)[name]).parameters.values()
        assert [(one.name, one.default) for one in taken] == wanted, name


def test_a_job_is_checked_as_by_a_producer(fake_producer: FakeProducer) -> None:
    """All problems are reported at once, in the provider's spelling, and nothing is stored."""
    job = open2b()
    job["registration"]["customer"]["password"] = "short"
    job["registration"]["customer"]["address"]["country"] = "Britain"
    with pytest.raises(InvalidJob) as caught:
        fake_producer.enqueue(job)
    assert {problem.field for problem in caught.value.problems} == {
        "registration.customer.password",
        "registration.customer.address.country",
    }
    assert fake_producer.jobs == []


def test_repeats_and_conflicts_are_known(fake_producer: FakeProducer) -> None:
    """The same content is the same job; other content under the key is refused."""
    job = skypostal()
    first, again = fake_producer.enqueue(job), fake_producer.enqueue(job)
    assert (first.repeat, again.repeat) == (False, True)
    assert first.job_id == again.job_id
    job["registration"]["customer_campaign"] = "another"
    with pytest.raises(IdempotencyConflict):
        fake_producer.enqueue(job)
    assert len(fake_producer.jobs) == 1


def test_one_refused_job_holds_up_no_other(fake_producer: FakeProducer) -> None:
    """One result each, in order."""
    results = list(fake_producer.enqueue_many([skypostal(), {"provider": "none"}, skypostal()]))
    assert [isinstance(one, Refused) for one in results] == [False, True, False]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda one: one.type.word)
def test_a_job_ends_as_planned(ending: Ending) -> None:
    """`wait`, `status` and `events` agree, and the event follows the contract."""
    producer = FakeProducer()
    job = skypostal(metadata={"order": 17})
    producer.plan(job["idempotency_key"], ending)
    id_ = producer.enqueue(job).job_id
    assert producer.status(id_).state == "queued"
    if ending.type is EventType.REVIEW:
        with pytest.raises(TimeoutError):
            producer.wait(id_, timeout=60)
    else:
        assert producer.wait(id_) == producer.events[0]
    status = producer.status(key=job["idempotency_key"], provider="skypostal")
    assert status.state == ending.type.word
    assert status.final == (ending.type is not EventType.REVIEW)
    [published] = producer.events
    read = Event.model_validate(published)
    assert read.type is ending.type
    assert read.data.metadata == {"order": 17}


def test_without_a_plan_a_job_is_registered_as_its_provider_would() -> None:
    """Or it stays queued, if the test says so."""
    producer = FakeProducer()
    for make, provider in ((skypostal, "skypostal"), (open2b, "open2b")):
        found = producer.wait(producer.enqueue(make()).job_id)
        assert found["data"]["outcome"] == OUTCOMES[provider]
    waiting = FakeProducer(ending=None)
    job = skypostal()
    id_ = waiting.enqueue(job).job_id
    with pytest.raises(TimeoutError):
        waiting.wait(id_)
    assert waiting.finish(job["idempotency_key"], rejected())["type"] == "registration.rejected"
    assert waiting.status(id_).final


@pytest.mark.parametrize(
    ("right", "state"), [(registered(), "registered"), (rejected(), "rejected")]
)
def test_a_correction_leaves_the_job_as_it_says(
    fake_producer: FakeProducer, right: Ending, state: str
) -> None:
    """A correction is an event, and no state."""
    made = fake_producer.enqueue(skypostal())
    fake_producer.finish(made.idempotency_key, review())
    event = fake_producer.finish(made.idempotency_key, corrected(right, was=rejected()))
    assert event["type"].endswith("corrected")
    assert fake_producer.status(made.job_id).state == state


def test_a_queued_job_is_cancelled_and_an_ended_one_is_not(fake_producer: FakeProducer) -> None:
    """The errors are the real ones."""
    first, second = (fake_producer.enqueue(skypostal()).job_id for _ in range(2))
    assert fake_producer.cancel(first).state == "cancelled"
    assert fake_producer.cancel(first).state == "cancelled", "it is safe to repeat"
    fake_producer.wait(second)
    with pytest.raises(JobNotCancellable):
        fake_producer.cancel(second)
    with pytest.raises(UnknownJob):
        fake_producer.cancel("00000000-0000-8000-8000-000000000000")


@pytest.mark.parametrize(
    "call",
    [
        lambda one, id_: one.enqueue(skypostal()),
        lambda one, id_: one.status(id_),
        lambda one, id_: one.wait(id_),
        lambda one, id_: one.cancel(id_),
    ],
)
def test_the_ledger_can_be_away(call: Callable[[FakeProducer, str], Any]) -> None:
    """Every call raises the error, and works again afterwards."""
    producer = FakeProducer()
    id_ = producer.enqueue(skypostal()).job_id
    producer.unavailable = True
    with pytest.raises(LedgerUnavailable):
        call(producer, id_)
    producer.unavailable = False
    call(producer, id_)


def test_what_no_worker_serves_is_refused_where_a_test_says_what_is_served() -> None:
    """The test can name the accounts and endpoints that exist."""
    producer = FakeProducer(accounts=["open2b/default"], endpoints=["results"])
    producer.enqueue(open2b())
    with pytest.raises(InvalidJob) as caught:
        producer.enqueue(open2b(account="other", reply_to=["crm"]))
    assert [problem.field for problem in caught.value.problems] == ["account", "reply_to"]


def test_async_code_gets_the_same(async_fake_producer: AsyncFakeProducer) -> None:
    """All methods can be awaited."""

    async def host(producer: AsyncFakeProducer) -> None:
        async with producer:
            job = skypostal()
            receipt = await producer.enqueue(job)
            assert [one async for one in producer.enqueue_many([job])] == [
                producer.fake.enqueue(job)
            ]
            assert (await producer.status(receipt.job_id)).state == "queued"
            assert (await producer.wait(receipt.job_id))["type"] == "registration.registered"
            other = await producer.enqueue(skypostal())
            assert (await producer.cancel(other.job_id)).state == "cancelled"

    asyncio.run(host(async_fake_producer))


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda one: one.type.word)
def test_signed_requests_verify(ending: Ending) -> None:
    """The official library verifies them with each secret, and refuses a changed body."""
    other = "whsec_" + "QW5vdGhlciBzZWNyZXQgZm9yIHRlc3RzIG9ubHkuLi4="
    request = signed(event(ending), SECRET, other)
    for secret in (SECRET, other):
        Webhook(secret).verify(request.body, dict(request.headers))
    with pytest.raises(Exception, match="signature"):
        Webhook(SECRET).verify(request.body + b" ", dict(request.headers))
    stale = signed(event(ending), SECRET, at=0)
    with pytest.raises(Exception, match="old"):
        Webhook(SECRET).verify(stale.body, dict(stale.headers))


def test_the_guide_lists_every_kind_of_fault() -> None:
    """The list has the parameters of each kind."""
    guide = (Path(__file__).parents[4] / "docs/guide/testing.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.*) \|$", guide, re.MULTILINE))
    assert rows == {
        kind: ", ".join(f"`{name}`" for name in sorted(PARAMETERS[kind])) for kind in KINDS
    }


def test_no_credentials_are_shown() -> None:
    """Printing an outcome or a request shows none."""
    ending = registered({"customer_key": "s3cret-key"})
    shown = f"{ending!r} {signed(event(ending), SECRET)!r} {event(ending)!r}"
    assert "s3cret-key" not in shown


@pytest.mark.parametrize("timeout", ["5", True, float("nan")])
def test_a_limit_that_is_no_number_is_named_by_every_call(
    fake_producer: FakeProducer, timeout: Any
) -> None:
    """As by the real producer, so that a host's test finds the mistake."""
    id_ = fake_producer.enqueue(open2b()).job_id
    other = AsyncFakeProducer(fake_producer)
    calls: list[Callable[[], Any]] = [
        lambda: fake_producer.enqueue(open2b(), timeout=timeout),
        lambda: list(fake_producer.enqueue_many([], timeout=timeout)),
        lambda: fake_producer.status(id_, timeout=timeout),
        lambda: fake_producer.wait(id_, timeout),
        lambda: fake_producer.cancel(id_, timeout=timeout),
        lambda: asyncio.run(other.enqueue(open2b(), timeout=timeout)),
        lambda: asyncio.run(other.status(id_, timeout=timeout)),
        lambda: asyncio.run(other.wait(id_, timeout)),
        lambda: asyncio.run(other.cancel(id_, timeout=timeout)),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
            call()


def test_each_caller_gets_an_event_of_its_own(fake_producer: FakeProducer) -> None:
    """What one changes in it, no other sees."""
    id_ = fake_producer.enqueue(open2b()).job_id
    whole = fake_producer.wait(id_)
    fake_producer.wait(id_)["data"].clear()
    found = fake_producer.status(id_).event
    assert found is not None
    found["data"].clear()
    assert fake_producer.status(id_).event == whole == fake_producer.wait(id_)
