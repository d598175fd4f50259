"""The queue that any Celery client may send to, on RabbitMQ.

There, who declares a queue must declare it as it is; and most clients declare what they send to, as
a durable classic queue. A worker that came first has made a quorum queue: such clients must then be
told (or the virtual host: `default_queue_type`). One that comes later takes the queue as it is.
"""

import logging
from contextlib import suppress
from typing import Any

from kombu import Queue

log = logging.getLogger(__name__)

#: AMQP's PRECONDITION_FAILED: a queue of that name is there, and another one than is declared.
_ANOTHER = 406


class DoorQueue(Queue):  # type: ignore[misc]
    """Declares the queue as ours if there is none, and else takes it as it is."""

    def queue_declare(
        self, nowait: bool = False, passive: bool = False, channel: Any = None
    ) -> Any:
        """Declare it, on a channel that the broker may close: it does so where it refuses."""
        channel = channel or self.channel
        if not self.queue_arguments or passive:  # not on RabbitMQ
            return super().queue_declare(nowait=nowait, passive=passive, channel=channel)
        probe = channel.connection.channel()
        try:
            return super().queue_declare(nowait=nowait, channel=probe)
        except Exception as error:
            if getattr(error, "code", None) != _ANOTHER:
                raise
            log.warning(
                "the queue %s was declared by a client, and not as a quorum queue: what waits in "
                "it is on one node only. Delete it while it is empty, and have the virtual host's "
                "default queue type set to quorum",
                self.name,
            )
            return super().queue_declare(passive=True, channel=channel)
        finally:
            with suppress(Exception):
                probe.close()
