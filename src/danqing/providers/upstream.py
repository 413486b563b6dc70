"""The state of one provider as we see it: its keys and its health. Makes no request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from danqing.domain.errors import Busy, DanqingError, ProviderFailed, Unavailable
from danqing.observability.logging import get_logger

log = get_logger(__name__)

KEY_OFF_S = 3600.0
"""A key that the provider does not know (401) rests this long; a restart tries it at once."""
KEY_POOR_S = 60.0
"""A key whose money is used up, or that may not do this, rests this long."""
RATE_LIMITED = "rate_limited"
"""Why a key rests that the provider takes (429)."""
FAILURES_MAX = 5
"""After as many failures in a row the provider is left alone for a while."""
OPEN_S = 10.0
OPEN_S_MAX = 120.0

Clock = Callable[[], float]


class Untaken(Exception):
    """The provider took nothing and can have charged nothing: another backend may be asked. Never leaves this floor."""

    def __init__(self, error: DanqingError) -> None:
        super().__init__(error.message)
        self.error = error


KEY_CHARS_MIN = 8
"""A shorter key is no secret, and may stand anywhere."""


@dataclass(slots=True)
class Key:
    """One key; `text` None asks without any. `number` is how the log calls it."""

    number: int
    text: str | None
    weight: int
    free_at: float = 0.0
    is_limited: bool = False
    """What it rests for is a limit of the provider's, which goes by; no refusal of the key."""
    current: float = 0.0
    """Of the smooth weighted round robin."""

    @property
    def secret(self) -> str | None:
        """What nobody is to be told."""
        return self.text if self.text is not None and len(self.text) >= KEY_CHARS_MIN else None


class KeyRing:
    """Keys in turn by weight; a key that is used up or refused rests."""

    def __init__(
        self, backend: str, keys: Sequence[tuple[str, int]], clock: Clock = time.monotonic
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._keys = [Key(number, text, weight) for number, (text, weight) in enumerate(keys, 1)]
        if not self._keys:
            self._keys = [Key(0, None, 1)]

    def take(self, tried: Sequence[Key] = ()) -> Key | None:
        """The next key that works and is not among `tried`; None where there is none."""
        now = self._clock()
        free = [key for key in self._keys if key.free_at <= now and key not in tried]
        if not free:
            return None
        for key in free:
            key.current += key.weight
        best = max(free, key=lambda key: key.current)
        best.current -= sum(key.weight for key in free)
        return best

    def rest(self, key: Key, seconds: float, why: str) -> None:
        """Leave a key alone for a while."""
        free_at = self._clock() + seconds
        if free_at >= key.free_at:
            key.free_at, key.is_limited = free_at, why == RATE_LIMITED
        log.warning(
            "provider_key_rests",
            backend=self._backend,
            number=key.number,
            seconds=round(seconds, 1),
            why=why,
        )

    def busy_s(self) -> float | None:
        """Seconds until the first key works again; None where each is refused for longer than some minutes."""
        now = self._clock()
        waits = [
            max(0.0, key.free_at - now)
            for key in self._keys
            if key.is_limited or key.free_at - now <= 10 * KEY_POOR_S
        ]
        return min(waits, default=None)

    @property
    def total(self) -> int:
        return sum(key.text is not None for key in self._keys)

    @property
    def usable(self) -> int:
        now = self._clock()
        return sum(key.text is not None and key.free_at <= now for key in self._keys)


class Breaker:
    """Leaves a provider alone that keeps failing; then one request at a time tries whether it is back."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._open_s = OPEN_S
        self._open_until = 0.0
        self._probing = False

    def admit(self) -> None:
        """Raises Untaken while the provider is left alone."""
        if self._failures < FAILURES_MAX:
            return
        if self._probing or self._clock() < self._open_until:
            raise Untaken(
                Unavailable("The provider of this model keeps failing. Please retry later.")
            )
        self._probing = True

    def worked(self) -> None:
        """It answered sensibly, be it with a refusal."""
        self._failures = 0
        self._open_s = OPEN_S
        self._probing = False

    def failed(self) -> None:
        self._failures += 1
        self._probing = False
        if self._failures >= FAILURES_MAX:
            self._open_until = self._clock() + self._open_s
            self._open_s = min(self._open_s * 2, OPEN_S_MAX)

    def left(self) -> None:
        """A request ended without a verdict: it was cancelled."""
        self._probing = False

    @property
    def state(self) -> str:
        if self._failures < FAILURES_MAX:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"


def no_key(ring: KeyRing) -> Untaken:
    """What a request gets while no key works: Busy where one is back within minutes, or is merely limited."""
    wait_s = ring.busy_s()
    if wait_s is None:
        return Untaken(ProviderFailed("The provider does not let this server in."))
    return Untaken(Busy(max(1.0, wait_s)))
