"""Celery's events while the broker does not accept them."""

import socket
from contextlib import closing

from celery import Celery

from worker.broker.background_publisher import MOST, background
from worker.celery import app as workers


def test_an_event_is_never_waited_for() -> None:
    """If the broker accepts connections and then is silent, sending more events than are kept
    returns."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = Celery(set_as_current=False, events=workers.events_cls)
        app.conf.broker_url = f"amqp://127.0.0.1:{silent.getsockname()[1]}//"
        app.conf.broker_connection_timeout = 4
        with closing(app), closing(background(app)):
            dispatcher = app.events.Dispatcher(None, groups=["worker"])
            for _ in range(2 * MOST):
                dispatcher.send("worker-heartbeat", retry=True)
            dispatcher.close()
