"""Sends traces and metrics by OTLP if that is turned on; otherwise none of it is imported."""

from collections.abc import Callable, Iterable

from regworker.domain.errors import SettingsError
from regworker.settings import Settings, variable
from regworker.tracing import otel
from worker.monitoring.metrics import Counted

_LACKING = "needs the extra `otel`: pip install 'registration-worker[otel]'"


def send(settings: Settings, service: str, counted: Iterable[Counted]) -> Callable[[], None]:
    """Start to send; return a function that stops it. `service`: the name, unless
    `OTEL_SERVICE_NAME` is set.

    Raises `SettingsError` if it is turned on and the extra is not installed.
    """
    if not settings.opentelemetry:
        # Libraries may have loaded a part of it: do not check for it at each step.
        otel.use(None)
        return otel.let_go
    try:
        from worker.monitoring import otlp_metrics
        from worker.telemetry.otel import OpenTelemetry
    except ImportError:
        raise SettingsError([(variable("opentelemetry"), _LACKING)]) from None
    begun = OpenTelemetry(service)
    otlp_metrics.show(begun.meter, counted)
    return begun.stop
