"""A small HTTP server for whoever watches a process: Prometheus, Kubernetes, a person with curl.

It answers in threads of its own, so that it can tell that the rest of the process hangs. Nothing
that it shows is secret; it takes no input but a path.
"""

import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Self

from worker.errors import RegistrationWorkerError

#: Seconds a client may take for its request: one that says nothing must not keep a thread.
PATIENCE = 10.0

#: Ports tried from the wanted one on: processes on one host each take the next that is free.
PORTS = 100

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered."""

    body: bytes
    type: str = TEXT
    status: int = 200


Pages = Mapping[str, Callable[[], Page]]


class NoPort(RegistrationWorkerError):  # noqa: N818
    """Raised when the address can't be listened on, or every port that was tried is taken."""


class Scrape(socketserver.ThreadingMixIn, HTTPServer):
    """Serves pages, each made anew when it is asked for."""

    daemon_threads = True
    pages: Pages

    @classmethod
    def start(cls, address: str, port: int, pages: Pages, ports: int = PORTS) -> Self:
        """Listen, on the first free port from `port` on (0: any), and serve in a thread."""
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
        raise NoPort(f"{address}:{port} can't be listened on: {what}")

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name that the library makes of it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def stop(self) -> None:
        """Serve no more."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away while it was answered is nobody's concern."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server: Scrape
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
        """Nothing: a probe every few seconds is no news."""

    def _page(self) -> Page:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            known = "\n".join(sorted(self.server.pages))
            return Page(f"nothing here; there are:\n{known}\n".encode(), status=404)
        try:
            return make()
        except Exception as error:  # noqa: BLE001 -- its text may hold an address with a password
            return Page(f"failed ({type(error).__name__})\n".encode(), status=500)
