"""The fakes for a host's tests behave like the real producer."""

import asyncio
import inspect
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, get_type_hints

import pytest
from sqlalchemy import create_engine
from standardwebhooks import Webhook

import regworker.producer
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobNotCancellable,
    LedgerUnavailable,
    UnknownJob,
)
from regworker.domain.event import Event, EventType
from regworker.domain.job import Job
from regworker.outbox import Outbox, Relay, metadata
from regworker.producer import AsyncProducer, Producer, Refused
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.several_ledgers import producer_shells as several_ledgers
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


#: Names that differ, since one is awaited.
SAME = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}

#: What a test does with a fake.
OF_TESTS = {"jobs", "events", "plan", "finish", "unavailable", "fake"}

#: What the annotations name.
NAMES = {**vars(regworker.producer), "Job": Job, "Settings": Settings}
NAMES |= {name: getattr(several_ledgers, name) for name in ("Away", "Result")}


def signature(member: Any) -> list[tuple[Any, ...]]:
    """The parameters of a method or a property, and what comes back: its type, once awaited."""
    member = inspect.unwrap(member.fget if isinstance(member, property) else member)
    types = get_type_hints(member, NAMES)
    returned = str(types.pop("return", None)).replace("abc.AsyncIterator", "abc.Iterator")
    taken = inspect.signature(member).parameters.values()
    found = [(one.name, one.kind, one.default, types.get(one.name)) for one in taken]
    return [*found, ("return", returned)]


def public(kind: type) -> dict[str, list[tuple[Any, ...]]]:
    """The public members of a producer, by name."""
    names = (
        {*vars(kind), *vars(kind.__bases__[0])} - OF_TESTS - vars(object).keys() - {"__module__"}
    )
    found = {name: inspect.getattr_static(kind, name) for name in names}
    return {
        SAME.get(name, name): signature(one)
        for name, one in found.items()
        if (not name.startswith("_") or name in SAME or name in SAME.values())
        and isinstance(one, property | FunctionType)
    }


@pytest.mark.parametrize("kind", [AsyncProducer, FakeProducer, AsyncFakeProducer])
def test_all_producers_take_and_return_the_same(kind: type) -> None:
    """Each public member exists, with the same parameters, defaults and types."""
    wanted = public(Producer)
    assert {"enqueue", "settings", "close", "__enter__"} <= wanted.keys()
    found = public(kind)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert found[name] == one, name


@pytest.mark.parametrize(
    ("fake", "real"), [(FakeProducer, Producer), (AsyncFakeProducer, AsyncProducer)]
)
def test_a_fake_inherits_nothing_that_needs_a_ledger(fake: type, real: type) -> None:
    """It is a producer to a type checker, and replaces all of it that needs one."""
    assert issubclass(fake, real)
    needing = {name for name, one in vars(real).items() if "_shell" in _code(one)}
    assert len(needing) > 5
    assert needing - vars(fake).keys() - {"_each"} == set()


def _code(member: Any) -> tuple[str, ...]:
    member = inspect.unwrap(member.fget if isinstance(member, property) else member)
    return member.__code__.co_names if isinstance(member, FunctionType) else ()


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
    with pytest.raises(InvalidJob):
        producer.enqueue({})  # as by a producer, without asking the ledger
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


def test_an_outbox_leads_to_a_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay moves its rows there, whichever settings the host's code seals them with."""
    own = Settings.load(redis_url="redis://127.0.0.1:1/0", sealing_keys=Keyring.new("host"))
    monkeypatch.setenv("REGWORKER_NO_SETTING", "a fake reads no environment")
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    for producer in (FakeProducer(), FakeProducer(settings=own)):
        outbox, relay = Outbox(producer.settings), Relay(producer)
        with engine.begin() as connection:
            id_ = outbox.add(connection, open2b())
        producer.unavailable = True
        with pytest.raises(LedgerUnavailable):
            relay.turn(engine)
        producer.unavailable = False
        assert relay.turn(engine).moved == 1
        assert [job.id for job in producer.jobs] == [id_]
    engine.dispose()


def test_many_jobs_are_accepted_as_by_a_producer(fake_producer: FakeProducer) -> None:
    """None before the first result is asked for, and then 500 of them."""
    results = fake_producer.enqueue_many(skypostal() for _ in range(501))
    assert fake_producer.jobs == []
    next(results)
    assert len(fake_producer.jobs) == 500


def test_one_of_several_threads_is_the_first(fake_producer: FakeProducer) -> None:
    """The others repeat its job."""
    job, begin, repeats = open2b(), threading.Barrier(8), list[bool]()

    def host() -> None:
        begin.wait()
        repeats.append(fake_producer.enqueue(job).repeat)

    threads = [threading.Thread(target=host) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(repeats) == [False] + [True] * 7


def test_a_plan_is_found_in_any_form_of_its_key(fake_producer: FakeProducer) -> None:
    """Keys are compared in NFC."""
    fake_producer.plan("e\u0301-1", rejected())
    id_ = fake_producer.enqueue(open2b(idempotency_key="\u00e9-1")).job_id
    assert fake_producer.wait(id_)["type"] == "registration.rejected"
