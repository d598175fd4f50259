"""What an operator's commands say and do when it matters: at night, for many, and beside junk."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, stray
from regworker.ledger.endpoints import endpoint_key
from regworker.ledger.transitions import CONFIGURED, STATS, account_key, job_key
from tests.integration.entry_points import id_of
from tests.integration.jobs import open2b
from tests.integration.ledger_steps import KEYS
from tests.integration.outbox import Cli
from worker.cli.local import stack
from worker.cli.local.up import alone
from worker.operations.audit import AuditFilter, AuditLog

ACCOUNTS = [("acme", "default"), ("acme", "other"), ("zeta", "default")]
NAMES = ["/".join(one) for one in ACCOUNTS]


@pytest.fixture
def cli(ledger: SyncLedger, redis_url: str) -> Cli:
    """An operator's commands, in a ledger where a worker has announced three accounts."""
    ledger(announce([Limits(*one, 0, 0, 9) for one in ACCOUNTS], ["results", "crm"]))
    return Cli(REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=KEYS, REGWORKER_OPERATOR="ann")


def acts(ledger: SyncLedger) -> list[tuple[str, str]]:
    """The kinds and subjects in the audit log, the oldest first."""
    return [(one.what, one.on) for one in AuditLog(ledger).entries(AuditFilter())]


def paused(cli: Cli) -> dict[str, str]:
    """The reason of each paused account."""
    found = cli.json("providers", "list")
    return {f"{one['provider']}/{one['account']}": one["reason"] for one in found if one["paused"]}


# all accounts


def test_all_accounts_are_paused_and_resumed(ledger: SyncLedger, cli: Cli) -> None:
    """Each has an entry in the audit log. A pause that was made for another reason stays."""
    cli("providers", "pause", NAMES[1], "--why", "ticket 4712")
    done = cli.json("providers", "pause", "--all", "--why", "the disk is full")
    assert [one["paused"] for one in done] == [True, False, True]
    reasons = dict(zip(NAMES, ["the disk is full", "ticket 4712", "the disk is full"], strict=True))
    assert paused(cli) == reasons
    done = cli.json("providers", "resume", "--all", "--reason", "disk")
    assert [one["resumed"] for one in done] == [True, False, True]
    assert paused(cli) == {NAMES[1]: "ticket 4712"}
    cli("providers", "resume", "--all")
    assert paused(cli) == {}
    assert sorted(acts(ledger)) == sorted(
        (what, name) for what in ("account.pause", "account.resume") for name in NAMES
    )


def test_all_accounts_are_held_until_somebody_resumes_them(ledger: SyncLedger, cli: Cli) -> None:
    """A pause that would end by itself does not; a refusal of the provider is left as it is, and
    only whoever knows of it ends it."""
    refused = {"breaker": "refused", "reason": "the key is refused"}
    ledger.redis.hset(account_key(*ACCOUNTS[0]), mapping=refused)
    cli("providers", "pause", NAMES[1], "--why", "until six", "--until", "1h")
    cli("providers", "pause", "--all", "--why", "restored")
    found = {(one["provider"], one["account"]): one for one in cli.json("providers", "list")}
    first, second, third = (found[account] for account in ACCOUNTS)
    assert (first["breaker"], first["reason"]) == ("refused", "the key is refused")
    assert second["paused"]
    assert third["paused"]
    assert not second["paused_until"]
    cli("providers", "resume", "--all", "--reason", " ", code=2)
    cli("providers", "resume", "--all", "--reason", "restored")
    assert paused(cli) == {}
    assert ledger.redis.hget(account_key(*ACCOUNTS[0]), "breaker") == b"refused"


def test_an_account_that_cannot_be_paused_stops_no_other(ledger: SyncLedger, cli: Cli) -> None:
    """The command names it, and fails."""
    ledger.redis.set(account_key(*ACCOUNTS[0]), "junk")
    said = cli("providers", "pause", "--all", "--why", "the disk is full", code=1)
    assert f"{NAMES[0]} could not be changed: " in said
    assert sorted(paused(cli)) == NAMES[1:]
    said = cli("providers", "resume", "--all", "--reason", "disk", code=1)
    assert f"{NAMES[0]} could not be changed: " in said
    assert paused(cli) == {}


@pytest.mark.parametrize("act", ["pause", "resume"])
def test_it_is_one_account_or_all(ledger: SyncLedger, cli: Cli, act: str) -> None:
    """Neither is wrong usage, and so are both."""
    cli("providers", act, code=2)
    cli("providers", act, NAMES[0], "--all", code=2)
    assert acts(ledger) == []


def test_an_account_that_is_not_held_is_not_resumed(ledger: SyncLedger, cli: Cli) -> None:
    """The command says so, and the audit log has no entry."""
    assert "is not paused, and its breaker is closed" in cli("providers", "resume", NAMES[0])
    assert acts(ledger) == []


# output for programs


def test_acts_on_accounts_and_endpoints_have_an_output_for_programs(
    ledger: SyncLedger, cli: Cli
) -> None:
    """One object for each account or endpoint."""
    ledger(stray(account_key(*ACCOUNTS[0])))
    ledger(stray(endpoint_key("crm")))
    name = {"provider": "acme", "account": "default"}
    expected: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("providers", "pause", NAMES[0]), {**name, "paused": True, "until": None}),
        (("providers", "resume", NAMES[0]), {**name, "resumed": True, "started": 0}),
        (("providers", "pace", NAMES[0], "9/1s"), {**name, "pace": "9/1s", "before": "no limit"}),
        (("providers", "trust", NAMES[0]), {**name, "was_distrusted": True}),
        (("deliveries", "trust", "crm"), {"endpoint": "crm", "was_distrusted": True}),
    ]
    for line, said in expected:
        [found] = cli.json(*line)
        assert found.keys() == said.keys()
        assert {**found, "before": ""} == {**said, "before": ""}


# a development server


def test_a_second_development_server_does_not_touch_the_folder_of_the_first(
    cli: Cli, tmp_path: Path
) -> None:
    """Two servers that write the same files would lose jobs. The error says what to do."""
    with alone(tmp_path):
        said = cli("up", "--data", str(tmp_path), code=1)
    assert f"another `regworker up` uses {tmp_path}" in said
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]
    with alone(tmp_path):
        pass


def test_a_server_that_outlived_its_parent_keeps_its_folder(tmp_path: Path) -> None:
    """The lock ends with a killed `regworker up`; its Valkey may still write the same files."""
    server = stack.start_valkey(tmp_path, appendonly="yes")
    try:
        said = f"a Valkey still runs on port {server.port}"
        with pytest.raises(stack.StackError, match=said), stack.valkey(tmp_path):
            pass
        assert server.is_running()
    finally:
        server.stop()
    with stack.valkey(tmp_path) as another:
        assert another.is_running()


@pytest.mark.parametrize("condition", ["stopped", "locked", "full"])
def test_a_server_that_says_nothing_keeps_its_folder(tmp_path: Path, condition: str) -> None:
    """It writes the same files all the same; the error says what to delete if it is another's."""
    server = stack.start_valkey(tmp_path, appendonly="yes")
    config = (tmp_path / "valkey.conf").read_text("utf-8")
    process = server._process
    assert process is not None
    try:
        with Redis(port=server.port) as redis:
            if condition == "stopped":
                process.send_signal(signal.SIGSTOP)
            elif condition == "locked":
                redis.config_set("requirepass", "another")
            else:
                redis.config_set("maxclients", 1)
            said = f"what listens on port {server.port} does not say .*delete .*valkey.conf"
            with pytest.raises(stack.StackError, match=said), stack.valkey(tmp_path):
                pass
    finally:
        process.send_signal(signal.SIGCONT)
        server.stop()
    # As a killed `regworker up` leaves it: nothing listens there any more.
    (tmp_path / "valkey.conf").write_text(config, "utf-8")
    with stack.valkey(tmp_path) as another:
        assert another.is_running()


# redriving a file


def test_a_line_whose_record_cannot_be_read_stops_no_other(
    ledger: SyncLedger, cli: Cli, tmp_path: Path
) -> None:
    """Each line has an answer of its own."""
    jobs = [open2b() for _ in range(2)]
    ledger.redis.set(job_key(id_of(jobs[0])), "junk")
    file = tmp_path / "abandoned.ndjson"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in jobs))
    said = cli("redrive", str(file), "--json", code=1)
    assert {"redriven": 0, "refused": 2} in map(json.loads, said.splitlines()[:1])
    assert f"line 1: the ledger's record of job {id_of(jobs[0])} cannot be read (WRONGTYPE)" in said
    assert f"line 2: no job {id_of(jobs[1])}" in said


def test_a_fault_of_every_line_ends_the_file_at_once(
    ledger: SyncLedger, cli: Cli, tmp_path: Path
) -> None:
    """Otherwise each line of thousands would wait for the ledger."""
    ledger.redis.sadd(CONFIGURED, "key:another:0123456789abcdef")
    file = tmp_path / "abandoned.ndjson"
    file.write_text("".join(f"{json.dumps(open2b())}\n" for _ in range(2)))
    said = cli("redrive", str(file), code=1)
    assert "line 1" not in said
    assert "no worker has the first key" in said


def test_a_document_is_no_file_to_redrive(cli: Cli, tmp_path: Path) -> None:
    """The command has no option for another format."""
    file = tmp_path / "abandoned.json"
    file.write_text(json.dumps([open2b()], indent=2))
    said = cli("redrive", str(file), code=1)
    assert "line 1: is not JSON" in said
    assert "--format" not in said


# texts and numbers


@pytest.mark.parametrize("blank", ["", "  ", "\t\n"])
@pytest.mark.parametrize(
    "line",
    [
        ("review", "resolve", "x", "--rejected"),
        ("review", "resolve", "--all", "--yes", "--rejected"),
        ("review", "correct", "x", "--why", "wrong", "--rejected"),
        ("review", "correct", "x", "--rejected", "wrong", "--why"),
        ("providers", "pause", "acme/default", "--why"),
    ],
)
def test_a_blank_text_is_wrong_usage(
    ledger: SyncLedger, cli: Cli, line: tuple[str, ...], blank: str
) -> None:
    """A script whose variable is empty must not end a review with an error without a text."""
    assert line[-1] in cli(*line, blank, code=2)
    assert acts(ledger) == []


@pytest.mark.parametrize("since", ["99999999999999999999-0", "1-99999999999999999999"])
@pytest.mark.parametrize("more", [(), ("--group", "crm")])
def test_an_entry_that_cannot_exist_is_wrong_usage(
    cli: Cli, since: str, more: tuple[str, ...]
) -> None:
    """The error names the option, not the ledger's address."""
    said = cli("results", "--since", since, *more, code=2)
    assert "--since" in said
    assert "REDIS_URL" not in said


# what the doctor finds


def finding(cli: Cli, subject: str) -> dict[str, Any]:
    """A finding of the doctor."""
    found = cli.json("doctor", "--offline", code=None)
    return next(one for one in found if one["subject"] == subject)


@pytest.mark.parametrize("read", [True, False])
def test_a_group_that_acknowledges_nothing_is_named(
    ledger: SyncLedger, cli: Cli, read: bool
) -> None:
    """Whether its entries were read and not acknowledged, or not read."""
    server: Any = ledger.redis
    server.xgroup_create("{reg}:results", "crm", "0", mkstream=True)
    pipe = server.pipeline()
    for number in range(1001):
        pipe.xadd("{reg}:results", {"n": number})
    pipe.execute()
    if read:
        server.xreadgroup("crm", "c", {"{reg}:results": ">"}, count=1001)
    found = finding(cli, "group crm")
    assert found["level"] == "warning"
    expected = "0 not read, 1001 not" if read else "1001 not read, 0 not"
    assert expected in found["found"]
    if read:
        ids = [one for one, _ in server.xrange("{reg}:results")]
        server.xack("{reg}:results", "crm", *ids)
        assert finding(cli, "group crm")["level"] == "ok"


def test_the_advice_about_a_spoilt_record_ends_no_decision(ledger: SyncLedger, cli: Cli) -> None:
    """What the doctor advises keeps an operator's pause and pace."""
    server: Any = ledger.redis
    cli("providers", "pause", NAMES[0], "--why", "ticket 4712")
    cli("providers", "pace", NAMES[0], "60/60s")
    kept = server.hgetall(account_key(*ACCOUNTS[0]))
    junk = [(account_key(*ACCOUNTS[0]), "failures"), (STATS, "accepted")]
    for key, field in junk:
        server.hset(key, field, "abc")
    advice = finding(cli, "records")["advice"]
    assert "rename it: the ledger writes it anew" not in advice
    assert "Don't rename it, which ends" in advice
    assert advice.count("HDEL") == 2
    for key, field in junk:
        server.hdel(key, field)
    assert finding(cli, "records")["level"] == "ok"
    assert server.hgetall(account_key(*ACCOUNTS[0])) == kept
    server.set(endpoint_key("crm"), "junk")
    assert "enables it" in finding(cli, "records")["advice"]


def test_a_record_that_is_no_hash_is_replaced_without_a_call_between(
    ledger: SyncLedger, cli: Cli
) -> None:
    """The runbook's command keeps the old one, and pauses the account at once."""
    server: Any = ledger.redis
    key = account_key(*ACCOUNTS[0])
    server.set(key, "junk")
    runbook = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text("utf-8")
    [script] = re.findall(r'valkey-cli eval "([^"]*)" 1 KEY', runbook)
    server.eval(" ".join(script.split()), 1, key)
    assert server.get(f"{key}.old") == b"junk"
    assert paused(cli) == {NAMES[0]: "its record was lost"}
