"""Acts on many jobs: a search becomes a plan, the plan is shown, and exactly it is carried out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from worker.gateway.pages import views
from worker.gateway.pages.page_services import BULK_ACTIONS, BulkAction, PageServices
from worker.gateway.pages.permissions import Act, Here, Looking, Wrong, acting
from worker.gateway.pages.render import page
from worker.gateway.problems import HttpProblem, NotTaken
from worker.operations.bulk import Bulk
from worker.operations.plans import Plan, UnknownPlan

router = APIRouter()

#: The most jobs of a plan made here: choosing so many takes some seconds. The command takes more.
MOST = 10_000

#: Jobs that a preview lists; it counts all.
SHOWN = 20

#: Seconds for which one request carries out a plan. A button continues the rest.
TURN = 10.0


Preparing = Annotated[Act, Depends(acting("operator", confirmed=False))]
Confirmed = Annotated[Act, Depends(acting("operator"))]


@router.post("/jobs/plan")
def plan(act: Preparing, here: Here) -> Response:
    """Store the present results of a search as a plan. Nothing is done to them yet."""
    here.need_keys()
    many = BULK_ACTIONS.get(act.fields.get("act", ""))
    if many is None:
        raise Wrong({"act": "is not one of the list"})
    arguments: dict[str, Any] = {}
    if act.fields["act"] == "review.rejected":
        arguments["rejected"] = act.text("message", 200)
    actor = act.visitor.actor(act.text("why"))
    try:
        wanted = views.filter_of({name: act.fields.get(name, "") for name in views.SEARCH})
    except ValueError as error:
        raise NotTaken(HttpProblem(422, "wrong-search", str(error))) from None
    if wanted.states and many.state not in wanted.states:
        what = f"the search finds no job that is {many.state}; nothing was done"
        raise NotTaken(HttpProblem(422, "wrong-search", what))
    with _bulk(here) as bulk:
        found = bulk.jobs(replace(wanted, states=(many.state,)))
        items = list(islice(found, MOST + 1))
        if len(items) > MOST:
            what = (
                f"more than {MOST} jobs fit; nothing was done. Search for fewer, or use the "
                "commands `regworker cancel` and `regworker review`"
            )
            raise NotTaken(HttpProblem(422, "too-many-jobs", what))
        made = bulk.plans.make(act.fields["act"], arguments, items, actor)
    return Response(status_code=303, headers={"location": f"/plans/{made.id}"})


@router.get("/plans/{plan_id}")
def preview(request: Request, visitor: Looking, plan_id: str, here: Here) -> Response:
    """The act of a plan, its jobs, and how many are left."""
    with _bulk(here) as bulk:
        found, many = _known(bulk, plan_id)
        ids = [item.id for _, item in islice(bulk.plans.items(found, left=True), SHOWN)]
    return page(
        request, "plan.html", title="Plan", plan=found, many=many, ids=ids, has_keys=here.has_keys
    )


@router.post("/plans/{plan_id}/carry-out")
def carry_out(plan_id: str, act: Confirmed, here: Here) -> Response:
    """Carry out the previewed plan as far as one request allows; nothing is done twice."""
    here.need_keys()
    counts: dict[str, int] = {}
    end = time.monotonic() + TURN
    with _bulk(here) as bulk:
        found, many = _known(bulk, plan_id)
        for one in bulk.carry_out(found, act.visitor.actor(found.why)):
            counts[one.word] = counts.get(one.word, 0) + 1
            if time.monotonic() > end:
                break
    done = counts.pop(many.done, 0)
    said = f"{done} {many.done}."
    if skipped := sum(counts.values()):
        said += f" {skipped} skipped: they have changed since the preview, or are gone."
    return act.done(f"/plans/{plan_id}", said)


def _known(bulk: Bulk, plan_id: str) -> tuple[Plan, BulkAction]:
    """A plan about jobs. Raises `NotTaken`."""
    try:
        found = bulk.plans.get(plan_id)
    except UnknownPlan:
        what = "no such plan: it is older than a week, or was dropped"
        raise NotTaken(HttpProblem(404, "unknown-plan", what)) from None
    if found.act not in BULK_ACTIONS:
        what = f"this plan is not about jobs: carry it out with regworker plans resume {found.id}"
        raise NotTaken(HttpProblem(404, "unknown-plan", what))
    return found, BULK_ACTIONS[found.act]


@contextmanager
def _bulk(here: PageServices) -> Iterator[Bulk]:
    with Bulk(lambda: here.settings, here.ledger) as bulk:
        yield bulk
