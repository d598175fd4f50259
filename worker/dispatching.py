"""Celery's events: tried again a little, and not without an end.

A worker's sign of life that its connection breaks under, Celery sends until it is sent, in the
thread that takes messages; that is also how the connection of its events comes back. Where that
does not come to an end, the worker takes no message any more, and does not stop when it is told to.
A chaos run saw one connect to RabbitMQ 160 times a second until it was killed; no other call in
that thread is tried for ever. Here the next sign of life, two seconds later, is the next try.
"""

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher

#: One to connect anew, and one for a connection that breaks again at once.
_POLICY = {"max_retries": 2, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Celery's dispatcher; what it can't send it keeps for later, as ever."""

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        super()._publish(*args, **{**kwargs, "retry_policy": _POLICY})


class Events(CeleryEvents):  # type: ignore[misc]
    """Celery's events by that dispatcher: given to the app as `events`."""

    dispatcher_cls = "worker.dispatching:Dispatcher"
