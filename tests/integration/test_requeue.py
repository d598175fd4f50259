"""Requeuing messages on RabbitMQ: routing keys name no queue, and returns are counted."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from kombu import Connection

from regworker.domain.job import job_id
from regworker.ledger.transitions import look
from regworker.settings import Settings
from tests.integration.brokers import LIVE, Broken, Message, body, broken, headers
from tests.integration.installation import KEYS, PATIENCE
from tests.integration.jobs import ACTOR, email_of, open2b
from tests.rabbitmq import publishing
from worker.broker.wakeups import REGISTER, REQUESTS
from worker.cli.local import stack
from worker.intake.quarantine import NotRequeued, Quarantine, QuarantineEntry
from worker.process.message_check import MOST_RETURNS


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    """An installation on RabbitMQ."""
    with broken(tmp_path_factory.mktemp("requeue"), "rabbitmq") as running:
        yield running


@pytest.fixture
def quarantine(it: Broken) -> Iterator[Quarantine]:
    """Its quarantine, opened as the command does."""
    settings = Settings.load(
        redis_url=it.here.valkey.connection_url, sealing_keys=KEYS, broker_url=it.url
    )
    with closing(Quarantine(settings)) as opened:
        yield opened


def published(it: Broken, exchange: str, key: str, **more: Any) -> Callable[[], None]:
    """Publish junk as another service does, through an exchange of its own."""

    def put() -> None:
        with publishing(it.url) as connection, connection.channel() as channel:
            message = channel.prepare_message(
                b"[[], {}, null]",
                content_type="application/json",
                content_encoding="utf-8",
                headers=headers(task="a.task.of.the.crm", **more),
            )
            channel.basic_publish(message, exchange=exchange, routing_key=key)

    return put


def test_a_message_goes_back_to_the_queue_it_was_taken_from(
    it: Broken, quarantine: Quarantine
) -> None:
    """Not to a queue with the name of its routing key: there is none."""
    with Connection(it.url) as connection, connection.channel() as channel:
        channel.exchange_declare("crm", "topic", durable=True, auto_delete=False)
        channel.queue_bind(LIVE, "crm", "crm.#")
    entry = it.set_aside(published(it, "crm", "crm.register.eu"))
    assert entry.queue == LIVE
    quarantine.requeue(entry.id, ACTOR)
    stack.until(
        lambda: entry.id in {one.id for one in it.quarantine()}, "it set aside again", PATIENCE
    )


def test_what_no_queue_takes_stays_in_quarantine(it: Broken, quarantine: Quarantine) -> None:
    """RabbitMQ confirms unroutable messages unless they are published as mandatory."""
    quarantined = replace(
        QuarantineEntry.of_task(REGISTER, "an id", open2b(), "junk"), queue="a.queue.gone"
    )
    id_ = quarantine.keep(quarantined)
    with pytest.raises(NotRequeued, match=r"no queue a\.queue\.gone"):
        quarantine.requeue(id_, ACTOR)
    assert id_ in {one.id for one in it.quarantine()}


def test_what_came_back_too_often_can_be_put_back(it: Broken, quarantine: Quarantine) -> None:
    """RabbitMQ's count of returns is not part of the message."""
    job = open2b()
    counted = headers(task=REGISTER, **{"x-delivery-count": MOST_RETURNS})
    entry = it.set_aside(lambda: it.put(Message(body([[job], {}, None]), counted), REQUESTS))
    quarantine.requeue(entry.id, ACTOR)
    id_ = job_id("open2b", "default", job["idempotency_key"])
    stack.until(lambda: it.here.ledger(look(id_)) is not None, "the job taken", PATIENCE)
    assert it.here.producer.wait(id_, PATIENCE)["type"] == "registration.registered"
    assert it.here.made(email_of(job)) == 1
