"""The pages that show something: they change nothing."""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from regworker.announced import accounts_of
from regworker.domain.states import FINAL, State
from regworker.ledger.endpoints import Waiting
from regworker.ledger.listing import JobRow
from regworker.ledger.transitions import announced
from worker.gateway.pages import alerts, charts
from worker.gateway.pages.history import busiest
from worker.gateway.pages.permissions import Here, Looking
from worker.gateway.pages.render import page, query
from worker.gateway.problems import HttpProblem, NotTaken
from worker.monitoring.totals import finished
from worker.operations import words
from worker.operations.accounts import find_accounts
from worker.operations.audit import AuditFilter, AuditLog
from worker.operations.deliveries import Filter
from worker.operations.jobs import JobFilter, WrongCursor, mark_of

router = APIRouter()

#: The ages of jobs that people can choose.
AGES = {"1h": 3600, "1d": 86400, "7d": 7 * 86400, "30d": 30 * 86400}

#: Rows of a list; and the most entries that are read for a page, when few match.
MOST, BUDGET = 50, 750

#: The most accounts in a list to choose from; if there are more, people write the name.
CHOICES = 200

_ENTRY = re.compile(r"[1-9][0-9]{,14}-[0-9]{1,19}")


@router.get("/")
def overview(request: Request, visitor: Looking, here: Here) -> Response:
    """The content of `regworker top`, with the last hour as charts."""
    found = here.history.look()
    g, points = found.snapshot, here.history.points
    names = [f"{one.provider}/{one.account}" for one in g.accounts]
    ended: Counter[str] = Counter()
    for one in points:
        ended.update(one.ended)
    charted = busiest(names, ended)
    lanes = {
        lane: {one.state: one for one in g.jobs if one.lane == lane} for lane in ("live", "bulk")
    }
    return page(
        request,
        "overview.html",
        title="Overview",
        found=found,
        g=g,
        lanes=lanes,
        totals={"accepted": g.stats.get("accepted", 0), **finished(g)},
        alerts=alerts.firing(found),
        charts=charts.by_account(points, charted),
        since=points[0].at if points else 0,
    )


@router.get("/jobs")
def jobs(request: Request, visitor: Looking, here: Here) -> Response:
    """Jobs, filtered and in pages."""
    given = {name: value.strip()[:200] for name, value in request.query_params.items()}
    search = {name: given.get(name, "") for name in SEARCH}
    trouble, found = "", None
    try:
        wanted = filter_of(search)
        found = here.jobs.page(wanted, given.get("after") or None, MOST, BUDGET)
    except (ValueError, WrongCursor) as error:
        trouble = str(error)
    more = ""
    if found and found.cursor:
        more = f"/jobs?{urlencode({**query(search), 'after': found.cursor})}"
    return page(
        request,
        "jobs.html",
        status=422 if trouble else 200,
        title="Jobs",
        search=search,
        searched=any(search.values()),
        states=list(State),
        ages=AGES,
        accounts=_accounts(here),
        rows=[(one, waits(one)) for one in found.rows] if found else [],
        more=more,
        first=not given.get("after"),
        many=here.bulk_actions,
        trouble=trouble,
    )


@router.get("/jobs/{job_id}")
def job(request: Request, visitor: Looking, here: Here, job_id: str) -> Response:
    """One job: its state, its timeline, and the possible actions."""
    return show_job(request, here, job_id)


def show_job(
    request: Request,
    here: Here,
    job_id: str,
    *,
    status: int = 200,
    problems: Mapping[str, str] | None = None,
    given: Mapping[str, str] | None = None,
    asked: Any = None,
) -> Response:
    """The page of a job, with the errors of a form, or the provider's answer."""
    record = here.record(job_id)
    event = here.event(record) if record.event else None
    data: Any = (event or {}).get("data", {})
    errors = data.get("errors") or ()
    outcome = data.get("outcome")
    questions = here.questions if record.state is State.REVIEW else None
    return page(
        request,
        "job.html",
        status=status,
        title="Job",
        job=record,
        seen=mark_of(record),
        steps=words.grouped(record.timeline),
        why="" if record.final else words.why(record.state, record.why),
        event=event,
        # Not the messages: a provider's text may quote an address.
        errors=[(str(one.get("field") or "–"), str(one.get("code", ""))) for one in errors],
        outcome=sorted(map(str, outcome)) if isinstance(outcome, Mapping) else [],
        deliveries=_deliveries_of(here, record, event),
        may={act: here.may(record, act) for act in ("cancel", "settle", "correct")},
        has_keys=here.has_keys,
        can_ask=bool(questions and questions.can(record)),
        fields=here.outcome_fields(record.provider),
        problems=problems or {},
        given=given or {},
        asked=asked,
    )


@router.get("/reviews")
def reviews(request: Request, visitor: Looking, here: Here) -> Response:
    """The work list: jobs in review, the oldest first."""
    wanted = JobFilter(states=(State.REVIEW,), sort="oldest")
    try:
        found = here.jobs.page(wanted, request.query_params.get("after") or None, MOST)
    except WrongCursor as error:
        raise NotTaken(HttpProblem(422, "wrong-cursor", str(error))) from None
    more = f"/reviews?{urlencode({'after': found.cursor})}" if found.cursor else ""
    many = {name: one for name, one in here.bulk_actions.items() if one.state is State.REVIEW}
    return page(request, "reviews.html", title="Reviews", rows=found.rows, more=more, many=many)


@router.get("/deliveries")
def deliveries(request: Request, visitor: Looking, here: Here) -> Response:
    """Endpoints, and pending or dead deliveries."""
    admin, asked = here.deliveries, request.query_params
    state: Literal["pending", "dead"] | None = None
    if asked.get("state") == "pending":
        state = "pending"
    elif asked.get("state") == "dead":
        state = "dead"
    endpoint = asked.get("endpoint", "")[:100]
    skip = int(asked["skip"]) if asked.get("skip", "").isdecimal() and len(asked["skip"]) < 6 else 0
    found = admin.deliveries(Filter(endpoint=endpoint or None, state=state), asked.get("after", ""))
    try:
        rows = list(islice(found, skip, skip + MOST + 1))
    except WrongCursor as error:
        raise NotTaken(HttpProblem(422, "wrong-cursor", str(error))) from None
    search = query({"state": state, "endpoint": endpoint})
    more = (
        f"/deliveries?{urlencode({**search, 'after': admin.place(rows[MOST - 1])})}"
        if len(rows) > MOST
        else ""
    )
    return page(
        request,
        "deliveries.html",
        title="Deliveries",
        endpoints=admin.endpoints(),
        rows=rows[:MOST],
        more=more,
        state=state or "",
        endpoint=endpoint,
    )


@router.get("/accounts")
def accounts(request: Request, visitor: Looking, here: Here) -> Response:
    """Accounts: pace, breaker, pause."""
    given = request.query_params
    return show_accounts(request, here, given.get("name", "").strip()[:200], given.get("after", ""))


def show_accounts(
    request: Request,
    here: Here,
    name: str,
    after: str = "",
    *,
    status: int = 200,
    problems: Mapping[str, Mapping[str, str]] | None = None,
    given: Mapping[str, str] | None = None,
) -> Response:
    """The accounts whose names contain a text; with the errors of an account's form."""
    found = find_accounts(here.ledger, contains=name, after=after, limit=MOST)
    more = f"/accounts?{urlencode({**query({'name': name}), 'after': found.after})}"
    return page(
        request,
        "accounts.html",
        status=status,
        title="Accounts",
        accounts=found.accounts,
        unreadable=found.unreadable,
        name=name,
        searchable=bool(name) or found.matching > MOST,
        more=more if found.after else "",
        first=not after,
        back=f"/accounts?{urlencode(query({'name': name}))}" if name else "/accounts",
        passed=bool(found.matching),
        problems=problems or {},
        given=given or {},
    )


@router.get("/quarantine")
def quarantine(request: Request, visitor: Looking, here: Here) -> Response:
    """Messages that were set aside, without their content."""
    with here.quarantine() as store:
        count, dropped, rows = store.all(MOST)
    return page(
        request, "quarantine.html", title="Quarantine", count=count, dropped=dropped, rows=rows
    )


@router.get("/workers")
def workers(request: Request, visitor: Looking, here: Here) -> Response:
    """Worker processes, those with problems first."""
    g = here.history.look().snapshot
    rows = sorted(g.workers, key=lambda one: (one.condition(g.at) == "well", one.name))
    return page(request, "workers.html", title="Workers", rows=rows, g=g)


@router.get("/audit")
def audited(request: Request, visitor: Looking, here: Here) -> Response:
    """Who did what, the newest first."""
    before = request.query_params.get("before", "")
    if before and not _ENTRY.fullmatch(before):
        raise NotTaken(HttpProblem(422, "wrong-cursor", "before: is not an entry of the audit log"))
    rows = AuditLog(here.ledger).newest(AuditFilter(), before, MOST)
    more = f"/audit?{urlencode({'before': rows[-1].id})}" if len(rows) == MOST else ""
    return page(request, "audit.html", title="Audit", rows=rows, more=more)


@router.get("/runbook/{name}")
def runbook(request: Request, visitor: Looking, name: str) -> Response:
    """What to do about an alert."""
    found = alerts.runbook(name)
    if found is None:
        raise NotTaken(HttpProblem(404, "no-section", "the runbook has no such section"))
    return page(request, "runbook.html", title=name, name=name, text=found)


#: The fields of a search for jobs.
SEARCH = ("state", "account", "reason", "metadata", "age", "sort")


def filter_of(search: Mapping[str, str]) -> JobFilter:
    """The filter of a search. Raises `ValueError`."""
    state, age, sort = search["state"], search["age"], search["sort"]
    if state and state not in set(State) | {"unfinished", "finished"}:
        raise ValueError("state: is not one of the list")
    if age and age not in AGES:
        raise ValueError("age: is not one of the list")
    name, equals, value = search["metadata"].partition("=")
    if search["metadata"] and not (name and equals):
        raise ValueError("metadata: must be a name and a value, for example: shop=7")
    provider, slash, account = search["account"].partition("/")
    if search["account"] and not slash:
        raise ValueError("account: must be a provider and an account: provider/account")
    groups = {"unfinished": tuple(set(State) - FINAL), "finished": tuple(FINAL), "": ()}
    return JobFilter(
        states=groups[state] if state in groups else (State(state),),
        provider=provider,
        account=account,
        reason=search["reason"],
        metadata=((name.strip(), value.strip()),) if name else (),
        since=datetime.now(UTC) - timedelta(seconds=AGES[age]) if age else None,
        sort="oldest" if sort == "oldest" else "newest",
    )


def _accounts(here: Here) -> list[str]:
    """The accounts to choose from; none if there are too many for a list."""
    names = ["/".join(one) for one in accounts_of(here.ledger.ask(announced))]
    return names if len(names) <= CHOICES else []


def waits(row: JobRow) -> str:
    """Why a job waits, or how it ended, as text."""
    if row.state in FINAL:
        found = words.step(row.last)
        return found.reason if not found.who else f"{found.what}: {found.who}"
    return words.why(row.state, row.why)


def _deliveries_of(here: Here, record: Any, event: Any) -> list[Waiting]:
    """The deliveries of its last event that are still stored: delivered ones are not."""
    if event is None:
        return []
    ids = [f"d:{event['id']}:{name}" for name in record.reply_to]
    return here.deliveries.by_ids(ids)
