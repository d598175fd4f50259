"""Failed deliveries as a person on call sees them; and with a live worker."""

import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer

from regworker.ledger import SyncLedger
from regworker.ledger.endpoints import disable
from regworker.ledger.transitions import DEAD, Publication, delivery_key
from tests.integration.installation import PATIENCE, SECRET, Installation, installation
from tests.integration.jobs import open2b
from tests.integration.outbox import Cli, crm, due, failing, open_shop, settled, tried
from worker.cli import time_arguments
from worker.cli.local import stack

EVENT = Publication("crm.1.disabled", "x", b"{}", "sealed", "kept", ("results",))


@pytest.fixture
def shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger to which a worker has announced two endpoints."""
    return open_shop(ledger)


@pytest.fixture
def cli(redis_url: str) -> Cli:
    """The commands, without a sealing key: none of them opens an event."""
    return Cli(REGWORKER_REDIS_URL=redis_url)


def dead(shop: SyncLedger, *members: str) -> None:
    """Make deliveries dead."""
    for member in members:
        settled(shop, tried(shop, member), "dead")


def made(shop: SyncLedger, member: str, hours: float) -> None:
    """Set back the creation of a delivery by so many hours."""
    at = datetime.now(UTC) - timedelta(hours=hours)
    shop.redis.hset(delivery_key(member), "created_at", round(at.timestamp() * 1000))
    if shop.redis.zscore("{reg}:pending:crm", member):
        shop.redis.zadd("{reg}:pending:crm", {member: at.timestamp() * 1000})


# ── the list ──────────────────────────────────────────────────────────────────────────────────


def test_the_list_tells_what_is_pending_and_what_is_dead(shop: SyncLedger, cli: Cli) -> None:
    """With its endpoint, tries, age, reason, and the time of the next try."""
    a, b = due(shop, "a", "b")
    settled(shop, tried(shop, a), "later", 300)
    dead(shop, b)
    pending, given_up = cli.json("deliveries", "list")
    assert (pending["id"], pending["state"], pending["tries"]) == (a, "pending", 1)
    assert datetime.fromisoformat(pending["next_try_at"]) > datetime.now(UTC)
    assert (pending["why"], pending["dead_at"]) == ("HTTP 503", None)
    assert (given_up["id"], given_up["state"], given_up["endpoint"]) == (b, "dead", "crm")
    assert given_up["next_try_at"] is None
    shown = cli("deliveries", "list")
    assert a in shown
    assert b in shown


def test_the_list_is_narrowed(shop: SyncLedger, cli: Cli) -> None:
    """By state, by endpoint and by the time of creation, in each notation."""
    old, new = due(shop, "a", "b")
    [other] = due(shop, "c", to="erp")
    old_dead, new_dead = due(shop, "d", "e")
    dead(shop, old_dead, new_dead)
    made(shop, old, hours=30)
    made(shop, old_dead, hours=30)
    day = (datetime.now(UTC) - timedelta(hours=24)).isoformat()

    def ids(*filters: str) -> list[str]:
        return [one["id"] for one in cli.json("deliveries", "list", *filters)]

    assert ids("--state", "pending") == [old, new, other]
    assert ids("--state", "dead", "--endpoint", "erp") == []
    assert ids("--endpoint", "crm", "--since", "24h") == [new, new_dead]
    assert ids("--endpoint", "crm", "--until", day) == [old, old_dead]
    assert ids("--count", "1") == [old]


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--since", "yesterday"],
        ["list", "--state", "lost"],
        ["replay"],
        ["replay", "an-id", "--endpoint", "crm"],
        ["enable"],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(cli: Cli, arguments: list[str]) -> None:
    """And the message says what is right."""
    assert "Usage" in cli("deliveries", *arguments, code=2)


def test_moments_are_said_in_more_than_one_way() -> None:
    """A time, a day, or how long ago."""
    now = datetime(2026, 11, 22, 5, tzinfo=UTC)
    assert time_arguments.parse("90m", "--since", now) == now - timedelta(minutes=90)
    assert time_arguments.parse("2026-11-22T05:00Z", "--since") == now
    assert time_arguments.parse("2026-11-22T06:00+01:00", "--since") == now
    assert time_arguments.parse("2026-11-22", "--since") == now.replace(hour=0)
    assert time_arguments.parse(None, "--since") is None
    with pytest.raises(typer.BadParameter, match="how long ago"):
        time_arguments.parse("soon", "--since")
    lengths = [time_arguments.length(one) for one in (-1, 0, 59.6, 61, 90_000, 172_800)]
    assert lengths == ["0s", "0s", "1m", "1m 1s", "1d 1h", "2d"]


# ── replay, and enable ────────────────────────────────────────────────────────────────────────


def test_dead_deliveries_are_replayed_by_id_and_by_what_they_have_in_common(
    shop: SyncLedger, cli: Cli
) -> None:
    """A delivery that is not dead is reported, and the others are replayed."""
    a, b, c = due(shop, "a", "b", "c")
    dead(shop, a, b, c)
    made(shop, c, hours=30)
    [one] = cli.json("deliveries", "replay", a, "d:nobody:crm", code=1)
    assert (one["replayed"], one["gone"], one["disabled"]) == (1, 1, 0)
    [one] = cli.json("deliveries", "replay", "--since", "1h", "--yes")
    assert one["replayed"] == 1
    assert shop.redis.zrange(DEAD, 0, -1) == [c.encode()]
    assert "replayed 1" in cli("deliveries", "replay", "--endpoint", "crm", "--yes")
    assert crm(shop).pending == 3


def test_an_endpoint_that_is_disabled_is_seen_and_enabled(shop: SyncLedger, cli: Cli) -> None:
    """Deliveries that died since its first failure are replayed, unless the operator declines."""
    before, while_failing = due(shop, "a", "b")
    dead(shop, before, while_failing)
    shop.redis.zadd(DEAD, {before: 1})
    failing(shop, days=1)
    shop(disable(crm(shop), "HTTP 410", EVENT, only_if_failing=False))
    [found, _] = cli.json("deliveries", "endpoints")
    assert (found["endpoint"], found["disabled"], found["why"]) == ("crm", True, "HTTP 410")
    assert "disabled" in cli("deliveries", "endpoints")
    [one] = cli.json("deliveries", "replay", "--endpoint", "crm", "--yes", code=1)
    assert (one["replayed"], one["disabled"]) == (0, 2)
    [one] = cli.json("deliveries", "enable", "crm", "--no-replay")
    assert one == {"endpoint": "crm", "was_disabled": True, "replayed": 0}
    [one] = cli.json("deliveries", "enable", "crm")
    assert one == {"endpoint": "crm", "was_disabled": False, "replayed": 1}
    assert shop.redis.zrange(DEAD, 0, -1) == [before.encode()]


def test_an_endpoint_that_nobody_knows_is_an_error(cli: Cli, shop: SyncLedger) -> None:
    """Both commands name the unknown endpoint."""
    for command in (["enable", "nobody"], ["replay", "--endpoint", "nobody"]):
        assert "no worker delivers to the endpoint nobody" in cli("deliveries", *command, code=1)


# ── with a worker ─────────────────────────────────────────────────────────────────────────────


class Hanging(socketserver.ThreadingTCPServer):
    """An endpoint that accepts every connection and never answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"
        self.most = 0
        self._silent: list[socket.socket] = []
        self._over = threading.Event()
        self._lock = threading.Lock()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do not answer until the test is over or the client closes the connection."""
        request.settimeout(0.2)
        try:
            while not self._over.is_set():
                try:
                    if not request.recv(65536):
                        break
                except TimeoutError:
                    self._count(request)
        finally:
            with self._lock:
                if request in self._silent:
                    self._silent.remove(request)

    def _count(self, request: socket.socket) -> None:
        """Count the connections that wait for an answer: those on which nothing came for a while.

        One that was closed a moment ago is readable."""
        with self._lock:
            if request not in self._silent:
                self._silent.append(request)
            closed, _, _ = select.select(self._silent, [], [], 0)
            self.most = max(self.most, len(self._silent) - len(closed))

    def let_go(self) -> None:
        """Close all connections, now and from now on."""
        self._over.set()


@pytest.fixture(scope="module")
def hanging() -> Iterator[Hanging]:
    """One hanging endpoint for this file."""
    with Hanging() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.let_go()
        server.shutdown()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, hanging: Hanging) -> Iterator[Installation]:
    """A worker with four slots and two endpoints: one hangs, one works."""
    slow = {
        "endpoints__slow__kind": "webhook",
        "endpoints__slow__url": hanging.url,
        "endpoints__slow__secrets": SECRET,
        "endpoints__slow__allow_http": "true",
        "endpoints__slow__allow_private": "true",
        "endpoints__slow__max_in_flight": 2,
    }
    folder = tmp_path_factory.mktemp("deliveries")
    with installation(folder, **{**slow, "concurrency": 4}) as running:
        yield running
        # Otherwise the worker would wait for the open requests.
        hanging.let_go()


def test_an_endpoint_that_hangs_holds_nobody_else_back(
    here: Installation, hanging: Hanging
) -> None:
    """It hangs on every call for the whole time limit; the other endpoint gets all its events."""
    jobs = [open2b(reply_to=["slow"]) for _ in range(10)]
    for receipt in here.producer.enqueue_many(jobs):
        here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]

    def hang() -> bool:
        return hanging.most >= 2

    stack.until(hang, "two events on the way to the endpoint that hangs", PATIENCE)
    for receipt in list(here.producer.enqueue_many([open2b(reply_to=["crm"]) for _ in range(20)])):
        here.wait_for_hook(receipt.job_id)  # type: ignore[union-attr]
    assert hanging.most == 2
    [slow] = [one for one in Cli(**here.environment).json("deliveries", "endpoints")
              if one["endpoint"] == "slow"]  # fmt: skip
    assert slow["pending"] == 10
    assert slow["in_flight"] <= 2


def test_an_endpoint_is_disabled_enabled_and_gets_what_it_missed(here: Installation) -> None:
    """From its 410 to the last event, with a live worker and the commands of a person on call."""
    cli = Cli(**here.environment)
    here.receiver.behave({"script": [{"status": 410}]})
    ids = [here.producer.enqueue(open2b(reply_to=["crm"])).job_id]

    def is_disabled() -> bool:
        return crm(here.ledger).disabled

    stack.until(is_disabled, "the endpoint is disabled", PATIENCE)
    ids += [here.producer.enqueue(open2b(reply_to=["crm"])).job_id for _ in range(5)]

    def all_dead() -> bool:
        return here.ledger.redis.zcard(DEAD) == 6

    stack.until(all_dead, "the events are dead", PATIENCE)
    assert [one for one in here.receiver.log if one.subject in ids[1:]] == []
    here.wait_for_line('"alert": "endpoint"')
    [notice] = [event for event in cli.json("results") if event["type"] == "endpoint.disabled"]
    assert notice["data"]["endpoint"] == "crm"
    [done] = cli.json("deliveries", "enable", "crm")
    assert done == {"endpoint": "crm", "was_disabled": True, "replayed": 6}
    for job_id in ids:
        *_, last = here.wait_for_hook(job_id)
        assert (last.verified, last.status) == (True, 204)
    assert here.ledger.redis.zcard(DEAD) == 0
