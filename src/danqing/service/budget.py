"""A bound on bytes in memory over all requests: shares are taken while they fit, and given back. One event loop's."""

from __future__ import annotations

from types import TracebackType

from danqing.domain.errors import Busy

RETRY_S = 2.0
"""Uploads end within seconds; nobody knows when exactly."""


class ByteBudget:
    """At most `bytes_max` bytes, given out to shares."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.taken = 0

    def share(self) -> Share:
        """An empty share; a context manager that ends with nothing taken."""
        return Share(self)


class Share:
    """What one holder has of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes_count = 0

    def add(self, count: int) -> None:
        """Take `count` bytes more. Raises Busy where they do not fit; then nothing was taken."""
        self.probe(count)
        self._budget.taken += count
        self.bytes_count += count

    def probe(self, count: int) -> None:
        """Raises Busy where `count` bytes more would not fit now; takes nothing."""
        if self._budget.taken + count > self._budget.bytes_max:
            raise Busy(RETRY_S)

    def moved(self) -> Share:
        """What is taken, as another holder's share from now on; nothing is left here."""
        share = Share(self._budget)
        share.bytes_count, self.bytes_count = self.bytes_count, 0
        return share

    def release(self) -> None:
        """Give all of it back; again does nothing."""
        self._budget.taken -= self.bytes_count
        self.bytes_count = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
