"""A person's acts: each is a form that names its consequences, is confirmed, and is audited."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from regworker.domain.errors import (
    InvalidOutcome,
    JobNotCancellable,
    NotCorrectable,
    NotInReview,
    WrongSeal,
)
from worker.gateway.pages import views
from worker.gateway.pages.permissions import Act, Here, Wrong, acting
from worker.gateway.pages.render import page
from worker.gateway.problems import HttpProblem, NotTaken
from worker.intake.quarantine import NotInQuarantine, NotRequeued
from worker.operations.jobs import JobFilter
from worker.operations.questions import Answered

router = APIRouter()

BySupport = Annotated[Act, Depends(acting("support"))]
ByOperator = Annotated[Act, Depends(acting("operator"))]

_WHOLE = re.compile(r"[0-9]{1,18}")


@router.post("/find")
def find(
    request: Request, act: Annotated[Act, Depends(acting("viewer", confirmed=False))], here: Here
) -> Response:
    """Go to the job with an id or a key. By POST, so that no URL and no log contains a key."""
    text = act.text("job")
    found = here.jobs.page(JobFilter(ids=(text,))).rows if _is_id(text) else ()
    found = found or here.jobs.page(JobFilter(key=text)).rows
    if len(found) == 1:
        return Response(status_code=303, headers={"location": f"/jobs/{found[0].id}"})
    return page(
        request,
        "found.html",
        status=200 if found else 404,
        title="Find a job",
        rows=[(one, views.waits(one)) for one in found],
    )


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, act: BySupport, here: Here) -> Response:
    """Cancel a job before any request is sent."""
    here.need_keys()
    with here.acting() as admin:
        try:
            admin.cancel(job_id, act.visitor.actor(act.text("why")))
        except JobNotCancellable as error:
            raise NotTaken(HttpProblem(409, "not-cancellable", str(error))) from None
    return act.done(f"/jobs/{job_id}", "The job is cancelled. No request of it was sent.")


@router.post("/jobs/{job_id}/ask")
def ask(
    request: Request,
    job_id: str,
    act: Annotated[Act, Depends(acting("support", confirmed=False))],
    here: Here,
) -> Response:
    """Look the customer up at the provider now, and show the answer."""
    return views.show_job(request, here, job_id, asked=_asked(here, job_id))


@router.post("/jobs/{job_id}/found")
def found(job_id: str, act: BySupport, here: Here) -> Response:
    """Look up once more, and record the provider's data: nobody has to copy a key."""
    said = _asked(here, job_id)
    if said.what != "ours" or said.data is None:
        what = "the provider's answer has changed; nothing was done"
        raise NotTaken(HttpProblem(409, "not-found", what))
    return _settled(here, act, job_id, "registered", said.data)


@router.post("/jobs/{job_id}/registered")
def registered(request: Request, job_id: str, act: BySupport, here: Here) -> Response:
    """The customer is this job's: with the outcome that a person has found."""
    return _with_outcome(
        request,
        here,
        act,
        job_id,
        lambda outcome: _settled(here, act, job_id, "registered", outcome),
    )


@router.post("/jobs/{job_id}/rejected")
def rejected(request: Request, job_id: str, act: BySupport, here: Here) -> Response:
    """The customer is not this job's: the job ends without a customer."""
    try:
        return _settled(here, act, job_id, "rejected", act.text("message", 200))
    except Wrong as error:
        return _again(request, here, job_id, act, error.problems)


@router.post("/jobs/{job_id}/resend")
def resend(job_id: str, act: BySupport, here: Here) -> Response:
    """Try again: a worker looks up first, and sends only if there is provably no customer."""
    return _settled(here, act, job_id, "resend", None)


@router.post("/jobs/{job_id}/correct/registered")
def correct_to_registered(request: Request, job_id: str, act: ByOperator, here: Here) -> Response:
    """The customer is this job's after all, or has another key."""
    return _with_outcome(
        request, here, act, job_id, lambda outcome: _corrected(here, act, job_id, outcome)
    )


@router.post("/jobs/{job_id}/correct/rejected")
def correct_to_rejected(request: Request, job_id: str, act: ByOperator, here: Here) -> Response:
    """The customer is not this job's after all."""
    try:
        return _corrected(here, act, job_id, act.text("message", 200))
    except Wrong as error:
        return _again(request, here, job_id, act, error.problems)


@router.post("/jobs/{job_id}/export")
def export(job_id: str, act: ByOperator, here: Here) -> Response:
    """Everything that is stored about a job, as a file. It may contain a customer's secrets."""
    actor = act.visitor.actor(act.text("why"))
    found = here.data(lambda data: data.export(job_id, actor))
    named = {"content-disposition": f'attachment; filename="{found["job_id"]}.json"'}
    text = json.dumps(found, indent=2, ensure_ascii=False)
    return Response(text, headers=named, media_type="application/json")


@router.post("/jobs/{job_id}/forget")
def forget(job_id: str, act: ByOperator, here: Here) -> Response:
    """Erase what is stored about a finished job."""
    actor = act.visitor.actor(act.text("why"))
    done = here.data(lambda data: data.forget(job_id, actor))
    said = f"Erased, with {done.entries} published events and {done.deliveries} deliveries."
    if done.undelivered:
        said += (
            f" {done.undelivered} of these had not arrived: their endpoints never get the event."
        )
    return act.done(f"/jobs/{job_id}", said)


@router.post("/deliveries/retry")
def retry(act: ByOperator, here: Here) -> Response:
    """Try pending deliveries now."""
    done = here.deliveries.retry(_chosen(act), act.visitor.actor(act.fields.get("why", "")))
    return act.done("/deliveries", _counted(done, "due", "is tried now"))


@router.post("/deliveries/replay")
def replay(act: ByOperator, here: Here) -> Response:
    """Send dead deliveries again."""
    done = here.deliveries.replay(_chosen(act), act.visitor.actor(act.fields.get("why", "")))
    return act.done("/deliveries", _counted(done, "replayed", "is sent again"))


@router.post("/endpoints/{name}/enable")
def enable(name: str, act: ByOperator, here: Here) -> Response:
    """Enable an endpoint again."""
    here.deliveries.enable(name, act.visitor.actor(act.fields.get("why", "")))
    what = f"The endpoint {name} is enabled. Its dead deliveries stay dead until replayed."
    return act.done("/deliveries", what)


@router.post("/accounts/{provider}/{account}/pause")
def pause(request: Request, provider: str, account: str, act: ByOperator, here: Here) -> Response:
    """Pause an account, until a time or until an operator resumes it."""
    try:
        actor, until = act.visitor.actor(act.text("why")), _until(act.fields.get("until", ""))
    except Wrong as error:
        name = f"{provider}/{account}"
        problems = {name: error.problems}
        return views.show_accounts(
            request, here, name, status=422, problems=problems, given=act.fields
        )
    with here.acting() as admin:
        admin.pause(provider, account, actor, until)
    here.history.forget()
    return act.done(
        "/accounts", f"{provider}/{account} is paused. Its jobs wait and use no attempts."
    )


@router.post("/accounts/{provider}/{account}/resume")
def resume(provider: str, account: str, act: ByOperator, here: Here) -> Response:
    """Resume an account."""
    with here.acting() as admin:
        let_go = admin.resume(provider, account, act.visitor.actor(act.fields.get("why", "")))
    here.history.forget()
    said = "was not paused" if let_go is None else f"is resumed; {let_go} waiting jobs start"
    return act.done("/accounts", f"{provider}/{account} {said}.")


@router.post("/quarantine/drop")
def drop(act: ByOperator, here: Here) -> Response:
    """Drop messages."""
    actor, count = act.visitor.actor(act.fields.get("why", "")), 0
    with here.quarantine() as store:
        for id_ in _chosen(act):
            try:
                store.drop(id_, actor)
            except NotInQuarantine:
                continue
            count += 1
    return act.done("/quarantine", f"{count} dropped.")


@router.post("/quarantine/requeue")
def requeue(act: ByOperator, here: Here) -> Response:
    """Requeue messages to their own queues."""
    here.need_keys()
    actor, count, trouble = act.visitor.actor(act.fields.get("why", "")), 0, ""
    with here.quarantine() as store:
        for id_ in _chosen(act):
            try:
                store.requeue(id_, actor)
            except (NotInQuarantine, NotRequeued) as error:
                trouble = f" Not all: {error}."
                continue
            count += 1
    return act.done("/quarantine", f"{count} put back.{trouble}")


def _with_outcome(
    request: Request,
    here: Here,
    act: Act,
    job_id: str,
    then: Callable[[dict[str, Any]], Response],
) -> Response:
    """Act with the outcome that a person entered; show the form again if it is wrong."""
    try:
        return then(_outcome(here, act, job_id))
    except InvalidOutcome as error:
        problems = {one.field or "outcome": one.message for one in error.problems}
        return _again(request, here, job_id, act, problems)
    except Wrong as error:
        return _again(request, here, job_id, act, error.problems)


def _outcome(here: Here, act: Act, job_id: str) -> dict[str, Any]:
    """The outcome of a form. Raises `Wrong`."""
    fields = here.outcome_fields(here.record(job_id).provider)
    if not fields:
        found = None
        with suppress(ValueError):
            found = json.loads(act.fields.get("outcome", ""))
        if not isinstance(found, dict):
            raise Wrong({"outcome": "is not a JSON object"})
        return found
    given = {one: act.fields.get(f"outcome.{one.name}", "").strip() for one in fields}
    return {
        one.name: int(text) if one.whole_number and _WHOLE.fullmatch(text) else text
        for one, text in given.items()
        if text
    }


def _corrected(here: Here, act: Act, job_id: str, right: dict[str, Any] | str) -> Response:
    here.need_keys()
    actor = act.visitor.actor(act.text("why"))
    try:
        with here.acting() as admin:
            decision = admin.correct(job_id, right, actor)
    except (NotCorrectable, WrongSeal) as error:
        raise NotTaken(HttpProblem(409, "not-correctable", str(error))) from None
    said = f"Corrected to {decision}. Its producer receives the correction now."
    return act.done(f"/jobs/{job_id}", said)


def _settled(here: Here, act: Act, job_id: str, decision: str, what: Any) -> Response:
    here.need_keys()
    actor = act.visitor.actor(act.text("why"))
    # A form without it is of an earlier version's page.
    seen = act.fields.get("seen") or "nothing"
    try:
        with here.acting() as admin:
            if decision == "registered":
                admin.registered(job_id, what, actor, seen=seen)
                said = "Recorded as registered. Its producer receives the outcome now."
            elif decision == "rejected":
                admin.rejected(job_id, str(what), actor, seen=seen)
                said = "Recorded as rejected. Its producer is notified that there is no customer."
            else:
                admin.resend(job_id, actor, seen=seen)
                said = "The job continues: a worker asks the provider first."
    except (NotInReview, WrongSeal) as error:
        raise NotTaken(HttpProblem(409, "not-in-review", str(error))) from None
    return act.done(f"/jobs/{job_id}", said)


def _asked(here: Here, job_id: str) -> Answered:
    here.need_keys()
    record = here.record(job_id)
    if here.questions is None:
        return Answered("unasked", "the accounts' settings of this process are not valid")
    try:
        return here.questions.ask(record)
    except NotInReview as error:
        raise NotTaken(HttpProblem(409, "not-in-review", str(error))) from None


def _again(
    request: Request, here: Here, job_id: str, act: Act, problems: Mapping[str, str]
) -> Response:
    # An entered outcome is a customer's credential: the form does not repeat it.
    kept = {name: act.fields.get(name, "") for name in ("why", "message")}
    return views.show_job(request, here, job_id, status=422, problems=problems, given=kept)


def _chosen(act: Act) -> tuple[str, ...]:
    if not act.chosen:
        raise Wrong({"id": "choose at least one row"})
    return act.chosen


def _counted(done: Iterable[tuple[str, str]], well: str, says: str) -> str:
    said = [what for _, what in done]
    count = said.count(well)
    left = f" {len(said) - count} had changed, or their endpoint is disabled." * (count < len(said))
    return f"{count} of {len(said)} {says}.{left}"


def _until(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Wrong({"until": "must be a date and a time in UTC: 2026-12-24T18:00"}) from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if found <= datetime.now(UTC):
        raise Wrong({"until": "is past: give a future time (UTC)"})
    return found


def _is_id(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4
