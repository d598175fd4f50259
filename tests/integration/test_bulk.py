"""Acts on many items: shown with their number first; then exactly these are acted on, once, even
after a kill."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from regworker.domain.event import EventType
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import PLANS, Limits, announce, plan_key, quarantine
from regworker.ledger.endpoints import pending_key, serve
from regworker.ledger.records import Claim, Settled
from regworker.ledger.transitions import (
    ALARMS,
    AUDIT,
    DEAD,
    ClaimRules,
    Decision,
    SettleRules,
    claim,
    delivery_key,
    settle,
)
from regworker.producer import Producer
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.chaos.proxy import Proxy
from tests.integration.installation import PATIENCE
from tests.integration.jobs import open2b
from tests.integration.outbox import Cli
from worker.cli.local import stack
from worker.operations.audit import AuditFilter, AuditLog

#: Makes the ids of deliveries and messages unique.
NUMBERS = itertools.count()

KEYS = Keyring.new("test")
KEYRING = Keyring.parse(KEYS)
RULES = ClaimRules("nobody:1", 60, 60, 3, 20)
SETTLE = SettleRules(60, 5, 60, 864000)


@pytest.fixture
def shop(ledger: SyncLedger) -> Iterator[SyncLedger]:
    """A ledger where a worker has announced itself; no worker runs."""
    ledger(announce([Limits("open2b", "default", 0, 0, 0)], ["results", "crm"]))
    ledger(serve({"crm": 5}, 86400))
    yield ledger
    ledger.redis.flushdb()


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    """An operator's environment."""
    return {
        "REGWORKER_REDIS_URL": redis_url,
        "REGWORKER_SEALING_KEYS": KEYS,
        "REGWORKER_OPERATOR": "ann",
    }


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    """The command line."""
    return Cli(**environment)


def queued(shop: SyncLedger, environment: dict[str, str], count: int) -> list[str]:
    """Accept jobs that stay queued; return their ids."""
    settings = Settings.load(
        redis_url=environment["REGWORKER_REDIS_URL"], sealing_keys=KEYS, broker_url=None
    )
    with Producer(settings) as producer:
        jobs = [open2b(metadata={"campaign": "spring"}) for _ in range(count)]
        return [one.job_id for one in producer.enqueue_many(jobs)]


def in_review(shop: SyncLedger, environment: dict[str, str], count: int) -> list[str]:
    """Jobs in review."""
    ids = queued(shop, environment, count)
    builder = EventBuilder(Settings.load(sealing_keys=KEYS), KEYRING)
    held = [one for one in shop.many([claim(id_, RULES, 0.5) for id_ in ids]) if one]
    done = shop.many(
        settle(
            one,
            Decision("unresolvable", "who?"),
            SETTLE,
            builder.failed(EventType.REVIEW, one.record, one.at, ()),
        )
        for one in held
        if isinstance(one, Claim)
    )
    assert all(isinstance(one, Settled) for one in done)
    return ids


def deliveries(state: str) -> Callable[[SyncLedger, dict[str, str], int], list[str]]:
    """Deliveries that have not arrived yet, or were given up."""

    def make(shop: SyncLedger, _: dict[str, str], count: int) -> list[str]:
        ids = [f"d:{number}.registered:crm" for number in islice(NUMBERS, count)]
        pipe = shop.redis.pipeline(transaction=False)
        for id_ in ids:
            fields = {"state": state, "endpoint": "crm", "job": "none", "event_id": "x"}
            pipe.hset(delivery_key(id_), mapping={**fields, "tries": "1", "created_at": "1"})
            pipe.zadd(DEAD if state == "dead" else pending_key("crm"), {id_: 1})
        pipe.execute()
        return ids

    return make


def messages(shop: SyncLedger, _: dict[str, str], count: int) -> list[str]:
    """Messages or entries of the job stream in quarantine."""
    ids = [f"{number:012x}" for number in islice(NUMBERS, count)]
    content = json.dumps({"fields": [["YQ==", "Yg=="]]}).encode()
    for id_ in ids:
        sealed = KEYRING.seal(content, seals.quarantine(id_, "{reg}:jobs"))
        fields = {"queue": "{reg}:jobs", "reason": "not JSON", "size": 1, "whole": 1}
        shop(quarantine(id_, {**fields, "content": sealed}, 300))
    return ids


ACTS: dict[str, tuple[Callable[..., list[str]], list[str], str]] = {
    "job.cancel": (queued, ["cancel", "--metadata", "campaign=spring"], "cancelled"),
    "review.rejected": (
        in_review,
        ["review", "resolve", "--rejected", "no", "--account", "default"],
        "rejected",
    ),
    "review.resend": (in_review, ["review", "resolve", "--resend", "--all"], "resent"),
    "delivery.replay": (
        deliveries("dead"),
        ["deliveries", "replay", "--endpoint", "crm"],
        "replayed",
    ),
    "delivery.retry": (deliveries("pending"), ["deliveries", "retry", "--all"], "due"),
    "quarantine.drop": (messages, ["quarantine", "drop", "--reason", "json"], "dropped"),
    "quarantine.requeue": (messages, ["quarantine", "requeue", "--all"], "requeued"),
}


def audited(shop: SyncLedger, what: str) -> Counter[str]:
    """How often the audit log has an act, by the id of its subject."""
    return Counter(one.on for one in AuditLog(shop).entries(AuditFilter(what=what)))


@pytest.mark.parametrize("what", ACTS)
def test_nothing_is_done_before_a_yes(
    shop: SyncLedger, environment: dict[str, str], cli: Cli, what: str
) -> None:
    """A filter shows how many and which; after `yes` exactly these are acted on, not later ones."""
    make, command, word = ACTS[what]
    ids = make(shop, environment, 3)
    [shown] = cli.json(*command, "--dry-run")
    assert (shown["count"], sorted(shown["ids"])) == (3, sorted(ids))
    assert not audited(shop, what)
    assert "add --yes" in cli(*command, code=2)
    assert not audited(shop, what)
    make(shop, environment, 5)
    [done] = cli.json("plans", "resume", shown["plan"])
    assert (done["count"], done[word], done["skipped"]) == (3, 3, [])
    assert audited(shop, what) == Counter(ids)
    # Resume it again: nothing is left to do.
    [again] = cli.json("plans", "resume", shown["plan"])
    assert again["count"] == 0
    assert audited(shop, what) == Counter(ids)
    left = {one["id"]: one["left"] for one in cli.json("plans", "list", "--all")}
    assert left[shown["plan"]] == 0
    assert shown["plan"] not in [one["id"] for one in cli.json("plans", "list")]
    for key in shop.redis.scan_iter("{reg}:plan*"):
        assert shop.redis.pttl(key) > 0, "a plan is not kept for ever"


def ended_in_the_middle(
    shop: SyncLedger, environment: dict[str, str], command: list[str], by: signal.Signals
) -> tuple[int, str]:
    """End a command by a signal once it has begun to act; return its exit code, and all it said."""
    assert AuditLog(shop).last() == "0-0"
    port = urlsplit(environment["REGWORKER_REDIS_URL"]).port
    assert port
    with Proxy() as proxy:
        # So far away that this process is in time to end it.
        link = proxy.add("ledger", port, distance=0.05)
        far = {"REGWORKER_REDIS_URL": f"redis://127.0.0.1:{link.port}"}
        with stack.process(
            [sys.executable, "-m", "worker.cli", *command, "--yes"],
            {**environment, **far},
            Path.cwd(),
            subprocess.PIPE,
        ) as process:
            stack.until(
                lambda: shop.redis.xread({AUDIT: "0"}, block=1000), "the first act", PATIENCE
            )
            process.send_signal(by)
            said, _ = process.communicate(timeout=PATIENCE)
            return process.returncode, said.decode()


def test_what_was_interrupted_says_how_far_it_came_and_how_to_go_on(
    shop: SyncLedger, environment: dict[str, str], cli: Cli
) -> None:
    """Ctrl-C in the middle: the command names its plan, which nobody would find otherwise."""
    make, command, _ = ACTS["job.cancel"]
    ids = make(shop, environment, 100)
    code, said = ended_in_the_middle(shop, environment, command, signal.SIGINT)
    [plan] = cli.json("plans", "list")
    assert code == 130
    assert re.search(rf"interrupted: \d+ of 100 are done; .*plans resume {plan['id']}`", said)
    cli("plans", "resume", plan["id"])
    assert audited(shop, "job.cancel") == Counter(ids)


@pytest.mark.parametrize("what", ACTS)
def test_what_was_killed_goes_on_and_does_nothing_twice(
    shop: SyncLedger, environment: dict[str, str], cli: Cli, what: str
) -> None:
    """kill -9 in the middle: the plan is kept, and resuming it does the rest."""
    make, command, _ = ACTS[what]
    count = 2000 if what.startswith("delivery") else 100
    ids = make(shop, environment, count)
    ended_in_the_middle(shop, environment, command, signal.SIGKILL)
    [plan] = cli.json("plans", "list")
    assert plan["total"] == count
    assert plan["left"] > 0, "it was over before it was killed"
    before = audited(shop, what)
    [done] = cli.json("plans", "resume", plan["id"], code=None)
    # The kill may come after an act and before its note; some acts cannot be recognized as done.
    assert all(one["what"] == "gone" for one in done["skipped"])
    assert len(done["skipped"]) <= len(before)
    assert audited(shop, what) == Counter(ids)


def test_what_has_changed_since_the_preview_is_skipped_and_named(
    shop: SyncLedger, environment: dict[str, str], cli: Cli
) -> None:
    """It makes no difference whether a worker or another person changed it."""
    called, free = queued(shop, environment, 2)
    [cancel] = cli.json("cancel", "--all", "--dry-run")
    assert isinstance(shop(claim(called, RULES, 0.5)), Claim)
    [done] = cli.json("plans", "resume", cancel["plan"], code=1)
    assert [one["id"] for one in done["skipped"]] == [called]
    assert "it is calling" in done["skipped"][0]["why"]
    assert audited(shop, "job.cancel") == Counter([free])

    settled, waits = in_review(shop, environment, 2)
    [resolve] = cli.json("review", "resolve", "--rejected", "no", "--all", "--dry-run")
    cli("review", "resolve", settled, "--resend")
    assert "was skipped: it has changed since the preview" in cli(
        "plans", "resume", resolve["plan"], code=1
    )
    assert audited(shop, "review.rejected") == Counter([waits])

    again, once = messages(shop, environment, 2)
    [drop] = cli.json("quarantine", "drop", "--all", "--dry-run")
    shop(quarantine(again, {"queue": "q", "reason": "not JSON"}, 300))
    [done] = cli.json("plans", "resume", drop["plan"], code=1)
    assert [(one["id"], one["what"]) for one in done["skipped"]] == [(again, "changed")]
    assert audited(shop, "quarantine.drop") == Counter([once])


def test_several_ids_are_a_list_of_their_own(
    shop: SyncLedger, environment: dict[str, str], cli: Cli
) -> None:
    """The command asks for no confirmation of given ids; it names an id that does not exist."""
    ids = queued(shop, environment, 3)
    [done] = cli.json("cancel", *ids[:2], "nobody", code=1)
    assert done["cancelled"] == 2
    assert [one["id"] for one in done["skipped"]] == ["nobody"]
    assert audited(shop, "job.cancel") == Counter(ids[:2])


def test_wrong_use_is_refused(shop: SyncLedger, cli: Cli) -> None:
    """Neither ids nor options, or both; an outcome for many jobs; an unknown plan."""
    for arguments in (
        ["cancel"],
        ["cancel", "x", "--all"],
        ["review", "resolve", "--resend"],
        ["review", "resolve", "--registered", "--all"],
        ["quarantine", "drop"],
        ["deliveries", "retry"],
    ):
        cli(*arguments, code=2)
    assert "no plan" in cli("plans", "resume", "0123456789ab", code=1)
    assert "no plan" in cli("plans", "drop", "0123456789ab", code=1)
    [nothing] = cli.json("cancel", "--all", "--yes")
    assert (nothing["count"], nothing["cancelled"]) == (0, 0)


class Ahead(datetime):
    """A clock that is three hours ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Ahead":
        """The time there."""
        return cls.fromtimestamp(time.time() + 3 * 3600, tz)


def test_ages_count_by_the_ledgers_clock(
    shop: SyncLedger, environment: dict[str, str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the operator's machine may be hours off; nothing younger than wanted is chosen."""
    ids = queued(shop, environment, 2)
    monkeypatch.setattr("worker.cli.time_arguments.datetime", Ahead)
    assert {one["job_id"] for one in cli.json("jobs", "--since", "1h")} == set(ids)
    [shown] = cli.json("cancel", "--older-than", "2h", "--dry-run")
    assert shown["ids"] == []


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{}", "[", '{"act": "x", "total": "many"}'),
        '{"act": "x", "arguments": {}, "total": 1, "who": "x", "why": "", "made_at": "early"}',
    ],
)
def test_a_plan_that_cannot_be_read_hides_no_other(
    shop: SyncLedger, environment: dict[str, str], cli: Cli, content: str | None
) -> None:
    """It is named, and can be dropped."""
    queued(shop, environment, 2)
    [shown] = cli.json(*ACTS["job.cancel"][1], "--dry-run")
    key = plan_key("spoilt")
    shop.redis.zadd(PLANS, {"spoilt": 1})
    if content is None:
        shop.redis.set(key, "junk")
    else:
        shop.redis.hset(key, "about", content)
    assert [one["id"] for one in cli.json("plans", "list")] == [shown["plan"]]
    assert key in cli("plans", "list", code=None)
    assert "plans drop spoilt" in cli("plans", "resume", "spoilt", code=1)
    cli("plans", "drop", "spoilt")
    assert key not in cli("plans", "list", code=None)


@pytest.mark.parametrize("newer", [{"act": "job.polish"}, {"arguments": {"only": "eu"}}])
def test_a_plan_of_a_newer_version_is_left_to_it(
    shop: SyncLedger, environment: dict[str, str], cli: Cli, newer: dict[str, object]
) -> None:
    """Its act is named, and nothing is done."""
    queued(shop, environment, 2)
    [shown] = cli.json(*ACTS["job.cancel"][1], "--dry-run")
    key = plan_key(shown["plan"])
    about = json.loads(shop.redis.hget(key, "about") or b"")
    shop.redis.hset(key, "about", json.dumps({**about, **newer}))
    said = cli("plans", "resume", shown["plan"], code=1)
    assert f"this version does not know: {newer.get('act', 'job.cancel')}" in said
    assert "resume it with the version that made it" in said


def test_a_plan_can_be_dropped(shop: SyncLedger, environment: dict[str, str], cli: Cli) -> None:
    """A dropped plan is not carried out."""
    queued(shop, environment, 1)
    [plan] = cli.json("cancel", "--all", "--dry-run")
    cli("plans", "drop", plan["plan"])
    assert cli.json("plans", "list") == []
    assert shop.redis.zcard(ALARMS) == 1
