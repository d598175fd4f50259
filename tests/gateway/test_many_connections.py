"""A process with as many connections as it may have: it makes room, and says what it refuses."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from tests.chaos.proxy import free_port
from tests.gateway.service import Gateway, start
from tests.integration.jobs import open2b
from tests.open_files import at_most
from worker.cli.local import stack
from worker.gateway import api, connection
from worker.gateway.app import create_app
from worker.gateway.connection import BoundedConnection
from worker.gateway.middleware import Edge

MOST = 20

LARGE = 64 * 1024 * 1024

MIDDLING = 128 * 1024


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """Serve an application in a thread: its URL, and the server."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        app, http=BoundedConnection, log_config=None, timeout_graceful_shutdown=1, **options
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        stack.until(lambda: server.started, "it serves", 60)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


@pytest.fixture
def small(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a service with few connections, and the ledger of the other one."""
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", MOST)
    app = Edge(create_app(gateway.settings), api.DIRECT)
    with serving(app, lifespan="on") as (url, _):
        yield url


def opened(url: str, *parts: bytes) -> socket.socket:
    """A connection on which these bytes were sent."""
    address = urlsplit(url)
    made = socket.create_connection((address.hostname, address.port), 30)
    for part in parts:
        made.sendall(part)
    return made


_HOST = b"host: x\r\n"
_LENGTH = b"content-length: 9\r\ncontent-type: application/x-www-form-urlencoded\r\n\r\n"

#: What a client without a token sends on a connection, and then nothing more.
SILENT = {
    "nothing": b"",
    "half a head": b"GET /v1/health HTTP/1.1\r\n",
    "a whole request": b"GET /v1/health HTTP/1.1\r\n" + _HOST + b"\r\n",
    "half a body": b"POST /sign-in HTTP/1.1\r\n" + _HOST + _LENGTH + b"a",
    "half a batch": b"POST /v1/jobs:batch HTTP/1.1\r\n" + _HOST + _LENGTH + b"a",
}


@pytest.mark.parametrize("what", SILENT)
def test_silent_clients_keep_nobody_out(gateway: Gateway, small: str, what: str) -> None:
    """However many there are, probes and jobs are answered."""
    headers = {"authorization": f"Bearer {gateway.token()}"}
    with ExitStack() as running:
        for _ in range(2 * MOST):
            running.enter_context(closing(opened(small, SILENT[what])))
            assert httpx.get(f"{small}/v1/health", timeout=30).status_code == 200
            answer = httpx.post(f"{small}/v1/jobs", json=open2b(), headers=headers, timeout=30)
            assert answer.status_code == 201


def test_too_many_busy_connections_are_refused_with_a_verdict(gateway: Gateway, small: str) -> None:
    """A job gets a problem that says when to repeat it; probes are answered."""
    token = gateway.token("--rate", "100000")
    headers = {"authorization": f"Bearer {token}"}
    poll = (
        f"GET /v1/events?after=9999999999999-0&wait=60 HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer {token}\r\n\r\n"
    ).encode()
    with ExitStack() as running:
        for _ in range(MOST):
            running.enter_context(closing(opened(small, poll)))

        def full() -> bool:
            found = httpx.post(f"{small}/v1/jobs", json=open2b(), headers=headers, timeout=30)
            answers.append(found)
            return found.status_code == 503

        answers: list[httpx.Response] = []
        stack.until(full, "it is full", 60)
        assert answers[-1].headers["content-type"] == "application/problem+json"
        assert answers[-1].json()["verdict"] == "repeat it"
        assert int(answers[-1].headers["retry-after"]) > 0
        assert answers[-1].headers["connection"] == "close"
        assert httpx.get(f"{small}/v1/health", timeout=30).status_code == 200

    def room() -> bool:
        found = httpx.post(f"{small}/v1/jobs", json=open2b(), headers=headers, timeout=30)
        return found.status_code == 201

    stack.until(room, "there is room again", 60)


def test_the_usual_limit_of_open_files_is_raised(gateway: Gateway, tmp_path: Path) -> None:
    """Otherwise it would accept no more connections long before it has as many as it allows."""
    few = 256
    environment = {**gateway.environment, "REGWORKER_METRICS_PORT": str(free_port())}
    with ExitStack() as running:
        with at_most(few):
            url, *_ = start(running, tmp_path, environment, "--port", "0")
        for _ in range(2 * few):
            one = running.enter_context(closing(opened(url, SILENT["a whole request"])))
            assert one.recv(12) == b"HTTP/1.1 200"


def test_long_polls_end_when_the_service_stops(gateway: Gateway, tmp_path: Path) -> None:
    """With an answer, and at once: an update waits for none of them."""
    token = gateway.token("--may", "enqueue,read")
    headers = {"authorization": f"Bearer {token}"}
    environment = {**gateway.environment, "REGWORKER_METRICS_PORT": str(free_port())}
    with ExitStack() as running:
        url, process, log = start(running, tmp_path, environment, "--port", "0")
        job = httpx.post(f"{url}/v1/jobs", json=open2b(), headers=headers, timeout=30)
        polls = []
        for path in (job.headers["location"], "/v1/events?after=9999999999999-0"):
            mark = "&" if "?" in path else "?"
            asked = f"GET {path}{mark}wait=60 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}"
            polls.append(running.enter_context(closing(opened(url, f"{asked}\r\n\r\n".encode()))))
        # What came before it is being worked on.
        assert httpx.get(f"{url}/v1/health", timeout=30).status_code == 200
        process.terminate()
        for poll in polls:
            assert poll.recv(12) == b"HTTP/1.1 200"
        assert process.wait(30) == 0
        assert b"Cancel" not in log.read_bytes()


def unread(url: str, request: bytes) -> socket.socket:
    """A connection on which many answers are asked for, and none is read."""
    address = urlsplit(url)
    made = socket.socket()
    # The service's buffer grows with what the client's takes.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.connect((address.hostname, address.port))
    made.sendall(request * 800)
    return made


def test_clients_that_read_nothing_keep_nobody_out(gateway: Gateway, small: str) -> None:
    """However many send requests and read no answer, probes and jobs are answered."""
    headers = {"authorization": f"Bearer {gateway.token()}"}
    request = b"GET /static/pages.css HTTP/1.1\r\n" + _HOST + b"\r\n"
    with ExitStack() as running:
        for _ in range(2 * MOST):
            running.enter_context(closing(unread(small, request)))
            assert httpx.get(f"{small}/v1/health", timeout=30).status_code == 200
            answer = httpx.post(f"{small}/v1/jobs", json=open2b(), headers=headers, timeout=30)
            assert answer.status_code == 201


async def large(_scope: Any, _receive: Any, send: Any) -> None:
    """An application whose answer no buffer holds."""
    headers = [(b"content-length", b"%d" % LARGE), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def test_an_answer_that_nobody_reads_keeps_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the connection is ended with the rest of the answer unsent."""
    monkeypatch.setattr(connection, "LINGER", 0.1)
    with (
        serving(large, lifespan="off") as (url, server),
        closing(opened(url, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")) as client,
    ):
        assert client.recv(1) == b"H"
        stack.until(lambda: not server.server_state.connections, "it is ended", 60)


def test_requests_that_follow_each_other_wait_outside() -> None:
    """A client that sends any number of requests, and reads their answers in turn, has few of them
    in the process's memory, and gets all answers."""
    many, waiting = 20_000, []

    async def counting(scope: Any, _receive: Any, send: Any) -> None:
        waiting.append(max(len(one.pipeline) for one in server.server_state.connections))
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    last = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    sent = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * many + last
    with serving(counting, lifespan="off") as (url, server), closing(opened(url)) as client:
        thread = threading.Thread(target=client.sendall, args=(sent,))
        thread.start()
        answers = b""
        while part := client.recv(1024 * 1024):
            answers += part
        thread.join(60)
    assert answers.count(b"HTTP/1.1 200") == many + 1
    assert max(waiting) < 50


async def patient(_scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the body before it answers."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("path", [b"/v1/jobs:batch", b"/v1/jobs%3Abatch?x=y"])
def test_a_batch_may_take_its_time(monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    """Another body, which began later, is ended first; in whatever way the path is written."""
    monkeypatch.setattr(connection, "BODY_TIME", 0.1)
    half = b" HTTP/1.1\r\n" + _HOST + b"content-length: 2\r\n\r\na"
    with (
        serving(patient, lifespan="off") as (url, server),
        closing(opened(url, b"POST " + path + half)) as batch,
    ):
        stack.until(lambda: bool(server.server_state.tasks), "it reads the batch", 60)
        with closing(opened(url, b"POST /v1/jobs" + half)) as other:
            assert other.recv(12) == b"HTTP/1.1 408"
        batch.sendall(b"b")
        assert batch.recv(12) == b"HTTP/1.1 204"


async def middling(_scope: Any, _receive: Any, send: Any) -> None:
    """An application of whose answers no buffer holds many; its connections are kept."""
    headers = [(b"content-length", b"%d" % MIDDLING)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(MIDDLING)})


def test_answers_that_nobody_reads_keep_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a client that sends request after request."""
    monkeypatch.setattr(connection, "UNREAD", 0.1)
    with (
        serving(middling, lifespan="off") as (url, server),
        closing(unread(url, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")) as client,
    ):
        assert client.recv(1) == b"H"
        stack.until(lambda: not server.server_state.connections, "it is ended", 60)


async def kept(_scope: Any, _receive: Any, send: Any) -> None:
    """An application whose answer no buffer holds; its connections are kept."""
    headers = [(b"content-length", b"%d" % LARGE)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


@pytest.mark.parametrize("app", [large, kept])
def test_an_answer_that_is_read_slowly_comes_whole(
    monkeypatch: pytest.MonkeyPatch, app: Any
) -> None:
    """However long it takes, if the client goes on reading."""
    for name in ("UNREAD", "LINGER"):
        monkeypatch.setattr(connection, name, 0.05)
    asked = []
    monkeypatch.setattr(connection._Joined, "reads", lambda *_: asked.append(1) or True)
    with (
        serving(app, lifespan="off", timeout_keep_alive=0.05) as (url, server),
        closing(opened(url, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")) as client,
    ):
        stack.until(lambda: len(asked) > 5, "it was asked whether the client reads", 60)
        assert server.server_state.connections
        got = 0
        while got < LARGE and (part := client.recv(1024 * 1024)):
            got += len(part)
        assert got >= LARGE


def test_an_answer_that_is_read_comes_whole() -> None:
    """A connection that is closed after its answer sends all of it."""
    with serving(large, lifespan="off") as (url, _):
        assert len(httpx.get(url, timeout=60).content) == LARGE
