"""RabbitMQ under a memory alarm reads nothing from publishers; a hanging one reads from nobody."""

from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest
from kombu import Connection

from regworker.ledger.transitions import BULK_WAKES, URGENT_WAKES, WAKES
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import amqp_url, borrowed, hung, memory_alarm
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack

#: Seconds from SIGTERM to SIGKILL, by Kubernetes' default.
KILLED_AFTER = 30.0


def waiting(url: str) -> int:
    """How many wake-ups of live jobs RabbitMQ has not delivered."""
    with Connection(url) as connection:
        declared = connection.default_channel.queue_declare(QUEUES["live"], passive=True)
        count: int = declared.message_count
        return count


def backlog(here: Installation) -> None:
    """Enqueue jobs; wait until RabbitMQ has all their wake-ups and the worker has started."""
    here.sandbox.faults.configure({"rates": {"slow": {"probability": 1, "delay": 0.5}}})
    jobs = (skypostal() for _ in range(400))
    list(here.producer.enqueue_many(jobs))
    redis: Any = here.ledger.redis
    stack.until(
        lambda: not redis.exists(WAKES, BULK_WAKES, URGENT_WAKES),
        "all wake-ups passed on",
        PATIENCE,
    )
    here.wait_for_line('"called"')


def ends(here: Installation) -> None:
    """The worker ends on SIGTERM before it would be killed."""
    here.workers[0].terminate()
    try:
        assert here.workers[0].wait(KILLED_AFTER) == 0
    except TimeoutExpired:
        pytest.fail("the worker goes on after SIGTERM")


def test_a_worker_empties_its_queues_while_rabbitmq_is_short_of_memory(tmp_path: Path) -> None:
    """Its events and wake-ups are not accepted; it gets messages, and it stops on SIGTERM."""
    with borrowed() as url, installation(tmp_path, broker_url=url) as here:
        here.wait_for_line("ready.")
        backlog(here)
        with memory_alarm():
            stack.until(lambda: not waiting(url), "the queue empty", PATIENCE)
            ends(here)


@pytest.mark.parametrize("fault", [memory_alarm, hung])
def test_a_worker_with_work_ends_when_it_is_told_to(
    tmp_path: Path, fault: "type[AbstractContextManager[None]]"
) -> None:
    """Whatever RabbitMQ leaves unanswered."""
    with installation(tmp_path, broker_url=amqp_url()) as here:
        here.wait_for_line("ready.")
        backlog(here)
        with fault():
            ends(here)
