"""The events of one streamed answer, from the drawing to whoever sends them. Knows no HTTP, no dialect, no pixels."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from danqing.domain.task import (
    Begun,
    DeliveredImage,
    FailedImage,
    Finished,
    FinishedImage,
    ImageResult,
    PartialImage,
    StreamEvent,
    StreamHead,
)
from danqing.service.ratelimit import Taken

LOOKS_CHARS_MAX = 8_000_000
"""Base64 of partial images that waits for a slow reader; beyond this the oldest are dropped."""


class Feed:
    """A queue with one reader, both ends in one event loop. Telling never waits.

    It is bounded: an image is told once as finished or failed, and partial images give way. What has
    been handed to the reader counts as having left, and is charged.
    """

    def __init__(self) -> None:
        self.head: StreamHead | None = None
        """Set once the task is paid for (or, in a replay, found)."""
        self.replayed = False
        self.rate: Taken | None = None
        """What is left of the token's rate limit, where it has one."""
        self.left: set[int] = set()
        """Indexes of the images of which a look, or the whole, has left."""
        self.kept: set[int] = set()
        """Indexes of the finished images that have left."""
        self._waiting: deque[StreamEvent] = deque()
        self._filled = asyncio.Event()
        self._headed = asyncio.Event()
        self._admitted = asyncio.Event()
        self._ended: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._is_cut = False

    # The drawing's end

    def open(self, head: StreamHead, *, replayed: bool = False) -> None:
        """The task is paid for. What refuses it from here on (a full queue) may still be an error of its own."""
        self.head, self.replayed = head, replayed
        self._put(Begun())
        self._headed.set()

    def admit(self) -> None:
        """Something draws it or has it in its queue: whatever goes wrong now is told in the stream."""
        self._admitted.set()

    def tell(self, event: PartialImage | FinishedImage | FailedImage) -> None:
        """Pass it on, unless it comes too late to make sense: an image ends once, and its looks come in order."""
        if event.index in self._ended:
            return
        if isinstance(event, PartialImage):
            if event.number <= self._numbers.get(event.index, -1):
                return
            self._numbers[event.index] = event.number
        else:
            self._ended.add(event.index)
        self._put(event)
        self._drop_old_looks()

    def finish(self, result: ImageResult) -> None:
        """The task is settled: what has not been told of its images, then the end."""
        self.admit()
        for index, image in enumerate(result.images):
            if isinstance(image, DeliveredImage):
                self.tell(FinishedImage(index, image, result.revised_prompt))
            else:
                self.tell(FailedImage(index, image))
        self._put(Finished(result))

    def cut(self) -> None:
        """Nothing leaves from here on: nobody reads any more, or it is being decided what to charge."""
        self._is_cut = True
        self._waiting.clear()

    def _put(self, event: StreamEvent) -> None:
        if not self._is_cut:
            self._waiting.append(event)
            self._filled.set()

    def _drop_old_looks(self) -> None:
        looks = [event for event in self._waiting if isinstance(event, PartialImage)]
        chars = sum(len(look.b64) for look in looks)
        for look in looks[:-1]:
            if chars <= LOOKS_CHARS_MAX:
                return
            self._waiting.remove(look)
            chars -= len(look.b64)

    # The reader's end

    async def begun(self, patience_s: float) -> StreamHead:
        """Wait until the stream may begin: admitted, or paid for and not refused for `patience_s`."""
        await self._headed.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._admitted.wait()
        assert self.head is not None
        return self.head

    async def filled(self) -> None:
        """Wait until `take` may have something."""
        await self._filled.wait()

    def take(self) -> StreamEvent | None:
        """The next event, which leaves with this; None when there is none yet."""
        if not self._waiting:
            self._filled.clear()
            return None
        event = self._waiting.popleft()
        if isinstance(event, PartialImage | FinishedImage):
            self.left.add(event.index)
        if isinstance(event, FinishedImage):
            self.kept.add(event.index)
        return event
