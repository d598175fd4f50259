"""The rights of each role at the ledger's server, which may also be the broker.

A script runs with its caller's rights. So a role needs the commands that it sends itself, and those
in the scripts that it calls, which are derived from the scripts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regworker.ledger.calls import scripts
from regworker.ledger.transitions import JOBS, PREFIX
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


@dataclass(frozen=True, slots=True)
class Role:
    """Rights at the ledger's server, which may also be the broker.

    `calls`: names of scripts; None: all. `keys`: patterns in the form of `ACL SETUSER`.
    """

    name: str
    summary: str
    commands: Sequence[str]
    keys: Sequence[str]
    calls: Sequence[str] | None = ()
    channels: Sequence[str] = ()

    def rules(self, database: int = 0) -> list[str]:
        """The arguments of `ACL SETUSER`, except name and password; `database`: the broker's.

        A client that subscribes by a pattern needs exactly that pattern among its channels.
        """
        found = {*_CONNECT, *self.commands, *self._called()}
        return [
            "reset",
            "on",
            "resetchannels",
            *(f"&{channel}".replace("/0.", f"/{database}.") for channel in self.channels),
            *self.keys,
            *(f"+{command}" for command in sorted(found)),
        ]

    def _called(self) -> Iterator[str]:
        names = scripts() if self.calls is None else self.calls
        for name in names:
            yield from _SCRIPTS
            yield from (found.lower() for found in _CALL.findall(scripts()[name]))


#: A call of a command, directly or by a function that tolerates keys of a wrong type.
_CALL = re.compile(r"(?:redis\.p?call|peek|size|all|named)\((?:unreadable, )?'([A-Z]+)'")

ROLES: tuple[Role, ...] = (
    Role(
        "stream-producer",
        "adds jobs to the job stream, in any language",
        ("xadd", "wait"),
        (f"%W~{JOBS}",),
    ),
    Role(
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
    Role(
        "producer",
        "enqueues, waits and cancels with regworker.producer",
        ("subscribe", "unsubscribe", "wait"),
        (f"~{_ALL}",),
        calls=("accept", "look", "cancel"),
        channels=(f"{PREFIX}done:*",),
    ),
    Role(
        "gateway",
        "serves the HTTP API: regworker serve; pages with actions need the role operator",
        (
            *("subscribe", "unsubscribe", "wait", "time", "smembers", "hmget", "hget", "xread"),
            *("client|reply", "get", "set"),
        ),
        (f"~{_ALL}",),
        calls=("accept", "look", "cancel", "page", "edge", "offer"),
        channels=(f"{PREFIX}done:*",),
    ),
    Role(
        "results-reader",
        "reads the results stream, in a consumer group or without one",
        (
            *("xreadgroup", "xread", "xack", "xclaim", "xautoclaim", "xpending", "xrange"),
            *("xrevrange", "xlen", "xgroup|create", "xgroup|delconsumer", "xinfo|groups"),
            *("client|reply",),
        ),
        (f"~{PREFIX}results",),
        calls=("page",),
    ),
    Role(
        "exporter",
        "serves metrics; top and stats",
        (
            *("info", "llen", "exists", "smembers", "multi", "exec", "sscan", "hscan", "zscan"),
            "script|exists",
        ),
        (f"~{_ALL}", f"%R~{REQUESTS}*", f"%R~{_BINDINGS}"),
        calls=("snapshot", "accounts", "streams", "repair"),
    ),
    Role(
        "flower",
        "shows what workers do; does not read the ledger",
        _KOMBU,
        (f"%R~{REQUESTS}*", f"~{_BINDINGS}", f"~{_ANSWERS}", "~celeryev*"),
        channels=_EVERYBODY,
    ),
    Role(
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
    Role(
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
