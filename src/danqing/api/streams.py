"""Answering by server-sent events (WHATWG HTML, 9.2): what is refused early is plain JSON, the rest is told in the stream.

Knows HTTP and how events follow each other; nothing of any dialect's words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from danqing.api.answers import extended, notes, rate_left
from danqing.dialects.base import Dialect, ServerEvent
from danqing.domain.errors import Cancelled, DanqingError, ServerFault, Unavailable
from danqing.domain.task import Broken, Finished, StreamEvent
from danqing.observability.logging import get_logger
from danqing.service.budget import Share
from danqing.service.calls import Accepted, Call, Outcome
from danqing.service.pipeline import Pipeline

log = get_logger(__name__)

PATIENCE_S = 2.0
"""A task that is paid for may still be refused with a status of its own (a full queue, a provider that
does not answer) for this long; then the stream begins."""
KEEP_ALIVE_S = 15.0
"""After this long without an event a comment is sent, so that no proxy takes the connection for dead."""
FAREWELL_S = 2.0
"""A stopping server waits this long for a slow reader to take the last event."""
KEEP_ALIVE = b": keep-alive\n\n"


async def begin_stream(
    request: Request,
    pipeline: Pipeline,
    dialect: Dialect,
    call: Call,
    on_end: Callable[[str], None],
    share: Share,
) -> Response:
    """Draw a call whose delivery streams. Returns the answer to send once the stream may begin.

    Raises any DanqingError before that. The body must have been read. `on_end` is told how the stream
    ended: "ok" or an error's code. What `share` has of the body's pictures is given back when the drawing
    is over: it holds them until then, the stream does not.
    """
    assert call.feed is not None
    drawing = asyncio.ensure_future(pipeline.draw(call))
    watch = asyncio.ensure_future(request.receive())
    begun = asyncio.ensure_future(call.feed.begun(PATIENCE_S))
    running = _Running(call, drawing, watch)
    try:
        await asyncio.wait({drawing, watch, begun}, return_when=asyncio.FIRST_COMPLETED)
        if drawing.done():
            drawing.result()
        elif watch.done():
            await running.hang_up()
            raise Cancelled
        held = share.moved()
        drawing.add_done_callback(lambda _: held.release())
        return EventStream(dialect, running, on_end)
    except BaseException:
        await running.stop()
        watch.cancel()
        raise
    finally:
        begun.cancel()


class _Gone(Exception):
    """The client hung up."""


class _Running:
    """A call that is being drawn, and the connection that waits for it."""

    def __init__(
        self,
        call: Call,
        drawing: asyncio.Future[Outcome | Accepted],
        watch: asyncio.Future[object],
    ) -> None:
        assert call.feed is not None
        self.delivery = call.delivery
        self.hung_up = call.hung_up
        self.feed = call.feed
        self.drawing = drawing
        self.watch = watch

    async def hang_up(self) -> None:
        """The client left: nothing leaves any more, and the drawing ends (or goes on, where it has a key)."""
        self.hung_up.set()
        self.feed.cut()
        await self.stop()

    async def stop(self) -> None:
        """End the drawing, if it is not over, and wait until it is settled."""
        if not self.drawing.done():
            self.drawing.cancel()
            await asyncio.wait({self.drawing})
        if not self.drawing.cancelled():
            self.drawing.exception()  # whoever wanted to know has asked

    async def wait(self) -> bool:
        """Wait for an event, the drawing's end or the client's; False when nothing came for KEEP_ALIVE_S."""
        filled = asyncio.ensure_future(self.feed.filled())
        try:
            done, _ = await asyncio.wait(
                {filled, self.drawing, self.watch},
                timeout=KEEP_ALIVE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            filled.cancel()
        return bool(done)

    def end(self) -> Broken:
        """What is told of a drawing that is over and did not finish."""
        if self.drawing.cancelled():
            return Broken(Unavailable("The server is stopping. Please retry later."))
        error = self.drawing.exception()
        return Broken(error if isinstance(error, DanqingError) else ServerFault())


class EventStream(Response):
    """The events of one call in one dialect, as they come."""

    media_type = "text/event-stream"

    def __init__(self, dialect: Dialect, running: _Running, on_end: Callable[[str], None]) -> None:
        head = running.feed.head
        assert head is not None
        self._dialect = dialect
        self._running = running
        self._head = head
        self._on_end = on_end
        self.status_code = 200
        self.background = None
        headers = {
            "x-danqing-task": head.reply_id,
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would collect events into blocks
        }
        headers |= rate_left(running.feed.rate) | notes(running.delivery)
        headers |= extended(running.feed.extension)
        if running.feed.replayed:
            headers["idempotent-replayed"] = "true"
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        code = ServerFault.code
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            code = await self._follow(send)
        except (_Gone, OSError):  # some servers raise where nobody listens any more
            code = Cancelled.code
            await self._running.hang_up()
        except asyncio.CancelledError:
            await self._running.stop()
            code = await self._part(send)
        except Exception:
            log.exception("stream_crashed", task=self._head.reply_id)
            await self._running.stop()
            with suppress(Exception):
                await self._send(send, Broken(ServerFault()))
                await _close(send)
        finally:
            await self._running.stop()
            self._running.watch.cancel()
            self._on_end(code)

    async def _follow(self, send: Send) -> str:
        """Send events to the last one; how it ended. Raises _Gone when the client hung up."""
        running = self._running
        while True:
            if running.watch.done():
                raise _Gone
            await running.feed.prepare()
            event = running.feed.take()
            if event is None and running.drawing.done():
                event = running.end()
            if event is not None:
                await self._send(send, event)
                if isinstance(event, Finished | Broken):
                    await _close(send)
                    return "ok" if isinstance(event, Finished) else event.error.code
            elif not await running.wait():
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def _part(self, send: Send) -> str:
        """Say how it ended while the server stops: what has been settled is still told."""
        with suppress(TimeoutError, _Gone, OSError):
            async with asyncio.timeout(FAREWELL_S):
                return await self._follow(send)
        return Unavailable.code

    async def _send(self, send: Send, event: StreamEvent) -> None:
        encoded = self._dialect.encode_event(event, self._head, self._running.delivery)
        if encoded:
            body = b"".join(map(encode, encoded))
            await send({"type": "http.response.body", "body": body, "more_body": True})


async def _close(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def encode(event: ServerEvent) -> bytes:
    """An event's lines. Its JSON is ASCII: clients that split lines as Unicode does find none in it."""
    data = event.data
    if not isinstance(data, str):
        data = json.dumps(data, separators=(",", ":"))
    name = "" if event.name is None else f"event: {event.name}\n"
    return f"{name}data: {data}\n\n".encode()
