"""Carrying a trace along with a job: from its producer to each attempt, call and webhook.

A message may get lost, and an alarm carries nothing: so what continues a trace is kept with the
job in the ledger, and every attempt continues it, whoever woke it. Providers are sent nothing of
it; events and webhooks carry the `traceparent` of W3C Trace Context, which is two numbers.

Sentry's SDK and OpenTelemetry are used where the process has them and has turned them on; nothing
here imports either, so that a producer's installation needs none. Tracing never fails what is
traced.

    sentry.py  transactions and spans of Sentry's SDK
    otel.py    spans of OpenTelemetry, by its API
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from regworker.domain.trace_context import trace_of, traceparent
from regworker.tracing import otel, sentry

#: The header of W3C Trace Context, also a field of jobs and events.
TRACEPARENT = "traceparent"

#: The headers with which a trace is passed on, here and in a Celery message (entry point 2).
HEADERS = (TRACEPARENT, *sentry.HEADERS)

#: Characters of a trace that a job keeps. Baggage may have 8 KiB by its specification, mostly other
#: vendors'; ours has some 300.
MOST = 2000

own = sentry.own
"""Start a new trace, unless a step is traced already: one for each accepted job."""

Tell = Callable[..., None]
"""Adds facts to the current span: `tell(status=200)`."""


@dataclass(frozen=True, slots=True)
class Enqueuing:
    """A job that is being enqueued. `trace`: continues its trace; it is kept with the job."""

    trace: str
    end: Tell
    """Called when it is accepted or refused; with facts."""


def enqueuing(own: str | None = None, carried: str = "", **about: object) -> Enqueuing:
    """Begin to enqueue a job, as part of the trace of this thread or task.

    `own`: the `traceparent` that the job names, which has priority; `carried`: the one of the
    request, used if there is no other. `about`: facts without secrets.
    """
    try:
        parent = traceparent(own) or otel.here() or traceparent(carried)
        end: Tell = _nothing
        if (tracer := otel.tracer()) is not None:
            parent, end = otel.enqueuing(tracer, parent, about)
        found = {**({TRACEPARENT: parent} if parent else {}), **sentry.current()}
    except (AttributeError, TypeError, ValueError):
        # Whatever versions a producer has. Nothing wider: a soft time limit of the host is none of
        # these, and must reach the host.
        return _UNTRACED
    return Enqueuing(_text(found), end) if found or end is not _nothing else _UNTRACED


def here() -> str:
    """The `traceparent` of this thread's or task's span; empty if nothing is traced."""
    try:
        return otel.here()
    except (AttributeError, TypeError, ValueError):
        return ""


def onward(trace: str) -> str:
    """The `traceparent` to send on, for a job with this trace; empty if there is none.

    That of the current span, if it belongs to the job's trace; otherwise the job's own.
    """
    given = _carrier(trace).get(TRACEPARENT, "")
    now = here()
    return now if now and trace_of(now) == (trace_of(given) or trace_of(now)) else given


def carried(headers: Mapping[str, Any]) -> str:
    """Continues the trace of a message's headers; or empty."""
    return _text({name: headers[name] for name in HEADERS if isinstance(headers.get(name), str)})


def carried_by(trace: str) -> str:
    """The `traceparent` of a kept trace; or empty."""
    return _carrier(trace).get(TRACEPARENT, "")


def transaction(
    name: str, trace: str, steps: tuple[str, str] = ("", ""), /, **about: object
) -> AbstractContextManager[Tell]:
    """One step of a job, in the trace that is kept with it. `about`: facts without secrets.

    `steps`: the name of this step, and of the step that it looks up, possibly of another process;
    or empty.
    """
    first, second = sentry.sdk(), otel.tracer()
    if first is None and second is None:
        return _OFF
    return _both(
        first and sentry.transaction(first, name, _carrier(trace), about),
        second and otel.transaction(second, name, carried_by(trace), steps, about),
    )


def span(op: str, name: str) -> AbstractContextManager[Tell]:
    """A part of a step that takes time: a call, a request, a script of the ledger."""
    first, second = sentry.traced(), otel.traced()
    if first is None and second is None:
        return _OFF
    return _both(
        first and sentry.span(first, op, name),
        second and otel.span(second, op, name),
    )


@contextmanager
def _both(*given: AbstractContextManager[Tell] | None) -> Iterator[Tell]:
    with ExitStack() as running:
        traces = [running.enter_context(one) for one in given if one is not None]

        def tell(**facts: object) -> None:
            for one in traces:
                one(**facts)

        yield tell


def _text(found: dict[str, str]) -> str:
    """The trace that is kept with a job, from headers: as much as there is room for."""
    if TRACEPARENT in found:
        found[TRACEPARENT] = traceparent(found[TRACEPARENT])
    kept = {name: value for name, value in found.items() if value}
    if sum(map(len, kept.values())) > MOST:
        kept.pop("baggage", None)
    text = json.dumps(kept, separators=(",", ":")) if kept else ""
    return text if len(text) <= MOST else ""


def _carrier(trace: str) -> dict[str, str]:
    try:
        found = json.loads(trace) if trace else {}
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    kept = {name: found[name] for name in HEADERS if isinstance(found.get(name), str)}
    if TRACEPARENT in kept:
        kept[TRACEPARENT] = traceparent(kept[TRACEPARENT])
    return kept


def _nothing(**_: object) -> None:
    pass


#: Used if nothing is traced.
_UNTRACED = Enqueuing("", _nothing)
_OFF = nullcontext(_nothing)
