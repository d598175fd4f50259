"""The server of a process's metrics and probes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.request import urlopen

import pytest

from worker.monitoring.http_server import MOST, MetricsServer, NoPort, Page, Pages


@pytest.mark.parametrize("address", ["localhots.invalid", "192.0.2.1"])
def test_an_address_that_is_not_of_this_machine_is_told_from_a_taken_port(address: str) -> None:
    """The first is the fault of METRICS_ADDRESS, the second that of METRICS_PORT."""
    with pytest.raises(NoPort, match=f"{address}:0 cannot be opened") as caught:
        MetricsServer.start(address, 0, {})
    assert caught.value.of_address
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(NoPort, match="cannot be opened: Address already in use") as caught:
            MetricsServer.start("127.0.0.1", taken.getsockname()[1], {}, ports=1)
        assert not caught.value.of_address


@contextmanager
def serving(pages: Pages) -> Iterator[MetricsServer]:
    """A server of these pages."""
    server = MetricsServer.start("127.0.0.1", 0, pages)
    try:
        yield server
    finally:
        server.stop()


def connections(running: ExitStack, server: MetricsServer, sent: bytes) -> None:
    """More connections than it may have, with these bytes on each."""
    for _ in range(4 * MOST):
        made = socket.create_connection(("127.0.0.1", server.port), 30)
        running.enter_context(closing(made))
        made.sendall(sent)


def test_silent_clients_take_no_threads_and_keep_nobody_out() -> None:
    """However many there are, a scrape is answered, and the process has a limited number of
    threads."""
    before = threading.active_count()
    with serving({"/metrics": lambda: Page(b"here")}) as server, ExitStack() as running:
        connections(running, server, b"GET /metrics HTTP/1.1\r\n")
        with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
            assert answer.read() == b"here"
        assert threading.active_count() - before <= 2 * MOST + 1


def test_a_page_that_is_not_made_takes_no_threads_without_end() -> None:
    """Scrapes that wait for a ledger, perhaps, are limited, too."""
    made, before = threading.Event(), threading.active_count()

    def page() -> Page:
        made.wait(60)
        return Page(b"here")

    with serving({"/metrics": page}) as server, ExitStack() as running:
        try:
            connections(running, server, b"GET /metrics HTTP/1.1\r\n\r\n")
            last = running.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
            with suppress(ConnectionError):
                assert last.recv(1) == b""  # it is refused once all before it have their threads
            assert threading.active_count() - before <= 2 * MOST + 1
        finally:
            made.set()
