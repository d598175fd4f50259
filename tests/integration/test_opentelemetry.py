"""OpenTelemetry: what an OTLP receiver gets from real workers, and what no receiver costs."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Queue

from regworker.domain.trace_context import trace_of
from regworker.ledger.transitions import look
from tests.integration.entry_points import id_of, plain_client
from tests.integration.hooks import Hooks, hooks
from tests.integration.installation import PATIENCE, ROOT, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.otlp_receiver import Otlp, Span, points, receive
from worker.broker.wakeups import REGISTER, REQUESTS
from worker.cli.local import stack

#: The trace of a client without OpenTelemetry, which only names it.
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

#: A producer in another service: with its own OpenTelemetry, and our library.
PRODUCER = """
import json, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from regworker.producer import Producer

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")
with Producer() as producer, tracer.start_as_current_span("sign-up") as page:
    receipt = producer.enqueue(json.loads(sys.argv[1]))
    context = page.get_span_context()
print(json.dumps({
    "job": receipt.job_id, "trace": f"{context.trace_id:032x}", "span": f"{context.span_id:016x}"
}))
"""


def fault(here: Installation, job: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
    """Make the job's calls fail in this way; return the job."""
    script = here.sandbox.faults.public()["script"]
    rule = {"kind": kind, "email": email_of(job), **more}
    here.sandbox.faults.configure({"script": [*script, rule]})
    return job


def python(here: Installation, code: str, *arguments: str, **environment: str) -> str:
    """The output of a program in the installation's environment."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(ROOT), **here.environment, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(found: Any, what: str) -> None:
    """Wait for what the receiver gets; it is sent in the background."""
    stack.until(lambda: bool(found()), what, PATIENCE)


def one(found: list[Span]) -> Span:
    """The only span that was found."""
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Installation, Otlp, Hooks]]:
    """An installation with a receiver for its telemetry and a webhook that keeps headers."""
    folder = tmp_path_factory.mktemp("otel")
    # No call here may reach its time limit: that would be another span.
    patient = {"call_budget": 10.0, "settle_delay": 11.0}
    with receive() as otlp, hooks() as crm, installation(
        folder, workers=0, endpoints__crm__url=crm.url, **patient
    ) as here:  # fmt: skip
        here.environment |= otlp.environment
        stack.wait_for_worker(here.ledger, here.start_worker())
        yield here, otlp, crm


def test_one_trace_leads_from_the_producer_to_the_webhook(
    watched: tuple[Installation, Otlp, Hooks],
) -> None:
    """Through each attempt to its call, with the right parents; event and webhook carry it on."""
    here, otlp, crm = watched
    job = fault(here, skypostal(reply_to=["results", "crm"]), "too_many", times=2)
    begun = json.loads(python(here, PRODUCER, json.dumps(job), OTEL_SERVICE_NAME="shop"))
    event = here.producer.wait(begun["job"], PATIENCE)

    def mine(name: str, **facts: Any) -> list[Span]:
        return [span for span in otlp.named(name, **facts) if span.trace == begun["trace"]]

    until(lambda: mine("registrations.deliver"), "the delivery")
    until(lambda: len(mine("registrations.attempt")) == 3, "the attempts")
    page = one(mine("sign-up"))
    enqueue = one(mine("registrations.enqueue"))
    assert (enqueue.service, enqueue.kind, enqueue.parent) == ("shop", "PRODUCER", page.id)
    assert enqueue.facts["regworker.job"] == begun["job"]
    attempts = mine("registrations.attempt")
    calls = mine("POST skypostal/default")
    for attempt in attempts:
        assert (attempt.service, attempt.kind) == ("registration-worker", "CONSUMER")
        assert attempt.parent == enqueue.id
        assert attempt.facts["regworker.job"] == begun["job"]
        call = one([call for call in calls if call.parent == attempt.id])
        assert call.kind == "CLIENT"
    assert sorted(call.facts["http.response.status_code"] for call in calls) == [200, 429, 429]
    delivery = one(mine("registrations.deliver"))
    assert (delivery.kind, delivery.parent) == ("CONSUMER", enqueue.id)
    request = one(mine("POST crm"))
    assert (request.kind, request.parent) == ("CLIENT", delivery.id)

    last = one(mine("registrations.attempt", outcome="registered"))
    assert event["traceparent"].startswith(f"00-{begun['trace']}-{last.id}-0")
    [headers] = crm.requests
    assert headers["traceparent"].startswith(f"00-{begun['trace']}-{request.id}-0")
    assert not otlp.refused


def test_the_question_after_a_lost_answer_is_linked_to_its_call(
    watched: tuple[Installation, Otlp, Hooks],
) -> None:
    """Also if the job names no trace, and if the worker that called was killed."""
    here, otlp, _ = watched

    def linked(job_id: str) -> None:
        until(lambda: otlp.named("registrations.attempt", job=job_id, kind="ask"), "the question")
        for question in otlp.named("registrations.attempt", job=job_id, kind="ask"):
            [(trace, call)] = question.links
            assert trace == question.trace
            assert call != question.id
            calls = otlp.named("registrations.attempt", job=job_id, kind="call")
            assert [call] == [span.id for span in calls] or not calls

    lost = fault(here, skypostal(traceparent=TRACEPARENT), "commit_then_drop")
    linked(here.run(lost)["subject"])
    assert otlp.named("registrations.attempt", job=id_of(lost), kind="call")
    unnamed = fault(here, open2b(), "commit_then_drop")
    linked(here.run(unnamed)["subject"])
    spans = [span for span in otlp.spans if span.facts.get("regworker.job") == id_of(unnamed)]
    assert len({span.trace for span in spans}) == 1

    crash = fault(here, skypostal(), "hang", commit=True)
    job_id = here.producer.enqueue(crash).job_id
    stack.until(lambda: here.made(email_of(crash)) > 0, "the call", PATIENCE)
    here.workers[-1].kill()
    stack.wait_for_worker(here.ledger, here.start_worker())
    here.producer.wait(job_id, PATIENCE)
    linked(job_id)


def test_each_way_in_takes_a_traceparent_and_ignores_a_malformed_one(
    watched: tuple[Installation, Otlp, Hooks],
) -> None:
    """The job's own field, the stream's, a Celery header, a variable of `submit`, the outbox."""
    here, otlp, _ = watched
    numbers = iter(range(1, 100))
    broker = here.environment.get("REGWORKER_BROKER_URL") or here.valkey.connection_url

    def handed(job: dict[str, Any], trace: str, way: str) -> None:
        redis = here.ledger.redis
        match way:
            case "field":
                here.producer.enqueue({**job, "traceparent": trace})
            case "stream":
                redis.xadd("{reg}:jobs", {"job": json.dumps(job), "traceparent": trace})
            case "stream, in the job":
                redis.xadd("{reg}:jobs", {"job": json.dumps({**job, "traceparent": trace})})
            case "task":
                with plain_client(broker) as client:
                    headers = {"traceparent": trace}
                    queue = Queue(REQUESTS, no_declare=True)
                    client.send_task(REGISTER, [job], queue=queue, headers=headers)
            case "submit":
                file = here.folder / "job.json"
                file.write_text(json.dumps(job))
                python(here, SUBMIT, str(file), TRACEPARENT=trace)
            case "outbox":
                python(here, OUTBOX, json.dumps(job), trace)

    ways = ("field", "stream", "stream, in the job", "task", "submit", "outbox")
    for way in ways:
        good, bad = open2b(), open2b()
        trace = f"{next(numbers):032x}"
        handed(good, f"00-{trace}-{PARENT}-01", way)
        handed(bad, f"00-{trace}-{PARENT}-XX", way)
        for job in (good, bad):
            until(lambda job=job: here.ledger(look(id_of(job))), f"{way}: taken")  # type: ignore[misc]
            here.wait_for(id_of(job), "registered")
        until(lambda: otlp.named("registrations.attempt", job=id_of(good)), f"{way}: good")  # noqa: B023
        until(lambda: otlp.named("registrations.attempt", job=id_of(bad)), f"{way}: bad")  # noqa: B023
        assert one(otlp.named("registrations.attempt", job=id_of(good))).trace == trace, way
        assert one(otlp.named("registrations.attempt", job=id_of(bad))).trace != trace, way
        event = json.loads(here.events(id_of(good))[-1])
        assert trace_of(event["traceparent"]) == trace, way


SUBMIT = """
import sys
from worker.cli.app import run
sys.exit(run(["submit", sys.argv[1]]))
"""

OUTBOX = """
import json, sys
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from regworker.outbox import Outbox, Relay, metadata
from regworker.producer import Producer

job, parent = json.loads(sys.argv[1]), sys.argv[2]
_, trace_id, span_id, flags = parent.split("-")
if flags == "XX":
    span = NonRecordingSpan(SpanContext(0, 0, True, TraceFlags(0)))
else:
    span = NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(1)))
engine = create_engine("sqlite://", poolclass=StaticPool)
metadata.create_all(engine)
with use_span(span), engine.begin() as connection:
    Outbox().add(connection, job)
with Producer() as producer:
    assert Relay(producer).turn(engine).moved == 1
"""


def test_metrics_are_those_of_prometheus(watched: tuple[Installation, Otlp, Hooks]) -> None:
    """The same names, labels and counts; times are histograms with the same bounds."""
    here, otlp, _ = watched
    here.run(skypostal())
    account = (("account", "default"), ("kind", "call"), ("provider", "skypostal"))

    def timed() -> Any:
        found = otlp.metrics.get("regworker_attempt_seconds")
        return found and points(found).get(account)

    until(timed, "the time of a call")
    counted = points(otlp.metrics["regworker_attempts"])
    assert counted[tuple(sorted((*account, ("outcome", "registered"))))].as_int > 0
    timing, point = otlp.metrics["regworker_attempt_seconds"], timed()
    assert (timing.unit, point.count > 0, point.sum > 0) == ("s", True, True)
    assert list(point.explicit_bounds)[:2] == [0.05, 0.1]
    assert (("part", "loop"),) in points(otlp.metrics["regworker_part_age_seconds"])
    from worker.monitoring.metrics import Meter

    assert set(otlp.metrics) <= {one.name for one in Meter()} | {
        *("regworker_calls_in_flight", "regworker_leases_held", "regworker_tasks_running"),
        *("regworker_part_age_seconds", "regworker_part_limit_seconds"),
    }


def test_without_opentelemetry_in_the_worker_a_trace_is_handed_on_as_it_came(
    tmp_path: Path,
) -> None:
    """In the event on each channel, and in the webhook's header; a malformed one is dropped."""
    with hooks() as crm, installation(tmp_path, endpoints__crm__url=crm.url) as here:
        event = here.run(skypostal(reply_to=["results", "crm"], traceparent=TRACEPARENT))
        assert event["traceparent"] == TRACEPARENT
        stack.until(lambda: bool(crm.requests), "the webhook", PATIENCE)
        assert crm.requests[0]["traceparent"] == TRACEPARENT
        assert json.loads(here.events(event["subject"])[0])["traceparent"] == TRACEPARENT
        other = here.run(skypostal(reply_to=["results", "crm"], traceparent="00-0-0-00"))
        stack.until(lambda: len(crm.requests) == 2, "the other webhook", PATIENCE)
        assert "traceparent" not in other
        assert "traceparent" not in crm.requests[1]


def test_a_receiver_that_is_ill_costs_nothing(tmp_path: Path) -> None:
    """The receiver fails, hangs, and is away: jobs continue, and a stopped worker exits with 0."""
    with receive() as otlp, installation(tmp_path, workers=0) as here:
        here.environment |= {**otlp.environment, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        stack.wait_for_worker(here.ledger, here.start_worker())
        for status in (500, 503, 0):
            otlp.status, before = status, otlp.asked
            assert here.run(skypostal())["type"] == "registration.registered"
            stack.until(lambda before=before: otlp.asked > before, "it was asked", PATIENCE)  # type: ignore[misc]
            here.wait_for_line('"signal": "traces"')
            here.wait_for_line('"signal": "metrics"')
        here.workers[0].send_signal(signal.SIGTERM)
        assert here.workers[0].wait(PATIENCE) == 0
        said = [json.loads(line) for line in here.log().read_text("utf-8").splitlines()]
        warnings = [line for line in said if line["event"] == "telemetry is not taken"]
        assert len(warnings) == 2, "and says so once"
        assert {line["reason"] for line in warnings} == {
            f"Failed to export {kind} batch code: 500, reason: Internal Server Error"
            for kind in ("spans", "metrics")
        }

        here.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
        here.start_worker()
        here.wait_for_line("worker ready", 1)
        assert here.run(skypostal())["type"] == "registration.registered"
        here.wait_for_line("telemetry is not taken", 1)
        here.workers[1].send_signal(signal.SIGTERM)
        assert here.workers[1].wait(PATIENCE) == 0


def test_a_worker_that_stops_sends_what_it_has(tmp_path: Path) -> None:
    """Its last span and its last counts arrive, however rarely it sends."""
    with receive() as otlp, installation(tmp_path, workers=0) as here:
        here.environment |= {
            **otlp.environment,
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
        }
        stack.wait_for_worker(here.ledger, here.start_worker())
        event = here.run(skypostal())
        assert not otlp.spans
        here.workers[0].send_signal(signal.SIGTERM)
        assert here.workers[0].wait(PATIENCE) == 0
        assert otlp.named("registrations.attempt", job=event["subject"])
        assert "regworker_attempts" in otlp.metrics


#: Prints the OpenTelemetry modules that are imported, and by which module, after a job.
OFF = """
import importlib.abc
import json
import sys
import threading


class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_globals.get("__name__", ""):
            frame = frame.f_back
        if name.startswith("opentelemetry"):
            importers.add(frame.f_globals.get("__name__", "").partition(".")[0])


importers = set()
sys.meta_path.insert(0, Watch())

from regworker.producer import Producer
from regworker.settings import Settings
from worker.celery import new_app
from worker.process.runtime import Runtime

settings = Settings.load()
runtime = Runtime(settings, new_app(settings))
runtime.start()
with Producer() as producer:
    job_id = producer.enqueue(json.loads(sys.argv[1])).job_id
state = str(runtime.attempt(job_id).state)
heavy = ("opentelemetry.exporter", "opentelemetry.proto", "google.protobuf", "requests")
found = {
    "state": state,
    "importers": sorted(importers - {"opentelemetry"}),
    "heavy": [name for name in sys.modules if name.startswith(heavy)],
    "threads": [one.name for one in threading.enumerate() if "Otel" in one.name],
}
runtime.stop()
print(json.dumps(found))
"""


def test_off_it_is_not_imported(tmp_path: Path) -> None:
    """A runtime that carried out a job has no exporter, no thread, and imported nothing of it.

    redis-py imports the part of the SDK that it uses, if the SDK is installed.
    """
    with installation(tmp_path, workers=0) as here:
        done = json.loads(python(here, OFF, json.dumps(skypostal())).splitlines()[-1])
        assert set(done.pop("importers")) <= {"redis"}
        assert done == {"state": "registered", "heavy": [], "threads": []}
