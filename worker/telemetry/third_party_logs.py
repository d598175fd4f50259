"""Turns log lines of Celery, kombu and plain loggers into lines of our own, and drops their noise.

Lines are found by their logger and the beginning of their message; lines that are not listed here
pass unchanged, so a new version's new message is not lost. A listed line keeps the first line of
its message as `text` if that says more than the event's name, and drops the traceback: a reconnect
is one clear line.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.telemetry.redaction import name_of, scrub_text

#: A longer text is no sentence; the rest of it is a dump of the data it is about.
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class KnownLine:
    """A line to log."""

    level: int
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """What another library's line becomes. `event`: none to drop it; `fields`: names of its
    arguments."""

    logger: str
    begins: str
    event: str = ""
    level: int | None = None
    fields: tuple[str, ...] = ()
    text: bool = True
    traceback: bool = False


_CONSUMER = "celery.worker.consumer"

SAID: tuple[Said, ...] = (
    # The life of a worker.
    Said("celery.apps.worker", "%s ready.", "worker ready"),
    Said(_CONSUMER, "Connected to %s", "broker connected", fields=("broker",), text=False),
    Said(_CONSUMER, "%s (%r)", "broker lost", logging.WARNING),
    Said(_CONSUMER, "consumer: Cannot connect to", "broker unreachable", logging.ERROR),
    Said(_CONSUMER, "Frequent restarts detected", "broker lost again and again", logging.ERROR),
    Said("celery.worker.worker", "Unrecoverable error", "worker ends on a fault", traceback=True),
    # The Redis transport has no global prefetch, and our messages are never delayed.
    Said(_CONSUMER, "Skipping prefetch count reduction"),
    Said(_CONSUMER, "Temporarily reducing the prefetch count"),
    Said(_CONSUMER, "Resuming normal operations following a restart"),
    Said(_CONSUMER, "Global QoS is disabled"),
    Said(_CONSUMER, "mingle:"),
    Said("kombu.transport.native_delayed_delivery", ""),
    # An unacknowledged message is delivered again, and ends at once.
    Said("kombu.message", "Couldn't ack", "message not acknowledged", logging.WARNING),
    Said("kombu.message", "Couldn't reject", "message not rejected", logging.WARNING),
    Said("", "Couldn't ack", "message not acknowledged", logging.WARNING),
    Said("", "Couldn't reject", "message not rejected", logging.WARNING),
    Said("celery.worker.loops", "Error cleaning up after event loop"),
    Said(_CONSUMER, "call_soon_ack immediate exec failed", "message not acknowledged", 30),
    Said(_CONSUMER, "Pending callback raised", "message not acknowledged", logging.WARNING),
    Said("kombu.transport", "Restoring", "messages put back", text=False),
    # kombu logs the whole message, which may contain a registration.
    Said("kombu.transport", "Could not restore message", "message lost", text=False),
    Said("worker.broker.redis_transport", "%d messages could not be put back",
         "messages not put back",
         logging.WARNING, ("count",), text=False),
    Said("kombu.transport", "Requeuing undeliverable message", "messages put back", text=False),
    # The step itself logs a task's end; only an uncaught exception is new.
    Said("celery.app.trace", "Task %(name)s[%(id)s] %(description)s", "task failed",
         traceback=True, text=False),
    Said("celery.worker.request", "Task %s[%s] retry"),
    # Warnings.
    Said("py.warnings", "CPendingDeprecationWarning"),
    Said("py.warnings", "CDeprecationWarning"),
    Said("py.warnings", "EventletDeprecationWarning"),  # Sentry's SDK checks for it
    Said("py.warnings", "SecurityWarning", "worker runs as root", logging.WARNING, text=False),
    Said("py.warnings", "UserWarning: A node named", "worker name taken", logging.WARNING),
    # Our own, where structlog is missing: a producer's installation has none.
    Said("worker.broker.wakeups", "the broker did not take", "wake-ups not published",
         logging.WARNING,
         ("missed", "of", "error"), text=False),
    Said("worker.process.consumer", "a message on %s is set aside", "message set aside",
         logging.WARNING,
         ("queue", "reason", "bytes"), text=False),
    Said("worker.process.consumer", "a message could not be acknowledged",
         "message not acknowledged",
         logging.WARNING, ("error",), text=False),
    Said("worker.process.consumer", "a message set aside was not acknowledged",
         "message not acknowledged", logging.WARNING, ("error",), text=False),
    Said("worker.process.consumer", "a broken connection could not be closed",
         "broker connection not closed", logging.WARNING, ("error",), text=False),
    Said("worker.process.consumer", "the loop that takes messages stumbled", "broker loop failed",
         logging.ERROR, ("error",), text=False),
    Said("worker.process.consumer", "keys of the broker were not looked at",
         "broker keys not checked",
         logging.WARNING, ("error",), text=False),
    Said("worker.broker.envelopes", "%s (and %d like it", "broker junk", logging.WARNING,
         ("what", "more"), text=False),
    Said("worker.broker.redis_transport", "the key %s was a %s", "broker key set aside",
         logging.ERROR,
         ("key", "type", "wanted"), text=False),
    Said("worker.intake.quarantine", "the quarantine waits for the ledger", "quarantine waits",
         logging.WARNING, ("error",), text=False),
)  # fmt: skip


def heard(record: logging.LogRecord) -> KnownLine | None:
    """The line for a record; None: drop it."""
    template = _template(record)
    for said in SAID:
        if record.name.startswith(said.logger) and template.startswith(said.begins):
            return _told(said, record)
    fields = {"exc_info": record.exc_info} if record.exc_info else {}
    return KnownLine(record.levelno, _sentence(record), fields)


def _told(said: Said, record: logging.LogRecord) -> KnownLine | None:
    if not said.event:
        return None
    fields: dict[str, Any] = {}
    args = record.args if isinstance(record.args, tuple) else ()
    fields |= {
        name: value if isinstance(value, int | float) else _cut(str(_shown(value)))
        for name, value in zip(said.fields, args, strict=False)
    }
    if isinstance(record.args, Mapping):
        # A task's name and id only: its arguments may be a whole registration.
        fields |= {"task": record.args.get("name"), "job": record.args.get("id")}
    if said.text:
        fields["text"] = _sentence(record)
    if record.exc_info and said.traceback:
        fields["exc_info"] = record.exc_info
    return KnownLine(said.level or record.levelno, said.event, fields)


def _shown(value: Any) -> Any:
    return name_of(value) if isinstance(value, BaseException) else value


def _template(record: logging.LogRecord) -> str:
    if record.name == "py.warnings":
        # `path:line: Category: what`; the path means nothing to a reader of the log.
        return record.getMessage().split(": ", 1)[-1].lstrip()
    return str(_shown(record.msg)).lstrip()


def _sentence(record: logging.LogRecord) -> str:
    if record.name == "py.warnings":
        text = _template(record)
    elif isinstance(record.args, tuple) and record.args:
        # An exception in a message: its type, and its text only if that may be shown.
        shown = tuple(map(_shown, record.args))
        try:
            text = str(_shown(record.msg)) % shown
        except (TypeError, ValueError):
            text = str(_shown(record.msg))
    elif isinstance(record.args, Mapping):
        try:
            text = str(_shown(record.msg)) % {key: _shown(one) for key, one in record.args.items()}
        except (TypeError, ValueError, KeyError):
            text = str(_shown(record.msg))
    else:
        text = str(_shown(record.msg))
    return _cut((text.strip().splitlines() or [""])[0])


def _cut(text: str) -> str:
    # Redacted first, which could not recognize a part of a secret.
    return scrub_text(text)[:_LONGEST]
