"""Pocket's plans: everything asked for has a place inside the frame; only what stands in front covers another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.engine.families import pocket_layout as layout

THINGS = 541
wishes = st.builds(
    layout.Wish,
    thing=st.integers(0, THINGS),
    count=st.integers(1, layout.COUNT_MAX),
    colour=st.integers(0, 12),
    second=st.integers(0, THINGS),
    relation=st.integers(0, len(layout.RELATIONS) - 1),
    scene=st.integers(0, 25),
    second_colour=st.integers(0, 12),
    size=st.integers(0, len(layout.SIZES) - 1),
    hour=st.integers(0, len(layout.HOURS) - 1),
    weather=st.integers(0, len(layout.WEATHERS) - 1),
)
DEPTH = [layout.RELATIONS.index(name) for name in ("front", "behind")]
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
    if boxes and wish.second and wish.relation in DEPTH:
        assert (taken > 1).sum() <= boxes[-1].side ** 2 / 2, "the one behind is seen"
    else:
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
    assert plan.airs.shape == (2, rows * columns)
    assert plan.airs.max() < layout.air_rows()
    assert (plan.airs > 0).all(1).tolist() == [wish.hour > 0, wish.weather > 0]


def test_one_thing_on_another_stands_right_above_it() -> None:
    on = layout.Wish(thing=1, second=2, relation=layout.RELATIONS.index("on"))
    upper, lower = layout.place(on, grid=0, pose=1)
    assert (upper.thing, lower.thing) == (1, 2)
    assert upper.top + upper.side == lower.top


def test_what_stands_in_front_is_lower_and_covers_a_corner() -> None:
    front, behind = (layout.RELATIONS.index(name) for name in ("front", "behind"))
    for grid in range(len(layout.GRIDS)):
        back, near = layout.place(layout.Wish(1, second=2, relation=front), grid, pose=1)
        assert (back.thing, near.thing) == (2, 1)
        assert near.top + near.side > back.top + back.side
        assert near.left < back.left + back.side < near.left + near.side
        far, other = layout.place(layout.Wish(1, second=2, relation=behind), grid, pose=1)
        assert (far.thing, other.thing) == (1, 2)


def test_sizes_show() -> None:
    def sides(wish: layout.Wish) -> list[int]:
        return [box.side for box in layout.place(wish, grid=0, pose=1)]

    small, big = (layout.SIZES.index(name) for name in ("small", "big"))
    assert sides(layout.Wish(1, size=small)) < sides(layout.Wish(1))
    assert sides(layout.Wish(1, second=2, relation=1, size=big)) == [5, 3]
    assert [
        b.thing for b in layout.place(layout.Wish(1, second=2, relation=1, size=small), 0, 1)
    ] == [2, 1]


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(1024, 1024, (8, 8)), (1344, 768, (6, 11)), (768, 1344, (11, 6)), (832, 1248, (9, 6)),
     (64, 64, (8, 8)), (4096, 64, (5, 13)), (1152, 896, (7, 9))],
)  # fmt: skip
def test_the_nearest_grid(width: int, height: int, shape: tuple[int, int]) -> None:
    assert layout.GRIDS[layout.nearest_grid(width, height)] == shape
