"""What a producer makes of the arguments that are no job: time limits, settings, and a call after
its end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import SyncLedger
from regworker.producer import AsyncProducer, Producer
from regworker.settings import Settings
from tests.integration.jobs import skypostal
from tests.integration.test_async_producer import KEYS, serve

#: Every call that takes a time limit.
CALLS: dict[str, Callable[[Any, str, Any], Any]] = {
    "enqueue": lambda one, _, timeout: one.enqueue(skypostal(), timeout=timeout),
    "enqueue_many": lambda one, _, timeout: one.enqueue_many([skypostal()], timeout=timeout),
    "status": lambda one, id_, timeout: one.status(id_, timeout=timeout),
    "wait": lambda one, id_, timeout: one.wait(id_, timeout),
    "cancel": lambda one, id_, timeout: one.cancel(id_, timeout=timeout),
}

#: What is no number of seconds. None stands for the usual limit, where there is one.
WRONG = ("5", True, float("nan"), [1], None)


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """The settings of a host; the ledger is empty except for the workers' announcement."""
    return serve(redis_url)


def said(settings: Settings, kind: str, call: Callable[[Any, str], Any], **options: Any) -> str:
    """How a call ends: the error's kind and text, or nothing."""

    async def in_a_loop() -> None:
        async with AsyncProducer(settings, **options) as producer:
            id_ = (await producer.enqueue(skypostal())).job_id
            made = call(producer, id_)
            if hasattr(made, "__await__"):
                await made
            else:
                _ = [one async for one in made]

    try:
        if kind == "async":
            asyncio.run(in_a_loop())
        else:
            with Producer(settings, **options) as producer:
                id_ = producer.enqueue(skypostal()).job_id
                made = call(producer, id_)
                _ = list(made) if hasattr(made, "__next__") else made
    except Exception as error:  # noqa: BLE001 -- compared
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("call", CALLS)
def test_a_limit_that_is_no_number_is_named(settings: Settings, call: str) -> None:
    """By both producers, in the same words."""
    for timeout in WRONG if call == "wait" else WRONG[:-1]:
        sync, loop = (
            said(settings, kind, lambda one, id_, t=timeout: CALLS[call](one, id_, t))  # type: ignore[misc]
            for kind in ("sync", "async")
        )
        assert sync == loop
        assert "Error: timeout must be a number of seconds, not " in sync


@pytest.mark.parametrize("kind", [Producer, AsyncProducer])
@pytest.mark.parametrize("timeout", WRONG)
def test_a_limit_that_is_no_number_is_named_at_the_constructor(
    settings: Settings, kind: Any, timeout: Any
) -> None:
    """And not by the first call."""
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
        kind(settings, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, -1])
@pytest.mark.parametrize("call", CALLS)
def test_without_any_time_both_say_the_same(settings: Settings, call: str, timeout: float) -> None:
    """`wait` looks once, and says in which state the job is; nothing else is even tried."""
    for kind in ("sync", "async"):
        found = said(settings, kind, lambda one, id_: CALLS[call](one, id_, timeout))
        expected = "is queued after" if call == "wait" else "LedgerUnavailable: the ledger did not"
        assert expected in found


def test_the_first_call_of_a_producer_may_be_a_look(settings: Settings) -> None:
    """`wait(id, 0)` of a new producer has the time to connect."""
    with Producer(settings) as one:
        id_ = one.enqueue(skypostal()).job_id
    with Producer(settings) as new, pytest.raises(TimeoutError, match="is queued"):
        new.wait(id_, 0)


@pytest.mark.parametrize("kind", [Producer, AsyncProducer])
@pytest.mark.parametrize("more", [{"redis_url": "redis://127.0.0.1:1/0"}, {"sealing_keys": KEYS}])
def test_no_argument_is_ignored(settings: Settings, kind: Any, more: dict[str, str]) -> None:
    """Settings hold a ledger and keys: others beside them are refused."""
    with pytest.raises(TypeError, match=f"settings holds {next(iter(more))}, too"):
        kind(settings, **more)


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_producer_says_so(settings: Settings, ledger: SyncLedger, call: str) -> None:
    """It opens no connection again."""
    producer = Producer(settings)
    id_ = producer.enqueue(skypostal()).job_id
    producer.close()
    before = ledger.redis.info("stats")["total_connections_received"]  # type: ignore[index]
    with pytest.raises(LedgerUnavailable, match="this Producer is closed"):
        list(CALLS[call](producer, id_, 5))
    assert ledger.redis.info("stats")["total_connections_received"] == before  # type: ignore[index]
