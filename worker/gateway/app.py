"""The application: its routes, and what is open while it runs. `Edge` is the layer around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from regworker.settings import Settings
from worker import __version__
from worker.gateway import api, pages, problems
from worker.gateway.reload import follow
from worker.gateway.services import Services


def create_app(settings: Settings) -> FastAPI:
    """Make the application. It connects when it starts, and closes its connections when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = Services.open(settings)
        pages.open_pages(app, settings)
        following = asyncio.create_task(follow(app, settings))
        try:
            yield
        finally:
            following.cancel()
            pages.close_pages(app)
            await app.state.services.aclose()

    # FastAPI's own documentation pages would load scripts from elsewhere.
    app = FastAPI(
        title="Registration worker",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would name the scheme of this side of a proxy: a client that follows it would
        # send its request again, and without TLS.
        redirect_slashes=False,
        # FastAPI's own spans and logs contain URLs, error texts and wrong input.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    problems.install(app, {one.path: one.method for one in api.DIRECT})
    app.include_router(api.router)
    app.include_router(pages.router)
    app.state.error_page = pages.error_page
    return app
