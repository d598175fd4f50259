"""What Celery, kombu and plain loggers say, in the words of our own lines; their noise is dropped.

Found by logger and by how the message begins, so that what is not listed here passes as it is:
a new version's new sentence is told, not lost. A listed line keeps the first line of what was
said as `text`, where it tells more than its name, and drops the traceback: a reconnect is one
clear line.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.telemetry.scrub import name_of

#: No sentence; the rest of a longer one is a dump of what it is about.
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Line:
    """A line to tell."""

    level: int
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody's line becomes. `event`: none to drop it; `fields`: names of its arguments."""

    logger: str
    begins: str
    event: str = ""
    level: int | None = None
    fields: tuple[str, ...] = ()
    text: bool = True
    traceback: bool = False


_CONSUMER = "celery.worker.consumer"

SAID: tuple[Said, ...] = (
    # A worker's life.
    Said("celery.apps.worker", "%s ready.", "worker ready"),
    Said(_CONSUMER, "Connected to %s", "broker connected", fields=("broker",), text=False),
    Said(_CONSUMER, "%s (%r)", "broker lost", logging.WARNING),
    Said(_CONSUMER, "consumer: Cannot connect to", "broker unreachable", logging.ERROR),
    Said(_CONSUMER, "Frequent restarts detected", "broker lost again and again", logging.ERROR),
    Said("celery.worker.worker", "Unrecoverable error", "worker ends on a fault", traceback=True),
    # Redis' transport has no global prefetch to speak of, and nothing of ours is ever delayed.
    Said(_CONSUMER, "Skipping prefetch count reduction"),
    Said(_CONSUMER, "Temporarily reducing the prefetch count"),
    Said(_CONSUMER, "Resuming normal operations following a restart"),
    Said(_CONSUMER, "Global QoS is disabled"),
    Said(_CONSUMER, "mingle:"),
    Said("kombu.transport.native_delayed_delivery", ""),
    # What was not acknowledged comes again, and ends at once.
    Said("kombu.message", "Couldn't ack", "message not acknowledged", logging.WARNING),
    Said("kombu.message", "Couldn't reject", "message not rejected", logging.WARNING),
    Said("", "Couldn't ack", "message not acknowledged", logging.WARNING),
    Said("", "Couldn't reject", "message not rejected", logging.WARNING),
    Said("celery.worker.loops", "Error cleaning up after event loop"),
    Said(_CONSUMER, "call_soon_ack immediate exec failed", "message not acknowledged", 30),
    Said(_CONSUMER, "Pending callback raised", "message not acknowledged", logging.WARNING),
    Said("kombu.transport", "Restoring", "messages put back", text=False),
    # kombu shows the whole message, in which a registration may be.
    Said("kombu.transport", "Could not restore message", "message lost", text=False),
    Said("worker.redis_broker", "%d messages could not be put back", "messages not put back",
         logging.WARNING, ("count",), text=False),
    Said("kombu.transport", "Requeuing undeliverable message", "messages put back", text=False),
    # A task's end is told by the step itself; only a fault nobody caught is news.
    Said("celery.app.trace", "Task %(name)s[%(id)s] %(description)s", "task failed",
         traceback=True, text=False),
    Said("celery.worker.request", "Task %s[%s] retry"),
    # Warnings.
    Said("py.warnings", "CPendingDeprecationWarning"),
    Said("py.warnings", "CDeprecationWarning"),
    Said("py.warnings", "EventletDeprecationWarning"),  # Sentry's SDK looks whether it is there
    Said("py.warnings", "SecurityWarning", "worker runs as root", logging.WARNING, text=False),
    Said("py.warnings", "UserWarning: A node named", "worker name taken", logging.WARNING),
    # Our own, where no structlog is: a producer's installation has none.
    Said("worker.wakeups", "the broker did not take", "wake-ups not published", logging.WARNING,
         ("missed", "of", "error"), text=False),
    Said("worker.consuming", "a message on %s is set aside", "message set aside", logging.WARNING,
         ("queue", "reason", "bytes"), text=False),
    Said("worker.consuming", "a message could not be acknowledged", "message not acknowledged",
         logging.WARNING, ("error",), text=False),
    Said("worker.consuming", "a message set aside was not acknowledged",
         "message not acknowledged", logging.WARNING, ("error",), text=False),
    Said("worker.consuming", "a broken connection could not be closed",
         "broker connection not closed", logging.WARNING, ("error",), text=False),
    Said("worker.quarantine", "the quarantine waits for the ledger", "quarantine waits",
         logging.WARNING, ("error",), text=False),
)  # fmt: skip


def heard(record: logging.LogRecord) -> Line | None:
    """What to tell of a record; None: nothing."""
    template = _template(record)
    for said in SAID:
        if record.name.startswith(said.logger) and template.startswith(said.begins):
            return _told(said, record)
    fields = {"exc_info": record.exc_info} if record.exc_info else {}
    return Line(record.levelno, _sentence(record), fields)


def _told(said: Said, record: logging.LogRecord) -> Line | None:
    if not said.event:
        return None
    fields: dict[str, Any] = {}
    args = record.args if isinstance(record.args, tuple) else ()
    fields |= {
        name: value if isinstance(value, int | float) else str(value)[:_LONGEST]
        for name, value in zip(said.fields, args, strict=False)
    }
    if isinstance(record.args, Mapping):
        # A task's: name and id only. Its arguments may be a whole registration.
        fields |= {"task": record.args.get("name"), "job": record.args.get("id")}
    if said.text:
        fields["text"] = _sentence(record)
    if record.exc_info and said.traceback:
        fields["exc_info"] = record.exc_info
    return Line(said.level or record.levelno, said.event, fields)


def _template(record: logging.LogRecord) -> str:
    if record.name == "py.warnings":
        # `path:line: Category: what`; the path says nothing to whoever reads a log.
        return record.getMessage().split(": ", 1)[-1].lstrip()
    return str(record.msg).lstrip()


def _sentence(record: logging.LogRecord) -> str:
    if record.name == "py.warnings":
        text = _template(record)
    elif isinstance(record.args, tuple) and record.args:
        # An exception in a message: its kind, and its text only where that may be told.
        shown = [name_of(one) if isinstance(one, BaseException) else one for one in record.args]
        try:
            text = str(record.msg) % tuple(shown)
        except (TypeError, ValueError):
            text = str(record.msg)
    else:
        text = record.getMessage()
    return (text.strip().splitlines() or [""])[0][:_LONGEST]
