"""Uvicorn's h11 protocol with what it lacks: a deadline for headers and a cap on connections. Knows no route."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S_MAX = 20.0
"""A connection must have sent a whole request head after this long; an idle one is closed sooner."""
CONNECTIONS_MAX = 4096


class GuardedProtocol(H11Protocol):
    """Half a head, however slowly it drips in, holds a connection for 20 s at most.

    h11 itself bounds the head's size (64 KiB); httptools does not, so it is not used.
    """

    _deadline: asyncio.TimerHandle | None = None

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

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S_MAX, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
