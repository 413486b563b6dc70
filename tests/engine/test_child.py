"""An engine in a process of its own: killed, hung, unloadable. Real processes; a family that draws in no time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danqing.domain.errors import EngineFailed
from danqing.engine.child import ChildCore
from danqing.engine.client import TERMINAL, InProcessClient
from danqing.engine.core import LOST
from danqing.engine.messages import (
    Begin,
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
from danqing.engine.runner import FAILED_MEMORY, FAILED_NUMBERS, FAILED_STEP
from tests.engine.null_family import PIXEL_BYTES_MAX, WORDS_MAX, make_job

WAIT_S = 60  # processes start slowly on a busy machine
HANG_S = 100
TICKS_S = 1.5  # time for the watchdog to look


class Desk:
    """A child engine and everything that was told."""

    def __init__(
        self,
        *,
        factory: str = "NullFamily",
        queue_max: int = 256,
        hang_s: float = HANG_S,
        **options: Any,
    ) -> None:
        self.later_s = 0.0
        """How far the watchdog's clock is ahead of time."""
        self.events: list[JobEvent] = []
        self.steps: list[tuple[float, int]] = []
        self._told = threading.Condition()
        begin = Begin(f"tests.engine.null_family:{factory}", options, queue_max, 16, 1, None)
        self.core = ChildCore(
            begin,
            hang_s=hang_s,
            load_s=HANG_S,
            on_step=lambda *step: self.steps.append(step),
            clock=lambda: time.monotonic() + self.later_s,
        )
        self.core.listen(self._listen)

    def _listen(self, event: JobEvent) -> None:
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def start(self) -> Desk:
        self.core.start()
        self.core.loaded.result(WAIT_S)
        return self

    def submit(self, *jobs: Job) -> None:
        self.core.submit(Submit(jobs))

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._told:
            assert self._told.wait_for(condition, timeout=WAIT_S), self.events

    def wait_ended(self, *job_ids: str) -> None:
        self.wait(lambda: all(isinstance(self.last(job_id), TERMINAL) for job_id in job_ids))

    def of(self, job_id: str) -> list[JobEvent]:
        return [event for event in self.events if event.job_id == job_id]

    def last(self, job_id: str) -> JobEvent | None:
        return next(iter(reversed(self.of(job_id))), None)

    def count(self, job_id: str, kind: type[JobEvent]) -> int:
        return sum(isinstance(event, kind) for event in self.of(job_id))


@pytest.fixture
def open_desk() -> Iterator[Callable[..., Desk]]:
    """Makes started desks; every job must have ended once, and no process may be left."""
    desks: list[Desk] = []

    def make(**options: Any) -> Desk:
        desks.append(Desk(**options))
        return desks[-1].start()

    yield make
    for desk in desks:
        pid = desk.core.pid
        desk.core.stop(10)
        for job_id in {event.job_id for event in desk.events}:
            assert sum(isinstance(event, TERMINAL) for event in desk.of(job_id)) == 1
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()


def test_a_prompt_is_measured_in_the_other_process_while_it_steps(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(step_s=0.1, pixels_max=4096)
    desk.submit(make_job("t.0", steps=10_000))
    desk.wait(lambda: desk.count("t.0", JobStarted) == 1)
    assert desk.core.pixels_max == 4096
    answers = [desk.core.measure("two words"), desk.core.measure("x " * 999)]
    assert [answer.result(WAIT_S) for answer in answers] == [(2, WORDS_MAX), (999, WORDS_MAX)]
    assert not isinstance(desk.last("t.0"), TERMINAL)
    assert desk.core._asked == {}
    desk.core.cancel(Cancel(("t.0",)))
    desk.wait_ended("t.0")


def test_nobody_waits_for_the_length_of_a_prompt_when_the_process_dies(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk()
    pid = desk.core.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    answer = desk.core.measure("x")
    assert not answer.done()
    os.kill(pid, signal.SIGKILL)
    assert answer.result(WAIT_S) is None
    assert desk.core._asked == {}


def test_a_job_is_drawn_in_the_other_process(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    reference = np.zeros((8, 16, 3), np.uint8)
    jobs = [make_job(f"t.{i}", seed=i, previews=1, reference=reference) for i in range(3)]
    desk.submit(*jobs)
    desk.wait_ended(*(job.id for job in jobs))
    for job in jobs:
        queued, started, *between, drawn = desk.of(job.id)
        assert isinstance(queued, JobQueued)
        assert started == JobStarted(job.id)
        assert [event.step for event in between if isinstance(event, JobStepped)] == [1, 2, 3, 4]
        assert sum(isinstance(event, JobPreview) for event in between) == 1
        assert isinstance(drawn, JobDrawn)
        assert np.all(drawn.pixels == job.seed)
        assert list(drawn.timing_ms) == ["queue", "encode", "denoise", "decode"]
    health = desk.core.health()
    assert (health.alive, health.images_total, health.steps_total) == (True, 3, 12)
    assert (health.queue_depth, health.live, health.restarts, health.busy_s) == (0, 0, 0, None)
    assert len(desk.steps) == 12
    assert desk.core.pid != os.getpid()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("fail@1", FAILED_STEP), ("nan@2", FAILED_NUMBERS), ("", FAILED_MEMORY)],
)
def test_faults_stay_with_their_job(
    open_desk: Callable[..., Desk], prompt: str, message: str
) -> None:
    desk = open_desk(fits=0) if message == FAILED_MEMORY else open_desk()
    desk.submit(make_job("bad", prompt=prompt))
    desk.wait_ended("bad")
    assert desk.last("bad") == JobFailed("bad", message)
    assert desk.core.health().restarts == 0
    assert desk.core.health().failures_total == 1


def test_a_killed_process_is_replaced_and_all_its_work_done(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    """It is killed after the second of three looks."""
    desk = open_desk(flag=str(tmp_path / "killed"))
    first = desk.core.pid
    jobs = [
        make_job(f"t{i}", seed=i, steps=20, previews=3, prompt="" if i else "kill-once@14")
        for i in range(4)
    ]
    for job in jobs:
        desk.submit(job)
    desk.wait_ended(*(job.id for job in jobs))
    assert all(isinstance(desk.last(job.id), JobDrawn) for job in jobs)
    assert desk.count("t0", JobStarted) == 2  # begun anew
    for job in jobs:  # and nobody sees a look twice
        looks = [event.number for event in desk.of(job.id) if isinstance(event, JobPreview)]
        assert looks == [0, 1, 2]
    assert desk.core.health().restarts == 1
    assert desk.core.pid != first


def test_a_job_that_kills_every_process_fails_alone(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    good = [make_job(f"good{i}") for i in range(3)]
    desk.submit(make_job("bad", prompt="kill@1"))
    desk.submit(*good)
    desk.wait_ended("bad", *(job.id for job in good))
    assert desk.last("bad") == JobFailed("bad", LOST)
    assert desk.count("bad", JobStarted) == 2
    assert all(isinstance(desk.last(job.id), JobDrawn) for job in good)
    assert desk.core.health().restarts == 2
    desk.submit(make_job("later"))
    desk.wait_ended("later")
    assert isinstance(desk.last("later"), JobDrawn)


def test_who_was_on_board_with_a_killer_is_drawn(open_desk: Callable[..., Desk]) -> None:
    """All of them are suspects after the first death, so each is tried by itself."""
    desk = open_desk(is_beside=True, step_s=0.005)
    accounts = [make_job(f"good{i}", account_id=f"g{i}", steps=12) for i in range(3)]
    desk.submit(accounts[0])
    desk.submit(make_job("bad", account_id="b", steps=12, prompt="kill@6"))
    for job in accounts[1:]:
        desk.submit(job)
    desk.wait(lambda: desk.count("bad", JobStarted) == 2)
    desk.submit(make_job("later", account_id="l"))
    desk.wait_ended("bad", "later", *(job.id for job in accounts))
    assert desk.last("bad") == JobFailed("bad", LOST)
    assert all(isinstance(desk.last(job_id), JobDrawn) for job_id in ("good0", "good1", "good2"))
    assert isinstance(desk.last("later"), JobDrawn)
    assert desk.core.health().restarts == 2


def test_what_a_cancelled_suspect_does_is_not_the_next_one_s_fault(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    """A is still being decoded when B begins, so nobody knows which of them ended the process."""
    flag = tmp_path / "decoding"

    def wait_decoding() -> None:
        deadline = time.monotonic() + WAIT_S
        while not flag.exists():
            assert time.monotonic() < deadline, desk.events
            time.sleep(0.02)

    desk = open_desk(is_beside=True, flag=str(flag))
    desk.submit(make_job("a", account_id="a", steps=1, prompt="kill-decode"))
    desk.submit(make_job("b", account_id="b"))
    for tries in (1, 2):
        wait_decoding()
        if tries == 2:
            desk.core.cancel(Cancel(("a",)))
        desk.wait(lambda: desk.count("b", JobStarted) == tries)  # noqa: B023 - at once
        flag.unlink()
    desk.wait_ended("b")
    assert desk.last("a") == JobCancelled("a")
    assert isinstance(desk.last("b"), JobDrawn)
    assert desk.core.health().restarts == 2


def test_the_death_of_the_engine_within_its_process_is_the_process_s(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk()
    desk.submit(make_job("bad", prompt="die@1"))
    desk.submit(make_job("good"))
    desk.wait_ended("bad", "good")
    assert desk.last("bad") == JobFailed("bad", LOST)
    assert isinstance(desk.last("good"), JobDrawn)


def test_a_hang_is_noticed_and_the_process_replaced(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk(flag=str(tmp_path / "hung"))
    desk.submit(make_job("x", prompt="hang-once@2"))
    desk.submit(make_job("y"))
    desk.wait(lambda: desk.count("x", JobStepped) == 2)
    for number in range(round(WAIT_S / 0.1)):  # new work and cancels are no sign of life
        desk.submit(make_job(f"u{number}"))
        desk.core.cancel(Cancel((f"u{number}",)))
        if (desk.core.health().busy_s or 0) >= TICKS_S:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("it looks alive")
    assert desk.core.health().restarts == 0
    desk.later_s += HANG_S
    desk.submit(make_job("z"))
    desk.wait_ended("x", "y", "z")
    for job_id in ("x", "y", "z"):
        assert isinstance(desk.last(job_id), JobDrawn)
    assert desk.core.health().restarts == 1


def test_an_idle_process_does_not_hang(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.later_s += HANG_S
    time.sleep(TICKS_S)
    desk.submit(make_job("x"))
    desk.wait_ended("x")
    assert isinstance(desk.last("x"), JobDrawn)
    assert desk.core.health().restarts == 0


def test_a_process_that_stops_is_replaced_though_work_keeps_coming(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk()
    pid = desk.core.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    desk.submit(make_job("x"))
    desk.later_s += HANG_S
    desk.submit(make_job("y"))
    desk.wait_ended("x", "y")
    assert isinstance(desk.last("x"), JobDrawn)
    assert isinstance(desk.last("y"), JobDrawn)
    assert desk.core.health().restarts == 1


def test_work_that_comes_while_a_process_is_replaced_waits(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(queue_max=3)
    pid, replace, may_begin = desk.core.pid, desk.core._one_process, threading.Event()
    assert pid is not None

    def late() -> str:
        may_begin.wait(WAIT_S)
        return replace()

    desk.core._one_process = late  # type: ignore[method-assign]
    os.kill(pid, signal.SIGSTOP)  # it takes nothing more
    desk.submit(make_job("a"), make_job("b"))
    os.kill(pid, signal.SIGKILL)
    desk.submit(make_job("c"))
    desk.submit(make_job("d"))
    assert isinstance(desk.last("d"), JobRefused)
    desk.core.cancel(Cancel(("b",)))
    assert desk.last("b") == JobCancelled("b")
    may_begin.set()
    desk.wait_ended("a", "c")
    assert isinstance(desk.last("a"), JobDrawn)
    assert isinstance(desk.last("c"), JobDrawn)


def test_cancel_is_at_once_and_the_process_stays(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(step_s=0.05)
    desk.submit(make_job("x", steps=1000), make_job("y"))
    desk.wait(lambda: desk.count("x", JobStepped) > 0)
    desk.core.cancel(Cancel(("x", "unknown")))
    assert desk.last("x") == JobCancelled("x")
    desk.wait_ended("y")
    assert isinstance(desk.last("y"), JobDrawn)
    assert desk.core.health().restarts == 0


def test_a_family_that_cannot_be_loaded_is_told() -> None:
    begin = Begin("tests.engine.null_family:no_such_thing", {}, 1, 1, 1, None)
    core = ChildCore(begin, hang_s=60, load_s=60)
    core.start()
    with pytest.raises(EngineFailed, match="no_such_thing"):
        core.loaded.result(WAIT_S)
    assert not core.health().alive
    with pytest.raises(EngineFailed):
        core.submit(Submit((make_job("x"),)))
    core.stop(10)


def test_stop_ends_the_process_and_fails_what_is_left(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(step_s=0.05)
    desk.submit(make_job("x", steps=1000))
    desk.wait(lambda: desk.count("x", JobStepped) > 0)
    assert desk.core.stop(60)
    assert desk.last("x") == JobFailed("x", LOST)
    with pytest.raises(EngineFailed):
        desk.submit(make_job("y"))


def test_stop_kills_what_does_not_listen(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.submit(make_job("x", prompt="hang@1"))
    desk.wait(lambda: desk.count("x", JobStepped) == 1)
    assert not desk.core.stop(0.5)
    assert desk.last("x") == JobFailed("x", LOST)


def test_pixels_that_nobody_takes_hold_the_process_up_and_are_no_hang(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image has 384 bytes, so the second fills the limit."""
    monkeypatch.setattr("danqing.engine.child.PIXEL_BYTES_MAX", PIXEL_BYTES_MAX)
    desk = open_desk(factory="in_little_memory")
    desk.submit(*(make_job(f"t.{i}", steps=1) for i in range(3)))
    desk.wait(lambda: sum(isinstance(event, JobDrawn) for event in desk.events) == 2)
    desk.wait(lambda: desk.count("t.2", JobStepped) == 1)
    desk.later_s += HANG_S
    time.sleep(TICKS_S)
    assert desk.last("t.2") == JobStepped("t.2", 1, 1)
    assert desk.core.health().restarts == 0
    ended = [desk.events.index(event) for event in desk.events if isinstance(event, JobDrawn)]
    for index in ended:  # they are let go of
        drawn = desk.events[index]
        desk.events[index] = JobDrawn(drawn.job_id, np.zeros((1, 1, 3), np.uint8))
    del drawn
    desk.wait_ended("t.2")


def test_the_asyncio_face_is_the_same() -> None:
    async def scenario() -> None:
        desk = Desk(step_s=0.01)
        client = InProcessClient(desk.core)
        await client.ready()
        try:
            async with aclosing(client.draw((make_job("a.0"), make_job("a.1", steps=9)))) as events:
                told = [event async for event in events]
            assert sum(isinstance(event, JobDrawn) for event in told) == 2
            async with aclosing(client.draw((make_job("b", steps=1000),))) as events:
                async for event in events:
                    if isinstance(event, JobStepped):
                        break
            while client.health().live:
                await asyncio.sleep(0.01)
        finally:
            await client.close()
        assert not client.health().alive

    asyncio.run(scenario())


def test_the_process_ends_with_its_service() -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from danqing.engine.child import ChildCore
        from danqing.engine.messages import Begin
        core = ChildCore(Begin("tests.engine.null_family:NullFamily", {}, 1, 1, 1, None), hang_s=60, load_s=60)
        core.start()
        core.loaded.result(60)
        print(core.pid, flush=True)
        time.sleep(600)
        """
    )
    service = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    pid = int(service.stdout.readline())
    service.kill()
    service.wait()
    deadline = time.monotonic() + WAIT_S
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the engine process outlives its service"
        time.sleep(0.1)
    service.stdout.close()


@pytest.mark.slow
def test_a_process_that_hangs_beside_its_steps_is_replaced(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    """Its steps go on, so to the service it looks alive: the process itself must notice."""
    desk = open_desk(is_beside=True, hang_s=5, step_s=0.02, flag=str(tmp_path / "flag"))
    desk.submit(make_job("other", account_id="b", steps=500))
    desk.submit(make_job("x", prompt="hang-decode-once", steps=1))
    desk.wait_ended("x", "other")
    assert isinstance(desk.last("x"), JobDrawn)
    assert isinstance(desk.last("other"), JobDrawn)
    assert desk.core.health().restarts == 1
