"""The rights of each role at the ledger's server, which may also be the broker.

A script runs with its caller's rights. So a role needs the commands that it sends itself, and those
in the scripts that it calls, which are derived from the scripts. It needs the keys that these
commands use; the server also wants reading and writing for each key that a script is given.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regworker.ledger.calls import scripts
from regworker.ledger.transitions import JOBS, PREFIX
from regworker.results import RESULTS
from worker.broker.wakeups import REQUESTS

#: What every client does to connect, to test the connection, and to find the ledger's node in a
#: cluster.
_CONNECT = (
    *("ping", "select", "client|setinfo", "client|setname", "client|id"),
    *("cluster|slots", "exists"),
)

#: The rights to call a script; loading one gives no right that its caller does not have.
_SCRIPTS = ("evalsha", "script|load")

#: kombu's commands on a Redis broker: lists, bindings, fan-out, unacknowledged messages.
_KOMBU = (
    *("llen", "exists", "lpush", "rpush", "lrem", "brpop", "rpop", "del", "expire"),
    *("sadd", "srem", "smembers", "scard", "sismember", "hset", "hsetnx", "hget", "hdel", "hlen"),
    *("zadd", "zrem", "zrevrangebyscore", "zrangebyscore", "zcard", "set", "get", "pexpire"),
    *("multi", "exec", "watch", "unwatch", "discard", "publish", "pttl", "ttl", "eval"),
    *_SCRIPTS,
    *("time", "zrange", "script|exists"),
    *("subscribe", "unsubscribe", "psubscribe", "punsubscribe", "zscore", "hmget", "type"),
)

#: kombu's own keys: the queues, and the answers to control commands.
_BINDINGS, _ANSWERS = "_kombu.*", "*.reply.celery.pidbox*"

#: Channels of Celery's events, and of control commands; 0: the broker's database.
_EVERYBODY = ("/0.celeryev/*", "/0.celery.pidbox")

#: The lists of other priorities, which kombu treats as one queue. In between: two control
#: characters.
_PRIORITIES = f"{REQUESTS}??[369]"

_ALL = f"{PREFIX}*"

#: In a list of keys: each results stream.
_STREAM = "<stream>"


def _keys(access: str, *names: str) -> tuple[str, ...]:
    """The patterns of some of the ledger's keys. `access`: `R` reading, `W` writing, `RW` both."""
    prefix = "~" if access == "RW" else f"%{access}~"
    return tuple(f"{prefix}{name if name == _STREAM else PREFIX + name}" for name in names)


#: What accepting and cancelling use. Everything that decides about others is left out, or read
#: only: tokens, sessions, the audit log, accounts, and what workers announce.
_PRODUCING = (
    *_keys("RW", "job:*", "delivery:*", "alarms", "absent", "stats", "wakes", "wakes:*"),
    *_keys("W", "open", "later", "waiting:*", "ended:*"),
    *_keys("W", "pending:*", "trying:*", "line:*", "dead"),
    *_keys("R", "configured", "identity", "replicas", "streams", "waking"),
)

#: What a snapshot reads: no record of a job, and no content of a stream. Its role has no command
#: that writes.
_NUMBERS = (
    *_keys("RW", "open", "later", "alarms", "reviews", "configured", "streams"),
    *_keys("R", "announced", "stats", "dead", "quarantine", "workers", "worker:*", "results"),
    *_keys("R", "account:*", "inflight:*", "waiting:*"),
    *_keys("R", "endpoint:*", "pending:*", "trying:*", "line:*"),
    # A selector, with rights of its own: how long any stream is, and who reads it.
    f"(%R~{_ALL} +xlen +xinfo|groups)",
)


@dataclass(frozen=True, slots=True)
class LedgerRole:
    """Rights at the ledger's server, which may also be the broker.

    `calls`: names of scripts; None: all. `keys`: patterns in the form of `ACL SETUSER`, and
    `_STREAM`.
    """

    name: str
    summary: str
    commands: Sequence[str]
    keys: Sequence[str]
    calls: Sequence[str] | None = ()
    channels: Sequence[str] = ()

    def rules(self, database: int = 0, streams: Sequence[str] = (RESULTS,)) -> list[str]:
        """The arguments of `ACL SETUSER`, except name and password.

        `database`: the broker's; `streams`: the keys of the results streams. A client that
        subscribes by a pattern needs exactly that pattern among its channels.
        """
        found = {*_CONNECT, *self.commands, *self._called()}
        return [
            "reset",
            "on",
            "resetchannels",
            *(f"&{channel}".replace("/0.", f"/{database}.") for channel in self.channels),
            *(
                key.replace(_STREAM, stream)
                for key in self.keys
                for stream in (streams if _STREAM in key else ("",))
            ),
            # Whoever may run a command may run each of its subcommands.
            *(f"+{one}" for one in sorted(found) if not {one.partition("|")[0]} & (found - {one})),
        ]

    def _called(self) -> Iterator[str]:
        names = scripts() if self.calls is None else self.calls
        for name in names:
            yield from _SCRIPTS
            for command, sub in _CALL.findall(scripts()[name]):
                yield f"{command}|{sub}".strip("|").lower()


#: A call of a command, directly or by a function that tolerates keys of a wrong type; with its
#: subcommand, since others of it show more (`XINFO STREAM` shows entries).
_CALL = re.compile(
    r"(?:redis\.p?call|peek|size|all|named)\((?:unreadable, )?'([A-Z]+)'(?:, '(GROUPS|CONSUMERS)')?"
)

ROLES: tuple[LedgerRole, ...] = (
    LedgerRole(
        "stream-producer",
        "adds jobs to the job stream, in any language",
        ("xadd", "wait"),
        (f"%W~{JOBS}",),
    ),
    LedgerRole(
        "task-producer",
        "sends the tasks registrations.register and registrations.cancel, with any Celery client",
        ("lpush", "exists", "multi", "exec", "llen"),
        # Selectors, with rights of their own: `SADD` on the queue would make it a set.
        (
            f"~{REQUESTS}",
            f"%R~{_PRIORITIES}",
            f"(~_kombu.binding*.{REQUESTS} +exists +sadd +smembers)",
        ),
    ),
    LedgerRole(
        "producer",
        "enqueues, waits and cancels with regworker.producer",
        ("subscribe", "unsubscribe", "wait"),
        (*_PRODUCING, *_keys("W", _STREAM)),
        calls=("accept", "look", "cancel"),
        channels=(f"{PREFIX}done:*",),
    ),
    LedgerRole(
        "gateway",
        "serves the HTTP API: regworker serve; pages with actions need the role operator",
        (
            *("subscribe", "unsubscribe", "wait", "time", "smembers", "hmget", "hget", "xread"),
            *("client|reply", "get", "set"),
        ),
        (
            *_PRODUCING,
            *_keys("RW", "jobs", "pages", _STREAM),
            *_keys("R", "tokens", "answer:*"),
            *_keys("W", "audit"),
        ),
        calls=("accept", "look", "cancel", "page", "edge", "offer"),
        channels=(f"{PREFIX}done:*",),
    ),
    LedgerRole(
        "results-reader",
        "reads the results stream, in a consumer group or without one",
        (
            *("xreadgroup", "xread", "xack", "xclaim", "xautoclaim", "xpending", "xrange"),
            *("xrevrange", "xlen", "xgroup|create", "xgroup|delconsumer", "xinfo|groups"),
            *("client|reply",),
        ),
        _keys("RW", _STREAM),
        calls=("page",),
    ),
    LedgerRole(
        "exporter",
        "serves metrics; top and stats",
        (
            *("info", "llen", "exists", "smembers", "multi", "exec", "sscan", "hscan", "zscan"),
            "script|exists",
        ),
        (*_NUMBERS, f"%R~{REQUESTS}*", f"%R~{_BINDINGS}"),
        calls=("snapshot", "accounts", "streams"),
    ),
    LedgerRole(
        "flower",
        "shows what workers do; does not read the ledger",
        _KOMBU,
        (f"%R~{REQUESTS}*", f"~{_BINDINGS}", f"~{_ANSWERS}", "~celeryev*"),
        channels=_EVERYBODY,
    ),
    LedgerRole(
        "worker",
        "runs jobs: the worker itself",
        (
            *_KOMBU,
            *("info", "time", "xrange", "xadd", "xgroup", "xreadgroup", "xinfo", "blmpop", "wait"),
            *(
                "client|unblock",
                "client|reply",
                "zrange",
                "zcount",
                "scard",
                "hgetall",
                "hvals",
                "rename",
            ),
        ),
        (
            *(f"~{_ALL}", f"~{REQUESTS}*", f"~{_BINDINGS}", f"~{_ANSWERS}", "~unacked*"),
            *("~celeryev*", "~*.celery.pidbox*"),
        ),
        calls=None,
        channels=(f"{PREFIX}done:*", *_EVERYBODY, "/0.celeryev/worker.*"),
    ),
    LedgerRole(
        "operator",
        "reads everything and decides reviews: the command regworker",
        (
            *_KOMBU,
            *(
                "info",
                "time",
                "wait",
                "dbsize",
                "pexpiretime",
                "scan",
                "xrange",
                "xrevrange",
                "xread",
                "xadd",
                "xgroup",
                "xinfo",
            ),
            *("zrange", "zcount", "zscan", "sscan", "hscan", "hgetall", "hvals"),
            *("xack", "xreadgroup", "xpending", "xclaim"),
            *("xautoclaim", "xinfo", "client|reply"),
        ),
        (f"~{_ALL}", f"~{REQUESTS}*", f"~{_BINDINGS}"),
        calls=None,
        channels=(f"{PREFIX}done:*",),
    ),
)


@dataclass(frozen=True, slots=True)
class AmqpRole:
    """Rights in a virtual host of RabbitMQ: regular expressions of queues and exchanges."""

    name: str
    summary: str
    configure: str = "^$"
    write: str = "^$"
    read: str = "^$"

    def command(self, vhost: str) -> list[str]:
        """The command of `rabbitmqctl` that grants them."""
        rights = (self.configure, self.write, self.read)
        return ["set_permissions", "-p", vhost, self.name, *rights]


#: Our queues, each with an exchange of its name: that of the tasks, and those of wake-ups.
_QUEUES = rf"{re.escape(REQUESTS)}(\..+)?"

#: Celery's events, control commands, and their answers.
_CONTROL = r"celeryev(\..+)?|(.+\.)?(reply\.)?celery\.pidbox"

AMQP_ROLES: tuple[AmqpRole, ...] = (
    AmqpRole(
        "task-producer",
        "sends the tasks to the exchange, with a client that declares nothing",
        write=f"^{re.escape(REQUESTS)}$",
    ),
    AmqpRole(
        "flower",
        "shows what workers do",
        f"^({_CONTROL})$",
        f"^({_CONTROL})$",
        f"^({_CONTROL})$",
    ),
    AmqpRole(
        "worker",
        "runs jobs: the worker itself",
        f"^({_QUEUES}|{_CONTROL})$",
        f"^({_QUEUES}|{_CONTROL}|amq\\.default)$",
        f"^({_QUEUES}|{_CONTROL})$",
    ),
    AmqpRole(
        "operator",
        "requeues messages from the quarantine, and reads queues: the command regworker",
        f"^({_QUEUES})$",
        f"^({_QUEUES}|amq\\.default)$",
        f"^({_QUEUES})$",
    ),
)
"""A reader of results from a queue (`KIND=queue`) needs permission to read that queue, and nothing
else."""
