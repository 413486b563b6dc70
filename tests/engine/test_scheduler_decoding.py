"""When finished images are decoded, where nothing runs beside the steps: by turns with them, after who is in a hurry."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.ring import BURST_STEPS
from danqing.engine.scheduler import Scheduler
from tests.engine.device import Device
from tests.engine.null_family import make_job


def busy(decode_s: float = 0.4, **options: int) -> Device:
    """One account draws without end, and has left to others whatever they may want to have at once."""
    device = Device(lambda key, size: 0.1 * size, decode_s=decode_s, **({"batch_max": 1} | options))
    device.scheduler.pace.learn_ending(16, decode_s)
    device.add("steady", steps=100_000)
    for _ in range(400):
        device.beat()
    return device


def test_others_images_wait_for_the_steps_and_the_image_of_who_is_in_a_hurry() -> None:
    device = busy()
    (old,) = device.add("old", steps=BURST_STEPS + 4)
    while old not in device.stepped_s:
        device.step(device.scheduler.pick())
    (short,) = device.add("short", steps=8)
    assert [device.beat() for _ in range(8)] == [[short]] * 8
    assert list(device.ended_s) == [short]
    device.beat()
    assert list(device.ended_s) == [short, old]


def test_images_of_one_s_own_and_of_who_finished_in_a_hurry_wait_for_nobody() -> None:
    device = busy()
    first, _ = device.add("hurried", steps=4), device.add("hurried", steps=5)
    for _ in range(4):
        device.step(device.scheduler.pick())
    device.add("other", steps=2)
    assert device.scheduler.pick_decoding() == first[0]


def test_an_image_that_has_waited_long_goes_before_those_in_a_hurry() -> None:
    device = busy(decode_s=0.1)
    (old,) = device.add("old", steps=BURST_STEPS + 4)
    while old not in device.stepped_s:
        device.step(device.scheduler.pick())
    for number in range(100):  # each of whom comes with a burst
        device.add(f"new{number}", steps=1)
        device.beat()
    assert device.ended_s[old] - device.stepped_s[old] <= BURST_STEPS * 0.1 + 2 * (0.1 + 0.1)


@pytest.mark.parametrize(
    ("of_image", "of_hurried", "waits"),
    [
        ("interactive", "background", False),
        ("background", "interactive", True),
        ("background", "background", True),
    ],
)
def test_day_does_not_wait_for_night(of_image: str, of_hurried: str, waits: bool) -> None:
    device = Device(lambda key, size: 0.1 * size, decode_s=0.4, batch_max=1)
    device.add("steady", steps=100_000, priority=of_hurried)
    for _ in range(400):
        device.beat()
    (image,) = device.add("image", steps=BURST_STEPS + 4, priority=of_image)
    while image not in device.stepped_s:
        device.step(device.scheduler.pick())
    device.add("hurried", steps=4, priority=of_hurried)
    assert device.scheduler.pick_decoding() == (None if waits else image)


def test_nothing_waits_that_is_decoded_beside_the_steps() -> None:
    device = busy()
    (old,) = device.add("old", steps=BURST_STEPS + 4)
    while old not in device.stepped_s:
        device.step(device.scheduler.pick())
    device.add("short", steps=8)
    assert device.scheduler.pick_decoding() is None
    assert device.scheduler.pick_decoding(beside=True) == old
    assert device.scheduler.pick_decoding(beside=True) is None  # it is told once


def test_cancelled_and_failed_images_leave_the_line() -> None:
    scheduler = Scheduler(queue_max=4, live_max=4, batch_max=1)
    scheduler.admit([make_job("x", steps=1), make_job("y", steps=1)], [0, 0])
    for job_id in ("x", "y"):
        assert scheduler.update(dict.fromkeys(scheduler.pick(), 1), 0.1) == [job_id]
    assert scheduler.undecoded == 2
    scheduler.remove("x")
    assert (scheduler.pick_decoding(), scheduler.pick_decoding()) == ("y", None)
    assert scheduler.undecoded == 0


@pytest.mark.parametrize("decode_s", [0.1, 0.4, 1.0])
def test_decoding_is_paid_for_however_long_it_lasts(decode_s: float) -> None:
    """Many short images are no way to more than one's share."""
    device = busy(decode_s)
    device.served_s.clear()
    for _ in range(800):
        if len(device.scheduler) < 4:
            device.add("short", n=3, steps=4)
        device.beat()
    assert abs(device.served_s["short"] - device.served_s["steady"]) <= (
        BURST_STEPS * 0.1 + 4 * decode_s + 0.5
    )


@pytest.mark.parametrize("decode_s", [0.1, 0.4, 2.0])
def test_riding_along_is_no_way_to_have_more_decoded(decode_s: float) -> None:
    """In shared batches many short images would have taken most of the time from a long one's account."""
    device = Device(lambda key, size: 0.05 + 0.02 * size, decode_s=decode_s)
    device.add("long", n=3, steps=100_000)
    for _ in range(800):
        if sum(job_id.startswith("short") for job_id in device.scheduler._entries) < 3:
            device.add("short", steps=4)
        device.beat()
    assert device.served_s["short"] < 1.5 * device.served_s["long"]


def test_a_debt_of_any_size_is_paid_off_in_no_time() -> None:
    """Steps of a microsecond, and an hour of decoding."""
    device = Device(lambda key, size: 1e-6 * size, decode_s=3600.0, batch_max=1)
    device.add("one", n=3, steps=1)
    device.add("other", n=3, steps=1)
    device.run()
    assert device.served_s["one"] == pytest.approx(device.served_s["other"])


@settings(max_examples=6, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0.1, 0.4, 0.6]), st.integers(1, 3))
def test_law_a_short_image_waits_for_no_decoding_that_has_not_begun(
    random: Random, decode_s: float, others: int
) -> None:
    device = busy(decode_s)
    for _ in range(8):
        for _ in range(100):
            for number in range(others):
                if not any(f"other{number}-" in job_id for job_id in device.scheduler._entries):
                    device.add(f"other{number}", n=random.randint(1, 3), steps=BURST_STEPS + 4)
            device.beat()
        device.step(device.scheduler.pick())
        came_s = device.now_s
        (short,) = device.add(
            "short", steps=8
        )  # beside a step, which may have been an image's last
        device.decode()
        while short not in device.ended_s:
            device.beat()
        assert device.ended_s[short] - came_s <= 8 * 0.1 + decode_s + 1e-9


@settings(max_examples=12, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([0.01, 0.1, 0.4, 2.0]),
    st.integers(1, 6),
    st.sampled_from([1, 4]),
)
def test_law_no_image_waits_long_to_be_decoded_whatever_keeps_coming(
    random: Random, decode_s: float, at_once: int, batch_max: int
) -> None:
    """Each new account comes with a short job and finds a burst; some come with long work, some at night."""
    device = Device(lambda key, size: 0.1 * size**0.5, decode_s=decode_s, batch_max=batch_max)
    finished: set[str] = set()
    limit_s: dict[str, float] = {}
    beat_s = device.longest_s = 0.1 * batch_max**0.5
    for number in range(250):
        while len(device.scheduler) <= at_once:
            steps = random.choice([1, 4, BURST_STEPS, BURST_STEPS + 10])
            priority = random.choice(["interactive"] * 4 + ["background"])
            device.add(f"new{number}", random.randint(1, 3), steps=steps, priority=priority)
        before = device.scheduler.undecoded
        device.beat()
        for place, job_id in enumerate(sorted(device.stepped_s.keys() - finished)):
            ahead = before + place + 1
            limit_s[job_id] = BURST_STEPS * beat_s + (ahead + 1) * (beat_s + decode_s)
        finished |= device.stepped_s.keys()
        for job_id in finished:
            waited_s = device.ended_s.get(job_id, device.now_s) - device.stepped_s[job_id]
            assert waited_s <= limit_s[job_id] + 1e-9
