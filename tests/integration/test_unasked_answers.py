"""A server that sent an unrequested answer gets a new connection for each call, until trusted."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sandbox.connection import BreakableConnection
from tests.integration.installation import Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.integration.outbox import Cli
from worker.cli.local import stack


def key_of(event: dict[str, Any]) -> str:
    """The customer's key in an event."""
    return str(event["data"]["outcome"]["customer_key"])


def own_key(here: Installation, job: dict[str, Any]) -> str:
    """The key that the provider has stored for a job's customer."""
    [account] = here.sandbox.accounts.find(email=email_of(job))
    return account.customer_key


def listed(here: Installation, *command: str) -> dict[str, dict[str, Any]]:
    """The output of a list command, by account or endpoint."""
    found = Cli(**here.environment).json(*command)
    return {one.get("provider") or one["endpoint"]: one for one in found}


def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections to the sandbox that open from now on."""
    begun: list[Any] = []
    begin = BreakableConnection.connection_made

    def counted(self: BreakableConnection, transport: Any) -> None:
        begun.append(transport)
        begin(self, transport)

    monkeypatch.setattr(BreakableConnection, "connection_made", counted)
    return begun


@pytest.mark.parametrize("make", [skypostal, open2b])
def test_every_customer_gets_its_own_key_from_a_provider_that_repeats_itself(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noticed while no call is open; all workers know it, including those that start later."""
    with installation(tmp_path, workers=2) as here:
        first = make()
        provider = first["provider"]
        again = {"kind": "repeated", "delay": 0.05, "provider": provider}
        here.sandbox.faults.configure({"script": [{**again, "email": email_of(first)}]})
        assert key_of(here.run(first)) == own_key(here, first)

        def noted() -> bool:
            return bool(listed(here, "providers", "list", "--json")[provider]["stray_at"])

        stack.until(noted, "the stray answer in the ledger", 60)
        here.start_worker()
        here.sandbox.faults.configure({"script": [{**again, "delay": 0.01, "times": None}]})
        jobs = [make() for _ in range(20)]
        receipts = [here.producer.enqueue(job) for job in jobs]
        for job, receipt in zip(jobs, receipts, strict=True):
            assert key_of(here.producer.wait(receipt.job_id, 60)) == own_key(here, job)
        here.sandbox.faults.configure({})
        begun = connections(monkeypatch)
        for _ in range(5):
            here.run(make())
        assert len(begun) >= 5, "connections that a stray answer could be on were used again"
        cli = Cli(**here.environment)
        assert "one a call" in cli("providers", "list")
        assert "is trusted again" in cli("providers", "trust", f"{provider}/default")
        assert "has sent no stray" in cli("providers", "trust", f"{provider}/default")
        assert not listed(here, "providers", "list", "--json")[provider]["stray_at"]


class Repeater:
    """A webhook receiver that sends its first answer twice; counts connections."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"
        self.events: list[tuple[int, str]] = []
        self._connections = 0

    @contextmanager
    def running(self) -> Iterator["Repeater"]:
        """Receive, each connection in a thread."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._connections += 1
                arguments = (peer, self._connections)
                threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def _serve(self, peer: socket.socket, number: int) -> None:
        with suppress(OSError, KeyError), peer, peer.makefile("rb") as stream:
            while True:
                head = {}
                while line := stream.readline().strip():
                    name, _, value = line.partition(b": ")
                    head[name.lower()] = value
                event = json.loads(stream.read(int(head[b"content-length"])))
                self.events.append((number, event["subject"]))
                peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n" * (2 if number == 1 else 1))


def test_every_event_reaches_a_webhook_that_answers_twice(tmp_path: Path) -> None:
    """The answer to another event is not taken for its own; each request has its own connection."""
    with (
        Repeater().running() as hook,
        installation(tmp_path, endpoints__crm__url=hook.url) as here,
    ):
        reply_to = ["results", "crm"]

        def arrived(job_id: str) -> bool:
            return any(subject == job_id for _, subject in hook.events)

        def deliver() -> str:
            job_id = here.producer.enqueue(skypostal(reply_to=reply_to)).job_id
            stack.until(lambda: arrived(job_id), f"a webhook of {job_id}", 60)
            return str(job_id)

        def noted() -> bool:
            return bool(listed(here, "deliveries", "endpoints", "--json")["crm"]["stray_at"])

        deliver()
        stack.until(noted, "the stray answer in the ledger", 60)
        later = [deliver() for _ in range(3)]
        connections = [number for number, subject in hook.events if subject in later]
        assert len(set(connections)) == len(connections)
        cli = Cli(**here.environment)
        assert "one a call" in cli("deliveries", "endpoints")
        assert "is trusted again" in cli("deliveries", "trust", "crm")
        assert not noted()
