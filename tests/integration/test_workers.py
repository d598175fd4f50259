"""Workers as processes: started, killed, stopped, refused; with each broker and pool."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from celery.bootsteps import TERMINATE, Blueprint
from celery.platforms import EX_FAILURE

from regworker.ledger.snapshot import snapshot
from tests.integration.installation import PACE, PATIENCE, SECRET, Installation, ended, installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.open_files import at_most
from tests.rabbitmq import amqp_url
from tests.serving import serving
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.process import stop_signals
from worker.process.wake_reader import BLOCK

#: No call and no lease ends by itself, however late a process gets its turn.
PATIENT = {"call_budget": 60, "settle_delay": 90, "lease": 60}


@contextmanager
def ready(folder: Path, **environment: Any) -> Iterator[Installation]:
    """An installation whose worker a test may disturb."""
    with installation(folder, **environment) as here:
        here.wait_for_line("ready.")
        yield here


def hang(here: Installation, job: dict[str, Any]) -> None:
    """Make the provider create the customer and never answer."""
    rule = {"kind": "hang", "commit": True, "email": email_of(job)}
    here.sandbox.faults.configure({"script": [rule]})


def wait_for_call(here: Installation, job: dict[str, Any]) -> None:
    """Wait until the provider has created this job's customer."""
    stack.until(lambda: here.made(email_of(job)) > 0, f"a call for {email_of(job)}")


def test_a_job_goes_on_when_its_worker_is_killed_in_the_middle_of_the_call(
    tmp_path: Path,
) -> None:
    """kill -9: another worker sees the expired lease, looks up, and reports the outcome once."""
    # The call must not end before its worker is killed.
    with ready(tmp_path, call_budget=100, settle_delay=110) as here:
        job = skypostal()
        hang(here, job)
        receipt = here.producer.enqueue(job)
        wait_for_call(here, job)
        here.workers[0].kill()
        here.start_worker(call_budget=2.5, settle_delay=3)
        event = here.producer.wait(receipt.job_id, PATIENCE)
        assert event["data"]["recovered"] is True
        assert here.made(email_of(job)) == 1
        assert len(here.events(receipt.job_id)) == 1
        timeline = [text for _, text in here.producer.status(receipt.job_id).timeline]
        assert any("ran out" in text for text in timeline)


def test_a_stopped_worker_finishes_the_call_on_the_wire_and_exits_with_0(tmp_path: Path) -> None:
    """SIGTERM: requests under way are settled before the process ends."""
    with ready(tmp_path, call_budget=20, settle_delay=25) as here:
        job = skypostal()
        rule = {"kind": "slow", "delay": 3, "email": email_of(job)}
        here.sandbox.faults.configure({"script": [rule]})
        receipt = here.producer.enqueue(job)
        stack.until(lambda: here.producer.status(receipt.job_id).state == "calling", "the call")
        here.workers[0].send_signal(signal.SIGTERM)
        assert here.workers[0].wait(PATIENCE) == 0
        assert here.producer.status(receipt.job_id).state == "registered"


def test_refused_credentials_hold_the_jobs_instead_of_failing_them(tmp_path: Path) -> None:
    """401 is the account's fault: no job is rejected, no attempt is used, and the status says
    why."""
    with ready(tmp_path) as here:
        here.sandbox.configure({"skypostal": {"app_key": "another"}})
        receipt = here.producer.enqueue(skypostal())

        def refused() -> bool:
            return "refused" in here.producer.status(receipt.job_id).why

        stack.until(refused, "the reason")
        later = here.producer.enqueue(skypostal())
        stack.until(lambda: here.producer.status(later.job_id).why == "refused", "the wait")
        # Something on the way may have refused: what was called is asked about first.
        for one, state in ((receipt, "unknown"), (later, "queued")):
            status = here.producer.status(one.job_id)
            assert (status.state, status.attempts) == (state, 0)
        assert here.run(open2b())["type"] == "registration.registered", "the other is not held"


def test_attempts_that_are_spent_abandon_the_job(tmp_path: Path) -> None:
    """And its event names the last reason."""
    with ready(tmp_path, max_attempts=2) as here:
        job = open2b()
        rule = {"kind": "too_many", "times": 2, "email": email_of(job)}
        here.sandbox.faults.configure({"script": [rule]})
        event = here.run(job)
        [error] = event["data"]["errors"]
        assert error["code"] == "attempts"
        assert "429" in error["message"]
        assert event["data"]["attempts"] == 2


def test_the_call_limit_of_an_account_is_kept_across_workers(tmp_path: Path) -> None:
    """Ten calls a second, two workers: none arrives before its turn, whichever worker makes it."""
    pace = {"accounts__open2b__default__rate": 10, "accounts__open2b__default__rate_period": 1}
    with installation(tmp_path, workers=2, **pace) as here:
        jobs = [open2b() for _ in range(25)]
        start = time.time()
        receipts = list(here.producer.enqueue_many(jobs))
        for receipt in receipts:
            assert here.producer.wait(receipt.job_id)["data"]["attempts"] == 1  # type: ignore[union-attr]
        times = sorted(seen.time for seen in here.sandbox.requests.find(provider="open2b"))
        # The documented pace, plus the tenth of it that may be used up at once. A slow machine
        # makes calls later than their turn, never earlier.
        for number, when in enumerate(times):
            assert when - start >= (number - 1) * 0.1 - 0.005


def test_the_production_command_reads_celeryconfig_from_where_it_is_started(
    tmp_path: Path,
) -> None:
    """`celery -A worker worker`, in a directory that contains only the config."""
    (tmp_path / "celeryconfig.py").write_text("worker_concurrency = 3\n")
    command = [str(Path(sys.executable).with_name("celery")), "-A", "worker", "worker"]
    with installation(tmp_path, workers=0) as here:
        log = tmp_path / "worker.log"
        with log.open("wb") as output, stack.process(command, here.environment, tmp_path, output):
            stack.until(lambda: "ready." in log.read_text("utf-8"), "the worker is ready")
            assert here.run(skypostal())["type"] == "registration.registered"
            stack.until(lambda: bool(here.ledger(snapshot()).workers), "its heartbeat", PATIENCE)
            # Also where other limits follow from them.
            assert [one.slots for one in here.ledger(snapshot()).workers] == [3]
        assert '"concurrency": 3' in log.read_text("utf-8")


def test_the_number_of_slots_may_come_from_a_file(tmp_path: Path) -> None:
    """As any setting; `--concurrency` counts first."""
    (tmp_path / "slots").write_text("3\n")
    given = {"concurrency": "", "concurrency_file": str(tmp_path / "slots")}
    with installation(tmp_path, **given) as here:
        here.start_worker("--concurrency", "4")
        stack.until(lambda: len(here.ledger(snapshot()).workers) == 2, "two heartbeats", PATIENCE)
        assert sorted(one.slots for one in here.ledger(snapshot()).workers) == [3, 4]


#: Read when the worker starts; prints from the process that runs the job.
ASKING = """
import gc
from celery import signals

@signals.task_prerun.connect(weak=False)
def ask(**_):
    print("spared and not:", gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_the_collector_is_spared_what_was_there_when_the_worker_got_ready(tmp_path: Path) -> None:
    """Code, classes and settings are frozen; scanning them would take a fifth of a job's CPU
    time."""
    (tmp_path / "celeryconfig.py").write_text(ASKING)
    with installation(tmp_path, concurrency=1) as here:
        here.wait_for_line(" ready.")  # its heartbeat comes before that, and so may its first job
        here.run(skypostal())
        counts = re.findall(r"spared and not: (\d+) (\d+)", here.log().read_text())
        assert counts
        assert all(int(spared) > int(others) for spared, others in counts)


def test_rabbitmq_works_as_the_broker(tmp_path: Path) -> None:
    """Wake-ups go through quorum queues; the ledger is the same."""
    with installation(tmp_path, broker_url=amqp_url()) as here:
        job = skypostal(reply_to=["results", "crm"])
        receipt = here.producer.enqueue(job)
        assert here.producer.wait(receipt.job_id, PATIENCE)["type"] == "registration.registered"
        here.wait_for_hook(receipt.job_id)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent", "eventlet"])
def test_other_pools_are_refused(tmp_path: Path, pool: str) -> None:
    """A sentence says what to use instead; no process starts for a slot."""
    environment = stack.environment(
        "redis://127.0.0.1:1/0", "http://127.0.0.1:1", "k:" + "A" * 43, SECRET
    )
    done = ended(stack.worker_command("--pool", pool), environment, tmp_path)
    assert done.returncode != 0
    assert "the only pool is `loop`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_worker_works_without_its_standard_streams(
    tmp_path: Path, closed: str, log_format: str
) -> None:
    """As a supervisor may start it; it does its jobs, and stops in order."""
    with installation(tmp_path, workers=0, log_format=log_format) as here:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *stack.worker_command()]
        with stack.process(command, here.environment, tmp_path, subprocess.DEVNULL) as worker:
            stack.wait_for_worker(here.ledger, worker)
            assert here.run(open2b())["type"] == "registration.registered"
            worker.terminate()
            assert worker.wait(PATIENCE) == 0


def test_a_worker_has_files_for_all_its_calls(tmp_path: Path) -> None:
    """Also where the system's limit is low, as it is on macOS."""
    with installation(tmp_path, workers=0, concurrency=100, **PATIENT) as here:
        with at_most(64):
            here.start_worker()
        stack.wait_for_worker(here.ledger, here.workers[0])
        here.sandbox.faults.configure({"script": [{"kind": "slow", "delay": 2, "times": 80}]})
        jobs = [one.job_id for one in here.producer.enqueue_many(open2b() for _ in range(80))]
        for job_id in jobs:
            here.producer.wait(job_id, PATIENCE)
        assert {here.producer.status(job_id).attempts for job_id in jobs} == {1}


def test_a_worker_that_celery_ends_at_once_has_failed() -> None:
    """Some supervisors start only what has failed."""
    worker = stop_signals.Worker.__new__(stop_signals.Worker)
    worker.blueprint = Blueprint(name="a worker that stops")
    worker.blueprint.state = TERMINATE
    worker.terminate()
    assert worker.exitcode == EX_FAILURE


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("REGWORKER_SEALING_KEYS", "", "REGWORKER_SEALING_KEYS"),
        ("REGWORKER_SEALING_KEYS", "k1:c2hvcnQ", "it takes 32"),
        ("REGWORKER_SETTLE_DELAY", "1", "call_budget"),
        ("REGWORKER_ACCOUNTS__SKYPOSTAL__DEFAULT__BASE_URL", "not a url", "BASE_URL"),
        ("REGWORKER_ACCOUNTS__SKYPOSTAL__B__BASE_URL", "http://127.0.0.1", "SKYPOSTAL__B__APP_KEY"),
        ("REGWORKER_ACCOUNTS__SKYPOSTL__A__BASE_URL", "http://127.0.0.1", "open2b, skypostal"),
        ("REGWORKER_ENDPOINTS__CRM__URL", "ftp://127.0.0.1/", "REGWORKER_ENDPOINTS__CRM__URL"),
        ("REGWORKER_ENDPOINTS__CRM__ALLOW_HTTP", "false", "https://"),
        ("REGWORKER_LEASE", "1", "lease_renewal"),
        ("REGWORKER_CONFIG", "/nowhere/regworker.toml", "no such file"),
    ],
)  # fmt: skip
def test_a_worker_refuses_settings_it_cannot_use(
    tmp_path: Path, setting: str, value: str, said: str
) -> None:
    """A sentence names the variable, without a traceback."""
    environment = stack.environment(
        "redis://127.0.0.1:1/0", "http://127.0.0.1:1", "k:" + "A" * 43, SECRET, **PACE
    )
    done = ended(stack.worker_command(), {**environment, setting: value}, tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


class _AcmeServer(BaseHTTPRequestHandler):
    """A third provider's server; it loses the answer to each customer's first call."""

    customers: dict[str, int] = {}  # noqa: RUF012 -- one server in this test

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = self.customers.get(body["email"])
        if self.path == "/customers":
            self.customers.setdefault(body["email"], len(self.customers) + 1)
            self.close_connection = True
            return
        answer = json.dumps({"id": known} if known else {"error": "no such customer"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_a_third_provider_costs_one_file(tmp_path: Path) -> None:
    """A class named in a setting recovers lost answers like the built-in providers."""
    providers = "tests.integration.acme:Acme"

    with serving(_AcmeServer) as port, installation(tmp_path, workers=0) as here:
        for name in [name for name in here.environment if "ACCOUNTS" in name]:
            del here.environment[name]
        url = f"http://127.0.0.1:{port}"
        worker = here.start_worker(providers=providers, accounts__acme__default__base_url=url)
        stack.wait_for_worker(here.ledger, worker)
        producer = type(here.producer)(
            here.producer.settings.model_copy(update={"providers": [providers]})
        )
        with producer:
            job = {"email": "a@example.com", "password": "p"}
            receipt = producer.enqueue(
                {"provider": "acme", "idempotency_key": "1", "registration": job}
            )
            event = producer.wait(receipt.job_id, PATIENCE)
        assert event["data"]["outcome"] == {"acme_id": 1}
        assert event["data"]["recovered"] is True


def test_secrets_stay_where_they_must(tmp_path: Path) -> None:
    """No password, identity number or customer key in logs, messages or the ledger's files."""
    job = skypostal(reply_to=["crm"])
    job["registration"]["customer_password"] = "canary-password"
    job["registration"]["customer_identity_number"] = "canary-identity"
    with ready(tmp_path) as here:
        rule = {"kind": "commit_then_drop", "email": email_of(job)}
        here.sandbox.faults.configure({"script": [rule]})
        receipt = here.producer.enqueue(job)
        outcome = here.producer.wait(receipt.job_id)["data"]["outcome"]
        here.wait_for_hook(receipt.job_id)
    secrets = [b"canary-password", b"canary-identity", outcome["customer_key"].encode()]
    secrets += [b"1656d700707ad9a77f737e5df3db088a"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("appendonly" in str(file) for file in files), "the ledger's file was looked into"
    for file in files:
        for secret in secrets:
            assert secret not in file.read_bytes(), file


def test_a_backlog_is_taken_several_wake_ups_at_a_time(tmp_path: Path) -> None:
    """As many as there are free slots; each job is done once."""
    with ready(tmp_path, broker_url="", concurrency=20, **PATIENT) as here:
        worker = here.workers[0]
        worker.send_signal(signal.SIGSTOP)
        receipts = list(here.producer.enqueue_many([skypostal() for _ in range(100)]))
        # As many as there are slots may already wait in the worker's connection.
        assert here.ledger.redis.llen(QUEUES["live"]) >= 80
        here.ledger.redis.config_resetstat()
        worker.send_signal(signal.SIGCONT)
        for one in receipts:
            assert here.producer.wait(one.job_id, PATIENCE)["type"] == "registration.registered"
        stats: Any = here.ledger.redis.info("commandstats")
        assert stats["cmdstat_blmpop"]["calls"] < 100
        assert len(here.sandbox.requests.find(provider="skypostal")) == 100


def test_a_job_that_comes_alone_takes_one_command_of_the_broker(tmp_path: Path) -> None:
    """An empty answer would wake the worker once more for each of them."""
    with ready(tmp_path, broker_url="", concurrency=20, **PATIENT) as here:
        here.ledger.redis.config_resetstat()
        began = time.monotonic()
        for _ in range(20):
            here.run(skypostal())
        waited = (time.monotonic() - began) / BLOCK
        stats: Any = here.ledger.redis.info("commandstats")
        assert 20 <= stats["cmdstat_blmpop"]["calls"] <= 20 + waited + 2


def test_a_broker_that_knows_no_blmpop_gives_one_wake_up_at_a_time(
    tmp_path: Path, own_valkey: Any
) -> None:
    """It may be an older server than the ledger's."""
    old = own_valkey(**{"rename-command": 'BLMPOP ""'})
    with ready(tmp_path, broker_url=old.connection_url, concurrency=20) as here:
        receipts = list(here.producer.enqueue_many([skypostal() for _ in range(10)]))

        def lost() -> bool:
            return "broker lost" in here.log().read_text()

        def registered() -> bool:
            return all(here.producer.status(one.job_id).state == "registered" for one in receipts)

        stack.until(lambda: lost() or registered(), "the jobs", PATIENCE)
        assert not lost(), here.log().read_text()
