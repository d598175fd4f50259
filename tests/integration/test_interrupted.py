"""A host interrupts a call: its exception passes, and later calls get their own answers.

Celery raises a soft time limit in a signal handler, in the middle of whatever line runs.
"""

import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from traceback import walk_stack
from types import FrameType
from typing import Any

import pytest

from regworker.ledger import SyncLedger, bounded, sync_connections
from regworker.ledger.bounded import within
from regworker.ledger.transitions import look
from regworker.producer import Producer
from regworker.results import ResultConsumer
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE
from tests.integration.jobs import ACTOR, skypostal
from tests.integration.test_job_stream import serve
from worker.operations.admin_actions import AdminActions


class SoftTimeLimit(Exception):  # noqa: N818
    """Like Celery's, which is an `Exception` too."""


class At:
    """Raises at the n-th line that runs in redis-py, the client or the worker."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.raised = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """Called by the interpreter for each call and line."""
        if event == "call" and not _heard(frame):
            return None
        if event == "line":
            self.left -= 1
            if self.left <= 0:
                self.raised = True
                raise SoftTimeLimit
        return self


def _heard(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    # redis-py discards all errors in its metrics; Python discards what a destructor raises.
    if not name.startswith(("regworker.", "worker.", "redis.")) or "observability" in name:
        return False
    return all(one.f_code.co_name != "__del__" for one, _ in walk_stack(frame))


def interrupted(call: Callable[[], Any], number: int) -> bool:
    """Interrupt a call at its n-th line; return whether the call had so many lines."""
    at = At(number)
    before, hook = sys.gettrace(), sys.unraisablehook
    unheard: list[Any] = []
    # Python discards what is raised while the garbage collector closes a generator.
    sys.unraisablehook = unheard.append
    sys.settrace(at)
    try:
        call()
    except SoftTimeLimit:
        assert at.raised
    else:
        assert not at.raised or unheard, "the host's exception was swallowed"
    finally:
        sys.settrace(before)
        sys.unraisablehook = hook
    return at.raised


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The interrupted calls of a test, whose time limits may be left behind, limit no other test.

    Each call of a ledger sets its own; a test may also use redis-py directly."""
    yield
    bounded._END.set(float("inf"))


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """A producer's settings; a worker has announced itself to the ledger."""
    serve(ledger)
    return Settings.load(redis_url=redis_url, sealing_keys=KEYS)


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    """A producer."""
    with Producer(settings) as made:
        yield made


CALLS: dict[str, Callable[[Producer, str], Any]] = {
    "status": lambda producer, id_: producer.status(id_),
    "enqueue": lambda producer, _: producer.enqueue(skypostal()),
    "enqueue many": lambda producer, _: list(
        producer.enqueue_many([skypostal() for _ in range(60)])
    ),
    "a pipeline": lambda producer, _: (
        producer._shell._ledger.redis.pipeline(transaction=False).time().execute()
    ),
    "an exchange": lambda producer, _: producer._shell._ledger.exchange([("ECHO", "stray")]),
}


# redis-py may lose a connection if it is interrupted while its pool returns one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", CALLS)
def test_whoever_is_interrupted_gets_its_own_answer_next(producer: Producer, call: str) -> None:
    """At any line. The exception reaches the host, and the client stays usable."""
    first, second = (producer.enqueue(skypostal()) for _ in range(2))
    number, stride = 1, {"enqueue": 7, "enqueue many": 97}.get(call, 1)
    while interrupted(lambda: CALLS[call](producer, first.job_id), number):
        number += stride
        found = producer.status(second.job_id)
        assert (found.job_id, found.idempotency_key) == (second.job_id, second.idempotency_key)
    assert number > 50
    gc.collect()
    with within(PATIENCE):  # instead of the limit that an interrupted call may have left
        assert producer._shell._ledger.redis.ping()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_that_was_interrupted_while_it_opened_is_usable(
    ledger: SyncLedger,
) -> None:
    """At any line: it may have a socket and no parser yet, or the other way round."""

    def reconnect() -> None:
        ledger.redis.connection_pool.disconnect()
        assert ledger(look("nobody")) is None

    number = 1
    while interrupted(reconnect, number):
        number += 1
        assert ledger(look("nobody")) is None
        with within(PATIENCE):  # instead of the limit that an interrupted call may have left
            assert ledger.exchange([("ECHO", "mine")]) == b"mine"
    assert number > 300
    gc.collect()


def test_a_consumer_that_is_interrupted_gets_its_own_answers_next(settings: Settings) -> None:
    """It misses no event: an event that was delivered but not received is delivered again."""
    with ResultConsumer("crm", settings=settings, claim_after=0.001) as consumer:
        consumer.receive(0)
        number = 1
        while interrupted(lambda: consumer.receive(0.001), number):
            number += 5
            with within(PATIENCE):  # instead of the limit that an interrupted call may have left
                assert consumer._ledger.exchange([("ECHO", "mine")]) == b"mine"
            assert consumer._ledger(look("nobody")) is None


def test_only_text_and_bytes_are_packed(
    settings: Settings, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every command of a producer, an operator or a consumer: no number reaches hiredis."""
    kinds: set[type] = set()
    pack = sync_connections.pack_command

    def packing(command: Any) -> bytes:
        # hiredis treats a `StrEnum` as text and runs none of its methods.
        kinds.update(str if isinstance(part, str) else type(part) for part in command)
        return bytes(pack(command))

    monkeypatch.setattr("regworker.ledger.sync_connections.pack_command", packing)
    monkeypatch.setattr("redis.connection.hiredis.pack_command", packing)
    with Producer(settings) as producer, AdminActions(settings) as operator:
        receipt = producer.enqueue(skypostal())
        producer.status(receipt.job_id)
        producer.cancel(receipt.job_id)
        list(operator.reviews())
        operator.accounts()
        operator.pause("skypostal", "default", ACTOR)
        with ResultConsumer("crm", settings=settings) as consumer:
            consumer.ack(*consumer.receive(0.1))
    sync_connections.packed(("EVALSHA", 1, 1.5, True, b"x"))
    assert kinds <= {str, bytes}


STORM = """
    import random, signal, sys, time
    from tests.integration.jobs import skypostal
    from regworker.producer import Producer
    from regworker.settings import Settings

    class Limit(Exception):
        pass

    armed = False

    def strike(*_):
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, most))
        if armed:
            raise Limit

    signal.signal(signal.SIGALRM, strike)
    settings = Settings.load(redis_url=sys.argv[1], sealing_keys=sys.argv[2])
    for _ in range(2):  # the second time all is imported
        before = time.monotonic()
        with Producer(settings) as first:
            first.enqueue(skypostal())
        # A call that follows an interrupted one connects first: it must come through now and then.
        most = 2 * (time.monotonic() - before)
    producer = Producer(settings)
    jobs, struck, ids = [], 0, {}
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    # At least 700; more where the machine is so busy that few are interrupted, or few come through.
    while len(jobs) < 700 or min(struck, len(ids)) <= 50 and len(jobs) < 20_000:
        jobs.append(job := skypostal())
        try:
            armed = True
            receipt = producer.enqueue(job)
            armed = False
            ids[receipt.job_id] = job["idempotency_key"]
            assert receipt.idempotency_key == job["idempotency_key"]
        except Limit:
            armed = False
            struck += 1
            # The machine may become faster or slower: about half of the calls are interrupted.
            most = min(2.0, max(0.001, most * (1.02 if struck > len(ids) else 0.98)))
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a late strike would set the timer again
    signal.setitimer(signal.ITIMER_REAL, 0)
    for id_, key in ids.items():
        assert producer.status(id_).idempotency_key == key
    for job in jobs:
        assert producer.enqueue(job).idempotency_key == job["idempotency_key"]
    print(struck, len(ids))
"""


def test_a_storm_of_signals_harms_no_job_and_no_process(settings: Settings) -> None:
    """A handler raises every few milliseconds while thousands of jobs are enqueued."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STORM), settings.redis_url, KEYS],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    struck, whole = map(int, done.stdout.split())
    assert struck > 50
    assert whole > 50
