"""Whoever has access to the ledger may write anything: it costs what it replaces, and no more."""

import json
from typing import Any

import pytest

from regworker.ledger import SyncLedger
from regworker.ledger.records import Delivery, Idle
from regworker.ledger.snapshot import INDEXES, Beat, beat, worker_key
from regworker.ledger.transitions import CONFIGURED, DEAD, STATS, account_key, deliver, delivery_key
from regworker.settings import Settings
from tests.gateway.service import serves
from tests.integration.ledger_steps import KEYS, claimed, concluded, job, take_in
from tests.integration.outbox import Cli, crm, due, open_shop, settled, tried
from worker.intake.quarantine import Quarantine, QuarantineEntry
from worker.operations.roles import ROLES

#: Commands that look; in a ledger whose key is spoilt, they show everything else.
LOOKS = [
    *(["doctor"], ["stats"], ["health"], ["exporter", "--once"], ["jobs"], ["review", "list"]),
    *(["deliveries", "list"], ["deliveries", "endpoints"], ["providers", "list"], ["audit"]),
    *(["quarantine", "list"], ["results", "groups"], ["keys", "list"]),
]

#: Keys that hold something for many jobs.
KEYS_OF_MANY = [
    *("stats", "configured", "announced", "streams", "alarms", "reviews", "dead", "open", "later"),
    *("audit", "quarantine", "plain", "sealing", "workers", "identity", "replicas"),
    *("endpoint:crm", "pending:crm", "line:crm", "trying:crm", "account:acme:default"),
]

#: A value that is no number.
JUNK = b"\xff\xfe nan 1e999"


@pytest.fixture
def spoilt(ledger: SyncLedger, redis_url: str) -> tuple[Any, Cli]:
    """A ledger with something of everything, and its command."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    due(open_shop(ledger), "a", "b")
    serves(ledger, settings)
    quarantine = Quarantine(settings)
    for number in range(2):
        quarantine.keep(QuarantineEntry.of_entry({b"x": b"%d" % number}, "no job"))
    return ledger.redis, Cli(REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=KEYS, USER="ann")


def spoil(server: Any, key: str) -> None:
    """Put junk into a key, of whatever type it is."""
    match server.type(key):
        case b"hash":
            server.hset(key, mapping=dict.fromkeys([*server.hkeys(key), "accepted", "since"], JUNK))
        case b"zset":
            server.zadd(
                key, {b"\xff\xfe::": float("inf"), b"-": float("-inf"), b"": -1e300, b"{}": 1e18}
            )
        case b"set":
            server.sadd(key, b"\xff\xfe", b"account:x", b"endpoint:")
        case b"stream":
            server.xadd(key, {b"\xff": b"\xfe"})
        case _:
            server.set(key, JUNK)


@pytest.mark.parametrize("how", ["of another type", "of other content"])
@pytest.mark.parametrize("name", KEYS_OF_MANY)
def test_a_spoilt_key_costs_no_command_that_looks(
    spoilt: tuple[Any, Cli], name: str, how: str
) -> None:
    """Each shows what it can; the doctor's other checks are all there, and its advice is right."""
    server, cli = spoilt
    subjects = {one["subject"] for one in cli.json("doctor", code=None)}
    key = f"{{reg}}:{name}"
    if how == "of another type":
        server.delete(key)
        server.set(key, "junk")
    else:
        spoil(server, key)
    for command in LOOKS:
        for more in ([], ["--json"]):
            said = cli(*command, *more, code=None)
            for unwanted in ("unexpectedly", "Traceback", "start the server"):
                assert unwanted not in said, (command, said)
    broken = key in INDEXES and server.type(key) == b"string"
    said = cli("exporter", "--once", code=None)
    assert f"regworker_ledger_up {float(not broken)}" in said
    found = cli.json("doctor", code=None)
    indexes = ("index", "ledger: workers")
    assert {one["level"] for one in found if one["subject"] in indexes} == (
        {"unsafe"} if broken else set()
    )
    left = {one["subject"] for one in found}
    assert {"persistence", "encryption", "broker"} & subjects <= left


#: Numbers in the records of a delivery and of its endpoint.
NUMBERS = [
    *(("delivery", one) for one in ("tries", "fence", "created_at", "started_at", "due_at")),
    *(("delivery", one) for one in ("lease_until", "wakes")),
    *(("endpoint", one) for one in ("failures", "failing_since", "max_in_flight", "disables")),
    ("endpoint", "dead_retention"),
]


@pytest.mark.parametrize(("kind", "field"), NUMBERS)
def test_a_number_that_is_none_keeps_no_delivery_from_its_end(
    ledger: SyncLedger, kind: str, field: str
) -> None:
    """In its record, or in that of its endpoint: one fails and is dead, another arrives."""
    shop = open_shop(ledger)
    for member, verdict in zip(due(shop, "a", "b"), ("dead", "arrived"), strict=True):
        key = delivery_key(member) if kind == "delivery" else "{reg}:endpoint:crm"
        ledger.redis.hset(key, field, JUNK)
        one = shop(deliver(member, 30))
        assert isinstance(one, Delivery), one
        assert settled(shop, one, verdict).state in {"dead", "delivered"}
        assert shop(deliver(member, 30)) == Idle("over", "dead" if verdict == "dead" else "gone")
    assert ledger.redis.zcard(DEAD) == 1
    assert crm(shop).pending == 0


def test_counters_that_are_none_keep_nothing_from_its_end(ledger: SyncLedger) -> None:
    """They begin anew."""
    shop = open_shop(ledger)
    names = ("accepted", "registered:acme:default", "dead", "delivered", "quarantined")
    ledger.redis.hset(STATS, mapping=dict.fromkeys(names, JUNK))
    ledger.redis.hset(account_key("acme", "default"), "failures", JUNK)
    take_in(shop, job("one"))
    concluded(shop, claimed(shop, "one"), "retry", health="fault")
    [member] = due(shop, "a")
    settled(shop, tried(shop, member), "dead")
    assert ledger.redis.hget(account_key("acme", "default"), "failures") == b"1"
    assert ledger.redis.hget(STATS, "dead") == b"1"


@pytest.mark.parametrize("value", ["inf", "-1e400", "nan", "0x10"])
@pytest.mark.parametrize("field", ["failing_since", "stray_at", "disabled"])
def test_a_number_that_json_cannot_hold_costs_no_view(
    spoilt: tuple[Any, Cli], field: str, value: str
) -> None:
    """In an endpoint's record."""
    server, cli = spoilt
    server.hset("{reg}:endpoint:crm", field, value)
    assert "regworker_ledger_up 1.0" in cli("exporter", "--once")
    cli("deliveries", "endpoints")


#: Values of fields that can be parsed, and are no number that JSON can hold, or no such thing.
ODD = {
    "worker": [
        *(("up", "inf"), ("parts", '{"loop": [NaN, 30]}'), ("parts", '{"loop": ["a", "b"]}')),
        *(("parts", "{}"), ("parts", "[" * 100_000), ("lacks", "[1]"), ("lacks", "7")),
        ("broker", "[nobody's]"),
    ],
    "account": [
        *(("interval", "nan"), ("own_interval", "-1e400"), ("burst", "inf"), ("tat", "inf")),
        *(("retry_at", "inf"), ("failures", "nan")),
    ],
}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, field, value) for kind, found in ODD.items() for field, value in found],
    ids=lambda one: one[:20],
)
def test_a_field_that_can_be_parsed_and_is_none_costs_no_view(
    ledger: SyncLedger, spoilt: tuple[Any, Cli], kind: str, field: str, value: str
) -> None:
    """Of a worker's or an account's record; and all JSON can be read by other programs."""
    server, cli = spoilt
    ledger(beat(Beat("w:1:a", "w", 1, "1", "loop", 1, 1, 0, "", {"loop": (0, 30)}, 0), 600))
    key = worker_key("w:1:a") if kind == "worker" else account_key("acme", "default")
    server.hset(key, field, value)
    for command in LOOKS:
        for more in ([], ["--json"]):
            said = cli(*command, *more, code=None)
            assert "unexpectedly" not in said, (command, said)
            for line in said.splitlines() if more else ():
                if line.startswith('{"'):
                    json.loads(line, parse_constant=pytest.fail)
    assert "regworker_ledger_up 1.0" in cli("exporter", "--once")


def test_a_name_with_markup_is_shown_as_it_is(ledger: SyncLedger, spoilt: tuple[Any, Cli]) -> None:
    """And with its control codes escaped; it ends no list."""
    server, cli = spoilt
    name = "[/red]\x1b[2J"
    server.sadd(CONFIGURED, f"account:acme:{name}", f"endpoint:{name}")
    ledger(beat(Beat(name, "w", 1, "1", "loop", 1, 1, 0, "", {"loop": (0, 30)}, 0), 600))
    for command in (*LOOKS, ["top", "--once"]):
        said = cli(*command, code=None)
        assert "unexpectedly" not in said, (command, said)
        # What the exporter serves is for programs.
        assert "\x1b[2J" not in said or command[0] == "exporter", command
    assert r"acme/[/red]\x1b[2J" in cli("providers", "list")


@pytest.mark.parametrize("command", ["zcount", "zcard", "scard", "hvals", "hlen", "hincrby"])
def test_a_missing_right_is_not_taken_for_junk(
    spoilt: tuple[Any, Cli], redis_url: str, command: str
) -> None:
    """The doctor names it, nothing counts as empty, and no advice says that a key is wrong."""
    server, _ = spoilt
    [role] = [one for one in ROLES if one.name == "operator"]
    _, _, *rules = role.rules()
    server.execute_command("ACL", "SETUSER", "few", "reset", "on", ">x", *rules, f"-{command}")
    url = redis_url.replace("://", "://few:x@")
    few = Cli(REGWORKER_REDIS_URL=url, REGWORKER_SEALING_KEYS=KEYS, USER="ann")
    try:
        said = few("doctor", code=1)
        assert f"may not run {command}" in said
        assert "rename" not in said
        if command != "hincrby":
            assert "regworker_ledger_up 0.0" in few("exporter", "--once", code=None)
            few("stats", code=1)
    finally:
        server.execute_command("ACL", "DELUSER", "few")
