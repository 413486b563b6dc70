"""One answer that a provider streams: looks at an image on the way, then the image. Knows a client side; no connection, no pixels."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from danqing.dialects.client import ClientDialect, ProviderImage, ProviderLook, ProviderResult
from danqing.domain.errors import Busy, DanqingError, ProviderFailed, Unavailable
from danqing.net.events import EventReader, ReceivedEvent
from danqing.providers.answers import Answers, Held, received

EVENTS_MAX = 1000
"""Of a stream; OpenAI has a handful."""
LINES_MAX = 50_000
"""Of a stream: a sign of life ten times a second is two lines each, and base64 is on one line."""
FAREWELL_S = 1.0
"""When all that counts has come, the end of a stream is waited for so long, whatever comes meanwhile, so that its
connection can serve again."""

Look = Callable[[int, ProviderImage], Awaitable[None]]
"""Is shown a look, and its number from 0."""


class Streamed:
    """A net.outbound.Listener. `result` is there once the exchange is over."""

    def __init__(
        self,
        client: ClientDialect,
        answers: Answers,
        held: Held,
        look: Look,
        *,
        secret: str | None,
        looks_max: int,
        event_bytes_max: int,
        idle_s: float,
    ) -> None:
        self._client = client
        self._answers = answers
        self._held = held
        self._look = look
        self._looks = 0
        self._looks_max = looks_max
        self._secret = secret
        self._idle_s = idle_s
        self._over_at = 0.0
        """By time.monotonic(), once it is over."""
        self._events = EventReader(
            event_bytes_max=event_bytes_max, events_max=EVENTS_MAX, lines_max=LINES_MAX
        )
        self._result: ProviderResult | None = None
        self._error: DanqingError | None = None
        self.headers: Mapping[str, str] = {}
        self.begun = False
        """The provider does stream; else its answer is one like any other."""
        self.refusal = b""
        """The data of an error that came before anything was shown: as good as an error answer."""

    @property
    def is_over(self) -> bool:
        """What follows does not count."""
        return self._result is not None or self._error is not None

    @property
    def idle_s(self) -> float:
        """Once it is over, what is left of FAREWELL_S."""
        return self._over_at + FAREWELL_S - time.monotonic() if self.is_over else self._idle_s

    def begins(self, status: int, headers: Mapping[str, str]) -> bool:
        kind = headers.get("content-type", "").lower()
        self.begun = status == 200 and kind.startswith("text/event-stream")
        self.headers = headers
        return self.begun

    async def take(self, piece: bytes) -> None:
        """Raises OutboundTooLarge."""
        if self.is_over:
            return
        await self._held.came(len(piece))
        for event in self._events.feed(piece):
            if not self.is_over:
                await self._hear(event)
        if self.is_over:
            self._over_at = time.monotonic()
        images = () if self._result is None else self._result.images
        kept = sum(len(one.data or b"") for one in images if isinstance(one, ProviderImage))
        self._held.keep(kept + self._events.waiting_bytes)

    def result(self) -> ProviderResult:
        """Raises the error that the stream ended with, ProviderFailed."""
        if self._result is not None:
            return self._result
        if self._error is None:
            raise ProviderFailed("The provider's stream ended without an image.")
        if isinstance(
            self._error, Busy | Unavailable
        ):  # "nothing was drawn" it cannot mean any more
            raise ProviderFailed("The provider of this model gave up on the image.")
        raise self._error

    async def _hear(self, event: ReceivedEvent) -> None:
        said = received(200, self.headers, event.data, self._secret)
        try:
            heard = await self._answers.read(self._client.decode_event, said, event.name)
        except DanqingError as error:
            self._error = error
            if not self._looks:
                self.refusal = event.data
            return
        if isinstance(heard, ProviderResult):
            self._result = heard
        elif isinstance(heard, ProviderLook) and self._looks < self._looks_max:
            self._looks += 1
            await self._look(self._looks - 1, heard.image)
