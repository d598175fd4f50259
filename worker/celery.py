"""The Celery app: `celery -A worker worker`.

Configured from the settings; a `celeryconfig.py` in the working directory is read over them.
"""

import importlib.util
import sys
from typing import Any

import click
from celery import Celery
from kombu import Queue

from worker.door_queue import DoorQueue
from worker.errors import SettingsError
from worker.settings import Settings
from worker.wakeups import DOOR, QUEUES

#: Seconds until the Redis broker gives an unacknowledged message to somebody else. Only messages
#: of the task `registrations.register` can get there, and these take milliseconds.
VISIBILITY_TIMEOUT = 300

#: Seconds to wait for the broker when connecting or publishing.
BROKER_TIMEOUT = 4

#: kombu's own Redis transport ends the worker at an item that is no JSON.
_MESSAGING = "worker.redis_broker:Messaging"

#: Seconds between signs of life. A connection that died without a word (a firewall that forgot it,
#: a machine that is gone) is dropped after two of these are missed; with kombu's and Celery's own
#: 25 and 120 no job was taken for one minute on Redis, and for three on RabbitMQ.
SIGN_OF_LIFE = 5

#: How a publisher connects: kombu would by itself try for ever. The alarms try again; a worker's
#: consumer reconnects by Celery's own loop, which has no end.
_RECONNECTING = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings that follow from ours; see `celeryconfig.py` for what may be changed."""
    rabbitmq = settings.broker.startswith("amqp")
    # Quorum queues survive the loss of a node; live before bulk is the order of this list.
    arguments = {"x-queue-type": "quorum"} if rabbitmq else None
    names = [DOOR, *QUEUES.values()]
    return {
        "broker_url": settings.broker,
        "broker_connection_timeout": BROKER_TIMEOUT,
        "broker_heartbeat": 2 * SIGN_OF_LIFE if rabbitmq else 0,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Without it a READONLY or OOM reply of the broker ends the worker.
        "broker_channel_error_retry": True,
        "broker_transport_options": (
            {"confirm_publish": True, **_rabbitmq_options(), **_RECONNECTING}
            if rabbitmq
            else {**_redis_options(), **_RECONNECTING}
        ),
        # An exclusive one keeps a second worker of the same name (Celery's default: the machine's)
        # from ever starting on RabbitMQ; a transient one that is shared, newer RabbitMQs refuse.
        "control_queue_exclusive": not rabbitmq,
        "control_queue_durable": rabbitmq,
        "task_queues": [
            _queue_class(name)(name, routing_key=name, queue_arguments=arguments) for name in names
        ],
        "task_default_queue": DOOR,
        "task_default_queue_type": "quorum" if rabbitmq else "classic",
        "task_serializer": "json",
        "accept_content": ["json"],
        # The ledger has the results; a backend would cost more than all the rest.
        "result_backend": None,
        "task_ignore_result": True,
        "imports": ["worker.tasks"],
        "worker_pool": "worker.pool:TaskPool" if settings.pool == "loop" else settings.pool,
        "worker_consumer": "worker.consuming:Consumer",
        "worker_concurrency": settings.concurrency,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # A reconnect is no reason to stop calls that are on the wire.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _queue_class(name: str) -> type[Queue]:
    return DoorQueue if name == DOOR else Queue


def _rabbitmq_options() -> dict[str, Any]:
    # For what is waited for in a socket: also closing a channel, for which kombu waits for ever.
    return {"read_timeout": BROKER_TIMEOUT, "write_timeout": BROKER_TIMEOUT}


def _redis_options() -> dict[str, Any]:
    return {
        # A wake-up may get lost: its alarm makes up for it.
        "expendable_queues": tuple(QUEUES.values()),
        "queue_order_strategy": "worker.lanes:Turns",
        "visibility_timeout": VISIBILITY_TIMEOUT,
        "socket_keepalive": True,
        "socket_connect_timeout": BROKER_TIMEOUT,
        "socket_timeout": BROKER_TIMEOUT,
        "health_check_interval": SIGN_OF_LIFE,
        "retry_on_timeout": False,
    }


def new_app(settings: Settings) -> Celery:
    """An app of its own for a process that only publishes."""
    app = Celery("registrations", set_as_current=False, amqp=_MESSAGING)
    app.conf.update(configuration(settings))
    return app


#: Where `celeryconfig.py` is: looked for now, while Celery has the working directory on the path.
_FOUND = importlib.util.find_spec("celeryconfig")


def _operators() -> dict[str, Any]:
    """What `celeryconfig.py` assigns; Celery would read it under our defaults, not over them."""
    if _FOUND is None or _FOUND.loader is None:
        return {}
    module = importlib.util.module_from_spec(_FOUND)
    _FOUND.loader.exec_module(module)
    return {
        name: value for name, value in vars(module).items() if name.islower() and name[0] != "_"
    }


def _from_environment() -> dict[str, Any]:
    try:
        return {**configuration(Settings.load()), **_operators()}
    except SettingsError as error:
        # Read by Celery in the middle of its start; a traceback would bury the sentence.
        lines = "\n".join(f"  {name}: {what}" for name, what in error.problems)
        print(f"registration-worker cannot start:\n{lines}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None


app = Celery(
    "registrations",
    amqp=_MESSAGING,
    events="worker.dispatching:Events",
    task_cls="worker.consuming:Task",
)
app.user_options["worker"].add(
    click.Option(
        ["--allow-unsafe"],
        is_flag=True,
        help="Start although the ledger's server would lose jobs. For development only.",
    )
)
app.add_defaults(_from_environment)
