"""The scheduler's law of fairness, every term of it: turns, bursts of who was away, waits for company in a long queue, seats."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.pace import TRIALS
from tests.engine.device import Device, random_cost, worlds

LATE = {"seed": 24, "accounts": 4, "keys": 2, "batch_max": 2}
LONE = {"seed": 12, "accounts": 1, "keys": 1, "batch_max": 8}
DEEP = {"seed": 11, "accounts": 4, "keys": 3, "batch_max": 8}


class Fairness:
    """Accounts of one lane that come and go: by how much one gets ahead of another while both have work.

    `deep`: the queue is long, and known steps are cheaper in company, so that jobs wait for it.
    `alone`: every other account has one job at a time. With `decode_s` every other one has far fewer images decoded.
    """

    def __init__(
        self,
        world: dict[str, int],
        *,
        shared: bool,
        away: bool,
        deep: bool,
        alone: bool = False,
        decode_s: float | None = None,
    ) -> None:
        self.random = Random(world["seed"])
        self.keys, self.shared, self.away = world["keys"], shared, away
        self.names = [f"account{i}" for i in range(world["accounts"] + 1)]
        cost = random_cost(self.random, self.keys)
        batch_max = 8 if deep else world["batch_max"]
        self.device = Device(cost, decode_s=decode_s, live_max=128, batch_max=batch_max)
        self.jobs, self.steps_max = (20, 100) if deep else (3, 6)
        self.line_s = 2 * self.jobs * (decode_s or 0.0)
        """Of decoding all that two accounts may have finished."""
        self.alone = deep or alone
        self.pair_s: dict[tuple[str, str], list[float]] = {}
        """(one, other) -> how far one is ahead, and the least since both had work: plainly, then with both terms taken off."""
        self.waited_s: dict[str, float] = defaultdict(float)
        """Time in which an account waited for company with all that it has, and a turn each time that it began to."""
        self.waiting: set[str] = set()
        self.seats_s: dict[tuple[str, str], float] = defaultdict(float)
        """(one, other) -> what one had more of batches in which all of the other's jobs were: it could take no more."""
        self.ahead, self.owed = 0.0, 0.0
        """The most, in C: plainly, and with all that the law excepts taken off."""
        self.burst_s: dict[str, float] = defaultdict(float)
        """Time that an account was given in bursts."""
        scheduler = self.device.scheduler
        if deep:
            for key in range(self.keys * (1 if shared else len(self.names))):
                for size in (1, 2, 4, 8) * TRIALS:
                    scheduler.pace.learn(key, size, cost(key, size))
                    self.device.longest_s = max(self.device.longest_s, cost(key, size))

    def refill(self) -> None:
        queue = self.device.scheduler._entries.values()
        for place, name in enumerate(self.names):
            mine = sum(entry.job.account_id == name for entry in queue)
            if self.away and mine == 0 and self.pair_s and self.random.random() < 0.9:
                self.pair_s = {pair: s for pair, s in self.pair_s.items() if name not in pair}
                continue
            whole = not self.away or mine == 0 or place == 0  # others do what they brought, and go
            wanted = 1 if self.alone and place % 2 else self.jobs
            for _ in range(wanted - mine if whole else 0):
                # keys of different accounts are equal or never are
                width = self.random.randrange(self.keys) + (0 if self.shared else self.keys * place)
                most = self.steps_max * (10 if self.line_s and place % 2 == 0 else 1)
                self.device.add(name, steps=self.random.randint(1, most), width=width)

    def beat(self) -> None:
        scheduler, device = self.device.scheduler, self.device
        lane = scheduler._interactive
        mine: dict[str, set[str]] = defaultdict(set)
        for entry in scheduler._entries.values():
            if entry.left:
                mine[entry.job.account_id].add(entry.job.id)
        there = mine.keys()
        before_s, had_s = device.now_s, defaultdict(float, device.served_s)
        batch = set(scheduler.pick())
        bursting, waiting = set(map(str, lane.ring._bursting)), there - lane.ready.keys()
        if batch:
            device.step(list(batch))
        stepped_s = dict(device.served_s)
        device.decode()
        for name in bursting & there:
            self.burst_s[name] += device.served_s[name] - had_s[name]
        for name in waiting:
            turns = 0 if name in self.waiting else 1
            self.waited_s[name] += device.now_s - before_s + turns * device.longest_s
        self.waiting = waiting
        self.pair_s = {pair: s for pair, s in self.pair_s.items() if there >= set(pair)}
        served_s = self.device.served_s
        for one in there:
            for other in there - {one}:
                gap_s = served_s[one] - served_s[other]
                if mine[other] <= batch:
                    more_s = stepped_s[one] - had_s[one] - (stepped_s[other] - had_s[other])
                    self.seats_s[one, other] += max(0.0, more_s)
                excused_s = self.waited_s[other] + self.seats_s[one, other] + self.burst_s[one]
                now_s = [gap_s, gap_s - excused_s]
                least_s = self.pair_s.setdefault((one, other), list(now_s))
                self.pair_s[one, other] = least_s = list(map(min, least_s, now_s))
                plain, owed = (now - least for now, least in zip(now_s, least_s, strict=True))
                self.ahead = max(self.ahead, plain / self.device.longest_s)
                self.owed = max(self.owed, (owed - self.line_s) / self.device.longest_s)

    def run(self, beats: int) -> None:
        for _ in range(beats):
            self.refill()
            self.beat()


@settings(max_examples=25, deadline=None)
@given(worlds, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, 0.1, 2.0]))
def test_law_accounts_with_work_get_the_same_time(
    world: dict[str, int], shared: bool, away: bool, alone: bool, decode_s: float | None
) -> None:
    fairness = Fairness(
        world,
        shared=shared,
        away=away,
        deep=False,
        alone=alone,
        decode_s=None if shared else decode_s,
    )
    fairness.run(200)
    assert fairness.owed <= (5 if shared else 4) + 1e-6


@settings(max_examples=15, deadline=None)
@given(worlds, st.booleans())
def test_law_only_company_puts_one_further_ahead(world: dict[str, int], away: bool) -> None:
    fairness = Fairness(world, shared=False, away=away, deep=True)
    fairness.run(120)
    assert fairness.owed <= 4 + 1e-6


def test_every_term_of_the_fairness_law_is_needed() -> None:
    """Each does happen in the worlds above, and puts one account further ahead than turns alone."""
    late = Fairness(LATE, shared=False, away=True, deep=False)
    deep = Fairness(DEEP, shared=False, away=False, deep=True)
    lone = Fairness(LONE, shared=True, away=False, deep=False, alone=True)
    for fairness in (late, deep, lone):
        fairness.run(200)
        assert fairness.owed <= 4 < fairness.ahead
    assert sum(late.burst_s.values()) > 0 == sum(late.waited_s.values())
    assert sum(deep.waited_s.values()) > 0
    assert sum(lone.burst_s.values()) == 0 < sum(lone.seats_s.values())
