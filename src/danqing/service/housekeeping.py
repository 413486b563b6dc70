"""Deeds that a server does again and again. Knows none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from danqing.observability.logging import get_logger

log = get_logger(__name__)


def every(
    seconds: float, deed: Callable[[], Awaitable[object]], stopping: asyncio.Event
) -> asyncio.Task[None]:
    """Do something again and again; when it fails it is logged, and the next one still comes."""

    async def loop() -> None:
        while True:
            # Waiting comes first: a clock that is wrong when a machine starts is soon put right,
            # and what is deleted by it is gone.
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), seconds)
                return
            try:
                await deed()
            except Exception:
                log.exception("housekeeping_failed")

    return asyncio.create_task(loop())
