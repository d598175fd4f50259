"""Every route of the application: a fault of ours and a path that is nearly right get an answer
as documented."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import httpx
import pytest
import structlog

from regworker.settings import Settings
from tests.gateway.service import KEYS, Gateway
from worker.gateway import api
from worker.gateway.app import create_app
from worker.gateway.middleware import Edge
from worker.monitoring.metrics import Tally

SECRET = "I9bV2crS"


class Broken:
    """Services of which each use fails, with a secret in the exception's text."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ArithmeticError(f"{name}: password={SECRET}")


class Counted(Broken):
    """Only counting requests works."""

    requests = Tally("requests", "", ("route", "status"))


def _application() -> Any:
    return create_app(Settings.load(redis_url="redis://127.0.0.1:1", sealing_keys=KEYS))


def _routes(router: Any) -> Iterator[tuple[str, str]]:
    """Each method and path. Newer versions of FastAPI nest the routes of included routers."""
    for one in router.routes:
        inner = getattr(one, "original_router", None)
        if inner is not None:
            yield from _routes(inner)
            continue
        for method in one.methods:
            yield method, re.sub(r"{[^}]*}", "1", one.path)


ROUTES = sorted({*_routes(_application()), *((one.method, one.path) for one in api.DIRECT)})

#: Those that need a token.
GUARDED = [one for one in ROUTES if one[1].startswith("/v1") and one[1] != "/v1/health"]


def test_no_route_is_left_out() -> None:
    """The list has routes of the API and of the pages, and the direct one."""
    assert {("POST", "/v1/jobs"), ("GET", "/v1/events"), ("POST", "/sign-in")} < set(ROUTES)
    assert len(ROUTES) > 40


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_fault_of_ours_says_repeat_it(method: str, path: str) -> None:
    """The answer is a problem with its verdict, or a page for people. The fault is logged once,
    without the text of its exception."""
    app = _application()
    app.state.services = Counted()
    app.state.page_services = app.state.sessions = Broken()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Edge(app, api.DIRECT))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path)

    with structlog.testing.capture_logs() as lines:
        answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert SECRET not in answer.text
    if path.startswith("/v1"):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["verdict"] == "repeat it"
        assert int(answer.headers["retry-after"]) > 0
    else:
        assert answer.headers["content-type"].startswith("text/html")
        assert "failed unexpectedly" in answer.text
    assert [one["event"] for one in lines if one["log_level"] == "error"] == ["a request failed"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_path_that_is_nearly_right_is_no_path(gateway: Gateway, method: str, path: str) -> None:
    """With a slash more, at its end or within, the answer is 404; no redirect names another
    place."""
    for wrong in (f"{path}/", f"/{path}", f"{path}//", path.replace("/v1/", "/v1//")):
        if wrong in {path, "//"}:
            continue
        answer = gateway.http.request(method, f"{gateway.url}{wrong}")
        assert answer.status_code in {404, 405}, wrong
        assert "location" not in answer.headers
        if wrong.startswith("/v1"):
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["verdict"] == "not accepted"


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_a_method_that_a_path_has_not_is_refused_with_those_that_it_has(
    gateway: Gateway, path: str
) -> None:
    """Also if the path is that of several routes, or a name in another's place."""
    answer = gateway.http.request("PATCH", f"{gateway.url}{path}")
    assert answer.status_code == 405
    wanted = {method for method, other in ROUTES if other == path}
    found = set(answer.headers["allow"].split(", "))
    assert wanted <= found
    for method in found:
        assert gateway.http.request(method, f"{gateway.url}{path}").status_code != 405


#: Requests that are wrong in their form, the answer to a good token, and what it names.
MALFORMED: dict[str, tuple[str, dict[str, str], int, str]] = {
    "a parameter twice": ("?wait=0&wait=1", {}, 422, "wait"),
    "twice, once without a value": ("?key=&key=x", {}, 422, "key"),
    "an encoded body": ("", {"content-encoding": "gzip"}, 415, "Content-Encoding"),
}

#: With the routes that have parameters, or bodies.
MALFORMED_REQUESTS = [
    (what, method, path)
    for what, (query, *_) in MALFORMED.items()
    for method, path in GUARDED
    if method == "GET" or not query
]


@pytest.fixture(scope="module")
def desk(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with gateway.client("--may", "enqueue,read,operate", "--rate", "10000") as client:
        yield client


@pytest.mark.parametrize(("what", "method", "path"), MALFORMED_REQUESTS)
def test_a_malformed_request_is_refused_after_its_token_was_checked(
    gateway: Gateway, desk: httpx.Client, what: str, method: str, path: str
) -> None:
    """Without a token it counts as a failed attempt, like any other."""
    query, headers, status, named = MALFORMED[what]
    refused = gateway.http.request(method, path + query, headers=headers)
    assert refused.status_code in {401, 429}
    answer = desk.request(method, path + query, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["verdict"] == "not accepted"
    assert named in answer.text


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/jobs/1", "/v1/jobs?wait=x", "/v1/events?after=x"]
)
def test_a_wrong_parameter_without_a_token_is_a_failed_attempt(
    gateway: Gateway, desk: httpx.Client, path: str
) -> None:
    """Nobody learns what is wrong with it, and attempts are limited."""
    assert {gateway.http.get(path).status_code for _ in range(3)} <= {401, 429}
    assert desk.get(path).status_code == 422
