"""Export and erasure on request in a real installation; its keys and files are searched
afterwards."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from regworker.domain.errors import JobForgotten, UnknownJob
from regworker.domain.job import job_id
from regworker.ledger import SyncLedger
from regworker.ledger.admin import PLAIN, Limits, announce
from regworker.ledger.transitions import job_key
from regworker.producer import Producer
from tests.gateway.service import start
from tests.integration.canary import mark, search
from tests.integration.installation import KEYS, PATIENCE, SECRET, Installation, installation
from tests.integration.jobs import open2b, skypostal
from tests.integration.outbox import Cli
from tests.integration.test_roles import url
from worker.cli.local import stack
from worker.operations.roles import ROLES

VAULT = "{reg}:vault"

BY = ("--by", "ann", "--why", "request 4711")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A plain and a sealed stream, and a webhook; each role has a user of its own at the ledger."""
    more: dict[str, Any] = {
        "endpoints__vault__kind": "stream",
        "endpoints__vault__stream": VAULT,
        "endpoints__vault__sealed": True,
        "endpoints__erp__kind": "webhook",
        "endpoints__erp__url": "http://127.0.0.1:1/",
        "endpoints__erp__secrets": SECRET,
        "endpoints__erp__allow_http": True,
        "endpoints__erp__allow_private": True,
        "rewrite_period": 2,
        "log_level": "debug",
    }
    with installation(tmp_path_factory.mktemp("data"), **more) as running:
        for role in ROLES:
            reset, on, *rest = role.rules()
            running.ledger.redis.execute_command(
                "ACL", "SETUSER", role.name, reset, on, ">secret", *rest
            )
        yield running


def person(here: Installation, **job: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A job with a person's data marked: in its registration, its key and its metadata."""
    email = f"{mark('person')}@example.com"
    secrets = {"e-mail": email, "name": mark("name", odd=True), "key": mark("key")}
    secrets["metadata"] = mark("metadata")
    made = open2b(email, idempotency_key=secrets["key"], metadata={"order": secrets["metadata"]})
    made["registration"]["customer"]["address"]["lastName"] = secrets["name"]
    return {**made, **job}, secrets


def named(job: dict[str, Any]) -> str:
    """The id of a job."""
    return job_id(job["provider"], "default", job["idempotency_key"])


def environment(here: Installation, role: str = "operator") -> dict[str, str]:
    """The environment of a command for a role."""
    return {**os.environ, **here.environment, "REGWORKER_REDIS_URL": url(here, role)}


def regworker(here: Installation, *arguments: str, code: int = 0) -> str:
    """Run a command as an operator; return its output."""
    return Cli(**environment(here))(*arguments, code=code)


def kept(here: Installation) -> dict[str, bytes]:
    """Everything that the ledger holds, by key."""
    client: Any = here.ledger.redis
    return {key.decode(): repr(_read(client, key)).encode() + key for key in client.scan_iter("*")}


def _read(client: Any, key: bytes) -> Any:
    match client.type(key):
        case b"hash":
            return client.hgetall(key)
        case b"stream":
            return client.xrange(key)
        case b"zset":
            return client.zrange(key, 0, -1, withscores=True)
        case b"set":
            return client.smembers(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case _:
            return client.get(key)


def audited(here: Installation, id_: str) -> list[dict[str, Any]]:
    """The audit entries of a job."""
    return [
        json.loads(one) for one in regworker(here, "audit", "--job", id_, "--json").splitlines()
    ]


def ended(here: Installation, job: dict[str, Any]) -> str:
    """Run a job to its end, with its event on both streams and one refusal under the same key."""
    id_ = str(here.run(job)["subject"])
    other = {**job, "metadata": {"order": f"{job['metadata']['order']}-again"}}
    here.ledger.redis.xadd("{reg}:jobs", {"job": json.dumps(other)})
    stack.until(
        lambda: len(here.ledger.redis.xrange("{reg}:jobs")) == 0 and len(here.events(id_)) == 2,
        "the refusal",
        PATIENCE,
    )
    return id_


def test_everything_that_is_held_of_a_job_is_erased(here: Installation) -> None:
    """No key of the ledger contains the person's data any more, and soon no file does."""
    job, secrets = person(here, reply_to=["results", "vault", "erp"])
    id_ = ended(here, job)
    assert {one.secret for one in search(kept(here), secrets)} == {"key", "metadata"}
    exported = json.loads(regworker(here, "export", id_, "--show-secrets", *BY))
    assert {one["stream"] for one in exported["published"]} == {"{reg}:results", VAULT}
    assert {one["endpoint"] for one in exported["deliveries"]} == {"erp"}
    assert exported["event"] in [one["event"] for one in exported["deliveries"]]

    said = regworker(here, "forget", "--key", secrets["key"], "--provider", "open2b", "--json", *BY)
    assert json.loads(said) == {
        "job_id": id_, "state": "registered", "entries": 4, "deliveries": 2, "undelivered": 2
    }  # fmt: skip
    assert not search(kept(here), secrets)
    indexed = [key for key, value in kept(here).items() if id_.encode() in value]
    assert sorted(indexed) == ["{reg}:audit", f"{{reg}}:export:{id_}", job_key(id_)]
    stack.until(lambda: not here.ledger.redis.hexists(PLAIN, "at"), "the rewriting", PATIENCE)
    files = {str(one): one.read_bytes() for one in here.folder.rglob("*") if one.is_file()}
    assert not search(files, secrets)


def test_a_repeat_of_the_key_makes_no_second_customer(here: Installation) -> None:
    """Whatever its content and its entry point, until the record would have expired."""
    job, secrets = person(here)
    id_ = ended(here, job)
    left = here.ledger.redis.pttl(job_key(id_))
    regworker(here, "forget", id_, *BY)
    assert 0 < here.ledger.redis.pttl(job_key(id_)) <= left
    for again in (job, {**job, "metadata": {}}):
        with pytest.raises(JobForgotten, match=r"erased on request"):
            here.producer.enqueue(again)
    here.ledger.redis.xadd("{reg}:jobs", {"job": json.dumps(job)})
    stack.until(lambda: len(here.events(id_)) == 1, "the refusal", PATIENCE)
    [refusal] = map(json.loads, here.events(id_))
    assert refusal["data"]["errors"][0]["code"] == "idempotency_conflict"
    assert "erased" in refusal["data"]["errors"][0]["message"]
    assert here.made(secrets["e-mail"]) == 1
    with pytest.raises(UnknownJob, match="erased on request"):
        here.producer.status(id_)
    # Repeating the command erases what arrived since then.
    regworker(here, "forget", id_, *BY)
    assert not search(kept(here), secrets)
    shown = regworker(here, "jobs", "--key", secrets["key"], "--json")
    assert not shown


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("queued", "regworker cancel"),
        ("calling", "regworker status"),
        ("unknown", "regworker status"),
        ("review", "regworker review resolve"),
    ],
)
def test_a_job_that_is_not_over_is_not_forgotten(
    ledger: SyncLedger, redis_url: str, state: str, advice: str
) -> None:
    """The command says how to end the job, and changes nothing; an export shows its
    registration."""
    ledger(announce([Limits("open2b", "default", 0, 0, 50)], ["results"]))
    cli = Cli(REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=KEYS)
    email = f"{mark('person')}@example.com"
    with Producer(redis_url=redis_url, sealing_keys=KEYS) as producer:
        id_ = producer.enqueue(open2b(email)).job_id
    ledger.redis.hset(job_key(id_), "state", state)
    before: Any = ledger.redis.hgetall(job_key(id_))
    said = cli("forget", id_, *BY, code=1)
    assert f"is {state}" in said
    assert advice in said
    assert ledger.redis.hgetall(job_key(id_)) == before
    found = json.loads(cli("export", id_, "--show-secrets", *BY))
    assert found["registration"]["customer"]["address"]["email"] == email
    assert "{reg}:open" in found["indexes"]
    assert email not in cli("export", id_, *BY)


def test_an_export_holds_what_is_kept_and_is_in_the_audit(here: Installation) -> None:
    """Record, timeline, events, and who acted on it; secrets only on request."""
    job, secrets = person(here, reply_to=["results", "vault"])
    id_ = ended(here, job)
    regworker(here, "export", id_, *BY)
    found = json.loads(regworker(here, "export", id_, "--show-secrets", *BY))
    assert found["record"]["idempotency_key"] == secrets["key"]
    assert found["record"]["metadata"] == job["metadata"]
    assert found["record"]["timeline"][-1]["what"].startswith("registered")
    assert found["event"]["data"]["outcome"]["customer_key"]
    refusals = [one for one in found["published"] if one["event"]["data"].get("accepted") is False]
    assert len(refusals) == 2
    assert len(found["published"]) == 4
    assert [(one["what"], one["who"], one["why"]) for one in found["audit"]] == [
        ("job.export", "ann", "request 4711")
    ] * 2
    assert found["indexes"] == ["{reg}:ended:registered:open2b:default"]
    hidden = regworker(here, "export", id_, *BY)
    assert found["event"]["data"]["outcome"]["customer_key"] not in hidden


@pytest.mark.parametrize("gone", [False, True], ids=["kept", "past its retention"])
def test_an_export_holds_nothing_of_an_earlier_job_of_the_key(
    here: Installation, gone: bool
) -> None:
    """That job may be another customer's. An erasure erases what is left of both."""
    first, theirs = person(here, reply_to=["results", "vault", "erp"])
    id_ = ended(here, first)
    regworker(here, "export", id_, "--by", "ann", "--why", theirs["metadata"])
    here.ledger.redis.delete(job_key(id_))
    second, own = person(here, idempotency_key=first["idempotency_key"], reply_to=["vault", "erp"])
    assert here.producer.enqueue(second).job_id == id_
    here.wait_for(id_, "registered")
    if gone:
        here.ledger.redis.delete(job_key(id_))
    text = regworker(here, "export", id_, "--show-secrets", *BY)
    found = json.loads(text)
    assert theirs["metadata"] not in text
    events = [*found["published"], *found["deliveries"]]
    assert [one["event"]["data"]["metadata"] for one in events] == [second["metadata"]] * 2
    assert [one["why"] for one in found["audit"]] == ["request 4711"]
    regworker(here, "forget", id_, *BY)
    secrets = {"first": theirs["metadata"], "second": own["metadata"]}
    left = {key: value for key, value in kept(here).items() if key != "{reg}:audit"}
    assert not search(left, secrets)


def test_the_audit_says_who_erased_it_and_nothing_of_the_person(here: Installation) -> None:
    """One entry, also if the command is repeated after a lost answer."""
    job, _ = person(here)
    id_ = ended(here, job)
    for _ in range(2):
        regworker(here, "forget", id_, *BY)
    [entry] = audited(here, id_)
    assert (entry["what"], entry["who"], entry["on"]) == ("job.forget", "ann", id_)
    assert (entry["before"], entry["after"]) == ("registered", "forgotten")
    for one in ("forget", "export"):
        assert "no data is stored" in regworker(here, one, job_id("x", "y", "z"), *BY, code=1)


def test_a_command_that_is_killed_is_repeated(here: Installation) -> None:
    """Erasure is one step: before it nothing is erased, after it everything."""
    job, secrets = person(here, reply_to=["results", "vault", "erp"])
    id_ = ended(here, job)
    client: Any = here.ledger.redis
    waiting = client.info("clients")["blocked_clients"]
    # The server delays the script that erases; reading commands still work.
    client.execute_command("CLIENT", "PAUSE", 60000, "WRITE")
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "forget", id_, *BY], env=environment(here)
    )
    try:
        stack.until(
            lambda: client.info("clients")["blocked_clients"] > waiting, "it is held", PATIENCE
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        client.execute_command("CLIENT", "UNPAUSE")
    assert search(kept(here), secrets)
    regworker(here, "forget", id_, *BY)
    assert not search(kept(here), secrets)


def test_a_dead_delivery_outlives_the_record_and_is_erased(here: Installation) -> None:
    """A record expires after a week, dead deliveries after a month: the job's key still finds
    them."""
    job, secrets = person(here, reply_to=["erp"])
    id_ = (
        str(here.run(job)["subject"])
        if "results" in job["reply_to"]
        else here.producer.enqueue(job).job_id
    )
    here.wait_for(id_, "registered")
    here.ledger.redis.delete(job_key(id_))
    assert search(kept(here), {"key": id_})
    regworker(here, "forget", "--key", secrets["key"], "--provider", "open2b", *BY)
    [entry] = audited(here, id_)
    assert entry["what"] == "job.forget"
    assert {key for key, value in kept(here).items() if id_.encode() in value} <= {
        "{reg}:audit", "{reg}:ended:registered:open2b:default"
    }  # fmt: skip


@pytest.fixture(scope="module")
def service(here: Installation) -> Iterator[str]:
    """`regworker serve` with an operator's user at the ledger; returns its URL."""
    values = {**here.environment, "REGWORKER_REDIS_URL": url(here, "operator")}
    with ExitStack() as running:
        address, _, _ = start(running, here.folder, values, "--port", "0")
        yield address


def client(here: Installation, address: str, *may: str) -> httpx.Client:
    """A client of the service with a token."""
    token = regworker(here, "tokens", "new", "--name", "desk", "--may", *may).split()[0]
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=address, headers=headers, timeout=PATIENCE)


def test_an_operator_exports_and_erases_over_http(here: Installation, service: str) -> None:
    """By key or by id, in the body and in no URL; a repeat of the job is answered with 410."""
    job, secrets = person(here)
    id_ = ended(here, job)
    name = {"provider": "open2b", "idempotency_key": secrets["key"], "why": "request 4711"}
    with client(here, service, "enqueue,operate") as desk:
        found = desk.post("/v1/jobs:export", json=name).json()
        assert found["job_id"] == id_
        assert found["record"]["metadata"] == job["metadata"]
        for body in (name, {"job_id": id_}):
            answer = desk.post("/v1/jobs:forget", json=body)
            assert (answer.status_code, answer.json()["state"]) == (200, "registered")
        assert not search(kept(here), secrets)
        again = desk.post("/v1/jobs", json=job)
        assert (again.status_code, again.json()["verdict"]) == (410, "not accepted")
        assert desk.post("/v1/jobs:forget", json={"job_id": "x"}).status_code == 422
        assert desk.post("/v1/jobs:forget", json={**name, "reply_to": []}).status_code == 422
        gone = desk.post("/v1/jobs:export", json={**name, "provider": "skypostal"})
        assert gone.status_code == 404
    entries = [(one["what"], one["who"], one["from"]) for one in audited(here, id_)]
    assert entries == [("job.export", "desk", "api"), ("job.forget", "desk", "api")]


def test_what_may_not_be_done_over_http(here: Installation, service: str) -> None:
    """Without the scope, for another account, for an open job, or without the ledger's rights."""
    job, _ = person(here)
    id_ = ended(here, job)
    with client(here, service, "read:all,enqueue") as desk:
        assert desk.post("/v1/jobs:forget", json={"job_id": id_}).status_code == 403
    with client(here, service, "operate", "--account", "skypostal/default") as desk:
        assert desk.post("/v1/jobs:export", json={"job_id": id_}).status_code == 404
        name = {"provider": "open2b", "idempotency_key": job["idempotency_key"]}
        assert desk.post("/v1/jobs:export", json=name).status_code == 403
    regworker(here, "providers", "pause", "skypostal/default", "--why", "a test")
    waiting = here.producer.enqueue(skypostal()).job_id
    with client(here, service, "operate") as desk:
        answer = desk.post("/v1/jobs:forget", json={"job_id": waiting})
        assert (answer.status_code, answer.json()["verdict"]) == (409, "not accepted")
        assert "regworker cancel" in answer.json()["detail"]
    regworker(here, "providers", "resume", "skypostal/default")
    values = {**here.environment, "REGWORKER_REDIS_URL": url(here, "gateway")}
    (here.folder / "lesser").mkdir()
    with ExitStack() as running:
        address, _, _ = start(running, here.folder / "lesser", values, "--port", "0")
        with client(here, address, "operate") as desk:
            answer = desk.post("/v1/jobs:forget", json={"job_id": id_})
            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (
                403,
                "no-rights",
            )
    assert here.events(id_)


def test_what_is_secret_is_in_no_log_of_the_service(here: Installation, service: str) -> None:
    """The body names the job, and the body is not logged."""
    job, secrets = person(here)
    ended(here, job)
    name = {"provider": "open2b", "idempotency_key": secrets["key"]}
    with client(here, service, "operate") as desk:
        assert desk.post("/v1/jobs:export", json=name).status_code == 200
        assert desk.post("/v1/jobs:forget", json=name).status_code == 200
    assert not search({"log": (here.folder / "gateway.log").read_bytes()}, secrets)
