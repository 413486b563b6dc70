"""HTTP/1.1 as a client, over one connection and over kept ones. Knows no policy, no redirect and no name server.

llhttp (httptools) reads the answers. It is written for many short exchanges with few hosts: a request leaves
in one write, and an answer that came whole wakes its caller once (bench/gateway.py).
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

HEAD_BYTES_MAX = 65_536
"""Of an answer beside its body: status line, headers, the sizes of its chunks."""
_CHUNK_FACTOR = 8
"""A chunk of one byte takes six."""
_ONE_WRITE_BYTES_MAX = 65_536
OnBody = Callable[[int], Awaitable[None] | None]
"""Hears of the bytes of each piece of a body. What it raises ends the exchange; while what it gives back is
awaited nothing more is read."""
_CONTENT_LENGTH, _TRANSFER_ENCODING = b"content-length", b"transfer-encoding"


class Unsound(Exception):
    """The other side said nothing, or what is no HTTP."""


class TooLarge(Unsound):
    """The body is longer than the caller allows."""


class Compressed(Unsound):
    """The body is compressed, though that was not asked for."""


class Reply(NamedTuple):
    """`headers` have their names in lower case, in the order they came."""

    status: int
    headers: list[tuple[bytes, bytes]]
    content: bytes


class Taker(Protocol):
    """Takes a body as it comes; the exchange keeps none of it then, and bounds its bytes alone."""

    def begins(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether the body that follows is for it."""
        ...

    def take(self, piece: bytes) -> Awaitable[object]:
        """One piece; nothing more is read until it is done with it. What it raises ends the exchange."""
        ...


class Connection(asyncio.Protocol):
    """One exchange at a time. What comes while none is going on ends it."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._reply: asyncio.Future[Reply] | None = None
        self._lost = False
        self._keep = True
        self._start("", 0, None, None)

    def _start(
        self, method: str, bytes_max: int, on_body: OnBody | None, taker: Taker | None
    ) -> None:
        self._method = method
        self._bytes_max = bytes_max
        self._on_body = on_body
        self._taker = taker
        self._is_taken = False
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._body_bytes = self._unheard = 0
        self._read = 0
        self._headed = self._complete = self._until_closed = False
        self._ended = False
        self._error: Exception | None = None
        self._room: asyncio.Future[object] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the last answer is through, and was not said to be the last one."""
        return self._keep and not self._lost and not self._transport.is_closing()

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent: it is kept, and nothing has come since."""
        if not self.is_kept:
            return False
        # The other side may have closed it a moment ago, and the loop not have looked since.
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        self._keep = False
        self._transport.abort()

    async def exchange(
        self,
        method: str,
        head: bytes,
        content: bytes,
        *,
        bytes_max: int,
        on_body: OnBody | None,
        taker: Taker | None = None,
    ) -> Reply:
        """Send a request; its answer, of whose body at most `bytes_max` bytes are taken (0: it is left).

        Raises Unsound, OSError, and what `on_body` and `taker` raise.
        """
        if self._lost:
            raise Unsound("cut off")
        self._start(method, bytes_max, on_body, taker)
        self._keep = False
        reply = self._reply = asyncio.get_running_loop().create_future()
        if len(content) <= _ONE_WRITE_BYTES_MAX:
            self._transport.write(head + content)
        else:
            self._transport.write(head)
            self._transport.write(content)
        try:
            return await reply
        finally:
            self._reply = None
            if self._room is not None:
                self._keep = False  # nothing is read there since
                self._room.cancel()
            if not self._keep:
                self.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if self._reply is None or self._reply.done():
            self.abort()
            return
        self._read += len(data)
        before = self._body_bytes
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._spoil(type(error).__name__)
        if self._read > HEAD_BYTES_MAX + _CHUNK_FACTOR * self._body_bytes:
            self._spoil("a head without end")
        self._told(self._body_bytes - before)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if exc is None and self._headed and self._until_closed:
            self._ended = True
        elif not self._ended:
            self._error = exc if isinstance(exc, OSError) else Unsound("cut off")
        self._told(0)

    def _spoil(self, why: str) -> None:
        """What comes makes no sense; behind all that is wanted of an answer that is nobody's trouble."""
        if self._ended:
            self._keep = False
        else:
            self._error = self._error or Unsound(why)

    def _told(self, came: int) -> None:
        """So much of the body has come: let it be heard, and end the exchange where it is over."""
        if self._reply is None or self._reply.done():
            return
        if self._error is None and came:
            self._unheard += came
            self._hear()
        if self._error is not None:
            self._reply.set_exception(self._error)
            self.abort()
        elif self._ended and self._room is None:
            self._reply.set_result(Reply(self._status, self._headers[:], bytes(self._body)))

    def _hear(self) -> None:
        """Hand on what came, unless whoever hears it is still busy with what came before."""
        if self._room is not None or not self._unheard:
            return
        room: Awaitable[object] | None = None
        try:
            if self._taker is not None and self._is_taken:
                piece = bytes(self._body)
                self._body.clear()
                room = self._taker.take(piece)
            elif self._on_body is not None:
                room = self._on_body(self._unheard)
        except Exception as error:
            self._error = error
        self._unheard = 0
        if room is not None:
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._room = asyncio.ensure_future(room)
            self._room.add_done_callback(self._has_room)

    def _has_room(self, room: asyncio.Future[object]) -> None:
        self._room = None
        if room.cancelled():
            return
        error = room.exception()
        if isinstance(error, Exception):
            self._error = error
        else:
            self._hear()
            if self._room is None and not self._transport.is_closing():
                self._transport.resume_reading()
        self._told(0)

    # The parser's side. It calls these for every answer, the preliminary ones (1xx) too.

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep = False  # more answers than requests
        self._headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._complete:
            return
        self._status, self._headed = status, True
        said = dict(self._headers)
        chunked = said.get(_TRANSFER_ENCODING, b"").lower().endswith(b"chunked")
        self._until_closed = not chunked and _CONTENT_LENGTH not in said
        if self._method == "HEAD" or not self._bytes_max:
            self._ended = True
        elif said.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
            self._error = Compressed()
        elif int(said.get(_CONTENT_LENGTH, b"0")) > self._bytes_max:
            self._error = TooLarge()
        elif self._taker is not None:
            self._is_taken = self._taker.begins(status, self._headers)

    def on_body(self, piece: bytes) -> None:
        if self._ended or self._error is not None:
            return
        self._body += piece
        self._body_bytes += len(piece)
        if self._body_bytes > self._bytes_max:
            self._error = TooLarge()

    def on_message_complete(self) -> None:
        if self._headed and not self._complete:
            self._complete = self._ended = True
            # What has not left yet would stand before the next request.
            is_sent = not self._transport.get_write_buffer_size()
            self._keep = is_sent and self._method != "HEAD" and self._parser.should_keep_alive()


async def dial(address: str, port: int, tls: ssl.SSLContext | None, server_name: str) -> Connection:
    """A connection to a literal address; with `tls` to whom the certificate calls `server_name`. Raises OSError."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        Connection, address, port, ssl=tls, server_hostname=server_name if tls else None
    )
    return connection


class Origin(NamedTuple):
    """Where connections lead; `host` as the URL names it."""

    scheme: str
    host: str
    port: int


class Pool:
    """Connections by origin: so many at a time, and some kept between requests."""

    def __init__(
        self,
        open_one: Callable[[Origin], Awaitable[Connection]],
        *,
        connections_max: int,
        idle_max: int,
        idle_s_max: float,
    ) -> None:
        self._open_one = open_one
        self._free = asyncio.Semaphore(connections_max)
        self._connections_max = connections_max
        self._idle_max = idle_max
        self._idle_s_max = idle_s_max
        self._taken = 0
        self._idle: list[tuple[Origin, Connection, float]] = []
        """The longest idle first."""

    async def take(self, origin: Origin) -> Connection:
        """A kept connection or a new one; waits its turn. To be given back, whatever became of it."""
        await self._free.acquire()
        self._taken += 1
        try:
            return self._kept(origin) or await self._open_one(origin)
        except BaseException:
            self._leave()
            raise

    def give(self, origin: Origin, connection: Connection) -> None:
        """Take back what was taken; it is kept where it can serve again."""
        self._leave()
        oldest_s = time.monotonic() - self._idle_s_max
        if connection.is_kept:  # whether it is open is asked when it is taken
            self._idle.append((origin, connection, time.monotonic()))
        else:
            connection.abort()
        while self._idle and (self._idle[0][2] < oldest_s or len(self._idle) > self._idle_max):
            self._idle.pop(0)[1].abort()

    def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            self._idle.pop()[1].abort()

    def _kept(self, origin: Origin) -> Connection | None:
        oldest_s = time.monotonic() - self._idle_s_max
        for at in reversed(range(len(self._idle))):
            where, connection, since_s = self._idle[at]
            if where == origin:
                del self._idle[at]
                if since_s >= oldest_s and connection.is_open:
                    return connection
                connection.abort()
        while self._idle and self._taken + len(self._idle) > self._connections_max:
            self._idle.pop(0)[1].abort()
        return None

    def _leave(self) -> None:
        self._taken -= 1
        self._free.release()
