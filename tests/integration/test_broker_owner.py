"""Two installations on one broker would take each other's messages: the second one refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from regworker.ledger.identity import IDENTITY
from tests.integration.brokers import BROKERS
from tests.integration.installation import PATIENCE, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import borrowed
from worker.broker.broker_owner import OWNER
from worker.cli.local import stack


@contextmanager
def a_broker(folder: Path, kind: str) -> Iterator[str]:
    """The URL of a broker."""
    if kind == "rabbitmq":
        with borrowed() as url:
            yield url
    else:
        with stack.valkey(folder) as server:
            yield server.connection_url


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_serves_one_installation(tmp_path: Path, kind: str) -> None:
    """The other's worker does not start, and its message names both settings."""
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        a_broker(tmp_path, kind) as url,
        installation(tmp_path / "a", broker_url=url) as first,
        installation(tmp_path / "b", workers=0, broker_url=url) as second,
    ):
        first.wait_for_line("ready.")
        assert second.start_worker().wait(PATIENCE) == 1
        said = second.log().read_text("utf-8")
        assert "REGWORKER_BROKER_URL" in said
        assert "REGWORKER_REDIS_URL" in said
        assert "Traceback" not in said
        first.start_worker()
        first.wait_for_line("ready.", 1)
        assert first.run(skypostal())["type"] == "registration.registered"


def test_a_worker_notices_another_installation_and_keeps_working(tmp_path: Path) -> None:
    """For example if the broker was emptied, and the other was started first."""
    with installation(tmp_path, broker_url="") as here:
        here.wait_for_line("ready.")
        here.ledger.ask(lambda redis: redis.set(OWNER, "another"))
        here.wait_for_line("the broker belongs to another installation")
        assert here.run(skypostal())["type"] == "registration.registered"


def test_an_emptied_ledger_keeps_its_broker(tmp_path: Path) -> None:
    """Running workers give it its name again, so that new ones start beside them."""
    with (
        stack.valkey(tmp_path) as broker,
        installation(tmp_path, broker_url=broker.connection_url) as here,
    ):
        here.wait_for_line("ready.")

        def name() -> Any:
            return here.ledger.ask(lambda redis: redis.hget(IDENTITY, "installation"))

        before = name()
        here.ledger.ask(lambda redis: redis.flushall())
        # A worker that is just being started may be faster.
        here.ledger.ask(lambda redis: redis.hset(IDENTITY, "installation", "another"))
        stack.until(lambda: name() == before, "the ledger's name", PATIENCE)
        here.start_worker()
        here.wait_for_line("ready.", 1)


def test_the_key_goes_without_its_workers(tmp_path: Path) -> None:
    """A new ledger may have the broker some time later, and nobody must clear anything."""
    with installation(tmp_path, broker_url="") as here:
        here.wait_for_line("ready.")
        assert 0 < here.ledger.ask(lambda redis: redis.ttl(OWNER)) <= 60
