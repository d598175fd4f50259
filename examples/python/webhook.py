"""Receive webhooks, and verify them with the Standard Webhooks library.

    pip install standardwebhooks
    WEBHOOK_SECRETS=whsec_... PORT=8080 python webhook.py

WEBHOOK_SECRETS holds the secrets of the endpoint (REGWORKER_ENDPOINTS__<NAME>__SECRETS), separated
by commas: the old one and the new one while you change them. The same event may arrive twice,
under the same webhook-id. So the program inserts the id into BOOKS (default: books.db), in the
same transaction as the event's effects, and then answers 2xx; the worker sends the event again
after any other answer.
"""

import json
import os
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook

WEBHOOKS = [Webhook(secret) for secret in os.environ["WEBHOOK_SECRETS"].split(",")]
BOOKS = os.environ.get("BOOKS", "books.db")

#: Bytes. Events are much smaller.
LARGEST = 1024 * 1024


class Receiver(BaseHTTPRequestHandler):
    """One request."""

    timeout = 15

    def do_POST(self) -> None:
        """Verify, handle once, answer."""
        size = int(self.headers.get("content-length") or LARGEST + 1)
        if size > LARGEST:
            self.answer(413)
            return
        body = self.rfile.read(size)  # unchanged: the signature covers these bytes
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not any(verified(webhook, body, headers) for webhook in WEBHOOKS):
            print("refused: not signed with a secret of ours, or too old", flush=True)
            self.answer(401)
            return
        with closing(sqlite3.connect(BOOKS)) as books, books:
            entered = books.execute(
                "INSERT OR IGNORE INTO events VALUES (?, ?)", (headers["webhook-id"], body)
            )
            if entered.rowcount:
                event = json.loads(body)
                key = event["data"].get("idempotency_key", event["subject"])
                print("verified", event["type"], key, flush=True)
        self.answer(204)

    def answer(self, status: int) -> None:
        """Answer with a status and nothing else."""
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log no line for each request."""


def verified(webhook: Webhook, body: bytes, headers: dict[str, str]) -> bool:
    """Whether the signature was made with this secret, at most five minutes ago."""
    try:
        webhook.verify(body, headers)
    except Exception:  # noqa: BLE001 -- malformed headers raise other errors than the library's own
        return False
    return True


if __name__ == "__main__":
    with closing(sqlite3.connect(BOOKS)) as books:
        books.execute("CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY, body)")
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever()
