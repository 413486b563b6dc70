"""Looks at unfinished images for a streamed answer: judged, labelled, encoded, never stored. Knows no money, no HTTP."""

from __future__ import annotations

import asyncio
from collections import deque

from danqing.domain.errors import ContentRefused, Unavailable
from danqing.domain.task import PartialImage, Preview
from danqing.observability.logging import get_logger
from danqing.service.calls import Work
from danqing.service.delivery import Deliverer
from danqing.service.screening import Screen

log = get_logger(__name__)


class Looks:
    """Makes the partial images of one task, those of one image in turn; Delivery bounds how many there are."""

    def __init__(self, deliverer: Deliverer, screen: Screen, work: Work) -> None:
        self._deliverer = deliverer
        self._screen = screen
        self._work = work
        self._waiting: dict[int, deque[Preview]] = {}
        self._showing: dict[int, asyncio.Task[None]] = {}

    def show(self, preview: Preview) -> None:
        """Have a look encoded and told, beside the drawing."""
        if self._work.call.feed is None:
            return
        self._waiting.setdefault(preview.index, deque()).append(preview)
        showing = self._showing.get(preview.index)
        if showing is None or showing.done():
            self._showing[preview.index] = asyncio.create_task(self._show(preview.index))

    def cancel(self) -> tuple[asyncio.Task[None], ...]:
        """Give up what is not told yet; the tasks to wait for."""
        self._waiting.clear()
        tasks = tuple(self._showing.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def _show(self, index: int) -> None:
        feed, delivery = self._work.call.feed, self._work.call.delivery
        assert feed is not None
        while waiting := self._waiting.get(index):
            preview = waiting.popleft()
            try:
                await self._screen.image(
                    preview.pixels, "assistant", self._work.call.principal.block_level
                )
                size, b64 = await self._deliverer.preview(
                    preview.pixels,
                    produce_id=self._work.task_id,
                    delivery=delivery,
                    plan=self._work.plan,
                    prompt=self._work.order.task.prompt,
                )
            except (ContentRefused, Unavailable):
                continue  # counted; what becomes of the image is decided when it is whole
            except Exception:  # a look less is no reason to lose the image
                log.exception("preview_crashed", task=self._work.task_id)
                continue
            number = preview.number
            del preview  # its pixels are not held while the next one is awaited
            feed.tell(PartialImage(index, number, delivery.format, size, b64))
