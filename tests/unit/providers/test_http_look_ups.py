"""Host names that nobody looks up in time: they delay nobody else."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from regworker import look_ups
from regworker.way_out import ProxyServer, WayOut
from tests.doubles import differing
from tests.unit.providers.calls import AMPLE, OK, SHORT, answering, serving, transport
from worker.http.look_ups import LookUps
from worker.providers.base import Answer, NotSent, Request

#: More than the shared threads of asyncio, on this machine.
MANY = (os.cpu_count() or 1) + 4 + 10


class Names:
    """Replaces the DNS: names that end in `.slow` hang until it is over."""

    def __init__(self) -> None:
        self.hanging: list[str] = []
        self._real: Callable[..., Any] = socket.getaddrinfo
        self.begun = threading.Semaphore(0)
        self.over = threading.Event()

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        self.over.set()

    def __call__(self, host: str, *arguments: Any, **more: Any) -> Any:
        """Look a name up."""
        if host.endswith(".slow"):
            self.hanging.append(host)
            self.begun.release()
            self.over.wait()
            raise socket.gaierror
        return self._real("127.0.0.1" if host == "quick" else host, *arguments, **more)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A DNS that hangs for some names."""
    made = Names()
    monkeypatch.setattr(look_ups, "socket", differing(socket, getaddrinfo=made))
    return made


def proxy(host: str) -> WayOut:
    """A way through a proxy at this host."""
    return WayOut(ProxyServer(host, 3128, ""))


@pytest.mark.parametrize("through_proxies", [False, True])
def test_names_that_hang_delay_nobody_else(names: Names, through_proxies: bool) -> None:
    """Neither another account's call, nor anything that needs a shared thread."""

    def stuck(carrier: Any, number: int) -> Any:
        if through_proxies:
            send = carrier.sender(lambda: True, AMPLE, way=proxy(f"proxy{number}.slow"))
            return send(Request("https://shop.example/", {}))
        return carrier.sender(lambda: True, AMPLE)(Request(f"http://shop{number}.slow/", {}))

    async def main() -> None:
        async with names, serving(answering(OK)) as server, transport() as carrier:
            stores = [asyncio.ensure_future(stuck(carrier, number)) for number in range(MANY)]
            for _ in stores:
                assert await asyncio.to_thread(names.begun.acquire, timeout=AMPLE)
            url = server.url().replace("127.0.0.1", "quick")
            came = await carrier.sender(lambda: True, AMPLE)(Request(url, {}))
            assert isinstance(came, Answer)
            assert await asyncio.to_thread(lambda: "done") == "done"
            assert not any(store.done() for store in stores)
            names.over.set()
            assert {type(one) for one in await asyncio.gather(*stores)} == {NotSent}

    asyncio.run(asyncio.wait_for(main(), AMPLE))


def test_a_name_that_hangs_takes_one_thread_however_often_it_is_needed(names: Names) -> None:
    """Calls that gave up leave their look-up to the next ones."""

    async def main() -> None:
        async with names, transport() as carrier:
            for fresh in (False, True, False, True):
                send = carrier.sender(lambda: True, SHORT, fresh=fresh)
                sent = await send(Request("http://shop.slow/", {}))
                assert sent == NotSent("not connected: timeout")
            assert names.hanging == ["shop.slow"]

    asyncio.run(main())


def test_a_look_up_that_ended_answers_nobody_who_asks_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor one who asks at the moment in which it ends."""
    found = iter(("192.0.2.1", "192.0.2.2"))

    def at_once(_: str, port: int, *__: Any, **___: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(found), port))]

    monkeypatch.setattr(look_ups, "socket", differing(socket, getaddrinfo=at_once))

    async def main() -> list[str]:
        looker = LookUps()
        return [one["host"] for _ in range(2) for one in await looker.resolve("crm.example", 80)]

    assert asyncio.run(main()) == ["192.0.2.1", "192.0.2.2"]
