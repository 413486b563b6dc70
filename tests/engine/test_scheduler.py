"""The scheduler by example: no tensor, no thread, no clock."""

from __future__ import annotations

import pytest

from danqing.domain.errors import Busy
from danqing.engine.pace import TRIALS
from danqing.engine.ring import BURST_STEPS
from danqing.engine.scheduler import BACKGROUND_EVERY, COMPANY_SHARE, DEEP_STEPS, Scheduler
from tests.engine.device import Device, assert_empty
from tests.engine.null_family import make_job


@pytest.mark.parametrize("limits", [{"queue_max": 0}, {"live_max": 0}, {"batch_max": 0}])
def test_refuses_limits_that_let_nothing_through(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Device(**limits)


def test_a_full_queue_refuses_whole_tasks_and_says_when_to_return() -> None:
    device = Device(queue_max=8, batch_max=1)
    device.add(n=6)
    with pytest.raises(Busy) as refusal:
        device.add(n=3)
    assert len(device.scheduler) == 6
    # one job must leave first: 4 steps of 0.1 s; never less than a second is promised
    assert refusal.value.retry_after_s == 1.0
    device.add(n=2)
    assert len(device.scheduler) == 8


def test_retry_after_is_the_time_until_there_is_room() -> None:
    device = Device(lambda key, size: 2.0 * size, queue_max=8, batch_max=1)
    device.add(n=8, steps=3)
    device.beat()
    with pytest.raises(Busy) as refusal:
        device.add(n=3)
    predicted_s = device.now_s + refusal.value.retry_after_s
    while len(device.scheduler) > 5:
        device.beat()
    assert predicted_s == pytest.approx(device.now_s)


def test_a_task_larger_than_the_queue_is_busy_for_ever() -> None:
    with pytest.raises(Busy):
        Device(queue_max=4).add(n=5)


def test_an_id_is_queued_once() -> None:
    device = Device()
    job = make_job("x")
    with pytest.raises(ValueError):
        device.admit(job, job)
    device.admit(job)
    with pytest.raises(ValueError):
        device.admit(job)
    assert len(device.scheduler) == 1


def test_mixed_step_counts_share_batches_and_leave_at_their_own_time() -> None:
    device = Device(lambda key, size: 0.1, batch_max=2)
    (teacher,) = device.add(steps=20)
    for _ in range(TRIALS + 1):
        device.beat()  # learns the time of one image, then that of ... one: nobody to batch with
    (long,), (short,) = device.add(steps=20), device.add("b", steps=8)
    del teacher
    shared: list[set[str]] = []
    while picked := device.beat():
        shared.append(set(picked))
    assert {long, short} in shared or {"a-0", short} in shared
    assert device.ended_s[short] < device.ended_s[long]
    assert max(len(batch) for batch in shared) == 2


def test_a_greedy_account_delays_a_small_one_by_its_share_only() -> None:
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    device.add("greedy", n=100, steps=20)
    for _ in range(10):
        device.beat()
    began_s = device.now_s
    (small,) = device.add("small", steps=8)
    while small not in device.ended_s:
        device.beat()
    assert device.ended_s[small] - began_s <= 2 * 8 * 0.1 + 0.1 + 1e-9


def test_who_asks_now_and_then_is_served_at_once() -> None:
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    for number in range(3):
        device.add(f"greedy{number}", n=20, steps=100)
    for _ in range(20):
        for _ in range(60):
            device.beat()
        began_s = device.now_s
        (small,) = device.add("small", steps=10)
        while small not in device.ended_s:
            device.beat()
        assert device.ended_s[small] - began_s <= (10 + 3 + 1) * 0.1 + 1e-9


def test_a_slow_decoding_does_not_make_a_short_job_long() -> None:
    """Pocket's takes as long as a dozen of its steps: eight of them and a decoding are one burst all the same."""
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    device.scheduler.pace.learn_ending(16, 12 * 0.1)
    device.add("steady", steps=10_000)
    for _ in range(20):
        for _ in range(60):
            device.beat()
        (small,) = device.add("small", steps=8)
        turns = [device.beat() for _ in range(9)]
        assert turns.count([small]) == 8  # but for the turn at hand


def test_of_those_in_a_hurry_the_shortest_is_drawn_first() -> None:
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    device.add("steady", steps=10_000)
    for _ in range(200):
        device.beat()
    ids = [*device.add("ten", steps=10), *device.add("four", steps=4)]
    while not device.ended_s.keys() >= set(ids):
        device.beat()
    assert list(device.ended_s) == ids[::-1]
    assert device.steps["steady-0"] <= 200 + 1


@pytest.mark.parametrize(
    ("growth", "steps", "seats"), [(1.1, 60, 4), (1.4, 60, 1), (2.4, 60, 1), (2.4, 1000, 4)]
)
def test_who_is_in_a_hurry_takes_along_only_whom_it_hardly_waits_for(
    growth: float, steps: int, seats: int
) -> None:
    """But in a long queue, where everyone waits for what others cost."""
    device = Device(lambda key, size: {1: 1.0, 2: (1 + growth) / 2, 4: growth}[size], batch_max=4)
    for size in (1, 2, 4):
        for _ in range(TRIALS):
            device.scheduler.pace.learn(16, size, device.cost(16, size))
    device.add("steady", n=4, steps=steps)
    for _ in range(14):  # a share of which is enough for eight steps alone, and not in full batches
        assert len(device.beat()) == 4
    (small,) = device.add("small", steps=8)
    batches = [device.beat() for _ in range(8)]
    assert [(small in batch, len(batch)) for batch in batches] == [(True, seats)] * 8


def test_long_work_gets_no_burst() -> None:
    """It would hold everyone up, and be no sooner done."""
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    device.add("steady", steps=1000)
    for _ in range(200):
        device.beat()
    device.add("late", steps=BURST_STEPS + 1)
    turns = [device.jobs[device.beat()[0]].account_id for _ in range(20)]
    assert turns.count("late") <= 11


def test_a_burst_is_no_larger_than_the_share_that_was_missed() -> None:
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    device.add("steady", steps=1000)
    for _ in range(6):  # a share of which would have been three steps
        device.beat()
    device.add("late", steps=8)
    turns = [device.jobs[device.beat()[0]].account_id for _ in range(10)]
    assert turns.count("late") <= 6


def test_a_small_job_passes_a_big_one_of_its_own_account() -> None:
    device = Device(lambda key, size: (1.0 if key == 1024 else 0.05) * size, batch_max=1)
    device.add(n=4, steps=20, width=1024)
    device.beat()
    began_s = device.now_s
    (small,) = device.add(steps=8, width=256)
    while small not in device.ended_s:
        device.beat()
    assert device.ended_s[small] - began_s <= 2 * (1.0 + 8 * 0.05)


@pytest.mark.parametrize("seats", [1, 2, 3, 4])
def test_half_of_an_account_s_time_goes_to_its_shortest_jobs(seats: int) -> None:
    device = Device(lambda key, size: 0.1, batch_max=seats)
    for size in range(1, seats + 1):
        for _ in range(TRIALS):
            device.scheduler.pace.learn(16, size, 0.1)
    (long,) = device.add(steps=40)
    for _ in range(40):  # short ones without end
        while len(device.scheduler) < 2 + seats:
            device.add(steps=2)
        assert len(device.beat()) == seats
    assert abs(device.steps[long] - 20) <= 2


def test_in_a_long_queue_jobs_wait_for_others_of_their_key_as_long_as_was_said() -> None:
    costs = {1: {1: 0.1, 2: 0.11, 4: 0.14}, 2: {1: 0.2, 2: 0.4, 4: 0.8}}
    device = Device(lambda key, size: costs[int(str(key))][size], batch_max=4, queue_max=1000)
    for key, sizes in costs.items():
        for size, seconds in sizes.items():
            for _ in range(TRIALS):
                device.scheduler.pace.learn(key, size, seconds)

    def start(name: str) -> float:
        (job_id,) = device.add(name, steps=40, width=1)
        came_s = device.now_s
        while job_id not in device.beat():
            pass
        device.scheduler.remove(job_id)
        return device.now_s - came_s

    device.add("big", n=2, steps=50, width=2)
    assert start("in-a-short-queue") < 1.0
    device.add("big", n=DEEP_STEPS // 50 + 2, steps=50, width=2)
    longer_s = device.scheduler._backlog_s() - DEEP_STEPS * 0.2
    assert 0.9 * COMPANY_SHARE * longer_s < start("alone") < COMPANY_SHARE * longer_s + 1.0
    device.add("early", steps=40, width=1)
    assert all(device.jobs[device.beat()[0]].account_id == "big" for _ in range(10))
    (short,) = device.add("late", steps=4, width=1)
    assert {
        device.jobs[job_id].account_id
        for job_id in next(batch for batch in iter(device.beat, []) if short in batch)
    } == {"early", "late"}


def test_a_late_account_finds_a_slot_beside_a_greedy_one() -> None:
    device = Device(batch_max=8, live_max=8)
    for width in range(20):
        device.add("greedy", n=8, steps=50, width=width)
    for _ in range(60):
        device.beat()
    assert device.scheduler.live == 6  # a quarter is kept
    (late,) = device.add("late", steps=1, width=999)
    assert any(late in device.beat() for _ in range(3))


def test_scarce_slots_go_in_turn_to_those_who_hold_none() -> None:
    device = Device(live_max=2, batch_max=1)
    names = [f"account{i}" for i in range(6)]
    for name in names:
        device.add(name, n=3, steps=3)
    starts: list[str] = []
    while picked := device.beat():
        starts += [job_id for job_id in picked if job_id not in starts]
    assert [device.jobs[job_id].account_id for job_id in starts] == names * 3


def test_interactive_goes_first_and_background_does_not_starve() -> None:
    device = Device(batch_max=1)
    device.add("night", n=50, steps=4, priority="background")
    device.add("day", n=50, steps=4)
    lanes = [device.jobs[device.beat()[0]].priority for _ in range(8 * BACKGROUND_EVERY)]
    assert lanes.count("background") == 8
    assert lanes[: BACKGROUND_EVERY - 1] == ["interactive"] * (BACKGROUND_EVERY - 1)


@pytest.mark.parametrize("live_max", [1, 2, 4])
def test_background_gets_its_turn_when_slots_are_scarce(live_max: int) -> None:
    device = Device(batch_max=1, live_max=live_max)
    for number in range(6):
        device.add(f"day{number}", n=2, steps=3)
    device.beat()
    (night,) = device.add("night", steps=2, priority="background")
    for beat in range(100):
        device.add(f"day{beat % 6}", steps=3)
        device.beat()
    assert night in device.ended_s


def test_riding_along_is_paid_for() -> None:
    """B's jobs ride in A's batches and make them longer: C, with another key, must not pay for it."""
    device = Device(lambda key, size: 0.06 + 0.04 * size, batch_max=8)
    for size in (1, 2, 4, 8):
        for _ in range(TRIALS):
            device.scheduler.pace.learn(1, size, device.cost(1, size))
    for name, jobs, width in (("a", 1, 1), ("b", 7, 1), ("c", 1, 2)):
        device.add(name, jobs, steps=10_000, width=width)
    sizes = [len(device.beat()) for _ in range(600)]
    assert max(sizes) == 8
    assert device.served_s["c"] > 0.3 * device.now_s


def test_leaving_and_coming_back_pays_nothing() -> None:
    """An account that goes into debt with its last step and then leaves gets no more for it."""
    device = Device(lambda key, size: 1.0 if key == 2 else 0.1, batch_max=1)
    device.add("steady", steps=10_000, width=3)
    for _ in range(300):
        device.beat()
        device.beat()
        device.add("tricky", steps=9, width=1)
        device.add("tricky", steps=1, width=2)
        while any(job_id.startswith("tricky") for job_id in device.scheduler._entries):
            device.beat()
    assert device.served_s["tricky"] < 0.52 * device.now_s


def test_background_riders_fill_empty_seats() -> None:
    device = Device(lambda key, size: 0.1, batch_max=4)
    for _ in range(TRIALS):
        for size in (1, 2, 4):
            device.scheduler.pace.learn(16, size, 0.1)
    day, night = device.add("day"), device.add("night", n=2, priority="background")
    assert set(device.beat()) == {*day, *night}


def test_cancelled_jobs_are_never_picked_again() -> None:
    device = Device(batch_max=2)
    ids = device.add(n=6)
    running = device.beat()
    for job_id in [running[0], ids[-1], "unknown"]:
        device.scheduler.remove(job_id)
    later = {job_id for _ in range(40) for job_id in device.beat()}
    assert not later & {running[0], ids[-1]}
    assert set(device.ended_s) == set(ids) - {running[0], ids[-1]}
    assert_empty(device.scheduler)


def test_removed_while_its_batch_runs() -> None:
    scheduler = Scheduler(queue_max=4, live_max=4, batch_max=1)
    scheduler.admit([make_job("x", steps=1)], [0])
    assert scheduler.pick() == ["x"]
    scheduler.remove("x")
    assert scheduler.update({"x": 1}, 0.1) == []
    assert_empty(scheduler)


def test_a_finished_job_keeps_its_slot_until_it_is_removed() -> None:
    scheduler = Scheduler(queue_max=4, live_max=1, batch_max=1)
    scheduler.admit([make_job("x", steps=1), make_job("y", steps=1)], [0, 0])
    assert scheduler.pick() == ["x"]
    assert scheduler.update({"x": 1}, 0.1) == ["x"]
    assert (scheduler.pick(), scheduler.live, len(scheduler)) == ([], 1, 2)
    scheduler.remove("x")
    assert scheduler.pick() == ["y"]


def test_forecast_of_one_account_is_its_queue() -> None:
    device = Device(lambda key, size: 0.5 * size, batch_max=1)
    device.add(n=1, steps=10)
    device.run()
    ids = device.add(n=3, steps=4)
    assert [device.scheduler.position(job_id) for job_id in ids] == [0, 1, 2]
    assert [device.scheduler.eta_s(job_id) for job_id in ids] == pytest.approx([2.0, 4.0, 6.0])


def test_forecast_comes_true_beside_other_accounts() -> None:
    device = Device(lambda key, size: 0.5 * size, batch_max=1)
    device.add(n=1, steps=10)
    device.run()
    device.add("greedy", n=20, steps=10)
    (mine,) = device.add("mine", steps=4)
    (late,) = device.add("late", steps=4, priority="background")
    eta_s, began_s = device.scheduler.eta_s(mine), device.now_s
    assert device.scheduler.position(mine) == 0
    assert device.scheduler.position(late) == 21
    while mine not in device.ended_s:
        device.beat()
    assert device.ended_s[mine] - began_s == pytest.approx(eta_s, abs=2 * 0.5)


def test_decoding_is_foreseen_and_charged() -> None:
    scheduler = Scheduler(queue_max=8, live_max=8, batch_max=1)
    scheduler.admit([make_job("steady", account_id="steady", steps=10_000)], [1])
    others = 0
    for round_ in range(101):
        scheduler.admit([make_job("next", account_id="decoder", steps=1)], [2])
        if round_ == 100:
            assert scheduler.eta_s("next") == pytest.approx(2 * (0.1 + 0.1))
        while (picked := scheduler.pick()) != ["next"]:
            scheduler.update({"steady": 1}, 0.1)
            others += 1
        assert scheduler.update(dict.fromkeys(picked, 1), 0.1) == ["next"]
        scheduler.decoded(make_job("next", account_id="decoder"), 0.1)
        scheduler.remove("next")
    assert others == pytest.approx(200, abs=4)  # as many seconds for the one as for the other
