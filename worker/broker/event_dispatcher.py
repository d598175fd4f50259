"""Publishes Celery's events in the background.

Celery's own dispatcher publishes in the thread that consumes messages, and repeats a worker's
heartbeat until it is sent. If that never succeeds, the worker takes no more messages, and does not
stop at SIGTERM: while RabbitMQ was short of memory, it took 73 seconds.
"""

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher

from worker.broker.background_publisher import background


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Celery's dispatcher, except that it never waits for the broker and needs no connection."""

    def _publish(self, event: Any, producer: Any, routing_key: str, **kwargs: Any) -> None:
        if producer is None:  # closed
            return
        background(self.app).publish(
            event,
            routing_key=routing_key,
            exchange=self.exchange.name,
            declare=[self.exchange],
            serializer=self.serializer,
            headers=self.headers,
            delivery_mode=self.delivery_mode,
        )


class Events(CeleryEvents):  # type: ignore[misc]
    """Celery's events with that dispatcher; passed to the app as `events`."""

    dispatcher_cls = "worker.broker.event_dispatcher:Dispatcher"
