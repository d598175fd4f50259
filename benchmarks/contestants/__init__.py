"""The contestants: task queues, each as in its documentation and tuned; ours; and floors.

Each takes a job, posts its body to the provider with httpx, and stores the box's number and key.
"Tuned" means the same HTTP transport as ours (httpx-aiohttp), and everything else that its
documentation offers for speed.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

#: How many jobs one worker process runs at a time.
SLOTS = 100

#: Processes of a pool in which each runs one job at a time; a hundred would need 5 GB.
PREFORKED = 20

#: Packages in addition to those of our own worker.
NEEDS = {
    "taskiq_app": ("taskiq", "taskiq_redis"),
    "dramatiq_app": ("dramatiq",),
    "rq_app": ("rq",),
    "huey_app": ("huey",),
}

Kind = Literal["ours", "peer", "tuned", "floor"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One worker process, and the module that enqueues."""

    name: str
    kind: Kind
    module: str
    """In this package: `client()` enqueues; the worker imports it too, except ours."""
    command: tuple[str, ...] = ()
    """The arguments for the worker's Python."""
    environment: dict[str, str] = field(default_factory=dict)
    results: str = ""
    """The pattern of the keys of results; ours has a stream."""
    slots: int = SLOTS
    share: float = 1.0
    """The share of the jobs: slow contestants get fewer, or they would take too long."""
    overlay: str = ""
    """A virtual environment of its own, if its dependencies conflict with the others."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The packages that it needs; those of an overlay are installed there."""
        return () if self.overlay else NEEDS.get(self.module, ())

    @property
    def python(self) -> str:
        """The Python of its processes."""
        return f"{sys.prefix}-{self.overlay}/bin/python" if self.overlay else sys.executable

    @property
    def title(self) -> str:
        """Its name, and whether it is tuned."""
        return f"{self.name} (tuned)" if self.kind == "tuned" else self.name


def _celery(pool: str, slots: int) -> tuple[str, ...]:
    module = "benchmarks.contestants.celery_app"
    return ("-m", "celery", "-A", module, "worker", "-P", pool, "-c", str(slots))


#: What a tuned Celery leaves out: messages between workers that are not needed.
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")

_TASKIQ = (
    *("-m", "taskiq", "worker", "benchmarks.contestants.taskiq_app:broker"),
    *("--workers", "1", "--max-async-tasks", str(SLOTS)),
)
_ARQ = ("-m", "arq", "benchmarks.contestants.arq_app.WorkerSettings")
_DRAMATIQ = (
    *("-m", "dramatiq", "benchmarks.contestants.dramatiq_app"),
    *("--processes", "1", "--threads", str(SLOTS)),
)
_HUEY = (
    *("-m", "huey.bin.huey_consumer", "benchmarks.contestants.huey_app.huey"),
    *("-k", "thread", "-w", str(SLOTS)),
)

CONTESTANTS = (
    Contestant("ours", "ours", "ours"),
    Contestant("ours, no events", "ours", "ours", environment={"BENCH_EVENTS": "0"}),
    Contestant(
        "celery threads",
        "peer",
        "celery_app",
        _celery("threads", SLOTS),
        {"BENCH_CALL": "client"},
        "celery-task-meta-*",
    ),
    Contestant(
        "celery threads",
        "tuned",
        "celery_app",
        _celery("threads", SLOTS) + _QUIET,
        {"BENCH_CALL": "loop", "BENCH_TUNED": "1"},
        "celery-task-meta-*",
    ),
    Contestant(
        "celery gevent",
        "peer",
        "celery_app",
        _celery("gevent", SLOTS),
        {"BENCH_CALL": "client"},
        "celery-task-meta-*",
    ),
    Contestant(
        "celery gevent",
        "tuned",
        "celery_app",
        _celery("gevent", SLOTS) + _QUIET,
        {"BENCH_CALL": "borrowed", "BENCH_TUNED": "1"},
        "celery-task-meta-*",
    ),
    Contestant(
        "celery prefork",
        "peer",
        "celery_app",
        _celery("prefork", PREFORKED),
        {"BENCH_CALL": "client"},
        "celery-task-meta-*",
        slots=PREFORKED,
        share=0.5,
    ),
    Contestant(
        "celery prefork",
        "tuned",
        "celery_app",
        _celery("prefork", PREFORKED) + _QUIET,
        {"BENCH_CALL": "run", "BENCH_TUNED": "1"},
        "celery-task-meta-*",
        slots=PREFORKED,
        share=0.5,
    ),
    Contestant("taskiq", "peer", "taskiq_app", _TASKIQ, {}, "result:*"),
    Contestant("taskiq", "tuned", "taskiq_app", _TASKIQ, {"BENCH_TUNED": "1"}, "result:*"),
    Contestant("arq", "peer", "arq_app", _ARQ, {}, "arq:result:*", overlay="arq"),
    Contestant(
        "arq", "tuned", "arq_app", _ARQ, {"BENCH_TUNED": "1"}, "arq:result:*", overlay="arq"
    ),
    # Its keys are hashes without a known pattern.
    Contestant("dramatiq", "peer", "dramatiq_app", _DRAMATIQ, {"BENCH_CALL": "client"}, "*"),
    Contestant("dramatiq", "tuned", "dramatiq_app", _DRAMATIQ, {"BENCH_TUNED": "1"}, "*"),
    Contestant(
        "rq",
        "peer",
        "rq_app",
        ("-c", "from benchmarks.contestants.rq_app import main; main()"),
        {"BENCH_CALL": "client"},
        "rq:results:*",
        slots=PREFORKED,
        share=0.1,
    ),
    Contestant(
        "rq",
        "tuned",
        "rq_app",
        ("-c", "from benchmarks.contestants.rq_app import main; main()"),
        {"BENCH_CALL": "run", "BENCH_TUNED": "1"},
        "rq:results:*",
        slots=PREFORKED,
        share=0.3,
    ),
    Contestant("huey", "peer", "huey_app", _HUEY, {"BENCH_CALL": "client"}, "huey.r.*"),
    Contestant("huey", "tuned", "huey_app", _HUEY, {"BENCH_CALL": "loop"}, "huey.r.*"),
    Contestant("bare loop, httpx-aiohttp", "floor", "floor", environment={"BENCH_TUNED": "1"}),
    Contestant("bare loop, aiohttp", "floor", "floor", environment={"BENCH_CALL": "aiohttp"}),
)
