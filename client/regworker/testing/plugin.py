"""Fixtures for pytest, found by an entry point. Nothing is imported before a test uses one."""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from regworker.testing.fake import AsyncFakeProducer, FakeProducer


@pytest.fixture
def fake_producer() -> "FakeProducer":
    """A `FakeProducer`, new for each test."""
    from regworker.testing.fake import FakeProducer

    return FakeProducer()


@pytest.fixture
def async_fake_producer() -> "AsyncFakeProducer":
    """An `AsyncFakeProducer`, new for each test."""
    from regworker.testing.fake import AsyncFakeProducer

    return AsyncFakeProducer()


@pytest.fixture(scope="session")
def registration_worker_session(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """The real thing, started once for all tests of a session."""
    try:
        # Of the other distribution, which must be installed for this.
        embedded = importlib.import_module("worker.cli.local.embedded")
    except ModuleNotFoundError as error:
        pytest.fail(
            "the fixture registration_worker needs `pip install 'registration-worker[embedded]'` "
            f"({error.name} is not installed)"
        )
    with embedded.installation(tmp_path_factory.mktemp("registration-worker")) as here:
        yield here


@pytest.fixture
def registration_worker(
    registration_worker_session: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A ledger, a worker and the providers' sandbox, with `REGWORKER_*` set for this test.

    The sandbox forgets accounts and faults after each test. Jobs stay in the ledger: give each
    test's jobs keys of their own.
    """
    for name, value in registration_worker_session.environment.items():
        monkeypatch.setenv(name, value)
    yield registration_worker_session
    registration_worker_session.reset()
