"""A receiver of webhooks that keeps each request with its headers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.serving import serving


@dataclass
class Hooks:
    """The receiver's URL, and the requests that it received."""

    url: str
    requests: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def hooks() -> Iterator[Hooks]:
    """Receive requests and answer 204."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append(dict(self.headers.items()))
            self.send_response(204)
            self.end_headers()

    with serving(Handler) as port:
        found = Hooks(f"http://127.0.0.1:{port}/crm")
        yield found
