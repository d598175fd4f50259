"""The result of a demo: counted in the ledger, the stream, the receiver and the providers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from regworker.domain.event import read_event
from regworker.domain.states import State
from regworker.ledger import SyncLedger
from regworker.ledger.records import Record, text
from regworker.ledger.scans import scanned
from regworker.ledger.transitions import PREFIX, look
from regworker.producer import Producer, Receipt, Refused
from regworker.settings import Settings
from sandbox.client import SandboxClient
from worker.cli.output import state_text


@dataclass
class Demo:
    """The processes of the demo."""

    settings: Settings
    ledger: SyncLedger
    producer: Producer
    sandboxes: list[SandboxClient]
    urls: list[str]
    before: int = 0
    """The accounts at the providers before the demo's first job."""


@dataclass
class DemoTotals:
    """The figures, as `--json` prints them. `accepted` is the sum of the five states after it."""

    accepted: int = 0
    refused: int = 0
    registered: int = 0
    rejected: int = 0
    abandoned: int = 0
    cancelled: int = 0
    review: int = 0
    recovered: int = 0
    events: int = 0
    webhooks_delivered: int = 0
    accounts_at_providers: int = 0
    lost: int = 0
    duplicates: int = 0

    @property
    def good(self) -> bool:
        """Whether the guarantees held: no job lost, none done twice."""
        return not self.lost and not self.duplicates


@dataclass
class Row:
    """One job: its record, its event, and where its result was published."""

    record: Record
    event: dict[str, Any] | None
    channels: list[str] = field(default_factory=list)


Results = Sequence[Receipt | Refused]


def take(here: Demo, results: Results) -> tuple[DemoTotals, list[Row]]:
    """Count, from the records of each side."""
    records = _records(here.ledger)
    entries: Any = here.ledger.redis.xrange(f"{PREFIX}results")
    events = [read_event(fields[b"event"]) for _, fields in entries]
    published = Counter(event["subject"] for event in events)
    deliveries = httpx.get(f"{here.urls[0]}/hooks-log", trust_env=False).json()
    taken = [one for one in deliveries if 200 <= one["status"] < 300]
    hooked = {one["event"]["subject"] for one in taken}

    account = DemoTotals(
        accepted=len(records),
        refused=sum(isinstance(one, Refused) for one in results),
        recovered=sum(event["data"].get("recovered", False) for event in events),
        events=len(events),
        webhooks_delivered=len({one["webhook_id"] for one in taken}),
        accounts_at_providers=accounts_at_providers(here) - here.before,
        duplicates=sum(n > 1 for n in published.values()) + _doubles(here),
    )
    for state, count in Counter(record.state for record in records.values()).items():
        setattr(account, state, count)

    def is_lost(job_id: str) -> bool:
        record = records.get(job_id)
        if record is None or not (record.final or record.state is State.REVIEW):
            return True
        return not published[job_id] or ("crm" in record.reply_to and job_id not in hooked)

    account.lost = sum(map(is_lost, {one.job_id for one in results if isinstance(one, Receipt)}))

    by_job = {event["subject"]: event for event in events}
    rows = [
        Row(
            record,
            by_job.get(record.id),
            ["stream"] * bool(published[record.id]) + ["webhook"] * (record.id in hooked),
        )
        for record in sorted(records.values(), key=lambda record: record.accepted_at)
    ]
    return account, rows


def accounts_at_providers(here: Demo) -> int:
    """How many accounts the providers have created."""
    return sum(len(sandbox.accounts()) for sandbox in here.sandboxes)


def show(console: Console, account: DemoTotals, rows: Sequence[Row], results: Results) -> None:
    """Print the result for people."""
    table = Table(title="What became of every job", title_justify="left")
    for heading in ("key", "shows", "state", "calls", "because", "published"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row.record.idempotency_key,
            str(row.record.metadata.get("shows", "")),
            state_text(row.record.state),
            str(row.record.attempts),
            _because(row.event),
            " + ".join(row.channels),
        )
    console.print(table)
    refused = [one for one in results if isinstance(one, Refused)]
    console.print(f"\n[bold]Refused at once[/]: {len(refused)}; fix them, and enqueue them again")
    for one in refused:
        console.print(f"  line {one.number + 1}: {one.error}", markup=False, soft_wrap=True)
    console.print("\n[bold]Counted[/] in the ledger, the stream, the receiver and the providers")
    for name, value in asdict(account).items():
        console.print(f"  {name:<22} {value}")


def _records(ledger: SyncLedger) -> dict[str, Record]:
    prefix = f"{PREFIX}job:"
    keys = ledger.ask(lambda redis: scanned(redis, "scan", match=f"{prefix}*"))
    ids = [text(key).removeprefix(prefix) for key in keys]
    return {record.id: record for record in ledger.many([look(id_) for id_ in ids]) if record}


def _doubles(here: Demo) -> int:
    made = Counter(
        (number, one["provider"], one["email"].casefold())
        for number, sandbox in enumerate(here.sandboxes)
        for one in sandbox.accounts()
    )
    return sum(n > 1 for n in made.values())


def _because(event: dict[str, Any] | None) -> str:
    data = event["data"] if event else {}
    if data.get("recovered"):
        return "found by asking"
    return "; ".join(f"{one['field']} {one['code']}".strip() for one in data.get("errors", ()))
