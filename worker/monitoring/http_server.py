"""A small HTTP server for monitoring a process: by Prometheus, Kubernetes, a person with curl.

It answers in threads of its own, so that it can report that the rest of the process hangs. Nothing
that it shows is secret; its only input is a path.
"""

import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import EADDRNOTAVAIL
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self

from regworker.domain.errors import RegistrationWorkerError

#: Seconds for a client to send its request: a silent client must not occupy a thread.
PATIENCE = 10.0

#: The most connections: more than all probes and scrapes of a process need. Beyond it, each new one
#: ends the oldest.
MOST = 20

#: Ports tried, starting with the wanted one: each process on a host takes the next free port.
PORTS = 100

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """The content of an answer."""

    body: bytes
    type: str = TEXT
    status: int = 200


Pages = Mapping[str, Callable[[], Page]]


class NoPort(RegistrationWorkerError):  # noqa: N818
    """Raised when the address cannot be used, or every tried port is taken."""

    def __init__(self, what: str, *, of_address: bool) -> None:
        super().__init__(what)
        self.of_address = of_address
        """Whether no port of the address could be used."""


class MetricsServer(socketserver.ThreadingMixIn, HTTPServer):
    """Serves pages; each is made anew for every request."""

    daemon_threads = True
    request_queue_size = 128  # with the library's 5, a few clients delay others by seconds
    pages: Pages

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        """The connections of all threads, the oldest first."""

    @classmethod
    def start(cls, address: str, port: int, pages: Pages, ports: int = PORTS) -> Self:
        """Listen on the first free port from `port` on (0: any), and serve in a thread."""
        fault: OSError | None = None
        for number in [0] if port == 0 else range(port, min(port + ports, 65536)):
            try:
                server = cls((address, number), _Handler)
            except OSError as error:
                fault = error
                continue
            server.pages = pages
            threading.Thread(target=server.serve_forever, name="scrape", daemon=True).start()
            return server
        what = fault.strerror if fault else "no such port"
        nowhere = isinstance(fault, socket.gaierror) or (fault and fault.errno == EADDRNOTAVAIL)
        raise NoPort(f"{address}:{port} cannot be opened: {what}", of_address=bool(nowhere))

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind without the library's lookup of this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def stop(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. Clients that send nothing, or a byte now and then, neither occupy
        threads without end nor keep others out."""
        with self._lock:
            self._open[request] = None
            for oldest in list(self._open)[:-MOST]:
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            full = len(self._open) > 2 * MOST  # so many pages are still being made
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnected during the answer."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server: MetricsServer
    server_version, sys_version = "registration-worker", ""

    def do_GET(self) -> None:
        """Answer with a page."""
        page = self._page()
        self.send_response(page.status)
        self.send_header("content-type", page.type)
        self.send_header("content-length", str(len(page.body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page.body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: a probe every few seconds is not worth a line."""

    def _page(self) -> Page:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            known = "\n".join(sorted(self.server.pages))
            return Page(f"not found; there are:\n{known}\n".encode(), status=404)
        try:
            return make()
        except Exception as error:  # noqa: BLE001 -- its text may hold an address with a password
            return Page(f"failed ({type(error).__name__})\n".encode(), status=500)
