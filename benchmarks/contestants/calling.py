"""The work of a task: post a body to the provider, and return the customer's data.

`BENCH_CALL` chooses how the call is made; see `caller`.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.support.jobs import PATH

Body = dict[str, Any]

#: Seconds for one call, as in our worker.
BUDGET = 20.0


def url() -> str:
    """The URL for registrations."""
    return os.environ["BENCH_PROVIDER"] + PATH


def redis_url() -> str:
    """The Valkey that is both broker and result store."""
    return os.environ["BENCH_REDIS"]


def tuned() -> bool:
    """Whether this worker is the tuned one of its kind."""
    return bool(os.environ.get("BENCH_TUNED"))


def read(response: httpx.Response) -> Body:
    """The stored part of an answer."""
    response.raise_for_status()
    [record] = response.json()
    return {"customer_box_id": record["customer_box_id"], "customer_key": record["customer_key"]}


def async_client() -> httpx.AsyncClient:
    """As in httpx's documentation; tuned, with the transport of aiohttp."""
    if not tuned():
        return httpx.AsyncClient(timeout=BUDGET)
    from httpx_aiohttp import HttpxAiohttpClient

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return HttpxAiohttpClient(timeout=BUDGET, limits=limits)


async def call(client: httpx.AsyncClient, body: Body) -> Body:
    """Call the provider from a coroutine."""
    return read(await client.post(url(), json=body))


def caller() -> Callable[[Body], Body]:
    """A function for tasks that are not coroutines; nothing is opened before its first call.

    client    one `httpx.Client` for the process, as in httpx's documentation
    borrowed  a client for each concurrent call: no pool with many connections to search
    run       an event loop of the process that makes one call at a time, with httpx-aiohttp
    loop      one event loop in a thread of its own for all calls, with httpx-aiohttp
    """
    kinds: dict[str, Callable[[], Callable[[Body], Body]]] = {
        "client": _Client,
        "borrowed": _Borrowed,
        "run": _Run,
        "loop": _Loop,
    }
    return kinds[os.environ.get("BENCH_CALL", "client")]()


class _Client:
    def __init__(self) -> None:
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    def __call__(self, body: Body) -> Body:
        if self._client is None:
            with self._lock:
                self._client = self._client or httpx.Client(timeout=BUDGET)
        return read(self._client.post(url(), json=body))


class _Borrowed:
    def __init__(self) -> None:
        self._free: deque[httpx.Client] = deque()

    def __call__(self, body: Body) -> Body:
        try:
            client = self._free.pop()
        except IndexError:
            client = httpx.Client(timeout=BUDGET)
        try:
            return read(client.post(url(), json=body))
        finally:
            self._free.append(client)


class _Run:
    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, body: Body) -> Body:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._client = async_client()
        return self._loop.run_until_complete(call(self._client, body))


class _Loop:
    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def __call__(self, body: Body) -> Body:
        with self._lock:
            if self._loop is None:
                self._client = async_client()
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(call(self._client, body), self._loop).result()
