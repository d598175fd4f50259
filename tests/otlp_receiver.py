"""A receiver of OTLP over HTTP that behaves like a collector, and decodes the protobuf that it
gets.

Source: OpenTelemetry specification, "OTLP/HTTP" (binary protobuf encoding, responses)."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent

from tests.serving import serving


@dataclass(frozen=True)
class Span:
    """A span that was sent. Ids are hexadecimal; `parent` is empty if the span has none."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    """The traces and spans that it is linked to."""
    facts: dict[str, Any]
    failed: bool


@dataclass
class Otlp:
    """The requests that came, and the answers to them."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    """The latest value of each, by name."""
    raw: list[bytes] = field(default_factory=list)
    """Whole requests, unpacked, so that tests can search them for what they must not contain."""
    refused: list[str] = field(default_factory=list)
    """Why requests were refused; tests check that none was."""
    status: int = 200
    """The status of answers; with 0 there is no answer until `release` is set."""
    release: threading.Event = field(default_factory=threading.Event)
    asked: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables that turn a process's telemetry on, and send it here soon."""
        return {
            "REGWORKER_OPENTELEMETRY": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }

    def of(self, trace: str) -> list[Span]:
        """The spans of a trace."""
        return [span for span in self.spans if span.trace == trace]

    def named(self, name: str, **facts: Any) -> list[Span]:
        """The spans of this name with these attributes."""
        wanted = {f"regworker.{key}": value for key, value in facts.items()}
        return [
            one for one in self.spans if one.name == name and wanted.items() <= one.facts.items()
        ]

    def take(self, path: str, headers: Any, body: bytes) -> tuple[str, bytes]:
        """Take a request. Return why it is refused, or nothing, and the answer."""
        if headers.get("Content-Type") != "application/x-protobuf":
            return f"content type {headers.get('Content-Type')}", b""
        whole = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        match path:
            case "/v1/traces":
                self.spans += _spans(ExportTraceServiceRequest.FromString(whole))
                answer: bytes = ExportTraceServiceResponse().SerializeToString()
            case "/v1/metrics":
                self.metrics |= _metrics(ExportMetricsServiceRequest.FromString(whole))
                answer = ExportMetricsServiceResponse().SerializeToString()
            case _:
                return f"path {path}", b""
        self.raw.append(whole)
        return "", answer


def _spans(request: Any) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = _facts(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for one in scope.spans:
                yield Span(
                    service,
                    one.name,
                    Sent.SpanKind.Name(one.kind).removeprefix("SPAN_KIND_"),
                    one.trace_id.hex(),
                    one.span_id.hex(),
                    one.parent_span_id.hex(),
                    tuple((link.trace_id.hex(), link.span_id.hex()) for link in one.links),
                    _facts(one.attributes),
                    one.status.code == one.status.STATUS_CODE_ERROR,
                )


def _metrics(request: Any) -> dict[str, Any]:
    return {
        metric.name: metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def points(metric: Any) -> dict[tuple[tuple[str, Any], ...], Any]:
    """The points of a metric, by their attributes."""
    data = getattr(metric, metric.WhichOneof("data"))
    return {tuple(sorted(_facts(one.attributes).items())): one for one in data.data_points}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Otlp

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.receiver.asked += 1
        if not self.receiver.status:
            self.receiver.release.wait(60)
            self.close_connection = True
            return
        answer = b""
        status = self.receiver.status
        if status < 400:
            try:
                why, answer = self.receiver.take(self.path, self.headers, body)
            except Exception as error:  # noqa: BLE001 -- a test looks at `refused`
                why = f"{type(error).__name__}: {error}"
            if why:
                self.receiver.refused.append(why)
                status = 400
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def receive() -> Iterator[Otlp]:
    """Receive telemetry on a port of this machine."""
    found = Otlp("")
    with serving(type("Handler", (_Handler,), {"receiver": found})) as port:
        found.endpoint = f"http://127.0.0.1:{port}"
        try:
            yield found
        finally:
            found.release.set()
