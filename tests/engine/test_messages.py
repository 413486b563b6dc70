"""What a job says of itself: how many steps are drawn, and after which of them a look is sent."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.null_family import make_job

REFERENCE = np.zeros((8, 16, 3), np.uint8)


@given(st.integers(1, 200), st.integers(0, 20))
def test_looks_are_spread_evenly(steps: int, previews: int) -> None:
    after = make_job("x", steps=steps, previews=previews).preview_steps
    assert len(after) == min(previews, steps - 1)
    marks = (0, *after, steps)
    gaps = [marks[i + 1] - marks[i] for i in range(len(marks) - 1)]
    assert min(gaps) >= 1  # ascending, never the last step
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(1, 200), st.floats(0, 1))
def test_strength_is_the_share_of_steps_that_are_drawn(steps: int, strength: float) -> None:
    drawn = make_job("x", steps=steps, strength=strength, reference=REFERENCE).steps_drawn
    assert 1 <= drawn <= steps
    assert abs(drawn - steps * strength) <= 1
    assert make_job("x", steps=steps, strength=strength).steps_drawn == steps
