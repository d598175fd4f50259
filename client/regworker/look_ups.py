"""Looks host names up and connects to them, without waiting longer than the caller may.

The system's resolver can hang for a minute while the DNS does not answer, and nothing interrupts
it. asyncio's own look-ups would take the threads that a process shares: six that hang would stop
all other work on two cores, a host's too, and each would delay the end of the process. So each
look-up has a daemon thread; each name is looked up once at a time, so that one that hangs takes one
thread.
"""

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any

AddressInfo = tuple[Any, Any, int, str, Any]
"""As of `socket.getaddrinfo`."""

#: Seconds after which the next address of a name is tried beside the others (RFC 8305): of several
#: addresses, one may belong to a server or to a kind of network (IPv6) that is away.
NEXT_ADDRESS = 0.25

#: Seconds that bytes may be unacknowledged until the kernel ends a connection: the other side, or
#: the network, is gone without a word. Longer than a few lost packets need.
UNACKNOWLEDGED = 10.0

#: Seconds without traffic until the kernel asks whether the other side is there, and between its
#: questions. Firewalls forget a connection that is idle for some minutes.
IDLE, ASK = 15, 5

_running: dict[Any, "Future[list[AddressInfo]]"] = {}


def looked_up(
    host: str,
    port: int,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    flags: int = 0,
) -> "Future[list[AddressInfo]]":
    """All addresses of a name. Whoever asks while it is looked up gets the same answer.

    Thread-safe, also for a caller that is interrupted by an exception in any line.
    """
    # A forked process has none of its parent's threads.
    asked = (os.getpid(), host, port, family, flags)
    answer: Future[list[AddressInfo]] = Future()
    answer.set_running_or_notify_cancel()  # so that no caller cancels it for the others
    if _is_address(host):
        answer.set_result(_find(host, port, family, flags))
        return answer
    started = False
    try:
        running = _running.setdefault(asked, answer)
        if running is answer:
            thread = threading.Thread(
                target=_look_up, args=(asked, answer), name="look-up", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the process ends, or may not have more threads
                _look_up(asked, answer)
        started = True
    finally:
        if not started and _running.get(asked) is answer:
            del _running[asked]
    return running


def _is_address(host: str) -> bool:
    """Whether there is nothing to look up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(asked: Any, answer: "Future[list[AddressInfo]]") -> None:
    found: list[AddressInfo] | Exception
    try:
        found = _find(*asked[1:])
    except Exception as error:  # noqa: BLE001 -- each who asked gets it
        found = error
    # Before it is answered: whoever asks from now on needs the present addresses.
    _running.pop(asked, None)
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)


def _find(host: str, port: int, family: int, flags: int) -> list[AddressInfo]:
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)
    except UnicodeError:  # a ValueError, and so no fault of a network to whoever asks
        raise socket.gaierror(socket.EAI_NONAME, "This is no name of a host") from None


def _no_answer(seconds: float) -> socket.gaierror:
    return socket.gaierror(
        socket.EAI_AGAIN, f"The DNS did not answer within {round(seconds, 3):g} s"
    )


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """A socket that is connected within so many seconds. Raises `OSError`.

    If the name has several addresses, each one gets its share of the time.
    """
    end = time.monotonic() + seconds
    try:
        found = looked_up(host, port).result(seconds)
    except TimeoutError:
        raise _no_answer(seconds) from None
    fault: OSError = socket.gaierror("the name has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(found):
        made = socket.socket(family, kind, protocol)
        try:
            share = (end - time.monotonic()) / (len(found) - tried)
            made.settimeout(max(0.001, share))
            made.connect(address)
        except BaseException as error:
            made.close()
            if not isinstance(error, OSError):
                raise
            fault = error
        else:
            watch(made)
            return made
    raise fault


async def connect_async(host: str, port: int, seconds: float) -> socket.socket:
    """As `connect`; its addresses are tried side by side, one after another begins."""
    end = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(end):
            found = await asyncio.wrap_future(looked_up(host, port))
    except TimeoutError:
        raise _no_answer(seconds) from None
    async with asyncio.timeout_at(end):
        return await _first(found)


async def _first(found: list[AddressInfo]) -> socket.socket:
    """A socket to the address that answers first; all others are closed."""
    left = iter(found)
    trying: set[asyncio.Task[socket.socket]] = set()
    done: set[asyncio.Task[socket.socket]] = set()
    made: socket.socket | None = None
    fault: BaseException = socket.gaierror("the name has no address")
    more = True
    try:
        while made is None:
            if more and (one := next(left, None)) is not None:
                trying.add(asyncio.create_task(_connect(one)))
            else:
                more = False
            if not trying:
                raise fault
            done, trying = await asyncio.wait(
                trying,
                timeout=NEXT_ADDRESS if more else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            while done and made is None:
                ended = done.pop()
                if (error := ended.exception()) is None:
                    made = ended.result()
                else:
                    fault = error
    finally:
        for one_left in trying:
            one_left.cancel()
        if trying:
            await asyncio.wait(trying)
        for other in (*trying, *done):
            if not other.cancelled() and other.exception() is None:
                other.result().close()
    return made


async def _connect(to: AddressInfo) -> socket.socket:
    family, kind, protocol, _, address = to
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        watch(made)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def watch(made: socket.socket) -> None:
    """Let the kernel notice that the other side of a connection is gone, as far as the system has
    that."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_NODELAY", 1),
        ("TCP_KEEPIDLE", IDLE),
        ("TCP_KEEPINTVL", ASK),
        ("TCP_USER_TIMEOUT", int(UNACKNOWLEDGED * 1000)),
    ):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
