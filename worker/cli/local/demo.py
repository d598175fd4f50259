"""`regworker demo`: a whole installation for half a minute, and its result."""

import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regworker.domain.states import State
from regworker.ledger import SyncLedger
from regworker.ledger.records import Record
from regworker.ledger.transitions import ALARMS, look
from regworker.producer import Producer, Receipt
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from sandbox.client import SandboxClient
from worker.cli.local import stack
from worker.cli.local.account import Demo, Results, accounts_at_providers, show, take
from worker.cli.output import err, out, print_json
from worker.providers.skypostal import REGISTER

#: The demo's own pace: what takes minutes in production takes seconds here.
PACE = {
    "call_budget": 1.5,
    "settle_delay": 3,
    "lease": 4,
    "lease_renewal": 1,
    "clock_period": 0.2,
    "retry_base": 0.5,
    "retry_cap": 2,
    "breaker_threshold": 50,
    "concurrency": 20,
}

#: Seconds for all jobs together; a demo that takes longer has failed.
LIMIT = 60.0

#: The job that its producer cancels, once the provider has asked to wait.
TAKEN_BACK = "o2b-17"

#: The faults, by e-mail address, so that they are the same in every run.
FAULTS: list[dict[str, Any]] = [
    {"kind": "commit_then_drop", "provider": "skypostal", "email": "lost.answer@example.com"},
    {"kind": "reset", "commit": True, "provider": "open2b", "email": "lost.answer@example.com"},
    {"kind": "drop_before_commit", "email": "never.arrived@example.com"},
    {"kind": "server_error", "status": 503, "email": "unavailable@example.com"},
    {"kind": "server_error", "status": 502, "commit": True, "email": "bad.gateway@example.com"},
    {"kind": "too_many", "retry_after": "1", "email": "wait@example.com"},
    {"kind": "slow", "delay": 0.8, "email": "slow@example.com"},
    {"kind": "late_commit", "delay": 2.0, "email": "late@example.com"},
    {"kind": "truncated", "email": "truncated@example.com"},
    {"kind": "html", "email": "page@example.com"},
    {"kind": "missing_key", "email": "no.key@example.com"},
    {"kind": "too_many", "retry_after": "600", "email": "taken.back@example.com"},
    {"kind": "drop_before_commit", "email": "taken@example.com"},
]


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else.")
    ] = False,
) -> None:
    """See it work: Valkey, both providers, a worker, 35 jobs, faults; ends by itself.

    Everything runs on this machine, in a temporary folder, and is gone afterwards. Some calls lose
    their answer, are slow or fail on purpose. Exit code 1 if a job was lost or doubled.

    Examples:
        regworker demo
        regworker demo --json | jq .lost
    """
    console = err() if as_json else out()
    console.quiet = as_json
    with installation(console) as here:
        results = list(here.producer.enqueue_many(examples()))
        _watch(here, results, console)
        account, rows = take(here, results)
    if as_json:
        print_json(asdict(account))
    else:
        show(console, account, rows, results)
    raise typer.Exit(0 if account.good else 1)


@contextmanager
def installation(console: Console) -> Iterator[Demo]:
    """Start everything; at the end stop it, the worker first."""
    keys = Keyring.new("demo")
    secret = "whsec_ZGVtbyBvZiByZWdpc3RyYXRpb24td29ya2Vy"  # noqa: S105 -- of this demo only
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="regworker-")))
        console.print(
            "[bold]Starting[/] Valkey, the providers' sandbox, a webhook receiver, a worker"
        )
        server = running.enter_context(stack.valkey(folder / "valkey"))
        store, strict = (
            running.enter_context(stack.process(command, {}, folder, subprocess.PIPE))
            for command in (
                stack.sandbox_command(0, secret),
                stack.sandbox_command(0, secret, "--settings", json.dumps(_STRICT)),
            )
        )
        urls = [stack.sandbox_url(store), stack.sandbox_url(strict)]
        sandboxes = [running.enter_context(SandboxClient(url)) for url in urls]
        environment = stack.environment(
            server.connection_url,
            urls[0],
            keys,
            secret,
            accounts__open2b__strict__base_url=urls[1],
            log_format="console",
            **PACE,
        )
        log = folder / "worker.log"
        output = running.enter_context(log.open("wb"))
        worker = running.enter_context(
            stack.process(stack.worker_command(), environment, folder, output)
        )
        ledger = SyncLedger(server.connection_url)
        running.callback(ledger.close)
        settings = Settings.load(redis_url=server.connection_url, sealing_keys=keys)
        producer = running.enter_context(Producer(settings))
        try:
            stack.wait_for_worker(ledger, worker)
            here = Demo(settings, ledger, producer, sandboxes, urls)
            _prepare(here)
            yield here
        except stack.StackError as error:
            tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-20:])
            raise stack.StackError(f"{error}\n{tail}") from None


_STRICT = {"open2b": {"verification_required": True, "mandatory_consents": [12, 3]}}


def examples() -> list[dict[str, Any]]:
    """The example jobs: from the repository, or from the installed package."""
    here = Path(__file__).resolve().parent
    for file in (here.parents[2] / "examples" / NAME, here.parent / "data" / NAME):
        if file.is_file():
            return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
    raise stack.StackError(f"{NAME} is missing from this installation")


NAME = "registrations.ndjson"


def _prepare(here: Demo) -> None:
    """Create a customer whose address one of the jobs uses."""
    taken = next(
        job["registration"]
        for job in examples()
        if job["registration"].get("customer_email") == "taken@example.com"
    )
    credentials = {"user_code": 396, "app_key": "another partner's", "copa_id": 616}
    body = {**taken, **credentials, "customer_password": "somebody else's"}
    url = here.urls[0] + f"/wcf-services/{REGISTER}"
    # Here and elsewhere: not by the proxy that the environment may name.
    httpx.post(url, json=body, trust_env=False).raise_for_status()
    here.sandboxes[0].faults(script=FAULTS)
    here.before = accounts_at_providers(here)


def _watch(here: Demo, results: Results, console: Console) -> None:
    """Show progress until no alarm is left: all jobs have ended, all webhooks are delivered."""
    receipts = {one.job_id: one for one in results if isinstance(one, Receipt)}
    end = time.monotonic() + LIMIT
    with Progress(
        TextColumn("[bold]Registering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[states]}"),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=len(receipts), states="")
        while True:
            records = here.ledger.many([look(id_) for id_ in receipts])
            states = Counter(record.state for record in records if record)
            waiting = states[State.QUEUED] + states[State.CALLING] + states[State.UNKNOWN]
            text = "  ".join(f"{state} {count}" for state, count in sorted(states.items()))
            progress.update(bar, completed=len(receipts) - waiting, states=text)
            _take_back(here, records)
            if not here.ledger.redis.zcard(ALARMS):
                return
            if time.monotonic() > end:
                raise stack.StackError(f"not done within {LIMIT:g} s: {text}")
            time.sleep(0.1)


def _take_back(here: Demo, records: list[Record | None]) -> None:
    for record in records:
        if record is None or record.idempotency_key != TAKEN_BACK:
            continue
        if record.state is State.QUEUED and record.attempts:
            here.producer.cancel(record.id)
