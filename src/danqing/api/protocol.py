"""Uvicorn's h11 protocol with what it lacks: deadlines for who sends no head or reads no answer, and a cap on connections. Knows no route."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S_MAX = 20.0
"""A connection must have sent a whole request head after this long; an idle one is closed sooner."""
CONNECTIONS_MAX = 4096
UNREAD_S_MAX = 30.0
UNREAD_BYTES = 100_000
"""Who has an answer waiting takes so much of it at least in each such while, or all there is."""


class GuardedProtocol(H11Protocol):
    """Half a head, however slowly it drips in, holds a connection for 20 s at most.

    h11 itself bounds the head's size (64 KiB); httptools does not, so it is not used. Who does not read its answer is
    cut off: a stream's drawing then ends as by any hang-up.
    """

    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._relax()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()
        self._relax()

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
