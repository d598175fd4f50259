"""Carrying a trace along with a job: from its producer to each attempt, call and webhook.

A message may get lost, and an alarm carries nothing: so what continues a trace is kept with the
job in the ledger, and every attempt continues it, whoever woke it. Nothing of a trace is sent to
providers or webhooks.

Sentry's SDK is used where the process has it and has turned it on; nothing here imports it, so
that a producer's installation needs none. Tracing never fails what is traced.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

#: The headers in which a trace travels, here and in a Celery message (door 2).
HEADERS = ("sentry-trace", "baggage")

#: Characters kept of a trace with a job. Baggage may be 8 KiB by its specification, most of it
#: others'; ours has some 300.
MOST = 2000

Tell = Callable[..., None]
"""Adds facts to what is being traced: `tell(status=200)`."""


def current() -> str:
    """What continues the trace that this thread or task is in, to be kept with a job; or empty."""
    sentry = _sentry()
    if sentry is None:
        return ""
    try:
        found = {"sentry-trace": sentry.get_traceparent(), "baggage": sentry.get_baggage()}
        carrier = {name: value for name, value in found.items() if value}
        if sum(map(len, carrier.values())) > MOST:
            del carrier["baggage"]
        return json.dumps(carrier, separators=(",", ":")) if carrier else ""
    except Exception:  # noqa: BLE001 -- whatever version of the SDK a producer has
        return ""


def carried(headers: Mapping[str, Any]) -> str:
    """What continues the trace that came in a message's headers; or empty."""
    found = {name: headers[name] for name in HEADERS if isinstance(headers.get(name), str)}
    text = json.dumps(found, separators=(",", ":"))
    return text if found and len(text) <= MOST else ""


@contextmanager
def own() -> Iterator[None]:
    """Be in a trace of one's own, unless a step is traced already: one for each job taken in."""
    sentry = _sentry()
    if sentry is None or sentry.get_current_span() is not None:
        yield
        return
    with sentry.isolation_scope() as scope:
        # Older versions' `continue_trace({})` stays in the trace that there is.
        scope.set_new_propagation_context()
        yield


def transaction(name: str, trace: str, **about: object) -> AbstractContextManager[Tell]:
    """One step at a job, in the trace that is kept with it. `about`: facts, none of them secret."""
    sentry = _sentry()
    return _OFF if sentry is None else _transaction(sentry, name, trace, about)


@contextmanager
def _transaction(sentry: Any, name: str, trace: str, about: Mapping[str, object]) -> Iterator[Tell]:
    with ExitStack() as running:
        scope = running.enter_context(sentry.isolation_scope())
        scope.clear_breadcrumbs()
        begun = sentry.continue_trace(_carrier(trace), op="queue.process", name=name, source="task")
        step = running.enter_context(sentry.start_transaction(begun))

        def tell(**facts: object) -> None:
            for key, value in facts.items():
                step.set_tag(key, str(value))

        tell(**about)
        yield tell


def span(op: str, name: str) -> AbstractContextManager[Tell]:
    """A part of a step that takes time: a call, a request, a script of the ledger."""
    sentry = _sentry()
    if sentry is None or sentry.get_current_span() is None:
        return _OFF
    return _span(sentry, op, name)


@contextmanager
def _span(sentry: Any, op: str, name: str) -> Iterator[Tell]:
    with sentry.start_span(op=op, name=name) as part:

        def tell(**facts: object) -> None:
            for key, value in facts.items():
                part.set_data(key, value)

        yield tell


def _sentry() -> Any:
    sentry = sys.modules.get("sentry_sdk")
    on = getattr(sentry, "is_initialized", None)
    return sentry if on is not None and on() else None


def _carrier(trace: str) -> dict[str, str]:
    try:
        found = json.loads(trace) if trace else {}
    except ValueError:
        return {}
    return {name: found[name] for name in HEADERS if isinstance(found.get(name), str)}


def _nothing(**_: object) -> None:
    pass


#: In place of what is traced, where nothing is.
_OFF = nullcontext(_nothing)
