"""Traces with Sentry's SDK, if the process has it and has turned it on."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

#: Sentry's own headers.
HEADERS = ("sentry-trace", "baggage")


def sdk() -> Any:
    """The SDK; None if it is off."""
    # During its import, a module exists without its content.
    found = sys.modules.get("sentry_sdk")
    on = getattr(found, "is_initialized", None)
    return found if on is not None and on() else None


def traced() -> Any:
    """The SDK, within a traced step; otherwise None."""
    found = sdk()
    return None if found is None or found.get_current_span() is None else found


def current() -> dict[str, str]:
    """Continues the trace of this thread or task."""
    found = sdk()
    if found is None:
        return {}
    headers = {"sentry-trace": found.get_traceparent(), "baggage": found.get_baggage()}
    return {name: value for name, value in headers.items() if value}


@contextmanager
def own() -> Iterator[None]:
    """Start a new trace, unless a step is traced already."""
    found = sdk()
    if found is None or found.get_current_span() is not None:
        yield
        return
    with found.isolation_scope() as scope:
        # In older versions, `continue_trace({})` stays in the present trace.
        scope.set_new_propagation_context()
        yield


@contextmanager
def transaction(
    found: Any, name: str, carrier: Mapping[str, str], about: Mapping[str, object]
) -> Iterator[Callable[..., None]]:
    """One step of a job."""
    headers = {name: value for name, value in carrier.items() if name in HEADERS}
    with ExitStack() as running:
        scope = running.enter_context(found.isolation_scope())
        scope.clear_breadcrumbs()
        begun = found.continue_trace(headers, op="queue.process", name=name, source="task")
        if not _measures(found):
            # An error needs the trace's id and the step's name, and no spans.
            scope.set_transaction_name(name, source="task")
            yield _nothing
            return
        step = running.enter_context(found.start_transaction(begun))

        def tell(**facts: object) -> None:
            for key, value in facts.items():
                step.set_tag(key, str(value))

        tell(**about)
        yield tell


def _measures(found: Any) -> bool:
    """Whether transactions are sent, or only errors."""
    options = found.get_client().options
    rate, sampler = options.get("traces_sample_rate"), options.get("traces_sampler")
    return rate is not None or sampler is not None


def _nothing(**_: object) -> None:
    pass


@contextmanager
def span(found: Any, op: str, name: str) -> Iterator[Callable[..., None]]:
    """A part of a step."""
    with found.start_span(op=op, name=name) as part:

        def tell(**facts: object) -> None:
            for key, value in facts.items():
                part.set_data(key, value)

        yield tell
