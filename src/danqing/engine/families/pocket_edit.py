"""The pixels of an edit: a reference into pocket's frame, a mask into cells, and what was drawn back into place.

Knows no network and no prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from danqing.domain.task import Pixels
from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_cut import cut_out
from danqing.engine.messages import Mask
from danqing.engine.pixels import laid_over

Floats = npt.NDArray[np.float32]

CELL_PX = 32
Area = tuple[int, int, int, int]
"""(left, top, columns, rows) in cells."""


@dataclass(slots=True)
class Canvas:
    """What an edit is laid on."""

    picture: Pixels
    """At the job's size."""
    latents: Floats
    noise: Floats
    leash: float = 1.0
    """How far the drawing may go from these latents, as a share of the way to what the network wants, 0-1."""
    kept: npt.NDArray[np.bool_] | None = None
    """Cells (in reading order, mirrored as the state is) that stay the reference's; None = no mask."""
    alpha: Floats | None = None
    """H x W x 1 at the job's size: 0 where the reference stays as it is, pixel for pixel."""
    filled: Pixels | None = None
    """The picture without what a mask marks, where the scene is not known: what was drawn is cut out and put there."""
    adds_detail: bool = False
    """The picture itself is varied: what the network changed is added to it."""


def framed(picture: Pixels, grid: int) -> Pixels:
    """The picture where the network would have drawn it: the inverse of `fit`, edges drawn out."""
    rows, columns = layout.GRIDS[grid]
    padded = _padded(picture, columns / rows)
    size = (columns * CELL_PX, rows * CELL_PX)
    return np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.LANCZOS))


def repainted_cells(mask: Mask, grid: int) -> npt.NDArray[np.bool_]:
    """rows x columns: the cells of which any pixel is repainted."""
    rows, columns = layout.GRIDS[grid]
    image = Image.fromarray(_padded(mask, columns / rows).astype(np.uint8) * 255)
    small = np.asarray(image.resize((columns * 8, rows * 8), Image.Resampling.BOX)) > 0
    return small.reshape(rows, 8, columns, 8).any(axis=(1, 3))


def area_of(cells: npt.NDArray[np.bool_]) -> Area | None:
    """The box around the cells to paint, made at least two cells wide and high; None without any."""
    if not cells.any():
        return None
    rows, columns = cells.shape
    down, right = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    top, left = min(int(down[0]), rows - 2), min(int(right[0]), columns - 2)
    return left, top, max(2, int(right[-1]) + 1 - left), max(2, int(down[-1]) + 1 - top)


def that_fits(wish: layout.Wish, area: Area) -> layout.Wish:
    """As much of the wish as has room in an area: fewer things, then without the second."""
    while wish.thing and not layout.has_room(wish, area):
        if wish.count > 1:
            wish = replace(wish, count=wish.count - 1)
        else:
            wish = replace(wish, second=0, relation=0, second_colour=0, size=0)
    return wish


def reframed(picture: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """The picture seen a little closer, sometimes mirrored, in slightly other tones; more with strength."""
    height, width = picture.shape[:2]
    zoom = 1 - strength * rng.uniform(0.1, 0.3)
    left, top = rng.uniform(0, width * (1 - zoom)), rng.uniform(0, height * (1 - zoom))
    box = (left, top, left + width * zoom, top + height * zoom)
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box=box)
    gamma = np.exp(strength * rng.uniform(-0.4, 0.4, 3))
    steps = (np.arange(256)[:, None] / 255) ** gamma * 255
    tones = np.round(steps).astype(np.uint8)
    toned = np.stack([tones[:, c][np.asarray(image)[:, :, c]] for c in range(3)], axis=2)
    return np.ascontiguousarray(toned[:, ::-1] if rng.random() < strength / 2 else toned)


def laid(canvas: Canvas, drawn: Pixels, before: Pixels | None) -> Pixels:
    """What was drawn, on the canvas. All at one size; `before`: the untouched canvas as the network shows it."""
    height, width = drawn.shape[:2]
    picture = canvas.picture
    if picture.shape != drawn.shape:  # a preview
        picture = np.asarray(Image.fromarray(picture).resize((width, height)))
    if canvas.adds_detail and before is not None:
        change = drawn.astype(np.int16) - before.astype(np.int16)
        drawn = np.clip(picture.astype(np.int16) + change, 0, 255).astype(np.uint8)
    if canvas.filled is not None:
        ground = canvas.filled
        if ground.shape != drawn.shape:
            ground = np.asarray(Image.fromarray(ground).resize((width, height)))
        drawn = np.round(ground + cut_out(drawn) * (drawn.astype(np.float32) - ground))
        drawn = np.clip(drawn, 0, 255).astype(np.uint8)
    return laid_over(canvas.picture, drawn, canvas.alpha)


def _padded(picture: npt.NDArray[np.generic], ratio: float) -> npt.NDArray[np.generic]:
    """Widened or heightened evenly, by its own edges, to this ratio of width to height."""
    height, width = picture.shape[:2]
    across = max(0, round(height * ratio) - width)
    down = max(0, round(width / ratio) - height)
    pads = [(down // 2, down - down // 2), (across // 2, across - across // 2)]
    return np.pad(picture, [*pads, *[(0, 0)] * (picture.ndim - 2)], mode="edge")
