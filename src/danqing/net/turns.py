"""So many at a time, fairly between accounts: whose turn it is, who waits, who is turned away. Knows no HTTP; one event loop's.

A free place goes to the account that holds the fewest (counted by cost), among equals by start-time fair
queueing (Goyal, Vin & Cheng 1996): a virtual clock shows the start of what began last, and an account's next
start lies as far behind its last one as that cost. So nobody gets more for asking more often, or for asking
for what takes long; and who was away is neither owed anything nor made to wait for it.

Laws, tested as properties: never more than `running_max` run or `waiting_max` wait; no place is free while somebody
may have it; while two accounts both wait, neither gets a place while it holds more than the other (by cost);
interactive goes before background, but of every BACKGROUND_EVERY starts one is background's, if there is any.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from danqing.domain.errors import Busy

BACKGROUND_EVERY = 8
RETRY_S_MIN = 1.0


@dataclass(slots=True, eq=False)
class _Waiter:
    account: str
    cost: int
    number: int
    turn: asyncio.Future[None]


@dataclass(slots=True)
class _Lane:
    """Those of one priority that wait, by account; and the virtual clock that says in which order."""

    waiting: dict[str, deque[_Waiter]] = field(default_factory=dict[str, deque[_Waiter]])
    count: int = 0
    clock: int = 0
    next_start: dict[str, int] = field(default_factory=dict[str, int])
    """Of accounts for which that lies in the clock's future."""

    def start_of(self, account: str) -> int:
        return max(self.next_start.get(account, 0), self.clock)

    def began(self, account: str, cost: int) -> None:
        self.clock = self.start_of(account)
        self.next_start[account] = self.clock + cost
        if len(self.next_start) > 2 * len(self.waiting) + 16:
            ahead = ((name, start) for name, start in self.next_start.items() if start > self.clock)
            self.next_start = dict(ahead)

    def add(self, waiter: _Waiter) -> None:
        self.waiting.setdefault(waiter.account, deque()).append(waiter)
        self.count += 1

    def remove(self, waiter: _Waiter) -> None:
        """Take it out, unless somebody has."""
        mine = self.waiting.get(waiter.account, ())
        if waiter not in mine:
            return
        mine.remove(waiter)
        self.count -= 1
        if not mine:
            del self.waiting[waiter.account]

    def longest(self) -> deque[_Waiter]:
        """What the account with the most has waiting. Only where there is any."""
        return max(self.waiting.values(), key=len)


class Turns:
    """At most `running_max` at once, of one account at most `account_max`; at most `waiting_max` wait.

    When nobody more may wait, who comes takes the place of the last one of whoever has the most waiting, if
    that is at least two more than its own: so nobody fills the line for all others.
    """

    def __init__(
        self, running_max: int, waiting_max: int, *, account_max: int | None = None
    ) -> None:
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._account_max = account_max or running_max
        self._lanes = (_Lane(), _Lane())
        self._held: dict[str, list[int]] = {}
        """Account → how many places it holds, and what they cost together."""
        self._running = 0
        self._since_background = 0
        self._numbers = 0
        self._run_s = 0.0
        """How long one takes, lately."""

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return sum(lane.count for lane in self._lanes)

    @asynccontextmanager
    async def take(
        self,
        account: str,
        *,
        cost: int = 1,
        background: bool = False,
        wait_s_max: float | None = None,
        on_wait: Callable[[int, float], None] | None = None,
    ) -> AsyncGenerator[None, None]:
        """Hold a place; `on_wait` gets the position in the line and the seconds it may take.

        Raises Busy where the line is full, where others need the place in it more, and after `wait_s_max`.
        """
        lane = self._lanes[background]
        if self._may_run(account) and self._next() is None:
            self._begin(lane, account, cost)
        else:
            await self._wait(lane, account, cost, wait_s_max, on_wait)
        began = time.monotonic()
        try:
            yield
        finally:
            took_s = time.monotonic() - began
            self._run_s += 0.2 * (took_s - self._run_s) if self._run_s else took_s
            self._end(account, cost)

    async def _wait(
        self,
        lane: _Lane,
        account: str,
        cost: int,
        wait_s_max: float | None,
        on_wait: Callable[[int, float], None] | None,
    ) -> None:
        self._make_room(lane, account)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._numbers += 1
        waiter = _Waiter(account, cost, self._numbers, turn)
        lane.add(waiter)
        if on_wait is not None:
            position = self._position(lane, account)
            on_wait(position, self._eta_s(position))
        try:
            async with asyncio.timeout(wait_s_max):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            lane.remove(waiter)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._end(account, cost)  # the place came at the same moment
            if isinstance(error, TimeoutError):
                raise self._busy(lane, account) from None
            raise

    def _make_room(self, lane: _Lane, account: str) -> None:
        """Raises Busy where nobody gives way."""
        if self.waiting < self._waiting_max:
            return
        own = len(lane.waiting.get(account, ()))
        background = self._lanes[1]
        if lane is not background and background.count:
            line, last = background, background.longest()[-1]
        elif lane.count and len(lane.longest()) >= own + 2:
            line, last = lane, lane.longest()[-1]
        else:
            raise self._busy(lane, account)
        line.remove(last)
        if not last.turn.done():  # else it is just leaving by itself
            last.turn.set_exception(self._busy(line, last.account))

    def _next(self) -> tuple[_Lane, _Waiter] | None:
        """Who gets the next place; None where nobody may."""
        if self._running >= self._running_max:
            return None
        for lane in self._in_turn():
            heads = [line[0] for name, line in lane.waiting.items() if self._may_run(name)]
            if heads:
                return lane, min(heads, key=lambda head: self._rank(lane, head))
        return None

    def _in_turn(self) -> Iterator[_Lane]:
        due = self._since_background >= BACKGROUND_EVERY - 1
        yield from reversed(self._lanes) if due else self._lanes

    def _rank(self, lane: _Lane, head: _Waiter) -> tuple[int, int, int]:
        held = self._held.get(head.account, (0, 0))
        return held[1], lane.start_of(head.account), head.number

    def _may_run(self, account: str) -> bool:
        held = self._held.get(account, (0, 0))
        return self._running < self._running_max and held[0] < self._account_max

    def _begin(self, lane: _Lane, account: str, cost: int) -> None:
        held = self._held.setdefault(account, [0, 0])
        held[0] += 1
        held[1] += cost
        self._running += 1
        self._since_background = 0 if lane is self._lanes[1] else self._since_background + 1
        lane.began(account, cost)

    def _end(self, account: str, cost: int) -> None:
        held = self._held[account]
        held[0] -= 1
        held[1] -= cost
        if not held[0]:
            del self._held[account]
        self._running -= 1
        while (following := self._next()) is not None:
            lane, waiter = following
            lane.remove(waiter)
            if not waiter.turn.done():  # else it is just leaving
                self._begin(lane, waiter.account, waiter.cost)
                waiter.turn.set_result(None)

    def _position(self, lane: _Lane, account: str) -> int:
        """About how many go before an account's last one, itself counted: of every account as many as of its own."""
        own = len(lane.waiting.get(account, ()))
        ahead = sum(min(own, len(line)) for line in lane.waiting.values())
        return ahead + (self._lanes[0].count if lane is self._lanes[1] else 0)

    def _eta_s(self, position: int) -> float:
        return self._run_s * (1 + (position - 1) // self._running_max)

    def _busy(self, lane: _Lane, account: str) -> Busy:
        return Busy(max(RETRY_S_MIN, self._eta_s(self._position(lane, account) + 1)))
