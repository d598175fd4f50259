"""Junk that a stranger sends to the broker during a run: on every path, with bombs and commands."""

import json
import random
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from kombu import Connection
from redis import Redis

from tests.integration.brokers import Message, headers
from tests.integration.junk import BOMBS, COMMANDS, ENVELOPES, MESSAGES, PAYLOADS, bomb, control
from worker.broker.envelopes import MAX_VALUE_BYTES
from worker.broker.wakeups import QUEUES, REQUESTS

PIDBOX = "celery.pidbox"

#: The reasons for which this junk is set aside. Any other reason in a run is a violation.
REASONS = (
    *("not JSON", "JSON, but no envelope", "an envelope whose body", "larger than", "its "),
    *("it is compressed", "it is a wake-up, and larger", "no header", "an unknown task"),
)

_QUEUES = (REQUESTS, *QUEUES.values())

#: Commands that would stop or starve a worker.
STEERING = (
    {"method": "shutdown"},
    {"method": "rate_limit", "arguments": {"task_name": "registrations.attempt", "rate_limit": 1}},
    *(
        {"method": "cancel_consumer", "arguments": {"queue": one}}
        for one in [REQUESTS, *QUEUES.values()]
    ),
)


def throw(url: str, seed: int) -> None:
    """Send some junk; skipped while the broker is away."""
    chance = random.Random(f"junk {seed}")
    with suppress(Exception):
        if urlsplit(url).scheme.startswith("redis"):
            with Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2) as redis:
                for _ in range(5):
                    _by_redis(redis, chance)
        else:
            with Connection(url, connect_timeout=2) as connection:
                for _ in range(5):
                    _by_rabbitmq(connection.default_channel, chance)


def _message(chance: random.Random) -> Message:
    match chance.choice(["message", "bomb", "large"]):
        case "message":
            return chance.choice(list(MESSAGES.values()))
        case "bomb":
            kind, compression = chance.choice(list(BOMBS.items()))
            return Message(bomb(kind), headers(compression=compression))
        case _:
            return Message(bytes(5 * MAX_VALUE_BYTES))


def _command(chance: random.Random) -> Any:
    return chance.choice([*COMMANDS.values(), *STEERING])


def _by_redis(redis: "Redis", chance: random.Random) -> None:
    envelope = json.dumps(_message(chance).envelope()).encode()
    payload = chance.choice([*PAYLOADS.values(), *ENVELOPES.values(), envelope])
    match chance.choice(["list", "broadcast", "command", "unacked", "binding"]):
        case "list":
            redis.lpush(chance.choice([REQUESTS, *QUEUES.values()]), payload)
        case "broadcast":
            redis.publish(f"/0.{PIDBOX}", payload)
        case "command":
            redis.publish(f"/0.{PIDBOX}", control(_command(chance)))
        case "unacked":
            tag = f"junk-{chance.random()}"
            redis.hset("unacked", tag, payload)
            redis.zadd("unacked_index", {tag: 1})
        case _:
            redis.sadd(f"_kombu.binding.reply.{PIDBOX}", payload[:1000])


def _by_rabbitmq(channel: Any, chance: random.Random) -> None:
    message = _message(chance)
    exchange, key = "", chance.choice([REQUESTS, *QUEUES.values()])
    if chance.random() < 0.5:
        exchange, key = PIDBOX, "\u00ff"
        message = Message(json.dumps(_command(chance)).encode(), headers={})
    prepared = channel.prepare_message(
        message.body,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=message.headers,
    )
    channel.basic_publish(prepared, exchange=exchange, routing_key=key)
