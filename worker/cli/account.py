"""What came of a demo: counted from the ledger, the stream, the receiver and the providers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from sandbox.client import SandboxClient
from worker.cli.output import state_text
from worker.event import read_event
from worker.ledger import SyncLedger
from worker.ledger.commands import PREFIX, look
from worker.ledger.records import Record
from worker.lifecycle import State
from worker.producer import Producer, Receipt, Refused
from worker.settings import Settings


@dataclass
class Installation:
    """What runs during the demo."""

    settings: Settings
    ledger: SyncLedger
    producer: Producer
    sandboxes: list[SandboxClient]
    urls: list[str]
    before: int = 0
    """Accounts at the providers before the demo's first job."""


@dataclass
class Account:
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
        """Whether the promise held: nothing lost, nothing twice."""
        return not self.lost and not self.duplicates


@dataclass
class Row:
    """One job: its record, its event, and where its result was published."""

    record: Record
    event: dict[str, Any] | None
    channels: list[str] = field(default_factory=list)


Results = Sequence[Receipt | Refused]


def take(here: Installation, results: Results) -> tuple[Account, list[Row]]:
    """Count, from what each party has in its own books."""
    records = _records(here.ledger)
    entries: Any = here.ledger.redis.xrange(f"{PREFIX}results")
    events = [read_event(fields[b"event"]) for _, fields in entries]
    told = Counter(event["subject"] for event in events)
    deliveries = httpx.get(f"{here.urls[0]}/hooks-log").json()
    taken = [one for one in deliveries if 200 <= one["status"] < 300]
    hooked = {one["event"]["subject"] for one in taken}

    account = Account(
        accepted=len(records),
        refused=sum(isinstance(one, Refused) for one in results),
        recovered=sum(event["data"].get("recovered", False) for event in events),
        events=len(events),
        webhooks_delivered=len({one["webhook_id"] for one in taken}),
        accounts_at_providers=accounts_at_providers(here) - here.before,
        duplicates=sum(n > 1 for n in told.values()) + _doubles(here),
    )
    for state, count in Counter(record.state for record in records.values()).items():
        setattr(account, state, count)

    def is_lost(job_id: str) -> bool:
        record = records.get(job_id)
        if record is None or not (record.final or record.state is State.REVIEW):
            return True
        return not told[job_id] or ("crm" in record.reply_to and job_id not in hooked)

    account.lost = sum(map(is_lost, {one.job_id for one in results if isinstance(one, Receipt)}))

    by_job = {event["subject"]: event for event in events}
    rows = [
        Row(
            record,
            by_job.get(record.id),
            ["stream"] * bool(told[record.id]) + ["webhook"] * (record.id in hooked),
        )
        for record in sorted(records.values(), key=lambda record: record.accepted_at)
    ]
    return account, rows


def accounts_at_providers(here: Installation) -> int:
    """How many accounts the providers have made."""
    return sum(len(sandbox.accounts()) for sandbox in here.sandboxes)


def show(console: Console, account: Account, rows: Sequence[Row], results: Results) -> None:
    """Print it for people."""
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
    console.print(f"\n[bold]Refused at the door[/]: {len(refused)}; mended, they get in")
    for one in refused:
        console.print(f"  line {one.number + 1}: {one.error}", markup=False, soft_wrap=True)
    console.print("\n[bold]Counted[/] in the ledger, the stream, the receiver and the providers")
    for name, value in asdict(account).items():
        console.print(f"  {name:<22} {value}")


def _records(ledger: SyncLedger) -> dict[str, Record]:
    prefix = f"{PREFIX}job:"
    ids = [key.decode().removeprefix(prefix) for key in ledger.redis.scan_iter(f"{prefix}*")]
    return {record.id: record for record in ledger.many([look(id_) for id_ in ids]) if record}


def _doubles(here: Installation) -> int:
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
