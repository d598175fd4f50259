"""Celery's remote control: a worker answers questions, and carries out nothing else.

Anybody with access to the broker can send commands to all workers. Celery's own commands stop
workers, starve them, or write files. Here a worker answers what Flower's pages ask for, without any
argument, and refuses everything else. What is no command is dropped, with a log line now and then.
"""

import secrets
from dataclasses import dataclass
from typing import Any

from celery.worker.consumer.control import Control as CeleryControl
from celery.worker.control import Panel
from celery.worker.pidbox import Pidbox
from kombu import Consumer as Messages

from worker.broker.background_publisher import background
from worker.broker.envelopes import junk

READING = frozenset(
    {
        *("ping", "stats", "conf", "registered", "active_queues"),
        *("active", "reserved", "scheduled", "revoked"),
    }
)
"""The commands that are answered."""

#: Flower sends it every five seconds. Our workers send events anyway.
_IGNORED = frozenset({"enable_events"})

#: The shown fields of the broker: Celery's own answer shows passwords if there are several URLs.
_BROKER = ("hostname", "port", "virtual_host", "transport", "userid", "heartbeat")

#: Settings that are not shown, for the same reason.
_SECRET = ("broker_", "result_backend", "redis_", "cache_", "security_", "database_")

#: Bytes. A command of Celery's has some 300.
_LONGEST = 64 * 1024

#: Characters of values that become part of a queue's name, or are returned in a header.
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class ControlCommand:
    """A command as received. `reply`: the queue that waits for the answer."""

    method: str
    destination: tuple[str, ...] | None
    reply: str | None
    ticket: str | None

    @classmethod
    def read(cls, body: Any, replies: str) -> "ControlCommand | None":
        """Parse it; None if it is none. `replies`: the exchange through which Celery sends
        answers."""
        match body:
            case {"method": str(method)}:
                destination, ticket = body.get("destination"), body.get("ticket")
                reply_to = body.get("reply_to")
            case _:
                return None
        # A pattern may be a regular expression that takes for ever. None of our programs sends one.
        if body.get("pattern") is not None:
            return None
        if destination is not None and not _is_names(destination):
            return None
        match reply_to:
            case None:
                reply = None
            case {"exchange": str(exchange), "routing_key": str(key)} if exchange == replies:
                reply = f"{key}.{exchange}"
            case _:
                return None
        names = [one for one in (method, reply, ticket) if one is not None]
        if not _is_names(names):
            return None
        return cls(method, None if destination is None else tuple(destination), reply, ticket)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(one, str) and len(one) <= _LONGEST_NAME and one.isascii() and one.isprintable()
        for one in value
    )


class Box(Pidbox):  # type: ignore[misc]
    """A worker's mailbox for commands."""

    def __init__(self, c: Any) -> None:
        # No other command is left in Celery's registry either.
        for name in set(Panel.data) - READING:
            del Panel.data[name]
        super().__init__(c)

    def start(self, c: Any) -> None:
        """Start to listen. Called with each connection."""
        self.node.channel = c.connection.channel()
        # With `on_message`, kombu decodes nothing: the message may be too large.
        queue = self.node.mailbox.get_queue(self.hostname)
        if c.connection.transport.driver_type == "amqp":
            # It is exclusive: another worker with this name, or this worker's own last connection
            # that the broker has not closed yet, must not block it.
            queue.name = f"{secrets.token_hex(8)}.{queue.name}"
        self.consumer = Messages(
            self.node.channel, [queue], no_ack=True, on_message=self._receive, on_decode_error=_drop
        )
        self.consumer.consume()

    def _receive(self, message: Any) -> None:
        try:
            if len(message.body or b"") > _LONGEST or message.headers.get("compression"):
                _drop()
            else:
                self.on_message(message.decode(), message)
        except Exception:  # noqa: BLE001 -- no JSON, another content type, nested too deep ...
            _drop()

    def on_message(self, body: Any, message: Any) -> None:
        """Answer a command, or refuse it."""
        self._forward_clock()
        mailbox = self.node.mailbox
        command = ControlCommand.read(body, mailbox.reply_exchange.name)
        if command is None:
            _drop()
        elif command.destination is not None and self.hostname not in command.destination:
            pass
        elif command.method in READING:
            self._answer(command, self._found(command.method))
        elif command.method not in _IGNORED:
            junk.warning("a control command that would change the worker is refused")
            self._answer(command, {"error": "refused: this worker answers only queries"})

    def _found(self, method: str) -> Any:
        found = self.node.handlers[method](self.node.state)
        if method == "stats":
            found["broker"] = {n: found["broker"][n] for n in _BROKER if n in found["broker"]}
        if method == "conf":
            found = {name: value for name, value in found.items() if not name.startswith(_SECRET)}
        return found

    def _answer(self, command: ControlCommand, found: Any) -> None:
        """Answer directly to the queue: anybody may have written an exchange's bindings.

        In the background: nobody waits long for the answer, and a worker must not either.
        """
        if command.reply is None:
            return
        app = self.c.app
        background(app).publish(
            {self.hostname: found},
            exchange="",
            routing_key=command.reply,
            headers={"ticket": command.ticket, "clock": app.clock.forward()},
            serializer="json",
        )


class Control(CeleryControl):  # type: ignore[misc]
    """Celery's step for remote control, with that mailbox."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self.box = c.box = Box(c)
        self.start = self.box.start
        self.stop = self.box.stop
        self.shutdown = self.box.shutdown


def _drop(*_: Any) -> None:
    junk.warning("an invalid control command is dropped")
