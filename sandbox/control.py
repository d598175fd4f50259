"""The control API over HTTP: reads what the sandbox did, and sets how it behaves."""

import json
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.checks import BadControl
from sandbox.faults import PROVIDERS
from sandbox.request_log import public
from sandbox.state import Sandbox

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(sandbox: Sandbox) -> list[Route]:
    """Route `/sandbox/...`."""

    async def health(_: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "accounts": {name: sandbox.accounts.count(name) for name in PROVIDERS},
                "duplicates": {name: sandbox.accounts.duplicates(name) for name in PROVIDERS},
                "requests": len(sandbox.requests),
            }
        )

    async def list_accounts(request: Request) -> Response:
        asked = request.query_params
        found = sandbox.accounts.find(asked.get("provider"), asked.get("email"))
        return JSONResponse([account.public() for account in found])

    async def reset(_: Request) -> Response:
        sandbox.reset()
        return Response(status_code=204)

    async def list_requests(request: Request) -> Response:
        asked = request.query_params
        found = sandbox.requests.find(asked.get("provider"), asked.get("call"), asked.get("email"))
        return JSONResponse([public(seen) for seen in found])

    async def get_faults(_: Request) -> Response:
        return JSONResponse(sandbox.faults.public())

    async def put_faults(request: Request) -> Response:
        sandbox.faults.configure(await read_json(request))
        return await get_faults(request)

    async def get_settings(_: Request) -> Response:
        return JSONResponse(sandbox.settings())

    async def put_settings(request: Request) -> Response:
        sandbox.configure(await read_json(request))
        return await get_settings(request)

    return [
        Route("/sandbox/health", health),
        Route("/sandbox/accounts", list_accounts, methods=["GET"]),
        Route("/sandbox/accounts", reset, methods=["DELETE"]),
        Route("/sandbox/requests", list_requests),
        Route("/sandbox/faults", get_faults, methods=["GET"]),
        Route("/sandbox/faults", refusing(put_faults), methods=["PUT"]),
        Route("/sandbox/settings", get_settings, methods=["GET"]),
        Route("/sandbox/settings", refusing(put_settings), methods=["PUT"]),
    ]


async def read_json(request: Request) -> object:
    """Read a request's body; `BadControl` if it isn't JSON."""
    try:
        return json.loads(await request.body())
    except ValueError:
        raise BadControl("The body must be JSON.") from None


def refusing(endpoint: Endpoint) -> Endpoint:
    """Answer invalid control input with 400 and a message that says what is wrong."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except BadControl as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return guarded
