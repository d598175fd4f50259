"""Typed jobs at each entry point of a host: checked like, and repeats of, the equal dict."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from regworker import AsyncProducer, IdempotencyConflict, InvalidJob, Job, Producer
from regworker.forms.registry import Forms
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.outbox import Outbox, Relay, metadata
from regworker.settings import Settings
from regworker.testing import AsyncFakeProducer, FakeProducer
from tests.integration.installation import KEYS
from tests.integration.jobs import open2b, skypostal

JOBS: dict[str, Callable[..., dict[str, Any]]] = {"skypostal": skypostal, "open2b": open2b}
FORMS = Forms(Settings.model_fields["providers"].get_default(call_default_factory=True))

Enqueue = Callable[[Any], tuple[str, bool]]
"""Enqueues a job; returns its id, and whether it is a repeat."""


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """The settings of a host; a worker has announced itself to the ledger."""
    found = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    ledger(announce([Limits(name, "default", 0, 0, 0) for name in JOBS], ["results"]))
    return found


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A host's database."""
    made = create_engine(f"sqlite:///{tmp_path}/shop.db", hide_parameters=True)
    metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture(params=["sync", "async", "fake", "async fake", "outbox", "async outbox"])
def enqueue(
    request: pytest.FixtureRequest, settings: Settings, engine: Engine, tmp_path: Path
) -> Iterator[Enqueue]:
    """Each entry point."""
    with Producer(settings) as producer, FakeProducer() as fake:
        outbox = Outbox(settings)
        database = f"sqlite+aiosqlite:///{tmp_path}/shop.db"

        def awaited(make: Callable[[], AsyncProducer | AsyncFakeProducer]) -> Enqueue:
            async def main(job: Any) -> tuple[str, bool]:
                async with make() as one:
                    receipt = await one.enqueue(job)
                    return receipt.job_id, receipt.repeat

            return lambda job: asyncio.run(main(job))

        def relayed(add: Callable[[Any], str]) -> Enqueue:
            def main(job: Any) -> tuple[str, bool]:
                id_ = add(job)
                while not Relay(producer).turn(engine).idle:
                    pass
                return id_, producer.enqueue(job).repeat

            return main

        def added(job: Any) -> str:
            with engine.begin() as connection:
                return outbox.add(connection, job)

        async def added_later(job: Any) -> str:
            made = create_async_engine(database, hide_parameters=True)
            try:
                async with made.begin() as connection:
                    return await outbox.add_async(connection, job)
            finally:
                await made.dispose()

        def by(one: Producer | FakeProducer) -> Enqueue:
            def main(job: Any) -> tuple[str, bool]:
                receipt = one.enqueue(job)
                return receipt.job_id, receipt.repeat

            return main

        ways: dict[str, Enqueue] = {
            "sync": by(producer),
            "async": awaited(lambda: AsyncProducer(settings)),
            "fake": by(fake),
            "async fake": awaited(lambda: AsyncFakeProducer(fake)),
            "outbox": relayed(added),
            "async outbox": relayed(lambda job: asyncio.run(added_later(job))),
        }
        yield ways[request.param]


def typed(job: dict[str, Any], **more: Any) -> Job:
    """A job and its registration as typed objects."""
    form = FORMS.form(job["provider"])
    return Job(**{**job, **more, "registration": form(**job["registration"])})


@pytest.mark.parametrize("provider", JOBS)
def test_a_typed_job_and_its_dict_are_repeats(provider: str, enqueue: Enqueue) -> None:
    """In either order."""
    first, second = JOBS[provider](), JOBS[provider]()
    for one, other in ((first, typed(first)), (typed(second), second)):
        id_, _ = enqueue(one)
        assert enqueue(other) == (id_, True)


@pytest.mark.parametrize("provider", JOBS)
def test_other_content_under_the_key_is_a_conflict(provider: str, settings: Settings) -> None:
    """A typed job differs wherever its dict would."""
    job = JOBS[provider]()
    with Producer(settings) as producer:
        producer.enqueue(job)
        with pytest.raises(IdempotencyConflict):
            producer.enqueue(typed(job, metadata={"order": "A-18"}))


@pytest.mark.parametrize("provider", JOBS)
def test_all_that_is_wrong_is_raised_at_once(provider: str, enqueue: Enqueue) -> None:
    """For a job with a wrong form, where it is enqueued."""
    form = FORMS.form(provider)
    with pytest.raises(InvalidJob) as wanted:
        enqueue({"provider": provider, "lane": "fast", "registration": {"nonsense": 1}})
    with pytest.raises(InvalidJob) as caught:
        enqueue(Job(provider=provider, lane="fast", registration=form(nonsense=1)))
    assert caught.value.problems == wanted.value.problems
    fields = {one.field for one in caught.value.problems}
    assert {"idempotency_key", "lane", "registration.nonsense"} < fields
