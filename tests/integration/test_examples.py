"""The programs in `examples/` work unchanged with live workers, in each language."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from regworker.domain.job import job_id
from regworker.ledger.transitions import JOBS
from tests.integration.examples import (
    EXAMPLES,
    Example,
    node_examples,
    python,
    run,
    running,
)
from tests.integration.installation import (
    KEYS,
    PATIENCE,
    SECRET,
    Installation,
    installation,
)
from tests.rabbitmq import borrowed
from worker.broker.wakeups import REQUESTS
from worker.cli.local import stack

OLD_SECRET = "whsec_YW4gb2xkIHNlY3JldCwgb2YgdGhlIHRlc3RzIG9ubHk="
QUEUE = "crm.results"

_numbers = count(1)

Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Command:
    """The command that runs an example in JavaScript."""
    made = node_examples(request.config)
    return lambda name, *arguments: ["node", str(made / name), *arguments]


@dataclass
class Live:
    """A running installation whose endpoints are the examples' receivers."""

    here: Installation
    folder: Path
    receivers: dict[str, Example]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the examples."""
        url = self.here.valkey.connection_url
        return {"REGWORKER_REDIS_URL": url, "BROKER_URL": url, "SEALING_KEY": KEYS}

    def hand_in(self, command: list[str], key: str, **environment: str) -> str:
        """Run a producer; return the e-mail of its job."""
        email = f"{key}@example.com"
        folder = self.folder / key
        run([*command, key, email], {**self.environment, **environment}, folder)
        return email

    def registered(self, key: str, email: str) -> None:
        """Wait until a job has exactly one customer."""
        id_ = job_id("open2b", "default", key)
        stack.until(lambda: bool(self.here.events(id_)), f"an outcome of {key}", PATIENCE)
        assert self.here.producer.status(id_).state == "registered"
        assert self.here.made(email) == 1


@pytest.fixture(scope="module")
def live(node: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One installation for everything without RabbitMQ; the webhook receivers start first."""
    folder = tmp_path_factory.mktemp("examples")
    # The secrets are being rotated: workers sign with the new secret only.
    environment = {"WEBHOOK_SECRETS": f"{OLD_SECRET},{SECRET}", "PORT": "0"}
    with ExitStack() as entered:
        receivers, endpoints = {}, {}
        for name, command in {"python": python("webhook.py"), "node": node("webhook.mjs")}.items():
            receiver = entered.enter_context(running(command, environment, folder / name))
            url = receiver.wait_for("listening on ").split("listening on ")[1]
            receivers[name] = receiver
            for field, value in {
                "kind": "webhook",
                "url": url,
                "secrets": SECRET,
                "allow_http": "true",
                "allow_private": "true",
            }.items():
                endpoints[f"endpoints__{name}__{field}"] = value
        here = entered.enter_context(
            installation(folder / "installation", broker_url="", **endpoints)
        )
        yield Live(here, folder, receivers)


@pytest.fixture
def key() -> str:
    """A unique key for a job."""
    return f"example-{next(_numbers)}"


# ── entry points ──────────────────────────────────────────────────────────────────────────────────

PRODUCERS = ["python produce.py", "node produce.mjs", "node seal.mjs", "node celery.mjs"]


def producer(node: Command, name: str) -> list[str]:
    """The command that runs a producer."""
    language, file = name.split()
    return python(file) if language == "python" else node(file)


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_job_that_an_example_hands_in_twice_makes_one_customer(
    live: Live, node: Command, key: str, name: str
) -> None:
    """Through the job stream, plain or sealed, and as a Celery task."""
    command = producer(node, name)
    email = live.hand_in(command, key)
    live.hand_in(command, key)
    live.registered(key, email)
    redis: Any = live.here.ledger.redis
    stack.until(lambda: redis.xlen(JOBS) == redis.llen(REQUESTS) == 0, "both taken", PATIENCE)
    assert live.here.made(email) == 1
    assert len(live.here.events(job_id("open2b", "default", key))) == 1


def test_a_sealed_job_cannot_be_read_on_its_way(node: Command, key: str, tmp_path: Path) -> None:
    """The stream contains a JWE, neither e-mail nor password."""
    with stack.valkey(tmp_path / "valkey") as valkey:
        environment = {"REGWORKER_REDIS_URL": valkey.connection_url, "SEALING_KEY": KEYS}
        run([*node("seal.mjs"), key, "holmes@example.com"], environment, tmp_path)
        [(_, fields)] = valkey.client().xrange(JOBS)
    job = json.loads(fields[b"job"])
    assert job["registration"].startswith("ey")
    assert b"holmes" not in fields[b"job"]


# ── streams ───────────────────────────────────────────────────────────────────────────────────

CONSUMERS = ["python consume.py", "node consume.mjs"]


@pytest.mark.parametrize("name", CONSUMERS)
def test_a_consumer_is_told_of_each_outcome_once(
    live: Live, node: Command, key: str, name: str
) -> None:
    """Also the events of a dead consumer; an event that arrives twice is printed once."""
    redis: Any = live.here.ledger.redis
    stream, group = "{reg}:results", f"group-{key}"
    redis.xgroup_create(stream, group, "$", mkstream=True)
    live.registered(key, live.hand_in(python("produce.py"), key))
    # A consumer got this event and died a while ago.
    [(_, [(entry, fields)])] = _page(redis.xreadgroup(group, "dead", {stream: ">"}))
    redis.xclaim(stream, group, "dead", 0, [entry], idle=3_600_000)
    command = [*producer(node, name), group, "alive"]
    with running(command, live.environment, live.folder / group) as consumer:
        line = consumer.wait_for(key)
        assert line == f"registration.registered {key} customer_key"
        redis.xadd(stream, fields)  # the second arrival
        refused = f"{key}-refused"
        redis.xadd(JOBS, {"job": json.dumps({"provider": "open2b", "idempotency_key": refused})})
        assert consumer.wait_for(refused).startswith("registration.rejected")
        stack.until(lambda: not _unread(redis, stream, group), "all acknowledged", PATIENCE)
        lines = [line for line in consumer.said().splitlines() if f" {key} " in line]
        assert len(lines) == 1
    customer_key = live.here.sandbox.accounts.find(email=f"{key}@example.com")[0].customer_key
    assert customer_key not in consumer.said()


def _page(answer: Any) -> Any:
    return list(answer.items()) if isinstance(answer, dict) else answer


def _unread(redis: Any, stream: str, group: str) -> int:
    [info] = [one for one in redis.xinfo_groups(stream) if one["name"] == group.encode()]
    return int(info["pending"]) + int(info["lag"])


# ── webhooks ──────────────────────────────────────────────────────────────────────────────────

RECEIVERS = ["python", "node"]


@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_verifies_what_workers_sign(live: Live, key: str, name: str) -> None:
    """With either of its secrets."""
    email = live.hand_in(python("produce.py"), key, REPLY_TO=f"results,{name}")
    line = live.receivers[name].wait_for(key)
    assert line == f"verified registration.registered {key}"
    assert live.here.made(email) == 1


@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_refuses_what_is_not_signed_well(live: Live, key: str, name: str) -> None:
    """Another secret, a changed body, an old time, missing or invalid headers."""
    from datetime import UTC, datetime, timedelta

    from standardwebhooks import Webhook

    url = live.receivers[name].wait_for("listening on ").split("listening on ")[1]
    now, body = datetime.now(UTC), json.dumps({"type": "t", "subject": key, "data": {}})

    def answer(secret: str, at: datetime, sent: str = body, id_: str = key) -> int:
        signature = Webhook(secret).sign(id_, at, body)
        headers = {
            "webhook-id": id_,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signature,
        }
        return _posted(url, sent, headers)

    stranger = "whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgd2hvIGtub3dz"
    assert answer(stranger, now) == 401
    assert answer(SECRET, now, body.replace("data", "date")) == 401
    assert answer(SECRET, now - timedelta(minutes=6)) == 401
    assert _posted(url, body, {}) == 401
    assert _posted(url, body, {"webhook-id": "x", "webhook-timestamp": "x"}) == 401
    assert key not in live.receivers[name].said()
    assert answer(OLD_SECRET, now) == 204
    assert answer(SECRET, now) == 204
    assert live.receivers[name].said().count(key) == 1  # the same id: a repeat


def _posted(url: str, body: str, headers: dict[str, str]) -> int:
    request = urllib.request.Request(url, body.encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


# ── RabbitMQ ──────────────────────────────────────────────────────────────────────────────────

AMQP_CONSUMERS = ["python queue_consumer.py", "node queue_consumer.mjs"]


def test_jobs_and_results_pass_over_rabbitmq(node: Command, key: str, tmp_path: Path) -> None:
    """The job is a Celery task by celery-node, the results arrive on queues by plain AMQP; each
    once."""
    queues = {f"{QUEUE}.{n}": name for n, name in enumerate(AMQP_CONSUMERS)}
    endpoints = {}
    for n, queue in enumerate(queues):
        endpoints[f"endpoints__queue{n}__kind"] = "queue"
        endpoints[f"endpoints__queue{n}__queue"] = queue
    with ExitStack() as entered:
        url = entered.enter_context(borrowed())
        entered.callback(_delete, url, [*queues, REQUESTS])
        # The client is first, and declares the queue in its own way.
        environment = {"BROKER_URL": url, "AMQP_URL": url}
        by_celery = f"{key}@example.com"
        run([*node("celery.mjs"), key, by_celery], environment, tmp_path)
        here = entered.enter_context(
            installation(tmp_path / "installation", broker_url=url, **endpoints)
        )
        consumers = [
            entered.enter_context(
                running([*producer(node, name), queue], environment, tmp_path / queue)
            )
            for queue, name in queues.items()
        ]
        live = Live(here, tmp_path, {})
        live.registered(key, by_celery)
        other = f"{key}-stream"
        email = live.hand_in(python("produce.py"), other, REPLY_TO="queue0,queue1")
        for consumer in consumers:
            assert consumer.wait_for(other) == f"registration.registered {other}"
        assert here.made(email) == 1


def _delete(url: str, queues: list[str]) -> None:
    with Connection(url) as connection:
        for queue in queues:
            connection.default_channel.queue_delete(queue)


# ── the files ─────────────────────────────────────────────────────────────────────────────────


def test_every_example_is_run_here() -> None:
    """No example is left untested."""
    files = [*EXAMPLES.glob("python/*.py"), *EXAMPLES.glob("node/*.mjs")]
    tried = {name.split()[1] for name in [*PRODUCERS, *CONSUMERS, *AMQP_CONSUMERS]}
    assert {file.name for file in files} == tried | {"webhook.py", "webhook.mjs"}


def test_the_lock_names_no_registry() -> None:
    """Packages come from any registry, and their hashes make sure that they are the same."""
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text("utf-8"))
    packages = [one for path, one in lock["packages"].items() if path]
    assert packages
    assert all("resolved" not in one and one["integrity"] for one in packages)


def test_an_example_says_how_it_is_run() -> None:
    """The first lines contain the command that runs it."""
    for file in [*EXAMPLES.glob("python/*.py"), *EXAMPLES.glob("node/*.mjs")]:
        head = file.read_text("utf-8")[:700]
        assert f" {file.name}" in head, file.name
        assert "_URL=" in head or "WEBHOOK_SECRETS=" in head, file.name


@pytest.fixture
def unconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node.js programs fail when they connect: a faulty one must not find a real server."""
    alone = tmp_path / "alone.cjs"
    alone.write_text(
        "require('net').Socket.prototype.connect = () => { throw new Error('it connects'); };"
    )
    monkeypatch.setenv("NODE_OPTIONS", f"--require {alone}")


SETTINGS = ("REGWORKER_REDIS_URL", "BROKER_URL", "AMQP_URL", "SEALING_KEY", "WEBHOOK_SECRETS")


@pytest.mark.usefixtures("unconnected")
def test_an_example_without_its_settings_says_so(
    node: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not look for a server: one on a client's default port may be somebody else's."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for file in sorted([*EXAMPLES.glob("python/*.py"), *EXAMPLES.glob("node/*.mjs")]):
        language = "python" if file.suffix == ".py" else "node"
        arguments = ["a"] if "queue" in file.name else ["a", "b"]
        done = _failed([*producer(node, f"{language} {file.name}"), *arguments], tmp_path)
        assert any(name in done for name in SETTINGS), file.name


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize("name", [*PRODUCERS, *CONSUMERS, *AMQP_CONSUMERS])
@pytest.mark.parametrize("argument", [(), ("",)])
def test_an_example_without_its_arguments_says_how_to_run_it(
    node: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    argument: tuple[str, ...],
) -> None:
    """It creates no consumer group without a name and sends no job without a key."""
    for setting in SETTINGS:
        monkeypatch.setenv(setting, KEYS if setting == "SEALING_KEY" else "redis://127.0.0.1:1/0")
    said = _failed([*producer(node, name), *argument], tmp_path)
    assert f"usage: {name} " in said


def _failed(command: list[str], folder: Path) -> str:
    """Run an example that must fail; return its stderr."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=4 * PATIENCE, check=False
    )
    assert done.returncode == 1, command
    return done.stderr
