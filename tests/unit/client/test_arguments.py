"""A host's mistakes are named when they are made: no job, row or event is lost by one."""

import asyncio
import gc
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from regworker import AsyncProducer, AsyncResultConsumer, Producer, ResultConsumer
from regworker.outbox import Outbox, Outcomes, Relay, metadata, outbox_table
from regworker.results import Result
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.testing import AsyncFakeProducer, FakeProducer, event, registered
from tests.integration.jobs import open2b

#: No server is there: each mistake is found without one.
OWN = Settings.load(redis_url="redis://127.0.0.1:1/0", sealing_keys=Keyring.new("host"))

Maker = Callable[..., Any]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A database with the outbox's tables."""
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("make", [Producer, AsyncProducer, Outbox])
@pytest.mark.parametrize("odd", ["redis://127.0.0.1:1/0", {"redis_url": "x"}, 5])
def test_settings_that_are_none_are_named(make: Maker, odd: Any) -> None:
    """A URL is what is passed by mistake."""
    with pytest.raises(TypeError, match="settings must be Settings"):
        make(odd)


@pytest.mark.parametrize("make", [ResultConsumer, AsyncResultConsumer])
@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"group": None}, "group must be text"),
        ({"group": 5}, "group must be text"),
        ({"group": ""}, "group must not be empty"),
        ({"consumer": 5}, "consumer must be text"),
        ({"stream": None}, "stream must be text"),
        ({"stream": ""}, "stream must not be empty"),
        ({"start": "yesterday"}, "start must be"),
        ({"start": None}, "start must be"),
        ({"claim_after": "60"}, "claim_after must be a number of seconds"),
        ({"claim_after": 0}, "claim_after must be more than 0 seconds"),
        ({"claim_after": float("inf")}, "claim_after .* at most a week"),
        ({"claim_after": float("nan")}, "claim_after must be a number of seconds"),
        ({"page": 0}, "page must be from 1 to 50"),
        ({"page": 51}, "page must be from 1 to 50"),
        ({"page": "5"}, "page must be a number of events"),
        ({"settings": "redis://127.0.0.1:1/0"}, "settings must be Settings"),
    ],
    ids=str,
)
def test_a_consumer_names_the_argument(make: Maker, named: dict[str, Any], error: str) -> None:
    """Before it reads anything."""
    with pytest.raises((TypeError, ValueError), match=error):
        make(**{"group": "crm", "settings": OWN, **named})


def test_a_consumer_takes_seconds_and_results() -> None:
    """A list of results, or an entry's id, is none."""
    result = Result("1-0", {b"event": event(registered()).encode()})
    other = AsyncResultConsumer("crm", settings=OWN)
    with ResultConsumer("crm", settings=OWN) as consumer:
        calls: dict[str, list[Callable[[], Any]]] = {
            "patience must be a number of seconds": [
                lambda: consumer.take("1"),  # type: ignore[arg-type]
                lambda: consumer.receive(None),  # type: ignore[arg-type]
                lambda: asyncio.run(other.take(float("nan"))),
                lambda: asyncio.run(other.receive(True)),
            ],
            r"ack\(\*results\)": [
                lambda: consumer.ack([result]),  # type: ignore[arg-type]
                lambda: consumer.ack(result.entry),  # type: ignore[arg-type]
                lambda: asyncio.run(other.ack(None)),  # type: ignore[arg-type]
            ],
        }
        for error, wrong in calls.items():
            for call in wrong:
                with pytest.raises((TypeError, ValueError), match=error):
                    call()
    asyncio.run(other.aclose())


def test_a_row_is_never_left_unwritten(engine: Engine, tmp_path: Path) -> None:
    """An async connection would return something that nobody awaits."""
    outbox, rows = Outbox(OWN), select(func.count()).select_from(outbox_table)
    for odd in (engine, None, open2b()):
        with pytest.raises(TypeError, match="connection must be a Connection or a Session"):
            outbox.add(odd, open2b())  # type: ignore[arg-type]
    with engine.connect() as connection, pytest.raises(TypeError, match=r"use `outbox\.add"):
        asyncio.run(outbox.add_async(connection, open2b()))  # type: ignore[arg-type]

    async def host() -> None:
        database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
        async with database.begin() as connection:
            await connection.run_sync(metadata.create_all)
            with pytest.raises(TypeError, match=r"await outbox\.add_async"):
                outbox.add(connection, open2b())  # type: ignore[arg-type]
            await outbox.add_async(connection, open2b())
            assert (await connection.execute(rows)).scalar() == 1
        async with AsyncSession(database) as session:
            with pytest.raises(TypeError, match=r"await outbox\.add_async"):
                outbox.add(session, open2b())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="engine must be an Engine"):
            Relay(FakeProducer()).turn(database)  # type: ignore[arg-type]
        await database.dispose()

    asyncio.run(host())
    with pytest.raises(TypeError, match="engine must be an AsyncEngine"):
        asyncio.run(Relay(FakeProducer()).turn_async(engine))  # type: ignore[arg-type]
    for producer in (AsyncFakeProducer(), None, "redis://127.0.0.1:1/0"):
        with pytest.raises(TypeError, match="producer must be a Producer"):
            Relay(producer)  # type: ignore[arg-type]
    for batch in (0, "5"):
        with pytest.raises((TypeError, ValueError), match="batch must be"):
            Relay(FakeProducer(), batch=batch)  # type: ignore[arg-type]


def test_a_handler_that_nobody_awaits_is_refused(engine: Engine) -> None:
    """Its event would count as handled."""
    done = []

    async def handle(*_: object) -> None:
        done.append(1)

    class Once(ResultConsumer):
        def receive(self, patience: float = 1.0) -> list[Result]:
            return [Result("1-0", {b"event": event(registered()).encode()})]

        def ack(self, *results: Result) -> None:
            done.extend(results)

    with Once("crm", settings=OWN) as consumer:
        with pytest.raises(TypeError, match="handler must be a plain function"):
            Outcomes(engine, consumer, handle)  # type: ignore[arg-type]
        outcomes = Outcomes(engine, consumer, lambda *args: handle(*args))  # type: ignore[arg-type]
        assert outcomes.turn() == 0
    assert done == [], "neither handled nor acknowledged: it comes again"
    with pytest.raises(TypeError, match="consumer must be a ResultConsumer"):
        Outcomes(engine, AsyncResultConsumer("crm", settings=OWN))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="handler must be a function"):
        Outcomes(engine, ResultConsumer("crm", settings=OWN), None)  # type: ignore[arg-type]


def test_an_engine_without_transactions_is_refused() -> None:
    """A handler that raises would leave the row, and its event would count as handled."""
    given = create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    optional = create_engine("sqlite://").execution_options(isolation_level="AUTOCOMMIT")
    right = given.execution_options(isolation_level="SERIALIZABLE")
    with ResultConsumer("crm", settings=OWN) as consumer:
        for engine in (given, optional):
            with pytest.raises(ValueError, match="engine commits each statement"):
                Outcomes(engine, consumer)
            with pytest.raises(ValueError, match="engine commits each statement"):
                Relay(FakeProducer()).turn(engine)
        other = create_async_engine("sqlite+aiosqlite://", isolation_level="AUTOCOMMIT")
        with pytest.raises(ValueError, match="engine commits each statement"):
            asyncio.run(Relay(FakeProducer()).turn_async(other))
        metadata.create_all(right)
        Outcomes(right, consumer)
        assert Relay(FakeProducer()).turn(right).idle
    for one in (given, optional, right):
        one.dispose()


@pytest.mark.parametrize(
    "make",
    [Producer, FakeProducer, AsyncProducer, AsyncFakeProducer],
    ids=lambda kind: kind.__name__,
)
def test_jobs_that_nobody_enqueues_are_a_warning(make: Maker) -> None:
    """As of a coroutine that nobody awaits; one that is iterated gives none."""
    producer = make() if "Fake" in make.__name__ else make(OWN)
    with pytest.warns(RuntimeWarning, match="none of its jobs is enqueued"):
        producer.enqueue_many([open2b()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if isinstance(producer, Producer):
            assert list(producer.enqueue_many([])) == []
        gc.collect()


def test_results_can_be_closed_as_those_of_a_generator() -> None:
    """Before the first one, or after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with closing(FakeProducer().enqueue_many([open2b()])) as results:  # type: ignore[type-var]
            assert next(results).state == "queued"
        with closing(FakeProducer().enqueue_many([open2b()])):  # type: ignore[type-var]
            pass

        async def first() -> None:
            several = AsyncFakeProducer().enqueue_many([open2b()])
            async with aclosing(several) as results:  # type: ignore[type-var]
                async for one in results:
                    assert one.state == "queued"
                    break
            async with aclosing(AsyncFakeProducer().enqueue_many([open2b()])):  # type: ignore[type-var]
                pass

        asyncio.run(first())
        gc.collect()


@pytest.mark.parametrize("make", [Producer, AsyncProducer, ResultConsumer, AsyncResultConsumer])
def test_what_holds_keys_and_connections_is_not_pickled(make: Maker) -> None:
    """The error says what to do in another process."""
    named = {"group": "crm"} if "Consumer" in make.__name__ else {}
    with pytest.raises(TypeError, match="Create one in each process"):
        pickle.dumps(make(settings=OWN, **named))
