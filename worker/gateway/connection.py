"""uvicorn's connection with limits: a client cannot occupy it for ever, or send without end.

httptools accepts headers of any size, and uvicorn waits for them without a time limit. Both accept
requests that a proxy in front may read otherwise: those are refused here.
"""

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of a request's first line and headers; about as many between two parts of a body.
MOST_HEADERS = 32 * 1024

#: The most headers of a request.
MOST_NAMES = 100

#: Seconds for a request's headers to arrive, from the connection or from the request's first byte.
HEADER_TIME = 10.0

#: Seconds after that for its body, if the path takes one job and no stream; for any path, seconds
#: for the rest of a body after its answer.
BODY_TIME = 30.0

#: The most connections of a process. Beyond it, a new one takes the place of the one that has
#: waited longest for its client; if none does, the answer is 503.
MOST_CONNECTIONS = 2000

#: Seconds for a client to read of the rest of an answer after its connection was closed here.
LINGER = 30.0

#: Bytes that are parsed at a time: they may hold some forty requests, of which each takes memory
#: until it is answered. Most requests have one or two parts.
PART = 1024

#: Seconds for a client to read of what was written to it, before more is written.
UNREAD = 60.0

#: Bytes a second that it must read in these times: less than any network gives.
SLOWEST = 256.0

#: In a request's `state`: the process has too many connections.
FULL = "full"

#: In a request's `state`: all of its body is here.
ARRIVED = "arrived"

#: A path whose body has no limit of length or time: its route limits each line, and its slowness.
STREAMED = "/v1/jobs:batch"

_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class _Joined:
    """A transport that sends the head and the body of an answer in one call, if both are ready.

    uvicorn writes each separately, and a system call costs more than uvicorn's other work on them.
    """

    __slots__ = ("_held", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Hold a head until the end of this turn of the loop, for the body to join it."""
        if not self._held and data.startswith(b"HTTP/1.1 "):
            self._held = data
            self._loop.call_soon(self._flush)
            return
        held, self._held = self._held, b""
        self._transport.write(held + data if held else data)

    def close(self) -> None:
        """Close the connection after everything that was written, or after `LINGER`."""
        if self.is_closing():
            return
        self._flush()
        self._transport.close()
        self._linger()

    def reads(self, before: int, seconds: float) -> bool:
        """Whether the client goes on reading, of which there were so many bytes `seconds` ago."""
        return before - self._transport.get_write_buffer_size() >= SLOWEST * seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _linger(self) -> None:
        if left := self._transport.get_write_buffer_size():
            self._loop.call_later(LINGER, self._still_unread, left)

    def _still_unread(self, before: int) -> None:
        if self.reads(before, LINGER):
            self._linger()
        else:
            self._transport.abort()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)


class _Flow(FlowControl):
    """uvicorn reads on after each answer, and parses all that arrives: one client could have any
    number of requests in memory."""

    def __init__(self, connection: "BoundedConnection") -> None:
        super().__init__(connection.transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if not self._connection.held:
            super().resume_reading()


class BoundedConnection(HttpToolsProtocol):
    """Ends a connection whose request comes too slowly, or whose headers are too large."""

    _clock: asyncio.TimerHandle | None = None
    _reading = True
    """Whether headers are expected."""
    _body_awaited = False
    """Whether the timer of a body has still to be started."""
    _idle_since: float | None = None
    """Since when it waits for its client: for a request, for a body that is not streamed, or for it
    to read; None while it does not. The loop's time."""
    _unread: asyncio.TimerHandle | None = None
    _rest = b""
    """Bytes that were received and are not parsed yet."""
    _was_held = False
    _begun = 0
    """Bytes since the end of the last request, of its headers, or since a part of its body."""

    def connection_made(self, transport: Any) -> None:
        """Start the timer for its first request; make room for it if there is none."""
        super().connection_made(transport)
        self.transport = _Joined(transport, self.loop)  # type: ignore[assignment]
        self.flow = _Flow(self)
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()
        self._idle_since = self.loop.time()
        self._await(HEADER_TIME)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers, and drop what is not parsed."""
        self._stop()
        self._read()
        self._rest = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, as long as no request waits for the answer to another one."""
        data, at = self._rest + data, 0
        while at < len(data) and not self.pipeline and not self.transport.is_closing():
            self._received(data[at : at + PART])
            at += PART
        self._rest = data[at:]
        if self.transport.is_closing():
            return
        if self.held:
            self._hold()
        else:
            self._expect()

    @property
    def held(self) -> bool:
        """Whether more of its requests arrived than are worked on: none is read or parsed."""
        return bool(self._rest or self.pipeline)

    def _received(self, data: bytes) -> None:
        """Check sizes before anything is parsed."""
        self._begun += len(data)
        if self._reading:
            end = data.find(b"\r\n\r\n")
            over = self._begun - (len(data) - end if end >= 0 else 0)
            if over > MOST_HEADERS:
                self._end(_LARGE)
                return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if not self._reading and self._begun > MOST_HEADERS:
            self._end(_LARGE)  # a chunk's extension, or a trailer: httptools reads it to its end

    def _expect(self) -> None:
        """Start the timer of what the client has begun to send. What arrived whole needs none."""
        # After an answer, each byte of the body ends uvicorn's own timer for an idle connection.
        answered = self.cycle is not None and self.cycle.response_complete
        if self._reading and self._begun:
            if self._clock is None:
                self._await(HEADER_TIME)
        elif self._reading and answered:
            self._await_another()
        elif self._body_awaited or (answered and self._clock is None):
            self._body_awaited = False
            self._await(BODY_TIME)

    def _go_on(self) -> None:
        """Parse and read what was held, now that no request waits for another one's answer."""
        self.data_received(b"")
        full = not self.cycle.response_complete and len(self.cycle.body) > HIGH_WATER_LIMIT
        if not self.transport.is_closing() and not full:
            self.flow.resume_reading()

    def _hold(self) -> None:
        """Let the client wait; its own time does not pass."""
        self._was_held = True
        self.flow.pause_reading()
        if self._clock is not None:
            self._body_awaited = not self._reading
            self._stop()

    def on_message_begin(self) -> None:
        """The next request may start in the same bytes as the end of the last one."""
        self._reading = True
        self._begun = self._begun or 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Limit the number of headers; refuse a trailer.

        httptools reports a trailer as a header. Proxies do not remove from trailers what they
        remove from headers, such as the name of a user.
        """
        if not self._reading:
            self.send_400_response("Trailers are not accepted.")
            return
        if len(self.headers) >= MOST_NAMES:
            self._end(_LARGE)
            return
        # White space after a value is no part of it (RFC 9110, 5.5). httptools leaves it there.
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """From here on the body is expected."""
        if not self.transport.is_closing() and (fault := self._fault()):
            self.send_400_response(fault)
        if self.transport.is_closing() or self.parser.should_upgrade():
            return
        self._stop()
        self.scope["state"][FULL] = len(self.connections) > MOST_CONNECTIONS
        super().on_headers_complete()  # it raises if the URL is none
        self._body_awaited = self.scope["path"] != STREAMED
        if not self._body_awaited:
            self._idle_since = None  # its route limits how long it waits
        self._reading, self._begun = False, 0

    def on_body(self, body: bytes) -> None:
        """Nothing is read from a connection that was ended."""
        self._begun = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.parser.should_upgrade():
            return  # only its headers are (`_parse`)
        self._stop()
        self._reading, self._begun, self._body_awaited = True, 0, False
        self.scope["state"][ARRIVED] = True
        if not self.transport.is_closing():
            if not self.cycle.response_complete:
                self._idle_since = None
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request is expected, unless it is here already."""
        if not self.pipeline:
            self._idle_since = self.loop.time()
        super().on_response_complete()
        if self._was_held and not self.pipeline:
            self._was_held = False
            self.loop.call_soon(self._go_on)

    def pause_writing(self) -> None:
        """The client does not read its answers. So none of its requests ends, and uvicorn's timer
        for an idle connection does not start."""
        super().pause_writing()
        self._idle_since = self.loop.time()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client has read what was written."""
        self._read()
        if self.cycle is not None and not self.cycle.response_complete:
            self._idle_since = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """A client that still reads an answer is not idle."""
        if self.flow.write_paused:
            self.timeout_keep_alive_task = None
            self._await_another()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Refuse the request, and close the connection."""
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
        self._end(f"{head}content-length: {len(msg)}\r\nconnection: close\r\n\r\n{msg}".encode())

    def _parse(self, data: bytes) -> None:
        """Parse bytes; ignore an offer to change the protocol (RFC 9110, section 7.8).

        httptools ends such a request after its headers, and would read its body as the next one. So
        another parser reads them again, without the offer.
        """
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                if self.transport.is_closing():
                    return
                rest = rest[offer.args[0] :]
            else:
                return
            headers = [b"%b: %b\r\n" % one for one in self.headers if one[0] != b"upgrade"]
            version = self.parser.get_http_version().encode()
            first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(b"".join([first, *headers, b"\r\n"]))

    def _fault(self) -> str:
        """What is wrong with a request's first line and headers; '' if nothing is."""
        version = self.parser.get_http_version()
        if version not in {"1.0", "1.1"} or self.parser.get_method() == b"CONNECT":
            return "This is a server of HTTP/1.1, and no proxy."
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return "A request has one Host header."
        return ""

    def _make_room(self) -> None:
        """End the connection that has waited longest for its client: a client that opens many, and
        sends nothing, keeps nobody out."""
        waiting = {
            one: one._idle_since
            for one in self.connections
            if isinstance(one, BoundedConnection) and one._idle_since is not None
        }
        if waiting:
            oldest = min(waiting, key=waiting.__getitem__)
            oldest._idle_since = None
            self.connections.discard(oldest)
            oldest.transport.abort()

    def _await(self, seconds: float) -> None:
        self._stop()
        self._clock = self.loop.call_later(seconds, self._end, _SLOW)

    def _await_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(UNREAD, self._still_unread, left)

    def _still_unread(self, before: int) -> None:
        joined = cast(_Joined, self.transport)
        if joined.reads(before, UNREAD):
            self._await_reader()
        else:
            joined.abort()

    def _await_another(self) -> None:
        """Start uvicorn's timer again: the rest of a body came after its answer."""
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end(self, answer: bytes) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        # An earlier request must not get it for its answer, or in the middle of it. While headers
        # are read, `cycle` is the request before.
        if self._reading:
            free = self.cycle is None or self.cycle.response_complete
        else:
            free = not self.cycle.response_started and not self.pipeline
        if free:
            self.transport.write(answer)
        self.transport.close()
