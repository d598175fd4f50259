"""Serves the application: uvicorn, with a limit for everything that a client can make long."""

import asyncio
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvicorn

from regworker.settings import Settings
from worker.gateway import api
from worker.gateway.app import create_app
from worker.gateway.connection import MOST_CONNECTIONS, BoundedConnection
from worker.gateway.middleware import Edge
from worker.gateway.tls_listener import TlsListener
from worker.http.open_files import allow_files

#: Seconds for which an idle connection is kept. A proxy in front must close its own earlier.
KEEP_ALIVE = 75

#: Seconds for requests to end when the process stops. Long polls end at once.
GRACE = 10

#: Open files besides those of clients: connections on which TLS has still to begin, connections to
#: the ledger, files of settings and pages.
OTHER_FILES = 3000

#: Bytes of an answer that the system takes before the client's system can. The rest stays here,
#: where it is seen whether the client goes on reading. With TLS it is not seen: there the system
#: takes what it can.
UNSENT = 128 * 1024


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. `certfile`, `keyfile`: PEM files, for HTTPS."""

    host: str = "127.0.0.1"
    port: int = 8080
    certfile: Path | None = None
    keyfile: Path | None = None


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_stop = on_ready, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        context = self.config.ssl
        await super().startup(sockets if context is None else [])
        if self.started:
            if context is not None:
                tls = [TlsListener(one, context, self._protocol) for one in sockets or ()]
                self.servers = cast(list[asyncio.Server], tls)
            # The garbage collector need not scan permanent objects again.
            gc.collect()
            gc.freeze()
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()  # long polls would prevent its end
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        state = self.server_state
        return BoundedConnection(self.config, state, self.lifespan.state)


def serve(settings: Settings, listen: Listen, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `on_ready` is called with the URL."""
    allow_files(MOST_CONNECTIONS + OTHER_FILES)
    app = create_app(settings)
    config = uvicorn.Config(
        Edge(app, api.DIRECT),
        http=BoundedConnection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=listen.certfile,
        ssl_keyfile=str(listen.keyfile) if listen.keyfile else None,
    )
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    address = (listen.host, listen.port)
    with closing(socket.create_server(address, family=family, backlog=2048)) as listener:
        if listen.certfile is None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        scheme = "https" if listen.certfile else "http"
        name = f"[{listen.host}]" if ":" in listen.host else listen.host
        url = f"{scheme}://{name}:{listener.getsockname()[1]}"
        server = _Server(config, lambda: on_ready(url), lambda: app.state.services.stopping.set())
        with (
            _stopping(server),
            asyncio.Runner(loop_factory=config.get_loop_factory()) as runner,
        ):
            runner.run(server.serve(sockets=[listener]))


@contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[None]:
    """Handle the signals before uvicorn does, and when it raises them again at its end."""

    def stop(_: int, __: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
