"""Where things stand in a pocket picture: what was asked -> one entry a cell. Knows no words, no pixels.

The training renderer and the shipped family both place things by this file, so that the network
sees the same plans in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

COUNT_MAX = 5
POSES = 3  # things stand left, centred or right; the seed picks one
VARIANTS = 16  # the seed picks one: a plain ground has a tone for each
COMPOSITIONS = 4  # every other scene has this many pictures, so variants repeat them
RELATIONS: tuple[str, ...] = ("none", "beside", "on", "under", "front", "behind")
SIZES: tuple[str, ...] = ("none", "small", "big")
HOURS: tuple[str, ...] = ("day", "sunset", "night")
WEATHERS: tuple[str, ...] = ("fair", "rain", "snow", "rainbow")
AIRS = len(HOURS) + len(WEATHERS) - 2  # what lies over a place in the open: an hour, a weather
AIR_PATTERNS = 2  # of each; variants repeat them

# (rows, columns) of cells; every grid is about 64 cells. The first is the square.
GRIDS: tuple[tuple[int, int], ...] = (
    (8, 8), (7, 9), (9, 7), (6, 9), (9, 6), (6, 11), (11, 6), (5, 13), (13, 5),
)  # fmt: skip

GRID_CELLS = sum(rows * columns for rows, columns in GRIDS)

EMPTY, DROPPED = 0, 1  # contents of a cell that are no part of a thing
SIDES = (2, 3, 4, 5)  # a thing is this many cells high and wide
_SIDE_START = {2: 0, 3: 4, 4: 13, 5: 29}
PARTS = 54  # parts that a thing has over all sides: 4 + 9 + 16 + 25

_LINES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,),),
    2: ((2,), (1, 1)),
    3: ((1, 2), (3,), (1, 1, 1)),
    4: ((2, 2), (4,), (1, 1, 1, 1)),
    5: ((2, 3), (5,), (2, 1, 2), (1, 1, 1, 1, 1)),
}
_SIDE_MAX = {1: 5, 2: 4, 3: 3, 4: 3, 5: 3}
_SMALL_SIDE_MAX = {1: 3, 2: 3, 3: 2, 4: 2, 5: 2}


@dataclass(frozen=True)
class Wish:
    """What to draw, as indices: things from 1 (0 is none), colours from 1, scenes from 0.

    `size` is the first thing's; hour and weather lie over the scene.
    """

    thing: int
    count: int = 1
    colour: int = 0
    second: int = 0
    relation: int = 0
    scene: int = 0
    second_colour: int = 0
    size: int = 0
    hour: int = 0
    weather: int = 0


@dataclass(frozen=True)
class Placement:
    """One thing in a square box of whole cells."""

    thing: int
    colour: int
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Plan:
    """What the denoiser is told: contents, colours, grounds and airs a cell, and the scene's numbers."""

    contents: np.ndarray
    colours: np.ndarray
    grounds: np.ndarray
    airs: np.ndarray
    """(2, cells): of the hour and of the weather; 0 where there is none."""
    scene: int
    variant: int
    hour: int
    weather: int


def less(wish: Wish, denied: Wish) -> Wish:
    """The wish without what is denied of it. The only thing that is asked for stays, whatever is denied."""
    if denied.thing and wish.second == denied.thing:
        wish = replace(wish, second=0, second_colour=0, relation=0)
    elif denied.thing and wish.second and wish.thing == denied.thing:
        wish = replace(wish, thing=wish.second, colour=wish.second_colour, count=1, size=0,
                       second=0, second_colour=0, relation=0)  # fmt: skip
    if denied.thing:
        return wish
    return replace(
        wish,
        colour=0 if wish.colour == denied.colour else wish.colour,
        second_colour=0 if wish.second_colour == denied.colour else wish.second_colour,
        scene=0 if wish.scene == denied.scene else wish.scene,
        hour=0 if wish.hour == denied.hour else wish.hour,
        weather=0 if wish.weather == denied.weather else wish.weather,
    )


@lru_cache(maxsize=256)
def _group(
    count: int, rows: int, columns: int, small: bool = False
) -> tuple[tuple[int, int, int], ...]:
    """(left, top, side) of equal boxes: the arrangement that lets them be largest, low in the frame."""
    side_max = (_SMALL_SIDE_MAX if small else _SIDE_MAX)[count]

    def side_of(lines: tuple[int, ...]) -> int:
        return min(columns // max(lines), rows // len(lines), side_max)

    lines = max(_LINES[count], key=side_of)  # the first of equals
    side = side_of(lines)
    spare = rows - side * len(lines)
    gap = 1 if len(lines) > 1 and spare >= len(lines) + 1 else 0
    top = (spare - gap * (len(lines) - 1) + 1) // 2
    boxes: list[tuple[int, int, int]] = []
    for k, things in enumerate(lines):
        pitch = min(columns // things, side + 1)
        left = (columns - (pitch * (things - 1) + side)) // 2
        boxes += [(left + i * pitch, top + k * (side + gap), side) for i in range(things)]
    return tuple(boxes)


@lru_cache(maxsize=256)
def _stack(rows: int, columns: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(upper, lower) boxes of one thing on another."""
    lower = min(4, rows // 2 + rows % 2, columns)
    upper = min(3, rows - lower, columns)
    top = (rows - upper - lower + 1) // 2
    return (
        ((columns - upper) // 2, top, upper),
        ((columns - lower) // 2, top + upper, lower),
    )


@lru_cache(maxsize=256)
def _uneven(rows: int, columns: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(large, small) boxes side by side on one floor."""
    small = min(3, rows, columns // 2)
    large = min(5, rows, columns - small)
    left, floor = (columns - large - small) // 2, (rows + large + 1) // 2
    return (left, floor - large, large), (left + large, floor - small, small)


@lru_cache(maxsize=256)
def _depth(rows: int, columns: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(back, front) boxes: the front one smaller, lower by a cell, and over a corner of the other."""
    back = min(5, rows - 1, columns - 2)
    front = min(3, back - 1)
    left, top = max(0, (columns - back - front + 1) // 2), (rows - back) // 2
    return (
        (left, top, back),
        (min(left + back - 1, columns - front), min(top + back + 1, rows) - front, front),
    )


def _boxes(
    wish: Wish, rows: int, columns: int
) -> list[tuple[tuple[int, int], tuple[int, int, int]]]:
    """Each thing and its colour with its (left, top, side), those in front last."""
    relation = RELATIONS[wish.relation]
    first, second = (wish.thing, wish.colour), (wish.second, wish.second_colour)
    if wish.second and relation in ("on", "under"):
        upper, lower = _stack(rows, columns)
        return (
            [(first, upper), (second, lower)]
            if relation == "on"
            else [(second, upper), (first, lower)]
        )
    if wish.second and relation in ("front", "behind"):
        back, front = _depth(rows, columns)
        return (
            [(second, back), (first, front)]
            if relation == "front"
            else [(first, back), (second, front)]
        )
    size = SIZES[wish.size]
    if wish.second and wish.count == 1 and size != "none":
        large, small = _uneven(rows, columns)
        return (
            [(first, large), (second, small)]
            if size == "big"
            else [(second, large), (first, small)]
        )
    extra = 1 if wish.second else 0
    total = min(wish.count + extra, COUNT_MAX)
    boxes = _group(total, rows, columns, small=size == "small")
    return list(zip([first] * (total - extra) + [second] * extra, boxes, strict=True))


def place(
    wish: Wish, grid: int, pose: int, area: tuple[int, int, int, int] | None = None
) -> list[Placement]:
    """Every thing of the picture in its box; within an area (left, top, columns, rows) where one is given.

    An area must have room (`has_room`); every whole grid has.
    """
    if not wish.thing:
        return []
    rows, columns = GRIDS[grid]
    first_column, first_row = 0, 0
    if area is not None:
        first_column, first_row, columns, rows = area
    boxes = _boxes(wish, rows, columns)
    room_left = min(left for _, (left, _, _) in boxes)
    room_right = min(columns - left - side for _, (left, _, side) in boxes)
    shift = max(-min(1, room_left), min(pose - 1, min(1, room_right)))
    return [
        Placement(thing, colour, first_column + left + shift, first_row + top, side)
        for (thing, colour), (left, top, side) in boxes
    ]


def has_room(wish: Wish, area: tuple[int, int, int, int]) -> bool:
    """Whether each thing of the wish can be at least as large as the smallest thing is."""
    return all(box.side >= SIDES[0] for box in place(wish, 0, 1, area))


def _ground_start(scene: int, variant: int, grid: int) -> int:
    before = sum(rows * columns for rows, columns in GRIDS[:grid])
    return 1 + ((scene - 1) * COMPOSITIONS + variant % COMPOSITIONS) * GRID_CELLS + before


def ground_rows(scenes: int) -> int:
    """How many rows the codebook of grounds has."""
    return 1 + (scenes - 1) * COMPOSITIONS * GRID_CELLS


def grounds(scene: int, variant: int, grid: int) -> np.ndarray:
    """The background's parts, one a cell; a plain ground (scene 0) has none of its own."""
    rows, columns = GRIDS[grid]
    if scene == 0:
        return np.zeros(rows * columns, dtype=np.int64)
    return _ground_start(scene, variant, grid) + np.arange(rows * columns, dtype=np.int64)


def air_rows() -> int:
    """How many rows the codebook of airs has."""
    return 1 + AIRS * AIR_PATTERNS * GRID_CELLS


def airs(hour: int, weather: int, variant: int, grid: int) -> np.ndarray:
    """(2, cells): the parts of the hour's and of the weather's air."""
    rows, columns = GRIDS[grid]
    cells = np.arange(rows * columns, dtype=np.int64)
    before = sum(r * c for r, c in GRIDS[:grid])
    found = np.zeros((2, len(cells)), dtype=np.int64)
    for which, kind in enumerate((hour - 1, weather + len(HOURS) - 2)):
        if (hour, weather)[which]:
            pattern = kind * AIR_PATTERNS + variant % AIR_PATTERNS
            found[which] = 1 + pattern * GRID_CELLS + before + cells
    return found


def plan(
    wish: Wish,
    grid: int,
    pose: int,
    variant: int,
    area: tuple[int, int, int, int] | None = None,
) -> Plan:
    """The denoiser's conditioning for a wish, one entry a cell in reading order."""
    rows, columns = GRIDS[grid]
    contents = np.full((rows, columns), EMPTY, dtype=np.int64)
    colours = np.zeros((rows, columns), dtype=np.int64)
    for box in place(wish, grid, pose, area):
        parts = np.arange(box.side * box.side).reshape(box.side, box.side)
        area = (slice(box.top, box.top + box.side), slice(box.left, box.left + box.side))
        contents[area] = 2 + (box.thing - 1) * PARTS + _SIDE_START[box.side] + parts
        colours[area] = box.colour
    ground = grounds(wish.scene, variant, grid)
    air = airs(wish.hour, wish.weather, variant, grid)
    return Plan(contents.reshape(-1), colours.reshape(-1), ground, air,
                wish.scene, variant, wish.hour, wish.weather)  # fmt: skip


def dropped_plan(grid: int, scenes: int) -> Plan:
    """The plan that asks for nothing in particular, for guidance."""
    cells = GRIDS[grid][0] * GRIDS[grid][1]
    contents = np.full(cells, DROPPED, dtype=np.int64)
    nothing = np.zeros(cells, dtype=np.int64)
    return Plan(contents, nothing, nothing, np.stack([nothing, nothing]), scenes, VARIANTS, 0, 0)


def positions(grid: int) -> np.ndarray:
    """(cells, 4): row, column, rows below, columns to the right."""
    rows, columns = GRIDS[grid]
    r, c = (axis.reshape(-1) for axis in np.indices((rows, columns)))
    return np.stack([r, c, rows - 1 - r, columns - 1 - c], axis=1).astype(np.float32)


def nearest_grid(width: int, height: int) -> int:
    """The grid whose shape is closest to the picture's."""
    wanted = np.log(width / height)
    return int(np.argmin([abs(np.log(c / r) - wanted) for r, c in GRIDS]))
