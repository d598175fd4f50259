"""Whether an installation keeps its guarantees: what could lose jobs, and what to change.

A worker checks this when it starts; `regworker doctor` shows it all.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from redis.exceptions import AuthenticationError, ResponseError

from regworker import tls
from regworker.addresses import unquoted
from regworker.announced import accounts_of, check_key
from regworker.domain.errors import SettingsError
from regworker.ledger.identity import hidden
from regworker.ledger.records import number
from regworker.ledger.rights import denied
from regworker.ledger.snapshot import Snapshot
from regworker.ledger.transitions import STATS
from regworker.settings import Settings, WebhookEndpoint, variable
from regworker.settings.account_ledgers import AccountLedgers
from worker.monitoring.server_info import HIDDEN, ONLINE

Level = Literal["ok", "warning", "unsafe"]
Durability = Literal["aof", "service"]

#: The oldest servers whose scripts, streams and AOF meet the ledger's needs.
OLDEST = {"valkey": (8, 0), "redis": (7, 0)}

#: Seconds. An alarm this late means that no alarm clock runs, or none succeeds.
LATE = 60.0

#: NIST SP 800-38D, section 8.3, allows 2^32 texts under one key with random IVs. A quarter of it: a
#: rotation need not be urgent, and not all texts are counted (unused ones, those of others).
MOST_SEALS = 2**30

#: Seconds. A consumer group that is a day behind has been forgotten, or its consumers are down.
FORGOTTEN = 86400.0

#: Entries, as in the alert RegworkerGroupLag.
MANY = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `unsafe`: jobs would be lost; `advice` says what to change."""

    level: Level
    subject: str
    found: str
    advice: str = ""
    setting: str = "redis_url"
    """The setting of the server or account that was examined."""


def server(
    info: Mapping[str, Any], wanted: int = 0, durability: Durability = "aof"
) -> list[Finding]:
    """What a server says about the ledger's safety (see `server_info.py`).

    `wanted`: `REGWORKER_REPLICAS`; `durability`: `REGWORKER_DURABILITY`.
    """
    if why := info.get(HIDDEN):
        kept = [_hidden(str(why), durability)]
    elif durability == "service":
        kept = [_policy(info), _service(info)]
    else:
        kept = [_policy(info), _aof(info)]
    return [_version(info), *kept, _role(info), _replicas(info, wanted)]


GIVE_RIGHTS = "give its user the permissions that `regworker acl` prints for its role"


def answer_of(error: Exception) -> str:
    """What the ledger answered, without the arguments that it quotes of an unknown command."""
    return str(error).partition(", with args")[0]


def advice_for(error: Exception) -> str:
    """What to change where the ledger does not answer as it should."""
    if isinstance(error, ResponseError) and denied(error):
        return GIVE_RIGHTS
    if isinstance(error, AuthenticationError):
        return "correct user and password in its URL"
    if isinstance(error, ResponseError) and hidden(error):
        return "let its server take every command by its own name (no `rename-command`)"
    return "start the server, or set its address"


def unusable(error: Exception) -> Finding:
    """The ledger does not answer as it should."""
    subject = "rights" if isinstance(error, ResponseError) else "ledger"
    return Finding("unsafe", subject, answer_of(error), advice_for(error))


#: What to do about a worker that may not look whose broker it uses.
LET_IT_LOOK = (
    f"on Redis, {GIVE_RIGHTS}; on RabbitMQ, all rights to what begins with "
    "`registrations.installation`, and room for a queue of each worker in its virtual host"
)


def _hidden(why: str, durability: Durability) -> Finding:
    """A server that does not show how it stores its data, and what it does when memory is full."""
    name = variable("durability")
    if durability == "aof":
        advice = (
            f"{GIVE_RIGHTS}; for a managed service that hides INFO, set {name}=service at "
            "workers, exporter and commands"
        )
        return Finding("unsafe", "persistence", why, advice)
    advice = (
        "check it yourself: it must lose no write, its `maxmemory-policy` must be `noeviction`, "
        "and no alert can watch its memory"
    )
    return Finding("warning", "persistence", f"by the service ({name}=service); {why}", advice)


def _service(info: Mapping[str, Any]) -> Finding:
    found = f"by the service ({variable('durability')}=service)"
    if int(info.get("aof_enabled", 0)):
        return _aof(info)
    return Finding("ok", "persistence", found)


def rights(refused: Sequence[str]) -> Finding:
    """Whether the ledger's user may run all commands of the scripts; `refused`: those it may
    not."""
    if not refused:
        return Finding("ok", "rights", "sufficient for every script")
    names = ", ".join(sorted(set(refused)))
    more = " (PUBLISH: on the channels {reg}:done:*)" if "publish" in refused else ""
    return Finding("unsafe", "rights", f"its user may not run {names}{more}", GIVE_RIGHTS)


def pace(settings: Settings) -> list[Finding]:
    """Durations that are allowed but may surprise."""
    margin = settings.settle_delay - settings.call_budget
    found = f"settle_delay {settings.settle_delay:g} s, call_budget {settings.call_budget:g} s"
    if margin >= settings.call_budget:
        return [Finding("ok", "settle delay", found)]
    advice = f"set {variable('settle_delay')} to at least twice {variable('call_budget')}"
    return [Finding("warning", "settle delay", f"{found}: small margin", advice)]


def encryption(settings: Settings) -> list[Finding]:
    """Each connection that others on the network can read; connections within this machine are
    safe."""
    secure = {
        "the ledger": (settings.redis_url, f"a rediss:// URL in {variable('redis_url')}"),
        "the broker": (
            settings.broker,
            f"an amqps:// URL in {variable('broker_url')}",
        ),
    }
    for provider, accounts in settings.accounts.items():
        for name, fields in accounts.items():
            advice = f"an https:// URL in {variable('accounts', provider, name, 'base_url')}"
            secure[f"account {provider}/{name}"] = (
                str(unquoted(fields.get("base_url", ""))),
                advice,
            )
    for name, endpoint in settings.endpoints.items():
        if isinstance(endpoint, WebhookEndpoint):
            advice = f"an https:// URL in {variable('endpoints', name, 'url')}"
            secure[f"endpoint {name}"] = (endpoint.url, advice)
    found = [
        Finding("warning", what, "the connection is not encrypted", f"set {advice}")
        for what, (url, advice) in secure.items()
        if tls.is_plain(url)
    ]
    well = "every connection is encrypted, or stays on this machine"
    return found or [Finding("ok", "encryption", well)]


#: Whoever has access to the ledger may have written anything there.
CORRECT_KEY = (
    "look at the key's type and content, and rename it: the ledger writes it anew; docs/alerts.md, "
    "RegworkerRecordsUnreadable, says what is lost with it"
)
RESTORE_KEY = (
    "rename the key, find out who wrote it, and restore a copy (docs/operations.md, Backup)"
)


def unreadable(seen: Snapshot) -> Iterator[Finding]:
    """Indexes that cannot be read, without which no job goes on; and records and counters, which
    count as empty."""
    for key in seen.broken:
        yield Finding("unsafe", "index", f"{key} is not what the ledger has there", RESTORE_KEY)
    keys = [one for one in seen.unreadable if one not in seen.broken]
    if keys:
        named = ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
        advice = [said for part, said in _INSTEAD.items() if any(part in one for one in keys)]
        if any(not any(part in one for part in _INSTEAD) for one in keys):
            advice.append(CORRECT_KEY)
        else:
            advice.append(
                "docs/alerts.md, RegworkerRecordsUnreadable, has more, also for a wrong type"
            )
        found = f"{len(keys)} cannot be read: {named}"
        yield Finding("warning", "records", found, "; ".join(advice))
    elif not seen.broken:
        yield Finding("ok", "records", "all can be read")


#: What to do about a key, by a part of it. What people and providers have decided is in a record.
_INSTEAD = {
    ":account:": "remove only the field of the account's record that is junk (HDEL). Don't rename "
    "it, which ends its pause, pace and refusal, so that calls start",
    ":endpoint:": "remove only the field of the endpoint's record that is junk (HDEL). Don't "
    "rename it, which enables it if it is disabled",
    f"{STATS} ": "remove the counter's field (HDEL): it counts from 0 again",
}


def wrong_key(part: str, error: str) -> Finding:
    """A part of the ledger that the server could not read for this check."""
    return Finding("unsafe", f"ledger: {part}", error, CORRECT_KEY)


#: Unreadable keys that are named; a list may have very many.
_NAMED = 5


def alarms(overdue: float) -> Finding:
    """How late the oldest alarm is; seconds, negative if none is due."""
    if overdue < LATE:
        return Finding("ok", "alarm clock", f"the oldest alarm is {max(0.0, overdue):.1f} s late")
    return Finding(
        "unsafe",
        "alarm clock",
        f"the oldest alarm is {overdue:.0f} s late: no worker processes them",
        "start a worker, or search the workers' logs for `a loop's turn failed`",
    )


def announced(names: Sequence[str], seen: Snapshot) -> Finding:
    """What workers have announced, and how many are alive."""
    live = sum(one.condition(seen.at) != "silent" for one in seen.workers)
    number = sum(not name.startswith("key:") for name in names)
    if not names:
        advice = "start a worker: no job is accepted until a worker has announced its accounts"
        return Finding("warning", "workers", "nothing announced yet", advice)
    found = f"{number} accounts and endpoints announced, {live} workers live"
    if not live:
        return Finding("warning", "workers", found, "start a worker: accepted jobs wait for one")
    return Finding("ok", "workers", found)


def sealing_key(mark: str, names: Sequence[str]) -> Finding:
    """Whether workers can open what these settings seal; `mark`: of the first key."""
    try:
        check_key(mark, names)
    except SettingsError as error:
        what, _, advice = error.problems[0][1].partition(": ")
        return Finding("unsafe", "sealing key", what, advice)
    return Finding("ok", "sealing key", f"{mark.partition(':')[0]}: not refused by workers")


def broker_owner(seen: Snapshot) -> Iterator[Finding]:
    """Whether live workers share their broker with another installation."""
    found = [one.broker for one in seen.workers if one.condition(seen.at) != "silent"]
    subject, setting = "broker's owner", "broker_url"
    if others := found.count("other"):
        yield Finding(
            "unsafe",
            subject,
            f"{others} workers share it with another installation: both lose messages to each "
            "other",
            f"give each ledger a broker (or database, or virtual host) of its own, in "
            f"{variable(setting)}",
            setting,
        )
    elif unknown := found.count("unknown"):
        yield Finding(
            "warning",
            subject,
            f"{unknown} workers may not see it: another installation on it would not be noticed",
            LET_IT_LOOK,
            setting,
        )
    elif "this" in found:
        yield Finding("ok", subject, "this installation", setting=setting)


def lacking(seen: Snapshot, names: Sequence[str]) -> list[Finding]:
    """What jobs and deliveries need and a worker does not have."""
    found = []
    for name in sorted({name for worker in seen.workers for name in worker.lacks}):
        kind, _, rest = name.partition(":")
        without = sum(name in worker.lacks for worker in seen.workers)
        others = any(one == name or one.startswith(f"{name}:") for one in names)
        where = f"{without} workers lack it" if others else "no worker has it"
        advice = (
            f"set it at every worker (see {_SET_BY[kind]}); jobs that need it are retried until "
            "then"
        )
        found.append(Finding("warning", f"{kind} {rest.replace(':', '/')}", where, advice))
    return found


def of_another_ledger(
    settings: Settings, seen: Snapshot, names: Sequence[str]
) -> Iterator[Finding]:
    """Accounts that belong to another ledger, while this one accepts their jobs or has some."""
    ledger_of = AccountLedgers(settings.account_ledgers).of
    busy = [(one.provider, one.account) for one in seen.accounts if one.waiting or one.in_flight]
    for provider, account in sorted({*accounts_of(names), *busy}):
        if (ledger := ledger_of(provider, account)) != settings.ledger:
            yield Finding(
                "warning",
                f"account {provider}/{account}",
                f"belongs to the ledger {ledger}, and this one accepts its jobs or has some",
                f"restart workers and producers with the same {variable('account_ledgers')}; a key "
                "used in both ledgers is two jobs",
                "account_ledgers",
            )


_SET_BY = {
    "account": variable("accounts", "<provider>", "<account>", "..."),
    "endpoint": variable("endpoints", "<name>", "..."),
    "key": variable("sealing_keys"),
}


def waiting_for_a_person(reviews: int) -> Finding:
    """How many jobs are in review."""
    if not reviews:
        return Finding("ok", "reviews", "none")
    return Finding(
        "warning", "reviews", f"{reviews} jobs wait for a person", "regworker review list"
    )


def seals(kid: str, count: int) -> Finding:
    """How often the first key was used, as an upper bound."""
    found = f"at most {count:,} texts are sealed under {kid}"
    if count < MOST_SEALS:
        return Finding("ok", "seals", found)
    advice = f"put a new key in front of {variable('sealing_keys')}, then: regworker keys rotate"
    return Finding("warning", "seals", f"{found}; 2^32 is the limit of AES-GCM", advice)


def plain_input(marks: Mapping[str, str], at: float, period: float, replicas: int) -> Finding:
    """Whether plain registrations are gone from the servers' files; `marks`, `at`: in ms."""
    subject, seal = "files", f"let senders seal registrations, and set {variable('require_sealed')}"
    if not marks:
        return Finding("ok", subject, "every registration was sealed")
    if why := marks.get("failed"):
        advice = (
            f"allow workers to run INFO, BGREWRITEAOF and BGSAVE, or run these yourself; or {seal}"
        )
        return Finding("warning", subject, f"keep plain registrations: {why}", advice)
    since = (at - (number(marks["since"]) if "since" in marks else at)) / 1000
    if since and not period:
        advice = f"set {variable('rewrite_period')}; or {seal}"
        return Finding(
            "warning", subject, "keep unsealed registrations: they are never rewritten", advice
        )
    if since > LATE + 2 * period:
        found = f"keep unsealed registrations, the first from {since / 60:.0f} min ago"
        advice = f"search the workers' logs for `plain registrations stay in files`; or {seal}"
        return Finding("warning", subject, found, advice)
    if replicas:
        found = f"rewritten after unsealed registrations; those of {replicas} replicas are not"
        return Finding(
            "warning", subject, found, f"run BGREWRITEAOF there from time to time; or {seal}"
        )
    return Finding("ok", subject, "rewritten after unsealed registrations")


def consumer_group(name: str, stream: str, behind: float, lag: int | None, pending: int) -> Finding:
    """How far a consumer group is behind; `behind`: the age of its oldest entry that is not read or
    not acknowledged (s)."""
    subject = f"group {name}"
    counts = f"{'?' if lag is None else lag} not read, {pending} not acknowledged"
    if behind < FORGOTTEN:
        if (lag or 0) + pending <= MANY:
            return Finding("ok", subject, f"reads {stream}")
        advice = "see whether its consumers run, and acknowledge what they have handled"
        return Finding("warning", subject, f"{counts} in {stream}", advice)
    found = f"{behind / 86400:.1f} days behind in {stream}, {counts}"
    advice = f"start its consumers, or drop it: regworker results drop-group {name}"
    return Finding("warning", subject, f"{found}: none of these entries is trimmed", advice)


def account(name: str, breaker: str, paused: bool, reason: str) -> Finding:
    """Whether an account's calls succeed."""
    if paused:
        return Finding("warning", name, f"paused: {reason}", f"regworker providers resume {name}")
    if breaker == "refused":
        advice = f"fix the account's settings, then run: regworker providers resume {name}"
        return Finding("warning", name, f"refused: {reason}", advice)
    if breaker == "open":
        return Finding(
            "warning", name, f"breaker open: {reason}", "it probes the provider by itself"
        )
    return Finding("ok", name, "calls succeed")


def way(name: str, state: str, words: str) -> Finding:
    """The result of a harmless lookup at an account's provider (`regworker providers check`)."""
    subject = f"{name}: look-up"
    if state in {"refused", "unreached"}:
        advice = (
            f"fix the account's settings or its proxy, then run: regworker providers check {name}"
        )
        return Finding("warning", subject, f"{state}: {words}", advice)
    return Finding("ok", subject, words)


def broker(fault: str) -> Finding:
    """Whether the broker accepted a message; `fault`: why not."""
    if fault:
        found = f"accepts no message ({fault}): wake-ups wait for the alarm clock"
        advice = "check REGWORKER_BROKER_URL, the user's rights, and the server's memory and disk"
        return Finding("warning", "broker", found, advice)
    return Finding("ok", "broker", "accepts messages")


def queue(name: str, differs: str) -> Finding:
    """A queue with other arguments than workers declare; `differs`: the broker's message."""
    found = f"declared by another program ({differs}); workers use it as it is"
    advice = "delete it while it is empty; then a worker declares it"
    return Finding("warning", f"queue {name}", found, advice)


def _version(info: Mapping[str, Any]) -> Finding:
    name = "valkey" if info.get("valkey_version") else "redis"
    text = str(info.get(f"{name}_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    oldest = OLDEST[name]
    if version >= oldest:
        return Finding("ok", "version", f"{name} {text}")
    advice = f"use Redis >= 7 or Valkey >= 8 for {variable('redis_url')}"
    return Finding("unsafe", "version", f"{name} {text} is too old", advice)


def _policy(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Finding("ok", "eviction", policy)
    advice = "set `maxmemory-policy noeviction`: another policy drops jobs when memory is full"
    return Finding("unsafe", "eviction", policy, advice)


def _aof(info: Mapping[str, Any]) -> Finding:
    if not int(info.get("aof_enabled", 0)):
        advice = "set `appendonly yes`: a restart would lose claims, and workers would call again"
        return Finding("unsafe", "persistence", "no append-only file", advice)
    if info.get("aof_last_write_status", "ok") != "ok":
        advice = "check the server's disk: it cannot write its append-only file"
        return Finding("unsafe", "persistence", "the append-only file is not written", advice)
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        found = "the append-only file could not be rewritten, so it grows until the disk is full"
        advice = "make room on its disk, then run: valkey-cli bgrewriteaof"
        return Finding("warning", "persistence", found, advice)
    return Finding("ok", "persistence", "append-only file")


#: The share of its memory from which on a server is nearly full, as in RegworkerLedgerMemory.
NEARLY_FULL = 0.8


def memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    """How full the memory of the ledger's server is; nothing if it shows no limit."""
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return
    found = f"{used / limit:.0%} of {limit / 2**20:.0f} MiB are used"
    advice = "`regworker stats` shows what fills it; docs/alerts.md, RegworkerLedgerMemory"
    if used >= limit:
        yield Finding("unsafe", "memory", f"{found}: no job is accepted", advice)
    elif used > NEARLY_FULL * limit:
        yield Finding("warning", "memory", found, advice)
    else:
        yield Finding("ok", "memory", found)


def is_primary(info: Mapping[str, Any]) -> bool:
    """Whether the server is a primary."""
    return str(info.get("role", "master")) == "master"


def _role(info: Mapping[str, Any]) -> Finding:
    if is_primary(info):
        return Finding("ok", "role", "primary")
    advice = f"{variable('redis_url')} must name the primary"
    return Finding("unsafe", "role", str(info["role"]), advice)


def replicated(info: Mapping[str, Any], wanted: int) -> bool:
    """Whether as many replicas follow as a write must reach."""
    return online(info) >= wanted


def online(info: Mapping[str, Any]) -> int:
    """How many replicas follow."""
    states = [one.get("state") for name, one in info.items() if _REPLICA.fullmatch(name)]
    return int(info.get(ONLINE, states.count("online")))


def _replicas(info: Mapping[str, Any], wanted: int) -> Finding:
    """Whether as many replicas follow as a write must reach, and one more."""
    subject, setting = "replicas", "replicas"
    follow = online(info)
    found = f"{follow} connected; {wanted} must have a write before it counts"
    name = variable(setting)
    if follow < wanted:
        advice = (
            f"connect at least {wanted + 1} replicas (`replicaof`), or lower {name}: until then no "
            "job is accepted or sent"
        )
        return Finding("unsafe", subject, found, advice, setting)
    if wanted and follow == wanted:
        advice = (
            f"connect one more, or lower {name}: if one of them stops, no job is accepted until it "
            "is connected again"
        )
        return Finding("warning", subject, found, advice, setting)
    if not wanted and follow:
        advice = f"set {name}=1; otherwise a failover loses what the promoted replica did not have"
        return Finding("warning", subject, f"{found}: replication is asynchronous", advice, setting)
    return Finding("ok", subject, found, setting=setting)


#: As `INFO` names them: `slave0`, `slave1`, ...
_REPLICA = re.compile(r"slave\d+")
