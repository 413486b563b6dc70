"""Whose turn it is: deficit round-robin with bursts. Knows names and seconds; no job, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from math import inf

BURST_STEPS = 16
"""Of the longest kind: what an account that was away may take at once, of the time that would have been its share."""
SEEN_MAX = 1024
"""Accounts of which it is remembered when they were last there."""


class Ring:
    """Deficit round-robin over names: the head keeps its turn while it is owed something.

    Debts outlive a name's absence, so that leaving and coming back pays nothing; credit does not. With `burst_steps`
    who comes back may take at once, so many turns at most, what its share would have been meanwhile, if that is all
    it needs: who asks for a short thing now and then is not slowed by who keeps asking, and over time takes no
    more than its share.
    """

    def __init__(self, burst_steps: int = 0) -> None:
        self.deficit_s: dict[Hashable, float] = {}
        self._burst_steps = burst_steps
        self._share_s = 0.0
        """What one more name would have had so far."""
        self._names = 0
        self._bursting: set[Hashable] = set()
        """Names that have not used up their bursts."""
        self._ahead_s = 0.0
        """What bursts may still take before the ring's order: a third of the time at most goes to them so."""
        self._ahead_max_s = 0.0
        self._seen_s: OrderedDict[Hashable, float] = OrderedDict()
        """`_share_s` when a name was last there."""

    def turn(
        self,
        ready: Collection[Hashable],
        quantum_s: float,
        work_s: Callable[[Hashable], tuple[float, float]] = lambda name: (0.0, 0.0),
        held: Collection[Hashable] = (),
    ) -> Hashable:
        """Whose turn it is among `ready` (not empty): who has a burst, and of those who is done the soonest.

        `work_s` tells the seconds of a name's steps, and of what follows them.
        Who is `held` and not ready keeps place and credit: back in a moment.
        """
        hurried = self.hurried(ready, quantum_s, work_s)
        if hurried:
            return min(hurried, key=work_s)
        self._skip_rounds(ready, quantum_s, held)
        while True:
            name = next(each for each in self.deficit_s if each in ready or each not in held)
            deficit_s = self.deficit_s[name]
            if name in ready and deficit_s > 0:
                return name
            del self.deficit_s[name]
            self._bursting.discard(name)
            if name in ready or deficit_s < 0:
                self.deficit_s[name] = min(deficit_s + quantum_s, quantum_s)

    def _skip_rounds(
        self, ready: Collection[Hashable], quantum_s: float, held: Collection[Hashable]
    ) -> None:
        """At once the whole rounds in which none of `ready` is owed anything yet: of a long decoding there may be millions."""
        rounds = int(-max(self.deficit_s[name] for name in ready) / quantum_s)
        if rounds < 1:
            return
        for name, deficit_s in list(self.deficit_s.items()):
            deficit_s += rounds * quantum_s
            if name in ready or (name not in held and deficit_s < 0):
                self.deficit_s[name] = deficit_s
            elif name not in held:
                del self.deficit_s[name]
                self._bursting.discard(name)

    def hurried(
        self,
        ready: Collection[Hashable],
        quantum_s: float,
        work_s: Callable[[Hashable], tuple[float, float]],
    ) -> list[Hashable]:
        """Who goes before the ring's order: those who have a burst, if there is time for bursts. Newcomers join at the tail."""
        self._names = len(ready)
        for name in ready:
            if name not in self.deficit_s:
                burst_s = self._burst_s(name, quantum_s, work_s)
                self.deficit_s[name] = quantum_s + burst_s
                if burst_s > 0:
                    self._bursting.add(name)
            if self._burst_steps:
                self._seen_s[name] = self._share_s
                self._seen_s.move_to_end(name)
        while len(self._seen_s) > SEEN_MAX:
            self._seen_s.popitem(last=False)
        self._ahead_max_s = self._burst_steps * quantum_s
        if self._ahead_s <= 0:
            return []
        return [name for name in ready if name in self._bursting]

    def charge(self, name: Hashable, seconds: float, floor_s: float = -inf) -> None:
        """`name` was given seconds; no debt is made larger by it than down to `floor_s`."""
        deficit_s = self.deficit_s.get(name, 0.0)
        self.deficit_s[name] = max(deficit_s - seconds, min(deficit_s, floor_s))
        spent_s = seconds if name in self._bursting else -seconds / 2
        self._ahead_s = min(self._ahead_s - spent_s, self._ahead_max_s)
        if self.deficit_s[name] <= 0:
            self._bursting.discard(name)
        self._share_s += seconds / (self._names + 1)

    def is_bursting(self, name: Hashable) -> bool:
        return name in self._bursting

    def _burst_s(
        self,
        name: Hashable,
        quantum_s: float,
        work_s: Callable[[Hashable], tuple[float, float]],
    ) -> float:
        """What it may take at once: all that it needs, or nothing. Only its steps hold others up for long, and are to be few."""
        away_s = self._share_s - self._seen_s.get(name, 0.0)
        if not self._burst_steps or away_s <= 0:
            return 0.0
        steps_s, ending_s = work_s(name)
        burst_s = self._burst_steps * quantum_s
        is_short = steps_s <= burst_s and steps_s + ending_s <= away_s
        return min(burst_s + ending_s, away_s) if is_short else 0.0
