"""The headers and log lines of every answer."""

import json

import pytest

from tests.gateway.service import Gateway


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/health", 200), ("GET", "/v1/nothing", 404), ("PUT", "/v1/health", 405)],
)
def test_every_answer_is_guarded(gateway: Gateway, method: str, path: str, status: int) -> None:
    """No answer allows MIME sniffing, frames or caching; an error is a problem with an
    explanation."""
    answer = gateway.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    if status > 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["verdict"] == "not accepted"


def test_a_line_a_request_holds_neither_path_nor_query(gateway: Gateway) -> None:
    """A path or a query may contain a token or a customer's name."""
    gateway.http.get("/v1/health?token=secret-in-query")
    gateway.http.get("/secret-in-path", headers={"authorization": "Bearer secret-in-header"})
    lines = gateway.log.read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert {one["route"] for one in found if one["event"] == "request"} >= {"/v1/health", "-"}
    assert "secret-in" not in gateway.log.read_text("utf-8")
