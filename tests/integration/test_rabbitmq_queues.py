"""RabbitMQ queues and exchanges that others delete, recreate, or declare differently."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from regworker.ledger.snapshot import snapshot
from tests.integration.brokers import LIVE, Broken, broken
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.integration.test_consuming import page, until
from tests.rabbitmq import amqp_url, borrowed, memory_alarm, publishing, rabbitmqctl
from worker.broker.wakeups import QUEUES, REQUESTS
from worker.celery import new_app
from worker.cli.local import stack
from worker.operations.admin_actions import AdminActions

QUORUM = {"x-queue-type": "quorum"}
NAMES = [REQUESTS, *QUEUES.values()]


def remade(url: str, queue: str, arguments: dict[str, Any]) -> None:
    """Delete a queue and declare it again at once."""
    with Connection(url) as connection:
        channel = connection.default_channel
        channel.queue_delete(queue)
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)


def findings(here: Installation) -> dict[str, tuple[str, str]]:
    """The output of `regworker doctor`: by subject, the level and the finding."""
    with AdminActions(here.producer.settings) as operator:
        return {one.subject: (one.level, one.found) for one in operator.examine()}


@pytest.mark.parametrize("queue", NAMES)
def test_a_queue_that_is_deleted_and_remade_at_once_is_consumed_again(
    tmp_path: Path, queue: str
) -> None:
    """RabbitMQ still delivers to the old consumer; these messages are not lost either."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as it:
        remade(url, queue, QUORUM)
        with publishing(url) as connection:  # to the consumer that no longer exists
            connection.default_channel.basic_publish(
                connection.default_channel.prepare_message(b"junk"), routing_key=queue
            )
        stack.until(lambda: len(it.quarantine()) == 1, "the message taken", PATIENCE)
        for lane in ("live", "bulk"):
            assert it.here.run(skypostal(lane=lane))["type"] == "registration.registered"


def test_a_worker_that_stops_leaves_no_mark_behind(tmp_path: Path) -> None:
    """It deletes the exchanges with which it recognizes its queues. They have the unique name that
    its leases have: another container's worker may have its host name, node name and pid."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as it:
        stack.until(lambda: bool(it.here.ledger(snapshot()).workers), "its heartbeat", PATIENCE)
        [worker] = it.here.ledger(snapshot()).workers
        mark = f"{LIVE}.of.{worker.name}"
        stack.until(lambda: _exists(url, mark), "the mark", PATIENCE)
        stack.stop(it.here.workers[0])
        stack.until(lambda: not _exists(url, mark), "the mark's end", PATIENCE)


@pytest.mark.parametrize("exchange", [REQUESTS, "celery.pidbox", "celeryev"])
def test_an_exchange_that_is_deleted_is_made_again(tmp_path: Path, exchange: str) -> None:
    """While the worker stays connected."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as it:
        stack.until(lambda: _exists(url, exchange), "the exchange", PATIENCE)
        with Connection(url) as connection:
            connection.default_channel.exchange_delete(exchange)
        stack.until(lambda: _exists(url, exchange), "the exchange, again", PATIENCE)
        app = new_app(it.here.producer.settings)
        try:
            stack.until(lambda: bool(app.control.ping(timeout=1)), "an answer", PATIENCE)
        finally:
            app.close()
        with publishing(url) as connection:
            connection.default_channel.basic_publish(
                connection.default_channel.prepare_message(b"junk"), REQUESTS, REQUESTS
            )
        stack.until(lambda: len(it.quarantine()) == 1, "the message by the exchange", PATIENCE)


@pytest.mark.parametrize("arguments", [{"x-max-length": 100}, {"x-message-ttl": 60_000}])
def test_a_queue_that_somebody_declared_otherwise_is_used_as_it_is(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """With a warning; the others are consumed as usual, and `regworker doctor` names the queue."""
    with borrowed() as url:
        remade(url, LIVE, arguments)
        with broken(tmp_path, "rabbitmq", broker_url=url) as it:
            it.here.wait_for_line(f"the queue {LIVE} was declared by somebody else")
            for lane in ("live", "bulk"):
                assert it.here.run(skypostal(lane=lane))["type"] == "registration.registered"
            found = findings(it.here)
            assert found["broker"][0] == "ok"
            level, text = found[f"queue {LIVE}"]
            assert level == "warning"
            assert next(iter(arguments)) in text
            assert f"queue {REQUESTS}" not in found


def test_a_broker_that_takes_no_message_is_not_heard(tmp_path: Path) -> None:
    """An open connection is no proof: RabbitMQ opens one even under a memory alarm."""
    with installation(tmp_path, workers=0, broker_url=amqp_url()) as here:
        assert findings(here)["broker"][0] == "ok"
        with memory_alarm():
            assert findings(here)["broker"][0] == "warning"
        assert findings(here)["broker"][0] == "ok"


def test_a_worker_that_may_not_publish_is_not_well(tmp_path: Path) -> None:
    """It may connect; the alarm of a waiting job does not ring needlessly meanwhile."""
    with (
        borrowed() as url,
        broken(tmp_path, "rabbitmq", broker_url=url, metrics_port=0, health_patience=4) as it,
    ):
        until(it, 200)
        rights = ("set_permissions", "-p", url.rpartition("/")[2], "guest")
        rabbitmqctl(*rights, "^$", "^$", "^$")
        try:
            job_id = it.here.producer.enqueue(skypostal()).job_id
            stack.until(
                lambda: "clock" in page(it, "/health")[1].get("silent", {}),
                "the alarm clock silent",
                PATIENCE,
            )
            assert findings(it.here)["broker"][0] == "warning"
        finally:
            rabbitmqctl(*rights, ".*", ".*", ".*")
        assert it.here.producer.wait(job_id, PATIENCE)["type"] == "registration.registered"
        until(it, 200)


@pytest.mark.parametrize("queue", [LIVE, REQUESTS])
def test_a_queue_that_somebody_holds_takes_a_worker_off_no_other(
    tmp_path: Path, queue: str
) -> None:
    """It consumes the others, reports itself unhealthy, and consumes the queue again once it is
    free."""
    with borrowed() as url:
        with Connection(url) as holder:
            # A quorum queue of RabbitMQ 3.10 would accept other consumers nevertheless.
            remade(url, queue, {})
            channel = holder.default_channel
            channel.basic_consume(queue, exclusive=True, callback=lambda _: None)
            with installation(tmp_path, broker_url=url, metrics_port=0, health_patience=4) as here:
                it = Broken(here, "rabbitmq", url)
                here.wait_for_line(f"the broker refuses the queue {queue}")
                assert here.run(skypostal(lane="bulk"))["type"] == "registration.registered"
                seen = here.ledger(snapshot())
                assert [one for one in seen.workers if one.condition(seen.at) == "well"] == []
                assert here.workers[0].poll() is None
                holder.collect()
                here.wait_for_line(f"the queue {queue} is consumed again")
                until(it, 200)
                assert here.run(skypostal(lane="live"))["type"] == "registration.registered"
        assert "Traceback" not in here.log().read_text("utf-8")


def _exists(url: str, exchange: str) -> bool:
    with Connection(url) as connection, suppress(*connection.channel_errors):
        connection.default_channel.exchange_declare(exchange, "direct", passive=True)
        return True
    return False
