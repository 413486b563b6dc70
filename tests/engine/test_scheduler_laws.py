"""The scheduler's laws, by simulation: no tensor, no thread, no clock. Fairness has a file of its own."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from danqing.domain.errors import Busy
from danqing.engine.messages import Job
from danqing.engine.ring import BURST_STEPS
from tests.engine.device import Device, assert_empty, key_of, random_cost, worlds

STARVED = {"seed": 808, "accounts": 1, "keys": 1, "batch_max": 3, "live_max": 8, "queue_max": 24}
"""An account's oldest job did, while two of its shorter ones shared each batch."""


@settings(max_examples=40, deadline=None)
@given(worlds)
def test_law_queue_bounded_and_every_job_takes_exactly_its_steps(world: dict[str, int]) -> None:
    random = Random(world["seed"])
    limits = {name: world[name] for name in ("queue_max", "live_max", "batch_max")}
    device = Device(random_cost(random, world["keys"]), **limits)
    cancelled: set[str] = set()
    for _ in range(150):
        action = random.random()
        if action < 0.4:
            try:
                device.add(
                    f"account{random.randrange(world['accounts'])}",
                    random.randint(1, 4),
                    steps=random.randint(1, 6),
                    width=random.randrange(world["keys"]),
                    priority=random.choice(["interactive", "background"]),
                )
            except Busy:
                assert len(device.scheduler) + 4 > world["queue_max"]
        elif action < 0.5 and device.jobs:
            job_id = random.choice(sorted(device.jobs))
            device.scheduler.remove(job_id)
            cancelled |= {job_id} - device.ended_s.keys()
        else:
            device.beat()
        assert len(device.scheduler) <= world["queue_max"]
        assert device.scheduler.forecast().keys() == device.scheduler._entries.keys()
    device.run()
    assert device.ended_s.keys() | cancelled == device.jobs.keys()
    assert_empty(device.scheduler)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 20), st.integers(0, 60))
def test_law_who_comes_and_goes_gets_no_more_than_a_share(
    random: Random, steps_max: int, pause_max: int
) -> None:
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    device.add("steady", steps=100_000)
    for _ in range(40):
        for _ in range(random.randint(0, pause_max)):
            device.beat()
        device.add("guest", n=random.randint(1, 2), steps=random.randint(1, steps_max))
        while any(job_id.startswith("guest") for job_id in device.scheduler._entries):
            device.beat()
    assert device.served_s["guest"] <= device.now_s / 2 + (BURST_STEPS + 4) * 0.1


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_law_no_job_starves_beside_ever_new_accounts(random: Random, at_once: int) -> None:
    """Each new account comes with a short job, and finds a burst."""
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    (old,) = device.add("old", steps=20)
    number = 0
    while old not in device.ended_s:
        while len(device.scheduler) <= at_once:
            number += 1
            device.add(f"new{number}", steps=random.randint(1, BURST_STEPS))
        device.beat()
        assert device.now_s <= 6 * (at_once + 1) * 20 * 0.1 + 20 * at_once * BURST_STEPS * 0.1


@settings(max_examples=40, deadline=None)
@given(worlds, st.sampled_from([0.0, 0.3]))
@example(STARVED | {"steps": 30}, 0.3)
def test_law_no_job_starves_whatever_keeps_coming(world: dict[str, int], night: float) -> None:
    """The queue is refilled to the brim before every step; each job must keep the stated bound."""
    random = Random(world["seed"])
    limits = {name: world[name] for name in ("queue_max", "live_max", "batch_max")}
    device = Device(random_cost(random, world["keys"]), **limits)
    greed = random.random()
    bounds: dict[str, tuple[float, float]] = {}
    started: set[str] = set()

    def flow(job: Job) -> tuple[str, str, Hashable]:
        return job.priority, job.account_id, key_of(job)

    def left(job_id: str) -> int:
        return device.jobs[job_id].steps - device.steps[job_id]

    def keep_bound(job_id: str, steps: int) -> None:
        """From now on the job must end within the law's time of its lane."""
        limit = world["accounts"] * (6 * world["keys"] * steps + BURST_STEPS)
        bounds[job_id] = (device.lane_s[device.jobs[job_id].priority], limit)

    for _ in range(200):
        while len(device.scheduler) < world["queue_max"]:
            number = random.randrange(world["accounts"]) if random.random() > greed else 0
            (job_id,) = device.add(
                f"account{number}",
                steps=random.randint(1, world["steps"]),
                width=random.randrange(world["keys"]),
                priority="background" if random.random() < night else "interactive",
            )
            keep_bound(job_id, sum(map(left, device.scheduler._entries)))
        queue = [device.jobs[job_id] for job_id in device.scheduler._entries]
        before = {
            job.id: sum(left(o.id) for o in queue[: place + 1] if flow(o) == flow(job))
            for place, job in enumerate(queue)
        }
        lanes_s = dict(device.lane_s)
        for job_id in set(device.beat()) - started:
            started.add(job_id)
            keep_bound(job_id, before[job_id])
            bounds[job_id] = (lanes_s[device.jobs[job_id].priority], bounds[job_id][1])
        for job_id, (from_s, limit) in list(bounds.items()):
            passed_s = device.lane_s[device.jobs[job_id].priority] - from_s
            assert passed_s <= limit * device.longest_s
            if job_id in device.ended_s:
                del bounds[job_id]
