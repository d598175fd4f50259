"""Each role's rights on a real RabbitMQ server suffice for its work and allow nothing else."""

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu import Connection, Exchange, Queue

from regworker.domain.errors import UnknownJob
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import borrowed, rabbitmqctl
from worker.broker.wakeups import REQUESTS
from worker.cli.local import stack
from worker.operations.roles import AMQP_ROLES

PASSWORD = "a-test-s-password"


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """The broker's URL for each role and for an administrator, each with a user of its own."""
    mark = secrets.token_hex(3)
    with borrowed() as admin:
        parts = urlsplit(admin)
        vhost = parts.path.removeprefix("/")
        found = {"admin": admin}
        for role in AMQP_ROLES:
            user = f"{role.name}-{mark}"
            rabbitmqctl("add_user", user, PASSWORD)
            rabbitmqctl(*(user if one == role.name else one for one in role.command(vhost)))
            netloc = f"{user}:{PASSWORD}@{parts.hostname}:{parts.port}"
            found[role.name] = urlunsplit(parts._replace(netloc=netloc))
        yield found
        for role in AMQP_ROLES:
            rabbitmqctl("delete_user", f"{role.name}-{mark}")


@pytest.fixture(scope="module")
def here(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation whose worker has the worker's role on RabbitMQ."""
    folder = tmp_path_factory.mktemp("amqp-roles")
    with installation(folder, broker_url=urls["worker"]) as running:
        running.wait_for_line("ready.")
        yield running


def client(url: str) -> Celery:
    """A Celery client of another service, which declares nothing."""
    app = Celery("other", broker=url, set_as_current=False)
    app.conf.broker_transport_options = {"confirm_publish": True}  # as the guide says
    app.conf.task_queues = [
        Queue(REQUESTS, Exchange(REQUESTS), routing_key=REQUESTS, no_declare=True)
    ]
    app.conf.task_default_queue = REQUESTS
    return app


def test_a_worker_does_its_work(here: Installation) -> None:
    """A worker with its role handles a job from the wake-up to the webhook."""
    event = here.run(skypostal(reply_to=["results", "crm"]))
    assert event["type"] == "registration.registered"
    here.wait_for_hook(event["subject"])


def test_a_task_producer_sends_jobs(here: Installation, urls: dict[str, str]) -> None:
    """A client that declares nothing can send jobs."""
    job = skypostal()
    app = client(urls["task-producer"])
    # Send to the exchange: Celery's own way to a queue would need the right to all queues.
    app.send_task("registrations.register", args=[job], exchange=REQUESTS, routing_key=REQUESTS)
    app.close()

    key = job["idempotency_key"]

    def registered() -> bool:
        try:
            status = here.producer.status(key=key, provider="skypostal")
        except UnknownJob:
            return False
        return status.state == "registered"

    stack.until(registered, "the job is registered", PATIENCE)


def test_flower_asks_and_is_answered(here: Installation, urls: dict[str, str]) -> None:
    """Flower's page is built from the workers' answers."""
    app = client(urls["flower"])
    answers: Any = {}

    def answered() -> bool:
        answers.update(app.control.inspect(timeout=2).ping() or {})
        return bool(answers)

    stack.until(answered, "a worker answers", PATIENCE)
    app.close()


def declare(connection: Connection) -> None:
    """Declare another queue."""
    Queue("mine", Exchange("")).declare(channel=connection.default_channel)


def consume(connection: Connection) -> None:
    """Take another service's job."""
    connection.default_channel.basic_get(REQUESTS)


def delete(connection: Connection) -> None:
    """Delete the queue of jobs."""
    connection.default_channel.queue_delete(REQUESTS)


def publish(exchange: str, key: str) -> Callable[[Connection], None]:
    """Publish to another exchange."""

    def act(connection: Connection) -> None:
        channel = connection.channel()
        connection.Producer(channel).publish({}, exchange=exchange, routing_key=key)
        # RabbitMQ reports the refusal with the next answer.
        channel.queue_declare(REQUESTS, passive=True)

    return act


ACTS: dict[str, Callable[[Connection], None]] = {
    "declare": declare,
    "take a job": consume,
    "delete the queue": delete,
    "steer workers": publish("celery.pidbox", ""),
    "forge events": publish("celeryev", "task.sent"),
    "go round the exchanges": publish("", "registrations.live"),
    "send a job": publish(REQUESTS, REQUESTS),
}

#: Which role may do which of these.
MAY = {
    "task-producer": {"send a job"},
    "flower": {"steer workers", "forge events"},
}


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("act", ACTS)
def test_a_role_may_do_no_more(
    here: Installation, urls: dict[str, str], role: str, act: str
) -> None:
    """The server refuses what is not the role's work. (The worker itself checks the requests that
    it gets.)"""
    with Connection(urls[role]) as connection:
        if act in MAY[role]:
            return
        with pytest.raises(AccessRefused):
            ACTS[act](connection)


def test_the_command_prints_the_rights() -> None:
    """The rights are printed as arguments of `rabbitmqctl`."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "acl", "--rabbitmq", "--vhost", "shop"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[4] for line in lines] == [one.name for one in AMQP_ROLES]
    assert all(line.startswith("rabbitmqctl set_permissions -p shop ") for line in lines)
