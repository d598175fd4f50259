"""Every act of a person is in the audit log: each command and form that acts is named here."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from fastapi.routing import APIRoute

from regworker.ledger import SyncLedger
from regworker.ledger.calls import scripts
from regworker.ledger.transitions import AUDIT
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from tests.integration.outbox import Cli
from tests.integration.test_audit import ACTS
from worker.cli.app import COMMANDS
from worker.cli.lazy import load
from worker.gateway.pages import actions, bulk_actions
from worker.operations.audit import AuditFilter, AuditLog

#: The audit entry of each command that changes an installation.
ACTING = {
    "cancel": {"job.cancel"},
    "review resolve": {"review.registered", "review.rejected", "review.resend"},
    "review correct": {"review.correct"},
    "redrive": {"job.redrive"},
    "export": {"job.export"},
    "forget": {"job.forget"},
    "providers pace": {"account.pace"},
    "deliveries replay": {"delivery.replay"},
    "deliveries retry": {"delivery.retry"},
    "deliveries enable": {"endpoint.enable", "delivery.replay"},
    "deliveries trust": {"endpoint.trust"},
    "providers pause": {"account.pause"},
    "providers resume": {"account.resume"},
    "providers trust": {"account.trust"},
    "quarantine drop": {"quarantine.drop"},
    "quarantine requeue": {"quarantine.requeue"},
    "plans resume": {"job.cancel", "review.rejected", "review.resend", "delivery.replay",
                     "delivery.retry", "quarantine.drop", "quarantine.requeue"},
    "plans drop": {"plan.drop"},
    "tokens new": {"token.new"},
    "tokens revoke": {"token.revoke"},
    "results drop-group": {"group.drop"},
    "keys rotate": {"keys.rotate"},
}  # fmt: skip

#: The other commands, and why they leave no entry.
NO_ACT = {
    "looks": (
        "status jobs results top stats audit doctor health acl settings exporter plans+list "
        "results+groups review+list review+show providers+list providers+check deliveries+list "
        "deliveries+endpoints quarantine+list quarantine+show tokens+list keys+list "
        "contract+asyncapi contract+openapi contract+jsonschema outbox+refused outbox+sql"
    ),
    "is a producer: its jobs have their own record": "submit outbox+relay outbox+retry",
    "does something outside of the ledger": "keys+new webhook+secret webhook+test",
    "runs something": "serve demo up sandbox",
}

#: Acts whose entries are tested in the test files of these acts.
ELSEWHERE = {
    "job.export": "test_job_data.py",
    "job.forget": "test_job_data.py",
    "account.pace": "test_pace.py",
}

#: The audit entry of each form of the pages; None: the form changes nothing.
FORMS = {
    "/find": None,
    "/jobs/{job_id}/ask": None,
    "/jobs/{job_id}/cancel": "job.cancel",
    "/jobs/{job_id}/found": "review.registered",
    "/jobs/{job_id}/registered": "review.registered",
    "/jobs/{job_id}/rejected": "review.rejected",
    "/jobs/{job_id}/resend": "review.resend",
    "/jobs/{job_id}/correct/registered": "review.correct",
    "/jobs/{job_id}/correct/rejected": "review.correct",
    "/jobs/{job_id}/export": "job.export",
    "/jobs/{job_id}/forget": "job.forget",
    "/jobs/plan": None,
    "/plans/{plan_id}/carry-out": "job.cancel",
    "/deliveries/retry": "delivery.retry",
    "/deliveries/replay": "delivery.replay",
    "/endpoints/{name}/enable": "endpoint.enable",
    "/accounts/{provider}/{account}/pause": "account.pause",
    "/accounts/{provider}/{account}/resume": "account.resume",
    "/quarantine/drop": "quarantine.drop",
    "/quarantine/requeue": "quarantine.requeue",
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands, by their words."""
    for name, entry in COMMANDS.items():
        found = load(name, entry)
        inner = getattr(found, "commands", {})
        if not inner or getattr(found, "invoke_without_command", False):
            yield name, found
        for word, command in inner.items():
            yield f"{name} {word}", command


def test_each_command_is_known_to_act_or_not() -> None:
    """A new command that changes something fails this test until it is audited."""
    others = {one.replace("+", " ") for words in NO_ACT.values() for one in words.split()}
    assert not set(ACTING) & others
    found = dict(commands())
    assert set(found) == set(ACTING) | others
    for name in ACTING:
        options = {option for one in found[name].params for option in one.opts}
        assert {"--by", "--why"} <= options, f"{name} does not ask who acts, and why"
        assert "--json" in options or name == "export", f"{name} has no output for programs"
    for name in others:
        options = {option for one in found[name].params for option in one.opts}
        assert "--by" not in options, f"{name} asks who acts, and is not in the audit"


def test_each_form_is_known_to_act_or_not() -> None:
    """A new form that changes something fails this test until it is audited."""
    posts = {
        one.path
        for one in (*actions.router.routes, *bulk_actions.router.routes)
        if isinstance(one, APIRoute) and "POST" in (one.methods or ())
    }
    assert posts == set(FORMS)


def test_each_act_has_a_test_of_its_entry() -> None:
    """Every act that a command, a form or a script writes to the audit log has a test."""
    tests = Path(__file__).parent
    for what, file in ELSEWHERE.items():
        assert f'"{what}"' in (tests / file).read_text("utf-8")
    known = {*ACTS, *COMMAND_LINES, *ELSEWHERE}
    assert set().union(*ACTING.values(), filter(None, FORMS.values())) <= known
    writing = {
        name for name, source in scripts().items() if re.search(r"record_act\((?!actor)", source)
    }
    written = {
        what for name in writing for what in re.findall(r"'([a-z]+\.[a-z_]+)'", scripts()[name])
    }
    assert written <= known, "a script writes an act that no test looks at"


OLD = Keyring.new("old")
RING = f"{Keyring.new('new')},{OLD}"


@pytest.fixture
def cli(redis_url: str, ledger: SyncLedger) -> Iterator[Cli]:
    """An operator's commands, on an empty ledger."""
    yield Cli(REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=RING, REGWORKER_OPERATOR="ann")
    ledger.redis.flushdb()


def made(ledger: SyncLedger, cli: Cli) -> list[str]:
    """A token is created."""
    return ["tokens", "new", "--name", "shop"]


def revoked(ledger: SyncLedger, cli: Cli) -> list[str]:
    """A token is revoked."""
    [one] = cli.json("tokens", "new", "--name", "shop")
    ledger.redis.delete(AUDIT)
    return ["tokens", "revoke", one["id"]]


def dropped(ledger: SyncLedger, cli: Cli) -> list[str]:
    """A group is dropped."""
    ledger.redis.xgroup_create("{reg}:results", "crm", "0", mkstream=True)
    return ["results", "drop-group", "crm"]


def rotated(ledger: SyncLedger, cli: Cli) -> list[str]:
    """Two records are sealed under a new key: one act."""
    ledger.redis.sadd("{reg}:configured", f"key:{Keyring.parse(RING).marks[0]}")
    old = Keyring.parse(OLD)
    for number in range(2):
        sealed = old.seal(b"{}", seals.kept(f"j{number}"))
        ledger.redis.hset(f"{{reg}}:job:j{number}", "event", sealed)
    return ["keys", "rotate"]


def given_up(ledger: SyncLedger, cli: Cli) -> list[str]:
    """A plan is dropped."""
    [plan] = cli.json("quarantine", "drop", "nobody", "--dry-run")
    return ["plans", "drop", plan["plan"]]


#: Acts on something other than a job, delivery or message, by command.
COMMAND_LINES: dict[str, Callable[[SyncLedger, Any], list[str]]] = {
    "plan.drop": given_up,
    "token.new": made,
    "token.revoke": revoked,
    "group.drop": dropped,
    "keys.rotate": rotated,
}


@pytest.mark.parametrize("what", COMMAND_LINES)
def test_an_act_of_a_command_has_one_entry(ledger: SyncLedger, cli: Cli, what: str) -> None:
    """The entry says who acted and why; a repeat that changes nothing adds no second entry."""
    command = COMMAND_LINES[what](ledger, cli)
    cli(*command, "--why", "a test")
    log = AuditLog(ledger)
    [entry] = log.entries(AuditFilter())
    assert (entry.what, entry.who, entry.why, entry.where) == (what, "ann", "a test", "cli")
    assert entry.on
    assert entry.before != entry.after
    text = repr(ledger.redis.xrange(AUDIT))
    assert "rwt_" not in text
    if what != "token.new":
        cli(*command, code=None)
        assert len(list(log.entries(AuditFilter()))) == 1
