"""What must hold, checked from outside: pure functions over what was collected.

Each violation is of one of four kinds, the first three of which are the run's last line:

    lost         an accepted job that will not end, is not in the ledger, or whose customer is not
                 at the provider although it is said to be
    duplicate    a second account, a second final event, or a call sent blindly once more
    unpublished  an end that its producer was not told of, or was told of wrongly
    unsound      everything else: a payload kept, an alarm left, an unclean exit, ...
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.chaos.collect import Ledger, Seen, parsed
from tests.chaos.load import Accepted
from worker.lifecycle import FINAL, PARKED, UNFINISHED

REGISTRATIONS = frozenset({"customer-registration", "storefront.sign-up"})
LOGINS = frozenset({"customer-login", "storefront.login"})

KINDS = ("lost", "duplicate", "unpublished", "unsound")


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """Something that must not be."""

    kind: str
    job: str
    text: str


def final(seen: Seen) -> list[Violation]:
    """All that is wrong when a run has come to rest."""
    return sorted(
        {
            *_snapshot(seen.ledger),
            *_at_rest(seen),
            *_accounts(seen),
            *_events(seen),
            *_hooks(seen),
            *_calls(seen),
            *(Violation("unsound", "", text) for text in seen.unclean),
        }
    )


def underway(seen: Seen) -> list[Violation]:
    """What is wrong already while a run goes on."""
    return sorted({*_snapshot(seen.ledger), *_at_most_one_account(seen), *_calls(seen)})


def _snapshot(ledger: Ledger) -> Iterator[Violation]:
    """What holds at every moment: state, alarm, payload and event change together."""
    told = Counter(
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
        if state in FINAL and not told[id_]:
            yield Violation("unpublished", id_, f"is {state}, and no event says so")
        if state not in FINAL and told[id_]:
            yield Violation("unpublished", id_, f"is {state}, and an event says it is over")
        if told[id_] > 1:
            yield Violation("duplicate", id_, f"has {told[id_]} final events")
        for text in _breaks(job.get("log", "")):
            yield Violation("unsound", id_, text)


#: Lines of a job's timeline: a claim; a fact from whom the lease was taken; what is no settle.
_CLAIM = re.compile(r"(calling|asking) by ")
_LATE = re.compile(r"a late answer: ")
_BESIDE = re.compile(r"accepted|delivery to |abandoned|cancelled")


def _breaks(log: str) -> Iterator[str]:
    """A claim is settled once, by its holder or by its end: claims and settles take turns."""
    lines = [line.partition(" ")[2] for line in log.splitlines()]
    # A timeline keeps its last lines only: of a claim before these nothing is known.
    claimed: bool | None = False if lines and lines[0] == "accepted" else None
    before = ""
    for line in lines:
        if _CLAIM.match(line):
            # A question whose asker died is simply asked again.
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
        yield Violation("unsound", id_, "is in the ledger and nobody knows of it")
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
    """At most one account a job; exactly one where it is registered, none where it is not."""
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
            # Its password opens the account: asking would have told.
            yield Violation("unsound", one.job_id, f"is in {state} and has an account of its own")
    jobs = {(one.provider, one.email) for one in seen.accepted}
    for (provider, email), accounts in made.items():
        if (provider, email) not in jobs:
            text = f"{len(accounts)} accounts for {email} of {provider}, which no job asked for"
            yield Violation("duplicate", "", text)
    for email in seen.refused:
        if any(email == given for _, given in made):
            yield Violation("duplicate", "", f"{email} was refused at the door and has an account")


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
    """One final event a job, of its own id, that tells what the provider's own books say."""
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
    digest = hashlib.sha256(outcome.get("customer_key", "").encode()).hexdigest()
    return any(
        account["customer_key_sha256"] == digest
        and account["box_id"] == outcome.get("customer_box_id")
        for account in accounts
    )


def _hooks(seen: Seen) -> Iterator[Violation]:
    """Every event that is to go to the webhook arrived, with its id and its very bytes."""
    sums = {
        event["id"]: (event["subject"], hashlib.sha256(raw).hexdigest())
        for raw, event in zip(seen.ledger.events, parsed(seen.ledger.events), strict=True)
    }
    taken = set()
    for hook in seen.hooks:
        id_, subject = hook["webhook_id"], hook["event"]["subject"]
        if not hook["verified"]:
            yield Violation("unpublished", str(subject), "a webhook's signature is wrong")
        if sums.get(id_) != (subject, hook["body_sha256"]):
            text = f"webhook {id_} tells something else than the stream"
            yield Violation("unpublished", str(subject), text)
        if 200 <= hook["status"] < 300:
            taken.add(id_)
    wanted = {one.job_id for one in seen.accepted if one.webhook}
    for id_, (subject, _) in sums.items():
        if subject in wanted and id_ not in taken:
            yield Violation("unpublished", subject, f"event {id_} did not reach the webhook")


def _calls(seen: Seen) -> Iterator[Violation]:
    """No registration follows one that may have had an effect, without a question in between."""
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
                text = "was sent again without having been asked after"
                yield Violation("duplicate", jobs.get(who, who[1]), text)
            sent[who] = request["status"] != 429


def stock(
    accepted: tuple[Accepted, ...],
    accounts: tuple[dict[str, Any], ...],
    events: tuple[bytes, ...],
) -> list[Violation]:
    """The same of a worker without a ledger: what the stream and the providers' books show."""
    seen = Seen(accepted=accepted, accounts=accounts)
    made = _by_email(seen)
    told = Counter(event["subject"] for event in parsed(events))
    kinds = {(event["subject"], event["type"]) for event in parsed(events)}
    found = set(_at_most_one_account(seen))
    for one in accepted:
        exists = bool(made[one.provider, one.email])
        if not told[one.job_id]:
            kind = "unpublished" if exists else "lost"
            text = f"has {'an' if exists else 'no'} account, and no event"
            found.add(Violation(kind, one.job_id, text))
        elif exists and (one.job_id, "registration.registered") not in kinds:
            found.add(
                Violation("unpublished", one.job_id, "has an account, and was told it is not")
            )
        if told[one.job_id] > 1:
            text = f"has {told[one.job_id]} final events"
            found.add(Violation("duplicate", one.job_id, text))
    return sorted(found)
