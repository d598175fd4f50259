"""The invariants, checked from outside: pure functions over the collected records.

Each violation is of one of four kinds; the run's last line counts the first three:

    lost         an accepted job that does not end, is not in the ledger, or is registered without
                 a customer at the provider
    duplicate    a second account, a second final event, or a call repeated without a lookup
    unpublished  an end without an event, or with a wrong one
    unsound      everything else: a payload kept, an alarm left, an unclean exit, ...
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from regworker.domain.states import FINAL, PARKED, UNFINISHED
from tests.chaos.collect import Ledger, Seen, parsed
from tests.chaos.load import Accepted

REGISTRATIONS = frozenset({"customer-registration", "storefront.sign-up"})
LOGINS = frozenset({"customer-login", "storefront.login"})

KINDS = ("lost", "duplicate", "unpublished", "unsound")


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """A broken invariant."""

    kind: str
    job: str
    text: str


def final(seen: Seen) -> list[Violation]:
    """All violations once a run has come to rest."""
    return sorted(
        {
            *_snapshot(seen.ledger),
            *_at_rest(seen),
            *_accounts(seen),
            *_events(seen),
            *_crossed(seen),
            *_hooks(seen),
            *_ends(seen),
            *_calls(seen),
            *(Violation("unsound", "", text) for text in seen.unclean),
        }
    )


def underway(seen: Seen) -> list[Violation]:
    """The violations that can be seen while a run goes on."""
    return sorted(
        {
            *_snapshot(seen.ledger),
            *_at_most_one_account(seen),
            *_calls(seen),
            *_crossed(seen),
            *_ends(seen),
        }
    )


#: What may become of accepted and cancelled jobs if the ledger loses data.
_FORGOTTEN = re.compile(
    r"was accepted and is not in the ledger$|was cancelled and is "
    r"|final events with several ids: .*\bcancelled "
)


def split(found: list[Violation], *, forgets: bool) -> tuple[list[Violation], list[Violation]]:
    """Violations, and lost receipts: those that a ledger which `forgets` may cause."""
    forgotten = [one for one in found if forgets and _FORGOTTEN.match(one.text)]
    return [one for one in found if one not in forgotten], forgotten


def _snapshot(ledger: Ledger) -> Iterator[Violation]:
    """The invariants of every moment: state, alarm, payload and event change together."""
    ends = Counter(
        event["subject"]
        for event in parsed(ledger.events)
        if event["type"] != "registration.review"
    )
    for id_, job in ledger.jobs.items():
        state = job.get("state", "nothing")
        if state in UNFINISHED and id_ not in ledger.alarms:
            yield Violation("lost", id_, f"is {state} and has no alarm")
        if state in FINAL | PARKED and id_ in ledger.alarms:
            yield Violation("unsound", id_, f"is {state} and has an alarm")
        if state in FINAL and "payload" in job:
            yield Violation("unsound", id_, f"is {state} and has its payload")
        if state in FINAL and not ends[id_]:
            yield Violation("unpublished", id_, f"is {state}, and no event says so")
        if state not in FINAL and ends[id_]:
            yield Violation("unpublished", id_, f"is {state}, and an event says it is over")
        if ends[id_] > 1:
            yield Violation("duplicate", id_, f"has {ends[id_]} final events")
        for text in _breaks(job.get("log", "")):
            yield Violation("unsound", id_, text)


#: Lines of a job's timeline: a claim; a late fact or a doubt, by which a claim loses its lease;
#: lines that are no settle.
_CLAIM = re.compile(r"(calling|asking) by ")
_LATE = re.compile(
    r"a late answer: |unknown: the (ledger may have forgotten a call|customer may exist)"
)
_BESIDE = re.compile(r"accepted|delivery to |abandoned|cancelled")


def _breaks(log: str) -> Iterator[str]:
    """Claims and settles alternate: a claim is settled once, by its holder or by its expiry."""
    lines = [line.partition(" ")[2] for line in log.splitlines()]
    # A timeline keeps only its last lines: earlier claims are unknown.
    claimed: bool | None = False if lines and lines[0] == "accepted" else None
    before = ""
    for line in lines:
        if _CLAIM.match(line):
            # If the worker of a lookup dies, the lookup is simply repeated.
            if claimed and not before.startswith("asking by "):
                yield f"was claimed while it was called: {before!r}, then {line!r}"
            claimed, before = True, line
        elif _LATE.match(line):
            claimed, before = None, line
        elif not _BESIDE.match(line):
            if claimed is False:
                yield f"was settled without a claim: {before!r}, then {line!r}"
            claimed, before = False, line


def _at_rest(seen: Seen) -> Iterator[Violation]:
    ledger = seen.ledger
    known = {one.job_id: one for one in seen.accepted}
    for id_, one in known.items():
        job = ledger.jobs.get(id_)
        if job is None:
            yield Violation("lost", id_, "was accepted and is not in the ledger")
        elif job.get("state") not in FINAL | PARKED:
            yield Violation("lost", id_, f"is {job.get('state')} for ever")
        elif one.cancelled and job["state"] != "cancelled":
            yield Violation("unsound", id_, f"was cancelled and is {job['state']}")
    for id_ in ledger.jobs.keys() - known.keys():
        yield Violation("unsound", id_, "is in the ledger and was never accepted")
    for member in ledger.alarms:
        yield Violation("unsound", member, "an alarm is left")
    for id_ in ledger.in_flight:
        yield Violation("unsound", id_, "still counts as a call in flight")
    for id_ in ledger.waiting:
        yield Violation("unsound", id_, "still waits for a place")
    for key, state in ledger.deliveries.items():
        yield Violation("unpublished", key, f"a delivery is left: {state}")
    if ledger.quarantined:
        yield Violation("unsound", "", f"{ledger.quarantined} messages in quarantine")


def _accounts(seen: Seen) -> Iterator[Violation]:
    """At most one account per job; exactly one if it is registered, none if it is not."""
    yield from _at_most_one_account(seen)
    made = _by_email(seen)
    for one in seen.accepted:
        state = seen.ledger.jobs.get(one.job_id, {}).get("state", "")
        count = len(made[one.provider, one.email])
        if state == "registered" and not count:
            yield Violation("lost", one.job_id, "is registered and has no account")
        if state in FINAL - {"registered"} and count:
            yield Violation("unpublished", one.job_id, f"is {state} and has an account")
        if state in PARKED and count and one.sort != "hurried":
            # Its password opens the account: a lookup would have found it.
            yield Violation("unsound", one.job_id, f"is in {state} and has an account of its own")
    jobs = {(one.provider, one.email) for one in seen.accepted}
    for (provider, email), accounts in made.items():
        if (provider, email) not in jobs:
            text = f"{len(accounts)} accounts for {email} of {provider}, which no job asked for"
            yield Violation("duplicate", "", text)
    for email in seen.refused:
        if any(email == given for _, given in made):
            yield Violation("duplicate", "", f"{email} was refused at once and has an account")


def _at_most_one_account(seen: Seen) -> Iterator[Violation]:
    jobs = {(one.provider, one.email): one.job_id for one in seen.accepted}
    for (provider, email), accounts in _by_email(seen).items():
        if len(accounts) > 1:
            text = f"has {len(accounts)} accounts at {provider}"
            yield Violation("duplicate", jobs.get((provider, email), email), text)


def _by_email(seen: Seen) -> dict[tuple[str, str], list[dict[str, Any]]]:
    made: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for account in seen.accounts:
        made[account["provider"], account["email"].casefold()].append(account)
    return made


def _events(seen: Seen) -> Iterator[Violation]:
    """One final event per job, with a unique id, that agrees with the provider's records."""
    known = {one.job_id: one for one in seen.accepted}
    made = _by_email(seen)
    events = parsed(seen.ledger.events)
    for id_, count in Counter(event["id"] for event in events).items():
        if count > 1:
            yield Violation("duplicate", id_, f"{count} events have this id")
    for event in events:
        id_ = event["subject"]
        one = known.get(id_)
        if one is None:
            yield Violation("unsound", id_, "has an event and was not accepted")
            continue
        state = seen.ledger.jobs.get(id_, {}).get("state")
        kind = event["type"].removeprefix("registration.")
        if kind not in {state, "review"}:
            yield Violation("unpublished", id_, f"is {state}, and its event says {kind}")
        if kind == "registered" and not _tells(event, made[one.provider, one.email]):
            yield Violation("unpublished", id_, "its event has another key than its account")
    reviewed = {e["subject"] for e in events if e["type"] == "registration.review"}
    for id_ in known:
        if seen.ledger.jobs.get(id_, {}).get("state") in PARKED and id_ not in reviewed:
            yield Violation("unpublished", id_, "waits for a person, and no event says so")


def _tells(event: dict[str, Any], accounts: list[dict[str, Any]]) -> bool:
    outcome = event["data"].get("outcome") or {}
    digest = _digest(event)
    return any(
        account["customer_key_sha256"] == digest
        and account["box_id"] == outcome.get("customer_box_id")
        for account in accounts
    )


_EMAIL = re.compile(r"[\w.+-]+@example\.com")


def _crossed(seen: Seen) -> Iterator[Violation]:
    """No customer's data in another customer's outcome, by the provider's records."""
    known = {one.job_id: one.email.casefold() for one in seen.accepted}
    owners = {one["customer_key_sha256"]: one["email"].casefold() for one in seen.accounts}
    for event in parsed(seen.ledger.events):
        id_ = event["subject"]
        if (own := known.get(id_)) is None:
            continue
        owner = owners.get(_digest(event), own)
        if owner != own:
            yield Violation("unpublished", id_, f"was given another customer's key: {owner}")
        named = {email.casefold() for email in _EMAIL.findall(json.dumps(event["data"]))}
        for email in named & set(known.values()) - {own}:
            yield Violation("unpublished", id_, f"its event names another customer: {email}")


def _digest(event: dict[str, Any]) -> str:
    outcome = event["data"].get("outcome") or {}
    return hashlib.sha256(outcome.get("customer_key", "").encode()).hexdigest()


def _hooks(seen: Seen) -> Iterator[Violation]:
    """Every event for the webhook arrived, with its id and its exact bytes."""
    sums = {
        event["id"]: (event["subject"], hashlib.sha256(raw).hexdigest())
        for raw, event in zip(seen.ledger.events, parsed(seen.ledger.events), strict=True)
    }
    taken = set()
    for hook in seen.hooks:
        id_, subject = hook["webhook_id"], hook["event"]["subject"]
        if not hook["verified"]:
            yield Violation("unpublished", str(subject), "a webhook's signature is wrong")
        known = sums.get(id_)
        if seen.fails_over:
            # If the ledger lost a job's end, the job may end again and publish it with the same id.
            same = subject not in seen.ledger.jobs or (known is not None and known[0] == subject)
        else:
            same = known == (subject, hook["body_sha256"])
        if not same and not (seen.fails_over and _reviews(hook)):
            text = f"webhook {id_} has other content than the stream"
            yield Violation("unpublished", str(subject), text)
        if 200 <= hook["status"] < 300:
            taken.add(id_)
    wanted = {one.job_id for one in seen.accepted if one.webhook}
    for id_, (subject, _) in sums.items():
        if subject in wanted and id_ not in taken:
            yield Violation("unpublished", subject, f"event {id_} did not reach the webhook")


def _ends(seen: Seen) -> Iterator[Violation]:
    """Whatever a ledger loses, all events of a job's end have one id."""
    ends: dict[str, set[str]] = defaultdict(set)
    for hook in seen.hooks:
        if not _reviews(hook):
            kind = hook["event"]["type"].removeprefix("registration.")
            ends[hook["event"]["subject"]].add(f"{kind} {hook['webhook_id']}")
    for subject, ids in ends.items():
        if len(ids) > 1:
            text = f"final events with several ids: {', '.join(sorted(ids))}"
            yield Violation("duplicate", subject, text)


def _reviews(hook: dict[str, Any]) -> bool:
    return str(hook["event"]["type"]) == "registration.review"


def _calls(seen: Seen) -> Iterator[Violation]:
    """After a registration that may have had an effect, no other one without a lookup in
    between."""
    jobs = {(one.provider, one.email): one.job_id for one in seen.accepted}
    sent: dict[tuple[str, str], bool] = defaultdict(bool)
    for request in seen.requests:
        if request["email"] is None:
            continue
        who = (request["provider"], request["email"].casefold())
        if request["call"] in LOGINS:
            sent[who] = False
        elif request["call"] in REGISTRATIONS:
            if sent[who]:
                text = "was sent again without a lookup"
                yield Violation("duplicate", jobs.get(who, who[1]), text)
            sent[who] = request["status"] != 429


def stock(
    accepted: tuple[Accepted, ...],
    accounts: tuple[dict[str, Any], ...],
    events: tuple[bytes, ...],
) -> list[Violation]:
    """The same checks for a worker without a ledger: by the stream and the providers' records."""
    seen = Seen(accepted=accepted, accounts=accounts)
    made = _by_email(seen)
    ends = Counter(event["subject"] for event in parsed(events))
    kinds = {(event["subject"], event["type"]) for event in parsed(events)}
    found = set(_at_most_one_account(seen))
    for one in accepted:
        exists = bool(made[one.provider, one.email])
        if not ends[one.job_id]:
            kind = "unpublished" if exists else "lost"
            text = f"has {'an' if exists else 'no'} account, and no event"
            found.add(Violation(kind, one.job_id, text))
        elif exists and (one.job_id, "registration.registered") not in kinds:
            found.add(
                Violation("unpublished", one.job_id, "has an account, and its event denies it")
            )
        if ends[one.job_id] > 1:
            text = f"has {ends[one.job_id]} final events"
            found.add(Violation("duplicate", one.job_id, text))
    return sorted(found)
