"""A bound on bytes in memory over all requests, fair between accounts: shares are taken while they fit, and given back. One event loop's.

An account may hold half of what the others leave, so that there is always something left for the next one, however
many fill it up. Its only request may have more: as long as nobody else holds anything, and of what has come in whole.
"""

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
        self._held: dict[str, dict[str, int]] = {}
        """Account → request → bytes."""

    def share(self, account_id: str = "", request_id: str = "") -> Share:
        """An empty share; a context manager that ends with nothing taken. Shares of one request count as one."""
        return Share(self, account_id, request_id)

    def fits(self, account_id: str, request_id: str, count: int, *, whole: bool) -> bool:
        """Whether a request may have `count` bytes more. `whole`: they have come in, and will not be long."""
        if self.taken + count > self.bytes_max:
            return False
        mine = self._held.get(account_id, {})
        own = sum(mine.values())
        others = self.taken - own
        if mine.keys() <= {request_id} and (whole or not others):
            return True
        return own + count <= (self.bytes_max - others) // 2

    def book(self, account_id: str, request_id: str, count: int) -> None:
        """Take `count` bytes; negative ones are given back."""
        mine = self._held.setdefault(account_id, {})
        left = mine.pop(request_id, 0) + count
        if left:
            mine[request_id] = left
        if not mine:
            del self._held[account_id]
        self.taken += count


class Share:
    """What one holder has of a budget."""

    def __init__(self, budget: ByteBudget, account_id: str, request_id: str) -> None:
        self._budget = budget
        self._whose = (account_id, request_id)
        self.bytes_count = 0

    def belongs_to(self, account_id: str, request_id: str) -> None:
        """Whose it is, once that is known; nothing has been taken yet."""
        assert not self.bytes_count
        self._whose = (account_id, request_id)

    def add(self, count: int, *, whole: bool = False) -> None:
        """Take `count` bytes more. Raises Busy where they do not fit; then nothing was taken."""
        self.probe(count, whole=whole)
        self._budget.book(*self._whose, count)
        self.bytes_count += count

    def probe(self, count: int, *, whole: bool = False) -> None:
        """Raises Busy where `count` bytes more would not fit now; takes nothing."""
        if not self._budget.fits(*self._whose, count, whole=whole):
            raise Busy(RETRY_S)

    def moved(self) -> Share:
        """What is taken, as another holder's share from now on; nothing is left here."""
        share = Share(self._budget, *self._whose)
        share.bytes_count, self.bytes_count = self.bytes_count, 0
        return share

    def release(self) -> None:
        """Give all of it back; again does nothing."""
        self._budget.book(*self._whose, -self.bytes_count)
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
