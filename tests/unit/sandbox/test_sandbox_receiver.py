"""The webhook receiver verifies deliveries, logs them, and fails on request."""

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from sandbox.receiver import Receiver
from sandbox.server import ReceiverServer, SandboxServer

SECRETS = ["whsec_" + "b2xkIHNlY3JldA==", "whsec_" + "bmV3IHNlY3JldA=="]
EVENT = {
    "specversion": "1.0",
    "id": "event-1",
    "type": "registration.registered",
    "subject": "job-1",
    "data": {"customer_key": "hidden"},
}


@pytest.fixture(scope="module")
def running() -> Iterator[ReceiverServer]:
    """One receiver for this file."""
    with ReceiverServer(SECRETS) as server:
        yield server


@pytest.fixture
def server(running: ReceiverServer) -> ReceiverServer:
    """The receiver, freshly reset."""
    running.receiver.reset()
    return running


@pytest.fixture(scope="module")
def http(running: ReceiverServer) -> Iterator[httpx.Client]:
    """A client of the receiver."""
    with httpx.Client(base_url=running.url) as client:
        yield client


def deliver(http: httpx.Client, secret: str = SECRETS[0], **headers: str) -> httpx.Response:
    """Deliver the event with a signature; `headers` replace the signed ones."""
    body = json.dumps(EVENT)
    now = datetime.now(UTC)
    signed = {
        "webhook-id": "msg-1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg-1", now, body),
    }
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post("/hooks/crm", content=body, headers=signed | given)


def logged(http: httpx.Client) -> list[dict[str, Any]]:
    """The log, over HTTP."""
    log: list[dict[str, Any]] = http.get("/hooks-log").json()
    return log


@pytest.mark.parametrize("secret", SECRETS)
def test_a_signed_delivery_is_accepted(
    server: ReceiverServer, http: httpx.Client, secret: str
) -> None:
    """A signature with either secret is accepted, and the log omits the content of the delivery."""
    assert deliver(http, secret).status_code == 204
    [delivery] = logged(http)
    assert abs(delivery.pop("time") - time.time()) < 5
    assert delivery == {
        "name": "crm",
        "webhook_id": "msg-1",
        "event": {"id": "event-1", "type": "registration.registered", "subject": "job-1"},
        "verified": True,
        "status": 204,
        "body_sha256": hashlib.sha256(json.dumps(EVENT).encode()).hexdigest(),
    }
    assert server.receiver.log[0].body == json.dumps(EVENT).encode()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "whsec_b3RoZXIgc2VjcmV0"},
        {"webhook_id": "msg-2"},
        {"webhook_timestamp": "1000000000"},
        {"webhook_timestamp": "soon"},
        {"webhook_signature": "v1,"},
        {"webhook_signature": "nonsense"},
        {"webhook_signature": ""},
    ],
)
def test_a_wrong_signature_gets_401(http: httpx.Client, wrong: dict[str, str]) -> None:
    """A delivery without a current signature by a known secret is refused, and logged as such."""
    assert deliver(http, **wrong).status_code == 401
    assert [(item["verified"], item["status"]) for item in logged(http)] == [(False, 401)]


def test_a_script_lets_deliveries_fail(server: ReceiverServer, http: httpx.Client) -> None:
    """The next deliveries get the scripted answers; later ones succeed."""
    failures = [{"status": 503, "times": 2, "retry_after": 7}, {"status": 410}]
    server.receiver.behave({"script": failures})
    answers = [deliver(http) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [503, 503, 410, 204]
    assert answers[0].headers["retry-after"] == "7"
    assert [item["status"] for item in logged(http)] == [503, 503, 410, 204]


def test_a_delivery_may_be_dropped(server: ReceiverServer, http: httpx.Client) -> None:
    """A scripted status of 0 closes the connection after the delivery has arrived."""
    server.receiver.behave({"script": [{"status": 0}]})
    with pytest.raises(httpx.RemoteProtocolError):
        deliver(http)
    assert [(item["verified"], item["status"]) for item in logged(http)] == [(True, 0)]


def test_a_rate_lets_deliveries_fail(server: ReceiverServer, http: httpx.Client) -> None:
    """At a rate of 1 every delivery fails with the requested status."""
    server.receiver.behave({"rate": 1, "rate_status": 500})
    assert [deliver(http).status_code for _ in range(2)] == [500, 500]


def test_a_delay_makes_it_slow(server: ReceiverServer, http: httpx.Client) -> None:
    """With a delay each delivery is answered that much later."""
    server.receiver.behave({"delay": 0.1})
    started = time.monotonic()
    assert deliver(http).status_code == 204
    assert time.monotonic() - started >= 0.1


@pytest.mark.usefixtures("server")
def test_behaviour_is_put_and_got(http: httpx.Client) -> None:
    """The remaining behaviour is returned in the form in which it is set."""
    wanted = {
        "script": [{"status": 503, "times": 2, "retry_after": None}],
        "rate": 0.5,
        "rate_status": 500,
        "seed": 3,
        "delay": 0.0,
    }
    assert http.put("/hooks-behaviour", json=wanted).json() == wanted
    assert http.get("/hooks-behaviour").json() == wanted


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ({"rates": 1}, "behaviour.rates is unknown; behaviour takes delay, rate, rate_status,"),
        ({"script": {}}, "behaviour.script must be a list."),
        ({"script": [{}]}, "behaviour.script[0].status must be a whole number of at least 200."),
        (
            {"script": [{"status": 600}]},
            "behaviour.script[0].status must be an HTTP status, or 0 for no answer.",
        ),
        ({"rate": 2}, "behaviour.rate must be a probability from 0 to 1."),
        ({"delay": "1"}, "behaviour.delay must be a number of seconds, 0 or more."),
    ],
)
def test_wrong_behaviour_is_refused_in_a_sentence(
    http: httpx.Client, behaviour: object, sentence: str
) -> None:
    """The answer is 400, and names the field and its valid values."""
    answer = http.put("/hooks-behaviour", json=behaviour)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(sentence)


@pytest.mark.usefixtures("server")
def test_the_log_is_cleared(http: httpx.Client) -> None:
    """Deleting the log resets deliveries and behaviour."""
    deliver(http)
    http.put("/hooks-behaviour", json={"rate": 1})
    http.delete("/hooks-log")
    assert logged(http) == []
    assert http.get("/hooks-behaviour").json()["rate"] == 0


def test_one_process_serves_providers_and_webhooks() -> None:
    """The receiver can run in the providers' process."""
    with (
        SandboxServer(receiver=Receiver(SECRETS)) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        assert deliver(http).status_code == 204
        assert http.get("/sandbox/health").json()["status"] == "ok"


def test_an_event_that_is_no_json_is_still_logged(http: httpx.Client) -> None:
    """An unreadable body is refused, and logged without an event."""
    http.delete("/hooks-log")
    assert http.post("/hooks/crm", content=b"\xff").status_code == 401
    assert logged(http)[0]["event"] == {"id": None, "type": None, "subject": None}
