"""Spans of OpenTelemetry, through its API and the setup of this process.

In a service the host sets it up; in a worker, `worker.telemetry.otel`. Spans do not contain
exceptions' texts, since they may quote their input.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Tell = Callable[..., None]

#: The trace id and span id of the next span (0: any), for a worker's generator of ids. So a step's
#: span has the same id whichever process computes it, and a lookup can be linked to the call of a
#: dead worker.
WANTED: ContextVar[tuple[int, int]] = ContextVar("wanted", default=(0, 0))

#: The name of our instrumentation scope.
SCOPE = "regworker"

_MODULE = "opentelemetry.trace"

#: OpenTelemetry's names for some of our facts; the others get our name as a prefix.
_NAMES = {
    "method": "http.request.method",
    "status": "http.response.status_code",
    "error": "error.type",
}

#: The kind of a part of a step; otherwise internal.
_KINDS = {"http.client": "CLIENT"}

#: Parts without a span of their own, since each of the jobs has one.
_LEFT_OUT = frozenset({"queue.publish"})


@dataclass
class _Setup:
    """A worker's setup; a service has none, and uses the process's own provider."""

    decided: bool = False
    """Whether a worker has decided, even against tracing."""
    provider: Any = None
    clean: Callable[[str], str] = str
    tracers: tuple[Any, Any] = (None, None)
    """The provider that was used last, and its tracer."""


_setup = _Setup()


def use(provider: Any, clean: Callable[[str], str] = str) -> None:
    """Make spans with this provider, whose ids follow `WANTED`; None: make none.

    `clean`: removes secrets from a text.
    """
    _setup.decided, _setup.provider, _setup.clean = True, provider, clean


def let_go() -> None:
    """Return to the process's own provider, if it has one."""
    _setup.decided, _setup.provider, _setup.clean = False, None, str


def tracer() -> Any:
    """The tracer of the process's OpenTelemetry setup; None: there is none."""
    provider = _setup.provider
    if provider is None:
        if _setup.decided:
            return None
        api = sys.modules.get(_MODULE)
        # During its import, a module exists without its content.
        ask = getattr(api, "get_tracer_provider", None)
        if ask is None:
            return None
        provider = ask()
        if isinstance(provider, (api.ProxyTracerProvider, api.NoOpTracerProvider)):  # type: ignore[union-attr]
            return None
    known, found = _setup.tracers
    if known is not provider:
        found = provider.get_tracer(SCOPE)
        _setup.tracers = provider, found
    return found


def traced() -> Any:
    """The tracer, within a span; else None."""
    found = tracer()
    return found if found is not None and here() else None


def here() -> str:
    """The current span's `traceparent`; empty where there is none."""
    if _setup.decided and _setup.provider is None:
        return ""
    current = getattr(sys.modules.get(_MODULE), "get_current_span", None)
    return "" if current is None else _text(current().get_span_context())


def enqueuing(tracer: Any, parent: str, about: Mapping[str, object]) -> tuple[str, Tell]:
    """The span of a job that is being enqueued: its `traceparent`, and the function that ends
    it."""
    api: Any = sys.modules[_MODULE]
    begun = tracer.start_span(
        "registrations.enqueue", _context(api, parent), kind=api.SpanKind.PRODUCER
    )
    tell = _teller(begun)
    tell(**about)

    def end(**facts: object) -> None:
        tell(**facts)
        begun.end()

    return _text(begun.get_span_context()), end


@contextmanager
def transaction(
    tracer: Any, name: str, parent: str, steps: tuple[str, str], about: Mapping[str, object]
) -> Iterator[Tell]:
    """One step of a job. `steps`: its name, and the step that it looks up; or empty.

    Jobs without a trace have one that is derived from their id.
    """
    api: Any = sys.modules[_MODULE]
    step, asks_about = steps
    job = about.get("job")
    trace_id = int(parent[3:35], 16) if parent else _number(f"trace/{job}", 16) if job else 0
    links = []
    if asks_about and trace_id and _setup.provider is not None:
        call = _number(f"step/{asks_about}", 8)
        flags = api.TraceFlags(api.TraceFlags.SAMPLED)
        links = [api.Link(api.SpanContext(trace_id, call, is_remote=True, trace_flags=flags))]
    wanted = WANTED.set((trace_id, _number(f"step/{step}", 8) if step else 0))
    try:
        begun = tracer.start_span(
            name, _context(api, parent), kind=api.SpanKind.CONSUMER, links=links
        )
    finally:
        WANTED.reset(wanted)
    with _current(api, begun) as tell:
        tell(**about)
        yield tell


@contextmanager
def span(tracer: Any, op: str, name: str) -> Iterator[Tell]:
    """A part of a step."""
    if op in _LEFT_OUT:
        yield _nothing
        return
    api: Any = sys.modules[_MODULE]
    kind = getattr(api.SpanKind, _KINDS.get(op, "INTERNAL"))
    with _current(api, tracer.start_span(name, kind=kind)) as tell:
        yield tell


@contextmanager
def _current(api: Any, begun: Any) -> Iterator[Tell]:
    tell = _teller(begun)
    with api.use_span(
        begun, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield tell
        except BaseException as error:
            tell(error=type(error).__name__)
            begun.set_status(api.StatusCode.ERROR)
            raise


def _teller(begun: Any) -> Tell:
    def tell(**facts: object) -> None:
        for key, value in facts.items():
            if value in (None, ""):
                continue
            plain = value if isinstance(value, bool | int | float) else _setup.clean(str(value))
            begun.set_attribute(_NAMES.get(key) or f"{SCOPE}.{key}", plain)

    return tell


def _context(api: Any, parent: str) -> Any:
    """The context of a remote parent; without one, an empty context."""
    if not parent:
        return api.set_span_in_context(api.INVALID_SPAN)
    _, trace_id, span_id, flags = parent.split("-")
    context = api.SpanContext(
        int(trace_id, 16), int(span_id, 16), True, api.TraceFlags(int(flags, 16))
    )
    return api.set_span_in_context(api.NonRecordingSpan(context))


def _text(context: Any) -> str:
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _number(text: str, size: int) -> int:
    """An id of `size` bytes that is derived from a text; as good as random, and never 0."""
    found = hashlib.sha256(f"registration-worker/{text}".encode()).digest()[:size]
    return int.from_bytes(found, "big") or 1


def _nothing(**_: object) -> None:
    pass
