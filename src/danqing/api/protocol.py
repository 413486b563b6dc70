"""Uvicorn's httptools protocol with what it lacks: bounds and deadlines for heads, for unread answers, and a cap on connections. Knows no route."""

from __future__ import annotations

import asyncio
import select

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES_MAX = 65_536
"""Of a request beside its body: its line, headers, trailers, the sizes of its chunks."""
_CHUNK_FACTOR = 8
"""A chunk of one byte takes six."""
HEADERS_S_MAX = 20.0
"""A connection must have sent a whole request head this long after it was made, or after the first byte of a further one."""
CONNECTIONS_MAX = 4096
PIPELINED_MAX = 64
"""Requests that wait behind the one being answered: 60 bytes of a head are 3 KB here, and one read brings thousands."""
UNREAD_S_MAX = 30.0
UNREAD_BYTES = 100_000
"""Who has an answer waiting takes so much of it at least in each such while, or all there is."""
_CORKED_BYTES_MAX = 65_536
LISTEN_S = 1.0
"""While a connection is not read, whether its client is still there is asked of the system this often."""
# Linux alone tells that the other side has ended while something before that is still unread.
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class _Corked(asyncio.Transport):
    """A connection as an answer is written to it: a head waits for the body that is sent with it.

    A short answer then leaves in one write and wakes its client once; a stream's head leaves by itself as
    soon as nothing more comes at once.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._waiting: bytes | None = b""
        """None once the first bytes have left."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._waiting is None:
            self._transport.write(data)
        elif not self._waiting and len(data) <= _CORKED_BYTES_MAX:
            self._waiting = bytes(data)
            self._loop.call_soon(self.uncork)
        else:
            waiting, self._waiting = self._waiting, None
            self._transport.write(waiting + data)

    def uncork(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting)

    def close(self) -> None:
        self.uncork()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class GuardedProtocol(HttpToolsProtocol):
    """Half a head, however slowly it drips in, holds a connection for 20 s at most, and an endless one for 64 KiB.

    Who does not read its answer is cut off: a stream's drawing then ends as by any hang-up.
    """

    _answering: RequestResponseCycle | None = None
    """The request that is being answered; those behind it on the connection wait (`pipeline`)."""
    _cork: _Corked | None = None
    """Of that request. Whoever writes past it or closes past it uncorks first: what waits there came before."""
    _spoiled = False
    """What came is no HTTP, and so is nothing that comes behind it."""
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _listening: asyncio.TimerHandle | None = None
    _in_head = True
    _bytes = 0
    """Of the request that comes in, and of its body:"""
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._spoiled:
            return
        self._bytes += len(data)
        try:
            self._feed(data)
            if self._bytes > HEAD_BYTES_MAX + _CHUNK_FACTOR * self._body_bytes:
                raise HttpParserError("a head without end")
        except HttpParserError:
            self._spoil()
        self._watch()
        self._listen()

    def _spoil(self) -> None:
        """Refuse what makes no sense; a request before it that came whole is answered first, and is the last."""
        self._spoiled = True
        answering = self._answering
        if answering is None or answering.response_complete or answering.more_body:
            self.send_400_response("Invalid HTTP request received.")
        else:
            self.pipeline.clear()
            self.cycle = answering
            answering.keep_alive = False

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as asked:
                # Nobody need be upgraded (RFC 9110, 7.8): the request is read again without that wish. Java's
                # client has it in every POST, and httptools takes the body for the other protocol's.
                data = self._without_wish() + data[asked.args[0] :]
                self.parser = HttpRequestParser(self)
            else:
                return

    def _without_wish(self) -> bytes:
        """The head that has just been read, but for its Upgrade."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise HttpParserError("no proxy")
        version = self.parser.get_http_version().encode()
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._bytes = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are nobody's headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise HttpParserError("one Host, and no more (RFC 9112, 3.2)")
        if len(self.pipeline) >= PIPELINED_MAX:
            raise HttpParserError("too many requests at a time")
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self._cork = cycle.transport = _Corked(cycle.transport, self.loop)
        super()._start_asgi_task(cycle, app)

    def _uncork(self) -> None:
        if self._cork is not None:
            self._cork.uncork()

    def send_400_response(self, msg: str) -> None:
        self._uncork()
        super().send_400_response(msg)

    def eof_received(self) -> None:
        self._uncork()
        super().eof_received()

    def on_response_complete(self) -> None:
        self._uncork()  # the head of a HEAD's answer waits for no body
        super().on_response_complete()
        if self._in_head:  # the next one has begun
            self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._relax()

    def connection_lost(self, exc: Exception | None) -> None:
        # Uvicorn tells the request that came last, which need not be the one that is being answered.
        self.cycle = self._answering or self.cycle
        super().connection_lost(exc)
        self._unwatch()
        self._relax()
        if self._listening is not None:
            self._listening.cancel()

    def _listen(self) -> None:
        """Uvicorn reads no further while a request waits behind another, and so would see no hang-up.

        Nor does the system hear of one behind more than its buffers take, some hundred kilobytes.
        """
        if self.flow.read_paused and self._listening is None:
            self._listening = self.loop.call_later(LISTEN_S, self._ask)

    def _ask(self) -> None:
        self._listening = None
        if self.transport.is_closing() or not self.flow.read_paused:
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), _GONE)
        if poll.poll(0):
            self.transport.abort()
        else:
            self._listen()

    def _expect(self) -> None:
        """Look later whether enough of what waits now has been read."""
        self._relax()
        waiting = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(UNREAD_S_MAX, self._look, waiting)

    def _look(self, waiting: int) -> None:
        # More may have been written meanwhile: that only makes the rest of a stream seem unread.
        if self.transport.get_write_buffer_size() > waiting - UNREAD_BYTES:
            self.transport.abort()
        else:
            self._expect()

    def _relax(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S_MAX, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
