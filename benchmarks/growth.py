"""`python -m benchmarks.growth`: whether a job costs the same in a ledger that is full.

Real records, copied within the server: finished ones with their events on the stream, and queued
ones with their alarms, which come due tomorrow. Says what a record of each kind takes.
"""

import argparse
from typing import Any

import redis
from rich.console import Console
from rich.progress import track

from benchmarks import stage
from benchmarks.contest import Bench, Round
from benchmarks.single import ours
from benchmarks.watch import STREAM, Stream
from worker.ledger.commands import ALARMS, job_key

#: Copies a script makes at a time: some milliseconds.
BATCH = 5000

#: Milliseconds from now until the alarms of what is queued come due.
TOMORROW = 86_400_000

#: Copies a record under ids of the same length, with its places in sorted sets, and its event.
#: KEYS: record; ARGV: first, last, alarms' key, when these come due, the stream or '', its event,
#: then sorted set, score, ...
COPY = """
local prefix = KEYS[1]:sub(1, #KEYS[1] - 36)
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%08x-0000-8000-8000-%012x', number, number)
  redis.call('COPY', KEYS[1], prefix .. id)
  for i = 7, #ARGV, 2 do redis.call('ZADD', ARGV[i], ARGV[i + 1], id) end
  if ARGV[4] ~= '' then redis.call('ZADD', ARGV[3], ARGV[4], id) end
  if ARGV[5] ~= '' then redis.call('XADD', ARGV[5], '*', 'event', ARGV[6]) end
end
"""


def places(server: redis.Redis, job_id: str) -> list[str | float]:
    """The sorted sets that hold a job, and its score in each, but for the alarms."""
    found: list[str | float] = []
    for key in server.scan_iter("{reg}:*", count=1000, _type="zset"):
        score = server.zscore(key, job_id)
        if score is not None and key.decode() != ALARMS:
            found += [key.decode(), score]
    return found


def fill(server: redis.Redis, job_id: str, first: int, count: int, *, finished: bool) -> float:
    """Copy a job's record so many times; how many bytes each copy takes."""
    at, _ = server.time()
    due = "" if finished else str(at * 1000 + TOMORROW)
    last: Any = server.xrevrange(STREAM, count=1)
    told = [STREAM, last[0][1][b"event"]] if finished else ["", ""]
    arguments = [ALARMS, due, *told, *places(server, job_id)]
    before = server.info("memory")["used_memory"]
    copy = server.register_script(COPY)
    what = f"{count} {'finished' if finished else 'queued'}"
    console = Console(stderr=True)
    for start in track(range(first, first + count, BATCH), what, console=console, transient=True):
        last = min(start + BATCH, first + count) - 1
        copy(keys=[job_key(job_id)], args=[start, last, *arguments])
    taken: int = server.info("memory")["used_memory"] - before
    return taken / count


def main() -> None:
    """Measure, fill, measure again, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--finished", type=int, default=1_000_000, help="finished records (1000000)"
    )
    parser.add_argument("--queued", type=int, default=100_000, help="queued jobs (100000)")
    parser.add_argument("--jobs", type=int, default=3000, help="jobs a measurement (3000)")
    options = parser.parse_args()
    with ours() as (bench, _):
        bench.warm_up()
        empty = measured(bench, options.jobs)
        # The append-only file would take more than a gigabyte, and says nothing here.
        bench.server.config_set("appendonly", "no")
        sent, _, _ = bench.client.enqueue(1)
        bench.watch.wait([key for key, _ in sent], bench.alive())
        finished = fill(bench.server, sent[0][0], 0, options.finished, finished=True)
        record = bench.server.memory_usage(job_key(sent[0][0]))
        with stage.frozen(bench.worker.pid):
            # Its copies are made while it is queued.
            waiting, _, _ = bench.client.enqueue(1)
            queued = fill(
                bench.server, waiting[0][0], options.finished, options.queued, finished=False
            )
        bench.server.config_set("appendonly", "yes")
        assert isinstance(bench.watch, Stream)
        bench.watch.skip(options.finished)
        bench.watch.wait([key for key, _ in waiting], bench.alive())
        full = measured(bench, options.jobs)
    print(f"a finished job: {record} bytes; with its event on the stream {finished:.0f}")
    print(f"a queued job: {queued:.0f} bytes")
    for what, (round_, server) in {"empty": empty, "full": full}.items():
        print(f"{what}: {round_.cpu_ms:.2f} ms of CPU a job, and {server:.2f} ms of the server's")
    print(f"full is {full[0].cpu_ms / empty[0].cpu_ms:.2f} times empty")


def measured(bench: Bench, jobs: int) -> tuple[Round, float]:
    """A burst, and the server's milliseconds of CPU a job."""
    before = bench.server.info("cpu")
    found = bench.burst(jobs)
    after = bench.server.info("cpu")
    names = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    return found, sum(after[name] - before[name] for name in names) / jobs * 1000


if __name__ == "__main__":
    main()
