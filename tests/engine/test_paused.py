"""A call run piece by piece: it moves only when it is waited for, tells its faults, and unwinds when nobody will resume it."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from danqing.engine.families.paused import Gate, Paused


def wait_for_end(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(60)
            assert not thread.is_alive()


def test_it_moves_from_pause_to_pause() -> None:
    said: list[int] = []

    def call(gate: Gate[str]) -> str:
        for i in range(3):
            said.append(i)
            gate.pause()
        return "done"

    paused = Paused(call, "moves")
    assert said == []
    assert paused.advance()
    assert said == [0]
    assert paused.advance()
    assert paused.advance()
    assert said == [0, 1, 2]
    assert not paused.advance()
    assert paused.finish() == "done"
    assert not paused.advance()
    wait_for_end("moves")


def test_finish_passes_over_the_pauses_that_are_left() -> None:
    def call(gate: Gate[int]) -> int:
        gate.pause()
        gate.pause()
        return 7

    assert Paused(call, "finishes").finish() == 7


def test_what_it_raises_is_told_once_and_its_end_is_known() -> None:
    def call(gate: Gate[int]) -> int:
        gate.pause()
        raise ValueError("inside")

    paused = Paused(call, "raises")
    assert paused.advance()
    with pytest.raises(ValueError, match="inside"):
        paused.advance()
    assert not paused.advance()
    with pytest.raises(RuntimeError, match="no result"):
        paused.finish()


@pytest.mark.parametrize("begun", [False, True])
def test_one_that_is_dropped_unwinds_and_frees_what_it_held(begun: bool) -> None:
    class Thing:
        pass

    cleaned = threading.Event()
    thing = Thing()
    held = weakref.ref(thing)

    def make(thing: Thing) -> Paused[int]:
        def call(gate: Gate[int]) -> int:
            kept = thing
            try:
                while kept:
                    try:
                        gate.pause()
                    except Exception:  # a pipeline's own handler must not keep it alive
                        continue
            finally:
                cleaned.set()
            return 1

        return Paused(call, f"dropped-{begun}")

    paused = make(thing)
    del thing
    if begun:
        assert paused.advance()
    del paused
    wait_for_end(f"dropped-{begun}")
    assert cleaned.is_set() is begun
    gc.collect()
    assert held() is None


def test_only_one_runs_at_any_moment() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def call(gate: Gate[int]) -> int:
        nonlocal running, most
        for _ in range(20):
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
            gate.pause()
        return 1

    many = [Paused(call, "many") for _ in range(5)]
    for _ in range(20):
        for each in many:
            each.advance()
    assert [each.finish() for each in many] == [1] * 5
    assert most == 1
