"""The table of commands. Errors become messages only here."""

import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Annotated

import typer
from typer.main import get_command

from regworker.domain.errors import InvalidJob, RegistrationWorkerError, SettingsError
from worker import __version__
from worker.cli.lazy import CommandEntry, LazyGroup, new_app, register
from worker.cli.output import plain
from worker.standard_streams import open_closed

FAILED, INTERRUPTED = 1, 130

_TRY, _JOBS, _NIGHT, _SETUP = "Try it", "Jobs", "On call", "Set up"

COMMANDS = {
    "demo": CommandEntry(
        "worker.cli.local.demo:demo",
        "Run a demonstration on this machine: jobs, faults, results. No settings needed.",
        _TRY,
        extra="embedded",
    ),
    "up": CommandEntry(
        "worker.cli.local.up:up",
        "Run a whole installation on this machine: ledger, worker, sandbox, Flower, HTTP.",
        _TRY,
        extra="embedded",
    ),
    "sandbox": CommandEntry(
        "worker.cli.local.sandbox:sandbox",
        "Run stand-ins of both providers, for development.",
        _TRY,
        extra="sandbox",
    ),
    "submit": CommandEntry(
        "worker.cli.commands.submit:submit", "Submit jobs from a JSON, NDJSON or CSV file.", _JOBS
    ),
    "status": CommandEntry(
        "worker.cli.commands.status:status", "Show a job's state and its timeline.", _JOBS
    ),
    "jobs": CommandEntry(
        "worker.cli.commands.jobs:jobs",
        "List jobs by state, account, age, key, reason or metadata.",
        _JOBS,
    ),
    "results": CommandEntry(
        "worker.cli.commands.results:app", "Print results, and follow new ones.", _JOBS
    ),
    "cancel": CommandEntry(
        "worker.cli.commands.cancel:cancel",
        "Cancel jobs that have not been sent to the provider.",
        _JOBS,
    ),
    "export": CommandEntry(
        "worker.cli.commands.job_data:export",
        "Print all stored data about a job.",
        _JOBS,
    ),
    "forget": CommandEntry(
        "worker.cli.commands.job_data:forget",
        "Erase all stored data about a finished job.",
        _JOBS,
    ),
    "top": CommandEntry(
        "worker.cli.commands.top:top", "Watch the whole installation live.", _NIGHT
    ),
    "stats": CommandEntry(
        "worker.cli.commands.stats:stats",
        "Show the numbers of the whole installation once; --json for scripts.",
        _NIGHT,
    ),
    "review": CommandEntry(
        "worker.cli.commands.review:app", "Settle jobs that need a person's decision.", _NIGHT
    ),
    "providers": CommandEntry(
        "worker.cli.commands.providers:app",
        "List, check, pause and resume the accounts at the providers.",
        _NIGHT,
    ),
    "redrive": CommandEntry(
        "worker.cli.commands.redrive:redrive",
        "Retry abandoned jobs; the worker asks the provider first.",
        _NIGHT,
    ),
    "deliveries": CommandEntry(
        "worker.cli.commands.deliveries:app",
        "List and replay results that could not be delivered.",
        _NIGHT,
    ),
    "webhook": CommandEntry(
        "worker.cli.commands.webhook:app",
        "Test a webhook; create signing secrets.",
        _NIGHT,
    ),
    "quarantine": CommandEntry(
        "worker.cli.commands.quarantine:app",
        "List unreadable messages; requeue or drop them.",
        _NIGHT,
    ),
    "plans": CommandEntry(
        "worker.cli.commands.plans:app",
        "Resume bulk actions that were previewed or interrupted.",
        _NIGHT,
    ),
    "audit": CommandEntry(
        "worker.cli.commands.audit:audit",
        "Show the actions of operators: who, what and why.",
        _NIGHT,
    ),
    "doctor": CommandEntry(
        "worker.cli.commands.doctor:doctor",
        "Check the installation for settings that could lose jobs.",
        _NIGHT,
    ),
    "health": CommandEntry(
        "worker.cli.commands.health:health",
        "Check whether the worker on this machine works or is stuck.",
        _NIGHT,
    ),
    "exporter": CommandEntry(
        "worker.cli.commands.exporter:exporter",
        "Serve the metrics of the whole installation to Prometheus.",
        _NIGHT,
    ),
    "acl": CommandEntry(
        "worker.cli.commands.acl:acl",
        "Print each role's permissions, for Redis, Valkey or RabbitMQ.",
        _SETUP,
    ),
    "settings": CommandEntry("worker.cli.commands.settings:settings", "List all settings.", _SETUP),
    "contract": CommandEntry(
        "worker.cli.commands.contract:app", "Print the contract: AsyncAPI and JSON Schemas.", _SETUP
    ),
    "serve": CommandEntry(
        "worker.cli.commands.serve:serve",
        "Serve the HTTP API and the web pages.",
        _SETUP,
        extra="serve",
    ),
    "tokens": CommandEntry(
        "worker.cli.commands.tokens:app",
        "Create, list and revoke tokens for the HTTP API.",
        _SETUP,
    ),
    "outbox": CommandEntry(
        "worker.cli.commands.outbox:app",
        "Move jobs from an outbox table of your database into the ledger.",
        _JOBS,
        extra="outbox,cli",
    ),
    "keys": CommandEntry(
        "worker.cli.commands.keys:app",
        "Create, list and rotate the keys that encrypt stored data.",
        _SETUP,
    ),
}
"""All commands: the module of each, and its line in `regworker --help`."""


class _Commands(LazyGroup):
    table = COMMANDS


app = new_app(
    cls=_Commands,
    add_completion=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=(
        "Settings are read from the environment (REGWORKER_*) and from the TOML file named by "
        "REGWORKER_CONFIG. With --json, stdout holds only JSON: one object, or one per "
        "line.\n\nExit codes: 0 done, 1 failed, 2 wrong usage. REGWORKER_DEBUG=1 shows tracebacks."
    ),
)
register(app, COMMANDS)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"registration-worker {__version__}\n")
        raise typer.Exit


@app.callback()
def regworker(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Register customers at providers: each job has exactly one result and at most one customer."""


def run(arguments: list[str] | None = None) -> int:
    """Run a command line. Tracebacks are shown only if `REGWORKER_DEBUG` is set."""
    _open_streams()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has closed it. Python must not write the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("REGWORKER_DEBUG", "0") not in {"", "0"}:
            raise
        for sentence in _sentences(error):
            sys.stderr.write(f"regworker: {plain(sentence)}\n")
        return FAILED


def _open_streams() -> None:
    """Make the standard streams usable, however this process was started."""
    open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that is not UTF-8 gets escapes instead of what it cannot show.
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str] | None) -> int:
    try:
        get_command(app).main(arguments, prog_name="regworker")
    except SystemExit as end:
        sys.stdout.flush()
        return end.code if isinstance(end.code, int) else FAILED if end.code else 0
    return 0


def _sentences(error: Exception) -> Iterator[str]:
    match error:
        case InvalidJob() as invalid:
            yield from map(str, invalid.problems)
        case SettingsError() as wrong:
            yield from (f"{name}: {what}" for name, what in wrong.problems)
        case RegistrationWorkerError():
            yield str(error)
        case UnicodeDecodeError():
            yield f"the input is not UTF-8 at byte {error.start + 1}: save the file as UTF-8"
        case OSError(strerror=str(what)):
            yield f"{error.filename}: {what}" if error.filename else what
        case _ if type(error).__module__.startswith("redis."):
            from regworker.ledger.client import passing

            what = "did not answer" if passing(error) else "refused"
            advice = "check REGWORKER_REDIS_URL"
            if type(error).__name__ == "NoPermissionError":
                advice = "give its user the permissions that `regworker acl` prints"
            elif "WRONGTYPE" in str(error):
                advice = "another program has overwritten a key: regworker doctor"
            yield f"the ledger {what}: {error}; {advice}"
        case _:
            # The text of an unexpected exception may contain a secret.
            yield f"failed unexpectedly ({type(error).__name__}); REGWORKER_DEBUG=1 shows where"
