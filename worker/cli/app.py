"""The table of commands, and the one place where errors become sentences."""

import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from typer.main import get_command

from worker import __version__
from worker.cli.lazy import Entry, LazyGroup, new_app, register
from worker.cli.output import plain
from worker.errors import InvalidJob, RegistrationWorkerError, SettingsError

FAILED, INTERRUPTED = 1, 130

_TRY, _JOBS, _NIGHT, _SETUP = "Try it", "Jobs", "On call", "Set up"

COMMANDS = {
    "demo": Entry(
        "worker.cli.demo:demo",
        "Watch it work: everything on this machine, with faults, nothing to configure.",
        _TRY,
        extra="embedded",
    ),
    "up": Entry(
        "worker.cli.up:up",
        "Run a whole installation on this machine: ledger, worker, sandbox, Flower.",
        _TRY,
        extra="embedded",
    ),
    "sandbox": Entry(
        "worker.cli.sandbox:sandbox",
        "Run both providers' stand-ins, to develop against.",
        _TRY,
        extra="sandbox",
    ),
    "submit": Entry(
        "worker.cli.submit:submit", "Submit jobs from a JSON, NDJSON or CSV file.", _JOBS
    ),
    "status": Entry(
        "worker.cli.status:status", "Show where a job stands, and its way there.", _JOBS
    ),
    "results": Entry("worker.cli.results:app", "Print results, and follow as they come.", _JOBS),
    "cancel": Entry("worker.cli.cancel:cancel", "Take a job back before it is called out.", _JOBS),
    "top": Entry("worker.cli.top:top", "Watch the whole installation live.", _NIGHT),
    "stats": Entry(
        "worker.cli.stats:stats", "Show how much of everything there is, for scripts too.", _NIGHT
    ),
    "review": Entry(
        "worker.cli.review:app", "Settle jobs that only a person can tell about.", _NIGHT
    ),
    "providers": Entry(
        "worker.cli.providers:app", "See, pause and resume the accounts at the providers.", _NIGHT
    ),
    "redrive": Entry(
        "worker.cli.redrive:redrive", "Give abandoned jobs another life; asked after first.", _NIGHT
    ),
    "deliveries": Entry(
        "worker.cli.deliveries:app", "See and replay results that endpoints did not take.", _NIGHT
    ),
    "webhook": Entry(
        "worker.cli.webhook:app", "Try a webhook by hand; make secrets to sign with.", _NIGHT
    ),
    "quarantine": Entry(
        "worker.cli.quarantine:app", "See messages that could not be read; put them back.", _NIGHT
    ),
    "doctor": Entry(
        "worker.cli.doctor:doctor", "Check the installation: what would lose jobs.", _NIGHT
    ),
    "health": Entry(
        "worker.cli.health:health", "Tell whether the worker here works, or is stuck.", _NIGHT
    ),
    "exporter": Entry(
        "worker.cli.exporter:exporter", "Serve what all workers share to Prometheus.", _NIGHT
    ),
    "settings": Entry("worker.cli.settings:settings", "List every setting there is.", _SETUP),
    "contract": Entry(
        "worker.cli.contract:app", "Print the contract: AsyncAPI and JSON Schemas.", _SETUP
    ),
    "keys": Entry("worker.cli.keys:app", "Make keys that seal secrets, and change them.", _SETUP),
}
"""All commands: where each is, and its line in `regworker --help`."""


class _Commands(LazyGroup):
    table = COMMANDS


app = new_app(
    cls=_Commands,
    add_completion=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=(
        "Settings are read from the environment (REGWORKER_*) and from the TOML file named by "
        "REGWORKER_CONFIG. --json prints one JSON object, or one a line, and nothing else, to "
        "stdout.\n\nExit codes: 0 done, 1 failed, 2 wrong use. REGWORKER_DEBUG=1 shows tracebacks."
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
    """Register customers at providers: exactly one result, at most one customer each."""


def run(arguments: list[str] | None = None) -> int:
    """Run a command line. No traceback reaches a user, unless `REGWORKER_DEBUG` asks for it."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read us (`| head`) has seen enough. What is left must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("REGWORKER_DEBUG", "0") not in {"", "0"}:
            raise
        for sentence in _sentences(error):
            sys.stderr.write(f"regworker: {plain(sentence)}\n")
        return FAILED


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
        case OSError(strerror=str(what)):
            yield f"{error.filename}: {what}" if error.filename else what
        case _ if type(error).__module__.startswith("redis."):
            yield f"the ledger refused: {error}; check REGWORKER_REDIS_URL"
        case _:
            # Nobody knows what its text holds; a secret, perhaps.
            yield f"failed unexpectedly ({type(error).__name__}); REGWORKER_DEBUG=1 shows where"
