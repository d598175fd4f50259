"""Pages for people, at /: search jobs, see why they wait, and act."""

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.gateway.pages import actions, bulk_actions, sign_in, views
from worker.gateway.pages.page_services import PageServices
from worker.gateway.pages.render import page
from worker.gateway.pages.sessions import Sessions
from worker.gateway.problems import HttpProblem


async def _prepared(request: Request) -> None:
    await request.app.state.sessions.prepare()


router = APIRouter(include_in_schema=False, dependencies=[Depends(_prepared)])
for _part in (sign_in, views, bulk_actions, actions):
    router.include_router(_part.router)


def open_pages(app: FastAPI, settings: Settings) -> None:
    """Open what the pages need, before the application starts."""
    app.state.page_services = PageServices(settings)
    app.state.sessions = Sessions(settings, app.state.page_services.ledger)


def use(app: FastAPI, settings: Settings, keyring: Keyring) -> None:
    """From now on, use other keys, which the settings hold too."""
    app.state.page_services.use(settings, keyring)
    app.state.sessions.use(settings)


def close_pages(app: FastAPI) -> None:
    """Close it."""
    app.state.page_services.close()


def error_page(request: Request, problem: HttpProblem) -> Response:
    """An error outside of /v1, as a page for people."""
    if 300 <= problem.status < 400:
        return Response(status_code=problem.status, headers=dict(problem.headers))
    response = page(request, "problem.html", status=problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response
