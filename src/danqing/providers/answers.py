"""The memory that providers' answers take, over all relays: who would take too much waits. Knows bytes; nothing of any dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from danqing.dialects.client import Incoming

ANSWERS_BYTES_MAX = 512 * 2**20
"""Of answers and fetched images, until they are decoded."""
LARGE_BYTES = 2**18
"""From here on an answer is read in a thread: 16 MB of base64 took 0.15 s on a busy machine. A smaller one (links, an error) never waits."""
HUGE_BYTES = 16 * 2**20
"""From here on answers are read one after the other: each is in memory three times then."""

T = TypeVar("T")


def received(status: int, headers: Mapping[str, str], body: bytes, secret: str | None) -> Incoming:
    """A provider's answer to a request with the key `secret`, which neither its headers nor what is read of it quote."""
    answer = Incoming(status, body, secret=secret)
    plain = {name: answer.plain(value) for name, value in headers.items()}
    return replace(answer, headers=plain)


class Answers:
    """At most `bytes_max` bytes, and what its oldest holder takes beyond them.

    An answer has been paid for, so nobody is refused: who has no room stops reading, and the provider
    has to wait. The oldest holder never waits, so that it comes to an end, and the next one after it.
    """

    def __init__(self, bytes_max: int = ANSWERS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._holders: dict[Held, None] = {}
        self._changed = asyncio.Event()
        self.taken = 0
        self._reading = asyncio.Lock()

    def hold(self) -> Held:
        """Nothing yet; a context manager that ends with nothing held."""
        return Held(self)

    async def read(self, read: Callable[..., T], answer: Incoming, *rest: object) -> T:
        """What `read` makes of an answer. A large one (images in base64) takes a while: not on the event loop."""
        if len(answer.body) < LARGE_BYTES:
            return read(answer, *rest)
        async with self._reading if len(answer.body) > HUGE_BYTES else nullcontext():
            return await asyncio.to_thread(read, answer, *rest)

    async def take(self, holder: Held, count: int) -> None:
        self._holders.setdefault(holder)
        while self.taken + count > self._bytes_max and next(iter(self._holders)) is not holder:
            self._changed.clear()
            await self._changed.wait()
        self.taken += count

    def give_back(self, holder: Held, count: int) -> None:
        self.taken -= count
        if not holder.bytes_count:
            self._holders.pop(holder, None)
        self._changed.set()


class Held:
    """What one request holds: its answer, then its images until each is decoded."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._skipped = 0
        self.bytes_count = 0

    def hear(self, count: int) -> Awaitable[None] | None:
        """`came`, as a connection tells it: None where nothing is to be waited for, as with every small answer."""
        if self._skipped + count <= LARGE_BYTES:
            self._skipped += count
            return None
        return self.came(count)

    async def came(self, count: int) -> None:
        """Bytes of an answer have come in; waits until there is room for them."""
        if self._skipped + count <= LARGE_BYTES:
            self._skipped += count
            return
        await self._answers.take(self, count)
        self.bytes_count += count

    def keep(self, count: int) -> None:
        """Hold no more than `count` bytes from here on."""
        over = self.bytes_count - count
        if over > 0:
            self.bytes_count -= over
            self._answers.give_back(self, over)

    def drop(self, count: int) -> None:
        """Hold `count` bytes less."""
        self.keep(max(0, self.bytes_count - count))

    def begin(self) -> None:
        """The next answer takes the place of the last one."""
        self._skipped = 0
        self.keep(0)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bytes_count, count = 0, self.bytes_count
        self._answers.give_back(self, count)
