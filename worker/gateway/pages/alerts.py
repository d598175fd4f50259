"""The firing alerts, with their sections of the runbook.

They are the conditions of `monitoring/rules.yml` that one snapshot can show, without their `for`:
Prometheus notifies people, a page shows the present state.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt
from markupsafe import Markup

from worker.gateway.pages.render import length
from worker.monitoring import doctor
from worker.monitoring.overview import Overview

RUNBOOK = "alerts.md"


@dataclass(frozen=True, slots=True)
class Alert:
    """A firing alert. `name`: that of the rule, and of its section of the runbook."""

    name: str
    severity: Literal["critical", "warning"]
    text: str
    path: str = ""
    """The page where a person can act on it."""


def firing(found: Overview) -> list[Alert]:
    """All firing alerts, the worst first."""
    return sorted(_firing(found), key=lambda one: one.severity)


def _firing(found: Overview) -> Iterator[Alert]:
    g, server = found.snapshot, found.server
    conditions = [one.condition(g.at) for one in g.workers]
    bad = len(conditions) - conditions.count("well")
    if "well" not in conditions:
        yield Alert("RegworkerNoWorker", "critical", "No worker works: jobs wait", "/workers")
    if bad:
        what = f"{_many(bad, 'worker')} stuck or silent"
        yield Alert("RegworkerWorkerStuck", "warning", what, "/workers")
    for name in sorted({name for one in g.workers for name in one.lacks}):
        yield Alert("RegworkerWorkerLacks", "warning", f"Workers lack {name}", "/workers")
    if g.overdue_by > doctor.LATE:
        what = f"Alarms are {length(g.overdue_by)} late: no worker processes them"
        yield Alert("RegworkerAlarmsOverdue", "critical", what)
    if g.reviews:
        what = f"{_many(g.reviews, 'job')} in review"
        yield Alert("RegworkerReview", "warning", what, "/reviews")
    if g.quarantine:
        what = f"{_many(g.quarantine, 'message')} in quarantine"
        yield Alert("RegworkerQuarantine", "warning", what, "/quarantine")
    for account in g.accounts:
        name = f"{account.provider}/{account.account}"
        if account.paused:
            what = f"{name} is paused: {account.reason}"
            yield Alert("RegworkerAccountPaused", "warning", what, "/accounts")
        elif account.breaker == "refused":
            what = f"{name} refuses our credentials: {account.reason}"
            yield Alert("RegworkerAccountRefused", "critical", what, "/accounts")
        elif account.breaker == "open":
            what = f"{name} fails: {account.reason}"
            yield Alert("RegworkerAccountFailing", "warning", what, "/accounts")
    if dead := sum(g.dead.values()):
        what = f"{dead} dead {'delivery' if dead == 1 else 'deliveries'}"
        yield Alert("RegworkerDeadDeliveries", "warning", what, "/deliveries?state=dead")
    for endpoint in g.endpoints:
        if endpoint.disabled:
            what = f"The endpoint {endpoint.name} is disabled"
            yield Alert("RegworkerEndpointDisabled", "critical", what, "/deliveries")
        elif endpoint.failing_since and g.at - endpoint.failing_since > 600_000:
            what = f"The endpoint {endpoint.name} has accepted nothing for "
            what += length((g.at - endpoint.failing_since) / 1000)
            yield Alert("RegworkerEndpointFailing", "warning", what, "/deliveries")
    strays = [f"{one.provider}/{one.account}" for one in g.accounts if one.stray_at]
    for name in [*strays, *(one.name for one in g.endpoints if one.stray_at)]:
        what = f"{name} sent an answer to no request"
        yield Alert("RegworkerStrayAnswers", "critical", what)
    if g.unreadable:
        what = f"{_many(len(g.unreadable), 'record')} of the ledger cannot be read"
        yield Alert("RegworkerRecordsUnreadable", "warning", what)
    if server.written is False:
        what = "The ledger's append-only file is not written"
        yield Alert("RegworkerLedgerNotWritten", "critical", what)
    if not server.primary:
        yield Alert("RegworkerLedgerNotPrimary", "critical", "The ledger's server is a replica")
    if server.memory_used is not None and server.memory_used > doctor.NEARLY_FULL:
        yield Alert("RegworkerLedgerMemory", "critical", "The ledger's memory is nearly full")
    if found.queues is None:
        what = "The broker does not answer: only the alarm clock wakes jobs"
        yield Alert("RegworkerBrokerDown", "critical", what)
    if g.shares_broker:
        yield Alert(
            "RegworkerBrokerShared", "critical", "Another installation uses the broker, too"
        )


def runbook(name: str) -> Markup | None:
    """A section of the runbook as HTML; None if it does not exist."""
    found = _sections().get(name)
    # Our own document; it contains no HTML.
    return Markup(_markdown(found)) if found else None  # noqa: S704


@cache
def _sections() -> dict[str, str]:
    """The runbook's sections by their names."""
    # Beside the sources, or in an installed package.
    here = Path(__file__).resolve()
    for file in (here.parents[3] / "docs" / RUNBOOK, here.parent / "data" / RUNBOOK):
        if file.is_file():
            return dict(re.findall(r"^### (.*?)\n(.*?)(?=^##)", file.read_text("utf-8"), _M))
    return {}


_M = re.MULTILINE | re.DOTALL


def _markdown(text: str) -> str:
    # Remove links: they lead to documents that are not served here.
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return str(MarkdownIt("commonmark", {"html": False}).render(text))


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
