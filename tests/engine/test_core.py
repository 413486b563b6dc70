"""The engine's loop with a family that draws in no time: events, faults, cancel, stop. Gates, no sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest

from danqing.domain.errors import EngineFailed
from danqing.engine.core import LOST, EngineCore
from danqing.engine.families.base import Family
from danqing.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobQueued,
    JobRefused,
    JobStarted,
    JobStepped,
    Submit,
)
from danqing.engine.runner import (
    FAILED_DECODE,
    FAILED_ENCODE,
    FAILED_MEMORY,
    FAILED_NUMBERS,
    FAILED_STEP,
)
from tests.engine.null_family import NullFamily, make_job

TERMINAL = (JobRefused, JobDrawn, JobFailed, JobCancelled)


class Desk:
    """A core with its family and everything that was told."""

    def __init__(self, family: NullFamily, **options: Any) -> None:
        self.family = family
        self.events: list[JobEvent] = []
        self._told = threading.Condition()
        self.core = EngineCore(lambda: family, **({"warm_up": None} | options))
        self.core.listen(self._listen)

    def _listen(self, event: JobEvent) -> None:
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def start(self) -> Desk:
        self.core.start()
        self.core.loaded.result(60)
        return self

    def submit(self, *jobs: Job) -> None:
        self.core.submit(Submit(jobs))

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._told:
            assert self._told.wait_for(condition, timeout=60), self.events

    def wait_ended(self, *job_ids: str) -> None:
        self.wait(lambda: all(isinstance(self.last(job_id), TERMINAL) for job_id in job_ids))

    def of(self, job_id: str) -> list[JobEvent]:
        return [event for event in self.events if event.job_id == job_id]

    def last(self, job_id: str) -> JobEvent | None:
        return next(iter(reversed(self.of(job_id))), None)

    def tried(self, job_id: str) -> int:
        """Steps tried with this job on board."""
        return sum(job_id in call for call in self.family.calls)

    def stop(self) -> None:
        self.family.open()
        assert self.core.stop(10)
        assert self.core._works == {}
        assert self.core._scheduler.undecoded == 0
        assert (len(self.core._scheduler), self.core._scheduler.live) == (0, 0)
        for job_id in {event.job_id for event in self.events}:
            ends = [isinstance(event, TERMINAL) for event in self.of(job_id)]
            assert ends == [False] * (len(ends) - 1) + [True], self.of(job_id)


@pytest.fixture
def open_desk() -> Iterator[Callable[..., Desk]]:
    """Makes started desks; at the end each must stop cleanly, having told every job's end once."""
    desks: list[Desk] = []

    def make(family: NullFamily | None = None, **options: Any) -> Desk:
        desks.append(Desk(family or NullFamily(), **options))
        return desks[-1].start()

    yield make
    for desk in desks:
        desk.stop()


def learn_batching(desk: Desk, size: int) -> None:
    """Let the scheduler believe that batches up to `size` cost no more than one image: a second."""
    for images in range(1, size + 1):
        for _ in range(3):
            desk.core._scheduler.pace.learn((16, 8), images, 1.0)


def ticking() -> Callable[[], float]:
    """A clock by which everything that is timed takes one second."""
    ticks = count()
    return lambda: float(next(ticks))


def test_a_job_is_told_from_queue_to_image(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.submit(make_job("x", seed=9))
    desk.wait_ended("x")
    *before, drawn = desk.of("x")
    assert isinstance(before[0], JobQueued)
    assert before[0].position == 0
    assert before[0].eta_s > 0
    assert before[1] == JobStarted("x")
    assert before[2:] == [JobStepped("x", step, 4) for step in (1, 2, 3, 4)]
    assert isinstance(drawn, JobDrawn)
    assert drawn.pixels.shape == (8, 16, 3)
    assert np.all(drawn.pixels == 9)
    assert list(drawn.timing_ms) == ["queue", "encode", "denoise", "decode"]
    assert all(value >= 0 for value in drawn.timing_ms.values())


@pytest.mark.parametrize(
    ("steps", "previews", "after"),
    [(8, 3, (2, 4, 6)), (4, 1, (2,)), (5, 9, (1, 2, 3, 4)), (1, 3, ()), (4, 0, ())],
)
def test_previews_come_evenly_and_never_after_the_last_step(
    open_desk: Callable[..., Desk], steps: int, previews: int, after: tuple[int, ...]
) -> None:
    desk = open_desk()
    desk.submit(make_job("x", steps=steps, previews=previews, seed=9), make_job("y", steps=steps))
    desk.wait_ended("x", "y")
    told = desk.of("x")
    looks = [event for event in told if isinstance(event, JobPreview)]
    assert [(look.number, look.step, look.steps) for look in looks] == [
        (number, step, steps) for number, step in enumerate(after)
    ]
    for look in looks:
        assert told[told.index(look) - 1] == JobStepped("x", look.step, steps)
        assert np.all(look.pixels == 9 + look.step)
    assert desk.family.previewed == [("x", step) for step in after]  # none for who asked for none


def test_a_failing_preview_harms_nothing(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.submit(make_job("x", steps=4, previews=3, prompt="fail-preview@2"))
    desk.wait_ended("x")
    looks = [event for event in desk.of("x") if isinstance(event, JobPreview)]
    assert [(look.number, look.step) for look in looks] == [(0, 1), (1, 3)]
    assert isinstance(desk.last("x"), JobDrawn)
    assert desk.core.health().failures_total == 0


def test_cancelled_while_a_preview_is_made(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.family.on_preview = lambda: desk.core.cancel(Cancel(("x",)))
    desk.submit(make_job("x", previews=1))
    desk.wait_ended("x")
    assert desk.last("x") == JobCancelled("x")
    assert not any(isinstance(event, JobPreview) for event in desk.events)


def test_timing_adds_up_to_the_whole(open_desk: Callable[..., Desk]) -> None:
    clock = ticking()
    desk = open_desk(clock=clock)
    desk.submit(make_job("x"))
    desk.wait_ended("x")
    drawn = desk.last("x")
    assert isinstance(drawn, JobDrawn)
    assert all(value >= 1000 for value in drawn.timing_ms.values())
    assert drawn.timing_ms["denoise"] >= 4000
    assert sum(drawn.timing_ms.values()) < 1000 * clock()


def test_queue_positions_count_up(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True))
    desk.submit(*(make_job(f"t.{i}") for i in range(4)))
    queued = [event for event in desk.events if isinstance(event, JobQueued)]
    assert [event.position for event in queued] == [0, 1, 2, 3]
    assert [event.eta_s for event in queued] == sorted(event.eta_s for event in queued)


def test_300_jobs_into_a_queue_of_256(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), queue_max=256)
    for i in range(300):
        desk.submit(make_job(f"j{i}", steps=1))
    refused = [event for event in desk.events if isinstance(event, JobRefused)]
    assert [event.job_id for event in refused] == [f"j{i}" for i in range(256, 300)]
    assert all(event.retry_after_s >= 1 for event in refused)
    desk.family.open()
    desk.wait_ended(*(f"j{i}" for i in range(256)))
    assert sum(isinstance(event, JobDrawn) for event in desk.events) == 256
    desk.submit(make_job("later"))
    desk.wait_ended("later")


def test_a_task_is_admitted_whole_or_not_at_all(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), queue_max=5)
    desk.submit(*(make_job(f"one.{i}") for i in range(3)))
    desk.submit(*(make_job(f"two.{i}") for i in range(3)))
    assert all(isinstance(desk.last(f"two.{i}"), JobRefused) for i in range(3))
    assert len(desk.core._scheduler) == 3


def test_references_are_bounded_in_bytes(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danqing.engine.messages.INPUT_BYTES_MAX", 800)
    desk = open_desk(NullFamily(gated=True), batch_max=1)
    one, other = (np.zeros((8, 16, 3), np.uint8) for _ in range(2))  # 384 bytes each
    mask = np.zeros((8, 16), bool)  # 128
    desk.submit(*(make_job(f"one.{i}", reference=one, mask=mask) for i in range(4)))  # shared
    desk.submit(make_job("other", reference=other))
    assert isinstance(desk.last("other"), JobRefused)
    desk.submit(make_job("plain"))
    assert isinstance(desk.last("plain"), JobQueued)
    desk.family.open()
    desk.wait_ended("plain", *(f"one.{i}" for i in range(4)))
    desk.submit(make_job("again", reference=other))
    desk.wait_ended("again")
    large = np.zeros((8, 128, 3), np.uint8)  # more than the bound, but there is nothing else
    desk.submit(make_job("large", reference=large, width=128))
    desk.wait_ended("large")
    assert isinstance(desk.last("large"), JobDrawn)


def test_cancelled_while_queued_never_takes_a_step(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=1)
    desk.submit(make_job("run"), make_job("wait"))
    desk.family.wait_entered()
    desk.core.cancel(Cancel(("wait", "unknown")))
    assert desk.last("wait") == JobCancelled("wait")  # at once: the step is still going on
    desk.family.open()
    desk.wait_ended("run")
    assert desk.tried("wait") == 0


def test_cancelled_while_running_frees_the_engine_within_a_step(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=1)
    desk.submit(make_job("x", steps=50))
    desk.family.wait_entered()
    desk.submit(make_job("next", steps=1))
    desk.core.cancel(Cancel(("x",)))
    desk.family.open()
    desk.wait_ended("next")
    assert desk.tried("x") == 1
    assert desk.of("x")[-2:] == [JobStarted("x"), JobCancelled("x")]
    assert "x" not in desk.family.decoded


def test_a_greedy_account_does_not_hold_up_another(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=1, clock=ticking())
    desk.submit(*(make_job(f"greedy.{i}", account_id="greedy", steps=20) for i in range(50)))
    desk.family.wait_entered()
    desk.submit(make_job("small", account_id="small", steps=8))
    desk.family.open()
    desk.wait_ended("small")
    before = desk.family.calls[: max(i for i, c in enumerate(desk.family.calls) if c == ["small"])]
    assert len(before) <= 3 * 8
    desk.core.cancel(Cancel(tuple(f"greedy.{i}" for i in range(50))))


def test_mixed_step_counts_share_a_batch(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=2)
    learn_batching(desk, 2)
    desk.submit(make_job("long", steps=20), make_job("short", steps=8))
    desk.family.open()
    desk.wait_ended("long", "short")
    assert desk.family.calls[0] == ["long", "short"]
    assert (desk.tried("long"), desk.tried("short")) == (20, 8)
    ends = [event.job_id for event in desk.events if isinstance(event, JobDrawn)]
    assert ends == ["short", "long"]


@pytest.mark.parametrize(
    ("prompt", "message", "steps"),
    [
        ("fail@2", FAILED_STEP, 2),
        ("nan@3", FAILED_NUMBERS, 3),
        ("fail-encode", FAILED_ENCODE, 0),
        ("fail-start", FAILED_STEP, 0),
        ("fail-decode", FAILED_DECODE, 4),
        ("nan-decode", FAILED_NUMBERS, 4),
        ("wrong-shape", FAILED_DECODE, 4),
    ],
)
def test_a_failing_member_hurts_nobody_else(
    open_desk: Callable[..., Desk], prompt: str, message: str, steps: int
) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=4)
    learn_batching(desk, 4)
    good = [make_job(f"good.{i}") for i in range(3)]
    desk.submit(good[0], make_job("bad", prompt=prompt), *good[1:])
    desk.family.open()
    desk.wait_ended("bad", *(job.id for job in good))
    assert desk.last("bad") == JobFailed("bad", message)
    assert sum(isinstance(event, JobStepped) for event in desk.of("bad")) == steps
    for job in good:
        stepped = [event for event in desk.of(job.id) if isinstance(event, JobStepped)]
        assert [event.step for event in stepped] == [1, 2, 3, 4]
        assert isinstance(desk.last(job.id), JobDrawn)
    assert desk.core.health().failures_total == 1


def test_a_batch_that_does_not_fit_is_split_and_the_size_remembered(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(NullFamily(gated=True, fits=2), batch_max=8, clock=ticking())
    learn_batching(desk, 8)
    jobs = [make_job(f"x.{i}", steps=3) for i in range(8)]
    desk.submit(*jobs)
    desk.family.open()
    desk.wait_ended(*(job.id for job in jobs))
    assert all(isinstance(desk.last(job.id), JobDrawn) for job in jobs)
    sizes = [len(call) for call in desk.family.calls]
    assert sizes[:7] == [8, 4, 2, 2, 4, 2, 2]
    assert max(sizes[7:]) == 2


def test_an_image_too_large_for_the_memory_fails_alone(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(fits=0))
    desk.submit(make_job("x"))
    desk.wait_ended("x")
    assert desk.last("x") == JobFailed("x", FAILED_MEMORY)


def test_finished_images_do_not_hold_up_the_steps_of_others(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=4)
    learn_batching(desk, 4)
    desk.submit(*(make_job(f"burst.{i}", steps=1) for i in range(4)))
    desk.family.wait_entered()
    desk.submit(make_job("other", account_id="b", width=32, steps=3))
    desk.family.let(1)
    desk.family.wait_entered()  # the other's first step comes after one decoding, not after four
    assert len(desk.family.decoded) == 1
    desk.family.open()
    desk.wait_ended("other", *(f"burst.{i}" for i in range(4)))
    burst = [job_id for job_id in desk.family.decoded if job_id != "other"]
    assert burst == [f"burst.{i}" for i in range(4)]


def test_an_image_waits_to_be_decoded_while_who_is_in_a_hurry_draws(
    open_desk: Callable[..., Desk],
) -> None:
    """Pocket's decoding lasts as long as half of a short image: it had made every other short one beside long ones late."""
    family = NullFamily(gated=True)
    clock = lambda: 0.1 * len(family.calls) + 0.4 * len(family.decoded)  # noqa: E731
    desk = open_desk(family, batch_max=1, clock=clock)
    desk.submit(make_job("long", account_id="long", steps=30))
    desk.submit(make_job("steady", account_id="steady", steps=100_000))
    desk.family.wait_entered()
    while desk.tried("long") < 30:
        desk.family.let(1)
        desk.family.wait_entered()
    desk.submit(make_job("short", account_id="short", steps=8))  # beside the other's last step
    desk.family.open()
    desk.wait_ended("short", "long")
    assert desk.family.decoded == ["short", "long"]
    mine = [place for place, call in enumerate(desk.family.calls) if call == ["short"]]
    assert mine == list(range(mine[0], mine[0] + 8))
    desk.core.cancel(Cancel(("steady",)))


def test_cancelled_while_waiting_for_the_decoder(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=2)
    learn_batching(desk, 2)
    desk.family.on_decode = lambda: desk.core.cancel(Cancel(("x.1",)))
    desk.submit(make_job("x.0", steps=1), make_job("x.1", steps=1))
    desk.family.open()
    desk.wait_ended("x.0", "x.1")
    desk.submit(make_job("next"))
    desk.wait_ended("next")
    assert desk.family.decoded == ["x.0", "next"]
    assert desk.last("x.1") == JobCancelled("x.1")


def test_cancelled_while_its_image_is_decoded(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.family.on_decode = lambda: desk.core.cancel(Cancel(("x",)))
    desk.submit(make_job("x"))
    desk.wait_ended("x")
    desk.family.on_decode = lambda: None
    desk.submit(make_job("y"))
    desk.wait_ended("y")
    assert desk.last("x") == JobCancelled("x")
    assert isinstance(desk.last("y"), JobDrawn)


def test_the_death_of_the_loop_fails_every_job_and_is_told(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(batch_max=1)
    assert desk.core.health().alive
    desk.submit(make_job("x", prompt="die@1"), make_job("y"))
    desk.wait_ended("x", "y")
    assert desk.last("y") == JobFailed("y", LOST)
    assert desk.core.stop(10)
    health = desk.core.health()
    assert (health.alive, health.queue_depth, health.live) == (False, 0, 0)
    assert health.fault is not None
    assert health.fault.startswith("SystemExit")
    with pytest.raises(EngineFailed):
        desk.submit(make_job("z"))


def test_stop_ends_after_the_step_at_hand() -> None:
    desk = Desk(NullFamily(gated=True), batch_max=1).start()
    desk.submit(make_job("x", steps=1000), make_job("y"))
    desk.family.wait_entered()
    assert not desk.core.stop(0.01)  # the step is stuck; its job is given up all the same
    assert desk.last("x") == JobFailed("x", LOST)
    assert desk.last("y") == JobFailed("y", LOST)
    desk.stop()
    assert desk.tried("x") == 1
    with pytest.raises(EngineFailed):
        desk.submit(make_job("z"))


def test_stop_while_idle_and_before_start() -> None:
    Desk(NullFamily()).start().stop()
    desk = Desk(NullFamily())
    desk.stop()
    desk.core.start()
    assert not desk.core.health().alive
    with pytest.raises(EngineFailed):
        desk.core.loaded.result(0)


def test_a_family_that_cannot_be_loaded_is_told() -> None:
    def factory() -> Family:
        raise OSError("no weights")

    core = EngineCore(factory)
    core.start()
    with pytest.raises(EngineFailed, match="no weights"):
        core.loaded.result(60)
    assert core.stop(10)
    assert core.health().fault == "OSError: no weights"


def test_a_warm_up_that_fails_is_told() -> None:
    core = EngineCore(NullFamily, warm_up=make_job("warm-up", prompt="nan@1"))
    core.start()
    with pytest.raises(EngineFailed, match="overflowed"):
        core.loaded.result(60)
    assert core.stop(10)


@pytest.mark.parametrize("call", ["encode", "start", "step", "decode"])
def test_a_warm_up_that_does_not_fit_is_a_smaller_one(call: str) -> None:
    """A card that draws 576 x 576 is not to be refused for want of a megapixel's memory."""
    warm_up = make_job("w", width=1024, height=1024, steps=2)
    desk = Desk(NullFamily(pixels_fit={call: 576 * 576}), clock=ticking(), warm_up=warm_up)
    desk.start()
    assert desk.family.decoded[-1] == "w"
    desk.submit(make_job("small", width=512, height=512), make_job("large", width=640, height=640))
    desk.wait_ended("small", "large")
    assert isinstance(desk.of("small")[-1], JobDrawn)
    assert desk.of("large")[-1] == JobFailed("large", FAILED_MEMORY)
    queued = desk.of("small")[0]
    assert isinstance(queued, JobQueued)
    assert queued.eta_s == 4 * 1.0 + 2.0  # by the pace of what was drawn
    desk.stop()


def test_a_warm_up_that_does_not_fit_at_any_size_is_told() -> None:
    family = NullFamily(pixels_fit={"step": 200 * 200})
    core = EngineCore(lambda: family, warm_up=make_job("w", width=1024, height=512))
    core.start()
    with pytest.raises(EngineFailed, match=r"warm-up: .*ran out of memory"):
        core.loaded.result(60)
    assert family.calls == [["w"]] * 2  # at 1024 x 512 and at 512 x 256
    assert core.stop(10)


def test_the_warm_up_measures_and_tells_nobody() -> None:
    desk = Desk(NullFamily(), clock=ticking(), warm_up=make_job("w", steps=3))
    desk.start()
    assert desk.events == []
    assert desk.family.calls == [["w"]] * 3
    desk.submit(make_job("x", steps=5))
    queued = desk.of("x")[0]
    assert isinstance(queued, JobQueued)
    assert queued.eta_s == 5 * 1.0 + 2.0  # its steps and its decoding, with the clock's marks
    desk.wait_ended("x")
    desk.stop()


def test_jobs_before_the_family_is_loaded_are_refused() -> None:
    desk = Desk(NullFamily())
    desk.submit(make_job("x"))
    assert desk.events == [JobRefused("x", 1.0)]
    desk.start().stop()


def test_health_and_observer_count_the_same_steps(open_desk: Callable[..., Desk]) -> None:
    seen: list[tuple[float, int]] = []
    desk = open_desk(on_step=lambda seconds, size: seen.append((seconds, size)))
    assert desk.core.health().last_step_age_s is None
    desk.submit(*(make_job(f"x.{i}") for i in range(5)))
    desk.wait_ended(*(f"x.{i}" for i in range(5)))
    health = desk.core.health()
    assert sum(size for _, size in seen) == 5 * 4
    assert (health.steps_total, health.images_total) == (len(seen), 5)
    assert (health.queue_depth, health.live, health.failures_total) == (0, 0, 0)
    assert health.batch_size_last == seen[-1][1]
    assert health.last_step_age_s is not None
    assert health.last_step_age_s >= 0


def test_health_answers_during_a_step(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(NullFamily(gated=True), batch_max=1)
    desk.submit(*(make_job(f"x.{i}") for i in range(3)))
    desk.family.wait_entered()
    health = desk.core.health()
    assert (health.alive, health.live, health.queue_depth) == (True, 1, 2)
    assert health.busy_s is not None
    later = desk.core.health().busy_s
    assert later is not None
    assert later > health.busy_s >= 0
    desk.family.open()
    desk.wait_ended("x.0", "x.1", "x.2")
    desk.submit(make_job("last"))
    desk.wait_ended("last")


def test_a_lost_device_ends_the_engine(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(batch_max=1)
    desk.submit(make_job("x", prompt="lost@1"), make_job("y"))
    desk.wait_ended("x", "y")
    assert desk.last("y") == JobFailed("y", LOST)
    assert desk.core.health().fault == "DeviceLost: gone"


def test_submit_and_cancel_from_many_threads(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(queue_max=10_000, batch_max=4)

    def user(name: str) -> None:
        for i in range(40):
            desk.submit(*(make_job(f"{name}-{i}.{k}", account_id=name, steps=2) for k in range(2)))
            desk.core.cancel(Cancel((f"{name}-{i}.1",)))

    threads = [threading.Thread(target=user, args=(f"user{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [f"user{u}-{i}.0" for u in range(6) for i in range(40)]
    desk.wait_ended(*kept)
    assert all(isinstance(desk.last(job_id), JobDrawn) for job_id in kept)
