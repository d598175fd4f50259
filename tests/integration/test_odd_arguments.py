"""What a host may pass by mistake: each public method of a producer refuses it with an error of
this package, which names the argument."""

import asyncio
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from regworker.domain.errors import InvalidJob, LedgerUnavailable, UnknownJob
from regworker.domain.job import Job
from regworker.ledger import SyncLedger
from regworker.producer import AsyncProducer, Producer
from regworker.settings import Settings
from regworker.testing import AsyncFakeProducer, FakeProducer
from tests.gateway.service import serves
from tests.integration.installation import KEYS
from tests.integration.jobs import open2b

SECRET = "secret-password"


class Provider(enum.StrEnum):
    """A host's own names."""

    OPEN2B = "open2b"


#: What is neither an id nor a key nor a name.
ODD: dict[str, Any] = {
    "none": None,
    "number": 123,
    "huge number": 10**5000,
    "fraction": 1.5,
    "not a number": float("nan"),
    "decimal": decimal.Decimal("1E+999999999"),
    "truth": True,
    "list": ["x"],
    "dict": {"a": 1},
    "set": {1},
    "object": object(),
    "date": dt.datetime.now(dt.UTC),
    "half of a surrogate pair": "\ud800",
    "no UTF-8": b"\xff",
}


@pytest.fixture(params=["one ledger", "several"])
def settings(request: pytest.FixtureRequest, redis_url: str, ledger: SyncLedger) -> Settings:
    """A producer's settings; a worker has announced itself to the ledger."""
    own = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    serves(ledger, own)
    if request.param == "one ledger":
        return own
    other = {"redis_url": redis_url.removesuffix("/0") + "/1"}
    return Settings.load(redis_url=redis_url, sealing_keys=KEYS, ledgers={"b": other})


@pytest.fixture(params=["sync", "async", "fake", "async fake"])
def call(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Any]:
    """Calls a method of a producer of each kind, by its name."""
    if "async" in request.param:
        with asyncio.Runner() as runner:
            fake = "fake" in request.param
            producer = AsyncFakeProducer() if fake else AsyncProducer(settings)

            async def made(name: str, *args: Any, **named: Any) -> Any:
                if name == "enqueue_many":
                    return [one async for one in producer.enqueue_many(*args, **named)]
                return await getattr(producer, {"close": "aclose"}.get(name, name))(*args, **named)

            yield lambda *args, **named: runner.run(made(*args, **named))
            runner.run(producer.aclose())
        return
    with FakeProducer() if request.param == "fake" else Producer(settings) as one:
        yield lambda name, *args, **named: getattr(one, name)(*args, **named)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_each_method_names_the_argument(call: Any, odd: Any) -> None:
    """In place of an id, a key, a name, or the whole job."""
    for name, field, args, named in (
        ("status", "job_id", [odd], {}),
        ("wait", "job_id", [odd, 0.01], {}),
        ("cancel", "job_id", [odd], {}),
        ("status", "key", [], {"key": odd, "provider": "open2b"}),
        ("status", "provider", [], {"key": "x", "provider": odd}),
        ("status", "account", [], {"key": "x", "provider": "open2b", "account": odd}),
        ("enqueue", "idempotency_key", [{**open2b(), "idempotency_key": odd}], {}),
        ("enqueue", "provider", [{**open2b(), "provider": odd}], {}),
        ("enqueue", "account", [{**open2b(), "account": odd}], {}),
        ("enqueue", "registration", [{**open2b(), "registration": odd}], {}),
        ("enqueue", "metadata", [{**open2b(), "metadata": {"a": object()}}], {}),
    ):
        with pytest.raises(InvalidJob) as caught:
            call(name, *args, **named)
        fields = {problem.field.split(".")[0] for problem in caught.value.problems}
        missing = field == "key" and odd is None
        assert ("job_id" if missing else field) in fields, (name, caught.value)
        assert SECRET not in str(caught.value)
    with pytest.raises(InvalidJob):
        call("enqueue", odd)


@pytest.mark.parametrize("odd", [None, 5, "text", open2b(), Job.model_validate(open2b())], ids=type)
def test_many_jobs_are_not_one(call: Any, odd: Any) -> None:
    """A single one would be taken for many, each of them wrong: its fields."""
    with pytest.raises(TypeError, match="jobs must be a list of jobs"):
        list(call("enqueue_many", odd))


def test_a_key_that_other_versions_would_read_otherwise_is_named(call: Any) -> None:
    """It is not an unknown job: another process may have accepted it."""
    key = "order-\u0378"
    with pytest.raises(InvalidJob, match="idempotency_key: holds a character that Unicode"):
        call("enqueue", {**open2b(), "idempotency_key": key})
    with pytest.raises(InvalidJob, match="key: holds a character that Unicode"):
        call("status", key=key, provider="open2b")


def test_every_closed_producer_says_so(call: Any) -> None:
    """Whatever is asked of it; a wrong argument is named before."""
    id_ = call("enqueue", open2b()).job_id
    call("close")
    call("close")
    for name, args in (
        ("enqueue", [open2b()]),
        ("enqueue", [{}]),
        ("enqueue_many", [[open2b()]]),
        ("status", [id_]),
        ("wait", [id_, 5]),
        ("cancel", [id_]),
    ):
        with pytest.raises(LedgerUnavailable, match=r"this (Async)?Producer is closed"):
            list(call(name, *args))
    with pytest.raises(InvalidJob, match="job_id"):
        call("cancel", 5)
    assert list(call("enqueue_many", [])) == []


@pytest.mark.parametrize("limit", [0, -1.5])
def test_a_limit_that_is_over_is_over(call: Any, limit: float) -> None:
    """As if the ledger had not answered, also in a host's test with a fake."""
    id_ = call("enqueue", open2b()).job_id
    for name, arg in (("enqueue", open2b()), ("status", id_), ("cancel", id_)):
        with pytest.raises(LedgerUnavailable, match=r"within \S+ s"):
            call(name, arg, timeout=limit)


def test_what_enqueue_takes_is_found(call: Any) -> None:
    """Text in another form, an id as a database returns it."""
    for key in (b"bytes", "key", "key\u0301", "k\u00e9y", "x" * 255):
        job = {**open2b(), "provider": Provider.OPEN2B, "idempotency_key": key}
        found = call("enqueue", job)
        assert call("status", key=key, provider=Provider.OPEN2B).job_id == found.job_id
        assert call("status", uuid.UUID(found.job_id)).job_id == found.job_id
        assert call("cancel", uuid.UUID(found.job_id)).state == "cancelled"
    for name in ("status", "wait", "cancel"):
        for unknown in ("", "x", "\0", "x" * 100_000, str(uuid.uuid4())):
            with pytest.raises(UnknownJob):
                call(name, unknown)
    for odd in ("", "\0", "No Name!", "x" * 100_000):
        for named in ({"key": odd, "provider": "open2b"}, {"key": "x", "provider": odd}):
            with pytest.raises(UnknownJob):
                call("status", **named)
