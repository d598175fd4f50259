"""Signing in and out, and the static files."""

from fastapi import APIRouter, Request, Response

from worker.gateway.pages.permissions import Looking, acting, by_https, fields, local
from worker.gateway.pages.render import FILES, page, static
from worker.gateway.pages.sessions import COOKIE, Sessions
from worker.gateway.problems import HttpProblem, NotTaken
from worker.gateway.services import services
from worker.operations.tokens import Presented

router = APIRouter()


@router.get("/sign-in")
async def ask(request: Request) -> Response:
    """The form."""
    return _form(request, local(request.query_params.get("next", "/")))


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Check the password or the token, and start a session."""
    sessions: Sessions = request.app.state.sessions
    # There is no session yet to which the form could be bound.
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise NotTaken(HttpProblem(403, "another-site", "the form was sent from another site"))
    given = dict(await fields(request))
    to = local(given.get("next", "/"))
    token, name = given.get("token", "").strip(), given.get("name", "").strip()
    if not token and (not name or not name.isprintable()):
        return _form(request, to, 422, "Enter your name: the audit log shows it with your actions.")
    try:
        if token:
            presented = Presented.read(token)
            known = await services(request).gate.token(presented.id) if presented else None
            cookie = sessions.sign_in_by_token(request, token, known)
        else:
            cookie = sessions.sign_in(request, name, given.get("password", ""))
    except NotTaken as error:
        response = _form(request, to, error.problem.status, f"{error.problem.detail}.")
        response.headers.update(error.problem.headers)
        return response
    response = Response(status_code=303, headers={"location": to})
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int(sessions.life),
        httponly=True,
        samesite="lax",
        secure=by_https(request),
    )
    return response


@router.post("/sign-out")
async def sign_out(request: Request, visitor: Looking) -> Response:
    """End the session in this browser."""
    await acting("viewer", confirmed=False)(request, visitor)
    response = Response(status_code=303, headers={"location": "/sign-in"})
    response.delete_cookie(COOKIE)
    return response


@router.get("/static/{name}")
async def file(name: str) -> Response:
    """A static file; changed content gets a new address."""
    if name not in FILES:
        raise NotTaken(HttpProblem(404, "no-file", "there is nothing at this path"))
    kept = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(static(name)[0], headers=kept, media_type=FILES[name])


def _form(request: Request, to: str, status: int = 200, trouble: str = "") -> Response:
    sessions: Sessions = request.app.state.sessions
    if not trouble and request.query_params.get("expired"):
        trouble = "Your session is over. Sign in again; nothing was done."
    return page(
        request,
        "sign_in.html",
        status=status,
        next=to,
        trouble=trouble,
        by_password=sessions.by_password,
    )
