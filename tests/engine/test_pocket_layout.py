"""Pocket's plans: everything asked for has a place inside the frame, and no two share a cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.engine.families import pocket_layout as layout

THINGS = 137
wishes = st.builds(
    layout.Wish,
    thing=st.integers(0, THINGS),
    count=st.integers(1, layout.COUNT_MAX),
    colour=st.integers(0, 12),
    second=st.integers(0, THINGS),
    relation=st.integers(0, len(layout.RELATIONS) - 1),
    scene=st.integers(0, 17),
)
grids = st.integers(0, len(layout.GRIDS) - 1)
poses = st.integers(0, layout.POSES - 1)


@given(wishes, grids, poses)
def test_every_thing_has_its_own_cells_inside_the_frame(
    wish: layout.Wish, grid: int, pose: int
) -> None:
    rows, columns = layout.GRIDS[grid]
    taken = np.zeros((rows, columns), dtype=int)
    boxes = layout.place(wish, grid, pose)
    for box in boxes:
        assert box.side in layout.SIDES
        assert 0 <= box.left <= columns - box.side
        assert 0 <= box.top <= rows - box.side
        taken[box.top : box.top + box.side, box.left : box.left + box.side] += 1
    assert taken.max(initial=0) <= 1
    if wish.thing and not wish.second:
        assert [box.thing for box in boxes] == [wish.thing] * wish.count
    if wish.thing and wish.second:
        assert {box.thing for box in boxes} == {wish.thing, wish.second}


@given(wishes, grids, poses)
def test_contents_stay_inside_the_codebook(wish: layout.Wish, grid: int, pose: int) -> None:
    plan = layout.plan(wish, grid, pose, variant=3)
    rows, columns = layout.GRIDS[grid]
    assert plan.contents.shape == plan.colours.shape == (rows * columns,)
    assert plan.contents.min() >= layout.EMPTY
    assert plan.contents.max() < 2 + THINGS * layout.PARTS
    assert layout.DROPPED not in plan.contents


def test_one_thing_on_another_stands_right_above_it() -> None:
    on = layout.Wish(thing=1, second=2, relation=layout.RELATIONS.index("on"))
    upper, lower = layout.place(on, grid=0, pose=1)
    assert (upper.thing, lower.thing) == (1, 2)
    assert upper.top + upper.side == lower.top


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(1024, 1024, (8, 8)), (1344, 768, (6, 11)), (768, 1344, (11, 6)), (832, 1248, (9, 6)),
     (64, 64, (8, 8)), (4096, 64, (5, 13)), (1152, 896, (7, 9))],
)  # fmt: skip
def test_the_nearest_grid(width: int, height: int, shape: tuple[int, int]) -> None:
    assert layout.GRIDS[layout.nearest_grid(width, height)] == shape
