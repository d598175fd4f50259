"""`POST /v1/jobs`, as plain ASGI: FastAPI's layers around it cost more than the job itself."""

import json

from starlette.exceptions import HTTPException

from regworker.domain.errors import RegistrationWorkerError
from regworker.domain.receipt import Receipt, Refused
from worker.gateway.api import answers
from worker.gateway.api.admission import admit
from worker.gateway.api.bodies import whole
from worker.gateway.api.parsing import keyed, parsed
from worker.gateway.middleware import Direct, Receive, Scope, Send
from worker.gateway.problems import NotTaken, problem_of
from worker.gateway.services import Services


async def enqueue(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept one job: 201 if it is new, 200 if it is a repeat."""
    here: Services = scope["app"].state.services
    try:
        result = await _accepted(here, scope, receive)
    except (NotTaken, RegistrationWorkerError, HTTPException) as error:
        await problem_of(error).response()(scope, receive, send)
        return
    body = json.dumps(answers.receipt(result)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"location", b"/v1/jobs/%b" % result.job_id.encode()),
    ]
    status = 200 if result.repeat else 201
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _accepted(here: Services, scope: Scope, receive: Receive) -> Receipt:
    principal = await admit(here, scope, "enqueue")
    given = keyed(scope, parsed(await whole(here, principal, scope, receive)))
    await here.gate.recheck(principal)
    answers.check_account(principal, given.get("provider"), given.get("account", "default"))
    trace = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
    result = await here.way_in.accept(given, principal.name, trace.decode("latin-1"))
    if isinstance(result, Refused):
        raise answers.refused(principal, result)
    return result


ROUTE = Direct("POST", "/v1/jobs", enqueue)
