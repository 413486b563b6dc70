"""Whose turn it is: long debts are paid off at once, and as if round by round."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.ring import BURST_STEPS, Ring


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_law_rounds_done_at_once_change_no_turn(seed: int) -> None:
    random = Random(seed)
    quick, plain = Ring(BURST_STEPS), Ring(BURST_STEPS)
    plain._skip_rounds = lambda *_: None  # type: ignore[method-assign]
    names = list("abcde")
    for _ in range(100):
        ready = random.sample(names, random.randint(1, 5))
        held = [name for name in names if name not in ready and random.random() < 0.2]
        quantum_s = random.uniform(0.1, 1.0)
        work_s = {name: (random.uniform(0, 5), random.random()) for name in names}
        turns = [
            ring.turn(ready, quantum_s, work_s.__getitem__, held)  # type: ignore[arg-type]
            for ring in (quick, plain)
        ]
        assert turns[0] == turns[1]
        seconds = random.uniform(0.01, 20)
        for ring in (quick, plain):
            ring.charge(turns[0], seconds)
