"""The benchmarks as `make bench` runs them, but small: ours and the floor, no other queues."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from runpy import run_path
from xml.etree import ElementTree as ET

import psutil
import pytest

from benchmarks import ledgers
from benchmarks.features import interval, row
from benchmarks.soak import Found, Sample, chart
from benchmarks.support import stage
from benchmarks.support.contest import Round
from benchmarks.support.plot import svg
from benchmarks.support.report import last_line, summarize
from benchmarks.support.throttle import cpu, limited
from tests.integration.installation import ROOT
from worker.cli.local import stack

LAST_LINE = r"ratio_vs_best_tuned (\S+) ratio_vs_floor (\S+) cpu_ms_per_job (\S+)"

#: Seconds; far more than it takes on any machine.
PATIENCE = 240.0

pytestmark = pytest.mark.timeout(3 * PATIENCE)


def benchmarks(*options: str) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "benchmarks", *options]


def test_a_quick_run_ends_with_the_three_figures() -> None:
    """It measures ours and the floor, and its last line is for scripts to read."""
    only = ["--only", "ours", "--only", "bare loop, httpx-aiohttp"]
    done = subprocess.run(
        benchmarks("--quick", "--jobs", "200", "--rounds", "1", *only),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    peer, floor, cost = map(float, found.groups())
    assert peer != peer  # nobody else was there
    assert 0 < floor < 1
    assert cost > 0


def test_a_steady_load_has_its_latencies() -> None:
    """At the rate that a burst reached, for each contestant; here ours alone."""
    small = ["--jobs", "200", "--bursts", "1", "--rounds", "1", "--seconds", "0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.steady", "--only", "ours", "--load", "0.2", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"ours: p50 ([\d.]+) ms, p99 ([\d.]+) ms", done.stdout)
    assert found is not None, done.stdout
    p50, p99 = map(float, found.groups())
    assert 50 <= p50 <= p99


def test_each_step_has_its_cost() -> None:
    """Microseconds for each step, and for the same call without the worker."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps", "--rounds", "1", "--calls", "50"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [re.fullmatch(r" *([\d.]+) us  (.+)", line) for line in done.stdout.splitlines()]
    assert all(one and float(one[1]) > 0 for one in found), done.stdout
    assert {"metrics", "webhook (one job in ten)"} <= {one[2] for one in found if one}


def test_three_ledgers_are_compared_with_one() -> None:
    """The rates of both, their ratio, and what servers and clients used; each server limited."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ledgers", "--turns", "1", "--seconds", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rates = re.findall(r"(\d+) jobs/s; each server used [\d.]+% to [\d.]+% of a core", done.stdout)
    ratio = re.search(r"three ledgers carried ([\d.]+) times the jobs of one", done.stdout)
    assert ratio is not None, done.stdout
    one, three = map(int, rates)
    assert abs(three / one - float(ratio[1])) < 0.1


def test_a_server_with_other_jobs_than_its_own_ends_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each server must have written three times to the record of each of its jobs."""
    monkeypatch.setattr(ledgers, "MARGIN", 0)
    said = """input(), print('{"done": {"main": 1}, "cpu": 0.1}')"""
    with (
        stack.valkey(tmp_path) as valkey,
        closing(ledgers.Side({"main": valkey.connection_url})) as side,
        stage.spoken_to([sys.executable, "-c", said], {}, tmp_path) as client,
        pytest.raises(RuntimeError, match=r"\[0\] writes for"),
    ):
        side.turn([client], number=0, share=1, seconds=0)


def test_a_limited_process_is_stopped_and_goes_on() -> None:
    """It is stopped when it has used its share, goes on later, and is free after the block."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        try:
            process = psutil.Process(child.pid)
            with limited([child.pid], 0.1):
                stack.until(lambda: process.status() == "stopped", "no stop", PATIENCE)
                used = cpu(child.pid)
                stack.until(lambda: cpu(child.pid) > used, "it did not go on", PATIENCE)
            assert process.status() != "stopped"
        finally:
            child.kill()


@contextmanager
def running(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, while it runs."""
    child = subprocess.Popen(
        benchmarks(*options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_it_stops_what_it_started_when_it_is_interrupted() -> None:
    """After Ctrl-C no process of a benchmark runs on: no server, no worker, no client."""
    with running("--only", "ours", "--jobs", "100000") as command:
        parent = psutil.Process(command.pid)

        def started() -> bool:
            lines = [" ".join(one.cmdline()) for one in parent.children(recursive=True)]
            wanted = ("valkey-server", "support.stub", "celery", "support.driver")
            return all(any(word in line for line in lines) for word in wanted)

        stack.until(started, "not everything runs", PATIENCE)
        children = parent.children(recursive=True)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=PATIENCE)
        assert command.returncode == 130, said
        assert "interrupted" in said
        gone, alive = psutil.wait_procs(children, timeout=PATIENCE)
        assert len(gone) == len(children), alive


def test_ratios_compare_medians_of_the_cpu_a_job_with_ours() -> None:
    """A contestant that needs less CPU than ours gives a ratio below 1; only tuned peers count."""

    def rounds(name: str, kind: str, *milliseconds: float) -> list[Round]:
        return [Round(name, kind, 1000, 1.0, cost) for cost in milliseconds]

    summaries = summarize(
        rounds("ours", "ours", 9.0, 2.0, 1.0)
        + rounds("one (tuned)", "tuned", 1.0, 1.0, 7.0)
        + rounds("other (tuned)", "tuned", 3.0)
        + rounds("other", "peer", 0.1)
        + rounds("bare loop, httpx-aiohttp", "floor", 0.5)
    )
    assert (
        last_line(summaries) == "ratio_vs_best_tuned 0.50 ratio_vs_floor 0.25 cpu_ms_per_job 2.00"
    )
    assert [one.name for one in summaries][-1] == "other (tuned)"


def test_the_plot_is_one_bar_a_contestant() -> None:
    """The plot is well-formed SVG and names every contestant."""
    summaries = summarize([Round("ours", "ours", 10, 1, 1), Round("<&>", "peer", 10, 1, 900)])
    drawn = ET.fromstring(svg(summaries))
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ours", "<&>"} <= set(texts)


def test_a_name_that_nobody_has_is_wrong_use() -> None:
    """An unknown contestant is refused; the message lists the known ones."""
    done = subprocess.run(
        benchmarks("--only", "nobody"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "taskiq (tuned)" in done.stderr
    assert "nobody" in done.stderr


def test_what_counts_a_workers_objects_disturbs_none_of_its_threads() -> None:
    """A thread that makes tuples fails if the counts refer to one that is half made."""
    counts = run_path(str(ROOT / "benchmarks" / "probe" / "sitecustomize.py"))["counts"]
    with ThreadPoolExecutor(1) as other:
        made = other.submit(lambda: [len(tuple(one for one in range(1000))) for _ in range(5000)])
        while not made.done():
            assert counts()["objects"] > 0
        assert set(made.result()) == {1000}


def test_a_soak_gives_every_job_one_result_and_doubles_nothing() -> None:
    """A short soak, with the provider's faults. On a busy machine a job may also be abandoned."""
    options = ["--jobs", "2000", "--every", "0.2", "--retention", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    # Whether anything grows takes more jobs to see.
    assert (found["jobs"], found["doubled"]) == (2000, 0)
    assert found["lost"] <= found["odd"], "each job without a customer ended in another way"
    assert found["samples"][-1]["done"] == 2000
    assert sum(found["calls"].values()) >= 2000


def sample(done: int, **more: int) -> Sample:
    """A sample of a soak; what is not named is 100."""
    values = {one.name: 100 for one in fields(Sample)}
    return Sample(**{**values, "done": done, **more})


def soaked(samples: list[Sample], end: Sample | None = None, **more: int) -> Found:
    """A soak of 1,000 jobs with these samples; `end`: at rest, after the last job."""
    counts = {"lost": 0, "doubled": 0, "odd": 0, "left": 0, **more}
    resting = [sample(50), end or sample(1000)]
    return Found(1000, samples, resting, calls={}, **counts)


def test_a_soak_compares_the_last_quarter_with_the_second() -> None:
    """Memory may grow at first, and by 2 % after that; the message names what grew by more."""
    steady = [sample(100, rss=10), *(sample(done, rss=102) for done in (260, 400, 900))]
    assert soaked(steady).problems() == []
    grown = [sample(260), sample(500), sample(510, rss=900), sample(900, rss=103, threads=102)]
    assert soaked(grown).problems() == ["rss grew", "threads grew"]
    busy = [sample(400), sample(900, tasks=900, objects=900, files=900)]
    assert soaked(busy).problems() == [], "these are compared at rest"
    more = sample(1000, tasks=101, objects=105, files=103)
    assert soaked(steady, more).problems() == ["tasks at rest grew", "files at rest grew"]
    assert soaked(steady, lost=1, left=2).problems() == ["lost: 1", "left: 2"]


def test_the_chart_of_a_soak_has_a_curve_for_each_value() -> None:
    """The chart is well-formed SVG; each curve has a point for each sample."""
    drawn = ET.fromstring(chart(soaked([sample(done) for done in range(100, 1100, 100)])))
    lines = list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 6
    assert all(len(line.attrib["points"].split()) == 10 for line in lines)


def test_a_features_row_compares_rounds_and_the_cheapest_bursts() -> None:
    """A slow round makes both sides slow, and changes no ratio; one odd round is not the median."""
    plain = [(1.0, 0.2), (2.0, 0.4), (4.0, 0.8), (1.0, 0.2), (1.0, 0.2)]
    costs = [(1.1, 0.2), (2.2, 0.4), (4.4, 0.8), (9.0, 0.2), (1.2, 0.1)]
    assert row("it", costs, plain) == (
        "| it | 1.100 (1.100 to 9.000) | 1.100 | 1.000 (0.500 to 1.000) | 0.500 |"
    )


def test_the_interval_of_a_median_becomes_narrow_with_many_rounds() -> None:
    """Of 100 values, the interval is from the 41st to the 60th."""
    assert interval(range(1, 101)) == (41, 60)
