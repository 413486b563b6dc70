"""A make-believe device for tests of the scheduler, and worlds of accounts, keys and prices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from random import Random
from typing import Any

from hypothesis import strategies as st

from danqing.engine.messages import Job
from danqing.engine.pace import STEP_S_DEFAULT
from danqing.engine.scheduler import Scheduler
from tests.engine.null_family import make_job

Cost = Callable[[Hashable, int], float]


def key_of(job: Job) -> Hashable:
    return job.width


class Device:
    """A make-believe device that does what the scheduler picks; `cost` says how long a step takes.

    With `decode_s` it decodes as well, an image after a step at most; without, images are there at once.
    """

    def __init__(
        self, cost: Cost | None = None, *, decode_s: float | None = None, **limits: int
    ) -> None:
        self.scheduler = Scheduler(**({"queue_max": 256, "live_max": 16, "batch_max": 8} | limits))
        self.cost = cost or (lambda key, size: 0.1 * size)
        self.decode_s = decode_s
        self.jobs: dict[str, Job] = {}
        self.steps: dict[str, int] = {}
        self.now_s = 0.0
        self.lane_s = {"interactive": 0.0, "background": 0.0}
        self.served_s: dict[str, float] = defaultdict(float)
        self.stepped_s: dict[str, float] = {}
        """When the last step of a job was done, and below when its image was there."""
        self.ended_s: dict[str, float] = {}
        self.longest_s = STEP_S_DEFAULT
        self.number = 0

    def admit(self, *jobs: Job) -> None:
        self.scheduler.admit(jobs, [key_of(job) for job in jobs])
        for job in jobs:
            self.jobs[job.id] = job
            self.steps[job.id] = 0

    def add(self, account: str = "a", n: int = 1, **changes: Any) -> list[str]:
        """Admit n jobs of an account as one task; their ids."""
        ids = [f"{account}-{self.number + i}" for i in range(n)]
        self.number += n
        self.admit(*(make_job(job_id, account_id=account, **changes) for job_id in ids))
        return ids

    def beat(self) -> list[str]:
        """One pick, step and update, and the decoding of an image; the ids of the batch."""
        picked = self.scheduler.pick()
        if picked:
            self.step(picked)
        self.decode()
        return picked

    def step(self, picked: list[str]) -> None:
        batch = [self.jobs[job_id] for job_id in picked]
        assert len(set(picked)) == len(picked)
        assert len({key_of(job) for job in batch}) == 1
        assert self.scheduler.live <= self.scheduler.live_max
        seconds = self.cost(key_of(batch[0]), len(batch))
        self.longest_s = max(self.longest_s, seconds)
        self.now_s += seconds
        self.lane_s[batch[0].priority] += seconds
        for job in batch:
            self.steps[job.id] += 1
            self.served_s[job.account_id] += seconds / len(batch)
        for job_id in self.scheduler.update({job: self.steps[job] for job in picked}, seconds):
            assert self.steps[job_id] == self.jobs[job_id].steps
            self.stepped_s[job_id] = self.now_s
            if self.decode_s is None:
                self.end(job_id)

    def decode(self) -> None:
        """The image whose turn it is, if there is one."""
        job_id = None if self.decode_s is None else self.scheduler.pick_decoding()
        if job_id is None:
            return
        seconds = self.decode_s or 0.0
        self.now_s += seconds
        self.served_s[self.jobs[job_id].account_id] += seconds
        self.scheduler.decoded(self.jobs[job_id], seconds)
        self.end(job_id)

    def end(self, job_id: str) -> None:
        self.scheduler.remove(job_id)
        self.ended_s[job_id] = self.now_s

    def run(self) -> None:
        while self.beat() or self.scheduler.undecoded:
            pass


def assert_empty(scheduler: Scheduler) -> None:
    assert (len(scheduler), scheduler.live, scheduler.pick()) == (0, 0, [])
    assert scheduler._entries == {}
    for lane in (scheduler._interactive, scheduler._background):
        assert (lane.accounts, lane.ring.deficit_s, lane.live) == ({}, {}, 0)


worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "accounts": st.integers(1, 4),
        "keys": st.integers(1, 3),
        "batch_max": st.sampled_from([1, 2, 3, 8]),
        "live_max": st.sampled_from([1, 2, 3, 8, 16]),
        "queue_max": st.sampled_from([8, 16, 24]),
        "steps": st.sampled_from([6, 30]),
    }
)


def random_cost(random: Random, keys: int) -> Cost:
    """Each key its own price; batching may pay off, change nothing, or cost more."""
    one = [random.choice([0.01, 0.05, 0.1, 1.0]) for _ in range(keys)]
    more = [random.uniform(0.0, 1.2) for _ in range(keys)]
    return lambda key, size: (
        one[int(str(key)) % keys] * (1 + (size - 1) * more[int(str(key)) % keys])
    )
