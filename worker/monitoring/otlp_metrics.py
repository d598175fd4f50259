"""The metrics for OpenTelemetry's SDK: the same table that Prometheus gets.

The SDK reads counts on request; histograms are the SDK's own, since it may be asked for the
difference to the last time (`OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`).
"""

from collections.abc import Callable, Iterable, Iterator

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from worker.monitoring.metrics import Counted, Labels, Reading, Tally, Timing


def show(meter: Meter, counted: Iterable[Counted]) -> None:
    """Export all of these through a meter, from now on."""
    for one in counted:
        match one:
            case Timing():
                one.also = _recorder(meter, one)
            case Tally():
                meter.create_observable_counter(one.name, [_observer(one)], description=one.help)
            case Reading():
                meter.create_observable_gauge(one.name, [_observer(one)], description=one.help)


def _observer(one: Tally | Reading) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for labels, value in one.read().items():
            yield Observation(value, dict(zip(one.labels, labels, strict=True)))

    return observe


def _recorder(meter: Meter, one: Timing) -> Callable[[float, Labels], None]:
    histogram = meter.create_histogram(
        one.name,
        unit="s",
        description=one.help,
        explicit_bucket_boundaries_advisory=[float(bound) for bound in one.bounds],
    )

    def record(seconds: float, labels: Labels) -> None:
        histogram.record(seconds, dict(zip(one.labels, labels, strict=True)))

    return record
