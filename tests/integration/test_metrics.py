"""What Prometheus reads from each worker process and from the exporter, and which alerts fire."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from regworker.domain.outcome import Code
from regworker.ledger.snapshot import snapshot
from tests import promtool
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli.local import stack

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = MONITORING / "rules.yml"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
DASHBOARD = json.loads(
    (MONITORING / "grafana" / "dashboards" / "registration-worker.json").read_text("utf-8")
)


@dataclass
class Observed:
    """An installation with the exporter."""

    here: Installation
    exporter: str
    """The exporter's URL."""
    settings: dict[str, str]
    seen: list[str] = field(default_factory=list)
    """What no page may contain: ids, e-mails, passwords, keys."""

    def shared(self) -> str:
        """The exporter's page."""
        return read(f"{self.exporter}/metrics")

    def own(self) -> str:
        """The worker's page."""
        targets: list[str] = []

        def named() -> bool:
            # A worker announces its port with its first heartbeat.
            targets[:] = [one["targets"][0] for one in json.loads(read(f"{self.exporter}/targets"))]
            return bool(targets)

        stack.until(named, "the worker among the targets", PATIENCE)
        [target] = targets
        return read(f"http://127.0.0.1:{target.rpartition(':')[2]}/metrics")

    def samples(self) -> promtool.Samples:
        """The samples of both pages."""
        return promtool.scrape(self.shared(), self.own())

    def value(self, name: str, **labels: str) -> float:
        """A sample by its name and some of its labels; the sum if several match."""
        wanted = set(labels.items())
        found = self.samples().get(name, {})
        return sum(value for given, value in found.items() if wanted <= given)

    def until(self, expected: float, name: str, **labels: str) -> None:
        """Wait until a sample has a value."""
        what = f"{name}{labels} = {expected}"
        stack.until(lambda: self.value(name, **labels) == expected, what, PATIENCE)

    def firing(
        self,
        alert: str,
        *labels: dict[str, str],
        before: promtool.Samples | None = None,
        alone: bool = False,
    ) -> None:
        """Require that an alert fires on these scrapes for exactly these labels; None: not at all.

        `alone`: on the exporter's page only. Without the ledger, it names no worker.
        """
        alone = alone or self.here.workers[0].poll() is not None
        samples = self.alone() if alone else self.samples()
        expected = {alert: labels}
        assert not promtool.unexpected(self.here.folder, RULES, expected, samples, before)

    def alone(self) -> promtool.Samples:
        """The exporter's page, without a worker."""
        return promtool.scrape(self.shared())

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Enqueue a job and wait for its event; no page may ever show its secrets."""
        self.seen += [email_of(job), job["idempotency_key"]]
        event = self.here.run(job)
        self.seen += [event["subject"], *(event["data"].get("outcome") or {}).values()]
        return event


def read(url: str) -> str:
    """A page."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def regworker(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """One installation for all tests of this file; the exporter has no sealing key and no
    account."""
    folder = tmp_path_factory.mktemp("metrics")
    # No call here may reach its time limit: its outcome would be another one.
    patient = {"call_budget": 10.0, "settle_delay": 11.0, "lease": 15.0}
    with installation(folder, metrics_port=0, max_attempts=2, **patient) as here:
        settings = {
            name: value
            for name, value in here.environment.items()
            if name in {"REGWORKER_REDIS_URL", "REGWORKER_BROKER_URL"}
        }
        command = [sys.executable, "-m", "worker.cli", "exporter", "--port", "0"]
        with stack.process(command, settings, folder, subprocess.PIPE) as exporter:
            assert exporter.stdout is not None
            said = exporter.stdout.readline().decode()
            url = said.split(" at ")[1].strip().removesuffix("/metrics")
            yield Observed(here, url, settings)
            exporter.terminate()
            assert exporter.wait(PATIENCE) == 0, "it ends in order"


# -- counters --------------------------------------------------------------------------------------


def test_outcomes_are_counted_by_account_and_code(observed: Observed) -> None:
    """And timed from acceptance to the published event; the shared totals agree."""
    observed.run(skypostal())
    taken = skypostal()
    observed.run(taken)
    again = skypostal(email_of(taken), idempotency_key="sky-once-more")
    assert observed.run(again)["type"] == "registration.rejected"
    sky = {"provider": "skypostal", "account": "default"}
    # The worker counts after the event has been published.
    name = "regworker_outcomes_total"
    observed.until(2, name, **sky, outcome="registered", code="")
    observed.until(1, name, **sky, outcome="rejected", code="already_exists")
    observed.until(3, "regworker_job_seconds_count", **sky, lane="live")
    observed.until(2, "regworker_attempts_total", **sky, kind="call", outcome="registered")
    observed.until(3, "regworker_attempt_seconds_count", **sky, kind="call")
    finished = "regworker_jobs_finished_total"
    observed.until(2, finished, **sky, state="registered")
    observed.until(1, finished, **sky, state="rejected")
    accepted = "regworker_jobs_accepted_total"
    stack.until(lambda: observed.value(accepted) >= 3, f"{accepted} >= 3", PATIENCE)


def test_a_lost_answer_is_counted_as_asked_and_found(observed: Observed) -> None:
    """The outcome of the call is unknown; the lookup finds the customer."""
    job = skypostal()
    rule = {"kind": "commit_then_drop", "email": email_of(job)}
    observed.here.sandbox.faults.configure({"script": [rule]})
    assert observed.run(job)["data"]["recovered"]
    sky = {"provider": "skypostal", "account": "default"}
    observed.until(1, "regworker_attempts_total", **sky, kind="call", outcome="unknown")
    observed.until(1, "regworker_attempts_total", **sky, kind="ask", outcome="registered")
    observed.until(1, "regworker_recovered_total", **sky)


def test_deliveries_are_counted_by_endpoint(observed: Observed) -> None:
    """Each try, by the state of the delivery afterwards."""
    event = observed.run(open2b(reply_to=["crm"]))
    observed.here.wait_for_hook(event["subject"])
    observed.until(1, "regworker_delivery_tries_total", endpoint="crm", result="delivered")
    observed.until(1, "regworker_deliveries_arrived_total")
    observed.until(1, "regworker_delivery_seconds_count", endpoint="crm")
    observed.until(0, "regworker_deliveries_pending", endpoint="crm")


def test_jobs_are_told_by_state_and_lane_and_age(observed: Observed) -> None:
    """While their account is paused, they are due and wait for it."""
    here = observed.here
    environment = {**observed.settings, "REGWORKER_SEALING_KEYS": KEYS}
    assert regworker(environment, "providers", "pause", "open2b/default").returncode == 0
    observed.firing("RegworkerAccountPaused", {"provider": "open2b", "account": "default"})
    jobs = [open2b(), open2b(lane="bulk"), open2b(lane="bulk")]
    ids = [here.producer.enqueue(job).job_id for job in jobs]
    observed.seen += ids
    observed.until(3, "regworker_account_waiting", provider="open2b")
    assert observed.value("regworker_jobs", state="queued", lane="live") == 1
    assert observed.value("regworker_jobs", state="queued", lane="bulk") == 2
    assert observed.value("regworker_jobs_due", lane="bulk") == 2
    assert observed.value("regworker_oldest_job_seconds", state="queued", lane="bulk") > 0
    said = json.loads(regworker(observed.settings, "stats", "--json").stdout)
    assert said["jobs"]["queued"] == {"live": 1, "bulk": 2}
    assert regworker(environment, "providers", "resume", "open2b/default").returncode == 0
    for job_id in ids:
        here.producer.wait(job_id, PATIENCE)
    observed.until(0, "regworker_jobs")
    assert observed.value("regworker_oldest_job_seconds") == 0


def test_accounts_above_a_limit_are_added_up(observed: Observed) -> None:
    """But for those of a pattern, by the command's options."""
    options = ("--once", "--per-account-limit", "1", "--accounts", "skypostal/*")
    done = regworker(observed.settings, "exporter", *options)
    found = promtool.scrape(done.stdout)["regworker_account_in_flight"]
    assert {tuple(dict(one)[name] for name in ("provider", "account")) for one in found} == {
        *(("open2b", "*"), ("skypostal", "default"))
    }


def test_no_page_shows_a_secret_or_grows_with_the_jobs(observed: Observed) -> None:
    """Labels are names from the settings, fixed words, and names of consumer groups."""
    pages = observed.shared() + observed.own()
    secrets = [KEYS, KEYS.split(":")[1], *observed.here.environment.values()]
    known = [one for one in secrets if len(one) > 8 and "://" not in one]
    shown = [one for one in (*known, *map(str, observed.seen)) if len(one) > 4 and one in pages]
    assert shown == []
    values = {
        (name, value)
        for vector in observed.samples().values()
        for labels in vector
        for name, value in labels
        if name not in {"le", "version", "python"}
    }
    codes = {value for name, value in values if name == "code"} - {""}
    assert codes <= {str(code) for code in Code}
    numbered = [value for _, value in values if re.search(r"\d{4}|@|[0-9a-f]{8}-", value)]
    assert numbered == []


def test_a_second_process_takes_the_next_port(observed: Observed) -> None:
    """The exporter lists both as targets for Prometheus."""
    here = observed.here
    [first] = here.ledger(snapshot()).workers
    port = int(first.metrics.rpartition(":")[2])
    with stack.process(
        stack.worker_command(), {**here.environment, "REGWORKER_METRICS_PORT": str(port)},
        here.folder, subprocess.DEVNULL,
    ) as second:  # fmt: skip
        stack.until(lambda: len(here.ledger(snapshot()).workers) == 2, "a second worker", PATIENCE)
        listed = [one["targets"][0] for one in json.loads(read(f"{observed.exporter}/targets"))]
        ports = sorted(int(one.rpartition(":")[2]) for one in listed)
        assert ports[0] == port < ports[1] < port + 100
        assert second.poll() is None
    stack.until(lambda: len(here.ledger(snapshot()).workers) == 1, "it took its leave", PATIENCE)


def test_a_port_that_is_taken_is_named(observed: Observed) -> None:
    """The exporter starts on the given port or not at all."""
    port = observed.exporter.rpartition(":")[2]
    done = regworker(observed.settings, "exporter", "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"127.0.0.1:{port} cannot be opened" in done.stderr


# -- dashboard and alerts --------------------------------------------------------------------------


def test_every_metric_of_the_dashboard_and_the_rules_is_there(observed: Observed) -> None:
    """They are found in real scrapes."""
    known = promtool.names(observed.shared()) | promtool.names(observed.own())
    asked = {
        f"{panel['title']}: {target['expr']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    } | {name: rule["expr"] for name, rule in ALERTS.items()}
    assert len(asked) > 50
    unknown = {what: promtool.selected(expr) - known for what, expr in asked.items()}
    assert {what: names for what, names in unknown.items() if names} == {}


def test_every_alert_says_what_it_means_and_where_it_is_explained() -> None:
    """The text also says what is wrong, what it leads to, and what to do."""
    for name, rule in ALERTS.items():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Regworker[A-Z][A-Za-z]+", name)
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert len(rule["annotations"]["summary"]) < 80


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It uses only the data source that is chosen at import."""
    [source] = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        "datasource", "datasource", "prometheus"
    )  # fmt: skip
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    boxes = [tuple(panel["gridPos"][side] for side in "xywh") for panel in DASHBOARD["panels"]]
    for number, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[:number]:
            apart = (
                x >= other_x + other_w or other_x >= x + w
                or y >= other_y + other_h or other_y >= y + h
            )  # fmt: skip
            assert apart, "two panels in one place"


def test_no_alert_fires_while_all_is_well(observed: Observed) -> None:
    """Whatever was registered, rejected or recovered before."""
    before = observed.samples()
    observed.run(skypostal())
    observed.until(0, "regworker_jobs")
    none: dict[str, list[dict[str, str]]] = {name: [] for name in ALERTS}
    now = observed.samples()
    assert not promtool.unexpected(observed.here.folder, RULES, none, now, before)


def test_a_job_in_review_and_an_abandoned_one_are_told(observed: Observed) -> None:
    """The review until somebody settles it; the abandoned job for an hour."""
    here = observed.here
    before = observed.samples()
    job = skypostal()
    observed.run(job)
    other = skypostal(email_of(job))
    other["registration"]["customer_password"] = "another"
    rule = {"kind": "drop_before_commit", "email": email_of(job)}
    here.sandbox.faults.configure({"script": [rule]})
    job_id = here.producer.enqueue(other).job_id
    here.wait_for(job_id, "review")
    observed.firing("RegworkerReview", {})
    assert observed.value("regworker_jobs", state="review", lane="live") == 1
    assert observed.value("regworker_oldest_review_seconds") > 0
    environment = {**observed.settings, "REGWORKER_SEALING_KEYS": KEYS}
    settled = ("review", "resolve", job_id, "--rejected", "another customer", "--by", "ann")
    assert regworker(environment, *settled).returncode == 0
    observed.firing("RegworkerReview")
    spent = open2b()
    rule = {"kind": "too_many", "times": 2, "email": email_of(spent)}
    here.sandbox.faults.configure({"script": [rule]})
    assert observed.run(spent)["type"] == "registration.abandoned"
    observed.firing(
        "RegworkerAbandoned", {"provider": "open2b", "account": "default"}, before=before
    )
    observed.firing("RegworkerAbandoned", before=observed.samples())


def test_an_account_that_is_refused_is_told(observed: Observed) -> None:
    """Until it is resumed; its jobs wait until then and then continue."""
    here = observed.here
    here.sandbox.configure({"skypostal": {"app_key": "another"}})
    job_id = here.producer.enqueue(skypostal()).job_id
    labels = {"provider": "skypostal", "state": "refused"}
    observed.until(1, "regworker_account_breaker", **labels)
    observed.firing("RegworkerAccountRefused", {**labels, "account": "default"})
    here.sandbox.configure({"skypostal": {"app_key": None}})
    environment = {**observed.settings, "REGWORKER_SEALING_KEYS": KEYS}
    assert regworker(environment, "providers", "resume", "skypostal/default").returncode == 0
    here.producer.wait(job_id, PATIENCE)
    observed.firing("RegworkerAccountRefused")


def test_a_group_that_does_not_read_is_told(observed: Observed) -> None:
    """The alert says how far the group is behind."""
    redis = observed.here.ledger.redis
    redis.xgroup_create("{reg}:results", "slow", "0", mkstream=True)
    observed.firing("RegworkerGroupLag")
    lines = redis.pipeline(transaction=False)
    for _ in range(1001):
        lines.xadd("{reg}:results", {"event": "{}"})
    lines.execute()
    observed.firing("RegworkerGroupLag", {"group": "slow", "stream": "{reg}:results"})
    redis.xgroup_destroy("{reg}:results", "slow")


def test_no_worker_and_late_alarms_are_told(observed: Observed) -> None:
    """A job that is accepted now waits for an alarm clock that no worker rings."""
    here = observed.here
    here.workers[0].terminate()
    here.workers[0].wait(PATIENCE)
    observed.firing("RegworkerNoWorker", {})
    job_id = here.producer.enqueue(skypostal(lane="live")).job_id
    observed.firing("RegworkerAlarmsOverdue")
    # The ledger sees an alarm of long ago.
    here.ledger.redis.zadd("{reg}:alarms", {job_id: 1})
    here.ledger.redis.zadd("{reg}:open", {job_id: 1})
    observed.firing("RegworkerAlarmsOverdue", {})
    observed.firing("RegworkerLiveJobOld", {})
    said = regworker(observed.settings, "top", "--once").stdout
    assert "no worker sends a heartbeat" in said
    assert "no worker's alarm clock rings them" in said


def test_a_ledger_that_is_away_is_told(observed: Observed) -> None:
    """The exporter still answers; printing the page once fails, and its page says so."""
    observed.here.valkey.stop()
    try:
        observed.firing("RegworkerLedgerDown", {}, alone=True)
        done = regworker(observed.settings, "exporter", "--once")
        assert done.returncode == 1
        assert "regworker_ledger_up 0.0" in done.stdout
        assert "the ledger did not answer" in done.stderr
        assert regworker(observed.settings, "stats", "--json").returncode == 1
    finally:
        observed.here.valkey.start(timeout=stack.START)
    observed.firing("RegworkerLedgerDown", alone=True)
