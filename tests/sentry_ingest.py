"""A receiver that takes envelopes as Sentry does, and shows their content.

Source: Sentry developer documentation, "Envelopes" (data model, serialization format,
ingestion)."""

import gzip
import importlib
import json
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.serving import serving

#: The public key and the project of the DSN; a request without them is refused.
KEY, PROJECT = "c0ffee00c0ffee00c0ffee00c0ffee00", "42"


@dataclass(frozen=True)
class Item:
    """One item of an envelope: `event`, `transaction`, `client_report` ..."""

    type: str
    payload: Any


@dataclass
class Ingest:
    """The requests that came, and the answers to them."""

    dsn: str
    items: list[Item] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """Whole envelopes, unpacked, so that tests can search them for what they must not contain."""
    refused: list[str] = field(default_factory=list)
    """Why requests were refused; tests check that none was."""
    status: int = 200
    """The status of answers; with 0 there is no answer until `release` is set."""
    release: threading.Event = field(default_factory=threading.Event)
    asked: int = 0

    def of(self, type_: str) -> list[Any]:
        """The payloads of one type, in the order of arrival."""
        return [item.payload for item in self.items if item.type == type_]

    @property
    def events(self) -> list[Any]:
        """Errors."""
        return self.of("event")

    @property
    def transactions(self) -> list[Any]:
        """Traced steps."""
        return self.of("transaction")

    def issues(self) -> dict[tuple[str, ...], list[Any]]:
        """Events by the fingerprint that we give them; Sentry makes one issue for each."""
        found: dict[tuple[str, ...], list[Any]] = {}
        for event in self.events:
            found.setdefault(tuple(event.get("fingerprint") or ("{{ default }}",)), []).append(
                event
            )
        return found

    def take(self, path: str, headers: Any, body: bytes) -> str:
        """Take a request. Return why it is refused, or nothing."""
        if path.rstrip("/") != f"/api/{PROJECT}/envelope":
            return f"path {path}"
        if not re.search(rf"\bsentry_key={KEY}\b", headers.get("X-Sentry-Auth", "")):
            return "no sentry_key in X-Sentry-Auth"
        whole = _unpacked(body, headers.get("Content-Encoding"))
        items = list(_items(whole))
        self.raw.append(whole)
        self.items += items
        return ""


def _unpacked(body: bytes, encoding: str | None) -> bytes:
    match encoding:
        case None | "identity":
            return body
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
        case "br":
            found: bytes = importlib.import_module("brotli").decompress(body)
            return found
        case _:
            raise ValueError(f"Content-Encoding: {encoding}")


def _items(whole: bytes) -> Iterator[Item]:
    header, _, rest = whole.partition(b"\n")
    dict(json.loads(header))  # an envelope begins with an object
    while rest:
        line, _, rest = rest.partition(b"\n")
        about = json.loads(line)
        if "length" in about:
            payload, rest = rest[: about["length"]], rest[about["length"] :]
            if rest[:1] not in {b"", b"\n"}:
                raise ValueError("an item is longer than it says")
            rest = rest[1:]
        else:
            payload, _, rest = rest.partition(b"\n")
        yield Item(about["type"], json.loads(payload))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ingest: Ingest

    def do_POST(self) -> None:
        body = self._body()
        self.ingest.asked += 1
        if not self.ingest.status:
            self.ingest.release.wait(60)
            self.close_connection = True
            return
        try:
            why = (
                "" if self.ingest.status >= 400 else self.ingest.take(self.path, self.headers, body)
            )
        except Exception as error:  # noqa: BLE001 -- a test looks at `refused`
            why = f"{type(error).__name__}: {error}"
        if why:
            self.ingest.refused.append(why)
        answer = b"{}"
        self.send_response(400 if why else self.ingest.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@contextmanager
def ingest() -> Iterator[Ingest]:
    """Take envelopes on a port of this machine."""
    found = Ingest("")
    with serving(type("Handler", (_Handler,), {"ingest": found})) as port:
        found.dsn = f"http://{KEY}@127.0.0.1:{port}/{PROJECT}"
        try:
            yield found
        finally:
            found.release.set()
