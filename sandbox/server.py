"""Serves the sandbox: in the foreground of a process, or in a thread of a test's."""

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from sandbox.accounts import Accounts
from sandbox.app import create_app
from sandbox.connection import BreakableConnection
from sandbox.receiver import Receiver, create_receiver_app
from sandbox.state import Sandbox

#: Longer than any call that is not slowed on purpose; those are cut off.
GRACE_SECONDS = 1
#: Longer than any run: closing an idle connection would be a fault that was not scripted.
IDLE_SECONDS = 24 * 3600


class _Server(uvicorn.Server):
    """Uvicorn, quiet, with connections that can be broken."""

    def __init__(self, app: Starlette, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BreakableConnection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and announce it."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop without waiting for clients that are expected to disconnect."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, BreakableConnection) and connection.held:
                connection.transport.abort()
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


class _ThreadedServer:
    """An app on a port of 127.0.0.1, in a thread of this process."""

    def __init__(self, app: Starlette, port: int = 0) -> None:
        self._socket = _listen("127.0.0.1", port)
        self._ready = threading.Event()
        self._server = _Server(app, self._ready.set)
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self.port: int = self._socket.getsockname()[1]
        #: Where it is served, without a slash at the end.
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Serve; return once requests are answered."""
        self._thread.start()
        if not self._ready.wait(60):
            raise RuntimeError("The server did not start within 60 seconds.")
        return self

    def stop(self) -> None:
        """Stop serving; connections that a fault holds are broken. May be called again."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class SandboxServer(_ThreadedServer):
    """The sandbox in a thread: `with SandboxServer() as server: ... server.url ...`.

    `sandbox` is its state, for direct access. With `receiver`, webhooks are received at the same
    address.
    """

    def __init__(
        self, sandbox: Sandbox | None = None, *, receiver: Receiver | None = None, port: int = 0
    ) -> None:
        self.sandbox = Sandbox() if sandbox is None else sandbox
        self.receiver = receiver
        super().__init__(create_app(self.sandbox, receiver), port)


class ReceiverServer(_ThreadedServer):
    """The webhook receiver alone, in a thread. `receiver` is its state."""

    def __init__(self, secrets: Iterable[str] | Receiver, *, port: int = 0) -> None:
        self.receiver = secrets if isinstance(secrets, Receiver) else Receiver(secrets)
        super().__init__(create_receiver_app(self.receiver), port)


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    accounts_file: Path | None = None,
    settings: object = None,
    faults: object = None,
    webhook_secrets: Iterable[str] = (),
) -> None:
    """Serve in the foreground until SIGTERM or SIGINT.

    Prints one line when ready. `settings` and `faults` are as in the control API; with any
    `webhook_secrets`, webhooks are received, too. Port 0 takes any free one.
    """
    secrets = list(webhook_secrets)
    sandbox = Sandbox(accounts=Accounts(accounts_file))
    sandbox.configure(settings or {})
    sandbox.faults.configure(faults or {})
    app = create_app(sandbox, Receiver(secrets) if secrets else None)
    with (
        contextlib.closing(sandbox.accounts),
        contextlib.closing(_listen(host, port)) as listener,
    ):
        name = f"[{host}]" if ":" in host else host
        line = f"sandbox listening on http://{name}:{listener.getsockname()[1]}\n"
        server = _Server(app, lambda: _say(line))
        with _stopping_is_no_failure(server):
            asyncio.run(server.serve(sockets=[listener]))


def _say(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


@contextlib.contextmanager
def _stopping_is_no_failure(server: uvicorn.Server) -> Generator[None]:
    """Handle the signals before uvicorn does, and when it raises them again at its end."""

    def stop(_: int, __: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
