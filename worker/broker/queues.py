"""Our queues on RabbitMQ, even if another client declared them first.

RabbitMQ requires that a declaration matches the existing queue. Most Celery clients declare the
queue to which they send, as a durable classic one; others set a limit or a time to live. The first
declaration decides. A worker that comes later uses the queue as it is: the other queues are
consumed in any case.
"""

import logging
from contextlib import suppress
from typing import Any

from kombu import Queue

log = logging.getLogger(__name__)

#: AMQP's PRECONDITION_FAILED: a queue of that name exists with other arguments.
_ANOTHER = 406


class OurQueue(Queue):  # type: ignore[misc]
    """Declares the queue if it does not exist; an existing one is used as it is."""

    def queue_declare(
        self, nowait: bool = False, passive: bool = False, channel: Any = None
    ) -> Any:
        """Declare it, on a channel that the broker closes if it refuses."""
        channel = channel or self.channel
        if not self.queue_arguments or passive:  # not on RabbitMQ
            return super().queue_declare(nowait=nowait, passive=passive, channel=channel)
        if differs := self.difference(channel.connection):
            log.warning(
                "the queue %s was declared by somebody else, and is used as it is (%s); to have "
                "workers declare it, delete it while it is empty",
                self.name,
                differs,
            )
        return super().queue_declare(passive=True, channel=channel)

    def difference(self, connection: Any) -> str:
        """Declare it; return the broker's message if it exists with other arguments, otherwise
        ''."""
        probe = connection.channel()
        try:
            super().queue_declare(channel=probe)
        except Exception as error:
            if getattr(error, "code", None) != _ANOTHER:
                raise
            return str(getattr(error, "reply_text", ""))
        finally:
            with suppress(Exception):
                probe.close()
        return ""
