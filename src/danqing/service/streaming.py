"""The events of one streamed answer, from the drawing to whoever sends them. Knows no HTTP, no dialect, no pixels."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

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
IMAGES_CHARS_MAX = 16_000_000
"""The same of finished images; beyond this the next ones are read from the store when their turn comes."""

Load = Callable[[DeliveredImage], Awaitable[DeliveredImage]]
"""An image whose base64 was left aside, with it."""


class Feed:
    """A queue with one reader, both ends in one event loop. Telling never waits.

    It is bounded: an image is told once as finished or failed, partial images give way, and of finished
    ones the base64 does. What has been handed to the reader counts as having left, and is charged.
    """

    def __init__(self, load: Load | None = None) -> None:
        """Without `load` no base64 is left aside."""
        self._load = load
        self.head: StreamHead | None = None
        """Set once the task is paid for (or, in a replay, found)."""
        self.replayed = False
        self.rate: Taken | None = None
        """What is left of the token's rate limit, where it has one."""
        self.extension: str | None = None
        """How the prompt was extended, once that is known."""
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
        if isinstance(event, FinishedImage):
            event = self._slim(event)
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

    def _slim(self, event: FinishedImage) -> FinishedImage:
        """An image without its base64 where enough of that waits."""
        waiting = [one.image.b64 or "" for one in self._waiting if isinstance(one, FinishedImage)]
        chars = len(event.image.b64 or "")
        if self._load is None or not waiting or sum(map(len, waiting)) + chars <= IMAGES_CHARS_MAX:
            return event
        return replace(event, image=replace(event.image, b64=None))

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

    async def prepare(self) -> None:
        """Read what was left aside of the next event. Raises NotFound, Unavailable."""
        event = self._waiting[0] if self._waiting else None
        if not isinstance(event, FinishedImage) or event.image.url or event.image.b64:
            return
        if self._load is None or event.image.blob_key is None:
            return
        image = await self._load(event.image)
        if self._waiting and self._waiting[0] is event:  # else it was cut meanwhile
            self._waiting[0] = replace(event, image=image)

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
