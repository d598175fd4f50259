"""A tunnel through an HTTP proxy (RFC 9110, section 9.3.6): TLS reaches through it to the server.

A connection is returned only after TLS has begun, with a certificate that only the server has. So a
proxy can prevent a request, but neither read nor answer it; and until then nothing was sent,
whatever the proxy does.
"""

import asyncio
import re
import socket
from collections.abc import Callable

import aiohttp
from aiohappyeyeballs import start_connection
from aiohttp.connector import AddrInfoType

from regworker.way_out import ProxyServer
from worker.http.look_ups import LookUps

#: Bytes of a proxy's answer, which has only a head.
LONGEST_HEAD = 16 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r?\n)")

_END = b"\r\n\r\n"


class ProxyRefused(aiohttp.ClientConnectionError):
    """Raised when a proxy refuses a tunnel; the text is ours and quotes nothing of the proxy."""


async def open_tunnel(
    proxy: ProxyServer,
    host: str,
    port: int,
    look_ups: LookUps,
    make: Callable[[AddrInfoType], socket.socket],
) -> socket.socket:
    """A socket that is connected to `host`, by the proxy's answer; `make`: makes a socket.

    Raises `ProxyRefused`, and `OSError` if the proxy cannot be reached.
    """
    loop = asyncio.get_running_loop()
    found = await look_ups.addresses(proxy.host, proxy.port)
    # As aiohttp connects: an address that does not answer delays the next one only by this pause.
    made = await start_connection(found, happy_eyeballs_delay=0.25, socket_factory=make)
    try:
        await _ask(loop, made, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except BaseException:
        made.close()
        raise
    return made


async def _ask(
    loop: asyncio.AbstractEventLoop, made: socket.socket, proxy: ProxyServer, target: str
) -> None:
    own = f"Proxy-Authorization: {proxy.credentials}\r\n" if proxy.credentials else ""
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{own}\r\n"
    await loop.sock_sendall(made, head.encode("ascii"))
    answer = b""
    while _END not in answer:
        if len(answer) > LONGEST_HEAD:
            raise ProxyRefused("the proxy's answer is too large")
        if not (came := await loop.sock_recv(made, 4096)):
            raise ProxyRefused("the proxy closed the connection")
        answer += came
    if (status := _STATUS.match(answer)) is None:
        raise ProxyRefused("the proxy's answer is not HTTP")
    if status[1] == b"407":
        raise ProxyRefused("the proxy refused our credentials (HTTP 407)")
    if not status[1].startswith(b"2"):
        raise ProxyRefused(f"the proxy opened no connection (HTTP {status[1].decode()})")
    if not answer.endswith(_END) or answer.count(_END) > 1:
        # In TLS the client speaks first: these bytes do not come from the host.
        raise ProxyRefused("the proxy sent more than its answer")
