"""Wake-ups in our own form are taken without parsing: what they become must be the same."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker.broker.envelopes import envelope
from worker.broker.redis_transport import Channel, Message, Wakeup
from worker.broker.wakeups import ATTEMPT, DELIVER, QUEUES, envelopes, read
from worker.process.message_check import Messages

JOB = "6c12cb00-c37f-88d5-aecf-20725109134a"
LIVE = QUEUES["live"]
TASKS = Messages(dict.fromkeys((ATTEMPT, DELIVER), SimpleNamespace(run=lambda member: None)))


def channel() -> Any:
    """Enough of a channel for a message."""
    return Channel.__new__(Channel)


def parsed(item: bytes, queue: str) -> Message:
    """The message that kombu would make of an item, checked."""
    found = envelope(item, queue)
    found["properties"]["delivery_tag"] = "tag"
    message = Message(found, channel())
    TASKS.check(message)
    return message


def parts(message: Any) -> dict[str, Any]:
    """All that is read of a message: by the check, Celery, the quarantine, and to put it back."""
    names = ("delivery_tag", "content_type", "content_encoding", "body", "headers", "properties")
    more = ("delivery_info", "accept", "errors", "acknowledged")
    found = {name: getattr(message, name) for name in (*names, *more)}
    found["errors"] = list(found["errors"])
    found["payload"] = [one or None for one in message.payload]
    return {**found, "put back": message.serializable()}


@pytest.mark.parametrize("lane", QUEUES)
@pytest.mark.parametrize("member", [JOB, f"{JOB}:crm", "a", "a b%(id)s@id@", "i" * 255])
def test_a_wake_up_becomes_what_kombu_would_make_of_it(lane: str, member: str) -> None:
    """Each field, also when it goes back to its list."""
    [item] = envelopes(lane, [member], "gen7%@a-host.example")
    found = read(item.encode(), QUEUES[lane])
    assert found is not None
    taken = Wakeup((QUEUES[lane], "tag", *found), channel())
    assert parts(taken) == parts(parsed(item.encode(), QUEUES[lane]))


@pytest.mark.parametrize("member", ['a"b', "a\\b", "ü", "a\n", "", "\ud800", "i" * 256])
def test_an_odd_member_is_checked(member: str) -> None:
    """It may be escaped, too long or unprintable."""
    [item] = envelopes("live", [member], "test")
    assert read(item.encode(), LIVE) is None


def test_a_changed_wake_up_is_checked_or_means_the_same() -> None:
    """Anybody may have put it there, with any byte changed, doubled or left out."""
    [text] = envelopes("live", [JOB], "test")
    item = text.encode()
    taken = 0
    for place in range(len(item)):
        before, byte, after = item[:place], item[place : place + 1], item[place + 1 :]
        for other in (b"", b"a", b"0", b"\\", b'"', b"\n", b"\xff", b"]", 2 * byte):
            changed = before + other + after
            if changed == item or (found := read(changed, LIVE)) is None:
                continue
            taken += 1
            wakeup = Wakeup((LIVE, "tag", *found), channel())
            assert parts(wakeup) == parts(parsed(changed, LIVE))
    assert taken, "the sender's name and the tag may be any"


def test_a_wake_up_for_another_job_than_it_says_is_checked() -> None:
    """Its body may name another one, and so may its lane."""
    own, other = (next(envelopes("live", [one], "test")) for one in ("job-1", "job-2"))
    body = other.partition('"body": "')[2].partition('"')[0]
    mixed = own.replace(own.partition('"body": "')[2].partition('"')[0], body)
    assert mixed != own
    assert read(mixed.encode(), LIVE) is None
    assert read(own.encode(), QUEUES["bulk"]) is None
    assert read(own.encode() + b" ", LIVE) is None
