"""The Celery app: `celery -A worker worker`.

It is configured by the settings; a `celeryconfig.py` in the working directory overrides them.
"""

import importlib.util
import sys
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from celery.app import backends

from regworker import tls
from regworker.domain.errors import SettingsError
from regworker.settings import Settings, variable
from worker.broker import nodes
from worker.broker.broker_url import of_kombu
from worker.broker.queues import OurQueue
from worker.broker.wakeups import QUEUES, REQUESTS
from worker.celery_options import Guard

#: Seconds until the Redis broker gives an unacknowledged message to another worker. This concerns
#: only messages of the task `registrations.register`, which take milliseconds.
VISIBILITY_TIMEOUT = 300

#: Seconds to wait for the broker when connecting or publishing.
BROKER_TIMEOUT = 4

#: Seconds to wait for one of several RabbitMQ nodes, before the next one is tried.
NEXT_NODE = 2

#: kombu's own Redis transport would end the worker at an item that is no JSON.
_MESSAGING = "worker.broker.redis_transport:Messaging"

#: Seconds between heartbeats. A connection that died silently (dropped by a firewall, or its
#: machine is gone) is closed after two missed ones; with the defaults of kombu and Celery (25 and
#: 120) the worker took no job for one minute on Redis, and for three on RabbitMQ.
SIGN_OF_LIFE = 5

#: How a publisher connects: by default kombu would retry for ever. Alarms retry anyway; a worker's
#: consumer reconnects in Celery's own endless loop.
_RECONNECTING = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings, derived from ours; `celeryconfig.py` says which may be changed."""
    broker_url, broker_options = of_kombu(settings.broker)
    rabbitmq = broker_url.startswith("amqp")
    urls = len(broker_url.split(";"))
    # Quorum queues survive the loss of a node; the order of this list puts live before bulk.
    arguments = {"x-queue-type": "quorum"} if rabbitmq else None
    names = [REQUESTS, *QUEUES.values()]
    return {
        "broker_url": broker_url,
        # For Flower, which reads queues on its own connections; ours do not need it.
        "broker_use_ssl": tls.of_broker(*_whom(broker_url)),
        "broker_connection_timeout": BROKER_TIMEOUT if urls == 1 else NEXT_NODE,
        "broker_heartbeat": 2 * SIGN_OF_LIFE if rabbitmq else 0,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Without it, a READONLY or OOM reply of the broker would end the worker.
        "broker_channel_error_retry": True,
        "broker_transport_options": (
            {"confirm_publish": True, **_rabbitmq_options(), **_RECONNECTING, **_each(urls)}
            if rabbitmq
            else {**_redis_options(), **_RECONNECTING, **broker_options}
        ),
        # A durable classic queue lives on one node, and nobody could declare it while that is down;
        # newer RabbitMQs refuse a transient queue that is shared. Exclusive queues end with their
        # connection; so each worker's queue has a unique name (`remote_control.py`).
        "control_queue_exclusive": True,
        "control_queue_durable": False,
        "event_queue_exclusive": True,
        "task_queues": [
            OurQueue(name, routing_key=name, queue_arguments=arguments) for name in names
        ],
        "task_default_queue": REQUESTS,
        "task_default_queue_type": "quorum" if rabbitmq else "classic",
        "task_serializer": "json",
        "accept_content": ["json"],
        # The ledger has the results; a result backend would cost more than everything else.
        "result_backend": None,
        "task_ignore_result": True,
        "imports": ["worker.process.tasks"],
        "worker_pool": "worker.process.pool:TaskPool",
        "worker_consumer": "worker.process.consumer:Consumer",
        "worker_concurrency": settings.concurrency,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # A reconnect must not cancel calls under way.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _whom(broker: str) -> tuple[str, str, dict[str, str]]:
    parts = urlsplit(broker.partition(";")[0])
    options = parse_qsl(parts.query)
    given = {name: value for name, value in options if name.startswith("ssl_")}
    return parts.scheme, parts.hostname or "", given


def _rabbitmq_options() -> dict[str, Any]:
    # Limits all waiting on a socket: for example, kombu waits for ever when it closes a channel.
    return {"read_timeout": BROKER_TIMEOUT, "write_timeout": BROKER_TIMEOUT}


def _each(urls: int) -> dict[str, Any]:
    """Options that try each of several nodes once; kombu's limits are for all of them together."""
    if urls == 1:
        return {}
    return {"max_retries": urls, "connect_retries_timeout": NEXT_NODE * (urls + 1)}


def _redis_options() -> dict[str, Any]:
    return {
        # A lost wake-up is replaced by the job's alarm.
        "expendable_queues": tuple(QUEUES.values()),
        "queue_order_strategy": "worker.process.priorities:Turns",
        "visibility_timeout": VISIBILITY_TIMEOUT,
        "socket_keepalive": True,
        "socket_connect_timeout": BROKER_TIMEOUT,
        "socket_timeout": BROKER_TIMEOUT,
        "health_check_interval": SIGN_OF_LIFE,
        "retry_on_timeout": False,
    }


class App(Celery):  # type: ignore[misc]
    """Celery's app, configured by our settings only.

    By default Celery prefers `CELERY_BROKER_URL`, `CELERY_RESULT_BACKEND` and others in the
    environment, which belong to a surrounding service.
    """

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        """A connection to consume from."""
        return super().connection_for_read(url or self._broker("broker_read_url"), **kwargs)

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        """A connection to publish to."""
        return super().connection_for_write(url or self._broker("broker_write_url"), **kwargs)

    @cached_property
    def Worker(self) -> Any:  # noqa: N802 -- Celery's name
        """The worker as a program."""
        return self.subclass_with_self("worker.process.stop_signals:Worker")

    def _broker(self, name: str) -> str:
        # By key: attributes of the configuration would read the environment first.
        return nodes.in_order(self.conf.get(name) or self.conf["broker_url"])

    def _get_backend(self) -> Any:
        backend, url = backends.by_url(self.conf["result_backend"], self.loader)
        return backend(app=self, url=url)


def new_app(settings: Settings) -> Celery:
    """A separate app for a process that only publishes."""
    app = App("registrations", set_as_current=False, amqp=_MESSAGING)
    app.conf.update(configuration(settings))
    return app


#: The path of `celeryconfig.py`: found now, while Celery has the working directory on its path.
_FOUND = importlib.util.find_spec("celeryconfig")


def _operators() -> dict[str, Any]:
    """The assignments in `celeryconfig.py`; Celery would read them as defaults below ours."""
    if _FOUND is None or _FOUND.loader is None:
        return {}
    module = importlib.util.module_from_spec(_FOUND)
    _FOUND.loader.exec_module(module)
    if hasattr(module, "broker_use_ssl"):
        what = f"is not taken: name a private authority in {variable('ca_file')}"
        raise SettingsError([("broker_use_ssl (in celeryconfig.py)", what)])
    return {
        name: value for name, value in vars(module).items() if name.islower() and name[0] != "_"
    }


def _from_environment() -> dict[str, Any]:
    try:
        return {**configuration(Settings.load()), **_operators()}
    except SettingsError as error:
        # Celery reads it in the middle of its start; a traceback would bury the message.
        lines = "\n".join(f"  {name}: {what}" for name, what in error.problems)
        print(f"registration-worker cannot start:\n{lines}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None


app = App(
    "registrations",
    amqp=_MESSAGING,
    events="worker.broker.event_dispatcher:Events",
    task_cls="worker.process.consumer:Task",
)
app.user_options["worker"].add(
    Guard(
        ["--allow-unsafe"],
        is_flag=True,
        help="Start although the ledger's server could lose jobs. For development only.",
    )
)
app.add_defaults(_from_environment)
