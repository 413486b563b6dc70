"""Reading and decoding beside the steps: what goes on meanwhile, and every fault there. Gates, no sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from danqing.engine.core import LOST
from danqing.engine.families.base import DeviceLost
from danqing.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDrawn,
    JobFailed,
    JobStarted,
    JobStepped,
)
from danqing.engine.runner import FAILED_DECODE, FAILED_ENCODE, FAILED_MEMORY
from danqing.engine.scheduler import Scheduler
from tests.engine.null_family import NullFamily, NullState, make_job
from tests.engine.test_core import Desk, learn_batching

WAIT_S = 60


class Gate:
    """What a call stops at, until it is opened."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        self.came.set()
        assert self._opened.wait(WAIT_S)

    def wait(self) -> None:
        assert self.came.wait(WAIT_S), "nobody came"

    def open(self) -> None:
        self._opened.set()


class Beside(NullFamily):
    """Stops in the reading and the decoding of jobs whose prompt has the word `slow`. Knows what runs at once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(is_beside=True, **options)
        self.reading, self.decoding = Gate(), Gate()
        self.running: set[str] = set()
        self.met: set[frozenset[str]] = set()
        """What ran at the same time."""
        self._lock = threading.Lock()
        self.read: list[str] = []
        self.memory_for = 3
        """Calls at once; one more raises MemoryError."""
        self.no_room_beside_a_step = False
        self.refused: list[str] = []
        self.on_step: Callable[[], None] = lambda: None

    @contextmanager
    def _as(self, what: str) -> Iterator[None]:
        with self._lock:
            self.running.add(what)
            self.met.add(frozenset(self.running))
            full = len(self.running) > self.memory_for
        try:
            if full:
                raise MemoryError
            yield
        finally:
            with self._lock:
                self.running.discard(what)

    def _look_for_room(self, what: str) -> None:
        if self.no_room_beside_a_step and "step" in self.running:
            self.refused.append(what)
            raise MemoryError

    def encode(self, jobs: Sequence[Job]) -> list[str]:
        self.read += [job.id for job in jobs]
        with self._as("read"):
            if any("slow-read" in job.prompt for job in jobs):
                self.reading()
            self._look_for_room("read")
            return super().encode(jobs)

    def step(self, states: Sequence[NullState]) -> None:
        with self._as("step"):
            self.on_step()
            super().step(states)

    def decode(self, states: Sequence[NullState]) -> list[Any]:
        with self._as("decode"):
            if any("slow-decode" in state.job.prompt for state in states):
                self.decoding()
            self._look_for_room("decode")
            return super().decode(states)


@pytest.fixture
def open_desk() -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(family: Beside | None = None, **options: Any) -> Desk:
        desks.append(Desk(family or Beside(), **options))
        return desks[-1].start()

    yield make
    for desk in desks:
        family = desk.family
        assert isinstance(family, Beside)
        family.reading.open()
        family.decoding.open()
        desk.stop()
        assert desk.core._scheduler._held == 0


def of(desk: Desk) -> Beside:
    assert isinstance(desk.family, Beside)
    return desk.family


def test_others_are_drawn_while_a_prompt_is_read(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.submit(make_job("first", account_id="b", steps=200))
    desk.wait(lambda: JobStarted("first") in desk.events)
    desk.submit(make_job("slow", prompt="slow-read"))
    of(desk).reading.wait()
    desk.wait_ended("first")  # all of it, the decoding too, in the time of one reading
    assert isinstance(desk.last("first"), JobDrawn)
    assert desk.last("slow") == JobStarted("slow")
    of(desk).reading.open()
    desk.wait_ended("slow")
    assert isinstance(desk.last("slow"), JobDrawn)


def test_others_are_drawn_while_an_image_is_decoded(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.submit(make_job("slow", prompt="slow-decode"))
    of(desk).decoding.wait()
    desk.submit(make_job("other", account_id="b", steps=3))
    desk.wait(lambda: JobStepped("other", 3, 3) in desk.events)  # read and drawn beside it
    assert desk.last("slow") == JobStepped("slow", 4, 4)
    assert frozenset({"decode", "step"}) in of(desk).met
    assert frozenset({"decode", "read"}) in of(desk).met
    of(desk).decoding.open()
    desk.wait_ended("slow", "other")


def test_the_next_prompt_of_an_account_is_read_while_its_first_is_drawn(
    open_desk: Callable[..., Desk],
) -> None:
    """Or else the device would wait for each. Not more than the next: who is after that is not yet decided."""
    desk = open_desk(Beside(gated=True), batch_max=1)
    prompts = ["", "slow-read", "", "", ""]
    desk.submit(*(make_job(f"x.{i}", steps=2, prompt=prompts[i]) for i in range(5)))
    desk.family.wait_entered()
    of(desk).reading.wait()
    assert desk.family.calls == [["x.0"]]
    desk.family.open()
    desk.wait(lambda: JobStepped("x.0", 2, 2) in desk.events)
    assert of(desk).read == ["x.0", "x.1"]
    of(desk).reading.open()
    desk.wait_ended(*(f"x.{i}" for i in range(5)))
    assert of(desk).read == [f"x.{i}" for i in range(5)]


def test_a_batch_is_read_together_and_steps_together(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(batch_max=4)
    learn_batching(desk, 4)
    desk.submit(*(make_job(f"x.{i}", steps=1 + i) for i in range(4)))
    desk.wait_ended(*(f"x.{i}" for i in range(4)))
    assert [len(call) for call in desk.family.calls] == [4, 3, 2, 1]


def test_cancelled_while_read_and_while_decoded(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.submit(make_job("a", prompt="slow-read"))
    of(desk).reading.wait()
    desk.core.cancel(Cancel(("a",)))
    assert desk.last("a") == JobCancelled("a")  # at once
    desk.submit(make_job("b", prompt="slow-decode"))
    of(desk).reading.open()
    of(desk).decoding.wait()
    desk.core.cancel(Cancel(("b",)))
    assert desk.last("b") == JobCancelled("b")
    of(desk).decoding.open()
    desk.submit(make_job("c"))
    desk.wait_ended("c")
    assert isinstance(desk.last("c"), JobDrawn)
    assert desk.tried("a") == 0


@pytest.mark.parametrize(
    ("prompt", "message"), [("fail-encode", FAILED_ENCODE), ("fail-decode", FAILED_DECODE)]
)
def test_a_fault_stays_with_its_job(
    open_desk: Callable[..., Desk], prompt: str, message: str
) -> None:
    desk = open_desk()
    desk.submit(make_job("bad", prompt=prompt), make_job("good"))
    desk.wait_ended("bad", "good")
    assert desk.last("bad") == JobFailed("bad", message)
    assert isinstance(desk.last("good"), JobDrawn)
    assert desk.core.health().failures_total == 1


@pytest.mark.parametrize("what", ["read", "decode"])
def test_what_has_no_room_beside_a_step_is_done_alone(
    open_desk: Callable[..., Desk], what: str
) -> None:
    desk = open_desk(Beside(gated=True), batch_max=1)
    family = of(desk)
    family.no_room_beside_a_step = True
    x, other = make_job("x", steps=1, prompt=f"slow-{what}"), make_job("other", account_id="b")
    first, second = (other, x) if what == "read" else (x, other)
    desk.submit(first)
    desk.family.wait_entered()
    desk.submit(second)
    desk.family.let(1)
    gate = family.reading if what == "read" else family.decoding
    gate.wait()
    desk.family.wait_entered()  # the other's step, which now takes the memory
    gate.open()
    core = desk.core
    with core._condition:
        assert core._condition.wait_for(lambda: core._beside and core._beside.short, WAIT_S)
    desk.family.open()
    desk.wait_ended("x", "other")
    assert isinstance(desk.last("x"), JobDrawn)
    assert isinstance(desk.last("other"), JobDrawn)
    assert family.refused == [what]
    assert desk.core.health().failures_total == 0


def test_an_image_that_does_not_fit_alone_either_fails(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    of(desk).memory_for = 0
    desk.submit(make_job("x"))
    desk.wait_ended("x")
    assert desk.last("x") == JobFailed("x", FAILED_MEMORY)
    assert of(desk).read == ["x", "x"]
    of(desk).memory_for = 3
    desk.submit(make_job("y"))
    desk.wait_ended("y")
    assert isinstance(desk.last("y"), JobDrawn)


def test_a_step_without_room_waits_for_what_runs_beside_it(open_desk: Callable[..., Desk]) -> None:
    """It is not the batch that was too large: its size is tried again, whole, and nothing is learned from it."""
    desk = open_desk(batch_max=2)
    learn_batching(desk, 2)
    family = of(desk)
    desk.submit(make_job("slow", prompt="slow-decode", steps=1))
    family.decoding.wait()
    family.memory_for = 1
    tried = threading.Event()
    family.on_step = tried.set
    hush = desk.core._beside.hush  # type: ignore[union-attr]

    def opened() -> bool:
        family.decoding.open()
        return hush()

    desk.core._beside.hush = opened  # type: ignore[union-attr,method-assign]
    desk.submit(*(make_job(f"x.{i}", account_id="b", steps=2) for i in range(2)))
    desk.wait_ended("slow", "x.0", "x.1")
    assert all(isinstance(desk.last(job_id), JobDrawn) for job_id in ("slow", "x.0", "x.1"))
    assert desk.family.calls[1:] == [["x.0", "x.1"]] * 2
    assert desk.core._scheduler.pace._keys[(16, 8)].size_max is None


@pytest.mark.parametrize("at", ["reading", "decoding"])
def test_a_lost_device_beside_the_steps_ends_the_engine(
    open_desk: Callable[..., Desk], at: str
) -> None:
    desk = open_desk()

    def lost() -> None:
        raise DeviceLost("gone")

    desk.submit(make_job("other", account_id="b", steps=100_000))
    desk.wait(lambda: JobStepped("other", 1, 100_000) in desk.events)
    setattr(of(desk), at, lost)
    desk.submit(make_job("x", prompt="slow-read" if at == "reading" else "slow-decode", steps=1))
    desk.wait_ended("x", "other")
    assert {desk.last("x"), desk.last("other")} == {JobFailed("x", LOST), JobFailed("other", LOST)}
    assert desk.core.health().fault == "DeviceLost: gone"
    setattr(of(desk), at, Gate())


@pytest.mark.parametrize("at", ["reading", "decoding"])
def test_what_hangs_beside_the_steps_ends_the_engine(
    open_desk: Callable[..., Desk], at: str
) -> None:
    """Though steps go on: to whoever watches from outside it looks alive."""
    later_s = [0.0]
    desk = open_desk(hang_s=100, clock=lambda: later_s[0])
    desk.submit(make_job("other", account_id="b", steps=100_000_000))
    desk.wait(lambda: JobStepped("other", 1, 100_000_000) in desk.events)
    word = "slow-read" if at == "reading" else "slow-decode"
    desk.submit(make_job("x", prompt=word, steps=1))
    gate: Gate = getattr(of(desk), at)
    gate.wait()
    later_s[0] = 99.0
    assert desk.core.health().busy_s == 99.0
    assert desk.core.health().fault is None
    later_s[0] = 101.0
    desk.wait_ended("x", "other")
    assert desk.last("x") == JobFailed("x", LOST)
    assert str(desk.core.health().fault).startswith("Hung: ")


def test_finished_pixels_are_bounded(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danqing.engine.core.PIXEL_BYTES_MAX", 700)  # two images of 384
    desk = open_desk()
    desk.submit(*(make_job(f"x.{i}", steps=1) for i in range(4)))
    desk.wait(lambda: sum(isinstance(event, JobDrawn) for event in desk.events) == 2)
    desk.wait(lambda: JobStepped("x.3", 1, 1) in desk.events)
    assert desk.core._scheduler.undecoded == 2
    drawn = [event for event in desk.events if isinstance(event, JobDrawn)]
    assert len(drawn) == 2
    for event in drawn:
        desk.events.remove(event)
        desk.events.append(JobDrawn(event.job_id, np.empty(0, np.uint8)))
    del drawn, event
    desk.wait_ended(*(f"x.{i}" for i in range(4)))


def test_who_is_held_keeps_turn_and_credit() -> None:
    """A short job's account does not fall behind because its prompt had to be read."""
    scheduler = Scheduler(queue_max=100, live_max=8, batch_max=1)
    scheduler.admit([make_job("long", account_id="a", steps=1000)], ["k"])
    for step in range(1, 100):
        assert scheduler.pick() == ["long"]
        scheduler.update({"long": step}, 1.0)
    scheduler.admit([make_job("short", account_id="b", steps=4)], ["k"])
    while scheduler.pick() != ["short"]:
        scheduler.update({}, 1.0)
    scheduler.hold("short")
    scheduler.update({}, 0.0)
    for _ in range(5):
        assert scheduler.pick() == ["long"]
        scheduler.update({}, 1.0)
    scheduler.go_on("short")
    for step in range(1, 5):  # its burst, uninterrupted
        assert scheduler.pick() == ["short"]
        scheduler.update({"short": step}, 1.0)


def test_nothing_begins_while_something_is_held() -> None:
    scheduler = Scheduler(queue_max=100, live_max=8, batch_max=1)
    scheduler.admit([make_job(f"{name}.0", account_id=name) for name in "abc"], ["k"] * 3)
    assert scheduler.ahead() == "a.0"
    assert scheduler.ahead() is None  # one is ready
    scheduler.hold("a.0")
    assert scheduler.pick() == []
    assert scheduler.live == 1
    scheduler.remove("a.0")
    assert scheduler.pick() == ["b.0"]
