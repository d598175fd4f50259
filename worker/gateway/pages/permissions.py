"""The checks in front of each page: who the visitor is, their role, and whether a form is
theirs."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl, quote

from fastapi import Depends, HTTPException, Request, Response

from regworker.domain.errors import Problem
from worker.gateway.auth import Role
from worker.gateway.pages.page_services import PageServices, page_services
from worker.gateway.pages.sessions import COOKIE, Visitor
from worker.gateway.problems import HttpProblem, NotTaken
from worker.gateway.services import services

#: Characters of a path and its query that a header can contain.
_AS_IT_IS = "/?&=%:+,;@!$'()*~"

#: Limits of one form.
MOST_BYTES, MOST_FIELDS = 64 * 1024, 300


async def _visitor(request: Request) -> Visitor:
    sessions = request.app.state.sessions
    found: Visitor | None = sessions.visitor(request)
    if found is not None and found.token:
        found = sessions.with_token(found, await services(request).gate.token(found.token))
    if found is None:
        here = request.url.path if request.method == "GET" else "/"
        expired = "&expired=1" if request.cookies.get(COOKIE) else ""
        where = f"/sign-in?next={quote(here, safe='')}{expired}"
        raise HTTPException(303, headers={"location": where})
    request.state.visitor = found
    request.state.principal = found.principal
    return found


Looking = Annotated[Visitor, Depends(_visitor)]
Here = Annotated[PageServices, Depends(page_services)]


@dataclass(frozen=True, slots=True)
class Act:
    """A form that was checked: it belongs to the person, and the person has confirmed it."""

    request: Request
    visitor: Visitor
    fields: Mapping[str, str]
    chosen: tuple[str, ...]
    """The values of `id`, of which a form may have several."""

    def text(self, name: str, most: int = 500) -> str:
        """A required field. Raises `NotTaken`."""
        found = self.fields.get(name, "").strip()
        if not found:
            raise Wrong({name: "is required"})
        if len(found) > most:
            raise Wrong({name: f"has at most {most} characters"})
        return found

    def done(self, where: str, said: str) -> Response:
        """Redirect to a page that reports what was done."""
        response = Response(status_code=303, headers={"location": where})
        text = self.request.app.state.sessions.said(said)
        response.set_cookie(
            "regworker_said",
            text,
            max_age=60,
            httponly=True,
            samesite="strict",
            secure=by_https(self.request),
        )
        return response


class Wrong(NotTaken):
    """Raised for an invalid field of a form; nothing was done."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = problems
        errors = [Problem("invalid", name, what) for name, what in problems.items()]
        what = "nothing was done: correct the fields below"
        super().__init__(HttpProblem(422, "wrong-form", what, errors))


async def fields(request: Request) -> list[tuple[str, str]]:
    """A form's fields. Raises `NotTaken` if it is no form, or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise NotTaken(HttpProblem(415, "no-form", "this accepts only a form of these pages"))
    taken = bytearray()
    async for part in request.stream():
        taken += part
        if len(taken) > MOST_BYTES:
            raise NotTaken(HttpProblem(413, "too-large", "the form is too large; nothing was done"))
    try:
        text = taken.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise NotTaken(HttpProblem(422, "no-form", "the form cannot be read")) from None


def acting(role: Role, *, confirmed: bool = True) -> Callable[..., Awaitable[Act]]:
    """The dependency of an act that a role may do. `confirmed`: the box must be ticked."""

    async def dependency(request: Request, visitor: Looking) -> Act:
        if not visitor.may(role):
            what = f"this needs the role {role}; yours is {visitor.role}"
            raise NotTaken(HttpProblem(403, "not-allowed", what))
        pairs = await fields(request)
        given = dict(pairs)
        sessions = request.app.state.sessions
        sessions.check_form(request, visitor, given.pop("form_token", ""))
        if confirmed and given.pop("confirm", "") != "yes":
            raise Wrong({"confirm": "tick the box to confirm that you have read what will happen"})
        chosen = tuple(dict.fromkeys(value for name, value in pairs if name == "id"))
        return Act(request, visitor, given, chosen)

    return dependency


def local(path: str) -> str:
    """A path of this service to redirect to; `/` instead of anything that leads elsewhere."""
    fits = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    # A header takes only some characters as they are.
    return quote(path, safe=_AS_IT_IS) if fits and "\\" not in path and len(path) < 500 else "/"


def by_https(request: Request) -> bool:
    """Whether the browser used HTTPS, directly or through a proxy that says so."""
    # Forging it only makes the forger's own browser drop the cookie.
    forwarded = request.headers.get("x-forwarded-proto", "").lower()
    return request.url.scheme == "https" or forwarded == "https"
