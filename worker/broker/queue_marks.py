"""Detects whether a RabbitMQ queue is still the one that a worker began to consume.

A queue that is deleted and recreated at once has the same name. RabbitMQ 3.10 counts the old
consumer as one of the new quorum queue, sends it messages that never arrive, and reports nothing.
AMQP shows no identity of a queue. But an exchange that deletes itself with its last binding is
deleted with the queue to which it is bound, and does not return with it. So each worker binds such
an exchange to each of its queues before it consumes them. Nothing is ever published to it.
"""

import logging
from collections.abc import Iterable
from typing import Any

from amqp.exceptions import AccessRefused, NotFound

log = logging.getLogger(__name__)


class QueueMarks:
    """The marks of one worker. `worker`: a name that no other process has, ever: containers may
    share a node name and a pid."""

    def __init__(self, worker: str) -> None:
        self._suffix = f".of.{worker}"
        self._marked: set[str] = set()

    def put(self, connection: Any, queues: Iterable[str]) -> None:
        """Mark the present queues. Raises if one does not exist."""
        self._marked.clear()
        for queue in queues:
            with connection.channel() as channel:
                mark = queue + self._suffix
                try:
                    # Neither survives a restart of the server, after which the worker reconnects.
                    channel.exchange_declare(mark, "fanout", durable=False, auto_delete=True)
                    channel.queue_bind(queue, mark)
                except AccessRefused:
                    log.warning(
                        "the queue %s cannot be marked: this user has no right to configure %s; if "
                        "it is deleted and declared anew, that may not be noticed",
                        queue,
                        mark,
                    )
                    continue
                self._marked.add(queue)

    def another(self, channel: Any, queue: str) -> bool:
        """Whether the queue was deleted, even if it was recreated since. Closes the channel."""
        if queue not in self._marked:
            return False
        try:
            channel.exchange_declare(queue + self._suffix, "fanout", passive=True)
        except NotFound:
            return True
        return False

    def remove(self, channel: Any) -> None:
        """Remove the marks, without waiting for an answer."""
        while self._marked:
            channel.exchange_delete(self._marked.pop() + self._suffix, nowait=True)
