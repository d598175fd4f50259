"""OpenTelemetry: its SDK, set up by the standard `OTEL_*` variables; imported only if it is on.

Nothing is set for the whole process, so that no library adds spans of its own: those show URLs,
error texts and commands. A receiver that is away, slow or broken costs the queued telemetry, and no
job.
"""

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from regworker.clock import steady
from regworker.tracing import otel
from worker import __version__
from worker.telemetry import third_party_logs
from worker.telemetry.redaction import name_of, scrub_text

log = structlog.get_logger(__name__)

#: Seconds for which a stopping process waits for the receiver, for spans and metrics together.
SHUTDOWN_TIMEOUT = 2.0

#: The logger in which the exporters say why something was not accepted.
_LOGGER = "opentelemetry.exporter.otlp.proto.http"


class OpenTelemetry:
    """Spans and metrics of this process, until `stop`."""

    def __init__(self, service: str) -> None:
        """`service`: the name, unless `OTEL_SERVICE_NAME` gives another."""
        resource = _resource(service)
        # No handlers at exit: `stop` waits instead, and not for half a minute.
        self._tracers = TracerProvider(
            resource=resource, shutdown_on_exit=False, id_generator=_Ids()
        )
        if _wanted("TRACES"):
            self._tracers.add_span_processor(BatchSpanProcessor(_Spans()))
        readers = [PeriodicExportingMetricReader(_Metrics())] if _wanted("METRICS") else []
        self._meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        otel.use(self._tracers if _wanted("TRACES") else None, scrub_text)

    @property
    def meter(self) -> Meter:
        """Takes metrics."""
        return self._meters.get_meter(otel.SCOPE)

    def stop(self) -> None:
        """Send the remaining data, as far as the receiver accepts it in time."""
        otel.let_go()
        # In threads: a hanging exporter would delay the end of the process.
        ending = [
            threading.Thread(target=one.shutdown, name="telemetry ends", daemon=True)
            for one in (self._tracers, self._meters)
        ]
        for one in ending:
            one.start()
        end = steady() + SHUTDOWN_TIMEOUT
        for one in ending:
            one.join(max(0.0, end - steady()))


def _resource(service: str) -> Resource:
    found = Resource({SERVICE_VERSION: __version__}).merge(Resource.create())
    if str(found.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: service}))
    return found


def _wanted(signal: str) -> bool:
    """Whether to send a signal; the only exporters are OTLP and `none`."""
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


class _Ids(RandomIdGenerator):
    """Random ids, except for a step whose id others must be able to compute."""

    def generate_span_id(self) -> int:
        return otel.WANTED.get()[1] or super().generate_span_id()

    def generate_trace_id(self) -> int:
        return otel.WANTED.get()[0] or super().generate_trace_id()


class _Reach:
    """Whether the receiver accepts data: logged when that changes, with the reason."""

    def __init__(self, signal: str, logger: str) -> None:
        self._signal = signal
        self._why = ""
        self._failing = False
        # While it is away, a warning for each try would be most of the log.
        logging.getLogger(logger).addFilter(self._heard)

    def _heard(self, record: logging.LogRecord) -> bool:
        said = third_party_logs.heard(record)
        self._why = said.event if said else ""
        return False

    def done(self, taken: bool, why: str = "") -> None:
        """A batch was sent; `why`: it was not, if the exporter has not logged it."""
        if taken != self._failing:
            return
        self._failing = not taken
        if taken:
            log.info("telemetry is taken again", signal=self._signal)
        else:
            log.warning("telemetry is not taken", signal=self._signal, reason=why or self._why)


class _Spans(OTLPSpanExporter):
    def __init__(self) -> None:
        super().__init__()
        self._reach = _Reach("traces", f"{_LOGGER}.trace_exporter")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            found = super().export(spans)
        except Exception as error:  # noqa: BLE001 -- older versions raise what requests raises
            self._reach.done(False, name_of(error))
            return SpanExportResult.FAILURE
        self._reach.done(found is SpanExportResult.SUCCESS)
        return found


class _Metrics(OTLPMetricExporter):
    def __init__(self) -> None:
        super().__init__()
        self._reach = _Reach("metrics", f"{_LOGGER}.metric_exporter")

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        try:
            found = super().export(metrics_data, timeout_millis, **kwargs)
        except Exception as error:  # noqa: BLE001 -- older versions raise what requests raises
            self._reach.done(False, name_of(error))
            return MetricExportResult.FAILURE
        self._reach.done(found is MetricExportResult.SUCCESS)
        return found
